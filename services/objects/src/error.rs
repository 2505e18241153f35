//! Errors between this process and a store. No message holds a URL's query, so none holds a
//! signature.

use identity::tls::TlsError;
use identity::{Own, TlsFault};
use schemas::{Code, Digest, Refusal};

use crate::buckets::local_now;
use crate::endpoint::EndpointError;
use crate::key::KeyError;

/// Reasons why an object was not read or stored.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// There was no answer or the connection broke, and the time allowed has passed.
    #[error("{during}: the store did not answer in time: {reason}")]
    Unreachable {
        /// The operation.
        during: String,
        /// The last fault that was seen.
        reason: String,
    },
    /// TLS failed, most often over a certificate. Asking again changes nothing.
    #[error("{during}: {reason}")]
    Certificate {
        /// The operation.
        during: String,
        /// The certificate and its fault.
        reason: String,
        /// The coded error.
        code: Code,
    },
    /// An upload's answer was lost and the time allowed has passed: the object may be there. Ask
    /// the coordinator.
    #[error("upload of {digest} may or may not have happened, ask the coordinator: {reason}")]
    Uncertain {
        /// The object.
        digest: Digest,
        /// The last fault that was seen.
        reason: String,
    },
    /// The store does not have it.
    #[error("the store has no {what}")]
    Missing {
        /// Digest or key.
        what: String,
    },
    /// The bytes do not have the digest.
    #[error("{digest} has other bytes: {reason}")]
    Mismatch {
        /// The digest asked for.
        digest: Digest,
        /// The difference.
        reason: String,
    },
    /// The store refused the request, and another URL did not help or could not be had.
    #[error("{during}: the store refused with {status} {code}{}", if *for_good { ", for good" } else { "" })]
    Refused {
        /// The operation.
        during: String,
        /// HTTP status.
        status: u16,
        /// The S3 error code, or empty.
        code: String,
        /// True if the next URL will be refused too.
        for_good: bool,
    },
    /// The store served a request that nobody signed.
    #[error("the store answers a stranger: {request} without a signature gave {status}")]
    Stranger {
        /// Method and address.
        request: String,
        /// HTTP status.
        status: u16,
    },
    /// The store has no room.
    #[error("{during}: the store has no room")]
    Full {
        /// The operation.
        during: String,
    },
    /// It is larger than the caller or the design accepts.
    #[error("{digest} has {bytes} bytes, at most {bytes_max} are accepted")]
    TooLarge {
        /// The object.
        digest: Digest,
        /// The announced length.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// The coordinator refused another URL.
    #[error("no url: {0}")]
    Denied(#[from] Refusal),
    /// A grant cannot be used: an action is missing, the method is another, or a URL or header is
    /// malformed.
    #[error("the grant for {digest} is not usable: {reason}")]
    GrantInvalid {
        /// The object.
        digest: Digest,
        /// Its fault.
        reason: String,
    },
    /// The object's key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The store's address or authority.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

impl ObjectError {
    /// The error for a fault of TLS, if that is why a request failed. The connection has already
    /// put it into words.
    pub(crate) fn certificate(
        during: &str,
        error: &(dyn std::error::Error + 'static),
    ) -> Option<Self> {
        let fault = TlsFault::of(error, &Own::Never, local_now())?;
        Some(Self::Certificate {
            during: during.to_owned(),
            reason: fault.to_string(),
            code: fault.code(),
        })
    }

    /// The error for a fault of the certificate that this process would show to the store.
    pub fn own_certificate(during: String, error: &TlsError) -> Self {
        Self::Certificate {
            during,
            reason: error.to_string(),
            code: error.code(),
        }
    }

    /// The coded error that this is.
    pub const fn code(&self) -> Code {
        match self {
            Self::Unreachable { .. } | Self::Uncertain { .. } => Code::StoreUnreachable,
            Self::Certificate { code, .. } => *code,
            Self::Missing { .. } => Code::ObjectMissing,
            Self::Mismatch { .. } => Code::ObjectMismatch,
            Self::Refused {
                for_good: false, ..
            } => Code::UrlRefused,
            Self::Refused { for_good: true, .. } | Self::GrantInvalid { .. } => Code::UrlInvalid,
            Self::Stranger { .. } => Code::StrangerServed,
            Self::Full { .. } => Code::StoreFull,
            Self::TooLarge { .. } => Code::ObjectTooLarge,
            Self::Denied(refusal) => refusal.code,
            Self::Key(_) | Self::Endpoint(_) => Code::ConfigInvalid,
        }
    }
}

schemas::coded!(ObjectError);
