//! Plays seeds. `SIM_SEED=7 cargo test -p sim` plays one; `SIM_SEEDS=5000` plays that many from 0
//! on.

use sim::{
    Counts, Report, simulate, simulate_collections, simulate_lists, simulate_long_seal,
    simulate_lost_grants, simulate_masked, simulate_restores, simulate_rotations,
};

/// Number of seeds in a usual test run.
const SEEDS: u64 = 200;

/// Seeds that found a defect or reach a rare situation, one a line, each with an explanation behind
/// `#`.
const KEPT: &str = include_str!("../seeds/kept.txt");

#[expect(
    clippy::print_stderr,
    reason = "the seed is what a person needs to repeat a failure"
)]
fn play(seed: u64) -> Report {
    eprintln!("seed {seed}: repeat with SIM_SEED={seed} cargo test -p sim");
    simulate(seed)
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text:?}, expected a whole number")),
    )
}

#[test]
fn every_run_ends_and_nothing_breaks_on_the_way() {
    if let Some(seed) = variable("SIM_SEED") {
        play(seed);
        return;
    }
    let mut sum = Counts::default();
    let (mut coordinators, mut resumptions, mut workers, mut lost) = (0, 0, 0, 0);
    let (mut shared, mut torn, mut unsealed) = (0, 0, 0);
    for seed in 0..variable("SIM_SEEDS").unwrap_or(SEEDS) {
        let Report {
            counts,
            coordinator_crashes,
            worker_crashes,
            lost: messages,
            shared_appends,
            torn: in_between,
            unsealed: merging,
            resumed,
            ..
        } = play(seed);
        shared += shared_appends;
        torn += in_between;
        unsealed += merging;
        coordinators += coordinator_crashes;
        workers += worker_crashes;
        lost += messages;
        resumptions += resumed;
        sum.spent += counts.spent;
        sum.spent_within += counts.spent_within;
        sum.expired += counts.expired;
        sum.released += counts.released;
        sum.orphaned += counts.orphaned;
        sum.ordered += counts.ordered;
        sum.grouped += counts.grouped;
        sum.rejected += counts.rejected;
        sum.evaluated += counts.evaluated;
        sum.saved += counts.saved;
        sum.denied += counts.denied;
        sum.frozen += counts.frozen;
        sum.stopped += counts.stopped;
        sum.promoted += counts.promoted;
        sum.quarantined += counts.quarantined;
        sum.shut += counts.shut;
        sum.revoked += counts.revoked;
        sum.reissued += counts.reissued;
        sum.withdrawn += counts.withdrawn;
        sum.compared += counts.compared;
        sum.left_out += counts.left_out;
    }
    // If one of these never happens, the seeds prove nothing.
    let seen = [
        sum.expired,
        sum.released,
        sum.orphaned,
        sum.ordered,
        sum.grouped,
        sum.rejected,
        sum.evaluated,
        sum.saved,
        sum.denied,
        sum.frozen,
        sum.stopped,
        sum.promoted,
        sum.quarantined,
        sum.shut,
        sum.revoked,
        sum.reissued,
        sum.withdrawn,
        sum.compared,
        sum.left_out,
    ];
    assert!(seen.iter().all(|count| *count >= 20), "{sum:?}");
    assert!(
        sum.spent >= 5 && sum.spent_within >= 5,
        "budgets ended between rounds {}, within a round {}",
        sum.spent,
        sum.spent_within
    );
    assert!(
        shared >= 300 && torn >= 10 && unsealed >= 3,
        "{shared} appends were shared, {torn} were torn, {unsealed} lacked the seal of a merge"
    );
    assert!(
        coordinators >= 100 && resumptions >= 100 && workers >= 100 && lost >= 1000,
        "{coordinators}, {workers} crashes, {resumptions} starts with a checkpoint, {lost} lost"
    );
}

/// Operators lead a run back again and again, while everything breaks that may break: it goes on
/// from the snapshot each time, and ends.
#[test]
fn tl_32_a_run_that_is_led_back_again_and_again_ends_and_nothing_breaks_on_the_way() {
    let mut sum = Counts::default();
    for seed in 0..variable("SIM_SEEDS").unwrap_or(100) {
        let Report { counts, .. } = simulate_restores(seed);
        sum.restored += counts.restored;
        sum.fenced += counts.fenced;
        sum.dropped += counts.dropped;
        sum.undone += counts.undone;
    }
    let seen = [sum.restored, sum.fenced, sum.dropped, sum.undone];
    assert!(seen.iter().all(|count| *count >= 20), "{sum:?}");
}

/// The ledger goes on under another key again and again, while everything breaks that may break,
/// also between the event that names a key and its first use: each event is of the one key whose
/// turn it is, a start finds that key, and the run ends.
#[test]
fn tl_28_a_run_whose_event_key_changes_again_and_again_ends_and_nothing_breaks_on_the_way() {
    let (mut sum, mut between, mut crashes, mut resumed) = (Counts::default(), 0, 0, 0);
    for seed in 0..variable("SIM_SEEDS").unwrap_or(60) {
        let report = simulate_rotations(seed);
        sum.succeeded += report.counts.succeeded;
        between += report.between_keys;
        crashes += report.coordinator_crashes;
        resumed += report.resumed;
    }
    assert!(
        sum.succeeded >= 120 && between >= 20 && crashes >= 100 && resumed >= 60,
        "{} keys were named, {between} coordinators died before they used one, {crashes} at all, {resumed} \
         began with a checkpoint",
        sum.succeeded
    );
}

/// Old objects are deleted again and again, while everything breaks that may break: nothing goes
/// that the run needs, that a pointer leads to, or that the run is led back to.
#[test]
fn a_run_whose_old_objects_are_deleted_again_and_again_loses_nothing_that_it_needs() {
    let (mut sum, mut crashes) = (Counts::default(), 0);
    for seed in 0..variable("SIM_SEEDS").unwrap_or(100) {
        let report = simulate_collections(seed);
        sum.collections += report.counts.collections;
        sum.lost += report.counts.lost;
        sum.restored += report.counts.restored;
        crashes += report.coordinator_crashes;
    }
    let enough = sum.collections >= 30 && sum.restored >= 10 && crashes >= 20;
    assert!(enough, "{sum:?}, {crashes} crashes");
    assert!(sum.lost >= 100, "{sum:?}");
}

/// Workers and coordinators die in every moment of an agreement on masks and of the sum: each
/// secret that the ledger names is the one that may be known, nobody gets a unit whose masks
/// another has, and the run ends.
#[test]
fn tl_17_masked_runs_end_with_sums_of_those_that_count_whoever_dies() {
    let (mut sum, mut coordinators, mut workers) = (Counts::default(), 0, 0);
    for seed in 0..variable("SIM_SEEDS").unwrap_or(60) {
        let report = simulate_masked(seed);
        sum.cohorts += report.counts.cohorts;
        sum.gone_after_sealing += report.counts.gone_after_sealing;
        sum.dissolved += report.counts.dissolved;
        sum.handed_again += report.counts.handed_again;
        coordinators += report.coordinator_crashes;
        workers += report.worker_crashes;
    }
    let seen = [sum.gone_after_sealing, sum.dissolved, sum.handed_again];
    assert!(seen.iter().all(|count| *count >= 10), "{sum:?}");
    assert!(sum.cohorts >= 120, "{sum:?}");
    assert!(
        coordinators >= 30 && workers >= 30,
        "{coordinators} coordinators and {workers} workers died"
    );
}

/// A round with more units than one event names is sealed in parts. A coordinator that dies between
/// two parts leaves a seal that the next one completes with the same set.
#[test]
fn a_seal_that_is_torn_between_its_parts_is_completed() {
    let Report { counts, torn, .. } = simulate_long_seal(5);
    assert_eq!((counts.parts, torn, counts.accepted), (1, 1, 513));
}

/// A model with more chunks than an event names is trained like any other, whatever breaks: lists
/// name its chunks, and members may read what the lists name.
#[test]
fn a_run_whose_chunks_are_listed_ends_and_nothing_breaks_on_the_way() {
    let (mut accepted, mut crashes) = (0, 0);
    for seed in 0..40 {
        let report = simulate_lists(seed);
        accepted += report.counts.accepted;
        crashes += report.coordinator_crashes;
    }
    assert!(
        accepted >= 120 && crashes >= 20,
        "{accepted} contributions, {crashes} crashes"
    );
}

/// However short leases are, a worker repeats a claim whose answer was lost while the lease runs,
/// and gets the same lease: no unit begins anew.
#[test]
fn a_grant_whose_answer_is_lost_costs_no_lease() {
    for seed in 0..40 {
        let Report { counts, lost, .. } = simulate_lost_grants(seed);
        assert!(lost > 0, "seed {seed}");
        assert_eq!(
            (counts.expired, counts.released, counts.orphaned),
            (0, 0, 0),
            "seed {seed}: {counts:?}"
        );
    }
}

#[test]
fn kept_seeds_are_played_again() {
    for line in KEPT.lines() {
        let seed = line.split('#').next().unwrap_or_default().trim();
        if !seed.is_empty() {
            play(
                seed.parse()
                    .expect("kept.txt holds one whole number a line"),
            );
        }
    }
}

#[test]
fn one_seed_is_one_story() {
    for seed in [3, 17] {
        assert_eq!(play(seed), play(seed));
    }
}
