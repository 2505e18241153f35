//! The global weights on their way to workers.

use serde::{Deserialize, Serialize};

use crate::codec::Codec;
use crate::{Chunks, Digest, Round};

/// One copy of the global weights as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// The snapshot's round.
    pub round: Round,
    /// The encoding of the chunks.
    pub codec: Codec,
    /// The chunks of the layout, in order.
    pub chunks: Chunks,
}

impl Weights {
    /// One digest for all chunks ([`Chunks::digest`]).
    pub fn digest(&self) -> Digest {
        self.chunks.digest()
    }
}
