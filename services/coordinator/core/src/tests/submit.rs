use schemas::contribution::{Contribution, Evaluation, Fate, Outcome, SubmitReply};
use schemas::event::LedgerEvent;
use schemas::foundry::{self, Order};
use schemas::lease::UnitKind;
use schemas::limits::{LOSS_MAX, TRAIN_MAX};
use schemas::{Code, Millis, Refusal, Steps, Tokens, V};

use crate::fixture::*;
use crate::{Answer, Effect, ReplyId, ScreeningId, WorkerRequest};

fn is_merged(world: &World, reply: ReplyId) -> bool {
    let merged = SubmitReply {
        v: V,
        fate: Fate::Merged,
    };
    matches!(world.answers.get(&reply), Some(Ok(Answer::Submit(found))) if *found == merged)
}

fn screening(world: &mut World) -> ScreeningId {
    match world.take_pending(|effect| matches!(effect, order!(Screen))) {
        Effect::Foundry {
            order: Order::Screen { screening, .. },
            ..
        } => screening,
        _ => unreachable!("it was picked as one"),
    }
}

fn verdict(world: &mut World, screening: ScreeningId, verdict: Result<f64, Code>) {
    let verdict = verdict
        .map(screened)
        .map_err(|code| Refusal::new(code, "test"));
    world.foundry(foundry::Answer::Screened { screening, verdict });
}

#[test]
fn fg_17_a_repeated_result_counts_once() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let first = world.submit(1, held);
    let during = world.submit(1, held);
    world.answer_pending();
    let after = world.submit(1, held);
    for reply in [first, during, after] {
        assert!(is_merged(&world, reply));
    }
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::ContributionAccepted { .. })),
        1
    );
    assert_eq!(world.run().tokens.merged, Tokens(32));
    // The same holds if its round closed meanwhile.
    let other = world.lease(1);
    world.submit(1, other);
    world.answer_pending();
    let much_later = world.submit(1, held);
    assert!(is_merged(&world, much_later));
}

#[test]
fn whoever_asks_last_hears_what_became_of_its_result() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let asked: Vec<_> = (0..20).map(|_| world.submit(1, held)).collect();
    assert_eq!(world.refusal(asked[0]), Code::NoAnswer, "it gave way");
    let last = *asked.last().unwrap();
    assert!(!world.answers.contains_key(&last), "it waits");
    world.answer_pending();
    assert!(is_merged(&world, last));
    assert!(
        asked.iter().all(|reply| world.answers.contains_key(reply)),
        "everybody was answered"
    );
}

#[test]
fn tl_01_tl_14_another_result_for_a_unit_that_is_in_is_refused() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    world.submit(1, held);
    let spec = world.run().spec.clone();
    let beside = world.ask(
        peer(1),
        WorkerRequest::Submit(submission(&spec, 1, held, 1)),
    );
    world.answer_pending();
    assert_eq!(world.refusal(beside), Code::AlreadyCounted);
    let after = world.ask(
        peer(1),
        WorkerRequest::Submit(submission(&spec, 1, held, 2)),
    );
    assert_eq!(world.refusal(after), Code::AlreadyCounted);
}

#[test]
fn fg_16_a_bad_result_is_refused_alone_and_its_unit_is_open_again() {
    let spec = spec("demo");
    type Spoil = fn(&mut Contribution);
    let spoiled: [(Spoil, Code); 12] = [
        (
            |result| result.layout = object("other").digest,
            Code::LayoutMismatch,
        ),
        (|result| result.tokens = Tokens(31), Code::TokensMismatch),
        (|result| result.steps = Steps(5), Code::TokensMismatch),
        (|result| result.loss = f64::NAN, Code::NotFinite),
        (|result| result.loss = f64::INFINITY, Code::NotFinite),
        (|result| result.loss = -1e6, Code::NumberImpossible),
        (|result| result.loss = -1e-9, Code::NumberImpossible),
        (|result| result.loss = 1.1e4, Code::NumberImpossible),
        (|result| result.train_ms = u64::MAX, Code::NumberImpossible),
        (
            |result| result.chunks = vec![object("one")].into(),
            Code::SizeMismatch,
        ),
        (
            |result| result.chunks = Vec::new().into(),
            Code::SizeMismatch,
        ),
        (
            |result| result.codec.kind = schemas::run::CodecKind::Fp32,
            Code::SizeMismatch,
        ),
    ];
    for (spoil, code) in spoiled {
        let mut world = World::with_run(spec.clone());
        world.join(1);
        world.join(2);
        let (held, other) = (world.lease(1), world.lease(2));
        let mut statement = submission(&spec, 1, held, 0).statement;
        let Outcome::Contribution(result) = &mut statement.outcome else {
            panic!("a training unit")
        };
        spoil(result);
        let reply = world.ask(peer(1), WorkerRequest::Submit(stated(statement)));
        assert_eq!(world.refusal(reply), code);
        assert_eq!(world.run().tokens.rejected, Tokens(32));
        let good = world.submit(2, other);
        world.answer_pending();
        assert!(is_merged(&world, good), "the round goes on");
        let again = world.lease(2);
        assert_eq!(again, lease(held.unit, 2));
    }
}

#[test]
fn the_longest_training_and_the_highest_loss_that_are_believed_count() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let mut statement = submission(&world.run().spec, 1, held, 0).statement;
    let Outcome::Contribution(result) = &mut statement.outcome else {
        panic!("a training unit")
    };
    (result.train_ms, result.loss) = (TRAIN_MAX.get(), LOSS_MAX);
    let reply = world.ask(peer(1), WorkerRequest::Submit(stated(statement)));
    world.answer_pending();
    assert!(is_merged(&world, reply), "{:?}", world.answers[&reply]);
}

#[test]
fn fg_16_tl_01_results_that_the_check_refuses_and_outliers_are_rejected() {
    for (outcome, code) in [
        (Err(Code::NotFinite), Code::NotFinite),
        (Err(Code::StatementInvalid), Code::StatementInvalid),
        (Ok(10.5), Code::NormOutlier),
        (Ok(f64::NAN), Code::NotFinite),
    ] {
        let mut world = World::with_run(spec("demo"));
        world.join(1);
        let held = world.lease(1);
        let reply = world.submit(1, held);
        let id = screening(&mut world);
        verdict(&mut world, id, outcome);
        assert_eq!(world.refusal(reply), code);
        let rejected = |event: &LedgerEvent| matches!(event, LedgerEvent::ContributionRejected { code: found, .. } if *found == code);
        assert_eq!(world.count(rejected), 1);
        assert!(
            world
                .seen
                .iter()
                .any(|effect| matches!(effect, order!(Unstage)))
        );
    }
}

#[test]
fn a_lease_does_not_end_while_its_result_is_checked() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let reply = world.submit(1, held);
    world.wait(SILENCE + LEASE);
    assert_eq!(world.run().leases().count(), 1);
    assert!(
        world.run().member(&worker(1)).is_none(),
        "the worker itself is gone"
    );
    let id = screening(&mut world);
    verdict(&mut world, id, Ok(1.0));
    assert!(is_merged(&world, reply));
    assert_eq!(world.run().tokens.merged, Tokens(32));
}

#[test]
fn a_check_that_could_not_be_made_costs_neither_lease_nor_strike() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let reply = world.submit(1, held);
    let claim = world.claim(1);
    assert!(
        !world.manifests.contains_key(&claim),
        "the claim waits for what becomes of the result"
    );
    let id = screening(&mut world);
    verdict(&mut world, id, Err(Code::StoreUnreachable));
    assert_eq!(world.refusal(reply), Code::StoreUnreachable);
    assert_eq!(world.manifests[&claim].lease, held);
    world.wait(LEASE - Millis(1));
    let again = world.submit(1, held);
    world.answer_pending();
    assert!(is_merged(&world, again));
}

#[test]
fn a_result_whose_check_breaks_off_every_time_does_not_hold_its_unit_for_ever() {
    for code in [Code::Internal, Code::ObjectMissing] {
        let mut world = World::with_run(spec("demo"));
        world.join(1);
        let held = world.lease(1);
        let mut tries = 0;
        while world.count(|event| matches!(event, LedgerEvent::ContributionRejected { .. })) == 0 {
            tries += 1;
            assert!(tries < 10, "{code:?} is tried again without end");
            let reply = world.submit(1, held);
            let id = screening(&mut world);
            verdict(&mut world, id, Err(code));
            assert_eq!(world.refusal(reply), code);
        }
        assert!(tries > 1, "once may be an accident");
        world.join(2);
        let next = [world.lease(1), world.lease(2)];
        assert!(
            next.iter()
                .any(|lease| lease.unit == held.unit && lease.epoch > held.epoch),
            "{next:?}"
        );
    }
}

#[test]
fn an_answer_to_a_check_that_is_over_changes_nothing() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    world.submit(1, held);
    let id = screening(&mut world);
    verdict(&mut world, id, Ok(1.0));
    let before = world.journal.len();
    verdict(&mut world, id, Ok(1.0));
    verdict(&mut world, ScreeningId(99), Err(Code::NotFinite));
    assert_eq!(world.journal.len(), before);
}

#[test]
fn tl_01_a_statement_made_by_another_is_refused() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(2);
    let (held, foreign) = (world.lease(1), world.lease(2));
    let spec = spec("demo");
    // Another worker's lease stays as it is.
    let stolen = world.ask(
        peer(1),
        WorkerRequest::Submit(submission(&spec, 1, foreign, 0)),
    );
    assert_eq!(world.refusal(stolen), Code::LeaseUnknown);
    assert_eq!(
        world.run().holder(&foreign.unit),
        Some((&worker(2), foreign.epoch))
    );
    let copied = world.ask(
        peer(1),
        WorkerRequest::Submit(submission(&spec, 2, held, 0)),
    );
    assert_eq!(world.refusal(copied), Code::StatementInvalid);
    let mut statement = submission(&spec, 2, foreign, 0).statement;
    statement.run = "other".parse().unwrap();
    let moved = world.ask(peer(2), WorkerRequest::Submit(stated(statement)));
    assert_eq!(world.refusal(moved), Code::StatementInvalid);
}

#[test]
fn tl_01_a_result_for_another_round_counts_nowhere() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let tomorrow = lease(train(1, held.unit.index.0), held.epoch.get());
    let reply = world.submit(1, tomorrow);
    assert_eq!(world.refusal(reply), Code::LeaseUnknown);
    assert_eq!(world.run().tokens.merged, Tokens(0));
    assert_eq!(
        world.run().holder(&held.unit),
        Some((&worker(1), held.epoch))
    );
}

#[test]
fn an_evaluation_is_of_all_the_tokens_that_its_unit_holds_and_of_a_loss_that_can_be() {
    let mut evaluating = spec("demo");
    evaluating.schedule.evaluation_every = 1;
    evaluating.schedule.units = 1;
    evaluating.policy.strikes_max = 100;
    let mut world = World::with_run(evaluating.clone());
    world.join(1);
    world.join(2);
    let leases = [world.lease(1), world.lease(2)];
    let number = leases
        .iter()
        .position(|held| held.unit.kind == UnitKind::Evaluate)
        .expect("one evaluates") as u32
        + 1;
    let mut held = leases[number as usize - 1];
    let state = |world: &mut World, held, loss_sum, tokens| {
        let mut statement = submission(&evaluating, number, held, 0).statement;
        statement.outcome = Outcome::Evaluation(Evaluation {
            loss_sum,
            tokens: Tokens(tokens),
        });
        world.ask(peer(number), WorkerRequest::Submit(stated(statement)))
    };
    // Four sequences of four tokens; the data of the tests has exactly these.
    for (loss_sum, tokens, code) in [
        (-5e5, 1, Code::TokensMismatch),
        (3.0, 1, Code::TokensMismatch),
        (3.0, 0, Code::TokensMismatch),
        (3.0, 17, Code::TokensMismatch),
        (-5e5, 16, Code::NumberImpossible),
        (1e6, 16, Code::NumberImpossible),
        (f64::NAN, 16, Code::NotFinite),
        (f64::NEG_INFINITY, 16, Code::NotFinite),
    ] {
        let reply = state(&mut world, held, loss_sum, tokens);
        assert_eq!(world.refusal(reply), code, "{loss_sum} over {tokens}");
        held = world.lease(number);
    }
    // After a restart the unit's size is unknown until the data manifest is here: the worker gets
    // no strike and asks again.
    world.restart();
    let rejected = world.run().tokens.rejected;
    let early = state(&mut world, held, 32.0, 16);
    assert_eq!(world.refusal(early), Code::NoAnswer);
    assert_eq!(world.run().tokens.rejected, rejected);
    world.answer_pending();
    // The highest mean that is believed.
    let good = state(&mut world, held, 16.0 * LOSS_MAX, 16);
    world.answer_pending();
    assert!(is_merged(&world, good), "{:?}", world.answers[&good]);
}

/// The worker uploads again what the store lost; a result whose object is never there is refused in
/// the end.
#[test]
fn a_result_of_objects_that_were_not_uploaded_under_its_lease_does_not_count() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    for attempt in 1..=4 {
        let reply = world.submit(1, held);
        let id = screening(&mut world);
        verdict(&mut world, id, Err(Code::UploadMissing));
        assert_eq!(world.refusal(reply), Code::UploadMissing);
        let rejected =
            |event: &LedgerEvent| matches!(event, LedgerEvent::ContributionRejected { .. });
        assert_eq!(
            world.count(rejected),
            usize::from(attempt == 4),
            "attempt {attempt}"
        );
    }
    assert_eq!(world.run().tokens.merged, Tokens(0));
}
