//! Security events: who connected, who was refused, and who changed a stream, as the audit service
//! hears it from the broker, from services and from the store. They are a chain of their own, and
//! no decision depends on one.
//!
//! No program puts a token, a key's secret or a payload into a field. A user is named by its public
//! key. Texts that a stranger chose, as a subject or a connection's name, are short and stand as
//! they were sent: what somebody writes there is in the record. Of requests to the store none is
//! kept.

use serde::{Deserialize, Serialize};

use crate::event::kinds;
use crate::member::Posture;
use crate::message::{V, message};
use crate::subject::{as_sent, sender_key};
use crate::{AccountId, Code, PublicKey, UnixMillis};

/// Longest text in a security event.
pub const SEEN_BYTES_MAX: usize = 160;
/// Most different refusals in one report of a service.
pub const REFUSALS_MAX: usize = 32;
/// Longest report: a refusal has less than half a KiB.
pub const REFUSAL_REPORT_BYTES_MAX: usize = 16 << 10;

/// A program of this project that refuses requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "they are the names of programs")]
pub enum Refuser {
    Coordinator,
    Registrar,
    Audit,
    Store,
}

impl Refuser {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Coordinator, Self::Registrar, Self::Audit, Self::Store];
    /// Those that report on the bus, each under a subject of its own.
    pub const REPORTING: [Self; 2] = [Self::Coordinator, Self::Registrar];

    /// Its name in texts.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Registrar => "registrar",
            Self::Audit => "audit service",
            Self::Store => "store",
        }
    }

    /// Its name in programs: the last token of its reports' subject.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Registrar => "registrar",
            Self::Audit => "audit",
            Self::Store => "store",
        }
    }
}

/// What a service refused lately for a reason of security. The broker writes the service's account
/// into the subject, so the report itself does not say who sent it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusalReport {
    /// Version.
    pub v: V<1>,
    /// At most [`REFUSALS_MAX`], each different.
    pub refusals: Vec<Refused>,
    /// Refusals that are in no report: there was no room to tell them apart.
    pub more: u64,
    /// The layers that the service runs with open, now and again; none if this report does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub posture: Option<Posture>,
}

message!(RefusalReport, "refusal-report", REFUSAL_REPORT_BYTES_MAX);

/// A refusal, once or several times.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// The account of the one who was refused; none if it is the refusing service's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// The key of the one who was refused, to which the broker holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<PublicKey>,
    /// The subject of the request, as its sender wrote it.
    pub subject: String,
    /// The reason.
    pub code: Code,
    /// How often since the last report.
    pub count: u64,
}

impl Refused {
    /// The refusal of a request that was received under `subject`; none if the code says nothing
    /// about security.
    pub fn of(subject: &str, code: Code) -> Option<Self> {
        if !code.is_of_security() {
            return None;
        }
        let sent = as_sent(subject);
        let crossed = sent.len() < subject.len();
        let account = subject.split('.').nth(2).filter(|_| crossed);
        let end = (0..=SEEN_BYTES_MAX.min(sent.len()))
            .rev()
            .find(|at| sent.is_char_boundary(*at));
        Some(Self {
            account: account.and_then(|account| account.parse().ok()),
            user: sender_key(subject),
            subject: sent.get(..end.unwrap_or(0)).unwrap_or_default().to_owned(),
            code,
            count: 1,
        })
    }
}

/// The file of the bucket `log` that is none: the embedded store answers with what it refused. Only
/// the audit service's key reads it.
pub const STORE_REFUSALS: &str = "refusals";
/// Most different refusals in that list.
pub const STORE_REFUSALS_MAX: usize = 512;

/// What the embedded store refused since its start, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreRefusals {
    /// Version.
    pub v: V<1>,
    /// A number of this process of the store: another one begins to count anew.
    pub process: u64,
    /// At most [`STORE_REFUSALS_MAX`], each different.
    pub refusals: Vec<StoreRefusal>,
    /// Refusals for which there was no room to tell them apart.
    pub more: u64,
    /// The layers that the store runs with open; none from a store of an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub posture: Option<Posture>,
}

/// A refusal of the store, once or several times.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreRefusal {
    /// The address that asked, without the port.
    pub address: String,
    /// The holder that the connection's certificate names; none without mutual TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<PublicKey>,
    /// The store's name for the access key that the request named; empty if it has no such key.
    pub key: String,
    /// Method and bucket.
    pub request: String,
    /// The store's reason, in fixed words.
    pub reason: String,
    /// How often since the store's start.
    pub count: u64,
}

/// What the part of the audit service saw that listens to the broker, the sentry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "fields are named after the types and words of this crate"
)]
pub enum SecurityEvent {
    /// The sentry listens from here on. Without the broker's log it hears of no denied permission,
    /// since the broker says that nowhere else.
    SentryStarted {
        release: String,
        broker_log: bool,
        /// What it cannot hear yet; empty if it hears all.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unheard: Vec<String>,
        /// The layers that the audit service runs with open.
        #[serde(default, skip_serializing_if = "Posture::is_closed")]
        posture: Posture,
    },
    /// A service said which layers it runs with open: for the first time since the sentry's start,
    /// or others than before. The broker vouches for the registrar, the connection for the store;
    /// coordinator and workers say theirs in events of the ledger.
    PostureStated { by: Refuser, posture: Posture },
    /// It stopped in order. What happens until the next start is not in the chain.
    SentryStopped,
    /// For a while it did not hear something. What happened there meanwhile is in no event.
    SentryInterrupted {
        /// What it did not hear.
        unheard: String,
        from: UnixMillis,
        until: UnixMillis,
        /// How often that began in this time; it may have heard something in between.
        times: u64,
    },
    /// The broker refused a connection.
    AuthenticationFailed { seen: Seen },
    /// The broker refused to deliver or to subscribe.
    PermissionDenied { seen: Seen },
    /// Somebody connected.
    ClientConnected { seen: Seen },
    /// A connection ended; the reason is the broker's.
    ClientDisconnected { seen: Seen },
    /// Somebody created, altered, emptied or deleted a stream or a consumer, or tried to. The
    /// subject is the request, which names both.
    StreamChanged { seen: Seen },
    /// A service refused a request for a reason of security: who asked, its right or its proof. The
    /// reason begins with the code.
    RequestRefused { by: Refuser, seen: Seen },
    /// Sightings for which no event was left: too many senders at a time, too many events, or a
    /// stretch of the broker's log that came faster than it was read. Reports of the broker that
    /// were dropped unread count too, and some of those may be of requests that only read.
    SightingsDropped { count: u64, log_bytes: u64 },
}

/// What was seen of one sender, once or several times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// How often since the last event about the same.
    pub count: u64,
    /// When it was seen first since then.
    pub first: UnixMillis,
    /// The sender's account; none if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// The key that the sender connected with, or claimed; none if it named none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<PublicKey>,
    /// The name in its token; without one the name that it gave itself. Empty where the broker does
    /// not tell it.
    pub name: String,
    /// The address it came from, without the port.
    pub address: String,
    /// The subject that was refused or asked; empty if it is about none.
    pub subject: String,
    /// The broker's or the service's reason, or the outcome.
    pub reason: String,
}

kinds! { SecurityEvent {
    SentryStarted => "sentry-started",
    PostureStated => "posture-stated",
    SentryStopped => "sentry-stopped",
    SentryInterrupted => "sentry-interrupted",
    AuthenticationFailed => "authentication-failed",
    PermissionDenied => "permission-denied",
    ClientConnected => "client-connected",
    ClientDisconnected => "client-disconnected",
    StreamChanged => "stream-changed",
    RequestRefused => "request-refused",
    SightingsDropped => "sightings-dropped",
} }

impl SecurityEvent {
    /// What was seen; none for events about the sentry itself.
    pub const fn seen(&self) -> Option<&Seen> {
        match self {
            Self::AuthenticationFailed { seen }
            | Self::PermissionDenied { seen }
            | Self::ClientConnected { seen }
            | Self::ClientDisconnected { seen }
            | Self::StreamChanged { seen }
            | Self::RequestRefused { seen, .. } => Some(seen),
            Self::SentryStarted { .. }
            | Self::PostureStated { .. }
            | Self::SentryStopped
            | Self::SentryInterrupted { .. }
            | Self::SightingsDropped { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::{ControlVerb, Verb, control_subject, request_subject};
    use crate::{Message as _, RunId, WorkerId};

    fn key() -> PublicKey {
        format!("U{}", "A".repeat(55)).parse().expect("a key")
    }

    #[test]
    fn tl_29_a_refusal_names_its_sender_as_the_broker_does() {
        let worker: WorkerId = key().as_str().parse().expect("a key");
        let run: RunId = "demo".parse().expect("a name");
        let account = format!("A{}", "B".repeat(55));
        let sent = request_subject(&run, &worker, Verb::ALL[0]);
        let received = sent.replacen("request.", &format!("request.{account}."), 1);
        let refused = Refused::of(&received, Code::IdentityMismatch).expect("it is of security");
        assert_eq!(
            refused.account.as_ref().map(AccountId::as_str),
            Some(&*account)
        );
        assert_eq!((refused.user, refused.subject), (Some(key()), sent));
        assert_eq!((refused.code, refused.count), (Code::IdentityMismatch, 1));
        let order = control_subject(&key(), ControlVerb::ALL[0]);
        let refused = Refused::of(&order, Code::MessageInvalid).expect("it is of security");
        assert_eq!((refused.account, refused.user), (None, Some(key())));
        assert_eq!(refused.subject, order);
        assert_eq!(Refused::of(&order, Code::Draining), None);
    }

    #[test]
    fn the_longest_report_fits() {
        let long = "ä".repeat(SEEN_BYTES_MAX);
        let refused = Refused::of(&long, Code::MessageInvalid).expect("it is of security");
        assert!(refused.subject.len() <= SEEN_BYTES_MAX);
        let refused = Refused {
            account: format!("A{}", "B".repeat(55)).parse().ok(),
            user: Some(key()),
            count: u64::MAX,
            ..refused
        };
        let report = RefusalReport {
            v: V,
            refusals: vec![refused; REFUSALS_MAX],
            more: u64::MAX,
            posture: None,
        };
        assert!(report.encode().len() <= RefusalReport::BYTES_MAX);
    }
}
