//! A request whose answer was lost is repeated: it gets the same answer, and has no second effect.

use schemas::event::LedgerEvent;
use schemas::foundry::{self, Order};
use schemas::lease::{Done, LeaseRef, ReleaseRequest};
use schemas::{Code, Refusal, V};

use crate::fixture::*;
use crate::{Answer, Effect, ReplyId, WorkerRequest};

fn release(world: &mut World, number: u32, lease: LeaseRef) -> ReplyId {
    let reason = format!("{}: played by the test", Code::TrainingFailed);
    world.ask(
        peer(number),
        WorkerRequest::Release(ReleaseRequest {
            v: V,
            lease,
            reason,
        }),
    )
}

fn is_done(world: &World, reply: ReplyId) -> bool {
    matches!(
        world.answers.get(&reply),
        Some(Ok(Answer::Done(Done { .. })))
    )
}

/// Sends `ask` twice: the second gets the same answer and changes nothing.
fn twice(
    world: &mut World,
    ask: impl Fn(&mut World) -> ReplyId,
    answered: impl Fn(&World, ReplyId) -> bool,
) {
    let first = ask(world);
    assert!(answered(world, first));
    let events = world.kinds(0).len();
    let again = ask(world);
    assert!(answered(world, again));
    assert_eq!(
        world.kinds(events),
        Vec::<&str>::new(),
        "a repeat writes nothing"
    );
}

#[test]
fn a_goodbye_that_is_said_again_is_answered_and_recorded_once() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let leave =
        |world: &mut World| world.ask(peer(1), WorkerRequest::Leave(leave_request(1, "done")));
    twice(&mut world, leave, is_done);
    // This does not make another process of the worker a member.
    world.join(1);
    let mut older = leave_request(1, "done");
    older.session = session(9);
    let older = world.ask(peer(1), WorkerRequest::Leave(older));
    assert_eq!(world.refusal(older), Code::Replaced);
}

#[test]
fn a_release_that_is_said_again_is_answered_and_counts_once() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    twice(&mut world, |world| release(world, 1, held), is_done);
    // Only its holder gave it back; once another worker holds the unit, it is that worker's.
    world.join(2);
    let foreign = release(&mut world, 2, held);
    assert_eq!(world.refusal(foreign), Code::LeaseLost);
    assert_eq!(world.lease(2).unit, held.unit);
    let late = release(&mut world, 1, held);
    assert_eq!(world.refusal(late), Code::LeaseLost);
}

#[test]
fn a_refused_result_that_is_handed_in_again_is_refused_with_the_same_words_and_one_strike() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let refused = |world: &World, reply: ReplyId| {
        world.answers.get(&reply).is_some_and(|answer| {
            answer
                .as_ref()
                .is_err_and(|refusal| refusal.detail == "of NaN")
        })
    };
    world.submit(1, held);
    let Effect::Foundry {
        order: Order::Screen { screening, .. },
        ..
    } = world.take_pending(|effect| matches!(effect, order!(Screen)))
    else {
        unreachable!("it was picked as one")
    };
    world.foundry(foundry::Answer::Screened {
        screening,
        verdict: Err(Refusal::new(Code::NotFinite, "of NaN")),
    });
    twice(&mut world, |world| world.submit(1, held), refused);
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::ContributionRejected { .. })),
        1
    );
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. })),
        0
    );
    // The ledger holds this too: a coordinator that was started again gives the same answer.
    world.restart();
    let again = world.submit(1, held);
    assert!(refused(&world, again), "not that the lease is over");
}
