//! Pointers to full snapshots: where they lead, and which promotions cannot follow.

use ledger::{FORMAT, State, Unpromotable};
use schemas::event::LedgerEvent;
use schemas::hold::Hold;
use schemas::promotion::{POINTERS_MAX, PointerName};
use schemas::{Digest, ObjectRef, Round};

use crate::kit::{Book, TIME, evaluating, manifest, run_id, worker};

fn saved(version: u64, statement: Option<ObjectRef>) -> LedgerEvent {
    LedgerEvent::SnapshotSaved {
        round: Round(version),
        manifest: manifest(version),
        statement,
    }
}

fn promoted(pointer: &str, version: u64) -> LedgerEvent {
    LedgerEvent::SnapshotPromoted {
        pointer: name(pointer),
        round: Round(version),
        manifest: manifest(version).digest,
        operator: kit::operator(),
        reason: "it reads well".parse().expect("a reason"),
        accepted: Vec::new(),
    }
}

fn name(text: &str) -> PointerName {
    text.parse().expect("a name")
}

/// A run with snapshots of versions 1 and 2, of which each has a statement.
fn with_snapshots() -> Book {
    let mut book = Book::of(evaluating());
    for version in [1, 2] {
        book.round(version - 1);
        let statement = kit::object(&format!("statement {version}"));
        book.note(&saved(version, Some(statement)));
    }
    book
}

/// The round to which a pointer leads.
fn leads(book: &Book, pointer: &str) -> Option<u64> {
    let record = book.run().pointers.get(&name(pointer))?;
    Some(record.round.get())
}

#[test]
fn tl_19_a_pointer_leads_where_it_was_moved_last_also_back() {
    let mut book = with_snapshots();
    book.note(&promoted("release", 1));
    book.note(&promoted("release", 2));
    book.note(&promoted("next", 2));
    assert_eq!(
        (leads(&book, "release"), leads(&book, "next")),
        (Some(2), Some(2))
    );
    book.refuse(&promoted("release", 2));
    book.note(&promoted("release", 1));
    assert_eq!(
        (leads(&book, "release"), leads(&book, "next")),
        (Some(1), Some(2))
    );
    let views = book.run().snapshot_views();
    let pointers = views.iter().map(|view| view.pointers.clone());
    assert_eq!(
        pointers.collect::<Vec<_>>(),
        [[name("release")], [name("next")]]
    );
    let statement = kit::object("statement 2");
    assert_eq!(views[1].statement, Some(statement));
}

#[test]
fn tl_19_only_a_snapshot_with_a_statement_is_promoted() {
    let mut book = Book::of(evaluating());
    book.round(0);
    book.refuse(&promoted("release", 1));
    book.note(&saved(1, None));
    book.refuse(&promoted("release", 1));
    let why = |digest| book.run().promotable(&name("release"), digest).err();
    assert_eq!(why(manifest(1).digest), Some(Unpromotable::Unattested));
    assert_eq!(why(manifest(2).digest), Some(Unpromotable::Unknown));
    let mut book = with_snapshots();
    let wrong = match promoted("release", 1) {
        LedgerEvent::SnapshotPromoted {
            pointer,
            manifest,
            operator,
            reason,
            accepted,
            ..
        } => LedgerEvent::SnapshotPromoted {
            pointer,
            round: Round(2),
            manifest,
            operator,
            reason,
            accepted,
        },
        other => panic!("{other:?}"),
    };
    book.refuse(&wrong);
    book.note(&promoted("release", 1));
}

#[test]
fn tl_19_a_frozen_run_promotes_nothing() {
    let mut book = with_snapshots();
    book.fits(&promoted("release", 1));
    book.note(&LedgerEvent::HoldPlaced {
        hold: Hold::Merges,
        operator: kit::operator(),
        reason: "odd norms".parse().expect("a reason"),
    });
    book.refuse(&promoted("release", 1));
}

/// The event of a promotion that accepts these workers.
fn accepting(version: u64, workers: &[u32]) -> LedgerEvent {
    match promoted("release", version) {
        LedgerEvent::SnapshotPromoted {
            pointer,
            round,
            manifest,
            operator,
            reason,
            ..
        } => LedgerEvent::SnapshotPromoted {
            pointer,
            round,
            manifest,
            operator,
            reason,
            accepted: workers.iter().map(|number| worker(*number)).collect(),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn tl_19_tl_31_a_promotion_names_all_workers_in_quarantine_that_the_snapshot_has_and_no_others() {
    let mut book = with_snapshots();
    book.refuse(&accepting(2, &[0]));
    assert_eq!(
        book.run()
            .last_promotable(&name("release"))
            .map(|one| one.round),
        Some(Round(2))
    );
    // Worker 0 made both rounds, and worker 1 nothing.
    for number in [0, 1] {
        book.note(&LedgerEvent::WorkerQuarantined {
            worker: worker(number),
            operator: kit::operator(),
            reason: "odd norms".parse().expect("a reason"),
            lease: None,
            withdrawn: 0,
        });
    }
    assert_eq!(book.run().last_promotable(&name("release")), None);
    for wrong in [&[][..], &[1], &[0, 1], &[0, 0]] {
        book.refuse(&accepting(2, wrong));
    }
    book.note(&accepting(2, &[0]));
    assert_eq!(leads(&book, "release"), Some(2));
    let shut = book.run().snapshot_views();
    let shut = shut
        .iter()
        .map(|view| view.quarantined.map(|count| count.get()));
    assert_eq!(shut.collect::<Vec<_>>(), [Some(1), Some(1)]);
}

#[test]
fn a_run_has_a_bounded_number_of_pointers() {
    let mut book = with_snapshots();
    for number in 0..POINTERS_MAX {
        book.note(&promoted(&format!("p{number}"), 1));
    }
    book.refuse(&promoted("one-more", 1));
    let why = book.run().promotable(&name("one-more"), manifest(1).digest);
    assert_eq!(why.err(), Some(Unpromotable::Full));
    book.note(&promoted("p3", 2));
}

#[test]
fn a_state_whose_pointers_or_statements_lead_nowhere_contradicts_itself() {
    let mut book = with_snapshots();
    book.note(&promoted("release", 2));
    let run = book.run();
    run.check().expect("nothing is wrong with it");
    let mut other = run.clone();
    other.snapshots.pop();
    let fault = other.check().expect_err("its snapshot is gone");
    assert!(fault.contains("pointer release"), "{fault}");
    let mut other = run.clone();
    let record = other.pointers.get_mut(&name("release"));
    record.expect("it was moved").round = Round(1);
    let fault = other.check().expect_err("of another round");
    assert!(fault.contains("pointer release"), "{fault}");
    let mut other = run.clone();
    other.statements.insert(Round(7), kit::object("statement"));
    let fault = other.check().expect_err("a statement about nothing");
    assert!(fault.contains("round 7"), "{fault}");
}

/// If these bytes change, [`FORMAT`] must become the next number.
#[test]
fn pointers_and_statements_stand_in_a_checkpoint() {
    let mut book = with_snapshots();
    book.note(&promoted("release", 1));
    let state = book.state();
    let bytes = state.to_checkpoint();
    let mut back = State::from_checkpoint(&bytes).expect("these are its bytes");
    assert_eq!(back.run(&run_id()), state.run(&run_id()));
    let again = back.apply(TIME, Some(&run_id()), &promoted("release", 1));
    assert!(again.is_err(), "it leads there");
    assert_eq!(
        (FORMAT, Digest::of(&bytes).hex().as_str()),
        (
            2,
            "be5ffe5f808fb05bba0d9998abb1ff1095d6675b5aaf065d3c00843a3e20278e"
        )
    );
}
