//! Signatures of events, checked from the raw key in the text form of nkeys. The signed bytes start
//! with a byte that no text contains, and name purpose and domain. So no nonce, no token, and no
//! document of another purpose or domain has the same bytes.

use std::collections::BTreeMap;

use data_encoding::BASE32_NOPAD;
use ed25519_dalek::{Signature, VerifyingKey};
use schemas::event::SignedEvent;
use schemas::{Digest, PublicKey, V};
use serde_bytes::{ByteArray, ByteBuf};

use crate::tabled::{Check, TabledKey, verdicts};

/// Purpose of the signature of an event, in the signed bytes.
const PURPOSE: &[u8] = b"diloco/audit-event/v1";
/// Purpose of the signature of a statement.
const STATEMENT: &[u8] = b"diloco/statement/v1";
/// First byte of a user's public key in the binary form of nkeys.
const USER_PREFIX: u8 = 20 << 3;
pub(crate) const KEY_BYTES: usize = 32;
pub(crate) const SIGNATURE_BYTES: usize = 64;

/// A body with the signature that `key` made over its [`signed_bytes`]: the form in which events
/// are sent and stored.
pub fn signed(key: &PublicKey, signature: [u8; SIGNATURE_BYTES], body: Vec<u8>) -> SignedEvent {
    SignedEvent {
        v: V,
        key: key.clone(),
        signature: ByteArray::new(signature),
        body: ByteBuf::from(body),
    }
}

/// Checks signatures over the events of one domain. For keys that sign many of them, a check takes
/// a third of the time.
#[derive(Clone, Debug)]
pub struct Signatures {
    /// The bytes that precede a body when it is signed.
    prefix: Vec<u8>,
    tabled: BTreeMap<PublicKey, TabledKey>,
}

impl Signatures {
    /// The checker for the domain `domain` (its id as text). The keys in `often` are expected to
    /// have made most of the signatures.
    pub fn new<'a>(domain: &str, often: impl IntoIterator<Item = &'a PublicKey>) -> Self {
        let table = |key: &PublicKey| Some((key.clone(), TabledKey::new(user_key(key.as_str())?)?));
        Self {
            prefix: signed_bytes(domain, &[]),
            tabled: often.into_iter().filter_map(table).collect(),
        }
    }

    /// Returns true for each event whose signature was made by its key over its body, as
    /// [`is_signed_event`] does. Many together take less time than one by one.
    pub fn hold<'a>(&self, events: impl IntoIterator<Item = &'a SignedEvent>) -> Vec<bool> {
        let checks = events.into_iter().map(|event| self.check(event));
        verdicts(&checks.collect::<Vec<_>>())
    }

    fn check(&self, event: &SignedEvent) -> Check {
        let SignedEvent {
            key,
            signature,
            body,
            ..
        } = event;
        if let Some(tabled) = self.tabled.get(key) {
            return tabled.check(signature, &[&self.prefix, body]);
        }
        let is_signed = |key| is_signed(&key, &**signature, &[&self.prefix, &body[..]].concat());
        Check::Done(verifying_key(key.as_str()).is_some_and(is_signed))
    }
}

/// Returns true if `signature` was made by the audit key `public` (an nkey of kind `U`) over an
/// event's `body` in `domain`. The check is strict: no small-order keys, no second form of a
/// signature.
pub fn is_signed_event(domain: &str, public: &str, signature: &[u8], body: &[u8]) -> bool {
    verifying_key(public).is_some_and(|key| is_signed(&key, signature, &signed_bytes(domain, body)))
}

fn is_signed(key: &VerifyingKey, signature: &[u8], bytes: &[u8]) -> bool {
    Signature::from_slice(signature)
        .is_ok_and(|signature| key.verify_strict(bytes, &signature).is_ok())
}

fn verifying_key(public: &str) -> Option<VerifyingKey> {
    VerifyingKey::from_bytes(&user_key(public)?).ok()
}

/// The bytes that are signed for an event's `body` in `domain` (the domain's id as text): `0xFF`,
/// purpose, `0x00`, sha256 of the domain's id, body.
pub fn signed_bytes(domain: &str, body: &[u8]) -> Vec<u8> {
    prefixed(PURPOSE, domain, body)
}

/// The bytes that are signed for the `body` of a statement: a result, the keys of a cohort, or
/// anything else for which a process vouches outside its chain of events.
pub fn statement_bytes(domain: &str, body: &[u8]) -> Vec<u8> {
    prefixed(STATEMENT, domain, body)
}

/// Returns true if `signature` was made by the audit key `public` over the `body` of a statement,
/// in `domain`. The check is as strict as [`is_signed_event`].
pub fn is_signed_statement(domain: &str, public: &str, signature: &[u8], body: &[u8]) -> bool {
    let bytes = || statement_bytes(domain, body);
    verifying_key(public).is_some_and(|key| is_signed(&key, signature, &bytes()))
}

fn prefixed(purpose: &[u8], domain: &str, body: &[u8]) -> Vec<u8> {
    let domain = Digest::of(domain.as_bytes());
    [&[0xFF], purpose, &[0x00], domain.as_bytes(), body].concat()
}

/// The raw key in the text form: base32 of a prefix byte, 32 bytes, and their CRC-16, low byte
/// first.
pub(crate) fn user_key(text: &str) -> Option<[u8; KEY_BYTES]> {
    let raw = BASE32_NOPAD.decode(text.as_bytes()).ok()?;
    let (content, checksum) = raw.split_at_checked(1 + KEY_BYTES)?;
    let right = content[0] == USER_PREFIX && checksum == crc16(content).to_le_bytes();
    right.then(|| content[1..].try_into().expect("split after 33 bytes"))
}

/// The text form of a raw key.
pub(crate) fn public_key(raw: &[u8; KEY_BYTES]) -> PublicKey {
    let content = [&[USER_PREFIX][..], raw].concat();
    let checksum = crc16(&content).to_le_bytes();
    let text = BASE32_NOPAD.encode(&[&content[..], &checksum].concat());
    text.parse().expect("the text form of a user's key")
}

/// CRC-16/XMODEM: polynomial 0x1021, start 0, most significant bit first.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            (crc << 1) ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by hand from the description of the format, so that a change of the bytes is
    /// noticed.
    #[test]
    fn signed_bytes_of_events_and_of_statements_are_as_documented() {
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let event = "64696c6f636f2f61756469742d6576656e742f7631";
        let statement = "64696c6f636f2f73746174656d656e742f7631";
        for (bytes, purpose) in [
            (signed_bytes("abc", b"body"), event),
            (statement_bytes("abc", b"body"), statement),
        ] {
            let expected = format!("ff{purpose}00{hash}626f6479");
            assert_eq!(data_encoding::HEXLOWER.encode(&bytes), expected);
        }
    }

    #[test]
    fn checksum_is_xmodem() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
    }

    #[test]
    fn only_whole_keys_of_users_are_read() {
        let text = |prefix: u8| {
            let mut raw = [&[prefix][..], &[7; 32]].concat();
            raw.extend(crc16(&raw).to_le_bytes());
            BASE32_NOPAD.encode(&raw)
        };
        let good = text(USER_PREFIX);
        assert_eq!(user_key(&good), Some([7; 32]));
        assert!(good.starts_with('U'));
        assert_eq!(user_key(&text(0)), None, "an account's");
        for at in 0..good.len() {
            let mut wrong = good.clone().into_bytes();
            wrong[at] = if wrong[at] == b'B' { b'C' } else { b'B' };
            assert_eq!(
                user_key(&String::from_utf8(wrong).unwrap()),
                None,
                "letter {at}"
            );
        }
        for short in ["", "U", &good[..55]] {
            assert_eq!(user_key(short), None);
        }
    }
}
