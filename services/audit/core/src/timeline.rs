//! An event as a line for people: time, run, emitter, kind, and the thing that it is about.

mod security;

use schemas::checkpoint::Checkpoint;
use schemas::contribution::Applied;
use schemas::event::{Event, EventBody, LedgerEvent, WorkerEvent};
use schemas::lease::UnitKind;
use schemas::run::Privacy;
use schemas::sync::ComparedInput;
use schemas::text::Time;
use schemas::{Digest, RunId, UnixMillis, Weight, WorkerId};
use serde::Serialize;

use crate::record::{Record, StreamSequence};
use crate::verdict::Verdict;
use security::{of_security, opened};

/// Longest free text in a line.
const DETAIL_CHARACTERS_MAX: usize = 100;
/// The name under which the coordinator appears.
pub(crate) const COORDINATOR: &str = "coordinator";
/// The name under which the audit service's sentry appears.
pub(crate) const SENTRY: &str = "sentry";
/// The kind of a line for a record that cannot be read.
pub const UNREADABLE: &str = "unreadable";

/// One line of the timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TimelineRow {
    /// Position in the stream.
    pub stream_sequence: StreamSequence,
    /// The emitter's time; the broker's where the body cannot be read.
    pub time: UnixMillis,
    /// The run it concerns.
    pub run: Option<RunId>,
    /// The emitter: `coordinator`, `sentry`, the first letters of a worker's key, or `?`.
    pub emitter: String,
    /// The event's kind, as in the subject.
    pub kind: String,
    /// The thing that it is about: a round, a unit with its epoch, or nothing.
    pub about: String,
    /// Details in words. Text of others is cut, and has no control characters.
    pub detail: String,
    /// The object that it names and whose lineage the ledger knows: a contribution's statement,
    /// published weights, or a snapshot's manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The event itself, as `KEY:NUMBER`: its emitter's key and its number in that chain. So it is
    /// named in the log too, where positions are others. None where the body cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// The verdict on the record.
    pub verdict: Verdict,
    /// The fault in it.
    pub problem: Option<String>,
}

impl TimelineRow {
    pub(crate) fn of_ledger(record: &Record, body: &EventBody) -> Self {
        Self::of_body(record, COORDINATOR, body)
    }

    pub(crate) fn of_sentry(record: &Record, body: &EventBody) -> Self {
        Self::of_body(record, SENTRY, body)
    }

    pub(crate) fn of_worker(record: &Record, worker: &WorkerId, body: &EventBody) -> Self {
        Self::of_body(record, worker.short(), body)
    }

    /// The line for a record that cannot be read, or that has no known emitter.
    pub(crate) fn of_record(record: &Record) -> Self {
        Self {
            stream_sequence: record.stream_sequence,
            time: record.stored_at,
            run: None,
            emitter: "?".to_owned(),
            kind: UNREADABLE.to_owned(),
            about: String::new(),
            detail: plain(&record.subject),
            digest: None,
            event: None,
            verdict: Verdict::Rejected,
            problem: None,
        }
    }

    /// True for an event of the audit service's sentry.
    pub fn is_security(&self) -> bool {
        self.emitter == SENTRY
    }

    /// True if the line belongs into the timeline of `run`: it concerns that run, or no single run.
    pub fn concerns(&self, run: &RunId) -> bool {
        self.run.as_ref().is_none_or(|own| own == run)
    }

    fn of_body(record: &Record, emitter: &str, body: &EventBody) -> Self {
        let (about, detail) = match &body.event {
            Event::Ledger(event) => of_ledger(event),
            Event::Worker(event) => of_worker(event),
            Event::Security(event) => of_security(event),
        };
        Self {
            stream_sequence: record.stream_sequence,
            time: body.time,
            run: body.run.clone(),
            emitter: emitter.to_owned(),
            kind: body.event.kind().to_owned(),
            about,
            detail: plain(&detail),
            digest: digest(&body.event),
            event: Some(format!("{}:{}", body.emitter, body.sequence)),
            verdict: Verdict::Verified,
            problem: None,
        }
    }
}

/// The object that an event names, by the digest with which lineage is asked for.
fn digest(event: &Event) -> Option<Digest> {
    match event {
        Event::Ledger(LedgerEvent::ContributionAccepted { statement, .. }) => Some(*statement),
        // Nothing descends from an evaluation.
        Event::Worker(WorkerEvent::Submitted { lease, statement })
            if lease.unit.kind == UnitKind::Train =>
        {
            Some(*statement)
        }
        Event::Ledger(LedgerEvent::RoundClosed { broadcast, .. }) => Some(broadcast.digest()),
        Event::Ledger(
            LedgerEvent::SnapshotSaved { manifest, .. }
            | LedgerEvent::SnapshotRestored { manifest, .. },
        ) => Some(manifest.digest),
        Event::Ledger(LedgerEvent::SnapshotPromoted { manifest, .. }) => Some(*manifest),
        _ => None,
    }
}

/// The `about` and `detail` of an event of the ledger.
fn of_ledger(event: &LedgerEvent) -> (String, String) {
    let none = String::new;
    match event {
        LedgerEvent::CoordinatorStarted {
            release, posture, ..
        } => {
            let open = opened(posture, |open| open.layer.name().to_owned());
            (none(), format!("release {release}{open}"))
        }
        LedgerEvent::CoordinatorStopped { reason } => (none(), reason.clone()),
        LedgerEvent::EmitterSucceeded { next } => {
            (none(), format!("the next event is signed by {next}"))
        }
        LedgerEvent::RunCreated { spec, operator } => {
            let schedule = &spec.schedule;
            let plan = format!(
                "{} rounds of {} units{}, by {}",
                schedule.rounds,
                schedule.units,
                spec.privacy.as_ref().map(budget).unwrap_or_default(),
                short(operator.as_str())
            );
            (none(), plan)
        }
        LedgerEvent::PrivacySpent {
            disclosures,
            epsilon,
        } => {
            let text = format!("no round is left: {disclosures} contributions cost {epsilon:.3}");
            (none(), text)
        }
        LedgerEvent::CohortSealed { round, members } => (
            format!("round {round}"),
            format!("{} workers agreed on masks", members.len()),
        ),
        LedgerEvent::RoundUnmasked { round, .. } => (
            format!("round {round}"),
            "workers revealed what takes the masks from the sum".to_owned(),
        ),
        LedgerEvent::CohortDissolved {
            round,
            contributions,
        } => (
            format!("round {round}"),
            format!(
                "its sum cannot be had: {contributions} contributions are dropped, and its units are open again"
            ),
        ),
        LedgerEvent::RunCompleted => (none(), none()),
        LedgerEvent::WorkerJoined {
            worker,
            device,
            release,
            seat,
            ..
        } => {
            let seat = seat
                .as_ref()
                .map_or(String::new(), |seat| format!(", {seat}"));
            (
                worker.short().to_owned(),
                format!("{device}, release {release}{seat}"),
            )
        }
        LedgerEvent::WorkerLeft {
            worker,
            cause,
            detail,
        } => (worker.short().to_owned(), format!("{cause:?}: {detail}")),
        LedgerEvent::RoundOpened { round } => (format!("round {round}"), none()),
        LedgerEvent::LeaseGranted { lease, worker } => {
            (lease.to_string(), format!("to {}", worker.short()))
        }
        LedgerEvent::LeaseEnded {
            lease,
            worker,
            cause,
            tokens,
        } => (
            lease.to_string(),
            format!(
                "{cause:?}, of {}, {tokens} tokens abandoned",
                worker.short()
            ),
        ),
        LedgerEvent::ContributionAccepted {
            lease,
            worker,
            contribution,
            norm,
            statement,
            ..
        } => {
            let (tokens, loss) = (contribution.tokens, contribution.loss);
            let stated = match contribution.privacy {
                None => format!("loss {loss:.4}"),
                Some(Applied {
                    clip,
                    noise_multiplier,
                }) => format!("clip {clip}, noise {noise_multiplier}"),
            };
            (
                lease.to_string(),
                format!(
                    "of {}, {tokens} tokens, {stated}, norm {norm:.3}, statement {}",
                    worker.short(),
                    short(&statement.hex())
                ),
            )
        }
        LedgerEvent::ContributionRejected {
            lease,
            worker,
            code,
            detail,
            tokens,
        } => (
            lease.to_string(),
            format!("{code} of {}, {tokens} tokens: {detail}", worker.short()),
        ),
        LedgerEvent::EvaluationAccepted {
            lease,
            worker,
            evaluation,
            ..
        } => {
            let loss = evaluation.loss_sum / evaluation.tokens.get().max(1) as f64;
            (
                lease.to_string(),
                format!("of {}, held-out loss {loss:.4}", worker.short()),
            )
        }
        LedgerEvent::RoundCompared { round, cosines } => (format!("round {round}"), {
            let by_cosine = |a: &&ComparedInput, b: &&ComparedInput| a.cosine.total_cmp(&b.cosine);
            let lowest = cosines.iter().min_by(by_cosine);
            let lowest = lowest.map_or_else(String::new, |one| {
                format!(", the lowest {:.3}, of unit {}", one.cosine, one.unit)
            });
            format!(
                "directions of {} contributions compared{lowest}",
                cosines.len()
            )
        }),
        LedgerEvent::RoundSealed {
            round,
            inputs,
            left_out,
            rest,
            ..
        } => (format!("round {round}"), {
            let out = inputs
                .iter()
                .filter(|input| input.weight == Weight(0))
                .count();
            let mut text = format!("{} contributions are merged", inputs.len() - out);
            if *rest > 0 {
                text.push_str(&format!(", and {rest} more"));
            }
            if out > 0 {
                text.push_str(&format!("; left out: {out}, unlike the others"));
                for (unit, code) in left_out {
                    text.push_str(&format!("; unit {unit}: {code} {}", code.title()));
                }
            }
            text
        }),
        LedgerEvent::RoundClosed {
            round,
            broadcast,
            norm,
            tokens,
            ..
        } => {
            let weights = short(&broadcast.digest().hex()).to_owned();
            (
                format!("round {round}"),
                format!("{tokens} tokens, norm {norm:.3}, weights {weights}"),
            )
        }
        LedgerEvent::SnapshotSaved {
            round, manifest, ..
        } => (format!("round {round}"), manifest.digest.to_string()),
        LedgerEvent::SnapshotPromoted {
            pointer,
            round,
            operator,
            reason,
            accepted,
            ..
        } => {
            let shut: Vec<&str> = accepted.iter().map(|worker| worker.short()).collect();
            let shut = match shut.is_empty() {
                true => String::new(),
                false => format!(", accepts {} in quarantine", shut.join(", ")),
            };
            let what = format!("{pointer}, by {}{shut}: {reason}", short(operator.as_str()));
            (format!("round {round}"), what)
        }
        LedgerEvent::ControlReceived { operator, verb } => {
            (none(), format!("{verb} by {}", short(operator.as_str())))
        }
        LedgerEvent::ObjectsGivenUp {
            through,
            snapshots,
            objects,
            bytes,
            operator,
            reason,
            ..
        } => (
            format!("all before round {through}"),
            format!(
                "{objects} objects of {bytes} bytes deleted, {snapshots} snapshots given up, by {}: {reason}",
                short(operator.as_str())
            ),
        ),
        LedgerEvent::TenantSet {
            tenant,
            account,
            quota,
            operator,
        } => {
            let (account, by) = (short(account.as_str()), short(operator.as_str()));
            let text = format!("account {account}, {quota}, by {by}");
            (format!("tenant {tenant}"), text)
        }
        LedgerEvent::TenantEnded {
            tenant,
            operator,
            reason,
        } => {
            let by = short(operator.as_str());
            (format!("tenant {tenant}"), format!("by {by}: {reason}"))
        }
        LedgerEvent::CredentialRevoked {
            key,
            role,
            name,
            until,
            reason,
            operator,
        } => {
            let holder = match (name, role) {
                (Some(name), Some(role)) => format!("{name}, role {}, ", role.name()),
                _ => "a key of no record, ".to_owned(),
            };
            let reason = reason.as_ref().map(|reason| format!(": {reason}"));
            let text = format!(
                "{holder}void up to {}, by {}{}",
                Time(*until),
                short(operator.as_str()),
                reason.unwrap_or_default()
            );
            (short(key.as_str()).to_owned(), text)
        }
        LedgerEvent::CredentialReissued { key, issued } => (
            short(key.as_str()).to_owned(),
            format!("has a token of {}", Time(*issued)),
        ),
        LedgerEvent::HoldPlaced {
            hold,
            operator,
            reason,
        }
        | LedgerEvent::HoldLifted {
            hold,
            operator,
            reason,
        } => (
            format!("hold on {hold}"),
            format!("by {}: {reason}", short(operator.as_str())),
        ),
        LedgerEvent::SnapshotRestored {
            snapshot,
            manifest,
            from,
            weights,
            operator,
            reason,
            leases,
            contributions,
        } => {
            let by = short(operator.as_str());
            let manifest = manifest.digest;
            let text = format!(
                "snapshot {snapshot}, {manifest}, instead of version {from}; by {by}, {leases} leases \
                 ended, {contributions} contributions dropped: {reason}"
            );
            (format!("round {}", weights.round), text)
        }
        LedgerEvent::LeasesEnded {
            operator,
            reason,
            leases,
        } => (
            format!("{leases} leases"),
            format!("ended by {}: {reason}", short(operator.as_str())),
        ),
        LedgerEvent::WorkerQuarantined {
            worker,
            operator,
            reason,
            lease,
            withdrawn,
        } => {
            let by = short(operator.as_str());
            let lease = lease.map_or_else(String::new, |lease| format!(", lease {lease} ended"));
            let text = format!("by {by}{lease}, {withdrawn} contributions withdrawn: {reason}");
            (worker.short().to_owned(), text)
        }
        LedgerEvent::WorkerReadmitted {
            worker,
            operator,
            reason,
        } => (
            worker.short().to_owned(),
            format!("by {}: {reason}", short(operator.as_str())),
        ),
        LedgerEvent::RequestDenied {
            worker,
            verb,
            code,
            suppressed,
            ..
        } => (
            worker.short().to_owned(),
            format!("{code} to {verb}, {suppressed} more not recorded"),
        ),
        LedgerEvent::CheckpointTaken => (none(), none()),
        LedgerEvent::CheckpointSaved { checkpoint } => {
            let Checkpoint { covers, object, .. } = checkpoint;
            (none(), format!("of event {covers}, {}", object.digest))
        }
    }
}

/// A private run's budget.
fn budget(privacy: &Privacy) -> String {
    let Privacy { epsilon, delta, .. } = privacy;
    format!(", privacy budget {epsilon} at delta {delta:e}")
}

/// The `about` and `detail` of a worker's event.
fn of_worker(event: &WorkerEvent) -> (String, String) {
    match event {
        WorkerEvent::Joined { release, device } => {
            (String::new(), format!("{device}, release {release}"))
        }
        WorkerEvent::Started { lease } => (lease.to_string(), String::new()),
        WorkerEvent::Masked { lease, cohort, .. } => (
            lease.to_string(),
            format!("for cohort {}", short(&cohort.hex())),
        ),
        WorkerEvent::Submitted { lease, statement } => (
            lease.to_string(),
            format!("statement {}", short(&statement.hex())),
        ),
        WorkerEvent::Dropped {
            lease,
            code,
            detail,
        } => (lease.to_string(), format!("{code}: {detail}")),
        WorkerEvent::Refused { code, detail } => (String::new(), format!("{code}: {detail}")),
        WorkerEvent::Stopped { reason } => (String::new(), reason.clone()),
    }
}

/// The first letters of a key or digest.
fn short(text: &str) -> &str {
    text.get(..8).unwrap_or(text)
}

/// Text of others, made fit for a terminal: cut, and without control characters.
fn plain(text: &str) -> String {
    text.chars()
        .take(DETAIL_CHARACTERS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests;
