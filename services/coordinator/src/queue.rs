//! The work queue. An offer is published once, pulled, and settled or held through the subject that
//! came with its delivery. An acknowledgement only frees the queue: the ledger alone says what
//! counts.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use coordinator_core::DeliveryId;
use futures::{StreamExt as _, stream};
use runtime::{Bus, Failure};
use schemas::lease::{Offer, UnitId};
use schemas::limits::UNITS_MAX;
use schemas::subject::{WORK_CONSUMER, WORK_STREAM, offer_subject};
use schemas::{Code, Message as _, RunId, V};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::arrival::Arrival;

/// Offers that are pulled together.
const BATCH: usize = 256;
/// The time for which one publish waits for its acknowledgement.
const ACK_WAIT: Duration = Duration::from_secs(5);
/// Tries to publish an offer. No grant waits for an offer, so a missing one delays nobody.
const TRIES_MAX: u32 = 4;
/// Offers under way at a time; the broker would refuse a part of a larger burst.
const OFFERS_AT_ONCE: usize = 64;
/// Offers that wait to be published: those of a few of the largest rounds.
const OFFERS_MAX: usize = 4 * UNITS_MAX as usize;
/// Pause after the pulling was interrupted.
const PAUSE: Duration = Duration::from_millis(500);

/// The sending end for offers, which are published beside the decision loop.
#[derive(Clone, Debug)]
pub(crate) struct Offers(mpsc::Sender<(RunId, UnitId)>);

/// The receiving end: offers that wait to be published.
#[derive(Debug)]
pub(crate) struct Offered(mpsc::Receiver<(RunId, UnitId)>);

/// Makes both ends.
pub(crate) fn pair() -> (Offers, Offered) {
    let (sender, waiting) = mpsc::channel(OFFERS_MAX);
    (Offers(sender), Offered(waiting))
}

impl Offers {
    /// Passes an offer on, and never waits. An offer that is dropped delays no grant, since the
    /// ledger says which units are open.
    pub(crate) fn publish(&self, run: RunId, unit: UnitId) {
        if let Err(error) = self.0.try_send((run, unit)) {
            tracing::warn!(%error, waiting = OFFERS_MAX, "an offer is not published");
        }
    }
}

impl Offered {
    /// Publishes for as long as it is polled.
    pub(crate) async fn run(mut self, bus: Bus) {
        stream::poll_fn(|context| self.0.poll_recv(context))
            .for_each_concurrent(OFFERS_AT_ONCE, |(run, unit)| offer(bus.clone(), run, unit))
            .await;
    }
}

/// Acknowledgement subjects of offers that were delivered and not settled.
#[derive(Debug, Default)]
pub(crate) struct Deliveries {
    next: u64,
    acks: BTreeMap<DeliveryId, (u64, Subject)>,
    /// The newest delivery of each message of the stream.
    newest: BTreeMap<u64, DeliveryId>,
}

impl Deliveries {
    /// Notes a delivery. It replaces an earlier one of the same message.
    pub(crate) fn note(&mut self, stream_sequence: u64, ack: Subject) -> DeliveryId {
        self.next += 1;
        let delivery = DeliveryId(self.next);
        if let Some(before) = self.newest.insert(stream_sequence, delivery) {
            self.acks.remove(&before);
        }
        self.acks.insert(delivery, (stream_sequence, ack));
        delivery
    }

    /// The subject on which a delivery is acknowledged.
    pub(crate) fn ack(&self, delivery: DeliveryId) -> Option<Subject> {
        self.acks.get(&delivery).map(|(_, ack)| ack.clone())
    }

    /// Forgets a delivery that is being settled.
    pub(crate) fn settle(&mut self, delivery: DeliveryId) -> Option<Subject> {
        let (stream_sequence, ack) = self.acks.remove(&delivery)?;
        self.newest.remove(&stream_sequence);
        Some(ack)
    }
}

/// Publishes an offer unless the queue holds one of the unit.
async fn offer(bus: Bus, run: RunId, unit: UnitId) {
    let subject = offer_subject(&run, unit);
    let payload = Bytes::from(Offer { v: V, run, unit }.encode());
    let mut headers = HeaderMap::new();
    headers.insert(async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
    for _ in 0..TRIES_MAX {
        let reason = match bus
            .request_raw(&subject, headers.clone(), payload.clone(), ACK_WAIT)
            .await
        {
            Ok(answer) => match serde_json::from_slice::<Response<PublishAck>>(&answer) {
                Ok(Response::Ok(_)) => return,
                Ok(Response::Err { error })
                    if error.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE =>
                {
                    return;
                }
                Ok(Response::Err { error }) => error.to_string(),
                Err(error) => error.to_string(),
            },
            Err(error) => bus.explain_silence(error, WORK_STREAM).await.to_string(),
        };
        tracing::warn!(subject, reason, "offer not published; trying again");
        sleep(PAUSE).await;
    }
}

/// Takes a unit's offer off the queue. Doing it twice does no harm; if the acknowledgement is lost,
/// the offer is delivered again.
pub(crate) async fn settle(bus: Bus, ack: Subject) {
    acknowledge(&bus, ack, "+ACK").await;
}

/// Keeps an offer from being delivered again for a while.
pub(crate) async fn hold(bus: Bus, ack: Subject) {
    acknowledge(&bus, ack, "+WPI").await;
}

async fn acknowledge(bus: &Bus, ack: Subject, what: &'static str) {
    if let Err(error) = bus.publish(&ack, Bytes::from_static(what.as_bytes())).await {
        tracing::debug!(%error, what, "offer not acknowledged");
    }
}

/// Finds the durable consumer of the queue.
///
/// # Errors
/// [`Code::StreamMissing`].
pub(crate) async fn consumer(bus: &Bus) -> Result<PullConsumer, Failure> {
    let jetstream = jetstream::new(bus.client().clone());
    let missing = |error: &dyn std::fmt::Display| {
        Failure::new(
            Code::StreamMissing,
            format!("consumer {WORK_CONSUMER} of stream {WORK_STREAM}: {error}"),
        )
    };
    let stream = jetstream
        .get_stream_no_info(WORK_STREAM)
        .await
        .map_err(|error| missing(&error))?;
    stream
        .get_consumer(WORK_CONSUMER)
        .await
        .map_err(|error| missing(&error))
}

/// Pulls offers for as long as the process lives.
pub(crate) async fn pull(bus: Bus, consumer: PullConsumer, arrivals: mpsc::Sender<Arrival>) {
    loop {
        let mut messages = match consumer
            .stream()
            .max_messages_per_batch(BATCH)
            .messages()
            .await
        {
            Ok(messages) => messages,
            Err(error) => {
                tracing::warn!(%error, "offers cannot be pulled; trying again");
                sleep(PAUSE).await;
                continue;
            }
        };
        while let Some(next) = messages.next().await {
            let message = match next {
                Ok(message) => message,
                Err(error) => {
                    tracing::debug!(%error, "pulling of offers interrupted");
                    break;
                }
            };
            let Some(ack) = message.reply.clone() else {
                continue;
            };
            let sequence = message.info().map(|info| info.stream_sequence);
            let arrival = match (Offer::decode(&message.payload), sequence) {
                (Ok(Offer { run, unit, .. }), Ok(stream_sequence)) => Arrival::Offer {
                    run,
                    unit,
                    stream_sequence,
                    ack,
                },
                (offer, _) => {
                    tracing::warn!(error = ?offer.err(), subject = %message.subject, "not an offer; taken off the queue");
                    acknowledge(&bus, ack, "+TERM").await;
                    continue;
                }
            };
            if arrivals.send(arrival).await.is_err() {
                return;
            }
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redelivery_replaces_the_delivery_before_it() {
        let mut deliveries = Deliveries::default();
        let first = deliveries.note(7, "a.1".into());
        let other = deliveries.note(8, "b.1".into());
        let second = deliveries.note(7, "a.2".into());
        assert_eq!(deliveries.ack(first), None);
        assert_eq!(deliveries.ack(second).as_deref(), Some("a.2"));
        assert_eq!(deliveries.settle(second).as_deref(), Some("a.2"));
        assert_eq!(deliveries.settle(second), None);
        assert_eq!((deliveries.acks.len(), deliveries.newest.len()), (1, 1));
        assert!(deliveries.ack(other).is_some());
    }
}
