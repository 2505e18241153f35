//! Signatures over events and statements. What is signed starts with a byte that no text has and
//! names purpose and domain, so that no nonce, token or document of another purpose or domain has
//! the same bytes.

use schemas::PublicKey;
use sha2::{Digest as _, Sha256};

use crate::key::{KeyError, SIGNATURE_BYTES, verify_strict};
use crate::purpose::AuditKey;

const EVENT: &[u8] = b"diloco/audit-event/v1";
const STATEMENT: &[u8] = b"diloco/statement/v1";

impl AuditKey {
    /// Signs the body of an event of `domain` (the domain's id as text, see
    /// [`TrustBundle`](crate::trust::TrustBundle)). The body is what was serialised once and is
    /// sent as it is.
    pub fn sign_event(&self, domain: &str, body: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.sign(&prefixed(EVENT, domain, body))
    }

    /// Signs the body of a statement of `domain`: a result, or anything else that a process vouches
    /// for outside its chain of events.
    pub fn sign_statement(&self, domain: &str, body: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.sign(&prefixed(STATEMENT, domain, body))
    }
}

/// Checks an event's signature over its body as received.
///
/// # Errors
/// It was not made by `public`, over these bytes, as an event, in this domain.
pub fn verify_event(
    domain: &str,
    public: &PublicKey,
    signature: &[u8],
    body: &[u8],
) -> Result<(), KeyError> {
    verify_strict(public, &prefixed(EVENT, domain, body), signature)
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
    verify_strict(public, &prefixed(STATEMENT, domain, body), signature)
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
    use proptest::prelude::*;

    use super::*;
    use crate::purpose::ConnectionKey;

    /// Written by hand from the format's description, so that a change of the bytes is noticed.
    #[test]
    fn signed_bytes_are_as_documented() {
        let bytes = prefixed(EVENT, "abc", b"body");
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let expected = format!(
            "ff{}00{hash}{}",
            "64696c6f636f2f61756469742d6576656e742f7631", "626f6479"
        );
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes), expected);
    }

    #[test]
    fn purposes_domains_and_keys_are_apart() {
        let key = AuditKey::generate();
        let event = key.sign_event("one", b"body");
        let statement = key.sign_statement("one", b"body");
        assert!(verify_event("one", key.public(), &event, b"body").is_ok());
        assert!(verify_statement("one", key.public(), &statement, b"body").is_ok());
        assert!(verify_statement("one", key.public(), &event, b"body").is_err());
        assert!(verify_event("one", key.public(), &statement, b"body").is_err());
        assert!(verify_event("two", key.public(), &event, b"body").is_err());
        assert!(verify_event("one", AuditKey::generate().public(), &event, b"body").is_err());
    }

    /// Even where one seed is misused for both, what a server can have signed as a nonce is no
    /// event.
    #[test]
    fn a_nonce_cannot_be_an_event() {
        let audit = AuditKey::generate();
        let connection = ConnectionKey::from_seed(&audit.seed()).expect("the same form of seed");
        assert!(
            connection
                .sign_nonce(&prefixed(EVENT, "one", b"forged"))
                .is_err()
        );
        let nonce = b"forged";
        let signature = connection.sign_nonce(nonce).expect("a nonce");
        assert!(verify_event("one", audit.public(), &signature, nonce).is_err());
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_noticed(body in proptest::collection::vec(any::<u8>(), 1..64), bit in any::<prop::sample::Index>()) {
            let key = AuditKey::generate();
            let signature = key.sign_event("one", &body);
            let mut both = [&signature[..], &body[..]].concat();
            let at = bit.index(both.len() * 8);
            both[at / 8] ^= 1 << (at % 8);
            prop_assert!(verify_event("one", key.public(), &both[..SIGNATURE_BYTES], &both[SIGNATURE_BYTES..]).is_err());
        }
    }
}
