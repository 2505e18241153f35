//! How much each peer may ask: whoever asks more than any worker needs is refused before it reaches the decision loop, which
//! all runs share.

use std::collections::BTreeMap;

use coordinator_core::{Peer, WorkerRequest};
use tokio::time::Instant;

/// What a peer has at first and at most: several rounds of a run with the most chunks.
const CREDIT_MAX: f64 = 8192.0;
/// What comes back in a second: ten rounds of a small run, or half a round of one with the most chunks.
const CREDIT_A_SECOND: f64 = 512.0;
/// What a request costs that leads to an event: it is written to a disk before anything else is decided.
const EVENT_COST: f64 = 16.0;
/// What each object of a request costs.
const OBJECT_COST: f64 = 0.5;
/// Peers that are remembered; above that those with full credit are forgotten, which changes nothing for them.
const PEERS_MAX: usize = 65_536;

/// The credit of every peer that asked lately.
#[derive(Debug, Default)]
pub(crate) struct Allowances(BTreeMap<Peer, Credit>);

#[derive(Clone, Copy, Debug)]
struct Credit {
    left: f64,
    at: Instant,
}

impl Credit {
    fn at(self, now: Instant) -> Self {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * CREDIT_A_SECOND;
        Self { left: (self.left + earned).min(CREDIT_MAX), at: now }
    }
}

impl Allowances {
    /// Takes the cost of a request from the peer's credit; whether there was enough.
    pub(crate) fn admit(&mut self, peer: &Peer, cost: f64, now: Instant) -> bool {
        let known = self.0.get(peer).copied();
        if known.is_none() && self.0.len() >= PEERS_MAX {
            self.0.retain(|_, credit| credit.at(now).left < CREDIT_MAX);
        }
        let mut credit = known.map_or(Credit { left: CREDIT_MAX, at: now }, |credit| credit.at(now));
        let enough = credit.left >= cost;
        if enough {
            credit.left -= cost;
        }
        self.0.insert(peer.clone(), credit);
        enough
    }
}

/// What any other message costs: a heartbeat, or one that is none of ours.
pub(crate) const MESSAGE_COST: f64 = 1.0;

/// What a request costs.
pub(crate) fn cost(request: &WorkerRequest) -> f64 {
    let objects = match request {
        WorkerRequest::Put(request) => request.objects.len(),
        WorkerRequest::Get(request) => request.objects.len(),
        WorkerRequest::Join(_)
        | WorkerRequest::Leave(_)
        | WorkerRequest::Claim(_)
        | WorkerRequest::Release(_)
        | WorkerRequest::Submit(_) => return EVENT_COST,
        WorkerRequest::Renew(_) | WorkerRequest::Stage(_) => 0,
    };
    // At most 256 objects: exact.
    1.0 + OBJECT_COST * objects as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use schemas::blob::GetRequest;
    use schemas::{Digest, V};

    use super::*;

    fn peer(name: char) -> Peer {
        let key = |kind: char| format!("{kind}{}", "A".repeat(54) + &name.to_string());
        Peer {
            account: key('A').parse().expect("an account key"),
            run: "demo".parse().expect("a name"),
            worker: key('U').parse().expect("a user key"),
        }
    }

    #[test]
    fn who_asks_without_end_is_stopped_and_others_are_not() {
        let (mut allowances, start) = (Allowances::default(), Instant::now());
        let (loud, quiet) = (peer('A'), peer('B'));
        let admitted = (0..10_000).filter(|_| allowances.admit(&loud, EVENT_COST, start)).count();
        assert_eq!(admitted, 512);
        assert!(allowances.admit(&quiet, EVENT_COST, start));
        // A second later it has earned what a second earns, no matter how often it asked meanwhile.
        let later = start + Duration::from_secs(1);
        let admitted = (0..10_000).filter(|_| allowances.admit(&loud, EVENT_COST, later)).count();
        assert_eq!(admitted, 32);
    }

    #[test]
    fn a_request_for_many_objects_costs_more() {
        let get = |count: usize| WorkerRequest::Get(GetRequest { v: V, objects: vec![Digest::of(b""); count] });
        assert!(cost(&get(256)) > 100.0 * cost(&get(0)));
    }
}
