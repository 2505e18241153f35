//! Appending: events of one decision are stored together, as one atomic batch, or one after another
//! where that is faster.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{
    NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL, NATS_BATCH_ID, NATS_BATCH_SEQUENCE,
    NATS_EXPECTED_LAST_MESSAGE_ID, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID,
};
use backoff::Backoff;
use bytes::Bytes;
use chain::Judgement;
use futures::future::join_all;
use runtime::{BusError, StreamError};
use schemas::event::{Event, EventBody};
use schemas::subject::{LEDGER_FILTER, LEDGER_STREAM, ledger_subject};
use schemas::{ChainSequence, Code, Digest, Message as _, PublicKey};
use tokio::time::{Instant, sleep};

use super::broker::{Published, published};
use super::{Ledger, LedgerError, NewEvent, REPEATED};

/// Header that widens an expected sequence from one subject to a filter; the broker then compares
/// with the last message of any ledger event.
const EXPECTED_FILTER: &str = "Nats-Expected-Last-Subject-Sequence-Subject";
/// The time for which one publish waits for its acknowledgement: above the fail-over of a
/// replicated stream (6 s).
const ACK_WAIT: Duration = Duration::from_secs(8);
/// First and longest pause between two tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Time between two log lines that say that the ledger accepts no event; a full disk lasts for
/// minutes.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Characters of a batch's id that identify the batch. An id has 64 at most; a dot and the number
/// of the try follow, which no process brings to 15 digits.
const BATCH_NAME_CHARS: usize = 48;

/// An event to be stored.
#[derive(Debug)]
struct Pending {
    sequence: ChainSequence,
    kind: &'static str,
    /// The key that it names as the next emitter.
    next: Option<PublicKey>,
    subject: String,
    digest: Digest,
    payload: Bytes,
}

/// The time for which the broker is asked again and again.
struct Retries {
    deadline: Instant,
    backoff: Backoff,
    told: Option<Instant>,
}

impl Ledger {
    /// Appends events, and returns when all are stored, each exactly once. After an error or a
    /// crash the ledger holds the first of them: none, some or all.
    ///
    /// # Errors
    /// [`LedgerError::Fenced`]: the first event that is not stored never will be, since another
    /// coordinator has appended. After any other error only the next reader finds out how many were
    /// stored. In both cases the coordinator must stand down.
    pub async fn append(
        &mut self,
        events: impl IntoIterator<Item = NewEvent>,
    ) -> Result<(), LedgerError> {
        let mut pending = self.write(events)?;
        let mut patience = Retries::new(self.patience);
        while !pending.is_empty() {
            let count = self.grouping.share(pending.len());
            let waiting = pending.len();
            let published = match count {
                1 => self.publish_in_line(&mut pending).await,
                _ => self.publish_batch(&mut pending, count).await,
            };
            if pending.len() < waiting {
                patience = Retries::new(self.patience);
                continue;
            }
            let first = &pending[0];
            let mut waits = true;
            let mut reason = match published {
                Published::At(_) => unreachable!("what is stored is no longer pending"),
                Published::NoBatches => {
                    if self.grouping.takes_none() {
                        tracing::warn!(code = %Code::StreamDrift, next = Code::StreamDrift.next_step(), "stream {LEDGER_STREAM} takes no batches; events are appended one after another");
                    }
                    continue;
                }
                // One event of the batch is refused: smaller batches store the others, and the
                // refused one is named.
                Published::Refused(_) if count > 1 => {
                    self.grouping.failed(count);
                    continue;
                }
                Published::Refused(reason) => return Err(first.unwritable(reason)),
                Published::Elsewhere => {
                    waits = false;
                    "the broker sees another end of the ledger".to_owned()
                }
                Published::NotNow(reason) => reason,
            };
            // They are published again only after every message behind the known end was read, so
            // that none is stored twice.
            let before = (self.stream_sequence, pending.len());
            match self.look(&mut pending).await {
                // Some of them are stored, so the broker accepts events and only its answers were
                // lost.
                Ok(()) if pending.len() < before.1 => {
                    patience = Retries::new(self.patience);
                    continue;
                }
                // Another's message lay in between; now the end is known again.
                Ok(()) if !waits && self.stream_sequence > before.0 => continue,
                Ok(()) => self.grouping.failed(count),
                Err(LedgerError::Unreadable(error @ StreamError::Unreadable { .. })) => {
                    reason = error.to_string();
                }
                Err(error) => return Err(error),
            }
            let first = &pending[0];
            if !patience.wait(first, &reason).await {
                return Err(first.unwritable(reason));
            }
        }
        Ok(())
    }

    /// Makes and signs the events that follow the end of the chain.
    fn write(
        &self,
        events: impl IntoIterator<Item = NewEvent>,
    ) -> Result<VecDeque<Pending>, LedgerError> {
        let emitter = self.key.public();
        let mut end = self.chain.end();
        let mut pending = VecDeque::new();
        for NewEvent { time, run, event } in events {
            let kind = event.kind();
            let subject = ledger_subject(run.as_ref(), emitter, kind);
            let event = Event::Ledger(event);
            let next = event.next_emitter().cloned();
            let known = self.known;
            let alone = known.map(|_| event.clone());
            let mut draft = end.write_knowing(known, emitter, time, run.as_ref(), event);
            if let Some(event) = alone.filter(|_| draft.body.len() > EventBody::BYTES_MAX) {
                // What happened is worth more than a head that others name too.
                draft = end.write(emitter, time, run.as_ref(), event);
            }
            end = draft.end();
            if draft.body.len() > EventBody::BYTES_MAX {
                let (bytes, max) = (draft.body.len(), EventBody::BYTES_MAX);
                return Err(LedgerError::Unwritable {
                    sequence: draft.sequence,
                    kind,
                    reason: format!("it has {bytes} bytes, at most {max} are kept"),
                });
            }
            pending.push_back(Pending {
                sequence: draft.sequence,
                kind,
                next,
                subject,
                digest: draft.digest,
                payload: self
                    .key
                    .sign_event(&self.domain, draft.body)
                    .encode()
                    .into(),
            });
        }
        Ok(pending)
    }

    /// Publishes the first `count` events, all of them or none, and removes them from `pending`
    /// once they are stored.
    async fn publish_batch(&mut self, pending: &mut VecDeque<Pending>, count: usize) -> Published {
        let last = &pending[count - 1];
        // The broker may still hold half of an earlier try, which must not be mixed with this one.
        let number = self.grouping.number();
        let id = format!("{}.{number}", &last.digest.hex()[..BATCH_NAME_CHARS]);
        for (place, event) in (1..).zip(pending.range(..count - 1)) {
            let mut headers = batch_headers(&id, place);
            if place == 1 {
                expect_end(&mut headers, self.stream_sequence);
            }
            let payload = event.payload.clone();
            let sent = self.bus.publish_with(&event.subject, headers, payload);
            if let Err(error) = sent.await {
                return Published::NotNow(error.to_string());
            }
        }
        let mut headers = batch_headers(&id, count);
        headers.insert(NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL);
        let published = self.ask(last, headers, self.stream_sequence, count).await;
        if let Published::At(_) = published {
            self.grouping.stored(count);
            for stored in pending.drain(..count) {
                self.hold(self.stream_sequence + 1, stored);
            }
        }
        published
    }

    /// Publishes the first events one by one, each without waiting for the answer to the one
    /// before, and removes the stored ones from `pending`. Returns the outcome of the first one
    /// that is not stored.
    async fn publish_in_line(&mut self, pending: &mut VecDeque<Pending>) -> Published {
        let line = self.grouping.line(pending.len());
        let (known, ledger) = (self.stream_sequence, &*self);
        let asked = pending.range(..line).enumerate().map(|(place, event)| {
            let end = known + place as u64;
            let mut headers = HeaderMap::new();
            headers.insert(NATS_MESSAGE_ID, event.digest.hex());
            expect_end(&mut headers, end);
            if let Some(before) = place.checked_sub(1) {
                // If another's message lies in the place of the event before, the position alone
                // would be right.
                let before = pending[before].digest.hex();
                headers.insert(NATS_EXPECTED_LAST_MESSAGE_ID, before);
            }
            ledger.ask(event, headers, end, 1)
        });
        for published in join_all(asked).await {
            let Published::At(at) = published else {
                return published;
            };
            self.grouping.stored(1);
            let stored = pending.pop_front();
            let stored = stored.expect("each answer is to one of them");
            self.hold(at, stored);
        }
        Published::At(self.stream_sequence)
    }

    /// Adds an event of this process, which lies at position `at`.
    fn hold(&mut self, at: u64, event: Pending) {
        self.extend(at, event.digest, event.kind, event.next.as_ref());
        self.stored = Some((event.sequence, event.payload));
    }

    /// Publishes `event`, the last of `count` events behind position `end`, and waits for the
    /// answer.
    async fn ask(&self, event: &Pending, headers: HeaderMap, end: u64, count: usize) -> Published {
        let payload = event.payload.clone();
        let answer = self
            .bus
            .request_raw(&event.subject, headers, payload, ACK_WAIT)
            .await;
        match answer {
            Ok(answer) => published(&answer, end, count),
            Err(error @ BusError::Denied { .. }) => Published::Refused(error.to_string()),
            Err(error) => {
                let error = self.bus.explain_silence(error, LEDGER_STREAM).await;
                Published::NotNow(error.to_string())
            }
        }
    }

    /// Reads every message behind the known end, and removes from `own` the events that are there.
    /// Foreign messages are skipped.
    ///
    /// # Errors
    /// [`LedgerError::Fenced`] for another event that follows in the chain, [`LedgerError::Broken`]
    /// for one that does not.
    async fn look(&mut self, own: &mut VecDeque<Pending>) -> Result<(), LedgerError> {
        while let Some(stored) = self.stream.next(self.stream_sequence + 1).await? {
            let found = stored.sequence;
            match self.chain.judge(&stored.subject, &stored.payload) {
                Judgement::Next { digest, .. } => {
                    let Some(stored) = own.pop_front_if(|first| first.digest == digest) else {
                        return Err(LedgerError::Fenced {
                            expected: self.stream_sequence,
                            found,
                        });
                    };
                    self.hold(found, stored);
                }
                Judgement::Repeated => self.pass(found, REPEATED),
                Judgement::Before { sequence, digest } => {
                    if !self.is_copy(sequence, digest).await? {
                        return Err(LedgerError::Broken {
                            stream: found,
                            reason: format!("event {sequence} is another one"),
                        });
                    }
                    self.pass(found, REPEATED);
                }
                Judgement::Foreign(reason) => self.pass(found, &reason),
                Judgement::Unknown(next) => {
                    return Err(LedgerError::Outdated {
                        stream: found,
                        next,
                    });
                }
                Judgement::Broken(reason) => {
                    return Err(LedgerError::Broken {
                        stream: found,
                        reason,
                    });
                }
            }
        }
        Ok(())
    }
}

/// Makes the broker compare the end of the ledger with `end`.
fn expect_end(headers: &mut HeaderMap, end: u64) {
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, end.to_string());
    headers.insert(EXPECTED_FILTER, LEDGER_FILTER);
}

fn batch_headers(id: &str, place: usize) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_BATCH_ID, id);
    headers.insert(NATS_BATCH_SEQUENCE, place.to_string());
    headers
}

impl Pending {
    fn unwritable(&self, reason: String) -> LedgerError {
        LedgerError::Unwritable {
            sequence: self.sequence,
            kind: self.kind,
            reason,
        }
    }
}

impl Retries {
    fn new(patience: Duration) -> Self {
        Self {
            deadline: Instant::now() + patience,
            backoff: Backoff::new(PAUSE),
            told: None,
        }
    }

    /// Pauses before the next try, ever longer. Returns false when no time is left for one.
    async fn wait(&mut self, first: &Pending, reason: &str) -> bool {
        if Instant::now() + self.backoff.peek() > self.deadline {
            return false;
        }
        if self.told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
            self.told = Some(Instant::now());
            let Pending { kind, sequence, .. } = first;
            let sequence = sequence.get();
            tracing::warn!(
                kind,
                sequence,
                reason,
                "the ledger takes no event now; trying again"
            );
        }
        sleep(self.backoff.fail()).await;
        true
    }
}
