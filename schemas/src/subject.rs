//! The bus, declared once: every subject with its message, its speakers and its listeners; built and parsed here only.
//!
//! Workers live in their tenant's account and never name it. The broker puts the account into the third token of what
//! crosses into another account, so a subject has two forms: the sender's, and the one that [`Incoming`] parses.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use crate::account::ACCOUNT_TOKEN_POSITION;
use crate::id::CLUSTER;
use crate::lease::UnitId;
use crate::permission::Role;
use crate::public::CommandVerb;
use crate::{AccountId, PublicKey, Round, RunId, WorkerId};

/// Stream of the audit account with a copy of every event. It has no subjects: nothing can be published into it.
pub const AUDIT_STREAM: &str = "AUDIT";
/// Stream of the ledger account: the coordinator's chain.
pub const LEDGER_STREAM: &str = "LEDGER";
/// What the streams of the events account begin with; the tenant's account follows.
pub const EVENTS_STREAM_PREFIX: &str = "EVENTS_";
/// Work-queue stream that holds offers.
pub const WORK_STREAM: &str = "WORK";
/// The durable pull consumer of [`WORK_STREAM`]; only the coordinator reads it.
pub const WORK_CONSUMER: &str = "lease";
/// Key-value bucket of pointers that are written by compare and set.
pub const STATE_BUCKET: &str = "state";
/// Key-value bucket for the leader's name; its keys end by themselves.
pub const LEADER_BUCKET: &str = "leader";
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
    /// A worker's signed events.
    Event,
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
    pub const ALL: [Self; 8] = [
        Self::Request,
        Self::Event,
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
        matches!(self, Self::Request | Self::Event | Self::Telemetry | Self::Command)
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

const fn request(pattern: &'static str, message: &'static str, reply: &'static str, purpose: &'static str) -> Row {
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

const fn control(pattern: &'static str, message: &'static str, reply: &'static str, purpose: &'static str) -> Row {
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
    request("{run}.{worker}.join", "JoinRequest", "JoinReply", "become a member of the run"),
    request("{run}.{worker}.leave", "LeaveRequest", "Done", "stop being a member"),
    request("{run}.{worker}.lease.claim", "ClaimRequest", "ClaimReply", "ask for work (long poll)"),
    request("{run}.{worker}.lease.renew", "RenewRequest", "RenewReply", "extend a lease"),
    request("{run}.{worker}.lease.release", "ReleaseRequest", "Done", "give a lease back"),
    request("{run}.{worker}.blob.put", "PutRequest", "Grants", "URLs to upload a unit's objects"),
    request("{run}.{worker}.blob.get", "GetRequest", "Grants", "URLs to read the run's objects"),
    request("{run}.{worker}.contribution.stage", "StageRequest", "Done", "announce an uploaded chunk"),
    request("{run}.{worker}.contribution.submit", "SubmitRequest", "SubmitReply", "hand in a unit's result"),
    Row {
        lane: Lane::Event,
        pattern: "{run}.{worker}.{kind}",
        kind: Kind::Stream,
        message: "EventBody",
        reply: None,
        publishers: &[Role::Worker],
        subscribers: &[],
        purpose: "a worker's signed events, into the stream of its tenant",
    },
    Row {
        lane: Lane::Ledger,
        pattern: "{run}.{emitter}.{kind}",
        kind: Kind::Stream,
        message: "EventBody",
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
        pattern: "{run}.all.{verb}",
        kind: Kind::Publish,
        message: "Command",
        reply: None,
        publishers: &[Role::Coordinator],
        subscribers: &[Role::Worker],
        purpose: "a signed order to every worker of a run",
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
    control("{operator}.run.new", "RunNew", "RunNewReply", "create a run"),
    control("{operator}.view", "ViewRequest", "ViewReply", "look at runs, workers, leases, rounds, snapshots"),
    control("{operator}.blob.put", "OperatorObjects", "Grants", "URLs to upload objects"),
    control("{operator}.blob.commit", "OperatorObjects", "Done", "check and publish uploaded objects"),
    control("{operator}.blob.get", "GetRequest", "Grants", "URLs to read objects"),
    control("{operator}.shutdown", "Shutdown", "ShutdownReply", "drain and stop the coordinator and its workers"),
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
#[expect(missing_docs, reason = "the names are those of the subjects; TABLE says what each is for")]
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
#[expect(missing_docs, reason = "the names are those of the subjects; TABLE says what each is for")]
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

/// `diloco.ledger.<run or cluster>.<emitter>.<kind>`, as the coordinator publishes it.
pub fn ledger_subject(run: Option<&RunId>, emitter: &PublicKey, kind: &str) -> String {
    format!("{}.{}.{emitter}.{kind}", Lane::Ledger.prefix(), run.map_or(CLUSTER, RunId::as_str))
}

/// The stream with the events of a tenant's workers.
pub fn events_stream(tenant: &AccountId) -> String {
    format!("{EVENTS_STREAM_PREFIX}{tenant}")
}

/// `diloco.telemetry.<run>.<worker>.heartbeat`, as the worker publishes it.
pub fn heartbeat_subject(run: &RunId, worker: &WorkerId) -> String {
    format!("{}.{run}.{worker}.heartbeat", Lane::Telemetry.prefix())
}

/// `diloco.command.<account>.<run>.<all or worker>.<verb>`, as the coordinator publishes it.
pub fn command_subject(account: &AccountId, run: &RunId, worker: Option<&WorkerId>, verb: CommandVerb) -> String {
    let target = worker.map_or("all", WorkerId::as_str);
    format!("{}.{account}.{run}.{target}.{}", Lane::Command.prefix(), verb.token())
}

/// The two subjects on which a worker hears commands.
pub fn command_filters(run: &RunId, worker: &WorkerId) -> [String; 2] {
    let prefix = Lane::Command.prefix();
    [format!("{prefix}.{run}.all.*"), format!("{prefix}.{run}.{worker}.*")]
}

/// `diloco.control.<operator>.<verb>`.
pub fn control_subject(operator: &PublicKey, verb: ControlVerb) -> String {
    format!("{}.{operator}.{verb}", Lane::Control.prefix())
}

/// `diloco.work.<run>.<round>.<unit>`.
pub fn offer_subject(run: &RunId, unit: UnitId) -> String {
    format!("{}.{run}.{}.{}", Lane::Work.prefix(), unit.round, unit.token())
}

/// `diloco.public.<run>.status`.
pub fn status_subject(run: &RunId) -> String {
    format!("{}.{run}.status", Lane::Public.prefix())
}

/// Key in [`STATE_BUCKET`] of a run's newest full snapshot.
pub fn snapshot_key(run: &RunId) -> String {
    format!("run.{run}.snapshot")
}

/// The filters under which the coordinator hears requests, heartbeats and operators.
pub const COORDINATOR_FILTERS: [&str; 3] = ["diloco.request.>", "diloco.telemetry.>", "diloco.control.>"];

/// A subject that the coordinator or the auditor receives, in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are the tokens that TABLE names")]
pub enum Incoming {
    Request { account: AccountId, run: RunId, worker: WorkerId, verb: Verb },
    Heartbeat { account: AccountId, run: RunId, worker: WorkerId },
    Control { operator: PublicKey, verb: ControlVerb },
    WorkerEvent { account: AccountId, run: RunId, worker: WorkerId, kind: String },
    Ledger { run: Option<RunId>, emitter: PublicKey, kind: String },
    Offer { run: RunId, round: Round, unit: String },
}

/// Whose event a subject carries, read off the tokens to which the broker holds a worker; what the event calls itself may be
/// anything.
pub fn worker_event_sender(subject: &str) -> Option<(AccountId, RunId, WorkerId)> {
    let rest = subject.strip_prefix(Lane::Event.prefix())?.strip_prefix('.')?;
    sender(rest).map(|(account, run, worker, _)| (account, run, worker))
}

/// A subject as its sender wrote it: without the account that the broker put into what crosses accounts.
pub fn as_sent(subject: &str) -> Cow<'_, str> {
    let lane = subject.match_indices('.').nth(1).map(|(end, _)| &subject[..end]);
    let crosses = Lane::ALL.iter().any(|one| one.crosses_accounts() && lane == Some(one.prefix()));
    let tokens =
        || subject.split('.').enumerate().filter(|(place, _)| *place + 1 != usize::from(ACCOUNT_TOKEN_POSITION));
    match crosses {
        true => Cow::Owned(tokens().map(|(_, token)| token).collect::<Vec<_>>().join(".")),
        false => Cow::Borrowed(subject),
    }
}

/// The key of who sent something to the coordinator: the broker holds every sender to its own. None when the subject has no
/// such place; whatever follows it may be anything.
pub fn sender_key(subject: &str) -> Option<PublicKey> {
    let mut tokens = subject.splitn(3, '.');
    let (first, lane, rest) = (tokens.next()?, tokens.next()?, tokens.next()?);
    match (first, lane) {
        ("diloco", "control") => rest.split('.').next()?.parse().ok(),
        ("diloco", "request" | "event" | "telemetry") => {
            let (_, _, worker, _) = sender(rest)?;
            worker.as_str().parse().ok()
        }
        _ => None,
    }
}

/// A subject that is none of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such subject: {0:?}")]
pub struct SubjectError(String);

impl FromStr for Incoming {
    type Err = SubjectError;

    fn from_str(subject: &str) -> Result<Self, SubjectError> {
        parse(subject).ok_or_else(|| SubjectError(subject.chars().take(200).collect()))
    }
}

fn parse(subject: &str) -> Option<Incoming> {
    let mut tokens = subject.splitn(3, '.');
    let (first, lane, rest) = (tokens.next()?, tokens.next()?, tokens.next()?);
    if first != "diloco" {
        return None;
    }
    match lane {
        "request" => {
            let (account, run, worker, verb) = sender(rest)?;
            Some(Incoming::Request { account, run, worker, verb: Verb::from_token(verb)? })
        }
        "telemetry" => {
            let (account, run, worker, kind) = sender(rest)?;
            (kind == "heartbeat").then_some(Incoming::Heartbeat { account, run, worker })
        }
        "control" => {
            let (operator, verb) = rest.split_once('.')?;
            Some(Incoming::Control { operator: operator.parse().ok()?, verb: ControlVerb::from_token(verb)? })
        }
        "ledger" => ledger(rest),
        "event" => {
            let (account, run, worker, kind) = sender(rest)?;
            token(kind).map(|kind| Incoming::WorkerEvent { account, run, worker, kind })
        }
        "work" => {
            let mut tokens = rest.split('.');
            let (run, round, unit) = (tokens.next()?, tokens.next()?, tokens.next()?);
            let round = Round(round.parse().ok()?);
            let unit = token(unit).filter(|_| tokens.next().is_none())?;
            Some(Incoming::Offer { run: run.parse().ok()?, round, unit })
        }
        _ => None,
    }
}

fn sender(rest: &str) -> Option<(AccountId, RunId, WorkerId, &str)> {
    let mut tokens = rest.splitn(4, '.');
    let account = tokens.next()?.parse().ok()?;
    let run = tokens.next()?.parse().ok()?;
    let worker = tokens.next()?.parse().ok()?;
    Some((account, run, worker, tokens.next()?))
}

fn ledger(rest: &str) -> Option<Incoming> {
    let mut tokens = rest.splitn(3, '.');
    let run = match tokens.next()? {
        CLUSTER => None,
        run => Some(run.parse().ok()?),
    };
    let emitter = tokens.next()?.parse().ok()?;
    token(tokens.next()?).map(|kind| Incoming::Ledger { run, emitter, kind })
}

/// A last token of letters, digits and dashes.
fn token(text: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (!text.is_empty() && text.len() <= 64 && text.chars().all(plain)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::UnitKind;
    use crate::{Epoch, UnitIndex};

    fn worker() -> WorkerId {
        format!("U{}", "A".repeat(55)).parse().expect("a key")
    }

    fn account() -> AccountId {
        format!("A{}", "B".repeat(55)).parse().expect("a key")
    }

    fn run() -> RunId {
        "demo".parse().expect("a name")
    }

    /// What the broker's import mapping does to a subject.
    fn mapped(subject: &str) -> String {
        let mut tokens: Vec<&str> = subject.split('.').collect();
        let account = account();
        tokens.insert(2, account.as_str());
        tokens.join(".")
    }

    #[test]
    fn every_request_parses_back() {
        for verb in Verb::ALL {
            let parsed = mapped(&request_subject(&run(), &worker(), *verb)).parse();
            let expected = Incoming::Request { account: account(), run: run(), worker: worker(), verb: *verb };
            assert_eq!(parsed, Ok(expected));
        }
    }

    #[test]
    fn every_verb_has_a_row_and_every_row_a_verb() {
        let rows = |lane| TABLE.iter().filter(move |row| row.lane == lane);
        for (lane, tokens) in [
            (Lane::Request, Verb::ALL.iter().map(|verb| verb.token()).collect::<Vec<_>>()),
            (Lane::Control, ControlVerb::ALL.iter().map(|verb| verb.token()).collect()),
        ] {
            assert_eq!(rows(lane).count(), tokens.len());
            for token in tokens {
                assert!(rows(lane).any(|row| row.pattern.ends_with(&format!("}}.{token}"))), "{token}");
            }
        }
    }

    #[test]
    fn other_lanes_parse_back() {
        let key: PublicKey = worker().as_str().parse().expect("a key");
        assert!(matches!(mapped(&heartbeat_subject(&run(), &worker())).parse(), Ok(Incoming::Heartbeat { .. })));
        assert!(matches!(
            mapped(&worker_event_subject(&run(), &worker(), "joined")).parse(),
            Ok(Incoming::WorkerEvent { .. })
        ));
        assert_eq!(
            ledger_subject(None, &key, "coordinator-started").parse(),
            Ok(Incoming::Ledger { run: None, emitter: key.clone(), kind: "coordinator-started".to_owned() })
        );
        for verb in ControlVerb::ALL {
            let expected = Incoming::Control { operator: key.clone(), verb: *verb };
            assert_eq!(control_subject(&key, *verb).parse(), Ok(expected));
        }
        let unit = UnitId { round: Round(3), kind: UnitKind::Train, index: UnitIndex(1) };
        assert!(matches!(offer_subject(&run(), unit).parse(), Ok(Incoming::Offer { round: Round(3), .. })));
        let _ = Epoch(0);
    }

    #[test]
    fn the_sender_of_a_worker_event_is_known_whatever_it_calls_the_event() {
        let sender = Some((account(), run(), worker()));
        for kind in ["joined", "no_kind", "a.b"] {
            assert_eq!(worker_event_sender(&mapped(&worker_event_subject(&run(), &worker(), kind))), sender, "{kind}");
        }
        let key: PublicKey = worker().as_str().parse().expect("a key");
        for subject in [ledger_subject(Some(&run()), &key, "joined"), "diloco.eventful".to_owned(), String::new()] {
            assert_eq!(worker_event_sender(&subject), None, "{subject}");
        }
    }

    #[test]
    fn what_the_broker_put_in_is_taken_out_again() {
        let key: PublicKey = worker().as_str().parse().expect("a key");
        for sent in [
            request_subject(&run(), &worker(), Verb::LeaseClaim),
            worker_event_subject(&run(), &worker(), "joined"),
            heartbeat_subject(&run(), &worker()),
        ] {
            assert_eq!(as_sent(&mapped(&sent)), sent);
            assert_eq!(sender_key(&mapped(&sent)), Some(key.clone()), "{sent}");
        }
        let control = control_subject(&key, ControlVerb::View);
        assert_eq!((as_sent(&control), sender_key(&control)), (Cow::Borrowed(control.as_str()), Some(key.clone())));
        // A verb that is none names its sender as well, who is told so.
        assert_eq!(sender_key(&mapped(&format!("diloco.request.demo.{key}.lease.steal"))), Some(key));
        for strange in ["", "diloco", "diloco.request.x.demo.y.join", "diloco.control.x.view", "diloco.work.demo.0.x"] {
            assert_eq!(sender_key(strange), None, "{strange}");
        }
    }

    #[test]
    fn strange_subjects_are_refused() {
        let forged = format!("diloco.request.{}.demo.{}.lease.steal", account(), worker());
        for subject in ["", "diloco", "diloco.request", "diloco.request.x.demo.y.join", "$JS.API.INFO", &forged] {
            assert!(subject.parse::<Incoming>().is_err(), "{subject}");
        }
    }
}
