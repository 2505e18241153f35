//! The content of the picture, read from the output of `diloctl`. Nothing is remembered from the
//! run.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::items;

/// A run as its signed record tells it. Times are seconds since the run was created.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Held-out loss of each round's weights, in nats a token, at the time when the weights were
    /// made.
    pub(super) held_out: Vec<(f64, f64)>,
    /// Time, mean training loss in nats a token, and the worker's lane, for each accepted
    /// contribution.
    pub(super) training: Vec<(f64, f64, usize)>,
    /// The time at which each round opened.
    pub(super) rounds: Vec<f64>,
    /// One lane for each worker; the one that lost a lease comes last.
    pub(super) lanes: Vec<WorkerHistory>,
    /// The time at which the run ended.
    pub(super) end: f64,
    /// Entropy of the training text when each byte is guessed from the one before it.
    pub(super) bigram: f64,
}

/// One worker.
#[derive(Debug, Default)]
pub(super) struct WorkerHistory {
    /// The times at which the worker joined: two or more if it came back.
    pub(super) joined: Vec<f64>,
    /// The leases that the worker held, in order.
    pub(super) leases: Vec<Lease>,
}

/// A lease from its grant to its end.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) unit: String,
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) end: End,
}

/// The end of a lease.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// A result was accepted.
    Result,
    /// The lease ended without a result.
    Lost,
}

impl Lease {
    /// True for a training unit: an evaluation has its name in the same place.
    fn is_training(&self) -> bool {
        self.unit.contains("train")
    }
}

impl Record {
    /// Reads the answers of `audit replay`, `round ls`, `run get` and `data ls`.
    ///
    /// # Errors
    /// An answer lacks something that every complete run has.
    pub(super) fn read(
        timeline: &Value,
        rounds: &Value,
        run: &Value,
        data: &Value,
    ) -> Result<Self> {
        let begin = items(timeline)
            .iter()
            .find(|row| row["kind"] == "run-created")
            .and_then(|row| row["time"].as_u64())
            .context("the record has no run-created")?;
        let seconds = |time: &Value| -> Result<f64> {
            let time = time.as_u64().context("a time is missing")?;
            Ok(time.saturating_sub(begin) as f64 / 1000.0)
        };
        let mut record = Self::default();
        let mut lanes: BTreeMap<String, WorkerHistory> = BTreeMap::new();
        let mut training = Vec::new();
        for row in items(timeline) {
            if row["emitter"] != "coordinator" {
                continue;
            }
            let text = |field: &str| row[field].as_str().unwrap_or_default();
            let (kind, about, detail) = (text("kind"), text("about"), text("detail"));
            let at = seconds(&row["time"])?;
            match kind {
                "round-opened" => record.rounds.push(at),
                "run-completed" => record.end = at,
                "worker-joined" => lanes.entry(about.to_owned()).or_default().joined.push(at),
                "lease-granted" => lanes
                    .entry(word_after(detail, "to ")?)
                    .or_default()
                    .leases
                    .push(Lease {
                        unit: about.to_owned(),
                        from: at,
                        to: at,
                        end: End::Lost,
                    }),
                "lease-ended" | "contribution-accepted" | "evaluation-accepted" => {
                    let worker = word_after(detail, "of ")?;
                    let lease = lanes
                        .get_mut(&worker)
                        .and_then(|lane| {
                            lane.leases
                                .iter_mut()
                                .rev()
                                .find(|lease| lease.unit == about)
                        })
                        .with_context(|| format!("lease {about} was never granted"))?;
                    lease.to = at;
                    if kind != "lease-ended" {
                        lease.end = End::Result;
                    }
                    if kind == "contribution-accepted" {
                        let loss: f64 = word_after(detail, "loss ")?.parse()?;
                        training.push((at, loss, worker));
                    }
                }
                _ => {}
            }
        }
        let mut named: Vec<(String, WorkerHistory)> = lanes.into_iter().collect();
        named.sort_by_key(|(_, lane)| lane.leases.iter().any(|lease| lease.end == End::Lost));
        for (at, loss, worker) in training {
            let lane = named.iter().position(|(name, _)| *name == worker);
            record
                .training
                .push((at, loss, lane.context("every worker has a lane")?));
        }
        record.lanes = named.into_iter().map(|(_, lane)| lane).collect();
        for round in items(rounds) {
            if let Some(loss) = round["held_out_loss"].as_f64() {
                record.held_out.push((seconds(&round["opened_at"])?, loss));
            }
        }
        let closed = items(rounds).last().context("the run has no round")?;
        let last = run["view"]["held_out_loss"][1]
            .as_f64()
            .context("the run has no held-out loss")?;
        record.held_out.push((seconds(&closed["closed_at"])?, last));
        record.bigram = items(data)
            .last()
            .and_then(|set| set["bigram_nats"].as_f64())
            .context("there is no data set")?;
        Ok(record)
    }

    /// Checks that the record shows the story of the picture.
    ///
    /// # Errors
    /// The loss did not fall, no unit was lost and done by another worker, or the worker that lost
    /// it did not come back to work.
    pub(super) fn tells_the_story(&self) -> Result<()> {
        let (first, last) = (self.held_out.first(), self.held_out.last());
        ensure!(
            first
                .zip(last)
                .is_some_and(|(first, last)| last.1 < first.1),
            "the held-out loss did not fall: {:?}",
            self.held_out
        );
        let victim = self.lanes.last().context("there are no workers")?;
        let lost = victim
            .leases
            .iter()
            .find(|lease| lease.end == End::Lost && lease.is_training())
            .context("no training unit was lost")?;
        let unit = lost.unit.split('@').next();
        ensure!(
            self.lanes
                .iter()
                .any(|lane| lane
                    .leases
                    .iter()
                    .any(|lease| lease.unit.split('@').next() == unit && lease.end == End::Result)),
            "unit {} was lost and nobody did it",
            lost.unit
        );
        // Where rounds are shorter than a lease, its return itself ends the lease.
        let back = victim.joined.last().filter(|back| **back >= lost.to);
        let back = back.context("the killed worker did not come back")?;
        ensure!(
            victim
                .leases
                .iter()
                .any(|lease| lease.from > *back && lease.end == End::Result),
            "the killed worker came back and did nothing"
        );
        Ok(())
    }
}

/// The word after `before` in a detail of the timeline.
fn word_after(detail: &str, before: &str) -> Result<String> {
    detail
        .split_once(before)
        .and_then(|(_, rest)| rest.split([' ', ',']).next())
        .map(str::to_owned)
        .with_context(|| format!("no word after {before:?} in {detail:?}"))
}
