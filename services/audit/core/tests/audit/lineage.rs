//! The lineage of objects, from the ledger of a run.

use audit_core::lineage::{ContributionFate, Lineage, OfRun, Origin};
use audit_core::recompute::{Merges, Wanted};
use schemas::event::LedgerEvent;
use schemas::hold::Hold;
use schemas::lease::{LeaseRef, Weights};
use schemas::run::{Comparison, RunSpec};
use schemas::sync::SealedInput;
use schemas::{Digest, Epoch, Fragment, ObjectRef, Round, Tokens, UnitIndex, Weight};
use serde_bytes::ByteArray;

use crate::log::{DOMAIN, Log, Member, run};

pub(crate) fn spec() -> RunSpec {
    kit::run_spec()
        .rounds(9)
        .initial(vec![kit::object("initial")])
        .comparison(Comparison::of_norms(4.0))
        .build()
}

/// The only chunk of a contribution, of published weights, or the manifest of a snapshot.
pub(crate) fn chunk(lease: LeaseRef) -> ObjectRef {
    kit::sized(&lease.to_string(), 16)
}

pub(crate) fn published(version: u64) -> Weights {
    let chunk = kit::object(&format!("weights {version}"));
    kit::weights(version, spec().download, vec![chunk])
}

pub(crate) fn manifest(version: u64) -> ObjectRef {
    kit::object(&format!("snapshot {version}"))
}

pub(crate) fn lease(round: u64, unit: u32, epoch: u64) -> LeaseRef {
    kit::lease(kit::train(round, unit), epoch)
}

/// A ledger in the making.
struct Book {
    log: Log,
    members: [Member; 2],
}

impl Book {
    fn note(&mut self, event: LedgerEvent) {
        self.log.ledger(Some(run()), event);
    }

    /// A contribution of the worker whose unit this is.
    fn contribute(&mut self, lease: LeaseRef, norm: f64) {
        let worker = self.members[lease.unit.index.get() as usize].worker.clone();
        self.note(LedgerEvent::LeaseGranted {
            lease,
            worker: worker.clone(),
        });
        self.note(LedgerEvent::ContributionAccepted {
            lease,
            worker,
            contribution: Box::new(kit::contribution(&spec(), vec![chunk(lease)])),
            norm,
            statement: statement(lease),
            signature: ByteArray::new([0; 64]),
            provenance: None,
        });
    }

    /// The worker of unit 0 is shut out, and let in again.
    fn withdraw(&mut self) {
        let (member, operator) = (self.members[0].clone(), kit::operator());
        let reason = || "odd norms".parse().expect("a reason");
        self.note(LedgerEvent::WorkerQuarantined {
            worker: member.worker.clone(),
            operator: operator.clone(),
            reason: reason(),
            lease: None,
            withdrawn: 1,
        });
        self.note(LedgerEvent::WorkerReadmitted {
            worker: member.worker.clone(),
            operator,
            reason: reason(),
        });
        self.note(member.joined());
    }

    fn close(&mut self, round: u64, inputs: [(u64, u64); 2]) {
        let inputs = (0..)
            .zip(inputs)
            .map(|(unit, (epoch, weight))| SealedInput {
                unit: UnitIndex(unit),
                epoch: Epoch(epoch),
                weight: Weight(weight),
            });
        let round = Round(round);
        self.note(LedgerEvent::RoundSealed {
            round,
            fragment: Fragment::FIRST,
            inputs: inputs.collect(),
            left_out: Vec::new(),
            rest: 0,
        });
        self.note(LedgerEvent::RoundClosed {
            round,
            fragment: Fragment::FIRST,
            broadcast: published(round.get() + 1),
            norm: 1.0,
            tokens: Tokens(64),
        });
        self.note(LedgerEvent::SnapshotSaved {
            round: round.next(),
            manifest: manifest(round.get() + 1),
            statement: None,
        });
    }
}

pub(crate) fn statement(lease: LeaseRef) -> Digest {
    Digest::of(lease.to_string().as_bytes())
}

/// Three rounds of two units, with a snapshot of each version. In round 1 the contribution to unit
/// 0 is withdrawn and made again, in round 2 that to unit 1 is left out, and round 3 is open.
pub(crate) fn written() -> Log {
    let mut book = Book {
        log: Log::new(DOMAIN, 3),
        members: [Member::new(4), Member::new(5)],
    };
    book.note(LedgerEvent::RunCreated {
        spec: Box::new(spec()),
        operator: kit::operator(),
    });
    for member in book.members.clone() {
        book.note(member.joined());
    }
    for round in 0..4 {
        book.note(LedgerEvent::RoundOpened {
            round: Round(round),
        });
        book.contribute(lease(round, 0, 1), 1.0);
        if round == 1 {
            book.withdraw();
            book.contribute(lease(1, 0, 2), 1.0);
        }
        if round == 3 {
            break;
        }
        book.contribute(lease(round, 1, 1), if round == 2 { 100.0 } else { 1.0 });
        let tokens = spec().unit_tokens().get();
        let first = if round == 1 { 2 } else { 1 };
        let second = if round == 2 { 0 } else { tokens };
        book.close(round, [(first, tokens), (1, second)]);
    }
    book.log
}

/// What the ledger says about an object in its run; none if it says nothing.
fn of(wanted: Digest) -> Option<OfRun> {
    let log = written();
    let mut auditor = log.auditor().tracing(Lineage::new(wanted));
    for record in &log.records {
        auditor.observe(record);
    }
    assert!(auditor.evidence().is_none(), "{:?}", auditor.evidence());
    let lineage = auditor.take_lineage().expect("it was collected");
    let found = lineage.runs().next();
    found.map(|(name, found)| {
        assert_eq!(*name, run());
        found.clone()
    })
}

/// The descendants: `r` for a merged round, `s` for a snapshot, and `!` where the object itself is
/// in it.
fn shape(found: &OfRun) -> Vec<String> {
    let one = |found: &audit_core::lineage::Descendant| {
        let (kind, mark) = (
            if found.snapshot { "s" } else { "r" },
            if found.direct { "!" } else { "" },
        );
        format!("{kind}{}{mark}", found.round)
    };
    found.descendants.iter().map(one).collect()
}

fn fate(found: &OfRun) -> ContributionFate {
    match &found.origins[..] {
        [Origin::Contribution { fate, .. }] => *fate,
        other => panic!("{other:?}"),
    }
}

fn clean(found: &OfRun) -> Option<u64> {
    found.clean.map(|(round, of)| {
        assert_eq!(of, manifest(round.get()));
        round.get()
    })
}

#[test]
fn a_contribution_is_in_its_round_and_all_that_follows() {
    let chunk = chunk(lease(1, 0, 2));
    for wanted in [statement(lease(1, 0, 2)), chunk.digest] {
        let found = of(wanted).expect("it was accepted");
        assert_eq!(fate(&found), ContributionFate::Merged);
        assert_eq!(shape(&found), ["r1!", "s2", "r2", "s3"]);
        assert_eq!((found.version, clean(&found)), (Some(Round(2)), Some(1)));
    }
    let Some(OfRun { origins, .. }) = of(chunk.digest) else {
        unreachable!("it was just found")
    };
    let Origin::Contribution {
        lease: of, worker, ..
    } = &origins[0]
    else {
        panic!("{origins:?}")
    };
    assert_eq!((*of, worker), (lease(1, 0, 2), &Member::new(4).worker));
}

#[test]
fn what_was_in_no_merge_has_no_descendants() {
    for (lease, expected) in [
        (lease(1, 0, 1), ContributionFate::Withdrawn),
        (lease(2, 1, 1), ContributionFate::LeftOut),
        (lease(3, 0, 1), ContributionFate::Accepted),
    ] {
        let found = of(statement(lease)).expect("it was accepted");
        assert_eq!(fate(&found), expected, "{lease}");
        assert!(found.descendants.is_empty(), "{lease}");
        assert_eq!((found.version, clean(&found)), (None, Some(3)));
    }
}

#[test]
fn weights_and_snapshots_are_in_what_starts_from_them() {
    let weights = published(2);
    for wanted in [weights.digest(), weights.chunks.objects()[0].digest] {
        let found = of(wanted).expect("they were published");
        assert_eq!(found.origins, [Origin::Weights { round: Round(2) }]);
        assert_eq!(shape(&found), ["r1!", "s2", "r2", "s3"]);
        assert_eq!(clean(&found), Some(1));
    }
    let found = of(manifest(2).digest).expect("it was saved");
    assert_eq!(found.origins, [Origin::Snapshot { round: Round(2) }]);
    assert_eq!(shape(&found), ["s2!", "r2", "s3"]);
    assert_eq!(clean(&found), Some(1));
}

#[test]
fn everything_descends_from_the_data_and_the_beginning() {
    let initial = kit::object("initial").digest;
    for (wanted, origin) in [
        (kit::object("data").digest, Origin::Data),
        (kit::object("config").digest, Origin::Model),
        (kit::object("layout").digest, Origin::Model),
        (initial, Origin::InitialWeights),
    ] {
        let found = of(wanted).expect("the settings name it");
        assert_eq!(found.origins, [origin]);
        assert_eq!(shape(&found), ["r0", "s1", "r1", "s2", "r2", "s3"]);
        assert_eq!((found.version, clean(&found)), (Some(Round(0)), None));
    }
    assert_eq!(of(Digest::of(b"nothing of ours")), None);
}

/// A ledger of an earlier release names no sets; what it accepted is what it merged.
#[test]
fn a_round_without_a_seal_is_merged_from_what_was_accepted() {
    let log = Log::write(&crate::log::PLAN);
    let wanted = statement(lease(0, 0, 2));
    let mut auditor = log.auditor().tracing(Lineage::new(wanted));
    for record in &log.records {
        auditor.observe(record);
    }
    let lineage = auditor.take_lineage().expect("it was collected");
    let (_, found) = lineage.runs().next().expect("it was accepted");
    assert_eq!(fate(found), ContributionFate::Merged);
    assert_eq!(shape(found), ["r0!", "s1", "r1", "s2"]);
}

#[test]
fn tl_31_the_timeline_says_who_was_shut_out_by_whom_and_why() {
    let log = written();
    let mut auditor = log.auditor();
    let rows = log
        .records
        .iter()
        .flat_map(|record| auditor.observe(record));
    let rows: Vec<_> = rows.map(|checked| checked.row).collect();
    let row = |kind: &str| {
        let found = rows.iter().find(|row| row.kind == kind);
        found.unwrap_or_else(|| panic!("no {kind}"))
    };
    let (worker, operator) = (Member::new(4).worker, kit::operator());
    let by = &operator.as_str()[..8];
    for (kind, said) in [
        (
            "worker-quarantined",
            format!("by {by}, 1 contributions withdrawn: odd norms"),
        ),
        ("worker-readmitted", format!("by {by}: odd norms")),
    ] {
        let row = row(kind);
        assert_eq!((row.about.as_str(), &row.detail), (worker.short(), &said));
    }
}

/// The ledger of [`written`], led back to snapshot 1 while round 3 is open, and one more round.
fn led_back(to: u64) -> Log {
    let mut book = Book {
        log: written(),
        members: [Member::new(4), Member::new(5)],
    };
    book.note(LedgerEvent::HoldPlaced {
        hold: Hold::Merges,
        operator: kit::operator(),
        reason: "odd loss".parse().expect("a reason"),
    });
    book.note(LedgerEvent::SnapshotRestored {
        snapshot: Round(to),
        manifest: manifest(to),
        from: Round(3),
        weights: Weights {
            round: Round(4),
            ..published(to)
        },
        operator: kit::operator(),
        reason: "odd loss".parse().expect("a reason"),
        leases: 0,
        contributions: 1,
    });
    book.note(LedgerEvent::HoldLifted {
        hold: Hold::Merges,
        operator: kit::operator(),
        reason: "it is right now".parse().expect("a reason"),
    });
    book.note(LedgerEvent::RoundOpened { round: Round(4) });
    for unit in 0..2 {
        book.contribute(lease(4, unit, 1), 1.0);
    }
    let tokens = spec().unit_tokens().get();
    book.close(4, [(1, tokens), (1, tokens)]);
    book.log
}

fn of_led_back(to: u64, wanted: Digest) -> OfRun {
    let log = led_back(to);
    let mut auditor = log.auditor().tracing(Lineage::new(wanted));
    for record in &log.records {
        auditor.observe(record);
    }
    assert!(auditor.evidence().is_none(), "{:?}", auditor.evidence());
    let lineage = auditor.take_lineage().expect("it was collected");
    let (_, found) = lineage.runs().next().expect("the run names it");
    found.clone()
}

#[test]
fn tl_32_what_follows_on_a_restore_descends_from_the_snapshot_alone() {
    // A contribution to round 1 is in what was undone, and not in what followed.
    let wanted = statement(lease(1, 0, 2));
    let found = of_led_back(1, wanted);
    assert_eq!(shape(&found), ["r1!", "s2", "r2", "s3"]);
    assert_eq!(clean(&found), Some(5), "the newest one is without it");
    // It is in what follows on a snapshot that has it.
    let found = of_led_back(2, wanted);
    assert_eq!(shape(&found), ["r1!", "s2", "r2", "s3", "s4", "r4", "s5"]);
    assert_eq!(clean(&found), Some(1));
    let found = of_led_back(1, manifest(1).digest);
    assert_eq!(
        shape(&found),
        ["s1!", "r1", "s2", "r2", "s3", "s4!", "r4", "s5"]
    );
    // Round 3 ended without a merge.
    let found = of_led_back(1, statement(lease(3, 0, 1)));
    assert_eq!(fate(&found), ContributionFate::Dropped);
    assert!(found.descendants.is_empty());
    // What came after the restore counts as ever.
    let found = of_led_back(1, statement(lease(4, 1, 1)));
    assert_eq!(
        (fate(&found), shape(&found)),
        (
            ContributionFate::Merged,
            vec!["r4!".to_owned(), "s5".to_owned()]
        )
    );
}

/// Merges before and after a restore are made again, each from the snapshot that it started from.
#[test]
fn tl_32_the_merges_after_a_restore_start_from_the_restored_snapshot() {
    let log = led_back(1);
    let plan = |wanted| {
        let mut auditor = log.auditor().collecting(Merges::new(run(), wanted));
        for record in &log.records {
            auditor.observe(record);
        }
        let merges = auditor.take_merges().expect("they were collected");
        merges.plan().expect("there are merges")
    };
    let all = plan(Wanted::All);
    let rounds: Vec<u64> = all
        .iter()
        .map(|of| of.merges[0].record.round.get())
        .collect();
    assert_eq!(rounds, [0, 1, 2, 4]);
    let restored = all.iter().filter(|of| of.restored.is_some()).count();
    assert_eq!(restored, 1);
    let alone = plan(Wanted::One(Round(4)));
    for last in [&all[3], &alone[0]] {
        assert_eq!(last.start(), Round(4));
        let base = last.base.expect("it starts from a snapshot");
        assert_eq!(base.manifest, manifest(1));
        let restored = last.restored.as_ref().expect("it was restored");
        assert_eq!((restored.of, restored.weights.round), (Round(1), Round(4)));
        assert_eq!(restored.weights.chunks, published(1).chunks);
        assert_eq!(last.end.map(|end| end.manifest), Some(manifest(5)));
    }
    assert_eq!(alone.len(), 1);
}
