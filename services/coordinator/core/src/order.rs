//! The limit on events that an operator causes in the ledger. Operators are trusted with runs, data
//! and the end of a coordinator, but not with the ledger's space: every event is kept for good, and
//! a full ledger ends every run.

use schemas::call::ControlVerb;
use schemas::event::LedgerEvent;
use schemas::{Code, Millis, PublicKey, Refusal};

use crate::coordinator::Coordinator;
use crate::run::live::DecayingCount;

/// Orders of an operator that are written without delay: as many as the upload of the largest data
/// set takes, at four shards an order. Each is an event below three quarters of a KiB, 12 MiB
/// together. The order for a new run is longer, but there are few runs.
pub(crate) const ORDERS_MAX: usize = 16_384;
/// Time after which one of these orders is forgotten: some 70 MB a day at worst, so that one
/// operator needs weeks to fill a ledger of 2 GiB.
const ORDER_EVERY: Millis = Millis::from_secs(1);

impl Coordinator {
    /// Refuses an operator that may not have one more order written now. This spends nothing.
    pub(crate) fn check_orders(&mut self, operator: &PublicKey) -> Result<(), Refusal> {
        let now = self.now;
        let orders = self.orders.get_mut(operator);
        match orders.map(|orders| orders.at(now, 1, ORDER_EVERY)) {
            Some(count) if count >= ORDERS_MAX => {
                let detail = format!(
                    "{count} orders of {operator} were written, one is forgotten every {ORDER_EVERY} ms"
                );
                Err(Refusal::new(Code::AskedTooMuch, detail))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Writes an operator's order before it is carried out. An order that will change nothing is
    /// not written.
    pub(crate) fn record_order(&mut self, operator: PublicKey, verb: ControlVerb) {
        self.spend_order(&operator);
        self.append(
            None,
            LedgerEvent::ControlReceived {
                operator,
                verb: verb.token().to_owned(),
            },
        );
    }

    /// Counts an event that an operator caused.
    pub(crate) fn spend_order(&mut self, operator: &PublicKey) {
        let now = self.now;
        if !self.orders.contains_key(operator) {
            // It replaces the operators whose count is back at zero.
            self.orders
                .retain(|_, orders: &mut DecayingCount| orders.at(now, 1, ORDER_EVERY) > 0);
        }
        let orders = self.orders.entry(operator.clone()).or_default();
        orders.at(now, 1, ORDER_EVERY);
        orders.add(1);
    }
}
