//! The bus, declared once: every subject with its message, its publishers and its subscribers.
//! Subjects are built and parsed only here.
//!
//! Workers live in their tenant's account and never name it. The broker puts the account into the
//! third token of each subject that crosses into another account. So a subject has two forms: the
//! sender's, and the one that [`Incoming`] parses.

mod incoming;

use crate::call::message_name;
use crate::enrolment::{EnrolmentReply, EnrolmentRequest};
use crate::event::SignedEvent;
use crate::head::{CosignRequest, HeadReply, HeadRequest};
use crate::id::CLUSTER;
use crate::lease::{Done, Offer, UnitId};
use crate::public::{Command, CommandVerb, Status};
use crate::renewal::{RenewalReply, RenewalRequest};
use crate::role::Role;
use crate::security::{RefusalReport, Refuser};
use crate::telemetry::Heartbeat;
use crate::{AccountId, PublicKey, RunId, WorkerId};

pub use crate::call::{ControlVerb, Verb, control_subject, request_subject};
pub use incoming::{Incoming, SubjectError, as_sent, recorded_worker, sender_key};

/// Stream of the audit account with a copy of every event. It has no subjects: nothing can be
/// published into it.
pub const AUDIT_STREAM: &str = "AUDIT";
/// Stream of the ledger account: the coordinator's chain.
pub const LEDGER_STREAM: &str = "LEDGER";
/// Stream of the events account: what the audit service's sentry saw at the broker.
pub const SECURITY_STREAM: &str = "SECURITY";
/// The subjects of all security events.
pub const SECURITY_FILTER: &str = "diloco.security.>";
/// First part of the names of the streams in the events account; the tenant's account follows.
pub const EVENTS_STREAM_PREFIX: &str = "EVENTS_";
/// Work-queue stream that holds offers.
pub const WORK_STREAM: &str = "WORK";
/// The durable pull consumer of [`WORK_STREAM`]; only the coordinator reads it.
pub const WORK_CONSUMER: &str = "lease";
/// The subjects of all ledger events of a coordinator: an append is fenced over these.
pub const LEDGER_FILTER: &str = "diloco.ledger.>";
/// The subjects of events that name a saved checkpoint; a start begins at the newest.
pub const CHECKPOINT_FILTER: &str = "diloco.ledger.cluster.*.checkpoint-saved";

/// The way in which a lane delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Request and reply.
    Request,
    /// Publish into a stream, answered by a PubAck.
    Stream,
    /// Publish, lossy.
    Publish,
}

/// A family of subjects with a common prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Questions of workers.
    Request,
    /// A worker's signed events, as the worker sends them.
    Event,
    /// Questions of workers and of the coordinator about the log of all events, and cosignatures of
    /// its heads.
    Log,
    /// Workers' events after their checks.
    Record,
    /// The coordinator's signed events.
    Ledger,
    /// The sentry's signed events.
    Security,
    /// What services refused, as they count it.
    Refusal,
    /// Heartbeats.
    Telemetry,
    /// Signed orders to workers.
    Command,
    /// Questions of operators.
    Control,
    /// Offers.
    Work,
    /// The read-only view.
    Public,
    /// Questions for a new token.
    Renewal,
    /// Questions to be enrolled.
    Enrolment,
}

impl Lane {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Request,
        Self::Event,
        Self::Log,
        Self::Record,
        Self::Ledger,
        Self::Security,
        Self::Refusal,
        Self::Telemetry,
        Self::Command,
        Self::Control,
        Self::Work,
        Self::Public,
        Self::Renewal,
        Self::Enrolment,
    ];

    /// Its first two tokens.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Request => "diloco.request",
            Self::Event => "diloco.event",
            Self::Log => "diloco.log",
            Self::Record => "diloco.record",
            Self::Ledger => "diloco.ledger",
            Self::Security => "diloco.security",
            Self::Refusal => "diloco.refusal",
            Self::Telemetry => "diloco.telemetry",
            Self::Command => "diloco.command",
            Self::Control => "diloco.control",
            Self::Work => "diloco.work",
            Self::Public => "diloco.public",
            Self::Renewal => "diloco.renewal",
            Self::Enrolment => "diloco.enrolment",
        }
    }

    /// True if the lane's messages cross from one account to another.
    pub const fn crosses_accounts(self) -> bool {
        matches!(
            self,
            Self::Request
                | Self::Event
                | Self::Log
                | Self::Refusal
                | Self::Telemetry
                | Self::Command
                | Self::Renewal
                | Self::Enrolment
        )
    }
}

/// One subject of the bus.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its lane.
    pub lane: Lane,
    /// The pattern after the lane's prefix in the sender's form; `{…}` are variable tokens.
    pub pattern: &'static str,
    /// The way in which it delivers.
    pub kind: Kind,
    /// The type that is sent.
    pub message: &'static str,
    /// The type of the answer, if it has one.
    pub reply: Option<&'static str>,
    /// The roles that may publish.
    pub publishers: &'static [Role],
    /// The roles that may subscribe. Streams are read through JetStream, without a subscription.
    pub subscribers: &'static [Role],
    /// The purpose.
    pub purpose: &'static str,
}

/// Every subject that carries a message of this project.
pub const TABLE: &[Row] = &TABLE_ROWS;

const TABLE_ROWS: [Row; TABLE_LENGTH] =
    joined([Verb::ROWS, OTHERS_BETWEEN, ControlVerb::ROWS, OTHERS_AFTER]);

const TABLE_LENGTH: usize =
    Verb::ROWS.len() + OTHERS_BETWEEN.len() + ControlVerb::ROWS.len() + OTHERS_AFTER.len();

/// The parts of the table, one after another.
const fn joined(parts: [&[Row]; 4]) -> [Row; TABLE_LENGTH] {
    let mut rows = [Verb::ROWS[0]; TABLE_LENGTH];
    let (mut part, mut next) = (0, 0);
    while part < parts.len() {
        let mut row = 0;
        while row < parts[part].len() {
            rows[next] = parts[part][row];
            next += 1;
            row += 1;
        }
        part += 1;
    }
    rows
}

/// Rows that are not questions to the coordinator, in the order of the reference page.
const OTHERS_BETWEEN: &[Row] = &[
    Row {
        lane: Lane::Event,
        pattern: "{run}.{worker}.{kind}",
        kind: Kind::Request,
        message: message_name!(SignedEvent),
        reply: Some(message_name!(Done)),
        publishers: &[Role::Worker],
        subscribers: &[Role::Recorder],
        purpose: "a worker's signed events, to the audit service",
    },
    Row {
        lane: Lane::Log,
        pattern: "{run}.{worker}.head",
        kind: Kind::Request,
        message: message_name!(HeadRequest),
        reply: Some(message_name!(HeadReply)),
        publishers: &[Role::Worker],
        subscribers: &[Role::Recorder],
        purpose: "the newest head of the log, with the hashes that prove that it continues an earlier head",
    },
    Row {
        lane: Lane::Log,
        pattern: "{run}.{worker}.cosign",
        kind: Kind::Request,
        message: message_name!(CosignRequest),
        reply: Some(message_name!(Done)),
        publishers: &[Role::Worker],
        subscribers: &[Role::Recorder],
        purpose: "a worker's cosignature of a head, to be kept beside it",
    },
    Row {
        lane: Lane::Log,
        pattern: "cluster.{holder}.head",
        kind: Kind::Request,
        message: message_name!(HeadRequest),
        reply: Some(message_name!(HeadReply)),
        publishers: &[Role::Coordinator],
        subscribers: &[Role::Recorder],
        purpose: "the newest head, for the coordinator, with proofs that the log has events of the ledger",
    },
    Row {
        lane: Lane::Record,
        pattern: "{account}.{run}.{worker}.{kind}",
        kind: Kind::Stream,
        message: message_name!(SignedEvent),
        reply: None,
        publishers: &[Role::Recorder],
        subscribers: &[],
        purpose: "workers' events that were checked, into the stream of their tenant",
    },
    Row {
        lane: Lane::Ledger,
        pattern: "{run}.{emitter}.{kind}",
        kind: Kind::Stream,
        message: message_name!(SignedEvent),
        reply: None,
        publishers: &[Role::LedgerWriter],
        subscribers: &[],
        purpose: "the coordinator's ledger, into stream LEDGER",
    },
    Row {
        lane: Lane::Security,
        pattern: "{emitter}.{kind}",
        kind: Kind::Stream,
        message: message_name!(SignedEvent),
        reply: None,
        publishers: &[Role::Recorder],
        subscribers: &[],
        purpose: "what the audit service saw of refusals, connections and changes of streams, into stream SECURITY",
    },
    Row {
        lane: Lane::Refusal,
        pattern: "coordinator",
        kind: Kind::Publish,
        message: message_name!(RefusalReport),
        reply: None,
        publishers: &[Role::Coordinator],
        subscribers: &[Role::Recorder],
        purpose: "what the coordinator refused for a reason of security, at most once a second",
    },
    Row {
        lane: Lane::Refusal,
        pattern: "registrar",
        kind: Kind::Publish,
        message: message_name!(RefusalReport),
        reply: None,
        publishers: &[Role::Registrar],
        subscribers: &[Role::Recorder],
        purpose: "what the registrar refused for a reason of security, at most once a second",
    },
    Row {
        lane: Lane::Telemetry,
        pattern: "{run}.{worker}.heartbeat",
        kind: Kind::Publish,
        message: message_name!(Heartbeat),
        reply: None,
        publishers: &[Role::Worker],
        subscribers: &[Role::Coordinator],
        purpose: "what a worker is doing",
    },
    Row {
        lane: Lane::Command,
        pattern: "{run}.{worker}.{verb}",
        kind: Kind::Publish,
        message: message_name!(Command),
        reply: None,
        publishers: &[Role::Coordinator],
        subscribers: &[Role::Worker],
        purpose: "a signed order to one worker",
    },
];

const OTHERS_AFTER: &[Row] = &[
    Row {
        lane: Lane::Work,
        pattern: "{run}.{round}.{unit}",
        kind: Kind::Stream,
        message: message_name!(Offer),
        reply: None,
        publishers: &[Role::Coordinator],
        subscribers: &[],
        purpose: "offers, into stream WORK",
    },
    Row {
        lane: Lane::Public,
        pattern: "{run}.status",
        kind: Kind::Publish,
        message: message_name!(Status),
        reply: None,
        publishers: &[Role::Coordinator],
        subscribers: &[Role::Operator],
        purpose: "the read-only view of a run",
    },
    Row {
        lane: Lane::Renewal,
        pattern: "{run}.{worker}.token",
        kind: Kind::Request,
        message: message_name!(RenewalRequest),
        reply: Some(message_name!(RenewalReply)),
        publishers: &[Role::Worker],
        subscribers: &[Role::Registrar],
        purpose: "a worker's question for a new token",
    },
    Row {
        lane: Lane::Renewal,
        pattern: "cluster.{holder}.token",
        kind: Kind::Request,
        message: message_name!(RenewalRequest),
        reply: Some(message_name!(RenewalReply)),
        publishers: &[
            Role::Coordinator,
            Role::LedgerWriter,
            Role::Operator,
            Role::Auditor,
            Role::Recorder,
        ],
        subscribers: &[Role::Registrar],
        purpose: "the question for a new token, from a role that belongs to no run",
    },
    Row {
        lane: Lane::Enrolment,
        pattern: "{holder}.ask",
        kind: Kind::Request,
        message: message_name!(EnrolmentRequest),
        reply: Some(message_name!(EnrolmentReply)),
        publishers: &[Role::Newcomer],
        subscribers: &[Role::Registrar],
        purpose: "an invited machine's question to become a worker",
    },
];

/// `diloco.event.<run>.<worker>.<kind>`, as the worker publishes it.
pub fn worker_event_subject(run: &RunId, worker: &WorkerId, kind: &str) -> String {
    format!("{}.{run}.{worker}.{kind}", Lane::Event.prefix())
}

/// `diloco.log.<run>.<worker>.<verb>`, as the worker publishes it.
pub fn log_subject(run: &RunId, worker: &WorkerId, verb: LogVerb) -> String {
    format!("{}.{run}.{worker}.{}", Lane::Log.prefix(), verb.token())
}

/// `diloco.log.cluster.<holder>.head`, as the coordinator publishes it with the key of its
/// credentials.
pub fn ledger_head_subject(holder: &PublicKey) -> String {
    let head = LogVerb::Head.token();
    format!("{}.{CLUSTER}.{holder}.{head}", Lane::Log.prefix())
}

/// A question of a worker about the log of all events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogVerb {
    /// For the newest head.
    Head,
    /// To keep a cosignature of a head.
    Cosign,
}

impl LogVerb {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Head, Self::Cosign];

    /// The last token of its subject.
    pub const fn token(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Cosign => "cosign",
        }
    }

    pub(crate) fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.token() == token)
    }
}

/// `diloco.record.<account>.<run>.<worker>.<kind>`, as the audit service publishes it after its
/// checks.
pub fn record_subject(account: &AccountId, run: &RunId, worker: &WorkerId, kind: &str) -> String {
    format!("{}.{account}.{run}.{worker}.{kind}", Lane::Record.prefix())
}

/// The recorded events of one worker.
pub fn record_filter(account: &AccountId, run: &RunId, worker: &WorkerId) -> String {
    format!("{}.{account}.{run}.{worker}.>", Lane::Record.prefix())
}

/// `diloco.renewal.<run or cluster>.<holder>.token`, as the holder of a credential publishes it.
pub fn renewal_subject(run: Option<&RunId>, holder: &PublicKey) -> String {
    format!(
        "{}.{}.{holder}.{NEW_TOKEN}",
        Lane::Renewal.prefix(),
        run.map_or(CLUSTER, RunId::as_str)
    )
}

/// `diloco.enrolment.<invitation>.ask`, as a newcomer publishes it. An invitation is known by the
/// key of the credential in it.
pub fn enrolment_subject(invitation: &PublicKey) -> String {
    format!("{}.{invitation}.{ASK}", Lane::Enrolment.prefix())
}

/// The last token of a question to be enrolled.
pub(crate) const ASK: &str = "ask";

/// The filter under which the registrar receives questions to be enrolled.
pub const ENROLMENTS_FILTER: &str = "diloco.enrolment.>";

/// The last token of a question for a new token.
pub(crate) const NEW_TOKEN: &str = "token";

/// The filter under which the registrar receives questions for new tokens.
pub const RENEWALS_FILTER: &str = "diloco.renewal.>";

/// The filter under which the audit service receives workers' events, before its checks.
pub const EVENTS_FILTER: &str = "diloco.event.>";

/// The filter under which the audit service receives questions about the log.
pub const LOG_FILTER: &str = "diloco.log.>";

/// `diloco.ledger.<run or cluster>.<emitter>.<kind>`, as the coordinator publishes it.
pub fn ledger_subject(run: Option<&RunId>, emitter: &PublicKey, kind: &str) -> String {
    format!(
        "{}.{}.{emitter}.{kind}",
        Lane::Ledger.prefix(),
        run.map_or(CLUSTER, RunId::as_str)
    )
}

/// `diloco.security.<emitter>.<kind>`, as the audit service publishes it.
pub fn security_subject(emitter: &PublicKey, kind: &str) -> String {
    format!("{}.{emitter}.{kind}", Lane::Security.prefix())
}

/// `diloco.refusal.<service>`, as the service publishes it.
pub fn refusal_subject(refuser: Refuser) -> String {
    format!("{}.{}", Lane::Refusal.prefix(), refuser.name())
}

/// The filter under which the audit service hears what services refused.
pub const REFUSALS_FILTER: &str = "diloco.refusal.>";

/// The stream with the events of a tenant's workers.
pub fn events_stream(tenant: &AccountId) -> String {
    format!("{EVENTS_STREAM_PREFIX}{tenant}")
}

/// `diloco.telemetry.<run>.<worker>.heartbeat`, as the worker publishes it.
pub fn heartbeat_subject(run: &RunId, worker: &WorkerId) -> String {
    format!("{}.{run}.{worker}.heartbeat", Lane::Telemetry.prefix())
}

/// `diloco.command.<account>.<run>.<worker>.<verb>`, as the coordinator publishes it. There is no
/// subject for all workers: an asker could choose it as the subject of its answer, which would then
/// reach them all.
pub fn command_subject(
    account: &AccountId,
    run: &RunId,
    worker: &WorkerId,
    verb: CommandVerb,
) -> String {
    format!(
        "{}.{account}.{run}.{worker}.{}",
        Lane::Command.prefix(),
        verb.token()
    )
}

/// The filter under which a worker hears its commands.
pub fn command_filter(run: &RunId, worker: &WorkerId) -> String {
    format!("{}.{run}.{worker}.*", Lane::Command.prefix())
}

/// `diloco.work.<run>.<round>.<unit>`.
pub fn offer_subject(run: &RunId, unit: UnitId) -> String {
    format!(
        "{}.{run}.{}.{}",
        Lane::Work.prefix(),
        unit.round,
        unit.token()
    )
}

/// `diloco.public.<run>.status`.
pub fn status_subject(run: &RunId) -> String {
    format!("{}.{run}.status", Lane::Public.prefix())
}

/// The filters under which the coordinator hears requests, heartbeats and operators.
pub const COORDINATOR_FILTERS: [&str; 3] =
    ["diloco.request.>", "diloco.telemetry.>", "diloco.control.>"];

#[cfg(test)]
mod tests;
