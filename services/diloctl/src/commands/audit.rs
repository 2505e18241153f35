//! `audit`: the record of what happened, checked from the stream alone.

pub(crate) mod ancestry;
pub(crate) mod export;
mod in_order;
mod kept;
pub(crate) mod lineage;
mod log;
mod owner;
mod pins;
mod place;
mod recompute;
pub(super) mod record;
mod sources;
mod tail;
mod witness;

use std::collections::BTreeMap;

use diloco_audit::files::kept;
use diloco_audit::{
    Auditor, Checked, FaultyWorker, Replay, StreamSequence, Summary, TimelineRow, Verdict,
};
use runtime::Failure;
use schemas::permission::Role;
use schemas::view::RunView;
use schemas::{Code, PublicKey, RunId};
use serde::Serialize;
use serde_json::Value;

use crate::cli::{self, Audit};
use crate::context::Context;
use crate::output::{Record, Row};
use crate::table::{or_dash, time};
use in_order::InOrder;

pub(crate) async fn run(context: &Context, command: &Audit) -> Result<(), Failure> {
    match command {
        Audit::Replay {
            run,
            at: Some(at),
            log,
            ..
        } => state(context, run.as_ref(), StreamSequence(*at), log).await,
        Audit::Replay {
            run,
            kind,
            at: None,
            summary,
            log,
        } => {
            let wanted = Wanted {
                run: run.as_ref(),
                kind: kind.as_deref(),
            };
            replay(context, wanted, *summary, log).await
        }
        Audit::Recompute(command) => recompute::run(context, command).await,
        Audit::Head(from) => log::head(context, from),
        Audit::Prove { event, to, log } => log::prove(context, event, to.as_deref(), log),
        Audit::Verify {
            proof,
            witnessing,
            log,
        } => log::verify(context, proof.as_deref(), witnessing, log),
        Audit::WitnessKey { name, key } => witness::key(context, name, key.as_deref()),
        Audit::Cosign { name, key, to, log } => {
            witness::cosign(context, name, key.as_deref(), to.as_deref(), log)
        }
        Audit::Diff(from) => log::diff(context, from).await,
        Audit::Tail { run, kind } => {
            let wanted = Wanted {
                run: run.as_ref(),
                kind: kind.as_deref(),
            };
            tail::tail(context, wanted).await
        }
    }
}

/// The rows that are shown.
#[derive(Clone, Copy, Debug)]
struct Wanted<'a> {
    run: Option<&'a RunId>,
    /// A kind of event, or `security` for all that the sentry saw.
    kind: Option<&'a str>,
}

impl Wanted<'_> {
    fn has(self, row: &TimelineRow) -> bool {
        let kind = self.kind.is_none_or(|kind| match kind {
            cli::SECURITY => row.is_security(),
            kind => row.kind == kind,
        });
        kind && self.run.is_none_or(|run| row.concerns(run))
    }
}

async fn open(context: &Context) -> Result<Replay, Failure> {
    let domain = context.domain()?;
    let bus = context.bus(Role::Auditor).await?;
    // Read before the stream, so that an event that arrives between the two reads is in the stream
    // only, and does not look lost.
    let kept = kept(&domain.layout().audit_files())?;
    Ok(Replay::open(&bus, domain.trust()).await?.against(kept))
}

/// Prints the timeline, or only its summary.
async fn replay(
    context: &Context,
    wanted: Wanted<'_>,
    summary_only: bool,
    log: &cli::Log,
) -> Result<(), Failure> {
    let run = wanted.run;
    let (mut order, mut listing) = (InOrder::new(), context.printer.listing());
    let mut show = |row: &TimelineRow| listing.row(row);
    let mut take = |checked: Checked| {
        if !summary_only && wanted.has(&checked.row) {
            order.add(checked.row, &mut show);
        }
    };
    let auditor = if log.is_named() {
        log::Source::open(context, log)?.events(None, |auditor| auditor, &mut take)?
    } else {
        let mut replay = open(context).await?;
        let ran = replay.run(context.timeout, &mut take).await;
        say_if_slow(context, &replay);
        ran?;
        replay.into_auditor()
    };
    let mut summary = auditor.summary();
    summary
        .runs
        .retain(|of_run| run.is_none_or(|run| of_run.run == *run));
    summary
        .faulty_workers
        .retain(|faulty| run.is_none_or(|run| faulty.run == *run));
    if summary_only {
        context.printer.record(&summary);
    } else {
        order.end(&mut show);
        listing.end();
        context.printer.talk(&verdict(&summary));
    }
    judge(&auditor, run)
}

/// Prints that the stream was read message by message, and the way out of that.
fn say_if_slow(context: &Context, replay: &Replay) {
    if replay.batches_refused() {
        let code = Code::ReadersBehind;
        let text = format!("warning {code}: {}", code.what());
        context.printer.talk(&text);
        context
            .printer
            .talk(&format!("  next: {}", code.next_step()));
    }
}

/// Prints the coordinator's state after one position of the stream.
async fn state(
    context: &Context,
    run: Option<&RunId>,
    at: StreamSequence,
    log: &cli::Log,
) -> Result<(), Failure> {
    let auditor = if log.is_named() {
        log::Source::open(context, log)?.events(Some(at.0), |auditor| auditor, &mut |_| {})?
    } else {
        let mut replay = open(context).await?;
        let caught_up = replay.catch_up(at, context.timeout, &mut |_| {}).await;
        say_if_slow(context, &replay);
        caught_up?;
        replay.into_auditor()
    };
    let state = auditor.state();
    let wanted = |name: &RunId| run.is_none_or(|run| name == run);
    let runs = state
        .runs()
        .filter(|(name, _)| wanted(name))
        .map(|(name, of_run)| of_run.view(name))
        .collect();
    let state = serde_json::to_value(state).map_err(|error| Failure::new(Code::Internal, error))?;
    context.printer.record(&Moment {
        stream_sequence: at,
        runs,
        state,
    });
    judge(&auditor, run)
}

/// Refuses a verdict about a ledger that goes on with a key which the trust bundle does not have.
fn check_successor(auditor: &Auditor) -> Result<(), Failure> {
    check_known(auditor.unknown_successor())
}

fn check_known(unknown: Option<&PublicKey>) -> Result<(), Failure> {
    match unknown {
        None => Ok(()),
        Some(key) => {
            let text = format!(
                "the ledger goes on with {key}, which the trust bundle here does not have: copy the newest trust.json of the domain"
            );
            Err(Failure::new(Code::NoVerdict, text))
        }
    }
}

/// Turns the findings of a replay into a failure. Findings against the ledger count for every run,
/// since one chain holds all of them. Findings against a worker's own events count for its run
/// only, and do not put the ledger in doubt.
fn judge(auditor: &Auditor, run: Option<&RunId>) -> Result<(), Failure> {
    if let Some(found) = auditor.evidence() {
        let evidence = auditor
            .findings()
            .iter()
            .filter(|found| found.is_evidence())
            .count();
        let more = if evidence > 1 {
            format!(", and {} findings more", evidence - 1)
        } else {
            String::new()
        };
        return Err(Failure::new(found.code(), format!("{found}{more}")));
    }
    check_successor(auditor)?;
    if let Some(run) = run.filter(|run| auditor.state().run(run).is_none()) {
        return Err(Failure::new(
            Code::RunUnknown,
            format!("no event created {run} up to there"),
        ));
    }
    let mut faulty = auditor
        .faulty_workers()
        .iter()
        .filter(|faulty| run.is_none_or(|run| faulty.run == *run));
    match faulty.next() {
        Some(first) => {
            let detail = format!(
                "{}; first {}",
                ledger_whole(1 + faulty.count()),
                faults(first)
            );
            Err(Failure::new(Code::AuditRejected, detail))
        }
        None => Ok(()),
    }
}

fn good_verdict(summary: &Summary) -> String {
    let verdict = match summary.faulty_workers.len() {
        0 => "verified".to_owned(),
        faulty => ledger_whole(faulty),
    };
    match summary.foreign {
        0 => verdict,
        1 => format!("{verdict}; 1 foreign message was skipped"),
        count => format!("{verdict}; {count} foreign messages were skipped"),
    }
}

fn ledger_whole(faulty: usize) -> String {
    let plural = if faulty == 1 { "" } else { "s" };
    format!("ledger whole, {faulty} worker chain{plural} with faults")
}

fn faults(worker: &FaultyWorker) -> String {
    let FaultyWorker {
        run,
        worker,
        faults,
        first,
    } = worker;
    format!("{worker} of run {run}, {faults} in all: {first}")
}

fn verdict(summary: &Summary) -> String {
    let Summary {
        events,
        verified,
        repeated,
        unenrolled,
        rejected,
        foreign,
        ..
    } = summary;
    let whole = summary
        .emitters
        .iter()
        .filter(|emitter| emitter.whole)
        .count();
    let count = summary.emitters.len();
    // A chain says only that its own events follow each other.
    let chains = match &summary.first_evidence {
        None => format!("{whole} of {count} chains whole"),
        Some(first) => format!(
            "of {count} chains {whole} have no gap of their own; against the record as a whole: {first}"
        ),
    };
    let others = format!(
        "{repeated} repeated, {unenrolled} of workers that have not joined, {rejected} rejected, {foreign} foreign"
    );
    format!("{events} events: {verified} verified, {others}; {chains}")
}

impl Row for TimelineRow {
    const TITLES: &'static [&'static str] = &[
        "seq", "time", "verdict", "run", "by", "event", "about", "detail",
    ];
    const WIDTHS: &'static [usize] = &[6, 20, 10, 8, 12, 24, 20];

    fn cells(&self) -> Vec<String> {
        let verdict = match self.verdict {
            Verdict::Verified => "ok",
            Verdict::Repeated => "repeated",
            Verdict::Unenrolled => "not joined",
            Verdict::Rejected => "REJECTED",
            Verdict::Foreign => "foreign",
        };
        let problem = self.problem.as_ref().map(|problem| format!("[{problem}]"));
        let detail = problem
            .iter()
            .chain([&self.detail])
            .filter(|text| !text.is_empty())
            .cloned();
        vec![
            self.stream_sequence.to_string(),
            time(self.time),
            verdict.to_owned(),
            or_dash(self.run.as_ref(), ToString::to_string),
            self.emitter.clone(),
            self.kind.clone(),
            self.about.clone(),
            detail.collect::<Vec<_>>().join(" "),
        ]
    }
}

impl Record for Summary {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            (
                "verdict",
                if self.evidence {
                    "EVIDENCE OF TAMPERING".to_owned()
                } else {
                    good_verdict(self)
                },
            ),
            ("events", verdict(self)),
        ];
        lines.extend(
            self.first_evidence
                .iter()
                .map(|found| ("first finding", found.clone())),
        );
        let counts = |map: &BTreeMap<String, u64>| {
            map.iter()
                .map(|(name, count)| format!("{count} {name}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        if !self.findings.is_empty() {
            lines.push(("findings", counts(&self.findings)));
        }
        lines.extend(
            self.faulty_workers
                .iter()
                .map(|faulty| ("faulty worker", faults(faulty))),
        );
        lines.extend(self.foreign_messages.iter().map(|message| {
            (
                "foreign message",
                format!(
                    "at stream sequence {}: {}",
                    message.stream_sequence, message.reason
                ),
            )
        }));
        lines.push(("kinds", counts(&self.kinds)));
        for emitter in &self.emitters {
            let whole = if emitter.whole { "whole" } else { "BROKEN" };
            lines.push((
                "chain",
                format!(
                    "{} ({}): {} events, {whole}",
                    emitter.name, emitter.key, emitter.events
                ),
            ));
        }
        for run in &self.runs {
            let fates = run
                .fates
                .iter()
                .map(|(fate, tokens)| format!("{tokens} {}", format!("{fate:?}").to_lowercase()));
            let fates = fates.collect::<Vec<_>>().join(", ");
            let adds_up = if run.adds_up {
                "adds up"
            } else {
                "DOES NOT ADD UP"
            };
            let phase = format!("{:?}", run.phase).to_lowercase();
            lines.push((
                "run",
                format!(
                    "{}: {phase}, {} of {} rounds closed",
                    run.run, run.rounds_closed, run.rounds
                ),
            ));
            lines.push((
                "tokens",
                format!(
                    "{} issued: {fates}, {} in flight; {adds_up}",
                    run.issued, run.in_flight
                ),
            ));
            let loss = run.held_out_loss;
            lines.extend(
                loss.map(|(round, loss)| ("held-out loss", format!("{loss:.4} at round {round}"))),
            );
            let snapshot = run.snapshot;
            lines.extend(snapshot.map(|(round, object)| {
                ("snapshot", format!("{} at round {round}", object.digest))
            }));
        }
        lines
    }
}

/// The coordinator's state after a position of the stream.
#[derive(Serialize)]
struct Moment {
    stream_sequence: StreamSequence,
    runs: Vec<RunView>,
    state: Value,
}

impl Record for Moment {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("after sequence", self.stream_sequence.to_string())];
        for run in &self.runs {
            let phase = format!("{:?}", run.phase).to_lowercase();
            lines.push(("run", format!("{}: {phase}", run.run)));
            lines.push(("round", format!("{} of {}", run.round, run.rounds)));
            lines.push(("units in", format!("{} of {}", run.units_done, run.units)));
            lines.push((
                "workers",
                format!("{} present, {} needed", run.workers, run.workers_min),
            ));
            lines.push(("leases held", run.leases.to_string()));
            let fates = run
                .tokens
                .iter()
                .map(|(fate, tokens)| format!("{tokens} {}", format!("{fate:?}").to_lowercase()));
            lines.push(("tokens", fates.collect::<Vec<_>>().join(", ")));
            lines.push((
                "train loss",
                or_dash(run.train_loss, |loss| format!("{loss:.4}")),
            ));
            let loss = or_dash(run.held_out_loss, |(round, loss)| {
                format!("{loss:.4} at round {round}")
            });
            lines.push(("held-out loss", loss));
            let snapshot = or_dash(run.snapshot, |(round, object)| {
                format!("{} at round {round}", object.digest)
            });
            lines.push(("snapshot", snapshot));
        }
        if self.runs.is_empty() {
            lines.push(("runs", "none yet".to_owned()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_without_a_gap_are_not_called_whole_beside_evidence() {
        let mut summary = Auditor::new("demo", []).summary();
        assert!(verdict(&summary).ends_with("; 0 of 0 chains whole"));
        summary.first_evidence = Some("at stream sequence 7: a hole".to_owned());
        let text = verdict(&summary);
        assert!(!text.contains("chains whole"), "{text}");
        assert!(
            text.ends_with("against the record as a whole: at stream sequence 7: a hole"),
            "{text}"
        );
    }

    /// A bundle that is older than the ledger is no evidence, and no success.
    #[test]
    fn tl_28_a_ledger_that_goes_on_with_an_unknown_key_gets_no_verdict() {
        assert!(check_known(None).is_ok());
        let key: PublicKey = format!("U{}", "A".repeat(55)).parse().expect("a key");
        let refused = check_known(Some(&key)).expect_err("nobody knows it");
        assert_eq!(refused.code(), Code::NoVerdict);
        let told = refused.to_string();
        assert!(
            told.contains(key.as_str()) && told.contains("trust.json"),
            "{told}"
        );
    }
}
