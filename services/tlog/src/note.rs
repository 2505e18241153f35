//! A tree head as signed text: a C2SP tlog-checkpoint in a C2SP signed-note.
//!
//! These texts have no prefix of their own, so a server's nonce could be one. A key that signs them
//! must therefore never be a key with which somebody connects.

use data_encoding::BASE64;
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};

use crate::{Hash, from_base64};

/// Most entries of a log that is read: code that checks trees counts their nodes in 64 bits.
const SIZE_MAX: u64 = u64::MAX / 2;
/// Longest text that is read: a head has some 300 bytes, and each further signature some 200.
pub const NOTE_BYTES_MAX: usize = 16 << 10;
/// The kind of a signature in the identifier of its key: Ed25519 over the text.
pub(crate) const ED25519: u8 = 1;
pub(crate) const SIGNATURE_BYTES: usize = 64;
pub(crate) const SIGNATURE_LINE: &str = "\u{2014} ";

/// The state of a log: everything in it follows from these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The name of the log.
    pub origin: String,
    /// Its entries.
    pub size: u64,
    /// The root of the tree over them.
    pub root: Hash,
}

/// The reason why a text is no head of this log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// It has another form.
    #[error("it is no signed tree head: {0}")]
    Malformed(&'static str),
    /// It is a head of another log.
    #[error("it is a head of the log {found:?}, expected {expected:?}")]
    Origin {
        /// The log that it names.
        found: String,
        /// The log whose head it should be.
        expected: String,
    },
    /// No key that may sign heads of this log has signed it.
    #[error("no key of the trust bundle has signed it")]
    Unsigned,
    /// A trusted key is named, and has not signed this.
    #[error("the signature of a trusted key does not verify")]
    Forged,
}

impl Head {
    /// The text that is signed.
    pub fn text(&self) -> String {
        let Self { origin, size, root } = self;
        format!("{origin}\n{size}\n{}\n", BASE64.encode(root))
    }

    /// The signed text, from the signature that the private half of `key` made over
    /// [`Head::text`].
    pub fn signed(&self, key: &[u8; 32], signature: &[u8; SIGNATURE_BYTES]) -> String {
        let origin = &self.origin;
        let stated = [&key_id(origin, key)[..], signature].concat();
        let text = self.text();
        format!(
            "{text}\n{SIGNATURE_LINE}{origin} {}\n",
            BASE64.encode(&stated)
        )
    }

    /// Reads a signed head of the log `origin`, which one of `keys` must have signed. Signatures of
    /// others are ignored, as the format demands.
    ///
    /// # Errors
    /// It is none, or not signed by any of these keys.
    pub fn open(note: &[u8], origin: &str, keys: &[[u8; 32]]) -> Result<Self, HeadError> {
        let malformed = HeadError::Malformed;
        if note.len() > NOTE_BYTES_MAX {
            return Err(malformed("it is too long"));
        }
        let note = std::str::from_utf8(note).map_err(|_| malformed("it is no text"))?;
        let (text, signatures) = note
            .rsplit_once("\n\n")
            .ok_or(malformed("no empty line stands before its signatures"))?;
        let head = Self::parse(text)?;
        if head.origin != origin {
            return Err(HeadError::Origin {
                found: head.origin.chars().take(128).collect(),
                expected: origin.to_owned(),
            });
        }
        let signatures = signatures
            .strip_suffix('\n')
            .ok_or(malformed("its last line has no end"))?;
        let mut signed = false;
        for line in signatures.split('\n') {
            let (name, stated) = signature(line).ok_or(malformed("a line is no signature"))?;
            let (id, signature) = stated.split_at(4);
            let named = |key: &&[u8; 32]| name == origin && id == key_id(origin, key);
            if let Some(key) = keys.iter().find(named) {
                if !verifies(key, &head.text(), signature) {
                    return Err(HeadError::Forged);
                }
                signed = true;
            }
        }
        signed.then_some(head).ok_or(HeadError::Unsigned)
    }

    /// Reads the text that is signed, without its last line end.
    fn parse(text: &str) -> Result<Self, HeadError> {
        let malformed = HeadError::Malformed;
        let lines: Vec<&str> = text.split('\n').collect();
        let [origin, size, root] = lines[..] else {
            return Err(malformed("a head has three lines"));
        };
        let number: u64 = size
            .parse()
            .map_err(|_| malformed("its size is no number"))?;
        if number.to_string() != size {
            return Err(malformed("its size is no plain number"));
        }
        if number > SIZE_MAX {
            return Err(malformed("no log has so many entries"));
        }
        let root = from_base64(root).and_then(|root| root.try_into().ok());
        let head = Self {
            origin: origin.to_owned(),
            size: number,
            root: root.ok_or(malformed("its root is no hash"))?,
        };
        match origin.is_empty() || !origin.chars().all(|c| c.is_ascii_graphic() && c != '+') {
            true => Err(malformed("its first line names no log")),
            false => Ok(head),
        }
    }
}

/// The name, and the identifier of the key with the signature, of a line.
pub(crate) fn signature(line: &str) -> Option<(&str, Vec<u8>)> {
    let (name, stated) = line.strip_prefix(SIGNATURE_LINE)?.split_once(' ')?;
    let stated = from_base64(stated)?;
    (!name.is_empty() && stated.len() > 4).then_some((name, stated))
}

pub(crate) fn verifies(key: &[u8; 32], text: &str, signature: &[u8]) -> bool {
    let Ok(signature) = Signature::from_slice(signature) else {
        return false;
    };
    VerifyingKey::from_bytes(key)
        .is_ok_and(|key| key.verify_strict(text.as_bytes(), &signature).is_ok())
}

fn key_id(name: &str, key: &[u8; 32]) -> [u8; 4] {
    key_id_of(name, ED25519, key)
}

/// The first four bytes of sha256 over name, line end, kind of signature and key.
pub(crate) fn key_id_of(name: &str, kind: u8, key: &[u8; 32]) -> [u8; 4] {
    let hash: Hash = Sha256::new()
        .chain_update(name)
        .chain_update([b'\n', kind])
        .chain_update(key)
        .finalize()
        .into();
    *hash.first_chunk().expect("a hash has 32 bytes")
}
