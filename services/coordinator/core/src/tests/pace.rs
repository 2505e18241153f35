//! The longest that a unit may be held beside others that are done.

use schemas::{Bytes, Code, Millis, Steps};

use super::lease::{hear_others, keep, renew_with};
use crate::fixture::*;

/// Where the pace of others is known, progress that a worker only reports holds a unit for so many
/// times as long.
#[test]
fn a_lease_that_lasts_many_times_as_long_as_the_units_of_others_ends() {
    let until = |ratio: u32, others: u32| {
        let mut spec = spec("demo");
        (spec.schedule.units, spec.policy.pace_ratio_max) = (3, ratio);
        let mut world = World::with_run(spec);
        world.join(1);
        let held = world.lease(1);
        for number in 2..2 + others {
            world.join(number);
            let theirs = world.lease(number);
            // A slow one after a quick one: the slow ones say what is usual.
            world.wait(Millis::from_secs(10 * u64::from(number - 1)));
            let result = submission(&world.run().spec, number, theirs, 0);
            let reply = world.hand_in(number, result, 1.0);
            assert!(world.answers[&reply].is_ok());
            renew_with(&mut world, 1, held, Steps(4), Bytes(1));
        }
        let from = world.now;
        let kept = keep(&mut world, held, 3600, |count| 2 + count);
        (
            kept,
            from.until(world.now).get() / 1000 + 10 * (1..=others).sum::<u32>() as u64,
        )
    };
    let (kept, after) = until(50, 2);
    assert_eq!(kept, Err(Code::LeaseStalled), "and the holder is told");
    // From the first step on, which it reported after 10 s.
    assert!((1010..=1020).contains(&after), "50 times 20 s: {after}");
    // Never sooner than a lease that stands still.
    let (kept, after) = until(2, 2);
    assert_eq!(kept, Err(Code::LeaseStalled));
    assert!((610..=620).contains(&after), "{after}");
    // Of one other nobody can tell what is usual; and without the rule a day is left.
    assert_eq!(until(2, 1).0, Ok(()));
    assert_eq!(until(0, 2).0, Ok(()));
}

/// A worker behind a slow line fetches for longer than others take for the whole unit; one that
/// only says so keeps its unit for some hours.
#[test]
fn the_pace_of_others_counts_from_the_first_step_and_the_fetch_for_itself() {
    let mut spec = spec("demo");
    (spec.schedule.units, spec.policy.pace_ratio_max) = (3, 50);
    let mut world = World::with_run(spec);
    world.join(1);
    let held = world.lease(1);
    for number in [2, 3] {
        world.join(number);
        let theirs = world.lease(number);
        let result = submission(&world.run().spec, number, theirs, 0);
        let reply = world.hand_in(number, result, 1.0);
        assert!(world.answers[&reply].is_ok());
    }
    let from = world.now;
    let mut until = |steps: u64, first: u64, seconds: u64| {
        for count in 0..seconds / 10 {
            world.wait(Millis::from_secs(10));
            hear_others(&mut world);
            let moved = Bytes(first + count);
            let reply = renew_with(&mut world, 1, held, Steps(steps), moved);
            if let Err(refusal) = &world.answers[&reply] {
                assert_eq!(refusal.code, Code::LeaseStalled);
                break;
            }
        }
        from.until(world.now).get() / 1000
    };
    assert_eq!(until(0, 1, 3 * 3600), 3 * 3600, "it fetches");
    let after = until(1, 10_000, 3600) - 3 * 3600;
    assert!(
        (610..=620).contains(&after),
        "from the first step on: {after}"
    );
}
