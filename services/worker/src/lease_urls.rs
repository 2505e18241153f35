//! URLs that came with a lease, for the objects that its work begins with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use schemas::blob::Grant;
use schemas::limits::{BASE_GRANTS_MAX, URL_LIFE};
use schemas::{Digest, ObjectRef};

/// Age above which URLs are not used: half of their life, so that a download can still begin again.
const AGE_MAX: Duration = Duration::from_millis(URL_LIFE.0 / 2);

/// The URLs of the latest lease that are not used yet. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeaseUrls(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    grants: BTreeMap<Digest, Grant>,
    /// The time at which they came.
    since: Option<Instant>,
}

impl LeaseUrls {
    /// Keeps the URLs of a new lease, and forgets those of the one before: they expire.
    pub(crate) fn replace(&self, grants: Vec<Grant>, now: Instant) {
        let grants = grants.into_iter().take(BASE_GRANTS_MAX);
        *self.0.lock().expect("no holder panics") = Held {
            grants: grants.map(|grant| (grant.digest, grant)).collect(),
            since: Some(now),
        };
    }

    /// URLs for the first objects of `wanted`, in their order, up to the first that has none. Each
    /// URL is given once; an object that is read again is asked for.
    pub(crate) fn take(&self, wanted: &[ObjectRef], now: Instant) -> Vec<Grant> {
        let mut held = self.0.lock().expect("no holder panics");
        if held.since.is_none_or(|since| now - since > AGE_MAX) {
            return vec![];
        }
        wanted
            .iter()
            .map_while(|object| held.grants.remove(&object.digest))
            .collect()
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
        let (lease_urls, now) = (LeaseUrls::default(), Instant::now());
        let wanted = [1, 2, 3, 4].map(object);
        assert_eq!(lease_urls.take(&wanted, now), [], "there was no lease");
        lease_urls.replace(vec![grant(1), grant(2), grant(4)], now);
        assert_eq!(lease_urls.take(&wanted, now), [grant(1), grant(2)]);
        assert_eq!(lease_urls.take(&wanted, now), []);
        assert_eq!(lease_urls.take(&wanted[3..], now + AGE_MAX), [grant(4)]);
    }

    #[test]
    fn urls_that_are_old_are_not_used() {
        let (lease_urls, now) = (LeaseUrls::default(), Instant::now());
        lease_urls.replace(vec![grant(1)], now);
        let later = now + AGE_MAX + Duration::from_millis(1);
        assert_eq!(lease_urls.take(&[object(1)], later), []);
    }

    #[test]
    fn the_urls_of_a_lease_before_are_forgotten_and_too_many_are_not_kept() {
        let (lease_urls, now) = (LeaseUrls::default(), Instant::now());
        lease_urls.replace(vec![grant(0)], now);
        let many = 1..=2 * BASE_GRANTS_MAX as u8;
        lease_urls.replace(many.clone().map(grant).collect(), now);
        assert_eq!(lease_urls.take(&[object(0)], now), []);
        let wanted: Vec<ObjectRef> = many.map(object).collect();
        assert_eq!(lease_urls.take(&wanted, now).len(), BASE_GRANTS_MAX);
    }
}
