//! What operators and watchers see: the state, with what workers say of themselves filled in.

use ledger::Run;
use schemas::control::{Query, View, ViewReply};
use schemas::public::Status;
use schemas::view::{LeaseView, RunDetail, RunPhase, RunView, WorkerView};
use schemas::{Code, Message, Millis, Refusal, RunId, Steps, UnixMillis, V, WorkerId};

use crate::coordinator::{Coordinator, run_unknown};
use crate::deadline::Timer;
use crate::effect::{Answer, Effect};
use crate::failure::{named, nobody_gets_through};
use crate::input::ReplyId;
use crate::live::LiveRun;

/// A run that changes is published at most twice a second: people read no faster.
const STATUS_EVERY_MIN: Millis = Millis(500);
/// An open run is published at least this often, so that whoever begins to watch sees it soon.
const STATUS_EVERY_MAX: Millis = Millis::from_secs(5);

/// Members that were not heard for this long are no help to anybody who waits, long before they
/// count as lost: they say something every few seconds.
const UNHEARD_MAX: Millis = Millis::from_secs(30);

impl Coordinator {
    pub(crate) fn view(&mut self, query: &Query, reply: ReplyId) -> Result<(), Refusal> {
        let known = |name: &RunId| self.state.run(name).ok_or_else(|| run_unknown(name));
        let view = match query {
            Query::Runs => View::Runs(
                self.state
                    .runs()
                    .map(|(name, run)| self.run_view(name, run))
                    .collect(),
            ),
            Query::Run(name) => {
                let run = known(name)?;
                let view = self.run_view(name, run);
                View::Run(Box::new(RunDetail {
                    view,
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
        self.reply(reply, Ok(Answer::View(Box::new(answer))));
        Ok(())
    }

    fn run_view(&self, name: &RunId, run: &Run) -> RunView {
        let mut view = run.view(name);
        let traffic = self.traffic.get(name).copied().unwrap_or_default();
        view.bytes_down = traffic.down;
        let Some(live) = self.live.get(name) else {
            return view;
        };
        if let Some(halted) = &live.executor.halted {
            (view.phase, view.halted) = (RunPhase::Halted, Some(halted.clone()));
        }
        view.trouble = trouble(run, live, self.now);
        for heartbeat in live
            .presence
            .values()
            .filter_map(|presence| presence.heartbeat.as_ref())
        {
            view.tokens_per_second += heartbeat.tokens_per_second;
        }
        view
    }

    /// Something about a run changed: its status is due soon.
    pub(crate) fn mark_changed(&mut self, name: &RunId) {
        let Some(live) = self.live.get_mut(name) else {
            return;
        };
        live.changed = true;
        let due_at = live.published_at.after(STATUS_EVERY_MIN).max(self.now);
        self.timers.set(due_at, Timer::Status(name.clone()));
    }

    pub(crate) fn status_due(&mut self, name: &RunId) {
        let Some(live) = self.live.get(name) else {
            return;
        };
        let wait = if live.changed {
            STATUS_EVERY_MIN
        } else {
            STATUS_EVERY_MAX
        };
        if live.published_at.after(wait) <= self.now {
            self.publish(name);
        }
    }

    pub(crate) fn publish(&mut self, name: &RunId) {
        let Some(view) = self.state.run(name).map(|run| self.run_view(name, run)) else {
            return;
        };
        let now = self.now;
        if let Some(live) = self.live.get_mut(name) {
            live.changed = false;
            live.published_at = now;
            self.timers
                .set(now.after(STATUS_EVERY_MAX), Timer::Status(name.clone()));
        }
        self.out
            .push(Effect::Publish(Box::new(Status { v: V, now, view })));
    }
}

/// What holds a run up and passes by itself, or as soon as somebody starts a worker: too few or
/// none of them, what the executor tries again, a unit that fails.
fn trouble(run: &Run, live: &LiveRun, now: UnixMillis) -> Option<Refusal> {
    let (present, least) = (run.present(), run.spec.policy.workers_min);
    if let Some(deserted) = deserted(run, live, now) {
        return Some(deserted);
    }
    if run.rounds.is_empty() && present < least {
        let detail = format!("{present} of at least {least} workers are members");
        return Some(Refusal::new(Code::TooFewWorkers, detail));
    }
    let executor = live
        .executor
        .trouble
        .as_ref()
        .or(live.executor.save_trouble.as_ref())
        .cloned();
    let of_a_unit = || {
        live.failures
            .iter()
            .find_map(|(unit, failures)| failures.as_trouble(unit))
    };
    executor
        .or_else(of_a_unit)
        .or_else(|| nobody_gets_through(run, live))
}

/// Why nobody works for a run that has had workers.
fn deserted(run: &Run, live: &LiveRun, now: UnixMillis) -> Option<Refusal> {
    if run.members.is_empty() {
        return None;
    }
    let heard_at = |worker: &WorkerId| live.presence.get(worker).map(|presence| presence.heard_at);
    // A worker that waits for our answer is present.
    let heard = |worker: &WorkerId| {
        live.claims.get(worker).is_some()
            || heard_at(worker).is_some_and(|at| at.after(UNHEARD_MAX) > now)
    };
    let present = run
        .members
        .iter()
        .filter(|(_, member)| member.present)
        .map(|(worker, _)| worker);
    if present.clone().any(heard) {
        return None;
    }
    let last = run
        .members
        .iter()
        .map(|(worker, member)| heard_at(worker).unwrap_or(member.since))
        .max()?;
    let since = last.until(now).get() / 1000;
    let silent = present.count();
    let removed = run.members.values().filter(|member| member.removed).count();
    let left = run.members.len() - silent - removed;
    let mut detail = format!(
        "no worker was heard for {since} s: of {} that joined, {left} left, {removed} were removed, {silent} are silent",
        run.members.len()
    );
    if !live.last_failures.is_empty() {
        detail.push_str(&format!(
            "; what they failed with: {}",
            named(live.last_failures.iter())
        ));
    }
    Some(Refusal::new(Code::NoWorkerLeft, detail))
}

fn worker_views(name: &RunId, run: &Run, live: Option<&LiveRun>) -> Vec<WorkerView> {
    let mut views: Vec<WorkerView> = Vec::with_capacity(run.members.len());
    for (worker, member) in &run.members {
        let presence = live.and_then(|live| live.presence.get(worker));
        let heartbeat = presence.and_then(|presence| presence.heartbeat.as_ref());
        views.push(WorkerView {
            worker: worker.clone(),
            account: member.account.clone(),
            run: name.clone(),
            member: member.present,
            device: member.device.clone(),
            release: member.release.clone(),
            posture: member.posture.clone(),
            phase: heartbeat.map(|heartbeat| heartbeat.phase),
            lease: member.lease,
            tokens_per_second: heartbeat.map_or(0.0, |heartbeat| heartbeat.tokens_per_second),
            accepted: member.accepted,
            rejected: member.rejected,
            heard_at: presence.map_or(member.since, |presence| presence.heard_at),
        });
    }
    // Members first: the list is cut at its end when it is too long for one message.
    views.sort_by_key(|view| !view.member);
    views
}

fn lease_views(name: &RunId, run: &Run, live: Option<&LiveRun>) -> Vec<LeaseView> {
    let view =
        |(lease, worker, since): (schemas::lease::LeaseRef, &schemas::WorkerId, UnixMillis)| {
            let held = live.and_then(|live| live.leases.get(&lease.unit));
            LeaseView {
                run: name.clone(),
                lease,
                worker: worker.clone(),
                expires_at: held.map_or(since.after(run.spec.policy.lease), |held| held.expires_at),
                steps_done: held.map_or(Steps(0), |held| held.steps_done),
            }
        };
    run.leases().map(view).collect()
}

/// Cuts a list until it fits into one message: the oldest rounds and snapshots go, and the last
/// workers and leases.
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
