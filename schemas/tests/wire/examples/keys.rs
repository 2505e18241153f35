//! Examples about the keys that sign leases and commands, and about the end of the coordinator.

use schemas::control::{Shutdown, ShutdownReply};
use schemas::keys::{Jwk, Jwks, KeysReply, KeysRequest};
use schemas::{Millis, V};

use super::{Example, example, key};

pub(super) fn all() -> Vec<Example> {
    let jwk = Jwk {
        kty: "OKP".to_owned(),
        crv: "Ed25519".to_owned(),
        x: "A".repeat(43),
        kid: key('A').parse().expect("the form of a key"),
        alg: "EdDSA".to_owned(),
        usage: "sig".to_owned(),
    };
    vec![
        example(&KeysRequest { v: V }),
        example(&KeysReply {
            v: V,
            jwks: Jwks { keys: vec![jwk] },
        }),
        example(&Shutdown {
            v: V,
            drain: Millis(30_000),
        }),
        example(&ShutdownReply {
            v: V,
            leases: 1,
            workers: 2,
        }),
    ]
}
