//! What the auditor says of whole logs, and of each single thing that can be wrong.

use audit_core::{Finding, HELD_MAX, Notice, Payload, Record, StreamSequence, Verdict};
use schemas::event::{Departure, Event, EventBody, LedgerEvent, WorkerEvent};
use schemas::view::RunPhase;
use schemas::{Code, Message as _, Round, Sequence, UnixMillis};

use crate::log::{DOMAIN, Emitter, Log, Member, Plan, audit, put, renumber, run, signed};

const PLAN: Plan = Plan {
    workers: 2,
    rounds: 2,
    units: 2,
    early: false,
    expiries: true,
    seed: 10,
};

fn findings(log: &Log) -> Vec<Finding> {
    let mut auditor = log.auditor();
    audit(
        &mut auditor,
        &log.records,
        StreamSequence(log.records.len() as u64),
    );
    auditor
        .findings()
        .iter()
        .map(|found| found.finding.clone())
        .collect()
}

#[test]
fn a_whole_run_verifies_and_adds_up() {
    let log = Log::write(&PLAN);
    let mut auditor = log.auditor();
    let results = audit(
        &mut auditor,
        &log.records,
        StreamSequence(log.records.len() as u64),
    );
    assert_eq!(results.len(), log.records.len());
    assert!(
        results
            .iter()
            .all(|checked| checked.verdict == Verdict::Verified)
    );
    let summary = auditor.summary();
    assert_eq!(
        (summary.events, summary.verified, summary.evidence),
        (results.len() as u64, results.len() as u64, false)
    );
    assert_eq!(summary.emitters.len(), 3);
    assert!(summary.emitters.iter().all(|emitter| emitter.whole));
    assert_eq!(summary.kinds["round-closed"], 2);
    let [of_run] = &summary.runs[..] else {
        panic!("one run: {:?}", summary.runs)
    };
    assert_eq!(
        (of_run.phase, of_run.rounds_closed, of_run.adds_up),
        (RunPhase::Complete, Round(2), true)
    );
    assert_eq!(
        of_run.issued.get(),
        6 * 5 * 2 * 16,
        "two rounds of two units and one expired lease each"
    );
    let names: Vec<&str> = summary
        .emitters
        .iter()
        .map(|emitter| emitter.name.as_str())
        .collect();
    assert_eq!(
        names.iter().filter(|name| **name == "coordinator").count(),
        1
    );
}

#[test]
fn the_state_is_that_of_the_moment() {
    let log = Log::write(&PLAN);
    let mut auditor = log.auditor();
    for record in &log.records {
        for checked in auditor.observe(record) {
            if checked.row.kind == "round-closed" {
                let closed = auditor
                    .state()
                    .run(&run())
                    .expect("the run was created")
                    .rounds_closed();
                assert_eq!(checked.row.about, format!("round {}", closed.get() - 1));
            }
        }
    }
    assert!(
        auditor
            .state()
            .run(&run())
            .expect("the run was created")
            .is_complete()
    );
}

#[test]
fn early_events_wait_for_their_enrolment() {
    let log = Log::write(&Plan {
        early: true,
        ..PLAN
    });
    let mut auditor = log.auditor();
    let verdicts: Vec<Vec<Verdict>> = log
        .records
        .iter()
        .map(|record| {
            auditor
                .observe(record)
                .iter()
                .map(|checked| checked.verdict)
                .collect()
        })
        .collect();
    assert_eq!(verdicts[2], [Verdict::Unenrolled]);
    assert_eq!(
        verdicts[3],
        [Verdict::Verified, Verdict::Verified],
        "the enrolment, and who waited for it"
    );
    assert_eq!(auditor.summary().unenrolled, 0);
    assert!(findings(&log).is_empty());
}

#[test]
fn strangers_are_found_at_the_end_or_when_they_are_too_many() {
    let mut log = Log::new(DOMAIN, 10);
    let mut stranger = Member::new(99);
    for _ in 0..HELD_MAX + 1 {
        log.worker(
            &mut stranger,
            WorkerEvent::Stopped {
                reason: "x".to_owned(),
            },
        );
    }
    let mut auditor = log.auditor();
    let mut foreign = 0;
    for record in &log.records {
        foreign += auditor
            .observe(record)
            .iter()
            .filter(|checked| checked.verdict == Verdict::Foreign)
            .count();
    }
    assert_eq!(
        (foreign, auditor.summary().unenrolled),
        (1, HELD_MAX as u64)
    );
    let rest = auditor.conclude(StreamSequence(log.records.len() as u64));
    assert_eq!(rest.len(), HELD_MAX);
    let finding = &rest[0].findings[0];
    assert!(
        matches!(&finding.finding, Finding::UnknownEmitter { key } if *key == stranger.emitter.public)
    );
    assert_eq!(finding.code(), Code::ForeignMessage);
    assert_eq!(
        (auditor.evidence(), auditor.faulty_workers().len()),
        (None, 0)
    );
}

type Spoil = fn(&mut Record);

/// What can be in a stream without being signed by somebody who has a chain there.
const SPOILS: [(&str, Spoil); 7] = [
    ("bad-signature", |record| {
        let mut event = signed(record);
        event.signature[7] ^= 1;
        put(record, &event);
    }),
    ("bad-signature", |record| {
        let mut event = signed(record);
        event.body[20] ^= 1;
        put(record, &event);
    }),
    ("malformed", |record| {
        record.payload = Payload::of(b"nonsense")
    }),
    ("malformed", |record| record.payload = Payload::of(b"")),
    ("malformed", |record| {
        record.payload = Payload::of(&vec![7; 100_000])
    }),
    ("malformed", |record| {
        record.subject = record.subject.replace("demo", "no_run~")
    }),
    ("malformed", |record| {
        record.subject = record.subject.replace("diloco.", "other.")
    }),
];

/// One message that nobody signed is passed over wherever it lies, and everything else is as good
/// as before.
#[test]
fn foreign_messages_are_counted_and_put_nothing_in_doubt() {
    for (name, spoil) in SPOILS {
        for ending in [".started", ".round-opened"] {
            for place in [0, 7, usize::MAX] {
                let mut log = Log::write(&PLAN);
                let mut bad = log
                    .records
                    .iter()
                    .find(|one| one.subject.ends_with(ending))
                    .expect("there is one")
                    .clone();
                spoil(&mut bad);
                let place = place.min(log.records.len());
                log.records.insert(place, bad);
                renumber(&mut log.records);
                let mut auditor = log.auditor();
                audit(
                    &mut auditor,
                    &log.records,
                    StreamSequence(log.records.len() as u64),
                );
                let summary = auditor.summary();
                assert_eq!(
                    (auditor.evidence(), summary.evidence),
                    (None, false),
                    "{name} {ending}"
                );
                assert!(auditor.faulty_workers().is_empty(), "{name} {ending}");
                assert_eq!(
                    (summary.foreign, summary.findings.get(name)),
                    (1, Some(&1)),
                    "{:?}",
                    summary.findings
                );
                assert_eq!(summary.verified, log.records.len() as u64 - 1);
                assert_eq!(
                    summary.foreign_messages[0].stream_sequence,
                    StreamSequence(place as u64 + 1)
                );
                assert_eq!(auditor.findings()[0].code(), Code::ForeignMessage);
                assert!(
                    summary.runs[0].adds_up
                        && auditor
                            .state()
                            .run(&run())
                            .is_some_and(|run| run.is_complete())
                );
            }
        }
    }
}

/// The coordinator signed it, and what it says is not what the subject or the key says.
#[test]
fn what_a_trusted_key_signed_for_another_place_is_no_event_of_its_chain() {
    let log = Log::write(&PLAN);
    let at = log
        .records
        .iter()
        .position(|record| record.subject.ends_with(".round-opened"))
        .expect("rounds opened");
    let right = EventBody::decode(&signed(&log.records[at]).body).expect("an event");
    let worker = Member::new(PLAN.seed + 1);
    let bodies = [
        (
            "malformed",
            EventBody {
                emitter: worker.emitter.public,
                ..right.clone()
            }
            .encode(),
        ),
        (
            "malformed",
            EventBody {
                run: None,
                ..right.clone()
            }
            .encode(),
        ),
        (
            "malformed",
            EventBody {
                run: Some("another".parse().expect("a name")),
                ..right.clone()
            }
            .encode(),
        ),
        (
            "malformed",
            EventBody {
                event: Event::Ledger(LedgerEvent::RunCompleted),
                ..right
            }
            .encode(),
        ),
        ("undecodable", b"what a newer release says".to_vec()),
    ];
    for (name, body) in bodies {
        let mut spoilt = Log {
            records: log.records.clone(),
            ..Log::new(DOMAIN, PLAN.seed)
        };
        let said = spoilt.coordinator.sign(DOMAIN, body);
        let mut record = spoilt.records[at].clone();
        put(&mut record, &said);
        spoilt.records.insert(at, record);
        renumber(&mut spoilt.records);
        let mut auditor = spoilt.auditor();
        let results = audit(
            &mut auditor,
            &spoilt.records,
            StreamSequence(spoilt.records.len() as u64),
        );
        let found: Vec<&str> = auditor
            .findings()
            .iter()
            .map(|found| found.finding.name())
            .collect();
        assert_eq!(found[0], name, "{found:?}");
        assert_ne!(results[at].verdict, Verdict::Verified);
    }
}

/// What one key signs in the name of another is no event of either.
#[test]
fn a_worker_that_signs_in_the_name_of_another_key_is_not_taken_for_it() {
    let mut log = Log::write(&PLAN);
    let at = log
        .records
        .iter()
        .position(|record| record.subject.ends_with(".started"))
        .expect("workers started");
    let right = signed(&log.records[at]);
    let first = Member::new(PLAN.seed + 1);
    assert_eq!(
        right.key, first.emitter.public,
        "the first unit is the first worker's"
    );
    let body = EventBody::decode(&right.body).expect("an event");
    let body = EventBody {
        emitter: Member::new(PLAN.seed + 2).emitter.public,
        ..body
    };
    let mut record = log.records[at].clone();
    put(&mut record, &first.emitter.sign(DOMAIN, body.encode()));
    log.records.insert(at, record);
    renumber(&mut log.records);
    let mut auditor = log.auditor();
    audit(
        &mut auditor,
        &log.records,
        StreamSequence(log.records.len() as u64),
    );
    let found: Vec<&str> = auditor
        .findings()
        .iter()
        .map(|found| found.finding.name())
        .collect();
    assert_eq!(found, ["malformed"]);
    assert!(
        auditor
            .summary()
            .emitters
            .iter()
            .all(|emitter| emitter.whole)
    );
}

#[test]
fn a_gap_in_a_workers_chain_is_held_against_that_worker() {
    let mut log = Log::write(&PLAN);
    let at = log
        .records
        .iter()
        .position(|record| record.subject.ends_with(".started"))
        .expect("workers started");
    log.records.remove(at);
    renumber(&mut log.records);
    let mut auditor = log.auditor();
    audit(
        &mut auditor,
        &log.records,
        StreamSequence(log.records.len() as u64),
    );
    assert_eq!(
        (auditor.evidence(), auditor.faulty_workers().len()),
        (None, 1)
    );
    assert_eq!(auditor.findings()[0].code(), Code::AuditRejected);
    assert_eq!(
        auditor
            .summary()
            .emitters
            .iter()
            .filter(|emitter| !emitter.whole)
            .count(),
        1
    );
}

#[test]
fn what_the_coordinators_key_signed_out_of_order_is_evidence() {
    // An event that was taken out, or put where another one lay, shows by the next.
    for spoil in [None, Some(SPOILS[0].1)] {
        let mut log = Log::write(&PLAN);
        let at = log
            .records
            .iter()
            .position(|record| record.subject.ends_with(".round-opened"))
            .expect("rounds");
        match spoil {
            None => drop(log.records.remove(at)),
            Some(spoil) => spoil(&mut log.records[at]),
        }
        renumber(&mut log.records);
        let mut auditor = log.auditor();
        audit(
            &mut auditor,
            &log.records,
            StreamSequence(log.records.len() as u64),
        );
        assert_eq!(
            auditor.evidence().map(|found| found.code()),
            Some(Code::LedgerBroken)
        );
        assert!(auditor.faulty_workers().is_empty());
    }
    // Nor may the coordinator's key speak for a worker: whoever holds it could write the ledger.
    let mut log = Log::write(&PLAN);
    let mut thief = Member::new(PLAN.seed);
    thief.emitter = log.coordinator.clone();
    log.worker(
        &mut thief,
        WorkerEvent::Stopped {
            reason: "x".to_owned(),
        },
    );
    let mut auditor = log.auditor();
    audit(
        &mut auditor,
        &log.records,
        StreamSequence(log.records.len() as u64),
    );
    assert_eq!(
        auditor.evidence().map(|found| found.finding.clone()),
        Some(Finding::Usurped)
    );
}

#[test]
fn nobody_speaks_for_another() {
    let trusted = Log::write(&PLAN);
    let mut log = Log::write(&PLAN);
    // A worker writes into the ledger.
    let mut liar = Emitter::new(11);
    let event = LedgerEvent::RunCompleted;
    let subject = schemas::subject::ledger_subject(Some(&run()), &liar.public, event.kind());
    let said = liar.speak(DOMAIN, 1_700_000_000_000, Some(run()), Event::Ledger(event));
    log.push(subject, &said);
    // A worker's event under the subject of another one.
    let mut moved = log
        .records
        .iter()
        .find(|record| record.subject.ends_with(".started"))
        .expect("workers started")
        .clone();
    let [first, second] = [Member::new(11), Member::new(12)];
    moved.subject = if moved.subject.contains(first.worker.as_str()) {
        moved
            .subject
            .replace(first.worker.as_str(), second.worker.as_str())
    } else {
        moved
            .subject
            .replace(second.worker.as_str(), first.worker.as_str())
    };
    log.records.push(moved);
    renumber(&mut log.records);
    let found = findings(&log);
    assert!(
        matches!(
            &found[..],
            [Finding::Foreign { .. }, Finding::UnknownEmitter { .. }]
        ),
        "{found:?}"
    );
    // A coordinator of another key.
    let mut auditor = trusted.auditor();
    let other = Log::write(&Plan { seed: 50, ..PLAN });
    let results = audit(
        &mut auditor,
        &other.records,
        StreamSequence(other.records.len() as u64),
    );
    assert!(
        results
            .iter()
            .all(|checked| matches!(checked.verdict, Verdict::Foreign | Verdict::Unenrolled))
    );
    assert_eq!(auditor.summary().verified, 0);
}

#[test]
fn a_signed_event_that_cannot_be_is_found_and_changes_nothing() {
    let mut log = Log::write(&PLAN);
    log.ledger(Some(run()), LedgerEvent::RoundOpened { round: Round(7) });
    let mut auditor = log.auditor();
    audit(
        &mut auditor,
        &log.records,
        StreamSequence(log.records.len() as u64),
    );
    let evidence = auditor.evidence().expect("it is out of place");
    assert!(matches!(evidence.finding, Finding::OutOfPlace { .. }));
    assert_eq!(evidence.code(), Code::LedgerBroken);
    assert!(
        auditor
            .state()
            .run(&run())
            .expect("the run was created")
            .is_complete()
    );
}

#[test]
fn a_wrong_clock_is_no_evidence() {
    let mut log = Log::write(&PLAN);
    let late = log.records.len() - 1;
    log.records[late].stored_at = UnixMillis(log.records[late].stored_at.get() - 3_600_000);
    let found = findings(&log);
    assert!(matches!(&found[..], [Finding::Clock { .. }]), "{found:?}");
    assert!(!found[0].is_evidence());
}

#[test]
fn the_stream_itself_has_no_holes() {
    let log = Log::write(&PLAN);
    let mut auditor = log.auditor();
    let last = StreamSequence(log.records.len() as u64);
    audit(&mut auditor, &log.records[2..], last.next());
    let found: Vec<&Finding> = auditor
        .findings()
        .iter()
        .map(|found| &found.finding)
        .collect();
    assert!(
        matches!(
            found[0],
            Finding::Hole {
                from: StreamSequence(1),
                to: StreamSequence(2)
            }
        ),
        "{found:?}"
    );
    assert!(
        matches!(
            found[1],
            Finding::Gap {
                from: Sequence(0),
                to: Sequence(1)
            }
        ),
        "{found:?}"
    );
    assert_eq!(
        **found.last().expect("something was found"),
        Finding::Hole {
            from: last.next(),
            to: last.next()
        }
    );
}

#[test]
fn the_ledger_says_who_may_speak_and_who_was_removed() {
    let mut log = Log::write(&PLAN);
    let worker = Member::new(PLAN.seed + 1).worker;
    let before = log.records.len();
    for cause in [Departure::Left, Departure::Removed] {
        let left = LedgerEvent::WorkerLeft {
            worker: worker.clone(),
            cause,
            detail: String::new(),
        };
        log.ledger(Some(run()), left);
        log.ledger(Some(run()), Member::new(PLAN.seed + 1).joined());
    }
    let mut auditor = log.auditor();
    log.records[..before]
        .iter()
        .for_each(|record| drop(auditor.observe(record)));
    let notices = auditor.take_notices();
    let of_a_chain = |notice: &Notice| matches!(notice, Notice::Reached { .. });
    assert!(
        notices.is_sorted_by_key(|notice| !of_a_chain(notice)),
        "nobody may speak before its chain is known"
    );
    let (reached, notices): (Vec<Notice>, Vec<Notice>) = notices.into_iter().partition(of_a_chain);
    assert_eq!(
        reached.len(),
        usize::from(PLAN.workers),
        "one of each chain, however long: {reached:?}"
    );
    let enrolled =
        |notice: &Notice| matches!(notice, Notice::Enrolled(enrolment) if enrolment.run == run());
    assert!(
        notices.len() == usize::from(PLAN.workers) && notices.iter().all(enrolled),
        "{notices:?}"
    );
    log.records[before..]
        .iter()
        .for_each(|record| drop(auditor.observe(record)));
    // Who leaves may come again, with the same key; who was removed may not.
    assert_eq!(
        auditor.take_notices(),
        [Notice::Removed { run: run(), worker }]
    );
    assert_eq!(auditor.take_notices(), []);
}
