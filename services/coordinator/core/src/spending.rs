//! What a worker may have written to the ledger without a result. The ledger is kept for good and
//! has a bound, and a run whose ledger is full has ended: nobody may fill it by coming and going.

use schemas::{Code, Millis, Refusal, RunId, UnixMillis, WorkerId};

use crate::coordinator::Coordinator;
use crate::live::{Fading, LiveRun};

/// Joins and leases of a worker without a result that counts, at once: a worker whose supervisor
/// starts it again every few seconds gets through some minutes of that, and one whose units fail is
/// judged long before.
pub(crate) const FRUITLESS_MAX: usize = 64;
/// How often one of them is forgotten. Each leads to three events at most, some 3 KiB together: 26
/// MiB a day at worst, so one worker needs months for a ledger of 2 GiB. Three restarts a minute,
/// each with a lease, go on without end.
const FRUITLESS_EVERY: Millis = Millis::from_secs(10);

impl LiveRun {
    /// Whether a worker may have one more join or lease written; nothing is spent yet.
    ///
    /// # Errors
    /// [`Code::AskedTooMuch`].
    pub(crate) fn check_fruitless(
        &mut self,
        now: UnixMillis,
        worker: &WorkerId,
    ) -> Result<(), Refusal> {
        let Some(fruitless) = self.fruitless.get_mut(worker) else {
            return Ok(());
        };
        let count = fruitless.at(now, 1, FRUITLESS_EVERY);
        if count < FRUITLESS_MAX {
            return Ok(());
        }
        let detail = format!(
            "{count} joins and leases without a result, one is forgotten every {FRUITLESS_EVERY} ms"
        );
        Err(Refusal::new(Code::AskedTooMuch, detail))
    }
}

impl Coordinator {
    /// A join or a lease of a worker was written.
    pub(crate) fn spend(&mut self, name: &RunId, worker: &WorkerId) {
        let live = self
            .live
            .get_mut(name)
            .expect("joins and leases are written for runs that are open");
        let fruitless: &mut Fading = live.fruitless.entry(worker.clone()).or_default();
        fruitless.at(self.now, 1, FRUITLESS_EVERY);
        fruitless.add(1);
    }
}
