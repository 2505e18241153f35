//! The coordinator's process: the real core, a shell that carries its effects out, and its sudden
//! end.

use coordinator_core::{
    Answer, ControlRequest, Coordinator, Effect, Input, Merged, Peer, ReplyId, Screened,
    ScreeningId, Settings, WorkerRequest,
};
use ledger::State;
use schemas::contribution::Statement;
use schemas::control::{RunNew, Shutdown};
use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::foundry::{self, Order};
use schemas::lease::{ClaimOutcome, ClaimReply, UnitId};
use schemas::member::{Posture, Session};
use schemas::public::CommandVerb;
use schemas::snapshot::{MergeInput, MergeRecord};
use schemas::telemetry::Heartbeat;
use schemas::view::RunPhase;
use schemas::{
    Code, Digest, Message as _, Millis, ObjectRef, PublicKey, Refusal, Round, RunId, Sequence,
    SyncId, UnixMillis, V, WorkerId,
};

use crate::plan::{account, audit_key, operator, run_id, worker_id};
use crate::queue::Try;
use crate::store::Model;
use crate::world::{Delivered, Happening, Route, World};

/// Where the coordinator runs.
#[derive(Debug, Default)]
pub(crate) struct Site {
    process: Option<Process>,
    /// How many began; an answer to an earlier one is void.
    generation: u64,
    /// The ledger's fold, from the events alone.
    shadow: State,
    replies: u64,
    pub(crate) crashes: u64,
}

#[derive(Debug)]
struct Process {
    core: Coordinator,
    /// The weights that its merge executor holds.
    weights: Option<Model>,
}

/// What the executor and the screen were asked to do; each takes a while.
#[derive(Debug)]
pub(crate) enum Job {
    Restore {
        snapshot: Option<ObjectRef>,
        merges: Vec<MergeRecord>,
    },
    Merge {
        sync: SyncId,
        inputs: Vec<MergeInput>,
    },
    /// The weights were shared when the save was asked for.
    Save {
        round: Round,
        weights: Model,
        parent: Option<Digest>,
    },
    Screen {
        screening: ScreeningId,
        worker: WorkerId,
        audit_key: PublicKey,
        statement: Box<Statement>,
    },
}

impl Site {
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn deadline(&self) -> Option<UnixMillis> {
        self.process.as_ref()?.core.next_deadline()
    }
}

fn settings() -> Settings {
    let audit_key = operator();
    Settings {
        release: "sim".to_owned(),
        audit_key,
        posture: Posture::default(),
        heartbeat: Millis::from_secs(3),
        session: Session(1),
    }
}

impl World {
    pub(crate) fn start_coordinator(&mut self) {
        if self.site.process.is_some() {
            return;
        }
        self.site.generation += 1;
        let core =
            Coordinator::replay(settings(), &self.journal).expect("the ledger can be replayed");
        assert!(
            *core.state() == self.site.shadow,
            "a replay gives another state than the events one by one"
        );
        self.site.process = Some(Process {
            core,
            weights: None,
        });
        let mut effects = Vec::new();
        let now = self.now;
        if let Some(process) = &mut self.site.process {
            process.core.start(now, &mut effects);
        }
        self.perform(effects);
    }

    /// The process is gone between two instructions.
    pub(crate) fn crash_coordinator(&mut self) {
        if self.site.process.take().is_some() {
            self.site.crashes += 1;
            self.restart_coordinator();
        }
    }

    fn restart_coordinator(&mut self) {
        self.site.generation += 1;
        let pause = self.chance.millis(50, 15_000);
        self.after(pause, Happening::StartCoordinator);
    }

    /// An operator ends it in order; a service manager starts it again.
    pub(crate) fn shut_down(&mut self) {
        let drain = self.chance.millis(0, 20_000);
        self.ask_as_operator(ControlRequest::Shutdown(Shutdown { v: V, drain }));
    }

    pub(crate) fn create_run(&mut self) {
        if self.site.shadow.run(&run_id()).is_some() {
            return;
        }
        let spec = self.plan.spec.clone();
        self.ask_as_operator(ControlRequest::RunNew(Box::new(RunNew { v: V, spec })));
        self.after(Millis::from_secs(5), Happening::CreateRun);
    }

    fn ask_as_operator(&mut self, request: ControlRequest) {
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
        let peer = peer(route.worker);
        let reply = self.reply_id();
        self.routes.insert(reply, route);
        self.tell_coordinator(Input::Request {
            peer,
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
            return self.after(Millis::from_secs(1), Happening::Deliver { message });
        }
        match self.queue.deliver(self.now, message) {
            Try::Gone => {}
            Try::Later(at) => self.after(self.now.until(at), Happening::Deliver { message }),
            Try::Delivered(unit, delivery) => {
                self.after(crate::queue::ACK_WAIT, Happening::Deliver { message });
                self.tell_coordinator(Input::Offered {
                    run: run_id(),
                    unit,
                    delivery,
                });
            }
        }
    }

    pub(crate) fn tell_coordinator(&mut self, input: Input) {
        let now = self.now;
        let Some(process) = &mut self.site.process else {
            return;
        };
        let (mut effects, ticked) = (Vec::new(), matches!(input, Input::Tick));
        process.core.handle(now, input, &mut effects);
        let next = process.core.next_deadline();
        assert!(
            !ticked || next.is_none_or(|next| next > now),
            "a deadline at {next:?} is not later than {now}"
        );
        self.perform(effects);
    }

    /// Carries effects out in order; the process may die before any of them.
    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            if self.chance.hits(self.faults.crash) {
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
                let document = self.documents.len().to_string();
                self.documents.push(*manifest);
                let outcome = ClaimOutcome::Lease(document);
                self.reply(
                    reply,
                    Delivered::Answer(worker_core::Answer::Claim(ClaimReply { v: V, outcome })),
                );
            }
            Effect::GrantGet { reply, objects } => {
                let missing = objects
                    .iter()
                    .find(|digest| !self.store.blobs.contains(digest));
                assert_eq!(missing, None, "an object that is granted is not there");
                self.reply(reply, Delivered::Granted);
            }
            Effect::GrantPut { reply, .. } => self.reply(reply, Delivered::Granted),
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
            Effect::Command { worker, verb, .. } => self.command(&worker, verb),
            Effect::Stop { .. } => {
                self.site.process = None;
                self.restart_coordinator();
            }
            // Hints, and views.
            Effect::Publish(status) if status.view.phase == RunPhase::Halted => {
                // The operator does what the reason says.
                self.crash_coordinator();
            }
            Effect::Sweep { .. } | Effect::Publish(_) | Effect::Heard { .. } => {}
            Effect::CheckUploads { .. } | Effect::Promote { .. } => {
                panic!("nobody uploads as an operator here")
            }
        }
    }

    /// Takes an order to the run's foundry.
    fn order(&mut self, order: Order) {
        match order {
            Order::Screen {
                screening,
                worker,
                audit_key,
                statement,
                ..
            } => {
                let statement = Statement::decode(&statement);
                self.begin(Job::Screen {
                    screening,
                    worker,
                    audit_key,
                    statement: Box::new(statement.expect("it was decoded when it was submitted")),
                });
            }
            Order::Merge { sync, inputs } => self.begin(Job::Merge { sync, inputs }),
            Order::Save { round, parent, .. } => {
                let process = self.site.process.as_ref();
                let weights = process.and_then(|process| process.weights);
                let weights = weights.expect("a save is asked for when the weights are there");
                assert_eq!(
                    weights.round, round,
                    "a save of other weights than the executor holds"
                );
                self.begin(Job::Save {
                    round,
                    weights,
                    parent,
                });
            }
            Order::Restore {
                snapshot, merges, ..
            } => self.begin(Job::Restore { snapshot, merges }),
            // Hints, and memory that a process frees.
            Order::Stage { .. } | Order::Unstage { .. } | Order::Forget => {}
        }
    }

    fn append(&mut self, time: UnixMillis, run: Option<RunId>, event: LedgerEvent) {
        self.monitor.note(&event, &self.store);
        let folded = self.site.shadow.apply(time, run.as_ref(), &event);
        folded.expect("an event follows on those before it");
        let sequence = Sequence(self.journal.len() as u64);
        let event = Event::Ledger(event);
        self.journal.push(EventBody {
            v: V,
            emitter: operator(),
            sequence,
            previous: None,
            time,
            run,
            event,
        });
    }

    fn reply(&mut self, reply: ReplyId, answer: Delivered) {
        // Operators do not look at their answers here.
        let Some(route) = self.routes.remove(&reply) else {
            return;
        };
        for span in self.transits(route.worker) {
            self.after(
                span,
                Happening::Answer {
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
        let copies = if self.chance.hits(self.faults.copies) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            if !self.chance.hits(self.faults.queue) {
                let message = self.queue.publish(unit);
                self.after(Millis(2), Happening::Deliver { message });
            }
        }
    }

    fn command(&mut self, to: &WorkerId, verb: CommandVerb) {
        let worker = (0..self.plan.workers).find(|worker| worker_id(*worker) == *to);
        let worker = worker.expect("a command is for somebody who joined");
        let incarnation = self.stations[worker].incarnation();
        for span in self.transits(worker) {
            let input = worker_core::Input::Command(verb);
            self.after(
                span,
                Happening::Worker {
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
            Happening::Coordinator {
                generation,
                input: Box::new(input),
            },
        );
    }

    fn begin(&mut self, job: Job) {
        let generation = self.site.generation;
        let span = self.chance.millis(5, 3_000);
        self.after(span, Happening::Executor { generation, job });
    }

    pub(crate) fn finish_job(&mut self, job: Job) {
        let failed = self
            .chance
            .hits(self.faults.store)
            .then(|| Refusal::new(Code::StoreUnreachable, "simulated"));
        let answer = match job {
            Job::Restore { snapshot, merges } => {
                let outcome = failed.map_or_else(|| self.restore(snapshot, &merges), Err);
                if outcome.is_ok() {
                    let data = Box::new(self.plan.data.clone());
                    self.tell_of_foundry(foundry::Answer::DataLoaded { data });
                }
                foundry::Answer::Restored { outcome }
            }
            Job::Merge { sync, inputs } => {
                let outcome = failed.map_or_else(|| Ok(self.merge(sync.round, &inputs)), Err);
                foundry::Answer::Merged { sync, outcome }
            }
            Job::Save {
                round,
                weights,
                parent,
            } => {
                let outcome = failed.map_or_else(|| Ok(self.store.save(weights, parent)), Err);
                foundry::Answer::Saved { round, outcome }
            }
            Job::Screen {
                screening,
                worker,
                audit_key,
                statement,
            } => {
                let verdict =
                    failed.map_or_else(|| self.screen(&worker, &audit_key, &statement), Err);
                foundry::Answer::Screened { screening, verdict }
            }
        };
        self.tell_of_foundry(answer);
    }

    fn tell_of_foundry(&mut self, answer: foundry::Answer) {
        self.tell_coordinator(Input::Foundry {
            run: run_id(),
            answer,
        });
    }

    fn restore(
        &mut self,
        snapshot: Option<ObjectRef>,
        merges: &[MergeRecord],
    ) -> Result<(), Refusal> {
        let mut model = match snapshot {
            Some(manifest) => self
                .store
                .snapshot(&manifest)
                .expect("a snapshot that the ledger names stands"),
            None => Model::initial(&self.plan.spec),
        };
        for merge in merges {
            assert_eq!(merge.round, model.round, "merges follow on the snapshot");
            model = model.step(&merge.inputs);
            let again = model.broadcast(&self.plan.spec).digest();
            assert_eq!(
                again, merge.broadcast,
                "the merge of round {} gives other weights again",
                merge.round
            );
        }
        if let Some(process) = &mut self.site.process {
            process.weights = Some(model);
        }
        Ok(())
    }

    fn merge(&mut self, round: Round, inputs: &[MergeInput]) -> Merged {
        self.monitor.merge(round, inputs);
        assert!(
            inputs
                .windows(2)
                .all(|pair| pair[0].lease.unit < pair[1].lease.unit),
            "inputs ascend by unit"
        );
        let process = self
            .site
            .process
            .as_mut()
            .expect("a job of a process that lives");
        let weights = process
            .weights
            .expect("a merge is asked for when the weights are there");
        assert_eq!(
            weights.round, round,
            "a merge into other weights than the executor holds"
        );
        let next = weights.step(inputs);
        process.weights = Some(next);
        let broadcast = next.broadcast(&self.plan.spec);
        self.store
            .blobs
            .extend(broadcast.chunks.iter().map(|chunk| chunk.digest));
        Merged {
            broadcast,
            norm: 1.0,
        }
    }

    fn screen(
        &mut self,
        worker: &WorkerId,
        key: &PublicKey,
        statement: &Statement,
    ) -> Result<Screened, Refusal> {
        let signer = (0..self.plan.workers).find(|number| worker_id(*number) == *worker);
        let signer = signer.expect("only workers of this run are screened");
        assert_eq!(
            *key,
            audit_key(signer),
            "the key must be the one that the worker joined with"
        );
        let schemas::contribution::Outcome::Contribution(result) = &statement.outcome else {
            return Ok(Screened { norm: 0.0 });
        };
        for chunk in &result.chunks {
            if !self.store.incoming.contains(&chunk.digest)
                && !self.store.blobs.contains(&chunk.digest)
            {
                return Err(Refusal::new(Code::ObjectMissing, "simulated"));
            }
            if self.store.poisoned.contains(&chunk.digest) {
                return Err(Refusal::new(Code::NotFinite, "simulated"));
            }
        }
        self.store
            .blobs
            .extend(result.chunks.iter().map(|chunk| chunk.digest));
        Ok(Screened { norm: 1.0 })
    }
}

fn peer(worker: usize) -> Peer {
    Peer {
        account: account(worker),
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
        // Grants are effects of their own, and the rest is for operators, who do not look.
        Ok(Answer::Grants(_) | Answer::RunNew(_) | Answer::View(_) | Answer::Shutdown(_)) => {
            return Delivered::Granted;
        }
        Err(refusal) => return Delivered::Refused(refusal),
    };
    Delivered::Answer(answer)
}
