//! Collections of old objects: what they may give up, and what the mark leaves to go.

use std::collections::{BTreeMap, BTreeSet};

use kit::{BF16, object};
use ledger::{Kind, Mark, Named, Needed, Run, State};
use schemas::collection::COLLECTIONS_MAX;
use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::hold::Hold;
use schemas::run::RunSpec;
use schemas::{Bytes, ChainSequence, Digest, Round, RunId, V};

use crate::kit::{
    Book, TIME, closed, created, joined, manifest, opened, run_id, sealed, spec, stated, worker,
};

fn given_up(through: u64, snapshots: u32) -> LedgerEvent {
    LedgerEvent::ObjectsGivenUp {
        through: Round(through),
        snapshots,
        objects: 9,
        bytes: Bytes(9),
        list: Digest::of(b"list"),
        operator: kit::operator(),
        reason: "the disk is full".parse().expect("a reason"),
    }
}

fn promoted(version: u64) -> LedgerEvent {
    LedgerEvent::SnapshotPromoted {
        pointer: "release".parse().expect("a name"),
        round: Round(version),
        manifest: manifest(version).digest,
        operator: kit::operator(),
        reason: "it reads well".parse().expect("a reason"),
        accepted: Vec::new(),
    }
}

fn freeze() -> LedgerEvent {
    LedgerEvent::HoldPlaced {
        hold: Hold::Merges,
        operator: kit::operator(),
        reason: "odd loss".parse().expect("a reason"),
    }
}

/// A run with full snapshots of versions 1 to `count`.
fn with_snapshots(count: u64) -> Book {
    let mut spec = spec();
    spec.schedule.units = 1;
    spec.schedule.rounds = count + 1;
    spec.schedule.evaluation_every = 0;
    let mut book = Book::of(spec);
    for version in 1..=count {
        book.round(version - 1);
        book.note(&stated(version));
    }
    book
}

#[test]
fn the_newest_snapshots_are_kept_with_everything_since() {
    let book = with_snapshots(4);
    let from = |keep| book.run().keeps_from(keep).get();
    assert_eq!((from(1), from(2), from(4)), (4, 3, 1));
    assert_eq!((from(0), from(5), from(u32::MAX)), (4, 0, 0));
}

#[test]
fn what_was_given_up_stays_known_with_its_event() {
    let mut book = with_snapshots(4);
    let events = book.state().events();
    book.note(&given_up(3, 2));
    let run = book.run();
    let by = |round| run.round_given_up(Round(round)).map(|by| by.sequence);
    assert_eq!((by(2), by(3)), (Some(ChainSequence(events)), None));
    let gone = |version| run.snapshot_given_up(&manifest(version).digest).is_some();
    assert_eq!([1, 2, 3, 4].map(gone), [true, true, false, false]);
    assert_eq!(run.keeps_from(4), Round(3), "it is not taken back");
    let views = run.snapshot_views();
    let marked = views.iter().map(|view| view.given_up.is_some());
    assert!(marked.eq([true, true, false, false]));
    // A later one names the next event, and the first keeps what it gave up.
    book.note(&given_up(4, 1));
    let run = book.run();
    let by = |round| run.round_given_up(Round(round)).map(|by| by.sequence.get());
    assert_eq!((by(2), by(3)), (Some(events), Some(events + 1)));
}

#[test]
fn a_collection_that_gives_up_nothing_or_too_much_does_not_follow() {
    let mut book = with_snapshots(3);
    for wrong in [
        given_up(4, 3),
        given_up(3, 1),
        given_up(3, 3),
        given_up(0, 0),
    ] {
        book.refuse(&wrong);
    }
    book.fits(&given_up(3, 2));
    book.note(&given_up(2, 1));
    book.refuse(&given_up(2, 0));
    book.refuse(&given_up(1, 0));
    assert!(!book.run().may_give_up(Round(2)) && book.run().may_give_up(Round(3)));
}

#[test]
fn a_snapshot_to_which_a_pointer_leads_is_kept_until_the_pointer_moves() {
    let mut book = with_snapshots(4);
    book.note(&promoted(1));
    book.refuse(&given_up(4, 3));
    book.note(&given_up(4, 2));
    assert!(book.run().snapshot_given_up(&manifest(1).digest).is_none());
    book.refuse(&promoted(2));
    book.note(&promoted(4));
    // The same round, and one snapshot more.
    book.note(&given_up(4, 1));
    assert!(book.run().snapshot_given_up(&manifest(1).digest).is_some());
}

#[test]
fn a_frozen_run_gives_up_nothing() {
    let mut book = with_snapshots(3);
    book.fits(&given_up(3, 2));
    book.note(&freeze());
    book.refuse(&given_up(3, 2));
}

#[test]
fn collections_are_bounded() {
    let most = COLLECTIONS_MAX as u64;
    let mut book = with_snapshots(most + 2);
    for through in 2..=most {
        book.note(&given_up(through, 1));
    }
    book.note(&given_up(most + 1, 1));
    assert!(book.run().collections_full() && !book.run().may_give_up(Round(most + 2)));
    book.refuse(&given_up(most + 2, 1));
}

#[test]
fn a_checkpoint_knows_what_was_given_up_and_older_states_keep_their_bytes() {
    let mut book = with_snapshots(3);
    let before = book.state().to_checkpoint();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains("given_up");
    assert!(!text(&before), "left out while there is nothing");
    book.note(&given_up(2, 1));
    let bytes = book.state().to_checkpoint();
    assert!(text(&bytes));
    let read = State::from_checkpoint(&bytes).expect("it reads back");
    assert_eq!(read.run(&run_id()), Some(book.run()));
}

/// A ledger of two runs with the same names of objects, as the mark reads it.
#[derive(Default)]
struct Chain {
    state: State,
    events: Vec<EventBody>,
}

impl Chain {
    fn note(&mut self, run: &RunId, event: LedgerEvent) {
        let applied = self.state.apply(TIME, Some(run), &event);
        applied.unwrap_or_else(|error| panic!("{event:?}: {error}"));
        self.events.push(EventBody {
            v: V,
            known: None,
            emitter: kit::operator(),
            sequence: ChainSequence(self.events.len() as u64),
            previous: None,
            time: TIME,
            run: Some(run.clone()),
            event: Event::Ledger(event),
        });
    }

    /// A run with full snapshots of versions 1 to `count`, whose objects begin with `prefix`.
    fn run(&mut self, name: &str, prefix: &str, count: u64) -> RunId {
        self.run_of(spec(), name, prefix, count)
    }

    fn run_of(&mut self, mut spec: RunSpec, name: &str, prefix: &str, count: u64) -> RunId {
        use crate::kit::{accepted, granted, lease};
        let name: RunId = name.parse().expect("a name");
        spec.run = name.clone();
        spec.schedule.units = 1;
        spec.schedule.rounds = 6;
        spec.schedule.evaluation_every = 0;
        spec.data_provenance = Some(object(&format!("{prefix} data statement")));
        self.note(&name, created(spec));
        self.note(&name, joined(0));
        for round in 0..count {
            self.note(&name, opened(round));
            self.note(&name, granted(lease(round, 0, 1), 0));
            let mut event = accepted(lease(round, 0, 1), 0);
            if let LedgerEvent::ContributionAccepted { contribution, .. } = &mut event {
                let bytes = contribution.chunks.total().get();
                let chunk = format!("{prefix} contribution {round}");
                contribution.chunks = vec![kit::sized(&chunk, bytes)].into();
            }
            self.note(&name, event);
            self.note(&name, sealed(round, &[(0, 1, 32)], 0));
            let weights = object(&format!("{prefix} weights {}", round + 1));
            self.note(
                &name,
                LedgerEvent::RoundClosed {
                    round: Round(round),
                    fragment: schemas::Fragment::FIRST,
                    broadcast: kit::weights(round + 1, BF16, vec![weights]),
                    norm: 1.0,
                    tokens: schemas::Tokens(32),
                },
            );
            self.note(
                &name,
                LedgerEvent::SnapshotSaved {
                    round: Round(round + 1),
                    manifest: object(&format!("{prefix} snapshot {}", round + 1)),
                    statement: Some(object(&format!("{prefix} statement {}", round + 1))),
                },
            );
        }
        name
    }

    fn mark<'a>(&'a self, run: &'a RunId, through: u64) -> Mark<'a> {
        let mut mark = Mark::new(&self.state, run, Round(through));
        self.events.iter().for_each(|body| mark.note(body));
        mark
    }
}

/// The kinds and rounds of what goes.
fn going(mark: &Mark<'_>) -> Vec<(Kind, u64)> {
    let all = mark.old.iter().map(|old| (old.kind, old.round.get()));
    all.collect()
}

fn needs(mark: &Mark<'_>, name: &str) -> bool {
    let wanted = object(name).digest;
    mark.needed.iter().any(|one| match &one.named {
        Named::Plain(object) | Named::Snapshot(object) | Named::Data(object) => {
            object.digest == wanted
        }
        Named::Chunks(chunks) => {
            let mut chunks = chunks.objects().iter();
            chunks.any(|chunk| chunk.digest == wanted)
        }
    })
}

#[test]
fn only_what_events_of_the_run_name_as_old_goes() {
    let mut chain = Chain::default();
    let (one, other) = (chain.run("one", "a", 3), chain.run("other", "b", 3));
    let mark = chain.mark(&one, 2);
    use Kind::{Contribution, Snapshot, Weights};
    let expected = [
        (Contribution, 0),
        (Weights, 1),
        (Snapshot, 1),
        (Contribution, 1),
    ];
    assert_eq!(going(&mark), expected);
    for name in [
        "a contribution 2",
        "a weights 2",
        "a weights 3",
        "a snapshot 2",
        "a statement 1",
        "a data statement",
        // Lineage leads through the manifest, of which only the other objects go.
        "a snapshot 1",
        "b contribution 0",
        "b weights 1",
        "b snapshot 1",
    ] {
        assert!(needs(&mark, name), "{name}");
    }
    for name in ["a contribution 0", "a contribution 1", "a weights 1"] {
        assert!(!needs(&mark, name), "{name}");
    }
    let of = chain.state.run(&other).expect("it is there");
    let data =
        |one: &Needed| one.run.as_ref() == Some(&other) && one.named == Named::Data(of.spec.data);
    assert!(mark.needed.iter().any(data), "the data of every run");
}

/// A release is kept whole, however old it is.
#[test]
fn the_snapshot_to_which_a_pointer_leads_does_not_go() {
    let mut chain = Chain::default();
    let one = chain.run("one", "a", 3);
    let mut release = promoted(1);
    if let LedgerEvent::SnapshotPromoted { manifest, .. } = &mut release {
        *manifest = object("a snapshot 1").digest;
    }
    chain.note(&one, release);
    use Kind::{Contribution, Weights};
    let expected = [(Contribution, 0), (Weights, 1), (Contribution, 1)];
    assert_eq!(going(&chain.mark(&one, 2)), expected);
}

#[test]
fn what_another_run_has_given_up_is_not_needed_by_it() {
    let mut chain = Chain::default();
    let (one, other) = (chain.run("one", "a", 3), chain.run("other", "b", 3));
    chain.note(&other, given_up(2, 1));
    let mark = chain.mark(&one, 0);
    assert_eq!(going(&mark), []);
    assert!(!needs(&mark, "b contribution 1") && needs(&mark, "b contribution 2"));
    // The same order again, after a process that died before it had deleted.
    let again = chain.mark(&other, 2);
    assert_eq!(going(&again).len(), 4);
}

/// Without the same weights at the beginning no later weights are the same.
#[test]
fn runs_that_began_with_the_same_weights_may_have_made_the_same_objects() {
    let mut chain = Chain::default();
    let (one, twin) = (chain.run("one", "a", 1), chain.run("twin", "b", 1));
    let mut apart = spec();
    apart.model.initial = vec![object("other weights")].into();
    let apart = chain.run_of(apart, "apart", "c", 1);
    let kin = chain.mark(&one, 0).kin();
    assert_eq!(kin, BTreeSet::from([one, twin]));
    let kin = chain.mark(&apart, 0).kin();
    assert_eq!(kin, BTreeSet::from([apart]));
}

#[test]
fn objects_that_something_needs_or_that_are_gone_do_not_go() {
    let digest = |name: &str| object(name).digest;
    let layers = |names: &[(&str, u8)]| -> Vec<(Digest, u8)> {
        let named = names.iter().map(|(name, layer)| (digest(name), *layer));
        named.collect()
    };
    let old = [
        (
            Kind::Contribution,
            Round(3),
            layers(&[("shared", 0), ("a", 0)]),
        ),
        (
            Kind::Weights,
            Round(1),
            layers(&[("a", 0), ("list", 1), ("b", 0)]),
        ),
        (
            Kind::Weights,
            Round(2),
            layers(&[("gone", 0), ("c", 0), ("needed", 0)]),
        ),
        (Kind::Snapshot, Round(1), layers(&[("shared", 1)])),
    ];
    let needed = BTreeSet::from([digest("needed")]);
    let stored = ["shared", "a", "b", "c", "list", "needed", "foreign"];
    let stored: BTreeMap<Digest, Bytes> = stored
        .iter()
        .map(|name| (digest(name), Bytes(name.len() as u64)))
        .collect();
    let plan = Mark::sweep(old, &needed, &stored);
    let counts =
        |kind: schemas::collection::Collected| (kind.objects, kind.bytes.get(), kind.rounds);
    assert_eq!(
        counts(plan.contributions),
        (2, 7, Some((Round(3), Round(3))))
    );
    assert_eq!(counts(plan.weights), (3, 6, Some((Round(1), Round(2)))));
    assert_eq!(counts(plan.snapshots), (0, 0, None));
    assert_eq!(plan.bytes(), Bytes(13));
    let order = plan.in_order();
    let last = BTreeSet::from([digest("shared"), digest("list")]);
    assert_eq!(order.len(), 2);
    assert_eq!(order[1].iter().copied().collect::<BTreeSet<_>>(), last);
    assert_eq!(order[0].len() + order[1].len(), plan.objects.len());
    // The list is the same whatever the order was.
    let again = Mark::sweep(
        [(
            Kind::Snapshot,
            Round(9),
            order.concat().into_iter().map(|one| (one, 0)).collect(),
        )],
        &needed,
        &stored,
    );
    assert_eq!(again.list(), plan.list());
    assert_ne!(again.list(), Mark::sweep([], &needed, &stored).list());
}

/// A forged checkpoint must not make a reader believe that what it needs was given up.
#[test]
fn a_state_that_gave_up_what_its_weights_come_from_contradicts_itself() {
    let mut book = with_snapshots(4);
    book.note(&given_up(3, 2));
    book.note(&given_up(4, 1));
    book.run().check().expect("nothing is wrong with it");
    type Change = fn(&mut Run);
    let changes: [(Change, &str); 5] = [
        (
            |run| run.given_up.reverse(),
            "before round 3 was given up, before that 4",
        ),
        (
            |run| run.given_up[0].snapshots.reverse(),
            "before round 3 was given up, before that 0",
        ),
        (
            |run| run.given_up[0].snapshots = vec![manifest(1).digest; 2],
            "before round 3 was given up, before that 0",
        ),
        (
            |run| run.given_up[1].through = Round(5),
            "come from was given up, before round 5",
        ),
        (
            |run| run.given_up[1].snapshots = vec![manifest(4).digest],
            "come from was given up, before round 4",
        ),
    ];
    for (change, wanted) in changes {
        let mut run = book.run().clone();
        change(&mut run);
        let found = run.check().expect_err("no ledger comes to this");
        assert!(found.contains(wanted), "{found}");
    }
}

/// The restored snapshot is in the list twice, and is one; those that it left behind do not count.
#[test]
fn after_a_restore_the_snapshots_on_the_way_are_counted_each_once() {
    let mut book = with_snapshots(3);
    book.note(&freeze());
    book.note(&LedgerEvent::SnapshotRestored {
        snapshot: Round(2),
        manifest: manifest(2),
        from: Round(3),
        weights: kit::weights(4, BF16, vec![object("weights 2")]),
        operator: kit::operator(),
        reason: "odd loss".parse().expect("a reason"),
        leases: 0,
        contributions: 0,
    });
    let from = |keep| book.run().keeps_from(keep).get();
    assert_eq!((from(1), from(2), from(3)), (4, 1, 0));
}

/// Nobody can go back to a snapshot whose objects are gone.
#[test]
fn a_snapshot_that_was_given_up_is_none_without_a_worker() {
    let mut book = with_snapshots(2);
    book.note(&opened(2));
    book.contribute(2, 0, 1);
    book.note(&sealed(2, &[(0, 1, 32)], 0));
    book.note(&closed(2, 3));
    book.note(&stated(3));
    let clean = |book: &Book| {
        let found = book.run().last_snapshot_without([worker(1)].iter());
        found.map(|snapshot| snapshot.round)
    };
    assert_eq!(clean(&book), Some(Round(2)));
    book.note(&given_up(3, 2));
    assert_eq!(clean(&book), None);
}
