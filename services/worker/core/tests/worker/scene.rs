//! A worker on a stage of its own: the coordinator and the shell are played by the test.

use schemas::contribution::{Fate, SubmitReply};
use schemas::event::WorkerEvent;
use schemas::lease::{
    ClaimOutcome, ClaimReply, LeaseRef, Manifest, RenewReply, UnitId, UnitKind, Weights, Work,
};
use schemas::member::{JoinReply, JoinRequest, Posture, Session};
use schemas::run::{
    Closing, Codec, CodecKind, InnerOptimizer, ModelSpec, OuterOptimizer, Policy, Precision,
    Rounding, RunSpec, Schedule, TrainerKind,
};
use schemas::{
    Code, Epoch, Millis, ObjectRef, Refusal, Round, Steps, Tokens, UnitIndex, UnixMillis, V,
    WorkerId,
};
use serde_bytes::ByteArray;
use worker_core::{
    Answer, Effect, Input, Request, RequestId, ResultEnd, Settings, Trained, WorkId, Worker,
};

pub(crate) const LEASE: Millis = Millis(30_000);
/// How far the coordinator's clock is ahead of the worker's.
pub(crate) const AHEAD: u64 = 7_000;

pub(crate) fn worker_id() -> WorkerId {
    format!("U{}", "B".repeat(55))
        .parse()
        .expect("the form of a user key")
}

pub(crate) fn spec() -> RunSpec {
    let object = ObjectRef::of(b"an object");
    let codec = Codec {
        kind: CodecKind::Bf16,
        rounding: Rounding::Nearest,
    };
    RunSpec {
        v: V,
        run: "demo".parse().expect("a run name"),
        model: ModelSpec {
            trainer: TrainerKind::Reference,
            config: object,
            layout: object,
            chunk_elements: 16,
            initial: vec![object],
            precision: Precision::Fp32,
        },
        data: object,
        schedule: Schedule {
            rounds: 2,
            units: 2,
            inner_steps: Steps(4),
            batch_sequences: 2,
            accumulation: 1,
            sequence_tokens: 8,
            evaluation_every: 1,
            evaluation_sequences: 4,
            snapshot_every: 1,
        },
        inner: InnerOptimizer {
            warmup_steps: Steps(1),
            final_ratio: 0.1,
            ..InnerOptimizer::adamw(1e-3)
        },
        outer: OuterOptimizer::Average,
        upload: codec,
        download: codec,
        error_feedback: false,
        policy: Policy {
            workers_min: 1,
            lease: LEASE,
            silence_max: Millis(60_000),
            norm_max: 0.0,
            strikes_max: 3,
            closing: Closing::default(),
        },
        seed: 1,
    }
}

pub(crate) fn settings() -> Settings {
    let join = JoinRequest {
        v: V,
        session: Session(7),
        proof: ByteArray::new([0; 64]),
        audit_key: format!("U{}", "C".repeat(55))
            .parse()
            .expect("the form of a user key"),
        trainers: vec![TrainerKind::Reference],
        device: "cpu x1".to_owned(),
        release: "test".to_owned(),
        posture: Posture::default(),
    };
    Settings {
        run: spec().run,
        worker: worker_id(),
        join,
        claim_wait: Millis(20_000),
        stop_patience: Millis(5_000),
        seed: 11,
    }
}

pub(crate) fn join_reply(now: UnixMillis) -> JoinReply {
    join_reply_under(now, spec())
}

fn join_reply_under(now: UnixMillis, spec: RunSpec) -> JoinReply {
    let spec_digest = spec.to_object().1;
    JoinReply {
        v: V,
        spec,
        spec_digest,
        now: UnixMillis(now.get() + AHEAD),
        heartbeat: Millis(5_000),
    }
}

pub(crate) fn lease(index: u32, kind: UnitKind, epoch: u64) -> LeaseRef {
    LeaseRef {
        unit: UnitId {
            round: Round(0),
            kind,
            index: UnitIndex(index),
        },
        epoch: Epoch(epoch),
    }
}

/// A manifest as the shell hands it in after all checks.
pub(crate) fn manifest(lease: LeaseRef, granted_at: UnixMillis) -> Manifest {
    let object = ObjectRef::of(b"an object");
    let work = match lease.unit.kind {
        UnitKind::Train => Work::Train {
            shards: vec![object],
            seed: 1,
            steps: Steps(4),
            steps_before: Steps(0),
        },
        UnitKind::Evaluate => Work::Evaluate {
            shards: vec![object],
            sequences: 4,
        },
    };
    let granted = granted_at.get() + AHEAD;
    Manifest {
        v: V,
        iss: "A".to_owned(),
        aud: worker_id(),
        nbf: 0,
        exp: u64::MAX,
        iat: granted / 1000,
        jti: "id".to_owned(),
        run: spec().run,
        spec: spec().to_object().1,
        lease,
        expires_at: UnixMillis(granted + LEASE.get()),
        base: Weights {
            round: Round(0),
            codec: spec().download,
            chunks: vec![object],
        },
        work,
    }
}

pub(crate) fn trained() -> Trained {
    Trained {
        tokens: Tokens(64),
        steps: Steps(4),
        loss: 2.5,
        train_ms: 1000,
    }
}

/// A worker, its clock, and what it asked for last.
pub(crate) struct Scene {
    pub(crate) worker: Worker,
    pub(crate) now: UnixMillis,
    pub(crate) effects: Vec<Effect>,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let mut scene = Self {
            worker: Worker::new(settings()),
            now: UnixMillis(1_000_000),
            effects: Vec::new(),
        };
        scene.give(Input::Tick);
        scene
    }

    /// A worker that has joined and claims.
    pub(crate) fn joined() -> Self {
        let mut scene = Self::new();
        let reply = join_reply(scene.now);
        scene.answer(Ok(Answer::Join(Box::new(reply))));
        scene
    }

    /// The same in a run with another lease time.
    pub(crate) fn joined_under(lease: Millis) -> Self {
        let mut scene = Self::new();
        let mut spec = spec();
        spec.policy.lease = lease;
        let reply = join_reply_under(scene.now, spec);
        scene.answer(Ok(Answer::Join(Box::new(reply))));
        scene
    }

    /// A worker that holds `lease` and fetches.
    pub(crate) fn holding(lease: LeaseRef) -> (Self, WorkId) {
        let mut scene = Self::joined();
        let work = scene.grant(lease);
        (scene, work)
    }

    /// A worker that trains.
    pub(crate) fn training() -> (Self, WorkId, LeaseRef) {
        let held = lease(0, UnitKind::Train, 1);
        let (mut scene, work) = Self::holding(held);
        scene.give(Input::Fetched {
            work,
            outcome: Ok(()),
        });
        (scene, work, held)
    }

    /// A worker that waits for the answer to its result.
    pub(crate) fn submitting() -> (Self, WorkId, LeaseRef) {
        let (mut scene, work, held) = Self::training();
        scene.give(Input::Trained {
            work,
            outcome: Ok(trained()),
        });
        scene.give(Input::Uploaded {
            work,
            outcome: Ok(vec![ObjectRef::of(b"chunk")]),
        });
        (scene, work, held)
    }

    pub(crate) fn grant(&mut self, lease: LeaseRef) -> WorkId {
        let outcome = ClaimOutcome::Lease("document".to_owned());
        self.answer(Ok(Answer::Claim(ClaimReply { v: V, outcome })));
        let work = self.effects.iter().find_map(|effect| match effect {
            Effect::Verify { work, .. } => Some(*work),
            _ => None,
        });
        let work = work.expect("a lease is verified first");
        let manifest = Box::new(manifest(lease, self.now));
        self.give(Input::Verified {
            work,
            outcome: Ok(manifest),
        });
        work
    }

    pub(crate) fn give(&mut self, input: Input) {
        self.effects.clear();
        self.worker.handle(self.now, input, &mut self.effects);
    }

    /// Moves the clock to the next deadline and ticks.
    pub(crate) fn wait(&mut self) {
        let deadline = self
            .worker
            .next_deadline()
            .expect("a living worker has a deadline");
        self.now = self.now.max(deadline);
        self.give(Input::Tick);
    }

    /// Ticks through deadlines until `wanted` is asked for; what it asked for is in `effects`.
    pub(crate) fn until(&mut self, wanted: impl Fn(&Effect) -> bool) {
        for _ in 0..1000 {
            if self.effects.iter().any(&wanted) {
                return;
            }
            self.wait();
        }
        panic!("never asked for; the worker is {:?}", self.worker.phase());
    }

    /// The last request that was sent.
    pub(crate) fn request(&self) -> (RequestId, &Request) {
        self.sent().last().expect("a request was sent")
    }

    pub(crate) fn sent(&self) -> impl Iterator<Item = (RequestId, &Request)> {
        self.effects.iter().filter_map(|effect| match effect {
            Effect::Send { id, request, .. } => Some((*id, request)),
            _ => None,
        })
    }

    /// Answers the last request.
    pub(crate) fn answer(&mut self, outcome: Result<Answer, schemas::Refusal>) {
        let id = self.request().0;
        self.give(Input::Replied { id, outcome });
    }

    pub(crate) fn renewed(&self) -> Answer {
        let expires_at = UnixMillis(self.now.get() + AHEAD + LEASE.get());
        Answer::Renew(RenewReply {
            v: V,
            expires_at,
            remaining: LEASE,
        })
    }

    pub(crate) fn has(&self, wanted: impl Fn(&Effect) -> bool) -> bool {
        self.effects.iter().any(wanted)
    }
}

pub(crate) fn refused(code: Code) -> Result<Answer, Refusal> {
    Err(Refusal::new(code, "played by the test"))
}

pub(crate) fn fate(fate: Fate) -> Result<Answer, Refusal> {
    Ok(Answer::Submit(SubmitReply { v: V, fate }))
}

pub(crate) fn claims(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Send {
            request: Request::Claim(_),
            ..
        }
    )
}

pub(crate) fn joins(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Send {
            request: Request::Join(_),
            ..
        }
    )
}

pub(crate) fn submits(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Send {
            request: Request::Submit(_),
            ..
        }
    )
}

pub(crate) fn renews(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Send {
            request: Request::Renew(_),
            ..
        }
    )
}

/// The ends of training units that the last input brought.
pub(crate) fn ends(scene: &Scene) -> Vec<&ResultEnd> {
    let end = |effect| match effect {
        &Effect::KeepInner { ref end, .. } => Some(end),
        _ => None,
    };
    scene.effects.iter().filter_map(end).collect()
}

/// True for the order to keep the inner state after this end.
pub(crate) fn keeps(wanted: &ResultEnd) -> impl Fn(&Effect) -> bool {
    move |effect| matches!(effect, Effect::KeepInner { end, .. } if end == wanted)
}

pub(crate) fn exits(effect: &Effect) -> bool {
    matches!(effect, Effect::Exit(_))
}

pub(crate) fn dropped(code: Code) -> impl Fn(&Effect) -> bool {
    move |effect| matches!(effect, Effect::Emit(WorkerEvent::Dropped { code: got, .. }) if *got == code)
}

/// The pause that the worker shows, in milliseconds.
pub(crate) fn pause(scene: &Scene) -> u64 {
    let pause = scene.effects.iter().find_map(|effect| match effect {
        Effect::Waiting { pause, .. } => Some(pause.get()),
        _ => None,
    });
    pause.expect("waiting is shown")
}
