//! The bus, declared once: every subject with its message, its speakers and its listeners; built
//! and parsed here only.
//!
//! Workers live in their tenant's account and never name it. The broker puts the account into the
//! third token of what crosses into another account, so a subject has two forms: the sender's, and
//! the one that [`Incoming`] parses.

mod incoming;

use std::fmt;

use crate::id::CLUSTER;
use crate::lease::UnitId;
use crate::permission::Role;
use crate::public::CommandVerb;
use crate::{AccountId, PublicKey, RunId, WorkerId};

pub use incoming::{Incoming, SubjectError, as_sent, recorded_worker, sender_key};

/// Stream of the audit account with a copy of every event. It has no subjects: nothing can be
/// published into it.
pub const AUDIT_STREAM: &str = "AUDIT";
/// Stream of the ledger account: the coordinator's chain.
pub const LEDGER_STREAM: &str = "LEDGER";
/// What the streams of the events account begin with; the tenant's account follows.
pub const EVENTS_STREAM_PREFIX: &str = "EVENTS_";
/// Work-queue stream that holds offers.
pub const WORK_STREAM: &str = "WORK";
/// The durable pull consumer of [`WORK_STREAM`]; only the coordinator reads it.
pub const WORK_CONSUMER: &str = "lease";
/// Every ledger event of a coordinator lies under this subject: the fence for appends.
pub const LEDGER_FILTER: &str = "diloco.ledger.>";

/// How a lane behaves.
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
    /// What a worker asks.
    Request,
    /// A worker's signed events, as it hands them in.
    Event,
    /// The same when they were checked.
    Record,
    /// The coordinator's signed events.
    Ledger,
    /// Heartbeats.
    Telemetry,
    /// Signed orders to workers.
    Command,
    /// What an operator asks.
    Control,
    /// Offers.
    Work,
    /// The read-only view.
    Public,
}

impl Lane {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Request,
        Self::Event,
        Self::Record,
        Self::Ledger,
        Self::Telemetry,
        Self::Command,
        Self::Control,
        Self::Work,
        Self::Public,
    ];

    /// Its first two tokens.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Request => "diloco.request",
            Self::Event => "diloco.event",
            Self::Record => "diloco.record",
            Self::Ledger => "diloco.ledger",
            Self::Telemetry => "diloco.telemetry",
            Self::Command => "diloco.command",
            Self::Control => "diloco.control",
            Self::Work => "diloco.work",
            Self::Public => "diloco.public",
        }
    }

    /// Whether it joins tenants' accounts with another.
    pub const fn crosses_accounts(self) -> bool {
        matches!(
            self,
            Self::Request | Self::Event | Self::Telemetry | Self::Command
        )
    }
}

/// One subject of the bus.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its lane.
    pub lane: Lane,
    /// What follows the lane's prefix in the sender's form; `{…}` are variable tokens.
    pub pattern: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// The type that is sent.
    pub message: &'static str,
    /// The type of the answer, if it has one.
    pub reply: Option<&'static str>,
    /// Who may publish.
    pub publishers: &'static [Role],
    /// Who may subscribe; streams are read through JetStream instead.
    pub subscribers: &'static [Role],
    /// What for.
    pub purpose: &'static str,
}

const fn request(
    pattern: &'static str,
    message: &'static str,
    reply: &'static str,
    purpose: &'static str,
) -> Row {
    Row {
        lane: Lane::Request,
        pattern,
        kind: Kind::Request,
        message,
        reply: Some(reply),
        publishers: &[Role::Worker],
        subscribers: &[Role::Coordinator],
        purpose,
    }
}

const fn control(
    pattern: &'static str,
    message: &'static str,
    reply: &'static str,
    purpose: &'static str,
) -> Row {
    Row {
        lane: Lane::Control,
        pattern,
        kind: Kind::Request,
        message,
        reply: Some(reply),
        publishers: &[Role::Operator],
        subscribers: &[Role::Coordinator],
        purpose,
    }
}

/// Every subject that carries a message of ours.
pub const TABLE: &[Row] = &[
    request(
        "{run}.{worker}.join",
        "JoinRequest",
        "JoinReply",
        "become a member of the run",
    ),
    request(
        "{run}.{worker}.leave",
        "LeaveRequest",
        "Done",
        "stop being a member",
    ),
    request(
        "{run}.{worker}.lease.claim",
        "ClaimRequest",
        "ClaimReply",
        "ask for work (long poll)",
    ),
    request(
        "{run}.{worker}.lease.renew",
        "RenewRequest",
        "RenewReply",
        "extend a lease",
    ),
    request(
        "{run}.{worker}.lease.release",
        "ReleaseRequest",
        "Done",
        "give a lease back",
    ),
    request(
        "{run}.{worker}.blob.put",
        "PutRequest",
        "Grants",
        "URLs to upload a unit's objects",
    ),
    request(
        "{run}.{worker}.blob.get",
        "GetRequest",
        "Grants",
        "URLs to read the run's objects",
    ),
    request(
        "{run}.{worker}.contribution.stage",
        "StageRequest",
        "Done",
        "announce an uploaded chunk",
    ),
    request(
        "{run}.{worker}.contribution.submit",
        "SubmitRequest",
        "SubmitReply",
        "hand in a unit's result",
    ),
    Row {
        lane: Lane::Event,
        pattern: "{run}.{worker}.{kind}",
        kind: Kind::Request,
        message: "SignedEvent",
        reply: Some("Done"),
        publishers: &[Role::Worker],
        subscribers: &[Role::Recorder],
        purpose: "a worker's signed events, to who checks them",
    },
    Row {
        lane: Lane::Record,
        pattern: "{account}.{run}.{worker}.{kind}",
        kind: Kind::Stream,
        message: "SignedEvent",
        reply: None,
        publishers: &[Role::Recorder],
        subscribers: &[],
        purpose: "workers' events that were checked, into the stream of their tenant",
    },
    Row {
        lane: Lane::Ledger,
        pattern: "{run}.{emitter}.{kind}",
        kind: Kind::Stream,
        message: "SignedEvent",
        reply: None,
        publishers: &[Role::LedgerWriter],
        subscribers: &[],
        purpose: "the coordinator's ledger, into stream LEDGER",
    },
    Row {
        lane: Lane::Telemetry,
        pattern: "{run}.{worker}.heartbeat",
        kind: Kind::Publish,
        message: "Heartbeat",
        reply: None,
        publishers: &[Role::Worker],
        subscribers: &[Role::Coordinator],
        purpose: "what a worker is doing",
    },
    Row {
        lane: Lane::Command,
        pattern: "{run}.{worker}.{verb}",
        kind: Kind::Publish,
        message: "Command",
        reply: None,
        publishers: &[Role::Coordinator],
        subscribers: &[Role::Worker],
        purpose: "a signed order to one worker",
    },
    control(
        "{operator}.run.new",
        "RunNew",
        "RunNewReply",
        "create a run",
    ),
    control(
        "{operator}.view",
        "ViewRequest",
        "ViewReply",
        "look at runs, workers, leases, rounds, snapshots",
    ),
    control(
        "{operator}.blob.put",
        "OperatorObjects",
        "Grants",
        "URLs to upload objects",
    ),
    control(
        "{operator}.blob.commit",
        "OperatorObjects",
        "Done",
        "check and publish uploaded objects",
    ),
    control(
        "{operator}.blob.get",
        "GetRequest",
        "Grants",
        "URLs to read objects",
    ),
    control(
        "{operator}.shutdown",
        "Shutdown",
        "ShutdownReply",
        "drain and stop the coordinator and its workers",
    ),
    Row {
        lane: Lane::Work,
        pattern: "{run}.{round}.{unit}",
        kind: Kind::Stream,
        message: "Offer",
        reply: None,
        publishers: &[Role::Coordinator],
        subscribers: &[],
        purpose: "offers, into stream WORK",
    },
    Row {
        lane: Lane::Public,
        pattern: "{run}.status",
        kind: Kind::Publish,
        message: "Status",
        reply: None,
        publishers: &[Role::Coordinator],
        subscribers: &[Role::Operator],
        purpose: "the read-only view of a run",
    },
];

/// What a worker asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(
    missing_docs,
    reason = "the names are those of the subjects; TABLE says what each is for"
)]
pub enum Verb {
    Join,
    Leave,
    LeaseClaim,
    LeaseRenew,
    LeaseRelease,
    BlobPut,
    BlobGet,
    ContributionStage,
    ContributionSubmit,
}

/// What an operator asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(
    missing_docs,
    reason = "the names are those of the subjects; TABLE says what each is for"
)]
pub enum ControlVerb {
    RunNew,
    View,
    BlobPut,
    BlobCommit,
    BlobGet,
    Shutdown,
}

macro_rules! verbs {
    ($type:ident { $($variant:ident = $token:literal,)+ }) => {
        impl $type {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its last tokens in a subject.
            pub const fn token(self) -> &'static str {
                match self { $(Self::$variant => $token,)+ }
            }

            fn from_token(token: &str) -> Option<Self> {
                match token { $($token => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.token())
            }
        }
    };
}

verbs!(Verb {
    Join = "join",
    Leave = "leave",
    LeaseClaim = "lease.claim",
    LeaseRenew = "lease.renew",
    LeaseRelease = "lease.release",
    BlobPut = "blob.put",
    BlobGet = "blob.get",
    ContributionStage = "contribution.stage",
    ContributionSubmit = "contribution.submit",
});

verbs!(ControlVerb {
    RunNew = "run.new",
    View = "view",
    BlobPut = "blob.put",
    BlobCommit = "blob.commit",
    BlobGet = "blob.get",
    Shutdown = "shutdown",
});

/// `diloco.request.<run>.<worker>.<verb>`, as the worker publishes it.
pub fn request_subject(run: &RunId, worker: &WorkerId, verb: Verb) -> String {
    format!("{}.{run}.{worker}.{verb}", Lane::Request.prefix())
}

/// `diloco.event.<run>.<worker>.<kind>`, as the worker publishes it.
pub fn worker_event_subject(run: &RunId, worker: &WorkerId, kind: &str) -> String {
    format!("{}.{run}.{worker}.{kind}", Lane::Event.prefix())
}

/// `diloco.record.<account>.<run>.<worker>.<kind>`, as who checked the event publishes it.
pub fn record_subject(account: &AccountId, run: &RunId, worker: &WorkerId, kind: &str) -> String {
    format!("{}.{account}.{run}.{worker}.{kind}", Lane::Record.prefix())
}

/// The recorded events of one worker.
pub fn record_filter(account: &AccountId, run: &RunId, worker: &WorkerId) -> String {
    format!("{}.{account}.{run}.{worker}.>", Lane::Record.prefix())
}

/// The filter under which events of workers are heard before they are checked.
pub const EVENTS_FILTER: &str = "diloco.event.>";

/// `diloco.ledger.<run or cluster>.<emitter>.<kind>`, as the coordinator publishes it.
pub fn ledger_subject(run: Option<&RunId>, emitter: &PublicKey, kind: &str) -> String {
    format!(
        "{}.{}.{emitter}.{kind}",
        Lane::Ledger.prefix(),
        run.map_or(CLUSTER, RunId::as_str)
    )
}

/// The stream with the events of a tenant's workers.
pub fn events_stream(tenant: &AccountId) -> String {
    format!("{EVENTS_STREAM_PREFIX}{tenant}")
}

/// `diloco.telemetry.<run>.<worker>.heartbeat`, as the worker publishes it.
pub fn heartbeat_subject(run: &RunId, worker: &WorkerId) -> String {
    format!("{}.{run}.{worker}.heartbeat", Lane::Telemetry.prefix())
}

/// `diloco.command.<account>.<run>.<worker>.<verb>`, as the coordinator publishes it. There is no
/// subject for all workers: who asks chooses where the broker publishes the answer, and one answer
/// would reach them all.
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

/// `diloco.control.<operator>.<verb>`.
pub fn control_subject(operator: &PublicKey, verb: ControlVerb) -> String {
    format!("{}.{operator}.{verb}", Lane::Control.prefix())
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
