//! The rule for who may evaluate. The next round matters more than a held-out evaluation, so a
//! worker evaluates when it would otherwise be idle.

use std::collections::BTreeMap;

use ledger::{Run, Standing, Unit};
use schemas::lease::{LeaseRef, UnitId, UnitKind};
use schemas::{Millis, UnixMillis, WorkerId};

use crate::run::live::LiveRun;

/// Most evaluations that may wait for an idle worker. Each keeps its weights in the store, so there
/// is a limit.
const EVALUATIONS_WAITING_MAX: usize = 8;

/// The times that units took during the life of this process. Without a measurement no worker
/// counts as idle.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    /// The time of each worker's last training unit.
    training: BTreeMap<WorkerId, Millis>,
    /// The time of each worker's last evaluation.
    evaluation: BTreeMap<WorkerId, Millis>,
}

impl Spans {
    /// Notes the time of a result that counts, whose lease was granted at `since`.
    pub(crate) fn note(
        &mut self,
        unit: &UnitId,
        worker: &WorkerId,
        since: UnixMillis,
        now: UnixMillis,
    ) {
        let spans = match unit.kind {
            UnitKind::Train => &mut self.training,
            UnitKind::Evaluate => &mut self.evaluation,
        };
        spans.insert(worker.clone(), since.until(now));
    }

    /// The time that an evaluation would take `worker`. If the worker has made none, this is its
    /// time for training on as many tokens, which is longer: training does the same and then the
    /// backward pass.
    fn evaluation(&self, run: &Run, worker: &WorkerId) -> Option<Millis> {
        if let Some(span) = self.evaluation.get(worker) {
            return Some(*span);
        }
        let schedule = &run.spec.schedule;
        let evaluated =
            u128::from(schedule.evaluation_sequences) * u128::from(schedule.sequence_tokens);
        let trained = u128::from(run.spec.unit_tokens().get()).max(1);
        let span = u128::from(self.training.get(worker)?.get());
        // Fetching other weights takes time too, however short the text is.
        Some(Millis(
            u64::try_from(span * evaluated.max(trained / 4) / trained).unwrap_or(u64::MAX),
        ))
    }
}

/// True while evaluations come before training. This begins when there is one evaluation for each
/// worker, or [`EVALUATIONS_WAITING_MAX`], and ends when only that of the open round is left, which
/// comes after the round's training. So in a run that always needs every worker, all evaluate at
/// the same time, nobody is idle, and a loss is known a few rounds later at most.
pub(crate) fn catches_up(run: &Run, before: bool) -> bool {
    let open = |(unit, state): &(&UnitId, &Unit)| {
        unit.kind == UnitKind::Evaluate && state.standing == Standing::Open
    };
    let waiting = run.units.iter().filter(open).count();
    let shared = EVALUATIONS_WAITING_MAX.min(run.present().max(1) as usize);
    waiting > shared || before && waiting > 1
}

/// True when `worker` may evaluate although the run has rounds to go: the other workers suffice for
/// the next round, or this worker would be idle for longer than the evaluation takes, or too many
/// evaluations wait.
pub(crate) fn may_evaluate(run: &Run, live: &LiveRun, worker: &WorkerId, now: UnixMillis) -> bool {
    if run.all_rounds_closed() || live.catching_up {
        return true;
    }
    let evaluates = |lease: &LeaseRef| lease.unit.kind == UnitKind::Evaluate;
    let others = run
        .members
        .iter()
        .filter(|(other, member)| member.present && *other != worker);
    let to_train = others
        .filter(|(_, member)| !member.lease.as_ref().is_some_and(evaluates))
        .count();
    to_train >= run.spec.schedule.units as usize || would_wait(run, live, worker, now)
}

/// True when the open round will last longer than an evaluation takes this worker, judged by the
/// times of earlier units.
fn would_wait(run: &Run, live: &LiveRun, worker: &WorkerId, now: UnixMillis) -> bool {
    let Some(needed) = live.spans.evaluation(run, worker) else {
        return false;
    };
    let open = run
        .units
        .iter()
        .any(|(unit, state)| unit.kind == UnitKind::Train && state.standing == Standing::Open);
    let left = |(lease, holder, since): (LeaseRef, &WorkerId, UnixMillis)| {
        let span = (lease.unit.kind == UnitKind::Train)
            .then(|| live.spans.training.get(holder))
            .flatten()?;
        Some(*span - since.until(now))
    };
    // An open unit is this worker's next work, and not something to wait for.
    !open
        && run
            .leases()
            .filter_map(left)
            .max()
            .is_some_and(|left| left > needed)
}
