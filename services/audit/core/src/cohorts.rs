//! Cohorts of masked rounds: those that the ledger has, and those that the coordinator has signed
//! for workers. An honest coordinator seals a cohort in the ledger before it signs it, so one that
//! it has signed and that is missing when the round is over was shown to one worker alone, whose
//! masks hid nothing from those who made it up.

use std::collections::{BTreeMap, BTreeSet};

use chain::is_signed_statement;
use ledger::{Run, State};
use schemas::contribution::{Contribution, Outcome, Statement};
use schemas::event::{LedgerEvent, WorkerEvent};
use schemas::lease::LeaseRef;
use schemas::masking::CohortStatement;
use schemas::{Digest, Message as _, PublicKey, Round, RunId, V, WorkerId};

use crate::finding::Finding;
use crate::record::StreamSequence;

/// A cohort, by its round and its digest.
type Named = (Round, Digest);

/// The cohorts of all runs.
#[derive(Debug)]
pub(crate) struct Cohorts {
    domain: String,
    coordinators: BTreeSet<PublicKey>,
    /// The keys of `coordinators` that went on with the ledger and sign no more.
    succeeded: BTreeSet<PublicKey>,
    /// The one that goes on with it.
    present: Option<PublicKey>,
    /// Those that the ledger has sealed.
    sealed: BTreeMap<RunId, BTreeSet<Named>>,
    /// Those that a key has signed for a worker, and that are not in the ledger yet, each with the
    /// position of the first event that names it.
    shown: BTreeMap<RunId, BTreeMap<(Named, PublicKey), StreamSequence>>,
}

/// What a worker's event about its cohort shows.
#[derive(Debug)]
pub(crate) enum CohortFinding {
    /// Of the worker's own event: its fault, or nobody's.
    OfWorker(Finding),
    /// A fault of the coordinator, which has signed it.
    OfLedger(Finding),
}

impl Cohorts {
    /// The first of these keys goes on with an empty ledger.
    pub(crate) fn new(domain: &str, coordinators: &[PublicKey]) -> Self {
        Self {
            domain: domain.to_owned(),
            coordinators: coordinators.iter().cloned().collect(),
            present: coordinators.first().cloned(),
            succeeded: BTreeSet::new(),
            sealed: BTreeMap::new(),
            shown: BTreeMap::new(),
        }
    }

    /// Notes an event that the state has just taken: who has signed what it tells of a masked
    /// round, and which cohorts that were signed for a worker it leaves out.
    pub(crate) fn note(
        &mut self,
        name: Option<&RunId>,
        event: &LedgerEvent,
        state: &State,
    ) -> Vec<Finding> {
        let run = name.and_then(|name| Some((name, state.run(name)?)));
        let Some((name, run)) = run.filter(|(_, run)| run.is_masked()) else {
            return Vec::new();
        };
        let mut findings = match event {
            LedgerEvent::CohortSealed { round, .. } => self.seal(name, run, *round),
            LedgerEvent::ContributionAccepted {
                lease,
                worker,
                contribution,
                statement,
                signature,
                ..
            } => {
                let signed = (*statement, &signature[..]);
                let right = self.has_signed(run, worker, *lease, contribution, signed);
                let wrong = Finding::ContributionUnsigned { lease: *lease };
                if right { vec![] } else { vec![wrong] }
            }
            _ => Vec::new(),
        };
        findings.extend(self.hidden(name, run));
        findings
    }

    /// Notes the cohort of a round, and checks that each worker has signed its keys.
    fn seal(&mut self, name: &RunId, run: &Run, round: Round) -> Vec<Finding> {
        let Some(cohort) = run.cohort(round) else {
            return Vec::new();
        };
        let sealed = self.sealed.entry(name.clone()).or_default();
        sealed.insert((round, cohort.digest()));
        let members = cohort.members().iter();
        let unsigned = members.filter(|member| {
            let body = cohort.statement(member).encode();
            let (key, signature) = (member.audit_key.as_str(), &*member.signature);
            !is_signed_statement(&self.domain, key, signature, &body)
        });
        let found = unsigned.map(|member| Finding::KeysUnsigned {
            round,
            unit: member.unit,
        });
        found.collect()
    }

    /// True if the worker has signed this contribution, with the cohort that it names. Its
    /// statement is encoded again; the coordinator takes no other form in a masked run.
    fn has_signed(
        &self,
        run: &Run,
        worker: &WorkerId,
        lease: LeaseRef,
        contribution: &Contribution,
        (digest, signature): (Digest, &[u8]),
    ) -> bool {
        let statement = Statement {
            v: V,
            run: run.spec.run.clone(),
            spec: run.spec_digest,
            worker: worker.clone(),
            lease,
            outcome: Outcome::Contribution(contribution.clone()),
        };
        let body = statement.encode();
        let signed =
            |key: &PublicKey| is_signed_statement(&self.domain, key.as_str(), signature, &body);
        let member = run.members.get(worker);
        Digest::of(&body) == digest && member.is_some_and(|member| signed(&member.audit_key))
    }

    /// The cohorts of rounds that are over, which were signed and are not in the ledger. Each is
    /// told once. Those of a key whose turn it never was are no word of the ledger's.
    fn hidden(&mut self, name: &RunId, run: &Run) -> Vec<Finding> {
        let Some(shown) = self.shown.get_mut(name) else {
            return Vec::new();
        };
        let sealed = self.sealed.get(name);
        shown.retain(|(named, _), _| !sealed.is_some_and(|sealed| sealed.contains(named)));
        let over = shown.extract_if(.., |((round, _), _), _| is_over(run, *round));
        let (present, succeeded) = (self.present.as_ref(), &self.succeeded);
        let found = over.map(|(((round, cohort), key), at)| {
            match present == Some(&key) || succeeded.contains(&key) {
                true => hidden(round, cohort, at),
                false => Finding::CohortOutOfTurn { round, cohort, key },
            }
        });
        let found = found.collect();
        if shown.is_empty() {
            self.shown.remove(name);
        }
        found
    }

    /// Takes note that the present key signs no more, and which one does: the ledger has every
    /// cohort that the earlier ones signed.
    pub(crate) fn succeeded(&mut self, by: &PublicKey) {
        self.succeeded.extend(self.present.replace(by.clone()));
    }

    /// Notes what a worker tells of its cohort.
    pub(crate) fn told(
        &mut self,
        at: StreamSequence,
        name: &RunId,
        event: &WorkerEvent,
        state: &State,
    ) -> Option<CohortFinding> {
        let WorkerEvent::Masked {
            lease,
            cohort,
            seal,
        } = event
        else {
            return None;
        };
        let (round, cohort) = (lease.unit.round, *cohort);
        let body = CohortStatement::of(name, round, cohort).encode();
        let (key, signature) = (seal.key.as_str(), &*seal.signature);
        if !self.coordinators.contains(&seal.key)
            || !is_signed_statement(&self.domain, key, signature, &body)
        {
            return Some(CohortFinding::OfWorker(Finding::CohortUnsigned {
                round,
                cohort,
            }));
        }
        let sealed = self.sealed.get(name);
        if sealed.is_some_and(|sealed| sealed.contains(&(round, cohort))) {
            return None;
        }
        let out_of_turn = || {
            let key = seal.key.clone();
            Some(CohortFinding::OfWorker(Finding::CohortOutOfTurn {
                round,
                cohort,
                key,
            }))
        };
        if self.succeeded.contains(&seal.key) {
            return out_of_turn();
        }
        if state.run(name).is_some_and(|run| is_over(run, round)) {
            return match self.present.as_ref() == Some(&seal.key) {
                true => Some(CohortFinding::OfLedger(hidden(round, cohort, at))),
                false => out_of_turn(),
            };
        }
        // The copy of the ledger may be behind that of the worker's events.
        let shown = self.shown.entry(name.clone()).or_default();
        let named = ((round, cohort), seal.key.clone());
        shown.entry(named).or_insert(at);
        None
    }
}

/// True if no cohort can be sealed for a round any more.
fn is_over(run: &Run, round: Round) -> bool {
    let opened = round.get() < run.rounds.len() as u64;
    run.is_complete() || (opened && !run.open_rounds().any(|open| open == round))
}

const fn hidden(round: Round, cohort: Digest, at: StreamSequence) -> Finding {
    Finding::CohortHidden {
        round,
        cohort,
        shown: at,
    }
}
