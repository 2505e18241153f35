//! Domains of which the test holds the keys.

use identity::TrustBundle;
use identity::key::{KeyKind, SigningKey};
use schemas::{PublicKey, V};

/// A new domain with one tenant, in which these keys sign manifests and events.
pub fn trust(manifest_key: &PublicKey, audit_key: &PublicKey) -> TrustBundle {
    let account = SigningKey::generate(KeyKind::Account);
    TrustBundle {
        v: V,
        domain: SigningKey::generate(KeyKind::Operator).public().clone(),
        tenants: vec![account.public().as_str().parse().expect("an account's id")],
        manifest_keys: vec![manifest_key.clone()],
        audit_keys: vec![audit_key.clone()],
        ended_audit_keys: vec![],
        head_keys: vec![],
        sentry_keys: vec![],
        log_manifest: None,
        ca: "ca.pem".into(),
    }
}
