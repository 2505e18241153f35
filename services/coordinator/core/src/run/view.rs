//! Views of a run for operators and watchers: the ledger's view, filled in with the workers'
//! reports about themselves.

use ledger::Run;
use schemas::member::Posture;
use schemas::public::Status;
use schemas::view::{LeaseView, RunPhase, RunView, WorkerView};
use schemas::{Code, Millis, Refusal, RunId, Steps, UnixMillis, V, WorkerId};

use crate::deadline::RunTimer;
use crate::effect::Effect;
use crate::run::RunRoom;
use crate::run::failures::{named, nobody_gets_through};
use crate::run::live::LiveRun;
use crate::turn::Turn;

/// Least time between two published views of a run: people read no faster.
const STATUS_EVERY_MIN: Millis = Millis(500);
/// Longest time between two published views of an open run, so that a new watcher sees one soon.
const STATUS_EVERY_MAX: Millis = Millis::from_secs(5);

/// Members that were silent for this long do not count as present, long before they count as lost:
/// a worker sends something every few seconds.
const UNHEARD_MAX: Millis = Millis::from_secs(30);

impl RunRoom<'_> {
    /// Notes a change of the run, whose view is due soon.
    pub(crate) fn mark_changed(&mut self, turn: &mut Turn<'_>) {
        self.live.changed = true;
        let due_at = self.live.published_at.after(STATUS_EVERY_MIN).max(turn.now);
        self.wake(turn, due_at, RunTimer::Status);
    }

    pub(crate) fn status_due(&mut self, turn: &mut Turn<'_>) {
        let wait = if self.live.changed {
            STATUS_EVERY_MIN
        } else {
            STATUS_EVERY_MAX
        };
        if self.live.published_at.after(wait) <= turn.now {
            self.publish(turn);
        }
    }

    pub(crate) fn publish(&mut self, turn: &mut Turn<'_>) {
        let view = open_view(self.run.name(), &self.run, self.live, turn.now);
        self.live.changed = false;
        self.live.published_at = turn.now;
        self.wake(turn, turn.now.after(STATUS_EVERY_MAX), RunTimer::Status);
        let now = turn.now;
        turn.out
            .push(Effect::Publish(Box::new(Status { v: V, now, view })));
    }
}

/// A summary of an open run.
pub(crate) fn open_view(name: &RunId, run: &Run, live: &LiveRun, now: UnixMillis) -> RunView {
    let mut view = run.view(name);
    view.bytes_down = live.traffic.down;
    if let Some(halted) = &live.foundry.halted {
        (view.phase, view.halted) = (RunPhase::Halted, Some(halted.clone()));
    }
    view.trouble = trouble(run, live, now);
    let heartbeats = live
        .presence
        .values()
        .filter_map(|presence| presence.heartbeat.as_ref());
    for heartbeat in heartbeats {
        view.tokens_per_second += heartbeat.tokens_per_second;
    }
    view
}

/// The problem that holds a run up, if it passes by itself or when another worker starts: too few
/// or no workers, an order that the foundry tries again, a unit that fails.
fn trouble(run: &Run, live: &LiveRun, now: UnixMillis) -> Option<Refusal> {
    let (ready, least) = (run.ready(), run.spec.policy.workers_min);
    if let Some(deserted) = deserted(run, live, now) {
        return Some(deserted);
    }
    if run.rounds.is_empty() && ready < least {
        let present = run.present();
        let seated = match present == ready {
            true => String::new(),
            false => format!(" ({present} members; a group is one, once it is complete)"),
        };
        let detail = format!("{ready} of at least {least} workers are members{seated}");
        return Some(Refusal::new(Code::TooFewWorkers, detail));
    }
    let foundry = live
        .foundry
        .trouble
        .as_ref()
        .or(live.foundry.compare_trouble.as_ref())
        .or(live.foundry.save_trouble.as_ref())
        .cloned();
    let of_a_unit = || {
        live.failures
            .iter()
            .find_map(|(unit, failures)| failures.as_trouble(unit))
    };
    foundry
        .or_else(of_a_unit)
        .or_else(|| nobody_gets_through(run, live))
}

/// The reason why nobody works for a run that has had workers.
fn deserted(run: &Run, live: &LiveRun, now: UnixMillis) -> Option<Refusal> {
    if run.members.is_empty() {
        return None;
    }
    let heard_at = |worker: &WorkerId| live.presence.get(worker).map(|presence| presence.heard_at);
    // A worker that waits for an answer from here is present.
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
    let shut_out = run.quarantined.keys();
    let shut_out = shut_out.filter(|worker| run.members.contains_key(*worker));
    // Nobody counts twice: a worker may be removed before it comes into quarantine.
    let shut_out = shut_out.filter(|worker| !run.members[*worker].removed);
    let shut_out = shut_out.count();
    let left = run.members.len() - silent - removed - shut_out;
    let mut detail = format!(
        "no worker was heard for {since} s: of {} that joined, {left} left, {removed} were removed, {silent} are silent",
        run.members.len()
    );
    if shut_out > 0 {
        detail.push_str(&format!(", {shut_out} are in quarantine"));
    }
    if !live.last_failures.is_empty() {
        detail.push_str(&format!(
            "; what they failed with: {}",
            named(live.last_failures.iter())
        ));
    }
    Some(Refusal::new(Code::NoWorkerLeft, detail))
}

pub(crate) fn worker_views(name: &RunId, run: &Run, live: Option<&LiveRun>) -> Vec<WorkerView> {
    let mut views: Vec<WorkerView> = Vec::with_capacity(run.members.len());
    for (worker, member) in &run.members {
        let presence = live.and_then(|live| live.presence.get(worker));
        let heartbeat = presence.and_then(|presence| presence.heartbeat.as_ref());
        views.push(WorkerView {
            worker: worker.clone(),
            account: Some(member.account.clone()),
            run: name.clone(),
            member: member.present,
            quarantined: run.is_quarantined(worker),
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
    let strangers = run.quarantined.iter();
    let strangers = strangers.filter(|(worker, _)| !run.members.contains_key(*worker));
    views.extend(strangers.map(|(worker, record)| WorkerView {
        worker: worker.clone(),
        account: None,
        run: name.clone(),
        member: false,
        quarantined: true,
        device: String::new(),
        release: String::new(),
        posture: Posture::default(),
        phase: None,
        lease: None,
        tokens_per_second: 0.0,
        accepted: 0,
        rejected: 0,
        heard_at: record.since,
    }));
    // Members first, since a list that is too long for one message is cut at its end.
    views.sort_by_key(|view| !view.member);
    views
}

pub(crate) fn lease_views(name: &RunId, run: &Run, live: Option<&LiveRun>) -> Vec<LeaseView> {
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
