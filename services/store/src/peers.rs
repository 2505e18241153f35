//! The open connections, and the peers that hold them. A peer's share depends on what is still
//! free, so that every newcomer finds a place, however many peers there are. If none is free, a
//! peer without a valid request so far is cut off first.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::task::{AbortHandle, Id};
use tokio::time::Instant;

use crate::rights::Admission;

/// Time between two log lines about peers that want more than their share.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Open connections, by the task that serves each.
pub(crate) struct Peers {
    open: BTreeMap<Id, Held>,
    /// Number of places in all.
    places: usize,
    /// Percentage of all places that a single peer may hold at most.
    percent: usize,
    warned: Option<Instant>,
}

/// One open connection.
struct Held {
    site: IpAddr,
    /// Set once a request on it was signed and allowed.
    admission: Admission,
    /// Order of arrival.
    arrival: Instant,
    task: AbortHandle,
}

impl Peers {
    /// `places` for all peers, of which a single one may hold `percent`.
    pub(crate) fn new(places: usize, percent: u8) -> Self {
        Self {
            open: BTreeMap::new(),
            places,
            percent: percent.into(),
            warned: None,
        }
    }

    /// True when one more connection can be taken: a place is free, or can be made free.
    pub(crate) fn can_take(&self) -> bool {
        self.open.len() < self.places || self.open.values().any(|held| !held.admission.is_given())
    }

    /// True if `peer` may have another connection. At 50 percent the first peer may hold half of
    /// all places, a second one half of the rest, and so on. The share shrinks with the free
    /// places, and some are always free for the next peer. To a peer that is known by a valid
    /// request, the places of strangers count as free, or a crowd of strangers would keep it to the
    /// connections that it has.
    pub(crate) fn has_room(&mut self, peer: IpAddr) -> bool {
        let site = site(peer);
        let given = |held: &&Held| held.admission.is_given();
        let own = || self.open.values().filter(|open| open.site == site);
        let held = own().count();
        let taken = match own().any(|held| given(&held)) {
            true => self.open.values().filter(given).count(),
            false => self.open.len(),
        };
        let free = self.places.saturating_sub(taken);
        let (own, others) = (self.percent, 100_usize.saturating_sub(self.percent));
        if held == 0 || held.saturating_mul(others) < free.saturating_mul(own) {
            return true;
        }
        if self
            .warned
            .is_none_or(|warned| warned.elapsed() >= WARN_EVERY)
        {
            self.warned = Some(Instant::now());
            let connections = held;
            tracing::warn!(%peer, connections, free, "a peer holds its share of the connections and opens more");
        }
        false
    }

    /// If no place is free, ends the oldest connection without a valid request so far. Its task
    /// reports its end to [`Peers::closed`] later, but its place counts as free from now on.
    pub(crate) fn make_room(&mut self) {
        if self.open.len() < self.places {
            return;
        }
        let stranger = |(_, held): &(&Id, &Held)| !held.admission.is_given();
        let oldest = self
            .open
            .iter()
            .filter(stranger)
            .min_by_key(|(_, held)| held.arrival)
            .map(|(task, _)| *task);
        if let Some(held) = oldest.and_then(|task| self.open.remove(&task)) {
            tracing::debug!(peer = %held.site, "all connections are taken; one that has asked for nothing yet is closed");
            held.task.abort();
        }
    }

    pub(crate) fn opened(&mut self, task: AbortHandle, peer: IpAddr, admission: Admission) {
        let held = Held {
            site: site(peer),
            admission,
            arrival: Instant::now(),
            task,
        };
        self.open.insert(held.task.id(), held);
    }

    pub(crate) fn closed(&mut self, task: Id) {
        self.open.remove(&task);
    }
}

/// The unit that counts as one peer: an IPv4 address, or the 64-bit network from which an IPv6 host
/// chooses its addresses.
pub(crate) fn site(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> AbortHandle {
        tokio::spawn(std::future::pending::<()>()).abort_handle()
    }

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    /// Opens connections from `peer` until its share is used. Returns their number.
    fn fill(peers: &mut Peers, peer: IpAddr) -> usize {
        let mut opened = 0;
        while peers.has_room(peer) {
            peers.opened(task(), peer, Admission::default());
            opened += 1;
        }
        opened
    }

    #[tokio::test]
    async fn a_place_is_counted_until_it_is_given_back() {
        let mut peers = Peers::new(2, 50);
        let first = task();
        assert!(peers.has_room(address(1)));
        peers.opened(first.clone(), address(1), Admission::default());
        assert!(!peers.has_room(address(1)) && peers.has_room(address(2)));
        peers.closed(first.id());
        assert!(peers.has_room(address(1)));
    }

    #[tokio::test]
    async fn however_many_take_all_they_can_the_next_finds_a_place() {
        let mut peers = Peers::new(64, 50);
        let taken: Vec<usize> = (1..=7)
            .map(|last| fill(&mut peers, address(last)))
            .collect();
        assert_eq!(taken[..3], [32, 16, 8]);
        assert!(taken.iter().all(|taken| *taken > 0), "{taken:?}");
        assert!(peers.has_room(address(100)), "after {taken:?}");
        assert_eq!(
            fill(&mut Peers::new(64, 75), address(1)),
            48,
            "where most come from one address"
        );
        assert_eq!(fill(&mut Peers::new(64, 100), address(1)), 64);
    }

    #[tokio::test]
    async fn a_crowd_of_strangers_does_not_keep_a_known_peer_from_more() {
        let mut peers = Peers::new(64, 50);
        let admitted = Admission::default();
        admitted.give();
        for _ in 0..4 {
            peers.opened(task(), address(1), admitted.clone());
        }
        for last in 2..=200 {
            fill(&mut peers, address(last));
        }
        // Only a stranger that has none finds a place, in that of an older one.
        assert!(peers.open.len() >= 63 && !peers.has_room(address(2)));
        assert!(peers.has_room(address(1)));
        peers.make_room();
        // What it then holds has a bound as well: half of what known peers leave.
        while peers.has_room(address(1)) {
            peers.make_room();
            peers.opened(task(), address(1), admitted.clone());
        }
        let held = |open: &&Held| open.site == address(1);
        assert_eq!(peers.open.values().filter(held).count(), 32);
    }

    #[tokio::test]
    async fn a_peer_that_wants_more_is_named_once_a_minute() {
        let mut peers = Peers::new(2, 50);
        fill(&mut peers, address(1));
        let first = peers.warned.expect("it was refused");
        assert!(!peers.has_room(address(1)));
        assert_eq!(peers.warned, Some(first), "not once more at once");
        let long_ago = first.checked_sub(WARN_EVERY);
        peers.warned = long_ago;
        assert!(!peers.has_room(address(1)));
        assert_ne!(peers.warned, long_ago, "a minute later it is");
    }

    #[tokio::test]
    async fn where_no_place_is_free_the_oldest_stranger_goes() {
        let mut peers = Peers::new(3, 100);
        let admitted = Admission::default();
        admitted.give();
        let (known, older, newer) = (task(), task(), task());
        peers.opened(known.clone(), address(1), admitted.clone());
        peers.opened(older.clone(), address(2), Admission::default());
        peers.make_room();
        assert_eq!(peers.open.len(), 2, "a place was free");
        peers.opened(newer.clone(), address(3), Admission::default());
        assert!(peers.can_take());
        peers.make_room();
        assert!(!peers.open.contains_key(&older.id()) && peers.open.contains_key(&known.id()));
        peers.opened(task(), address(4), admitted);
        peers.make_room();
        assert!(!peers.open.contains_key(&newer.id()));
    }

    #[tokio::test]
    async fn where_all_places_are_with_those_who_are_known_nobody_is_taken() {
        let mut peers = Peers::new(2, 100);
        let admitted = Admission::default();
        peers.opened(task(), address(1), Admission::default());
        assert!(peers.can_take(), "a place is free");
        let second = task();
        peers.opened(second.clone(), address(2), Admission::default());
        assert!(peers.can_take(), "a stranger can go");
        admitted.give();
        for held in peers.open.values_mut() {
            held.admission = admitted.clone();
        }
        assert!(!peers.can_take());
        peers.make_room();
        assert_eq!(peers.open.len(), 2, "and nobody is ended for it");
        peers.closed(second.id());
        assert!(peers.can_take());
    }

    #[test]
    fn a_host_is_one_peer_under_all_its_addresses() {
        let site = |text: &str| site(text.parse().unwrap());
        assert_eq!(site("2001:db8::1"), site("2001:db8::ffff:1"));
        assert_ne!(site("2001:db8::1"), site("2001:db8:0:1::1"));
        assert_eq!(site("::ffff:10.0.0.1"), site("10.0.0.1"));
        assert_ne!(site("10.0.0.1"), site("10.0.0.2"));
    }
}
