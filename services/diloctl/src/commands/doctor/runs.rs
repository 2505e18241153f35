//! Checks of the runs and their workers, as the coordinator shows them.

use runtime::Failure;
use schemas::control::{Query, View};
use schemas::view::{RunView, WorkerView};

use super::posture::PostureRow;
use super::{Finding, Report};
use crate::context::{Operator, unexpected};

const CHECK: &str = "runs";
const WORKERS: &str = "workers";

pub(super) async fn look(operator: &Operator, report: &mut Report) {
    let runs = match runs(operator).await {
        Ok(runs) => runs,
        Err(failure) => return report.add(Finding::fail(CHECK, &failure)),
    };
    let open: Vec<&RunView> = runs
        .iter()
        .filter(|run| run.completed_at.is_none())
        .collect();
    let troubled: Vec<Finding> = open.iter().filter_map(|run| trouble(run)).collect();
    if troubled.is_empty() {
        let text = format!("{} open, {} complete", open.len(), runs.len() - open.len());
        report.add(Finding::ok(CHECK, text));
    }
    troubled.into_iter().for_each(|finding| report.add(finding));
    let mut members = Vec::new();
    for run in open {
        match workers(operator, run).await {
            Ok(found) => members.extend(found),
            Err(failure) => return report.add(Finding::fail(WORKERS, &failure)),
        }
    }
    report.add(of_other_releases(&members));
    let rows = members.iter().map(PostureRow::of_worker);
    report.postures.extend(rows);
}

async fn runs(operator: &Operator) -> Result<Vec<RunView>, Failure> {
    match operator.view(Query::Runs).await? {
        View::Runs(runs) => Ok(runs),
        other => Err(unexpected(&other)),
    }
}

/// The present members of a run.
async fn workers(operator: &Operator, run: &RunView) -> Result<Vec<WorkerView>, Failure> {
    match operator.view(Query::Workers(run.run.clone())).await? {
        View::Workers(all) => Ok(all.into_iter().filter(|worker| worker.member).collect()),
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
            Finding::warn(WORKERS, schemas::Code::MessageInvalid, text)
        }
        None => Finding::ok(
            WORKERS,
            format!("{} are members of open runs", members.len()),
        ),
    }
}
