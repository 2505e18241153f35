//! Sums that cannot be had again and again.

use super::*;
use crate::run::masking::SUMS_LOST_MAX;

/// A worker takes each unit, all agree on masks and contribute.
fn contributed(world: &mut World, salt: u8) -> (Vec<LeaseRef>, Vec<Part>) {
    let leases: Vec<LeaseRef> = (1..=UNITS).map(|number| world.lease(number)).collect();
    let mut parts = parts(world, &leases, salt);
    exchange(world, &leases, &mut parts);
    submit_all(world, &leases);
    (leases, parts)
}

/// Trains the round in vain: two workers reveal false shares, so that too few are true.
fn lose_sum(world: &mut World, salt: u8) {
    let before = dissolved(world);
    let (leases, mut parts) = contributed(world, salt);
    let survivors: Vec<UnitIndex> = (0..UNITS).map(UnitIndex).collect();
    for (number, (lease, part)) in (1..).zip(leases.iter().zip(&mut parts)) {
        let mut shares = part.reveal(&survivors).expect("it is honest");
        if number > 2 {
            shares[0].0[0] ^= number as u8;
        }
        let cohort = part.cohort().digest();
        step(world, number, *lease, MaskStep::Reveal { cohort, shares });
    }
    assert_eq!(dissolved(world), before + 1);
    assert!(merge_order(world).is_none());
}

fn with_workers() -> World {
    let mut world = World::with_run(masked());
    for number in 1..=UNITS {
        world.join(number);
    }
    world
}

/// A worker that has revealed for one set of a round refuses every other, as long as it lives. If
/// the round needs another, it was trained for ever.
#[test]
fn tl_17_a_run_whose_sums_cannot_be_had_is_halted_until_a_worker_joins_and_says_what_to_do() {
    let mut world = with_workers();
    for salt in 1..SUMS_LOST_MAX as u8 {
        lose_sum(&mut world, salt);
    }
    assert!(world.view().halted.is_none(), "another try may help");
    lose_sum(&mut world, SUMS_LOST_MAX as u8);
    let halted = world.view().halted.expect("another try does not help");
    assert_eq!(halted.code, Code::SumLost);
    assert!(halted.detail.contains("round 0"), "{halted}");
    let claim = world.claim(1);
    assert_eq!(world.refusal(claim), Code::SumLost);
    // A worker that asks again to join is the same process, and refuses what it refused.
    world.join(1);
    let claim = world.claim(1);
    assert_eq!(world.refusal(claim), Code::SumLost);
    // One that is started has revealed nothing.
    world.join(5);
    assert!(world.view().halted.is_none());
    for salt in 1..SUMS_LOST_MAX as u8 {
        lose_sum(&mut world, 50 + salt);
    }
    assert!(world.view().halted.is_none(), "the count began again");
    lose_sum(&mut world, 50);
    assert_eq!(
        world.view().halted.map(|halted| halted.code),
        Some(Code::SumLost)
    );
}

#[test]
fn tl_17_sums_that_are_lost_count_when_nothing_came_in_between() {
    let mut world = with_workers();
    for salt in 1..SUMS_LOST_MAX as u8 {
        lose_sum(&mut world, salt);
    }
    let (leases, mut parts) = contributed(&mut world, 20);
    reveal_all(&mut world, &leases, &mut parts);
    world.answer_pending();
    assert_eq!(world.run().rounds_closed(), Round(1));
    for salt in 1..SUMS_LOST_MAX as u8 {
        lose_sum(&mut world, 30 + salt);
    }
    assert!(world.view().halted.is_none());
}

/// A round with too few contributions is opened again as often as that happens: nobody was asked to
/// reveal anything.
#[test]
fn tl_17_a_round_with_too_few_contributions_halts_no_run() {
    let mut world = with_workers();
    for salt in 0..=SUMS_LOST_MAX as u8 {
        let leases: Vec<LeaseRef> = (1..=UNITS).map(|number| world.lease(number)).collect();
        let mut parts = parts(&mut world, &leases, 1 + salt);
        exchange(&mut world, &leases, &mut parts);
        for (number, lease) in (1..).zip(&leases[..2]) {
            world.submit(number, *lease);
        }
        screened_all(&mut world);
        for (number, lease) in (3..).zip(&leases[2..]) {
            let release = ReleaseRequest {
                v: V,
                lease: *lease,
                reason: "gone".to_owned(),
            };
            world.ask(peer(number), WorkerRequest::Release(release));
        }
        assert_eq!(dissolved(&world), salt as usize + 1);
    }
    assert!(world.view().halted.is_none());
}
