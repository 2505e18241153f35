//! Checkpoints of the ledger.

use ledger::{CHECKPOINTS_KEPT, FORMAT, State};
use schemas::checkpoint::Checkpoint;
use schemas::{ChainSequence, Code, Digest, ObjectRef, Refusal};

use crate::fixture::*;
use crate::{Coordinator, Effect, Input, Settings, WorkerRequest};

const EVERY: u64 = 5;

/// A world whose coordinator takes a checkpoint every few events.
fn world() -> World {
    let mut world = World::with_run(spec("demo"));
    pass(&mut world, EVERY);
    let settings = Settings {
        checkpoint_every: EVERY,
        ..settings()
    };
    world.core = Coordinator::replay(settings, &world.journal).unwrap();
    world.pending.clear();
    world.start();
    world.answer_pending();
    world
}

fn writes(world: &World) -> usize {
    let seen = world.seen.iter();
    seen.filter(|effect| matches!(effect, Effect::WriteCheckpoint { .. }))
        .count()
}

/// The bytes of the checkpoint that is to be written now.
fn written(world: &mut World) -> Vec<u8> {
    let seen = std::mem::take(&mut world.seen);
    let (mut writes, seen): (Vec<_>, Vec<_>) = seen
        .into_iter()
        .partition(|effect| matches!(effect, Effect::WriteCheckpoint { .. }));
    world.seen = seen;
    assert_eq!(writes.len(), 1, "one at a time");
    match writes.pop() {
        Some(Effect::WriteCheckpoint { state }) => state.to_checkpoint(),
        other => panic!("no checkpoint: {other:?}"),
    }
}

/// Reports that the bytes are in the store.
fn save(world: &mut World, bytes: &[u8]) -> Digest {
    let taken = world.journal.iter().rev();
    let mut taken = taken.filter(|body| body.event.kind() == "checkpoint-taken");
    let covers = taken.next().expect("it was taken").sequence;
    let object = ObjectRef::of(bytes);
    let checkpoint = Checkpoint {
        covers,
        head: Digest::of(b"head"),
        stream_sequence: covers.get() + 1,
        format: FORMAT.into(),
        object,
    };
    let outcome = Ok(checkpoint);
    world.input(Input::CheckpointWritten { outcome });
    object.digest
}

fn fail(world: &mut World) {
    let outcome = Err(Refusal::new(Code::CheckpointUnsaved, "the store is away"));
    world.input(Input::CheckpointWritten { outcome });
}

fn taken(world: &World) -> usize {
    let kinds = world.kinds(0).into_iter();
    kinds.filter(|kind| *kind == "checkpoint-taken").count()
}

/// Causes `events` events: a worker joins and leaves.
fn pass(world: &mut World, events: u64) {
    for _ in 0..events {
        if world.run().present() == 0 {
            world.join(1);
        } else {
            let leave = WorkerRequest::Leave(leave_request(1, "back soon"));
            world.ask(peer(1), leave);
        }
    }
}

fn discarded(world: &mut World) -> Vec<Digest> {
    let mut discarded = Vec::new();
    world.seen.retain(|effect| match effect {
        Effect::DiscardCheckpoint { object } => {
            discarded.push(*object);
            false
        }
        _ => true,
    });
    discarded
}

#[test]
fn one_is_taken_after_so_many_events_and_named_when_it_is_written() {
    let mut world = World::with_run(spec("demo"));
    assert_eq!(
        taken(&world),
        0,
        "the first comes after {} events",
        u64::MAX
    );
    world = self::world();
    assert_eq!(taken(&world), 1, "a ledger without one gets one at a start");
    let covered = world.core.state().taken().expect("it is being written");
    let covered = ChainSequence(covered.events() - 1);
    let bytes = written(&mut world);
    pass(&mut world, 3 * EVERY);
    assert_eq!((taken(&world), writes(&world)), (1, 0), "one at a time");
    assert_eq!(
        world.core.state().checkpoints(),
        [],
        "it is not written yet"
    );
    let object = save(&mut world, &bytes);
    let named = &world.core.state().checkpoints()[0];
    assert_eq!((named.covers, named.object.digest), (covered, object));
    assert_eq!(taken(&world), 2, "the next was due");
    let state = State::from_checkpoint(&bytes).expect("these bytes are a checkpoint");
    assert_eq!(state.events(), covered.get() + 1);
}

/// A coordinator that ends takes no checkpoint, since it could not write the bytes.
#[test]
fn none_is_taken_by_the_events_that_end_a_coordinator() {
    let mut world = world();
    let bytes = written(&mut world);
    save(&mut world, &bytes);
    while world.core.state().since_taken() < EVERY - 1 {
        pass(&mut world, 1);
    }
    world.shut_down(schemas::Millis(0));
    assert_eq!(
        world.kinds(world.journal.len() - 1),
        ["coordinator-stopped"]
    );
    assert_eq!((taken(&world), writes(&world)), (1, 0));
}

#[test]
fn one_that_could_not_be_written_is_tried_again_later_and_is_the_same() {
    let mut world = world();
    let bytes = written(&mut world);
    fail(&mut world);
    pass(&mut world, EVERY - 1);
    assert_eq!(writes(&world), 0, "not at once");
    pass(&mut world, 1);
    assert_eq!(written(&mut world), bytes);
    assert_eq!(taken(&world), 1);
    save(&mut world, &bytes);
    assert_eq!(world.core.state().checkpoints().len(), 1);
}

#[test]
fn a_process_that_dies_before_it_is_named_is_followed_by_one_that_writes_the_same() {
    let mut world = world();
    let bytes = written(&mut world);
    pass(&mut world, 2);
    world.restart();
    assert_eq!(written(&mut world), bytes);
    assert_eq!(taken(&world), 1);
    save(&mut world, &bytes);
    world.restart();
    assert_eq!(writes(&world), 0, "it is named by now");
}

#[test]
fn objects_of_outdated_ones_are_deleted_also_by_the_process_that_follows() {
    let mut world = world();
    let mut objects = Vec::new();
    while objects.len() <= CHECKPOINTS_KEPT {
        assert_eq!(discarded(&mut world), [], "{CHECKPOINTS_KEPT} are kept");
        let bytes = written(&mut world);
        objects.push(save(&mut world, &bytes));
        pass(&mut world, EVERY);
    }
    assert_eq!(discarded(&mut world), objects[..1]);
    world.restart();
    assert_eq!(discarded(&mut world), objects[..1], "it may be there still");
}

/// A start that had to read as many events as come between two checkpoints, or more, could use no
/// good one. The next start need not do so too.
#[test]
fn a_start_that_read_much_takes_a_checkpoint_at_once() {
    for (read, at_once) in [(EVERY, 1), (EVERY + 1, 1), (EVERY - 1, 0), (0, 0)] {
        let mut world = world();
        let bytes = written(&mut world);
        save(&mut world, &bytes);
        let before = taken(&world);
        let settings = Settings {
            checkpoint_every: EVERY,
            ..settings()
        };
        let core = Coordinator::replay(settings, &world.journal).unwrap();
        world.core = core.having_read(read);
        world.pending.clear();
        world.start();
        world.answer_pending();
        assert_eq!(taken(&world) - before, at_once, "{read} were read");
        if at_once > 0 {
            let bytes = written(&mut world);
            save(&mut world, &bytes);
            pass(&mut world, 1);
            assert_eq!(taken(&world) - before, 1, "once");
        }
    }
}
