//! The ledger goes on under another key: one chain, and nothing of the old key counts afterwards.

use std::collections::BTreeMap;

use audit_core::log::{LogFault, Trusted, check_known};
use audit_core::{Auditor, Verdict};
use schemas::event::{Event, LedgerEvent, SignedEvent, WorkerEvent};
use schemas::head::KnownHead;
use schemas::subject::ledger_subject;
use schemas::{ChainSequence, Code, PublicKey};
use serde_bytes::ByteArray;

use crate::log::{DOMAIN, Emitter, Log, Member, PLAN, run};
use crate::tree;

const NEXT: u8 = 90;
const LATER: u8 = 91;

/// The auditor of a bundle with these keys, after the whole record.
fn audited(log: &Log, keys: &[&PublicKey]) -> (Auditor, Vec<Verdict>) {
    let mut auditor = Auditor::new(DOMAIN, keys.iter().copied().cloned());
    let mut verdicts = Vec::new();
    for record in &log.records {
        verdicts.extend(auditor.observe(record).iter().map(|one| one.verdict));
    }
    (auditor, verdicts)
}

fn names(auditor: &Auditor) -> Vec<&'static str> {
    let found = auditor.findings().iter();
    found.map(|found| found.finding.name()).collect()
}

fn stopped() -> LedgerEvent {
    LedgerEvent::CoordinatorStopped {
        reason: "a test".to_owned(),
    }
}

/// Signs an event of the ledger with a key, and puts it into the record.
fn put(log: &mut Log, emitter: &mut Emitter, event: LedgerEvent) {
    let subject = ledger_subject(None, &emitter.public, event.kind());
    let time = 1_700_000_000_000;
    let said = emitter.speak(DOMAIN, time, None, Event::Ledger(event));
    log.push(subject, &said);
}

#[test]
fn tl_28_a_ledger_that_goes_on_under_the_next_key_verifies_as_one_chain() {
    let mut log = Log::write(&PLAN);
    let old = log.succeed(NEXT);
    log.ledger(None, stopped());
    let keys = [&old.public, &log.coordinator.public];
    let (auditor, verdicts) = audited(&log, &keys);
    assert_eq!(names(&auditor), Vec::<&str>::new());
    assert!(verdicts.iter().all(|one| *one == Verdict::Verified));
    assert_eq!(auditor.emitter(), Some(&log.coordinator.public));
    let last = auditor.state().events() - 2;
    let ends = BTreeMap::from([(old.public.clone(), ChainSequence(last))]);
    assert_eq!(*auditor.succeeded(), ends);
    let whole = auditor.summary();
    let of = |key: &PublicKey| {
        let mut emitters = whole.emitters.iter();
        let found = emitters.find(|one| one.key == *key).expect("it spoke");
        (found.events, found.whole)
    };
    assert_eq!(of(&log.coordinator.public), (1, true));
    assert_eq!(of(&old.public), (last + 1, true));
}

#[test]
fn tl_28_what_the_old_key_signs_after_its_last_event_is_foreign() {
    let mut log = Log::write(&PLAN);
    let mut early = log.coordinator.clone();
    let mut old = log.succeed(NEXT);
    log.ledger(None, stopped());
    let before = log.records.len();
    let copy = log.records[0].clone();
    put(&mut log, &mut old, stopped());
    put(&mut log, &mut early, stopped());
    let next = old.public.clone();
    put(&mut log, &mut old, LedgerEvent::EmitterSucceeded { next });
    let subject = ledger_subject(None, &old.public, "coordinator-stopped");
    let nonsense = old.sign(DOMAIN, b"nonsense".to_vec());
    log.push(subject, &nonsense);
    // Under a worker's name, as with the recorder's credentials.
    let mut usurper = Member::new(56);
    usurper.emitter = old.clone();
    let reason = "a test".to_owned();
    log.worker(&mut usurper, WorkerEvent::Stopped { reason });
    let crate::log::Log { records, .. } = &mut log;
    let at = records
        .last()
        .expect("it was written")
        .stream_sequence
        .next();
    records.push(audit_core::Record {
        stream_sequence: at,
        ..copy
    });
    log.ledger(None, stopped());
    let keys = [&old.public, &log.coordinator.public];
    let (auditor, verdicts) = audited(&log, &keys);
    let expected = [
        Verdict::Foreign,
        Verdict::Foreign,
        Verdict::Foreign,
        Verdict::Foreign,
        Verdict::Foreign,
        Verdict::Repeated,
        Verdict::Verified,
    ];
    assert_eq!(verdicts[before..], expected);
    assert_eq!(names(&auditor), ["foreign"; 5]);
    assert!(auditor.evidence().is_none());
    assert_eq!(auditor.emitter(), Some(&log.coordinator.public));
}

/// Somebody who has a former key and the broker cuts the stream, and names the true successor in
/// another place. That key has signed nothing behind it.
#[test]
fn tl_28_a_former_key_alone_does_not_say_where_it_has_ended() {
    let mut log = Log::write(&PLAN);
    let first = log.coordinator.public.clone();
    let next = Emitter::new(NEXT).public;
    let keys = [&first, &next];
    let vouched = |log: &Log| audited(log, &keys).0.vouched().cloned();
    assert_eq!(vouched(&log), Some(BTreeMap::new()), "nothing has ended");
    let mut cut = Log {
        domain: log.domain.clone(),
        coordinator: log.coordinator.clone(),
        records: log.records.clone(),
    };
    let mut thief = cut.succeed(NEXT);
    assert_eq!(names(&audited(&cut, &keys).0), Vec::<&str>::new());
    assert_eq!(vouched(&cut), None, "its successor has said nothing");
    put(&mut cut, &mut thief, stopped());
    assert_eq!(vouched(&cut), None, "it says nothing for its successor");

    // The true ledger goes on before that. What the successor has signed there follows here on
    // nothing.
    log.ledger(None, stopped());
    let old = log.succeed(NEXT);
    assert_eq!(vouched(&log), None);
    log.ledger(None, stopped());
    let ends = BTreeMap::from([(old.public, ChainSequence(old.next - 1))]);
    assert_eq!(vouched(&log), Some(ends));
    let of_next = log.records.last().expect("it was written").clone();
    let at = cut.records.last().expect("it was written").stream_sequence;
    cut.records.push(audit_core::Record {
        stream_sequence: at.next(),
        ..of_next
    });
    assert_eq!(vouched(&cut), None, "it is no event of this ledger");
    assert!(audited(&cut, &keys).0.evidence().is_some());
}

/// With rights at the broker alone, or with the next key alone, nobody makes a successor.
#[test]
fn tl_28_no_stranger_and_no_next_key_names_itself() {
    let mut log = Log::write(&PLAN);
    let mut next = Emitter::new(NEXT);
    let end = log.coordinator.clone();
    for seed in [NEXT, LATER] {
        let mut thief = Emitter::new(seed);
        (thief.next, thief.head) = (end.next, end.head);
        let next = thief.public.clone();
        put(&mut log, &mut thief, LedgerEvent::EmitterSucceeded { next });
    }
    // The name of the present key under a signature of another.
    let named = LedgerEvent::EmitterSucceeded {
        next: next.public.clone(),
    };
    let subject = ledger_subject(None, &end.public, named.kind());
    let mut told = end.clone();
    let said = told.speak(DOMAIN, 1_700_000_000_000, None, Event::Ledger(named));
    let forged = SignedEvent {
        key: end.public,
        ..next.sign(DOMAIN, said.body.into_vec())
    };
    log.push(subject, &forged);
    let before = log.records.len() - 3;
    let keys = [&log.coordinator.public.clone(), &next.public.clone()];
    let (auditor, verdicts) = audited(&log, &keys);
    assert_eq!(verdicts[before..before + 2], [Verdict::Foreign; 2]);
    assert_ne!(verdicts[before + 2], Verdict::Verified);
    assert_eq!(auditor.emitter(), Some(keys[0]));
    assert!(auditor.succeeded().is_empty());
    // Nor does it say anything as if it had been named.
    put(&mut log, &mut next, stopped());
    let (_, verdicts) = audited(&log, &keys);
    assert_eq!(verdicts.last(), Some(&Verdict::Foreign));
}

/// The log has what a thief of the old key signs, since it is an event, and none of it counts.
#[test]
fn tl_28_a_log_takes_no_word_of_the_old_key_after_its_last_event() {
    let mut log = Log::write(&PLAN);
    let first = log.coordinator.public.clone();
    let mut old = log.succeed(NEXT);
    log.ledger(None, stopped());
    // A worker that never joined, and a head that the log never had.
    let stolen = Member::new(55);
    old.known = Some(KnownHead {
        size: 3,
        root: ByteArray::new([7; 32]),
    });
    let (joined, time) = (stolen.joined(), 1_700_000_000_000);
    let subject = ledger_subject(Some(&run()), &first, joined.kind());
    let said = old.speak(DOMAIN, time, Some(run()), Event::Ledger(joined));
    log.push(subject, &said);
    let entries = tree::entries(&log);
    let files = tree::published(&entries, &[entries.len()], tree::SERVICE);
    let coordinators = vec![first.clone(), log.coordinator.public.clone()];
    let trusted = Trusted {
        coordinators,
        ..tree::trusted(&log)
    };
    let events = tree::verify(&files, &trusted, None).map_err(|fault| fault.to_string());
    let auditor = events.expect("the log is whole").auditor;
    assert_eq!(names(&auditor), ["foreign"]);
    let opened = tree::open(&files, &trusted, None).expect("it is whole");
    assert!(!opened.workers().contains(&stolen.worker));
    let known = check_known(&opened, &tree::read(&files), &trusted).expect("it is whole");
    assert_eq!((known.named, known.contradicted), (0, None));
    // A proof of a single event has no ledger beside it: the bundle says where the key ended.
    let last = entries.len() as u64 - 1;
    let proof = |index: u64| {
        opened
            .prove(index, &entries[index as usize])
            .expect("it is there")
    };
    let ended = auditor.succeeded().clone();
    let retired = Trusted {
        ended,
        ..trusted.clone()
    };
    assert!(proof(last).verify(&trusted).is_ok(), "nobody knows yet");
    let refused = proof(last).verify(&retired).expect_err("it had ended");
    assert_eq!(refused, LogFault::Stranger(first));
    for index in 0..last {
        assert!(proof(index).verify(&retired).is_ok(), "{index}");
    }
}

/// Nor of the next key before its turn, where no chain is followed: in heads that events name, and
/// in a proof of a single event.
#[test]
fn tl_28_a_log_takes_no_word_of_the_next_key_before_its_turn() {
    let mut log = Log::write(&PLAN);
    let mut thief = Emitter::new(NEXT);
    thief.known = Some(KnownHead {
        size: 3,
        root: ByteArray::new([7; 32]),
    });
    put(&mut log, &mut thief, stopped());
    let early = log.records.len() as u64 - 1;
    let old = log.succeed(NEXT);
    log.ledger(None, stopped());
    let entries = tree::entries(&log);
    let files = tree::published(&entries, &[entries.len()], tree::SERVICE);
    let trusted = Trusted {
        coordinators: vec![old.public, thief.public.clone()],
        ..tree::trusted(&log)
    };
    let events = tree::verify(&files, &trusted, None).map_err(|fault| fault.to_string());
    let auditor = events.expect("the log is whole").auditor;
    assert_eq!(names(&auditor), ["foreign"]);
    let opened = tree::open(&files, &trusted, None).expect("it is whole");
    let known = check_known(&opened, &tree::read(&files), &trusted).expect("it is whole");
    assert_eq!((known.named, known.contradicted), (0, None));

    let ended = auditor.succeeded().clone();
    let retired = Trusted {
        ended,
        ..trusted.clone()
    };
    let last = entries.len() as u64 - 1;
    let verdicts = |index: u64| {
        let proof = opened.prove(index, &entries[index as usize]);
        let proof = proof.expect("it is there");
        let (_, event, body) = proof.open(&trusted).expect("its key is known");
        let offline = [&trusted, &retired].map(|trusted| proof.verify(trusted).err());
        (offline, proof.is_in_turn(&opened, &event, &body).err())
    };
    let refused = || Some(LogFault::OutOfTurn(thief.public.clone()));
    assert_eq!(verdicts(early), ([refused(), refused()], refused()));
    // In its turn the log vouches for it, and the bundle from the end of the key before.
    assert_eq!(verdicts(last), ([refused(), None], None));
    for index in (0..last).filter(|index| *index != early) {
        assert_eq!(verdicts(index), ([None, None], None), "{index}");
    }
    let code = LogFault::OutOfTurn(thief.public.clone()).code();
    assert_eq!(code, Code::LogUnproven);
}

/// Somebody who has the old key and the broker shows a stream in which that key goes on: the trust
/// bundle says that it has ended.
#[test]
fn tl_28_a_stream_in_which_an_ended_key_goes_on_is_evidence() {
    let mut log = Log::write(&PLAN);
    let mut forged = Log {
        domain: log.domain.clone(),
        coordinator: log.coordinator.clone(),
        records: log.records.clone(),
    };
    let old = log.succeed(NEXT);
    log.ledger(None, stopped());
    let keys = [&old.public, &log.coordinator.public];
    let ended = audited(&log, &keys).0.succeeded().clone();
    let verdict = |log: &Log| {
        let auditor = Auditor::new(DOMAIN, keys.map(Clone::clone));
        let mut auditor = auditor.ending(ended.clone());
        for record in &log.records {
            auditor.observe(record);
        }
        names(&auditor)
    };
    assert_eq!(verdict(&log), Vec::<&str>::new());
    forged.ledger(None, stopped());
    assert_eq!(names(&audited(&forged, &keys).0), Vec::<&str>::new());
    assert_eq!(verdict(&forged), ["out-of-place"]);
    // Nor does it name its successor in another place than it did.
    forged.succeed(NEXT);
    assert_eq!(verdict(&forged), ["out-of-place"; 2]);
}

#[test]
fn the_next_key_says_nothing_before_it_is_named() {
    let mut log = Log::write(&PLAN);
    let mut next = Emitter::new(NEXT);
    put(&mut log, &mut next, stopped());
    let keys = [&log.coordinator.public, &next.public];
    let (auditor, verdicts) = audited(&log, &keys);
    assert_eq!(verdicts.last(), Some(&Verdict::Foreign));
    assert_eq!(names(&auditor), ["foreign"]);
}

/// The trust bundle says in which order keys follow: a thief of a key cannot name its own, or one
/// of before.
#[test]
fn a_key_that_the_bundle_does_not_have_after_the_present_one_goes_on_with_nothing() {
    let mut log = Log::write(&PLAN);
    let old = log.succeed(NEXT);
    let (mut thief, stranger) = (log.coordinator.clone(), Emitter::new(LATER).public);
    for named in [&old.public, &log.coordinator.public, &stranger] {
        let mut forged = Log {
            domain: log.domain.clone(),
            coordinator: thief.clone(),
            records: log.records.clone(),
        };
        let next = named.clone();
        put(
            &mut forged,
            &mut thief.clone(),
            LedgerEvent::EmitterSucceeded { next },
        );
        let keys = [&old.public, &log.coordinator.public];
        let (auditor, _) = audited(&forged, &keys);
        assert_eq!(auditor.emitter(), Some(&log.coordinator.public));
        if *named == stranger {
            // The bundle may be older than the ledger: nothing is known of what follows.
            assert_eq!(names(&auditor), ["successor-unknown"]);
            assert_eq!(auditor.unknown_successor(), Some(&stranger));
            assert_eq!(auditor.findings()[0].code(), Code::NoVerdict);
            assert!(auditor.evidence().is_none());
            continue;
        }
        assert_eq!(names(&auditor), ["out-of-place"], "{named}");
        let evidence = auditor.evidence().expect("it is evidence");
        assert_eq!(evidence.code(), Code::LedgerBroken);
        assert_eq!(auditor.unknown_successor(), None);
    }
    put(&mut log, &mut thief, stopped());
    let keys = [&old.public, &thief.public];
    assert_eq!(names(&audited(&log, &keys).0), Vec::<&str>::new());
}
