//! The foundries of the runs that are open.

use runtime::Failure;
use schemas::foundry::Order;
use schemas::{Code, RunId};

use super::Shell;
use crate::foundry::{Answers, Foundry};

impl Shell {
    /// Gives an order to the foundry of `run`. The first order is to restore the weights, and
    /// starts the foundry; the last is to forget them, and ends it.
    pub(super) async fn order(&mut self, run: RunId, order: Order) -> Result<(), Failure> {
        if matches!(order, Order::Forget) {
            self.tables.forget(&run);
            return Ok(());
        }
        if matches!(order, Order::Restore { .. }) && !self.tables.foundries.contains_key(&run) {
            let number = self.tables.next_foundry();
            let answers = Answers::new(run.clone(), number, self.arrivals.clone());
            let foundry =
                Foundry::start(run.clone(), self.maker.clone(), self.store.clone(), answers);
            self.tables.foundries.insert(run.clone(), foundry);
        }
        let foundry = self.tables.foundries.get(&run);
        let foundry = foundry
            .ok_or_else(|| Failure::new(Code::Internal, format!("run {run} was never restored")))?;
        Ok(foundry.order(order).await?)
    }
}
