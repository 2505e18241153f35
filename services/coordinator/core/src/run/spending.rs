//! The bound on events that a worker causes in the ledger without a result. The ledger is kept for
//! good and has a bound, and a run whose ledger is full has ended: nobody may fill it by coming and
//! going.

use schemas::{Code, Millis, Refusal, UnixMillis, WorkerId};

use crate::run::live::{Fading, LiveRun};

/// Joins and leases of a worker without a result that counts, at once: a worker whose supervisor
/// starts it again every few seconds gets through some minutes of that, and one whose units fail is
/// judged long before.
pub(crate) const FRUITLESS_MAX: usize = 64;
/// The time after which one of them is forgotten. Each leads to three events at most, some 3 KiB
/// together: 26 MiB a day at worst, so one worker needs months for a ledger of 2 GiB. Three
/// restarts a minute, each with a lease, go on without end.
const FRUITLESS_EVERY: Millis = Millis::from_secs(10);

impl LiveRun {
    /// Refuses a worker that may not have one more join or lease written; nothing is spent yet.
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

    /// A join or a lease of a worker was written.
    pub(crate) fn spend(&mut self, now: UnixMillis, worker: &WorkerId) {
        let fruitless: &mut Fading = self.fruitless.entry(worker.clone()).or_default();
        fruitless.at(now, 1, FRUITLESS_EVERY);
        fruitless.add(1);
    }
}
