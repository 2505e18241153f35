use schemas::blob::{GetRequest, PutRequest};
use schemas::contribution::{Outcome, StageRequest};
use schemas::lease::{LeaseRef, ReleaseRequest, UnitKind};
use schemas::limits::OBJECT_BYTES_MAX;
use schemas::{Bytes, Code, Digest, ObjectRef, V};

use crate::fixture::*;
use crate::{Effect, Quarantine, ReplyId, WorkerRequest};

fn get(world: &mut World, objects: Vec<Digest>) -> ReplyId {
    world.ask(peer(1), WorkerRequest::Get(GetRequest { v: V, objects }))
}

fn granted(world: &World, wanted: ReplyId) -> bool {
    world
        .seen
        .iter()
        .any(|effect| matches!(effect, Effect::GrantGet { reply, .. } if *reply == wanted))
}

#[test]
fn members_read_what_the_run_needs_and_nothing_else() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let names = [
        "config",
        "layout",
        "data",
        "initial 0",
        "tokenizer",
        "train 3",
        "held out",
    ];
    let reply = get(&mut world, names.map(|name| object(name).digest).to_vec());
    assert!(granted(&world, reply));
    for foreign in ["snapshot 0", "weights 1 0", "anything"] {
        let reply = get(
            &mut world,
            vec![object("config").digest, object(foreign).digest],
        );
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
    let reply = get(
        &mut world,
        vec![object("weights 1 0").digest, object("weights 1 1").digest],
    );
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
        world.ask(
            peer(number),
            WorkerRequest::Put(PutRequest {
                v: V,
                lease: held,
                objects,
            }),
        )
    };
    put(&mut world, 1, vec![upload("a")]);
    let place = Quarantine::Worker {
        run: run_id(),
        lease: held,
        worker: worker(1),
    };
    assert!(
        world.seen.iter().any(
            |effect| matches!(effect, Effect::GrantPut { place: found, .. } if *found == place)
        )
    );
    let foreign = put(&mut world, 2, vec![upload("a")]);
    assert_eq!(world.refusal(foreign), Code::LeaseUnknown);
    let digest = object("a").digest;
    let large = put(
        &mut world,
        1,
        vec![ObjectRef {
            digest,
            bytes: OBJECT_BYTES_MAX.next(),
        }],
    );
    assert_eq!(world.refusal(large), Code::ObjectTooLarge);
    let empty = put(
        &mut world,
        1,
        vec![ObjectRef {
            digest,
            bytes: Bytes(0),
        }],
    );
    assert_eq!(world.refusal(empty), Code::SizeMismatch);
}

#[test]
fn only_chunks_of_the_run_are_uploaded_and_only_some_for_each() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let put = |world: &mut World, objects: Vec<ObjectRef>| {
        world.ask(
            peer(1),
            WorkerRequest::Put(PutRequest {
                v: V,
                lease: held,
                objects,
            }),
        )
    };
    // Chunks of 8 and 5 elements, two bytes each.
    for bytes in [16, 10] {
        let granted = put(
            &mut world,
            vec![ObjectRef {
                bytes: Bytes(bytes),
                ..upload("a")
            }],
        );
        assert!(
            !world.answers.contains_key(&granted),
            "granted, not refused"
        );
    }
    let twice = put(&mut world, vec![upload("b"), upload("b")]);
    assert_eq!(world.refusal(twice), Code::MessageInvalid);
    for bytes in [1, 9, 17, 32, OBJECT_BYTES_MAX.get()] {
        let other = put(
            &mut world,
            vec![
                upload("b"),
                ObjectRef {
                    bytes: Bytes(bytes),
                    ..upload("c")
                },
            ],
        );
        assert_eq!(world.refusal(other), Code::SizeMismatch, "{bytes}");
    }
    // "a" was granted before; there are seven more, and repeating them adds none.
    let several: Vec<ObjectRef> = (0..7).map(|n| upload(&format!("more {n}"))).collect();
    for _ in 0..100 {
        let granted = put(&mut world, several.clone());
        assert!(
            !world.answers.contains_key(&granted),
            "granted, not refused"
        );
    }
    let endless = put(&mut world, vec![upload("one more")]);
    assert_eq!(world.refusal(endless), Code::ObjectForbidden);
    let known = put(&mut world, vec![several[6]]);
    assert!(
        !world.answers.contains_key(&known),
        "what was granted is granted again"
    );
}

#[test]
fn an_evaluation_uploads_nothing() {
    let mut with_evaluation = spec("demo");
    with_evaluation.schedule.evaluation_every = 1;
    with_evaluation.schedule.units = 1;
    let mut world = World::with_run(with_evaluation);
    world.join(1);
    world.join(2);
    let leases = [world.lease(1), world.lease(2)];
    let number = leases
        .iter()
        .position(|lease| lease.unit.kind == UnitKind::Evaluate)
        .expect("one is an evaluation");
    let request = PutRequest {
        v: V,
        lease: leases[number],
        objects: vec![upload("a")],
    };
    let refused = world.ask(peer(number as u32 + 1), WorkerRequest::Put(request));
    assert_eq!(world.refusal(refused), Code::ObjectForbidden);
}

#[test]
fn chunks_are_read_ahead_for_the_holder_only() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.join(2);
    let held = world.lease(1);
    let stage = |world: &mut World, number: u32, index: u32| {
        let request = StageRequest {
            v: V,
            lease: held,
            index,
            object: object("a"),
        };
        world.ask(peer(number), WorkerRequest::Stage(request))
    };
    stage(&mut world, 1, 1);
    assert_eq!(
        world
            .seen
            .iter()
            .filter(|effect| matches!(effect, order!(Stage)))
            .count(),
        1
    );
    let outside = stage(&mut world, 1, 2);
    assert_eq!(world.refusal(outside), Code::LayoutMismatch);
    let foreign = stage(&mut world, 2, 0);
    assert_eq!(world.refusal(foreign), Code::LeaseUnknown);
}

#[test]
fn uploads_that_come_to_nothing_are_bounded_however_often_a_lease_is_taken_and_given_back() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let (mut granted, mut refused) = (0, 0);
    for number in 0..50 {
        let claim = world.claim(1);
        let Some(held) = world.manifests.get(&claim).map(|given| given.lease) else {
            // It would train in vain.
            assert_eq!(world.refusal(claim), Code::AskedTooMuch);
            refused += 1;
            continue;
        };
        let objects = vec![
            upload(&format!("{number} a")),
            upload(&format!("{number} b")),
        ];
        let reply = world.ask(
            peer(1),
            WorkerRequest::Put(PutRequest {
                v: V,
                lease: held,
                objects,
            }),
        );
        assert!(!world.answers.contains_key(&reply), "it was granted");
        granted += 2;
        let release = ReleaseRequest {
            v: V,
            lease: held,
            reason: String::new(),
        };
        world.ask(peer(1), WorkerRequest::Release(release));
    }
    // Two chunks, four times each.
    assert_eq!((granted, refused), (8, 46));
    // The number of one contribution is forgotten in a lease time, and of the next one in twice
    // that time, even if the worker left and came again.
    world.ask(peer(1), WorkerRequest::Leave(leave_request(1, "")));
    world.join(1);
    let put = |world: &mut World, name: &str| {
        let claim = world.claim(1);
        let Some(held) = world.manifests.get(&claim).map(|given| given.lease) else {
            return false;
        };
        let request = PutRequest {
            v: V,
            lease: held,
            objects: vec![upload(name), upload(&format!("{name} too"))],
        };
        let reply = world.ask(peer(1), WorkerRequest::Put(request));
        world.ask(
            peer(1),
            WorkerRequest::Release(ReleaseRequest {
                v: V,
                lease: held,
                reason: String::new(),
            }),
        );
        !world.answers.contains_key(&reply)
    };
    assert!(!put(&mut world, "c"));
    world.wait(LEASE);
    assert!(put(&mut world, "c") && !put(&mut world, "d"));
    world.wait(LEASE);
    assert!(!put(&mut world, "d"));
    world.wait(LEASE);
    assert!(put(&mut world, "d") && !put(&mut world, "e"));
}

#[test]
fn uploads_of_results_that_count_are_not_held_against_a_worker() {
    let mut several = spec("demo");
    several.schedule.units = 20;
    let mut world = World::with_run(several);
    world.join(1);
    for number in 0..20 {
        let held = world.lease(1);
        let reply = world.ask(
            peer(1),
            WorkerRequest::Put(PutRequest {
                v: V,
                lease: held,
                objects: named(&world, held),
            }),
        );
        assert!(
            !world.answers.contains_key(&reply),
            "unit {number}: granted, not refused"
        );
        world.submit(1, held);
        world.answer_pending();
    }
}

#[test]
fn uploads_beside_a_result_that_counts_stay_unused() {
    let mut several = spec("demo");
    (several.schedule.rounds, several.schedule.units) = (50, 20);
    let mut world = World::with_run(several);
    world.join(1);
    let mut surplus = 0;
    for number in 0..1000 {
        let claim = world.claim(1);
        // Other uploads reduce the worker's allowance, until its own chunks have no place either.
        let Some(held) = world.manifests.get(&claim).map(|given| given.lease) else {
            assert_eq!(world.refusal(claim), Code::AskedTooMuch);
            break;
        };
        let [objects, beside] = [
            named(&world, held),
            vec![upload(&format!("{number} beside"))],
        ];
        let own = world.ask(
            peer(1),
            WorkerRequest::Put(PutRequest {
                v: V,
                lease: held,
                objects,
            }),
        );
        let reply = world.ask(
            peer(1),
            WorkerRequest::Put(PutRequest {
                v: V,
                lease: held,
                objects: beside,
            }),
        );
        let refused = world.answers.contains_key(&reply);
        if refused {
            assert_eq!(world.refusal(reply), Code::AskedTooMuch);
        }
        surplus += usize::from(!refused);
        assert!(!world.answers.contains_key(&own), "there was room for it");
        world.submit(1, held);
        world.answer_pending();
    }
    assert!(
        (1..=8).contains(&surplus),
        "{surplus} objects beside, two chunks, four of each may be wasted"
    );
}

/// The chunks that worker 1's result under `lease` names, with the length that chunks have.
fn named(world: &World, lease: LeaseRef) -> Vec<ObjectRef> {
    match submission(&world.run().spec, 1, lease, 0).statement.outcome {
        Outcome::Contribution(contribution) => contribution
            .chunks
            .objects()
            .iter()
            .map(|chunk| ObjectRef {
                bytes: Bytes(16),
                ..*chunk
            })
            .collect(),
        Outcome::Evaluation(_) => panic!("{lease} is of an evaluation"),
    }
}

/// Uploads under a lease are deleted when the lease is over, however it ended: those that count are
/// among the verified objects by then, and the others count nowhere.
#[test]
fn uploads_go_when_their_lease_is_over() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let put = |world: &mut World, lease: LeaseRef, objects: Vec<ObjectRef>| {
        world.ask(
            peer(1),
            WorkerRequest::Put(PutRequest {
                v: V,
                lease,
                objects,
            }),
        );
    };
    let mut swept = 0;
    let mut goes = |world: &World, lease, names: &[&str]| {
        let all: Vec<_> = world
            .seen
            .iter()
            .filter_map(|effect| match effect {
                Effect::Sweep { place, objects } => Some((place.clone(), objects.clone())),
                _ => None,
            })
            .collect();
        let place = Quarantine::Worker {
            run: run_id(),
            lease,
            worker: worker(1),
        };
        let mut objects: Vec<_> = names.iter().map(|name| upload(name).digest).collect();
        objects.sort_unstable();
        let expected = if names.is_empty() {
            Vec::new()
        } else {
            vec![(place, objects)]
        };
        assert_eq!(all[swept..], expected);
        swept = all.len();
    };
    // A lease that is given back.
    let held = world.lease(1);
    put(&mut world, held, vec![upload("a"), upload("b")]);
    goes(&world, held, &[]);
    let release = ReleaseRequest {
        v: V,
        lease: held,
        reason: String::new(),
    };
    world.ask(peer(1), WorkerRequest::Release(release));
    goes(&world, held, &["a", "b"]);
    // A lease that is not renewed, with nothing uploaded.
    let held = world.lease(1);
    world.wait(LEASE);
    goes(&world, held, &[]);
    // A lease whose result is refused.
    let held = world.lease(1);
    put(&mut world, held, vec![upload("c")]);
    let mut bad = submission(&spec("demo"), 1, held, 0).statement;
    bad.spec = object("other settings").digest;
    world.ask(peer(1), WorkerRequest::Submit(stated(bad)));
    goes(&world, held, &["c"]);
    // A lease whose result is accepted.
    let held = world.lease(1);
    put(&mut world, held, vec![upload("d")]);
    let result = submission(&spec("demo"), 1, held, 0);
    let Outcome::Contribution(contribution) = &result.statement.outcome else {
        panic!("of a training unit")
    };
    let named: std::collections::BTreeSet<_> = contribution
        .chunks
        .objects()
        .iter()
        .map(|chunk| chunk.digest)
        .collect();
    world.ask(peer(1), WorkerRequest::Submit(result));
    let before = world
        .seen
        .iter()
        .filter(|effect| matches!(effect, Effect::Sweep { .. }))
        .count();
    world.answer_pending();
    let last = world.seen.iter().filter_map(|effect| match effect {
        Effect::Sweep { objects, .. } => Some(objects.clone()),
        _ => None,
    });
    let last: Vec<_> = last.skip(before).flatten().collect();
    assert!(
        last.contains(&upload("d").digest) && named.iter().all(|digest| last.contains(digest)),
        "{last:?}"
    );
}
