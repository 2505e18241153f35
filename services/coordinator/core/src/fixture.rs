//! What tests share: a small run, and a world that carries effects out.

use std::collections::BTreeMap;
use std::sync::Arc;

use ledger::{Run, State};
use schemas::contribution::{Contribution, Evaluation, Outcome, Statement};
use schemas::control::{Query, RunNew, Shutdown, View, ViewRequest};
use schemas::data::{DataManifest, Entropy, Shard, Tokenizer};
use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::lease::{ClaimRequest, LeaseRef, Manifest, UnitId, UnitKind, Weights};
use schemas::member::{JoinRequest, LeaveRequest, Posture, Session};
use schemas::run::{
    Closing, Codec, CodecKind, InnerOptimizer, ModelSpec, OuterOptimizer, Policy, Precision,
    Rounding, RunSpec, Schedule, TrainerKind,
};
use schemas::{
    AccountId, Bytes, Digest, Epoch, Fragment, Message, Millis, ObjectRef, PublicKey, Refusal,
    Round, RunId, Sequence, Steps, SyncId, Tokens, UnitIndex, UnixMillis, V, WorkerId,
};
use serde_bytes::ByteArray;

use crate::{
    Answer, ControlRequest, Coordinator, DeliveryId, Effect, Input, Merged, Peer, ReplyId,
    Screened, Settings, Submission, WorkerRequest,
};
use schemas::view::RunView;

pub(crate) const BF16: Codec = Codec {
    kind: CodecKind::Bf16,
    rounding: Rounding::Nearest,
};
pub(crate) const LEASE: Millis = Millis::from_secs(30);
pub(crate) const SILENCE: Millis = Millis::from_secs(90);
pub(crate) const START: UnixMillis = UnixMillis(1_700_000_000_000);

pub(crate) fn object(name: &str) -> ObjectRef {
    ObjectRef::of(name.as_bytes())
}

/// The fp32 initial weights of a chunk.
fn initial(index: usize, elements: u64) -> ObjectRef {
    ObjectRef {
        bytes: Bytes(4 * elements),
        ..object(&format!("initial {index}"))
    }
}

/// A chunk of a contribution: 8 elements in bf16.
pub(crate) fn upload(name: &str) -> ObjectRef {
    ObjectRef {
        bytes: Bytes(16),
        ..object(name)
    }
}

/// Two units of 4 * 2 * 4 = 32 tokens a round, two rounds, one worker at least, two chunks.
pub(crate) fn spec(run: &str) -> RunSpec {
    RunSpec {
        v: V,
        run: run.parse().unwrap(),
        model: ModelSpec {
            trainer: TrainerKind::Reference,
            config: object("config"),
            layout: object("layout"),
            chunk_elements: 8,
            initial: vec![initial(0, 8), initial(1, 5)],
            precision: Precision::Fp32,
        },
        data: object("data"),
        schedule: Schedule {
            rounds: 2,
            units: 2,
            inner_steps: Steps(4),
            batch_sequences: 2,
            accumulation: 1,
            sequence_tokens: 4,
            evaluation_every: 0,
            evaluation_sequences: 4,
            snapshot_every: 1,
        },
        inner: InnerOptimizer {
            warmup_steps: Steps(1),
            final_ratio: 0.1,
            beta2: 0.99,
            ..InnerOptimizer::adamw(1e-3)
        },
        outer: OuterOptimizer::Nesterov {
            learning_rate: 0.7,
            momentum: 0.9,
        },
        upload: BF16,
        download: BF16,
        error_feedback: false,
        policy: Policy {
            workers_min: 1,
            lease: LEASE,
            silence_max: SILENCE,
            norm_max: 10.0,
            strikes_max: 3,
            closing: Closing::All,
        },
        seed: 7,
    }
}

pub(crate) fn data(shards: usize, shard_tokens: u64) -> DataManifest {
    let shard = |name: String| Shard {
        object: object(&name),
        tokens: Tokens(shard_tokens),
    };
    DataManifest {
        v: V,
        source: "test".to_owned(),
        tokenizer: Tokenizer::HuggingFace(object("tokenizer")),
        vocabulary: 256,
        token_bytes: 1,
        train: (0..shards).map(|n| shard(format!("train {n}"))).collect(),
        held_out: vec![shard("held out".to_owned())],
        entropy: Entropy {
            unigram: 3.0,
            bigram: 2.0,
        },
    }
}

fn key(kind: char, number: u32) -> String {
    let letters = ['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H'];
    let digits: String = (0..8)
        .rev()
        .map(|at| letters[(number >> (3 * at)) as usize % 8])
        .collect();
    format!("{kind}{}{digits}", "A".repeat(47))
}

pub(crate) fn worker(number: u32) -> WorkerId {
    key('U', number).parse().unwrap()
}

pub(crate) fn account(number: u32) -> AccountId {
    key('A', number).parse().unwrap()
}

pub(crate) fn public_key(number: u32) -> PublicKey {
    key('U', number).parse().unwrap()
}

pub(crate) fn run_id() -> RunId {
    "demo".parse().unwrap()
}

pub(crate) fn peer(number: u32) -> Peer {
    Peer {
        account: account(1),
        run: run_id(),
        worker: worker(number),
    }
}

pub(crate) fn settings() -> Settings {
    let audit_key = public_key(1);
    Settings {
        release: "1".to_owned(),
        audit_key,
        posture: Posture::default(),
        heartbeat: Millis::from_secs(5),
        session: Session(99),
    }
}

/// The session of worker `number`'s first process.
pub(crate) fn session(number: u32) -> Session {
    Session(number.into())
}

pub(crate) fn claim_request(number: u32, wait: Millis) -> ClaimRequest {
    ClaimRequest {
        v: V,
        session: session(number),
        wait,
    }
}

pub(crate) fn leave_request(number: u32, reason: &str) -> LeaveRequest {
    LeaveRequest {
        v: V,
        session: session(number),
        reason: reason.to_owned(),
    }
}

pub(crate) fn join_request(number: u32) -> JoinRequest {
    JoinRequest {
        v: V,
        session: session(number),
        audit_key: public_key(1000 + number),
        proof: ByteArray::new([0; 64]),
        trainers: vec![TrainerKind::Reference],
        device: "cpu x1".to_owned(),
        release: "1".to_owned(),
        posture: Posture::default(),
    }
}

/// What the ledger holds when worker `number` joined.
pub(crate) fn joined(number: u32) -> LedgerEvent {
    let request = join_request(number);
    LedgerEvent::WorkerJoined {
        worker: worker(number),
        account: account(1),
        audit_key: request.audit_key,
        trainers: request.trainers,
        device: request.device,
        release: request.release,
        posture: request.posture,
        session: request.session,
    }
}

pub(crate) fn train(round: u64, index: u32) -> UnitId {
    UnitId {
        round: Round(round),
        kind: UnitKind::Train,
        index: UnitIndex(index),
    }
}

pub(crate) fn sync(round: u64) -> SyncId {
    SyncId {
        round: Round(round),
        fragment: Fragment::FIRST,
    }
}

pub(crate) fn evaluate(round: u64) -> UnitId {
    UnitId {
        round: Round(round),
        kind: UnitKind::Evaluate,
        index: UnitIndex(0),
    }
}

pub(crate) fn lease(unit: UnitId, epoch: u64) -> LeaseRef {
    LeaseRef {
        unit,
        epoch: Epoch(epoch),
    }
}

/// A result as worker `number` would state it; `salt` makes it another one.
pub(crate) fn submission(spec: &RunSpec, number: u32, lease: LeaseRef, salt: u32) -> Submission {
    let outcome = match lease.unit.kind {
        UnitKind::Train => Outcome::Contribution(Contribution {
            layout: spec.model.layout.digest,
            codec: spec.upload,
            chunks: (0..spec.model.initial.len())
                .map(|n| object(&format!("{number} {lease} {salt} {n}")))
                .collect(),
            tokens: spec.unit_tokens(),
            steps: spec.schedule.inner_steps,
            loss: 2.5,
            train_ms: 10,
        }),
        UnitKind::Evaluate => Outcome::Evaluation(Evaluation {
            loss_sum: 32.0,
            tokens: Tokens(16),
        }),
    };
    stated(Statement {
        v: V,
        run: spec.run.clone(),
        spec: spec.to_object().1,
        worker: worker(number),
        lease,
        outcome,
    })
}

pub(crate) fn stated(statement: Statement) -> Submission {
    Submission {
        bytes: statement.encode(),
        statement,
        signature: [7; 64],
    }
}

pub(crate) fn merged(spec: &RunSpec, round: Round) -> Merged {
    let next = round.next();
    let chunks = (0..spec.model.initial.len())
        .map(|n| object(&format!("weights {next} {n}")))
        .collect();
    Merged {
        broadcast: Weights {
            round: next,
            codec: spec.download,
            chunks,
        },
        norm: 1.0,
    }
}

/// A coordinator with the ledger it wrote, the answers it gave, and the effects that still want an
/// answer.
pub(crate) struct World {
    pub(crate) core: Coordinator,
    pub(crate) now: UnixMillis,
    pub(crate) journal: Vec<EventBody>,
    pub(crate) answers: BTreeMap<ReplyId, Result<Answer, Refusal>>,
    pub(crate) manifests: BTreeMap<ReplyId, Manifest>,
    /// Effects that an input answers.
    pub(crate) pending: Vec<Effect>,
    /// All others, except events and answers.
    pub(crate) seen: Vec<Effect>,
    pub(crate) requests: u64,
    /// A life of many thousand inputs: the ledger is not replayed after each of them.
    pub(crate) long: bool,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self {
            core: Coordinator::new(settings(), State::default()),
            now: START,
            journal: Vec::new(),
            answers: BTreeMap::new(),
            manifests: BTreeMap::new(),
            pending: Vec::new(),
            seen: Vec::new(),
            requests: 0,
            long: false,
        };
        world.start();
        world
    }

    /// A world with one run in it, restored, without workers.
    pub(crate) fn with_run(spec: RunSpec) -> Self {
        let mut world = Self::new();
        world.control(ControlRequest::RunNew(Box::new(RunNew { v: V, spec })));
        world.answer_pending();
        world
    }

    fn start(&mut self) {
        let mut effects = Vec::new();
        self.core.start(self.now, &mut effects);
        self.take(effects);
    }

    /// The process dies; another begins from the ledger.
    pub(crate) fn restart(&mut self) {
        self.core = Coordinator::replay(settings(), &self.journal).unwrap();
        self.pending.clear();
        self.start();
    }

    /// Gives one input, and a tick when one is due, as the shell does when nothing else waits.
    pub(crate) fn input(&mut self, input: Input) {
        self.input_alone(input);
        if self
            .core
            .next_deadline()
            .is_some_and(|next| next <= self.now)
        {
            self.input_alone(Input::Tick);
        }
    }

    /// Gives one input of several that wait.
    pub(crate) fn input_alone(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.core.handle(self.now, input, &mut effects);
        self.take(effects);
    }

    /// The only run as operators see it.
    pub(crate) fn view(&mut self) -> RunView {
        let reply = self.control(ControlRequest::View(ViewRequest {
            v: V,
            query: Query::Runs,
        }));
        match &self.answers[&reply] {
            Ok(Answer::View(found)) => match &found.view {
                View::Runs(runs) => runs[0].clone(),
                other => panic!("asked for runs: {other:?}"),
            },
            other => panic!("no view: {other:?}"),
        }
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Append { time, run, event } => self.append(time, run, *event),
                Effect::Reply { reply, answer } => {
                    assert!(
                        self.answers.insert(reply, answer).is_none(),
                        "{reply:?} was answered twice"
                    );
                }
                Effect::Lease { reply, manifest } => {
                    assert!(
                        self.manifests.insert(reply, *manifest).is_none(),
                        "{reply:?} was answered twice"
                    );
                }
                Effect::CheckRun { .. }
                | Effect::CheckUploads { .. }
                | Effect::Promote { .. }
                | Effect::Screen { .. }
                | Effect::Merge { .. }
                | Effect::Save { .. }
                | Effect::Restore { .. }
                | Effect::Offer { .. } => self.pending.push(effect),
                _ => self.seen.push(effect),
            }
        }
        self.core.state().check().unwrap();
        if self.long {
            return;
        }
        let replayed = Coordinator::replay(settings(), &self.journal).unwrap();
        assert!(
            replayed.state() == self.core.state(),
            "a replay gives another state"
        );
    }

    fn append(&mut self, time: UnixMillis, run: Option<RunId>, event: LedgerEvent) {
        let sequence = Sequence(self.journal.len() as u64);
        let event = Event::Ledger(event);
        let body = EventBody {
            v: V,
            emitter: public_key(1),
            sequence,
            previous: None,
            time,
            run,
            event,
        };
        assert_eq!(
            EventBody::decode(&body.encode()).unwrap(),
            body,
            "events read back as they were written"
        );
        self.journal.push(body);
    }

    /// Lets time pass; every deadline on the way is met.
    pub(crate) fn wait(&mut self, span: Millis) {
        let end = self.now.after(span);
        while let Some(next) = self.core.next_deadline().filter(|next| *next <= end) {
            assert!(
                next > self.now || self.now == START,
                "a deadline does not lie in the past"
            );
            self.now = next;
            self.input(Input::Tick);
        }
        self.now = end;
    }

    /// Answers everything that waits for an answer, and what follows from it, with success.
    pub(crate) fn answer_pending(&mut self) {
        for _ in 0..1000 {
            let Some(effect) = (!self.pending.is_empty()).then(|| self.pending.remove(0)) else {
                return;
            };
            self.answer_one(effect);
        }
        panic!("effects follow each other without end");
    }

    /// The same, except for effects that are `left`.
    pub(crate) fn answer_pending_but(&mut self, left: impl Fn(&Effect) -> bool) {
        while let Some(at) = self.pending.iter().position(|effect| !left(effect)) {
            let effect = self.pending.remove(at);
            self.answer_one(effect);
        }
    }

    pub(crate) fn answer_one(&mut self, effect: Effect) {
        match effect {
            Effect::CheckRun { reply, .. } => self.input(Input::RunChecked {
                reply,
                verdict: Ok(()),
            }),
            Effect::CheckUploads { reply, objects, .. } => {
                self.input(Input::UploadsChecked {
                    reply,
                    verdict: Ok(objects),
                });
            }
            Effect::Promote { reply, .. } => {
                self.input(Input::Promoted {
                    reply,
                    outcome: Ok(()),
                });
            }
            Effect::Screen {
                screening,
                submission,
                ..
            } => {
                let statement = Digest::of(&submission.bytes);
                self.input(Input::Screened {
                    screening,
                    verdict: Ok(Screened {
                        statement,
                        norm: 1.0,
                    }),
                });
            }
            Effect::Merge { run, sync, .. } => {
                let outcome = Ok(merged(&self.run_named(&run).spec, sync.round));
                self.input(Input::Merged { run, sync, outcome });
            }
            Effect::Save { run, round, .. } => {
                let outcome = Ok(object(&format!("snapshot {round}")));
                self.input(Input::Saved {
                    run,
                    round,
                    outcome,
                });
            }
            Effect::Restore { spec, .. } => {
                self.input(Input::DataLoaded {
                    run: spec.run.clone(),
                    data: Arc::new(data(5, 20)),
                });
                self.input(Input::Restored {
                    run: spec.run,
                    outcome: Ok(()),
                });
            }
            Effect::Offer { run, unit } => {
                self.requests += 1;
                self.input(Input::Offered {
                    run,
                    unit,
                    delivery: DeliveryId(self.requests),
                });
            }
            other => panic!("{other:?} wants no answer"),
        }
    }

    /// Takes the first pending effect that `wanted` picks.
    pub(crate) fn take_pending(&mut self, wanted: impl Fn(&Effect) -> bool) -> Effect {
        let at = self
            .pending
            .iter()
            .position(wanted)
            .expect("the effect is pending");
        self.pending.remove(at)
    }

    pub(crate) fn ask(&mut self, peer: Peer, request: WorkerRequest) -> ReplyId {
        self.requests += 1;
        let reply = ReplyId(self.requests);
        self.input(Input::Request {
            peer,
            request,
            reply,
        });
        reply
    }

    pub(crate) fn control(&mut self, request: ControlRequest) -> ReplyId {
        self.control_as(2, request)
    }

    /// The same by operator `number`.
    pub(crate) fn control_as(&mut self, number: u32, request: ControlRequest) -> ReplyId {
        self.requests += 1;
        let reply = ReplyId(self.requests);
        self.input(Input::Control {
            operator: public_key(number),
            request,
            reply,
        });
        reply
    }

    pub(crate) fn join(&mut self, number: u32) -> ReplyId {
        let reply = self.ask(peer(number), WorkerRequest::Join(join_request(number)));
        self.answer_pending();
        reply
    }

    pub(crate) fn claim(&mut self, number: u32) -> ReplyId {
        let wait = Millis::from_secs(20);
        self.ask(
            peer(number),
            WorkerRequest::Claim(claim_request(number, wait)),
        )
    }

    /// Claims and expects a lease.
    pub(crate) fn lease(&mut self, number: u32) -> LeaseRef {
        let reply = self.claim(number);
        self.manifests
            .get(&reply)
            .unwrap_or_else(|| panic!("no lease: {:?}", self.answers.get(&reply)))
            .lease
    }

    pub(crate) fn submit(&mut self, number: u32, lease: LeaseRef) -> ReplyId {
        let result = submission(&self.run().spec, number, lease, 0);
        self.ask(peer(number), WorkerRequest::Submit(result))
    }

    pub(crate) fn shut_down(&mut self, drain: Millis) -> ReplyId {
        self.control(ControlRequest::Shutdown(Shutdown { v: V, drain }))
    }

    pub(crate) fn run(&self) -> &Run {
        self.run_named(&run_id())
    }

    fn run_named(&self, run: &RunId) -> &Run {
        self.core.state().run(run).unwrap()
    }

    pub(crate) fn refusal(&self, reply: ReplyId) -> schemas::Code {
        match self.answers.get(&reply) {
            Some(Err(refusal)) => refusal.code,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    /// Kinds of the events since the journal had `from`.
    pub(crate) fn kinds(&self, from: usize) -> Vec<&'static str> {
        self.journal[from..]
            .iter()
            .map(|body| body.event.kind())
            .collect()
    }

    pub(crate) fn count(&self, wanted: impl Fn(&LedgerEvent) -> bool) -> usize {
        let ledger =
            |body: &&EventBody| matches!(&body.event, Event::Ledger(event) if wanted(event));
        self.journal.iter().filter(ledger).count()
    }
}
