//! Checks of a message by itself, before its place in a chain. They do not depend on other
//! messages, so many messages are checked in parallel, on all cores; only their places are checked
//! one after another.

use schemas::PublicKey;
use schemas::subject::Incoming;

use crate::entry::{Claimed, Entry, Fault};
use crate::signature::Signatures;

/// The keys that may write the ledger of a domain.
#[derive(Clone, Debug)]
pub struct Writers {
    signatures: Signatures,
    keys: Vec<PublicKey>,
}

/// The result of checking a message in the ledger's stream by itself.
#[derive(Debug)]
pub enum Proof {
    /// It is an event, signed by a key that may write here.
    Event(Box<Entry>),
    /// It is in no chain: no key that may write here has signed it. The reason, in words.
    Foreign(String),
    /// A key that may write here has signed it, but it is not an event. The reason, in words.
    Broken(String),
}

impl Writers {
    /// The writers of the ledger of `domain` (its id as text): these keys.
    pub fn new(domain: &str, keys: Vec<PublicKey>) -> Self {
        Self {
            signatures: Signatures::new(domain, &keys),
            keys,
        }
    }

    /// Checks a message by itself: its subject, its signature, its body.
    pub fn prove(&self, subject: &str, payload: &[u8]) -> Proof {
        let foreign = |reason: &dyn std::fmt::Display| Proof::Foreign(reason.to_string());
        let Ok(named @ Incoming::Ledger { .. }) = subject.parse() else {
            return foreign(&"its subject is none of the ledger's");
        };
        let claimed = match Claimed::read(payload) {
            Ok(claimed) => claimed,
            Err(error) => return foreign(&error),
        };
        if !self.keys.contains(claimed.key()) {
            return foreign(&"its key is not an audit key of the trust bundle");
        }
        let entry = match claimed.open(&self.signatures) {
            Ok(entry) => entry,
            Err(Fault::Undecodable(error)) => return Proof::Broken(error.to_string()),
            Err(fault) => return foreign(&fault),
        };
        match entry.stands_under(&named) {
            Ok(()) => Proof::Event(Box::new(entry)),
            Err(misplaced) => foreign(&misplaced),
        }
    }
}
