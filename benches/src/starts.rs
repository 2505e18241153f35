//! A coordinator's start with a ledger of many events: once from all events, as in a domain of an
//! earlier release, and once from a checkpoint. The processes are real. The ledger holds runs of
//! many rounds, one after another, like that of an old deployment.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use diloco_coordinator::{Ledger, Named, NewEvent};
use harness::{Cluster, Options};
use identity::AuditKey;
use runtime::clock;
use schemas::event::LedgerEvent;
use schemas::permission::Role;
use schemas::run::RunSpec;
use schemas::sync::SealedInput;
use schemas::{
    ChainSequence, Digest, Epoch, Fragment, ObjectRef, Round, RunId, Tokens, UnitIndex, Weight,
};
use serde_bytes::ByteArray;

use crate::Effort;
use crate::row::{Reach, Row};

/// Rounds of each run, and units of each round.
const ROUNDS: u64 = 100;
const UNITS: u32 = 16;
/// Chunks of each contribution and of the weights: as many as for a model of some 16 M parameters.
const CHUNKS: usize = 4;
/// The longest wait for a start: one that reads a million events takes minutes on a busy machine.
const START_MAX: Duration = Duration::from_secs(600);
/// The longest wait for a broker that does not answer, and for a checkpoint.
const PATIENCE: Duration = Duration::from_secs(60);
/// Measures the rows of this bench.
pub(crate) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let sizes: &[(u64, f64)] = match effort {
        Effort::Full => &[(15_000, 0.4), (1_000_000, 3.0)],
        Effort::Quick => &[(10_000, 0.4)],
    };
    let repeats = match effort {
        Effort::Full => 5,
        Effort::Quick => 2,
    };
    let mut rows = Vec::new();
    for (events, reach) in sizes {
        let mut scene = Scene::with(*events).await?;
        let whole = scene.start("all").await?;
        let checkpoint = scene.checkpoint().await?;
        scene.stop("all").await;
        let mut resumed = Vec::with_capacity(repeats);
        for number in 0..repeats {
            let name = format!("resumed-{number}");
            resumed.push(scene.start(&name).await?);
            scene.stop(&name).await;
        }
        let size = checkpoint / 1024;
        rows.push(
            Row::new(format!("start with {events} events"), "s", resumed)
                .reach(Reach::AtMost(*reach))
                .note(format!(
                    "process to ready, from a checkpoint of {size} KiB and the events behind it"
                )),
        );
        rows.push(
            Row::new(
                format!("the same without a checkpoint, {events}"),
                "s",
                vec![whole],
            )
            .note("every event read, verified and folded"),
        );
    }
    Ok(rows)
}

/// A domain with a ledger.
struct Scene {
    cluster: Cluster,
}

impl Scene {
    /// Makes a domain with a ledger of `events` events, and the few more that end the last run.
    async fn with(events: u64) -> Result<Self> {
        let mut cluster = Cluster::broker(Options::default()).await;
        cluster.start_store().await;
        let scene = Self { cluster };
        let mut ledger = scene.ledger().await?;
        ledger.catch_up(|_| Ok::<(), String>(())).await?;
        let mut runs = 0..;
        while ledger.len() < events {
            let run = runs.next().context("there is a number for each run")?;
            let all: Vec<NewEvent> = run_events(run).collect();
            ledger.append(all).await?;
        }
        Ok(scene)
    }

    /// The domain's ledger, for a process that holds the coordinator's keys.
    async fn ledger(&self) -> Result<Ledger> {
        let domain = self.cluster.domain();
        let key = AuditKey::read(&domain.layout().coordinator_audit_key())?;
        let bus = self.cluster.connect(Role::LedgerWriter, "filler").await;
        Ok(Ledger::new(bus, key, domain.trust().clone(), PATIENCE))
    }

    /// Starts a coordinator. Returns the seconds until it leads and accepts requests.
    async fn start(&mut self, name: &str) -> Result<f64> {
        let started = Instant::now();
        self.cluster.spawn_coordinator(name);
        let coordinator = self.cluster.process(name);
        coordinator.wait_ready_within(START_MAX).await;
        Ok(started.elapsed().as_secs_f64())
    }

    async fn stop(&mut self, name: &str) {
        self.cluster.kill9(name);
    }

    /// Waits for the first checkpoint and returns its size in bytes.
    async fn checkpoint(&self) -> Result<u64> {
        let ledger = self.ledger().await?;
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            match ledger.newest_checkpoint().await? {
                Named::Checkpoint(checkpoint, _) => {
                    ensure!(checkpoint.covers > ChainSequence(0), "it covers nothing");
                    return Ok(checkpoint.object.bytes.get());
                }
                Named::Unfit(reason) => bail!("the checkpoint is not used: {reason}"),
                Named::None => tokio::task::yield_now().await,
            }
        }
        bail!("no checkpoint was saved")
    }
}

/// All events of one run in the ledger.
fn run_events(number: u64) -> impl Iterator<Item = NewEvent> {
    let run: RunId = format!("run-{number}").parse().expect("a name");
    let spec = spec(&run);
    let mut first = vec![LedgerEvent::RunCreated {
        spec: Box::new(spec.clone()),
        operator: kit::operator(),
    }];
    first.extend((0..UNITS).map(|number| {
        kit::joined(
            kit::worker(number),
            kit::account(1),
            kit::join_request(number),
        )
    }));
    let rounds = (0..ROUNDS).flat_map(move |round| round_events(&spec, round));
    let events = first.into_iter().chain(rounds);
    let events = events.chain([LedgerEvent::RunCompleted]);
    events.map(move |event| NewEvent {
        time: clock::now(),
        run: Some(run.clone()),
        event,
    })
}

fn round_events(spec: &RunSpec, round: u64) -> Vec<LedgerEvent> {
    let run = &spec.run;
    let lease = |unit: u32| kit::lease(kit::train(round, unit), 1);
    let mut events = vec![LedgerEvent::RoundOpened {
        round: Round(round),
    }];
    events.extend((0..UNITS).map(|unit| LedgerEvent::LeaseGranted {
        lease: lease(unit),
        worker: kit::worker(unit),
    }));
    events.extend((0..UNITS).map(|unit| {
        let name = format!("{run} {round} {unit}");
        LedgerEvent::ContributionAccepted {
            lease: lease(unit),
            worker: kit::worker(unit),
            contribution: Box::new(kit::contribution(spec, chunks(&name))),
            norm: 1.5,
            statement: Digest::of(name.as_bytes()),
            signature: ByteArray::new([7; 64]),
            provenance: Some(ByteArray::new([8; 64])),
        }
    }));
    let input = |unit: u32| SealedInput {
        unit: UnitIndex(unit),
        epoch: Epoch(1),
        weight: Weight(spec.unit_tokens().get()),
    };
    events.push(LedgerEvent::RoundSealed {
        round: Round(round),
        fragment: Fragment::FIRST,
        inputs: (0..UNITS).map(input).collect(),
        left_out: Vec::new(),
        rest: 0,
    });
    let weights = chunks(&format!("weights {run} {round}"));
    events.push(LedgerEvent::RoundClosed {
        round: Round(round),
        fragment: Fragment::FIRST,
        broadcast: kit::weights(round + 1, spec.download, weights),
        norm: 1.0,
        tokens: Tokens(spec.unit_tokens().get() * u64::from(UNITS)),
    });
    events.push(LedgerEvent::SnapshotSaved {
        round: Round(round + 1),
        manifest: kit::object(&format!("snapshot {run} {round}")),
        statement: Some(kit::object(&format!("statement {run} {round}"))),
    });
    events
}

fn chunks(name: &str) -> Vec<ObjectRef> {
    let chunk = |chunk: usize| kit::sized(&format!("{name} {chunk}"), 8 << 20);
    (0..CHUNKS).map(chunk).collect()
}

fn spec(run: &RunId) -> RunSpec {
    let spec = kit::run_spec().run(run.clone()).rounds(ROUNDS).units(UNITS);
    let spec = spec.chunk_elements(4 << 20).initial(chunks("initial"));
    spec.build()
}
