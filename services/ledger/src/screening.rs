//! The comparison of contributions: of their norms, stated losses and directions before a merge,
//! and of their chunks. It depends on the ledger alone, so that every reader knows what had to be
//! left out, and a ledger that leaves out another contribution is refused. The cosines come from
//! the foundry, in an event before the seal; an auditor with the objects computes them again.

use std::collections::BTreeMap;

use schemas::lease::UnitId;
use schemas::run::Comparison;
use schemas::snapshot::MergeInput;
use schemas::sync::ComparedInput;
use schemas::voice::{Voice, voices};
use schemas::{Code, Digest, Epoch, Round, UnitIndex, WorkerId};
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

/// Fewest workers, or contributions, of which one can be told from the others: of two, nobody knows
/// which one is wrong.
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
        let inputs: Vec<&MergeInput> = self.comparable(round).collect();
        let voices = self.voices(&inputs);
        if inputs.iter().all(|input| input.cosine.is_some()) && decide(&voices) {
            let falls = |at: &usize| {
                let cosine = inputs[*at].cosine;
                cosine.is_some_and(|cosine| cosine < least as f32)
            };
            let judged = voices.iter().map(|voice| Judged {
                falls: voice.inputs.iter().any(falls),
                votes: voice.votes,
            });
            if let Some(fallen) = minority(&judged.collect::<Vec<_>>()) {
                let fallen = fallen.into_iter().flat_map(|at| &voices[at].inputs);
                let units = fallen.map(|at| inputs[*at].lease.unit.index);
                outliers.extend(units.map(|unit| (unit, Code::DirectionOutlier)));
            }
        }
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
            let falls = units.into_iter().zip(unlike(ratio, &losses));
            out.extend(self.few_workers(round, falls.collect()));
        }
        out
    }

    /// Those of the contributions of a round that fall out for their losses, if they are of few
    /// workers.
    fn few_workers(&self, round: Round, falls: Vec<(UnitIndex, bool)>) -> Vec<(UnitIndex, Code)> {
        let open = self.syncs(round).next();
        let inputs = open.into_iter().flat_map(|(_, open)| open.inputs());
        let makers = inputs.map(|input| (input.lease.unit.index, &input.worker));
        let makers: BTreeMap<UnitIndex, &WorkerId> = makers.collect();
        let mut by_worker: BTreeMap<Option<&WorkerId>, Judged> = BTreeMap::new();
        for (unit, falls) in &falls {
            let maker = makers.get(unit).copied();
            let judged = by_worker.entry(maker).or_insert(Judged {
                falls: false,
                votes: true,
            });
            judged.falls |= falls;
        }
        let judged: Vec<Judged> = by_worker.into_values().collect();
        let fallen = falls.into_iter().filter(|(_, falls)| *falls);
        match minority(&judged) {
            Some(_) => fallen.map(|(unit, _)| (unit, Code::LossOutlier)).collect(),
            None => Vec::new(),
        }
    }

    fn voices(&self, inputs: &[&MergeInput]) -> Vec<Voice> {
        voices(&self.spec.policy.comparison, inputs.iter().copied())
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

    /// The contributions to an open round whose directions must be compared before its seal, if
    /// they are not: ascending by unit. The comparison may begin once the round has all that it
    /// waits for.
    pub fn uncompared(&self, round: Round) -> Vec<MergeInput> {
        if self.spec.policy.comparison.cosine_min().is_none() {
            return Vec::new();
        }
        let all: Vec<&MergeInput> = self.comparable(round).collect();
        let missing = all.iter().any(|input| input.cosine.is_none());
        match missing && decide(&self.voices(&all)) {
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
            .into_iter()
            .map(|input| ((input.lease.unit.index, input.lease.epoch), input.worker));
        let due: BTreeMap<(UnitIndex, Epoch), WorkerId> = due.collect();
        let units = self.spec.schedule.units as usize;
        let inputs = self.syncs(round).next().map(|(_, open)| open);
        if inputs.is_none_or(|open| !open.collects() || open.inputs().count() < units) {
            return Err(wrong("not all of its contributions are in"));
        }
        if cosines.is_empty() || !cosines.is_sorted_by(|a, b| a.unit < b.unit) {
            return Err(wrong("it names nothing, or not in order"));
        }
        let mut told: BTreeMap<&WorkerId, f32> = BTreeMap::new();
        for compared in cosines {
            // A part may be named again, by a coordinator that begins the comparison anew.
            let maker = due.get(&(compared.unit, compared.epoch));
            let maker = maker.filter(|_| (-1.0..=1.0).contains(&compared.cosine));
            let Some(maker) = maker else {
                return Err(wrong(
                    "a contribution is not to be compared, or has no cosine",
                ));
            };
            if *told.entry(maker).or_insert(compared.cosine) != compared.cosine {
                return Err(wrong("the contributions of a worker have two cosines"));
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

/// The verdict about one worker's contributions to a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// True if one of them is unlike the others.
    pub falls: bool,
    /// True if the worker counts.
    pub votes: bool,
}

/// The positions of the workers that fall, of at least three that vote, if those that vote and fall
/// are less than half: with half of them or more, or of two, nobody can tell who is wrong, and all
/// stay. They are counted by workers, since one can take as many units of a round as it likes.
pub fn minority(judged: &[Judged]) -> Option<Vec<usize>> {
    let voters = judged.iter().filter(|one| one.votes);
    let fallen = voters.clone().filter(|one| one.falls).count();
    let voters = voters.count();
    let falls = judged.iter().enumerate().filter(|(_, one)| one.falls);
    let falls = falls.map(|(position, _)| position);
    (voters >= COMPARED_MIN && 2 * fallen < voters).then(|| falls.collect())
}

/// True if so many workers vote that one can be told from the others.
fn decide(voices: &[Voice]) -> bool {
    voices.iter().filter(|voice| voice.votes).count() >= COMPARED_MIN
}

/// The lower median of the norms above 0: the lower one of the two in the middle. 0 of none.
fn lower_median(mut norms: Vec<f64>) -> f64 {
    norms.retain(|norm| *norm > 0.0);
    norms.sort_unstable_by(f64::total_cmp);
    let middle = norms.len().saturating_sub(1) / 2;
    norms.get(middle).copied().unwrap_or_default()
}
