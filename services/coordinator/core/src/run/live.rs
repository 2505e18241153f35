//! State that lives only as long as this process: held requests, deliveries of offers, the ends of
//! leases, and when workers were last heard. Losing it costs time, never a result.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use backoff::Backoff;
use ledger::Draw;
use schemas::event::LeaseEnd;
use schemas::lease::{LeaseRef, UnitId};
use schemas::run::RunSpec;
use schemas::telemetry::Heartbeat;
use schemas::{
    Bytes, Digest, Millis, ObjectRef, Refusal, Round, Steps, SyncId, UnixMillis, WorkerId,
};

use crate::input::{DeliveryId, Merged, ReplyId, ScreeningId};
use crate::run::failures::Failures;
use crate::run::leases::{FETCH_AGE_MAX, LEASE_AGE_MAX};
use crate::run::lists::Lists;
use crate::run::masking::Agreement;
use crate::run::results::Screening;
use crate::run::spare::UnitTimes;

/// One open run.
#[derive(Debug)]
pub(crate) struct LiveRun {
    /// Objects that members may read: those that the run's settings and its data manifest name.
    pub(crate) readable: BTreeSet<Digest>,
    pub(crate) data: Option<Draw>,
    pub(crate) lists: Lists,
    pub(crate) foundry: Foundry,
    /// The time at which a privacy budget that keeps all members from an open unit ends the run.
    pub(crate) budget_ends_at: Option<UnixMillis>,
    /// The agreement on masks, in a run with secure aggregation.
    pub(crate) agreement: Agreement,
    pub(crate) claims: Claims,
    pub(crate) offers: BTreeMap<UnitId, Offered>,
    /// One for each lease that the ledger holds.
    pub(crate) leases: BTreeMap<UnitId, LiveLease>,
    /// Results that are being checked.
    pub(crate) screenings: BTreeMap<ScreeningId, Screening>,
    /// Units that failed and have no result yet.
    pub(crate) failures: BTreeMap<UnitId, Failures>,
    /// The reason of each worker's last failure; kept when it leaves, to say why nobody is left.
    pub(crate) last_failures: BTreeMap<WorkerId, Refusal>,
    /// Failures of all workers since one of them had a result.
    pub(crate) failed_in_a_row: u32,
    /// The last lease of each worker that ended because it made no progress; the worker is told so
    /// when it asks.
    pub(crate) stalled: BTreeMap<WorkerId, (LeaseRef, Refusal)>,
    pub(crate) spans: UnitTimes,
    /// True while evaluations come before training, since too many wait.
    pub(crate) catching_up: bool,
    pub(crate) presence: BTreeMap<WorkerId, Presence>,
    /// The bytes that each worker reports as moved, over all its processes.
    pub(crate) moved: BTreeMap<WorkerId, Traffic>,
    /// The bytes that all of them report as moved.
    pub(crate) traffic: Traffic,
    /// Uploads of each worker that are part of no result that counts.
    pub(crate) unused: BTreeMap<WorkerId, Unused>,
    /// Joins and leases of each worker that led to events since its last result that counts. An
    /// entry outlives the membership, since leaving would clear it otherwise; the size of the
    /// roster bounds the number of entries.
    pub(crate) fruitless: BTreeMap<WorkerId, DecayingCount>,
    /// Requests for objects that wait for the data manifest, or for a list of chunks.
    pub(crate) reads: BTreeMap<WorkerId, HeldRead>,
    /// The time at which the status was published last.
    pub(crate) published_at: UnixMillis,
    /// True if the run changed since then.
    pub(crate) changed: bool,
}

/// The core's knowledge of the run's foundry, which does one thing to the weights at a time, except
/// that a save runs beside.
#[derive(Debug, Default)]
pub(crate) struct Foundry {
    /// True when it holds the weights of the newest round.
    pub(crate) restored: bool,
    /// True while it restores weights that are not the run's any more.
    pub(crate) outdated: bool,
    /// Its unfinished order on the weights.
    pub(crate) task: Option<WeightsTask>,
    /// The round whose contributions it compares. It does that beside everything else.
    pub(crate) comparing: Option<Round>,
    /// The outcome of its last merge, until the round is closed with it. A hold keeps it here; if
    /// this process ends first, the next one merges the same set again, to the same weights.
    pub(crate) merged: Option<(SyncId, Merged)>,
    /// The round of its unfinished save.
    pub(crate) saving: Option<Round>,
    /// Failures in a row; they decide the wait before the next try.
    pub(crate) failures: u32,
    pub(crate) save_failures: u32,
    pub(crate) compare_failures: u32,
    /// No try before this time.
    pub(crate) retry_at: UnixMillis,
    pub(crate) save_at: UnixMillis,
    pub(crate) compare_at: UnixMillis,
    /// The reason why the last try failed; none after a success.
    pub(crate) trouble: Option<Refusal>,
    pub(crate) save_trouble: Option<Refusal>,
    pub(crate) compare_trouble: Option<Refusal>,
    /// Set if the weights differ from what the ledger says, or cannot be had: the run gives out no
    /// work until a restart.
    pub(crate) halted: Option<Refusal>,
    /// Sums of masked rounds in a row that were not had, since a worker joined.
    pub(crate) sums_lost: u32,
}

/// An order to the foundry on a run's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightsTask {
    Restore,
    Merge(SyncId),
}

/// Held claims in order of arrival, at most one for each worker.
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

/// A unit whose offer was ordered.
#[derive(Debug, Default)]
pub(crate) struct Offered {
    /// Its newest delivery. An older delivery belongs to the same message or to a copy; both are
    /// settled when they come again.
    pub(crate) delivery: Option<DeliveryId>,
    /// The time at which to keep that delivery from coming again.
    pub(crate) hold_at: UnixMillis,
}

/// A lease that is held.
#[derive(Debug)]
pub(crate) struct LiveLease {
    pub(crate) expires_at: UnixMillis,
    pub(crate) steps_done: Steps,
    /// Bytes that the holder has moved, as its last renewal says.
    pub(crate) bytes_moved: Bytes,
    /// The time of the last progress in steps or bytes.
    pub(crate) progress_at: UnixMillis,
    /// The time of the grant.
    granted_at: UnixMillis,
    /// The time of the first step that its holder has reported.
    trains_since: Option<UnixMillis>,
    /// Objects whose upload was granted under it.
    pub(crate) uploads: BTreeSet<Digest>,
    /// Number of chunks that were read ahead under the lease.
    pub(crate) staged: usize,
    /// The running check of its result; the lease does not expire meanwhile.
    pub(crate) screening: Option<ScreeningId>,
    /// Number of checks of its results that broke off or did not find the objects.
    pub(crate) checks_failed: u32,
}

/// The last sign of life of a member.
#[derive(Debug)]
pub(crate) struct Presence {
    pub(crate) heard_at: UnixMillis,
    pub(crate) heartbeat: Option<Heartbeat>,
}

/// Bytes that the workers of a run moved, as they report. For uploads the ledger knows the useful
/// part, which is shown instead.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) up: Bytes,
    pub(crate) down: Bytes,
}

impl Traffic {
    /// The bytes that a process moved between two of its heartbeats, or before its first.
    pub(crate) fn between(before: Option<&Heartbeat>, now: &Heartbeat) -> Self {
        let (up, down) = before.map_or((Bytes(0), Bytes(0)), |before| {
            (before.bytes_up, before.bytes_down)
        });
        Self {
            up: now.bytes_up - up,
            down: now.bytes_down - down,
        }
    }

    /// The sum of both.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            up: self.up + other.up,
            down: self.down + other.down,
        }
    }
}

/// A count that fades with time: work of a worker that is in no result that counts, or events that
/// an operator caused.
#[derive(Debug, Default)]
pub(crate) struct DecayingCount {
    count: usize,
    /// The time up to which fading was applied.
    since: UnixMillis,
}

impl DecayingCount {
    /// The count at `now`. `each` of it fade in every `span`.
    pub(crate) fn at(&mut self, now: UnixMillis, each: usize, span: Millis) -> usize {
        let spans = self.since.until(now).get() / span.get().max(1);
        let forgotten = usize::try_from(spans)
            .unwrap_or(usize::MAX)
            .saturating_mul(each);
        self.count = self.count.saturating_sub(forgotten);
        self.since = if self.count == 0 {
            now
        } else {
            self.since.after(Millis(spans.saturating_mul(span.get())))
        };
        self.count
    }

    /// Adds to the count.
    pub(crate) fn add(&mut self, more: usize) {
        self.count = self.count.saturating_add(more);
    }

    /// Takes away what is part of a result that counts.
    pub(crate) fn used(&mut self, used: usize) {
        self.count = self.count.saturating_sub(used);
    }
}

/// Uploads of a worker that are in no result that counts. Some of them may lie in the store for
/// days: a URL can be used after its lease was given back, when nobody deletes what it brings.
#[derive(Debug, Default)]
pub(crate) struct Unused {
    fading: DecayingCount,
    /// All of them, less one contribution for each result that counts.
    total: usize,
}

impl Unused {
    /// Contributions of which the uploads may be in no result before a worker has to wait.
    pub(crate) const CONTRIBUTIONS_MAX: usize = 4;
    /// Longest time in which one contribution is forgotten: a worker that was unlucky for long is
    /// not shut out for good.
    const SPAN_MAX: Millis = Millis::from_secs(24 * 3600);

    /// The uploads that are not forgotten at `now`, where a contribution has `chunks`.
    pub(crate) fn at(&mut self, now: UnixMillis, chunks: usize, lease: Millis) -> usize {
        let span = self.span(chunks, lease);
        self.fading.at(now, chunks, span)
    }

    /// The time in which one contribution is forgotten: a lease time, since a worker that loses a
    /// lease by being slow took at least that long; and twice as long after each further one. So
    /// the number in three days is that of the first four and of some ten more, however often the
    /// worker takes a lease and gives it back.
    pub(crate) fn span(&self, chunks: usize, lease: Millis) -> Millis {
        let further = (self.total / chunks.max(1)).saturating_sub(Self::CONTRIBUTIONS_MAX);
        let times = u32::try_from(further)
            .ok()
            .and_then(|further| 1_u64.checked_shl(further));
        let span = lease.get().saturating_mul(times.unwrap_or(u64::MAX));
        Millis(span).min(Self::SPAN_MAX.max(lease))
    }

    /// Counts uploads that were granted.
    pub(crate) fn add(&mut self, more: usize) {
        self.fading.add(more);
        self.total = self.total.saturating_add(more);
    }

    /// A result of `chunks` counts, and `used` of the uploads are in it.
    pub(crate) fn counts(&mut self, used: usize, chunks: usize) {
        self.fading.used(used);
        self.total = self.total.saturating_sub(used.saturating_add(chunks));
    }
}

/// A held request for objects.
#[derive(Debug)]
pub(crate) struct HeldRead {
    pub(crate) reply: ReplyId,
    pub(crate) objects: Vec<Digest>,
}

impl LiveRun {
    pub(crate) fn new(spec: &RunSpec) -> Self {
        let model = &spec.model;
        let named = [model.config, model.layout, spec.data];
        Self {
            readable: named
                .iter()
                .chain(model.initial.objects())
                .map(|object: &ObjectRef| object.digest)
                .collect(),
            data: None,
            lists: Lists::default(),
            budget_ends_at: None,
            foundry: Foundry::default(),
            agreement: Agreement::default(),
            claims: Claims::default(),
            offers: BTreeMap::new(),
            leases: BTreeMap::new(),
            screenings: BTreeMap::new(),
            failures: BTreeMap::new(),
            last_failures: BTreeMap::new(),
            failed_in_a_row: 0,
            stalled: BTreeMap::new(),
            spans: UnitTimes::default(),
            catching_up: false,
            presence: BTreeMap::new(),
            moved: BTreeMap::new(),
            traffic: Traffic::default(),
            unused: BTreeMap::new(),
            fruitless: BTreeMap::new(),
            reads: BTreeMap::new(),
            published_at: UnixMillis(0),
            changed: true,
        }
    }

    /// A lease that the ledger holds.
    pub(crate) fn lease(&self, unit: &UnitId) -> &LiveLease {
        self.leases.get(unit).expect(WATCHED)
    }

    pub(crate) fn lease_mut(&mut self, unit: &UnitId) -> &mut LiveLease {
        self.leases.get_mut(unit).expect(WATCHED)
    }

    /// Takes everything that was kept for a lease that is over.
    pub(crate) fn end_lease(&mut self, unit: &UnitId) -> LiveLease {
        self.leases.remove(unit).expect(WATCHED)
    }
}

const WATCHED: &str = "every lease that is held is watched";

impl Foundry {
    /// The last order succeeded.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
        self.trouble = None;
    }

    /// True when the answer is for the order under way; any other answer changes nothing.
    pub(crate) fn finishes(&mut self, task: WeightsTask) -> bool {
        let asked = self.task == Some(task);
        if asked {
            self.task = None;
        }
        asked
    }
}

impl LiveLease {
    /// A lease that is granted now.
    pub(crate) fn new(now: UnixMillis, expires_at: UnixMillis) -> Self {
        Self {
            expires_at,
            steps_done: Steps(0),
            bytes_moved: Bytes(0),
            progress_at: now,
            granted_at: now,
            trains_since: None,
            uploads: BTreeSet::new(),
            staged: 0,
            screening: None,
            checks_failed: 0,
        }
    }

    /// True while its result is being checked.
    pub(crate) fn is_checked(&self) -> bool {
        self.screening.is_some()
    }

    /// Takes over the numbers of a renewal. Steps beyond those of the unit are no progress. If the
    /// count of bytes starts again, it comes from another process.
    pub(crate) fn renewed(&mut self, now: UnixMillis, steps_done: Steps, bytes_moved: Bytes) {
        if steps_done > self.steps_done || bytes_moved > self.bytes_moved {
            self.progress_at = now;
        }
        if steps_done > Steps(0) {
            self.trains_since.get_or_insert(now);
        }
        // The count never goes back: else a worker that says 1, 0, 1, 0 would make progress for
        // ever.
        self.steps_done = self.steps_done.max(steps_done);
        self.bytes_moved = self.bytes_moved.max(bytes_moved);
    }

    /// True if neither a step nor a byte came for so long that the lease ends.
    pub(crate) fn stands_still(&self, now: UnixMillis, life: Millis) -> bool {
        self.progress_at.after(progress_wait(life)) <= now
    }

    /// The time at which the lease ends without further progress or renewal, and the reason for
    /// that end. `slowest` is the longest that its training may take beside others, where that is
    /// known. What was fetched before the first step does not count there: lines differ more than
    /// machines.
    pub(crate) fn due(&self, life: Millis, slowest: Option<Millis>) -> (UnixMillis, LeaseEnd) {
        let lasts = |slowest: Millis| match self.trains_since {
            Some(begun) => begun.after(slowest),
            None => self.granted_at.after(slowest.max(FETCH_AGE_MAX)),
        };
        let stalls_at = self
            .progress_at
            .after(progress_wait(life))
            .min(self.granted_at.after(LEASE_AGE_MAX))
            .min(slowest.map_or(UnixMillis(u64::MAX), lasts));
        if stalls_at < self.expires_at {
            (stalls_at, LeaseEnd::Stalled)
        } else {
            (self.expires_at, LeaseEnd::Expired)
        }
    }
}

impl Claims {
    /// Holds a claim. Returns the worker's older claim, which this one replaces.
    pub(crate) fn hold(
        &mut self,
        worker: WorkerId,
        reply: ReplyId,
        until: UnixMillis,
    ) -> Option<Claim> {
        let older = self.take(&worker);
        self.arrived += 1;
        self.order.insert(self.arrived, worker.clone());
        self.by_worker.insert(
            worker,
            Claim {
                reply,
                until,
                arrival: self.arrived,
            },
        );
        older
    }

    pub(crate) fn take(&mut self, worker: &WorkerId) -> Option<Claim> {
        let claim = self.by_worker.remove(worker)?;
        self.order.remove(&claim.arrival);
        Some(claim)
    }

    /// Takes a worker's claim if it has waited long enough.
    pub(crate) fn take_due(&mut self, worker: &WorkerId, now: UnixMillis) -> Option<Claim> {
        let due = self.get(worker).is_some_and(|claim| claim.until <= now);
        due.then(|| self.take(worker)).flatten()
    }

    pub(crate) fn get(&self, worker: &WorkerId) -> Option<&Claim> {
        self.by_worker.get(worker)
    }

    /// The workers whose claims are held, in order of arrival.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = &WorkerId> {
        self.order.values()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Takes all claims, in order of arrival.
    pub(crate) fn drain(&mut self) -> Vec<ReplyId> {
        let order = std::mem::take(&mut self.order);
        let mut held = std::mem::take(&mut self.by_worker);
        order
            .values()
            .filter_map(|worker| held.remove(worker))
            .map(|claim| claim.reply)
            .collect()
    }
}

/// Time without a step or a byte after which a lease can no longer be renewed, for a run with this
/// lease time. A healthy worker is silent for so long only during one step, or while it encodes
/// between the last step and the first byte; both take minutes at most.
pub(crate) fn progress_wait(life: Millis) -> Millis {
    PROGRESS_WAIT_MIN.max(Millis(life.get().saturating_mul(PROGRESS_WAIT_LEASES)))
}

/// Least [`progress_wait`].
const PROGRESS_WAIT_MIN: Millis = Millis::from_secs(600);
/// [`progress_wait`] in lease times, for long leases.
const PROGRESS_WAIT_LEASES: u64 = 4;

/// First and longest wait after failures of the foundry: each costs a read of the run's weights.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The pause after `failures` in a row.
pub(crate) fn backoff(failures: u32) -> Millis {
    let pause = Backoff::after(RETRY_PAUSE, failures.saturating_sub(1)).peek();
    Millis(u64::try_from(pause.as_millis()).expect("the longest pause is seconds"))
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
        assert_eq!(
            claims
                .hold(a.clone(), ReplyId(3), UnixMillis(9))
                .map(|claim| claim.reply),
            Some(ReplyId(1))
        );
        assert_eq!(claims.in_order().next(), Some(&b));
        assert_eq!(claims.drain(), [ReplyId(2), ReplyId(3)]);
        assert!(claims.is_empty() && claims.get(&a).is_none());
    }

    #[test]
    fn unused_uploads_are_forgotten_little_by_little() {
        let (span, start) = (Millis(10), UnixMillis(1000));
        let mut unused = DecayingCount::default();
        assert_eq!(unused.at(start, 2, span), 0);
        unused.add(8);
        assert_eq!(unused.at(UnixMillis(1009), 2, span), 8);
        assert_eq!(unused.at(UnixMillis(1010), 2, span), 6);
        // Looking often does not change the fading.
        assert_eq!(unused.at(UnixMillis(1019), 2, span), 6);
        assert_eq!(unused.at(UnixMillis(1020), 2, span), 4);
        unused.used(1);
        assert_eq!(unused.at(UnixMillis(1030), 2, span), 1);
        assert_eq!(unused.at(UnixMillis(u64::MAX), 2, Millis(0)), 0);
    }

    /// Between two results a worker's useless uploads become rarer and rarer, and are never refused
    /// for good.
    #[test]
    fn useless_uploads_wait_twice_as_long_each_time_up_to_a_day() {
        const CHUNKS: usize = 2;
        let lease = Millis::from_secs(600);
        let day = Millis::from_secs(24 * 3600);
        let mut unused = Unused::default();
        let mut now = UnixMillis(1000);
        let room = Unused::CONTRIBUTIONS_MAX * CHUNKS;
        let fits = |unused: &mut Unused, now| unused.at(now, CHUNKS, lease) + CHUNKS <= room;
        for _ in 0..Unused::CONTRIBUTIONS_MAX {
            assert!(fits(&mut unused, now));
            unused.add(CHUNKS);
        }
        let mut waits = Vec::new();
        for _ in 0..10 {
            assert!(!fits(&mut unused, now));
            let span = unused.span(CHUNKS, lease);
            assert!(!fits(&mut unused, UnixMillis(now.get() + span.get() - 1)));
            now = now.after(span);
            assert!(fits(&mut unused, now), "after {span} ms");
            waits.push(span.get() / lease.get());
            unused.add(CHUNKS);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 144, 144]);
        // A result that counts has one of them forgiven, beside its own.
        unused.add(CHUNKS);
        unused.counts(CHUNKS, CHUNKS);
        assert_eq!(unused.total, (Unused::CONTRIBUTIONS_MAX + 9) * CHUNKS);
        for _ in 0..20 {
            unused.counts(0, CHUNKS);
        }
        assert_eq!(unused.span(CHUNKS, lease), lease);
        assert_eq!(
            unused.span(0, Millis(2 * day.get())),
            Millis(2 * day.get()),
            "a lease may be longer"
        );
        unused.total = usize::MAX;
        assert_eq!(unused.span(1, lease), day);
    }

    #[test]
    fn waits_grow_to_a_bound() {
        let seconds: Vec<u64> = [1, 2, 3, 6, 7, u32::MAX]
            .iter()
            .map(|n| backoff(*n).get() / 1000)
            .collect();
        assert_eq!(seconds, [1, 2, 4, 30, 30, 30]);
    }
}
