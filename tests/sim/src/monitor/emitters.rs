//! The keys that sign the ledger: one at a time, and none comes back.

use std::collections::BTreeSet;

use schemas::PublicKey;

use super::Monitor;
use crate::plan::operator;

/// The keys so far.
#[derive(Debug)]
pub(super) struct Emitters {
    present: PublicKey,
    before: BTreeSet<PublicKey>,
}

impl Default for Emitters {
    fn default() -> Self {
        Self {
            present: operator(),
            before: BTreeSet::new(),
        }
    }
}

impl Monitor {
    /// Checks the signer of the next event.
    pub(crate) fn signed(&self, key: &PublicKey) {
        let Emitters { present, before } = &self.emitters;
        assert!(!before.contains(key), "{key} has named another");
        assert_eq!(key, present, "no event has named it");
    }

    /// The present key names the next one.
    pub(super) fn succeed(&mut self, next: &PublicKey) {
        let Emitters { present, before } = &mut self.emitters;
        let last = std::mem::replace(present, next.clone());
        before.insert(last);
        assert!(!before.contains(next), "{next} comes back");
        self.counts.succeeded += 1;
    }
}
