//! Leases that an operator ends, after keys leaked with which others may have taken them.

use schemas::ending::{LEASES_ENDED_MAX, LeasesEndReply, LeasesEndRequest};
use schemas::event::{LeaseEnd, LedgerEvent};
use schemas::lease::{LeaseRef, RenewRequest};
use schemas::{Bytes, Code, Epoch, Round, RunId, Steps, Tokens, V};

use crate::fixture::*;
use crate::input::{ControlRequest, ReplyId};
use crate::{Answer, Effect, WorkerRequest};

fn request(run: &RunId, leases: &[LeaseRef]) -> ControlRequest {
    ControlRequest::LeasesEnd(LeasesEndRequest {
        v: V,
        run: run.clone(),
        leases: leases.to_vec(),
        reason: "keys leaked".parse().expect("a reason"),
    })
}

fn replied(world: &World, asked: ReplyId) -> LeasesEndReply {
    match &world.answers[&asked] {
        Ok(Answer::LeasesEnd(reply)) => reply.clone(),
        other => panic!("{other:?}"),
    }
}

fn end(world: &mut World, leases: &[LeaseRef]) -> LeasesEndReply {
    let asked = world.control(request(&run_id(), leases));
    replied(world, asked)
}

/// A run with some units a round, and workers that have joined it.
fn run_of(units: u32, workers: u32) -> World {
    let mut spec = spec("demo");
    spec.schedule.units = units;
    let mut world = World::with_run(spec);
    for number in 1..=workers {
        world.join(number);
    }
    world
}

/// The ends of leases that an operator ordered.
fn ordered(world: &World) -> usize {
    let ordered = |event: &LedgerEvent| {
        let ended =
            matches!(event, LedgerEvent::LeaseEnded { cause, .. } if *cause == LeaseEnd::Ordered);
        ended
    };
    world.count(ordered)
}

#[test]
fn tl_30_ended_leases_are_issued_again_at_once_and_their_holders_stay_members() {
    let mut world = run_of(2, 3);
    let (stolen, honest) = (world.lease(1), world.lease(2));
    let waiting = world.claim(3);
    let before = world.journal.len();
    let reply = end(&mut world, &[honest, stolen]);
    let mut both = [stolen, honest];
    both.sort();
    assert_eq!((&reply.ended[..], &reply.over[..]), (&both[..], &[][..]));
    let kinds = world.kinds(before);
    assert_eq!(kinds[0], "leases-ended");
    assert_eq!(ordered(&world), 2);
    let named = |event: &LedgerEvent| matches!(event, LedgerEvent::LeasesEnded { leases: 2, reason, operator: by } if reason.as_str() == "keys leaked" && *by == public_key(2));
    assert_eq!(world.count(named), 1);
    assert!(!kinds.contains(&"worker-left"), "{kinds:?}");
    assert_eq!(world.run().tokens.abandoned, Tokens(64));
    let again = world.manifests[&waiting].lease;
    assert_eq!(again.epoch, Epoch(2));
    // Their holders claim again, and get what is open.
    let next = world.lease(1);
    assert_eq!((next.epoch, next.unit == again.unit), (Epoch(2), false));
    for (number, lease) in [(3, again), (1, next)] {
        world.submit(number, lease);
        world.answer_pending();
    }
    assert_eq!(world.run().rounds_closed(), Round(1));
}

#[test]
fn tl_30_a_result_under_an_ended_lease_is_refused_also_after_a_restart() {
    let mut world = run_of(1, 2);
    let stolen = world.lease(1);
    end(&mut world, &[stolen]);
    for restarts in [false, true] {
        if restarts {
            world.restart();
            world.answer_pending();
            world.join(1);
        }
        let late = world.submit(1, stolen);
        assert_eq!(world.refusal(late), Code::LeaseLost, "{restarts}");
        let renewal = RenewRequest {
            v: V,
            lease: stolen,
            steps_done: Steps(1),
            bytes_moved: Bytes(0),
        };
        let late = world.ask(peer(1), WorkerRequest::Renew(renewal));
        assert_eq!(world.refusal(late), Code::LeaseLost, "{restarts}");
    }
    let accepted = |event: &LedgerEvent| matches!(event, LedgerEvent::ContributionAccepted { .. });
    assert_eq!(world.count(accepted), 0);
}

#[test]
fn tl_30_a_repeated_order_ends_nothing_that_was_granted_since() {
    let mut world = run_of(1, 2);
    let stolen = world.lease(1);
    assert_eq!(end(&mut world, &[stolen]).ended, [stolen]);
    let since = world.lease(2);
    assert_eq!(since, lease(stolen.unit, 2));
    let before = world.journal.len();
    let reply = end(&mut world, &[stolen, stolen]);
    assert_eq!((reply.ended, reply.over), (vec![], vec![stolen]));
    assert_eq!(world.journal.len(), before, "nothing is written");
    assert_eq!(ordered(&world), 1);
    world.submit(2, since);
    world.answer_pending();
    assert_eq!(world.run().rounds_closed(), Round(1));
    // Of a round that is over nothing is held.
    assert_eq!(end(&mut world, &[since]).over, [since]);
}

#[test]
fn tl_30_a_result_that_is_being_checked_counts_no_more() {
    let mut world = run_of(1, 2);
    let stolen = world.lease(1);
    let handed_in = world.submit(1, stolen);
    let check = world.take_pending(|effect| matches!(effect, order!(Screen)));
    assert_eq!(end(&mut world, &[stolen]).ended, [stolen]);
    assert_eq!(world.refusal(handed_in), Code::LeaseLost);
    world.answer_one(check);
    world.answer_pending();
    let accepted = |event: &LedgerEvent| matches!(event, LedgerEvent::ContributionAccepted { .. });
    assert_eq!(world.count(accepted), 0);
    let unstaged = |effect: &Effect| matches!(effect, order!(Unstage));
    assert!(world.seen.iter().any(unstaged), "no byte of it stays");
}

#[test]
fn an_order_to_end_leases_names_a_run_and_some_leases_and_not_too_many() {
    let mut world = run_of(1, 1);
    let held = world.lease(1);
    let before = world.journal.len();
    let unknown = "unknown".parse().expect("a name");
    let too_many = vec![held; LEASES_ENDED_MAX + 1];
    for (run, leases, code) in [
        (&unknown, &[held][..], Code::RunUnknown),
        (&run_id(), &[], Code::MessageInvalid),
        (&run_id(), &too_many, Code::MessageInvalid),
    ] {
        let asked = world.control(request(run, leases));
        assert_eq!(world.refusal(asked), code);
    }
    assert_eq!(world.journal.len(), before, "nothing is written");
    let most = vec![held; LEASES_ENDED_MAX];
    assert_eq!(end(&mut world, &most).ended, [held]);
}
