//! `audit recompute`: merges made again from objects, and compared with the ledger.
//!
//! The ledger comes from stream `AUDIT`, from the files of an audit service or from the log in the
//! store, the objects from the coordinator's URLs, from the store itself, or from a folder. So all
//! that an auditor needs is read access to the store.

use diloco_audit::recompute::{Fault, Merges, RoundOutcome, Segment, Wanted};
use diloco_audit::{Auditor, Recomputation};
use recompute::Objects;
use runtime::Failure;
use schemas::{Code, Digest, Refusal, Round, RunId, Tokens};
use serde::Serialize;

use super::record;
use super::sources::Source;
use crate::cli::{Log, ObjectSource, Recompute};
use crate::commands::watch;
use crate::context::Context;
use crate::listing::Listing;
use crate::output::Row;
use crate::table::{count, or_dash};

/// Makes the wanted merges again, and prints a row for each round.
pub(crate) async fn run(context: &Context, command: &Recompute) -> Result<(), Failure> {
    let wanted = match command.round {
        Some(round) => Wanted::One(Round(round)),
        None => Wanted::All,
    };
    let merges = Merges::new(command.run.clone(), wanted);
    let collecting = |auditor: Auditor| auditor.collecting(merges);
    let files = command.ledger.as_deref();
    let (mut auditor, short) = match command.ledger_in_store {
        true => (
            record::read_log(context, &log_of(&command.objects), collecting)?,
            None,
        ),
        false => record::read_what_is_there(context, files, collecting).await?,
    };
    let merges = auditor.take_merges().expect("they were collected");
    let spec = merges.spec().cloned().ok_or_else(|| unknown(&command.run));
    let spec = record::as_far_as_it_goes(spec, &short)?;
    let segments = record::as_far_as_it_goes(merges.plan().map_err(Failure::from), &short)?;
    let source = Source::open(context, &command.objects).await?;
    let chunks = spec.model.initial.count() as u64;
    let merges: usize = segments.iter().map(|segment| segment.merges.len()).sum();
    let bar = watch::steps_bar(context.printer, "chunks merged", chunks * merges as u64);
    let step = || bar.inc(1);
    let mut report = Report::default();
    let mut listing = context.printer.listing();
    let objects: &dyn Objects = &source;
    let recomputation = Recomputation::new(objects, spec, &step).await;
    for segment in &segments {
        let outcomes = recomputation.segment(segment).await;
        bar.suspend(|| report.take(segment, outcomes, &mut listing));
    }
    bar.finish_and_clear();
    listing.end();
    context.printer.talk(&report.summary());
    report.judge()?;
    short.map_or(Ok(()), Err)
}

/// The log in the store that has the objects.
fn log_of(objects: &ObjectSource) -> Log {
    Log {
        log_folder: None,
        store_keys: objects.store_keys.clone(),
        at: objects.at.clone(),
    }
}

fn unknown(run: &RunId) -> Failure {
    Failure::new(Code::RunUnknown, format!("no event created {run}"))
}

/// The outcomes so far.
#[derive(Default)]
struct Report {
    rounds: u64,
    verified: u64,
    /// The first evidence, or the first round without a verdict.
    evidence: Option<Refusal>,
    unproven: Option<Refusal>,
    given_up: Option<Refusal>,
}

/// One round, as it came out.
#[derive(Serialize)]
pub(super) struct RoundRow {
    round: Round,
    verdict: Verdict,
    /// The snapshot that its recomputation began from; none for the initial weights.
    from: Option<Round>,
    inputs: usize,
    tokens: Tokens,
    norm: f64,
    /// The digest of the weights that the ledger names.
    weights: Digest,
    /// The snapshot that was compared with the weights after it.
    snapshot: Option<Round>,
    code: Option<Code>,
    detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Verified,
    Differs,
    Altered,
    Unproven,
    GivenUp,
}

impl Verdict {
    const fn of(fault: Option<&Fault>) -> Self {
        match fault {
            None => Self::Verified,
            Some(Fault::Differs(_)) => Self::Differs,
            Some(Fault::Altered(_)) => Self::Altered,
            Some(Fault::Unproven(_)) => Self::Unproven,
            Some(Fault::GivenUp(_)) => Self::GivenUp,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Differs => "DIFFERS",
            Self::Altered => "ALTERED",
            Self::Unproven => "unproven",
            Self::GivenUp => "given up",
        }
    }
}

impl Report {
    fn take(
        &mut self,
        segment: &Segment,
        outcomes: Vec<RoundOutcome>,
        listing: &mut Listing<RoundRow>,
    ) {
        for (outcome, recorded) in outcomes.into_iter().zip(&segment.merges) {
            let RoundOutcome {
                round,
                fault,
                snapshot_compared,
            } = outcome;
            self.rounds += 1;
            if let Some(fault) = &fault {
                let refusal = Refusal::new(fault.code(), format!("round {round}: {fault}"));
                let first = match fault {
                    Fault::GivenUp(_) => &mut self.given_up,
                    fault if fault.is_evidence() => &mut self.evidence,
                    _ => &mut self.unproven,
                };
                first.get_or_insert(refusal);
            }
            let after = segment.end.filter(|end| end.round == round.next());
            let unread = after.filter(|_| fault.is_none() && !snapshot_compared);
            let unread = unread.map(|end| format!("snapshot {} is gone", end.round));
            self.verified += u64::from(fault.is_none() && unread.is_none());
            if let Some(unread) = &unread {
                let detail = format!("round {round}: {unread}, so it was compared with nothing");
                let unproven = Refusal::new(Code::RoundUnproven, detail);
                self.unproven.get_or_insert(unproven);
            }
            listing.row(&RoundRow {
                round,
                verdict: match unread {
                    Some(_) => Verdict::Unproven,
                    None => Verdict::of(fault.as_ref()),
                },
                from: segment.base.map(|base| base.round),
                inputs: recorded.record.inputs.len(),
                tokens: recorded.tokens,
                norm: recorded.norm,
                weights: recorded.broadcast.digest(),
                snapshot: after.filter(|_| snapshot_compared).map(|end| end.round),
                code: fault.as_ref().map(Fault::code),
                detail: fault
                    .map(|fault| fault.to_string())
                    .or(unread)
                    .unwrap_or_default(),
            });
        }
    }

    fn summary(&self) -> String {
        let Self {
            rounds, verified, ..
        } = self;
        format!("{verified} of {rounds} rounds verified")
    }

    /// Evidence comes before a missing verdict, and what should be there before what was given up.
    fn judge(self) -> Result<(), Failure> {
        match self.evidence.or(self.unproven).or(self.given_up) {
            Some(refusal) => Err(refusal.into()),
            None => Ok(()),
        }
    }
}

impl Row for RoundRow {
    const TITLES: &'static [&'static str] = &[
        "round", "verdict", "from", "inputs", "tokens", "norm", "weights", "detail",
    ];
    const WIDTHS: &'static [usize] = &[6, 10, 12, 6, 8, 8, 8];

    fn cells(&self) -> Vec<String> {
        let from = self.from.map(|round| format!("snapshot {round}"));
        let snapshot = || or_dash(self.snapshot, |round| format!("snapshot {round} agrees"));
        let detail = match self.verdict {
            Verdict::Verified if self.detail.is_empty() => snapshot(),
            _ => self.detail.clone(),
        };
        vec![
            self.round.to_string(),
            self.verdict.text().to_owned(),
            from.unwrap_or_else(|| "beginning".to_owned()),
            self.inputs.to_string(),
            count(self.tokens.get() as f64),
            format!("{:.3}", self.norm),
            self.weights.hex()[..8].to_owned(),
            detail,
        ]
    }
}
