//! Holds of operators: the fold of their events, and the events that a hold forbids.

use std::collections::BTreeMap;

use schemas::event::LedgerEvent;
use schemas::hold::Hold;
use schemas::limits::URLS_OUT_MAX;
use schemas::text::Time;
use schemas::{RunId, UnixMillis, WorkerId};

use crate::error::{ApplyError, out_of_place};
use crate::state::{HoldRecord, Run, State};

/// Holders of URLs: the workers of a run, or one of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UrlHolders {
    /// The run.
    pub run: RunId,
    /// The worker; none for all of them.
    pub worker: Option<WorkerId>,
}

/// Holders whose URLs are stopped, each with the time from which on none of them is alive; none
/// while its run is open.
pub type StoppedHolders = BTreeMap<UrlHolders, Option<UnixMillis>>;

impl UrlHolders {
    /// All workers of a run.
    pub const fn of_run(run: RunId) -> Self {
        Self { run, worker: None }
    }

    /// One worker of a run.
    pub const fn of_worker(run: RunId, worker: WorkerId) -> Self {
        let worker = Some(worker);
        Self { run, worker }
    }
}

/// The holds that forbid this event.
const fn forbidden_by(event: &LedgerEvent) -> &'static [Hold] {
    match event {
        LedgerEvent::RoundSealed { .. }
        | LedgerEvent::RoundClosed { .. }
        | LedgerEvent::SnapshotPromoted { .. }
        // A frozen run is looked into, and nobody knows yet what that needs.
        | LedgerEvent::ObjectsGivenUp { .. }
        | LedgerEvent::RunCompleted => &[Hold::Merges],
        // A lease begins with URLs.
        LedgerEvent::LeaseGranted { .. } => &[Hold::Urls],
        _ => &[],
    }
}

impl State {
    /// The holders whose URLs the store is to refuse: those of a run, since an operator stopped
    /// them or their tenant was ended, and each worker in quarantine that ever joined, with its
    /// earlier keys. Each with the time from which on none of its URLs is alive, of which the store
    /// need know no more: that of a run that is complete, whose workers got URLs until then.
    pub fn stopped_urls(&self) -> StoppedHolders {
        let ended = |name: &RunId| name.tenant().is_some_and(|tenant| self.has_ended(&tenant));
        let runs = self
            .runs()
            .filter(|(name, run)| run.is_held(Hold::Urls) || ended(name))
            .map(|(name, run)| (UrlHolders::of_run(name.clone()), run.urls_end()));
        let workers = self.runs().flat_map(|(name, run)| {
            let shut_out = run
                .quarantined
                .keys()
                .flat_map(|worker| run.url_keys(worker));
            let of = |key: &WorkerId| UrlHolders::of_worker(name.clone(), key.clone());
            shut_out.map(move |key| (of(key), run.urls_end()))
        });
        runs.chain(workers).collect()
    }
}

impl Run {
    /// The time from which on no URL of the run is alive; none while it is open, since its workers
    /// get more.
    pub fn urls_end(&self) -> Option<UnixMillis> {
        self.completed_at.map(|at| at.after(URLS_OUT_MAX))
    }

    /// True while a URL of the run may be alive.
    pub fn may_have_urls(&self, now: UnixMillis) -> bool {
        self.urls_end().is_none_or(|end| now < end)
    }

    /// The keys of the worker that has this key under which it may have got URLs, the newest first:
    /// those that joined. A key in quarantine does not join.
    pub fn url_keys<'a>(&'a self, worker: &'a WorkerId) -> impl Iterator<Item = &'a WorkerId> {
        self.keys(worker)
            .filter(|key| self.members.contains_key(*key))
    }

    /// Number of keys in quarantine that ever joined.
    pub fn keys_shut_out(&self) -> u32 {
        let shut_out = self.quarantined.keys();
        shut_out
            .filter(|key| self.members.contains_key(*key))
            .count() as u32
    }

    /// True while an operator keeps the run from this.
    pub fn is_held(&self, hold: Hold) -> bool {
        self.holds.contains_key(&hold)
    }

    /// Refuses an event that a hold forbids.
    pub(crate) fn check_holds(&self, event: &LedgerEvent) -> Result<(), ApplyError> {
        let mut forbidding = forbidden_by(event).iter();
        let standing = forbidding.find_map(|hold| Some((hold, self.holds.get(hold)?)));
        let Some((hold, record)) = standing else {
            return Ok(());
        };
        let (operator, since) = (&record.operator, Time(record.since));
        let what =
            format!("an event that the hold on {hold} of {operator}, since {since}, forbids");
        Err(out_of_place(event.kind(), what))
    }

    pub(crate) fn place_hold(&mut self, hold: Hold, record: HoldRecord) -> Result<(), ApplyError> {
        // A complete run does nothing that a hold could forbid, but its URLs may still be in use.
        let is_late = self.is_complete() && hold != Hold::Urls;
        if is_late || self.is_held(hold) {
            return Err(out_of_place("hold-placed", format!("a hold on {hold}")));
        }
        self.holds.insert(hold, record);
        Ok(())
    }

    pub(crate) fn lift_hold(&mut self, hold: Hold) -> Result<(), ApplyError> {
        let lifted = self.holds.remove(&hold);
        let missing = || out_of_place("hold-lifted", format!("the end of a hold on {hold}"));
        lifted.map(|_| ()).ok_or_else(missing)
    }
}
