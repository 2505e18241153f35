//! The shell's memory between a request and its answer, and the refusals of requests that still
//! wait when the process ends.

use std::collections::BTreeMap;

use coordinator_core::ReplyId;
use schemas::hold::AtStore;
use schemas::view::RunView;
use schemas::{Code, Refusal, RunId};
use tokio::sync::mpsc;

use super::Shell;
use crate::answer::ReplyTo;
use crate::arrival::Arrival;
use crate::foundry::{Foundry, FoundryNumber};
use crate::grants::Granted;
use crate::queue::Deliveries;

/// The shell's memory between a request and its answer. If it is lost, requests are repeated, and
/// no result is lost.
#[derive(Default)]
pub(crate) struct Tables {
    pub(super) replies: BTreeMap<ReplyId, (Asker, ReplyTo)>,
    replied: u64,
    pub(super) deliveries: Deliveries,
    pub(super) granted: Granted,
    pub(super) foundries: BTreeMap<RunId, Foundry>,
    /// Number of foundries started.
    founded: u64,
    /// The problem that holds each run up, as last logged.
    troubles: BTreeMap<RunId, Code>,
}

/// A sender that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    Worker,
    Operator,
}

impl Tables {
    pub(super) fn expect_reply(&mut self, asker: Asker, to: ReplyTo) -> ReplyId {
        self.replied += 1;
        let reply = ReplyId(self.replied);
        self.replies.insert(reply, (asker, to));
        reply
    }

    /// Logs why a run is held up, once for each reason.
    pub(super) fn tell_trouble(&mut self, view: &RunView) {
        let run = &view.run;
        let Some(why) = view.halted.as_ref().or(view.trouble.as_ref()) else {
            if self.troubles.remove(run).is_some() {
                tracing::info!(%run, "nothing holds the run up any more");
            }
            return;
        };
        if self.troubles.insert(run.clone(), why.code) != Some(why.code) {
            let state = if view.halted.is_some() {
                "halted"
            } else {
                "held up"
            };
            tracing::warn!(%run, code = %why.code, next = why.code.next_step(), "the run is {state}: {}", why.detail);
        }
    }

    pub(super) fn next_foundry(&mut self) -> FoundryNumber {
        self.founded += 1;
        FoundryNumber(self.founded)
    }

    /// True for the foundry that works for `run` now.
    pub(super) fn works_for(&self, run: &RunId, foundry: FoundryNumber) -> bool {
        let present = self.foundries.get(run);
        present.is_some_and(|present| present.number() == foundry)
    }

    pub(super) fn forget(&mut self, run: &RunId) {
        self.troubles.remove(run);
        self.foundries.remove(run);
    }
}

impl Shell {
    /// Tells the senders that still wait that this process gives no answer, so that they ask its
    /// successor at once and not after their time-out. Grants of uploads are answered by their own
    /// task, or not at all.
    ///
    /// If another coordinator has taken the lead (`fenced`), operators are told nothing: the other
    /// one may answer the same order, and `diloctl` takes the first answer as final. A worker asks
    /// again in any case, and two answers have one effect.
    ///
    /// An order whose event is in the ledger is answered with what is known, in any case.
    pub(super) async fn decline(&mut self, queue: &mut mpsc::Receiver<Arrival>, fenced: bool) {
        let orders = self.purges.give_up();
        self.answer_orders(orders, None, AtStore::Later).await;
        while let Ok(arrival) = queue.try_recv() {
            match arrival {
                Arrival::Worker { reply, .. } => {
                    _ = self.tables.expect_reply(Asker::Worker, reply);
                }
                Arrival::Operator { reply, .. } => {
                    _ = self.tables.expect_reply(Asker::Operator, reply);
                }
                _ => {}
            }
        }
        let refusal = Refusal::new(
            Code::Draining,
            "this coordinator ends before it has an answer; ask again",
        );
        for (asker, to) in std::mem::take(&mut self.tables.replies).into_values() {
            if asker == Asker::Worker || !fenced {
                to.send(&self.bus, Err(refusal.clone())).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_present_foundry_of_a_run_is_heard() {
        let run: RunId = "demo".parse().expect("a name");
        let mut tables = Tables::default();
        let (old, new) = (tables.next_foundry(), tables.next_foundry());
        assert!(!tables.works_for(&run, old), "there is none yet");
        for (number, heard) in [(old, [true, false]), (new, [false, true])] {
            let foundry = Foundry::idle(run.clone(), number);
            tables.foundries.insert(run.clone(), foundry);
            assert_eq!(
                [old, new].map(|number| tables.works_for(&run, number)),
                heard
            );
        }
        tables.forget(&run);
        assert!(!tables.works_for(&run, new), "it was told to end");
    }
}
