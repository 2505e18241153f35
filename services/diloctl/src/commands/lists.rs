//! `worker ls`, `lease ls`, `round ls`: the coordinator's views as rows.

use runtime::Failure;
use schemas::RunId;
use schemas::control::{Query, View};
use schemas::view::{LeaseView, RoundView, WorkerView};

use crate::cli::OfRun;
use crate::context::{Context, unexpected};
use crate::output::Row;
use crate::table::{count, or_dash, span, time};

pub(crate) async fn workers(context: &Context, run: RunId) -> Result<(), Failure> {
    match context.operator().await?.view(Query::Workers(run)).await? {
        View::Workers(rows) => context.printer.rows(&rows),
        other => return Err(unexpected(&other)),
    }
    Ok(())
}

pub(crate) async fn leases(context: &Context, command: &OfRun) -> Result<(), Failure> {
    match ask(context, command, Query::Leases).await? {
        View::Leases(rows) => context.printer.rows(&rows),
        other => return Err(unexpected(&other)),
    }
    Ok(())
}

pub(crate) async fn rounds(context: &Context, command: &OfRun) -> Result<(), Failure> {
    match ask(context, command, Query::Rounds).await? {
        View::Rounds(rows) => context.printer.rows(&rows),
        other => return Err(unexpected(&other)),
    }
    Ok(())
}

async fn ask(
    context: &Context,
    OfRun::Ls { run }: &OfRun,
    query: fn(RunId) -> Query,
) -> Result<View, Failure> {
    context.operator().await?.view(query(run.clone())).await
}

impl Row for WorkerView {
    const TITLES: &'static [&'static str] = &[
        "worker", "member", "phase", "lease", "tokens/s", "accepted", "rejected", "device",
        "release", "heard",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.worker.short().to_owned(),
            match (self.member, self.quarantined) {
                (_, true) => "quarantine",
                (true, false) => "yes",
                (false, false) => "no",
            }
            .to_owned(),
            or_dash(self.phase, |phase| format!("{phase:?}").to_lowercase()),
            or_dash(self.lease, |lease| lease.to_string()),
            count(self.tokens_per_second),
            self.accepted.to_string(),
            self.rejected.to_string(),
            self.device.clone(),
            self.release.clone(),
            // One without a tenant never joined, and was never heard.
            or_dash(self.account.as_ref(), |_| time(self.heard_at)),
        ]
    }
}

impl Row for LeaseView {
    const TITLES: &'static [&'static str] = &["lease", "worker", "steps", "expires"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.lease.to_string(),
            self.worker.short().to_owned(),
            self.steps_done.to_string(),
            time(self.expires_at),
        ]
    }
}

impl Row for RoundView {
    const TITLES: &'static [&'static str] = &[
        "round",
        "opened",
        "took",
        "units",
        "tokens",
        "train loss",
        "held-out loss",
        "norm",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.round.to_string(),
            time(self.opened_at),
            or_dash(self.closed_at, |closed| {
                span(self.opened_at.until(closed).get())
            }),
            // A closed round has all its units in; they are not listed again.
            if self.undone {
                "undone".to_owned()
            } else if self.closed_at.is_some() {
                "all".to_owned()
            } else {
                self.done.len().to_string()
            },
            count(self.tokens.get() as f64),
            or_dash(self.train_loss, |loss| format!("{loss:.4}")),
            or_dash(self.held_out_loss, |loss| format!("{loss:.4}")),
            or_dash(self.norm, |norm| format!("{norm:.3}")),
        ]
    }
}
