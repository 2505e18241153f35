//! Envelopes by DSSE (Dead Simple Signing Envelope, v1): a document with signatures over it, in a
//! form that tools of others read.
//!
//! The signed bytes are those of the DSSE specification and begin with `DSSEv1` and a space, so
//! they are neither an event nor a worker's statement, which begin with a byte that no text
//! contains, nor a nonce of a broker, in which no key of ours signs a space.

use data_encoding::BASE64;
use schemas::data::DataManifest;
use schemas::provenance::{PAYLOAD_TYPE, Provenance};
use schemas::{Code, ObjectRef, PublicKey};
use serde::{Deserialize, Serialize};
use tlog::from_base64;

use crate::key::{KeyError, SIGNATURE_BYTES, verify_strict};
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
    /// It names no key, or several, where one must vouch for the document.
    #[error("{0} signatures, expected one")]
    Count(usize),
    /// The statement is about something else.
    #[error("{0}")]
    Differs(String),
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
        envelope(statement, self.public(), &self.sign_provenance(statement))
    }

    /// Signs a statement of provenance for an envelope that others put together.
    pub fn sign_provenance(&self, statement: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.sign(&signed_bytes(PAYLOAD_TYPE, statement))
    }
}

/// The envelope of a statement of provenance that `key` has signed. Nothing is checked here.
pub fn envelope(statement: &[u8], key: &PublicKey, signature: &[u8; SIGNATURE_BYTES]) -> Vec<u8> {
    let envelope = Envelope {
        payload: BASE64.encode(statement),
        payload_type: PAYLOAD_TYPE.to_owned(),
        signatures: vec![EnvelopeSignature {
            keyid: key.to_string(),
            sig: BASE64.encode(signature),
        }],
    };
    serde_json::to_vec(&envelope).expect("texts are JSON")
}

/// Checks the signature over a statement of provenance that travels without its envelope.
///
/// # Errors
/// It was not made by `key`, over this statement, for an envelope.
pub fn verify_provenance(
    key: &PublicKey,
    signature: &[u8],
    statement: &[u8],
) -> Result<(), KeyError> {
    verify_strict(key, &signed_bytes(PAYLOAD_TYPE, statement), signature)
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
    verify_provenance(key, &signature, &payload).map_err(|error| EnvelopeError::Forged {
        key: key.clone(),
        error,
    })?;
    Ok((payload, key.clone()))
}

/// Opens the envelope with the statement of provenance of a data set, and returns the statement and
/// the key that has signed it. The statement itself names that key, so this says that its holder
/// vouches for the data set, and not who that is: the run's settings name the envelope, and the
/// ledger the operator who gave them.
///
/// # Errors
/// It is no such envelope, its key has not signed it, or it is about another data set.
pub fn open_data_provenance(
    envelope: &[u8],
    domain: &str,
    manifest: &DataManifest,
    stored: ObjectRef,
) -> Result<(Provenance, PublicKey), EnvelopeError> {
    let malformed = |error: &dyn std::fmt::Display| EnvelopeError::Malformed(error.to_string());
    let named: Envelope = serde_json::from_slice(envelope).map_err(|error| malformed(&error))?;
    let [signature] = &named.signatures[..] else {
        return Err(EnvelopeError::Count(named.signatures.len()));
    };
    let key: PublicKey = signature.keyid.parse().map_err(|error| malformed(&error))?;
    let (payload, key) = open_provenance(envelope, [&key])?;
    let statement: Provenance =
        serde_json::from_slice(&payload).map_err(|error| malformed(&error))?;
    let checked = statement.check_data(manifest, stored, domain, &key);
    checked.map_err(EnvelopeError::Differs)?;
    Ok((statement, key))
}

#[cfg(test)]
mod tests {
    use schemas::data::{Entropy, Tokenizer};
    use schemas::provenance::{Import, Maker};

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
    fn tl_19_a_signature_that_travelled_alone_makes_the_same_envelope() {
        let (key, other) = (AuditKey::generate(), AuditKey::generate());
        let signature = key.sign_provenance(b"{}");
        assert!(verify_provenance(key.public(), &signature, b"{}").is_ok());
        assert!(verify_provenance(key.public(), &signature, b"{ }").is_err());
        assert!(verify_provenance(other.public(), &signature, b"{}").is_err());
        let result = key.sign_statement("one", b"{}");
        assert!(verify_provenance(key.public(), &result, b"{}").is_err());
        let put_together = envelope(b"{}", key.public(), &signature);
        assert_eq!(put_together, key.seal_provenance(b"{}"));
    }

    #[test]
    fn tl_19_the_statement_about_a_data_set_opens_with_the_one_key_that_it_names() {
        let (key, other) = (AuditKey::generate(), AuditKey::generate());
        let manifest = DataManifest {
            v: schemas::V,
            source: "a text".to_owned(),
            tokenizer: Tokenizer::Byte,
            vocabulary: 256,
            token_bytes: 1,
            train: Vec::new(),
            held_out: Vec::new(),
            entropy: Entropy {
                unigram: 3.0,
                bigram: 2.0,
            },
        };
        let stored = ObjectRef::of(b"manifest");
        let import = Import {
            operator: key.public(),
            files: 1,
            text_bytes: schemas::Bytes(2),
            distinct_bytes: schemas::Bytes(2),
        };
        let said = |maker: &AuditKey| {
            let maker = Maker {
                domain: "one",
                key: maker.public(),
                release: "1",
            };
            Provenance::of_data(&manifest, stored, import, maker).to_json()
        };
        let sealed = key.seal_provenance(&said(&key));
        let open = |envelope: &[u8], domain: &str| {
            open_data_provenance(envelope, domain, &manifest, stored)
        };
        let (_, by) = open(&sealed, "one").expect("it is whole");
        assert_eq!(&by, key.public());
        // Another domain, a statement that names another key, another data set.
        let differs = |opened: Result<_, EnvelopeError>| match opened {
            Err(EnvelopeError::Differs(_)) => true,
            Err(_) | Ok(_) => false,
        };
        assert!(differs(open(&sealed, "two")));
        assert!(differs(open(&other.seal_provenance(&said(&key)), "one")));
        let opened = open_data_provenance(&sealed, "one", &manifest, ObjectRef::of(b"other"));
        assert!(differs(opened));
        // No signature, two of them, one by another key, no key's name.
        let mut changed: Envelope = serde_json::from_slice(&sealed).expect("JSON");
        let opened = |envelope: &Envelope| {
            let bytes = serde_json::to_vec(envelope).expect("JSON");
            open(&bytes, "one").expect_err("it proves nothing")
        };
        changed.signatures.push(changed.signatures[0].clone());
        assert!(matches!(opened(&changed), EnvelopeError::Count(2)));
        changed.signatures.clear();
        assert!(matches!(opened(&changed), EnvelopeError::Count(0)));
        let mut changed: Envelope = serde_json::from_slice(&sealed).expect("JSON");
        changed.signatures[0].sig = BASE64.encode(&other.sign_provenance(&said(&key)));
        assert!(matches!(opened(&changed), EnvelopeError::Forged { .. }));
        changed.signatures[0].keyid = "nobody".to_owned();
        assert!(matches!(opened(&changed), EnvelopeError::Malformed(_)));
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
