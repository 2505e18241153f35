//! Revoked keys: the fold of their events, and the events that they forbid.

use schemas::event::LedgerEvent;
use schemas::revocation::{REVOKED_KEYS_MAX, RevokedKey};
use schemas::text::Time;
use schemas::{PublicKey, UnixMillis, WorkerId};

use crate::error::{ApplyError, out_of_place};
use crate::state::State;

impl State {
    /// The time up to which the tokens of a key are void; none if the key is not revoked, or was
    /// issued anew since.
    pub fn revoked_until(&self, key: &PublicKey) -> Option<UnixMillis> {
        self.revoked.get(key).copied()
    }

    /// True if nothing of this worker's key is taken.
    pub fn is_revoked(&self, worker: &WorkerId) -> bool {
        // Both are nkeys of users. Most domains have no revoked key at most times.
        let key = || worker.as_str().parse::<PublicKey>().ok();
        !self.revoked.is_empty() && key().is_some_and(|key| self.revoked.contains_key(&key))
    }

    /// An order that makes no further token void does not follow.
    pub(crate) fn revoke(&mut self, key: &PublicKey, until: UnixMillis) -> Result<(), ApplyError> {
        let stands = self.revoked.get(key);
        if let Some(stands) = stands.filter(|stands| until <= **stands) {
            let what = format!(
                "{key} is revoked up to {}, not {}",
                Time(*stands),
                Time(until)
            );
            return Err(out_of_place("credential-revoked", what));
        }
        if stands.is_none() && self.revoked.len() >= REVOKED_KEYS_MAX {
            let oldest = self
                .revoked
                .iter()
                .min_by_key(|(key, until)| (**until, *key));
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.revoked.remove(&oldest);
            }
        }
        self.revoked.insert(key.clone(), until);
        Ok(())
    }

    /// Only a token of after the revocation brings a key back.
    pub(crate) fn reissue(
        &mut self,
        key: &PublicKey,
        issued: UnixMillis,
    ) -> Result<(), ApplyError> {
        match self.revoked.get(key) {
            Some(until) if !RevokedKey::covers(*until, issued) => {
                self.revoked.remove(key);
                Ok(())
            }
            Some(until) => {
                let what = format!(
                    "{key} is revoked up to {}, and was issued at {}",
                    Time(*until),
                    Time(issued)
                );
                Err(out_of_place("credential-reissued", what))
            }
            None => {
                let what = format!("{key} is not revoked");
                Err(out_of_place("credential-reissued", what))
            }
        }
    }

    /// Refuses that a worker whose key is revoked joins, or is granted a lease.
    pub(crate) fn check_revoked(&self, event: &LedgerEvent) -> Result<(), ApplyError> {
        match event {
            LedgerEvent::WorkerJoined { worker, .. } | LedgerEvent::LeaseGranted { worker, .. }
                if self.is_revoked(worker) =>
            {
                Err(out_of_place(
                    event.kind(),
                    format!("the key of {worker} is revoked"),
                ))
            }
            _ => Ok(()),
        }
    }
}
