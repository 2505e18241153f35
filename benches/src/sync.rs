//! Sync time: from the moment the last worker ends its inner steps to the moment every worker holds
//! the next weights, over the real broker, store, coordinator and workers on loopback with TLS.
//! bf16 in both directions.
//!
//! Inner steps sleep, long enough for a full snapshot to be saved meanwhile, as in training; a row
//! of its own shows the processor time of that. One series trains for real, and so shows costs that
//! sleeping steps hide.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::Cluster;
use schemas::Digest;

use crate::Effort;
use crate::cluster_run::{self, Model, Security, Shape, peak_bytes, processor_seconds};
use crate::row::{Reach, Row};
use crate::timeline::{Sync, Timeline};

/// Rounds at the beginning that warm connections and caches, and are not counted.
const WARMUP_ROUNDS: u64 = 2;
/// Longest time for all rounds; far above what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(540);
/// Parameters that one step of the synthetic trainer changes. There are as many steps as such
/// windows, so that all chunks change.
const WINDOW_PARAMETERS: u64 = 1 << 20;

/// The number of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    M10,
    M25,
    M100,
}

/// The inner steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trained {
    /// Steps that sleep: both cores are free for the sync, and no inner state has to be written.
    Synthetic,
    /// Steps of a model on the CPU: parameters are read from libtorch, and the moments of the unit
    /// before are written meanwhile.
    Really,
}

/// One series of rounds.
#[derive(Clone, Copy, Debug)]
struct Series<'a> {
    size: Size,
    trained: Trained,
    workers: usize,
    effort: Effort,
    snapshot_every: u64,
    security: Security,
    label: &'a str,
}

/// Processor seconds of each process per round.
struct Costs {
    coordinator: f64,
    store: f64,
    broker: f64,
    workers: f64,
}

impl Size {
    const fn parameters(self) -> u64 {
        match self {
            Self::M10 => 10_000_000,
            // The parameters of the preset.
            Self::M25 => 25_000_000,
            Self::M100 => 100_000_000,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::M10 => "10M",
            Self::M25 => "25M",
            Self::M100 => "100M",
        }
    }

    /// Milliseconds that the inner steps of a unit take.
    const fn training_ms(self) -> u64 {
        match self {
            Self::M10 => 1_000,
            Self::M25 => 3_000,
            Self::M100 => 8_000,
        }
    }

    /// Number of rounds that are counted.
    const fn rounds(self, effort: Effort) -> u64 {
        match (self, effort) {
            (_, Effort::Quick) => 2,
            (Self::M10, Effort::Full) => 15,
            (Self::M25, Effort::Full) => 9,
            (Self::M100, Effort::Full) => 7,
        }
    }

    /// The value to reach in seconds, if there is one.
    const fn sync_reach(self, workers: usize) -> Option<f64> {
        match (self, workers) {
            (Self::M10, 2) => Some(0.16),
            (Self::M10, 4) => Some(0.25),
            (Self::M100, 2) => Some(1.2),
            (Self::M100, 4) => Some(2.2),
            _ => None,
        }
    }
}

/// Measures all rows of one size and number of workers.
pub(crate) async fn measure(size: Size, workers: usize, effort: Effort) -> Result<Vec<Row>> {
    let label = format!("{} x{workers}", size.label());
    let series = Series {
        size,
        trained: Trained::Synthetic,
        workers,
        effort,
        snapshot_every: 1,
        security: Security::Usual,
        label: &label,
    };
    let (mut rows, costs, ended) = rounds(series).await?;
    rows.extend(costs.rows(&label, "with a full snapshot in each round"));
    if size == Size::M10 && workers == 2 {
        // The peer saves no snapshots, so a series without full snapshots compares with it.
        let without = Series {
            snapshot_every: 1_000_000,
            ..series
        };
        let (_, costs, _ended) = rounds(without).await?;
        let row = |name: &str, value: f64| {
            Row::new(format!("{label}: {name}"), "s/round", vec![value])
                .note("without full snapshots")
        };
        let both = row("coordinator + store CPU", costs.coordinator + costs.store);
        rows.push(both.reach(Reach::AtMost(0.15)));
        rows.push(row(
            "all processes' CPU / cores, without full snapshots",
            costs.all() / cores() as f64,
        ));
    }
    // The folder of the first series is removed only now: for a minute after thousands of files
    // were deleted, ext4 makes new ones slowly.
    drop(ended);
    Ok(rows)
}

/// Measures the same sync after steps that sleep and after steps that train.
pub(crate) async fn measure_trained(effort: Effort) -> Result<Vec<Row>> {
    let slept = Series {
        size: Size::M25,
        trained: Trained::Synthetic,
        workers: 2,
        effort,
        snapshot_every: 1_000_000,
        security: Security::Usual,
        label: "25M x2 synthetic",
    };
    let done = Series {
        trained: Trained::Really,
        label: "25M x2 trained",
        ..slept
    };
    let (mut rows, _, slept) = rounds(slept).await?;
    let (more, _, done) = rounds(done).await?;
    // The first row of each series is the whole sync.
    let beside = more[0].median() / rows[0].median();
    rows.extend(more);
    rows.push(
        Row::new("sync 25M x2: trained beside synthetic", "x", vec![beside])
            .reach(Reach::AtMost(1.15))
            .note("libtorch on the CPU, a thread a worker; moments written beside the steps"),
    );
    drop((slept, done));
    Ok(rows)
}

/// Times that each of the two is measured, in turn.
const TURNS: usize = 3;

/// Measures what security costs: rounds with all of it, and rounds without TLS, audit service and
/// registrar, in turn.
pub(crate) async fn measure_secured(effort: Effort) -> Result<Vec<Row>> {
    let size = Size::M10;
    let with = Series {
        size,
        trained: Trained::Synthetic,
        workers: 2,
        effort,
        snapshot_every: 1_000_000,
        security: Security::Whole,
        label: "10M x2 secured",
    };
    let without = Series {
        security: Security::Plaintext,
        label: "10M x2 plaintext",
        ..with
    };
    let (mut secured, mut plain) = (Vec::new(), Vec::new());
    // Folders are removed at the end: afterwards ext4 makes new files slowly for a minute.
    let mut ended = Vec::new();
    for _ in 0..TURNS {
        for (series, samples) in [(with, &mut secured), (without, &mut plain)] {
            let (rows, _, cluster) = rounds(series).await?;
            samples.extend(rows[0].samples());
            ended.push(cluster);
        }
    }
    let trained = size.training_ms() as f64 / 1000.0;
    let secured = Row::new("10M x2: sync, all security on", "s", secured)
        .note("mutual TLS, audit service, registrar");
    let plain = Row::new("10M x2: sync, plaintext", "s", plain)
        .note("no TLS, no audit service, no registrar; identities and signatures stay");
    let beside = (secured.median() + trained) / (plain.median() + trained);
    let round = Row::new(
        "10M x2: round with all security beside plaintext",
        "x",
        vec![beside],
    )
    .reach(Reach::AtMost(1.10))
    .note(format!(
        "a round of {trained} s of inner steps; in longer ones it is less"
    ));
    drop(ended);
    Ok(vec![secured, plain, round])
}

impl Series<'_> {
    fn shape(&self, rounds: u64) -> Result<Shape> {
        /// Steps of one sequence, which take about as long as the synthetic ones.
        const STEPS: u64 = 6;
        const STEP_TOKENS: u64 = 64;
        let (model, steps) = match self.trained {
            Trained::Synthetic => {
                let parameters = self.size.parameters();
                let steps = parameters.div_ceil(WINDOW_PARAMETERS);
                let step_ms = self.size.training_ms() / steps;
                let model = Model::Synthetic {
                    parameters,
                    step_ms,
                };
                (model, steps)
            }
            Trained::Really => (Model::Preset("25m"), STEPS),
        };
        Ok(Shape {
            model,
            steps,
            step_tokens: STEP_TOKENS,
            units: u32::try_from(self.workers).context("few workers")?,
            rounds,
            workers_min: self.workers,
            snapshot_every: self.snapshot_every,
        })
    }
}

async fn rounds(series: Series<'_>) -> Result<(Vec<Row>, Costs, Cluster)> {
    let Series {
        size,
        workers,
        label,
        ..
    } = series;
    let counted = size.rounds(series.effort);
    let last = WARMUP_ROUNDS + counted;
    // One round more, which ends the last counted sync.
    let shape = series.shape(last + 1)?;
    let mut cluster = cluster_run::start(&shape, series.security).await?;
    for index in 0..workers {
        cluster.start_worker(&worker(index), &[]).await;
    }
    let run = cluster.run().clone();
    let operator = cluster.operator().await;
    operator
        .until(&run, PATIENCE, |view| view.round.get() >= WARMUP_ROUNDS)
        .await;
    let before = used(&mut cluster, workers)?;
    operator
        .until(&run, PATIENCE, |view| view.round.get() >= last)
        .await;
    let after = used(&mut cluster, workers)?;
    operator
        .until(&run, PATIENCE, |view| view.round.get() > last)
        .await;
    let peak = peak_bytes(pid(&mut cluster, "coordinator")?)?;
    let worker_peak = peak_bytes(pid(&mut cluster, &worker(0))?)?;
    let mut timeline = Timeline::default();
    timeline.read(&cluster.process("coordinator").log());
    for index in 0..workers {
        timeline.read(&cluster.process(&worker(index)).log());
    }
    let syncs = timeline.syncs(WARMUP_ROUNDS..last, workers);
    ensure!(
        2 * syncs.len() as u64 > counted,
        "{} of {counted} syncs were seen in the logs",
        syncs.len()
    );
    let hashing = hashing(size, workers, label);
    let why = format!(
        "{:.2} s of it is sha256 on all cores; it cannot be shorter than all processes' CPU / cores",
        hashing.median()
    );
    let mut rows = stages(&syncs, label, size.sync_reach(workers), &why);
    rows.push(hashing);
    let mut memory = Row::new(
        format!("{label}: coordinator peak memory"),
        "GB",
        vec![peak / 1e9],
    );
    if size == Size::M100 {
        memory = memory.reach(Reach::AtMost(1.5));
    }
    rows.push(memory);
    rows.push(Row::new(
        format!("{label}: a worker's peak memory"),
        "GB",
        vec![worker_peak / 1e9],
    ));
    for name in cluster.names() {
        cluster.kill9(&name);
    }
    Ok((rows, after.since(&before, counted as f64), cluster))
}

fn stages(syncs: &[Sync], label: &str, reach: Option<f64>, why: &str) -> Vec<Row> {
    let row = |name: &str, of: fn(&Sync) -> f64| {
        Row::new(
            format!("sync {label}{name}"),
            "s",
            syncs.iter().map(of).collect(),
        )
    };
    let total = row("", Sync::total).note(why);
    vec![
        match reach {
            Some(reach) => total.reach(Reach::AtMost(reach)),
            None => total,
        },
        row(": encode + upload", |sync| sync.upload),
        row(": screen", |sync| sync.screen),
        row(": merge + publish", |sync| sync.merge),
        row(": lease", |sync| sync.open),
        row(": download + decode", |sync| sync.download),
    ]
}

/// The part of a sync that is sha256 alone, with every core at work. Each upload is hashed by its
/// worker, the store and the coordinator; the broadcast is hashed by the coordinator, the store and
/// each worker. The peer hashes nothing.
fn hashing(size: Size, workers: usize, label: &str) -> Row {
    const SAMPLE_BYTES: usize = 32 << 20;
    const BF16_BYTES: u64 = 2;
    const SAMPLES: usize = 9;
    let cores = cores();
    let sample = vec![7_u8; SAMPLE_BYTES];
    let once = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..cores {
                scope.spawn(|| black_box(Digest::of(black_box(&sample))));
            }
        });
        (cores * SAMPLE_BYTES) as f64 / start.elapsed().as_secs_f64()
    };
    // The best of several samples, since other work on the machine only slows sha256 down.
    let rate = (0..SAMPLES).map(|_| once()).fold(0.0, f64::max);
    let hashed = size.parameters() * BF16_BYTES * (3 * workers + 2 + workers) as u64;
    let row = Row::new(
        format!("sync {label}: of it sha256, all cores"),
        "s",
        vec![hashed as f64 / rate],
    );
    row.note(format!(
        "{} MB hashed at {:.1} GB/s; a bound from below",
        hashed / 1_000_000,
        rate / 1e9
    ))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Costs {
    fn since(&self, before: &Self, rounds: f64) -> Self {
        Self {
            coordinator: (self.coordinator - before.coordinator) / rounds,
            store: (self.store - before.store) / rounds,
            broker: (self.broker - before.broker) / rounds,
            workers: (self.workers - before.workers) / rounds,
        }
    }

    fn all(&self) -> f64 {
        self.coordinator + self.store + self.broker + self.workers
    }

    fn rows(&self, label: &str, note: &str) -> Vec<Row> {
        let row = |name: &str, value: f64| {
            Row::new(format!("{label}: {name}"), "s/round", vec![value]).note(note)
        };
        vec![
            row("coordinator CPU", self.coordinator),
            row("store CPU", self.store),
            row("broker CPU", self.broker),
            row("all workers' CPU", self.workers),
            // No schedule makes a sync much shorter than this.
            row("all processes' CPU / cores", self.all() / cores() as f64),
        ]
    }
}

/// Processor seconds used so far.
fn used(cluster: &mut Cluster, workers: usize) -> Result<Costs> {
    let mut seconds = |name: &str| processor_seconds(pid(cluster, name)?);
    let (coordinator, store, broker) = (
        seconds("coordinator")?,
        seconds("store")?,
        seconds("broker")?,
    );
    let each = (0..workers)
        .map(|index| seconds(&worker(index)))
        .collect::<Result<Vec<f64>>>()?;
    Ok(Costs {
        coordinator,
        store,
        broker,
        workers: each.iter().sum(),
    })
}

fn pid(cluster: &mut Cluster, name: &str) -> Result<u32> {
    cluster
        .process(name)
        .pid()
        .with_context(|| format!("{name} does not run"))
}

fn worker(index: usize) -> String {
    format!("worker-{index}")
}
