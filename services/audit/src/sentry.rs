//! The shell of [`audit_core::sentry`]: it hears the broker's reports, follows its log, and records
//! the events in stream `SECURITY`. Nothing waits for it: what it cannot record it counts, and it
//! never ends the service.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use audit_core::sentry::{Sentry, Sighting, of_report};
use chain::{Claimed, Draft, End, Signatures};
use identity::{AuditKey, TrustBundle};
use metrics::counter;
use runtime::metrics::AUDIT_SECURITY;
use runtime::{Bus, Failure, Listener, StreamReader, clock};
use schemas::account::REPORTS;
use schemas::event::Event;
use schemas::security::SecurityEvent;
use schemas::subject::{SECURITY_STREAM, security_subject};
use schemas::{Code, Message as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::intake::EXPECTED_FILTER;
use crate::tail::{Looked, Tail};

/// Time between two looks at the broker's log and at what is due.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Longest wait for one answer of the broker.
const ASK_MAX: Duration = Duration::from_secs(8);
/// Pause after an event that could not be recorded.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Longest time for the last events before the service ends.
const END_MAX: Duration = Duration::from_secs(3);
/// Longest time for which events are recorded before the next look.
const FLUSH_MAX: Duration = Duration::from_millis(400);
/// Most sightings that wait to be counted; one more is dropped.
const SIGHTINGS_WAITING_MAX: usize = 4096;
/// Most events that wait to be recorded; of further ones the number alone is kept.
const EVENTS_WAITING_MAX: usize = 1024;

/// The sentry, connected.
pub(crate) struct Watch {
    recording: Recording,
    sightings: mpsc::Receiver<Sighting>,
    /// Sightings for which the channel had no room.
    missed: Arc<AtomicU64>,
    /// The tasks that hear the reports; they end with this.
    _hearing: JoinSet<()>,
    tail: Option<Tail>,
    sentry: Sentry,
    /// The reason why the log was not read in the last look, so that it is told once.
    unread: Option<String>,
}

/// The chain of security events, as far as it is recorded.
struct Recording {
    bus: Bus,
    key: AuditKey,
    domain: String,
    /// The end of the chain with its position in the stream, once it was fetched.
    end: Option<(End, u64)>,
    /// The event that was sent last, if the broker did not acknowledge it: it may be stored.
    sent: Option<Draft>,
    waiting: VecDeque<SecurityEvent>,
    /// Events for which there was no room.
    lost: u64,
    /// No event is sent before.
    again: Instant,
    /// True while nothing can be recorded, so that it is told once.
    stuck: bool,
}

impl Watch {
    /// Hears the broker's reports from then on. Where it cannot, it says why, and there is no
    /// sentry: all else of the service goes on.
    pub(crate) async fn connect(config: &Config, trust: &TrustBundle, bus: &Bus) -> Option<Self> {
        let unable = |reason: String| {
            let code = Code::SentryUnable;
            tracing::warn!(%code, next = code.next_step(), "{}: {reason}", code.title());
        };
        let key = match key(config, trust) {
            Ok(key) => key,
            Err(reason) => {
                unable(reason);
                return None;
            }
        };
        let filters = REPORTS.map(|report| report.local);
        let settings = config.recorder_bus();
        let heard =
            Listener::connect("diloco-audit-sentry", &settings, &filters, clock::now()).await;
        let listeners = match heard {
            Ok(listeners) => listeners,
            Err(error) => {
                unable(Failure::from(error).to_string());
                return None;
            }
        };
        let (sender, sightings) = mpsc::channel(SIGHTINGS_WAITING_MAX);
        let missed = Arc::<AtomicU64>::default();
        let mut hearing = JoinSet::new();
        for listener in listeners {
            hearing.spawn(hear(listener, sender.clone(), Arc::clone(&missed)));
        }
        let mut recording = Recording {
            bus: bus.clone(),
            key,
            domain: trust.domain.to_string(),
            end: None,
            sent: None,
            waiting: VecDeque::new(),
            lost: 0,
            again: Instant::now(),
            stuck: false,
        };
        let path = &config.audit.broker_log;
        let mut unread = None;
        let tail = (!path.as_os_str().is_empty()).then(|| {
            let (tail, opened) = Tail::open(path);
            unread = opened.err().map(|error| error.to_string());
            tail
        });
        if tail.is_none() {
            unread = Some("no file is named (`audit.broker_log`)".to_owned());
        }
        if let Some(reason) = &unread {
            say_unread(path.display(), reason);
        }
        recording.add(SecurityEvent::SentryStarted {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            broker_log: unread.is_none(),
        });
        Some(Self {
            recording,
            sightings,
            missed,
            _hearing: hearing,
            tail,
            sentry: Sentry::new(clock::now()),
            unread,
        })
    }

    /// Runs until `stop`, and then records what waits.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(sighting) = self.sightings.recv() => self.sentry.note(clock::now(), sighting),
                _ = looks.tick() => {
                    self.look().await;
                    let events = self.sentry.take(clock::now());
                    self.record(events, FLUSH_MAX).await;
                }
            }
        }
        self.look().await;
        let mut events = self.sentry.take_last(clock::now());
        events.push(SecurityEvent::SentryStopped);
        self.recording.again = Instant::now();
        let _ = tokio::time::timeout(END_MAX, self.record(events, END_MAX)).await;
    }

    /// Takes what the broker wrote into its log, and what the channel had no room for.
    async fn look(&mut self) {
        let now = clock::now();
        while let Ok(sighting) = self.sightings.try_recv() {
            self.sentry.note(now, sighting);
        }
        self.sentry
            .note_dropped(self.missed.swap(0, Ordering::Relaxed), 0);
        let Some(mut tail) = self.tail.take() else {
            return;
        };
        let looked = tokio::task::spawn_blocking(move || {
            let looked = tail.look();
            (tail, looked)
        });
        let Ok((tail, looked)) = looked.await else {
            return;
        };
        match looked {
            Ok(Looked { sightings, skipped }) => {
                self.unread = None;
                self.sentry.note_dropped(0, skipped);
                for sighting in sightings {
                    self.sentry.note(now, sighting);
                }
            }
            Err(error) => {
                let reason = error.to_string();
                if self.unread.as_ref() != Some(&reason) {
                    say_unread(tail.path(), &reason);
                    self.unread = Some(reason);
                }
            }
        }
        self.tail = Some(tail);
    }

    async fn record(&mut self, events: Vec<SecurityEvent>, within: Duration) {
        for event in events {
            self.recording.add(event);
        }
        let lost = self.recording.flush(Instant::now() + within).await;
        self.sentry.note_dropped(lost, 0);
    }
}

/// Hears one report. What the channel has no room for is counted: the broker is never made to wait.
async fn hear(mut listener: Listener, sender: mpsc::Sender<Sighting>, missed: Arc<AtomicU64>) {
    let mut dropped = 0;
    loop {
        match listener.next().await {
            Ok(delivery) => {
                let now_dropped = listener.dropped();
                missed.fetch_add(now_dropped - dropped, Ordering::Relaxed);
                dropped = now_dropped;
                if let Some(sighting) =
                    of_report(clock::now(), &delivery.subject, &delivery.payload)
                    && sender.try_send(sighting).is_err()
                {
                    missed.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(error) => {
                let code = Code::SentryUnable;
                tracing::warn!(%code, next = code.next_step(), "{}: {error}", code.title());
                return;
            }
        }
    }
}

/// The key that signs security events.
fn key(config: &Config, trust: &TrustBundle) -> Result<AuditKey, String> {
    if trust.sentry_keys.is_empty() {
        return Err("the trust bundle names no key for security events".to_owned());
    }
    let path = &config.audit.sentry_key;
    let key = AuditKey::read(path).map_err(|error| format!("audit.sentry_key: {error}"))?;
    match trust.sentry_keys.contains(key.public()) {
        true => Ok(key),
        false => Err(format!(
            "audit.sentry_key: the trust bundle does not name {}",
            key.public()
        )),
    }
}

fn say_unread(path: impl std::fmt::Display, reason: &str) {
    let code = Code::BrokerLogUnread;
    tracing::warn!(%code, next = code.next_step(), "{} {path}: {reason}", code.title());
}

impl Recording {
    fn add(&mut self, event: SecurityEvent) {
        match self.waiting.len() < EVENTS_WAITING_MAX {
            true => self.waiting.push_back(event),
            false => self.lost += 1,
        }
    }

    /// Records the events that wait, as far as that is possible now and until `until`. Returns how
    /// many were lost.
    async fn flush(&mut self, until: Instant) -> u64 {
        while let Some(event) = self.waiting.front().cloned() {
            let now = Instant::now();
            if now < self.again || now >= until {
                break;
            }
            let kind = event.kind();
            match self.append(event).await {
                Ok(()) => {
                    self.waiting.pop_front();
                    counter!(AUDIT_SECURITY, "kind" => kind).increment(1);
                    self.stuck = false;
                }
                Err(reason) => {
                    // The end is fetched again: the event may be stored nevertheless.
                    self.end = None;
                    self.again = Instant::now() + AGAIN_AFTER;
                    if !std::mem::replace(&mut self.stuck, true) {
                        let code = Code::SentryUnable;
                        tracing::warn!(%code, next = code.next_step(), "{}: {reason}", code.title());
                    }
                }
            }
        }
        std::mem::take(&mut self.lost)
    }

    async fn append(&mut self, event: SecurityEvent) -> Result<(), String> {
        let (end, expected) = match self.end {
            Some(end) => end,
            None => self.fetch().await?,
        };
        let previous = self.sent.take();
        if previous.is_some_and(|sent| Some(sent.digest) == end.previous) {
            self.end = Some((end, expected));
            return Ok(());
        }
        let (public, kind) = (self.key.public(), event.kind());
        let draft = end.write(public, clock::now(), None, Event::Security(event));
        let signed = self.key.sign_event(&self.domain, draft.body.clone());
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        headers.insert(EXPECTED_FILTER, security_subject(public, ">").as_str());
        let subject = security_subject(public, kind);
        let after = draft.end();
        self.sent = Some(draft);
        let payload = signed.encode().into();
        let answer = self
            .bus
            .request_raw(&subject, headers, payload, ASK_MAX)
            .await;
        let answer = answer.map_err(|error| format!("stream {SECURITY_STREAM}: {error}"))?;
        match serde_json::from_slice::<Response<PublishAck>>(&answer) {
            Ok(Response::Ok(ack)) if ack.sequence > expected => {
                self.sent = None;
                self.end = Some((after, ack.sequence));
                Ok(())
            }
            Ok(Response::Err { error }) => Err(format!("stream {SECURITY_STREAM}: {error}")),
            Ok(Response::Ok(_)) | Err(_) => Err(format!(
                "stream {SECURITY_STREAM}: the answer is no acknowledgement"
            )),
        }
    }

    /// Fetches the end of the chain. A thief of the recorder's credentials can store other things
    /// under this subject; the chain does not go on behind them.
    async fn fetch(&self) -> Result<(End, u64), String> {
        let filter = security_subject(self.key.public(), ">");
        let stream = StreamReader::new(self.bus.clone(), SECURITY_STREAM);
        let last = stream.last_under(&filter).await;
        let Some(last) = last.map_err(|error| error.to_string())? else {
            return Ok((End::default(), 0));
        };
        let foreign = || {
            format!(
                "message {} of stream {SECURITY_STREAM} is not signed by this sentry",
                last.sequence
            )
        };
        let claimed = Claimed::read(&last.payload).map_err(|_| foreign())?;
        if claimed.key() != self.key.public() {
            return Err(foreign());
        }
        let entry = claimed.open(&Signatures::new(&self.domain, []));
        let entry = entry.map_err(|_| foreign())?;
        Ok((End::after(entry.body.sequence, entry.digest), last.sequence))
    }
}
