//! Runs whose chunks are listed: who may read the chunks in a list, and which lists count.

use schemas::blob::{GetRequest, PutRequest};
use schemas::contribution::{Contribution, Outcome, StageRequest};
use schemas::event::LedgerEvent;
use schemas::foundry::{self, Order};
use schemas::{Bytes, Chunks, Code, Digest, Fragment, Listed, ObjectRef, Refusal, Round, V};

use crate::fixture::*;
use crate::{Effect, ReplyId, Screened, WorkerRequest};

fn get(world: &mut World, number: u32, objects: &[ObjectRef]) -> ReplyId {
    let objects = objects.iter().map(|object| object.digest).collect();
    world.ask(
        peer(number),
        WorkerRequest::Get(GetRequest { v: V, objects }),
    )
}

fn put(world: &mut World, lease: schemas::lease::LeaseRef, object: ObjectRef) -> ReplyId {
    let request = PutRequest {
        v: V,
        lease,
        objects: vec![object],
    };
    world.ask(peer(1), WorkerRequest::Put(request))
}

fn granted(world: &World, wanted: ReplyId) -> bool {
    world
        .seen
        .iter()
        .any(|effect| matches!(effect, Effect::GrantGet { reply, .. } if *reply == wanted))
}

fn reads_pending(world: &World) -> usize {
    let is_read = |effect: &&Effect| matches!(effect, order!(ReadList));
    world.pending.iter().filter(is_read).count()
}

/// The list of the weights of a version.
fn list(version: u64) -> ObjectRef {
    Listed::of(&weights_chunks(version)).0.list
}

fn result(world: &World, number: u32, lease: schemas::lease::LeaseRef) -> Contribution {
    match submission(&world.run().spec, number, lease, 0)
        .statement
        .outcome
    {
        Outcome::Contribution(contribution) => contribution,
        Outcome::Evaluation(_) => panic!("{lease} is of an evaluation"),
    }
}

#[test]
fn members_read_the_chunks_in_the_lists_of_the_weights_and_nothing_else() {
    let mut world = World::with_run(listed_spec("demo"));
    world.join(1);
    world.join(2);
    // The settings name the list itself; its contents are not known yet.
    let named = get(&mut world, 1, &[list(0), object("config")]);
    assert!(granted(&world, named) && reads_pending(&world) == 0);
    let held = get(&mut world, 1, &weights_chunks(0));
    let foreign = get(&mut world, 2, &[weights_chunks(0)[0], object("foreign")]);
    assert!(!granted(&world, held) && !granted(&world, foreign));
    assert_eq!(reads_pending(&world), 1, "one list is read once");
    let denied = world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. }));
    world.answer_pending();
    assert!(granted(&world, held));
    assert_eq!(world.refusal(foreign), Code::ObjectForbidden);
    assert_eq!(
        world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. })),
        denied + 1,
        "a refusal after the read is recorded like any other"
    );
    // From now on both lists are known.
    let again = get(&mut world, 1, &weights_chunks(0));
    assert!(granted(&world, again));
    let foreign = get(&mut world, 2, &weights_chunks(1));
    assert_eq!(world.refusal(foreign), Code::ObjectForbidden);
    assert_eq!(reads_pending(&world), 0);
}

#[test]
fn a_round_that_closes_brings_another_list() {
    let mut world = World::with_run(listed_spec("demo"));
    world.join(1);
    for _ in 0..2 {
        let lease = world.lease(1);
        world.submit(1, lease);
        world.answer_pending();
    }
    assert_eq!(world.run().version(Fragment::FIRST), Round(1));
    let both = [weights_chunks(1), vec![list(1)]].concat();
    let held = get(&mut world, 1, &both);
    assert_eq!(reads_pending(&world), 1);
    world.answer_pending();
    assert!(granted(&world, held));
    let older = get(&mut world, 1, &weights_chunks(0));
    assert_eq!(
        world.refusal(older),
        Code::ObjectForbidden,
        "nobody starts from these any more"
    );
}

#[test]
fn a_list_that_could_not_be_read_is_read_again() {
    let mut world = World::with_run(listed_spec("demo"));
    world.join(1);
    for _ in 0..2 {
        let held = get(&mut world, 1, &weights_chunks(0));
        let Effect::Foundry {
            order: Order::ReadList { listed },
            ..
        } = world.take_pending(|effect| matches!(effect, order!(ReadList)))
        else {
            unreachable!("it was picked")
        };
        let away = Refusal::new(Code::StoreUnreachable, "test");
        let answer = foundry::Answer::ListRead {
            list: listed.list.digest,
            outcome: Err(away),
        };
        world.foundry(answer.clone());
        assert_eq!(world.refusal(held), Code::StoreUnreachable);
        // An answer that was not asked for changes nothing.
        world.foundry(answer);
    }
    let held = get(&mut world, 1, &weights_chunks(0));
    world.answer_pending();
    assert!(granted(&world, held));
}

#[test]
fn a_restart_forgets_what_lists_hold_and_reads_them_again() {
    let mut world = World::with_run(listed_spec("demo"));
    world.join(1);
    let before = get(&mut world, 1, &weights_chunks(0));
    world.answer_pending();
    assert!(granted(&world, before));
    world.restart();
    // Neither the data manifest nor the list is known yet.
    let held = get(
        &mut world,
        1,
        &[weights_chunks(0), vec![object("train 3")]].concat(),
    );
    world.answer_pending_but(|effect| matches!(effect, order!(ReadList)));
    assert!(!granted(&world, held));
    world.answer_pending();
    assert!(granted(&world, held));
}

#[test]
fn a_list_is_uploaded_beside_the_chunks() {
    let mut world = World::with_run(listed_spec("demo"));
    world.join(1);
    let lease = world.lease(1);
    let length = Listed::length(2).get();
    for (bytes, allowed) in [
        (16, true),
        (1, true),
        (17, false),
        (0, false),
        (length, true),
        (length + 1, false),
    ] {
        let name = format!("upload of {bytes}");
        let reply = put(&mut world, lease, sized(&name, bytes));
        let refused = world.answers.get(&reply).is_some_and(Result::is_err);
        assert_eq!(!refused, allowed, "{bytes}");
    }
    // Two chunks and a list, four times each.
    for n in 3..12 {
        let reply = put(&mut world, lease, upload(&format!("another {n}")));
        assert!(!world.answers.contains_key(&reply), "{n}");
    }
    let reply = put(&mut world, lease, upload("one too many"));
    assert_eq!(world.refusal(reply), Code::ObjectForbidden);
}

/// Each chunk may be announced twice: an announcement costs the read of a chunk, and there are
/// many.
#[test]
fn so_many_chunks_are_read_ahead_twice_at_most() {
    let mut large = listed_spec("demo");
    let chunks: Vec<ObjectRef> = (0..3000).map(|n| upload(&format!("initial {n}"))).collect();
    large.model.initial = Chunks::Listed(Listed::of(&chunks).0);
    let mut world = World::with_run(large);
    world.join(1);
    let held = world.lease(1);
    for number in 0..6100 {
        let stage = StageRequest {
            v: V,
            lease: held,
            index: number % 3000,
            object: object("a"),
        };
        world.ask(peer(1), WorkerRequest::Stage(stage));
    }
    let staged = |effect: &&Effect| matches!(effect, order!(Stage));
    assert_eq!(world.seen.iter().filter(staged).count(), 6000);
}

#[test]
fn only_a_list_with_the_numbers_of_the_run_is_looked_at() {
    type Spoil = fn(&mut Listed);
    let spoiled: [(Spoil, Code); 5] = [
        (|listed| listed.chunks = 1, Code::SizeMismatch),
        (|listed| listed.chunks = u32::MAX, Code::SizeMismatch),
        (|listed| listed.list.bytes = Bytes(95), Code::ListMismatch),
        (|listed| listed.total = Bytes(33), Code::ListMismatch),
        (|listed| listed.total = Bytes(1), Code::ListMismatch),
    ];
    let submit = |spoil: &dyn Fn(&mut Contribution)| {
        let mut world = World::with_run(listed_spec("demo"));
        world.join(1);
        let lease = world.lease(1);
        let mut statement = submission(&world.run().spec, 1, lease, 0).statement;
        let Outcome::Contribution(contribution) = &mut statement.outcome else {
            panic!("of a training unit")
        };
        spoil(contribution);
        let reply = world.ask(peer(1), WorkerRequest::Submit(stated(statement)));
        (world.answers.get(&reply).cloned(), world)
    };
    for (spoil, code) in spoiled {
        let (answer, world) = submit(&|contribution| {
            let mut listed = contribution.chunks.listed().expect("the run lists them");
            spoil(&mut listed);
            contribution.chunks = Chunks::Listed(listed);
        });
        let refusal = answer.expect("at once").expect_err("refused");
        assert_eq!(refusal.code, code, "{refusal}");
        assert_eq!(world.run().members[&worker(1)].rejected, 1, "a strike");
    }
    let (answer, _) = submit(&|contribution| contribution.chunks = weights_chunks(0).into());
    let refusal = answer.expect("at once").expect_err("the run lists them");
    assert_eq!(refusal.code, Code::SizeMismatch);
    assert!(submit(&|_| ()).0.is_none(), "a sound one is checked");
}

#[test]
fn a_false_list_is_a_strike_and_its_unit_is_open_again() {
    for code in [Code::ListInvalid, Code::ListMismatch] {
        let mut world = World::with_run(listed_spec("demo"));
        world.join(1);
        let lease = world.lease(1);
        let reply = world.submit(1, lease);
        let Effect::Foundry {
            order: Order::Screen { screening, .. },
            ..
        } = world.take_pending(|effect| matches!(effect, order!(Screen)))
        else {
            unreachable!("it was picked")
        };
        world.foundry(foundry::Answer::Screened {
            screening,
            verdict: Err(Refusal::new(code, "test")),
        });
        assert_eq!(world.refusal(reply), code);
        assert_eq!(world.run().members[&worker(1)].rejected, 1);
        let unit = &world.run().units[&lease.unit];
        assert_eq!(unit.standing, ledger::Standing::Open, "for another");
    }
}

#[test]
fn what_a_list_holds_counts_as_named() {
    let mut world = World::with_run(listed_spec("demo"));
    world.join(1);
    let lease = world.lease(1);
    let chunks: Vec<ObjectRef> = ["a", "b"].map(upload).to_vec();
    let contribution = result(&world, 1, lease);
    let own = contribution.chunks.listed().expect("a list").list;
    for object in chunks.iter().copied().chain([own, upload("beside")]) {
        put(&mut world, lease, object);
    }
    world.submit(1, lease);
    let Effect::Foundry {
        order: Order::Screen { screening, .. },
        ..
    } = world.take_pending(|effect| matches!(effect, order!(Screen)))
    else {
        unreachable!("it was picked")
    };
    let listed: Vec<Digest> = chunks.iter().map(|chunk| chunk.digest).collect();
    let found = Screened {
        norm: 1.0,
        listed: [listed.as_slice(), &[object("of an earlier life").digest]].concat(),
    };
    world.foundry(foundry::Answer::Screened {
        screening,
        verdict: Ok(found),
    });
    let swept = world.seen.iter().rev().find_map(|effect| match effect {
        Effect::Sweep { objects, .. } => Some(objects.clone()),
        _ => None,
    });
    let swept: std::collections::BTreeSet<Digest> =
        swept.expect("quarantine is swept").into_iter().collect();
    let all = [listed, vec![own.digest, upload("beside").digest]].concat();
    assert!(all.iter().all(|digest| swept.contains(digest)), "{swept:?}");
    assert!(
        swept.contains(&object("of an earlier life").digest),
        "after a restart only the check tells what a list held"
    );
    // Uploads of one object failed: of the twelve uploads that the worker may make, eleven are
    // left.
    let lease = world.lease(1);
    for n in 0..11 {
        let reply = put(&mut world, lease, upload(&format!("again {n}")));
        assert!(!world.answers.contains_key(&reply), "{n}");
    }
    let reply = put(&mut world, lease, upload("one too many"));
    assert_eq!(world.refusal(reply), Code::AskedTooMuch);
}
