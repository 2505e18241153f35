//! A worker's own account of its life: signed, chained, and sent until it is recorded, or refused
//! for good. An event that is refused since the worker is in quarantine is kept for later.
//!
//! The end of the chain is on disk before an event is sent, together with the event itself until
//! its record is confirmed, and from then on until a verified head of the log covers it
//! ([`Outbox`]). After a crash, and when the recorded chain lacks them, events are sent again, byte
//! for byte, so the chain has neither gap nor fork.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backoff::{Backoff, spread};
use chain::End;
use data_encoding::HEXLOWER;
use identity::secret::replace_private;
use identity::{AuditKey, TrustBundle};
use runtime::{Bus, BusError, Failure};
use schemas::event::{Event, WorkerEvent};
use schemas::head::KnownHead;
use schemas::lease::Done;
use schemas::subject::worker_event_subject;
use schemas::{
    ChainSequence, Class, Code, Digest, Millis, PublicKey, Refusal, RunId, UnixMillis, V, WorkerId,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;
use tlog::Head;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use worker_core::AnswerWait;

use crate::outbox::{Asked, Looked, Outbox, Receipts, Waiting, set_aside};

/// Most events that wait to be recorded: a worker emits a few in a unit, so these cover hours
/// without a bus.
const EVENTS_MAX: usize = 256;
/// First and longest wait for an answer; each wait in vain doubles it. The audit service recognises
/// an event that comes again.
const ANSWER_WAIT: (Millis, Millis) = (Millis::from_secs(2), Millis::from_secs(16));
/// First and longest pause before an event is sent again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Time between two looks for events that wait for too long.
const OVERDUE_EVERY: Duration = Duration::from_secs(60);

/// The end of a chain, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChainEnd {
    v: V<1>,
    emitter: PublicKey,
    /// The position of the next event.
    sequence: ChainSequence,
    /// Digest of the last event's body.
    previous: Option<Digest>,
    /// The last event, while its record is not confirmed.
    unacknowledged: Option<Pending>,
    /// Recorded events that no head covers yet which this worker has verified.
    #[serde(default, skip_serializing_if = "Outbox::is_empty")]
    uncovered: Outbox,
}

/// An event on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pending {
    pub(crate) subject: String,
    /// The encoded body, hex.
    body: String,
}

/// The chain of this worker's events.
#[derive(Debug)]
pub(crate) struct Chain {
    path: PathBuf,
    key: Arc<AuditKey>,
    run: RunId,
    worker: WorkerId,
    end: ChainEnd,
    /// True if it was said that there was no room for all events that wait for a head.
    crowded: bool,
}

impl Chain {
    /// Continues the chain kept at `path`, or begins one: the first with this key.
    ///
    /// # Errors
    /// The file exists and is not the end of a chain. A worker that went on without it would fork
    /// its chain.
    pub(crate) fn open(
        path: &Path,
        key: Arc<AuditKey>,
        run: RunId,
        worker: WorkerId,
    ) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(
                Code::WorkerChainInvalid,
                format!("chain of events {}: {error}", path.display()),
            )
        };
        let fresh = ChainEnd {
            v: V,
            emitter: key.public().clone(),
            sequence: ChainSequence(0),
            previous: None,
            unacknowledged: None,
            uncovered: Outbox::default(),
        };
        let end = match std::fs::read(path) {
            Ok(bytes) => {
                let kept: ChainEnd =
                    serde_json::from_slice(&bytes).map_err(|error| failed(&error))?;
                if kept.emitter == fresh.emitter {
                    kept
                } else {
                    let count = kept.uncovered.len() + usize::from(kept.unacknowledged.is_some());
                    set_aside(path, &bytes, &kept.emitter, count)?;
                    fresh
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => fresh,
            Err(error) => return Err(failed(&error)),
        };
        Ok(Self {
            path: path.to_owned(),
            key,
            run,
            worker,
            end,
            crowded: false,
        })
    }

    /// The event that an earlier process could not deliver.
    pub(crate) fn unacknowledged(&self) -> Option<Pending> {
        self.end.unacknowledged.clone()
    }

    /// Adds an event to the chain, with the newest head of the log that this worker keeps; when
    /// this returns it is on disk.
    ///
    /// # Errors
    /// The event cannot be written; then it is not part of the chain.
    pub(crate) fn append(
        &mut self,
        now: UnixMillis,
        known: Option<KnownHead>,
        event: WorkerEvent,
    ) -> Result<Pending, Failure> {
        let kind = event.kind();
        let end = End {
            next: self.end.sequence,
            previous: self.end.previous,
        };
        let emitter = &self.end.emitter;
        let draft = end.write_knowing(known, emitter, now, Some(&self.run), Event::Worker(event));
        let pending = Pending {
            subject: worker_event_subject(&self.run, &self.worker, kind),
            body: HEXLOWER.encode(&draft.body),
        };
        let End { next, previous } = draft.end();
        let end = ChainEnd {
            sequence: next,
            previous,
            unacknowledged: Some(pending.clone()),
            ..self.end.clone()
        };
        self.keep(end)?;
        Ok(pending)
    }

    /// Notes that the last event is recorded. It waits for a head from now on.
    ///
    /// # Errors
    /// The note cannot be written; the event would be sent again after a restart.
    fn recorded(&mut self, now: UnixMillis) -> Result<(), Failure> {
        let mut end = ChainEnd {
            unacknowledged: None,
            ..self.end.clone()
        };
        // The last event's position is the one before the next.
        let last = self.end.sequence.get().checked_sub(1).map(ChainSequence);
        let recorded = last.zip(self.end.unacknowledged.clone());
        let given_up = recorded.and_then(|(last, Pending { subject, body })| {
            end.uncovered.add(last, (subject, body), now)
        });
        if given_up.is_some() && !std::mem::replace(&mut self.crowded, true) {
            let kept = end.uncovered.len();
            tracing::info!(
                kept,
                "events come faster than heads of the log; of those that wait for one only some \
                           are kept: that others are missing, the chain itself shows"
            );
        }
        self.keep(end)
    }

    /// Changes the events that wait for a head.
    ///
    /// # Errors
    /// The change cannot be written; after a restart it is made again.
    fn change(&mut self, change: impl FnOnce(&mut Outbox)) -> Result<(), Failure> {
        let mut end = self.end.clone();
        change(&mut end.uncovered);
        self.crowded &= !end.uncovered.has_room();
        match end == self.end {
            true => Ok(()),
            false => self.keep(end),
        }
    }

    /// Notes that the last event will never be recorded, or that nobody signs heads.
    ///
    /// # Errors
    /// The note cannot be written; the event would be sent again after a restart.
    pub(crate) fn acknowledged(&mut self) -> Result<(), Failure> {
        self.keep(ChainEnd {
            unacknowledged: None,
            ..self.end.clone()
        })
    }

    fn keep(&mut self, end: ChainEnd) -> Result<(), Failure> {
        let json = serde_json::to_vec(&end).map_err(|error| Failure::new(Code::Internal, error))?;
        replace_private(&self.path, &json).map_err(|error| {
            let moved = !self.path.parent().is_some_and(Path::is_dir);
            let why = if moved {
                "; the folder was moved away while the worker ran: end it, and start it there"
            } else {
                ""
            };
            Failure::new(
                Code::WorkerChainInvalid,
                format!("chain of events {}: {error}{why}", self.path.display()),
            )
        })?;
        self.end = end;
        Ok(())
    }
}

/// The sending end for events.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    sender: mpsc::Sender<Queued>,
    /// The newest head of the log that this worker keeps; none before it has seen one.
    known: Arc<watch::Sender<Option<KnownHead>>>,
}

/// An event that waits to be recorded, and who waits for that.
type Queued = (WorkerEvent, Option<oneshot::Sender<Recorded>>);

/// The end of an event: recorded, or kept back or refused for good.
type Recorded = Result<(), Refusal>;

impl Events {
    /// Starts the task that publishes. When the last clone is gone, it delivers the waiting events
    /// and ends. A process that does not wait for that end loses all waiting events but the one
    /// under way.
    ///
    /// Where heads are signed, a recorded event is kept until one covers it, which may take as long
    /// as `receipt_within`.
    pub(crate) fn start(
        chain: Chain,
        bus: Bus,
        trust: &TrustBundle,
        receipt_within: Millis,
    ) -> (Self, Receipts, JoinHandle<()>) {
        let (sender, queue) = mpsc::channel(EVENTS_MAX);
        let (known, read) = watch::channel(None);
        let known = Arc::new(known);
        // One head at a time is looked at.
        let (looked, looks) = mpsc::channel(1);
        let (waiting, asked) = watch::channel(Vec::new());
        let publisher = Publisher {
            known: read,
            chain,
            bus,
            domain: trust.domain.to_string(),
            refused: false,
            shut_out: false,
            heads: !trust.head_keys.is_empty(),
            waiting,
            started: runtime::clock::now(),
            receipt_within,
            said_overdue: false,
        };
        let receipts = Receipts { asked, looked };
        let task = tokio::spawn(publisher.run(queue, looks));
        (Self { sender, known }, receipts, task)
    }

    /// From now on events name this head, which was verified and is on the disk.
    pub(crate) fn know(&self, head: &Head) {
        self.known.send_replace(Some(KnownHead {
            size: head.size,
            root: ByteArray::new(head.root),
        }));
    }

    /// Passes an event on. Never waits, since work must not stand still because nobody records.
    pub(crate) fn emit(&self, event: WorkerEvent) {
        self.pass_on((event, None));
    }

    /// Passes an event on, and tells when the audit service has recorded it.
    ///
    /// # Errors
    /// It is not recorded: refused, kept while the worker is shut out, or left out of the chain.
    pub(crate) fn record(&self, event: WorkerEvent) -> impl Future<Output = Recorded> + use<> {
        let (told, recorded) = oneshot::channel();
        self.pass_on((event, Some(told)));
        async move {
            recorded.await.unwrap_or_else(|_| {
                let detail = "the event is left out of this worker's chain";
                Err(Refusal::new(Code::EventLater, detail))
            })
        }
    }

    fn pass_on(&self, queued: Queued) {
        let kind = queued.0.kind();
        if self.sender.try_send(queued).is_err() {
            tracing::warn!(
                kind,
                waiting = EVENTS_MAX,
                "too many events wait to be recorded; one is left out of the chain"
            );
        }
    }
}

struct Publisher {
    known: watch::Receiver<Option<KnownHead>>,
    chain: Chain,
    bus: Bus,
    domain: String,
    /// True if the last event was refused. A forked chain stays forked, and is reported once; so is
    /// a quarantine.
    refused: bool,
    /// True if the last event is kept, since the worker is in quarantine.
    shut_out: bool,
    /// True if this domain signs heads.
    heads: bool,
    /// The events that wait for one, for the follower of the log.
    waiting: watch::Sender<Vec<Asked>>,
    /// The start of this process.
    started: UnixMillis,
    /// Longest time until a head covers an event.
    receipt_within: Millis,
    /// True if it was said that events wait for too long.
    said_overdue: bool,
}

impl Publisher {
    async fn run(mut self, mut queue: mpsc::Receiver<Queued>, mut looks: mpsc::Receiver<Looked>) {
        self.show_waiting();
        let mut overdue =
            tokio::time::interval(OVERDUE_EVERY.min(self.receipt_within.as_duration()));
        overdue.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let (event, waits) = tokio::select! {
                biased;
                queued = queue.recv() => match queued {
                    Some(queued) => queued,
                    None => return,
                },
                Some(Looked(covered)) = looks.recv() => {
                    self.cover(&covered).await;
                    continue;
                }
                _ = overdue.tick() => {
                    self.say_overdue();
                    continue;
                }
            };
            let recorded = self.record(event).await;
            if let Some(waits) = waits {
                // The unit may be over.
                let _ = waits.send(recorded);
            }
        }
    }

    async fn record(&mut self, event: WorkerEvent) -> Recorded {
        // An event that an earlier process could not deliver waits for the first event of this one,
        // which comes with the membership. Until then another process may be the worker, and the
        // chain its own.
        if let Some(pending) = self.chain.unacknowledged()
            && let Err(refusal) = self.deliver(&pending).await
            && self.shut_out
        {
            // Behind an event that is kept nothing may follow.
            let kind = event.kind();
            tracing::debug!(kind, "an event is left out, since the worker is shut out");
            return Err(refusal);
        }
        let kind = event.kind();
        let known = *self.known.borrow();
        match self.chain.append(runtime::clock::now(), known, event) {
            Ok(pending) => self.deliver(&pending).await,
            Err(failure) => {
                tracing::error!(code = %failure.code(), kind, %failure, "an event is not recorded");
                Err(Refusal::new(failure.code(), failure.to_string()))
            }
        }
    }

    /// Takes the events that a verified head covers out, and sends again what it should have
    /// covered.
    async fn cover(&mut self, covered: &[ChainSequence]) {
        let now = runtime::clock::now();
        let taken = self.chain.change(|outbox| outbox.cover(covered));
        self.said(taken);
        let missing = self.chain.end.uncovered.missing(now, self.receipt_within);
        if let Some(oldest) = missing.first()
            && !self.shut_out
        {
            let (code, count, oldest) = (Code::EventsUncovered, missing.len(), oldest.sequence);
            tracing::warn!(%code, count, oldest = oldest.get(), "recorded events are under no head of the log, and are \
                           sent again");
            self.send_again(missing).await;
        }
        self.show_waiting();
        if self.overdue(now).is_none() && std::mem::take(&mut self.said_overdue) {
            tracing::info!("the events that waited for a head are under one");
        }
    }

    /// Sends recorded events again, in their order. What is recorded already is not recorded twice:
    /// the audit service knows it by its bytes. False if one could not be recorded now; then those
    /// behind it are not sent.
    async fn send_again(&mut self, events: Vec<Waiting>) -> bool {
        for one in events {
            let Ok(body) = HEXLOWER.decode(one.body.as_bytes()) else {
                tracing::error!(code = %Code::WorkerChainInvalid, "a kept event cannot be read");
                continue;
            };
            let sequence = one.sequence;
            let event = self.chain.key.sign_event(&self.domain, body);
            let wait = ANSWER_WAIT.1.as_duration();
            let answer: Result<Done, BusError> = self.bus.request(&one.subject, &event, wait).await;
            match answer {
                Ok(_) => tracing::info!(
                    sequence = sequence.get(),
                    "an event is recorded again, or still"
                ),
                // The recorded chain goes on behind it, or lacks one before it.
                Err(BusError::Refused(refusal)) if is_final(refusal.code) => {
                    tracing::debug!(sequence = sequence.get(), %refusal, "an event is not recorded again")
                }
                Err(error) => {
                    tracing::debug!(sequence = sequence.get(), %error, "an event is not recorded again yet");
                    return false;
                }
            }
            let now = runtime::clock::now();
            let noted = self.chain.change(|outbox| outbox.confirmed(sequence, now));
            self.said(noted);
        }
        true
    }

    fn said(&self, changed: Result<(), Failure>) {
        if let Err(failure) = changed {
            tracing::warn!(code = %failure.code(), %failure, "the events that wait for a head are not noted");
        }
    }

    fn show_waiting(&self) {
        let asked = self.chain.end.uncovered.asked();
        let body = |one: &Waiting| HEXLOWER.decode(one.body.as_bytes()).ok();
        let asked = asked.filter_map(|one| Some((one.sequence, body(one)?)));
        self.waiting.send_replace(asked.collect());
    }

    fn overdue(&self, now: UnixMillis) -> Option<(usize, ChainSequence)> {
        let waiting = &self.chain.end.uncovered;
        waiting.overdue(now, self.started, self.receipt_within)
    }

    fn say_overdue(&mut self) {
        let now = runtime::clock::now();
        let overdue = self.overdue(now);
        // Of a worker in quarantine nothing is taken, and it gets no answers either.
        if let Some((count, oldest)) = overdue
            && !self.shut_out
            && !std::mem::replace(&mut self.said_overdue, true)
        {
            let code = Code::EventsUncovered;
            tracing::error!(%code, count, oldest = oldest.get(), next = code.next_step(), "recorded events of this worker are \
                            under no head of the log that it has verified");
        }
    }

    async fn deliver(&mut self, pending: &Pending) -> Recorded {
        let Ok(body) = HEXLOWER.decode(pending.body.as_bytes()) else {
            tracing::error!(code = %Code::WorkerChainInvalid, "the kept event cannot be read");
            let detail = "the kept event cannot be read";
            return Err(Refusal::new(Code::WorkerChainInvalid, detail));
        };
        let event = self.chain.key.sign_event(&self.domain, body);
        self.shut_out = false;
        let mut sent_again = false;
        let (mut backoff, mut patience) = (Backoff::new(PAUSE), AnswerWait::new(ANSWER_WAIT));
        let recorded = loop {
            let asked_at = Instant::now();
            let wait = patience.now().as_duration();
            let answer: Result<Done, BusError> =
                self.bus.request(&pending.subject, &event, wait).await;
            match answer {
                Ok(_) => {
                    self.refused = false;
                    break Ok(());
                }
                Err(BusError::Refused(refusal)) if is_shut_out(refusal.code) => {
                    // An operator may let the worker in again: then the chain goes on with this
                    // event, so it stays the last one. Now nobody records it.
                    if !std::mem::replace(&mut self.refused, true) {
                        let next = refusal.code.next_step();
                        tracing::warn!(code = %refusal.code, next, "an event is kept until the worker is let in again: {refusal}");
                    }
                    self.shut_out = true;
                    return Err(refusal);
                }
                // The broker may have lost the events before it.
                Err(BusError::Refused(refusal))
                    if refusal.code == Code::ChainForked
                        && !sent_again
                        && !self.chain.end.uncovered.is_empty() =>
                {
                    sent_again = self.send_again(self.chain.end.uncovered.all()).await;
                    if sent_again {
                        continue;
                    }
                }
                Err(BusError::Refused(refusal)) if is_final(refusal.code) => {
                    if !std::mem::replace(&mut self.refused, true) {
                        let subject = &pending.subject;
                        tracing::error!(
                            code = %refusal.code,
                            subject,
                            next = refusal.code.next_step(),
                            "an event is not recorded, and those that follow on it will not be either: {refusal}"
                        );
                    }
                    break Err(refusal);
                }
                Err(error) => {
                    tracing::debug!(subject = pending.subject, %error, "an event is not recorded yet")
                }
            }
            // While this one is not recorded, nobody else looks.
            self.say_overdue();
            patience.failed_after(asked_at.elapsed());
            // The pause is random, so that workers that lost the same service do not come back at
            // the same moment.
            tokio::time::sleep(spread(backoff.fail(), objects::random_fraction())).await;
        };
        let noted = match recorded.is_ok() && self.heads {
            true => self.chain.recorded(runtime::clock::now()),
            false => self.chain.acknowledged(),
        };
        if let Err(failure) = noted {
            tracing::warn!(code = %failure.code(), %failure, "a recorded event would be sent again");
        }
        self.show_waiting();
        recorded
    }
}

/// True while nobody records events of this worker, and this may end.
const fn is_shut_out(code: Code) -> bool {
    matches!(code, Code::WorkerQuarantined)
}

/// True if another try cannot help: the event does not fit the record.
const fn is_final(code: Code) -> bool {
    matches!(code.class(), Class::Evidence)
}

#[cfg(test)]
mod tests;
