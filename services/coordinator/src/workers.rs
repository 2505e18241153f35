//! The metrics of workers: the last report of each about itself that the core accepted.
//!
//! At most [`SHOWN_MAX`] workers are shown at a time, and none that was silent for [`SHOWN_FOR`].
//! The labels are the run and the worker's key; the protocol checks the form of both.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runtime::metrics::{
    self, Samples, WORKER_BYTES, WORKER_DEVICE_MEMORY, WORKER_LANE_SECONDS, WORKER_LOSS,
    WORKER_SPEED, WORKER_STEPS, WORKER_TOKENS, WORKER_TRANSFER_FAILURES, WORKERS_NOT_SHOWN,
};
use schemas::telemetry::Heartbeat;
use schemas::{RunId, WorkerId};
use tokio::time::Instant;

/// Most workers whose metrics are shown: each has a dozen.
const SHOWN_MAX: usize = 512;
/// Silence after which a worker is no longer shown; a worker sends something every few seconds.
const SHOWN_FOR: Duration = Duration::from_secs(60);

/// The newest heartbeat of each worker. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workers(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    heard: BTreeMap<(RunId, WorkerId), (Heartbeat, Instant)>,
    /// Workers whose heartbeats found no place since the last look.
    left_out: BTreeMap<(RunId, WorkerId), Instant>,
}

impl Workers {
    /// Starts to show them on the page of metrics.
    pub(crate) fn shown() -> Self {
        let workers = Self::default();
        let shown = workers.clone();
        metrics::also(move |samples| shown.tell(Instant::now(), samples));
        workers
    }

    /// Takes the newest heartbeat of a worker.
    pub(crate) fn heard(&self, run: RunId, worker: WorkerId, heartbeat: Heartbeat) {
        let mut table = self.0.lock().expect("no holder panics");
        table.take((run, worker), heartbeat, Instant::now());
    }

    fn tell(&self, now: Instant, samples: &mut Samples) {
        let mut table = self.0.lock().expect("no holder panics");
        table.forget(now);
        for ((run, worker), (heartbeat, _)) in &table.heard {
            let labels = [("run", run.as_str()), ("worker", worker.as_str())];
            tell(samples, labels, heartbeat);
        }
        samples.add(WORKERS_NOT_SHOWN, &[], table.left_out.len() as f64);
    }
}

impl Table {
    fn take(&mut self, who: (RunId, WorkerId), heartbeat: Heartbeat, now: Instant) {
        if self.heard.len() >= SHOWN_MAX && !self.heard.contains_key(&who) {
            self.forget(now);
        }
        if self.heard.len() < SHOWN_MAX || self.heard.contains_key(&who) {
            self.left_out.remove(&who);
            self.heard.insert(who, (heartbeat, now));
        } else if self.left_out.len() < SHOWN_MAX || self.left_out.contains_key(&who) {
            self.left_out.insert(who, now);
        }
    }

    fn forget(&mut self, now: Instant) {
        let is_new = |at: &Instant| now.duration_since(*at) < SHOWN_FOR;
        self.heard.retain(|_, (_, at)| is_new(at));
        self.left_out.retain(|_, at| is_new(at));
    }
}

fn tell(samples: &mut Samples, of: [(&str, &str); 2], heartbeat: &Heartbeat) {
    let Heartbeat {
        steps_done,
        tokens,
        tokens_per_second,
        loss,
        bytes_up,
        bytes_down,
        metrics,
        ..
    } = heartbeat;
    samples.add(WORKER_TOKENS, &of, tokens.get() as f64);
    samples.add(WORKER_SPEED, &of, *tokens_per_second);
    samples.add(WORKER_STEPS, &of, steps_done.get() as f64);
    if let Some(loss) = loss {
        samples.add(WORKER_LOSS, &of, *loss);
    }
    for (way, bytes) in [("up", bytes_up), ("down", bytes_down)] {
        let labels = [of[0], of[1], ("way", way)];
        samples.add(WORKER_BYTES, &labels, bytes.get() as f64);
    }
    for (lane, spent) in metrics.lanes() {
        let labels = [of[0], of[1], ("lane", lane)];
        let seconds = spent.as_duration().as_secs_f64();
        samples.add(WORKER_LANE_SECONDS, &labels, seconds);
    }
    let failures = metrics.transfer_failures as f64;
    samples.add(WORKER_TRANSFER_FAILURES, &of, failures);
    if let Some(memory) = metrics.device_memory {
        samples.add(WORKER_DEVICE_MEMORY, &of, memory.get() as f64);
    }
}

#[cfg(test)]
mod tests {
    use schemas::member::Session;
    use schemas::telemetry::{Phase, WorkerMetrics};
    use schemas::{Bytes, Millis, Steps, Tokens, V};

    use super::*;

    fn heartbeat(tokens: u64) -> Heartbeat {
        Heartbeat {
            v: V,
            session: Session(1),
            phase: Phase::Training,
            lease: None,
            steps_done: Steps(3),
            tokens: Tokens(tokens),
            tokens_per_second: 2.5,
            loss: Some(1.25),
            bytes_up: Bytes(1),
            bytes_down: Bytes(2),
            metrics: WorkerMetrics {
                train: Millis(1500),
                ..WorkerMetrics::default()
            },
        }
    }

    fn who(number: usize) -> (RunId, WorkerId) {
        let digits: String = format!("{number:06}")
            .bytes()
            .map(|digit| char::from(digit - b'0' + b'A'))
            .collect();
        let worker = format!("U{digits:B>55}");
        (
            "demo".parse().expect("a run name"),
            worker.parse().expect("the form of a user key"),
        )
    }

    fn page(workers: &Workers, now: Instant) -> String {
        let mut samples = Samples::default();
        workers.tell(now, &mut samples);
        samples.render()
    }

    #[tokio::test]
    async fn each_worker_is_shown_with_its_run_until_it_falls_silent() {
        let workers = Workers::default();
        for (number, tokens) in [(1, 5), (2, 6), (1, 7)] {
            let (run, worker) = who(number);
            workers.heard(run, worker, heartbeat(tokens));
        }
        let now = Instant::now();
        let (run, worker) = who(1);
        let text = page(&workers, now);
        let labels = format!("run=\"{run}\",worker=\"{worker}\"");
        for line in [
            format!("diloco_worker_tokens_total{{{labels}}} 7\n"),
            format!("diloco_worker_loss{{{labels}}} 1.25\n"),
            format!("diloco_worker_bytes_total{{{labels},way=\"down\"}} 2\n"),
            format!("diloco_worker_lane_seconds_total{{{labels},lane=\"train\"}} 1.5\n"),
        ] {
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert!(!text.contains("device_memory"), "it is not known");
        assert!(!page(&workers, now + SHOWN_FOR).contains("demo"));
    }

    #[tokio::test]
    async fn however_many_there_are_the_page_is_bounded() {
        let workers = Workers::default();
        for number in 0..3 * SHOWN_MAX {
            let (run, worker) = who(number);
            workers.heard(run, worker, heartbeat(1));
        }
        let text = page(&workers, Instant::now());
        let lines = text.lines();
        let shown = lines.filter(|line| line.starts_with("diloco_worker_tokens_total{"));
        assert_eq!(shown.count(), SHOWN_MAX);
        let left_out = format!("diloco_workers_not_shown {SHOWN_MAX}\n");
        assert!(text.contains(&left_out), "at least so many");
    }
}
