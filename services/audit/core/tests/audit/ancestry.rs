//! The ancestry of snapshots and contributions, from the ledger of a run.

use std::collections::BTreeMap;
use std::sync::Arc;

use audit_core::ancestry::{Ancestry, Draw, History, SavedSnapshot, Subject};
use schemas::event::LedgerEvent;
use schemas::member::{Posture, Session};
use schemas::provenance::{HandedIn, MadeFrom, Maker, Provenance};
use schemas::snapshot::SnapshotManifest;
use schemas::{Bytes, ChainSequence, Chunks, Digest, ObjectRef, PublicKey, Round, V};

use crate::lineage::{chunk, lease, manifest, published, spec, statement, written};
use crate::log::{DOMAIN, Log, Member, run};

fn said(version: u64) -> ObjectRef {
    kit::object(&format!("statement {version}"))
}

/// The ledger of the other tests, of a coordinator that was replaced by a newer one, with a
/// statement about each snapshot, and with snapshot 2 promoted.
fn record() -> Log {
    let mut log = Log::new(DOMAIN, 3);
    let started = |release: &str| LedgerEvent::CoordinatorStarted {
        release: release.to_owned(),
        posture: Posture::default(),
        session: Session(1),
    };
    log.ledger(None, started("1.0.0"));
    for record in written().records {
        let event = crate::log::event(&record);
        match event {
            LedgerEvent::SnapshotSaved {
                round, manifest, ..
            } => {
                let statement = Some(said(round.get()));
                let event = LedgerEvent::SnapshotSaved {
                    round,
                    manifest,
                    statement,
                };
                log.ledger(Some(run()), event);
            }
            LedgerEvent::RoundOpened { round: Round(2) } => {
                log.ledger(None, started("2.0.0"));
                log.ledger(Some(run()), event);
            }
            _ => log.ledger(Some(run()), event),
        }
    }
    log.ledger(
        Some(run()),
        LedgerEvent::SnapshotPromoted {
            pointer: "release".parse().expect("a name"),
            round: Round(2),
            manifest: manifest(2).digest,
            operator: kit::operator(),
            reason: "it reads well".parse().expect("a reason"),
            accepted: Vec::new(),
        },
    );
    log
}

fn collected(wanted: Digest) -> Ancestry {
    follow(&record(), wanted)
}

fn follow(log: &Log, wanted: Digest) -> Ancestry {
    let mut auditor = log.auditor().tracing_back(Ancestry::new(wanted));
    for record in &log.records {
        auditor.observe(record);
    }
    assert!(auditor.evidence().is_none(), "{:?}", auditor.evidence());
    auditor.take_ancestry().expect("it was collected")
}

/// The snapshot that is wanted, with the history of its run.
fn snapshot(wanted: Digest) -> (History, SavedSnapshot) {
    let ancestry = collected(wanted);
    match ancestry.find() {
        Some((name, history, Subject::Snapshot(snapshot))) => {
            assert_eq!(*name, run());
            (history.clone(), snapshot.clone())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn tl_19_a_snapshot_rests_on_the_one_before_and_the_merges_between() {
    for wanted in [manifest(3).digest, said(3).digest] {
        let (history, last) = snapshot(wanted);
        assert_eq!((last.round, last.statement), (Round(3), Some(said(3))));
        assert_eq!(last.parent, Some(manifest(2).digest));
        let rounds = last.merges.iter().map(|merge| merge.round);
        assert!(rounds.eq([Round(2)]));
        let line = history.line(&last);
        let rounds = line.iter().map(|one| one.round.get());
        assert!(rounds.eq([3, 2, 1]));
        assert_eq!(line[2].parent, None);
        // The release is that of the coordinator that led then.
        let releases = line.iter().map(|one| one.release.as_str());
        assert!(releases.eq(["2.0.0", "1.0.0", "1.0.0"]));
        assert_eq!(history.merged[&Round(1)].release, "1.0.0");
        assert_eq!(history.merged[&Round(2)].broadcast, published(3));
    }
    let (history, _) = snapshot(manifest(2).digest);
    let [promotion] = &history.promotions[..] else {
        panic!("{:?}", history.promotions)
    };
    assert_eq!(promotion.manifest, manifest(2).digest);
    assert_eq!(promotion.operator, kit::operator());
}

#[test]
fn a_snapshot_that_was_given_up_is_told_with_its_event() {
    let mut log = record();
    let event = log.records.len();
    log.ledger(
        Some(run()),
        LedgerEvent::ObjectsGivenUp {
            through: Round(3),
            snapshots: 1,
            objects: 6,
            bytes: Bytes(600),
            list: Digest::of(b"a list"),
            operator: kit::operator(),
            reason: "the disk is full".parse().expect("a reason"),
        },
    );
    let given_up = |round: u64| {
        let ancestry = follow(&log, manifest(round).digest);
        let Some((_, history, Subject::Snapshot(snapshot))) = ancestry.find() else {
            panic!("{:?}", ancestry.find())
        };
        history.given_up(snapshot)
    };
    let sequence = ChainSequence(event as u64);
    // A pointer leads to the second, and the third is newer.
    assert_eq!([1, 2, 3].map(given_up), [Some(sequence), None, None]);
}

#[test]
fn tl_19_a_contribution_is_found_with_its_maker() {
    let of = lease(1, 0, 2);
    for wanted in [statement(of), chunk(of).digest] {
        let ancestry = collected(wanted);
        let Some((_, history, Subject::Contribution(handed))) = ancestry.find() else {
            panic!("{:?}", ancestry.find())
        };
        let member = Member::new(4);
        assert_eq!((handed.lease, &handed.worker), (of, &member.worker));
        assert_eq!(handed.audit_key, member.emitter.public);
        // The test's ledger names a digest that is not that of the statement.
        assert_eq!(handed.signed_bytes(&run(), history.spec_digest), None);
    }
    assert!(collected(Digest::of(b"nothing of ours")).find().is_none());
}

#[test]
fn tl_19_the_bytes_that_a_worker_signed_are_made_again() {
    use schemas::Message as _;
    use schemas::contribution::{Outcome, Statement};
    let ancestry = collected(statement(lease(1, 0, 2)));
    let Some((_, history, Subject::Contribution(handed))) = ancestry.find() else {
        panic!("{:?}", ancestry.find())
    };
    let signed = Statement {
        v: V,
        run: run(),
        spec: history.spec_digest,
        worker: handed.worker.clone(),
        lease: handed.lease,
        outcome: Outcome::Contribution(handed.contribution.clone()),
    };
    let bytes = signed.encode();
    let mut handed = handed.clone();
    handed.statement = Digest::of(&bytes);
    let again = |spec| handed.signed_bytes(&run(), spec);
    assert_eq!(again(history.spec_digest), Some(bytes));
    assert_eq!(again(Digest::of(b"other settings")), None);
}

#[test]
fn tl_19_a_data_set_is_found_by_its_manifest() {
    let ancestry = collected(spec().data.digest);
    let found = ancestry.find().map(|(_, _, subject)| subject);
    assert_eq!(found, Some(Subject::Data));
    assert_eq!(ancestry.found().len(), 1);
}

/// What a contribution was made from is told by the ledger and the data: the weights of the round
/// before, the unit's shards, the release of its maker.
#[test]
fn tl_19_the_statement_that_a_worker_signed_about_its_contribution_is_made_again() {
    let of = lease(2, 0, 1);
    let ancestry = collected(statement(of));
    let Some((_, history, Subject::Contribution(handed))) = ancestry.find() else {
        panic!("{:?}", ancestry.find())
    };
    assert_eq!(handed.base, Some(published(2)));
    let data = Arc::new(kit::data().named(5, 64).build());
    let draw = Draw::new(&history.spec, Arc::clone(&data));
    let said = handed.provenance_statement(history, &draw, DOMAIN);
    let from = MadeFrom {
        base: published(2),
        shards: draw.train_shards(&spec(), &of.unit),
        release: handed.release.clone(),
    };
    assert_eq!(from.shards.len(), 1, "{data:?}");
    let again = HandedIn {
        spec: &spec(),
        spec_digest: history.spec_digest,
        worker: &handed.worker,
        lease: of,
        contribution: &handed.contribution,
        statement: statement(of),
    };
    let key = &handed.audit_key;
    let expected = Provenance::of_contribution(again, &from, DOMAIN, key);
    assert_eq!(said, Some(expected));
    let mut unknown = handed.clone();
    unknown.base = None;
    let said = unknown.provenance_statement(history, &draw, DOMAIN);
    assert_eq!(said, None);
}

/// What a coordinator writes for snapshot 3.
fn stored(history: &History, snapshot: &SavedSnapshot) -> SnapshotManifest {
    SnapshotManifest {
        v: V,
        run: run(),
        spec: history.spec_digest,
        round: snapshot.round,
        config: spec().model.config,
        layout: spec().model.layout,
        data: spec().data,
        weights: Chunks::Named(vec![kit::object("fp32")]),
        slots: BTreeMap::new(),
        broadcast: published(3),
        parent: snapshot.parent,
        merges: snapshot.merges.clone(),
    }
}

#[test]
fn tl_19_a_manifest_that_says_something_else_than_the_ledger_is_refused() {
    let (history, last) = snapshot(manifest(3).digest);
    let fault = |change: &dyn Fn(&mut SnapshotManifest)| {
        let mut manifest = stored(&history, &last);
        change(&mut manifest);
        last.check_manifest(&run(), &history, &manifest).err()
    };
    assert_eq!(fault(&|_| {}), None);
    let other = || ObjectRef::of(b"other");
    type Change<'a> = &'a dyn Fn(&mut SnapshotManifest);
    let changes: [(&str, Change<'_>); 10] = [
        ("run", &|it| it.run = "other".parse().expect("a name")),
        ("round", &|it| it.round = Round(2)),
        ("settings", &|it| it.spec = other().digest),
        ("configuration", &|it| it.config = other()),
        ("layout", &|it| it.layout = other()),
        ("data", &|it| it.data = other()),
        ("parent", &|it| it.parent = None),
        ("published weights", &|it| it.broadcast = published(2)),
        ("contributions", &|it| it.merges[0].inputs.truncate(1)),
        ("merges", &|it| it.merges.clear()),
    ];
    for (what, change) in changes {
        let said = fault(change).unwrap_or_else(|| panic!("{what} was not noticed"));
        assert!(said.contains(what), "{what}: {said}");
    }
}

#[test]
fn tl_19_a_statement_that_says_something_else_than_the_manifest_is_refused() {
    let (history, last) = snapshot(manifest(3).digest);
    let whole = stored(&history, &last);
    let key = || -> PublicKey { format!("U{}", "A".repeat(55)).parse().expect("a key") };
    let maker = |domain, key, release| Maker {
        domain,
        key,
        release,
    };
    let (own, other) = (
        key(),
        format!("U{}", "B".repeat(55)).parse().expect("a key"),
    );
    let fault = |manifest: &SnapshotManifest, of: ObjectRef, by: Maker<'_>| {
        let said = Provenance::of_snapshot(manifest, of, by);
        last.check_statement(&said, &whole, DOMAIN, &own).err()
    };
    let right = maker(DOMAIN, &own, "2.0.0");
    assert_eq!(fault(&whole, last.manifest, right), None);
    let mut changed = whole.clone();
    changed.merges.clear();
    let mut elsewhere = whole.clone();
    elsewhere.run = "other".parse().expect("a name");
    for (what, fault) in [
        ("another subject", fault(&whole, said(3), right)),
        (
            "another maker",
            fault(&whole, last.manifest, maker(DOMAIN, &other, "2.0.0")),
        ),
        (
            "another maker",
            fault(&whole, last.manifest, maker(DOMAIN, &own, "1.0.0")),
        ),
        (
            "another maker",
            fault(&whole, last.manifest, maker("b-domain", &own, "2.0.0")),
        ),
        ("another maker", fault(&elsewhere, last.manifest, right)),
        ("other dependencies", fault(&changed, last.manifest, right)),
    ] {
        let said = fault.unwrap_or_else(|| panic!("{what} was not noticed"));
        assert!(said.ends_with(what), "{what}: {said}");
    }
    let mut said = Provenance::of_snapshot(&whole, last.manifest, right);
    said.predicate_type = "another".to_owned();
    let fault = last.check_statement(&said, &whole, DOMAIN, &own);
    assert!(fault.is_err());
}

/// A snapshot of weights that are older than the newest holds the merges up to them alone.
#[test]
fn tl_19_a_late_snapshot_rests_on_its_own_merges() {
    let mut log = Log::new(DOMAIN, 3);
    let whole = written();
    let mut saved = Vec::new();
    for record in &whole.records {
        match crate::log::event(record) {
            // Both snapshots come after the second merge.
            event @ LedgerEvent::SnapshotSaved { .. } => saved.push(event),
            LedgerEvent::RoundOpened { round: Round(2) } => break,
            event => log.ledger(Some(run()), event),
        }
    }
    for event in saved {
        log.ledger(Some(run()), event);
    }
    let mut auditor = log
        .auditor()
        .tracing_back(Ancestry::new(manifest(2).digest));
    for record in &log.records {
        auditor.observe(record);
    }
    assert!(auditor.evidence().is_none(), "{:?}", auditor.evidence());
    let ancestry = auditor.take_ancestry().expect("it was collected");
    let Some((_, history, Subject::Snapshot(second))) = ancestry.find() else {
        panic!("{:?}", ancestry.find())
    };
    let rounds = |one: &SavedSnapshot| -> Vec<u64> {
        let rounds = one.merges.iter().map(|merge| merge.round.get());
        rounds.collect()
    };
    let rounds = [rounds(&history.snapshots[0]), rounds(second)];
    assert_eq!(rounds, [[0], [1]]);
    assert_eq!(second.parent, Some(manifest(1).digest));
}
