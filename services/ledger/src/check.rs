//! What must hold after every event, whatever the events were.

use crate::state::{Run, State};

impl State {
    /// Checks what must hold after every event: tokens issued equal the sum of their fates and
    /// those in flight, members and units agree on who holds what, at most one round is open.
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
        let open = self
            .rounds
            .iter()
            .filter(|round| round.closed_at.is_none())
            .count();
        if open > 1 || self.rounds.len() as u64 > self.spec.schedule.rounds {
            return Err(format!(
                "{open} of {} rounds are open, {} planned",
                self.rounds.len(),
                self.spec.schedule.rounds
            ));
        }
        let merged: u64 = self.rounds.iter().map(|round| round.tokens.get()).sum();
        if merged != fates.merged.get() {
            return Err(format!(
                "rounds merged {merged} tokens, fates say {}",
                fates.merged
            ));
        }
        if self.is_complete() && (open > 0 || !self.units.is_empty()) {
            return Err(format!(
                "complete with {open} open rounds and {} open units",
                self.units.len()
            ));
        }
        Ok(())
    }
}
