//! What the ledger takes of workers whose keys are revoked: no join and no lease.

use std::collections::BTreeSet;

use schemas::event::LedgerEvent;
use schemas::{Code, PublicKey};

use crate::counts::Counts;

/// The keys that are revoked.
#[derive(Debug, Default)]
pub(super) struct Revoked(BTreeSet<PublicKey>);

impl Revoked {
    /// Records one event, and checks that it may follow those before it.
    pub(super) fn note(&mut self, event: &LedgerEvent, counts: &mut Counts) {
        match event {
            LedgerEvent::CredentialRevoked { key, .. } => {
                counts.revoked += 1;
                self.0.insert(key.clone());
            }
            LedgerEvent::CredentialReissued { key, .. } => {
                counts.reissued += 1;
                assert!(self.0.remove(key), "{key} was not revoked");
            }
            LedgerEvent::WorkerJoined { worker, .. } | LedgerEvent::LeaseGranted { worker, .. } => {
                let revoked = self.0.iter().any(|key| key.as_str() == worker.as_str());
                assert!(!revoked, "{event:?} of a revoked worker");
            }
            LedgerEvent::RequestDenied { worker, code, .. } => {
                let revoked = self.0.iter().any(|key| key.as_str() == worker.as_str());
                let void = *code == Code::HolderBlocked;
                assert!(revoked || !void, "{worker} is not revoked");
            }
            _ => {}
        }
    }
}
