//! Invariants that are checked after every event of the ledger. The monitor keeps its own records
//! and shares no code with the core's fold.

use std::collections::{BTreeMap, BTreeSet};

use schemas::event::LedgerEvent;
use schemas::hold::Hold;
use schemas::lease::{LeaseRef, UnitId, UnitKind};
use schemas::promotion::PointerName;
use schemas::run::RunSpec;
use schemas::snapshot::MergeInput;
use schemas::sync::SealedInput;
use schemas::{Digest, Round, Seat, Weight, WorkerId};

use crate::collection::Keeping;
use crate::comparison;
use crate::counts::Counts;
use crate::store::{Model, Store};
use forbidden::{author, is_merge, is_work};
use revoked::Revoked;

mod emitters;
mod forbidden;
mod makers;
mod masks;
mod revoked;

/// The monitor's records.
#[derive(Debug)]
pub(crate) struct Monitor {
    spec: RunSpec,
    held: BTreeMap<UnitId, (LeaseRef, WorkerId)>,
    epochs: BTreeMap<UnitId, u64>,
    counted: BTreeSet<UnitId>,
    /// Contributions of the open round, by unit.
    inputs: BTreeMap<UnitId, MergeInput>,
    /// The inputs that the parts of a seal named so far.
    named: Vec<SealedInput>,
    /// The inputs that are merged, in the order of the ledger; none before the seal.
    sealed: Option<Vec<MergeInput>>,
    members: BTreeSet<WorkerId>,
    /// The seats of those members that have one.
    seats: BTreeMap<WorkerId, Seat>,
    quarantined: BTreeSet<WorkerId>,
    revoked: Revoked,
    open: Option<Round>,
    /// The newest weights by the ledger alone; `models` holds all versions.
    model: Model,
    models: Vec<Model>,
    /// The merges that led to each version.
    merges: Vec<u64>,
    makers: makers::Makers,
    /// The version since the last restore; everything under an older number is over.
    since: Round,
    issued: u64,
    ended: u64,
    /// Leases whose end an operator has ordered, and that have not ended since.
    ordered: u32,
    frozen: bool,
    stopped: bool,
    masks: masks::Masks,
    emitters: emitters::Emitters,
    /// Every training lease of a private run: round, worker, and the unit's index.
    disclosures: Vec<(u64, WorkerId, u32)>,
    spent: bool,
    complete: bool,
    /// Full snapshots, by manifest.
    saved: BTreeMap<Digest, Round>,
    pointers: BTreeMap<PointerName, Digest>,
    keeping: Keeping,
    pub(crate) counts: Counts,
}

impl Monitor {
    pub(crate) fn new(spec: &RunSpec) -> Self {
        Self {
            spec: spec.clone(),
            held: BTreeMap::new(),
            epochs: BTreeMap::new(),
            counted: BTreeSet::new(),
            inputs: BTreeMap::new(),
            named: Vec::new(),
            sealed: None,
            members: BTreeSet::new(),
            seats: BTreeMap::new(),
            quarantined: BTreeSet::new(),
            revoked: Revoked::default(),
            open: None,
            model: Model::initial(spec),
            models: vec![Model::initial(spec)],
            merges: vec![0],
            makers: makers::Makers::new(),
            since: Round(0),
            issued: 0,
            ended: 0,
            ordered: 0,
            frozen: false,
            stopped: false,
            masks: masks::Masks::default(),
            emitters: emitters::Emitters::default(),
            disclosures: Vec::new(),
            spent: false,
            complete: false,
            saved: BTreeMap::new(),
            pointers: BTreeMap::new(),
            keeping: Keeping::default(),
            counts: Counts::default(),
        }
    }

    pub(crate) fn complete(&self) -> bool {
        self.complete
    }

    /// Records one event, and checks that it may follow those before it.
    pub(crate) fn note(&mut self, event: &LedgerEvent, store: &Store) {
        assert!(!self.complete || !is_work(event), "{event:?} after the end");
        let held = self.frozen && is_merge(event);
        assert!(!held, "{event:?} in a frozen run");
        let granted = self.stopped && matches!(event, LedgerEvent::LeaseGranted { .. });
        assert!(!granted, "{event:?} in a run without urls");
        let by_quarantined = author(event).filter(|worker| self.quarantined.contains(*worker));
        assert_eq!(by_quarantined, None, "{event:?} of a worker in quarantine");
        self.counts.events += 1;
        self.makers.note(event);
        self.revoked.note(event, &mut self.counts);
        match event {
            LedgerEvent::CoordinatorStarted { .. } => self.counts.starts += 1,
            LedgerEvent::WorkerJoined { worker, seat, .. } => {
                self.members.insert(worker.clone());
                if let Some(seat) = seat {
                    self.seats.insert(worker.clone(), seat.clone());
                }
            }
            LedgerEvent::WorkerLeft { worker, .. } => {
                self.members.remove(worker);
                self.seats.remove(worker);
            }
            LedgerEvent::RoundOpened { round } => self.open_round(*round),
            LedgerEvent::LeaseGranted { lease, worker } => self.grant(*lease, worker),
            LedgerEvent::LeaseEnded {
                lease,
                worker,
                cause,
                tokens,
            } => {
                if self.counts.ended(*cause) {
                    assert!(self.ordered > 0, "{lease}: nobody has ordered its end");
                    self.ordered -= 1;
                }
                self.end(*lease, worker, tokens.get());
            }
            LedgerEvent::ContributionRejected {
                lease,
                worker,
                tokens,
                ..
            } => {
                self.counts.rejected += 1;
                self.end(*lease, worker, tokens.get());
            }
            LedgerEvent::ContributionAccepted {
                lease,
                worker,
                contribution,
                ..
            } => {
                self.counts.accepted += 1;
                self.check_masked(lease, contribution);
                self.end(*lease, worker, contribution.tokens.get());
                self.count(*lease);
                let round = lease.unit.round;
                self.keeping.accepted(round, &contribution.chunks);
                let chunks = store.chunks(&contribution.chunks);
                for chunk in chunks.iter().chain(contribution.chunks.objects()) {
                    assert!(
                        store.blobs.contains(&chunk.digest),
                        "{lease}: a chunk that counts is not in the store"
                    );
                    assert!(
                        !store.poisoned.contains(&chunk.digest),
                        "{lease}: NaN counts"
                    );
                }
                let (tokens, chunks) = (contribution.tokens, contribution.chunks.clone());
                let input = MergeInput {
                    lease: *lease,
                    worker: worker.clone(),
                    tokens,
                    weight: Weight(tokens.get()),
                    norm: comparison::norm(&self.spec),
                    cosine: None,
                    chunks,
                };
                assert_eq!(self.sealed, None, "{lease} counts after the seal");
                assert_eq!(self.named, [], "{lease} counts after the seal has begun");
                self.inputs.insert(lease.unit, input);
            }
            LedgerEvent::EvaluationAccepted { lease, worker, .. } => {
                self.counts.evaluated += 1;
                self.end(*lease, worker, 0);
                self.count(*lease);
            }
            LedgerEvent::RoundCompared { round, cosines } => {
                assert_eq!((self.open, &self.sealed), (Some(*round), &None));
                comparison::check(&self.spec, &self.inputs, cosines);
                self.counts.compared += 1;
            }
            LedgerEvent::RoundSealed {
                round,
                inputs,
                rest,
                ..
            } => self.seal(*round, inputs, *rest),
            LedgerEvent::RoundClosed {
                round, broadcast, ..
            } => self.close(*round, broadcast),
            LedgerEvent::SnapshotSaved {
                round,
                manifest,
                statement,
            } => {
                self.counts.saved += 1;
                assert!(statement.is_some(), "snapshot {round} has no statement");
                self.saved.insert(manifest.digest, *round);
                self.keeping.listed(*round, manifest.digest);
                assert!(
                    *round > self.since,
                    "snapshot {round} is of weights before the restore"
                );
                let right = self.models.get(round.get() as usize).copied();
                assert!(right.is_some(), "snapshot {round} comes before its round");
                assert_eq!(
                    store.snapshot(manifest),
                    right,
                    "snapshot {round} holds other weights"
                );
            }
            LedgerEvent::SnapshotPromoted {
                pointer,
                round,
                manifest,
                accepted,
                ..
            } => {
                self.counts.promoted += 1;
                self.makers.promoted(*round, &self.quarantined, accepted);
                self.keeping.stands(*manifest);
                assert_eq!(self.saved.get(manifest), Some(round), "no snapshot");
                let before = self.pointers.insert(pointer.clone(), *manifest);
                assert_ne!(before, Some(*manifest), "{pointer} is there already");
            }
            LedgerEvent::RunCompleted => {
                assert!(
                    self.spent || self.merges.last() == Some(&self.spec.schedule.rounds),
                    "the end comes after the last round"
                );
                assert!(
                    self.held.is_empty(),
                    "the end comes after the last lease: {:?}",
                    self.held
                );
                self.complete = true;
            }
            LedgerEvent::PrivacySpent {
                disclosures,
                epsilon,
            } => self.spend(*disclosures, *epsilon),
            LedgerEvent::CohortSealed { .. }
            | LedgerEvent::RoundUnmasked { .. }
            | LedgerEvent::CohortDissolved { .. } => self.note_masks(event, store),
            LedgerEvent::RequestDenied { .. } => self.counts.denied += 1,
            LedgerEvent::HoldPlaced {
                hold: Hold::Merges, ..
            } => {
                self.counts.frozen += 1;
                self.frozen = true;
            }
            LedgerEvent::HoldLifted {
                hold: Hold::Merges, ..
            } => self.frozen = false,
            LedgerEvent::HoldPlaced { .. } => {
                self.counts.stopped += 1;
                self.stopped = true;
            }
            LedgerEvent::HoldLifted { .. } => self.stopped = false,
            LedgerEvent::WorkerQuarantined {
                worker,
                lease,
                withdrawn,
                ..
            } => self.quarantine(worker, *lease, *withdrawn),
            LedgerEvent::SnapshotRestored {
                snapshot,
                manifest,
                from,
                weights,
                leases,
                contributions,
                ..
            } => {
                assert!(self.frozen, "only a frozen run is restored");
                assert_eq!(*from, self.model.round, "it leads from the present weights");
                self.keeping.stands(manifest.digest);
                self.keeping.listed(weights.round, manifest.digest);
                let kept = store.snapshot(manifest);
                self.restore(*snapshot, kept, weights, (*leases, *contributions));
            }
            LedgerEvent::ObjectsGivenUp {
                through, snapshots, ..
            } => {
                self.counts.collections += 1;
                self.keeping.give_up(*through, *snapshots, &self.pointers);
            }
            LedgerEvent::WorkerReadmitted { worker, .. } => {
                assert!(self.quarantined.remove(worker), "{worker} was not shut out");
            }
            LedgerEvent::TenantSet { .. } | LedgerEvent::TenantEnded { .. } => {
                panic!("nobody asked for {}", event.kind())
            }
            LedgerEvent::EmitterSucceeded { next } => self.succeed(next),
            LedgerEvent::LeasesEnded { leases, .. } => self.ordered = *leases,
            LedgerEvent::CoordinatorStopped { .. }
            | LedgerEvent::RunCreated { .. }
            | LedgerEvent::ControlReceived { .. }
            | LedgerEvent::CredentialRevoked { .. }
            | LedgerEvent::CredentialReissued { .. }
            | LedgerEvent::CheckpointTaken
            | LedgerEvent::CheckpointSaved { .. } => {}
        }
        let flying = self.held.keys().map(|unit| self.tokens(unit)).sum::<u64>();
        assert_eq!(
            self.issued,
            self.ended + flying,
            "tokens issued, and their fates with those in flight"
        );
    }

    /// Checks the store after a collection has deleted something.
    pub(crate) fn collected(&mut self, store: &Store) {
        self.counts.lost = self.keeping.check(store);
    }

    fn tokens(&self, unit: &UnitId) -> u64 {
        if unit.kind == UnitKind::Train {
            self.spec.unit_tokens().get()
        } else {
            0
        }
    }

    fn open_round(&mut self, round: Round) {
        assert_eq!(self.open, None, "two rounds are open");
        assert!(!self.spent, "a round is opened on a budget that is spent");
        assert_eq!(round, self.model.round, "rounds follow each other");
        let least = self.spec.policy.workers_min as usize;
        assert!(
            round.get() > 0 || self.members.len() >= least,
            "{} of {least} workers",
            self.members.len()
        );
        self.open = Some(round);
    }

    fn grant(&mut self, lease: LeaseRef, worker: &WorkerId) {
        self.counts.granted += 1;
        assert!(
            lease.unit.round >= self.since,
            "{lease} is of a round before the restore"
        );
        assert!(self.members.contains(worker), "{worker} is no member");
        if let Some(seat) = self.seats.get(worker) {
            self.counts.grouped += 1;
            assert_eq!(seat.rank().0, 0, "{lease}: {worker} speaks for nobody");
            let of_group = self
                .seats
                .values()
                .filter(|one| one.group() == seat.group());
            let mut ranks: Vec<u32> = of_group.map(|one| one.rank().0).collect();
            ranks.sort_unstable();
            let all: Vec<u32> = (0..seat.of()).collect();
            assert_eq!(ranks, all, "{lease}: the group of {worker} is not sealed");
        }
        self.check_fixed(&lease);
        assert!(!self.counted.contains(&lease.unit), "{lease} is complete");
        assert!(
            self.held.values().all(|(_, holder)| holder != worker),
            "{worker} holds two leases"
        );
        let last = self
            .epochs
            .insert(lease.unit, lease.epoch.get())
            .unwrap_or(0);
        assert!(lease.epoch.get() > last, "{lease} follows epoch {last}");
        let earlier = self.held.insert(lease.unit, (lease, worker.clone()));
        assert_eq!(earlier, None, "{lease} has two holders");
        self.issued += self.tokens(&lease.unit);
        if lease.unit.kind == UnitKind::Train {
            let (round, index) = (lease.unit.round.get(), lease.unit.index.get());
            self.disclosures.push((round, worker.clone(), index));
            self.check_privacy();
        }
    }

    /// Checks that the disclosures so far are within the budget.
    fn check_privacy(&self) {
        if let Some(privacy) = &self.spec.privacy {
            let disclosures = crate::privacy::disclosures(&self.disclosures);
            let epsilon = crate::privacy::epsilon(privacy, disclosures);
            assert!(
                epsilon <= privacy.epsilon,
                "{disclosures} disclosures cost {epsilon}, the budget is {}",
                privacy.epsilon
            );
        }
    }

    /// The budget ends the rounds: the ledger's numbers are right, one more contribution to the
    /// next round could pass the budget, or the open round cannot be completed.
    fn spend(&mut self, disclosures: u64, epsilon: f64) {
        let privacy = self.spec.privacy.expect("only a private run has a budget");
        assert!(!self.spent, "a budget ends once");
        self.spent = true;
        assert_eq!(disclosures, crate::privacy::disclosures(&self.disclosures));
        let own = crate::privacy::epsilon(&privacy, disclosures);
        assert!(own <= epsilon && epsilon <= own * 1.01, "{epsilon} {own}");
        let trains = |unit: &&UnitId| unit.kind == UnitKind::Train;
        assert_eq!(self.held.keys().find(trains), None, "a unit is held");
        assert_eq!(
            (&self.sealed, &self.named[..]),
            (&None, &[][..]),
            "a set waits"
        );
        let Some(round) = self.open.take() else {
            self.counts.spent += 1;
            let next = crate::privacy::epsilon(&privacy, disclosures + 1);
            assert!(next * 1.01 > privacy.epsilon, "another round costs {next}");
            return;
        };
        self.counts.spent_within += 1;
        let units = self.spec.schedule.units as usize;
        assert!(self.inputs.len() < units, "round {round} is complete");
        self.inputs.clear();
    }

    fn end(&mut self, lease: LeaseRef, worker: &WorkerId, tokens: u64) {
        assert_eq!(
            self.held.remove(&lease.unit),
            Some((lease, worker.clone())),
            "{worker} does not hold {lease}"
        );
        self.ended += tokens;
    }

    /// Everything of the worker ends: its membership, its lease, and its contributions that no seal
    /// names. What a seal has begun to name stays.
    fn quarantine(&mut self, worker: &WorkerId, lease: Option<LeaseRef>, withdrawn: u32) {
        self.counts.quarantined += 1;
        assert!(
            self.quarantined.insert(worker.clone()),
            "{worker} was shut out before"
        );
        self.members.remove(worker);
        let held = self.held.values().find(|(_, holder)| holder == worker);
        let held = held.map(|(held, _)| *held);
        assert_eq!(lease, held, "the lease that {worker} loses");
        if let Some(lease) = lease {
            self.counts.shut += 1;
            self.end(lease, worker, self.tokens(&lease.unit));
        }
        let before = self.inputs.len();
        if self.named.is_empty() {
            self.inputs.retain(|unit, input| {
                let stays = input.worker != *worker;
                if !stays {
                    self.counted.remove(unit);
                }
                stays
            });
        }
        let gone = (before - self.inputs.len()) as u64;
        assert_eq!(gone, u64::from(withdrawn), "contributions of {worker} go");
        self.counts.withdrawn += gone;
    }

    /// The run goes back to a snapshot under a new number: nothing of before is held, counts, or is
    /// sealed, and the weights are those that were saved.
    fn restore(
        &mut self,
        snapshot: Round,
        kept: Option<Model>,
        weights: &schemas::lease::Weights,
        (leases, contributions): (u32, u32),
    ) {
        let place = snapshot.get() as usize;
        let saved = self.models[place];
        assert_eq!(kept, Some(saved), "snapshot {snapshot} holds these weights");
        let held = std::mem::take(&mut self.held);
        assert_eq!(held.len() as u64, u64::from(leases), "every lease ends");
        self.ended += held.keys().map(|unit| self.tokens(unit)).sum::<u64>();
        let sealed = self.sealed.take().map_or(0, |sealed| sealed.len());
        let open = std::mem::take(&mut self.inputs).len();
        self.named.clear();
        self.masks = masks::Masks::default();
        self.open = None;
        let gone = (sealed + open) as u64;
        assert_eq!(gone, u64::from(contributions), "contributions that go");
        let version = self.model.round.next();
        let before = *self.merges.last().expect("there is a version");
        self.counts.restored += 1;
        self.counts.fenced += u64::from(leases);
        self.counts.dropped += gone;
        self.counts.undone += before.saturating_sub(self.merges[place]);
        let expected = schemas::lease::Weights {
            round: version,
            ..saved.broadcast(&self.spec)
        };
        assert_eq!(*weights, expected, "the weights of snapshot {snapshot}");
        self.model = saved.under(version);
        self.models.push(self.model);
        self.merges.push(self.merges[place]);
        self.makers.restored(snapshot);
        self.since = version;
    }

    fn count(&mut self, lease: LeaseRef) {
        assert!(self.counted.insert(lease.unit), "{lease} counts twice");
    }

    /// A round of many units is sealed in parts.
    fn seal(&mut self, round: Round, inputs: &[SealedInput], rest: u32) {
        assert_eq!(self.open, Some(round), "what is sealed is open");
        assert_eq!(self.sealed, None, "round {round} is sealed once");
        self.named.extend(inputs);
        assert_eq!(
            self.named.len() + rest as usize,
            self.inputs.len(),
            "each part of the seal of round {round} says how many inputs are left"
        );
        if rest > 0 {
            self.counts.parts += 1;
            return;
        }
        let inputs = std::mem::take(&mut self.named);
        // The map is ordered by unit, whatever the order of arrival was.
        let mut accepted: Vec<MergeInput> =
            std::mem::take(&mut self.inputs).into_values().collect();
        self.counts.left_out += comparison::leave_out(&self.spec, &mut accepted);
        let named = accepted.iter().map(|input| SealedInput {
            unit: input.lease.unit.index,
            epoch: input.lease.epoch,
            weight: input.weight,
        });
        let named: Vec<SealedInput> = named.collect();
        assert_eq!(inputs, named, "what is sealed is what was accepted");
        self.check_whole(round, inputs.len());
        self.sealed = Some(accepted);
    }

    /// Checks a merge of the executor, whether it is the first or a repetition.
    pub(crate) fn merge(&self, round: Round, inputs: &[MergeInput]) {
        assert_eq!(self.open, Some(round), "a round is merged while it is open");
        self.check_unmasked(round);
        assert_eq!(
            self.sealed.as_deref(),
            Some(inputs),
            "what is merged is what was sealed"
        );
    }

    fn close(&mut self, round: Round, broadcast: &schemas::lease::Weights) {
        assert_eq!(
            self.open.take(),
            Some(round),
            "a round closes once, after it was opened"
        );
        let inputs = self
            .sealed
            .take()
            .expect("a round is sealed before it closes");
        self.check_unmasked(round);
        self.masks = masks::Masks::default();
        self.model = self.model.step(&inputs);
        self.makers.merged(&inputs);
        self.models.push(self.model);
        let merges = self.merges.last().map_or(1, |merges| merges + 1);
        self.merges.push(merges);
        assert_eq!(
            *broadcast,
            self.model.broadcast(&self.spec),
            "round {round} gave other weights than its inputs"
        );
    }
}
