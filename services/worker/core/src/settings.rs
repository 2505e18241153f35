//! Settings of a worker, fixed at its start, and its limits.

use schemas::member::JoinRequest;
use schemas::{Millis, RunId, WorkerId};

/// Settings that do not change while a worker lives.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The run it works for.
    pub run: RunId,
    /// The trust domain, which its signatures name.
    pub domain: String,
    /// Its own key.
    pub worker: WorkerId,
    /// Facts about the worker for the join; the session is that of this process.
    pub join: JoinRequest,
    /// The time that a claim may wait for work; at most `CLAIM_WAIT_MAX`.
    pub claim_wait: Millis,
    /// The time that an orderly end may take.
    pub stop_patience: Millis,
    /// Seed of the jitter of pauses. Each worker needs another one, or all come back at the same
    /// moment.
    pub seed: u64,
}

/// First and longest wait for an answer; each wait in vain doubles it. An answer takes a fraction
/// of a second, so a question whose answer was lost with its coordinator is repeated soon. The
/// check of a result may take longer: the coordinator answers all repeats at its end, and since the
/// waits grow the repeats stay few.
pub(crate) const PATIENCE: (Millis, Millis) = (Millis::from_secs(2), Millis::from_secs(16));
/// Longest wait for a claim's answer, beyond the time for which the coordinator may hold the claim
/// open.
pub(crate) const CLAIM_MARGIN: Millis = Millis::from_secs(2);
/// The coordinator may hold a claim open for this part of a lease, and the worker waits for this
/// part longer. A lost answer leaves a granted lease that runs, so half of that lease is left for
/// the second try.
pub(crate) const CLAIM_LEASE_PART: u64 = 4;
/// Longest wait for an answer while the worker leaves; without an answer, the end of the lease has
/// the same effect later.
pub(crate) const PARTING_PATIENCE: Millis = Millis::from_secs(2);
/// Most tries to give a lease back or to say goodbye.
pub(crate) const PARTING_TRIES: u32 = 3;
/// Bounds of the wait for a renewal's answer. Between them it is a sixth of the lease, so that
/// several tries fit.
pub(crate) const RENEWAL_PATIENCE: (Millis, Millis) = (Millis::from_secs(1), Millis::from_secs(10));
/// Least time between two claims, for a coordinator that answers without waiting that there is no
/// work.
pub(crate) const CLAIM_INTERVAL_MIN: Millis = Millis(100);
/// Least time between two events about refused commands, which anyone on the run's command subject
/// could cause.
pub(crate) const REFUSED_INTERVAL_MIN: Millis = Millis::from_secs(10);
/// First and longest pause before a request is repeated.
pub(crate) const RETRY_PAUSE: (Millis, Millis) = (Millis(200), Millis::from_secs(10));
/// Longest pause while nobody answers. The broker reports that at once, and a coordinator that
/// comes back is found this soon.
pub(crate) const ABSENCE_PAUSE_MAX: Millis = Millis::from_secs(1);
/// First and longest pause before a worker that the coordinator does not know any more joins again.
pub(crate) const REJOIN_PAUSE: (Millis, Millis) = (Millis(500), Millis::from_secs(60));
/// First and longest pause after a unit that failed here.
pub(crate) const FAULT_PAUSE: (Millis, Millis) = (Millis(500), Millis::from_secs(60));
/// Units in a row that may fail here before the worker ends: a machine that fails every unit only
/// delays them. Units that fail because the store is full or away, or the coordinator is away, are
/// not counted.
pub(crate) const FAULTS_MAX: u32 = 10;
