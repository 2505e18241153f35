//! Invariants that hold after every event, whatever the events were.

use schemas::contribution::Fate;
use schemas::lease::{UnitId, UnitKind};
use schemas::snapshot::MergeInput;
use schemas::{Fragment, Round, SyncId, Weight};

use crate::rounds::{is_training, weigh_nothing};
use crate::state::{OpenSync, Run, Standing, State, Unit};

impl State {
    /// Checks the invariants that hold after every event: tokens issued equal the sum of their
    /// fates and those in flight; members and units agree on the holder of each unit; rounds, their
    /// units, inputs and sealed sets are consistent; weights, merges and snapshots agree on the
    /// versions.
    ///
    /// # Errors
    /// The first violation, with names and values.
    pub fn check(&self) -> Result<(), String> {
        self.runs
            .iter()
            .try_for_each(|(name, run)| run.check().map_err(|what| format!("run {name}: {what}")))
    }
}

impl Run {
    /// Checks the invariants of one run.
    ///
    /// # Errors
    /// The first violation, with names and values.
    pub fn check(&self) -> Result<(), String> {
        let fates = &self.tokens;
        let sum =
            fates.merged + fates.late + fates.rejected + fates.abandoned + self.tokens_in_flight();
        if sum != fates.issued {
            return Err(format!(
                "issued {} tokens, fates and flight are {sum}: {fates:?}",
                fates.issued
            ));
        }
        for (lease, worker, _) in self.leases() {
            if self.members.get(worker).and_then(|member| member.lease) != Some(lease) {
                return Err(format!(
                    "{lease} is held by {worker}, whose entry does not say so"
                ));
            }
        }
        let holding = self
            .members
            .values()
            .filter(|member| member.lease.is_some())
            .count();
        if holding != self.leases().count() {
            return Err(format!(
                "{holding} members hold {} leases",
                self.leases().count()
            ));
        }
        self.check_quarantined()?;
        self.check_pointers()?;
        self.check_given_up()?;
        self.check_rounds()?;
        self.check_cohorts()?;
        for (sync, open) in &self.open {
            self.check_inputs(*sync, open)?;
        }
        for (unit, found) in &self.units {
            self.check_unit(unit, found)?;
        }
        for fragment in self.spec.fragments() {
            self.check_versions(fragment)?;
        }
        let merged: u64 = self.rounds.iter().map(|round| round.tokens.get()).sum();
        if merged != fates.merged.get() {
            return Err(format!(
                "rounds merged {merged} tokens, fates say {}",
                fates.merged
            ));
        }
        if self.is_complete() && !(self.open.is_empty() && self.units.is_empty()) {
            return Err(format!(
                "complete with {} open syncs and {} open units",
                self.open.len(),
                self.units.len()
            ));
        }
        Ok(())
    }

    /// Checks that nobody in quarantine is a member, holds a lease, or has a contribution that
    /// counts in a round of which no seal has begun.
    fn check_quarantined(&self) -> Result<(), String> {
        for worker in self.quarantined.keys() {
            let member = self.members.get(worker);
            let takes_part = member.is_some_and(|member| member.present || member.lease.is_some());
            let withdrawable = self.withdrawable(worker);
            if takes_part || !withdrawable.is_empty() {
                return Err(format!(
                    "{worker} is in quarantine: takes part {takes_part}, {} contributions count",
                    withdrawable.len()
                ));
            }
        }
        Ok(())
    }

    /// Checks that rounds without an end are open, and that each sealed set waits for its merge
    /// once.
    fn check_rounds(&self) -> Result<(), String> {
        let records = self.rounds.iter().zip(0..);
        let endless = records.filter(|(record, _)| record.closed_at.is_none());
        let endless = endless.map(|(_, number)| Round(number));
        let (open, opened) = (self.open_rounds().count(), self.rounds.len());
        if !endless.eq(self.open_rounds()) {
            return Err(format!(
                "{open} rounds are open, of {opened} that were opened"
            ));
        }
        // What is planned depends on the restores.
        self.check_restores()?;
        let planned = self.rounds_planned();
        if opened as u64 > planned {
            return Err(format!("{opened} rounds were opened, of {planned} planned"));
        }
        let is_sealed = |open: &OpenSync| matches!(open, OpenSync::Sealed(_));
        let sealed = self.open.iter().filter(|(_, open)| is_sealed(open));
        let mut waiting = self.sealed.clone();
        waiting.sort_unstable();
        if !sealed.map(|(sync, _)| sync).eq(&waiting) {
            return Err(format!("{waiting:?} wait for a merge, others are sealed"));
        }
        Ok(())
    }

    /// Checks that the inputs of a merge are accepted results of this round, each once, and that at
    /// least one has a weight.
    fn check_inputs(&self, sync: SyncId, open: &OpenSync) -> Result<(), String> {
        let counts = |input: &&MergeInput| {
            let unit = input.lease.unit;
            let done = self.units.get(&unit).is_some_and(|found| {
                found.standing == Standing::Done && found.epoch == input.lease.epoch
            });
            let accepted = self.accepted.get(&unit);
            let agrees = accepted.is_none_or(|accepted| {
                let left_out = accepted.fate == Fate::Rejected && input.weight == Weight(0);
                (accepted.fate == Fate::Merged || left_out) && accepted.epoch == input.lease.epoch
            });
            is_training(&unit, sync.round)
                && done
                && agrees
                && self.members.contains_key(&input.worker)
        };
        if let Some(wrong) = open.inputs().find(|input| !counts(input)) {
            return Err(format!("{} is in {sync} and does not count", wrong.lease));
        }
        let ascend = |set: &[MergeInput]| set.is_sorted_by(|a, b| a.lease.unit < b.lease.unit);
        match open {
            OpenSync::Sealing { set, .. } if !ascend(set) => {
                Err(format!("what is named of {sync} does not ascend"))
            }
            OpenSync::Sealed(set) if !ascend(set) || weigh_nothing(set) => Err(format!(
                "the set of {sync} does not ascend, or weighs nothing"
            )),
            _ => Ok(()),
        }
    }

    /// Checks that a unit belongs to an open round, whose inputs contain it once it is done, or is
    /// held by a late holder; and that the weights that it starts from are there.
    fn check_unit(&self, unit: &UnitId, found: &Unit) -> Result<(), String> {
        let of_round = || {
            self.open
                .iter()
                .filter(|(sync, _)| sync.round == unit.round)
        };
        let right = match (unit.kind, &found.standing) {
            (UnitKind::Train, Standing::Open) => of_round().any(|(_, open)| open.collects()),
            (UnitKind::Train, Standing::Held { .. }) => unit.round.get() < self.rounds.len() as u64,
            (UnitKind::Train, Standing::Done) => of_round().any(|(_, open)| open.holds(unit.index)),
            (UnitKind::Evaluate, Standing::Done) => false,
            (UnitKind::Evaluate, _) => !self.evaluations.contains_key(&unit.round),
        };
        if !right || unit.index.get() >= self.spec.schedule.units {
            return Err(format!("unit {unit} has no place: {:?}", found.standing));
        }
        let begins = found.standing != Standing::Done;
        let mut fragments = self.spec.fragments();
        let absent = fragments.find(|of| begins && !self.weights.contains_key(&(*of, found.base)));
        match absent {
            Some(fragment) => Err(format!(
                "unit {unit} starts from version {} of fragment {fragment}, which is not kept",
                found.base
            )),
            None => Ok(()),
        }
    }

    /// Checks that the merges of a fragment lead from the newest full snapshot to the newest
    /// weights.
    fn check_versions(&self, fragment: Fragment) -> Result<(), String> {
        let (version, saved) = (self.version(fragment), self.saved_version());
        let mut merges = self
            .merges
            .iter()
            .filter(|merge| merge.fragment == fragment);
        let count = merges.clone().count() as u64;
        let newest = self.weights.get(&(fragment, version));
        let last = merges.next_back().map(|merge| merge.broadcast);
        let agrees = newest.is_some_and(|newest| {
            newest.round == version && last.is_none_or(|last| last == newest.digest())
        });
        if saved.get() + count == version.get() && agrees {
            return Ok(());
        }
        Err(format!(
            "fragment {fragment} is at version {version}: {count} merges since snapshot {saved}, \
             newest weights {newest:?}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use schemas::event::LedgerEvent;
    use schemas::run::RunSpec;
    use schemas::{Message as _, Tokens, UnixMillis};

    use super::*;

    /// Settings in the form in which the store has them.
    fn spec() -> RunSpec {
        let hex = include_str!("../../../schemas/golden/RunSpec.v1.hex").trim();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("it is hex");
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        RunSpec::decode(&bytes).expect("it reads")
    }

    #[test]
    fn a_state_is_as_sound_as_each_of_its_runs() {
        let (mut state, spec) = (State::default(), spec());
        let name = spec.run.clone();
        let created = LedgerEvent::RunCreated {
            spec: Box::new(spec),
            operator: format!("U{}", "A".repeat(55)).parse().expect("a key"),
        };
        let applied = state.apply(UnixMillis(1), Some(&name), &created);
        applied.expect("it is the first");
        state.check().expect("nothing happened yet");
        for run in state.runs.values_mut() {
            Arc::make_mut(run).tokens.issued = Tokens(1);
        }
        let fault = state.check().expect_err("tokens from nowhere");
        assert!(fault.starts_with(&format!("run {name}: ")), "{fault}");
    }
}
