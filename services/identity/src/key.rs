//! Ed25519 keys in nkey text form: private keys that mint, and the strict check of signatures. The
//! keys that processes hold are in [`crate::purpose`].

use std::fmt;
use std::path::Path;

use nkeys::{KeyPair, KeyPairType};
use schemas::{Code, PublicKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::secret::{FileError, Seed, random};

/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;

/// The kind of a key's holder; the first letter of its text form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// The owner of a trust domain (`O`).
    Operator,
    /// An account, or a key that signs for one (`A`).
    Account,
    /// A user: a process (`U`).
    User,
}

/// A private key that mints: of an operator, an account or a role. Wiped when dropped.
#[derive(Clone)]
pub struct SigningKey {
    kind: KeyKind,
    key: ed25519_dalek::SigningKey,
    public: PublicKey,
}

/// Reasons to refuse a key or a signature.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not the text form of a private key of this kind. The text is not repeated.
    #[error("not a private key of kind {kind:?}; expected a line of 58 characters that starts with {}", kind.seed_prefix())]
    Seed {
        /// The wanted kind.
        kind: KeyKind,
    },
    /// Not a public key of this kind, or its checksum is wrong.
    #[error("not a public key of kind {kind:?}, or mistyped: {text:?}")]
    Public {
        /// The wanted kind.
        kind: KeyKind,
        /// The given text.
        text: String,
    },
    /// The signature was not made by this key over these bytes.
    #[error("signature does not verify under {0}")]
    Signature(PublicKey),
    /// The server asks for a signature over bytes that are no nonce.
    #[error("the server asks to sign {0} bytes that are no nonce; do not trust this server")]
    Nonce(usize),
    /// The file that holds the key.
    #[error(transparent)]
    File(#[from] FileError),
}

impl KeyError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::Seed { .. } | Self::Public { .. } => Code::CredentialMalformed,
            Self::Signature(_) => Code::SignatureInvalid,
            Self::Nonce(_) => Code::NonceRefused,
            Self::File(error) => error.code(),
        }
    }
}

schemas::coded!(KeyError);

/// Checks a signature strictly: no small-order keys, no second encoding of the same signature.
///
/// # Errors
/// The key's checksum or the signature is wrong.
pub fn verify_strict(public: &PublicKey, message: &[u8], signature: &[u8]) -> Result<(), KeyError> {
    let refused = || KeyError::Signature(public.clone());
    let key =
        ed25519_dalek::VerifyingKey::from_bytes(&public_bytes(public)?).map_err(|_| refused())?;
    let signature = ed25519_dalek::Signature::from_slice(signature).map_err(|_| refused())?;
    key.verify_strict(message, &signature)
        .map_err(|_| refused())
}

/// Reads the text form of a public key of one kind and checks its checksum.
///
/// # Errors
/// It is of another kind, or mistyped.
pub fn parse_public(text: &str, kind: KeyKind) -> Result<PublicKey, KeyError> {
    let refused = || KeyError::Public {
        kind,
        text: text.chars().take(64).collect(),
    };
    let public: PublicKey = text.parse().map_err(|_| refused())?;
    public_bytes(&public)?;
    if KeyKind::of(&public) == kind {
        Ok(public)
    } else {
        Err(refused())
    }
}

/// The raw 32 bytes of a public key, as the audit log's leaves hold it.
///
/// # Errors
/// The checksum in its text is wrong.
pub fn public_bytes(public: &PublicKey) -> Result<[u8; 32], KeyError> {
    let kind = KeyKind::of(public);
    match nkeys::from_public_key(public.as_str()) {
        Ok((prefix, bytes)) if prefix == kind.prefix() => Ok(bytes),
        _ => Err(KeyError::Public {
            kind,
            text: public.as_str().to_owned(),
        }),
    }
}

impl KeyKind {
    /// The kind that a public key's first letter names.
    pub fn of(public: &PublicKey) -> Self {
        match public.as_str().as_bytes().first() {
            Some(b'O') => Self::Operator,
            Some(b'A') => Self::Account,
            // `PublicKey` admits no other letter.
            _ => Self::User,
        }
    }

    /// The byte before a key of this kind in the binary form of nkeys.
    const fn prefix(self) -> u8 {
        match self {
            Self::Operator => 14 << 3,
            Self::Account => 0,
            Self::User => 20 << 3,
        }
    }

    const fn seed_prefix(self) -> &'static str {
        match self {
            Self::Operator => "SO",
            Self::Account => "SA",
            Self::User => "SU",
        }
    }

    const fn nkey(self) -> KeyPairType {
        match self {
            Self::Operator => KeyPairType::Operator,
            Self::Account => KeyPairType::Account,
            Self::User => KeyPairType::User,
        }
    }
}

impl SigningKey {
    /// A new key from the operating system's generator.
    pub fn generate(kind: KeyKind) -> Self {
        Self::from_raw(kind, &random())
    }

    /// The key of a seed.
    ///
    /// # Errors
    /// The text is no seed of this kind.
    pub fn from_seed(kind: KeyKind, seed: &Seed) -> Result<Self, KeyError> {
        let (prefix, raw) =
            nkeys::decode_seed(seed.expose()).map_err(|_| KeyError::Seed { kind })?;
        let key = Self::from_raw(kind, &Zeroizing::new(raw));
        // One key has one text: the form has three bits that its reader ignores.
        let same = prefix == kind.prefix() && key.seed().same(seed);
        if same {
            Ok(key)
        } else {
            Err(KeyError::Seed { kind })
        }
    }

    /// The key in a seed file.
    ///
    /// # Errors
    /// The file cannot be used, or holds no seed of this kind.
    pub fn read(kind: KeyKind, path: &Path) -> Result<Self, KeyError> {
        Self::from_seed(kind, &Seed::read(path)?)
    }

    /// The kind of its holder.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// Its public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Its text form, to be written to a file.
    pub fn seed(&self) -> Seed {
        Seed::new(
            self.pair()
                .seed()
                .expect("the pair was made from a private key"),
        )
    }

    /// Signs `message` as it is. Only this crate says what a key signs.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        ed25519_dalek::Signer::sign(&self.key, message).to_bytes()
    }

    pub(crate) fn raw(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.key.to_bytes())
    }

    fn from_raw(kind: KeyKind, raw: &Zeroizing<[u8; 32]>) -> Self {
        let key = ed25519_dalek::SigningKey::from_bytes(raw);
        let text = KeyPair::new_from_raw(kind.nkey(), **raw)
            .expect("any 32 bytes are a private key")
            .public_key();
        Self {
            kind,
            key,
            public: text
                .parse()
                .expect("nkeys writes public keys in their text form"),
        }
    }

    /// For encoding only: a pair of nkeys is not wiped, so none is kept.
    fn pair(&self) -> KeyPair {
        KeyPair::new_from_raw(self.kind.nkey(), self.key.to_bytes())
            .expect("any 32 bytes are a private key")
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [KeyKind; 3] = [KeyKind::Operator, KeyKind::Account, KeyKind::User];

    #[test]
    fn seeds_round_trip_and_agree_with_nkeys() {
        for kind in KINDS {
            let key = SigningKey::generate(kind);
            let again = SigningKey::from_seed(kind, &key.seed()).expect("its own seed");
            assert_eq!(key.public(), again.public());
            let pair = KeyPair::from_seed(key.seed().expose()).expect("nkeys reads it");
            assert_eq!(pair.public_key(), key.public().as_str());
            assert!(pair.verify(b"m", &key.sign(b"m")).is_ok());
            assert!(verify_strict(key.public(), b"m", &key.sign(b"m")).is_ok());
        }
    }

    #[test]
    fn seeds_of_another_kind_or_with_a_wrong_letter_are_refused() {
        for kind in KINDS {
            let seed = SigningKey::generate(kind).seed();
            for other in KINDS.into_iter().filter(|other| *other != kind) {
                assert!(
                    SigningKey::from_seed(other, &seed).is_err(),
                    "{kind:?} as {other:?}"
                );
            }
            for at in 0..seed.expose().len() {
                let mut text = seed.expose().as_bytes().to_vec();
                text[at] = if text[at] == b'A' { b'B' } else { b'A' };
                let text = String::from_utf8(text).expect("still ASCII");
                assert!(
                    SigningKey::from_seed(kind, &Seed::new(text)).is_err(),
                    "letter {at}"
                );
            }
        }
        for text in ["", "SU", "SUé", &"S".repeat(58)] {
            assert!(SigningKey::from_seed(KeyKind::User, &Seed::new(text.to_owned())).is_err());
        }
    }

    /// The text of these bytes, with their checksum: CRC-16/XMODEM, the lower byte first.
    fn encoded(bytes: &[u8]) -> String {
        let mut sum = 0u16;
        for byte in bytes {
            sum ^= u16::from(*byte) << 8;
            for _ in 0..8 {
                let top = sum & 0x8000 != 0;
                sum = (sum << 1) ^ if top { 0x1021 } else { 0 };
            }
        }
        let whole = [bytes, &sum.to_le_bytes()].concat();
        data_encoding::BASE32_NOPAD.encode(&whole)
    }

    #[test]
    fn a_second_text_of_the_same_key_is_refused() {
        let key = SigningKey::generate(KeyKind::User);
        let seed = key.seed();
        let whole = data_encoding::BASE32_NOPAD
            .decode(seed.expose().as_bytes())
            .expect("nkeys wrote it");
        let bytes = &whole[..whole.len() - 2];
        assert_eq!(encoded(bytes), seed.expose(), "this is how seeds are made");
        for bits in 1..8 {
            let mut other = bytes.to_vec();
            other[1] |= bits;
            let text = encoded(&other);
            let (prefix, raw) = nkeys::decode_seed(&text).expect("nkeys takes it");
            assert!(prefix == KeyKind::User.prefix() && raw == key.key.to_bytes());
            assert!(matches!(
                SigningKey::from_seed(KeyKind::User, &Seed::new(text)),
                Err(KeyError::Seed { .. })
            ));
        }
    }

    #[test]
    fn the_refusal_of_a_seed_says_how_one_begins() {
        for (kind, letters) in [
            (KeyKind::Operator, "SO"),
            (KeyKind::Account, "SA"),
            (KeyKind::User, "SU"),
        ] {
            let text = SigningKey::generate(kind).seed();
            assert!(text.expose().starts_with(letters));
            let error = SigningKey::from_seed(kind, &Seed::new(String::new()));
            let error = error.expect_err("no seed").to_string();
            assert!(
                error.ends_with(&format!("starts with {letters}")),
                "{error}"
            );
        }
    }

    #[test]
    fn public_keys_have_checksum_and_kind() {
        let text = SigningKey::generate(KeyKind::User).public().to_string();
        assert!(parse_public(&text, KeyKind::User).is_ok());
        assert!(parse_public(&text, KeyKind::Account).is_err());
        let mut wrong = text.into_bytes();
        wrong[20] = if wrong[20] == b'A' { b'B' } else { b'A' };
        assert!(
            parse_public(
                &String::from_utf8(wrong).expect("still ASCII"),
                KeyKind::User
            )
            .is_err()
        );
    }

    #[test]
    fn weak_keys_and_malleable_signatures_are_refused() {
        let key = SigningKey::generate(KeyKind::User);
        let good = key.sign(b"m");
        assert!(verify_strict(key.public(), b"n", &good).is_err());
        assert!(verify_strict(key.public(), b"m", &good[..63]).is_err());
        // S + L is the second encoding that lenient verifiers accept.
        const ORDER: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9,
            0xde, 0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut second = good;
        let mut carry = 0u16;
        for (byte, order) in second[32..].iter_mut().zip(ORDER) {
            let sum = u16::from(*byte) + u16::from(order) + carry;
            *byte = sum as u8;
            carry = sum >> 8;
        }
        assert!(verify_strict(key.public(), b"m", &second).is_err());
        // The identity point "verifies" everything under a lenient check: R = identity, S = 0.
        let mut point = [0u8; 32];
        point[0] = 1;
        let weak = weak_public(point);
        let mut forged = [0u8; 64];
        forged[0] = 1;
        let lenient = ed25519_dalek::VerifyingKey::from_bytes(&point).expect("it is a point");
        let signature = ed25519_dalek::Signature::from_bytes(&forged);
        let accepted = ed25519_dalek::Verifier::verify(&lenient, b"anything", &signature);
        assert!(
            accepted.is_ok(),
            "the forgery is one that a lenient check takes"
        );
        assert!(verify_strict(&weak, b"anything", &forged).is_err());
    }

    /// The text form of raw bytes that are no honest key.
    fn weak_public(point: [u8; 32]) -> PublicKey {
        let mut raw = vec![KeyKind::User.prefix()];
        raw.extend(point);
        let mut crc = 0u16;
        for byte in &raw {
            crc ^= u16::from(*byte) << 8;
            for _ in 0..8 {
                crc = if crc & 0x8000 == 0 {
                    crc << 1
                } else {
                    (crc << 1) ^ 0x1021
                };
            }
        }
        raw.extend(crc.to_le_bytes());
        let public: PublicKey = data_encoding::BASE32_NOPAD
            .encode(&raw)
            .parse()
            .expect("the form is right");
        assert_eq!(public_bytes(&public).expect("the checksum is right"), point);
        public
    }
}
