//! Stream `AUDIT`, as an auditor reads it.

use async_nats::jetstream::{self, consumer::pull};
use futures::StreamExt as _;
use runtime::Bus;
use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::subject::AUDIT_STREAM;
use schemas::{Message as _, RunId};

use crate::PATIENCE;

/// A message of the stream.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its position in the stream.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Everything that was stored besides: headers as text, then the body.
    pub raw: Vec<u8>,
    /// What it says.
    pub body: EventBody,
}

/// A reader of the stream, from its start. It sees what comes while it waits.
pub struct Evidence {
    messages: pull::Ordered,
    seen: Vec<Recorded>,
    /// How many messages lay behind the last one that was read.
    pending: Option<u64>,
    // The messages come over it.
    _bus: Bus,
}

impl Evidence {
    pub(crate) async fn open(bus: Bus) -> Self {
        let jetstream = jetstream::new(bus.client().clone());
        let stream = jetstream.get_stream_no_info(AUDIT_STREAM).await;
        let stream = stream.unwrap_or_else(|error| panic!("stream {AUDIT_STREAM}: {error}"));
        let consumer = stream.create_consumer(pull::OrderedConfig::default()).await;
        let consumer = consumer.unwrap_or_else(|error| panic!("a consumer of {AUDIT_STREAM}: {error}"));
        let messages = consumer.messages().await;
        let messages = messages.unwrap_or_else(|error| panic!("messages of {AUDIT_STREAM}: {error}"));
        Self { messages, seen: Vec::new(), pending: None, _bus: bus }
    }

    /// Reads on until `wanted` holds for an event, and gives it. Events that were read before do not count.
    ///
    /// # Panics
    /// None comes within [`PATIENCE`], or something in the stream is no event.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Recorded) -> bool) -> Recorded {
        let reading = async {
            loop {
                let recorded = self.next().await;
                if wanted(&recorded) {
                    return recorded;
                }
            }
        };
        let found = tokio::time::timeout(PATIENCE, reading).await;
        found.unwrap_or_else(|_| panic!("no {what} in the stream after {PATIENCE:?}; it ends with {}", self.tail()))
    }

    /// As [`Evidence::until`], for events of the ledger that concern `run`.
    ///
    /// # Panics
    /// As there.
    pub async fn until_ledger(&mut self, what: &str, run: &RunId, wanted: impl Fn(&LedgerEvent) -> bool) -> Recorded {
        let of_run = |recorded: &Recorded| recorded.body.run.as_ref() == Some(run);
        self.until(what, |recorded| of_run(recorded) && recorded.ledger().is_some_and(&wanted)).await
    }

    /// Reads to the end of the stream as it is now, and gives everything from the start.
    ///
    /// # Panics
    /// The stream is empty, or something in it is no event.
    pub async fn everything(mut self) -> Vec<Recorded> {
        while self.pending != Some(0) {
            let next = tokio::time::timeout(PATIENCE, self.next()).await;
            next.unwrap_or_else(|_| panic!("stream {AUDIT_STREAM} stalls; it ends with {}", self.tail()));
        }
        self.seen
    }

    async fn next(&mut self) -> Recorded {
        let message = self.messages.next().await.expect("an ordered consumer does not end");
        let message = message.unwrap_or_else(|error| panic!("stream {AUDIT_STREAM}: {error}"));
        let info = message.info().unwrap_or_else(|error| panic!("{error}"));
        let (sequence, pending) = (info.stream_sequence, info.pending);
        let subject = message.subject.to_string();
        let body = EventBody::decode(&message.payload);
        let body = body.unwrap_or_else(|error| panic!("{subject} at {sequence} is no event: {error}"));
        let mut raw = format!("{:?}\n", message.headers).into_bytes();
        raw.extend_from_slice(&message.payload);
        let recorded = Recorded { sequence, subject, raw, body };
        self.pending = Some(pending);
        self.seen.push(recorded.clone());
        recorded
    }

    fn tail(&self) -> String {
        let last = self.seen.iter().rev().take(8).rev();
        last.map(|recorded| format!("\n  {} {}", recorded.sequence, recorded.subject)).collect()
    }
}

impl Recorded {
    /// What it says, if it is of the ledger.
    pub fn ledger(&self) -> Option<&LedgerEvent> {
        match &self.body.event {
            Event::Ledger(event) => Some(event),
            Event::Worker(_) => None,
        }
    }
}
