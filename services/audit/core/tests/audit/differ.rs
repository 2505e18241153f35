//! A stream beside the log.

use audit_core::log::{Differ, Difference, LogFault, Place};
use schemas::event::{Event, EventBody, LedgerEvent, SignedEvent};
use schemas::{ChainSequence, Digest, Message as _, UnixMillis, V};

use crate::log::{DOMAIN, Emitter, run};

/// Events of one emitter, by number and content.
fn events(of: &[(u64, &str)]) -> Vec<SignedEvent> {
    let emitter = Emitter::new(3);
    let event = |(number, text): &(u64, &str)| {
        let body = EventBody {
            v: V,
            known: None,
            emitter: emitter.public.clone(),
            sequence: ChainSequence(*number),
            previous: Some(Digest::of(text.as_bytes())),
            time: UnixMillis(0),
            run: Some(run()),
            event: Event::Ledger(LedgerEvent::RunCompleted),
        };
        emitter.sign(DOMAIN, body.encode())
    };
    of.iter().map(event).collect()
}

fn differences(log: &[(u64, &str)], stream: &[(u64, &str)]) -> (u64, u64, Vec<Difference>) {
    let mut differ = Differ::default();
    for (index, event) in (0..).zip(events(log)) {
        differ.entry(index, &chain::leaf(&event).expect("an entry"));
    }
    for (at, event) in (1..).zip(events(stream)) {
        differ.stream(at, Place::of(&event).expect("an event"));
    }
    let found = differ.differences().expect("all are events");
    assert_eq!(found.count, found.first.len() as u64);
    (found.same, found.newer, found.first)
}

#[test]
fn fg_07_a_lost_end_reused_numbers_and_an_altered_past_are_told_apart() {
    let emitter = Emitter::new(3).public;
    let altered = |index: u64| Difference::Altered {
        index,
        emitter: emitter.clone(),
        sequence: ChainSequence(index),
    };
    let reused = |index: u64| Difference::SequenceReused {
        index,
        emitter: emitter.clone(),
        sequence: ChainSequence(index),
    };
    let tail = |from, to| Difference::MissingTail { from, to };
    let log = [(0, "a"), (1, "b"), (2, "c"), (3, "d")];
    assert_eq!(differences(&log, &log), (4, 0, vec![]));
    let newer = [&log[..], &[(4, "e"), (5, "f")]].concat();
    assert_eq!(differences(&log, &newer), (4, 2, vec![]));
    assert_eq!(differences(&log, &log[..2]), (2, 0, vec![tail(2, 3)]));
    assert_eq!(differences(&log, &[]), (0, 0, vec![tail(0, 3)]));
    assert_eq!(
        differences(&log, &[log[0], log[2], log[3]]),
        (3, 0, vec![altered(1)])
    );
    assert_eq!(
        differences(&log, &log[2..]),
        (2, 0, vec![altered(0), altered(1)])
    );
    // The broker lost two events, and the emitter went on with the number of the first.
    let again = [log[0], log[1], (2, "other")];
    let (same, _, found) = differences(&log, &again);
    assert_eq!((same, found), (2, vec![tail(3, 3), reused(2)]));
    // Between events that are there, another one with the same number.
    let changed = [log[0], (1, "other"), log[2], log[3]];
    assert_eq!(differences(&log, &changed), (3, 0, vec![reused(1)]));
    let swapped = [log[0], log[2], log[1], log[3]];
    let (same, newer, found) = differences(&log, &swapped);
    assert_eq!(
        (same, newer, found),
        (3, 0, vec![Difference::Reordered { index: 2 }])
    );
    let inserted = [log[0], log[1], (9, "new"), log[2], log[3]];
    let at = Difference::Inserted { stream_sequence: 3 };
    assert_eq!(differences(&log, &inserted), (4, 0, vec![at]));
    // Copies count with their first.
    let copies = [log[0], log[0], log[1], log[2], log[3], log[1]];
    assert_eq!(differences(&log, &copies), (4, 0, vec![]));
    assert_eq!(differences(&copies, &log), (4, 0, vec![]));
}

/// What cannot be compared is not left out in silence.
#[test]
fn fg_07_a_log_with_an_entry_that_is_no_event_is_not_compared() {
    let mut differ = Differ::default();
    assert_eq!(differ.differences(), Err(LogFault::Empty), "nothing");
    let entry = chain::leaf(&events(&[(1, "a")])[0]).expect("an entry");
    differ.entry(0, &entry);
    assert_eq!(differ.differences().map(|found| found.count), Ok(1));
    let unreadable = Emitter::new(3).sign(DOMAIN, b"no event".to_vec());
    differ.entry(1, &chain::leaf(&unreadable).expect("an entry"));
    differ.entry(2, b"text");
    let fault = differ.differences().unwrap_err();
    assert!(
        matches!(fault, LogFault::Undecodable { index: 1, .. }),
        "the first: {fault}"
    );
    let mut differ = Differ::default();
    differ.entry(0, b"text");
    let fault = differ.differences().unwrap_err();
    assert!(matches!(fault, LogFault::Entry { index: 0, .. }), "{fault}");
}
