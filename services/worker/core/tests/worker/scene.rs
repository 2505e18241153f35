//! A worker whose coordinator and shell are played by the test.

use schemas::contribution::{Fate, SubmitReply};
use schemas::event::WorkerEvent;
use schemas::lease::{
    ClaimOutcome, ClaimReply, LeaseRef, Manifest, RenewReply, UnitId, UnitKind, Work,
};
use schemas::member::{JoinReply, JoinRequest, Session};
use schemas::run::RunSpec;
use schemas::{Code, Millis, ObjectRef, Refusal, Steps, Tokens, UnixMillis, V, WorkerId};
use worker_core::{
    Answer, Effect, Input, Request, RequestId, ResultEnd, Settings, Trained, WorkId, Worker,
};

pub(crate) const LEASE: Millis = Millis(30_000);
/// The time by which the coordinator's clock is ahead of the worker's, in milliseconds.
pub(crate) const AHEAD: u64 = 7_000;

pub(crate) fn worker_id() -> WorkerId {
    kit::worker(7)
}

pub(crate) fn spec() -> RunSpec {
    kit::run_spec()
        .chunk_elements(16)
        .initial(vec![kit::object("initial")])
        .sequence_tokens(8)
        .evaluation_every(1)
        .lease(LEASE)
        .build()
}

/// The process that is tried.
const SESSION: Session = Session(7);

pub(crate) fn settings() -> Settings {
    let join = JoinRequest {
        session: SESSION,
        ..kit::join_request(7)
    };
    Settings {
        run: spec().run,
        domain: "a-domain".to_owned(),
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
    let unit = UnitId {
        kind,
        ..kit::train(0, index)
    };
    kit::lease(unit, epoch)
}

/// A manifest as the shell returns it after all checks.
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
        session: SESSION,
        nbf: 0,
        exp: u64::MAX,
        iat: granted / 1000,
        jti: "id".to_owned(),
        run: spec().run,
        spec: spec().to_object().1,
        lease,
        expires_at: UnixMillis(granted + LEASE.get()),
        base: kit::weights(0, spec().download, vec![object]),
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

/// A worker, its clock, and its last effects.
pub(crate) struct Scene {
    pub(crate) worker: Worker,
    pub(crate) now: UnixMillis,
    pub(crate) effects: Vec<Effect>,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::seeded(settings().seed)
    }

    /// A worker with another seed.
    pub(crate) fn seeded(seed: u64) -> Self {
        let mut scene = Self {
            worker: Worker::new(Settings { seed, ..settings() }),
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
        let mut spec = spec();
        spec.policy.lease = lease;
        Self::joined_to(spec)
    }

    /// The same in a run with any settings.
    pub(crate) fn joined_to(spec: RunSpec) -> Self {
        let mut scene = Self::new();
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
            outcome: Ok(None),
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
            outcome: Ok(vec![ObjectRef::of(b"chunk")].into()),
        });
        (scene, work, held)
    }

    pub(crate) fn grant(&mut self, lease: LeaseRef) -> WorkId {
        let outcome = ClaimOutcome::Lease("document".to_owned());
        self.answer(Ok(Answer::Claim(ClaimReply::of(outcome))));
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

    /// Moves the clock to the next deadline, and brings a tick.
    pub(crate) fn wait(&mut self) {
        let deadline = self
            .worker
            .next_deadline()
            .expect("a living worker has a deadline");
        self.now = self.now.max(deadline);
        self.give(Input::Tick);
    }

    /// Brings ticks for deadlines until `wanted` is asked for; its effects are in `effects`.
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

/// The ends of training units in the effects of the last input.
pub(crate) fn ends(scene: &Scene) -> Vec<&ResultEnd> {
    let effects = scene.effects.iter();
    let ends = effects.filter_map(|effect| match effect {
        Effect::KeepInner { end, .. } => Some(end),
        _ => None,
    });
    ends.collect()
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
