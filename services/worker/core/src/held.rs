//! A lease that is held, and the progress of its work.

use std::sync::Arc;

use schemas::lease::{LeaseRef, Manifest};
use schemas::{Digest, Millis, Steps, UnixMillis};

use crate::effect::{HandIn, RequestId, WorkId};
use crate::pauses::RetryPauses;
use crate::settings::{ABSENCE_PAUSE_MAX, RENEWAL_PATIENCE, RETRY_PAUSE};

/// A lease under which this worker works.
#[derive(Clone, Debug)]
pub(crate) struct HeldLease {
    pub(crate) work: WorkId,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) step: WorkStep,
    pub(crate) steps_done: Steps,
    /// The cohort for which its contribution is masked.
    pub(crate) cohort: Option<Digest>,
    /// True while the event that names the cohort is not recorded: nothing is uploaded yet.
    pub(crate) unrecorded: bool,
    /// The end of the lease by this worker's clock, never later than by the coordinator's.
    pub(crate) ends_at: UnixMillis,
    /// Time from its grant or last renewal to its end.
    life: Millis,
    pub(crate) renew_at: UnixMillis,
    pub(crate) renewal: Option<Renewal>,
    pauses: RetryPauses,
}

/// A renewal that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Renewal {
    pub(crate) id: RequestId,
    pub(crate) sent_at: UnixMillis,
}

/// The step of the work under a lease.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum WorkStep {
    Fetching,
    Training,
    Uploading(crate::input::Trained),
    Submitting(HandIn),
}

impl HeldLease {
    /// Work that starts `now` under a lease that ends at `ends_at` and that the run grants for
    /// `policy`. It is renewed a third of a lease after its grant.
    pub(crate) fn new(
        work: WorkId,
        manifest: Arc<Manifest>,
        (now, ends_at): (UnixMillis, UnixMillis),
        policy: Millis,
        seed: u64,
    ) -> Self {
        let life = now.until(ends_at);
        let spent = policy - life;
        Self {
            work,
            manifest,
            step: WorkStep::Fetching,
            steps_done: Steps(0),
            cohort: None,
            unrecorded: false,
            ends_at,
            life,
            renew_at: now.after(Millis(policy.get() / 3) - spent),
            renewal: None,
            pauses: RetryPauses::new(RETRY_PAUSE, seed),
        }
    }

    pub(crate) fn lease(&self) -> LeaseRef {
        self.manifest.lease
    }

    /// The longest wait for the answer to a renewal.
    pub(crate) fn renewal_patience(&self) -> Millis {
        let (min, max) = RENEWAL_PATIENCE;
        Millis(self.life.get() / 6).clamp(min, max)
    }

    /// The coordinator renewed the lease. The span counts from the moment of asking, since the
    /// lease cannot end earlier than that.
    pub(crate) fn renewed(&mut self, sent_at: UnixMillis, remaining: Millis) {
        self.renewal = None;
        self.pauses.reset();
        self.life = remaining;
        self.ends_at = sent_at.after(remaining);
        self.renew_at = sent_at.after(Millis(remaining.get() / 3));
    }

    /// Stops renewing, since the coordinator refuses to.
    pub(crate) const fn renewed_no_more(&mut self) {
        self.renewal = None;
        self.renew_at = self.ends_at;
    }

    /// Renews again soon, after no answer or one that says to wait.
    pub(crate) fn renew_again(&mut self, now: UnixMillis) {
        self.renewal = None;
        self.renew_at = now.after(self.pauses.pause_up_to(ABSENCE_PAUSE_MAX));
    }
}
