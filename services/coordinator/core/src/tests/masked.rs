//! Runs with secure aggregation: the agreement on masks, rounds without a worker that is gone, and
//! rounds whose sum cannot be had.

use masking::{Keys, Part};
use schemas::Round;
use schemas::event::LedgerEvent;
use schemas::foundry::Order;
use schemas::lease::{LeaseRef, ReleaseRequest};
use schemas::masking::{MaskReply, MaskRequest, MaskStage, MaskStep, Unmasking};
use schemas::run::RunSpec;
use schemas::{Code, Digest, Millis, UnitIndex, V};
use serde_bytes::{ByteArray, ByteBuf};

use crate::effect::{Answer, Effect};
use crate::fixture::*;
use crate::{ReplyId, WorkerRequest};

mod again;
mod restart;
mod sums;

const UNITS: u32 = 4;

fn masked() -> RunSpec {
    let spec = kit::masked_run_spec(UNITS)
        .lease(LEASE)
        .silence_max(SILENCE);
    spec.build()
}

/// Four workers, each with the lease of one unit.
fn leased() -> (World, Vec<LeaseRef>) {
    let mut world = World::with_run(masked());
    for number in 1..=UNITS {
        world.join(number);
    }
    let leases = (1..=UNITS).map(|number| world.lease(number)).collect();
    (world, leases)
}

/// Keys of a worker, in place of random ones.
fn keys(number: u32, salt: u8) -> Keys {
    let mut entropy = [salt; 128];
    for (index, byte) in entropy.iter_mut().enumerate() {
        *byte ^= (number as u8).wrapping_mul(37).wrapping_add(index as u8);
    }
    Keys::new(&entropy.into())
}

fn step(world: &mut World, number: u32, lease: LeaseRef, step: MaskStep) -> ReplyId {
    let request = MaskRequest { v: V, lease, step };
    world.ask(peer(number), WorkerRequest::Mask(request))
}

fn stage(world: &World, reply: ReplyId) -> MaskStage {
    match &world.answers[&reply] {
        Ok(Answer::Mask { reply, seals }) => {
            let MaskReply { stage, .. } = &**reply;
            let has_shares = matches!(stage, MaskStage::Shares(_));
            assert_eq!(
                seals.is_some(),
                has_shares,
                "only a sealed cohort is signed"
            );
            stage.clone()
        }
        other => panic!("no stage: {other:?}"),
    }
}

fn announce(world: &mut World, number: u32, lease: LeaseRef, salt: u8) -> ReplyId {
    let announced = MaskStep::Announce {
        keys: keys(number, salt).announced(),
        signature: ByteArray::new([9; 64]),
    };
    step(world, number, lease, announced)
}

/// The parts of all workers in the cohort that the coordinator names.
fn parts(world: &mut World, leases: &[LeaseRef], salt: u8) -> Vec<Part> {
    for (number, lease) in (1..).zip(leases) {
        announce(world, number, *lease, salt);
    }
    let parts = (1..).zip(leases).map(|(number, lease)| {
        let reply = announce(world, number, *lease, salt);
        let MaskStage::Cohort(members) = stage(world, reply) else {
            panic!("all have announced keys")
        };
        let cohort = world.run().cohort_of(lease.unit.round, members);
        let keys = keys(number, salt);
        let (worker, audit_key) = (
            worker(number),
            world.run().members[&worker(number)].audit_key.clone(),
        );
        let own = (&worker, &audit_key);
        Part::join(cohort.expect("a cohort"), keys, lease, own, |_, _| true).expect("it is in")
    });
    parts.collect()
}

fn share(world: &mut World, number: u32, lease: LeaseRef, part: &Part) -> MaskStage {
    let shared = MaskStep::Share {
        cohort: part.cohort().digest(),
        sealed: part.share().expect("sound keys"),
    };
    let reply = step(world, number, lease, shared);
    stage(world, reply)
}

/// Has all workers share, and take the shares of the others.
fn exchange(world: &mut World, leases: &[LeaseRef], parts: &mut [Part]) {
    for (number, (lease, part)) in (1..).zip(leases.iter().zip(&*parts)) {
        share(world, number, *lease, part);
    }
    for (number, (lease, part)) in (1..).zip(leases.iter().zip(parts)) {
        let MaskStage::Shares(sealed) = share(world, number, *lease, part) else {
            panic!("all have shared")
        };
        part.take(&sealed).expect("they open");
    }
}

/// Four workers whose cohort is sealed.
fn agreed() -> (World, Vec<LeaseRef>, Vec<Part>) {
    let (mut world, leases) = leased();
    let mut parts = parts(&mut world, &leases, 1);
    exchange(&mut world, &leases, &mut parts);
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::CohortSealed { .. })),
        1
    );
    (world, leases, parts)
}

fn reveal_question(world: &mut World, number: u32, lease: LeaseRef, part: &Part) -> MaskStage {
    let (cohort, shares) = (part.cohort().digest(), vec![]);
    let reply = step(world, number, lease, MaskStep::Reveal { cohort, shares });
    stage(world, reply)
}

fn reveal(world: &mut World, number: u32, lease: LeaseRef, part: &mut Part) -> MaskStage {
    let cohort = part.cohort().digest();
    let ask = |shares| MaskStep::Reveal { cohort, shares };
    let survivors = match reveal_question(world, number, lease, part) {
        MaskStage::Unmask(survivors) => survivors,
        other => return other,
    };
    let shares = part.reveal(&survivors).expect("the coordinator is honest");
    let reply = step(world, number, lease, ask(shares));
    stage(world, reply)
}

/// Hands in a result for each lease, and has all of them found good.
fn submit_all(world: &mut World, leases: &[LeaseRef]) {
    for (number, lease) in (1..).zip(leases) {
        world.submit(number, *lease);
    }
    screened_all(world);
}

/// Each worker reveals its shares.
fn reveal_all(world: &mut World, leases: &[LeaseRef], parts: &mut [Part]) {
    for (number, (lease, part)) in (1..).zip(leases.iter().zip(parts)) {
        reveal(world, number, *lease, part);
    }
}

fn merge_order(world: &World) -> Option<Unmasking> {
    world.pending.iter().find_map(|effect| match effect {
        Effect::Foundry {
            order: Order::Merge { unmasking, .. },
            ..
        } => Some(*unmasking.clone().expect("a masked set")),
        _ => None,
    })
}

fn screened_all(world: &mut World) {
    world.answer_pending_but(|effect| matches!(effect, order!(Merge)));
}

fn dissolved(world: &World) -> usize {
    world.count(|event| matches!(event, LedgerEvent::CohortDissolved { .. }))
}

#[test]
fn tl_17_settings_that_need_a_contribution_by_itself_are_refused_when_the_run_is_made() {
    let refused = |change: &dyn Fn(&mut RunSpec)| {
        let mut spec = masked();
        change(&mut spec);
        spec.validate().err().map(|refusal| refusal.code)
    };
    assert_eq!(refused(&|_| {}), None);
    let unfit = Some(Code::AggregationUnfit);
    assert_eq!(refused(&|spec| spec.upload = kit::BF16), unfit);
    assert_eq!(refused(&|spec| spec.policy.norm_max = 1.0), unfit);
    assert_eq!(refused(&|spec| spec.policy.workers_min = 3), unfit);
    assert_eq!(
        refused(&|spec| spec.combination = schemas::run::Combination::Median),
        unfit
    );
    let comparison = schemas::run::Comparison::of_norms(4.0);
    assert_eq!(refused(&|spec| spec.policy.comparison = comparison), unfit);
    let feedback = |spec: &mut RunSpec| {
        spec.error_feedback = true;
        spec.upload.kind = schemas::run::CodecKind::E3m0;
    };
    assert_eq!(refused(&feedback), unfit);
    let private = |spec: &mut RunSpec| spec.privacy = Some(kit::privacy());
    assert_eq!(refused(&private), unfit);
    for (units, threshold, fits) in [
        (2, 2, false),
        (3, 3, true),
        (3, 2, false),
        (4, 2, false),
        (6, 3, false),
        (6, 4, true),
        (7, 4, false),
        (7, 5, true),
        (7, 8, false),
        (32, 21, false),
        (32, 22, true),
        (33, 20, false),
    ] {
        let shape = |spec: &mut RunSpec| {
            (spec.schedule.units, spec.policy.workers_min) = (units, units);
            let aggregation = spec.secure_aggregation.as_mut();
            aggregation.expect("it is masked").threshold = threshold;
        };
        assert_eq!(
            refused(&shape),
            unfit.filter(|_| !fits),
            "{threshold} of {units}"
        );
    }
    let endless = |spec: &mut RunSpec| {
        let aggregation = spec.secure_aggregation.as_mut();
        aggregation.expect("it is masked").largest = f64::INFINITY;
    };
    assert_eq!(refused(&endless), Some(Code::SpecInvalid));
    // The coordinator checks it as well, since settings need not come from `diloctl`.
    let mut world = World::new();
    let mut spec = masked();
    spec.policy.norm_max = 1.0;
    let request = schemas::control::RunNew { v: V, spec };
    let reply = world.control(crate::ControlRequest::RunNew(Box::new(request)));
    assert_eq!(world.refusal(reply), Code::AggregationUnfit);
}

#[test]
fn tl_17_a_round_with_masks_is_merged_once_enough_workers_have_revealed_shares() {
    let (mut world, leases, mut parts) = agreed();
    submit_all(&mut world, &leases);
    let (run, sealed) = (world.run(), world.run().sealed_masked());
    assert_eq!(sealed, Some((Round(0), (0..4).map(UnitIndex).collect())));
    assert!(run.unmasking(Round(0)).is_none() && merge_order(&world).is_none());
    assert_eq!(
        reveal(&mut world, 1, leases[0], &mut parts[0]),
        MaskStage::Wait
    );
    assert_eq!(
        reveal(&mut world, 2, leases[1], &mut parts[1]),
        MaskStage::Wait
    );
    // The same worker again is one worker.
    assert_eq!(
        reveal(&mut world, 2, leases[1], &mut parts[1]),
        MaskStage::Wait
    );
    assert!(merge_order(&world).is_none());
    assert_eq!(
        reveal(&mut world, 3, leases[2], &mut parts[2]),
        MaskStage::Over
    );
    let unmasking = merge_order(&world).expect("three are enough");
    assert_eq!((unmasking.seeds.len(), unmasking.gone.len()), (4, 0));
    world.answer_pending();
    assert_eq!(world.run().rounds_closed(), Round(1));
    let merged = world.count(|event| matches!(event, LedgerEvent::RoundUnmasked { .. }));
    assert_eq!((merged, dissolved(&world)), (1, 0));
    // The cohort ended with its round.
    assert_eq!(
        reveal(&mut world, 4, leases[3], &mut parts[3]),
        MaskStage::Over
    );
}

#[test]
fn tl_17_a_contribution_under_the_masks_of_another_cohort_is_refused() {
    let (mut world, leases, _) = agreed();
    let spec = world.run().spec.clone();
    for other in [None, Some(Digest::of(b"a cohort for one worker alone"))] {
        let (mut world, leases, _) = agreed();
        let result = masked_for(submission(&spec, 1, leases[0], 0), other);
        let reply = world.ask(peer(1), WorkerRequest::Submit(result));
        assert_eq!(world.refusal(reply), Code::CohortOther, "{other:?}");
    }
    // What is encoded in another form could not be checked from the ledger.
    let sealed = world.run().cohort_digest(Round(0));
    let mut result = masked_for(submission(&spec, 1, leases[0], 0), sealed);
    let packed = serde_json::to_vec(&result.statement).expect("it is text");
    result.bytes = packed;
    let reply = world.ask(peer(1), WorkerRequest::Submit(result));
    assert_eq!(world.refusal(reply), Code::StatementInvalid);
    world.submit(2, leases[1]);
    screened_all(&mut world);
    let counted = world.count(|event| {
        matches!(event, LedgerEvent::ContributionAccepted { contribution, .. }
            if contribution.cohort == sealed)
    });
    assert_eq!(counted, 1);
    // A run without masks takes no contribution that has some.
    let mut world = World::with_run(crate::fixture::spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let spec = world.run().spec.clone();
    let result = masked_for(submission(&spec, 1, held, 0), sealed);
    let reply = world.ask(peer(1), WorkerRequest::Submit(result));
    assert_eq!(world.refusal(reply), Code::CohortOther);
}

#[test]
fn tl_17_a_worker_that_is_gone_after_the_agreement_is_left_out_and_nobody_gets_its_unit() {
    let (mut world, leases, mut parts) = agreed();
    let release = ReleaseRequest {
        v: V,
        lease: leases[1],
        reason: "gone".to_owned(),
    };
    world.ask(peer(2), WorkerRequest::Release(release));
    let claim = world.claim(2);
    assert!(!world.manifests.contains_key(&claim), "the unit is fixed");
    for (number, lease) in [(1, leases[0]), (3, leases[2]), (4, leases[3])] {
        world.submit(number, lease);
    }
    screened_all(&mut world);
    for place in [0, 2] {
        reveal(
            &mut world,
            place as u32 + 1,
            leases[place],
            &mut parts[place],
        );
    }
    // Who is left out is not asked.
    assert_eq!(
        reveal(&mut world, 2, leases[1], &mut parts[1]),
        MaskStage::Over
    );
    assert_eq!(
        reveal(&mut world, 4, leases[3], &mut parts[3]),
        MaskStage::Over
    );
    let unmasking = merge_order(&world).expect("three are enough");
    assert_eq!((unmasking.seeds.len(), unmasking.gone.len()), (3, 1));
    assert_eq!(unmasking.gone[0].unit, UnitIndex(1));
    // A restart finds the same set and the same unmasking in the ledger.
    world.restart();
    world.answer_pending();
    assert_eq!(world.run().rounds_closed(), Round(1));
}

#[test]
fn tl_17_a_lease_that_ends_in_the_round_that_waits_for_it_seals_the_round() {
    let (mut world, leases, _) = agreed();
    for (number, lease) in (1..).zip(&leases[..3]) {
        world.submit(number, *lease);
    }
    screened_all(&mut world);
    assert_eq!(world.run().sealed_masked(), None);
    world.wait(LEASE);
    let survivors = (0..3).map(UnitIndex).collect();
    assert_eq!(world.run().sealed_masked(), Some((Round(0), survivors)));
}

#[test]
fn tl_17_a_round_with_too_few_contributions_is_opened_again_under_new_keys() {
    let (mut world, leases, _) = agreed();
    for (number, lease) in (1..).zip(&leases[..2]) {
        world.submit(number, *lease);
    }
    screened_all(&mut world);
    world.wait(LEASE);
    assert_eq!(dissolved(&world), 1);
    let run = world.run();
    assert_eq!((run.rounds_closed(), run.cohorts.len()), (Round(0), 0));
    assert_eq!(run.tokens.merged.get(), 0);
    let abandoned = run.spec.unit_tokens().get() * 4;
    assert_eq!(
        run.tokens.abandoned.get(),
        abandoned,
        "two leases and two contributions"
    );
    world.join(3);
    world.join(4);
    let again: Vec<LeaseRef> = (1..=UNITS).map(|number| world.lease(number)).collect();
    assert!(again.iter().zip(&leases).all(|(again, before)| {
        again.unit == before.unit && again.epoch == before.epoch.next()
    }));
    let mut parts = parts(&mut world, &again, 2);
    exchange(&mut world, &again, &mut parts);
    submit_all(&mut world, &again);
    reveal_all(&mut world, &again, &mut parts);
    world.answer_pending();
    assert_eq!(world.run().rounds_closed(), Round(1));
}

#[test]
fn tl_17_a_sum_for_which_too_few_reveal_shares_is_given_up_after_a_while() {
    let (mut world, leases, mut parts) = agreed();
    submit_all(&mut world, &leases);
    for place in [0, 1] {
        reveal(
            &mut world,
            place as u32 + 1,
            leases[place],
            &mut parts[place],
        );
    }
    world.wait(Millis(SILENCE.get() - 1));
    assert_eq!(dissolved(&world), 0);
    world.wait(Millis(1));
    assert_eq!(dissolved(&world), 1);
    assert_eq!(world.run().open.len(), 1, "the round is open again");
    world.join(3);
    assert_eq!(
        reveal(&mut world, 3, leases[2], &mut parts[2]),
        MaskStage::Over
    );
}

#[test]
fn tl_17_false_shares_give_the_round_up_and_no_weights() {
    let (mut world, leases, mut parts) = agreed();
    submit_all(&mut world, &leases);
    for place in [0, 1] {
        reveal(
            &mut world,
            place as u32 + 1,
            leases[place],
            &mut parts[place],
        );
    }
    let survivors: Vec<UnitIndex> = (0..4).map(UnitIndex).collect();
    let mut shares = parts[2]
        .reveal(&survivors)
        .expect("the coordinator is honest");
    shares[0].0[0] ^= 1;
    let cohort = parts[2].cohort().digest();
    let reply = step(
        &mut world,
        3,
        leases[2],
        MaskStep::Reveal { cohort, shares },
    );
    // One more may still help.
    assert_eq!(stage(&world, reply), MaskStage::Wait);
    assert_eq!(dissolved(&world), 0);
    let mut shares = parts[3].reveal(&survivors).expect("it is honest");
    shares[0].0[0] ^= 2;
    let step_of_last = MaskStep::Reveal { cohort, shares };
    let reply = step(&mut world, 4, leases[3], step_of_last);
    assert_eq!(stage(&world, reply), MaskStage::Over);
    assert_eq!(dissolved(&world), 1);
    assert!(merge_order(&world).is_none());
    for lease in leases {
        let unstaged = world.seen.iter().any(|effect| {
            matches!(effect, Effect::Foundry { order: Order::Unstage { lease: of }, .. } if *of == lease)
        });
        assert!(unstaged, "{lease}");
    }
}

#[test]
fn tl_17_nothing_counts_before_the_masks_are_agreed_and_no_loss_is_stated() {
    let (mut world, leases) = leased();
    let reply = world.submit(1, leases[0]);
    assert_eq!(world.refusal(reply), Code::CohortOver);
    let (mut world, leases, _) = agreed();
    let mut statement = submission(&world.run().spec, 1, leases[0], 0).statement;
    let schemas::contribution::Outcome::Contribution(told) = &mut statement.outcome else {
        unreachable!("the unit is a training unit")
    };
    told.loss = 0.5;
    let reply = world.ask(peer(1), WorkerRequest::Submit(stated(statement)));
    assert_eq!(world.refusal(reply), Code::StatementInvalid);
}

#[test]
fn tl_17_keys_that_were_shared_for_a_cohort_count_for_no_other() {
    let (mut world, leases) = leased();
    let parts = parts(&mut world, &leases, 1);
    assert_eq!(share(&mut world, 1, leases[0], &parts[0]), MaskStage::Wait);
    // Worker 4 loses its lease before all have shared, and gets the unit again.
    let release = ReleaseRequest {
        v: V,
        lease: leases[3],
        reason: "gone".to_owned(),
    };
    world.ask(peer(4), WorkerRequest::Release(release));
    let again = world.lease(4);
    assert_eq!(share(&mut world, 1, leases[0], &parts[0]), MaskStage::Again);
    announce(&mut world, 4, again, 2);
    // Worker 1 has not announced new keys yet, so there is no cohort.
    let reply = announce(&mut world, 2, leases[1], 2);
    assert_eq!(stage(&world, reply), MaskStage::Wait);
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::CohortSealed { .. })),
        0
    );
    let leases = [leases[0], leases[1], leases[2], again];
    let mut parts = self::parts(&mut world, &leases, 2);
    exchange(&mut world, &leases, &mut parts);
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::CohortSealed { .. })),
        1
    );
}

#[test]
fn tl_17_keys_of_another_worker_and_shares_that_are_no_shares_are_refused() {
    let (mut world, leases) = leased();
    for (number, lease) in (1..).zip(&leases[..3]) {
        announce(&mut world, number, *lease, 1);
    }
    // Worker 4 announces the keys of worker 1.
    let copied = MaskStep::Announce {
        keys: keys(1, 1).announced(),
        signature: ByteArray::new([9; 64]),
    };
    let reply = step(&mut world, 4, leases[3], copied);
    assert_eq!(world.refusal(reply), Code::MaskKeysRefused);
    let parts = parts(&mut world, &leases, 1);
    let cohort = parts[0].cohort().digest();
    let sound = parts[0].share().expect("sound keys");
    let mut short = sound.clone();
    short[2] = ByteBuf::from(vec![0; 79]);
    for sealed in [
        vec![],
        sound[1..].to_vec(),
        short,
        vec![ByteBuf::from(vec![0; 80]); 4],
    ] {
        let reply = step(&mut world, 1, leases[0], MaskStep::Share { cohort, sealed });
        assert_eq!(world.refusal(reply), Code::MaskKeysRefused);
    }
    // Another worker's lease, and a lease of nobody.
    let reply = announce(&mut world, 2, leases[0], 1);
    assert_eq!(world.refusal(reply), Code::LeaseUnknown);
    assert!(matches!(
        share(&mut world, 1, leases[0], &parts[0]),
        MaskStage::Wait
    ));
}

#[test]
fn tl_17_a_process_without_the_keys_of_its_lease_gets_no_part_in_the_round() {
    let (mut world, leases, _) = agreed();
    // It was started again, and its new process has new keys for the same lease.
    let reply = announce(&mut world, 1, leases[0], 7);
    assert_eq!(world.refusal(reply), Code::CohortOver);
    let cohort = Digest::of(b"another");
    let sealed = vec![];
    let reply = step(&mut world, 1, leases[0], MaskStep::Share { cohort, sealed });
    assert_eq!(world.refusal(reply), Code::CohortOver);
}

#[test]
fn tl_17_a_worker_in_quarantine_is_left_out_before_the_seal() {
    let (mut world, leases, _) = agreed();
    for (number, lease) in (1..).zip(&leases[..3]) {
        world.submit(number, *lease);
    }
    screened_all(&mut world);
    let request = schemas::quarantine::QuarantineRequest {
        v: V,
        run: run_id(),
        worker: worker(4),
        quarantined: true,
        reason: "test".parse().expect("a reason"),
    };
    world.control(crate::ControlRequest::WorkerQuarantine(request));
    let survivors = (0..3).map(UnitIndex).collect();
    assert_eq!(world.run().sealed_masked(), Some((Round(0), survivors)));
}
