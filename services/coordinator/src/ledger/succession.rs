//! The key that signs: one at a time, and each names the next.

use identity::AuditKey;
use schemas::PublicKey;
use schemas::event::LedgerEvent;
use schemas::subject::ledger_subject;

use super::{Ledger, LedgerError};

impl Ledger {
    /// The key that goes on with the chain.
    pub const fn emitter(&self) -> &PublicKey {
        self.chain.emitter()
    }

    /// The key that this process signs with.
    pub fn own(&self) -> &PublicKey {
        self.key.public()
    }

    /// True if the trust bundle that this process has read names the key, so that readers like this
    /// one take its events.
    pub fn knows(&self, key: &PublicKey) -> bool {
        self.chain.writers().has(key)
    }

    /// Checks that this process's key is the one that goes on with the chain, once it was read.
    ///
    /// # Errors
    /// [`LedgerError::Succeeded`]: another one does.
    pub fn check_own(&self) -> Result<(), LedgerError> {
        match self.emitter() == self.own() {
            true => Ok(()),
            false => Err(self.succeeded()),
        }
    }

    /// Checks that this process's key has not ended by the trust bundle: then whatever the ledger
    /// seems to say, this process does not sign.
    ///
    /// # Errors
    /// [`LedgerError::Ended`]: it has.
    pub fn check_unended(&self) -> Result<(), LedgerError> {
        let own = self.own();
        match self.ended.get(own) {
            None => Ok(()),
            Some(last) => Err(LedgerError::Ended {
                own: own.clone(),
                last: *last,
            }),
        }
    }

    /// True if the stream has an event by which this process's key names the next one, in whatever
    /// place: others may have that key, and a trust bundle of before does not say so. A message of
    /// somebody else under that subject counts too. It costs time, since the whole ledger is read
    /// then; and if it did not count, it would hide the event.
    pub(super) async fn is_former(&self) -> Result<bool, LedgerError> {
        let own = self.own();
        let named = LedgerEvent::EmitterSucceeded { next: own.clone() };
        let subject = ledger_subject(None, own, named.kind());
        Ok(self.stream.last_under(&subject).await?.is_some())
    }

    /// The error that another key goes on with the chain.
    pub fn succeeded(&self) -> LedgerError {
        LedgerError::Succeeded {
            present: self.emitter().clone(),
            own: self.own().clone(),
        }
    }

    /// Signs with this key from here on, which the chain's last event has named.
    pub fn sign_with(&mut self, key: AuditKey) {
        self.key = key;
    }
}
