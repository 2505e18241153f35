//! Tests of the auditor's verdicts on whole logs, and on each single fault.

use audit_core::{CLOCK_SKEW_MAX, Finding, HELD_MAX, Notice, StreamSequence, Verdict};
use schemas::event::{Departure, Event, EventBody, LedgerEvent, SignedEvent, WorkerEvent};
use schemas::view::RunPhase;
use schemas::{ChainSequence, Code, Message as _, Round, UnixMillis, WorkerId};

use crate::foreign::SPOILS;
use crate::log::{DOMAIN, Emitter, Log, Member, PLAN, Plan, audit, renumber, run, signed};

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
            let results = auditor.observe(record);
            // The timeline shows the same verdict.
            assert!(results.iter().all(|one| one.row.verdict == one.verdict));
            results.iter().map(|checked| checked.verdict).collect()
        })
        .collect();
    assert_eq!(auditor.last(), StreamSequence(log.records.len() as u64));
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

/// The next event of its chain, which was signed before, does not follow the one that is there
/// instead.
#[test]
fn fg_07_a_worker_that_rewrites_what_it_signed_leaves_a_break_in_its_chain() {
    for rewritten in [false, true] {
        let mut log = Log::write(&PLAN);
        if rewritten {
            // The first worker of the plan, as it was before its first word.
            let (mut past, mut other) = (Member::new(PLAN.seed + 1), Log::new(DOMAIN, 0));
            let (release, device) = ("a lie".to_owned(), "cpu".to_owned());
            other.worker(&mut past, WorkerEvent::Joined { release, device });
            let lie = other.records.remove(0);
            let mut records = log.records.iter_mut();
            let first = records.find(|one| one.subject == lie.subject);
            first.expect("it said that it joined").payload = lie.payload;
        }
        let (mut auditor, all) = (log.auditor(), StreamSequence(log.records.len() as u64));
        audit(&mut auditor, &log.records, all);
        assert_eq!(auditor.faulty_workers().len(), usize::from(rewritten));
        assert_eq!(auditor.findings().is_empty(), !rewritten);
        assert!(auditor.evidence().is_none(), "nobody else is blamed");
    }
}

#[test]
fn what_the_coordinators_key_signed_out_of_order_is_evidence() {
    // The next event shows that one was taken out, or that another lies in its place.
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
    // The coordinator's key may not speak for a worker either: its holder could write the ledger
    // instead.
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
        Some(Finding::Usurped {
            key: log.coordinator.public.clone()
        })
    );
    assert!(
        auditor.faulty_workers().is_empty(),
        "the worker did not make that signature"
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

/// Each event follows on the one before it, and yet the ledger claims work that nobody was given.
#[test]
fn a_ledger_that_does_not_add_up_is_evidence_when_a_round_closes() {
    let log = Log::write(&Plan { made_up: 1, ..PLAN });
    let mut auditor = log.auditor();
    for record in &log.records {
        let verdict = auditor.observe(record)[0].verdict;
        let is_close = record.subject.ends_with(".round-closed");
        assert_eq!(verdict == Verdict::Rejected, is_close, "{record:?}");
    }
    let evidence = auditor.evidence().expect("it does not add up");
    assert!(matches!(evidence.finding, Finding::Contradiction { .. }));
    assert_eq!(evidence.code(), Code::LedgerBroken);
    let last = StreamSequence(log.records.len() as u64);
    auditor.conclude(last);
    let found = auditor.findings().last().expect("the same at the end");
    assert_eq!(found.stream_sequence, last);
}

#[test]
fn a_wrong_clock_is_no_evidence() {
    let mut log = Log::write(&PLAN);
    let late = log.records.len() - 1;
    log.records[late].stored_at = UnixMillis(log.records[late].stored_at.get() - 3_600_000);
    let found = findings(&log);
    let against = log.records[late].stored_at;
    assert!(
        matches!(&found[..], [Finding::Clock { against: named, .. }] if *named == against),
        "{found:?}"
    );
    assert!(!found[0].is_evidence());
}

#[test]
fn a_clock_is_wrong_when_it_is_further_off_than_clocks_may_be() {
    let skew = CLOCK_SKEW_MAX.get();
    for (behind, is_found) in [(skew, false), (skew + 1, true)] {
        let mut log = Log::write(&PLAN);
        let end = signed(log.records.last().expect("a run has events"));
        let end = EventBody::decode(&end.body).expect("an event").time;
        let event = LedgerEvent::CoordinatorStopped {
            reason: "x".to_owned(),
        };
        let subject = schemas::subject::ledger_subject(None, &log.coordinator.public, event.kind());
        let time = end.get() - behind;
        let said = log
            .coordinator
            .speak(DOMAIN, time, None, Event::Ledger(event));
        log.push(subject, &said);
        let expected = is_found.then_some(Finding::Clock {
            time: UnixMillis(time),
            against: end,
        });
        assert_eq!(findings(&log), Vec::from_iter(expected), "{behind} ms");
    }
}

/// A worker's key may sign anything; none of that counts against the ledger.
#[test]
fn what_a_worker_signs_that_no_worker_can_say_is_foreign_and_no_evidence() {
    let nonsense = |log: &Log, member: &mut Member| {
        let said = member.emitter.sign(&log.domain, b"nonsense".to_vec());
        (said, "stopped")
    };
    let ledger_event = |log: &Log, member: &mut Member| {
        let event = Event::Ledger(LedgerEvent::RunCompleted);
        let said = member
            .emitter
            .speak(&log.domain, 1_700_000_000_000, Some(run()), event);
        (said, "run-completed")
    };
    type Say = fn(&Log, &mut Member) -> (SignedEvent, &'static str);
    for (say, expected) in [(nonsense as Say, "malformed"), (ledger_event, "foreign")] {
        let mut log = Log::write(&PLAN);
        let mut member = Member::new(PLAN.seed + 1);
        let (said, kind) = say(&log, &mut member);
        let subject =
            schemas::subject::record_subject(&member.account, &run(), &member.worker, kind);
        log.push(subject, &said);
        let mut auditor = log.auditor();
        let last = StreamSequence(log.records.len() as u64);
        audit(&mut auditor, &log.records, last);
        assert_eq!(
            auditor.summary().findings.get(expected),
            Some(&1),
            "{expected}"
        );
        assert_eq!(auditor.evidence(), None, "{expected}");
        let found = auditor.findings().last().expect("it is found");
        assert!(!found.ledger, "{expected} is no fault of the ledger");
    }
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
                from: ChainSequence(0),
                to: ChainSequence(1)
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
    // A worker that left may come again with the same key; a removed one may not.
    assert_eq!(
        auditor.take_notices(),
        [Notice::Removed { run: run(), worker }]
    );
    assert_eq!(auditor.take_notices(), []);
}

fn shut_out(worker: &WorkerId) -> LedgerEvent {
    LedgerEvent::WorkerQuarantined {
        worker: worker.clone(),
        operator: kit::operator(),
        reason: "odd norms".parse().expect("a reason"),
        lease: None,
        withdrawn: 0,
    }
}

fn let_in(worker: &WorkerId) -> LedgerEvent {
    LedgerEvent::WorkerReadmitted {
        worker: worker.clone(),
        operator: kit::operator(),
        reason: "it was the card".parse().expect("a reason"),
    }
}

/// The notices of a log to which these events are added.
fn notices_of(events: &[LedgerEvent]) -> Vec<Notice> {
    let mut log = Log::write(&PLAN);
    let before = log.records.len();
    for event in events {
        log.ledger(Some(run()), event.clone());
    }
    let mut auditor = log.auditor();
    let (earlier, later) = log.records.split_at(before);
    earlier
        .iter()
        .for_each(|record| drop(auditor.observe(record)));
    drop(auditor.take_notices());
    later
        .iter()
        .for_each(|record| drop(auditor.observe(record)));
    auditor.take_notices()
}

#[test]
fn tl_31_who_is_in_quarantine_may_not_speak_until_it_is_let_in_again() {
    let worker = Member::new(PLAN.seed + 1).worker;
    let of = |worker: &WorkerId| {
        let (run, worker) = (run(), worker.clone());
        let out = Notice::ShutOut {
            run: run.clone(),
            worker: worker.clone(),
        };
        [out, Notice::Readmitted { run, worker }]
    };
    assert_eq!(notices_of(&[shut_out(&worker)]), of(&worker)[..1]);
    let again = notices_of(&[shut_out(&worker), let_in(&worker)]);
    assert_eq!(again, of(&worker));
    // One that was removed for its results stays removed.
    let left = LedgerEvent::WorkerLeft {
        worker: worker.clone(),
        cause: Departure::Removed,
        detail: String::new(),
    };
    let notices = notices_of(&[left, shut_out(&worker), let_in(&worker)]);
    let removed = Notice::Removed {
        run: run(),
        worker: worker.clone(),
    };
    assert_eq!(notices[0], removed);
    assert_eq!(notices[1..], of(&worker), "nothing names its key anew");
    // A stranger may join later.
    let stranger = Member::new(PLAN.seed + 7).worker;
    let notices = notices_of(&[shut_out(&stranger), let_in(&stranger)]);
    assert_eq!(notices, of(&stranger));
}
