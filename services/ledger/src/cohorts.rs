//! Cohorts of masked rounds: the fold of their events, and the questions that the coordinator asks
//! about them. A round of a run with secure aggregation has at most one, from the event that seals
//! it to the end of the round.

use schemas::contribution::Fate;
use schemas::hold::Hold;
use schemas::lease::{LeaseRef, UnitId, UnitKind};
use schemas::masking::{CohortMember, UnitKey, Unmasking};
use schemas::{Digest, Round, UnitIndex, Weight};
use serde::Serialize;

use crate::error::{ApplyError, out_of_place};
use crate::state::{OpenSync, RoundRecord, Run, Standing, Unit};

/// The workers of an open round whose masks cancel in their sum.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CohortRecord {
    /// The workers with their keys, ascending by unit.
    pub members: Vec<CohortMember>,
    /// What takes the masks from the sum, once workers have revealed it.
    pub unmasking: Option<Unmasking>,
}

impl Run {
    /// True for a run with secure aggregation.
    pub const fn is_masked(&self) -> bool {
        self.spec.secure_aggregation.is_some()
    }

    /// True for a training unit of a round whose cohort is sealed: its present holder is the only
    /// worker that can do it.
    pub fn is_fixed(&self, unit: &UnitId) -> bool {
        unit.kind == UnitKind::Train && self.cohorts.contains_key(&unit.round)
    }

    /// The workers of a cohort, for an agreement on masks.
    ///
    /// # Errors
    /// The workers are no cohort, or the run has no masks.
    pub fn cohort_of(
        &self,
        round: Round,
        members: Vec<CohortMember>,
    ) -> Result<masking::Cohort, masking::CohortError> {
        let threshold = self.spec.secure_aggregation.map(|found| found.threshold);
        let missing = || masking::CohortError::Unfit("the run has no masks".to_owned());
        let threshold = threshold.ok_or_else(missing)?;
        masking::Cohort::new(&self.spec.run, &self.spec_digest, round, threshold, members)
    }

    /// The cohort of an open round.
    pub fn cohort(&self, round: Round) -> Option<masking::Cohort> {
        let record = self.cohorts.get(&round)?;
        let cohort = self.cohort_of(round, record.members.clone());
        Some(cohort.expect("the fold took it as a cohort"))
    }

    /// The digest of the cohort of an open round, which each contribution under its masks names.
    pub fn cohort_digest(&self, round: Round) -> Option<Digest> {
        let record = self.cohorts.get(&round)?;
        let threshold = self.spec.secure_aggregation?.threshold;
        let (run, spec) = (&self.spec.run, &self.spec_digest);
        let members = &record.members;
        Some(masking::Cohort::digest_of(
            run, spec, round, threshold, members,
        ))
    }

    /// What takes the masks from the sum of a round, once it is known.
    pub fn unmasking(&self, round: Round) -> Option<&Unmasking> {
        self.cohorts.get(&round)?.unmasking.as_ref()
    }

    /// True if nobody can hand in a contribution to the round any more, or take one of its units.
    pub fn is_settled(&self, round: Round) -> bool {
        let mut units = self.training(round);
        self.cohorts.contains_key(&round)
            && !units.any(|(_, unit)| matches!(unit.standing, Standing::Held { .. }))
    }

    /// The sealed set of a masked round whose sum is not unmasked yet, by unit.
    pub fn sealed_masked(&self) -> Option<(Round, Vec<UnitIndex>)> {
        let (sync, inputs) = self
            .spec
            .fragments()
            .find_map(|fragment| self.next_merge(fragment))
            .filter(|_| self.is_masked())?;
        let waits = self.unmasking(sync.round).is_none();
        let units = inputs.iter().map(|input| input.lease.unit.index);
        waits.then(|| (sync.round, units.collect()))
    }

    fn training(&self, round: Round) -> impl Iterator<Item = (&UnitId, &Unit)> {
        let of_round = move |unit: &UnitId| unit.kind == UnitKind::Train && unit.round == round;
        self.units.iter().filter(move |(unit, _)| of_round(unit))
    }

    /// Fixes the workers of a round: each holds the lease of one unit, and has signed its keys with
    /// the key with which it joined. The reader of the keys checks the signature.
    pub(crate) fn seal_cohort(
        &mut self,
        round: Round,
        members: &[CohortMember],
    ) -> Result<(), ApplyError> {
        let wrong = |what: &str| out_of_place("cohort-sealed", format!("round {round}: {what}"));
        if !self.is_masked() || !self.collects(round) || self.cohorts.contains_key(&round) {
            return Err(wrong("it has no masks to agree on"));
        }
        if !(0..self.spec.schedule.units).eq(members.iter().map(|member| member.unit.get())) {
            return Err(wrong("it does not name every unit once"));
        }
        let holds = |member: &CohortMember| {
            let LeaseRef { unit, epoch } = member.lease(round);
            let joined = self.members.get(&member.worker);
            self.holder(&unit) == Some((&member.worker, epoch))
                && joined.is_some_and(|joined| joined.audit_key == member.audit_key)
        };
        if !members.iter().all(holds) {
            return Err(wrong("a worker does not hold its unit, or has another key"));
        }
        let members = members.to_vec();
        if let Err(error) = self.cohort_of(round, members.clone()) {
            return Err(wrong(&error.to_string()));
        }
        let unmasking = None;
        let record = CohortRecord { members, unmasking };
        self.cohorts.insert(round, record);
        Ok(())
    }

    /// Refuses the seal of a masked round while a contribution may still come.
    pub(crate) fn check_masked_seal(&self, round: Round) -> Result<(), ApplyError> {
        match !self.is_masked() || self.is_settled(round) {
            true => Ok(()),
            false => {
                let what = format!("round {round} before its cohort is settled");
                Err(out_of_place("round-sealed", what))
            }
        }
    }

    /// Takes the secrets that take the masks from a sealed set. They must be those that the workers
    /// have committed to.
    pub(crate) fn unmask(&mut self, round: Round, secrets: &[UnitKey]) -> Result<(), ApplyError> {
        let wrong = |what: &str| out_of_place("round-unmasked", format!("round {round}: {what}"));
        let (sealed, units) = self
            .sealed_masked()
            .ok_or_else(|| wrong("nothing is sealed"))?;
        if sealed != round {
            return Err(wrong("another round is sealed"));
        }
        let cohort = self
            .cohort(round)
            .ok_or_else(|| wrong("it has no cohort"))?;
        let unmasking = cohort.unmasking(&units, secrets);
        let unmasking = unmasking.map_err(|error| wrong(&error.to_string()))?;
        let record = self.cohorts.get_mut(&round);
        record.expect("its cohort was just read").unmasking = Some(unmasking);
        Ok(())
    }

    /// Opens the units of a masked round again, whose sum cannot be had.
    pub(crate) fn dissolve(&mut self, round: Round, contributions: u32) -> Result<(), ApplyError> {
        let wrong = |what: &str| out_of_place("cohort-dissolved", format!("round {round}: {what}"));
        let settled = self.is_settled(round) && self.unmasking(round).is_none();
        let in_set = self
            .syncs(round)
            .next()
            .map_or(0, |(_, open)| open.inputs().count());
        if !settled || in_set as u64 != u64::from(contributions) {
            return Err(wrong(
                "its contributions may still be summed, or are others",
            ));
        }
        // A worker reveals shares for each cohort of a round, so none is given up without need.
        let sealed = self.sealed_masked().is_some_and(|(of, _)| of == round);
        let threshold = self
            .spec
            .secure_aggregation
            .map_or(0, |found| found.threshold);
        if !sealed && contributions >= threshold {
            return Err(wrong("its contributions are enough for a sum"));
        }
        if self.is_held(Hold::Merges) {
            return Err(wrong("merges are held"));
        }
        let record = self.cohorts.remove(&round);
        let members = record.map(|record| record.members).unwrap_or_default();
        self.sealed.retain(|sync| sync.round != round);
        for (sync, open) in &mut self.open {
            if sync.round == round {
                *open = OpenSync::Collecting(Default::default());
            }
        }
        self.accepted
            .retain(|unit, _| unit.kind != UnitKind::Train || unit.round != round);
        let base = self.rounds_closed();
        for member in &members {
            let LeaseRef { unit, epoch } = member.lease(round);
            let open = Unit {
                epoch,
                base,
                standing: Standing::Open,
                failed_by: None,
            };
            self.units.insert(unit, open);
        }
        let record = self.rounds.get_mut(round.get() as usize);
        let record = record.expect("a round that is open has a record");
        let tokens = std::mem::take(&mut record.tokens);
        record.loss_sum = RoundRecord::default().loss_sum;
        self.tokens.merged = self.tokens.merged - tokens;
        self.tokens.abandoned += tokens;
        Ok(())
    }

    /// Checks that cohorts are of open rounds, and that what counts in them was done by them.
    pub(crate) fn check_cohorts(&self) -> Result<(), String> {
        for (round, record) in &self.cohorts {
            let open = self.syncs(*round).next().map(|(_, open)| open);
            let Some(open) = open.filter(|_| self.is_masked()) else {
                return Err(format!("round {round} has a cohort and is not open"));
            };
            let of_cohort = |lease: &LeaseRef| {
                let mut members = record.members.iter();
                members.any(|member| member.lease(*round) == *lease)
            };
            let counts = |unit: &UnitId| {
                let accepted = self.accepted.get(unit);
                accepted.is_none_or(|accepted| accepted.fate == Fate::Merged)
            };
            let mut inputs = open.inputs();
            let stranger = inputs.find(|input| {
                let weighs = input.weight > Weight(0);
                !of_cohort(&input.lease) || !counts(&input.lease.unit) || !weighs
            });
            if let Some(input) = stranger {
                return Err(format!(
                    "{} counts in round {round}, and is none of its cohort's",
                    input.lease
                ));
            }
            if record.unmasking.is_some() && open.collects() {
                return Err(format!("round {round} is unmasked and not sealed"));
            }
        }
        Ok(())
    }
}
