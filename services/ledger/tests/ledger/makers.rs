//! Whose contributions each full snapshot has: one pass over all of them says the same as a
//! question about each.

use kit::{BF16, object};
use ledger::{Run, SnapshotRecord};
use schemas::event::{Departure, LedgerEvent};
use schemas::promotion::PointerName;
use schemas::{Round, WorkerId};

use crate::kit::{
    Book, closed, hold, joined, left, manifest, opened, sealed, spec, stated, worker,
};

/// Workers of a history, by their first keys.
const WORKERS: u32 = 6;
/// The second key of worker 0.
const RENAMED: u32 = 20;

/// A round of one unit, whose weights are saved.
fn round(book: &mut Book, number: u32) {
    let round = book.run().rounds_closed().get();
    book.note(&opened(round));
    book.contribute(round, 0, number);
    book.note(&sealed(round, &[(0, 1, 32)], 0));
    book.note(&closed(round, round + 1));
    book.note(&stated(round + 1));
}

/// Leads the run back to the snapshot that was first saved as that of this round.
fn restore(book: &mut Book, snapshot: u64) {
    let from = book.run().rounds_closed();
    book.note(&hold(true));
    book.note(&LedgerEvent::SnapshotRestored {
        snapshot: Round(snapshot),
        manifest: manifest(snapshot),
        from,
        weights: kit::weights(
            from.get() + 1,
            BF16,
            vec![object(&format!("weights {snapshot}"))],
        ),
        operator: kit::operator(),
        reason: "odd loss".parse().expect("a reason"),
        leases: 0,
        contributions: 0,
    });
    book.note(&hold(false));
}

fn shut(book: &mut Book, number: u32) {
    book.note(&LedgerEvent::WorkerQuarantined {
        worker: worker(number),
        operator: kit::operator(),
        reason: "odd norms".parse().expect("a reason"),
        lease: None,
        withdrawn: 0,
    });
}

/// A run that went back four times: to the middle, to what was undone, twice in a row, and to its
/// first snapshot. Worker 0 has another key from the first restore on.
fn history() -> Book {
    let mut settings = spec();
    (settings.schedule.units, settings.schedule.rounds) = (1, 40);
    let mut book = Book::of(settings);
    for number in 3..WORKERS {
        book.note(&joined(number));
    }
    for number in [1, 0, 2, 1, 3] {
        round(&mut book, number);
    }
    restore(&mut book, 3);
    book.note(&left(0, Departure::Left));
    let mut renamed = joined(RENAMED);
    if let LedgerEvent::WorkerJoined { before, .. } = &mut renamed {
        *before = Some(worker(0));
    }
    book.note(&renamed);
    for number in [4, RENAMED, 2] {
        round(&mut book, number);
    }
    restore(&mut book, 5);
    round(&mut book, 5);
    restore(&mut book, 8);
    restore(&mut book, 1);
    for number in [2, RENAMED] {
        round(&mut book, number);
    }
    book
}

/// The full snapshots without contributions of these workers, asked for one by one.
fn clean<'a>(run: &'a Run, workers: &[WorkerId]) -> Vec<&'a SnapshotRecord> {
    let without = |one: &&SnapshotRecord| {
        let merged = |worker| run.merged_into(worker, one.round);
        workers.iter().all(|worker| merged(worker).is_none())
    };
    run.snapshots.iter().filter(without).collect()
}

#[test]
fn tl_31_one_pass_over_the_snapshots_says_the_same_as_a_question_about_each() {
    let history = history();
    let keys: Vec<u32> = (0..WORKERS).chain([RENAMED]).collect();
    let release: PointerName = "release".parse().expect("a name");
    let mut numbers = Vec::new();
    for bits in 0_u32..1 << keys.len() {
        let mut book = history.clone();
        let chosen = keys.iter().enumerate();
        let chosen = chosen.filter(|(place, _)| bits >> place & 1 == 1);
        let shut_out: Vec<u32> = chosen.map(|(_, number)| *number).collect();
        for number in &shut_out {
            shut(&mut book, *number);
        }
        let (run, views) = (book.run(), book.run().snapshot_views());
        for (view, snapshot) in views.iter().zip(&run.snapshots) {
            assert_eq!(*view, run.snapshot_view(snapshot), "{shut_out:?}");
        }
        let told = views.iter().map(|view| view.quarantined);
        numbers.extend(told.flatten().map(|number| number.get()));
        let workers: Vec<WorkerId> = shut_out.iter().map(|number| worker(*number)).collect();
        let last = clean(run, &workers).last().copied();
        assert_eq!(run.last_snapshot_without(workers.iter()), last);
        let promotable = run.last_promotable(&release);
        let digest = |one: &SnapshotRecord| one.manifest.digest;
        assert_eq!(promotable.map(digest), last.map(digest), "{shut_out:?}");
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6], "the history shows each case");
}

/// Ledgers of builds before quarantines, and before seals, have the same contributions: a worker
/// that is shut out today is found in what was merged then.
#[test]
fn tl_19_tl_31_a_quarantine_is_about_contributions_of_before_too() {
    let mut settings = spec();
    settings.schedule.units = 1;
    let mut book = Book::of(settings);
    for number in [1, 0] {
        let round = book.run().rounds_closed().get();
        book.note(&opened(round));
        book.contribute(round, 0, number);
        book.note(&closed(round, round + 1));
        book.note(&stated(round + 1));
    }
    assert!(!book.run().seals, "an earlier build named no sets");
    let release: PointerName = "release".parse().expect("a name");
    let newest = |book: &Book| book.run().last_promotable(&release).map(|one| one.round);
    assert_eq!(newest(&book), Some(Round(2)), "nobody is in quarantine");
    let promoted = LedgerEvent::SnapshotPromoted {
        pointer: release.clone(),
        round: Round(2),
        manifest: manifest(2).digest,
        operator: kit::operator(),
        reason: "it reads well".parse().expect("a reason"),
        accepted: Vec::new(),
    };
    book.note(&promoted);
    shut(&mut book, 0);
    // A promotion of before the quarantine stands; the same one is refused after it.
    let leads = book.run().pointers.get(&release);
    assert_eq!(leads.map(|record| record.round), Some(Round(2)));
    let mut later = promoted;
    if let LedgerEvent::SnapshotPromoted { pointer, .. } = &mut later {
        *pointer = "next".parse().expect("a name");
    }
    book.refuse(&later);
    assert_eq!(newest(&book), Some(Round(1)));
    shut(&mut book, 1);
    assert_eq!(newest(&book), None);
}

#[test]
fn snapshots_that_stand_in_another_order_contradict_the_history() {
    let book = history();
    let mut run = book.run().clone();
    run.check().expect("nothing is wrong with it");
    run.snapshots.swap(0, 1);
    let fault = run.check().expect_err("no ledger comes to this");
    assert!(fault.contains("is listed before snapshot"), "{fault}");
}
