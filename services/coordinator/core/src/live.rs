//! What is known only while this process lives: held requests, deliveries of offers, when leases end, who was heard.
//! Losing it costs time, never a result.

use std::collections::{BTreeMap, BTreeSet};

use schemas::lease::UnitId;
use schemas::run::RunSpec;
use schemas::telemetry::Heartbeat;
use schemas::{Bytes, Digest, Millis, ObjectRef, Refusal, Steps, UnixMillis, WorkerId};

use crate::draw::Data;
use crate::input::{DeliveryId, ReplyId, ScreeningId};

/// One open run.
#[derive(Debug)]
pub(crate) struct LiveRun {
    /// Objects that members may read: those that the run's settings and its data manifest name.
    pub(crate) readable: BTreeSet<Digest>,
    pub(crate) data: Option<Data>,
    pub(crate) executor: Executor,
    pub(crate) claims: Claims,
    pub(crate) offers: BTreeMap<UnitId, Offered>,
    /// Units that may be granted: open, and delivered or waited for long enough.
    pub(crate) ready: BTreeSet<UnitId>,
    pub(crate) leases: BTreeMap<UnitId, LiveLease>,
    pub(crate) presence: BTreeMap<WorkerId, Presence>,
    /// Requests for objects that wait for the data manifest.
    pub(crate) reads: BTreeMap<WorkerId, Read>,
    /// When the status was published last.
    pub(crate) published_at: UnixMillis,
    /// Whether the run changed since.
    pub(crate) changed: bool,
}

/// The merge executor's hold on the run's weights. It does one thing to them at a time, except that a save runs beside.
#[derive(Debug, Default)]
pub(crate) struct Executor {
    /// Whether it holds the weights of the newest round.
    pub(crate) restored: bool,
    /// Whether it was asked to restore or to merge and has not answered.
    pub(crate) busy: bool,
    /// Whether it was asked to save and has not answered.
    pub(crate) saving: bool,
    /// Failures in a row; decides how long to wait before the next try.
    pub(crate) failures: u32,
    pub(crate) save_failures: u32,
    /// Not before this.
    pub(crate) retry_at: UnixMillis,
    pub(crate) save_at: UnixMillis,
    /// Why the last try failed; nothing once it went well.
    pub(crate) trouble: Option<Refusal>,
    pub(crate) save_trouble: Option<Refusal>,
    /// The weights differ from what the ledger says, or cannot be had: the run gives out no work until a restart.
    pub(crate) halted: Option<Refusal>,
}

/// Held claims in order of arrival; one a worker.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    by_worker: BTreeMap<WorkerId, Claim>,
    order: BTreeMap<u64, WorkerId>,
    arrived: u64,
}

/// A claim that waits for work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) reply: ReplyId,
    pub(crate) until: UnixMillis,
    arrival: u64,
}

/// An offer that was asked for.
#[derive(Debug)]
pub(crate) struct Offered {
    /// Its newest delivery. An older one is of the same message or of a copy; both are settled when they come again.
    pub(crate) delivery: Option<DeliveryId>,
    /// When to look at it again.
    pub(crate) due_at: UnixMillis,
}

/// A lease that is held.
#[derive(Debug)]
pub(crate) struct LiveLease {
    pub(crate) expires_at: UnixMillis,
    pub(crate) steps_done: Steps,
    /// Objects whose upload was granted under it.
    pub(crate) uploads: BTreeSet<Digest>,
    /// Chunks read ahead under it.
    pub(crate) staged: usize,
    /// The check of its result, while it runs; the lease does not expire meanwhile.
    pub(crate) screening: Option<ScreeningId>,
    /// Checks of its results that broke off or did not find the objects.
    pub(crate) checks_failed: u32,
}

/// A member as it was last heard.
#[derive(Debug)]
pub(crate) struct Presence {
    pub(crate) heard_at: UnixMillis,
    pub(crate) heartbeat: Option<Heartbeat>,
}

/// Bytes that the workers of a run fetched, by their own account. What they uploaded and is of use, the ledger tells.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) down: Bytes,
}

impl Traffic {
    /// Adds what a worker moved between two heartbeats. Its counts start again with its process.
    pub(crate) fn add(&mut self, before: Option<&Heartbeat>, now: &Heartbeat) {
        let moved = |before: Option<Bytes>, now: Bytes| {
            before.filter(|before| *before <= now).map_or(now, |before| now - before)
        };
        self.down += moved(before.map(|before| before.bytes_down), now.bytes_down);
    }
}

/// A held request for objects.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) reply: ReplyId,
    pub(crate) objects: Vec<Digest>,
}

impl LiveRun {
    pub(crate) fn new(spec: &RunSpec) -> Self {
        let model = &spec.model;
        let named = [model.config, model.layout, spec.data];
        Self {
            readable: named.iter().chain(&model.initial).map(|object: &ObjectRef| object.digest).collect(),
            data: None,
            executor: Executor::default(),
            claims: Claims::default(),
            offers: BTreeMap::new(),
            ready: BTreeSet::new(),
            leases: BTreeMap::new(),
            presence: BTreeMap::new(),
            reads: BTreeMap::new(),
            published_at: UnixMillis(0),
            changed: true,
        }
    }
}

impl LiveLease {
    pub(crate) fn until(expires_at: UnixMillis) -> Self {
        let (steps_done, uploads) = (Steps(0), BTreeSet::new());
        Self { expires_at, steps_done, uploads, staged: 0, screening: None, checks_failed: 0 }
    }
}

impl Claims {
    /// Holds a claim; gives back the worker's older one, which it replaces.
    pub(crate) fn hold(&mut self, worker: WorkerId, reply: ReplyId, until: UnixMillis) -> Option<Claim> {
        let older = self.take(&worker);
        self.arrived += 1;
        self.order.insert(self.arrived, worker.clone());
        self.by_worker.insert(worker, Claim { reply, until, arrival: self.arrived });
        older
    }

    pub(crate) fn take(&mut self, worker: &WorkerId) -> Option<Claim> {
        let claim = self.by_worker.remove(worker)?;
        self.order.remove(&claim.arrival);
        Some(claim)
    }

    pub(crate) fn get(&self, worker: &WorkerId) -> Option<&Claim> {
        self.by_worker.get(worker)
    }

    /// Whose claims are held, first come first.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = &WorkerId> {
        self.order.values()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Empties it, first come first.
    pub(crate) fn drain(&mut self) -> Vec<ReplyId> {
        let order = std::mem::take(&mut self.order);
        let mut held = std::mem::take(&mut self.by_worker);
        order.values().filter_map(|worker| held.remove(worker)).map(|claim| claim.reply).collect()
    }
}

/// How long to wait after `failures` in a row: 1 s, doubled each time, at most 30 s.
pub(crate) fn backoff(failures: u32) -> Millis {
    Millis::from_secs((1_u64 << failures.saturating_sub(1).min(5)).min(30))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::worker;

    #[test]
    fn claims_are_served_in_order_of_arrival_and_a_newer_one_goes_to_the_end() {
        let mut claims = Claims::default();
        let (a, b) = (worker(1), worker(2));
        assert!(claims.hold(a.clone(), ReplyId(1), UnixMillis(9)).is_none());
        assert!(claims.hold(b.clone(), ReplyId(2), UnixMillis(9)).is_none());
        assert_eq!(claims.in_order().next(), Some(&a));
        assert_eq!(claims.hold(a.clone(), ReplyId(3), UnixMillis(9)).map(|claim| claim.reply), Some(ReplyId(1)));
        assert_eq!(claims.in_order().next(), Some(&b));
        assert_eq!(claims.drain(), [ReplyId(2), ReplyId(3)]);
        assert!(claims.is_empty() && claims.get(&a).is_none());
    }

    #[test]
    fn waits_grow_to_a_bound() {
        let seconds: Vec<u64> = [1, 2, 3, 6, 7, u32::MAX].iter().map(|n| backoff(*n).get() / 1000).collect();
        assert_eq!(seconds, [1, 2, 4, 30, 30, 30]);
    }
}
