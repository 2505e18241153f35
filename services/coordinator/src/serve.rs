//! From subscriptions to the decision loop: each message is read, and refused at once when its form or sender is wrong.

use coordinator_core::{Input, Peer};
use runtime::throttle::{INTERVAL_FIRST, Throttle};
use runtime::{Bus, Failure, Subscription};
use schemas::subject::{COORDINATOR_FILTERS, Incoming};
use schemas::{Code, Refusal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::allowance::{Allowances, MESSAGE_COST, cost};
use crate::answer;
use crate::arrival::Arrival;
use crate::incoming::{self, Heard, Identity, Rejected};

/// Subscribes to everything that is said to the coordinator.
///
/// # Errors
/// The bus refuses.
pub(crate) async fn subscribe(bus: &Bus) -> Result<Vec<Subscription>, Failure> {
    bus.subscribe_all(&COORDINATOR_FILTERS).await.map_err(|error| error.into_refusal().into())
}

/// Passes messages on until the subscription ends.
pub(crate) async fn forward(
    bus: Bus,
    mut subscription: Subscription,
    identity: Identity,
    arrivals: mpsc::Sender<Arrival>,
) {
    let mut refusals = Refusals::new();
    let mut allowances = Allowances::default();
    let mut forgetting = tokio::time::interval(INTERVAL_FIRST);
    forgetting.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = tokio::select! {
            next = subscription.next() => next,
            _ = forgetting.tick() => {
                refusals.forget();
                continue;
            }
        };
        let message = match next {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(error) => {
                // When the loop has ended nobody needs to know.
                let _ = arrivals.send(Arrival::Failed(error.into_refusal().into())).await;
                return;
            }
        };
        let reply = message.reply.clone();
        let heard = affordable(incoming::read(&message, identity), &mut allowances);
        let arrival = match heard {
            Ok(Heard::Heartbeat { peer, heartbeat }) => Arrival::Input(Input::Heartbeat { peer, heartbeat }),
            Ok(Heard::Worker { peer, request }) => match reply {
                Some(reply) => Arrival::Worker { peer, request, reply },
                None => continue,
            },
            Ok(Heard::Operator { operator, request }) => match reply {
                Some(reply) => Arrival::Operator { operator, request, reply },
                None => continue,
            },
            Err(rejected) => match refuse(&bus, &message, *rejected, &mut refusals).await {
                Some(arrival) => arrival,
                None => continue,
            },
        };
        if arrivals.send(arrival).await.is_err() {
            return;
        }
    }
    let _ = arrivals.send(Arrival::Failed(Failure::new(Code::BusUnreachable, "the connection was closed"))).await;
}

/// Refuses a worker that has asked more than any worker needs, be it right or wrong.
fn affordable(heard: Result<Heard, Box<Rejected>>, allowances: &mut Allowances) -> Result<Heard, Box<Rejected>> {
    let (peer, verb, cost) = match &heard {
        Ok(Heard::Worker { peer, request }) => (peer, request.verb().token(), cost(request)),
        Ok(Heard::Heartbeat { peer, .. }) => (peer, "heartbeat", MESSAGE_COST),
        Err(rejected) => match &rejected.peer {
            Some(peer) => (peer, rejected.verb.as_str(), MESSAGE_COST),
            None => return heard,
        },
        Ok(Heard::Operator { .. }) => return heard,
    };
    if allowances.admit(peer, cost, Instant::now()) {
        return heard;
    }
    let refusal = Refusal::new(Code::AskedTooMuch, format!("{} asks more than a worker needs", peer.worker));
    Err(Box::new(Rejected { peer: Some(peer.clone()), verb: verb.to_owned(), refusal }))
}

/// Refuses a message, unless answering it would be what an attacker wants, and gives what is to be recorded.
async fn refuse(
    bus: &Bus,
    message: &async_nats::Message,
    rejected: Rejected,
    refusals: &mut Refusals,
) -> Option<Arrival> {
    let Rejected { peer, verb, refusal } = rejected;
    let (sender, code) = (sender(&message.subject, peer.as_ref()), refusal.code);
    let noted = refusals.note(&sender);
    tracing::warn!(sender, %code, subject = %message.subject, detail = refusal.detail, "message refused");
    if let Some(reply) = message.reply.as_ref().filter(|_| refusal.code != Code::IdentityMismatch)
        && let Err(error) = bus.publish(reply, answer::refused(refusal.clone())).await
    {
        tracing::warn!(%error, "refusal not sent");
    }
    // Who asks too much is recorded as often as it would be logged, so that not even its refusals fill the loop.
    let peer = peer.filter(|_| noted || refusal.code != Code::AskedTooMuch);
    peer.map(|peer| Arrival::Input(Input::Denied { peer, verb, refusal }))
}

/// Who is refused, for the log: a peer by its names, an operator by its key, all else by the lane on which it spoke.
fn sender(subject: &str, peer: Option<&Peer>) -> String {
    match (peer, subject.parse::<Incoming>()) {
        (Some(Peer { account, run, worker }), _) => format!("{worker} of {run} in {account}"),
        (None, Ok(Incoming::Control { operator, .. })) => operator.to_string(),
        (None, _) => subject.split('.').take(2).collect::<Vec<_>>().join("."),
    }
}

/// What was refused lately, by sender; the log holds its lines back by the same rule, by sender and code.
struct Refusals {
    throttle: Throttle,
    started: Instant,
}

impl Refusals {
    fn new() -> Self {
        Self { throttle: Throttle::default(), started: Instant::now() }
    }

    /// Notes a refusal; whether it is one of the first of its sender.
    fn note(&mut self, sender: &str) -> bool {
        self.throttle.note("refused", sender, self.started.elapsed(), String::new)
    }

    /// Forgets who was quiet. The sums are the log's to tell.
    fn forget(&mut self) {
        let _sums = self.throttle.due(self.started.elapsed());
    }
}
