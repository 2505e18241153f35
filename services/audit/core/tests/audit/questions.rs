//! Workers' questions about the log: which of them are answered, and how.

use audit_core::{EVENTS_BURST, Intake, Logged, MessageCheck, Notice, Question, QuestionCheck};
use schemas::event::SignedEvent;
use schemas::head::{ASKED_MAX, CosignRequest, HeadRequest};
use schemas::subject::Lane;
use schemas::{ChainSequence, Code, Digest, Message as _, PublicKey, V};
use serde_bytes::ByteArray;

use crate::intake::{FLOOD, NOW, candidate, enrolment, scene, stopped, subject};
use crate::log::{DOMAIN, Member, run};

/// A question about the log, as the broker passes it on.
fn log_subject(member: &Member, verb: &str) -> String {
    format!(
        "{}.{}.{}.{}.{verb}",
        Lane::Log.prefix(),
        member.account,
        run(),
        member.worker
    )
}

fn head_request(member: &Member, events: Vec<ChainSequence>) -> Vec<u8> {
    HeadRequest {
        v: V,
        known: 7,
        emitter: member.emitter.public.clone(),
        events,
    }
    .encode()
}

fn places(checked: QuestionCheck) -> Vec<(ChainSequence, u64)> {
    match checked {
        QuestionCheck::Question(_, Question::Head { known: 7, events }) => events,
        other => panic!("no question for a head: {other:?}"),
    }
}

#[test]
fn a_worker_learns_the_places_of_its_own_events_and_of_no_others() {
    let (mut intake, member) = scene();
    let other = Member::new(2);
    intake.enrol(enrolment(&other));
    for sequence in 0..50 {
        intake.learn(Notice::Logged {
            key: member.emitter.public.clone(),
            logged: Logged {
                sequence: ChainSequence(sequence),
                digest: Digest::of(b"any"),
                index: 100 + sequence,
            },
        });
    }
    let mut ask = |asker: &Member, of: &Member, events: Vec<ChainSequence>| {
        let payload = head_request(of, events);
        places(intake.check_question(NOW, &log_subject(asker, "head"), &payload))
    };
    let wanted = vec![ChainSequence(3), ChainSequence(70), ChainSequence(0)];
    let found = vec![(ChainSequence(3), 103), (ChainSequence(0), 100)];
    assert_eq!(ask(&member, &member, wanted.clone()), found);
    assert_eq!(ask(&other, &member, wanted), []);
    let many: Vec<ChainSequence> = (0..50).map(ChainSequence).collect();
    assert_eq!(ask(&member, &member, many).len(), ASKED_MAX);
}

/// It gets those of workers nowhere, and workers get its own nowhere.
#[test]
fn ls_04_the_coordinator_learns_the_places_of_the_ledgers_events_and_of_no_others() {
    let (mut intake, member) = scene();
    let coordinator = Member::new(2).emitter.public;
    let logged = |index| Logged {
        sequence: ChainSequence(3),
        digest: Digest::of(b"any"),
        index,
    };
    intake.learn(Notice::LedgerLogged {
        key: coordinator.clone(),
        logged: logged(40),
    });
    intake.learn(Notice::Logged {
        key: member.emitter.public.clone(),
        logged: logged(50),
    });
    let asked = |emitter: &PublicKey| {
        let request = HeadRequest {
            v: V,
            known: 7,
            emitter: emitter.clone(),
            events: vec![ChainSequence(3), ChainSequence(4)],
        };
        request.encode()
    };
    let (prefix, key) = (Lane::Log.prefix(), member.worker.as_str());
    let own = format!("{prefix}.{}.cluster.{key}.head", member.account);
    let mut ask = |subject: &str, emitter: &PublicKey| {
        places(intake.check_question(NOW, subject, &asked(emitter)))
    };
    assert_eq!(ask(&own, &coordinator), [(ChainSequence(3), 40)]);
    assert_eq!(ask(&own, &member.emitter.public), []);
    let workers = log_subject(&member, "head");
    assert_eq!(ask(&workers, &coordinator), []);
    let refused = intake.check_question(NOW, &own, b"no message");
    assert!(
        matches!(&refused, QuestionCheck::Refused(refusal) if refusal.code == Code::MessageInvalid),
        "{refused:?}"
    );
    let answer = schemas::Answer::new(
        &schemas::Addressee::of(&own, &asked(&coordinator)).expect("its sender"),
        schemas::Reply::Ok(schemas::lease::Done::default()),
    );
    let heard = intake.check_question(NOW, &own, &answer.encode());
    assert_eq!(heard, QuestionCheck::Answer);
    // It is held to the same allowance as a worker.
    let mut flood = || intake.check_question(NOW, &own, &asked(&coordinator));
    let over = QuestionCheck::Over(member.worker.clone());
    assert!((0..FLOOD).any(|_| flood() == over));
}

#[test]
fn only_a_worker_of_the_ledger_asks_about_the_log_or_cosigns() {
    let (mut intake, member) = scene();
    let (stranger, question) = (Member::new(2), head_request(&member, vec![]));
    let refused = |checked: QuestionCheck| match checked {
        QuestionCheck::Refused(refusal) => refusal.code,
        other => panic!("not refused: {other:?}"),
    };
    let asked = intake.check_question(NOW, &log_subject(&stranger, "head"), &question);
    assert_eq!(refused(asked), Code::EventLater);
    for verb in ["head", "cosign"] {
        let asked = intake.check_question(NOW, &log_subject(&member, verb), b"no message");
        assert_eq!(refused(asked), Code::MessageInvalid, "{verb}");
    }
    let cosigned = CosignRequest {
        v: V,
        key: member.emitter.public.clone(),
        size: 7,
        time: NOW,
        signature: ByteArray::new([1; 64]),
    };
    let asked = intake.check_question(NOW, &log_subject(&member, "cosign"), &cosigned.encode());
    let expected = Question::Cosign(Box::new(cosigned.clone()));
    assert_eq!(
        asked,
        QuestionCheck::Question(member.worker.clone(), expected)
    );
    for subject in [subject(&member, "head"), log_subject(&member, "other")] {
        let asked = intake.check_question(NOW, &subject, &question);
        assert_eq!(asked, QuestionCheck::Nobody, "{subject}");
    }
    // An event under a subject of the log is none either.
    let event = intake.check_message(NOW, &log_subject(&member, "head"), &question);
    assert_eq!(event, MessageCheck::Nobody);
    let reply = schemas::Answer::new(
        &schemas::Addressee::of(&log_subject(&member, "head"), &question).expect("its sender"),
        schemas::Reply::Ok(schemas::lease::Done::default()),
    );
    let asked = intake.check_question(NOW, &log_subject(&member, "head"), &reply.encode());
    assert_eq!(asked, QuestionCheck::Answer);
    intake.learn(Notice::ShutOut {
        run: run(),
        worker: member.worker.clone(),
    });
    let asked = intake.check_question(NOW, &log_subject(&member, "cosign"), &cosigned.encode());
    assert_eq!(refused(asked), Code::WorkerQuarantined);
    intake.learn(Notice::Removed {
        run: run(),
        worker: member.worker.clone(),
    });
    let asked = intake.check_question(NOW, &log_subject(&member, "head"), &question);
    assert_eq!(refused(asked), Code::EventRefused);
}

/// Questions and events are taken from one allowance.
#[test]
fn a_worker_that_asks_without_end_gets_no_answer() {
    let (mut intake, member) = scene();
    let question = head_request(&member, vec![]);
    let subject = log_subject(&member, "head");
    let mut ask = || intake.check_question(NOW, &subject, &question);
    let answered = (0..FLOOD).take_while(|_| ask() != QuestionCheck::Over(member.worker.clone()));
    let answered = answered.count() as u64;
    assert!((1..=EVENTS_BURST).contains(&answered), "{answered}");
}

/// A worker that saw no head over an event sends it again, also after others: it is recorded.
#[test]
fn ls_04_an_event_of_the_log_is_known_when_it_comes_again_after_others() {
    let (mut intake, mut member) = scene();
    let (first, second) = (stopped(&mut member), stopped(&mut member));
    let mut fork = Member::new(1);
    let event = schemas::event::WorkerEvent::Stopped {
        reason: "another".to_owned(),
    };
    let event = schemas::event::Event::Worker(event);
    let fork = fork.emitter.speak(DOMAIN, NOW.get(), Some(run()), event);
    let subject = subject(&member, "stopped");
    let hear = |intake: &mut Intake, event: &SignedEvent| {
        candidate(intake.check_message(NOW, &subject, &event.encode()))
    };
    let heard = hear(&mut intake, &first);
    assert!(!intake.is_logged(&heard), "it is new");
    intake.learn(Notice::Logged {
        key: member.emitter.public.clone(),
        logged: Logged {
            sequence: ChainSequence(0),
            digest: Digest::of(&first.body),
            index: 3,
        },
    });
    let heard = hear(&mut intake, &first);
    assert!(intake.is_logged(&heard));
    for other in [&second, &fork] {
        let heard = hear(&mut intake, other);
        assert!(!intake.is_logged(&heard), "{other:?}");
    }
}
