//! Workers' reports of themselves.

use schemas::event::LedgerEvent;
use schemas::limits::{
    DEVICE_MEMORY_MAX, SPEED_MAX, TRAFFIC_MAX, TRANSFER_FAILURES_PER_SECOND_MAX,
};
use schemas::member::Session;
use schemas::public::CommandVerb;
use schemas::telemetry::{Heartbeat, Phase, WorkerMetrics};
use schemas::{Bytes, Code, Millis, Steps, Tokens, V};

use crate::fixture::*;
use crate::{Effect, Input, WorkerRequest};

pub(super) fn heartbeat() -> Heartbeat {
    Heartbeat {
        v: V,
        session: session(1),
        phase: Phase::Training,
        lease: None,
        steps_done: Steps(1),
        tokens: Tokens(8),
        tokens_per_second: 2.5,
        loss: None,
        bytes_up: Bytes(1),
        bytes_down: Bytes(2),
        metrics: WorkerMetrics::default(),
    }
}

#[test]
fn what_a_worker_says_of_itself_is_within_what_can_be() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    world.wait(Millis::from_secs(10));
    let say = |world: &mut World, heartbeat: Heartbeat| {
        let before = world.count(|event| matches!(event, LedgerEvent::RequestDenied { .. }));
        world.input(Input::Heartbeat {
            peer: peer(1),
            heartbeat,
        });
        let denied = |event: &LedgerEvent| matches!(event, LedgerEvent::RequestDenied { code, .. } if *code == Code::NumberImpossible || *code == Code::NotFinite);
        world.count(denied) > before
    };
    let good = Heartbeat {
        lease: Some(held),
        bytes_up: Bytes(1 << 30),
        bytes_down: Bytes(1 << 31),
        ..heartbeat()
    };
    assert!(!say(&mut world, good.clone()));
    let heard = |effect: &Effect| matches!(effect, Effect::ShowHeartbeat { worker, heartbeat, .. } if *worker == peer(1).worker && **heartbeat == good);
    assert!(world.seen.iter().any(heard), "it is shown");
    let shown = world.view();
    // Uploads are counted by the ledger, which has accepted none.
    assert_eq!(
        (shown.bytes_up, shown.bytes_down),
        (Bytes(0), Bytes(1 << 31))
    );
    assert!((shown.tokens_per_second - 2.5).abs() < 1e-9);
    type Change = fn(&mut Heartbeat);
    let changes: [(&str, Change); 13] = [
        ("more bytes than there are", |one| {
            one.bytes_up = Bytes(u64::MAX)
        }),
        ("a terabyte in ten seconds", |one| {
            one.bytes_down = Bytes(1 << 40)
        }),
        ("infinite speed", |one| {
            one.tokens_per_second = f64::INFINITY
        }),
        ("speed that is no number", |one| {
            one.tokens_per_second = f64::NAN
        }),
        ("negative speed", |one| one.tokens_per_second = -1.0),
        ("more tokens than time", |one| one.tokens = Tokens(u64::MAX)),
        ("more steps than the unit has", |one| {
            one.steps_done = Steps(5)
        }),
        ("a negative loss", |one| one.loss = Some(-1e6)),
        ("a loss that is no number", |one| one.loss = Some(f64::NAN)),
        ("a loss beyond all", |one| one.loss = Some(1e5)),
        ("an hour of steps in ten seconds", |one| {
            one.metrics.train = Millis::from_secs(3600)
        }),
        ("more failures than attempts", |one| {
            one.metrics.transfer_failures = u64::MAX
        }),
        ("more memory than there is", |one| {
            one.metrics.device_memory = Some(Bytes(u64::MAX))
        }),
    ];
    for (what, change) in changes {
        let mut one = good.clone();
        change(&mut one);
        world.seen.clear();
        assert!(say(&mut world, one), "{what}");
        let heard = |effect: &Effect| matches!(effect, Effect::ShowHeartbeat { .. });
        assert!(!world.seen.iter().any(heard), "{what}: it is not shown");
    }
    // A heartbeat that was overtaken, or that comes from a replaced process, is neither news nor a
    // fault.
    assert!(!say(
        &mut world,
        Heartbeat {
            bytes_up: Bytes(5),
            ..good
        }
    ));
    assert!(!say(
        &mut world,
        Heartbeat {
            session: Session(9),
            tokens_per_second: 7.0,
            ..good
        }
    ));
    let now = world.view();
    assert_eq!(
        (now.bytes_up, now.bytes_down),
        (shown.bytes_up, shown.bytes_down),
        "nothing of it was believed"
    );
    assert!((now.tokens_per_second - 2.5).abs() < 1e-9);
}

/// The command is sent once to each member; one that did not hear it would go on with the next
/// coordinator.
#[test]
fn a_member_that_says_it_works_on_is_told_again_to_drain() {
    let mut world = World::with_run(spec("demo"));
    for number in 1..=2 {
        world.join(number);
    }
    world.lease(1);
    world.shut_down(Millis::from_secs(60));
    let told = |world: &World| {
        let drain = |effect: &&Effect| matches!(effect, Effect::Command { worker, verb: CommandVerb::Drain, .. } if *worker == peer(1).worker);
        world.seen.iter().filter(drain).count()
    };
    assert_eq!(told(&world), 1);
    let says = |world: &mut World, phase: Phase| {
        let heartbeat = Heartbeat {
            phase,
            ..heartbeat()
        };
        world.input(Input::Heartbeat {
            peer: peer(1),
            heartbeat,
        });
    };
    says(&mut world, Phase::Training);
    assert_eq!(told(&world), 2);
    says(&mut world, Phase::Leaving);
    assert_eq!(told(&world), 2, "it has heard");
}

/// New processes do not help either: the limit is on the sum over all processes of a worker.
#[test]
fn bytes_of_a_worker_are_bounded_over_all_its_processes() {
    let mut world = World::with_run(spec("demo"));
    for life in 0..100 {
        let session = Session(1000 + life);
        let request = schemas::member::JoinRequest {
            session,
            ..join_request(1)
        };
        world.ask(peer(1), WorkerRequest::Join(request));
        let heartbeat = Heartbeat {
            session,
            bytes_down: Bytes(500 << 30),
            ..heartbeat()
        };
        world.input(Input::Heartbeat {
            peer: peer(1),
            heartbeat,
        });
    }
    assert_eq!(
        world.view().bytes_down,
        Bytes(500 << 30),
        "once is believed in the first minute, more is not"
    );
}

fn shown(world: &World) -> usize {
    let heard = |effect: &&Effect| matches!(effect, Effect::ShowHeartbeat { .. });
    world.seen.iter().filter(heard).count()
}

fn say(world: &mut World, heartbeat: Heartbeat) {
    let peer = peer(1);
    world.input(Input::Heartbeat { peer, heartbeat });
}

#[test]
fn a_heartbeat_that_was_overtaken_is_not_shown() {
    let metrics = WorkerMetrics {
        fetch: Millis(5),
        train: Millis(5),
        encode: Millis(5),
        upload: Millis(5),
        transfer_failures: 5,
        device_memory: Some(Bytes(5)),
    };
    let newest = Heartbeat {
        tokens: Tokens(5),
        bytes_up: Bytes(5),
        bytes_down: Bytes(5),
        metrics,
        ..heartbeat()
    };
    type Change = fn(&mut Heartbeat);
    let older: [(&str, Change); 8] = [
        ("bytes up", |one| one.bytes_up = Bytes(4)),
        ("bytes down", |one| one.bytes_down = Bytes(4)),
        ("tokens", |one| one.tokens = Tokens(4)),
        ("failures", |one| one.metrics.transfer_failures = 4),
        ("fetch", |one| one.metrics.fetch = Millis(4)),
        ("train", |one| one.metrics.train = Millis(4)),
        ("encode", |one| one.metrics.encode = Millis(4)),
        ("upload", |one| one.metrics.upload = Millis(4)),
    ];
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    say(&mut world, newest.clone());
    for (what, change) in older {
        let mut one = newest.clone();
        change(&mut one);
        say(&mut world, one);
        assert_eq!(shown(&world), 1, "{what}");
    }
    // Memory is no count, so it may fall. A process that did nothing since then sends the same
    // numbers.
    let mut one = newest.clone();
    one.metrics.device_memory = Some(Bytes(4));
    say(&mut world, one);
    say(&mut world, newest);
    assert_eq!(shown(&world), 3);
}

#[test]
fn the_most_that_a_worker_can_have_done_is_believed() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.wait(Millis::from_secs(10));
    // Ten seconds, and the margin for clocks.
    let seconds = 70;
    let span = Millis::from_secs(seconds);
    let most = Heartbeat {
        tokens: Tokens(SPEED_MAX as u64 * seconds),
        tokens_per_second: SPEED_MAX,
        bytes_up: Bytes(TRAFFIC_MAX.get() * seconds),
        bytes_down: Bytes(TRAFFIC_MAX.get() * seconds),
        metrics: WorkerMetrics {
            fetch: span,
            train: span,
            encode: span,
            upload: span,
            transfer_failures: TRANSFER_FAILURES_PER_SECOND_MAX * seconds,
            device_memory: Some(DEVICE_MEMORY_MAX),
        },
        ..heartbeat()
    };
    say(&mut world, most);
    assert_eq!(shown(&world), 1);
    assert_eq!(world.view().bytes_down.get(), TRAFFIC_MAX.get() * seconds);
}

#[test]
fn bytes_are_counted_once_however_often_a_process_tells_its_sum() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    for part in 1..=4 {
        let sum = Bytes(part * (150 << 30));
        let heartbeat = Heartbeat {
            bytes_up: sum,
            bytes_down: sum,
            ..heartbeat()
        };
        say(&mut world, heartbeat);
        assert_eq!((shown(&world) as u64, world.view().bytes_down), (part, sum));
    }
}
