//! Synchronisations: merges of a round into one fragment of the weights.

use serde::{Deserialize, Serialize};

use crate::{Epoch, Fragment, Round, UnitIndex, Weight};

/// The merge of one round's contributions into one fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncId {
    /// The round.
    pub round: Round,
    /// The fragment.
    pub fragment: Fragment,
}

/// A contribution in a sealed set, with its weight. A round may have thousands and an event is
/// limited, so it is written as three numbers without names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    from = "(UnitIndex, Epoch, Weight)",
    into = "(UnitIndex, Epoch, Weight)"
)]
pub struct SealedInput {
    /// The training unit.
    pub unit: UnitIndex,
    /// The lease of the unit under which the contribution was accepted.
    pub epoch: Epoch,
    /// Its weight in the mean.
    pub weight: Weight,
}

impl From<(UnitIndex, Epoch, Weight)> for SealedInput {
    fn from((unit, epoch, weight): (UnitIndex, Epoch, Weight)) -> Self {
        Self {
            unit,
            epoch,
            weight,
        }
    }
}

impl From<SealedInput> for (UnitIndex, Epoch, Weight) {
    fn from(input: SealedInput) -> Self {
        (input.unit, input.epoch, input.weight)
    }
}

/// A contribution whose direction was compared. A round may have thousands, so it is written as
/// three numbers without names.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "(UnitIndex, Epoch, f32)", into = "(UnitIndex, Epoch, f32)")]
pub struct ComparedInput {
    /// The training unit.
    pub unit: UnitIndex,
    /// The lease of the unit under which the contribution was accepted.
    pub epoch: Epoch,
    /// The cosine of its direction to the mean direction of the others that were compared.
    pub cosine: f32,
}

impl From<(UnitIndex, Epoch, f32)> for ComparedInput {
    fn from((unit, epoch, cosine): (UnitIndex, Epoch, f32)) -> Self {
        Self {
            unit,
            epoch,
            cosine,
        }
    }
}

impl From<ComparedInput> for (UnitIndex, Epoch, f32) {
    fn from(input: ComparedInput) -> Self {
        (input.unit, input.epoch, input.cosine)
    }
}

impl std::fmt::Display for SyncId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "round {}, fragment {}", self.round, self.fragment)
    }
}
