//! The key that signs: one at a time, and each names the next.

use identity::AuditKey;
use schemas::PublicKey;

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
