//! Signatures over events and statements. The signed bytes start with a byte that no text contains,
//! and name purpose and domain. So no nonce, no token, and no document of another purpose or domain
//! has the same bytes. Crate `chain` says which bytes are signed for an event, and checks them.

use schemas::PublicKey;
use schemas::event::SignedEvent;
use sha2::{Digest as _, Sha256};

use crate::key::{KeyError, SIGNATURE_BYTES, verify_strict};
use crate::purpose::AuditKey;

impl AuditKey {
    /// Signs the body of an event of `domain` (the domain's id as text, see
    /// [`TrustBundle`](crate::trust::TrustBundle)). The body was serialised once, and is sent
    /// unchanged.
    pub fn sign_event(&self, domain: &str, body: Vec<u8>) -> SignedEvent {
        let signature = self.sign(&chain::signed_bytes(domain, &body));
        chain::signed(self.public(), signature, body)
    }

    /// Signs the body of a statement of `domain`: a result, or anything else that a process vouches
    /// for outside its chain of events.
    pub fn sign_statement(&self, domain: &str, body: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.sign(&chain::statement_bytes(domain, body))
    }
}

/// Checks a statement's signature over its body as received.
///
/// # Errors
/// It was not made by `public`, over these bytes, as a statement, in this domain.
pub fn verify_statement(
    domain: &str,
    public: &PublicKey,
    signature: &[u8],
    body: &[u8],
) -> Result<(), KeyError> {
    verify_strict(public, &chain::statement_bytes(domain, body), signature)
}

/// `0xFF`, purpose, `0x00`, sha256 of the domain's id, body.
pub(crate) fn prefixed(purpose: &[u8], domain: &str, body: &[u8]) -> Vec<u8> {
    let domain = Sha256::digest(domain.as_bytes());
    let mut bytes = Vec::with_capacity(2 + purpose.len() + domain.len() + body.len());
    bytes.push(0xFF);
    bytes.extend_from_slice(purpose);
    bytes.push(0x00);
    bytes.extend_from_slice(&domain);
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::purpose::ConnectionKey;

    fn is_event(domain: &str, key: &AuditKey, signature: &[u8]) -> bool {
        chain::is_signed_event(domain, key.public().as_str(), signature, b"body")
    }

    #[test]
    fn purposes_domains_and_keys_are_apart() {
        let key = AuditKey::generate();
        let event = *key.sign_event("one", b"body".to_vec()).signature;
        let statement = key.sign_statement("one", b"body");
        assert!(is_event("one", &key, &event));
        assert!(verify_statement("one", key.public(), &statement, b"body").is_ok());
        let pure = |domain: &str, signature: &[u8]| {
            chain::is_signed_statement(domain, key.public().as_str(), signature, b"body")
        };
        assert!(pure("one", &statement) && !pure("two", &statement) && !pure("one", &event));
        assert!(verify_statement("one", key.public(), &event, b"body").is_err());
        assert!(!is_event("one", &key, &statement));
        assert!(!is_event("two", &key, &event));
        assert!(!is_event("one", &AuditKey::generate(), &event));
    }

    /// Even if one seed is misused for both purposes, bytes that a server had signed as a nonce are
    /// no event.
    #[test]
    fn a_nonce_cannot_be_an_event() {
        let audit = AuditKey::generate();
        let connection = ConnectionKey::from_seed(&audit.seed()).expect("the same form of seed");
        assert!(
            connection
                .sign_nonce(&chain::signed_bytes("one", b"forged"))
                .is_err()
        );
        let nonce = b"forged";
        let signature = connection.sign_nonce(nonce).expect("a nonce");
        assert!(!chain::is_signed_event(
            "one",
            audit.public().as_str(),
            &signature,
            nonce
        ));
    }
}
