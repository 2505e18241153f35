//! Security events: who connected, who was refused, and who changed a stream, as the audit service
//! hears it from the broker. They are a chain of their own, and no decision depends on one.
//!
//! No field can hold a secret. A user is named by its public key, and texts that a stranger chose
//! are short and stand for themselves: broker and audit service never put a token, a key or a
//! payload into them.

use serde::{Deserialize, Serialize};

use crate::{AccountId, PublicKey, UnixMillis};

/// Longest text in a security event.
pub const SEEN_BYTES_MAX: usize = 160;

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
    SentryStarted { release: String, broker_log: bool },
    /// It stopped in order. What happens until the next start is not in the chain.
    SentryStopped,
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
    /// Sightings for which no event was left: too many senders at a time, too many events, or a
    /// stretch of the broker's log that came faster than it was read. Reports of the broker that were
    /// dropped unread count too, and some of those may be of requests that only read.
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
    /// The name in its token; without one the name that it gave itself. Empty where the broker does not
    /// tell it.
    pub name: String,
    /// The address it came from, without the port.
    pub address: String,
    /// The subject that was refused or asked; empty if it is about none.
    pub subject: String,
    /// The broker's reason, or the outcome.
    pub reason: String,
}

impl SecurityEvent {
    /// Its kind as one subject token.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::SentryStarted { .. } => "sentry-started",
            Self::SentryStopped => "sentry-stopped",
            Self::AuthenticationFailed { .. } => "authentication-failed",
            Self::PermissionDenied { .. } => "permission-denied",
            Self::ClientConnected { .. } => "client-connected",
            Self::ClientDisconnected { .. } => "client-disconnected",
            Self::StreamChanged { .. } => "stream-changed",
            Self::SightingsDropped { .. } => "sightings-dropped",
        }
    }

    /// What was seen; none for events about the sentry itself.
    pub const fn seen(&self) -> Option<&Seen> {
        match self {
            Self::AuthenticationFailed { seen }
            | Self::PermissionDenied { seen }
            | Self::ClientConnected { seen }
            | Self::ClientDisconnected { seen }
            | Self::StreamChanged { seen } => Some(seen),
            Self::SentryStarted { .. } | Self::SentryStopped | Self::SightingsDropped { .. } => {
                None
            }
        }
    }
}
