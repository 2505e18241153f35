//! What must hold after every event, whatever the events were.

use schemas::Round;

use crate::state::{OpenSync, Phase, Run, State};

impl State {
    /// Checks what must hold after every event: tokens issued equal the sum of their fates and
    /// those in flight, members and units agree on who holds what, rounds and their
    /// sealed sets are where they belong.
    ///
    /// # Errors
    /// What does not hold, with names and values.
    pub fn check(&self) -> Result<(), String> {
        self.runs
            .iter()
            .try_for_each(|(name, run)| run.check().map_err(|what| format!("run {name}: {what}")))
    }
}

impl Run {
    /// The same for one run.
    ///
    /// # Errors
    /// What does not hold, with names and values.
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
        self.check_rounds()?;
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

    /// Rounds that have no end are open, and what is sealed waits for its merge once.
    fn check_rounds(&self) -> Result<(), String> {
        let records = self.rounds.iter().zip(0..);
        let endless = records.filter(|(record, _)| record.closed_at.is_none());
        let endless = endless.map(|(_, number)| Round(number));
        if !endless.eq(self.open_rounds()) || self.rounds.len() as u64 > self.spec.schedule.rounds {
            return Err(format!(
                "{} rounds are open, of {} that were opened and {} planned",
                self.open_rounds().count(),
                self.rounds.len(),
                self.spec.schedule.rounds
            ));
        }
        let is_sealed = |open: &OpenSync| matches!(open.phase, Phase::Sealed(_));
        let sealed = self.open.iter().filter(|(_, open)| is_sealed(open));
        let mut waiting = self.sealed.clone();
        waiting.sort_unstable();
        if !sealed.map(|(sync, _)| sync).eq(&waiting) {
            return Err(format!("{waiting:?} wait for a merge, others are sealed"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use schemas::event::LedgerEvent;
    use schemas::run::RunSpec;
    use schemas::{Message as _, Tokens, UnixMillis};

    use super::*;

    /// Settings as they lie in the store.
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
            run.tokens.issued = Tokens(1);
        }
        let fault = state.check().expect_err("tokens from nowhere");
        assert!(fault.starts_with(&format!("run {name}: ")), "{fault}");
    }
}
