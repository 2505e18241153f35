//! Every change to a log that verifies is found, and no bytes make the auditor panic.

use audit_core::{Checked, Examined, Payload, Record, StreamSequence, Verdict};
use proptest::prelude::*;
use schemas::UnixMillis;

use crate::log::{DOMAIN, Log, Plan, audit, put, renumber, signed};

prop_compose! {
    fn plans()(workers in 1u8..4, rounds in 1u64..3, units in 1u32..4, early: bool, expiries: bool) -> Plan {
        Plan { workers, rounds, units, early, expiries, made_up: 0, seed: 10, saved_every: 1 }
    }
}

/// True if an auditor that trusts `log`'s coordinator finds evidence against `records` or against
/// one of their workers, or reports a foreign message.
fn is_found(log: &Log, records: &[Record]) -> bool {
    let mut auditor = log.auditor();
    audit(
        &mut auditor,
        records,
        StreamSequence(log.records.len() as u64),
    );
    auditor.evidence().is_some()
        || !auditor.faulty_workers().is_empty()
        || auditor.summary().foreign > 0
}

/// True if a later record of the same emitter shows that something happened to the one at `at`.
fn is_followed(records: &[Record], at: usize) -> bool {
    records[at + 1..]
        .iter()
        .any(|later| signed(later).key == signed(&records[at]).key)
}

fn flip(text: &mut String, at: prop::sample::Index) {
    let mut bytes = std::mem::take(text).into_bytes();
    let at = at.index(bytes.len());
    bytes[at] ^= 1;
    *text = String::from_utf8(bytes).expect("ASCII stays ASCII");
}

fn flip_payload(record: &mut Record, at: prop::sample::Index, bit: u8) {
    let Payload::Whole(bytes) = &mut record.payload else {
        panic!("no event is too long")
    };
    let at = at.index(bytes.len());
    bytes[at] ^= 1 << bit;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_log_that_nobody_touched_verifies(plan in plans()) {
        let log = Log::write(&plan);
        let mut auditor = log.auditor();
        audit(&mut auditor, &log.records, StreamSequence(log.records.len() as u64));
        prop_assert_eq!(auditor.findings(), &[]);
        prop_assert_eq!(auditor.summary().verified, log.records.len() as u64);
        prop_assert!(auditor.summary().runs[0].adds_up);
    }

    #[test]
    fn a_flipped_bit_is_found(plan in plans(), at: prop::sample::Index, place: prop::sample::Index, part in 0..2, bit in 0u8..8) {
        let log = Log::write(&plan);
        let mut records = log.records.clone();
        let at = at.index(records.len());
        let record = &mut records[at];
        match part {
            0 => flip(&mut record.subject, place),
            _ => flip_payload(record, place, bit),
        }
        prop_assert!(is_found(&log, &records));
    }

    #[test]
    fn a_dropped_event_is_found(plan in plans(), at: prop::sample::Index, renumbered: bool) {
        let log = Log::write(&plan);
        let mut records = log.records.clone();
        let at = at.index(records.len());
        // If the stream's numbers are changed too, nobody misses the newest event of a chain.
        prop_assume!(!renumbered || is_followed(&records, at));
        records.remove(at);
        if renumbered {
            renumber(&mut records);
        }
        prop_assert!(is_found(&log, &records));
    }

    #[test]
    fn reordered_events_are_found(plan in plans(), at: prop::sample::Index, to: prop::sample::Index, renumbered: bool) {
        let log = Log::write(&plan);
        let mut records = log.records.clone();
        let (at, to) = (at.index(records.len()), to.index(records.len()));
        // Chains order the events of one emitter; only the stream's numbers order events of
        // different emitters.
        prop_assume!(at != to && (!renumbered || signed(&records[at]).key == signed(&records[to]).key));
        records.swap(at, to);
        if renumbered {
            renumber(&mut records);
        }
        prop_assert!(is_found(&log, &records));
    }

    #[test]
    fn a_repeated_event_counts_once_and_is_no_evidence(plan in plans(), at: prop::sample::Index, to: prop::sample::Index) {
        let log = Log::write(&plan);
        let mut records = log.records.clone();
        let at = at.index(records.len());
        let to = at + 1 + to.index(records.len() - at);
        records.insert(to, records[at].clone());
        renumber(&mut records);
        let mut auditor = log.auditor();
        let results = audit(&mut auditor, &records, StreamSequence(records.len() as u64));
        prop_assert_eq!(auditor.evidence(), None);
        prop_assert_eq!(auditor.faulty_workers(), &[]);
        prop_assert_eq!(results.iter().filter(|checked| checked.verdict == Verdict::Repeated).count(), 1);
        let mut untouched = log.auditor();
        audit(&mut untouched, &log.records, StreamSequence(log.records.len() as u64));
        prop_assert_eq!(auditor.state(), untouched.state());
    }

    #[test]
    fn events_of_another_chain_are_found(plan in plans(), at: prop::sample::Index, from: prop::sample::Index, way in 0..3) {
        let log = Log::write(&plan);
        let mut other = Log::write(&Plan { seed: 100, ..plan });
        let mut records = log.records.clone();
        let at = at.index(records.len());
        let source = other.records.swap_remove(from.index(other.records.len()));
        match way {
            // It takes the place of an event, under that event's subject.
            0 => records[at] = Record { subject: records[at].subject.clone(), ..source },
            // It takes the place of an event, under its own subject.
            1 => records[at] = source,
            // It lies between events.
            _ => records.insert(at, source),
        }
        renumber(&mut records);
        prop_assert!(is_found(&log, &records));
    }

    #[test]
    fn events_of_another_domain_are_found(plan in plans(), at: prop::sample::Index) {
        let log = Log::write(&plan);
        let mut records = log.records.clone();
        let at = at.index(records.len());
        // The same keys sign the same body for another domain.
        let mut elsewhere = Log::new("another domain", plan.seed);
        elsewhere.ledger(None, schemas::event::LedgerEvent::RunCompleted);
        let mut event = signed(&records[at]);
        event.signature = signed(&elsewhere.records[0]).signature;
        put(&mut records[at], &event);
        prop_assert!(is_found(&log, &records));
    }

    #[test]
    fn records_that_many_threads_examine_come_to_the_same(
        plan in plans(), at: prop::sample::Index, other: prop::sample::Index, place: prop::sample::Index, threads in 1usize..5,
    ) {
        let mut log = Log::write(&plan);
        let count = log.records.len();
        // One record is torn, one is lost, and one comes twice.
        flip_payload(&mut log.records[at.index(count)], place, 3);
        log.records.remove(other.index(count));
        log.records.push(log.records[0].clone());
        let mut slow = log.auditor();
        let one_by_one: Vec<Checked> = log.records.iter().flat_map(|record| slow.observe(record)).collect();
        let mut fast = log.auditor();
        let examiner = fast.examiner().clone();
        let examined: Vec<Examined> = std::thread::scope(|scope| {
            let parts = log.records.chunks(count.div_ceil(threads));
            let parts: Vec<_> = parts.map(|part| scope.spawn(|| examiner.examine_all(part))).collect();
            parts.into_iter().flat_map(|part| part.join().expect("no thread panics")).collect()
        });
        let together: Vec<Checked> = examined.into_iter().flat_map(|examined| fast.place(examined)).collect();
        prop_assert_eq!(format!("{one_by_one:?}"), format!("{together:?}"));
        prop_assert_eq!(slow.findings(), fast.findings());
        prop_assert_eq!(slow.summary(), fast.summary());
        prop_assert_eq!(slow.state(), fast.state());
    }

    #[test]
    fn no_record_makes_it_panic(
        numbers in prop::collection::vec(any::<u64>(), 1..4),
        subject in "(diloco\\.(ledger|record\\.[A-Z0-9.]{0,60})\\.)?.{0,80}",
        body in prop::collection::vec(any::<u8>(), 0..300),
        time: u64,
    ) {
        let log = Log::new(DOMAIN, 10);
        let mut auditor = log.auditor();
        for number in &numbers {
            let stream_sequence = StreamSequence(*number);
            let (subject, stored_at) = (subject.clone(), UnixMillis(time));
            let record = Record { stream_sequence, subject, stored_at, payload: Payload::of(&body) };
            let results = auditor.observe(&record);
            prop_assert!(matches!(results[0].verdict, Verdict::Foreign | Verdict::Rejected));
        }
        auditor.conclude(StreamSequence(u64::MAX));
        prop_assert_eq!(auditor.summary().events, numbers.len() as u64);
    }
}
