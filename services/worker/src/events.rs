//! A worker's own account of its life: signed, chained, and sent until it is recorded, or refused
//! for good. An event that is refused since the worker is in quarantine is kept for later.
//!
//! The end of the chain is on disk before an event is sent, together with the event itself until
//! its record is confirmed. After a crash the event is sent again, byte for byte, so the chain has
//! neither gap nor fork.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backoff::{Backoff, spread};
use chain::End;
use data_encoding::HEXLOWER;
use identity::AuditKey;
use identity::secret::replace_private;
use runtime::{Bus, BusError, Failure};
use schemas::event::{Event, WorkerEvent};
use schemas::lease::Done;
use schemas::subject::worker_event_subject;
use schemas::{
    ChainSequence, Class, Code, Digest, Millis, PublicKey, Refusal, RunId, UnixMillis, V, WorkerId,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use worker_core::AnswerWait;

/// Most events that wait to be recorded: a worker emits a few in a unit, so these cover hours
/// without a bus.
const EVENTS_MAX: usize = 256;
/// First and longest wait for an answer; each wait in vain doubles it. The audit service recognises
/// an event that comes again.
const ANSWER_WAIT: (Millis, Millis) = (Millis::from_secs(2), Millis::from_secs(16));
/// First and longest pause before an event is sent again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

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
        };
        let end = match std::fs::read(path) {
            Ok(bytes) => {
                let kept: ChainEnd =
                    serde_json::from_slice(&bytes).map_err(|error| failed(&error))?;
                if kept.emitter == fresh.emitter {
                    kept
                } else {
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
        })
    }

    /// The event that an earlier process could not deliver.
    pub(crate) fn unacknowledged(&self) -> Option<Pending> {
        self.end.unacknowledged.clone()
    }

    /// Adds an event to the chain; when this returns it is on disk.
    ///
    /// # Errors
    /// The event cannot be written; then it is not part of the chain.
    pub(crate) fn append(
        &mut self,
        now: UnixMillis,
        event: WorkerEvent,
    ) -> Result<Pending, Failure> {
        let kind = event.kind();
        let end = End {
            next: self.end.sequence,
            previous: self.end.previous,
        };
        let emitter = &self.end.emitter;
        let draft = end.write(emitter, now, Some(&self.run), Event::Worker(event));
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

    /// Notes that the last event is recorded, or never will be.
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
pub(crate) struct Events(mpsc::Sender<Queued>);

/// An event that waits to be recorded, and who waits for that.
type Queued = (WorkerEvent, Option<oneshot::Sender<Recorded>>);

/// The end of an event: recorded, or kept back or refused for good.
type Recorded = Result<(), Refusal>;

impl Events {
    /// Starts the task that publishes. When the last clone is gone, it delivers the waiting events
    /// and ends. A process that does not wait for that end loses all waiting events but the one
    /// under way.
    pub(crate) fn start(chain: Chain, bus: Bus, domain: &str) -> (Self, JoinHandle<()>) {
        let (sender, queue) = mpsc::channel(EVENTS_MAX);
        let publisher = Publisher {
            chain,
            bus,
            domain: domain.to_owned(),
            refused: false,
            shut_out: false,
        };
        (Self(sender), tokio::spawn(publisher.run(queue)))
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
        if self.0.try_send(queued).is_err() {
            tracing::warn!(
                kind,
                waiting = EVENTS_MAX,
                "too many events wait to be recorded; one is left out of the chain"
            );
        }
    }
}

struct Publisher {
    chain: Chain,
    bus: Bus,
    domain: String,
    /// True if the last event was refused. A forked chain stays forked, and is reported once; so is
    /// a quarantine.
    refused: bool,
    /// True if the last event is kept, since the worker is in quarantine.
    shut_out: bool,
}

impl Publisher {
    async fn run(mut self, mut queue: mpsc::Receiver<Queued>) {
        while let Some((event, waits)) = queue.recv().await {
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
        match self.chain.append(runtime::clock::now(), event) {
            Ok(pending) => self.deliver(&pending).await,
            Err(failure) => {
                tracing::error!(code = %failure.code(), kind, %failure, "an event is not recorded");
                Err(Refusal::new(failure.code(), failure.to_string()))
            }
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
            patience.failed_after(asked_at.elapsed());
            // The pause is random, so that workers that lost the same service do not come back at
            // the same moment.
            tokio::time::sleep(spread(backoff.fail(), objects::random_fraction())).await;
        };
        if let Err(failure) = self.chain.acknowledged() {
            tracing::warn!(code = %failure.code(), %failure, "a recorded event would be sent again");
        }
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
mod tests {
    use chain::{Claimed, Signatures};
    use schemas::Message as _;
    use schemas::event::EventBody;

    use super::*;

    fn open(path: &Path, key: &Arc<AuditKey>) -> Chain {
        let worker = format!("U{}", "B".repeat(55))
            .parse()
            .expect("the form of a user key");
        Chain::open(
            path,
            Arc::clone(key),
            "demo".parse().expect("a run name"),
            worker,
        )
        .expect("usable")
    }

    fn event() -> WorkerEvent {
        WorkerEvent::Stopped {
            reason: "test".to_owned(),
        }
    }

    fn body(pending: &Pending) -> (Vec<u8>, EventBody) {
        let bytes = HEXLOWER.decode(pending.body.as_bytes()).expect("hex");
        let body = EventBody::decode(&bytes).expect("an event");
        (bytes, body)
    }

    #[test]
    fn the_chain_goes_on_over_restarts_without_gap_or_fork() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("events.json");
        let key = Arc::new(AuditKey::generate());
        let mut previous = None;
        for sequence in 0..6 {
            // Opened anew each time, as by a restart between any two events.
            let mut chain = open(&path, &key);
            assert_eq!(chain.unacknowledged(), None);
            let pending = chain
                .append(UnixMillis(sequence), event())
                .expect("written");
            let (bytes, body) = body(&pending);
            assert_eq!(
                (body.sequence, body.previous),
                (ChainSequence(sequence), previous)
            );
            previous = Some(Digest::of(&bytes));
            // After a crash before the acknowledgement, the very same bytes are sent again.
            let mut chain = open(&path, &key);
            assert_eq!(chain.unacknowledged(), Some(pending));
            chain.acknowledged().expect("written");
        }
    }

    /// The folder of a running worker is renamed, and another worker is started in the old place: a
    /// second end of the chain there would fork the chain for good.
    #[test]
    fn a_folder_that_was_moved_away_is_not_made_again() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let (old, new) = (scratch.path().join("old"), scratch.path().join("new"));
        std::fs::create_dir(&old).expect("made");
        let key = Arc::new(AuditKey::generate());
        let mut running = open(&old.join("events.json"), &key);
        running.append(UnixMillis(1), event()).expect("written");
        std::fs::rename(&old, &new).expect("moved");
        let failure = running
            .append(UnixMillis(2), event())
            .expect_err("the folder is gone");
        assert_eq!(failure.code(), Code::WorkerChainInvalid);
        assert!(failure.to_string().contains("moved away"), "{failure}");
        assert!(!old.exists());
        drop(running);
        let pending = open(&new.join("events.json"), &key)
            .append(UnixMillis(3), event())
            .expect("written");
        assert_eq!(
            body(&pending).1.sequence,
            ChainSequence(1),
            "what was not written is not part of the chain"
        );
    }

    #[test]
    fn another_key_has_a_chain_of_its_own() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("events.json");
        let first = Arc::new(AuditKey::generate());
        open(&path, &first)
            .append(UnixMillis(1), event())
            .expect("written");
        let mut chain = open(&path, &Arc::new(AuditKey::generate()));
        assert_eq!(chain.unacknowledged(), None);
        let pending = chain.append(UnixMillis(2), event()).expect("written");
        let (_, body) = body(&pending);
        assert_eq!((body.sequence, body.previous), (ChainSequence(0), None));
    }

    #[test]
    fn a_damaged_end_is_not_skipped() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("events.json");
        std::fs::write(&path, b"{\"v\":1}").expect("written");
        let worker = format!("U{}", "B".repeat(55))
            .parse()
            .expect("the form of a user key");
        let opened = Chain::open(
            &path,
            Arc::new(AuditKey::generate()),
            "demo".parse().expect("a name"),
            worker,
        );
        assert_eq!(
            opened.expect_err("damaged").code(),
            Code::WorkerChainInvalid
        );
    }

    #[test]
    fn ls_04_only_what_is_refused_for_good_is_given_up() {
        assert!(is_final(Code::ChainForked) && is_final(Code::EventRefused));
        for again in [
            Code::EventLater,
            Code::NoAnswer,
            Code::BusDenied,
            Code::MessageInvalid,
        ] {
            assert!(!is_final(again) && !is_shut_out(again), "{again}");
        }
        let kept = Code::WorkerQuarantined;
        assert!(is_shut_out(kept) && !is_final(kept));
        assert!(!is_shut_out(Code::EventRefused) && !is_shut_out(Code::ChainForked));
    }

    #[tokio::test]
    async fn tl_17_an_event_that_is_left_out_of_the_chain_is_not_told_as_recorded() {
        let (sender, mut queue) = mpsc::channel(2);
        let events = Events(sender);
        let (first, second) = (events.record(event()), events.record(event()));
        // There is no room for a third one.
        let left_out = events.record(event()).await;
        assert_eq!(
            left_out.map_err(|refusal| refusal.code),
            Err(Code::EventLater)
        );
        let (queued, told) = queue.try_recv().expect("it waits");
        assert_eq!(queued, event());
        told.expect("somebody waits for it")
            .send(Ok(()))
            .expect("still");
        assert_eq!(first.await, Ok(()));
        // The publisher is gone.
        drop(queue);
        assert_eq!(
            second.await.map_err(|refusal| refusal.code),
            Err(Code::EventLater)
        );
    }

    #[test]
    fn what_is_sent_verifies_from_its_own_bytes() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let key = Arc::new(AuditKey::generate());
        let pending = open(&scratch.path().join("events.json"), &key)
            .append(UnixMillis(1), event())
            .expect("written");
        let (bytes, body) = body(&pending);
        let sent = key.sign_event("domain", bytes).encode();
        let entry = Claimed::read(&sent)
            .expect("it reads back")
            .open(&Signatures::new("domain", []))
            .expect("it verifies");
        assert_eq!(entry.body, body);
    }
}
