//! Time, the bus, and the next event.

use std::collections::{BTreeMap, BTreeSet};

use coordinator_core::{ReplyId, WorkerRequest};
use schemas::event::EventBody;
use schemas::lease::{LeaseRef, Manifest};
use schemas::limits::{LEASE_MIN, NAMED_CHUNKS_MAX, SEALED_MAX};
use schemas::masking::{CohortStatement, MaskReply};
use schemas::telemetry::Heartbeat;
use schemas::{
    Chunks, Digest, Hasher, Listed, Message as _, Millis, ObjectRef, Refusal, UnixMillis,
};

use crate::coordinator::CoordinatorMachine;
use crate::counts::Counts;
use crate::keys::EventKeys;
use crate::monitor::Monitor;
use crate::plan::{Faults, Plan};
use crate::queue::Queue;
use crate::random::SeededRandom;
use crate::store::Store;
use crate::worker::WorkerMachine;

/// Simulated time at the start.
pub(crate) const START: UnixMillis = UnixMillis(1_700_000_000_000);
/// Longest simulated time until an undisturbed run ends.
const QUIET_MAX: Millis = Millis::from_secs(3600);
/// More steps than any run takes; a simulation that takes more makes no progress.
const STEPS_MAX: u64 = 500_000;

/// Workers of a long round.
const MANY_WORKERS: usize = 12;

/// The outcome of a simulation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Counts of the things that happened.
    pub counts: Counts,
    /// Coordinators that died, some of them between two effects.
    pub coordinator_crashes: u64,
    /// Appends with events of several inputs.
    pub shared_appends: u64,
    /// Coordinators that died when only some of the events that they had decided together were in
    /// the ledger.
    pub torn: u64,
    /// Coordinators that died when a merge was begun whose seal was not in the ledger yet.
    pub unsealed: u64,
    /// Coordinators that died between the event that names another key and its use.
    pub between_keys: u64,
    /// Workers that died.
    pub worker_crashes: u64,
    /// Messages that were lost.
    pub lost: u64,
    /// Coordinators that began with a checkpoint of the ledger.
    pub resumed: u64,
    /// Simulated time from start to end.
    pub span: Millis,
    /// The digest of all events: two simulations of one seed give the same.
    pub ledger: Digest,
}

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum SimEvent {
    /// A worker's request reaches the coordinator.
    Request {
        route: Route,
        request: Box<WorkerRequest>,
    },
    /// A worker's heartbeat reaches the coordinator.
    Heartbeat {
        worker: usize,
        heartbeat: Heartbeat,
    },
    /// An answer reaches a worker.
    Answer {
        route: Route,
        answer: Delivered,
    },
    /// Something inside the coordinator's process; void when another has begun.
    Coordinator {
        generation: u64,
        input: Box<coordinator_core::Input>,
    },
    /// The coordinator's disk is done; void when another process has begun.
    Decide {
        generation: u64,
    },
    /// Something inside a worker's process; void when another has begun.
    Worker {
        worker: usize,
        incarnation: u64,
        input: worker_core::Input,
    },
    /// The executor is done; what it did depends on the process.
    Executor {
        generation: u64,
        job: crate::foundry::Job,
    },
    /// A worker has waited long enough for URLs.
    GiveUp {
        route: Route,
    },
    /// A worker asks its question about masks, again and again.
    AskForMasks {
        worker: usize,
        incarnation: u64,
        lease: LeaseRef,
    },
    /// The queue may deliver a message.
    Deliver {
        message: u64,
    },
    StartCoordinator,
    StartWorker(usize),
    /// The operator asks for the run until it is there.
    CreateRun,
    /// An operator leads the run back, now and again.
    Restore,
    /// An operator gives the coordinator another key for its events, now and again.
    RotateEvents,
    /// An operator has old objects deleted, now and again.
    Collect,
    /// The operator asks for the end of a freeze until it has ended.
    Unfreeze,
    /// The operator asks for the end of a quarantine until it has ended.
    Readmit(usize),
    /// The operator has issued a revoked key anew, and the coordinator is to know.
    Reissue(usize),
    /// A process dies or is cut off.
    Mishap,
    EndOfFaults,
}

/// The address of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Route {
    pub(crate) worker: usize,
    pub(crate) incarnation: u64,
    pub(crate) purpose: Purpose,
}

/// The purpose of a worker's request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Purpose {
    /// A request of its core.
    Core(worker_core::RequestId),
    /// URLs to read the objects that its work needs.
    Fetch(worker_core::WorkId),
    /// URLs to upload its contribution.
    Upload(worker_core::WorkId, Chunks),
    /// A question about the masks of a lease, by its number.
    Mask(LeaseRef, u64),
}

/// An answer on the bus.
#[derive(Clone, Debug)]
pub(crate) enum Delivered {
    Answer(worker_core::Answer),
    Refused(Refusal),
    /// URLs.
    Granted,
    /// A stage of an agreement, and what the coordinator signs with it.
    Mask(Box<MaskReply>, Option<Box<CohortStatement>>),
}

/// The whole simulated world.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) random: SeededRandom,
    pub(crate) plan: Plan,
    pub(crate) faults: Faults,
    pub(crate) now: UnixMillis,
    happenings: BTreeMap<(UnixMillis, u64), SimEvent>,
    serial: u64,
    pub(crate) site: CoordinatorMachine,
    pub(crate) machines: Vec<WorkerMachine>,
    /// The key of the ledger.
    pub(crate) keys: EventKeys,
    pub(crate) queue: Queue,
    pub(crate) store: Store,
    pub(crate) monitor: Monitor,
    pub(crate) journal: Vec<EventBody>,
    /// Starts of the coordinator from a checkpoint.
    pub(crate) resumed: u64,
    pub(crate) routes: BTreeMap<ReplyId, Route>,
    /// The signed manifests; the position in this list stands for the document.
    pub(crate) documents: Vec<Manifest>,
    /// Leases whose first answer was lost, in a simulation that loses all of these.
    pub(crate) swallowed: Option<BTreeSet<LeaseRef>>,
    /// True if the next coordinator that writes the first part of a seal dies before the second.
    pub(crate) dies_in_seal: bool,
    pub(crate) lost: u64,
    pub(crate) worker_crashes: u64,
    /// Workers that have refused to reveal for a second sum of a round, and live on.
    pub(crate) refusing: BTreeSet<usize>,
    steps: u64,
}

/// Plays one seed with a single kind of fault and the shortest leases there are: the first answer
/// with each lease is lost, as when a coordinator dies after it has written the grant.
///
/// # Panics
/// As [`simulate`].
pub fn simulate_lost_grants(seed: u64) -> Report {
    let mut random = SeededRandom::new(seed);
    let mut plan = Plan::new(&mut random);
    plan.faults = Faults::default();
    plan.spec.policy.lease = LEASE_MIN;
    let mut world = World::of(random, plan);
    world.swallowed = Some(BTreeSet::new());
    world.play();
    world.report()
}

/// Plays one seed with a single fault, in a round of so many units that its seal takes two events:
/// the coordinator dies between the two.
///
/// # Panics
/// As [`simulate`].
pub fn simulate_long_seal(seed: u64) -> Report {
    let mut random = SeededRandom::new(seed);
    let mut plan = Plan::new(&mut random);
    plan.faults = Faults::default();
    plan.workers = MANY_WORKERS;
    plan.spec.policy.workers_min = 1;
    plan.spec.schedule.units = SEALED_MAX as u32 + 1;
    plan.spec.schedule.rounds = 1;
    plan.spec.schedule.evaluation_every = 0;
    let mut world = World::of(random, plan);
    world.dies_in_seal = true;
    world.play();
    assert!(!world.dies_in_seal, "no coordinator died in a seal");
    world.report()
}

/// Plays one seed in which operators lead the run back to its snapshots again and again, for as
/// long as there are faults.
///
/// # Panics
/// As [`simulate`].
pub fn simulate_restores(seed: u64) -> Report {
    let mut random = SeededRandom::new(seed);
    let mut plan = Plan::new(&mut random);
    plan.spec.schedule.rounds = 6;
    plan.spec.schedule.snapshot_every = 1;
    let mut world = World::of(random, plan);
    world.restore_now_and_again();
    world.play();
    world.report()
}

/// Plays one seed in which operators have old objects deleted again and again, and lead the run
/// back now and then, for as long as there are faults.
///
/// # Panics
/// As [`simulate`].
pub fn simulate_collections(seed: u64) -> Report {
    let mut random = SeededRandom::new(seed);
    let mut plan = Plan::new(&mut random);
    plan.spec.schedule.rounds = 6;
    plan.spec.schedule.snapshot_every = 1 + (seed % 2) as u32;
    let mut world = World::of(random, plan);
    world.collect_now_and_again();
    if seed.is_multiple_of(3) {
        world.restore_now_and_again();
    }
    world.play();
    world.report()
}

/// Plays one seed in which the coordinator gets another key for its events again and again, for as
/// long as there are faults.
///
/// # Panics
/// As [`simulate`].
pub fn simulate_rotations(seed: u64) -> Report {
    let mut world = World::new(seed);
    world.rotate_now_and_again();
    world.play();
    world.report()
}

/// Plays one seed of a run with secure aggregation.
///
/// # Panics
/// As [`simulate`].
pub fn simulate_masked(seed: u64) -> Report {
    let mut random = SeededRandom::new(seed);
    let plan = Plan::new(&mut random).masked(seed);
    let mut world = World::of(random, plan);
    world.play();
    world.report()
}

/// Plays one seed with a model of more chunks than an event could name, so that lists name them.
///
/// # Panics
/// As [`simulate`].
pub fn simulate_lists(seed: u64) -> Report {
    let mut random = SeededRandom::new(seed);
    let mut plan = Plan::new(&mut random);
    // Eight elements in fp32.
    let chunk = |n: usize| kit::sized(&format!("initial {n}"), 32);
    let chunks: Vec<ObjectRef> = (0..=NAMED_CHUNKS_MAX).map(chunk).collect();
    let initial = Chunks::Listed(Listed::of(&chunks).0);
    plan.spec.model.initial = initial.clone();
    let mut world = World::of(random, plan);
    world.store.note(chunks);
    world.store.publish(&initial);
    world.play();
    world.report()
}

/// Plays one seed to the end of its run.
///
/// # Panics
/// An invariant does not hold: this seed has found a defect.
pub fn simulate(seed: u64) -> Report {
    let mut world = World::new(seed);
    world.play();
    world.report()
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = SeededRandom::new(seed);
        let plan = Plan::new(&mut random);
        Self::of(random, plan)
    }

    fn of(random: SeededRandom, plan: Plan) -> Self {
        let mut world = Self {
            faults: plan.faults,
            now: START,
            happenings: BTreeMap::new(),
            serial: 0,
            site: CoordinatorMachine::default(),
            machines: (0..plan.workers)
                .map(|_| WorkerMachine::default())
                .collect(),
            keys: EventKeys::default(),
            queue: Queue::default(),
            store: Store::new(&plan.spec, &plan.data),
            monitor: Monitor::new(&plan.spec),
            journal: Vec::new(),
            resumed: 0,
            routes: BTreeMap::new(),
            documents: Vec::new(),
            swallowed: None,
            dies_in_seal: false,
            lost: 0,
            worker_crashes: 0,
            refusing: BTreeSet::new(),
            steps: 0,
            random,
            plan,
        };
        world.after(Millis(0), SimEvent::StartCoordinator);
        world.after(Millis(10), SimEvent::CreateRun);
        for worker in 0..world.plan.workers {
            let delay = world.random.millis(0, 5_000);
            world.after(delay, SimEvent::StartWorker(worker));
        }
        world.next_mishap();
        world.after(world.plan.faults_last, SimEvent::EndOfFaults);
        world
    }

    /// Plays until the run is complete.
    fn play(&mut self) {
        while !self.monitor.complete() {
            self.steps += 1;
            assert!(
                self.steps < STEPS_MAX,
                "the run gets nowhere: {} events",
                self.journal.len()
            );
            let last = START.after(self.plan.faults_last).after(QUIET_MAX);
            assert!(
                self.now < last,
                "the run does not end although nothing is wrong any more: {self:#?}"
            );
            self.step();
        }
    }

    /// Plays the next event: a happening, or a core's deadline if that comes first.
    fn step(&mut self) {
        let next = self
            .happenings
            .first_key_value()
            .map_or(UnixMillis(u64::MAX), |((at, _), _)| *at);
        let coordinator = self.site.deadline().filter(|at| *at < next);
        let workers = self.machines.iter().enumerate();
        let worker = workers
            .filter_map(|(n, machine)| Some((machine.deadline()?, n)))
            .min()
            .filter(|(at, _)| *at < next);
        match (coordinator, worker) {
            (Some(at), other) if other.is_none_or(|(sooner, _)| at <= sooner) => {
                self.now = self.now.max(at);
                self.tell_coordinator(coordinator_core::Input::Tick);
            }
            (_, Some((at, worker))) => {
                self.now = self.now.max(at);
                self.tell_worker(worker, worker_core::Input::Tick);
            }
            _ => {
                let ((at, _), happening) = self
                    .happenings
                    .pop_first()
                    .expect("a mishap or the end of faults waits");
                self.now = self.now.max(at);
                self.happen(happening);
            }
        }
    }

    fn happen(&mut self, happening: SimEvent) {
        match happening {
            SimEvent::Request { route, request } => self.request_arrives(route, *request),
            SimEvent::Heartbeat { worker, heartbeat } => self.heartbeat_arrives(worker, heartbeat),
            SimEvent::Answer { route, answer } => self.answer_arrives(route, answer),
            SimEvent::Coordinator { generation, input } => {
                if generation == self.site.generation() {
                    self.tell_coordinator(*input);
                }
            }
            SimEvent::Decide { generation } => {
                if generation == self.site.generation() {
                    self.decide();
                }
            }
            SimEvent::Worker {
                worker,
                incarnation,
                input,
            } => {
                if self.machines[worker].incarnation() == incarnation {
                    self.tell_worker(worker, input);
                }
            }
            SimEvent::Executor { generation, job } => {
                if generation == self.site.generation() {
                    self.finish_job(job);
                }
            }
            SimEvent::GiveUp { route } => self.give_up(&route),
            SimEvent::AskForMasks {
                worker,
                incarnation,
                lease,
            } => self.ask_for_masks(worker, incarnation, lease),
            SimEvent::Deliver { message } => self.deliver(message),
            SimEvent::StartCoordinator => self.start_coordinator(),
            SimEvent::StartWorker(worker) => self.start_worker(worker),
            SimEvent::CreateRun => self.create_run(),
            SimEvent::Restore => self.restore_now_and_again(),
            SimEvent::RotateEvents => self.rotate_now_and_again(),
            SimEvent::Collect => self.collect_now_and_again(),
            SimEvent::Unfreeze => self.unfreeze(),
            SimEvent::Readmit(worker) => self.readmit(worker),
            SimEvent::Reissue(worker) => self.reissue(worker),
            SimEvent::Mishap => self.mishap(),
            SimEvent::EndOfFaults => {
                self.faults = Faults::default();
                self.machines.iter_mut().for_each(WorkerMachine::reconnect);
            }
        }
    }

    pub(crate) fn after(&mut self, span: Millis, happening: SimEvent) {
        self.serial += 1;
        self.happenings
            .insert((self.now.after(span), self.serial), happening);
    }

    /// The time that a message takes.
    fn transit(&mut self) -> Millis {
        if self.random.hits(self.faults.slow) {
            self.random.millis(500, 30_000)
        } else {
            self.random.millis(1, 40)
        }
    }

    /// The times after which the copies of a message between `worker` and the coordinator arrive;
    /// empty if the message is lost.
    pub(crate) fn transits(&mut self, worker: usize) -> Vec<Millis> {
        let cut_off = self.machines[worker].is_cut_off(self.now);
        if cut_off || self.random.hits(self.faults.loss) {
            self.lost += 1;
            return Vec::new();
        }
        let copies = if self.random.hits(self.faults.copies) {
            2
        } else {
            1
        };
        (0..copies).map(|_| self.transit()).collect()
    }

    /// Restores a snapshot, and later another one, while there are faults.
    fn restore_now_and_again(&mut self) {
        if self.now < START.after(self.plan.faults_last) {
            self.restore_snapshot();
            let pause = self.random.millis(2_000, 40_000);
            self.after(pause, SimEvent::Restore);
        }
    }

    fn next_mishap(&mut self) {
        let calm = self.faults.calm.get().max(1_001);
        let span = self.random.millis(1_000, calm);
        self.after(span, SimEvent::Mishap);
    }

    fn mishap(&mut self) {
        if self.faults.calm == Millis(0) {
            return;
        }
        let worker = self.random.between(0, self.plan.workers as u64 - 1) as usize;
        // Operators promote at any time, so also just before something goes wrong.
        self.promote();
        match self.random.between(0, 12) {
            0..=2 => self.crash_coordinator(),
            3 => self.shut_down(),
            4 => {
                self.end_leases();
                self.freeze();
            }
            5..=7 => self.crash_worker(worker),
            8 | 9 => self.quarantine(worker),
            10 => self.revoke(worker),
            _ => {
                let span = self.random.millis(1_000, 45_000);
                let until = self.now.after(span);
                self.machines[worker].cut_off(until);
            }
        }
        self.next_mishap();
    }

    fn report(&self) -> Report {
        let mut hasher = Hasher::default();
        self.journal
            .iter()
            .for_each(|body| hasher.update(&body.encode()));
        Report {
            counts: self.monitor.counts,
            coordinator_crashes: self.site.crashes,
            shared_appends: self.site.shared_appends,
            torn: self.site.torn,
            unsealed: self.site.unsealed,
            between_keys: self.keys.between,
            worker_crashes: self.worker_crashes,
            lost: self.lost,
            resumed: self.resumed,
            span: START.until(self.now),
            ledger: hasher.finish(),
        }
    }
}
