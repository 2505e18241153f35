//! Answers to operators' requests for views.

use ledger::Run;
use schemas::control::{Query, View, ViewReply};
use schemas::view::{RunDetail, RunView};
use schemas::{Message, RunId, V};

use crate::control::Ordered;
use crate::coordinator::{Coordinator, run_unknown};
use crate::effect::Answer;
use crate::run::view::{lease_views, open_view, worker_views};
use crate::turn::Outcome;

impl Coordinator {
    pub(crate) fn view(&self, query: &Query) -> Ordered {
        let known = |name: &RunId| self.state.run(name).ok_or_else(|| run_unknown(name));
        let view = match query {
            Query::Runs => {
                let runs = self.state.runs();
                View::Runs(runs.map(|(name, run)| self.run_view(name, run)).collect())
            }
            Query::Run(name) => {
                let run = known(name)?;
                View::Run(Box::new(RunDetail {
                    view: self.run_view(name, run),
                    spec: run.spec.clone(),
                    spec_digest: run.spec_digest,
                }))
            }
            Query::Workers(name) => {
                View::Workers(worker_views(name, known(name)?, self.live.get(name)))
            }
            Query::Leases(name) => {
                View::Leases(lease_views(name, known(name)?, self.live.get(name)))
            }
            Query::Rounds(name) => View::Rounds(known(name)?.round_views()),
            Query::Snapshots(name) => View::Snapshots(known(name)?.snapshot_views()),
        };
        let answer = fit(ViewReply { v: V, view });
        Ok(Outcome::Now(Answer::View(Box::new(answer))))
    }

    fn run_view(&self, name: &RunId, run: &Run) -> RunView {
        match self.live.get(name) {
            Some(live) => open_view(name, run, live, self.now),
            None => {
                let mut view = run.view(name);
                let moved = self.over.get(name).copied().unwrap_or_default();
                view.bytes_down = moved.down;
                view
            }
        }
    }
}

/// Cuts a list until it fits into one message: the oldest rounds and snapshots are left out, and
/// the last workers and leases.
fn fit(mut reply: ViewReply) -> ViewReply {
    while reply.encode().len() > ViewReply::BYTES_MAX {
        match &mut reply.view {
            View::Runs(list) => list.truncate(list.len() / 2),
            View::Workers(list) => list.truncate(list.len() / 2),
            View::Leases(list) => list.truncate(list.len() / 2),
            View::Rounds(list) => drop(list.drain(..list.len().div_ceil(2))),
            View::Snapshots(list) => drop(list.drain(..list.len().div_ceil(2))),
            View::Run(_) => return reply,
        }
    }
    reply
}
