//! Enrolment: an invited machine makes its own keys and asks to become a worker. The subject of the
//! question names the invitation, and the broker holds the asker to it. The question proves that
//! its sender holds the keys that it names. What the new worker may be is in the invitation's
//! terms, and in nothing that the machine sends.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::limits::WORKER_MESSAGE_BYTES_MAX;
use crate::member::Posture;
use crate::message::{V, message};
use crate::{AccountId, Digest, PublicKey, RunId, Seat, UnixMillis};

/// Most keys that one invitation lists: with the longest names, the file that keeps its terms is
/// still read.
pub const LISTED_MAX: usize = 400;

/// A machine's question to become a worker.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentRequest {
    /// Version.
    pub v: V<1>,
    /// The run that the machine wants to work for.
    pub run: RunId,
    /// The key with which it will connect.
    pub worker: PublicKey,
    /// The key that will sign its events.
    pub audit_key: PublicKey,
    /// The join token of the invitation.
    pub token: String,
    /// The time of the signatures.
    pub at: UnixMillis,
    /// The layers of protection that the machine relaxed.
    pub posture: Posture,
    /// The signature of `worker` over all of this and the invitation.
    pub by_worker: ByteArray<64>,
    /// The signature of `audit_key` over the same.
    pub by_audit_key: ByteArray<64>,
}

/// The answer to a machine that is enrolled: its credential, and what it is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentReply {
    /// Version.
    pub v: V<1>,
    /// The name of the new worker.
    pub name: String,
    /// Its run.
    pub run: RunId,
    /// The key with which it connects.
    pub worker: PublicKey,
    /// The key that signs its events.
    pub audit_key: PublicKey,
    /// Its seat in a group; none if it works alone.
    pub seat: Option<Seat>,
    /// The token. It opens nothing without the key that it names.
    pub token: String,
    /// Its end.
    pub ends: UnixMillis,
    /// In a domain with mutual TLS, a certificate for the same key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The domain's present trust bundle as a JWS of its root key, if it was signed since it was
    /// changed. The registrar cannot alter it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<String>,
}

message!(
    EnrolmentRequest,
    "enrolment-request",
    WORKER_MESSAGE_BYTES_MAX
);
message!(EnrolmentReply, "enrolment-reply", WORKER_MESSAGE_BYTES_MAX);

/// The join token is a secret.
impl std::fmt::Debug for EnrolmentRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolmentRequest")
            .field("run", &self.run)
            .field("worker", &self.worker)
            .field("audit_key", &self.audit_key)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

/// The way in which an invitation admits machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admission {
    /// The first machine that has the join token, and no other.
    Token,
    /// The one machine whose key a person approves.
    Hand,
    /// Each machine whose key is listed, under the name that stands beside it.
    Listed(BTreeMap<PublicKey, String>),
}

/// The terms of an invitation, as the domain keeps them. They are never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// Version.
    pub v: V<1>,
    /// The key of the credential in the invitation, by which it is known.
    pub invitation: PublicKey,
    /// The name of the new worker; machines that are listed have names of their own.
    pub name: String,
    /// The run that it is for.
    pub run: RunId,
    /// The account to which the new worker belongs.
    pub account: AccountId,
    /// The seat of the new worker; none if it works alone.
    pub seat: Option<Seat>,
    /// The way in which it admits.
    pub admission: Admission,
    /// sha256 of the join token.
    pub token: Digest,
    /// The time at which it was made.
    pub made: UnixMillis,
    /// Its end, exclusive.
    pub ends: UnixMillis,
}

/// A machine that asked with an invitation, as the registrar keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Version.
    pub v: V<1>,
    /// The key with which it will connect.
    pub worker: PublicKey,
    /// The key that will sign its events.
    pub audit_key: PublicKey,
    /// The time at which it asked first.
    pub asked: UnixMillis,
    /// The layers of protection that it relaxed.
    pub posture: Posture,
    /// The time at which it was enrolled; none while a person has to approve it.
    pub enrolled: Option<UnixMillis>,
}

/// An operator's word on a machine that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// It is to be enrolled.
    Approved,
    /// It is not.
    Denied,
}

/// Everything that the domain knows about an invitation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// Its terms.
    pub terms: Terms,
    /// True if an operator withdrew it.
    pub withdrawn: bool,
    /// The machines that asked.
    pub guests: BTreeMap<PublicKey, Guest>,
    /// The keys that an operator approved.
    pub approved: BTreeSet<PublicKey>,
    /// The keys that an operator denied.
    pub denied: BTreeSet<PublicKey>,
}
