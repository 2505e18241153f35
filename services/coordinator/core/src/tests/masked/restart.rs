//! Sealed shares that a restart of the coordinator has lost.

use super::*;

#[test]
fn tl_17_shares_that_a_restart_has_lost_are_handed_in_again_by_those_who_sealed_them() {
    // All have shared, and only so many have got the shares of the others.
    for got in 0..=UNITS as usize {
        let (mut world, leases) = leased();
        let mut parts = parts(&mut world, &leases, 1);
        for (number, (lease, part)) in (1..).zip(leases.iter().zip(&parts)) {
            share(&mut world, number, *lease, part);
        }
        for (number, (lease, part)) in (1..).zip(leases.iter().zip(&mut parts)).take(got) {
            let MaskStage::Shares(sealed) = share(&mut world, number, *lease, part) else {
                panic!("all have shared")
            };
            assert_eq!(part.take(&sealed), Ok(vec![]));
        }
        world.restart();
        world.answer_pending();
        let everybody: Vec<UnitIndex> = (0..UNITS).map(UnitIndex).collect();
        // The others ask once more, find some or nothing, and train meanwhile.
        for (number, (lease, part)) in (1..).zip(leases.iter().zip(&mut parts)).skip(got) {
            let MaskStage::Shares(sealed) = share(&mut world, number, *lease, part) else {
                panic!("the cohort is sealed")
            };
            assert_eq!(part.take(&sealed), Ok(vec![]));
            assert_eq!(part.waits_for(&everybody), got > 0 || number < UNITS);
        }
        submit_all(&mut world, &leases);
        // Who has handed them in since is not asked again.
        for (place, (lease, part)) in leases.iter().zip(&mut parts).enumerate() {
            let stage = reveal_question(&mut world, place as u32 + 1, *lease, part);
            let again = place < got;
            assert_eq!(stage == MaskStage::ShareAgain, again, "{got}, {place}");
            let MaskStage::Shares(_) = share(&mut world, place as u32 + 1, *lease, part) else {
                panic!("the cohort is sealed")
            };
        }
        for (number, (lease, part)) in (1..).zip(leases.iter().zip(&mut parts)) {
            let MaskStage::Shares(sealed) = share(&mut world, number, *lease, part) else {
                panic!("the cohort is sealed")
            };
            assert_eq!(part.take(&sealed), Ok(vec![]));
            assert!(!part.waits_for(&everybody));
        }
        reveal_all(&mut world, &leases, &mut parts);
        assert!(merge_order(&world).is_some(), "{got}");
        assert_eq!(dissolved(&world), 0);
    }
}

#[test]
fn tl_17_shares_are_handed_in_again_for_the_own_place_alone_and_in_one_form() {
    let (mut world, leases, parts) = agreed();
    world.restart();
    world.answer_pending();
    let cohort = parts[0].cohort().digest();
    let sealed = parts[0].share().expect("sound keys");
    let again = |cohort, sealed| MaskStep::Share { cohort, sealed };
    // Of another worker, for another cohort, and too few.
    let reply = step(&mut world, 2, leases[0], again(cohort, sealed.clone()));
    assert_eq!(world.refusal(reply), Code::CohortOver);
    let other = Digest::of(b"another cohort");
    let reply = step(&mut world, 1, leases[0], again(other, sealed.clone()));
    assert_eq!(world.refusal(reply), Code::CohortOver);
    let reply = step(
        &mut world,
        1,
        leases[0],
        again(cohort, sealed[1..].to_vec()),
    );
    assert_eq!(world.refusal(reply), Code::MaskKeysRefused);
    // What came first stays.
    assert!(matches!(
        share(&mut world, 1, leases[0], &parts[0]),
        MaskStage::Shares(_)
    ));
    let mut altered = sealed;
    altered[1][0] ^= 1;
    step(&mut world, 1, leases[0], again(cohort, altered));
    let MaskStage::Shares(mine) = share(&mut world, 2, leases[1], &parts[1]) else {
        panic!("the cohort is sealed")
    };
    assert_eq!(mine[0], parts[0].share().expect("sound keys")[1]);
    assert!(mine[2].is_empty() && mine[3].is_empty());
}
