//! The limit on events that a worker causes in the ledger without a result. The ledger is kept for
//! good and is limited, and a full ledger ends its runs: nobody may fill it by joining and leaving.

use schemas::{Code, Millis, Refusal, UnixMillis, WorkerId};

use crate::run::live::{DecayingCount, LiveRun};

/// Joins and leases of a worker without a result that counts, in quick succession. They last a
/// worker for minutes if its supervisor restarts it every few seconds, and a worker whose units
/// fail is judged long before.
pub(crate) const FRUITLESS_MAX: usize = 64;
/// Time after which one of these joins or leases is forgotten. Each leads to three events at most,
/// some 3 KiB together: 26 MiB a day at worst, so that one worker needs months for a ledger of 2
/// GiB. Three restarts a minute, each with a lease, can go on without end.
const FRUITLESS_EVERY: Millis = Millis::from_secs(10);

impl LiveRun {
    /// Refuses a worker that may not have one more join or lease written. This spends nothing.
    ///
    /// # Errors
    /// [`Code::AskedTooMuch`].
    pub(crate) fn check_fruitless(
        &mut self,
        now: UnixMillis,
        worker: &WorkerId,
    ) -> Result<(), Refusal> {
        let fruitless = self.fruitless.get_mut(worker);
        match fruitless.map(|fruitless| fruitless.at(now, 1, FRUITLESS_EVERY)) {
            Some(count) if count >= FRUITLESS_MAX => {
                let detail = format!(
                    "{count} joins and leases without a result, one is forgotten every {FRUITLESS_EVERY} ms"
                );
                Err(Refusal::new(Code::AskedTooMuch, detail))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Counts a join or a lease of a worker.
    pub(crate) fn spend(&mut self, now: UnixMillis, worker: &WorkerId) {
        let fruitless: &mut DecayingCount = self.fruitless.entry(worker.clone()).or_default();
        fruitless.at(now, 1, FRUITLESS_EVERY);
        fruitless.add(1);
    }
}
