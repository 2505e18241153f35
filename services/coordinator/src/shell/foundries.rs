//! The foundries of the runs that are open: orders to them, and their answers as inputs.

use std::sync::Arc;

use coordinator_core::{Effect, Input};
use runtime::Failure;
use schemas::foundry::{Answer, Order};
use schemas::{Code, RunId};
use serde_bytes::{ByteArray, ByteBuf};

use super::Shell;
use crate::foundry::{Answers, Foundry};

impl Shell {
    /// Gives an order to the foundry of `run`. The first is to restore its weights, which starts it;
    /// the last is to forget them, which ends it.
    pub(super) async fn order(&mut self, run: RunId, order: Order) -> Result<(), Failure> {
        if matches!(order, Order::Forget) {
            self.tables.forget(&run);
            return Ok(());
        }
        if matches!(order, Order::Restore { .. }) && !self.tables.foundries.contains_key(&run) {
            let answers = Answers::new(run.clone(), self.arrivals.clone());
            let foundry = Foundry::start(run.clone(), &self.domain, self.store.clone(), answers);
            self.tables.foundries.insert(run.clone(), foundry);
        }
        let foundry = self.tables.foundries.get(&run);
        let foundry = foundry
            .ok_or_else(|| Failure::new(Code::Internal, format!("run {run} was never restored")))?;
        Ok(foundry.order(order).await?)
    }
}

/// The order that an effect stands for.
///
/// # Panics
/// It is none for a foundry.
pub(super) fn order(effect: Effect) -> (RunId, Order) {
    match effect {
        Effect::Stage {
            run,
            lease,
            worker,
            index,
            object,
        } => (
            run,
            Order::Stage {
                lease,
                worker,
                index,
                object,
            },
        ),
        Effect::Unstage { run, lease } => (run, Order::Unstage { lease }),
        Effect::Screen {
            screening,
            spec,
            worker,
            audit_key,
            submission,
        } => (
            spec.run,
            Order::Screen {
                screening,
                worker,
                audit_key,
                statement: ByteBuf::from(submission.bytes),
                signature: ByteArray::new(submission.signature),
            },
        ),
        Effect::Merge { run, sync, inputs } => (run, Order::Merge { sync, inputs }),
        Effect::Save {
            run,
            round,
            parent,
            merges,
        } => (
            run,
            Order::Save {
                round,
                parent,
                merges,
            },
        ),
        Effect::Restore {
            spec,
            snapshot,
            merges,
        } => (
            spec.run.clone(),
            Order::Restore {
                spec,
                snapshot,
                merges,
            },
        ),
        Effect::Forget { run } => (run, Order::Forget),
        other => unreachable!("no order to a foundry: {other:?}"),
    }
}

/// An answer as the core understands it.
pub(super) fn input(run: RunId, answer: Answer) -> Input {
    match answer {
        Answer::DataLoaded { data } => Input::DataLoaded {
            run,
            data: Arc::from(data),
        },
        Answer::Restored { outcome } => Input::Restored { run, outcome },
        Answer::Screened { screening, verdict } => Input::Screened { screening, verdict },
        Answer::Merged { sync, outcome } => Input::Merged { run, sync, outcome },
        Answer::Saved { round, outcome } => Input::Saved {
            run,
            round,
            outcome,
        },
    }
}
