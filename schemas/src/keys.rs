//! The public keys that sign leases and commands, as a JSON Web Key Set (RFC 7517, RFC 8037): for
//! readers in other languages. A key from the bus is a copy,
//! worth as much as the bus; our own programs trust the keys in `trust.json` alone.

use serde::{Deserialize, Serialize};

use crate::PublicKey;
use crate::message::{V, message};

/// `keys`: show the keys that sign leases and commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysRequest {
    /// Version.
    pub v: V<1>,
}

message!(KeysRequest, "keys", 4096);

/// The answer to a [`KeysRequest`]: a copy of what the coordinator's trust bundle has now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysReply {
    /// Version.
    pub v: V<1>,
    /// The set, as `diloctl auth jwks` prints it.
    pub jwks: Jwks,
}

message!(KeysReply, "keys reply", 16384);

/// A set of public keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwks {
    /// The keys, in the order of the trust bundle.
    pub keys: Vec<Jwk>,
}

/// One public key for Ed25519.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwk {
    /// `OKP`: an octet key pair.
    pub kty: String,
    /// `Ed25519`.
    pub crv: String,
    /// The 32 bytes of the key, base64url without padding.
    pub x: String,
    /// The key as the headers of documents and the trust bundle name it.
    pub kid: PublicKey,
    /// `EdDSA`, the only algorithm.
    pub alg: String,
    /// `sig`: it signs.
    #[serde(rename = "use")]
    pub usage: String,
}
