//! The keys that go on with the ledger, in the order of the log: one at a time. What another of the
//! trusted keys signs meanwhile is in nobody's chain.

use std::collections::BTreeMap;

use schemas::PublicKey;
use schemas::event::{EventBody, SignedEvent};

use super::open::Trusted;

/// The entries of the log in which each key goes on with the ledger.
#[derive(Debug)]
pub(super) struct Course {
    /// The keys so far; the last goes on.
    line: Vec<PublicKey>,
    /// The entry with which each key before has named the next.
    ends: BTreeMap<PublicKey, u64>,
}

impl Course {
    pub(super) fn new(trusted: &Trusted) -> Self {
        Self {
            line: trusted.coordinators.first().cloned().into_iter().collect(),
            ends: BTreeMap::new(),
        }
    }

    /// Takes an event of the present key, and follows it to the next one if it names one. Returns
    /// false for an event of another key.
    pub(super) fn follow(
        &mut self,
        trusted: &Trusted,
        index: u64,
        event: &SignedEvent,
        body: &EventBody,
    ) -> bool {
        if self.line.last() != Some(&event.key) {
            return false;
        }
        let place = |key: &PublicKey| trusted.coordinators.iter().position(|known| known == key);
        let later = |next: &&PublicKey| place(next) > place(&event.key);
        let signed = || {
            let (key, signature) = (event.key.as_str(), &*event.signature);
            chain::is_signed_event(&trusted.domain, key, signature, &event.body)
        };
        if let Some(next) = body.event.next_emitter().filter(later)
            && signed()
        {
            self.ends.insert(event.key.clone(), index);
            self.line.push(next.clone());
        }
        true
    }

    /// True if this holds for the key, or for one before it in whose turn the ledger named the next
    /// ones up to it.
    pub(super) fn is_vouched(&self, key: &PublicKey, holds: impl Fn(&PublicKey) -> bool) -> bool {
        let place = self.line.iter().position(|one| one == key);
        let before = place.map_or(&[][..], |place| &self.line[..place]);
        holds(key) || before.iter().any(holds)
    }

    /// True if the key goes on with the ledger in this entry: the one before has named it by then,
    /// if there is one, and it has not named the next one yet.
    pub(super) fn goes_on(&self, key: &PublicKey, index: u64) -> bool {
        let ended = |key: &PublicKey| self.ends.get(key).is_some_and(|end| index > *end);
        let Some(place) = self.line.iter().position(|one| one == key) else {
            return false;
        };
        let before = place.checked_sub(1).map(|before| &self.line[before]);
        before.is_none_or(ended) && !ended(key)
    }
}
