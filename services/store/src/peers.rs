//! Who holds the connections: one peer may hold a share of them, so that another finds a place.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::task::Id;
use tokio::time::Instant;

/// Longest time between two lines about peers that want more than their share.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Open connections, by the task that serves each.
pub(crate) struct Peers {
    open: BTreeMap<Id, IpAddr>,
    most: usize,
    warned: Option<Instant>,
}

impl Peers {
    /// Peers that may hold `most` connections each.
    pub(crate) const fn new(most: usize) -> Self {
        Self { open: BTreeMap::new(), most, warned: None }
    }

    /// Whether `peer` may have another connection.
    pub(crate) fn has_room(&mut self, peer: IpAddr) -> bool {
        let site = site(peer);
        if self.open.values().filter(|open| **open == site).count() < self.most {
            return true;
        }
        if self.warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY) {
            self.warned = Some(Instant::now());
            let connections = self.most;
            tracing::warn!(%peer, connections, "a peer has its share (store_server.connections_peer_percent) and wants more");
        }
        false
    }

    pub(crate) fn opened(&mut self, task: Id, peer: IpAddr) {
        self.open.insert(task, site(peer));
    }

    pub(crate) fn closed(&mut self, task: Id) {
        self.open.remove(&task);
    }
}

/// What counts as one peer: an IPv4 address, or the network of 64 bits that an IPv6 host chooses its addresses from.
fn site(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_is_counted_until_it_is_given_back() {
        let (one, other) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let task = || tokio::spawn(async {}).id();
        let mut peers = Peers::new(1);
        let first = task();
        assert!(peers.has_room(one));
        peers.opened(first, one);
        assert!(!peers.has_room(one) && peers.has_room(other));
        peers.closed(first);
        assert!(peers.has_room(one));
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
