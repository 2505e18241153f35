//! The shell of [`audit_core::sentry`]: it hears the reports of the broker and of services, follows
//! the broker's log, and records the events in stream `SECURITY`. Nothing waits for it: what it
//! cannot record it counts, and it never ends the service.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use audit_core::sentry::Sentry;
use chain::{Claimed, Draft, End, Signatures};
use identity::{AuditKey, TrustBundle};
use metrics::counter;
use runtime::metrics::AUDIT_SECURITY;
use runtime::{Bus, Gap, Silence, StreamReader, clock};
use schemas::event::Event;
use schemas::member::Posture;
use schemas::security::SecurityEvent;
use schemas::subject::{SECURITY_STREAM, security_subject};
use schemas::{Code, Message as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::hearing::{Ear, Outlet, Seen, Sound, say_unable};
use crate::intake::EXPECTED_FILTER;
use crate::look::{Look, STORE};
use crate::mirror;
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
    sightings: mpsc::Receiver<Seen>,
    outlet: Outlet,
    ears: Vec<Ear>,
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
    /// Hears reports from then on. What it cannot hear yet it tries again. Without a key it says
    /// so, and there is no sentry. All else of the service goes on.
    pub(crate) async fn connect(
        config: &Config,
        posture: Posture,
        trust: &TrustBundle,
        bus: &Bus,
    ) -> Option<Self> {
        let key = match key(config, trust) {
            Ok(key) => key,
            Err(reason) => {
                let code = Code::SentryUnable;
                tracing::warn!(%code, next = code.next_step(), "{}: {reason}", code.title());
                return None;
            }
        };
        let settings = config.recorder_bus();
        let (outlet, sightings) = Outlet::new(SIGHTINGS_WAITING_MAX);
        let mut hearing = JoinSet::new();
        let (mut ears, mut unheard) = (Vec::new(), Vec::new());
        for sound in Sound::ALL {
            let (ear, failed) = Ear::open(sound, &settings, &outlet, &mut hearing).await;
            if let Some(error) = failed {
                say_unable(sound, &error);
                unheard.push(sound.name().to_owned());
            }
            ears.push(ear);
        }
        match mirror::bucket(config) {
            Ok(Some(bucket)) => {
                let silence = Silence::default();
                let look = Look::open(bucket, outlet.clone(), silence.clone()).await;
                if !look.is_read() {
                    unheard.push(STORE.to_owned());
                }
                ears.push(Ear::of(STORE, silence));
                hearing.spawn(look.keep());
            }
            Ok(None) => {}
            Err(failure) => {
                unheard.push(STORE.to_owned());
                let silence = Silence::default();
                silence.begin(clock::now());
                ears.push(Ear::of(STORE, silence));
                let code = Code::StoreRefusalsUnread;
                tracing::warn!(%code, next = code.next_step(), "{}: {failure}", code.title());
            }
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
            unheard,
            posture: posture.shortened(),
        });
        Some(Self {
            recording,
            sightings,
            outlet,
            ears,
            _hearing: hearing,
            tail,
            sentry: Sentry::new(clock::now()),
            unread,
        })
    }

    /// Where the service's own refusals go.
    pub(crate) const fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    /// Runs until `stop`, and then records what waits.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some((sighting, times)) = self.sightings.recv() => {
                    self.sentry.note_times(clock::now(), sighting, times);
                }
                _ = looks.tick() => {
                    self.look().await;
                    let gaps = self.ears.iter_mut();
                    let gaps = gaps.filter_map(|ear| Some(interrupted(ear.name(), ear.gap()?)));
                    let mut events: Vec<_> = gaps.collect();
                    events.extend(self.sentry.take(clock::now()));
                    self.record(events, FLUSH_MAX).await;
                }
            }
        }
        self.look().await;
        let gaps = self.ears.iter();
        let gaps = gaps.filter_map(|ear| Some(interrupted(ear.name(), ear.last_gap()?)));
        let mut events: Vec<_> = gaps.collect();
        events.extend(self.sentry.take_last(clock::now()));
        events.push(SecurityEvent::SentryStopped);
        self.recording.again = Instant::now();
        let _ = tokio::time::timeout(END_MAX, self.record(events, END_MAX)).await;
    }

    /// Takes what the broker wrote into its log, and what the channel had no room for.
    async fn look(&mut self) {
        let now = clock::now();
        while let Ok((sighting, times)) = self.sightings.try_recv() {
            self.sentry.note_times(now, sighting, times);
        }
        self.sentry.note_dropped(self.outlet.take_missed(), 0);
        for (by, posture) in self.outlet.take_stated() {
            self.sentry.note_posture(by, posture);
        }
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

/// The event about a time in which something was not heard.
fn interrupted(unheard: &str, gap: Gap) -> SecurityEvent {
    SecurityEvent::SentryInterrupted {
        unheard: unheard.to_owned(),
        from: gap.from,
        until: gap.until,
        times: gap.times,
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
