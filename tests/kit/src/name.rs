//! Names: each has the form that its type checks, and nobody holds a key to it.

use schemas::{AccountId, Bytes, ObjectRef, PublicKey, RunId, WorkerId};

/// Public keys with numbers from here sign workers' statements.
const AUDIT_KEYS_FROM: u32 = 1000;
/// The operator's number.
const OPERATOR: u32 = 1 << 20;

/// A key of this kind: names are ordered as their numbers are.
fn key(kind: char, number: u32) -> String {
    let digits: String = (0..8)
        .rev()
        .map(|at| char::from(b'A' + (number >> (4 * at) & 15) as u8))
        .collect();
    format!("{kind}{}{digits}", "A".repeat(47))
}

/// Worker `number`.
pub fn worker(number: u32) -> WorkerId {
    key('U', number).parse().expect("the form of a user's key")
}

/// Tenant `number`.
pub fn account(number: u32) -> AccountId {
    key('A', number)
        .parse()
        .expect("the form of an account's key")
}

/// Any public key.
pub fn public_key(number: u32) -> PublicKey {
    key('U', number).parse().expect("the form of a user's key")
}

/// The key that signs the statements of worker `number`.
pub fn audit_key(number: u32) -> PublicKey {
    public_key(AUDIT_KEYS_FROM + number)
}

/// The operator who creates runs.
pub fn operator() -> PublicKey {
    public_key(OPERATOR)
}

/// The run of [`crate::run_spec`].
pub fn run_id() -> RunId {
    "demo".parse().expect("the form of a run's name")
}

/// A named object; names stand for contents.
pub fn object(name: &str) -> ObjectRef {
    ObjectRef::of(name.as_bytes())
}

/// A named object of so many bytes.
pub fn sized(name: &str, bytes: u64) -> ObjectRef {
    ObjectRef {
        bytes: Bytes(bytes),
        ..object(name)
    }
}
