//! The comparison of contributions: of their norms, stated losses and directions before a merge, and
//! of their chunks. It depends on the ledger alone, so that every reader knows what had to be left
//! out, and a ledger that leaves out another contribution is refused. The cosines come from the
//! foundry, in an event before the seal; an auditor with the objects computes them again.

use std::collections::{BTreeMap, BTreeSet};

use schemas::lease::UnitId;
use schemas::run::Comparison;
use schemas::snapshot::MergeInput;
use schemas::sync::ComparedInput;
use schemas::{Code, Digest, Epoch, Round, UnitIndex};
use serde::Serialize;

use crate::error::{ApplyError, out_of_place};
use crate::state::{OpenSync, Run};

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

/// Fewest contributions of which one can be told from the others: of two, nobody knows which one is
/// wrong.
const COMPARED_MIN: usize = 3;

impl Run {
    /// The contributions to an open round that have to be left out of its merge, each with the
    /// code of its reason: their norms are too large beside those of the round and of earlier
    /// contributions that counted, their stated losses are unlike the others, or they point against
    /// the others.
    pub fn outliers(&self, round: Round) -> BTreeMap<UnitIndex, Code> {
        let mut outliers = self.outliers_alone(round);
        let Some(least) = self.spec.policy.comparison.cosine_min() else {
            return outliers;
        };
        let cosines = self.comparable(round).filter_map(|input| {
            let cosine = input.cosine?;
            Some((input.lease.unit.index, cosine < least as f32))
        });
        outliers.extend(minority(cosines.collect(), Code::DirectionOutlier));
        outliers
    }

    /// Those that are left out for what each of them states or has by itself: its norm, its loss.
    fn outliers_alone(&self, round: Round) -> BTreeMap<UnitIndex, Code> {
        let Comparison::Others {
            norm_ratio_max,
            loss_ratio_max,
            ..
        } = self.spec.policy.comparison
        else {
            return BTreeMap::new();
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
        let long = judged.filter(|(_, outlier)| *outlier);
        let mut out: BTreeMap<UnitIndex, Code> = long
            .map(|((unit, _), _)| (unit.index, Code::NormOutlier))
            .collect();
        if let Some(ratio) = loss_ratio_max {
            let stay = of_round().filter(|(unit, _)| !out.contains_key(&unit.index));
            let (units, losses): (Vec<_>, Vec<_>) =
                stay.map(|(unit, found)| (unit.index, found.loss)).unzip();
            let judged = units.into_iter().zip(unlike(ratio, &losses)).collect();
            out.extend(minority(judged, Code::LossOutlier));
        }
        out
    }

    /// The contributions to an open round whose directions are compared: all with a length, but for
    /// those that are left out anyway.
    fn comparable(&self, round: Round) -> impl Iterator<Item = &MergeInput> {
        let alone = self.outliers_alone(round);
        let open = self.syncs(round).next();
        let inputs = open.into_iter().flat_map(|(_, open)| open.inputs());
        inputs.filter(move |input| {
            let has_length = input
                .norm
                .is_some_and(|norm| norm > 0.0 && norm.is_finite());
            has_length && !alone.contains_key(&input.lease.unit.index)
        })
    }

    /// The contributions to an open round whose directions must be compared before its seal, if they
    /// are not: ascending by unit. The comparison may begin once the round has all that it waits
    /// for.
    pub fn uncompared(&self, round: Round) -> Vec<MergeInput> {
        if self.spec.policy.comparison.cosine_min().is_none() {
            return Vec::new();
        }
        let all: Vec<&MergeInput> = self.comparable(round).collect();
        let missing = all.iter().any(|input| input.cosine.is_none());
        match all.len() >= COMPARED_MIN && missing {
            true => all.into_iter().cloned().collect(),
            false => Vec::new(),
        }
    }

    /// Takes the cosines of a round, or a part of them.
    pub(crate) fn compare(
        &mut self,
        round: Round,
        cosines: &[ComparedInput],
    ) -> Result<(), ApplyError> {
        let wrong = |what: &str| out_of_place("round-compared", format!("round {round}: {what}"));
        let due = self.uncompared(round);
        let due = due
            .iter()
            .map(|input| (input.lease.unit.index, input.lease.epoch));
        let due: BTreeSet<(UnitIndex, Epoch)> = due.collect();
        let units = self.spec.schedule.units as usize;
        let inputs = self.syncs(round).next().map(|(_, open)| open);
        if inputs.is_none_or(|open| !open.collects() || open.inputs().count() < units) {
            return Err(wrong("not all of its contributions are in"));
        }
        if cosines.is_empty() || !cosines.is_sorted_by(|a, b| a.unit < b.unit) {
            return Err(wrong("it names nothing, or not in order"));
        }
        for compared in cosines {
            // A part may be named again, by a coordinator that begins the comparison anew.
            let is_due = due.contains(&(compared.unit, compared.epoch));
            if !is_due || !(-1.0..=1.0).contains(&compared.cosine) {
                return Err(wrong(
                    "a contribution is not to be compared, or has no cosine",
                ));
            }
        }
        for (_, open) in self.open.iter_mut().filter(|(sync, _)| sync.round == round) {
            let OpenSync::Collecting(inputs) = open else {
                continue;
            };
            for compared in cosines {
                if let Some(input) = inputs.get_mut(&compared.unit) {
                    input.cosine = Some(compared.cosine);
                }
            }
        }
        Ok(())
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

/// For each loss of a round, true if it is more than `ratio` times the lower median, or that many
/// times less. Nothing is told of fewer than three, or where the median is 0.
pub fn unlike(ratio: f64, losses: &[f64]) -> Vec<bool> {
    let median = lower_median(losses.to_vec());
    let judges = losses.len() >= COMPARED_MIN && median > 0.0;
    let judged = losses
        .iter()
        .map(|loss| judges && (*loss > ratio * median || *loss * ratio < median));
    judged.collect()
}

/// Those of at least three that fall out, if they are less than half: with half of them or more,
/// nobody can tell who is wrong, and all stay.
pub fn minority(judged: Vec<(UnitIndex, bool)>, code: Code) -> BTreeMap<UnitIndex, Code> {
    let all = judged.len();
    let out: BTreeMap<_, _> = judged
        .into_iter()
        .filter(|(_, falls)| *falls)
        .map(|(unit, _)| (unit, code))
        .collect();
    match all >= COMPARED_MIN && 2 * out.len() < all {
        true => out,
        false => BTreeMap::new(),
    }
}

/// The lower median of the norms above 0: the lower one of the two in the middle. 0 of none.
fn lower_median(mut norms: Vec<f64>) -> f64 {
    norms.retain(|norm| *norm > 0.0);
    norms.sort_unstable_by(f64::total_cmp);
    let middle = norms.len().saturating_sub(1) / 2;
    norms.get(middle).copied().unwrap_or_default()
}
