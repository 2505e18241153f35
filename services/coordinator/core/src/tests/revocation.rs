//! Revoked keys: from the order on the coordinator takes nothing of them, whatever node of the
//! brokers lets them through, until they are issued anew.

use schemas::call::Verb;
use schemas::control::{Query, ViewRequest};
use schemas::event::{Event, LedgerEvent};
use schemas::lease::{ReleaseRequest, RenewRequest};
use schemas::revocation::{
    HOLDER_BYTES_MAX, REVOKED_AHEAD_MAX, REVOKED_NAMED_MAX, RevokeRequest, RevokedKey,
};
use schemas::role::Role;
use schemas::{Bytes, Code, Millis, PublicKey, Steps, UnixMillis, V};

use super::heartbeat::heartbeat;
use crate::fixture::*;
use crate::input::ReplyId;
use crate::{Answer, ControlRequest, Input, WorkerRequest};

/// Time for which an order makes tokens of after it void too.
const MARGIN: Millis = Millis::from_secs(300);

fn key(number: u32) -> PublicKey {
    worker(number).as_str().parse().expect("both are nkeys")
}

fn named(world: &World, key: PublicKey) -> RevokedKey {
    RevokedKey {
        key,
        role: Some(Role::Worker),
        name: Some("w".to_owned()),
        until: world.now.after(MARGIN),
        reason: "it was stolen".parse().ok(),
    }
}

fn order(world: &mut World, keys: Vec<RevokedKey>) -> ReplyId {
    let request = RevokeRequest { v: V, keys };
    world.control(ControlRequest::CredentialRevoke(request))
}

/// An operator revokes the keys of workers.
pub(super) fn revoke(world: &mut World, numbers: &[u32]) -> ReplyId {
    let keys = numbers.iter().map(|number| named(world, key(*number)));
    let keys = keys.collect();
    order(world, keys)
}

/// The list of issued credentials says that a worker has a token of after its revocation.
pub(super) fn reissue(world: &mut World, number: u32) {
    let until = world.core.state().revoked_until(&key(number));
    let issued = until.unwrap_or(world.now).after(Millis::from_secs(1));
    let key = key(number);
    world.input(Input::Reissued { key, issued });
}

fn recorded(world: &World, reply: ReplyId) -> u32 {
    match &world.answers[&reply] {
        Ok(Answer::Revoke(reply)) => reply.recorded,
        other => panic!("{other:?}"),
    }
}

fn heartbeats(world: &mut World, number: u32) -> usize {
    world.input(Input::Heartbeat {
        peer: peer(number),
        heartbeat: heartbeat(),
    });
    world.count(|event| {
        matches!(event, LedgerEvent::RequestDenied { worker: of, verb, code: Code::HolderBlocked, .. } if *of == worker(number) && verb == "heartbeat")
    })
}

#[test]
fn tl_07_tl_29_a_revocation_is_in_the_ledger_with_its_operator_holder_and_reason() {
    let mut world = World::with_run(spec("demo"));
    let before = world.journal.len();
    let stranger = RevokedKey {
        role: None,
        name: None,
        reason: None,
        ..named(&world, key(3))
    };
    let first = named(&world, key(1));
    let asked = order(&mut world, vec![first.clone(), stranger.clone()]);
    assert_eq!(recorded(&world, asked), 2);
    let written: Vec<_> = world.journal[before..]
        .iter()
        .map(|body| (body.run.clone(), body.event.clone()))
        .collect();
    let event = |named: RevokedKey| {
        let event = LedgerEvent::CredentialRevoked {
            key: named.key,
            role: named.role,
            name: named.name,
            until: named.until,
            reason: named.reason,
            operator: public_key(2),
        };
        (None, Event::Ledger(event))
    };
    assert_eq!(written, [event(first.clone()), event(stranger)]);
    // The same order once more, whose answer was lost, writes nothing; a later one does.
    let again = order(&mut world, vec![first.clone()]);
    assert_eq!(recorded(&world, again), 0);
    assert_eq!(world.journal.len(), before + 2);
    let earlier = RevokedKey {
        until: UnixMillis(first.until.get() - 1),
        ..first.clone()
    };
    let later = RevokedKey {
        until: UnixMillis(first.until.get() + 1),
        ..first
    };
    for (named, count) in [(earlier, 0), (later, 1)] {
        let asked = order(&mut world, vec![named]);
        assert_eq!(recorded(&world, asked), count);
    }
}

#[test]
fn tl_07_fg_05_a_revoked_member_is_refused_everything_also_after_a_restart() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(2);
    let held = world.lease(1);
    revoke(&mut world, &[1]);
    for round in 0..2_usize {
        let requests = [
            WorkerRequest::Join(join_request(1)),
            WorkerRequest::Claim(claim_request(1, Millis(0))),
            WorkerRequest::Renew(RenewRequest {
                v: V,
                lease: held,
                steps_done: Steps(1),
                bytes_moved: Bytes(1),
            }),
            WorkerRequest::Submit(submission(&world.run().spec.clone(), 1, held, 0)),
            WorkerRequest::Release(ReleaseRequest {
                v: V,
                lease: held,
                reason: String::new(),
            }),
            WorkerRequest::Leave(leave_request(1, "")),
        ];
        for request in requests {
            let verb: Verb = request.verb();
            let asked = world.ask(peer(1), request);
            assert_eq!(world.refusal(asked), Code::HolderBlocked, "{verb} {round}");
        }
        let heard = world.run().members[&worker(1)].present;
        assert!(heard, "its membership ends by itself");
        assert!(
            heartbeats(&mut world, 1) > round,
            "a report is no sign of life"
        );
        world.restart();
        world.answer_pending();
    }
    // Others are not touched, and the unit goes to one of them once its lease has ended.
    let other = world.lease(2);
    assert_ne!(other.unit, held.unit);
    let accepted = |event: &LedgerEvent| matches!(event, LedgerEvent::ContributionAccepted { worker: by, .. } if *by == worker(1));
    assert_eq!(world.count(accepted), 0);
}

#[test]
fn tl_07_what_a_revoked_worker_waits_for_is_refused_and_no_lease_is_granted_to_it() {
    let mut spec = spec("demo");
    spec.schedule.units = 1;
    let mut world = World::with_run(spec);
    world.join(1);
    world.join(2);
    let held = world.lease(1);
    let waits = world.claim(2);
    assert!(!world.answers.contains_key(&waits));
    revoke(&mut world, &[2]);
    assert_eq!(world.refusal(waits), Code::HolderBlocked);
    world.ask(
        peer(1),
        WorkerRequest::Release(ReleaseRequest {
            v: V,
            lease: held,
            reason: String::new(),
        }),
    );
    let granted = |event: &LedgerEvent| matches!(event, LedgerEvent::LeaseGranted { worker: to, .. } if *to == worker(2));
    assert_eq!(world.count(granted), 0);
}

#[test]
fn tl_07_a_key_that_is_issued_anew_is_served_again_and_an_older_token_is_not() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    revoke(&mut world, &[1]);
    let until = world.core.state().revoked_until(&key(1)).expect("revoked");
    let joins = |world: &mut World| {
        let asked = world.join(1);
        world.answers[&asked]
            .as_ref()
            .map(drop)
            .map_err(|refusal| refusal.code)
    };
    // The list on this machine is of before the revocation.
    for issued in [UnixMillis(0), until] {
        world.input(Input::Reissued {
            key: key(1),
            issued,
        });
        assert_eq!(joins(&mut world), Err(Code::HolderBlocked), "{issued:?}");
    }
    let before = world.journal.len();
    reissue(&mut world, 1);
    assert_eq!(world.kinds(before), ["credential-reissued"]);
    assert_eq!(joins(&mut world), Ok(()));
    world.lease(1);
    // Said again, it changes nothing; and the next revocation is as good as the first.
    let written = world.journal.len();
    reissue(&mut world, 1);
    assert_eq!(world.journal.len(), written);
    world.wait(Millis::from_secs(1));
    revoke(&mut world, &[1]);
    assert_eq!(joins(&mut world), Err(Code::HolderBlocked));
}

#[test]
fn tl_07_a_revoked_operator_gives_no_order_and_sees_nothing() {
    let mut world = World::with_run(spec("demo"));
    let view = || ControlRequest::View(ViewRequest::of(Query::Runs));
    let asked = world.control_as(3, view());
    assert!(world.answers[&asked].is_ok());
    let operator = named(&world, public_key(3));
    order(&mut world, vec![operator]);
    world.restart();
    let before = world.journal.len();
    let own = named(&world, key(1));
    let revokes = ControlRequest::CredentialRevoke(RevokeRequest {
        v: V,
        keys: vec![own],
    });
    for request in [view(), revokes] {
        let asked = world.control_as(3, request);
        assert_eq!(world.refusal(asked), Code::HolderBlocked);
    }
    assert_eq!(world.journal.len(), before);
    let asked = world.control(view());
    assert!(world.answers[&asked].is_ok(), "other operators go on");
    world.input(Input::Reissued {
        key: public_key(3),
        issued: world.now.after(MARGIN).after(Millis::from_secs(1)),
    });
    let asked = world.control_as(3, view());
    assert!(world.answers[&asked].is_ok());
}

#[test]
fn tl_07_an_order_with_impossible_values_is_refused_and_nothing_of_it_is_written() {
    let mut world = World::with_run(spec("demo"));
    let before = world.journal.len();
    let good = named(&world, key(1));
    let latest = world.now.after(REVOKED_AHEAD_MAX);
    let too_late = RevokedKey {
        until: UnixMillis(latest.get() + 1),
        ..named(&world, key(2))
    };
    let long = RevokedKey {
        name: Some("n".repeat(HOLDER_BYTES_MAX + 1)),
        ..named(&world, key(2))
    };
    let odd = RevokedKey {
        name: Some("a\u{7}b".to_owned()),
        ..named(&world, key(2))
    };
    for bad in [too_late, long, odd] {
        let asked = order(&mut world, vec![good.clone(), bad.clone()]);
        assert_eq!(world.refusal(asked), Code::MessageInvalid, "{bad:?}");
    }
    let many = vec![good.clone(); REVOKED_NAMED_MAX + 1];
    let asked = order(&mut world, many);
    assert_eq!(world.refusal(asked), Code::MessageInvalid);
    assert_eq!(world.journal.len(), before);
    let utmost = RevokedKey {
        until: latest,
        name: Some("n".repeat(HOLDER_BYTES_MAX)),
        ..good
    };
    let asked = order(&mut world, vec![utmost; REVOKED_NAMED_MAX]);
    assert_eq!(recorded(&world, asked), 1, "each key once");
}
