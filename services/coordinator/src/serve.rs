//! From subscriptions to the decision loop: each message is read, and refused at once when its form or sender is wrong.

use coordinator_core::Input;
use runtime::{Bus, Failure, Subscription};
use schemas::Code;
use schemas::subject::COORDINATOR_FILTERS;
use tokio::sync::mpsc;

use crate::answer;
use crate::arrival::Arrival;
use crate::incoming::{self, Heard, Identity, Rejected};

/// Subscribes to everything that is said to the coordinator.
///
/// # Errors
/// The bus refuses.
pub(crate) async fn subscribe(bus: &Bus) -> Result<Vec<Subscription>, Failure> {
    let mut subscriptions = Vec::with_capacity(COORDINATOR_FILTERS.len());
    for filter in COORDINATOR_FILTERS {
        let subscribed = bus.subscribe(filter).await;
        subscriptions.push(subscribed.map_err(|error| Failure::from(error.into_refusal()))?);
    }
    Ok(subscriptions)
}

/// Passes messages on until the subscription ends.
pub(crate) async fn forward(
    bus: Bus,
    mut subscription: Subscription,
    identity: Identity,
    arrivals: mpsc::Sender<Arrival>,
) {
    loop {
        let message = match subscription.next().await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(error) => {
                // When the loop has ended nobody needs to know.
                let _ = arrivals.send(Arrival::Failed(error.into_refusal().into())).await;
                return;
            }
        };
        let reply = message.reply.clone();
        let arrival = match incoming::read(&message, identity) {
            Ok(Heard::Heartbeat { peer, heartbeat }) => Arrival::Input(Input::Heartbeat { peer, heartbeat }),
            Ok(Heard::Worker { peer, request }) => match reply {
                Some(reply) => Arrival::Worker { peer, request, reply },
                None => continue,
            },
            Ok(Heard::Operator { operator, request }) => match reply {
                Some(reply) => Arrival::Operator { operator, request, reply },
                None => continue,
            },
            Err(rejected) => match refuse(&bus, &message, *rejected).await {
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

/// Refuses a message, unless answering it would be what an attacker wants, and gives what is to be recorded.
async fn refuse(bus: &Bus, message: &async_nats::Message, rejected: Rejected) -> Option<Arrival> {
    let Rejected { peer, verb, refusal } = rejected;
    tracing::warn!(subject = %message.subject, %refusal, "message refused");
    if let Some(reply) = message.reply.as_ref().filter(|_| refusal.code != Code::IdentityMismatch)
        && let Err(error) = bus.publish(reply, answer::refused(refusal.clone())).await
    {
        tracing::warn!(%error, "refusal not sent");
    }
    peer.map(|peer| Arrival::Input(Input::Denied { peer, verb, refusal }))
}
