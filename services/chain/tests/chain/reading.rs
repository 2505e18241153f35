//! One chain, written and followed.

use std::collections::BTreeMap;

use chain::{Claimed, End, Judgement, Misplaced, Proof, Reader, Relation, Signatures};
use identity::AuditKey;
use proptest::prelude::*;
use schemas::event::{Event, LedgerEvent, WorkerEvent};
use schemas::security::SecurityEvent;
use schemas::subject::{Incoming, ledger_subject, record_subject, security_subject};
use schemas::{AccountId, ChainSequence, Digest, Message as _, RunId, UnixMillis, WorkerId};

const DOMAIN: &str = "the domain";

/// A stored message.
type Stored = (String, Vec<u8>);

fn run() -> RunId {
    "demo".parse().expect("a name")
}

fn stopped(reason: &str) -> LedgerEvent {
    LedgerEvent::CoordinatorStopped {
        reason: reason.to_owned(),
    }
}

/// Writes the next ledger event and stores it under its subject.
fn write(key: &AuditKey, end: &mut End, run: Option<&RunId>, event: LedgerEvent) -> Stored {
    let subject = ledger_subject(run, key.public(), event.kind());
    let draft = end.write(key.public(), UnixMillis(7), run, Event::Ledger(event));
    *end = draft.end();
    (subject, key.sign_event(DOMAIN, draft.body).encode())
}

fn judge(reader: &Reader, stored: &Stored) -> Judgement {
    reader.judge(&stored.0, &stored.1)
}

/// Follows all stored messages.
fn follow(reader: &mut Reader, stored: &[Stored]) {
    for message in stored {
        match judge(reader, message) {
            Judgement::Next { body, digest } => reader.extend(digest, body.event.next_emitter()),
            other => panic!("{message:?} is {other:?}"),
        }
    }
}

#[test]
fn a_strict_reader_tells_the_next_a_copy_a_stranger_and_a_fork_apart() {
    let (key, stranger) = (AuditKey::generate(), AuditKey::generate());
    let (mut end, mut reader) = (
        End::default(),
        Reader::new(DOMAIN, vec![key.public().clone()]),
    );
    let stored: Vec<Stored> = ["a", "b", "c"]
        .map(|reason| write(&key, &mut end, Some(&run()), stopped(reason)))
        .into();
    follow(&mut reader, &stored);
    assert_eq!(reader.end(), end);
    for copy in &stored {
        assert!(matches!(judge(&reader, copy), Judgement::Repeated));
    }
    let mut theirs = end;
    let next = write(&stranger, &mut theirs, None, stopped("not ours"));
    assert!(matches!(judge(&reader, &next), Judgement::Foreign(_)));
    let own = write(&key, &mut end.clone(), None, stopped("ours"));
    let moved = (
        ledger_subject(Some(&run()), key.public(), "coordinator-stopped"),
        own.1.clone(),
    );
    match judge(&reader, &moved) {
        Judgement::Foreign(reason) => {
            assert!(reason.contains("the run in the subject"), "{reason}")
        }
        other => panic!("{other:?}"),
    }
    let other_domain = Reader::new("another", vec![key.public().clone()]);
    assert!(matches!(
        judge(&other_domain, &stored[0]),
        Judgement::Foreign(_)
    ));
    for (at, said) in [
        (
            End {
                next: ChainSequence(9),
                ..end
            },
            "event 3 is expected",
        ),
        (
            End {
                next: ChainSequence(1),
                ..end
            },
            "another event",
        ),
        (
            End {
                previous: Some(Digest::of(b"x")),
                ..end
            },
            "follows on",
        ),
    ] {
        let forked = write(&key, &mut at.clone(), None, stopped("forked"));
        match judge(&reader, &forked) {
            Judgement::Broken(reason) => assert!(reason.contains(said), "{reason}"),
            other => panic!("{said}: {other:?}"),
        }
    }
    assert!(matches!(judge(&reader, &own), Judgement::Next { .. }));
}

#[test]
fn tl_28_one_key_at_a_time_writes_the_chain_and_each_names_a_later_one() {
    let keys = [(); 3].map(|()| AuditKey::generate());
    let [first, second, third] = &keys;
    let known: Vec<_> = keys.iter().map(|key| key.public().clone()).collect();
    let names = |key: &AuditKey| LedgerEvent::EmitterSucceeded {
        next: key.public().clone(),
    };
    let mut reader = Reader::new(DOMAIN, known);
    let mut end = End::default();
    assert_eq!(reader.emitter(), first.public());
    let early = write(second, &mut end.clone(), None, stopped("early"));
    assert!(matches!(judge(&reader, &early), Judgement::Foreign(_)));
    let begun = write(first, &mut end, None, stopped("a"));
    follow(&mut reader, std::slice::from_ref(&begun));
    // Neither itself nor a stranger, which a newer list of keys may have.
    let named = write(first, &mut end.clone(), None, names(first));
    assert!(matches!(judge(&reader, &named), Judgement::Broken(_)));
    let stranger = AuditKey::generate();
    let named = write(first, &mut end.clone(), None, names(&stranger));
    match judge(&reader, &named) {
        Judgement::Unknown(next) => assert_eq!(next, *stranger.public()),
        other => panic!("{other:?}"),
    }
    let over = write(first, &mut end.clone(), None, stopped("late"));
    let named = write(first, &mut end, None, names(second));
    follow(&mut reader, std::slice::from_ref(&named));
    assert_eq!(reader.emitter(), second.public());
    // The old key's events are known, and no more are taken: neither the next, nor another in the
    // place of one.
    for copy in [&begun, &named] {
        assert!(matches!(judge(&reader, copy), Judgement::Repeated));
    }
    let late = write(first, &mut end.clone(), None, stopped("late"));
    let nonsense = first.sign_event(DOMAIN, b"nonsense".to_vec()).encode();
    let nonsense = (over.0.clone(), nonsense);
    for stolen in [&over, &late, &nonsense] {
        let Judgement::Foreign(reason) = judge(&reader, stolen) else {
            panic!("the old key is no key of the ledger now");
        };
        let [signer, emitter] = [first, second].map(|key| key.public().as_str());
        assert!(
            reason.starts_with(signer) && reason.contains(emitter),
            "{reason}"
        );
    }
    let unnamed = write(third, &mut end.clone(), None, stopped("unnamed"));
    assert!(matches!(judge(&reader, &unnamed), Judgement::Foreign(_)));
    let back = write(second, &mut end.clone(), None, names(first));
    assert!(matches!(judge(&reader, &back), Judgement::Broken(_)));
    let on = write(second, &mut end, None, stopped("b"));
    follow(&mut reader, std::slice::from_ref(&on));
    assert_eq!(reader.end(), end);
    // From a later place on, the key of that place goes on.
    let mut later = reader.clone();
    later.begin_anew();
    assert_eq!(
        (later.end(), later.emitter()),
        (End::default(), first.public())
    );
    later.continue_from(end, second.public().clone());
    let third_named = write(second, &mut end, None, names(third));
    follow(&mut later, std::slice::from_ref(&third_named));
    assert_eq!(later.emitter(), third.public());
}

/// With the word of the trust bundle, a ledger in which the old key goes on is another one,
/// whatever its stream leaves out.
#[test]
fn tl_28_a_key_that_has_ended_goes_on_in_no_ledger() {
    let [old, new] = [(); 2].map(|()| AuditKey::generate());
    let known = vec![old.public().clone(), new.public().clone()];
    let mut end = End::default();
    let begun = write(&old, &mut end, None, stopped("a"));
    let next = new.public().clone();
    let names = || LedgerEvent::EmitterSucceeded { next: next.clone() };
    let early = write(&old, &mut end.clone(), None, names());
    let second = write(&old, &mut end, None, stopped("b"));
    let goes_on = write(&old, &mut end.clone(), None, stopped("c"));
    let named = write(&old, &mut end, None, names());
    let ended = BTreeMap::from([(old.public().clone(), ChainSequence(2))]);
    let mut reader = Reader::new(DOMAIN, known.clone()).ending(ended);
    follow(&mut reader, std::slice::from_ref(&begun));
    assert!(matches!(judge(&reader, &early), Judgement::Broken(_)));
    follow(&mut reader, std::slice::from_ref(&second));
    assert!(matches!(judge(&reader, &goes_on), Judgement::Broken(_)));
    // Nobody told this one.
    let mut unaware = Reader::new(DOMAIN, known);
    follow(&mut unaware, &[begun, second]);
    assert!(matches!(judge(&unaware, &goes_on), Judgement::Next { .. }));
    follow(&mut reader, std::slice::from_ref(&named));
    let later = write(&new, &mut end, None, stopped("d"));
    follow(&mut reader, std::slice::from_ref(&later));
}

/// A body that its own key signed and that is no event is evidence, whatever its content.
#[test]
fn a_signed_body_that_is_no_event_breaks_the_chain() {
    let key = AuditKey::generate();
    let reader = Reader::new(DOMAIN, vec![key.public().clone()]);
    let subject = ledger_subject(None, key.public(), "coordinator-stopped");
    let signed = key.sign_event(DOMAIN, b"nonsense".to_vec()).encode();
    assert!(matches!(
        reader.judge(&subject, &signed),
        Judgement::Broken(_)
    ));
}

/// Long enough for a key to get its multiples on the way, and with everything that a stream can
/// hold: what is proved together is proved as it is alone.
#[test]
fn messages_that_are_proved_together_come_to_what_each_comes_to_alone() {
    let (key, stranger) = (AuditKey::generate(), AuditKey::generate());
    let (mut end, mut stored) = (End::default(), Vec::<Stored>::new());
    for number in 0..200 {
        let (subject, mut bytes) = write(&key, &mut end, None, stopped(&format!("{number}")));
        match number % 8 {
            1 => bytes.truncate(bytes.len() / 2),
            2 => *bytes.last_mut().expect("it is not empty") ^= 1,
            3 => bytes = key.sign_event(DOMAIN, b"nonsense".to_vec()).encode(),
            4 => bytes = key.sign_event("another", b"nonsense".to_vec()).encode(),
            5 => bytes = stranger.sign_event(DOMAIN, bytes).encode(),
            _ => {}
        }
        stored.push((subject, bytes));
    }
    stored.push(("diloco.elsewhere".to_owned(), stored[0].1.clone()));
    let together = Reader::new(DOMAIN, vec![key.public().clone()]);
    let together = together.writers();
    let told = |proof: &Proof| format!("{proof:?}");
    for size in [1, 7, 64, 1000] {
        for part in stored.chunks(size) {
            let messages = part.iter().map(|(subject, bytes)| (&**subject, &**bytes));
            let proofs: Vec<String> = together.prove_all(messages).iter().map(told).collect();
            // A reader of its own has no multiples yet.
            let alone = Reader::new(DOMAIN, vec![key.public().clone()]);
            let prove = |(subject, bytes): &Stored| told(&alone.writers().prove(subject, bytes));
            assert_eq!(proofs, part.iter().map(prove).collect::<Vec<_>>());
        }
    }
    let messages = stored.iter().map(|(subject, bytes)| (&**subject, &**bytes));
    let proofs = together.prove_all(messages);
    let count = |is: fn(&Proof) -> bool| proofs.iter().filter(|proof| is(proof)).count();
    assert_eq!(count(|proof| matches!(proof, Proof::Event(_))), 75);
    assert_eq!(count(|proof| matches!(proof, Proof::Broken(..))), 25);
}

#[test]
fn every_name_in_a_subject_must_stand_in_the_body() {
    let (key, other) = (AuditKey::generate(), AuditKey::generate());
    let stored = write(&key, &mut End::default(), Some(&run()), stopped("a"));
    let entry = Claimed::read(&stored.1)
        .expect("it reads")
        .open(&Signatures::new(DOMAIN, []));
    let entry = entry.expect("it verifies");
    let subject = |text: String| text.parse().expect("a subject");
    let (another, kind) = ("another".parse().expect("a name"), "coordinator-stopped");
    assert_eq!(entry.stands_under(&subject(stored.0)), Ok(()));
    for (under, misplaced) in [
        (
            ledger_subject(Some(&another), key.public(), kind),
            Misplaced::Run,
        ),
        (
            ledger_subject(Some(&run()), other.public(), kind),
            Misplaced::Emitter {
                subject: other.public().clone(),
                body: key.public().clone(),
            },
        ),
        (
            ledger_subject(Some(&run()), key.public(), "run-completed"),
            Misplaced::Kind {
                subject: "run-completed".to_owned(),
                body: kind,
            },
        ),
        (
            record_subject(
                &format!("A{}", "A".repeat(55)).parse().expect("a key"),
                &run(),
                &format!("U{}", "A".repeat(55)).parse().expect("a key"),
                kind,
            ),
            Misplaced::Family { kind },
        ),
    ] {
        assert_eq!(entry.stands_under(&subject(under)), Err(misplaced));
    }
}

/// A worker's event may have the subject to which the worker publishes, and the one under which it
/// is recorded.
#[test]
fn an_event_of_a_worker_stands_under_both_of_its_subjects() {
    let (key, run, other) = (
        AuditKey::generate(),
        run(),
        "another".parse().expect("a name"),
    );
    let account: AccountId = format!("A{}", "A".repeat(55)).parse().expect("a key");
    let worker: WorkerId = format!("U{}", "A".repeat(55)).parse().expect("a key");
    let event = Event::Worker(WorkerEvent::Stopped {
        reason: "x".to_owned(),
    });
    let draft = End::default().write(key.public(), UnixMillis(1), Some(&run), event);
    let entry = Claimed::read(&key.sign_event(DOMAIN, draft.body).encode())
        .and_then(Claimed::unchecked)
        .expect("it was just written");
    let published = |run: &RunId, kind: &str| Incoming::WorkerEvent {
        account: account.clone(),
        run: run.clone(),
        worker: worker.clone(),
        kind: kind.to_owned(),
    };
    let recorded = |run: &RunId, kind: &str| {
        let subject = record_subject(&account, run, &worker, kind);
        subject.parse().expect("a subject")
    };
    let kind = "stopped";
    let both = |run: &RunId, kind: &str| [published(run, kind), recorded(run, kind)];
    for right in both(&run, kind) {
        assert_eq!(entry.stands_under(&right), Ok(()));
    }
    for moved in both(&other, kind) {
        assert_eq!(entry.stands_under(&moved), Err(Misplaced::Run));
    }
    for moved in both(&run, "joined") {
        let moved = entry.stands_under(&moved);
        assert!(matches!(moved, Err(Misplaced::Kind { .. })), "{moved:?}");
    }
}

/// The events of the audit service, in a stream of their own and about no run.
#[test]
fn an_event_of_the_sentry_stands_under_its_emitter_and_kind_alone() {
    let (key, other) = (AuditKey::generate(), AuditKey::generate());
    let entry = |run: Option<&RunId>| {
        let event = Event::Security(SecurityEvent::SentryStopped);
        let draft = End::default().write(key.public(), UnixMillis(1), run, event);
        Claimed::read(&key.sign_event(DOMAIN, draft.body).encode())
            .and_then(Claimed::unchecked)
            .expect("it was just written")
    };
    let under = |emitter: &AuditKey, kind: &str| -> Incoming {
        let subject = security_subject(emitter.public(), kind);
        subject.parse().expect("a subject")
    };
    let (own, kind) = (entry(None), "sentry-stopped");
    assert_eq!(own.stands_under(&under(&key, kind)), Ok(()));
    let moved = own.stands_under(&under(&other, kind));
    assert!(matches!(moved, Err(Misplaced::Emitter { .. })), "{moved:?}");
    let moved = own.stands_under(&under(&key, "sentry-started"));
    assert!(matches!(moved, Err(Misplaced::Kind { .. })), "{moved:?}");
    assert_eq!(
        entry(Some(&run())).stands_under(&under(&key, kind)),
        Err(Misplaced::Run)
    );
    let ledger = ledger_subject(None, key.public(), kind).parse();
    let moved = own.stands_under(&ledger.expect("a subject"));
    assert_eq!(moved, Err(Misplaced::Family { kind }));
}

/// A reader that continues from a checkpoint has not read the events before it.
#[test]
fn a_reader_that_begins_behind_an_event_takes_the_next_and_passes_those_before() {
    let key = AuditKey::generate();
    let (mut end, mut ends) = (End::default(), Vec::new());
    let stored: Vec<Stored> = ["a", "b", "c", "d"]
        .map(|reason| {
            let stored = write(&key, &mut end, None, stopped(reason));
            ends.push(end);
            stored
        })
        .into();
    let mut reader = Reader::new(DOMAIN, vec![key.public().clone()]);
    follow(&mut reader, &stored[..1]);
    reader.continue_from(ends[2], key.public().clone());
    assert_eq!(reader.end(), ends[2]);
    for (at, message) in stored[..2].iter().enumerate() {
        match judge(&reader, message) {
            Judgement::Before { sequence, .. } => assert_eq!(sequence, ChainSequence(at as u64)),
            other => panic!("{at}: {other:?}"),
        }
    }
    assert!(matches!(judge(&reader, &stored[2]), Judgement::Repeated));
    follow(&mut reader, &stored[3..]);
    assert_eq!(reader.end(), end);
}

/// A reader that has only the end recognises a copy of the last event, and of no earlier one.
#[test]
fn an_end_alone_knows_its_last_event() {
    let key = AuditKey::generate();
    let stopped = || {
        Event::Worker(WorkerEvent::Stopped {
            reason: "x".to_owned(),
        })
    };
    let write = |end: End| end.write(key.public(), UnixMillis(1), None, stopped());
    let first = write(End::default());
    let second = write(first.end());
    let end = second.end();
    let relation =
        |sequence, previous, digest| end.relation(ChainSequence(sequence), previous, digest);
    assert_eq!(
        relation(1, Some(first.digest), second.digest),
        Relation::Repeated
    );
    assert_eq!(
        relation(1, Some(first.digest), Digest::of(b"x")),
        Relation::Taken
    );
    let next = ChainSequence(2);
    assert_eq!(relation(0, None, first.digest), Relation::Passed { next });
    assert_eq!(
        relation(4, None, first.digest),
        Relation::Gap { from: next }
    );
    assert_eq!(
        relation(2, Some(second.digest), first.digest),
        Relation::Next
    );
    let expected = Some(second.digest);
    assert_eq!(
        relation(2, None, first.digest),
        Relation::OtherPast {
            named: None,
            expected
        }
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any sequence of events of one emitter reads back as written, in order. A message with one
    /// changed bit is no event of the chain.
    #[test]
    fn what_is_written_reads_back_and_nothing_else(
        reasons in prop::collection::vec("[a-z]{0,20}", 1..6),
        at in any::<prop::sample::Index>(),
        bit in any::<prop::sample::Index>(),
    ) {
        let key = AuditKey::generate();
        let mut end = End::default();
        let stored: Vec<Stored> = reasons
            .iter()
            .map(|reason| write(&key, &mut end, None, stopped(reason)))
            .collect();
        let mut reader = Reader::new(DOMAIN, vec![key.public().clone()]);
        let at = at.index(stored.len());
        follow(&mut reader, &stored[..at]);
        let (subject, mut bytes) = stored[at].clone();
        let bit = bit.index(8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
        let judged = reader.judge(&subject, &bytes);
        prop_assert!(matches!(judged, Judgement::Foreign(_)), "bit {}: {:?}", bit, judged);
        follow(&mut reader, &stored[at..]);
        prop_assert_eq!(reader.end(), end);
    }
}
