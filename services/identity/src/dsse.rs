//! Envelopes by DSSE (Dead Simple Signing Envelope, v1): a document with signatures over it, in a
//! form that tools of others read.
//!
//! The signed bytes are those of the DSSE specification and begin with `DSSEv1` and a space, so
//! they are neither an event nor a worker's statement, which begin with a byte that no text
//! contains, nor a nonce of a broker, in which no key of ours signs a space.

use data_encoding::BASE64;
use schemas::provenance::PAYLOAD_TYPE;
use schemas::{Code, PublicKey};
use serde::{Deserialize, Serialize};
use tlog::from_base64;

use crate::key::{KeyError, verify_strict};
use crate::purpose::AuditKey;

/// A document in its envelope, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    /// The document, in base64.
    payload: String,
    /// Its media type, which is signed with it.
    payload_type: String,
    /// The signatures: ours have one.
    signatures: Vec<EnvelopeSignature>,
}

/// One signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EnvelopeSignature {
    /// The public key in the text form of nkeys.
    keyid: String,
    /// The signature (Ed25519), in base64.
    sig: String,
}

/// The reason why an envelope proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// It is not the JSON of an envelope, or something in it is not base64.
    #[error("not an envelope: {0}")]
    Malformed(String),
    /// It holds another kind of document.
    #[error("an envelope of type {0:?}, expected {PAYLOAD_TYPE:?}")]
    Type(String),
    /// None of its signatures names a key that counts here.
    #[error("no signature of a key that the trust bundle names")]
    Nobody,
    /// The signature that names such a key is not the key's.
    #[error("the signature of {key} is not its own: {error}")]
    Forged {
        /// The key that is named.
        key: PublicKey,
        /// The reason.
        error: KeyError,
    },
}

impl EnvelopeError {
    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        Code::StatementForged
    }
}

schemas::coded!(EnvelopeError);

/// The bytes that are signed: by DSSE the pre-authentication encoding of type and document.
pub(crate) fn signed_bytes(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let (kind, length) = (payload_type.len(), payload.len());
    let mut bytes = format!("DSSEv1 {kind} {payload_type} {length} ").into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

impl AuditKey {
    /// Signs a statement of provenance, and puts it into an envelope. The same statement gives the
    /// same bytes.
    pub fn seal_provenance(&self, statement: &[u8]) -> Vec<u8> {
        let signature = self.sign(&signed_bytes(PAYLOAD_TYPE, statement));
        let envelope = Envelope {
            payload: BASE64.encode(statement),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: vec![EnvelopeSignature {
                keyid: self.public().to_string(),
                sig: BASE64.encode(&signature),
            }],
        };
        serde_json::to_vec(&envelope).expect("texts are JSON")
    }
}

/// Opens an envelope with a statement of provenance, and returns the statement and the key that has
/// signed it: one of `trusted`.
///
/// # Errors
/// It is no such envelope, or no key of these has signed it.
pub fn open_provenance<'a>(
    envelope: &[u8],
    trusted: impl IntoIterator<Item = &'a PublicKey>,
) -> Result<(Vec<u8>, PublicKey), EnvelopeError> {
    let malformed = |what: String| EnvelopeError::Malformed(what);
    let envelope: Envelope =
        serde_json::from_slice(envelope).map_err(|error| malformed(error.to_string()))?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(EnvelopeError::Type(envelope.payload_type));
    }
    let decode = |text: &str| {
        from_base64(text).ok_or_else(|| malformed("something is not base64".to_owned()))
    };
    let payload = decode(&envelope.payload)?;
    let named = |key: &PublicKey| {
        let mut signatures = envelope.signatures.iter();
        signatures.find(|signature| signature.keyid == key.as_str())
    };
    let mut keys = trusted.into_iter();
    let found = keys.find_map(|key| named(key).map(|signature| (key, signature)));
    let (key, signature) = found.ok_or(EnvelopeError::Nobody)?;
    let signature = decode(&signature.sig)?;
    verify_strict(key, &signed_bytes(PAYLOAD_TYPE, &payload), &signature).map_err(|error| {
        EnvelopeError::Forged {
            key: key.clone(),
            error,
        }
    })?;
    Ok((payload, key.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::verify_statement;

    #[test]
    fn the_signed_bytes_are_those_of_the_specification() {
        // The example of the DSSE protocol.
        let bytes = signed_bytes("http://example.com/HelloWorld", b"hello world");
        let expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world";
        assert_eq!(bytes, expected);
    }

    #[test]
    fn tl_19_a_sealed_statement_opens_for_those_who_trust_its_key_alone() {
        let (key, other) = (AuditKey::generate(), AuditKey::generate());
        let sealed = key.seal_provenance(b"{}");
        assert_eq!(sealed, key.seal_provenance(b"{}"));
        let trusted = [other.public().clone(), key.public().clone()];
        let (statement, by) = open_provenance(&sealed, &trusted).expect("it is whole");
        assert_eq!((&*statement, &by), (&b"{}"[..], key.public()));
        let refused = open_provenance(&sealed, [other.public()]);
        assert!(matches!(refused, Err(EnvelopeError::Nobody)), "{refused:?}");
    }

    #[test]
    fn tl_19_what_is_changed_in_an_envelope_is_noticed() {
        let (key, other) = (AuditKey::generate(), AuditKey::generate());
        let sealed = key.seal_provenance(b"{\"a\":1}");
        let whole: Envelope = serde_json::from_slice(&sealed).expect("JSON");
        let open = |envelope: &Envelope| {
            let bytes = serde_json::to_vec(envelope).expect("JSON");
            open_provenance(&bytes, [key.public()])
        };
        assert!(open(&whole).is_ok());
        let mut changed = whole.clone();
        changed.payload = BASE64.encode(b"{\"a\":2}");
        assert!(matches!(open(&changed), Err(EnvelopeError::Forged { .. })));
        let mut changed = whole.clone();
        changed.payload_type = "text/plain".to_owned();
        assert!(matches!(open(&changed), Err(EnvelopeError::Type(_))));
        let mut changed = whole.clone();
        changed.signatures.clear();
        assert!(matches!(open(&changed), Err(EnvelopeError::Nobody)));
        // The same document under another type, or as a worker's statement, has other signed bytes.
        let mut changed = whole.clone();
        let plain = key.sign(&signed_bytes("text/plain", b"{\"a\":1}"));
        changed.signatures[0].sig = BASE64.encode(&plain);
        assert!(matches!(open(&changed), Err(EnvelopeError::Forged { .. })));
        let worker = key.sign_statement("one", b"{\"a\":1}");
        changed.signatures[0].sig = BASE64.encode(&worker);
        assert!(matches!(open(&changed), Err(EnvelopeError::Forged { .. })));
        let signature = BASE64.decode(whole.signatures[0].sig.as_bytes());
        let signature = signature.expect("base64");
        assert!(verify_statement("one", key.public(), &signature, b"{\"a\":1}").is_err());
        // A signature of another key under the name of this one.
        let mut changed: Envelope =
            serde_json::from_slice(&other.seal_provenance(b"{\"a\":1}")).expect("JSON");
        changed.signatures[0].keyid = key.public().to_string();
        assert!(matches!(open(&changed), Err(EnvelopeError::Forged { .. })));
        for no_envelope in [&b"{}"[..], b"", b"[1]"] {
            let refused = open_provenance(no_envelope, [key.public()]);
            assert!(matches!(refused, Err(EnvelopeError::Malformed(_))));
        }
    }
}
