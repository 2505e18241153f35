//! The global weights on their way to workers.

use serde::{Deserialize, Serialize};

use crate::codec::Codec;
use crate::{ObjectRef, Round};

/// One copy of the global weights as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// The snapshot's round.
    pub round: Round,
    /// How the chunks are encoded.
    pub codec: Codec,
    /// One object per chunk of the layout, in order.
    pub chunks: Vec<ObjectRef>,
}
