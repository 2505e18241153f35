//! Agreements that begin again or stand still, what they are refused for, and the bounds of
//! cohorts.

use super::*;

#[test]
fn tl_17_a_heartbeat_of_a_masked_run_tells_no_loss() {
    for (loss, refused) in [(Some(2.5), true), (None, false)] {
        let (mut world, ..) = leased();
        let heartbeat = schemas::telemetry::Heartbeat {
            loss,
            lease: None,
            ..crate::tests::heartbeat::heartbeat()
        };
        let before = world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. }));
        let peer = peer(1);
        world.input(crate::Input::Heartbeat { peer, heartbeat });
        let after = world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. }));
        assert_eq!(after - before, usize::from(refused), "{loss:?}");
    }
}

#[test]
fn tl_17_the_keys_of_the_largest_cohort_fit_in_one_event() {
    let member = |unit| schemas::masking::CohortMember {
        unit: UnitIndex(u32::MAX - unit),
        epoch: schemas::Epoch(u64::MAX),
        worker: worker(unit),
        audit_key: kit::audit_key(unit),
        keys: keys(unit, 1).announced(),
        signature: ByteArray::new([255; 64]),
    };
    let members = (0..schemas::masking::COHORT_MAX).map(member).collect();
    let round = Round(u64::MAX);
    let event = LedgerEvent::CohortSealed { round, members };
    let body = schemas::event::EventBody {
        v: V,
        known: None,
        emitter: public_key(1),
        sequence: schemas::ChainSequence(u64::MAX),
        previous: Some(Digest::of(b"previous")),
        time: START,
        run: Some(run_id()),
        event: schemas::event::Event::Ledger(event),
    };
    let bytes = schemas::Message::encode(&body).len();
    assert!(bytes < schemas::limits::EVENT_BYTES_MAX * 9 / 10, "{bytes}");
}

#[test]
fn tl_17_a_run_without_masks_has_no_cohorts() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let reply = announce(&mut world, 1, held, 1);
    assert_eq!(world.refusal(reply), Code::CohortOver);
    assert!(world.run().cohort_of(Round(0), vec![]).is_err());
}

#[test]
fn tl_17_a_restore_forgets_the_keys_of_the_round_that_it_drops() {
    let spec = kit::masked_run_spec(UNITS)
        .lease(LEASE)
        .silence_max(SILENCE);
    let mut spec = spec.build();
    (spec.schedule.snapshot_every, spec.schedule.rounds) = (1, 6);
    let mut world = World::with_run(spec);
    for number in 1..=UNITS {
        world.join(number);
    }
    let lease_all = |world: &mut World| -> Vec<LeaseRef> {
        (1..=UNITS).map(|number| world.lease(number)).collect()
    };
    let first = lease_all(&mut world);
    let mut of_first = parts(&mut world, &first, 1);
    exchange(&mut world, &first, &mut of_first);
    submit_all(&mut world, &first);
    reveal_all(&mut world, &first, &mut of_first);
    world.answer_pending();
    assert_eq!(world.run().rounds_closed(), Round(1));
    // In the next round three have announced keys, or all have and two have shared.
    let second = lease_all(&mut world);
    let of_second = parts(&mut world, &second, 2);
    share(&mut world, 1, second[0], &of_second[0]);
    crate::tests::restore::restore(&mut world, 1);
    world.unfreeze();
    world.answer_pending();
    let third = lease_all(&mut world);
    assert!(third[0].unit.round > second[0].unit.round);
    let reply = announce(&mut world, 1, third[0], 3);
    assert_eq!(stage(&world, reply), MaskStage::Wait);
    let mut of_third = parts(&mut world, &third, 3);
    exchange(&mut world, &third, &mut of_third);
    let sealed = world.count(|event| matches!(event, LedgerEvent::CohortSealed { .. }));
    assert_eq!(sealed, 2);
}

#[test]
fn tl_17_keys_of_a_cohort_that_is_gone_form_no_other_and_are_not_changed_within_one() {
    let (mut world, leases) = leased();
    parts(&mut world, &leases, 1);
    // All were told of the cohort, so its keys stand as long as it does.
    let reply = announce(&mut world, 1, leases[0], 5);
    assert_eq!(world.refusal(reply), Code::CohortOver);
    let release = ReleaseRequest {
        v: V,
        lease: leases[3],
        reason: "gone".to_owned(),
    };
    world.ask(peer(4), WorkerRequest::Release(release));
    let again = world.lease(4);
    // The first new keys do not form a cohort with those of the others, which are spent.
    let reply = announce(&mut world, 4, again, 2);
    assert_eq!(stage(&world, reply), MaskStage::Wait);
    let reply = announce(&mut world, 1, leases[0], 1);
    assert_eq!(stage(&world, reply), MaskStage::Again);
    for number in [1, 2] {
        let reply = announce(&mut world, number, leases[number as usize - 1], 2);
        assert_eq!(stage(&world, reply), MaskStage::Wait);
    }
    let leases = [leases[0], leases[1], leases[2], again];
    let mut parts = parts(&mut world, &leases, 2);
    exchange(&mut world, &leases, &mut parts);
}

#[test]
fn tl_17_keys_of_low_order_are_refused_and_harm_no_other_worker() {
    let (mut world, leases) = leased();
    for sealing in [true, false] {
        let mut low = keys(4, 1).announced();
        let key = if sealing {
            &mut low.sealing
        } else {
            &mut low.masking
        };
        key.0 = [0; 32];
        let announced = MaskStep::Announce {
            keys: low,
            signature: ByteArray::new([9; 64]),
        };
        let reply = step(&mut world, 4, leases[3], announced);
        assert_eq!(world.refusal(reply), Code::MaskKeysRefused);
    }
    let mut parts = parts(&mut world, &leases, 1);
    exchange(&mut world, &leases, &mut parts);
}

#[test]
fn tl_17_a_frozen_run_keeps_the_shares_and_unmasks_when_it_goes_on() {
    let (mut world, leases, mut parts) = agreed();
    submit_all(&mut world, &leases);
    let hold = schemas::hold::HoldRequest {
        v: V,
        run: run_id(),
        hold: schemas::hold::Hold::Merges,
        held: true,
        reason: "test".parse().expect("a reason"),
    };
    world.control(crate::ControlRequest::RunHold(hold));
    for place in [0, 1, 2] {
        let stage = reveal(
            &mut world,
            place as u32 + 1,
            leases[place],
            &mut parts[place],
        );
        assert_eq!(stage, MaskStage::Wait);
    }
    world.wait(Millis(SILENCE.get() * 3));
    assert_eq!(dissolved(&world), 0);
    world.unfreeze();
    assert_eq!(dissolved(&world), 0, "nobody was late");
    for number in 1..=UNITS {
        world.join(number);
    }
    assert_eq!(
        reveal(&mut world, 3, leases[2], &mut parts[2]),
        MaskStage::Over
    );
    assert!(merge_order(&world).is_some());
}

/// Another merge of the same contributions would give the same sum, and nothing says which of them
/// it was.
#[test]
fn tl_17_a_sum_that_no_honest_contributions_have_halts_the_run() {
    let (mut world, leases, mut parts) = agreed();
    submit_all(&mut world, &leases);
    reveal_all(&mut world, &leases, &mut parts);
    assert!(merge_order(&world).is_some());
    world.take_pending(|effect| matches!(effect, order!(Merge)));
    let outcome = Err(schemas::Refusal::new(Code::MaskRange, "test"));
    let sync = sync(0);
    world.foundry(schemas::foundry::Answer::Merged { sync, outcome });
    world.wait(Millis::from_secs(60));
    assert!(merge_order(&world).is_none(), "it is not tried again");
    let claim = world.claim(1);
    assert_eq!(world.refusal(claim), Code::MaskRange);
    assert_eq!(
        (world.run().rounds_closed(), dissolved(&world)),
        (Round(0), 0)
    );
}

/// A coordinator that drains grants nothing and lets those finish that hold a unit. Their sum is
/// theirs too: without it they had trained in vain.
#[test]
fn tl_17_a_coordinator_that_drains_waits_for_the_sum_of_those_who_trained() {
    let (mut world, leases) = leased();
    world.shut_down(Millis::from_secs(600));
    let mut parts = parts(&mut world, &leases, 1);
    exchange(&mut world, &leases, &mut parts);
    let sealed = world.count(|event| matches!(event, LedgerEvent::CohortSealed { .. }));
    assert_eq!(sealed, 1);
    let stopped = |world: &World| {
        world.count(|event| matches!(event, LedgerEvent::CoordinatorStopped { .. }))
    };
    for (number, lease) in (1..).zip(&leases[..3]) {
        world.submit(number, *lease);
    }
    screened_all(&mut world);
    assert_eq!(stopped(&world), 0, "a worker is at work");
    world.submit(4, leases[3]);
    screened_all(&mut world);
    assert_eq!(stopped(&world), 0, "shares are waited for");
    // A worker that was told to drain leaves, and reveals all the same. One that was shut out does
    // not.
    for number in 1..=UNITS {
        let leave = leave_request(number, "drained");
        world.ask(peer(number), WorkerRequest::Leave(leave));
    }
    let request = schemas::quarantine::QuarantineRequest {
        v: V,
        run: run_id(),
        worker: worker(4),
        quarantined: true,
        reason: "test".parse().expect("a reason"),
    };
    world.control(crate::ControlRequest::WorkerQuarantine(request));
    let (cohort, shares) = (parts[3].cohort().digest(), vec![]);
    let ask = |lease| {
        (
            lease,
            MaskStep::Reveal {
                cohort,
                shares: vec![],
            },
        )
    };
    for (number, (lease, question)) in [
        (4, (leases[3], MaskStep::Reveal { cohort, shares })),
        (1, ask(leases[1])),
        (5, ask(leases[0])),
    ] {
        let reply = step(&mut world, number, lease, question);
        world.refusal(reply);
    }
    let (leases, parts) = (&leases[..3], &mut parts[..3]);
    reveal_all(&mut world, leases, parts);
    assert_eq!(stopped(&world), 0, "the sum is merged");
    world.answer_pending();
    assert_eq!(
        (stopped(&world), world.run().rounds_closed()),
        (1, Round(1))
    );
}

#[test]
fn tl_17_a_drain_waits_no_longer_for_a_sum_than_for_anything_else() {
    let (mut world, leases, _) = agreed();
    world.shut_down(Millis(SILENCE.get() / 2));
    submit_all(&mut world, &leases);
    let stopped = |world: &World| {
        world.count(|event| matches!(event, LedgerEvent::CoordinatorStopped { .. }))
    };
    assert_eq!(stopped(&world), 0);
    world.wait(Millis(SILENCE.get() / 2));
    assert_eq!((stopped(&world), dissolved(&world)), (1, 0));
}
