//! Units that fail again and again. The counts live as long as the process: a restart gives the
//! unit out again, and an operator restarts to say that the cause is mended.

use std::collections::BTreeMap;

use ledger::Run;
use schemas::lease::UnitId;
use schemas::{Code, Refusal, UnixMillis, WorkerId};

use crate::denial::cut_text;
use crate::run::RunRoom;
use crate::run::live::LiveRun;
use crate::turn::Turn;

/// A unit that every present worker failed halts the run after this many failures: a single worker
/// gets some tries, since a machine may be out of memory for a moment.
const UNIT_FAILURES_MIN: u32 = 4;
/// From this many failures in a row on, of any workers and without a result in between, the run
/// shows the last failure.
const FAILED_IN_A_ROW_MIN: u32 = 2;
/// Most failures that a reason names, since it is one line on a terminal.
const NAMED_MAX: usize = 3;
/// Most characters of one failure in a reason.
const REASON_CHARACTERS: usize = 160;

/// The failures of one unit.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    total: u32,
    /// The workers that failed it, each with its last reason.
    by: BTreeMap<WorkerId, Refusal>,
}

impl Failures {
    pub(crate) fn is_by(&self, worker: &WorkerId) -> bool {
        self.by.contains_key(worker)
    }

    /// The failures as the trouble that the run shows while the unit is tried again; a single
    /// failure is not shown.
    pub(crate) fn as_trouble(&self, unit: &UnitId) -> Option<Refusal> {
        let (worker, last) = self.by.first_key_value().filter(|_| self.total > 1)?;
        let detail = format!(
            "unit {unit} failed {} times, with {}: {}",
            self.total,
            worker.short(),
            last.detail
        );
        Some(Refusal::new(last.code, detail))
    }

    /// True when another try would not help.
    fn are_enough(&self, run: &Run) -> bool {
        let mut present = run
            .members
            .iter()
            .filter(|(_, member)| member.present && run.may_lease(member))
            .map(|(worker, _)| worker)
            .peekable();
        let by_all = present.peek().is_some() && present.all(|worker| self.is_by(worker));
        by_all && self.total >= UNIT_FAILURES_MIN
    }
}

impl RunRoom<'_> {
    /// Counts a failure of a unit, with the worker's reason.
    pub(crate) fn unit_failed(
        &mut self,
        turn: &mut Turn<'_>,
        unit: UnitId,
        worker: &WorkerId,
        refusal: &Refusal,
    ) {
        let live = &mut *self.live;
        live.last_failures.insert(worker.clone(), refusal.clone());
        live.failed_in_a_row = live.failed_in_a_row.saturating_add(1);
        if !refusal.code.is_of_the_moment() {
            let failures = live.failures.entry(unit).or_default();
            failures.total = failures.total.saturating_add(1);
            failures.by.insert(worker.clone(), refusal.clone());
            self.judge_failures(turn);
        }
    }

    /// Counts a refused result of a unit. Only numbers that training came to can be the unit's
    /// fault. A result of the wrong form is the worker's own fault: the worker is removed when it
    /// continues, and must not halt the run for the others.
    pub(crate) fn result_refused(
        &mut self,
        turn: &mut Turn<'_>,
        unit: UnitId,
        worker: &WorkerId,
        refusal: &Refusal,
    ) {
        if refusal.code.is_about_numbers() {
            self.unit_failed(turn, unit, worker, refusal);
        } else {
            let last = &mut self.live.last_failures;
            last.insert(worker.clone(), refusal.clone());
        }
    }

    /// Takes note of a unit's result: remembers how long the unit took, and forgets its failures.
    pub(crate) fn note_result(&mut self, now: UnixMillis, unit: &UnitId) {
        let mut leases = self.run.leases();
        let held = leases.find(|(lease, ..)| lease.unit == *unit);
        let (_, worker, since) = held.expect("a result that counts is of a lease that is held");
        let live = &mut *self.live;
        live.failures.remove(unit);
        live.last_failures.remove(worker);
        live.failed_in_a_row = 0;
        live.spans.note(unit, worker, since, now);
    }

    /// Halts a run with a unit that fails with every worker, and lets it go on when a worker joins
    /// that has not failed the unit. To be called whenever a unit fails or the members change.
    pub(crate) fn judge_failures(&mut self, turn: &mut Turn<'_>) {
        let mut failures = self.live.failures.iter();
        let hopeless = failures.find(|(_, failures)| failures.are_enough(&self.run));
        let halted = self.live.foundry.halted.as_ref();
        match (hopeless, halted.map(|refusal| refusal.code)) {
            (Some((unit, failures)), None) => {
                let (total, workers) = (failures.total, failures.by.len());
                let detail = format!(
                    "unit {unit} failed {total} times with {workers} workers: {}",
                    named(failures.by.iter())
                );
                self.halt(turn, &Refusal::new(Code::UnitFails, detail));
            }
            (None, Some(Code::UnitFails)) => {
                self.live.foundry.halted = None;
                self.mark_changed(turn);
            }
            // Nothing changes: the run goes on, or stays halted for this or another reason.
            (None | Some(_), _) => {}
        }
    }
}

/// The last failure, if every present worker keeps failing for a reason that is not the unit's. A
/// store that is full or away halts no run, since that passes, but the run shows why it makes no
/// progress. A single failure of each worker is not shown.
pub(crate) fn nobody_gets_through(run: &Run, live: &LiveRun) -> Option<Refusal> {
    let present = run
        .members
        .iter()
        .filter(|(_, member)| member.present && run.may_lease(member))
        .map(|(worker, _)| worker);
    let failed: Option<BTreeMap<_, _>> = present
        .map(|worker| live.last_failures.get_key_value(worker))
        .collect();
    let failed = failed
        .filter(|failed| live.failed_in_a_row >= FAILED_IN_A_ROW_MIN.max(failed.len() as u32))?;
    let (_, first) = failed.first_key_value()?;
    Some(Refusal::new(
        first.code,
        format!("no worker gets a unit done: {}", named(failed.into_iter())),
    ))
}

/// A worker's reason for giving a lease back, if it is a failure: such a reason begins with a code.
pub(crate) fn stated_failure(reason: &str) -> Option<Refusal> {
    let (code, rest) = reason.split_once(' ').unwrap_or((reason, ""));
    let code: Code = code.parse().ok()?;
    // The keys or the leave of another worker of its cohort, and not this one.
    if matches!(code, Code::MaskKeysRefused | Code::CohortOver) {
        return None;
    }
    let title = code.title();
    let detail = rest
        .strip_prefix(title)
        .and_then(|rest| rest.strip_prefix(": "))
        .unwrap_or(rest);
    Some(Refusal::new(code, cut_text(detail)))
}

/// `worker: reason` for the first few failures, and the number of the others.
pub(crate) fn named<'a>(
    failures: impl ExactSizeIterator<Item = (&'a WorkerId, &'a Refusal)>,
) -> String {
    let more = failures.len().saturating_sub(NAMED_MAX);
    let one = |(worker, refusal): (&WorkerId, &Refusal)| {
        let reason: String = refusal
            .to_string()
            .chars()
            .take(REASON_CHARACTERS)
            .collect();
        format!("{}: {reason}", worker.short())
    };
    let mut text = failures
        .take(NAMED_MAX)
        .map(one)
        .collect::<Vec<_>>()
        .join("; ");
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_counts_when_it_begins_with_a_code() {
        let refusal = Refusal::new(Code::TrainingFailed, "out of memory");
        assert_eq!(stated_failure(&refusal.to_string()), Some(refusal));
        // What another worker of its cohort did is no failure of this one.
        for others in [Code::MaskKeysRefused, Code::CohortOver] {
            let refusal = Refusal::new(others, "keys");
            assert_eq!(stated_failure(&refusal.to_string()), None);
        }
        for other in ["stopped", "drained", "", "DL0000 nothing", "no reason"] {
            assert_eq!(stated_failure(other), None, "{other}");
        }
        assert_eq!(
            stated_failure("DL0803").map(|refusal| refusal.code),
            Some(Code::TrainingFailed)
        );
    }
}
