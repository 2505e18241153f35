//! The log manifest: the owner of a trust domain says of the log of all events, before anything
//! else is in it, which log it is and whose words count in it. It is entry 0 of the log, signed
//! with the key that the domain is named after (crate `identity`).

use serde::{Deserialize, Serialize};

use crate::message::V;
use crate::{PublicKey, UnixMillis};

/// What the owner signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogManifest {
    /// Version.
    pub v: V<1>,
    /// The time of the signature, by the owner's clock.
    pub at: UnixMillis,
    /// The name of the log in its heads, see [`origin`].
    pub origin: String,
    /// The keys that heads may be signed with.
    pub heads: Vec<PublicKey>,
    /// The keys of services that sign events.
    pub emitters: Vec<NamedEmitter>,
    /// The keys that vouch for workers: a worker's key counts if a `worker-joined` event names it
    /// that one of these has signed, or a key with which the ledger goes on after one of these.
    pub enrolment: Vec<PublicKey>,
    /// The witnesses who must have seen the log, and which of them are enough: the text of a policy
    /// (C2SP tlog-policy). None if the owner asks for none, and in manifests of an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witnesses: Option<String>,
}

/// A key that signs events, and what it may speak of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedEmitter {
    /// The public key.
    pub key: PublicKey,
    /// What it may speak of.
    pub role: EmitterRole,
}

/// What a service that signs events may speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmitterRole {
    /// The ledger.
    Coordinator,
    /// Security events.
    Sentry,
}

/// The name of the log of a domain (its id as text).
pub fn origin(domain: &str) -> String {
    format!("diloco/{domain}")
}

impl LogManifest {
    /// True if the owner lets this key speak in this role.
    pub fn names(&self, key: &PublicKey, role: EmitterRole) -> bool {
        let mut emitters = self.emitters.iter();
        emitters.any(|named| named.key == *key && named.role == role)
    }
}
