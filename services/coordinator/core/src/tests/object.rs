use schemas::blob::{GetRequest, PutRequest};
use schemas::contribution::StageRequest;
use schemas::limits::OBJECT_BYTES_MAX;
use schemas::{Bytes, Code, Digest, ObjectRef, Round, V};

use crate::fixture::*;
use crate::{Effect, Quarantine, ReplyId, WorkerRequest};

fn get(world: &mut World, objects: Vec<Digest>) -> ReplyId {
    world.ask(peer(1), WorkerRequest::Get(GetRequest { v: V, objects }))
}

fn granted(world: &World, wanted: ReplyId) -> bool {
    world.seen.iter().any(|effect| matches!(effect, Effect::GrantGet { reply, .. } if *reply == wanted))
}

#[test]
fn members_read_what_the_run_needs_and_nothing_else() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let names = ["config", "layout", "data", "initial 0", "tokenizer", "train 3", "held out"];
    let reply = get(&mut world, names.map(|name| object(name).digest).to_vec());
    assert!(granted(&world, reply));
    for foreign in ["snapshot 0", "weights 1 0", "anything"] {
        let reply = get(&mut world, vec![object("config").digest, object(foreign).digest]);
        assert_eq!(world.refusal(reply), Code::ObjectForbidden);
    }
    for count in [0, 257] {
        let reply = get(&mut world, vec![object("config").digest; count]);
        assert_eq!(world.refusal(reply), Code::MessageInvalid);
    }
}

#[test]
fn published_weights_are_readable_as_long_as_they_are_needed() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    for _ in 0..2 {
        let held = world.lease(1);
        world.submit(1, held);
        world.answer_pending();
    }
    let reply = get(&mut world, vec![object("weights 1 0").digest, object("weights 1 1").digest]);
    assert!(granted(&world, reply));
}

#[test]
fn a_request_for_data_waits_while_the_coordinator_starts() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.restart();
    let early = get(&mut world, vec![object("train 0").digest]);
    assert!(!granted(&world, early) && !world.answers.contains_key(&early));
    world.answer_pending();
    assert!(granted(&world, early));
}

#[test]
fn only_the_holder_uploads_and_only_plausible_objects() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(2);
    let held = world.lease(1);
    let put = |world: &mut World, number: u32, objects: Vec<ObjectRef>| {
        world.ask(peer(number), WorkerRequest::Put(PutRequest { v: V, lease: held, objects }))
    };
    put(&mut world, 1, vec![object("a")]);
    let place = Quarantine::Worker { run: run_id(), round: Round(0), worker: worker(1) };
    assert!(world.seen.iter().any(|effect| matches!(effect, Effect::GrantPut { place: found, .. } if *found == place)));
    let foreign = put(&mut world, 2, vec![object("a")]);
    assert_eq!(world.refusal(foreign), Code::LeaseUnknown);
    let digest = object("a").digest;
    let large = put(&mut world, 1, vec![ObjectRef { digest, bytes: OBJECT_BYTES_MAX.next() }]);
    assert_eq!(world.refusal(large), Code::ObjectTooLarge);
    let empty = put(&mut world, 1, vec![ObjectRef { digest, bytes: Bytes(0) }]);
    assert_eq!(world.refusal(empty), Code::SizeMismatch);
    for _ in 0..15 {
        put(&mut world, 1, vec![object("a"); 256]);
    }
    let endless = put(&mut world, 1, vec![object("a"); 256]);
    assert_eq!(world.refusal(endless), Code::ObjectForbidden);
}

#[test]
fn chunks_are_read_ahead_for_the_holder_only() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(2);
    let held = world.lease(1);
    let stage = |world: &mut World, number: u32, index: u32| {
        let request = StageRequest { v: V, lease: held, index, object: object("a") };
        world.ask(peer(number), WorkerRequest::Stage(request))
    };
    stage(&mut world, 1, 1);
    assert_eq!(world.seen.iter().filter(|effect| matches!(effect, Effect::Stage { .. })).count(), 1);
    let outside = stage(&mut world, 1, 2);
    assert_eq!(world.refusal(outside), Code::LayoutMismatch);
    let foreign = stage(&mut world, 2, 0);
    assert_eq!(world.refusal(foreign), Code::LeaseUnknown);
}
