//! The fold of a round, opened, sealed and merged; and the weights that are kept.

use std::collections::BTreeMap;

use schemas::contribution::{Contribution, Fate};
use schemas::lease::{LeaseRef, UnitId, UnitKind, Weights};
use schemas::snapshot::{MergeInput, MergeRecord};
use schemas::sync::SealedInput;
use schemas::view::LeftOutView;
use schemas::{
    Code, Digest, Epoch, ObjectRef, Round, SyncId, UnitIndex, UnixMillis, Weight, WorkerId,
};

use crate::error::{ApplyError, out_of_place};
use crate::screening::Measured;
use crate::state::{
    Accepted, OpenSync, ROUNDS_REMEMBERED, RoundRecord, Run, SnapshotRecord, Standing, Unit,
};

/// Contributions that were left out of their merges, kept to be shown; the ledger has all.
const LEFT_OUT_MAX: usize = 8;

impl Run {
    pub(crate) fn open(&mut self, time: UnixMillis, round: Round) -> Result<(), ApplyError> {
        let next = round.get() == self.rounds.len() as u64;
        let planned = self.plans(round) && !self.ended_early();
        if !next
            || !planned
            || !self.affords_round()
            || self.open_rounds().count() >= self.rule().open_max
        {
            return Err(out_of_place("round-opened", format!("round {round}")));
        }
        let base = self.rounds_closed();
        self.rounds.push(RoundRecord {
            opened_at: time,
            ..RoundRecord::default()
        });
        for fragment in self.spec.fragments() {
            let open = OpenSync::Collecting(BTreeMap::new());
            self.open.insert(SyncId { round, fragment }, open);
        }
        for index in (0..self.spec.schedule.units).map(UnitIndex) {
            let kind = UnitKind::Train;
            self.offer(UnitId { round, kind, index }, base);
        }
        self.offer_evaluation(base);
        Ok(())
    }

    fn offer(&mut self, unit: UnitId, base: Round) {
        let open = Unit {
            epoch: Epoch(0),
            base,
            standing: Standing::Open,
            failed_by: None,
        };
        self.units.insert(unit, open);
    }

    /// Offers the evaluation of a version, once, if the settings ask for it. The weights at
    /// which a budget ends a run are evaluated as the last ones are.
    pub(crate) fn offer_evaluation(&mut self, version: Round) {
        let unit = evaluation_unit(version);
        let offered = self.evaluations.contains_key(&version) || self.units.contains_key(&unit);
        let last = self.ended_early() && self.spec.schedule.evaluation_every > 0;
        if (self.evaluates(version) || last) && !offered {
            self.offer(unit, version);
        }
    }

    /// True while a contribution to the round may count.
    pub fn collects(&self, round: Round) -> bool {
        self.syncs(round).any(|(_, open)| open.collects())
    }

    pub(crate) fn syncs(&self, round: Round) -> impl Iterator<Item = (&SyncId, &OpenSync)> {
        self.open
            .iter()
            .filter(move |(sync, _)| sync.round == round)
    }

    /// Takes a contribution: it counts while its round collects, and is late from the seal on.
    pub(crate) fn accept(
        &mut self,
        lease: &LeaseRef,
        worker: &WorkerId,
        contribution: &Contribution,
        norm: f64,
        statement: Digest,
    ) -> Result<(), ApplyError> {
        let unit = lease.unit;
        if unit.kind != UnitKind::Train {
            let what = format!("lease {lease}");
            return Err(out_of_place("contribution-accepted", what));
        }
        if self.is_masked() && !self.is_fixed(&unit) {
            let what = format!("lease {lease} before its cohort is sealed");
            return Err(out_of_place("contribution-accepted", what));
        }
        // One that names none was made before contributions did, or its coordinator left the cohort
        // out: then it is not what its worker signed, which an auditor finds.
        let named = contribution.cohort;
        if named.is_some() && named != self.cohort_digest(unit.round) {
            let what = format!("lease {lease} under the masks of another cohort");
            return Err(out_of_place("contribution-accepted", what));
        }
        let counts = self.collects(unit.round);
        self.held("contribution-accepted", lease, worker)?.standing = Standing::Done;
        let fate = if counts {
            self.add_input(lease, worker, contribution, norm);
            Fate::Merged
        } else {
            self.units.remove(&unit);
            self.tokens.late += self.unit_tokens(&unit);
            Fate::Late
        };
        let accepted = Accepted {
            epoch: lease.epoch,
            statement,
            fate,
        };
        self.accepted.insert(unit, accepted);
        self.uploaded += contribution.chunks.total();
        if self.account.is_some() {
            let list = usize::from(contribution.chunks.listed().is_some());
            self.objects += (contribution.chunks.count() + list) as u64;
        }
        self.count(worker, |member| {
            member.lease = None;
            member.accepted += 1;
        });
        Ok(())
    }

    fn add_input(
        &mut self,
        lease: &LeaseRef,
        worker: &WorkerId,
        contribution: &Contribution,
        norm: f64,
    ) {
        let unit = lease.unit;
        let tokens = self.unit_tokens(&unit);
        // Where norms decide, the record of a merge has them, so that an auditor compares them.
        let decides = self.spec.combination.needs_norms() || !self.spec.policy.comparison.is_none();
        let input = MergeInput {
            lease: *lease,
            worker: worker.clone(),
            tokens: contribution.tokens,
            weight: Weight::of_tokens(contribution.tokens),
            norm: decides.then_some(norm as f32),
            cosine: None,
            chunks: contribution.chunks.clone(),
        };
        if !self.spec.policy.comparison.is_none() {
            let measured = Measured {
                norm,
                loss: contribution.loss,
                chunks: contribution.chunks.digest(),
                counts: true,
            };
            self.measured.insert(unit, measured);
        }
        for (sync, open) in &mut self.open {
            if let OpenSync::Collecting(inputs) = open
                && sync.round == unit.round
            {
                inputs.insert(unit.index, input.clone());
            }
        }
        let record = self.rounds.get_mut(unit.round.get() as usize);
        let record = record.expect("a round that collects has a record");
        record.tokens += tokens;
        record.loss_sum += contribution.loss * tokens.get() as f64;
        self.tokens.merged += tokens;
    }

    /// Names the inputs of a merge. From the first part on no other contribution counts; the last
    /// part completes the set, which then holds everything that had been accepted. The run's
    /// closing rule ([`Rule`](crate::rule::Rule)) says when a round may be sealed and what each
    /// input weighs.
    pub(crate) fn seal(
        &mut self,
        sync: SyncId,
        (inputs, reasons): (&[SealedInput], &[(UnitIndex, Code)]),
        rest: u32,
    ) -> Result<(), ApplyError> {
        let wrong = |what: &str| out_of_place("round-sealed", format!("{sync}: {what}"));
        let rule = self.rule();
        let (mut set, mut unnamed) = match self.open.get(&sync) {
            Some(OpenSync::Collecting(inputs)) => (Vec::new(), inputs.clone()),
            Some(OpenSync::Sealing { set, rest }) => (set.clone(), rest.clone()),
            Some(OpenSync::Sealed(_)) => return Err(wrong("it is sealed")),
            None => return Err(wrong("it is not open")),
        };
        if ((set.len() + unnamed.len()) as u64) < u64::from(rule.inputs_min) {
            return Err(wrong("its run waits for more units than are in"));
        }
        self.check_masked_seal(sync.round)?;
        if rule.by_tokens && !self.uncompared(sync.round).is_empty() {
            return Err(wrong("the directions of its inputs are not compared"));
        }
        let outliers = self.outliers(sync.round);
        for named in inputs {
            let found = unnamed.remove(&named.unit);
            let input = found.filter(|input| input.lease.epoch == named.epoch);
            let input = input.ok_or_else(|| wrong("an input was not accepted"))?;
            let expected = match outliers.contains_key(&named.unit) {
                true => Weight(0),
                false => input.weight,
            };
            if rule.by_tokens && named.weight != expected {
                return Err(wrong(
                    "an input does not weigh its tokens, or an outlier weighs",
                ));
            }
            let ascends = |last: &MergeInput| last.lease.unit < input.lease.unit;
            if !set.last().is_none_or(ascends) {
                return Err(wrong("its inputs do not ascend"));
            }
            set.push(MergeInput {
                weight: named.weight,
                ..input
            });
        }
        let named = inputs.iter().map(|named| named.unit);
        let due: Vec<(UnitIndex, Code)> = named
            .filter_map(|unit| Some((unit, *outliers.get(&unit)?)))
            .collect();
        // The seals of an earlier release, which compared norms alone, give no reasons.
        let comparison = &self.spec.policy.comparison;
        let norms_alone =
            comparison.cosine_min().is_none() && comparison.loss_ratio_max().is_none();
        let silent = reasons.is_empty() && norms_alone;
        if rule.by_tokens && reasons != due && !silent {
            return Err(wrong("it gives other reasons for what it leaves out"));
        }
        if inputs.is_empty() || unnamed.len() as u64 != u64::from(rest) {
            return Err(wrong("it does not name what was accepted"));
        }
        let sealed = if rest > 0 {
            OpenSync::Sealing { set, rest: unnamed }
        } else if weigh_nothing(&set) {
            return Err(wrong("its inputs weigh nothing"));
        } else {
            self.sealed.push(sync);
            OpenSync::Sealed(set)
        };
        self.open.insert(sync, sealed);
        self.seals = true;
        let left_out = inputs.iter().filter(|named| named.weight == Weight(0));
        for named in left_out {
            if let Some(code) = outliers.get(&named.unit) {
                self.leave_out(sync.round, named.unit, *code);
            }
        }
        if !self.collects(sync.round) {
            // Nobody may begin a unit that cannot count; holders may finish theirs.
            self.units.retain(|unit, state| {
                !is_training(unit, sync.round) || state.standing != Standing::Open
            });
        }
        Ok(())
    }

    /// Takes back that a contribution counts, which was accepted. Its worker gets no strike:
    /// workers with more units than all others decide what is usual, and an honest one whose
    /// moments are new takes longer steps for a while.
    fn leave_out(&mut self, round: Round, index: UnitIndex, code: Code) {
        let kind = UnitKind::Train;
        let unit = UnitId { round, kind, index };
        let measured = self.measured.get_mut(&unit);
        let measured = measured.expect("an outlier was measured");
        // A round of several fragments names its contributions once for each.
        if !std::mem::replace(&mut measured.counts, false) {
            return;
        }
        let loss = measured.loss;
        let tokens = self.unit_tokens(&unit);
        self.tokens.merged = self.tokens.merged - tokens;
        self.tokens.rejected += tokens;
        let record = self.rounds.get_mut(round.get() as usize);
        let record = record.expect("a round that is sealed has a record");
        record.tokens = record.tokens - tokens;
        record.loss_sum -= loss * tokens.get() as f64;
        let accepted = self.accepted.get_mut(&unit);
        let accepted = accepted.expect("results of an open round are kept");
        accepted.fate = Fate::Rejected;
        let worker = {
            let mut inputs = self.syncs(round).flat_map(|(_, open)| open.inputs());
            let input = inputs.find(|input| input.lease.unit == unit);
            input.expect("an outlier is an input").worker.clone()
        };
        if self.left_out.len() == LEFT_OUT_MAX {
            self.left_out.remove(0);
        }
        self.left_out.push(LeftOutView { unit, worker, code });
    }

    /// Takes the weights that result from a sealed set.
    pub(crate) fn close(
        &mut self,
        time: UnixMillis,
        sync: SyncId,
        broadcast: &Weights,
        norm: f64,
    ) -> Result<(), ApplyError> {
        let wrong = || out_of_place("round-closed", sync.to_string());
        let version = self.version(sync.fragment).next();
        let inputs = match self.next_merge(sync.fragment) {
            Some((next, inputs)) if next == sync => Some(inputs.to_vec()),
            Some(_) => None,
            None => self.unsealed(sync),
        };
        let inputs = inputs.ok_or_else(wrong)?;
        let unmasking = self.unmasking(sync.round).cloned();
        if broadcast.round != version || self.is_masked() && unmasking.is_none() {
            return Err(wrong());
        }
        self.open.remove(&sync);
        self.sealed.retain(|sealed| *sealed != sync);
        self.note_merged(sync.round, &inputs);
        self.merges.push(MergeRecord {
            round: sync.round,
            fragment: sync.fragment,
            inputs,
            broadcast: broadcast.digest(),
            unmasking,
        });
        let weights = broadcast.clone();
        self.weights.insert((sync.fragment, version), weights);
        if self.syncs(sync.round).next().is_none() {
            self.close_round(time, sync.round, norm);
        }
        self.forget_weights();
        Ok(())
    }

    /// The set of a round that an earlier release merged without naming it: all accepted inputs,
    /// each weighed by its tokens, once all were in. None in a ledger that names its sets.
    fn unsealed(&self, sync: SyncId) -> Option<Vec<MergeInput>> {
        let open = self.open.get(&sync).filter(|_| !self.seals)?;
        let full = open.inputs().count() as u64 == u64::from(self.spec.schedule.units);
        full.then(|| open.inputs().cloned().collect())
    }

    /// Closes a round whose fragments are all merged.
    fn close_round(&mut self, time: UnixMillis, round: Round, norm: f64) {
        let record = self.rounds.get_mut(round.get() as usize);
        let record = record.expect("a round that was open has a record");
        record.closed_at = Some(time);
        record.norm = Some(norm);
        self.units.retain(|unit, state| {
            !is_training(unit, round) || matches!(state.standing, Standing::Held { .. })
        });
        self.book_round(round);
        self.cohorts.remove(&round);
        self.forget_measured(round);
        self.accepted
            .retain(|unit, _| unit.round.get() + ROUNDS_REMEMBERED > round.get());
        if self.all_rounds_closed() {
            self.offer_evaluation(self.rounds_closed());
        }
    }

    /// Keeps the newest weights and those that units start from.
    pub(crate) fn forget_weights(&mut self) {
        let newest = self.rounds_closed();
        let Self { weights, units, .. } = self;
        let read = |version: &Round| units.values().any(|unit| unit.base == *version);
        weights.retain(|(_, version), _| *version >= newest || read(version));
    }

    pub(crate) fn saved(
        &mut self,
        time: UnixMillis,
        round: Round,
        manifest: ObjectRef,
        statement: Option<ObjectRef>,
    ) -> Result<(), ApplyError> {
        let newer = self.last_snapshot().is_none_or(|last| last.round < round);
        let newest = self.rounds_closed();
        // The initial weights are named by the settings, so nobody saves them.
        if round == Round(0) || !newer || round > newest {
            return Err(out_of_place("snapshot-saved", format!("snapshot {round}")));
        }
        for fragment in self.spec.fragments() {
            // A full snapshot contains the merges of each fragment up to its version.
            let mut held = round.get() - self.saved_version().get();
            self.merges.retain(|merge| {
                let goes = merge.fragment == fragment && held > 0;
                held -= u64::from(goes);
                !goes
            });
        }
        self.snapshots.push(SnapshotRecord {
            round,
            manifest,
            saved_at: time,
        });
        self.statements
            .extend(statement.map(|statement| (round, statement)));
        Ok(())
    }
}

/// True for a set whose weights are all zero, which has no mean.
pub(crate) fn weigh_nothing(set: &[MergeInput]) -> bool {
    set.iter().all(|input| input.weight == Weight(0))
}

pub(crate) fn is_training(unit: &UnitId, round: Round) -> bool {
    unit.kind == UnitKind::Train && unit.round == round
}

/// The unit that evaluates snapshot `round`.
fn evaluation_unit(round: Round) -> UnitId {
    UnitId {
        round,
        kind: UnitKind::Evaluate,
        index: UnitIndex(0),
    }
}
