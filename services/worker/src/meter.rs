//! Counts of a worker over its life, for its heartbeats.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use objects::Moved;
use schemas::limits::{LOSS_MAX, SPEED_MAX};
use schemas::telemetry::{Heartbeat, WorkerMetrics};
use schemas::{Bytes, Millis, Tokens, V};
use worker_core::Pulse;

/// Counters that the parts of the process share.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    tokens: AtomicU64,
    /// The transfers count these bytes as they move.
    bytes_up: Arc<AtomicU64>,
    bytes_down: Arc<AtomicU64>,
    /// Bits of an `f64`; 0 before the first step.
    tokens_per_second: AtomicU64,
    /// Bits of an `f64`; 0 before the first step.
    loss: AtomicU64,
    /// The transfers count these.
    transfer_failures: Arc<AtomicU64>,
    /// Microseconds spent in each lane.
    lanes: [AtomicU64; 4],
    /// Bytes of device memory; 0 where the trainer does not report it.
    device_memory: AtomicU64,
}

/// A use of a worker's time, as heartbeats count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkLane {
    Fetch,
    Train,
    Encode,
    Upload,
}

/// Counts the time until it is dropped, even if the measured work is broken off.
pub(crate) struct Timed<'a> {
    meter: &'a Meter,
    lane: WorkLane,
    begun: Instant,
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.meter.spent(self.lane, self.begun.elapsed());
    }
}

/// The weight of the newest step in the shown speed.
const NEWEST: f64 = 0.2;

impl Meter {
    /// A meter that shows the count of `moved`.
    pub(crate) fn of(moved: Moved) -> Self {
        Self {
            bytes_up: moved.up,
            bytes_down: moved.down,
            transfer_failures: moved.failures,
            ..Self::default()
        }
    }

    /// Bytes that were transferred in both directions; a renewal reports them as progress.
    pub(crate) fn moved(&self) -> Bytes {
        Bytes(
            self.bytes_up
                .load(Ordering::Relaxed)
                .saturating_add(self.bytes_down.load(Ordering::Relaxed)),
        )
    }

    /// Counts time in a lane from now on.
    pub(crate) fn timed(&self, lane: WorkLane) -> Timed<'_> {
        Timed {
            meter: self,
            lane,
            begun: Instant::now(),
        }
    }

    fn spent(&self, lane: WorkLane, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.lanes[lane as usize].fetch_add(took, Ordering::Relaxed);
    }

    /// Counts an inner step. Only the training thread calls this.
    pub(crate) fn stepped(&self, tokens: Tokens, loss: f64, took: Duration) {
        self.tokens.fetch_add(tokens.get(), Ordering::Relaxed);
        self.spent(WorkLane::Train, took);
        self.loss.store(loss.to_bits(), Ordering::Relaxed);
        let speed = tokens.get() as f64 / took.as_secs_f64().max(1e-6);
        let before = f64::from_bits(self.tokens_per_second.load(Ordering::Relaxed));
        let shown = if before == 0.0 {
            speed
        } else {
            before + NEWEST * (speed - before)
        };
        self.tokens_per_second
            .store(shown.to_bits(), Ordering::Relaxed);
    }

    /// Notes the device memory that the trainer holds. Only the training thread calls this.
    pub(crate) fn holds(&self, device_memory: Option<Bytes>) {
        let bytes = device_memory.map_or(0, Bytes::get);
        self.device_memory.store(bytes, Ordering::Relaxed);
    }

    /// A heartbeat from the core's part and the counts of this meter.
    pub(crate) fn heartbeat(&self, pulse: Pulse) -> Heartbeat {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let lane = |lane: WorkLane| Millis(read(&self.lanes[lane as usize]) / 1000);
        let loss = f64::from_bits(read(&self.loss));
        Heartbeat {
            v: V,
            session: pulse.session,
            phase: pulse.phase,
            lease: pulse.lease,
            steps_done: pulse.steps_done,
            tokens: Tokens(read(&self.tokens)),
            tokens_per_second: f64::from_bits(read(&self.tokens_per_second)).min(SPEED_MAX),
            // A loss that is no number ends its unit, and is not shown.
            loss: (loss != 0.0 && (0.0..=LOSS_MAX).contains(&loss)).then_some(loss),
            bytes_up: Bytes(read(&self.bytes_up)),
            bytes_down: Bytes(read(&self.bytes_down)),
            metrics: WorkerMetrics {
                fetch: lane(WorkLane::Fetch),
                train: lane(WorkLane::Train),
                encode: lane(WorkLane::Encode),
                upload: lane(WorkLane::Upload),
                transfer_failures: read(&self.transfer_failures),
                device_memory: Some(Bytes(read(&self.device_memory)))
                    .filter(|bytes| *bytes != Bytes(0)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::member::Session;
    use schemas::telemetry::Phase;
    use schemas::{Steps, V};

    use super::*;

    #[test]
    fn the_memory_of_a_device_is_told_while_a_trainer_tells_it() {
        let meter = Meter::default();
        let pulse = || Pulse {
            session: Session(1),
            phase: Phase::Training,
            lease: None,
            steps_done: Steps(0),
        };
        let told = || meter.heartbeat(pulse()).metrics.device_memory;
        assert_eq!((meter.heartbeat(pulse()).v, told()), (V, None));
        meter.holds(Some(Bytes(7 << 30)));
        assert_eq!(told(), Some(Bytes(7 << 30)));
        meter.holds(None);
        assert_eq!(told(), None);
    }
}
