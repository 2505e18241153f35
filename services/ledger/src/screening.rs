//! The comparison of contributions: of their norms before a merge, and of their chunks. It depends
//! on the ledger alone, so that every reader knows what had to be left out, and a ledger that
//! leaves out another contribution is refused.

use std::collections::BTreeSet;

use schemas::lease::UnitId;
use schemas::run::Comparison;
use schemas::{Digest, Round, UnitIndex};
use serde::Serialize;

use crate::state::Run;

/// A contribution that later ones are compared with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Its norm.
    pub norm: f64,
    /// The loss that it states.
    pub loss: f64,
    /// The digest of its chunks.
    pub chunks: Digest,
    /// False once it is left out of its merge.
    pub counts: bool,
}

/// Older contributions whose norms are compared with those of a round: several rounds of a small
/// team, and less than one of a large team, which has enough norms of its own.
const OLDER_MAX: usize = 16;

impl Run {
    /// The contributions to an open round that have to be left out of its merge, since their norms
    /// are too large beside those of the round and of earlier contributions that counted.
    pub fn outliers(&self, round: Round) -> BTreeSet<UnitIndex> {
        let Comparison::Others { norm_ratio_max } = self.spec.policy.comparison else {
            return BTreeSet::new();
        };
        let of_round = || {
            self.measured
                .iter()
                .filter(move |(unit, _)| unit.round == round)
        };
        let older = self.measured.iter().filter(|(unit, _)| unit.round < round);
        let older = older.filter(|(_, found)| found.counts);
        let norms = |of: Vec<&Measured>| of.into_iter().map(|found| found.norm).collect();
        let (norms, older): (Vec<f64>, Vec<f64>) = (
            norms(of_round().map(|(_, found)| found).collect()),
            norms(older.map(|(_, found)| found).collect()),
        );
        let judged = of_round().zip(outliers(norm_ratio_max, &norms, &older));
        let outliers = judged.filter(|(_, outlier)| *outlier);
        outliers.map(|((unit, _), _)| unit.index).collect()
    }

    /// A unit of the round before whose contribution has these chunks. Within a round nobody can
    /// tell the copy from the original: a worker that knows the data of another unit can train it
    /// too, and hand it in first.
    pub fn copied_from(&self, unit: &UnitId, chunks: Digest) -> Option<UnitId> {
        let before = self
            .measured
            .iter()
            .filter(|(other, found)| other.round.next() == unit.round && found.chunks == chunks);
        before.map(|(other, _)| *other).next()
    }

    /// Forgets contributions to rounds before `round`, except for some that later ones are compared
    /// with.
    pub(crate) fn forget_measured(&mut self, round: Round) {
        let older = self.measured.keys().filter(|unit| unit.round < round);
        for _ in OLDER_MAX..older.count().max(OLDER_MAX) {
            self.measured.pop_first();
        }
    }
}

/// For each norm of a round, true if it is too large beside the others: more than `norm_ratio_max`
/// times the larger one of two lower medians, of the round, and of the round together with `older`
/// norms that counted.
///
/// Half of the contributions cannot raise either median. With the older norms, one that is tiny
/// does not make an honest one look large. At least half of a round always stays. A norm of 0 says
/// nothing about the others.
pub fn outliers(norm_ratio_max: f64, round: &[f64], older: &[f64]) -> Vec<bool> {
    let alone = lower_median(round.to_vec());
    let together = lower_median([round, older].concat());
    let usual = alone.max(together);
    let judged = round
        .iter()
        .map(|norm| usual > 0.0 && *norm > norm_ratio_max * usual);
    judged.collect()
}

/// The lower median of the norms above 0: the lower one of the two in the middle. 0 of none.
fn lower_median(mut norms: Vec<f64>) -> f64 {
    norms.retain(|norm| *norm > 0.0);
    norms.sort_unstable_by(f64::total_cmp);
    let middle = norms.len().saturating_sub(1) / 2;
    norms.get(middle).copied().unwrap_or_default()
}
