//! An operator revokes a worker's key, and issues it anew later. The brokers of the simulation let
//! every key through, as a node does that has not heard of a revocation: so nothing but the
//! coordinator keeps a revoked worker out.

use coordinator_core::{ControlRequest, Input};
use schemas::revocation::{RevokeRequest, RevokedKey};
use schemas::role::Role;
use schemas::{Millis, PublicKey, V};

use crate::plan::worker_id;
use crate::world::{SimEvent, World};

/// Time for which an order makes tokens of after it void too.
const MARGIN: Millis = Millis::from_secs(300);

fn key(worker: usize) -> PublicKey {
    let worker = worker_id(worker);
    worker.as_str().parse().expect("both are nkeys of users")
}

impl World {
    /// An operator revokes a worker's key for a while.
    pub(crate) fn revoke(&mut self, worker: usize) {
        let keys = vec![RevokedKey {
            key: key(worker),
            role: Some(Role::Worker),
            name: Some(format!("worker-{worker}")),
            until: self.now.after(MARGIN),
            reason: "its laptop was stolen".parse().ok(),
        }];
        self.ask_as_operator(ControlRequest::CredentialRevoke(RevokeRequest {
            v: V,
            keys,
        }));
        let pause = self.random.millis(500, 60_000);
        self.after(pause, SimEvent::Reissue(worker));
    }

    /// The worker has a new token for its key. The coordinator finds that in the list of issued
    /// credentials, before each join; here it is told until it knows.
    pub(crate) fn reissue(&mut self, worker: usize) {
        let key = key(worker);
        let until = self.site.shadow.revoked_until(&key);
        if let Some(until) = until {
            let issued = until.after(Millis::from_secs(1));
            self.tell_coordinator(Input::Reissued { key, issued });
        }
        if until.is_some() || !self.site.waiting.is_empty() {
            self.after(Millis::from_secs(5), SimEvent::Reissue(worker));
        }
    }
}
