//! URLs that came with a lease, for the objects that its work begins with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use schemas::blob::Grant;
use schemas::limits::BASE_GRANTS_MAX;
use schemas::{Digest, ObjectRef};

/// The URLs of the latest lease that are not used yet. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct AtHand(Arc<Mutex<BTreeMap<Digest, Grant>>>);

impl AtHand {
    /// Keeps the URLs of a new lease, and forgets those of the one before: they expire.
    pub(crate) fn replace(&self, grants: Vec<Grant>) {
        *self.grants() = grants
            .into_iter()
            .take(BASE_GRANTS_MAX)
            .map(|grant| (grant.digest, grant))
            .collect();
    }

    /// URLs for the first objects of `wanted`, in their order, up to the first that has none. Each
    /// URL is given once; an object that is read again is asked for.
    pub(crate) fn take(&self, wanted: &[ObjectRef]) -> Vec<Grant> {
        let mut grants = self.grants();
        wanted
            .iter()
            .map_while(|object| grants.remove(&object.digest))
            .collect()
    }

    fn grants(&self) -> MutexGuard<'_, BTreeMap<Digest, Grant>> {
        self.0.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use schemas::Bytes;

    use super::*;

    fn object(name: u8) -> ObjectRef {
        ObjectRef {
            digest: Digest::of(&[name]),
            bytes: Bytes(1),
        }
    }

    fn grant(name: u8) -> Grant {
        Grant {
            digest: object(name).digest,
            action: None,
        }
    }

    #[test]
    fn the_first_objects_have_their_urls_once() {
        let at_hand = AtHand::default();
        at_hand.replace(vec![grant(1), grant(2), grant(4)]);
        let wanted = [1, 2, 3, 4].map(object);
        assert_eq!(at_hand.take(&wanted), [grant(1), grant(2)]);
        assert_eq!(at_hand.take(&wanted), []);
        assert_eq!(at_hand.take(&wanted[3..]), [grant(4)]);
    }

    #[test]
    fn the_urls_of_a_lease_before_are_forgotten_and_too_many_are_not_kept() {
        let at_hand = AtHand::default();
        at_hand.replace(vec![grant(0)]);
        let many = 1..=2 * BASE_GRANTS_MAX as u8;
        at_hand.replace(many.clone().map(grant).collect());
        assert_eq!(at_hand.take(&[object(0)]), []);
        let wanted: Vec<ObjectRef> = many.map(object).collect();
        assert_eq!(at_hand.take(&wanted).len(), BASE_GRANTS_MAX);
    }
}
