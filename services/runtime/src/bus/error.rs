//! Errors of the bus.

use std::time::Duration;

use identity::TlsFault;
use schemas::{Code, Coded, DecodeError, Refusal};

use super::Direction;

/// Reasons why a message was not published, received or answered.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// No server answered.
    #[error("{url}: {reason}")]
    Unreachable {
        /// The address.
        url: String,
        /// The observed fault.
        reason: String,
    },
    /// TLS failed: a certificate is not taken, or one side speaks plaintext.
    #[error("{url}: {fault}")]
    Tls {
        /// The address.
        url: String,
        /// The fault.
        fault: TlsFault,
    },
    /// The server does not take the credential.
    #[error("{url}: {reason}")]
    Credential {
        /// The address.
        url: String,
        /// The observed fault.
        reason: String,
        /// The coded error.
        code: Code,
    },
    /// The subject is not in this role's permissions.
    #[error("the server refused to {} {subject}", match direction { Direction::Publish => "publish to", Direction::Subscribe => "subscribe to" })]
    Denied {
        /// The operation that was tried.
        direction: Direction,
        /// The subject.
        subject: String,
    },
    /// Nobody listens on the subject.
    #[error("nobody answers {subject}: the coordinator does not run, or serves another domain")]
    NoResponders {
        /// The subject.
        subject: String,
    },
    /// No answer came in time.
    #[error("no answer to {subject} within {} ms", after.as_millis())]
    TimedOut {
        /// The subject.
        subject: String,
        /// The time waited.
        after: Duration,
    },
    /// The server answers, but does not acknowledge the message that it should store.
    #[error("{0}")]
    NotStored(String),
    /// The connection was lost before the answer came. The question may or may not have arrived.
    #[error("the connection was lost while {subject} was asked")]
    Lost {
        /// The subject.
        subject: String,
    },
    /// The answer is for another asker or another question. This question may or may not have
    /// arrived.
    #[error("the answer to {subject} names another asker or another question")]
    Foreign {
        /// The subject.
        subject: String,
    },
    /// The answer is a refusal.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The answer, or what should be sent, is no message of its type.
    #[error("{subject}: {source}")]
    Message {
        /// The subject.
        subject: String,
        /// The fault of the bytes.
        source: DecodeError,
    },
    /// The client cannot send: it is closing, or the message is too long or has no valid subject.
    #[error("cannot send to {subject}: {reason}")]
    Send {
        /// The subject.
        subject: String,
        /// The reason.
        reason: String,
    },
}

impl BusError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::Unreachable { .. } => Code::BusUnreachable,
            Self::Tls { fault, .. } => fault.code(),
            Self::NotStored(_) => Code::StreamNotStored,
            Self::Credential { code, .. } => *code,
            Self::Denied { .. } => Code::BusDenied,
            Self::NoResponders { .. }
            | Self::TimedOut { .. }
            | Self::Lost { .. }
            | Self::Foreign { .. } => Code::NoAnswer,
            Self::Refused(refusal) => refusal.code,
            Self::Message { .. } | Self::Send { .. } => Code::MessageInvalid,
        }
    }

    /// The same as a refusal.
    pub fn into_refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            error => Refusal::new(error.code(), error.to_string()),
        }
    }
}

impl Coded for BusError {
    fn code(&self) -> Code {
        Self::code(self)
    }

    fn detail(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.detail.clone(),
            error => error.to_string(),
        }
    }
}

impl From<BusError> for Refusal {
    fn from(error: BusError) -> Self {
        error.into_refusal()
    }
}
