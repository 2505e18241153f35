//! Keys that are the same in every run, so that what they signed can be kept in the corpus. They
//! protect nothing.

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use ed25519_dalek::{Signer as _, SigningKey};
use identity::secret::write_private;
use identity::{AuditKey, HeadKey, KeyKind, ManifestKey, Seed};
use schemas::PublicKey;

/// The secret half of all of them.
const RAW: [u8; 32] = [7; 32];

/// The first byte of a key's text form, by kind.
const fn prefix(kind: KeyKind) -> u8 {
    let letter = match kind {
        KeyKind::Operator => 14,
        KeyKind::Account => 0,
        KeyKind::User => 20,
    };
    letter << 3
}

/// The text form of a seed: its own mark and the kind share the first two bytes.
pub(super) fn seed_text(kind: KeyKind) -> String {
    const SEED: u8 = 18 << 3;
    let kind = prefix(kind);
    let content = [&[SEED | (kind >> 5), (kind & 31) << 3], &RAW[..]].concat();
    text(&content)
}

pub(super) fn seed(kind: KeyKind) -> Seed {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let path = folder.path().join("seed");
    write_private(&path, seed_text(kind).as_bytes()).expect("a scratch folder takes a file");
    Seed::read(&path).expect("it was just written")
}

pub(super) fn public(kind: KeyKind) -> PublicKey {
    let key = SigningKey::from_bytes(&RAW).verifying_key();
    let content = [&[prefix(kind)], key.as_bytes().as_slice()].concat();
    text(&content).parse().expect("the text form of a key")
}

fn text(content: &[u8]) -> String {
    let crc = content.iter().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            (crc << 1) ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 }
        })
    });
    BASE32_NOPAD.encode(&[content, &crc.to_le_bytes()].concat())
}

pub(super) fn raw_public() -> [u8; 32] {
    SigningKey::from_bytes(&RAW).verifying_key().to_bytes()
}

/// The signature over any bytes.
pub(super) fn sign(bytes: &[u8]) -> [u8; 64] {
    SigningKey::from_bytes(&RAW).sign(bytes).to_bytes()
}

pub(super) fn audit_key() -> AuditKey {
    AuditKey::from_seed(&seed(KeyKind::User)).expect("a seed")
}

pub(super) fn manifest_key() -> ManifestKey {
    ManifestKey::from_seed(&seed(KeyKind::Account)).expect("a seed")
}

pub(super) fn head_key() -> HeadKey {
    HeadKey::from_seed(&seed(KeyKind::Account)).expect("a seed")
}

/// A compact document whose header and claims are any bytes, and whose signature holds.
pub(super) fn compact(header: &[u8], claims: &[u8]) -> String {
    let input = format!(
        "{}.{}",
        BASE64URL_NOPAD.encode(header),
        BASE64URL_NOPAD.encode(claims)
    );
    let signature = BASE64URL_NOPAD.encode(&sign(input.as_bytes()));
    format!("{input}.{signature}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_forms_are_those_of_nkeys() {
        assert_eq!(*audit_key().public(), public(KeyKind::User));
        for kind in [KeyKind::Operator, KeyKind::Account] {
            let key = identity::SigningKey::from_seed(kind, &seed(kind)).expect("a seed");
            assert_eq!(*key.public(), public(kind));
        }
    }
}
