//! The coordinator's process: the real core, a shell for its effects, and its sudden end.

use std::collections::VecDeque;

use coordinator_core::{
    Answer, ControlRequest, Coordinator, Effect, Input, Peer, Recorded, ReplyId, WorkerRequest,
};
use ledger::State;
use schemas::control::{RunNew, Shutdown};
use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::hold::{Hold, HoldRequest};
use schemas::lease::{ClaimOutcome, ClaimReply, UnitId};
use schemas::member::Session;
use schemas::promotion::PromoteRequest;
use schemas::public::CommandVerb;
use schemas::quarantine::QuarantineRequest;
use schemas::restore::RestoreRequest;
use schemas::telemetry::Heartbeat;
use schemas::view::RunPhase;
use schemas::{ChainSequence, Millis, Refusal, RunId, UnixMillis, V, WorkerId};

use crate::foundry::Job;
use crate::plan::{account, operator, run_id, settings, worker_id};
use crate::queue::Try;
use crate::store::Model;
use crate::world::{Delivered, Route, SimEvent, World};

/// Factor by which a process dies more often before an append than between two other effects, since
/// it waits longest for the disk.
const DISK_CRASHES: u64 = 10;

/// More time than it takes from the order to restore a snapshot to its event.
const RESTORE_MAX: Millis = Millis::from_secs(60);

/// The machine that the coordinator runs on.
#[derive(Debug, Default)]
pub(crate) struct CoordinatorMachine {
    pub(crate) process: Option<Process>,
    /// Number of processes so far; an answer to an earlier process is void.
    generation: u64,
    /// The state that the events alone lead to.
    pub(crate) shadow: State,
    replies: u64,
    /// The time at which an operator last asked for a restore.
    restored_at: UnixMillis,
    /// Inputs that arrived while the disk was busy.
    pub(crate) waiting: Vec<Input>,
    pub(crate) crashes: u64,
    pub(crate) shared_appends: u64,
    pub(crate) torn: u64,
    pub(crate) unsealed: u64,
}

#[derive(Debug)]
pub(crate) struct Process {
    core: Coordinator,
    /// The weights that its merge executor holds.
    pub(crate) weights: Option<Model>,
    /// Orders to restore weights so far; a merge that was ordered before one of them is of other
    /// weights.
    pub(crate) restores: u64,
}

impl CoordinatorMachine {
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn deadline(&self) -> Option<UnixMillis> {
        self.process.as_ref()?.core.next_deadline()
    }
}

impl World {
    pub(crate) fn start_coordinator(&mut self) {
        if self.site.process.is_some() {
            return;
        }
        self.site.generation += 1;
        // What was kept for a collection is the process's own knowledge.
        self.store.written = None;
        if !self.take_next_key() {
            return;
        }
        let core = self.resume(settings(self.keys.trusted()));
        assert!(
            *core.state() == self.site.shadow,
            "a replay gives another state than the events one by one"
        );
        self.site.process = Some(Process {
            core,
            weights: None,
            restores: 0,
        });
        let mut effects = Vec::new();
        let now = self.now;
        if let Some(process) = &mut self.site.process {
            process.core.start(now, &mut effects);
        }
        self.perform(effects);
    }

    /// Ends the process between two instructions.
    pub(crate) fn crash_coordinator(&mut self) {
        if self.site.process.take().is_some() {
            self.site.crashes += 1;
            self.site.waiting.clear();
            self.restart_coordinator();
        }
    }

    pub(crate) fn restart_coordinator(&mut self) {
        self.site.generation += 1;
        let pause = self.random.millis(50, 15_000);
        self.after(pause, SimEvent::StartCoordinator);
    }

    /// An operator ends the process in order, and a service manager starts the next one.
    pub(crate) fn shut_down(&mut self) {
        let drain = self.random.millis(0, 20_000);
        self.ask_as_operator(ControlRequest::Shutdown(Shutdown { v: V, drain }));
    }

    pub(crate) fn create_run(&mut self) {
        if self.site.shadow.run(&run_id()).is_some() {
            return;
        }
        let spec = self.plan.spec.clone();
        self.ask_as_operator(ControlRequest::RunNew(Box::new(RunNew { v: V, spec })));
        self.after(Millis::from_secs(5), SimEvent::CreateRun);
    }

    /// An operator keeps the run's weights as they are for a while, and often stops its URLs too.
    pub(crate) fn freeze(&mut self) {
        self.ask_for_hold(true);
        let pause = self.random.millis(500, 60_000);
        self.after(pause, SimEvent::Unfreeze);
    }

    /// Either order may be lost, may wait for the disk, or be refused by a coordinator that stops,
    /// so this one is repeated until no hold stands and none is on its way.
    pub(crate) fn unfreeze(&mut self) {
        let run = self.site.shadow.run(&run_id());
        let held = run.is_some_and(|run| !run.holds.is_empty() && !run.is_complete());
        let restoring = self.now < self.site.restored_at.after(RESTORE_MAX);
        if held || restoring || !self.site.waiting.is_empty() {
            self.ask_for_hold(false);
            self.after(Millis::from_secs(5), SimEvent::Unfreeze);
        }
    }

    /// An operator leads the run back to one of its snapshots, which freezes it for a while. The
    /// order may be repeated.
    pub(crate) fn restore_snapshot(&mut self) {
        let run = self.site.shadow.run(&run_id());
        let snapshots = run.map_or(&[][..], |run| &run.snapshots);
        let Some(last) = snapshots.len().checked_sub(1) else {
            return;
        };
        let place = self.random.between(0, last as u64) as usize;
        let manifest = snapshots[place].manifest.digest;
        for _ in 0..self.random.between(1, 2) {
            self.ask_as_operator(ControlRequest::SnapshotRestore(RestoreRequest {
                v: V,
                snapshot: manifest,
                run: Some(run_id()),
                force: true,
                reason: "a mishap".parse().expect("a reason"),
            }));
        }
        self.site.restored_at = self.now;
        let pause = self.random.millis(500, 60_000);
        self.after(pause, SimEvent::Unfreeze);
    }

    /// An operator shuts a worker out for a while.
    pub(crate) fn quarantine(&mut self, worker: usize) {
        self.ask_for_quarantine(worker, true);
        let pause = self.random.millis(500, 60_000);
        self.after(pause, SimEvent::Readmit(worker));
    }

    /// Repeated until the worker may join again, like [`World::unfreeze`]. Then somebody starts it:
    /// no service manager does so after a quarantine.
    pub(crate) fn readmit(&mut self, worker: usize) {
        let run = self.site.shadow.run(&run_id());
        let shut = run.is_some_and(|run| run.is_quarantined(&worker_id(worker)));
        if shut || !self.site.waiting.is_empty() {
            self.ask_for_quarantine(worker, false);
            self.after(Millis::from_secs(5), SimEvent::Readmit(worker));
        } else {
            self.start_worker(worker);
        }
    }

    /// An operator promotes any full snapshot that the ledger has by now: the newest one, or one to
    /// go back to.
    pub(crate) fn promote(&mut self) {
        let run = self.site.shadow.run(&run_id());
        let saved = run.map_or(&[][..], |run| &run.snapshots);
        let Some(last) = saved.len().checked_sub(1) else {
            return;
        };
        let snapshot = saved[self.random.between(0, last as u64) as usize]
            .manifest
            .digest;
        self.ask_as_operator(ControlRequest::SnapshotPromote(PromoteRequest {
            v: V,
            run: Some(run_id()),
            snapshot,
            pointer: "release".parse().expect("a name"),
            accept: Vec::new(),
            check_only: false,
            reason: "it reads well".parse().expect("a reason"),
        }));
    }

    fn ask_for_quarantine(&mut self, worker: usize, quarantined: bool) {
        self.ask_as_operator(ControlRequest::WorkerQuarantine(QuarantineRequest {
            v: V,
            run: run_id(),
            worker: worker_id(worker),
            quarantined,
            reason: "odd norms".parse().expect("a reason"),
        }));
    }

    fn ask_for_hold(&mut self, held: bool) {
        let both = !held || self.site.replies.is_multiple_of(2);
        for hold in [Hold::Merges, Hold::Urls][..1 + usize::from(both)].to_vec() {
            self.ask_as_operator(ControlRequest::RunHold(HoldRequest {
                v: V,
                run: run_id(),
                hold,
                held,
                reason: "a mishap".parse().expect("a reason"),
            }));
        }
    }

    pub(crate) fn ask_as_operator(&mut self, request: ControlRequest) {
        let reply = self.reply_id();
        self.tell_coordinator(Input::Control {
            operator: operator(),
            request,
            reply,
        });
    }

    fn reply_id(&mut self) -> ReplyId {
        self.site.replies += 1;
        ReplyId(self.site.replies)
    }

    pub(crate) fn request_arrives(&mut self, route: Route, request: WorkerRequest) {
        let (peer, seat) = (peer(route.worker), self.plan.seat(route.worker));
        let reply = self.reply_id();
        self.routes.insert(reply, route);
        self.tell_coordinator(Input::Request {
            peer,
            recorded: seat.map(|seat| {
                let seat = Some(seat);
                let before = Vec::new();
                Box::new(Recorded { seat, before })
            }),
            request,
            reply,
        });
    }

    pub(crate) fn heartbeat_arrives(&mut self, worker: usize, heartbeat: Heartbeat) {
        self.tell_coordinator(Input::Heartbeat {
            peer: peer(worker),
            heartbeat,
        });
    }

    pub(crate) fn deliver(&mut self, message: u64) {
        if self.site.process.is_none() {
            return self.after(Millis::from_secs(1), SimEvent::Deliver { message });
        }
        match self.queue.deliver(self.now, message) {
            Try::Gone => {}
            Try::Later(at) => self.after(self.now.until(at), SimEvent::Deliver { message }),
            Try::Delivered(unit, delivery) => {
                self.after(crate::queue::ACK_WAIT, SimEvent::Deliver { message });
                self.tell_coordinator(Input::Offered {
                    run: run_id(),
                    unit,
                    delivery,
                });
            }
        }
    }

    /// An input arrives. While the disk is busy it waits, and the core decides on it together with
    /// all other inputs that wait by then. A deadline does not wait.
    pub(crate) fn tell_coordinator(&mut self, input: Input) {
        if self.site.process.is_none() {
            return;
        }
        let ticks = matches!(input, Input::Tick);
        self.site.waiting.push(input);
        if ticks || (self.site.waiting.len() == 1 && !self.random.hits(self.plan.disk)) {
            self.decide();
        } else if self.site.waiting.len() == 1 {
            let generation = self.site.generation;
            let span = self.random.millis(1, 2_000);
            self.after(span, SimEvent::Decide { generation });
        }
    }

    /// Lets the core decide on all inputs that wait, and carries out its effects.
    pub(crate) fn decide(&mut self) {
        let now = self.now;
        let Some(process) = &mut self.site.process else {
            return;
        };
        let (mut effects, mut ticked, mut fruitful) = (Vec::new(), false, 0);
        for input in std::mem::take(&mut self.site.waiting) {
            ticked = matches!(input, Input::Tick);
            let before = effects.len();
            process.core.handle(now, input, &mut effects);
            let mut new = effects[before..].iter();
            fruitful += u64::from(new.any(|effect| matches!(effect, Effect::Append { .. })));
        }
        let next = process.core.next_deadline();
        assert!(
            !ticked || next.is_none_or(|next| next > now),
            "a deadline at {next:?} is not later than {now}"
        );
        self.site.shared_appends += u64::from(fruitful > 1);
        self.perform(effects);
    }

    /// Starts the merges among the effects, appends the events in batches that are stored as a
    /// whole or not at all, and then carries out the other effects in order. The process may die
    /// before any batch and any effect.
    fn perform(&mut self, effects: Vec<Effect>) {
        let append = |effect: &Effect| matches!(effect, Effect::Append { .. });
        let (merges, effects): (Vec<Effect>, Vec<Effect>) =
            effects.into_iter().partition(Effect::is_early);
        let (mut events, others): (VecDeque<Effect>, VecDeque<Effect>) =
            effects.into_iter().partition(append);
        let mut begun = false;
        for merge in merges {
            if self.random.hits(self.faults.crash) {
                return self.crash_coordinator();
            }
            begun = true;
            self.carry_out(merge);
        }
        let decided = events.len();
        while !events.is_empty() {
            if self.random.hits(DISK_CRASHES * self.faults.crash) {
                self.site.torn += u64::from(events.len() < decided);
                self.site.unsealed += u64::from(begun && events.iter().any(is_seal));
                return self.crash_coordinator();
            }
            let batch = self.random.between(1, events.len() as u64) as usize;
            let mut part = false;
            for event in events.drain(..batch) {
                part = is_part(&event);
                self.carry_out(event);
                if part && self.dies_in_seal {
                    break;
                }
            }
            if part && std::mem::take(&mut self.dies_in_seal) {
                self.site.torn += 1;
                return self.crash_coordinator();
            }
        }
        for effect in others {
            if self.random.hits(self.faults.crash) {
                return self.crash_coordinator();
            }
            self.carry_out(effect);
        }
        let Some(process) = &self.site.process else {
            return;
        };
        assert!(
            *process.core.state() == self.site.shadow,
            "the state is not the fold of the ledger"
        );
        self.site
            .shadow
            .check()
            .expect("the state's invariants hold");
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Append { time, run, event } => self.append(time, run, *event),
            Effect::Reply { reply, answer } => self.reply(reply, delivered(answer)),
            Effect::Lease { reply, manifest } => {
                if self
                    .swallowed
                    .as_mut()
                    .is_some_and(|swallowed| swallowed.insert(manifest.lease))
                {
                    self.lost += 1;
                    return;
                }
                let outcome = ClaimOutcome::Lease(self.documents.len().to_string());
                self.documents.push(*manifest);
                let answer = worker_core::Answer::Claim(ClaimReply::of(outcome));
                self.reply(reply, Delivered::Answer(answer));
            }
            Effect::GrantGet { reply, objects, .. } => {
                let missing = objects
                    .iter()
                    .find(|digest| !self.store.blobs.contains(digest));
                assert_eq!(missing, None, "an object that is granted is not there");
                self.reply(reply, Delivered::Granted);
            }
            Effect::ShowKeys { reply } | Effect::GrantPut { reply, .. } => {
                self.reply(reply, Delivered::Granted)
            }
            Effect::CheckRun { reply, .. } => self.inform_coordinator(
                10,
                Input::RunChecked {
                    reply,
                    verdict: Ok(()),
                },
            ),
            Effect::Offer { unit, .. } => self.publish_offer(unit),
            Effect::Settle { delivery } => self.queue.settle(delivery),
            Effect::Hold { delivery } => self.queue.hold(self.now, delivery),
            Effect::Foundry { order, .. } => self.order(order),
            Effect::Command {
                worker,
                session,
                verb,
                ..
            } => self.command(&worker, session, verb),
            Effect::Stop { .. } => {
                self.site.process = None;
                self.restart_coordinator();
            }
            // Hints and views have no effect in the simulation.
            Effect::Publish(status) if status.view.phase == RunPhase::Halted => {
                self.mend(status.view.halted.as_ref().map(|halted| halted.code));
            }
            // The operator ignores its answers, and the store counts no uploads.
            Effect::Sweep { .. }
            | Effect::Purge { .. }
            | Effect::StopUrls { .. }
            | Effect::UrlsEnd { .. }
            | Effect::Publish(_)
            | Effect::ShowHeartbeat { .. } => {}
            Effect::Collect(step) => self.collect(step),
            Effect::CheckSnapshot { manifest, .. } => self.begin(Job::CheckSnapshot { manifest }),
            Effect::WriteCheckpoint { state } => {
                let bytes = state.to_checkpoint();
                self.begin(Job::Checkpoint { bytes });
            }
            Effect::DiscardCheckpoint { object } => _ = self.store.checkpoints.remove(&object),
            Effect::CheckUploads { .. } | Effect::Promote { .. } => {
                panic!("nobody uploads as an operator here")
            }
        }
    }

    pub(crate) fn append(&mut self, time: UnixMillis, run: Option<RunId>, event: LedgerEvent) {
        let emitter = self.keys.own().clone();
        self.monitor.signed(&emitter);
        self.monitor.note(&event, &self.store);
        let folded = self.site.shadow.apply(time, run.as_ref(), &event);
        folded.expect("an event follows on those before it");
        if let (LedgerEvent::CohortSealed { round, .. }, Some(name)) = (&event, &run) {
            let run = self.site.shadow.run(name);
            let cohort = run.and_then(|run| run.cohort_digest(*round));
            self.store.cohorts.extend(cohort);
        }
        let sequence = ChainSequence(self.journal.len() as u64);
        let event = Event::Ledger(event);
        self.journal.push(EventBody {
            v: V,
            known: None,
            emitter,
            sequence,
            previous: None,
            time,
            run,
            event,
        });
    }

    fn reply(&mut self, reply: ReplyId, answer: Delivered) {
        // Simulated operators ignore their answers.
        let Some(route) = self.routes.remove(&reply) else {
            return;
        };
        for span in self.transits(route.worker) {
            self.after(
                span,
                SimEvent::Answer {
                    route: route.clone(),
                    answer: answer.clone(),
                },
            );
        }
    }

    fn publish_offer(&mut self, unit: UnitId) {
        if self.queue.holds(&unit) {
            return;
        }
        let copies = if self.random.hits(self.faults.copies) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            if !self.random.hits(self.faults.queue) {
                let message = self.queue.publish(unit);
                self.after(Millis(2), SimEvent::Deliver { message });
            }
        }
    }

    fn command(&mut self, to: &WorkerId, session: Session, verb: CommandVerb) {
        let worker = (0..self.plan.workers).find(|worker| worker_id(*worker) == *to);
        let worker = worker.expect("a command is for somebody who joined");
        let incarnation = self.machines[worker].incarnation();
        let is_for_it = self.machines[worker].session() == Some(session);
        for span in self.transits(worker).into_iter().filter(|_| is_for_it) {
            let input = worker_core::Input::Command(verb);
            self.after(
                span,
                SimEvent::Worker {
                    worker,
                    incarnation,
                    input,
                },
            );
        }
    }

    fn inform_coordinator(&mut self, span_ms: u64, input: Input) {
        let generation = self.site.generation;
        self.after(
            Millis(span_ms),
            SimEvent::Coordinator {
                generation,
                input: Box::new(input),
            },
        );
    }
}

fn is_seal(effect: &Effect) -> bool {
    matches!(effect, Effect::Append { event, .. } if matches!(**event, LedgerEvent::RoundSealed { .. }))
}

/// True for a part of a seal that others follow.
fn is_part(effect: &Effect) -> bool {
    matches!(effect, Effect::Append { event, .. } if matches!(**event, LedgerEvent::RoundSealed { rest: 1.., .. }))
}

fn peer(worker: usize) -> Peer {
    Peer {
        account: account(),
        run: run_id(),
        worker: worker_id(worker),
    }
}

/// An answer as a worker's shell decodes it.
fn delivered(answer: Result<Answer, Refusal>) -> Delivered {
    let answer = match answer {
        Ok(Answer::Join(reply)) => worker_core::Answer::Join(reply),
        Ok(Answer::Claim(reply)) => worker_core::Answer::Claim(reply),
        Ok(Answer::Renew(reply)) => worker_core::Answer::Renew(reply),
        Ok(Answer::Done(done)) => worker_core::Answer::Done(done),
        Ok(Answer::Submit(reply)) => worker_core::Answer::Submit(reply),
        Ok(Answer::Mask { reply, seals }) => return Delivered::Mask(reply, seals),
        // Grants are effects of their own. The other answers are for operators, who ignore them.
        Ok(
            Answer::Grants(_)
            | Answer::RunNew(_)
            | Answer::Hold(_)
            | Answer::Collect(_)
            | Answer::Quarantine(_)
            | Answer::LeasesEnd(_)
            | Answer::Promote(_)
            | Answer::Restore(_)
            | Answer::Tenant(_)
            | Answer::TenantEnd(_)
            | Answer::Revoke(_)
            | Answer::View(_)
            | Answer::Keys(_)
            | Answer::Shutdown(_),
        ) => return Delivered::Granted,
        Err(refusal) => return Delivered::Refused(refusal),
    };
    Delivered::Answer(answer)
}
