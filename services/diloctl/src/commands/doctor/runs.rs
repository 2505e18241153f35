//! Checks of the runs and their workers, as the coordinator shows them.

use std::collections::BTreeMap;

use runtime::Failure;
use schemas::control::{Query, View};
use schemas::hold::Hold;
use schemas::view::{HoldView, RunView, WorkerView};
use schemas::{Code, RunId};

use super::posture::PostureRow;
use super::{Finding, Report};
use crate::context::{Operator, unexpected};
use crate::table::time;

/// Most names in one line.
const NAMED_MAX: usize = 4;
const CHECK: &str = "runs";
const WORKERS: &str = "workers";

pub(super) async fn look(operator: &Operator, report: &mut Report) {
    let runs = match runs(operator).await {
        Ok(runs) => runs,
        Err(failure) => return report.add(Finding::fail(CHECK, &failure)),
    };
    judge(&runs)
        .into_iter()
        .for_each(|finding| report.add(finding));
    let mut all = Vec::new();
    for run in runs.iter().filter(|run| is_open(run)) {
        match operator.workers(&run.run).await {
            Ok(found) => all.extend(found),
            Err(failure) => return report.add(Finding::fail(WORKERS, &failure)),
        }
    }
    let members: Vec<WorkerView> = all.iter().filter(|worker| worker.member).cloned().collect();
    report.add(of_other_releases(&members));
    shut_out(&all)
        .into_iter()
        .for_each(|finding| report.add(finding));
    let rows = members.iter().map(PostureRow::of_worker);
    report.postures.extend(rows);
}

/// True for a run that can go on: it is not complete, and its tenant was not ended.
fn is_open(run: &RunView) -> bool {
    run.completed_at.is_none() && !is_ended(run)
}

/// True for a run whose tenant was ended: nobody has to do anything about it.
fn is_ended(run: &RunView) -> bool {
    let halted = run.halted.as_ref();
    halted.is_some_and(|why| why.code == Code::TenantEnded)
}

/// What a person should know of the runs: one line for each trouble and each hold.
fn judge(runs: &[RunView]) -> Vec<Finding> {
    let open: Vec<&RunView> = runs.iter().filter(|run| is_open(run)).collect();
    let mut found: Vec<Finding> = open.iter().filter_map(|run| trouble(run)).collect();
    found.extend(open.iter().flat_map(|run| held(run)));
    if found.is_empty() {
        let ended = runs.iter().filter(|run| is_ended(run)).count();
        let complete = runs.len() - open.len() - ended;
        let ended = match ended {
            0 => String::new(),
            count => format!(", {count} of tenants that were ended"),
        };
        let text = format!("{} open, {complete} complete{ended}", open.len());
        found.push(Finding::ok(CHECK, text));
    }
    found
}

/// What operators keep a run from.
fn held(run: &RunView) -> Vec<Finding> {
    let line = |held: &HoldView| {
        let (what, code) = match held.hold {
            Hold::Merges => ("is frozen", Code::RunFrozen),
            Hold::Urls => ("gets no URLs", Code::UrlsStopped),
        };
        let (since, reason) = (time(held.since), held.reason.as_str());
        let text = format!("{} {what} since {since}: {reason}", run.run);
        Finding::warn(CHECK, code, text)
    };
    run.holds.iter().map(line).collect()
}

/// Workers that an operator has shut out of open runs: a line for each run.
fn shut_out(workers: &[WorkerView]) -> Vec<Finding> {
    let mut out: BTreeMap<&RunId, Vec<&str>> = BTreeMap::new();
    for worker in workers.iter().filter(|worker| worker.quarantined) {
        let of_run = out.entry(&worker.run).or_default();
        of_run.push(worker.worker.short());
    }
    let line = |(run, workers): (&RunId, Vec<&str>)| {
        let text = format!("shut out of {run}: {}", some_of(&workers));
        Finding::warn(WORKERS, Code::WorkerQuarantined, text)
    };
    out.into_iter().map(line).collect()
}

/// The first names of a list, and how many more there are.
fn some_of(names: &[&str]) -> String {
    let shown = &names[..names.len().min(NAMED_MAX)];
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

async fn runs(operator: &Operator) -> Result<Vec<RunView>, Failure> {
    match operator.view(Query::Runs).await? {
        View::Runs(runs) => Ok(runs),
        other => Err(unexpected(&other)),
    }
}

/// What keeps a run from getting on.
fn trouble(run: &RunView) -> Option<Finding> {
    let name = &run.run;
    if let Some(halted) = &run.halted {
        let text = format!("{name} is halted: {}", halted.detail);
        return Some(Finding::fail(CHECK, &Failure::new(halted.code, text)));
    }
    if let Some(trouble) = &run.trouble {
        let text = format!("{name}: {}", trouble.detail);
        return Some(Finding::warn(CHECK, trouble.code, text));
    }
    None
}

fn of_other_releases(members: &[WorkerView]) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    let other = members.iter().find(|worker| worker.release != own);
    match other {
        Some(worker) => {
            let (key, release) = (worker.worker.short(), &worker.release);
            let text = format!("{key} is of release {release}, this diloctl of {own}");
            Finding::warn(WORKERS, Code::MessageInvalid, text)
        }
        None => Finding::ok(
            WORKERS,
            match members.len() {
                1 => "1 is a member of an open run".to_owned(),
                count => format!("{count} are members of open runs"),
            },
        ),
    }
}

#[cfg(test)]
mod tests {
    use schemas::hold::Reason;
    use schemas::view::RunPhase;
    use schemas::{Bytes, Refusal, Round, UnixMillis};

    use super::*;
    use crate::commands::doctor::State;

    #[test]
    fn a_long_list_of_names_is_cut_and_counted() {
        assert_eq!(some_of(&["a", "b"]), "a, b");
        assert_eq!(some_of(&["a"; NAMED_MAX]), ["a"; NAMED_MAX].join(", "));
        assert!(some_of(&["a"; NAMED_MAX + 2]).ends_with("a and 2 more"));
    }

    fn run(name: &str) -> RunView {
        RunView {
            run: name.parse().expect("a name"),
            phase: RunPhase::Training,
            halted: None,
            trouble: None,
            holds: Vec::new(),
            privacy: None,
            left_out: Vec::new(),
            round: Round(0),
            rounds: 1,
            units_done: 0,
            units: 1,
            workers: 0,
            workers_min: 1,
            leases: 0,
            tokens: Vec::new(),
            tokens_per_second: 0.0,
            train_loss: None,
            held_out_loss: None,
            bytes_up: Bytes(0),
            bytes_down: Bytes(0),
            snapshot: None,
            created_at: UnixMillis(0),
            completed_at: None,
        }
    }

    fn refused(code: Code) -> Option<Refusal> {
        Some(Refusal::new(code, "a detail"))
    }

    #[test]
    fn a_run_that_is_held_is_told_and_one_of_an_ended_tenant_asks_for_nothing() {
        let complete = RunView {
            completed_at: Some(UnixMillis(1)),
            ..run("over")
        };
        let ended = RunView {
            phase: RunPhase::Halted,
            halted: refused(Code::TenantEnded),
            ..run("acme_demo")
        };
        let found = judge(&[run("demo"), complete, ended.clone()]);
        let [one] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(one.state, State::Ok);
        let text = "1 open, 1 complete, 1 of tenants that were ended";
        assert_eq!(one.found, text);

        let hold = |hold| HoldView {
            hold,
            operator: format!("U{}", "A".repeat(55)).parse().expect("a key"),
            reason: "odd norms".parse::<Reason>().expect("a reason"),
            since: UnixMillis(0),
        };
        let held = RunView {
            holds: vec![hold(Hold::Merges), hold(Hold::Urls)],
            ..run("held")
        };
        let waits = RunView {
            trouble: refused(Code::TooFewWorkers),
            ..run("waits")
        };
        let halted = RunView {
            halted: refused(Code::Internal),
            ..run("halted")
        };
        let found = judge(&[held, waits, halted, ended]);
        let codes: Vec<_> = found.iter().map(|one| (one.state, one.code)).collect();
        assert_eq!(
            codes,
            [
                (State::Warn, Some(Code::TooFewWorkers)),
                (State::Fail, Some(Code::Internal)),
                (State::Warn, Some(Code::RunFrozen)),
                (State::Warn, Some(Code::UrlsStopped)),
            ]
        );
        assert!(found[2].found.starts_with("held is frozen since 1970"));
        assert!(found[2].found.ends_with(": odd norms"));
    }
}
