//! Masked rounds: who is in a cohort, what may be summed, and with which secrets.

use std::collections::BTreeMap;

use schemas::contribution::Contribution;
use schemas::event::LedgerEvent;
use schemas::lease::{LeaseRef, UnitId, UnitKind};
use schemas::masking::{CohortMember, UnitKey};
use schemas::{Round, UnitIndex};

use super::Monitor;
use crate::store::Store;

/// The cohort of the open round.
#[derive(Debug, Default)]
pub(super) struct Masks {
    /// Its workers, once it is sealed.
    members: Option<Vec<CohortMember>>,
    unmasked: bool,
}

impl Monitor {
    /// Records one of the events of masked rounds.
    pub(super) fn note_masks(&mut self, event: &LedgerEvent, store: &Store) {
        assert!(self.is_masked(), "{event:?} in a run without masks");
        match event {
            LedgerEvent::CohortSealed { round, members } => self.seal_cohort(*round, members),
            LedgerEvent::RoundUnmasked { round, secrets } => self.unmask(*round, secrets, store),
            LedgerEvent::CohortDissolved {
                round,
                contributions,
            } => self.dissolve(*round, *contributions),
            other => unreachable!("{other:?}"),
        }
    }

    fn is_masked(&self) -> bool {
        self.spec.secure_aggregation.is_some()
    }

    fn threshold(&self) -> usize {
        let aggregation = self.spec.secure_aggregation;
        aggregation.map_or(0, |found| found.threshold as usize)
    }

    fn seal_cohort(&mut self, round: Round, members: &[CohortMember]) {
        self.counts.cohorts += 1;
        assert_eq!(
            self.open,
            Some(round),
            "a cohort of a round that is not open"
        );
        assert!(
            self.masks.members.is_none(),
            "round {round} has two cohorts"
        );
        assert!(self.inputs.is_empty(), "something counts before the cohort");
        let units: Vec<u32> = members.iter().map(|member| member.unit.get()).collect();
        let all: Vec<u32> = (0..self.spec.schedule.units).collect();
        assert_eq!(units, all, "a cohort has each unit once");
        for member in members {
            let lease = member.lease(round);
            let held = self.held.get(&lease.unit);
            assert_eq!(held, Some(&(lease, member.worker.clone())), "who holds it");
        }
        self.masks.members = Some(members.to_vec());
    }

    /// Checks that a unit is not given to anybody once its worker has agreed on masks.
    pub(super) fn check_fixed(&self, lease: &LeaseRef) {
        let fixed = self.masks.members.is_some() && self.open == Some(lease.unit.round);
        let trains = lease.unit.kind == UnitKind::Train;
        assert!(!(fixed && trains), "{lease} is granted after the agreement");
    }

    /// Checks that a contribution is of the cohort, names one, and tells no loss.
    pub(super) fn check_masked(&self, lease: &LeaseRef, contribution: &Contribution) {
        let named = contribution.cohort.is_some();
        assert_eq!(named, self.is_masked(), "{lease} names a cohort: {named}");
        if named {
            let mut members = self.masks.members.iter().flatten();
            let of_cohort = members.any(|member| member.lease(lease.unit.round) == *lease);
            assert!(of_cohort, "{lease} is of no cohort");
            assert_eq!(contribution.loss, 0.0, "{lease} tells its loss");
        }
    }

    /// Checks that a sealed set is whole, or in a masked round that nobody can add to it and that
    /// it is enough for a sum.
    pub(super) fn check_whole(&self, round: Round, inputs: usize) {
        let units = self.spec.schedule.units as usize;
        if !self.is_masked() {
            assert_eq!(
                inputs, units,
                "round {round} was sealed without all of its units"
            );
            return;
        }
        assert_eq!(self.holder_in(round), None, "somebody may still contribute");
        let fits = (self.threshold()..=units).contains(&inputs);
        assert!(fits, "{inputs} contributions to round {round} are sealed");
    }

    fn holder_in(&self, round: Round) -> Option<&UnitId> {
        let of = |unit: &&UnitId| unit.kind == UnitKind::Train && unit.round == round;
        self.held.keys().find(of)
    }

    /// Each secret is the one that its worker drew: the seed of a contribution that counts, the
    /// masking key of a worker that is gone, and never the other.
    fn unmask(&mut self, round: Round, secrets: &[UnitKey], store: &Store) {
        assert_eq!(
            self.open,
            Some(round),
            "the sum of a round that is not open"
        );
        assert!(!self.masks.unmasked, "round {round} is unmasked twice");
        let sealed = self.sealed.as_ref().expect("what is unmasked is sealed");
        let inputs = sealed.iter().map(|input| (input.lease.unit.index, ()));
        let counts: BTreeMap<UnitIndex, ()> = inputs.collect();
        let members = self.masks.members.as_ref().expect("it has a cohort");
        assert_eq!(secrets.len(), members.len(), "a secret of each worker");
        for (member, secret) in members.iter().zip(secrets) {
            let (seed, key) = store.drawn[&member.keys.masking];
            let right = match counts.contains_key(&member.unit) {
                true => seed,
                false => key,
            };
            assert!(
                (secret.unit, secret.key) == (member.unit, right),
                "the secret of unit {} in round {round}",
                member.unit
            );
        }
        self.counts.gone_after_sealing += (members.len() - counts.len()) as u64;
        self.masks.unmasked = true;
    }

    fn dissolve(&mut self, round: Round, contributions: u32) {
        self.counts.dissolved += 1;
        assert_eq!(
            self.open,
            Some(round),
            "the cohort of a round that is not open"
        );
        assert!(!self.masks.unmasked, "the sum of round {round} is known");
        assert_eq!(self.holder_in(round), None, "somebody may still contribute");
        let sealed = self.sealed.take();
        let open = std::mem::take(&mut self.inputs);
        let enough = open.len() >= self.threshold();
        assert!(sealed.is_some() || !enough, "round {round} could be summed");
        let gone = sealed.map_or(open.len(), |sealed| sealed.len());
        assert_eq!(
            gone as u64,
            u64::from(contributions),
            "contributions that go"
        );
        assert_eq!(self.named, [], "a set is sealed in part");
        let of_round = |unit: &UnitId| unit.kind == UnitKind::Train && unit.round == round;
        self.counted.retain(|unit| !of_round(unit));
        let members = self.masks.members.take();
        assert!(members.is_some(), "round {round} has no cohort");
    }

    /// Checks that what is merged was unmasked.
    pub(super) fn check_unmasked(&self, round: Round) {
        let ready = self.masks.unmasked || !self.is_masked();
        assert!(ready, "round {round} is merged under its masks");
    }
}
