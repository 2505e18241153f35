//! The grants at the start of a large round, appended to a real stream that syncs every write: once
//! all together, as the coordinator appends them, and once one after another.

use std::time::Instant;

use anyhow::Result;
use diloco_coordinator::NewEvent;
use runtime::clock;
use schemas::event::LedgerEvent;

use crate::Effort;
use crate::ledger_stream::LedgerStream;
use crate::row::{Reach, Row};

/// Units of the round.
const UNITS: u32 = 1000;

/// Measures the rows of this bench.
pub(crate) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let (rounds, alone) = match effort {
        Effort::Full => (15, 400),
        Effort::Quick => (2, 20),
    };
    let stream = LedgerStream::open().await?;
    let mut ledger = stream.ledger();
    ledger.catch_up(|_| Ok::<(), String>(())).await?;
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

fn granted(round: u64, unit: u32) -> NewEvent {
    NewEvent {
        time: clock::now(),
        run: Some(kit::run_id()),
        event: LedgerEvent::LeaseGranted {
            lease: kit::lease(kit::train(round, unit), 1),
            worker: kit::worker(unit),
        },
    }
}
