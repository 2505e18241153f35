//! A worker's process: the real core, a shell that carries its effects out, and its sudden end.

use coordinator_core::{Submission, WorkerRequest};
use masking::Disclosures;
use schemas::blob::{GetRequest, PutRequest};
use schemas::contribution::{Evaluation, Statement};
use schemas::lease::{LeaseRef, Manifest, Work};
use schemas::limits::GRANTS_MAX;
use schemas::member::{JoinRequest, Session};
use schemas::telemetry::{Heartbeat, WorkerMetrics};
use schemas::{
    Bytes, Code, Digest, Message as _, Millis, ObjectRef, Refusal, Tokens, UnixMillis, V,
};
use worker_core::{
    Effect, Exit, Input, NotVerified, Request, RequestId, Settings, Trained, WorkId, Worker,
};

use crate::masks::{Kept, Masks};
use crate::plan::{audit_key, object, run_id, worker_id};
use crate::provenance::{DOMAIN, release, signature};
use crate::world::{Delivered, Purpose, Route, SimEvent, World};

/// Time for which the shell waits for URLs.
const GRANT_PATIENCE: Millis = Millis::from_secs(10);
/// Most by which a worker's clock is ahead of or behind the coordinator's: far more than the window
/// of a manifest tolerates.
const SKEW_MAX_MS: u64 = 600_000;

/// The machine that a worker runs on.
#[derive(Debug, Default)]
pub(crate) struct WorkerMachine {
    process: Option<Process>,
    /// Number of processes so far; an answer to an earlier process is void.
    incarnation: u64,
    /// Time before which no message comes through.
    cut_off_until: UnixMillis,
}

#[derive(Debug)]
struct Process {
    core: Worker,
    session: Session,
    /// The work that the worker does now.
    present: Option<(WorkId, Manifest)>,
    /// Time by which the worker's clock is ahead, plus [`SKEW_MAX_MS`].
    skew: Millis,
    /// Time by which the coordinator's clock is ahead of the worker's, as the worker's core
    /// measured it.
    ahead_ms: i64,
    masks: Masks,
    disclosures: Disclosures,
}

impl Process {
    /// The time that the worker's clock shows.
    fn reads(&self, now: UnixMillis) -> UnixMillis {
        UnixMillis(now.after(self.skew).get() - SKEW_MAX_MS)
    }
}

impl WorkerMachine {
    /// The session of its process; none if none runs. A process obeys what is signed for its
    /// session alone.
    pub(crate) fn session(&self) -> Option<Session> {
        self.process.as_ref().map(|process| process.session)
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub(crate) fn is_up(&self) -> bool {
        self.process.is_some()
    }

    pub(crate) fn deadline(&self) -> Option<UnixMillis> {
        let process = self.process.as_ref()?;
        let local = process.core.next_deadline()?;
        Some(UnixMillis(
            (local.get() + SKEW_MAX_MS).saturating_sub(process.skew.get()),
        ))
    }

    /// What its process keeps of secure aggregation.
    pub(crate) fn masks(&mut self) -> Option<Kept<'_>> {
        let process = self.process.as_mut()?;
        Some((&mut process.masks, &mut process.disclosures))
    }

    pub(crate) fn is_cut_off(&self, now: UnixMillis) -> bool {
        now < self.cut_off_until
    }

    pub(crate) fn cut_off(&mut self, until: UnixMillis) {
        self.cut_off_until = until;
    }

    pub(crate) fn reconnect(&mut self) {
        self.cut_off_until = UnixMillis(0);
    }
}

impl World {
    pub(crate) fn start_worker(&mut self, worker: usize) {
        if self.machines[worker].process.is_some() {
            return;
        }
        let session = Session(self.random.between(0, u64::MAX - 1));
        let settings = Settings {
            run: run_id(),
            domain: DOMAIN.to_owned(),
            worker: worker_id(worker),
            join: JoinRequest {
                session,
                audit_key: audit_key(worker),
                release: release(self.machines[worker].incarnation + 1),
                ..kit::join_request(0)
            },
            claim_wait: Millis::from_secs(15),
            stop_patience: Millis::from_secs(5),
            seed: self.random.between(0, u64::MAX - 1),
        };
        let skew = self.random.millis(0, 2 * SKEW_MAX_MS);
        let machine = &mut self.machines[worker];
        machine.incarnation += 1;
        machine.process = Some(Process {
            core: Worker::new(settings),
            session,
            present: None,
            skew,
            ahead_ms: 0,
            masks: Masks::default(),
            disclosures: Disclosures::default(),
        });
        self.tell_worker(worker, Input::Tick);
    }

    pub(crate) fn crash_worker(&mut self, worker: usize) {
        if self.machines[worker].process.take().is_some() {
            self.refusing.remove(&worker);
            self.worker_crashes += 1;
            self.restart_worker(worker);
        }
    }

    fn restart_worker(&mut self, worker: usize) {
        let pause = self.random.millis(50, 20_000);
        self.after(pause, SimEvent::StartWorker(worker));
    }

    pub(crate) fn tell_worker(&mut self, worker: usize, input: Input) {
        let now = self.now;
        let Some(process) = &mut self.machines[worker].process else {
            return;
        };
        let mut effects = Vec::new();
        let local = process.reads(now);
        process.core.handle(local, input, &mut effects);
        for effect in effects {
            self.carry_out_for(worker, effect);
        }
    }

    fn carry_out_for(&mut self, worker: usize, effect: Effect) {
        match effect {
            Effect::Send {
                id,
                request,
                patience,
            } => self.send(worker, id, request, patience),
            Effect::Verify { work, document } => {
                let outcome = self.verify(worker, &document);
                if let (Ok(manifest), Some(process)) =
                    (&outcome, &mut self.machines[worker].process)
                {
                    process.present = Some((work, (**manifest).clone()));
                }
                self.inform_worker(worker, Millis(1), Input::Verified { work, outcome });
            }
            Effect::Fetch { work, manifest } => self.fetch(worker, work, &manifest),
            Effect::Train { work } => self.train(worker, work),
            Effect::Evaluate { work } => {
                let span = self.random.millis(100, 3_000);
                let outcome = Ok(Evaluation {
                    loss_sum: 32.0,
                    tokens: Tokens(16),
                });
                self.inform_worker(worker, span, Input::Evaluated { work, outcome });
            }
            Effect::Upload { work } => self.upload(worker, work),
            Effect::Heartbeat(pulse) => {
                let heartbeat = Heartbeat {
                    v: V,
                    session: pulse.session,
                    phase: pulse.phase,
                    lease: pulse.lease,
                    steps_done: pulse.steps_done,
                    tokens: Tokens(0),
                    tokens_per_second: 1.0,
                    loss: None,
                    bytes_up: Bytes(0),
                    bytes_down: Bytes(0),
                    metrics: WorkerMetrics::default(),
                };
                for span in self.transits(worker) {
                    self.after(
                        span,
                        SimEvent::Heartbeat {
                            worker,
                            heartbeat: heartbeat.clone(),
                        },
                    );
                }
            }
            Effect::Exit(exit) => {
                self.machines[worker].process = None;
                self.refusing.remove(&worker);
                // After a quarantine it stays away, until the operator has let it in again.
                let out = matches!(&exit, Exit::Failed(why) if why.code == Code::WorkerQuarantined);
                if exit != Exit::Complete && !out {
                    self.restart_worker(worker);
                }
            }
            Effect::Clock { ahead_ms } => {
                if let Some(process) = &mut self.machines[worker].process {
                    process.ahead_ms = ahead_ms;
                }
            }
            // The core ignores the results of work that it stopped.
            Effect::Stop { work } => self.forget_masks(worker, work),
            Effect::Record { work, .. } => {
                // Sometimes later than the end of the training.
                let span = self.random.millis(10, 4_000);
                let outcome = Ok(());
                self.inform_worker(worker, span, Input::Recorded { work, outcome });
            }
            Effect::Joined(_)
            | Effect::KeepInner { .. }
            | Effect::Emit(_)
            | Effect::Waiting { .. } => {}
        }
    }

    fn inform_worker(&mut self, worker: usize, span: Millis, input: Input) {
        let incarnation = self.machines[worker].incarnation;
        self.after(
            span,
            SimEvent::Worker {
                worker,
                incarnation,
                input,
            },
        );
    }

    fn send(&mut self, worker: usize, id: RequestId, request: Request, patience: Millis) {
        let request = match request {
            Request::Join(request) => WorkerRequest::Join(request),
            Request::Leave(request) => WorkerRequest::Leave(request),
            Request::Claim(request) => WorkerRequest::Claim(request),
            Request::Renew(request) => WorkerRequest::Renew(request),
            Request::Release(request) => WorkerRequest::Release(request),
            Request::Submit(result) => {
                let bytes = result.statement;
                let statement = Statement::decode(&bytes).expect("the core encoded it");
                let release = release(self.machines[worker].incarnation);
                let sign = |document: Vec<u8>| signature(&document, &release);
                WorkerRequest::Submit(Submission {
                    statement: Box::new(statement),
                    bytes,
                    signature: [worker as u8; 64],
                    provenance: result.provenance.map(sign),
                })
            }
        };
        let outcome = Err(Refusal::new(Code::NoAnswer, "simulated"));
        self.inform_worker(worker, patience, Input::Replied { id, outcome });
        self.request(worker, Purpose::Core(id), &request);
    }

    pub(crate) fn request(&mut self, worker: usize, purpose: Purpose, request: &WorkerRequest) {
        let route = Route {
            worker,
            incarnation: self.machines[worker].incarnation,
            purpose,
        };
        for span in self.transits(worker) {
            self.after(
                span,
                SimEvent::Request {
                    route: route.clone(),
                    request: Box::new(request.clone()),
                },
            );
        }
    }

    /// Stands for the shell's checks of signature and window.
    fn verify(&self, worker: usize, document: &str) -> Result<Box<Manifest>, NotVerified> {
        let position: usize = document.parse().expect("documents are positions");
        let manifest = self.documents[position].clone();
        assert_eq!(
            manifest.aud,
            worker_id(worker),
            "a manifest for another worker"
        );
        let theirs = |process: &Process| {
            process
                .reads(self.now)
                .get()
                .saturating_add_signed(process.ahead_ms)
        };
        let now = self.machines[worker]
            .process
            .as_ref()
            .map_or(self.now.get(), theirs);
        if (manifest.nbf..manifest.exp).contains(&(now / 1000)) {
            return Ok(Box::new(manifest));
        }
        let refusal = Refusal::new(
            Code::ClockOff,
            "the window does not contain the present time",
        );
        Err(NotVerified {
            refusal,
            lease: Some(manifest.lease),
        })
    }

    fn fetch(&mut self, worker: usize, work: WorkId, manifest: &Manifest) {
        let (Work::Train { shards, .. } | Work::Evaluate { shards, .. }) = &manifest.work;
        let base = &manifest.base.chunks;
        // One request stands for all.
        let objects = base
            .objects()
            .iter()
            .chain(shards)
            .chain(self.store.chunks(base))
            .map(|object| object.digest)
            .take(GRANTS_MAX)
            .collect();
        let request = WorkerRequest::Get(GetRequest { v: V, objects });
        self.ask_for_urls(worker, Purpose::Fetch(work), &request);
    }

    /// The lease of the present work, if it is this one and needs masks.
    fn masked_lease(&self, worker: usize, work: WorkId) -> Option<LeaseRef> {
        let (present, manifest) = self.machines[worker].process.as_ref()?.present.as_ref()?;
        let lease = manifest.lease;
        (*present == work && self.needs_masks(&lease)).then_some(lease)
    }

    fn ask_for_urls(&mut self, worker: usize, purpose: Purpose, request: &WorkerRequest) {
        let incarnation = self.machines[worker].incarnation;
        let route = Route {
            worker,
            incarnation,
            purpose: purpose.clone(),
        };
        self.after(GRANT_PATIENCE, SimEvent::GiveUp { route });
        self.request(worker, purpose, request);
    }

    fn train(&mut self, worker: usize, work: WorkId) {
        let schedule = &self.plan.spec.schedule;
        let (steps, tokens) = (schedule.inner_steps, self.plan.spec.unit_tokens());
        // Sometimes longer than any lease, so that the lease has to be renewed.
        let span = if self.random.hits(100) {
            self.random.millis(5_000, 40_000)
        } else {
            self.random.millis(200, 5_000)
        };
        let outcome = if self.random.hits(self.faults.training) {
            Err(Refusal::new(Code::TrainingFailed, "simulated"))
        } else {
            Ok(Trained {
                tokens,
                steps,
                loss: 2.5,
                train_ms: span.get(),
            })
        };
        self.inform_worker(worker, span, Input::Trained { work, outcome });
    }

    /// Two passes over the same unit give different bytes, as on real hardware.
    fn upload(&mut self, worker: usize, work: WorkId) {
        let Some((_, manifest)) = self.machines[worker]
            .process
            .as_ref()
            .and_then(|process| process.present.clone())
        else {
            return;
        };
        let salt = self.random.between(0, u64::MAX - 1);
        let chunks = self.plan.spec.model.initial.count();
        // Eight elements.
        let bytes = Bytes(self.plan.spec.upload.kind.encoded_bytes(8));
        let named = |n: usize| ObjectRef {
            bytes,
            ..object(&format!("{worker} {} {salt} {n}", manifest.lease))
        };
        let objects: Vec<ObjectRef> = (0..chunks).map(named).collect();
        if self.random.hits(self.faults.poison) {
            self.store.poisoned.insert(objects[0].digest);
        }
        self.store.note(objects.clone());
        let (chunks, _) = self.plan.spec.name_chunks(objects.clone());
        let list = chunks.listed().map(|listed| listed.list);
        let request = WorkerRequest::Put(PutRequest {
            v: V,
            lease: manifest.lease,
            // One request stands for all.
            objects: list.into_iter().chain(objects).take(GRANTS_MAX).collect(),
        });
        self.ask_for_urls(worker, Purpose::Upload(work, chunks), &request);
    }

    pub(crate) fn answer_arrives(&mut self, route: Route, answer: Delivered) {
        let Route {
            worker,
            incarnation,
            purpose,
        } = route;
        if self.machines[worker].incarnation != incarnation {
            return;
        }
        match (purpose, answer) {
            (Purpose::Core(id), Delivered::Answer(answer)) => {
                self.tell_worker(
                    worker,
                    Input::Replied {
                        id,
                        outcome: Ok(answer),
                    },
                );
            }
            (Purpose::Core(id), Delivered::Refused(refusal)) => {
                self.tell_worker(
                    worker,
                    Input::Replied {
                        id,
                        outcome: Err(refusal),
                    },
                );
            }
            (Purpose::Mask(lease, question), answer) => {
                self.masks_answered(worker, (lease, question), answer);
            }
            (Purpose::Fetch(work), Delivered::Granted)
                if let Some(lease) = self.masked_lease(worker, work) =>
            {
                self.begin_masks(worker, work, lease);
            }
            (Purpose::Fetch(work), Delivered::Granted) => {
                let span = self.random.millis(10, 2_000);
                self.inform_worker(
                    worker,
                    span,
                    Input::Fetched {
                        work,
                        outcome: Ok(None),
                    },
                );
            }
            (Purpose::Fetch(work), Delivered::Refused(refusal)) => {
                self.tell_worker(
                    worker,
                    Input::Fetched {
                        work,
                        outcome: Err(refusal),
                    },
                );
            }
            (Purpose::Upload(work, chunks), Delivered::Granted) => {
                let all = self.store.chunks(&chunks).iter().chain(chunks.objects());
                let digests: Vec<Digest> = all.map(|object| object.digest).collect();
                self.store.incoming.extend(digests);
                self.reveal(worker, work);
                let span = self.random.millis(10, 2_000);
                self.inform_worker(
                    worker,
                    span,
                    Input::Uploaded {
                        work,
                        outcome: Ok(chunks),
                    },
                );
            }
            (Purpose::Upload(work, _), Delivered::Refused(refusal)) => {
                self.tell_worker(
                    worker,
                    Input::Uploaded {
                        work,
                        outcome: Err(refusal),
                    },
                );
            }
            (purpose, answer) => panic!("{answer:?} is no answer to {purpose:?}"),
        }
    }

    /// No URLs came in time. The core decides whether that still matters.
    pub(crate) fn give_up(&mut self, route: &Route) {
        let refusal = Refusal::new(Code::NoAnswer, "simulated");
        if self.machines[route.worker].incarnation != route.incarnation {
            return;
        }
        match &route.purpose {
            // It is asked again by itself.
            Purpose::Mask(..) => {}
            // The URLs came, and the others are waited for.
            Purpose::Fetch(work) if self.agrees(route.worker, *work) => {}
            Purpose::Core(id) => {
                self.tell_worker(
                    route.worker,
                    Input::Replied {
                        id: *id,
                        outcome: Err(refusal),
                    },
                );
            }
            Purpose::Fetch(work) => {
                self.tell_worker(
                    route.worker,
                    Input::Fetched {
                        work: *work,
                        outcome: Err(refusal),
                    },
                );
            }
            Purpose::Upload(work, _) => {
                self.tell_worker(
                    route.worker,
                    Input::Uploaded {
                        work: *work,
                        outcome: Err(refusal),
                    },
                );
            }
        }
    }
}
