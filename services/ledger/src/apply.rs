//! The fold: what each ledger event does to the state. Live and on replay it is the same function.

use std::collections::BTreeMap;
use std::ops::Deref;

use schemas::contribution::{Evaluation, Fate};
use schemas::event::{Departure, Event, EventBody, LedgerEvent};
use schemas::lease::{LeaseRef, UnitKind};
use schemas::run::RunSpec;
use schemas::{
    Bytes, Digest, Fragment, PublicKey, Refusal, Round, RunId, Sequence, SyncId, Tokens,
    UnixMillis, WorkerId,
};

use crate::state::{Accepted, Fates, Leader, Member, Run, Standing, State, Unit};

/// Why a ledger does not give a state.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// An event does not follow on those before it.
    #[error("event {sequence} of the ledger does not fit: {source}")]
    Apply {
        /// Its position.
        sequence: Sequence,
        /// What is wrong.
        source: ApplyError,
    },
    /// The chain holds an event that is not the coordinator's.
    #[error("event {0} is no event of a ledger; replay the coordinator's chain only")]
    Foreign(Sequence),
}

/// Why an event cannot follow on the events before it. In a ledger that verifies this means a
/// defect or another release.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The event must concern a run and names none.
    #[error("event {0} names no run")]
    RunMissing(&'static str),
    /// No event created the run.
    #[error("run {0} was never created")]
    RunUnknown(RunId),
    /// The run was created before.
    #[error("run {0} was created before")]
    RunExists(RunId),
    /// The settings are out of bounds.
    #[error("run {run} has settings that are not valid: {refusal}")]
    SpecInvalid {
        /// The run.
        run: RunId,
        /// What is wrong with them.
        refusal: Refusal,
    },
    /// The run is over, or is not yet.
    #[error("{what} does not fit a run that stands elsewhere: {event}")]
    OutOfPlace {
        /// The event's kind.
        event: &'static str,
        /// What it says.
        what: String,
    },
    /// The lease is not the one that is held.
    #[error("{event}: {worker} does not hold lease {lease}")]
    NotHeld {
        /// The event's kind.
        event: &'static str,
        /// The lease.
        lease: LeaseRef,
        /// Who should hold it.
        worker: WorkerId,
    },
    /// The worker never joined.
    #[error("{worker} never joined run {run}")]
    WorkerUnknown {
        /// The run.
        run: RunId,
        /// The worker.
        worker: WorkerId,
    },
}

impl State {
    /// Folds the next event of the coordinator's chain in.
    ///
    /// # Errors
    /// The event does not follow on those before it, or is not of this chain; the state is then as
    /// it was.
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
    /// The event cannot follow on those before it; the state is then as it was.
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
            LedgerEvent::ControlReceived { .. } => {}
            LedgerEvent::RequestDenied { suppressed, .. } => {
                self.denied = self.denied.saturating_add(1).saturating_add(*suppressed);
            }
            LedgerEvent::RunCreated { spec, operator } => {
                self.create_run(time, run, spec, operator)?
            }
            _ => {
                let name = run.ok_or(ApplyError::RunMissing(event.kind()))?;
                let run = self.fold_run(name);
                let mut run = run.ok_or_else(|| ApplyError::RunUnknown(name.clone()))?;
                run.apply(time, event)?;
            }
        }
        self.time = time;
        Ok(())
    }

    /// One run, to be read and to be continued.
    pub fn fold_run<'a>(&'a mut self, name: &'a RunId) -> Option<RunFold<'a>> {
        let Self { runs, time, .. } = self;
        let run = runs.get_mut(name)?;
        Some(RunFold { name, run, time })
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
        spec.validate().map_err(|refusal| ApplyError::SpecInvalid {
            run: name.clone(),
            refusal,
        })?;
        let run = Run {
            spec_digest: spec.to_object().1,
            operator: operator.clone(),
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
            evaluations: BTreeMap::new(),
            tokens: Fates::default(),
            uploaded: Bytes(0),
            spec: spec.clone(),
        };
        self.runs.insert(name.clone(), run);
        Ok(())
    }
}

/// One run of a state. It folds events of this run in and reaches no other, so that code which is
/// given it can change nothing else.
#[derive(Debug)]
pub struct RunFold<'a> {
    name: &'a RunId,
    run: &'a mut Run,
    /// Time of the state's last event.
    time: &'a mut UnixMillis,
}

impl<'a> RunFold<'a> {
    /// The run's name.
    pub fn name(&self) -> &'a RunId {
        self.name
    }

    /// Folds one event of this run in, as [`State::apply`] does.
    ///
    /// # Errors
    /// The event cannot follow on those before it, or concerns more than this run; the state is
    /// then as it was.
    pub fn apply(&mut self, time: UnixMillis, event: &LedgerEvent) -> Result<(), ApplyError> {
        self.run.apply(time, self.name, event)?;
        *self.time = time;
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
        time: UnixMillis,
        name: &RunId,
        event: &LedgerEvent,
    ) -> Result<(), ApplyError> {
        match event {
            LedgerEvent::RunCompleted => self.complete(time),
            LedgerEvent::WorkerJoined {
                worker,
                account,
                audit_key,
                trainers,
                device,
                release,
                posture,
                session,
            } => {
                let before = self.members.get(worker);
                let member = Member {
                    account: account.clone(),
                    audit_key: audit_key.clone(),
                    trainers: trainers.clone(),
                    device: device.clone(),
                    release: release.clone(),
                    posture: posture.clone(),
                    session: *session,
                    fenced: before.and_then(|member| member.fenced),
                    present: true,
                    removed: false,
                    since: time,
                    lease: before.and_then(|member| member.lease),
                    accepted: before.map_or(0, |member| member.accepted),
                    rejected: before.map_or(0, |member| member.rejected),
                };
                self.join(worker, member)
            }
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
                tokens,
                ..
            } => self.reject(lease, worker, *tokens),
            LedgerEvent::ContributionAccepted {
                lease,
                worker,
                contribution,
                statement,
                ..
            } => self.accept(lease, worker, contribution, *statement),
            LedgerEvent::EvaluationAccepted {
                lease,
                worker,
                evaluation,
                statement,
                ..
            } => self.accept_evaluation(lease, worker, evaluation, *statement),
            LedgerEvent::RoundSealed {
                round,
                fragment,
                inputs,
                rest,
            } => self.seal(sync(*round, *fragment), inputs, *rest),
            LedgerEvent::RoundClosed {
                round,
                fragment,
                broadcast,
                norm,
                ..
            } => self.close(time, sync(*round, *fragment), broadcast, *norm),
            LedgerEvent::SnapshotSaved { round, manifest } => self.saved(time, *round, *manifest),
            LedgerEvent::CoordinatorStarted { .. }
            | LedgerEvent::CoordinatorStopped { .. }
            | LedgerEvent::RunCreated { .. }
            | LedgerEvent::ControlReceived { .. }
            | LedgerEvent::RequestDenied { .. } => Err(out_of_place(
                event.kind(),
                "an event of the whole coordinator".to_owned(),
            )),
        }
    }

    fn join(&mut self, worker: &WorkerId, member: Member) -> Result<(), ApplyError> {
        if self
            .members
            .get(worker)
            .is_some_and(|before| before.removed)
        {
            return Err(out_of_place(
                "worker-joined",
                format!("{worker} was removed before"),
            ));
        }
        self.members.insert(worker.clone(), member);
        Ok(())
    }

    fn leave(
        &mut self,
        time: UnixMillis,
        name: &RunId,
        worker: &WorkerId,
        cause: Departure,
    ) -> Result<(), ApplyError> {
        let unknown = || ApplyError::WorkerUnknown {
            run: name.clone(),
            worker: worker.clone(),
        };
        let member = self.members.get_mut(worker).ok_or_else(unknown)?;
        member.present = false;
        member.removed |= cause == Departure::Removed;
        if cause == Departure::Replaced {
            member.fenced = member.lease;
        }
        member.since = time;
        Ok(())
    }

    fn grant(
        &mut self,
        time: UnixMillis,
        name: &RunId,
        lease: &LeaseRef,
        worker: &WorkerId,
    ) -> Result<(), ApplyError> {
        let unknown = || ApplyError::WorkerUnknown {
            run: name.clone(),
            worker: worker.clone(),
        };
        let member = self
            .members
            .get_mut(worker)
            .filter(|member| member.present)
            .ok_or_else(unknown)?;
        let wrong = || out_of_place("lease-granted", format!("lease {lease} of {worker}"));
        let unit = self.units.get_mut(&lease.unit).ok_or_else(wrong)?;
        if unit.standing != Standing::Open
            || lease.epoch != unit.epoch.next()
            || member.lease.is_some()
        {
            return Err(wrong());
        }
        unit.epoch = lease.epoch;
        unit.standing = Standing::Held {
            worker: worker.clone(),
            since: time,
        };
        member.lease = Some(*lease);
        let tokens = self.unit_tokens(&lease.unit);
        self.tokens.issued += tokens;
        Ok(())
    }

    /// Ends a lease without a result: its tokens are abandoned.
    fn end(
        &mut self,
        lease: &LeaseRef,
        worker: &WorkerId,
        tokens: Tokens,
    ) -> Result<(), ApplyError> {
        self.release("lease-ended", lease, worker)?;
        self.tokens.abandoned += tokens;
        Ok(())
    }

    /// Refuses a result: its tokens are rejected.
    fn reject(
        &mut self,
        lease: &LeaseRef,
        worker: &WorkerId,
        tokens: Tokens,
    ) -> Result<(), ApplyError> {
        self.release("contribution-rejected", lease, worker)?;
        self.tokens.rejected += tokens;
        self.count(worker, |member| member.rejected += 1);
        Ok(())
    }

    /// Takes a held lease from its holder. Its unit is open again, unless its round takes nothing any
    /// more.
    fn release(
        &mut self,
        event: &'static str,
        lease: &LeaseRef,
        worker: &WorkerId,
    ) -> Result<(), ApplyError> {
        let collects = lease.unit.kind == UnitKind::Evaluate || self.collects(lease.unit.round);
        let unit = self.held(event, lease, worker)?;
        unit.standing = Standing::Open;
        unit.failed_by = Some(worker.clone());
        if !collects {
            self.units.remove(&lease.unit);
        }
        self.count(worker, |member| member.lease = None);
        Ok(())
    }

    /// The unit of a lease that `worker` holds.
    pub(crate) fn held(
        &mut self,
        event: &'static str,
        lease: &LeaseRef,
        worker: &WorkerId,
    ) -> Result<&mut Unit, ApplyError> {
        let holds = self.holder(&lease.unit) == Some((worker, lease.epoch));
        let unit = self.units.get_mut(&lease.unit).filter(|_| holds);
        unit.ok_or_else(|| ApplyError::NotHeld {
            event,
            lease: *lease,
            worker: worker.clone(),
        })
    }

    /// Notes what came of a lease in its holder's entry.
    pub(crate) fn count(&mut self, worker: &WorkerId, change: impl FnOnce(&mut Member)) {
        let member = self.members.get_mut(worker);
        change(member.expect("the holder of a lease has an entry"));
    }

    fn accept_evaluation(
        &mut self,
        lease: &LeaseRef,
        worker: &WorkerId,
        evaluation: &Evaluation,
        statement: Digest,
    ) -> Result<(), ApplyError> {
        if lease.unit.kind != UnitKind::Evaluate {
            return Err(out_of_place(
                "evaluation-accepted",
                format!("lease {lease}"),
            ));
        }
        self.held("evaluation-accepted", lease, worker)?;
        self.units.remove(&lease.unit);
        self.accepted.insert(
            lease.unit,
            Accepted {
                epoch: lease.epoch,
                statement,
                fate: Fate::Merged,
            },
        );
        self.evaluations
            .insert(lease.unit.round, evaluation.clone());
        self.count(worker, |member| {
            member.lease = None;
            member.accepted += 1;
        });
        self.forget_weights();
        Ok(())
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

pub(crate) fn out_of_place(event: &'static str, what: String) -> ApplyError {
    ApplyError::OutOfPlace { event, what }
}
