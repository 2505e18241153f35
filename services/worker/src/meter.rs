//! What a worker counts while it lives, for its heartbeats.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use objects::Moved;
use schemas::limits::{LOSS_MAX, SPEED_MAX};
use schemas::telemetry::Heartbeat;
use schemas::{Bytes, Tokens, V};
use worker_core::Pulse;

/// Counters that the parts of the process share.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    tokens: AtomicU64,
    /// Counted by the transfers while objects are on their way.
    bytes_up: Arc<AtomicU64>,
    bytes_down: Arc<AtomicU64>,
    /// Bits of an `f64`; 0 before the first step.
    tokens_per_second: AtomicU64,
    /// Bits of an `f64`; 0 before the first step.
    loss: AtomicU64,
}

/// The weight of the newest step in the shown speed.
const NEWEST: f64 = 0.2;

impl Meter {
    /// A meter that shows what `moved` counts.
    pub(crate) fn of(moved: Moved) -> Self {
        Self {
            bytes_up: moved.up,
            bytes_down: moved.down,
            ..Self::default()
        }
    }

    /// Bytes that were moved either way: what a renewal shows as progress.
    pub(crate) fn moved(&self) -> Bytes {
        Bytes(
            self.bytes_up
                .load(Ordering::Relaxed)
                .saturating_add(self.bytes_down.load(Ordering::Relaxed)),
        )
    }

    /// Counts an inner step. Called by the training thread alone.
    pub(crate) fn stepped(&self, tokens: Tokens, loss: f64, took: Duration) {
        self.tokens.fetch_add(tokens.get(), Ordering::Relaxed);
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

    /// A heartbeat from what the core knows and what is counted here.
    pub(crate) fn heartbeat(&self, pulse: Pulse) -> Heartbeat {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let loss = f64::from_bits(read(&self.loss));
        Heartbeat {
            v: V,
            session: pulse.session,
            phase: pulse.phase,
            lease: pulse.lease,
            steps_done: pulse.steps_done,
            tokens: Tokens(read(&self.tokens)),
            tokens_per_second: f64::from_bits(read(&self.tokens_per_second)).min(SPEED_MAX),
            // A loss that is no number ends its unit; it is nothing to show.
            loss: (loss != 0.0 && (0.0..=LOSS_MAX).contains(&loss)).then_some(loss),
            bytes_up: Bytes(read(&self.bytes_up)),
            bytes_down: Bytes(read(&self.bytes_down)),
        }
    }
}
