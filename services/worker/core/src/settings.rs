//! Settings of a worker, fixed at its start, and the bounds it keeps.

use schemas::member::JoinRequest;
use schemas::{Millis, RunId, WorkerId};

/// Settings that do not change while a worker lives.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The run it works for.
    pub run: RunId,
    /// Its own key.
    pub worker: WorkerId,
    /// The facts that it gives about itself when it joins; its session is that of this process.
    pub join: JoinRequest,
    /// The time that a claim may wait for work; at most `CLAIM_WAIT_MAX`.
    pub claim_wait: Millis,
    /// The time that an orderly end may take.
    pub stop_patience: Millis,
    /// Decides the jitter of pauses. Another for every worker, or all of them come back at the same
    /// moment.
    pub seed: u64,
}

/// First and longest wait for an answer; each try that is waited out in vain doubles it. An answer
/// takes a fraction of a second, so one that was lost with its coordinator is asked for again at
/// once. The check of a result may take longer: asked again, the coordinator answers all at its
/// end, and because the waits grow the repeats stay few.
pub(crate) const PATIENCE: (Millis, Millis) = (Millis::from_secs(2), Millis::from_secs(16));
/// The longest wait for a claim's answer beyond the time for which the coordinator may hold it
/// open.
pub(crate) const CLAIM_MARGIN: Millis = Millis::from_secs(2);
/// The coordinator may hold a claim open for this part of a lease, and the worker waits this part
/// longer. When the answer is lost, the lease that it granted runs on, so half of the lease is left
/// for the second try.
pub(crate) const CLAIM_LEASE_PART: u64 = 4;
/// Longest wait for an answer on the way out; the end of the lease says the same later.
pub(crate) const PARTING_PATIENCE: Millis = Millis::from_secs(2);
/// Tries to give a lease back or to say goodbye.
pub(crate) const PARTING_TRIES: u32 = 3;
/// Bounds of the wait for a renewal's answer; within them it is a sixth of the lease, so that
/// several tries fit.
pub(crate) const RENEWAL_PATIENCE: (Millis, Millis) = (Millis::from_secs(1), Millis::from_secs(10));
/// Shortest time between two claims, should the coordinator answer that there is nothing without
/// waiting.
pub(crate) const CLAIM_INTERVAL_MIN: Millis = Millis(100);
/// Shortest time between two events about refused commands: anyone on the run's command subject
/// could cause them.
pub(crate) const REFUSED_INTERVAL_MIN: Millis = Millis::from_secs(10);
/// First and longest pause before a request is repeated.
pub(crate) const RETRY_PAUSE: (Millis, Millis) = (Millis(200), Millis::from_secs(10));
/// Longest pause while nobody answers: the broker says so at once, and a coordinator that is back
/// is found this soon.
pub(crate) const ABSENCE_PAUSE_MAX: Millis = Millis::from_secs(1);
/// First and longest pause before a worker that is not known (any more) joins again.
pub(crate) const REJOIN_PAUSE: (Millis, Millis) = (Millis(500), Millis::from_secs(60));
/// First and longest pause after a unit that failed here.
pub(crate) const FAULT_PAUSE: (Millis, Millis) = (Millis(500), Millis::from_secs(60));
/// Units that may fail here one after another before the worker ends: a machine that fails every
/// unit only delays them. Units that fail because the store is full or away, or the coordinator
/// away, are not counted.
pub(crate) const FAULTS_MAX: u32 = 10;
