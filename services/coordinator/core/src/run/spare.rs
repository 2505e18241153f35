//! The rule by which a worker may evaluate. Held-out evaluation is worth less than the next round,
//! so it is given to a worker that would otherwise be idle.

use std::collections::BTreeMap;

use ledger::{Run, Standing, Unit};
use schemas::lease::{LeaseRef, UnitId, UnitKind};
use schemas::{Millis, UnixMillis, WorkerId};

use crate::run::live::LiveRun;

/// Most evaluations that may wait for a worker to spare. Each keeps the weights that it reads, so
/// there is a bound.
const EVALUATIONS_WAITING_MAX: usize = 8;

/// The times that units took in this process's life. Without a measurement no worker is taken for
/// idle.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    /// The last training unit of each worker.
    training: BTreeMap<WorkerId, Millis>,
    /// The last evaluation of each worker.
    evaluation: BTreeMap<WorkerId, Millis>,
}

impl Spans {
    /// A result of a lease that was granted at `since` counts.
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

    /// The time that an evaluation would take `worker`. As long as the worker never made one, it is
    /// the time of training on as many tokens, which is more: training does the same and then the
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
        // Fetching other weights takes time as well, whatever the length of the text.
        Some(Millis(
            u64::try_from(span * evaluated.max(trained / 4) / trained).unwrap_or(u64::MAX),
        ))
    }
}

/// True when so many evaluations wait that they come first, until none is left but that of the open
/// round, which comes after the round's training. That is as soon as there is one for each worker:
/// in a run of which every worker is always needed all evaluate at the same time then, nobody idle,
/// and the run sees how it does a few rounds later at most.
pub(crate) fn catches_up(run: &Run, before: bool) -> bool {
    let open = |(unit, state): &(&UnitId, &Unit)| {
        unit.kind == UnitKind::Evaluate && state.standing == Standing::Open
    };
    let waiting = run.units.iter().filter(open).count();
    let shared = EVALUATIONS_WAITING_MAX.min(run.present().max(1) as usize);
    waiting > shared || before && waiting > 1
}

/// True when `worker` may be given an evaluation although the run has rounds to go: the next round
/// finds a worker for each of its units without it, or it would have nothing to do for longer than
/// it takes, or too many evaluations wait.
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

/// True when the open round lasts longer than an evaluation takes this worker, by what units took
/// before.
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
    // A unit that is open again is this worker's next work, not something to wait for.
    !open
        && run
            .leases()
            .filter_map(left)
            .max()
            .is_some_and(|left| left > needed)
}
