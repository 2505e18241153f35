//! Restores of full snapshots: what they end, the way of the weights through them, and their place
//! in a checkpoint.

use kit::{BF16, object};
use ledger::{RestoreRecord, State};
use schemas::event::{Departure, LedgerEvent};
use schemas::restore::RESTORES_MAX;
use schemas::run::{Comparison, RunSpec};
use schemas::{Round, Tokens};

use crate::kit::{
    Book, TIME, accepted, closed, evaluated, evaluation, granted, hold, joined, lease, left,
    manifest, opened, run_id, sealed, spec, worker,
};

fn saved(version: u64) -> LedgerEvent {
    LedgerEvent::SnapshotSaved {
        round: Round(version),
        manifest: manifest(version),
        statement: None,
    }
}

/// A restore of `snapshot` that leads from one version to another, with the leases and
/// contributions that it ends.
fn restored(snapshot: u64, way: (u64, u64), ended: (u32, u32)) -> LedgerEvent {
    LedgerEvent::SnapshotRestored {
        snapshot: Round(snapshot),
        manifest: manifest(snapshot),
        from: Round(way.0),
        weights: kit::weights(way.1, BF16, vec![object(&format!("weights {snapshot}"))]),
        operator: kit::operator(),
        reason: "odd loss".parse().expect("a reason"),
        leases: ended.0,
        contributions: ended.1,
    }
}

fn settings(units: u32) -> RunSpec {
    let mut spec = spec();
    spec.schedule.units = units;
    spec.schedule.rounds = 6;
    spec
}

/// A round of one unit of a worker, whose weights are saved.
fn round(book: &mut Book, round: u64, number: u32) {
    book.note(&opened(round));
    book.contribute(round, 0, number);
    book.note(&sealed(round, &[(0, 1, 32)], 0));
    book.note(&closed(round, round + 1));
    book.note(&saved(round + 1));
}

/// A book with three saved versions. Of round 3 one unit is done, one is held, and one is open.
fn at_work() -> Book {
    let mut book = Book::of(settings(3));
    for number in 0..3 {
        book.note(&opened(number));
        for unit in 0..3 {
            book.contribute(number, unit, unit);
        }
        book.note(&sealed(number, &[(0, 1, 32), (1, 1, 32), (2, 1, 32)], 0));
        book.note(&closed(number, number + 1));
        book.note(&saved(number + 1));
    }
    book.note(&opened(3));
    book.contribute(3, 0, 0);
    book.note(&granted(lease(3, 1, 1), 1));
    book
}

#[test]
fn tl_32_a_restore_ends_what_is_under_way_and_the_snapshot_is_the_next_version() {
    let mut book = at_work();
    let before = book.run().tokens.clone();
    book.note(&hold(true));
    book.note(&restored(1, (3, 4), (1, 1)));
    let run = book.run();
    assert_eq!(run.tokens.issued, before.issued);
    assert_eq!(run.tokens.merged, before.merged - Tokens(32));
    assert_eq!(run.tokens.abandoned, Tokens(64));
    assert_eq!(
        (run.tokens_in_flight(), run.leases().count()),
        (Tokens(0), 0)
    );
    assert_eq!(
        (run.rounds[3].tokens, run.rounds[3].closed_at),
        (Tokens(0), Some(TIME))
    );
    assert!(run.units.is_empty() && run.open.is_empty() && run.merges.is_empty());
    assert!(run.accepted.keys().all(|unit| unit.round < Round(3)));
    assert_eq!(run.rounds_closed(), Round(4));
    let last = run.last_snapshot().expect("it is named again");
    assert_eq!((last.round, last.manifest), (Round(4), manifest(1)));
    // Round 0 led to the snapshot; the others are undone, and so is the one that was open.
    let undone: Vec<u64> = (0..4)
        .filter(|round| run.is_undone(Round(*round)))
        .collect();
    assert_eq!(undone, [1, 2, 3]);
    assert_eq!(
        (run.undone_of(Round(3)), run.progress(Round(4))),
        (2, Round(1))
    );
    let on_the_way: Vec<u64> = (0..6).filter(|of| run.leads_from(Round(*of))).collect();
    assert_eq!(on_the_way, [0, 1, 4]);
    // The numbers go on: the schedule has five rounds left.
    assert_eq!(run.rounds_planned(), 9);
    for round in [3, 5] {
        book.refuse(&opened(round));
    }
    book.refuse(&granted(lease(3, 1, 2), 1));
    book.refuse(&accepted(lease(3, 1, 1), 1));
    book.note(&opened(4));
    let steps = book.run().spec.schedule.inner_steps.get();
    assert_eq!(book.run().steps_before(Round(4)).get(), steps);
    let base: Vec<_> = book.run().base(&kit::train(4, 0)).cloned().collect();
    assert_eq!(base, [kit::weights(4, BF16, vec![object("weights 1")])]);
    book.note(&granted(lease(4, 0, 1), 1));
    // A save of what was before does not count any more.
    book.refuse(&saved(3));
}

/// Each guard is broken alone.
#[test]
fn tl_32_a_restore_that_does_not_fit_is_refused() {
    let mut book = at_work();
    let right = restored(1, (3, 4), (1, 1));
    book.refuse(&right);
    book.note(&hold(true));
    book.fits(&right);
    for wrong in [
        restored(4, (3, 4), (1, 1)),
        restored(1, (2, 4), (1, 1)),
        restored(1, (3, 5), (1, 1)),
        restored(1, (3, 3), (1, 1)),
        restored(1, (3, 4), (0, 1)),
        restored(1, (3, 4), (1, 0)),
    ] {
        book.refuse(&wrong);
    }
    let mut changed = |change: &dyn Fn(&mut LedgerEvent)| {
        let mut event = right.clone();
        change(&mut event);
        book.refuse(&event);
    };
    changed(&|event| {
        if let LedgerEvent::SnapshotRestored { manifest: of, .. } = event {
            *of = manifest(2);
        }
    });
    changed(&|event| {
        if let LedgerEvent::SnapshotRestored { manifest, .. } = event {
            manifest.bytes = schemas::Bytes(manifest.bytes.get() + 1);
        }
    });
    changed(&|event| {
        if let LedgerEvent::SnapshotRestored { weights, .. } = event {
            weights.codec = kit::FP32;
        }
    });
    changed(&|event| {
        if let LedgerEvent::SnapshotRestored { weights, .. } = event {
            weights.chunks = vec![object("one"), object("two")].into();
        }
    });
}

/// Restores may lead back to what another restore undid. The way of the weights is known for each
/// version, and so are the workers whose contributions it has.
#[test]
fn tl_32_the_way_of_the_weights_leads_through_every_restore() {
    let mut book = Book::of(settings(1));
    for (number, by) in [(0, 0), (1, 1), (2, 0)] {
        round(&mut book, number, by);
    }
    // No round is open: the restore takes a number by itself.
    book.note(&hold(true));
    book.note(&restored(1, (3, 4), (0, 0)));
    let taken = &book.run().rounds[3];
    assert_eq!((taken.opened_at, taken.closed_at), (TIME, Some(TIME)));
    book.note(&hold(false));
    round(&mut book, 4, 2);
    let first = |book: &Book, number, version| {
        let merged = book.run().merged_into(&worker(number), Round(version));
        merged.map(|merged| (merged.first.get(), merged.last.get(), merged.rounds))
    };
    assert_eq!(first(&book, 0, 5), Some((0, 0, 1)));
    assert_eq!(first(&book, 1, 5), None);
    assert_eq!(first(&book, 1, 3), Some((1, 1, 1)));
    assert_eq!(first(&book, 2, 5), Some((4, 4, 1)));
    assert_eq!(first(&book, 2, 4), None);
    let clean = |book: &Book, numbers: &[u32]| {
        let workers: Vec<_> = numbers.iter().map(|number| worker(*number)).collect();
        let found = book.run().last_snapshot_without(workers.iter());
        found.map(|snapshot| snapshot.round.get())
    };
    assert_eq!(clean(&book, &[2]), Some(4));
    assert_eq!(clean(&book, &[1]), Some(5));
    assert_eq!(clean(&book, &[1, 2]), Some(4));
    assert_eq!(clean(&book, &[0]), None);
    // Forward again, to a version that the restore before undid.
    book.note(&opened(5));
    book.note(&hold(true));
    book.note(&restored(3, (5, 6), (0, 0)));
    book.note(&hold(false));
    let run = book.run();
    let undone: Vec<u64> = (0..6)
        .filter(|round| run.is_undone(Round(*round)))
        .collect();
    assert_eq!(undone, [3, 4, 5]);
    assert_eq!(
        (run.progress(Round(6)), run.rounds_planned()),
        (Round(3), 9)
    );
    assert_eq!(first(&book, 1, 6), Some((1, 1, 1)));
    assert_eq!(first(&book, 2, 6), None);
    assert_eq!(first(&book, 0, 6), Some((0, 2, 2)));
    round(&mut book, 6, 0);
    assert_eq!(first(&book, 0, 7), Some((0, 6, 3)));
    // A snapshot that was restored can be restored again, by its own round.
    book.note(&hold(true));
    book.note(&restored(1, (7, 8), (0, 0)));
    assert_eq!(book.run().progress(Round(8)), Round(1));
    assert_eq!(first(&book, 0, 8), Some((0, 0, 1)));
}

#[test]
fn tl_32_a_run_that_was_restored_ends_after_the_rounds_of_its_schedule() {
    let mut settings = settings(1);
    settings.schedule.rounds = 2;
    settings.schedule.evaluation_every = 1;
    let mut book = Book::of(settings);
    let evaluate = |book: &mut Book, version| {
        let lease = evaluation(version, 1);
        book.note(&granted(lease, 1));
        book.note(&evaluated(lease, 1));
    };
    for number in [0, 1] {
        round(&mut book, number, 0);
        evaluate(&mut book, number);
    }
    // Only the last evaluation is left, and it goes: the restored weights are evaluated instead.
    book.note(&hold(true));
    book.note(&restored(2, (2, 3), (0, 0)));
    book.refuse(&granted(evaluation(2, 1), 1));
    book.refuse(&opened(3));
    assert!(book.run().all_rounds_closed());
    book.note(&restored(1, (3, 4), (0, 0)));
    assert!(!book.run().all_rounds_closed());
    book.note(&hold(false));
    round(&mut book, 4, 0);
    book.refuse(&opened(5));
    book.refuse(&LedgerEvent::RunCompleted);
    for version in [4, 5] {
        evaluate(&mut book, version);
    }
    book.note(&LedgerEvent::RunCompleted);
    let held_out = |version| book.run().evaluations.contains_key(&Round(version));
    assert!([0, 1, 4, 5].into_iter().all(held_out) && !held_out(2));
    // Nothing is restored in a run that is over.
    book.refuse(&restored(1, (5, 6), (0, 0)));
}

/// What was undone is compared with nothing any more, and a copy of it is still known.
#[test]
fn tl_32_undone_contributions_count_no_more_beside_later_ones() {
    let mut settings = settings(1);
    settings.policy.comparison = Comparison::of_norms(4.0);
    let mut book = Book::of(settings);
    for number in 0..2 {
        round(&mut book, number, 0);
    }
    book.note(&opened(2));
    book.contribute(2, 0, 0);
    book.note(&hold(true));
    book.note(&restored(1, (2, 3), (0, 1)));
    let run = book.run();
    let counts: Vec<bool> = run.measured.values().map(|found| found.counts).collect();
    assert_eq!(counts, [true, false, false]);
    let chunks = run.measured[&kit::train(2, 0)].chunks;
    let copied = run.copied_from(&kit::train(3, 0), chunks);
    assert_eq!(copied, Some(kit::train(2, 0)));
}

#[test]
fn tl_32_a_checkpoint_knows_the_restores() {
    let mut book = at_work();
    book.note(&hold(true));
    book.note(&restored(2, (3, 4), (1, 1)));
    book.note(&opened(4));
    let mut state = book.state().clone();
    let taken = state.apply(TIME, None, &LedgerEvent::CheckpointTaken);
    taken.expect("it follows");
    let bytes = state.taken().expect("it was taken").to_checkpoint();
    let again = State::from_checkpoint(&bytes).expect("these are its bytes");
    assert!(again == state);
    let run = again.run(&run_id()).expect("it is there");
    assert_eq!(run.restores, book.run().restores);
    assert_eq!(run.restores[0].merged.len(), 3);
}

/// A forged checkpoint must not send a reader around in a circle, or to versions that there are
/// not.
#[test]
fn tl_32_restores_that_contradict_the_history_are_found_out() {
    let mut book = at_work();
    book.note(&hold(true));
    book.note(&restored(2, (3, 4), (1, 1)));
    book.note(&opened(4));
    type Change = fn(&mut RestoreRecord);
    let changes: [Change; 5] = [
        |restore| restore.snapshot = restore.version,
        |restore| restore.snapshot = Round(1),
        |restore| restore.version = Round(9),
        |restore| restore.version = Round(0),
        |restore| restore.manifest = manifest(3),
    ];
    for change in changes {
        let mut run = book.run().clone();
        run.check().expect("nothing is wrong with it");
        change(&mut run.restores[0]);
        let found = run.check().expect_err("no ledger comes to this");
        assert!(found.contains("was restored as version"), "{found}");
    }
    let mut run = book.run().clone();
    run.restores.push(run.restores[0].clone());
    run.check().expect_err("one version is led to once");
}

/// The same snapshot is in the list twice then, with its statement and its pointers.
#[test]
fn tl_19_tl_32_a_restored_snapshot_keeps_its_statement_and_its_pointers() {
    let mut book = Book::of(settings(1));
    book.note(&opened(0));
    book.contribute(0, 0, 0);
    book.note(&sealed(0, &[(0, 1, 32)], 0));
    book.note(&closed(0, 1));
    let statement = object("statement");
    book.note(&LedgerEvent::SnapshotSaved {
        round: Round(1),
        manifest: manifest(1),
        statement: Some(statement),
    });
    book.note(&LedgerEvent::SnapshotPromoted {
        pointer: "release".parse().expect("a name"),
        round: Round(1),
        manifest: manifest(1).digest,
        operator: kit::operator(),
        reason: "it reads well".parse().expect("a reason"),
        accepted: Vec::new(),
    });
    round(&mut book, 1, 0);
    book.note(&hold(true));
    book.note(&restored(1, (2, 3), (0, 0)));
    let views = book.run().snapshot_views();
    let same: Vec<_> = views
        .iter()
        .filter(|view| view.manifest == manifest(1))
        .map(|view| (view.round, view.statement, view.pointers.len()))
        .collect();
    assert_eq!(
        same,
        [
            (Round(1), Some(statement), 1),
            (Round(3), Some(statement), 1)
        ]
    );
}

/// Until something is sealed after it, a restore can be taken to be the last thing that happened.
#[test]
fn tl_32_a_restore_is_the_last_until_a_set_is_sealed_or_merged() {
    let mut book = at_work();
    let last = |book: &Book| book.run().restored_last().map(|last| last.version.get());
    assert_eq!(last(&book), None);
    book.note(&hold(true));
    book.note(&restored(1, (3, 4), (1, 1)));
    assert_eq!(last(&book), Some(4));
    book.note(&hold(false));
    book.note(&opened(4));
    let views = book.run().round_views();
    let undone: Vec<bool> = views.iter().map(|view| view.undone).collect();
    assert_eq!(undone, [false, true, true, true, false]);
    for unit in 0..3 {
        book.contribute(4, unit, unit);
    }
    assert_eq!(last(&book), Some(4));
    book.note(&sealed(4, &[(0, 1, 32), (1, 1, 32), (2, 1, 32)], 0));
    assert_eq!(last(&book), None);
    book.note(&closed(4, 5));
    assert_eq!(last(&book), None);
}

/// A reader is told of the newest round that still counts, and which snapshots do.
#[test]
fn tl_32_a_view_shows_the_loss_of_the_last_round_that_counts() {
    let mut book = Book::of(settings(1));
    for (number, loss) in [(0, 3.0), (1, 2.0)] {
        book.note(&opened(number));
        let lease = lease(number, 0, 1);
        book.note(&granted(lease, 0));
        let mut event = accepted(lease, 0);
        if let LedgerEvent::ContributionAccepted { contribution, .. } = &mut event {
            contribution.loss = loss;
        }
        book.note(&event);
        book.note(&sealed(number, &[(0, 1, 32)], 0));
        book.note(&closed(number, number + 1));
        book.note(&saved(number + 1));
    }
    let shown = |book: &Book| book.run().view(&run_id()).train_loss;
    assert_eq!(shown(&book), Some(2.0));
    book.note(&hold(true));
    book.note(&restored(1, (2, 3), (0, 0)));
    book.note(&hold(false));
    assert_eq!(shown(&book), Some(3.0));
    book.note(&opened(3));
    book.contribute(3, 0, 0);
    assert_eq!(shown(&book), Some(3.0), "the next one is not merged yet");
    let views = book.run().snapshot_views();
    let undone: Vec<bool> = views.iter().map(|view| view.undone).collect();
    assert_eq!(undone, [false, true, false]);
}

/// Versions are numbered on, and the settings count merged rounds.
#[test]
fn tl_32_snapshots_and_evaluations_go_by_the_rounds_that_count() {
    let mut settings = settings(1);
    (
        settings.schedule.snapshot_every,
        settings.schedule.evaluation_every,
    ) = (2, 3);
    let mut book = Book::of(settings);
    for number in 0..3 {
        round(&mut book, number, 0);
    }
    book.note(&hold(true));
    book.note(&restored(1, (3, 4), (0, 0)));
    let run = book.run();
    let saves: Vec<u64> = (0..10).filter(|of| run.saves(Round(*of))).collect();
    let evaluates: Vec<u64> = (0..10).filter(|of| run.evaluates(Round(*of))).collect();
    // Version 4 descends from one merged round, version 5 from two.
    assert_eq!(saves, [0, 2, 5, 7, 9]);
    assert_eq!(evaluates, [0, 3, 6, 9]);
}

/// Where a restore went back to the middle of a worker's rounds, `rounds` is what they can be at
/// most.
#[test]
fn tl_32_a_worker_has_no_more_merged_rounds_than_there_are_up_to_the_snapshot() {
    let mut book = Book::of(settings(1));
    for (number, by) in [(0, 1), (1, 0), (2, 0), (3, 0)] {
        round(&mut book, number, by);
    }
    book.note(&hold(true));
    book.note(&restored(3, (4, 5), (0, 0)));
    let merged = book.run().merged_into(&worker(0), Round(5));
    let merged = merged.expect("two of its rounds led there");
    assert_eq!(
        (merged.first, merged.last, merged.rounds),
        (Round(1), Round(2), 2)
    );
}

/// The keys that a worker had before are its own: what it did under each is summed up.
#[test]
fn tl_32_the_merged_rounds_of_a_worker_are_those_under_all_its_keys() {
    let mut book = Book::of(settings(1));
    for number in 0..2 {
        round(&mut book, number, 0);
    }
    book.note(&left(0, Departure::Left));
    let mut renamed = joined(5);
    if let LedgerEvent::WorkerJoined { before, .. } = &mut renamed {
        *before = Some(worker(0));
    }
    book.note(&renamed);
    for number in 2..5 {
        round(&mut book, number, 5);
    }
    let merged = |number, version| {
        let merged = book.run().merged_into(&worker(number), Round(version));
        merged.map(|merged| (merged.first.get(), merged.last.get(), merged.rounds))
    };
    assert_eq!(merged(5, 5), Some((0, 4, 5)));
    assert_eq!(merged(5, 2), Some((0, 1, 2)));
    assert_eq!(merged(0, 5), Some((0, 1, 2)));
}

#[test]
fn a_run_is_restored_a_bounded_number_of_times() {
    let mut book = Book::of(settings(1));
    round(&mut book, 0, 0);
    book.note(&hold(true));
    let most = RESTORES_MAX as u64;
    for number in 0..most {
        book.note(&restored(1, (number + 1, number + 2), (0, 0)));
    }
    book.refuse(&restored(1, (most + 1, most + 2), (0, 0)));
}
