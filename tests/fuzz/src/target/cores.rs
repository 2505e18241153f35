//! The handlers of the cores: what a worker or an operator sends reaches them as it was sent.

use std::collections::BTreeSet;

use audit_core::{Enrolment, Intake};
use coordinator_core::{
    ControlRequest, Coordinator, Effect, Input, Peer, ReplyId, Screened, Settings, WorkerRequest,
};
use ledger::State;
use registrar_core::Registrar;
use schemas::control::RunNew;
use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::foundry::{self, Order};
use schemas::lease::{ClaimRequest, RenewRequest};
use schemas::member::{LeaveRequest, Posture, Session};
use schemas::renewal::RenewalRequest;
use schemas::subject::{
    ControlVerb, Verb, enrolment_subject, renewal_subject, worker_event_subject,
};
use schemas::{ChainSequence, Code, Message as _, Millis, Refusal, RunId, UnixMillis, V};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
/// Workers of the run in a conversation.
const WORKERS: u32 = 3;

/// A coordinator whose effects succeed at once, and its ledger.
struct World {
    core: Coordinator,
    now: UnixMillis,
    journal: Vec<EventBody>,
    questions: u64,
    answered: BTreeSet<ReplyId>,
}

fn settings() -> Settings {
    Settings {
        release: "1".to_owned(),
        audit_keys: vec![kit::public_key(1)],
        home: kit::account(1),
        posture: Posture::default(),
        heartbeat: Millis::from_secs(5),
        session: Session(99),
        checkpoint_every: u64::MAX,
    }
}

impl World {
    /// A coordinator with one run of three workers, of which one has a lease.
    fn new() -> Self {
        let mut world = Self {
            core: Coordinator::new(settings(), State::default()),
            now: NOW,
            journal: Vec::new(),
            questions: 0,
            answered: BTreeSet::new(),
        };
        let mut effects = Vec::new();
        world.core.start(world.now, &mut effects);
        world.carry_out(effects);
        let spec = kit::run_spec().build();
        world.control(ControlRequest::RunNew(Box::new(RunNew { v: V, spec })));
        for number in 1..=WORKERS {
            world.ask(number, WorkerRequest::Join(kit::join_request(number)));
        }
        world.ask(1, WorkerRequest::Claim(claim(1)));
        world
    }

    fn reply(&mut self) -> ReplyId {
        self.questions += 1;
        ReplyId(self.questions)
    }

    fn ask(&mut self, number: u32, request: WorkerRequest) {
        let reply = self.reply();
        self.input(Input::Request {
            peer: Peer {
                account: kit::account(1),
                run: kit::run_id(),
                worker: kit::worker(number),
            },
            recorded: None,
            request,
            reply,
        });
    }

    fn control(&mut self, request: ControlRequest) {
        let reply = self.reply();
        self.input(Input::Control {
            operator: kit::operator(),
            request,
            reply,
        });
    }

    fn input(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.core.handle(self.now, input, &mut effects);
        self.carry_out(effects);
        self.core.state().check().expect("the state is sound");
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Append { time, run, event } => self.append(time, run, *event),
                Effect::Reply { reply, .. }
                | Effect::Lease { reply, .. }
                | Effect::ShowKeys { reply }
                | Effect::GrantGet { reply, .. }
                | Effect::GrantPut { reply, .. }
                | Effect::Purge { reply, .. } => {
                    assert!(self.answered.insert(reply), "{reply:?} was answered twice");
                }
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
                Effect::Promote { reply, .. } => self.input(Input::Promoted {
                    reply,
                    outcome: Ok(()),
                }),
                Effect::CheckSnapshot { spec, .. } => self.input(Input::SnapshotChecked {
                    run: spec.run,
                    verdict: Err(missing()),
                }),
                Effect::Foundry { run, order } => self.order(run, order),
                _ => {}
            }
        }
    }

    fn order(&mut self, run: RunId, order: Order) {
        let answer = match order {
            Order::Screen { screening, .. } => foundry::Answer::Screened {
                screening,
                verdict: Ok(Screened {
                    norm: 1.0,
                    listed: Vec::new(),
                }),
            },
            Order::Restore { .. } => {
                let data = Box::new(kit::data().named(5, 64).build());
                self.input(Input::Foundry {
                    run: run.clone(),
                    answer: foundry::Answer::DataLoaded { data },
                });
                foundry::Answer::Restored { outcome: Ok(()) }
            }
            _ => return,
        };
        self.input(Input::Foundry { run, answer });
    }

    fn append(&mut self, time: UnixMillis, run: Option<RunId>, event: LedgerEvent) {
        let body = EventBody {
            v: V,
            known: None,
            emitter: kit::public_key(1),
            sequence: ChainSequence(self.journal.len() as u64),
            previous: None,
            time,
            run,
            event: Event::Ledger(event),
        };
        let read = EventBody::decode(&body.encode());
        assert_eq!(
            read.ok().as_ref(),
            Some(&body),
            "an event reads back as it was"
        );
        self.journal.push(body);
    }
}

fn missing() -> Refusal {
    Refusal::new(Code::StoreUnreachable, "nothing is there")
}

fn claim(number: u32) -> ClaimRequest {
    ClaimRequest {
        v: V,
        session: kit::session(number),
        wait: Millis::from_secs(5),
    }
}

/// Questions one after another. Each begins with a byte for the asker, one for the verb, and two
/// for the length of its payload (little-endian). An asker after the last worker is an operator,
/// and the next one is time that passes.
pub(super) fn conversation(mut bytes: &[u8]) {
    let mut world = World::new();
    let mut said = 0;
    while let [who, verb, low, high, rest @ ..] = bytes {
        said += 1;
        if said > 16 {
            break;
        }
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (payload, after) = rest.split_at(length);
        bytes = after;
        let (who, verb) = (u32::from(*who) % (WORKERS + 2), usize::from(*verb));
        if who < WORKERS {
            let verb = Verb::ALL[verb % Verb::ALL.len()];
            if let Ok(request) = WorkerRequest::decode(verb, payload) {
                world.ask(who + 1, request);
            }
        } else if who == WORKERS {
            let verb = ControlVerb::ALL[verb % ControlVerb::ALL.len()];
            if let Ok(request) = ControlRequest::decode(verb, payload) {
                world.control(request);
            }
        } else {
            world.now = world.now.after(Millis(1 << (verb % 24)));
            world.input(Input::Tick);
        }
    }
    let replayed = Coordinator::replay(settings(), &world.journal).expect("the ledger folds");
    assert!(
        replayed.state() == world.core.state(),
        "a replay gives another state"
    );
}

pub(super) fn conversations() -> Vec<Vec<u8>> {
    let say = |who: u8, verb: usize, payload: &[u8]| {
        let length = u16::try_from(payload.len()).expect("a short payload");
        [&[who, verb as u8], &length.to_le_bytes()[..], payload].concat()
    };
    let of_worker = |token: &str| Verb::ALL.iter().position(|verb| verb.token() == token);
    let golden = super::wire::golden();
    let mut all = Vec::new();
    // Every question on file, from a worker and from an operator.
    for (place, verb) in Verb::ALL.iter().enumerate() {
        let name = verb.token().replace('.', "-");
        for (_, bytes) in golden
            .iter()
            .filter(|(file, _)| file.starts_with(&format!("{name}.")))
        {
            all.push(say(0, place, bytes));
        }
    }
    for (place, verb) in ControlVerb::ALL.iter().enumerate() {
        let name = verb.token().replace('.', "-");
        for (_, bytes) in golden
            .iter()
            .filter(|(file, _)| file.starts_with(&format!("{name}.")))
        {
            all.push(say(WORKERS as u8, place, bytes));
        }
    }
    // A life: renew, submit under the lease, claim again, time passes, leave.
    let lease = kit::lease(kit::train(0, 1), 1);
    let renew = RenewRequest {
        v: V,
        lease,
        steps_done: schemas::Steps(1),
        bytes_moved: schemas::Bytes(1),
    };
    let leave = LeaveRequest {
        v: V,
        session: kit::session(1),
        reason: "the end".to_owned(),
    };
    let life = [
        (0, of_worker("lease.renew"), renew.encode()),
        (1, of_worker("lease.claim"), claim(2).encode()),
        (WORKERS as u8 + 1, Some(15), Vec::new()),
        (0, of_worker("leave"), leave.encode()),
        (WORKERS as u8 + 1, Some(17), Vec::new()),
    ];
    let life = life.map(|(who, verb, payload)| say(who, verb.expect("a verb"), &payload));
    all.push(life.concat());
    all
}

/// A state that a checkpoint leads to is sound, and its own checkpoint is the same.
pub(super) fn checkpoint(bytes: &[u8]) {
    if let Ok(state) = State::from_checkpoint(bytes) {
        let written = state.to_checkpoint();
        let again = State::from_checkpoint(&written).expect("it was just written");
        assert_eq!(again.to_checkpoint(), written);
        state.check().expect("the state is sound");
    }
}

pub(super) fn checkpoints() -> Vec<Vec<u8>> {
    vec![
        State::default().to_checkpoint(),
        World::new().core.state().to_checkpoint(),
    ]
}

/// A message under any subject, to the audit service's intake and the registrar: the subject, a
/// line end, the payload.
pub(super) fn arrival(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (subject, payload) = bytes.split_at(end.unwrap_or(bytes.len()));
    let (subject, payload) = (
        String::from_utf8_lossy(subject),
        payload.get(1..).unwrap_or_default(),
    );
    let mut intake = Intake::new("OAAA");
    intake.enrol(Enrolment {
        account: kit::account(1),
        run: kit::run_id(),
        worker: kit::worker(1),
        key: super::keys::public(identity::KeyKind::User),
    });
    let _checked = intake.check_message(NOW, &subject, payload);
    let mut registrar = Registrar::new(Millis::from_secs(3600), Posture::default());
    let _heard = registrar.hear(NOW, &subject, payload);
}

pub(super) fn arrivals() -> Vec<Vec<u8>> {
    let (run, worker) = (kit::run_id(), kit::worker(1));
    let key = super::keys::public(identity::KeyKind::User);
    let account = kit::account(1).to_string();
    // As the broker hands it on, the account stands third.
    let crossed = |subject: String| {
        let mut tokens: Vec<&str> = subject.split('.').collect();
        tokens.insert(2, &account);
        tokens.join(".")
    };
    let golden = super::wire::golden();
    let example = |name: &str| {
        let found = golden.iter().find(|(file, _)| file.starts_with(name));
        found.expect("an example").1.clone()
    };
    let renewal = RenewalRequest {
        v: V,
        ends: NOW,
        successor: None,
    }
    .encode();
    let messages = [
        (
            worker_event_subject(&run, &worker, "started"),
            example("signed-event."),
        ),
        (renewal_subject(Some(&run), &key), renewal),
        (enrolment_subject(&key), example("enrolment-request.")),
    ];
    messages
        .map(|(subject, payload)| [crossed(subject).as_bytes(), b"\n", &payload[..]].concat())
        .to_vec()
}
