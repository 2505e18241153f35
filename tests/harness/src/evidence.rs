//! Stream `AUDIT`, as an auditor reads it.

use std::time::Duration;

use chain::Claimed;
use runtime::{Bus, StreamReader};
use schemas::RunId;
use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::subject::AUDIT_STREAM;

use crate::PATIENCE;

/// Pause between two looks for more messages.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A message of the stream.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its position in the stream.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// The rest of the stored message.
    pub raw: Vec<u8>,
    /// Its body.
    pub body: EventBody,
}

/// A reader of the stream, from its start. It also reads messages that arrive while it waits.
pub struct Evidence {
    stream: StreamReader,
    /// The streams that it is a copy of.
    sources: Vec<StreamReader>,
    seen: Vec<Recorded>,
    next: u64,
}

impl Evidence {
    pub(crate) fn open(bus: Bus, sources: Vec<StreamReader>) -> Self {
        Self {
            stream: StreamReader::new(bus, AUDIT_STREAM),
            sources,
            seen: Vec::new(),
            next: 1,
        }
    }

    /// Reads on until `wanted` holds for an event, and returns the event. Events that were read
    /// before do not count.
    ///
    /// # Panics
    /// No such event comes within [`PATIENCE`], or a message in the stream is no event.
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
        found.unwrap_or_else(|_| {
            panic!(
                "no {what} in the stream after {PATIENCE:?}; it ends with {}",
                self.tail()
            )
        })
    }

    /// As [`Evidence::until`], for events of the ledger that concern `run`.
    ///
    /// # Panics
    /// As there.
    pub async fn until_ledger(
        &mut self,
        what: &str,
        run: &RunId,
        wanted: impl Fn(&LedgerEvent) -> bool,
    ) -> Recorded {
        let of_run = |recorded: &Recorded| recorded.body.run.as_ref() == Some(run);
        self.until(what, |recorded| {
            of_run(recorded) && recorded.ledger().is_some_and(&wanted)
        })
        .await
    }

    /// Waits until a contribution to `round` of `run` was accepted.
    ///
    /// # Panics
    /// As [`Evidence::until`].
    pub async fn until_contribution(&mut self, run: &RunId, round: u64) -> Recorded {
        let wanted = |event: &LedgerEvent| matches!(event, LedgerEvent::ContributionAccepted { lease, .. } if lease.unit.round.get() == round);
        let what = format!("contribution to round {round}");
        self.until_ledger(&what, run, wanted).await
    }

    /// Reads everything that was recorded up to now, and returns it from the start.
    ///
    /// # Panics
    /// A message in the stream is no event, or the copy does not get there in time.
    pub async fn everything(mut self) -> Vec<Recorded> {
        let recorded = self.recorded().await;
        while (self.seen.len() as u64) < recorded {
            let next = tokio::time::timeout(PATIENCE, self.next()).await;
            next.unwrap_or_else(|_| {
                panic!("stream {AUDIT_STREAM} stalls; it ends with {}", self.tail())
            });
        }
        self.seen
    }

    /// The events of the ledger that were recorded up to now, in their order.
    ///
    /// # Panics
    /// As [`Evidence::everything`].
    pub async fn ledger(self) -> Vec<LedgerEvent> {
        let recorded = self.everything().await;
        let ledger = recorded.iter().filter_map(|one| one.ledger().cloned());
        ledger.collect()
    }

    /// The number of messages in the stream.
    ///
    /// # Panics
    /// The broker does not answer.
    pub async fn length(&self) -> u64 {
        self.stream
            .span()
            .await
            .unwrap_or_else(|error| panic!("{error}"))
            .messages
    }

    /// Waits until the copy has every message that was recorded up to now.
    ///
    /// # Panics
    /// The copy does not get there in time.
    pub(crate) async fn copied(&self) {
        let recorded = self.recorded().await;
        let reached = async {
            while self
                .stream
                .span()
                .await
                .unwrap_or_else(|error| panic!("{error}"))
                .messages
                < recorded
            {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached)
            .await
            .unwrap_or_else(|_| panic!("{AUDIT_STREAM} stays behind"));
    }

    async fn recorded(&self) -> u64 {
        let mut recorded = 0;
        for source in &self.sources {
            recorded += source
                .span()
                .await
                .unwrap_or_else(|error| panic!("{error}"))
                .messages;
        }
        recorded
    }

    async fn next(&mut self) -> Recorded {
        let message = loop {
            match self
                .stream
                .next(self.next)
                .await
                .unwrap_or_else(|error| panic!("{error}"))
            {
                Some(message) => break message,
                None => tokio::time::sleep(LOOK_EVERY).await,
            }
        };
        let (sequence, subject) = (message.sequence, message.subject);
        // The auditor checks signatures; tests only need the order of events.
        let entry = Claimed::read(&message.payload).and_then(Claimed::unchecked);
        let body = match entry {
            Ok(entry) => entry.body,
            Err(error) => panic!("{subject} at {sequence} is no event: {error}"),
        };
        let recorded = Recorded {
            sequence,
            subject,
            raw: message.payload.to_vec(),
            body,
        };
        self.next = sequence + 1;
        self.seen.push(recorded.clone());
        recorded
    }

    fn tail(&self) -> String {
        let last = self.seen.iter().rev().take(8).rev();
        last.map(|recorded| format!("\n  {} {}", recorded.sequence, recorded.subject))
            .collect()
    }
}

impl Recorded {
    /// The ledger's event; none when somebody else emitted it.
    pub fn ledger(&self) -> Option<&LedgerEvent> {
        match &self.body.event {
            Event::Ledger(event) => Some(event),
            Event::Worker(_) | Event::Security(_) => None,
        }
    }
}
