//! The fold: the effect of each ledger event on the state. The same function is used live and on
//! replay.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::run::RunSpec;
use schemas::{Bytes, ChainSequence, Fragment, PublicKey, Round, RunId, SyncId, UnixMillis};

use crate::error::{ApplyError, ReplayError, out_of_place};
use crate::given_up::GivenUp;
use crate::quarantine::QuarantineRecord;
use crate::spending::Spending;
use crate::state::{
    Fates, HoldRecord, Leader, PointerRecord, RefusedResult, RestoreRecord, Run, State,
};
use crate::tenants::TenantRecord;

impl State {
    /// Folds the next event of the coordinator's chain in.
    ///
    /// # Errors
    /// The event does not follow those before it, or is not of this chain. The state is then
    /// unchanged.
    pub fn follow(&mut self, body: &EventBody) -> Result<(), ReplayError> {
        let Event::Ledger(event) = &body.event else {
            return Err(ReplayError::Foreign(body.sequence));
        };
        let applied = self.apply(body.time, body.run.as_ref(), event);
        applied.map_err(|source| ReplayError::Apply {
            sequence: body.sequence,
            source,
        })
    }

    /// Folds one event in.
    ///
    /// # Errors
    /// The event cannot follow those before it. The state is then unchanged.
    pub fn apply(
        &mut self,
        time: UnixMillis,
        run: Option<&RunId>,
        event: &LedgerEvent,
    ) -> Result<(), ApplyError> {
        match event {
            LedgerEvent::CoordinatorStarted {
                release, posture, ..
            } => {
                self.leading = true;
                self.leader = Some(Leader {
                    release: release.clone(),
                    posture: posture.clone(),
                    since: time,
                });
            }
            LedgerEvent::CoordinatorStopped { .. } => self.leading = false,
            // Who signs is the chain's affair: the state is the same under any key.
            LedgerEvent::EmitterSucceeded { .. } if run.is_none() => {}
            LedgerEvent::ControlReceived { .. } if run.is_none() => {}
            LedgerEvent::RequestDenied { suppressed, .. } => {
                self.denied = self.denied.saturating_add(1).saturating_add(*suppressed);
            }
            LedgerEvent::RunCreated { spec, operator } => {
                self.create_run(time, run, spec, operator)?
            }
            LedgerEvent::TenantSet {
                tenant,
                account,
                quota,
                operator,
            } => {
                let record = TenantRecord {
                    account: account.clone(),
                    quota: *quota,
                    operator: operator.clone(),
                    since: time,
                    ended: None,
                };
                self.set_tenant(tenant, record)?
            }
            LedgerEvent::TenantEnded { tenant, .. } => self.end_tenant(time, tenant)?,
            LedgerEvent::CredentialRevoked { key, until, .. } if run.is_none() => {
                self.revoke(key, *until)?
            }
            LedgerEvent::CredentialReissued { key, issued } if run.is_none() => {
                self.reissue(key, *issued)?
            }
            LedgerEvent::CheckpointTaken => self.forget_results(time),
            LedgerEvent::CheckpointSaved { checkpoint } => self.save_checkpoint(checkpoint)?,
            _ => {
                let name = run.ok_or(ApplyError::RunMissing(event.kind()))?;
                self.check_own(name, event)?;
                self.check_revoked(event)?;
                let run = self.fold_run(name);
                let mut run = run.ok_or_else(|| ApplyError::RunUnknown(name.clone()))?;
                return run.apply(time, event);
            }
        }
        self.time = time;
        self.events += 1;
        if matches!(event, LedgerEvent::CheckpointTaken) {
            self.take_checkpoint();
        }
        Ok(())
    }

    /// One run, to read and to fold events into.
    pub fn fold_run<'a>(&'a mut self, name: &'a RunId) -> Option<RunFold<'a>> {
        let Self {
            runs, time, events, ..
        } = self;
        let run = Arc::make_mut(runs.get_mut(name)?);
        Some(RunFold {
            name,
            run,
            time,
            events,
        })
    }

    fn create_run(
        &mut self,
        time: UnixMillis,
        run: Option<&RunId>,
        spec: &RunSpec,
        operator: &PublicKey,
    ) -> Result<(), ApplyError> {
        let name = run.ok_or(ApplyError::RunMissing("run-created"))?;
        if self.runs.contains_key(name) {
            return Err(ApplyError::RunExists(name.clone()));
        }
        let account = self.account_of_new(name)?;
        let valid = spec.validate().and_then(|()| match &spec.privacy {
            Some(privacy) => privacy::check_budget(privacy),
            None => Ok(0),
        });
        let disclosures_max = valid.map_err(|refusal| ApplyError::SpecInvalid {
            run: name.clone(),
            refusal,
        })?;
        let run = Run {
            spec_digest: spec.to_object().1,
            operator: operator.clone(),
            account,
            created_at: time,
            completed_at: None,
            members: BTreeMap::new(),
            rounds: Vec::new(),
            units: BTreeMap::new(),
            open: BTreeMap::new(),
            sealed: Vec::new(),
            seals: false,
            accepted: BTreeMap::new(),
            weights: spec
                .fragments()
                .map(|fragment| ((fragment, Round(0)), spec.initial_weights()))
                .collect(),
            merges: Vec::new(),
            snapshots: Vec::new(),
            statements: BTreeMap::new(),
            pointers: BTreeMap::new(),
            evaluations: BTreeMap::new(),
            tokens: Fates::default(),
            uploaded: Bytes(0),
            tenant_ended: false,
            objects: 0,
            measured: BTreeMap::new(),
            left_out: Vec::new(),
            spending: spec.privacy.is_some().then(Spending::default),
            disclosures_max,
            cohorts: BTreeMap::new(),
            holds: BTreeMap::new(),
            quarantined: BTreeMap::new(),
            restores: Vec::new(),
            given_up: Vec::new(),
            any_rule: self.any_rule,
            spec: spec.clone(),
        };
        self.runs.insert(name.clone(), Arc::new(run));
        Ok(())
    }
}

/// One run of a state. It folds in events of this run and reaches no other run, so that code that
/// holds it can change nothing else.
#[derive(Debug)]
pub struct RunFold<'a> {
    name: &'a RunId,
    run: &'a mut Run,
    /// Time of the state's last event.
    time: &'a mut UnixMillis,
    /// Events of the state so far.
    events: &'a mut u64,
}

impl<'a> RunFold<'a> {
    /// The run's name.
    pub fn name(&self) -> &'a RunId {
        self.name
    }

    /// Folds one event of this run in, as [`State::apply`] does.
    ///
    /// # Errors
    /// The event cannot follow those before it, or concerns more than this run. The state is then
    /// unchanged.
    pub fn apply(&mut self, time: UnixMillis, event: &LedgerEvent) -> Result<(), ApplyError> {
        let sequence = ChainSequence(*self.events);
        self.run.apply((sequence, time), self.name, event)?;
        *self.time = time;
        *self.events += 1;
        Ok(())
    }
}

impl Deref for RunFold<'_> {
    type Target = Run;

    fn deref(&self) -> &Run {
        self.run
    }
}

impl Run {
    fn apply(
        &mut self,
        (sequence, time): (ChainSequence, UnixMillis),
        name: &RunId,
        event: &LedgerEvent,
    ) -> Result<(), ApplyError> {
        self.check_holds(event)?;
        self.check_tenant(event)?;
        match event {
            LedgerEvent::RunCompleted => self.complete(time),
            LedgerEvent::WorkerJoined { worker, .. } => self.join(time, worker, event),
            LedgerEvent::WorkerLeft { worker, cause, .. } => self.leave(time, name, worker, *cause),
            LedgerEvent::RoundOpened { round } => self.open(time, *round),
            LedgerEvent::LeaseGranted { lease, worker } => self.grant(time, name, lease, worker),
            LedgerEvent::LeaseEnded {
                lease,
                worker,
                tokens,
                ..
            } => self.end(lease, worker, *tokens),
            LedgerEvent::ContributionRejected {
                lease,
                worker,
                code,
                detail,
                tokens,
            } => {
                let refused = RefusedResult {
                    lease: *lease,
                    code: *code,
                    detail: detail.clone(),
                };
                self.reject(worker, refused, *tokens)
            }
            LedgerEvent::ContributionAccepted {
                lease,
                worker,
                contribution,
                norm,
                statement,
                ..
            } => self.accept(lease, worker, contribution, *norm, *statement),
            LedgerEvent::EvaluationAccepted {
                lease,
                worker,
                evaluation,
                statement,
                ..
            } => self.accept_evaluation(lease, worker, evaluation, *statement),
            LedgerEvent::RoundCompared { round, cosines } => self.compare(*round, cosines),
            LedgerEvent::RoundSealed {
                round,
                fragment,
                inputs,
                left_out,
                rest,
            } => self.seal(sync(*round, *fragment), (inputs, left_out), *rest),
            LedgerEvent::RoundClosed {
                round,
                fragment,
                broadcast,
                norm,
                ..
            } => self.close(time, sync(*round, *fragment), broadcast, *norm),
            LedgerEvent::CohortSealed { round, members } => self.seal_cohort(*round, members),
            LedgerEvent::RoundUnmasked { round, secrets } => self.unmask(*round, secrets),
            LedgerEvent::CohortDissolved {
                round,
                contributions,
            } => self.dissolve(*round, *contributions),
            LedgerEvent::PrivacySpent {
                disclosures,
                epsilon,
            } => self.spend_out(*disclosures, *epsilon),
            LedgerEvent::SnapshotSaved {
                round,
                manifest,
                statement,
            } => self.saved(time, *round, *manifest, *statement),
            LedgerEvent::SnapshotPromoted {
                pointer,
                round,
                manifest,
                operator,
                reason,
                accepted,
            } => {
                let record = PointerRecord {
                    round: *round,
                    manifest: *manifest,
                    operator: operator.clone(),
                    reason: reason.clone(),
                    since: time,
                };
                self.promote(pointer, record, accepted)
            }
            LedgerEvent::HoldPlaced {
                hold,
                operator,
                reason,
            } => {
                let record = HoldRecord {
                    operator: operator.clone(),
                    reason: reason.clone(),
                    since: time,
                };
                self.place_hold(*hold, record)
            }
            LedgerEvent::HoldLifted { hold, .. } => self.lift_hold(*hold),
            LedgerEvent::LeasesEnded { leases, .. } => self.order_ends(*leases),
            LedgerEvent::WorkerQuarantined {
                worker,
                operator,
                reason,
                lease,
                withdrawn,
            } => {
                let record = QuarantineRecord {
                    operator: operator.clone(),
                    reason: reason.clone(),
                    since: time,
                };
                self.quarantine(worker, record, *lease, *withdrawn)
            }
            LedgerEvent::WorkerReadmitted { worker, .. } => self.readmit(worker),
            LedgerEvent::SnapshotRestored {
                snapshot,
                manifest,
                from,
                weights,
                operator,
                reason,
                leases,
                contributions,
            } => {
                let record = RestoreRecord {
                    snapshot: *snapshot,
                    manifest: *manifest,
                    version: weights.round,
                    operator: operator.clone(),
                    reason: reason.clone(),
                    since: time,
                    merged: BTreeMap::new(),
                };
                self.restore(record, *from, weights, (*leases, *contributions))
            }
            LedgerEvent::ObjectsGivenUp {
                through,
                snapshots,
                operator,
                reason,
                ..
            } => {
                let record = GivenUp {
                    sequence,
                    since: time,
                    through: *through,
                    snapshots: Vec::new(),
                    operator: operator.clone(),
                    reason: reason.clone(),
                };
                self.give_up(record, *snapshots)
            }
            LedgerEvent::CoordinatorStarted { .. }
            | LedgerEvent::CoordinatorStopped { .. }
            | LedgerEvent::EmitterSucceeded { .. }
            | LedgerEvent::RunCreated { .. }
            | LedgerEvent::ControlReceived { .. }
            | LedgerEvent::RequestDenied { .. }
            | LedgerEvent::TenantSet { .. }
            | LedgerEvent::TenantEnded { .. }
            | LedgerEvent::CredentialRevoked { .. }
            | LedgerEvent::CredentialReissued { .. }
            | LedgerEvent::CheckpointTaken
            | LedgerEvent::CheckpointSaved { .. } => Err(out_of_place(
                event.kind(),
                "an event of the whole coordinator".to_owned(),
            )),
        }
    }

    fn complete(&mut self, time: UnixMillis) -> Result<(), ApplyError> {
        if self.is_complete() || !self.all_rounds_closed() || !self.units.is_empty() {
            return Err(out_of_place("run-completed", "its end".to_owned()));
        }
        self.completed_at = Some(time);
        Ok(())
    }
}

fn sync(round: Round, fragment: Fragment) -> SyncId {
    SyncId { round, fragment }
}
