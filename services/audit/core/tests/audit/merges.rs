//! The merges of a run, collected from its ledger, and the order in which they are made again.

use audit_core::recompute::{Merges, Saved, Segment, Wanted};
use schemas::{Code, Refusal, Round, RunId, Tokens};

use crate::log::{Log, PLAN, Plan, object, run};

/// Five rounds, with full snapshots of versions 2 and 4.
const FIVE: Plan = Plan {
    rounds: 5,
    saved_every: 2,
    ..PLAN
};

fn collected(run: RunId, wanted: Wanted) -> Merges {
    let log = Log::write(&FIVE);
    let mut auditor = log.auditor().collecting(Merges::new(run, wanted));
    for record in &log.records {
        auditor.observe(record);
    }
    assert!(auditor.evidence().is_none(), "{:?}", auditor.evidence());
    auditor.take_merges().expect("they were collected")
}

fn plan(wanted: Wanted) -> Result<Vec<Segment>, Refusal> {
    collected(run(), wanted).plan()
}

fn saved(round: u64) -> Option<Saved> {
    let (round, manifest) = (Round(round), object());
    Some(Saved { round, manifest })
}

/// The snapshot that a segment starts from, its rounds, and the snapshot after it.
fn shape(segment: &Segment) -> (Option<Saved>, Vec<u64>, Option<Saved>) {
    let rounds = segment.merges.iter().map(|merge| merge.record.round.get());
    (segment.base, rounds.collect(), segment.end)
}

#[test]
fn tl_04_each_snapshot_ends_one_segment_and_begins_the_next() {
    let segments = plan(Wanted::All).expect("there are merges");
    let shapes: Vec<_> = segments.iter().map(shape).collect();
    let expected = [
        (None, vec![0, 1], saved(2)),
        (saved(2), vec![2, 3], saved(4)),
        (saved(4), vec![4], None),
    ];
    assert_eq!(shapes, expected);
    let starts = segments.iter().map(|of| (of.start(), of.after()));
    assert!(starts.eq([(0, 2), (2, 4), (4, 5)].map(|(a, b)| (Round(a), Round(b)))));
}

#[test]
fn tl_04_one_round_is_made_again_from_the_last_snapshot_before_it() {
    for (round, base, rounds, end) in [
        (0, None, vec![0], None),
        (1, None, vec![0, 1], saved(2)),
        (2, saved(2), vec![2], None),
        (3, saved(2), vec![2, 3], saved(4)),
        (4, saved(4), vec![4], None),
    ] {
        let segments = plan(Wanted::One(Round(round))).expect("it is merged");
        let shapes: Vec<_> = segments.iter().map(shape).collect();
        assert_eq!(shapes, [(base, rounds, end)], "round {round}");
    }
}

#[test]
fn tl_04_a_merge_has_the_inputs_and_the_figures_of_the_ledger() {
    let merges = collected(run(), Wanted::All);
    let spec = merges.spec().expect("it was created").clone();
    assert_eq!(merges.run(), &run());
    let segments = merges.plan().expect("there are merges");
    let merge = &segments[1].merges[0];
    assert_eq!(merge.record.round, Round(2));
    assert_eq!(merge.record.inputs.len() as u32, FIVE.units);
    assert_eq!(merge.record.broadcast, merge.broadcast.digest());
    assert_eq!((merge.norm, merge.tokens), (0.5, spec.unit_tokens()));
    let tokens = merge.record.inputs.iter().map(|input| input.tokens);
    assert!(tokens.eq([spec.unit_tokens(); 2]));
    assert_ne!(merge.tokens, Tokens(0));
}

#[test]
fn tl_04_a_round_that_is_not_merged_is_no_success() {
    let unmerged = plan(Wanted::One(Round(5))).expect_err("it has five rounds");
    assert_eq!(unmerged.code, Code::RoundNotMerged);
    assert!(unmerged.detail.contains("5 merged rounds"), "{unmerged}");
    let other = collected("other".parse().expect("a name"), Wanted::All);
    assert!(other.spec().is_none());
    assert_eq!(
        other.plan().expect_err("it has no merges").code,
        Code::RoundNotMerged
    );
}
