//! Renewal of credentials: a process asks for a new token before its own ends. The subject of the
//! question names the asker, and the broker holds the asker to it, so the question itself carries no
//! identity. The key that connected proves that the asker has it; nothing else is proved.

use serde::{Deserialize, Serialize};

use crate::limits::WORKER_MESSAGE_BYTES_MAX;
use crate::message::{V, message};
use crate::role::Role;
use crate::{AccountId, PublicKey, RunId, UnixMillis};

/// A question for a new token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewalRequest {
    /// Version.
    pub v: V<1>,
    /// The end of the token that the asker has, for the log.
    pub ends: UnixMillis,
}

/// A new token: for the same key, account, role, name and run as before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewalReply {
    /// Version.
    pub v: V<1>,
    /// The token. It opens nothing without the key that it names.
    pub token: String,
    /// Its end.
    pub ends: UnixMillis,
    /// In a domain with mutual TLS, a certificate for the same key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

message!(RenewalRequest, "renewal-request", WORKER_MESSAGE_BYTES_MAX);
message!(RenewalReply, "renewal-reply", WORKER_MESSAGE_BYTES_MAX);

/// The public record of an issued credential. The registrar renews what has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// Version.
    pub v: V<1>,
    /// The name under which it was issued.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// The run that it is for; only workers have one.
    pub run: Option<RunId>,
    /// The account to which it belongs.
    pub account: AccountId,
    /// The key of its holder.
    pub public: PublicKey,
    /// The time at which it was issued last by hand.
    pub issued: UnixMillis,
    /// The end of the token that was issued then. Renewed tokens end later.
    pub ends: UnixMillis,
    /// The time since which it is not renewed any more, if it was blocked.
    pub blocked: Option<UnixMillis>,
}
