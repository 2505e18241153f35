//! Messages that no emitter with a chain has signed are skipped, and held against nobody.

use audit_core::{Payload, Record, StreamSequence, Verdict};
use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::{Code, Message as _};

use crate::log::{DOMAIN, Log, Member, PLAN, audit, put, renumber, run, signed};

pub(crate) type Spoil = fn(&mut Record);

/// Changes that make a message foreign: after each, no emitter with a chain there has signed it.
pub(crate) const SPOILS: [(&str, Spoil); 7] = [
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

/// A message that nobody signed is skipped wherever it lies, and everything else is as good as
/// before.
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

/// The coordinator signed these messages, but their content contradicts the subject or the key.
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

/// A message that one key signs in the name of another is an event of neither.
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
