//! Reads a written history: a coordinator's start reads its ledger, and an auditor replays its
//! copy. Both read a real stream from its first message, check every signature and fold the events.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use diloco_audit::Replay;
use diloco_coordinator::NewEvent;
use ledger::State;
use runtime::{Bus, StreamReader, clock};
use schemas::Round;
use schemas::event::{LeaseEnd, LedgerEvent};
use schemas::member::Posture;
use schemas::run::{RunSpec, TrainerKind};
use schemas::subject::AUDIT_STREAM;

use crate::Effort;
use crate::cluster_run::processor_seconds;
use crate::ledger_stream::{LedgerStream, PATIENCE};
use crate::row::{Reach, Row};

/// Pause between two looks at the copy until it is whole.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Events that are appended together.
const TOGETHER: usize = 1000;

/// A ledger in a real stream, and its copy.
struct Scene {
    stream: LedgerStream,
    /// A connection on which an auditor reads the copy.
    auditor: Bus,
}

/// Measures the rows of this bench.
pub(crate) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let (count, samples) = match effort {
        Effort::Full => (15_000, 7),
        Effort::Quick => (1500, 1),
    };
    let scene = Scene::open().await?;
    scene.write(count).await?;
    let (mut starts, mut replays, mut cores) = (vec![], vec![], vec![]);
    for _ in 0..samples {
        starts.push(scene.start(count).await?);
        let (seconds, core_seconds) = scene.replay(count).await?;
        replays.push(count as f64 / seconds);
        cores.push(count as f64 / core_seconds);
    }
    let start = "read by single questions, every signature checked, folded";
    let replay = "read many at a time across accounts, every signature checked, folded";
    Ok(vec![
        Row::new(
            format!("start with a ledger of {count} events"),
            "s",
            starts,
        )
        .reach(Reach::AtMost(0.4))
        .note(start),
        Row::new("audit replay, events a second", "1/s", replays)
            .reach(Reach::AtLeast(40_000.0))
            .note(replay),
        Row::new(
            "audit replay, events a second of the auditor's processor time",
            "1/s",
            cores,
        )
        .note("the broker's own time is not in it"),
    ])
}

impl Scene {
    async fn open() -> Result<Self> {
        let stream = LedgerStream::open().await?;
        let auditor = stream.copy().await?;
        Ok(Self { stream, auditor })
    }

    /// Appends the next `count` events and waits for their copies.
    async fn write(&self, count: usize) -> Result<()> {
        let mut ledger = self.stream.ledger();
        ledger.catch_up(|_| Ok::<(), String>(())).await?;
        let events: Vec<NewEvent> = self.events().take(count).collect();
        for together in events.chunks(TOGETHER) {
            ledger.append(together.to_vec()).await?;
        }
        let copy = StreamReader::new(self.auditor.clone(), AUDIT_STREAM);
        let copied = async {
            while copy.span().await?.last < count as u64 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, copied)
            .await
            .context("the ledger is not copied")?
    }

    /// The events of a run with one worker, which takes a unit and gives it back, for ever.
    fn events(&self) -> impl Iterator<Item = NewEvent> {
        let (worker, account) = (kit::worker(0), self.stream.trust.tenants[0].clone());
        let started = LedgerEvent::CoordinatorStarted {
            release: "0".to_owned(),
            posture: Posture::default(),
            session: kit::session(1),
        };
        let created = LedgerEvent::RunCreated {
            spec: Box::new(spec()),
            operator: kit::operator(),
        };
        let joined = kit::joined(worker.clone(), account, kit::join_request(0));
        let opened = LedgerEvent::RoundOpened { round: Round(0) };
        let leases = (1..).flat_map(move |epoch| {
            let lease = kit::lease(kit::train(0, 0), epoch);
            let granted = LedgerEvent::LeaseGranted {
                lease,
                worker: worker.clone(),
            };
            let ended = LedgerEvent::LeaseEnded {
                lease,
                worker: worker.clone(),
                cause: LeaseEnd::Released,
                tokens: spec().unit_tokens(),
            };
            [granted, ended]
        });
        let time = clock::now();
        let of_nobody = std::iter::once((None, started));
        let of_run = [created, joined, opened].into_iter().chain(leases);
        of_nobody
            .chain(of_run.map(|event| (Some(kit::run_id()), event)))
            .map(move |(run, event)| NewEvent { time, run, event })
    }

    /// Seconds from an open connection to the state after the last event.
    async fn start(&self, count: usize) -> Result<f64> {
        let (mut ledger, mut state) = (self.stream.ledger(), State::default());
        let started = Instant::now();
        ledger.catch_up(|body| state.follow(&body)).await?;
        let seconds = started.elapsed().as_secs_f64();
        anyhow::ensure!(ledger.len() == count as u64, "{} events", ledger.len());
        Ok(seconds)
    }

    /// Seconds of a replay, and the processor time of this process during it.
    async fn replay(&self, count: usize) -> Result<(f64, f64)> {
        let used = processor_seconds(std::process::id())?;
        let started = Instant::now();
        let mut replay = Replay::open(&self.auditor, &self.stream.trust).await?;
        replay.run(PATIENCE, &mut |_| {}).await?;
        let seconds = started.elapsed().as_secs_f64();
        let used = processor_seconds(std::process::id())? - used;
        let verified = replay.auditor().summary().verified;
        anyhow::ensure!(verified == count as u64, "{verified} events verified");
        Ok((seconds, used))
    }
}

fn spec() -> RunSpec {
    let spec = kit::run_spec().rounds(1).units(1);
    spec.trainer(TrainerKind::Synthetic).build()
}
