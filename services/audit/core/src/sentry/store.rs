//! What the store lists of the requests that it refused. The list counts since the store's start,
//! so what is new is the difference to the list before: a list that was lost on the way loses
//! nothing.

use std::collections::BTreeMap;

use schemas::security::{Refuser, STORE_REFUSALS_MAX, StoreRefusal, StoreRefusals};

use super::{Happening, Sighting, cut, user};

/// What was known of the store's refusals at the last look.
#[derive(Debug, Default)]
pub struct StoreLooks {
    /// The store's process; none before the first look.
    process: Option<u64>,
    counts: BTreeMap<StoreRefusal, u64>,
    more: u64,
}

impl StoreLooks {
    /// The sightings that are new in a list, each with its number, and the number of new ones that
    /// the store does not tell apart. What a store has counted before the first look is not new.
    pub fn take(&mut self, list: StoreRefusals) -> (Vec<(Sighting, u64)>, u64) {
        let StoreRefusals {
            process,
            mut refusals,
            more,
            ..
        } = list;
        refusals.truncate(STORE_REFUSALS_MAX);
        let before = std::mem::take(&mut self.counts);
        let (first, same) = (self.process.is_none(), self.process == Some(process));
        let since = |now: u64, then: u64| match (first, same) {
            (true, _) => 0,
            // It forgets what was not repeated for long, and begins with one again.
            (_, true) if now >= then => now - then,
            _ => now,
        };
        let mut sightings = Vec::new();
        for refusal in refusals {
            let count = refusal.count;
            let known = StoreRefusal {
                count: 0,
                ..refusal
            };
            let then = before.get(&known).copied().unwrap_or_default();
            let new = since(count, then);
            if new > 0 {
                sightings.push((sighting(&known), new));
            }
            self.counts.insert(known, count);
        }
        let more_new = since(more, self.more);
        self.process = Some(process);
        self.more = more;
        (sightings, more_new)
    }
}

fn sighting(refusal: &StoreRefusal) -> Sighting {
    let holder = refusal.holder.as_ref();
    let key = match refusal.key.as_str() {
        "" => "no key of this store".to_owned(),
        key => format!("key {key}"),
    };
    Sighting {
        happening: Happening::RequestRefused(Refuser::Store),
        account: None,
        user: holder.and_then(|holder| user(holder.as_str())),
        name: cut(&key),
        address: cut(&refusal.address),
        subject: cut(&refusal.request),
        reason: cut(&refusal.reason),
    }
}

#[cfg(test)]
mod tests {
    use schemas::V;

    use super::*;

    fn refusal(address: &str, count: u64) -> StoreRefusal {
        StoreRefusal {
            address: address.to_owned(),
            holder: format!("U{}", "A".repeat(55)).parse().ok(),
            key: "get".to_owned(),
            request: "GET blobs".to_owned(),
            reason: "SignatureDoesNotMatch".to_owned(),
            count,
        }
    }

    fn list(process: u64, counts: &[(&str, u64)], more: u64) -> StoreRefusals {
        let refusals = counts
            .iter()
            .map(|(address, count)| refusal(address, *count));
        StoreRefusals {
            v: V,
            process,
            refusals: refusals.collect(),
            more,
            posture: None,
        }
    }

    fn taken(looks: &mut StoreLooks, list: StoreRefusals) -> (Vec<(String, u64)>, u64) {
        let (sightings, more) = looks.take(list);
        let of = |(one, times): (Sighting, u64)| (one.address, times);
        (sightings.into_iter().map(of).collect(), more)
    }

    #[test]
    fn tl_29_each_refusal_of_the_store_is_new_once() {
        let mut looks = StoreLooks::default();
        let owned = |all: &[(&str, u64)]| -> Vec<(String, u64)> {
            all.iter()
                .map(|(one, times)| ((*one).to_owned(), *times))
                .collect()
        };
        let none = Vec::new();
        assert_eq!(
            taken(&mut looks, list(1, &[("a", 5)], 2)),
            (none.clone(), 0)
        );
        assert_eq!(
            taken(&mut looks, list(1, &[("a", 5)], 2)),
            (none.clone(), 0)
        );
        let next = list(1, &[("a", 7), ("b", 1)], 5);
        assert_eq!(taken(&mut looks, next), (owned(&[("a", 2), ("b", 1)]), 3));
        // It forgot one, which came again.
        let next = list(1, &[("b", 1)], 5);
        assert_eq!(taken(&mut looks, next), (none, 0));
        let next = list(1, &[("a", 1), ("b", 1)], 5);
        assert_eq!(taken(&mut looks, next), (owned(&[("a", 1)]), 0));
        // Another process begins with nothing.
        let next = list(2, &[("a", 9), ("b", 1)], 1);
        assert_eq!(taken(&mut looks, next), (owned(&[("a", 9), ("b", 1)]), 1));
    }

    #[test]
    fn tl_29_a_refusal_of_the_store_is_an_event_with_its_holder_request_and_reason() {
        let mut looks = StoreLooks::default();
        looks.take(list(1, &[], 0));
        let (sightings, _) = looks.take(list(1, &[("10.0.0.1", 3)], 0));
        let (one, times) = sightings.first().expect("it is new");
        assert_eq!(
            (one.happening, *times),
            (Happening::RequestRefused(Refuser::Store), 3)
        );
        assert!(one.user.is_some());
        assert_eq!(
            (one.name.as_str(), one.address.as_str()),
            ("key get", "10.0.0.1")
        );
        assert_eq!(
            (one.subject.as_str(), one.reason.as_str()),
            ("GET blobs", "SignatureDoesNotMatch")
        );
        let unknown = StoreRefusal {
            key: String::new(),
            ..refusal("a", 1)
        };
        assert_eq!(sighting(&unknown).name, "no key of this store");
    }

    /// A store that is captured can list what it likes.
    #[test]
    fn tl_29_a_false_list_harms_nothing() {
        let mut looks = StoreLooks::default();
        looks.take(list(1, &[], 0));
        let names: Vec<String> = (0..2 * STORE_REFUSALS_MAX)
            .map(|one| one.to_string())
            .collect();
        let counts: Vec<_> = names.iter().map(|one| (one.as_str(), u64::MAX)).collect();
        let (sightings, more) = looks.take(list(1, &counts, u64::MAX));
        assert_eq!((sightings.len(), more), (STORE_REFUSALS_MAX, u64::MAX));
        assert_eq!(looks.counts.len(), STORE_REFUSALS_MAX);
    }
}
