//! Tests of the auditor's output: rows of the timeline, findings in words, the ends of chains.

use audit_core::{Finding, Notice, StreamSequence, Verdict};
use schemas::ChainSequence;
use schemas::event::WorkerEvent;

use crate::foreign::SPOILS;
use crate::log::{Log, Member, PLAN, audit, renumber};

#[test]
fn a_row_says_what_its_record_came_to_and_why() {
    for (name, spoil) in SPOILS {
        let mut log = Log::write(&PLAN);
        let mut bad = log.records[5].clone();
        spoil(&mut bad);
        log.records.insert(5, bad);
        renumber(&mut log.records);
        let last = StreamSequence(log.records.len() as u64);
        let results = audit(&mut log.auditor(), &log.records, last);
        for (at, checked) in results.iter().enumerate() {
            assert_eq!(checked.row.verdict, checked.verdict);
            assert_eq!(checked.verdict == Verdict::Foreign, at == 5, "{name}");
            let said: Vec<String> = checked
                .findings
                .iter()
                .map(|found| found.finding.to_string())
                .collect();
            assert_eq!(checked.row.problem.is_some(), at == 5, "{name}");
            assert_eq!(
                checked.row.problem.clone().unwrap_or_default(),
                said.join("; ")
            );
        }
    }
}

#[test]
fn a_finding_says_where_it_lies() {
    let mut log = Log::write(&PLAN);
    log.records.remove(4);
    let mut auditor = log.auditor();
    audit(
        &mut auditor,
        &log.records,
        StreamSequence(log.records.len() as u64 + 1),
    );
    let found = auditor
        .findings()
        .iter()
        .find(|found| matches!(found.finding, Finding::Hole { .. }))
        .expect("one position is missing");
    assert_eq!(
        found.to_string(),
        format!("at stream sequence 6: {}", found.finding)
    );
}

#[test]
fn a_notice_says_how_far_each_chain_has_come() {
    let mut log = Log::write(&PLAN);
    let member = Member::new(PLAN.seed + 1);
    let key = &member.emitter.public;
    let said = |log: &Log| {
        let own = |one: &&audit_core::Record| one.subject.contains(&format!(".{}.", member.worker));
        log.records.iter().filter(own).count() as u64
    };
    let mut auditor = log.auditor();
    log.records
        .iter()
        .for_each(|record| drop(auditor.observe(record)));
    let events = said(&log);
    assert!(events > 2);
    let reached = |notices: Vec<Notice>| {
        notices.into_iter().find_map(|notice| match notice {
            Notice::Reached { key: of, next } if of == *key => Some(next),
            _ => None,
        })
    };
    assert_eq!(reached(auditor.take_notices()), Some(ChainSequence(events)));
    // A chain with an event out of turn counts as far as that event's position.
    let mut ahead = member.clone();
    for _ in 0..events + 3 {
        ahead.emitter.speak(&log.domain, 1, None, stopped());
    }
    log.worker(
        &mut ahead,
        WorkerEvent::Stopped {
            reason: "x".to_owned(),
        },
    );
    drop(auditor.observe(log.records.last().expect("it was just written")));
    assert_eq!(
        reached(auditor.take_notices()),
        Some(ChainSequence(events + 4))
    );
}

fn stopped() -> schemas::event::Event {
    schemas::event::Event::Worker(WorkerEvent::Stopped {
        reason: "x".to_owned(),
    })
}
