//! Workers' events before they are recorded: events that are accepted, that wait, that are refused,
//! and that get no answer.

use audit_core::{
    Candidate, ChainCheck, Enrolment, Intake, MessageCheck, Notice, RECORDED_BURST,
    RECORDED_PER_SECOND, Tail,
};
use schemas::event::{Event, EventBody, LedgerEvent, SignedEvent, WorkerEvent};
use schemas::subject::Lane;
use schemas::{ChainSequence, Code, Message as _, UnixMillis};

use crate::log::{DOMAIN, Member, run};

pub(crate) const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
/// More messages than any worker sends.
pub(crate) const FLOOD: u64 = 30_000;

pub(crate) fn enrolment(member: &Member) -> Enrolment {
    let (account, worker) = (member.account.clone(), member.worker.clone());
    Enrolment {
        account,
        run: run(),
        worker,
        key: member.emitter.public.clone(),
    }
}

/// The subject under which a listener receives the message.
pub(crate) fn subject(member: &Member, kind: &str) -> String {
    format!(
        "{}.{}.{}.{}.{kind}",
        Lane::Event.prefix(),
        member.account,
        run(),
        member.worker
    )
}

pub(crate) fn stopped(member: &mut Member) -> SignedEvent {
    let event = WorkerEvent::Stopped {
        reason: "x".to_owned(),
    };
    member
        .emitter
        .speak(DOMAIN, NOW.get(), Some(run()), Event::Worker(event))
}

pub(crate) fn scene() -> (Intake, Member) {
    let (mut intake, member) = (Intake::new(DOMAIN), Member::new(1));
    intake.enrol(enrolment(&member));
    (intake, member)
}

pub(crate) fn candidate(heard: MessageCheck) -> Candidate {
    match heard {
        MessageCheck::Candidate(candidate) => *candidate,
        other => panic!("not taken: {other:?}"),
    }
}

fn refused(heard: MessageCheck) -> Code {
    match heard {
        MessageCheck::Refused(refusal) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_chain_is_recorded_event_by_event_and_a_repeated_one_is_known() {
    let (mut intake, mut member) = scene();
    let mut tail: Option<Tail> = None;
    for stream in 1..=5 {
        let event = stopped(&mut member);
        for _ in 0..2 {
            let heard =
                candidate(intake.check_message(NOW, &subject(&member, "stopped"), &event.encode()));
            match &tail {
                Some(tail) if tail.stream == stream => {
                    assert_eq!(heard.check_chain(Some(tail)), ChainCheck::Known)
                }
                before => {
                    assert_eq!(heard.check_chain(before.as_ref()), ChainCheck::Follows);
                    tail = Some(heard.as_tail(stream));
                    assert_eq!(
                        tail,
                        Tail::read(stream, &event.encode()),
                        "as the stream gives it back"
                    );
                }
            }
        }
    }
}

#[test]
fn what_does_not_follow_is_refused_for_good() {
    let (mut intake, mut member) = scene();
    let events: Vec<SignedEvent> = (0..4).map(|_| stopped(&mut member)).collect();
    let mut hear = |event: &SignedEvent| {
        candidate(intake.check_message(NOW, &subject(&Member::new(1), "stopped"), &event.encode()))
    };
    let tails: Vec<Tail> = events
        .iter()
        .enumerate()
        .map(|(at, event)| hear(event).as_tail(at as u64 + 1))
        .collect();
    // A second process of the same worker: the same positions with other bytes.
    let mut other = Member::new(1);
    let event = WorkerEvent::Stopped {
        reason: "another life".to_owned(),
    };
    let fork = other
        .emitter
        .speak(DOMAIN, NOW.get(), Some(run()), Event::Worker(event));
    // The second event of that process: its position is right, the event before it is not.
    let event = WorkerEvent::Stopped {
        reason: "and on".to_owned(),
    };
    let on = other
        .emitter
        .speak(DOMAIN, NOW.get(), Some(run()), Event::Worker(event));
    for (event, tail) in [
        (&on, Some(&tails[0])),
        (&events[2], None),
        (&events[2], Some(&tails[0])),
        (&events[1], Some(&tails[2])),
        (&fork, Some(&tails[0])),
        (&fork, Some(&tails[3])),
    ] {
        let linked = hear(event).check_chain(tail);
        assert!(
            matches!(&linked, ChainCheck::Refused(refusal) if refusal.code == Code::ChainForked),
            "{linked:?}"
        );
    }
}

/// A worker that joined again with another key begins another chain.
#[test]
fn a_chain_is_that_of_a_key() {
    let (mut intake, mut member) = scene();
    let own = subject(&member, "stopped");
    let tail =
        candidate(intake.check_message(NOW, &own, &stopped(&mut member).encode())).as_tail(1);
    let mut again = Member {
        emitter: Member::new(2).emitter,
        ..member
    };
    intake.enrol(enrolment(&again));
    let first = candidate(intake.check_message(NOW, &own, &stopped(&mut again).encode()));
    assert_eq!(first.check_chain(Some(&tail)), ChainCheck::Follows);
    let second = candidate(intake.check_message(NOW, &own, &stopped(&mut again).encode()));
    assert!(
        matches!(second.check_chain(Some(&tail)), ChainCheck::Refused(_)),
        "its own beginning is not recorded"
    );
    assert_eq!(
        second.check_chain(Some(&first.as_tail(2))),
        ChainCheck::Follows
    );
}

/// The key is right, but this worker may not emit such an event.
#[test]
fn a_body_that_names_another_key_or_run_or_is_of_the_ledger_is_refused() {
    let (mut intake, member) = scene();
    let stranger = Member::new(2);
    intake.enrol(enrolment(&stranger));
    let event = |event: WorkerEvent| Event::Worker(event);
    let right = EventBody {
        v: schemas::V,
        known: None,
        emitter: member.emitter.public.clone(),
        sequence: ChainSequence(0),
        previous: None,
        time: NOW,
        run: Some(run()),
        event: event(WorkerEvent::Stopped {
            reason: "x".to_owned(),
        }),
    };
    let mut hear = |kind: &str, body: &EventBody| {
        intake.check_message(
            NOW,
            &subject(&member, kind),
            &member.emitter.sign(DOMAIN, body.encode()).encode(),
        )
    };
    candidate(hear("stopped", &right));
    let wrong = [
        (
            "stopped",
            EventBody {
                emitter: stranger.emitter.public,
                ..right.clone()
            },
        ),
        (
            "stopped",
            EventBody {
                run: Some("another".parse().expect("a name")),
                ..right.clone()
            },
        ),
        (
            "stopped",
            EventBody {
                run: None,
                ..right.clone()
            },
        ),
        (
            "run-completed",
            EventBody {
                event: Event::Ledger(LedgerEvent::RunCompleted),
                ..right.clone()
            },
        ),
        ("joined", right),
    ];
    for (kind, body) in wrong {
        assert_eq!(
            refused(hear(kind, &body)),
            Code::EventRefused,
            "{kind} {body:?}"
        );
    }
    let nonsense = member.emitter.sign(DOMAIN, b"no body".to_vec());
    assert_eq!(
        refused(intake.check_message(NOW, &subject(&member, "stopped"), &nonsense.encode())),
        Code::EventRefused
    );
}

#[test]
fn only_what_the_worker_signed_with_the_key_that_the_ledger_names_is_taken() {
    let (mut intake, mut member) = scene();
    let event = stopped(&mut member);
    let own = subject(&member, "stopped");
    let mut stranger = Member::new(2);
    let strangers = stopped(&mut stranger);
    // The ledger names a worker that joined a moment ago very soon.
    assert_eq!(
        refused(intake.check_message(NOW, &subject(&stranger, "stopped"), &strangers.encode())),
        Code::EventLater
    );
    intake.enrol(enrolment(&stranger));
    candidate(intake.check_message(NOW, &subject(&stranger, "stopped"), &strangers.encode()));
    let mut altered = event.clone();
    altered.body[20] ^= 1;
    let elsewhere = Member::new(1).emitter.speak(
        "another domain",
        NOW.get(),
        Some(run()),
        Event::Worker(WorkerEvent::Stopped {
            reason: "x".to_owned(),
        }),
    );
    for (subject, payload) in [
        (&own, strangers.encode()),
        (&own, altered.encode()),
        (&own, elsewhere.encode()),
        (&own, event.body.to_vec()),
        (&own, Vec::new()),
        (&own, vec![7; 100_000]),
        (&subject(&member, "joined"), event.encode()),
    ] {
        assert_eq!(
            refused(intake.check_message(NOW, subject, &payload)),
            Code::EventRefused
        );
    }
    // An answer of the coordinator is no message of a worker, although a worker can have it sent
    // here.
    let answer = [&[0xC1][..], &event.encode()].concat();
    assert_eq!(
        intake.check_message(NOW, &own, &answer),
        MessageCheck::Answer
    );
    for strange in [
        "diloco.event.x",
        "diloco.record.a.b.c.d",
        "$JS.API.INFO",
        "",
    ] {
        assert_eq!(
            intake.check_message(NOW, strange, &event.encode()),
            MessageCheck::Nobody
        );
    }
}

#[test]
fn a_flood_is_bounded_by_worker_before_anything_is_parsed_and_ends_by_itself() {
    let (mut intake, mut member) = scene();
    let mut other = Member::new(2);
    intake.enrol(enrolment(&other));
    let own = subject(&member, "stopped");
    // Messages have a limit by number and by length, signed or not.
    let event = stopped(&mut member).encode();
    for payload in [vec![7], event.clone(), vec![7; 200_000]] {
        let (mut intake, count) = (Intake::new(DOMAIN), FLOOD);
        intake.enrol(enrolment(&member));
        let taken = (0..count)
            .filter(|_| {
                !matches!(
                    intake.check_message(NOW, &own, &payload),
                    MessageCheck::Over(_)
                )
            })
            .count() as u64;
        assert!(taken <= audit_core::EVENTS_BURST, "{taken} of {count}");
    }
    for _ in 0..FLOOD {
        intake.check_message(NOW, &own, &event);
    }
    assert_eq!(
        intake.check_message(NOW, &own, &event),
        MessageCheck::Over(member.worker.clone())
    );
    // Other workers notice nothing, and a while later this worker is heard again.
    let others = stopped(&mut other).encode();
    candidate(intake.check_message(NOW, &subject(&other, "stopped"), &others));
    candidate(intake.check_message(UnixMillis(NOW.get() + 1000), &own, &event));
    // Answers that are sent here count against nobody.
    let (mut intake, member) = scene();
    for _ in 0..FLOOD {
        assert_eq!(
            intake.check_message(NOW, &own, &[0xC1, 1]),
            MessageCheck::Answer
        );
    }
    candidate(intake.check_message(NOW, &subject(&member, "stopped"), &event));
}

/// The longest event that is accepted.
fn long(member: &mut Member) -> Vec<u8> {
    let event = WorkerEvent::Stopped {
        reason: "x".repeat(15_000),
    };
    member
        .emitter
        .speak(DOMAIN, NOW.get(), Some(run()), Event::Worker(event))
        .encode()
}

#[test]
fn what_one_worker_has_recorded_is_bounded_over_days() {
    let (mut intake, mut member) = scene();
    let (own, event) = (subject(&member, "stopped"), long(&mut member));
    let bytes = event.len() as u64;
    // Events come as fast as they are accepted, for 1,000 seconds and then for two days.
    let (mut now, mut taken) = (NOW, 0);
    let mut hear = |now: UnixMillis| match intake.check_message(now, &own, &event) {
        MessageCheck::Candidate(_) => bytes,
        MessageCheck::Over(_) => 0,
        other => panic!("neither taken nor over: {other:?}"),
    };
    for _ in 0..2000 {
        now = UnixMillis(now.get() + 500);
        taken += hear(now);
    }
    assert!(
        taken > RECORDED_BURST / 2,
        "{taken} bytes: it is the slow bound that is met"
    );
    assert!(
        taken <= RECORDED_BURST + 1000 * RECORDED_PER_SECOND,
        "{taken} bytes"
    );
    for _ in 0..2880 {
        now = UnixMillis(now.get() + 60_000);
        taken += hear(now) + hear(now);
    }
    let seconds = NOW.until(now).get() / 1000;
    assert!(
        taken <= RECORDED_BURST + seconds * RECORDED_PER_SECOND,
        "{taken} bytes in {seconds} s"
    );
    assert!(
        taken > seconds * RECORDED_PER_SECOND / 2,
        "it is heard again, slowly"
    );
}

#[test]
fn what_is_refused_is_not_counted_as_recorded() {
    let (mut intake, mut member) = scene();
    let (own, event) = (subject(&member, "stopped"), long(&mut member));
    let stranger = long(&mut Member::new(2));
    let mut now = NOW;
    for _ in 0..2000 {
        now = UnixMillis(now.get() + 1000);
        assert_eq!(
            refused(intake.check_message(now, &own, &stranger)),
            Code::EventRefused
        );
    }
    candidate(intake.check_message(now, &own, &event));
}

#[test]
fn an_honest_life_of_a_thousand_units_is_heard() {
    let (mut intake, mut member) = scene();
    let own = subject(&member, "stopped");
    let event = stopped(&mut member).encode();
    let mut now = NOW;
    for _ in 0..1000 {
        // The rate of the fastest units in tests.
        now = UnixMillis(now.get() + 100);
        for _ in 0..2 {
            candidate(intake.check_message(now, &own, &event));
        }
    }
}

#[test]
fn a_worker_that_was_removed_says_nothing_any_more() {
    let (mut intake, mut member) = scene();
    let mut other = Member::new(2);
    intake.learn(Notice::Enrolled(enrolment(&other)));
    let own = subject(&member, "stopped");
    let event = stopped(&mut member).encode();
    candidate(intake.check_message(NOW, &own, &event));
    intake.learn(Notice::Removed {
        run: "another".parse().expect("a name"),
        worker: member.worker.clone(),
    });
    candidate(intake.check_message(NOW, &own, &event));
    intake.learn(Notice::Removed {
        run: run(),
        worker: member.worker.clone(),
    });
    // The refusal is final, so the worker need not ask again.
    let heard = intake.check_message(NOW, &own, &event);
    assert!(
        matches!(&heard, MessageCheck::Refused(refusal) if refusal.detail.contains("was removed from run")),
        "{heard:?}"
    );
    assert_eq!(refused(heard), Code::EventRefused);
    let others = stopped(&mut other).encode();
    candidate(intake.check_message(NOW, &subject(&other, "stopped"), &others));
    // It stays removed, whatever operators say of it then.
    let (out, again) = quarantine(&member);
    intake.learn(out);
    let heard = intake.check_message(NOW, &own, &event);
    assert_eq!(refused(heard), Code::EventRefused);
    intake.learn(again);
    let heard = intake.check_message(NOW, &own, &event);
    assert_eq!(refused(heard), Code::EventRefused);
}

/// The notices of a worker's quarantine and of its end.
fn quarantine(member: &Member) -> (Notice, Notice) {
    let (run, worker) = (run(), member.worker.clone());
    let out = Notice::ShutOut {
        run: run.clone(),
        worker: worker.clone(),
    };
    (out, Notice::Readmitted { run, worker })
}

/// The code is not one that makes a worker give an event up: when the quarantine was a mistake, the
/// chain goes on with the event that was refused.
#[test]
fn tl_31_a_chain_goes_on_after_a_quarantine_with_the_event_that_was_refused() {
    let (mut intake, mut member) = scene();
    let mut other = Member::new(2);
    let (own, others) = (subject(&member, "stopped"), subject(&other, "stopped"));
    let events: Vec<SignedEvent> = (0..3).map(|_| stopped(&mut member)).collect();
    let first = candidate(intake.check_message(NOW, &own, &events[0].encode()));
    let (out, again) = quarantine(&member);
    intake.learn(out);
    for _ in 0..2 {
        let heard = intake.check_message(NOW, &own, &events[1].encode());
        assert_eq!(refused(heard), Code::WorkerQuarantined);
    }
    assert!(!matches!(
        Code::WorkerQuarantined.class(),
        schemas::Class::Evidence
    ));
    // Of one that never joined too; another worker is not meant.
    let (stranger, _) = quarantine(&other);
    intake.learn(stranger);
    let theirs = stopped(&mut other).encode();
    let heard = intake.check_message(NOW, &others, &theirs);
    assert_eq!(refused(heard), Code::WorkerQuarantined);
    intake.learn(again);
    let mut tail = first.as_tail(1);
    for (stream, event) in (2..).zip(&events[1..]) {
        let next = candidate(intake.check_message(NOW, &own, &event.encode()));
        assert_eq!(next.check_chain(Some(&tail)), ChainCheck::Follows);
        tail = next.as_tail(stream);
    }
    let heard = intake.check_message(NOW, &others, &theirs);
    assert_eq!(refused(heard), Code::WorkerQuarantined);
}

/// A chain is recorded only in the stream of its tenant; the readers' copy is made from that
/// stream.
#[test]
fn a_chain_of_which_the_copy_shows_more_than_its_stream_has_was_lost() {
    let (mut intake, mut member) = scene();
    let events: Vec<SignedEvent> = (0..4).map(|_| stopped(&mut member)).collect();
    let hear = |intake: &mut Intake, at: usize| {
        candidate(intake.check_message(NOW, &subject(&member, "stopped"), &events[at].encode()))
    };
    let tail = |at: usize| Tail::read(1 + at as u64, &events[at].encode()).expect("an event");
    let third = hear(&mut intake, 3);
    assert_eq!(
        intake.lost(&third, None),
        None,
        "a copy that is only begun shows nothing"
    );
    let key = member.emitter.public.clone();
    intake.learn(Notice::Reached {
        key: key.clone(),
        next: schemas::ChainSequence(3),
    });
    for before in [None, Some(tail(0)), Some(tail(1))] {
        let lost = intake
            .lost(&third, before.as_ref())
            .expect("event 2 is in the copy");
        assert!(
            lost.code == Code::EventsLost && lost.detail.contains("event 3"),
            "{lost}"
        );
    }
    assert_eq!(intake.lost(&third, Some(&tail(2))), None, "whole");
    assert_eq!(
        intake.lost(&third, Some(&tail(3))),
        None,
        "the copy comes after"
    );
    // An earlier chain with another key does not count for this one.
    let other = Tail {
        emitter: Member::new(2).emitter.public,
        ..tail(2)
    };
    assert!(intake.lost(&third, Some(&other)).is_some());
    intake.learn(Notice::Reached {
        key,
        next: schemas::ChainSequence(0),
    });
    assert_eq!(intake.lost(&third, None), None);
}
