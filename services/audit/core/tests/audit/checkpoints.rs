//! Checkpoints that the ledger names: an auditor computes the same state by itself, and compares.

use audit_core::{Auditor, Finding};
use ledger::FORMAT;
use schemas::checkpoint::Checkpoint;
use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::{ChainSequence, Code, Digest, Message as _, ObjectRef};

use crate::log::{Log, PLAN, signed};

/// A log in which the coordinator takes a checkpoint and names it after `change`, with work between
/// the two events.
fn audited(change: impl FnOnce(&mut Checkpoint)) -> (Auditor, String) {
    let mut log = Log::write(&PLAN);
    log.ledger(None, LedgerEvent::CheckpointTaken);
    let taken = signed(log.records.last().expect("it was just written"));
    let covers = EventBody::decode(&taken.body).expect("an event").sequence;
    let head = Digest::of(&taken.body);
    let mut auditor = log.auditor();
    let before = log.records.len();
    for record in &log.records {
        auditor.observe(record);
    }
    let state = auditor.state().taken().expect("it was taken").clone();
    let mut checkpoint = Checkpoint {
        covers,
        head,
        stream_sequence: 1,
        format: FORMAT.into(),
        object: ObjectRef::of(&state.to_checkpoint()),
    };
    change(&mut checkpoint);
    let reason = "between the two".to_owned();
    log.ledger(None, LedgerEvent::CoordinatorStopped { reason });
    log.ledger(None, LedgerEvent::CheckpointSaved { checkpoint });
    for record in &log.records[before..] {
        auditor.observe(record);
    }
    let names: Vec<&str> = auditor
        .findings()
        .iter()
        .map(|found| found.finding.name())
        .collect();
    let names = names.join(" ");
    (auditor, names)
}

#[test]
fn a_checkpoint_of_the_state_that_its_events_come_to_is_verified() {
    let (auditor, found) = audited(|_| {});
    assert_eq!(found, "");
    assert_eq!(auditor.state().checkpoints().len(), 1);
}

#[test]
fn a_checkpoint_of_another_state_is_evidence_against_the_ledger() {
    let other = ObjectRef::of(b"another state");
    let changes: [fn(&mut Checkpoint, ObjectRef); 3] = [
        |checkpoint, other| checkpoint.object = other,
        |checkpoint, other| checkpoint.object.bytes = other.bytes,
        |checkpoint, other| checkpoint.head = other.digest,
    ];
    for change in changes {
        let (auditor, found) = audited(|checkpoint| change(checkpoint, other));
        assert_eq!(found, "false-checkpoint");
        let evidence = auditor.evidence().expect("it is evidence");
        assert_eq!(evidence.code(), Code::CheckpointFalse);
        assert!(matches!(evidence.finding, Finding::FalseCheckpoint { .. }));
    }
}

#[test]
fn a_checkpoint_of_another_event_than_the_one_that_took_it_does_not_follow() {
    let (auditor, found) = audited(|checkpoint| {
        checkpoint.covers = ChainSequence(checkpoint.covers.get() - 1);
    });
    assert_eq!(found, "out-of-place");
    assert_eq!(auditor.state().checkpoints(), []);
}

/// A checkpoint of another form cannot be judged, and no coordinator of this release starts from
/// it.
#[test]
fn a_checkpoint_of_another_form_is_not_looked_at() {
    let (_, found) = audited(|checkpoint| {
        checkpoint.format = u16::from(FORMAT) + 1;
        checkpoint.object = ObjectRef::of(b"another form");
    });
    assert_eq!(found, "");
}

/// An event that cannot be in the ledger is one finding; checkpoints after it add none.
#[test]
fn behind_an_event_that_does_not_follow_nothing_is_said_of_checkpoints() {
    let mut log = Log::write(&PLAN);
    log.ledger(Some(crate::log::run()), LedgerEvent::RunCompleted);
    log.ledger(None, LedgerEvent::CheckpointTaken);
    let taken = signed(log.records.last().expect("it was just written"));
    let body = EventBody::decode(&taken.body).expect("an event");
    assert_eq!(body.event, Event::Ledger(LedgerEvent::CheckpointTaken));
    let checkpoint = Checkpoint {
        covers: body.sequence,
        head: Digest::of(&taken.body),
        stream_sequence: 1,
        format: FORMAT.into(),
        object: ObjectRef::of(b"what the coordinator came to"),
    };
    log.ledger(None, LedgerEvent::CheckpointSaved { checkpoint });
    let mut auditor = log.auditor();
    for record in &log.records {
        auditor.observe(record);
    }
    let names: Vec<&str> = auditor
        .findings()
        .iter()
        .map(|found| found.finding.name())
        .collect();
    assert_eq!(names.first(), Some(&"out-of-place"));
    assert!(!names.contains(&"false-checkpoint"), "{names:?}");
}
