//! Whose URLs the store is to refuse, and what the answer to an order says about them.

use ledger::UrlHolders;
use schemas::blob::GetRequest;
use schemas::hold::{AtStore, Hold, HoldReply, HoldRequest};
use schemas::limits::URLS_OUT_MAX;
use schemas::{Code, Millis, UnixMillis, V};

use super::quarantine::{readmit, shut};
use crate::fixture::*;
use crate::input::{ControlRequest, Recorded, ReplyId};
use crate::{Answer, Effect, Stop, WorkerRequest};

/// Stops the URLs of the run, or allows them.
fn stop(world: &mut World, held: bool) -> HoldReply {
    let asked = world.control(ControlRequest::RunHold(HoldRequest {
        v: V,
        run: run_id(),
        hold: Hold::Urls,
        held,
        reason: "urls are in a log".parse().expect("a reason"),
    }));
    match &world.answers[&asked] {
        Ok(Answer::Hold(reply)) => reply.clone(),
        other => panic!("{other:?}"),
    }
}

fn of(number: u32) -> UrlHolders {
    UrlHolders::of_worker(run_id(), worker(number))
}

fn stopped(world: &World) -> Vec<(UrlHolders, Option<UnixMillis>)> {
    world.core.state().stopped_urls().into_iter().collect()
}

/// Everything that the store was to be told, order by order; none for one that stops no URLs.
fn told(world: &World) -> Vec<Option<Stop>> {
    let told = world.seen.iter().filter_map(|effect| match effect {
        Effect::Purge { stop, .. } => Some(stop.clone()),
        Effect::StopUrls { stop, .. } => Some(Some(stop.clone())),
        _ => None,
    });
    told.collect()
}

/// Asks for a URL to read.
fn get(world: &mut World, number: u32) -> ReplyId {
    let objects = vec![object("config").digest];
    let get = WorkerRequest::Get(GetRequest { v: V, objects });
    world.ask(peer(number), get)
}

fn gets(world: &World) -> usize {
    let granted = |effect: &&Effect| matches!(effect, Effect::GrantGet { .. });
    world.seen.iter().filter(granted).count()
}

/// The store need not know such keys, since the coordinator gives them nothing that it could
/// refuse. Once they have joined it must.
#[test]
fn tl_31_tl_20_a_key_that_never_joined_has_no_urls_to_stop_and_gets_none_while_it_is_shut_out() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    for _ in 0..2 {
        let reply = shut(&mut world, 2);
        assert_eq!(reply.store, Some(AtStore::NoUrls));
        assert!(!reply.joined && stopped(&world).is_empty());
        let join = world.join(2);
        assert_eq!(world.refusal(join), Code::WorkerQuarantined);
        let get = get(&mut world, 2);
        assert_eq!(world.refusal(get), Code::WorkerQuarantined);
        let claim = world.claim(2);
        assert_eq!(world.refusal(claim), Code::WorkerQuarantined);
        assert_eq!(gets(&world), 0);
        world.restart();
    }
    assert_eq!(told(&world), [None, None], "its uploads are looked for");
    assert_eq!(readmit(&mut world, 2).store, Some(AtStore::NoUrls));
    assert_eq!(told(&world).len(), 2);
    world.join(2);
    get(&mut world, 2);
    assert_eq!(gets(&world), 1);
    assert_eq!(shut(&mut world, 2).store, Some(AtStore::ShutOut));
    assert_eq!(stopped(&world), [(of(2), None)]);
    world.restart();
    assert_eq!(stopped(&world), [(of(2), None)]);
}

#[test]
fn tl_31_tl_20_the_answer_to_a_readmission_says_what_still_stops_the_urls() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(3);
    assert_eq!(shut(&mut world, 1).store, Some(AtStore::ShutOut));
    shut(&mut world, 9);
    let reply = stop(&mut world, true);
    // The stranger has no URLs.
    assert_eq!((reply.store, reply.shut_out), (Some(AtStore::Stopped), 1));
    assert_eq!(readmit(&mut world, 1).store, Some(AtStore::Stopped));
    assert_eq!(shut(&mut world, 1).store, Some(AtStore::Stopped));
    let reply = stop(&mut world, false);
    assert_eq!((reply.store, reply.shut_out), (Some(AtStore::Taken), 1));
    assert_eq!(readmit(&mut world, 1).store, Some(AtStore::Taken));
    assert_eq!(readmit(&mut world, 1).store, Some(AtStore::Taken), "again");
    assert_eq!(stop(&mut world, false).shut_out, 0);
    // It goes on with another key, and both are shut out.
    let recorded = Recorded {
        seat: None,
        before: vec![worker(1)],
    };
    world.join_recorded(join_request(2), 2, recorded);
    shut(&mut world, 2);
    let keys = told(&world).pop().flatten().expect("it is told");
    assert_eq!(keys.concerned, [of(1), of(2)].into(), "each key is tried");
    shut(&mut world, 1);
    let reply = readmit(&mut world, 1);
    assert_eq!(reply.store, Some(AtStore::ShutOut));
    assert_eq!(reply.other_keys, [worker(2)]);
    let key = told(&world).pop().flatten().expect("it is told");
    assert_eq!(key.concerned, [of(1)].into());
    assert_eq!(readmit(&mut world, 2).store, Some(AtStore::Taken));
    assert!(stopped(&world).is_empty());
}

#[test]
fn tl_20_the_urls_of_a_complete_run_need_no_stop_once_the_last_has_ended() {
    let mut spec = spec("demo");
    (spec.schedule.rounds, spec.schedule.units) = (1, 1);
    let mut world = World::with_run(spec);
    world.join(1);
    world.join(2);
    assert_eq!(shut(&mut world, 2).store, Some(AtStore::ShutOut));
    assert_eq!(stopped(&world), [(of(2), None)]);
    let held = world.lease(1);
    world.submit(1, held);
    world.answer_pending();
    let end = world.now.after(URLS_OUT_MAX);
    assert!(world.run().is_complete());
    let ends = world.seen.iter().filter_map(|effect| match effect {
        Effect::UrlsEnd { run, at } => Some((run.clone(), *at)),
        _ => None,
    });
    assert_eq!(ends.collect::<Vec<_>>(), [(run_id(), end)]);
    let refused = get(&mut world, 1);
    assert_eq!(world.refusal(refused), Code::RunClosed);
    // The last ones that it got are still out.
    let all = UrlHolders::of_run(run_id());
    world.wait(Millis(URLS_OUT_MAX.get() - 1));
    assert_eq!(stop(&mut world, true).store, Some(AtStore::Stopped));
    let both = [(all, Some(end)), (of(2), Some(end))];
    assert_eq!(stopped(&world), both);
    world.restart();
    assert_eq!(stopped(&world), both);
    let before = told(&world).len();
    world.wait(Millis(1));
    assert_eq!(stop(&mut world, true).store, Some(AtStore::NoUrls));
    assert!(stop(&mut world, false).changed);
    assert_eq!(stop(&mut world, false).store, Some(AtStore::NoUrls));
    assert_eq!(readmit(&mut world, 2).store, Some(AtStore::NoUrls));
    assert_eq!(told(&world).len(), before, "the store is left alone");
    assert_eq!(shut(&mut world, 1).store, Some(AtStore::NoUrls));
    assert_eq!(told(&world).last(), Some(&None));
}
