//! The meaning of a seed: a run, its workers, and the faults of the world.

use coordinator_core::Settings;
use kit::RunSpecBuilder;
use schemas::data::DataManifest;
use schemas::member::{Posture, Session};
use schemas::run::{Comparison, Privacy, RunSpec, SecureAggregation};
use schemas::{AccountId, Millis, PublicKey, Rank, RunId, Seat, WorkerId};

pub(crate) use kit::{object, operator};

use crate::checkpoint::CHECKPOINT_EVERY;
use crate::random::SeededRandom;

/// Rounds of every simulated run.
pub(crate) const ROUNDS: u64 = 3;

/// The plan of one simulation.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) spec: RunSpec,
    pub(crate) data: DataManifest,
    pub(crate) workers: usize,
    pub(crate) faults: Faults,
    /// Time after which there are no more faults.
    pub(crate) faults_last: Millis,
    /// The number of inputs in a thousand that find the coordinator waiting for its disk.
    pub(crate) disk: u64,
}

/// Rates of faults, in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// A message is lost.
    pub(crate) loss: u64,
    /// A message comes twice.
    pub(crate) copies: u64,
    /// A message takes seconds.
    pub(crate) slow: u64,
    /// The coordinator dies before one of its effects.
    pub(crate) crash: u64,
    /// The store, the merge or a save fails.
    pub(crate) store: u64,
    /// The queue loses an offer that it acknowledged.
    pub(crate) queue: u64,
    /// A contribution is not finite.
    pub(crate) poison: u64,
    /// Training fails.
    pub(crate) training: u64,
    /// The longest time until the next process dies or is cut off.
    pub(crate) calm: Millis,
}

impl Plan {
    pub(crate) fn new(random: &mut SeededRandom) -> Self {
        let workers = random.between(1, 5) as usize;
        let spec = spec()
            .units(random.between(1, 6) as u32)
            .evaluation_every(random.between(0, 2) as u32)
            .snapshot_every(random.between(1, 3) as u32)
            .workers_min(random.between(1, workers as u64) as u32)
            .lease(random.millis(6_000, 20_000))
            .silence_max(random.millis(10_000, 60_000))
            .seed(random.between(0, u64::MAX - 1))
            .build();
        let spec = comparing(private(spec));
        // One seed of eight has no faults.
        let bad = !random.hits(125);
        let level =
            |random: &mut SeededRandom, most: u64| if bad { random.between(0, most) } else { 0 };
        let faults = Faults {
            loss: level(random, 120),
            copies: level(random, 150),
            slow: level(random, 100),
            crash: level(random, 6),
            store: level(random, 150),
            queue: level(random, 200),
            poison: level(random, 100),
            training: level(random, 60),
            calm: if bad {
                random.millis(5_000, 60_000)
            } else {
                Millis::from_secs(1_000_000)
            },
        };
        let mut plan = Self {
            spec,
            data: kit::data().named(7, 20).build(),
            workers,
            faults,
            faults_last: random.millis(20_000, 180_000),
            disk: random.between(0, 800),
        };
        if plan.seat(0).is_some() {
            // Two of the workers are a group, which counts as one.
            let ready = number(workers) - 1;
            plan.spec.policy.workers_min = plan.spec.policy.workers_min.min(ready);
        }
        plan
    }
}

/// Makes one run of four private, with a budget of one to nine disclosures. The seed decides, so
/// that no draw of the simulation changes.
fn private(mut spec: RunSpec) -> RunSpec {
    if spec.seed.is_multiple_of(4) {
        spec.policy.norm_max = 0.0;
        spec.privacy = Some(Privacy {
            epsilon: 3.0 + (spec.seed / 4 % 6) as f64,
            ..kit::privacy()
        });
    }
    spec
}

/// Has one run of three that is not private compare norms and directions.
fn comparing(mut spec: RunSpec) -> RunSpec {
    if spec.privacy.is_none() && spec.seed % 3 == 1 {
        // The norms of the simulation are within the reach of these steps.
        spec.inner.learning_rate = 1.0;
        spec.policy.comparison = Comparison::Others {
            norm_ratio_max: 4.0,
            cosine_min: Some(0.0),
            loss_ratio_max: None,
        };
    }
    spec
}

impl Plan {
    /// The same plan with secure aggregation. Nobody sees what is in a contribution, so none is
    /// poisoned; each worker is alone.
    pub(crate) fn masked(mut self, seed: u64) -> Self {
        let units = 4 + u32::try_from(seed % 3).expect("small");
        self.workers = units as usize + (seed % 2) as usize;
        self.faults.poison = 0;
        let spec = &mut self.spec;
        spec.privacy = None;
        spec.policy.norm_max = 0.0;
        spec.policy.comparison = Comparison::None;
        spec.upload = kit::FP32;
        (spec.schedule.units, spec.policy.workers_min) = (units, units);
        spec.secure_aggregation = Some(SecureAggregation {
            threshold: (units * 2).div_ceil(3).max(3),
            largest: 1.0,
        });
        spec.seed = 3 * (spec.seed / 3) + 1;
        self
    }

    /// The seat that a worker's record gives it: in some simulations the first two of several
    /// workers are a group.
    pub(crate) fn seat(&self, worker: usize) -> Option<Seat> {
        let grouped = self.workers > 2 && self.spec.seed.is_multiple_of(3);
        let rank = Rank(number(worker));
        let seat = || Seat::new("pair".parse().ok()?, rank, 2).ok();
        if grouped { seat() } else { None }
    }
}

pub(crate) fn run_id() -> RunId {
    "sim".parse().expect("a valid name")
}

/// The number of a worker, from its place in the simulation.
fn number(worker: usize) -> u32 {
    u32::try_from(worker).expect("a handful of workers")
}

pub(crate) fn worker_id(worker: usize) -> WorkerId {
    kit::worker(number(worker))
}

/// The key that signs a worker's statements.
pub(crate) fn audit_key(worker: usize) -> PublicKey {
    kit::audit_key(number(worker))
}

/// The coordinator's settings; these keys may sign its ledger.
pub(crate) fn settings(audit_keys: &[PublicKey]) -> Settings {
    Settings {
        release: "sim".to_owned(),
        home: account(),
        audit_keys: audit_keys.to_vec(),
        posture: Posture::default(),
        heartbeat: Millis::from_secs(3),
        session: Session(1),
        checkpoint_every: CHECKPOINT_EVERY,
    }
}

/// The account of the tenant that the run and all its workers are of.
pub(crate) fn account() -> AccountId {
    kit::account(0)
}

/// Settings without a limit of strikes: removed workers would leave a run without workers. The
/// core's own tests cover removal.
fn spec() -> RunSpecBuilder {
    kit::run_spec()
        .run(run_id())
        .rounds(ROUNDS)
        .strikes_max(1_000_000)
}
