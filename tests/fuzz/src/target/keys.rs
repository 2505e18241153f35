//! Keys that are the same in every run, so that what they signed can be kept in the corpus. They
//! protect nothing.

use data_encoding::BASE64URL_NOPAD;
use identity::secret::write_private;
use identity::{AuditKey, HeadKey, KeyKind, ManifestKey, Seed};
use nkeys::{KeyPair, KeyPairType};
use schemas::PublicKey;

/// The secret half of all of them.
const RAW: [u8; 32] = [7; 32];

fn pair(kind: KeyKind) -> KeyPair {
    let kind = match kind {
        KeyKind::Operator => KeyPairType::Operator,
        KeyKind::Account => KeyPairType::Account,
        KeyKind::User => KeyPairType::User,
    };
    KeyPair::new_from_raw(kind, RAW).expect("32 bytes are a key")
}

pub(super) fn seed_text(kind: KeyKind) -> String {
    pair(kind).seed().expect("it has both halves")
}

pub(super) fn seed(kind: KeyKind) -> Seed {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let path = folder.path().join("seed");
    write_private(&path, seed_text(kind).as_bytes()).expect("a scratch folder takes a file");
    Seed::read(&path).expect("it was just written")
}

pub(super) fn public(kind: KeyKind) -> PublicKey {
    let text = pair(kind).public_key();
    text.parse().expect("the text form of a key")
}

pub(super) fn raw_public() -> [u8; 32] {
    let key = public(KeyKind::User);
    identity::key::public_bytes(&key).expect("the text form of a key")
}

/// The signature over any bytes.
pub(super) fn sign(bytes: &[u8]) -> [u8; 64] {
    let signature = pair(KeyKind::User).sign(bytes).expect("it has both halves");
    signature.try_into().expect("a signature has 64 bytes")
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
