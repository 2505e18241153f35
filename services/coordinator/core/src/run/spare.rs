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
pub(crate) struct UnitTimes {
    /// The time of each worker's last training unit.
    training: BTreeMap<WorkerId, Millis>,
    /// The time of each worker's last evaluation.
    evaluation: BTreeMap<WorkerId, Millis>,
}

impl UnitTimes {
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

    /// The usual time of a training unit of present members other than this one: the upper median
    /// of the last of each. None if fewer than two are known: of one nobody can tell what is usual.
    /// Half of them cannot make it shorter than the others are.
    pub(crate) fn pace_of_others(&self, run: &Run, worker: &WorkerId) -> Option<Millis> {
        let is_present = |other: &WorkerId| {
            let member = run.members.get(other);
            member.is_some_and(|member| member.present)
        };
        let others = self.training.iter();
        let others = others.filter(|(other, _)| *other != worker && is_present(other));
        let mut spans: Vec<Millis> = others.map(|(_, span)| *span).collect();
        spans.sort_unstable();
        (spans.len() >= 2).then(|| spans[spans.len() / 2])
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
        .filter(|(other, member)| member.present && *other != worker && run.may_lease(member));
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
    // Nobody may take a unit whose worker has left a masked round.
    let open = run.units.iter().any(|(unit, state)| {
        unit.kind == UnitKind::Train && state.standing == Standing::Open && !run.is_fixed(unit)
    });
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

#[cfg(test)]
mod tests {
    use ledger::State;
    use schemas::event::LedgerEvent;

    use super::*;
    use crate::fixture::*;

    #[test]
    fn the_usual_pace_is_the_upper_median_of_others_that_are_there() {
        let mut world = World::with_run(spec("demo"));
        (1..=6).for_each(|number| _ = world.join(number));
        let run = world.run().clone();
        let mut spans = UnitTimes::default();
        let mut note = |number: u32, span: u64| {
            let unit = train(0, number);
            spans.note(&unit, &worker(number), START, START.after(Millis(span)));
            spans.pace_of_others(&run, &worker(1))
        };
        assert_eq!(note(1, 9000), None, "its own time does not count");
        assert_eq!(note(2, 100), None, "of one other nobody can tell");
        assert_eq!(note(3, 500), Some(Millis(500)));
        assert_eq!(note(4, 1), Some(Millis(100)));
        assert_eq!(note(5, 2), Some(Millis(100)), "half of them hurry in vain");
        let evaluation = kit::evaluate(0);
        spans.note(&evaluation, &worker(6), START, START.after(Millis(9)));
        assert_eq!(spans.pace_of_others(&run, &worker(1)), Some(Millis(100)));
        // Those that have left say nothing any more: worker 2 was the median.
        let mut left = run.clone();
        let gone = left.members.get_mut(&worker(2)).expect("it has joined");
        gone.present = false;
        assert_eq!(spans.pace_of_others(&left, &worker(1)), Some(Millis(2)));
    }

    /// The guess for worker 1, which trained on 32 tokens in 3,200 ms and never evaluated.
    fn guessed(sequences: u32) -> Option<Millis> {
        let mut spec = spec("demo");
        spec.schedule.evaluation_sequences = sequences;
        let operator = public_key(2);
        let spec = Box::new(spec);
        let created = LedgerEvent::RunCreated { spec, operator };
        let mut state = State::default();
        state
            .apply(START, Some(&run_id()), &created)
            .expect("it is the first");
        let mut spans = UnitTimes::default();
        let end = START.after(Millis(3200));
        spans.note(&train(0, 0), &worker(1), START, end);
        let run = state.run(&run_id()).expect("it was created");
        assert_eq!(spans.evaluation(run, &worker(2)), None);
        spans.evaluation(run, &worker(1))
    }

    #[test]
    fn a_first_evaluation_is_guessed_by_training_on_as_many_tokens_or_a_quarter_of_a_unit() {
        // Sequences of four tokens.
        let spans = [1, 2, 3, 4, 16].map(guessed);
        let expected = [800, 800, 1200, 1600, 6400].map(|ms| Some(Millis(ms)));
        assert_eq!(spans, expected);
    }

    /// A run of two training units a round, and of an evaluation of each version of the weights.
    fn evaluated(workers: u32) -> World {
        let mut spec = spec("demo");
        spec.schedule.evaluation_every = 1;
        let mut world = World::with_run(spec);
        for number in 1..=workers {
            world.join(number);
        }
        world
    }

    #[test]
    fn the_evaluation_of_the_open_round_is_nothing_to_catch_up_with() {
        let world = evaluated(3);
        let waiting = |unit: &&UnitId| unit.kind == UnitKind::Evaluate;
        assert_eq!(world.run().units.keys().filter(waiting).count(), 1);
        assert!(!catches_up(world.run(), true));
    }

    #[test]
    fn a_worker_that_the_round_needs_does_not_count_as_one_of_those_without_it() {
        for (workers, expected) in [(1, false), (2, false), (3, true)] {
            let mut world = evaluated(workers);
            world.core.tell(&run_id(), |room, turn| {
                let may = may_evaluate(&room.run, room.live, &worker(1), turn.now);
                assert_eq!(may, expected, "{workers}");
            });
        }
    }

    #[test]
    fn a_worker_evaluates_meanwhile_only_if_the_round_lasts_longer_than_that() {
        let mut world = evaluated(2);
        world.lease(1);
        world.lease(2);
        world.core.tell(&run_id(), |room, turn| {
            room.live.spans.training.insert(worker(2), Millis(500));
            for (needed, expected) in [(499, true), (500, false)] {
                room.live.spans.evaluation.insert(worker(1), Millis(needed));
                let waits = would_wait(&room.run, room.live, &worker(1), turn.now);
                assert_eq!(waits, expected, "{needed}");
            }
        });
    }
}
