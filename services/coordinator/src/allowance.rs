//! The limit on requests of each sender: a sender that asks more than any worker or operator needs
//! is refused before its request reaches the decision loop, which all runs share.

use std::collections::BTreeMap;

use coordinator_core::{ControlRequest, Peer, WorkerRequest};
use schemas::PublicKey;
use tokio::time::Instant;

/// Credit of a sender at first, and its maximum: enough for several rounds of a run with 256
/// chunks.
const CREDIT_MAX: f64 = 8192.0;
/// Credit that comes back each second: enough for ten rounds of a small run, or half a round of one
/// with 256 chunks. A run with more chunks has longer rounds, and its workers ask again by
/// themselves.
const CREDIT_A_SECOND: f64 = 512.0;
/// The cost of a request that leads to an event: the event is written to a disk before anything
/// else is decided.
const EVENT_COST: f64 = 16.0;
/// The cost of each object in a request.
const OBJECT_COST: f64 = 0.5;
/// Senders that are remembered. Above that, senders with full credit are forgotten, which changes
/// nothing for them.
const SENDERS_MAX: usize = 65_536;

/// The cost of an operator's view: the loop makes the answer, which may be as long as a message can
/// be. A hundred a second are more than people watch.
const VIEW_COST: f64 = 4.0;

/// The owner of a credit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sender {
    Worker(Peer),
    Operator(PublicKey),
}

/// The credit of every sender that asked lately.
#[derive(Debug, Default)]
pub(crate) struct Allowances(BTreeMap<Sender, Credit>);

#[derive(Clone, Copy, Debug)]
struct Credit {
    left: f64,
    at: Instant,
}

impl Credit {
    fn at(self, now: Instant) -> Self {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * CREDIT_A_SECOND;
        Self {
            left: (self.left + earned).min(CREDIT_MAX),
            at: now,
        }
    }
}

impl Allowances {
    /// Takes the cost of a request from the sender's credit. Returns true if there was enough.
    pub(crate) fn admit(&mut self, sender: &Sender, cost: f64, now: Instant) -> bool {
        let known = self.0.get(sender).copied();
        if known.is_none() && self.0.len() >= SENDERS_MAX {
            self.0.retain(|_, credit| credit.at(now).left < CREDIT_MAX);
        }
        let mut credit = known.map_or(
            Credit {
                left: CREDIT_MAX,
                at: now,
            },
            |credit| credit.at(now),
        );
        let enough = credit.left >= cost;
        if enough {
            credit.left -= cost;
        }
        self.0.insert(sender.clone(), credit);
        enough
    }
}

/// The cost of any other message: a heartbeat, or one that is none of ours.
pub(crate) const MESSAGE_COST: f64 = 1.0;

/// The cost of an operator's request.
pub(crate) fn control_cost(request: &ControlRequest) -> f64 {
    match request {
        ControlRequest::View(_) | ControlRequest::Keys(_) => VIEW_COST,
        ControlRequest::BlobGet(request) => {
            MESSAGE_COST + OBJECT_COST * request.objects.len() as f64
        }
        ControlRequest::BlobPut(request) => {
            MESSAGE_COST + OBJECT_COST * request.objects.len() as f64
        }
        ControlRequest::BlobCommit(request) => {
            EVENT_COST + OBJECT_COST * request.objects.len() as f64
        }
        // All others are orders, which are recorded.
        _ => EVENT_COST,
    }
}

/// The cost of a worker's request.
pub(crate) fn cost(request: &WorkerRequest) -> f64 {
    let objects = match request {
        WorkerRequest::Put(request) => request.objects.len(),
        WorkerRequest::Get(request) => request.objects.len(),
        // The answer is read from a file.
        WorkerRequest::Keys(_) => return VIEW_COST,
        WorkerRequest::Join(_)
        | WorkerRequest::Leave(_)
        | WorkerRequest::Claim(_)
        | WorkerRequest::Release(_)
        | WorkerRequest::Submit(_) => return EVENT_COST,
        // The ledger gets an event when all of a round's workers have done their step.
        WorkerRequest::Renew(_) | WorkerRequest::Stage(_) | WorkerRequest::Mask(_) => 0,
    };
    // At most 256 objects: exact.
    1.0 + OBJECT_COST * objects as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use schemas::blob::GetRequest;
    use schemas::keys::KeysRequest;
    use schemas::{Digest, V};

    use super::*;

    fn key(kind: char, name: char) -> String {
        format!("{kind}{}", "A".repeat(54) + &name.to_string())
    }

    fn worker(name: char) -> Sender {
        Sender::Worker(Peer {
            account: key('A', name).parse().expect("an account key"),
            run: "demo".parse().expect("a name"),
            worker: key('U', name).parse().expect("a user key"),
        })
    }

    fn operator(name: char) -> Sender {
        Sender::Operator(key('U', name).parse().expect("a user key"))
    }

    #[test]
    fn who_asks_without_end_is_stopped_and_others_are_not() {
        for (loud, quiet) in [
            (worker('A'), worker('B')),
            (operator('A'), operator('B')),
            (operator('A'), worker('A')),
        ] {
            stops(&loud, &quiet);
        }
    }

    fn stops(loud: &Sender, quiet: &Sender) {
        let (mut allowances, start) = (Allowances::default(), Instant::now());
        let admitted = (0..10_000)
            .filter(|_| allowances.admit(loud, EVENT_COST, start))
            .count();
        assert_eq!(admitted, 512);
        assert!(allowances.admit(quiet, EVENT_COST, start));
        // A second later it has the credit of one second, however often it asked meanwhile.
        let later = start + Duration::from_secs(1);
        let admitted = (0..10_000)
            .filter(|_| allowances.admit(loud, EVENT_COST, later))
            .count();
        assert_eq!(admitted, 32);
    }

    #[test]
    fn a_request_for_many_objects_costs_more() {
        let get = |count: usize| {
            WorkerRequest::Get(GetRequest {
                v: V,
                objects: vec![Digest::of(b""); count],
            })
        };
        assert!(cost(&get(256)) > 100.0 * cost(&get(0)));
    }

    #[test]
    fn the_public_keys_cost_what_a_view_does() {
        let request = KeysRequest { v: V };
        let worker = cost(&WorkerRequest::Keys(request.clone()));
        let operator = control_cost(&ControlRequest::Keys(request));
        assert_eq!((worker, operator), (VIEW_COST, VIEW_COST));
    }
}
