//! Answers to operators' requests for views.

use std::num::NonZeroU32;

use ledger::Run;
use schemas::control::{Query, View, ViewReply, ViewRequest};
use schemas::view::{CoordinatorView, RunDetail, RunPhase, RunView};
use schemas::{Message, RunId, V};

use crate::control::ControlOutcome;
use crate::coordinator::{Coordinator, run_unknown};
use crate::effect::Answer;
use crate::run::view::{lease_views, open_view, worker_views};
use crate::tenant::ended;
use crate::turn::Outcome;

impl Coordinator {
    pub(crate) fn view(&self, ViewRequest { v: V, query, rest }: &ViewRequest) -> ControlOutcome {
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
        let answer = fit(of_rest(view, *rest), ViewReply::BYTES_MAX);
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

/// Most rows of one answer: more would seldom fit into a message, and are not written to find out.
const ROWS_MAX: usize = 8192;

/// The rest of a list whose other rows the asker has.
fn of_rest(mut view: View, rest: Option<u32>) -> View {
    if let Some(rest) = rest {
        keep(&mut view, |rows| rows.min(rest as usize), End::Last);
    }
    view
}

/// Cuts a list until it fits into one message: the oldest rounds and snapshots go, and the last
/// runs, workers and leases. The answer says how many; the asker can ask for these.
fn fit(view: View, bytes_max: usize) -> ViewReply {
    let mut reply = ViewReply::of(view);
    let mut left_out = keep(&mut reply.view, |rows| rows.min(ROWS_MAX), End::First);
    loop {
        reply.left_out = u32::try_from(left_out).ok().and_then(NonZeroU32::new);
        if reply.encode().len() <= bytes_max {
            return reply;
        }
        let gone = keep(&mut reply.view, |rows| rows / 2, End::First);
        if gone == 0 {
            return reply;
        }
        left_out += gone;
    }
}

/// An end of a list, in the order in which rows are shown when there is no room for all: the
/// newest rounds and snapshots first, runs and leases by name, members before other workers.
#[derive(Clone, Copy)]
enum End {
    First,
    Last,
}

/// Keeps so many rows at one end of a list; returns the number of the others. What is no list
/// stays as it is.
fn keep(view: &mut View, rows: impl Fn(usize) -> usize, end: End) -> usize {
    fn of<T>(list: &mut Vec<T>, kept: usize, at_the_beginning: bool) -> usize {
        let gone = list.len() - kept;
        match at_the_beginning {
            true => list.truncate(kept),
            false => drop(list.drain(..gone)),
        }
        gone
    }
    let first = matches!(end, End::First);
    match view {
        View::Runs(list) => of(list, rows(list.len()), first),
        View::Workers(list) => of(list, rows(list.len()), first),
        View::Leases(list) => of(list, rows(list.len()), first),
        View::Rounds(list) => of(list, rows(list.len()), !first),
        View::Snapshots(list) => of(list, rows(list.len()), !first),
        View::Coordinator(_) | View::Run(_) | View::Tenants(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use schemas::view::{LeaseView, RoundView, SnapshotView, WorkerView};
    use schemas::{Epoch, Round};

    use super::*;
    use crate::fixture::*;

    /// The answer with a view for which there are this many bytes less than it needs.
    fn cut(view: View, short: usize) -> ViewReply {
        let bytes_max = ViewReply::of(view.clone()).encode().len() - short;
        fit(view, bytes_max)
    }

    /// The view of a run in which worker 1 trains.
    fn shown(query: Query) -> View {
        let mut world = World::with_run(spec("demo"));
        world.join(1);
        world.lease(1);
        match world.core.view(&ViewRequest::of(query)) {
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
        type Case<'a> = (List<'a>, Range<u64>, Range<u64>);
        let lists: [Case<'_>; 5] = [
            (&|n| View::Runs(n.map(run).collect()), 0..2, 2..5),
            (&|n| View::Workers(n.map(worker).collect()), 0..2, 2..5),
            (&|n| View::Leases(n.map(lease).collect()), 0..2, 2..5),
            (&|n| View::Rounds(n.map(round).collect()), 3..5, 0..3),
            (&|n| View::Snapshots(n.map(snapshot).collect()), 3..5, 0..3),
        ];
        for (list, left, rest) in lists {
            assert_eq!(cut(list(0..5), 0), ViewReply::of(list(0..5)), "it fits");
            let answer = cut(list(0..5), 1);
            assert_eq!(
                (answer.view, answer.left_out),
                (list(left), NonZeroU32::new(3))
            );
            assert_eq!(of_rest(list(0..5), Some(3)), list(rest));
            for all in [None, Some(5), Some(9)] {
                assert_eq!(of_rest(list(0..5), all), list(0..5));
            }
            assert_eq!(of_rest(list(0..5), Some(0)), list(0..0));
        }
    }

    #[test]
    fn a_request_for_the_rest_of_a_list_gets_that() {
        let mut world = World::with_run(spec("demo"));
        let mut asked = |rest: Option<u32>| {
            let request = ViewRequest {
                rest,
                ..ViewRequest::of(Query::Runs)
            };
            let reply = world.control(crate::ControlRequest::View(request));
            match &world.answers[&reply] {
                Ok(Answer::View(reply)) => reply.view.clone(),
                other => panic!("no view: {other:?}"),
            }
        };
        assert!(matches!(asked(None), View::Runs(runs) if runs.len() == 1));
        assert!(matches!(asked(Some(1)), View::Runs(runs) if runs.len() == 1));
        assert_eq!(asked(Some(0)), View::Runs(Vec::new()));
    }

    /// It is refused where it is sent.
    #[test]
    fn what_is_no_list_is_not_cut() {
        let view = shown(Query::Coordinator);
        assert_eq!(cut(view.clone(), 1), ViewReply::of(view));
    }

    /// The snapshots of a run of years, as an operator's program reads them: page by page, each
    /// within a message, and none twice.
    #[test]
    fn tl_19_a_list_that_is_longer_than_a_message_comes_page_by_page() {
        let row = |number| SnapshotView {
            statement: Some(object("statement")),
            pointers: Vec::new(),
            round: Round(number),
            manifest: object("snapshot"),
            saved_at: START,
            undone: false,
            given_up: None,
            quarantined: NonZeroU32::new(32),
        };
        let all: Vec<SnapshotView> = (0..20_000).map(row).collect();
        let (mut read, mut rest, mut pages) = (Vec::new(), None, 0);
        loop {
            let asked = of_rest(View::Snapshots(all.clone()), rest);
            let reply = fit(asked, ViewReply::BYTES_MAX);
            assert!(reply.encode().len() <= ViewReply::BYTES_MAX);
            let View::Snapshots(mut page) = reply.view else {
                panic!("another view")
            };
            assert!(page.len() <= ROWS_MAX);
            pages += 1;
            page.append(&mut read);
            read = page;
            match reply.left_out {
                Some(left) => rest = Some(left.get()),
                None => break,
            }
        }
        assert!(pages > 2, "{pages}");
        assert!(read == all);
        // However short rows are, one answer has no more than a turn writes quickly.
        let reply = fit(View::Snapshots(all.clone()), usize::MAX);
        assert!(reply.view == View::Snapshots(all[all.len() - ROWS_MAX..].to_vec()));
        let left = (all.len() - ROWS_MAX) as u32;
        assert_eq!(reply.left_out, NonZeroU32::new(left));
    }
}
