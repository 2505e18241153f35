//! The grants at the start of a large round, appended to a real stream that syncs every write: all
//! together, as the coordinator does it, and one after another.

use std::time::Instant;

use anyhow::{Context as _, Result};
use async_nats::jetstream::{self, stream};
use diloco_coordinator::{Ledger, NewEvent};
use harness::NatsServer;
use identity::{AuditKey, ManifestKey};
use runtime::{Bus, BusConfig, clock};
use schemas::event::LedgerEvent;
use schemas::lease::{LeaseRef, UnitId, UnitKind};
use schemas::subject::{LEDGER_FILTER, LEDGER_STREAM};
use schemas::{Epoch, Round, RunId, UnitIndex, WorkerId};

use crate::Effort;
use crate::row::{Reach, Row};

/// Units of the round.
const UNITS: u32 = 1000;
/// The longest wait for a broker that does not answer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// The rows of this bench.
pub(crate) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let (rounds, alone) = match effort {
        Effort::Full => (15, 400),
        Effort::Quick => (2, 20),
    };
    let (_server, mut ledger) = open().await?;
    let mut together = Vec::with_capacity(rounds);
    for round in 0..rounds as u64 {
        let events: Vec<NewEvent> = (0..UNITS).map(|unit| granted(round, unit)).collect();
        let started = Instant::now();
        ledger.append(events).await?;
        together.push(started.elapsed().as_secs_f64());
    }
    let mut one = Vec::with_capacity(alone as usize);
    for unit in 0..alone {
        let started = Instant::now();
        ledger.append([granted(rounds as u64, unit)]).await?;
        one.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let note = "written, signed, stored; sync_interval: always";
    Ok(vec![
        Row::new(format!("{UNITS} grants appended together"), "s", together)
            .reach(Reach::AtMost(0.25))
            .note(note),
        Row::new("one grant appended", "ms", one).note(note),
    ])
}

async fn open() -> Result<(NatsServer, Ledger)> {
    let scratch = tempfile::tempdir().context("no scratch folder")?;
    let config = "jetstream { store_dir: \"data\", sync_interval: always }\n";
    let server = NatsServer::start(scratch, config).await;
    let config = BusConfig {
        url: format!("nats://{}", server.address()),
        ..BusConfig::default()
    };
    let bus = Bus::connect("bench", &config, clock::now()).await?;
    let stream = stream::Config {
        name: LEDGER_STREAM.into(),
        subjects: vec![LEDGER_FILTER.into()],
        allow_atomic_publish: true,
        ..stream::Config::default()
    };
    let jetstream = jetstream::new(bus.client().clone());
    let made = jetstream.create_stream(stream).await;
    made.context("the server takes no stream")?;
    let key = AuditKey::generate();
    let trust = kit::trust(ManifestKey::generate().public(), key.public());
    let mut ledger = Ledger::new(bus, key, trust, PATIENCE);
    ledger.catch_up(|_| Ok::<(), String>(())).await?;
    Ok((server, ledger))
}

fn granted(round: u64, unit: u32) -> NewEvent {
    let run: RunId = "bench".parse().expect("a name");
    let worker: WorkerId = format!("U{}", "A".repeat(55)).parse().expect("a key");
    let lease = LeaseRef {
        unit: UnitId {
            round: Round(round),
            kind: UnitKind::Train,
            index: UnitIndex(unit),
        },
        epoch: Epoch(1),
    };
    NewEvent {
        time: clock::now(),
        run: Some(run),
        event: LedgerEvent::LeaseGranted { lease, worker },
    }
}
