//! A worker, whose coordinator sends it any answers, leases and commands, and whose shell fails
//! whenever it likes.

use std::collections::{BTreeMap, BTreeSet};

use schemas::contribution::{Evaluation, SubmitReply};
use schemas::lease::{ClaimOutcome, ClaimReply, Done, LeaseRef, Manifest, RenewReply, Work};
use schemas::member::{JoinReply, JoinRequest};
use schemas::public::CommandVerb;
use schemas::{Code, Message, Millis, ObjectRef, Refusal, Steps, Tokens, UnixMillis, V};
use worker_core::{
    Answer, Effect, Input, NotVerified, Request, RequestId, Settings, Trained, WorkId, Worker,
};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
/// Steps of a conversation.
const STEPS_MAX: usize = 64;

/// What the worker waits for.
#[derive(Default)]
struct Waits {
    sent: BTreeMap<RequestId, Request>,
    work: Option<WorkId>,
    /// The last effect on the work.
    step: Step,
    sent_before: BTreeSet<RequestId>,
    ended: bool,
    /// It has handed in a result.
    submitted: bool,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Step {
    #[default]
    Nothing,
    Verify,
    Fetch,
    Train,
    Evaluate,
    Upload,
}

struct World {
    worker: Worker,
    now: UnixMillis,
    waits: Waits,
}

fn settings() -> Settings {
    let join = JoinRequest {
        session: kit::session(7),
        ..kit::join_request(7)
    };
    Settings {
        run: kit::run_id(),
        domain: "a-domain".to_owned(),
        worker: kit::worker(7),
        join,
        claim_wait: Millis(20_000),
        stop_patience: Millis(5_000),
        seed: 11,
    }
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            worker: Worker::new(settings()),
            now: NOW,
            waits: Waits::default(),
        };
        world.give(Input::Tick);
        world
    }

    fn give(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.worker.handle(self.now, input, &mut effects);
        assert!(
            !self.waits.ended || effects.is_empty(),
            "it goes on after its end"
        );
        for effect in effects {
            self.note(effect);
        }
        // The shell ends every wait for an answer, and every step of the work.
        let reports = !self.waits.sent.is_empty() || self.waits.step != Step::Nothing;
        let waits_for_nothing = self.worker.next_deadline().is_none() && !reports;
        assert!(
            self.waits.ended || !waits_for_nothing,
            "it would wait for ever"
        );
        let _phase = self.worker.phase();
    }

    fn note(&mut self, effect: Effect) {
        let waits = &mut self.waits;
        match effect {
            Effect::Send { id, request, .. } => {
                assert!(waits.sent_before.insert(id), "two requests with one number");
                waits.submitted |= matches!(request, Request::Submit(_));
                waits.sent.insert(id, request);
            }
            Effect::Verify { work, .. } => (waits.work, waits.step) = (Some(work), Step::Verify),
            Effect::Fetch { work, .. } => (waits.work, waits.step) = (Some(work), Step::Fetch),
            Effect::Train { work } => (waits.work, waits.step) = (Some(work), Step::Train),
            Effect::Evaluate { work } => (waits.work, waits.step) = (Some(work), Step::Evaluate),
            Effect::Upload { work } => (waits.work, waits.step) = (Some(work), Step::Upload),
            Effect::Stop { .. } => waits.step = Step::Nothing,
            Effect::Exit(_) => waits.ended = true,
            _ => {}
        }
    }

    /// The answer to the last request, as its type reads it.
    fn answer(&mut self, bytes: &[u8]) {
        fn of<T: Message>(bytes: &[u8], answer: impl Fn(T) -> Answer) -> Result<Answer, Refusal> {
            let read = T::decode(bytes).map(answer);
            read.map_err(|error| Refusal::new(Code::MessageInvalid, error.to_string()))
        }
        let Some((id, request)) = self.waits.sent.pop_last() else {
            return;
        };
        let outcome = match request {
            Request::Join(_) => of::<JoinReply>(bytes, |reply| Answer::Join(Box::new(reply))),
            Request::Claim(_) => of::<ClaimReply>(bytes, Answer::Claim),
            Request::Renew(_) => of::<RenewReply>(bytes, Answer::Renew),
            Request::Leave(_) | Request::Release(_) => of::<Done>(bytes, Answer::Done),
            Request::Submit(_) => of::<SubmitReply>(bytes, Answer::Submit),
        };
        self.give(Input::Replied { id, outcome });
    }

    /// The work's next report: done, or failed with this refusal.
    fn report(&mut self, bytes: &[u8], failed: Option<Refusal>) {
        let Some(work) = self.waits.work else {
            return;
        };
        let input = match (self.waits.step, failed) {
            (Step::Nothing, _) => Input::Progress {
                work,
                steps_done: Steps(bytes.len() as u64),
            },
            (Step::Verify, failed) => Input::Verified {
                work,
                outcome: failed.map_or_else(
                    || Ok(Box::new(manifest(bytes))),
                    |refusal| {
                        Err(NotVerified {
                            refusal,
                            lease: None,
                        })
                    },
                ),
            },
            (Step::Fetch, failed) => Input::Fetched {
                work,
                outcome: failed.map_or(Ok(None), Err),
            },
            (Step::Train, failed) => Input::Trained {
                work,
                outcome: failed.map_or_else(|| Ok(trained(bytes)), Err),
            },
            (Step::Evaluate, failed) => Input::Evaluated {
                work,
                outcome: failed.map_or_else(|| Ok(evaluation(bytes)), Err),
            },
            (Step::Upload, failed) => Input::Uploaded {
                work,
                outcome: failed.map_or_else(|| Ok(vec![ObjectRef::of(bytes)].into()), Err),
            },
        };
        self.give(input);
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk()
        .map_or(0, |word| u64::from_le_bytes(*word))
}

fn trained(bytes: &[u8]) -> Trained {
    Trained {
        tokens: Tokens(word(bytes)),
        steps: Steps(word(bytes.get(8..).unwrap_or_default())),
        loss: f64::from_bits(word(bytes)),
        train_ms: word(bytes),
    }
}

fn evaluation(bytes: &[u8]) -> Evaluation {
    Evaluation {
        loss_sum: f64::from_bits(word(bytes)),
        tokens: Tokens(word(bytes.get(8..).unwrap_or_default())),
    }
}

/// A manifest that the shell has checked. Its times and its lease are the coordinator's word.
fn manifest(bytes: &[u8]) -> Manifest {
    if let Ok(read) = serde_json::from_slice(bytes) {
        return read;
    }
    let spec = kit::run_spec().build();
    let lease: LeaseRef = kit::lease(kit::train(0, 0), 1);
    Manifest {
        v: V,
        iss: "A".to_owned(),
        aud: kit::worker(7),
        session: kit::session(1),
        nbf: 0,
        exp: u64::MAX,
        iat: NOW.0 / 1000,
        jti: "id".to_owned(),
        run: kit::run_id(),
        spec: spec.to_object().1,
        lease,
        expires_at: UnixMillis(NOW.0.saturating_add(word(bytes))),
        base: kit::weights(0, spec.download, spec.model.initial),
        work: Work::Train {
            shards: vec![kit::object("shard")],
            seed: 7,
            steps: Steps(4),
            steps_before: Steps(0),
        },
    }
}

/// Steps one after another. Each begins with a byte that chooses what happens, and two for the
/// length of what it says (little-endian).
pub(super) fn life(bytes: &[u8]) {
    let _world = lived(bytes);
}

fn lived(mut bytes: &[u8]) -> World {
    let mut world = World::new();
    let mut said = 0;
    while let [which, low, high, rest @ ..] = bytes {
        said += 1;
        if said > STEPS_MAX {
            break;
        }
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (payload, after) = rest.split_at(length);
        bytes = after;
        let refusal = || Refusal::decode(payload).unwrap_or_else(|_| refused());
        match which % 10 {
            0 | 1 => world.answer(payload),
            2 => {
                if let Some((id, _)) = world.waits.sent.pop_last() {
                    let outcome = Err(refusal());
                    world.give(Input::Replied { id, outcome });
                }
            }
            3 | 4 => world.report(payload, None),
            5 => world.report(payload, Some(refusal())),
            6 => {
                let verbs = [
                    CommandVerb::Drain,
                    CommandVerb::Stop,
                    CommandVerb::Quarantine,
                ];
                let verb = verbs[payload.len() % verbs.len()];
                world.give(Input::Command(verb));
            }
            7 => world.give(Input::CommandRefused(refusal())),
            8 => {
                let work = world.waits.work.unwrap_or(WorkId(word(payload)));
                let outcome = match payload.len() % 2 {
                    0 => Ok(()),
                    _ => Err(refusal()),
                };
                world.give(Input::Recorded { work, outcome });
            }
            _ => {
                world.now = world.now.after(Millis(1 << (payload.len() % 24)));
                world.give(Input::Tick);
            }
        }
    }
    world
}

fn refused() -> Refusal {
    Refusal::new(Code::StoreUnreachable, "nothing is there")
}

pub(super) fn lives() -> Vec<Vec<u8>> {
    let say = |which: u8, payload: &[u8]| {
        let length = u16::try_from(payload.len()).expect("a short payload");
        [&[which], &length.to_le_bytes()[..], payload].concat()
    };
    let spec = kit::run_spec().build();
    let joined = JoinReply {
        v: V,
        spec_digest: spec.to_object().1,
        spec,
        now: NOW,
        heartbeat: Millis(5_000),
    };
    let joined = say(0, &joined.encode());
    let lease = ClaimReply::of(ClaimOutcome::Lease("document".to_owned()));
    let lease = say(0, &lease.encode());
    let later = say(9, &[0; 14]);
    let numbers = [1_000_000_u64.to_le_bytes(), 4_u64.to_le_bytes()].concat();
    let done = say(3, &numbers);
    let refusal = refused().encode();
    let whole = manifest(b"");
    let whole = say(3, &serde_json::to_vec(&whole).expect("claims are JSON"));
    let all = vec![
        // Joined, leased, verified, fetched, trained, recorded, uploaded, refused.
        [
            &joined,
            &lease,
            &done,
            &done,
            &done,
            &say(8, b""),
            &done,
            &say(2, &refusal),
        ]
        .map(|step| step.as_slice())
        .concat(),
        [
            &joined,
            &lease,
            &whole,
            &later,
            &say(5, &refusal),
            &later,
            &say(6, b""),
        ]
        .map(|step| step.as_slice())
        .concat(),
        [
            &say(2, &refusal),
            &later,
            &joined,
            &say(7, &refusal),
            &say(6, b"x"),
        ]
        .map(|step| step.as_slice())
        .concat(),
        [
            &joined,
            &say(0, &ClaimReply::of(ClaimOutcome::Complete).encode()),
            &say(0, &Done::default().encode()),
        ]
        .map(|step| step.as_slice())
        .concat(),
    ];
    // They lead through a whole unit, and to an end.
    let worlds: Vec<World> = all.iter().map(|life| lived(life)).collect();
    assert!(worlds[0].waits.submitted, "{:?}", worlds[0].worker.phase());
    assert!(
        worlds[1].waits.work.is_some(),
        "{:?}",
        worlds[1].worker.phase()
    );
    assert!(worlds[3].waits.ended, "{:?}", worlds[3].worker.phase());
    all
}
