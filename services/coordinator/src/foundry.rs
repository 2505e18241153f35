//! The foundry of a run: the one place that holds its weights and the bytes of its contributions.
//! It takes the orders of [`schemas::foundry`] and answers with their outcomes; it decides nothing
//! about rounds or leases, and losing it costs time, never a result.
//!
//! | file | holds |
//! | --- | --- |
//! | `dispatcher` | takes orders, keeps what was checked until it is merged |
//! | `screen`, `staged` | the check of a result, chunk by chunk; checks that are shared and take turns |
//! | `executor` | one thing at a time to the weights: restore, merge; saves beside |
//! | `save` | weights into objects; crate `recompute` steps them, and restores them from objects |

mod dispatcher;
mod executor;
mod save;
mod screen;
mod staged;

use schemas::foundry::{Answer, Order};
use schemas::{Code, Refusal, RunId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::dispatcher::{Dispatcher, Message};
pub(crate) use self::save::Maker;
pub(crate) use self::screen::MAGNITUDE_MAX;
use crate::arrival::Arrival;
use crate::store::Store;

/// Orders that wait for the dispatcher. These are few, since the dispatcher passes every order on
/// at once.
const ORDERS_MAX: usize = 64;

/// The number of a foundry of this process, counted from its start. It tells the answers of a
/// foundry that is gone from those of its successor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FoundryNumber(pub(crate) u64);

/// A run's foundry, as the shell sees it. Dropping it ends the foundry and frees everything that it
/// holds.
#[derive(Debug)]
pub(crate) struct Foundry {
    run: RunId,
    number: FoundryNumber,
    orders: mpsc::Sender<Message>,
    dispatcher: JoinHandle<()>,
}

impl Foundry {
    /// Starts the foundry of `run`. `maker` signs the statements about its snapshots.
    pub(crate) fn start(run: RunId, maker: Maker, store: Store, answers: Answers) -> Self {
        let number = answers.foundry;
        let (orders, told) = mpsc::channel(ORDERS_MAX);
        let dispatcher = Dispatcher::new(maker, store, answers, orders.clone());
        Self {
            run,
            number,
            orders,
            dispatcher: tokio::spawn(dispatcher.run(told)),
        }
    }

    /// A foundry that does nothing.
    #[cfg(test)]
    pub(crate) fn idle(run: RunId, number: FoundryNumber) -> Self {
        let (orders, _) = mpsc::channel(1);
        Self {
            run,
            number,
            orders,
            dispatcher: tokio::spawn(async {}),
        }
    }

    /// Its number.
    pub(crate) const fn number(&self) -> FoundryNumber {
        self.number
    }

    /// Gives an order. The dispatcher takes it in a moment; the outcome comes as an answer.
    ///
    /// # Errors
    /// The foundry has ended, which only a fault in it does.
    pub(crate) async fn order(&self, order: Order) -> Result<(), Refusal> {
        let sent = self.orders.send(Message::Order(order)).await;
        sent.map_err(|_| {
            let detail = format!("the foundry of run {} has ended", self.run);
            Refusal::new(Code::Internal, detail)
        })
    }
}

impl Drop for Foundry {
    fn drop(&mut self) {
        self.dispatcher.abort();
    }
}

/// The channel for a foundry's answers.
#[derive(Clone, Debug)]
pub(crate) struct Answers {
    run: RunId,
    foundry: FoundryNumber,
    arrivals: mpsc::Sender<Arrival>,
}

impl Answers {
    pub(crate) const fn new(
        run: RunId,
        foundry: FoundryNumber,
        arrivals: mpsc::Sender<Arrival>,
    ) -> Self {
        Self {
            run,
            foundry,
            arrivals,
        }
    }

    /// The run whose foundry answers.
    pub(crate) const fn run(&self) -> &RunId {
        &self.run
    }

    /// Gives an answer. If the shell has ended, nobody needs it.
    pub(crate) async fn give(&self, answer: Answer) {
        let arrival = Arrival::Foundry {
            run: self.run.clone(),
            foundry: self.foundry,
            answer,
        };
        let _ = self.arrivals.send(arrival).await;
    }

    /// Gives an answer from a place that must not wait.
    fn give_beside(&self, answer: Answer) {
        let answers = self.clone();
        tokio::spawn(async move { answers.give(answer).await });
    }
}
