//! Answers to operators' requests for views.

use ledger::Run;
use schemas::control::{Query, View, ViewReply};
use schemas::view::{CoordinatorView, RunDetail, RunPhase, RunView};
use schemas::{Message, RunId, V};

use crate::control::ControlOutcome;
use crate::coordinator::{Coordinator, run_unknown};
use crate::effect::Answer;
use crate::run::view::{lease_views, open_view, worker_views};
use crate::tenant::ended;
use crate::turn::Outcome;

impl Coordinator {
    pub(crate) fn view(&self, query: &Query) -> ControlOutcome {
        let known = |name: &RunId| self.state.run(name).ok_or_else(|| run_unknown(name));
        let view = match query {
            Query::Coordinator => View::Coordinator(CoordinatorView {
                release: self.settings.release.clone(),
                posture: self.settings.posture.clone(),
                now: self.now,
                // These two are the shell's, which adds them.
                manifest_key: None,
                log: None,
            }),
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
            Query::Tenants => View::Tenants(self.tenant_views()),
            Query::Snapshots(name) => View::Snapshots(known(name)?.snapshot_views()),
        };
        let answer = fit(ViewReply { v: V, view }, ViewReply::BYTES_MAX);
        Ok(Outcome::Now(Answer::View(Box::new(answer))))
    }

    fn run_view(&self, name: &RunId, run: &Run) -> RunView {
        let mut view = self.own_view(name, run);
        let tenant = name.tenant().filter(|tenant| self.state.has_ended(tenant));
        if let Some(tenant) = tenant.filter(|_| view.completed_at.is_none()) {
            // It waits for nobody: it is frozen for good.
            view.phase = RunPhase::Halted;
            (view.halted, view.trouble) = (Some(ended(&tenant)), None);
        }
        view
    }

    fn own_view(&self, name: &RunId, run: &Run) -> RunView {
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

/// Cuts a list until it fits into one message: the oldest rounds and snapshots go, and the last
/// workers and leases.
fn fit(mut reply: ViewReply, bytes_max: usize) -> ViewReply {
    while reply.encode().len() > bytes_max {
        match &mut reply.view {
            View::Runs(list) => list.truncate(list.len() / 2),
            View::Workers(list) => list.truncate(list.len() / 2),
            View::Leases(list) => list.truncate(list.len() / 2),
            View::Rounds(list) => drop(list.drain(..list.len().div_ceil(2))),
            View::Snapshots(list) => drop(list.drain(..list.len().div_ceil(2))),
            View::Coordinator(_) | View::Run(_) | View::Tenants(_) => return reply,
        }
    }
    reply
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use schemas::view::{LeaseView, RoundView, SnapshotView, WorkerView};
    use schemas::{Epoch, Round};

    use super::*;
    use crate::fixture::*;

    /// A view of this many bytes less than it needs.
    fn cut(view: View, short: usize) -> View {
        let reply = ViewReply { v: V, view };
        let bytes_max = reply.encode().len() - short;
        fit(reply, bytes_max).view
    }

    /// The view of a run in which worker 1 trains.
    fn shown(query: Query) -> View {
        let mut world = World::with_run(spec("demo"));
        world.join(1);
        world.lease(1);
        match world.core.view(&query) {
            Ok(Outcome::Now(Answer::View(reply))) => reply.view,
            other => panic!("no view: {other:?}"),
        }
    }

    #[test]
    fn lists_that_are_too_long_for_a_message_lose_their_oldest_or_their_last_half() {
        let (View::Runs(runs), View::Workers(workers), View::Leases(leases), View::Rounds(rounds)) = (
            shown(Query::Runs),
            shown(Query::Workers(run_id())),
            shown(Query::Leases(run_id())),
            shown(Query::Rounds(run_id())),
        ) else {
            panic!("other views were asked for")
        };
        let run = |n: u64| RunView {
            run: format!("run-{n}").parse().expect("a name"),
            ..runs[0].clone()
        };
        let worker = |n: u64| WorkerView {
            worker: worker(n as u32),
            ..workers[0].clone()
        };
        let lease = |n: u64| {
            let mut view: LeaseView = leases[0].clone();
            view.lease.epoch = Epoch(n);
            view
        };
        let round = |n: u64| RoundView {
            round: Round(n),
            ..rounds[0].clone()
        };
        let snapshot = |n: u64| SnapshotView {
            statement: None,
            pointers: Vec::new(),
            round: Round(n),
            manifest: object("snapshot"),
            saved_at: START,
            undone: false,
            given_up: None,
            quarantined: None,
        };
        type List<'a> = &'a dyn Fn(Range<u64>) -> View;
        let lists: [(List<'_>, Range<u64>); 5] = [
            (&|n| View::Runs(n.map(run).collect()), 0..2),
            (&|n| View::Workers(n.map(worker).collect()), 0..2),
            (&|n| View::Leases(n.map(lease).collect()), 0..2),
            (&|n| View::Rounds(n.map(round).collect()), 3..5),
            (&|n| View::Snapshots(n.map(snapshot).collect()), 3..5),
        ];
        for (list, left) in lists {
            assert_eq!(cut(list(0..5), 0), list(0..5), "it fits");
            assert_eq!(cut(list(0..5), 1), list(left));
        }
    }
}
