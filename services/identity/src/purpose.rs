//! The keys that processes hold. Each has one purpose and one type, so that a signature for one
//! purpose never counts for another. A captured broker chooses the nonces that a connection key
//! signs, so nothing else may depend on that key.

use std::fmt;
use std::path::Path;

use schemas::PublicKey;
use tlog::Head;
use tlog::cosign::{PolicyError, Witness, cosigned};
use zeroize::Zeroizing;

use crate::key::{KeyError, KeyKind, SIGNATURE_BYTES, SigningKey, public_bytes};
use crate::secret::Seed;

/// Longest nonce that is signed; the broker's have 15 characters.
pub const NONCE_BYTES_MAX: usize = 64;

/// The key with which a process proves its identity to servers. It signs nonces of the broker, TLS
/// handshakes (see [`crate::clients`]), and once, before it has any rights, the question to be
/// enrolled. A signature for one of the three is never valid for another: the input of a handshake
/// begins with 64 blanks, the question with its own prefix, and a nonce with neither.
#[derive(Clone)]
pub struct ConnectionKey(SigningKey);

/// The key with which an emitter signs its events and statements. Never used on a connection.
#[derive(Clone)]
pub struct AuditKey(SigningKey);

/// The key with which the coordinator signs lease manifests. Never used on a connection.
#[derive(Clone)]
pub struct ManifestKey(SigningKey);

/// The key with which the audit service signs heads of the log. A head is text without a prefix, so
/// a nonce could be one: never used on a connection.
#[derive(Clone)]
pub struct HeadKey(SigningKey);

/// The key with which a witness cosigns heads of the log. What it signs is text without a prefix
/// too: never used on a connection.
#[derive(Clone)]
pub struct WitnessKey(SigningKey);

macro_rules! purpose {
    ($name:ident, $kind:expr) => {
        impl $name {
            /// A new key from the operating system's generator.
            pub fn generate() -> Self {
                Self(SigningKey::generate($kind))
            }

            /// The key of a seed.
            ///
            /// # Errors
            /// The text is no seed of the kind that this purpose has.
            pub fn from_seed(seed: &Seed) -> Result<Self, KeyError> {
                Ok(Self(SigningKey::from_seed($kind, seed)?))
            }

            /// The key in a seed file.
            ///
            /// # Errors
            /// The file cannot be used, or holds no seed of the kind that this purpose has.
            pub fn read(path: &Path) -> Result<Self, KeyError> {
                Ok(Self(SigningKey::read($kind, path)?))
            }

            /// Its public half.
            pub fn public(&self) -> &PublicKey {
                self.0.public()
            }

            /// Its text form, to be written to a file.
            pub fn seed(&self) -> Seed {
                self.0.seed()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.public())
            }
        }
    };
}

purpose!(ConnectionKey, KeyKind::User);
purpose!(AuditKey, KeyKind::User);
// Its letter differs from that of user keys, so that the files cannot be confused.
purpose!(ManifestKey, KeyKind::Account);
// It shares a letter with `ManifestKey`. Both sign text: a manifest has no line break, and a head
// has three.
purpose!(HeadKey, KeyKind::Account);
// It shares that letter too. What a witness signs begins with another line than a head.
purpose!(WitnessKey, KeyKind::Account);

impl ConnectionKey {
    /// Signs a server's nonce.
    ///
    /// # Errors
    /// The bytes are no nonce. A server may ask for anything, but only short base64url text is
    /// signed. A token's signing input (with a full stop), a tree head (with line breaks) and an
    /// event (with a byte 0xFF) are not such text.
    pub fn sign_nonce(&self, nonce: &[u8]) -> Result<[u8; SIGNATURE_BYTES], KeyError> {
        let base64url = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if nonce.is_empty() || nonce.len() > NONCE_BYTES_MAX || !nonce.iter().all(base64url) {
            return Err(KeyError::Nonce(nonce.len()));
        }
        Ok(self.0.sign(nonce))
    }

    /// The private key itself, for the TLS library, which signs handshakes and nothing else.
    pub(crate) fn raw(&self) -> Zeroizing<[u8; 32]> {
        self.0.raw()
    }

    /// Signs a question to be enrolled, which carries its own domain prefix. The prefix begins with
    /// a byte that no nonce has, so no server can have such bytes signed as a nonce.
    pub(crate) fn sign(&self, prefixed: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(prefixed)
    }
}

impl AuditKey {
    /// Signs bytes that carry their own domain prefix.
    pub(crate) fn sign(&self, prefixed: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(prefixed)
    }
}

impl HeadKey {
    /// Signs a head: the result is the signed text.
    pub fn sign_head(&self, head: &Head) -> String {
        let signature = self.0.sign(head.text().as_bytes());
        let key = public_bytes(self.public()).expect("a key's own public half");
        head.signed(&key, &signature)
    }
}

impl WitnessKey {
    /// The witness of this name that has this key.
    ///
    /// # Errors
    /// The name cannot be used.
    pub fn witness(&self, name: &str) -> Result<Witness, PolicyError> {
        Witness::new(
            name,
            public_bytes(self.public()).expect("a key's own public half"),
        )
    }

    /// Cosigns a head, which the caller has verified: the result is a line for its signed text.
    pub fn cosign(&self, witness: &Witness, head: &Head, time: u64) -> String {
        witness.line(time, &self.cosign_raw(head, time))
    }

    /// The same cosignature without the line around it.
    pub fn cosign_raw(&self, head: &Head, time: u64) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(cosigned(head, time).as_bytes())
    }
}

impl ManifestKey {
    /// Signs a JWS signing input.
    pub(crate) fn sign(&self, input: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::verify_strict;

    #[test]
    fn only_nonces_are_signed() {
        let key = ConnectionKey::generate();
        let nonce = b"aB3-_xYz0123456";
        let signature = key.sign_nonce(nonce).expect("what servers send");
        assert!(verify_strict(key.public(), nonce, &signature).is_ok());
        assert!(key.sign_nonce(&[b'a'; NONCE_BYTES_MAX]).is_ok());
        let long = [b'a'; NONCE_BYTES_MAX + 1];
        for bad in [
            &b""[..],
            b"a.b",
            b"log\n1\nroot\n",
            b"\xffdiloco",
            b"{}",
            &long,
        ] {
            assert!(
                matches!(key.sign_nonce(bad), Err(KeyError::Nonce(_))),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn tl_03_a_signed_head_is_signed_by_its_key_alone_and_is_no_nonce() {
        let (key, other) = (HeadKey::generate(), HeadKey::generate());
        let head = Head {
            origin: "diloco/test".to_owned(),
            size: 3,
            root: [5; 32],
        };
        let raw = |key: &HeadKey| public_bytes(key.public()).expect("its own");
        let note = key.sign_head(&head);
        let open = |keys: &[[u8; 32]]| Head::open(note.as_bytes(), &head.origin, keys);
        assert_eq!(open(&[raw(&other), raw(&key)]), Ok(head.clone()));
        assert!(open(&[raw(&other)]).is_err());
        let connection = ConnectionKey::generate();
        assert!(connection.sign_nonce(head.text().as_bytes()).is_err());
    }

    #[test]
    fn keys_print_their_public_half_only() {
        let (connection, audit, manifest, head) = (
            ConnectionKey::generate(),
            AuditKey::generate(),
            ManifestKey::generate(),
            HeadKey::generate(),
        );
        let signing = SigningKey::generate(KeyKind::Operator);
        let printed = format!("{connection:?} {audit:?} {manifest:?} {head:?} {signing:?}");
        for seed in [
            connection.seed(),
            audit.seed(),
            manifest.seed(),
            head.seed(),
            signing.seed(),
        ] {
            assert!(!printed.contains(seed.expose()));
            assert!(!printed.contains(&seed.expose()[4..20]));
        }
        for public in [
            connection.public(),
            audit.public(),
            manifest.public(),
            head.public(),
            signing.public(),
        ] {
            assert!(printed.contains(public.as_str()), "{public} in {printed}");
        }
    }
}
