//! What the sentry hears on the bus: the broker's reports, and those of services. Each kind has a
//! connection of its own, so that a broker that denies one leaves the other, and a connection that
//! fails is tried again for as long as the service runs. When something was not heard, that is
//! said.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use audit_core::sentry::{Reported, Sighting, of_refusals, of_report};
use runtime::{BusConfig, BusError, Delivery, Gap, Listener, Silence, clock};
use schemas::Code;
use schemas::account::REPORTS;
use schemas::member::Posture;
use schemas::security::Refuser;
use schemas::subject::REFUSALS_FILTER;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Pauses before a connection is tried again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Again {
    /// After one that failed.
    pub(crate) failed: Duration,
    /// After the broker has denied it. It does so until it has the present tokens of the accounts,
    /// and each try leaves a line in its log, which is a sighting too.
    pub(crate) denied: Duration,
}

/// The times of an ear.
#[derive(Clone, Copy, Debug)]
struct Pauses {
    again: Again,
    /// Time between two events about what was not heard: a connection that comes and goes is one.
    gaps: Duration,
}

pub(crate) const AGAIN: Again = Again {
    failed: Duration::from_secs(30),
    denied: Duration::from_secs(3600),
};
const PAUSES: Pauses = Pauses {
    again: AGAIN,
    gaps: Duration::from_secs(60),
};

/// A kind of report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sound {
    /// The broker's.
    Broker,
    /// Those of coordinator and registrar.
    Services,
}

/// A sighting, and how often it was seen.
pub(crate) type Seen = (Sighting, u64);

/// Where sightings go. What has no room is counted: the broker is never made to wait.
#[derive(Clone, Debug)]
pub(crate) struct Outlet {
    sender: mpsc::Sender<Seen>,
    missed: Arc<AtomicU64>,
    /// The last statement of each service that was not passed on yet.
    stated: Arc<Mutex<BTreeMap<Refuser, Posture>>>,
}

/// One kind of report, as it is heard, and when it was not.
#[derive(Debug)]
pub(crate) struct Ear {
    name: &'static str,
    silence: Silence,
    /// Time between two events about gaps.
    every: Duration,
    /// No event about a gap comes before.
    due: Instant,
}

impl Sound {
    pub(crate) const ALL: [Self; 2] = [Self::Broker, Self::Services];

    /// What is heard, for people.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Broker => "reports of the broker",
            Self::Services => "refusals by services",
        }
    }

    const fn connection(self) -> &'static str {
        match self {
            Self::Broker => "diloco-audit-sentry",
            Self::Services => "diloco-audit-sentry-services",
        }
    }

    fn filters(self) -> Vec<&'static str> {
        match self {
            Self::Broker => REPORTS.iter().map(|report| report.local).collect(),
            Self::Services => vec![REFUSALS_FILTER],
        }
    }

    fn take(self, delivery: &Delivery, outlet: &Outlet) {
        let Delivery {
            subject, payload, ..
        } = delivery;
        match self {
            Self::Broker => {
                if let Some(sighting) = of_report(clock::now(), subject, payload) {
                    outlet.put(sighting, 1);
                }
            }
            Self::Services => {
                let reported = of_refusals(subject, payload);
                if let Some(Reported {
                    sightings,
                    more,
                    posture,
                }) = reported
                {
                    if let Some((by, posture)) = posture {
                        outlet.state(by, posture);
                    }
                    outlet.miss(more);
                    for (sighting, times) in sightings {
                        outlet.put(sighting, times);
                    }
                }
            }
        }
    }
}

impl Outlet {
    pub(crate) fn new(most: usize) -> (Self, mpsc::Receiver<Seen>) {
        let (sender, receiver) = mpsc::channel(most);
        let outlet = Self {
            sender,
            missed: Arc::default(),
            stated: Arc::default(),
        };
        (outlet, receiver)
    }

    /// Passes on what a service says of the layers that it runs with open.
    pub(crate) fn state(&self, by: Refuser, posture: Posture) {
        let mut stated = self.stated.lock().unwrap_or_else(PoisonError::into_inner);
        stated.insert(by, posture);
    }

    /// Takes what services said since the last time.
    pub(crate) fn take_stated(&self) -> BTreeMap<Refuser, Posture> {
        let mut stated = self.stated.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *stated)
    }

    /// Passes a sighting on.
    pub(crate) fn put(&self, sighting: Sighting, times: u64) {
        if self.sender.try_send((sighting, times)).is_err() {
            self.miss(times);
        }
    }

    /// Counts sightings for which there was no room.
    pub(crate) fn miss(&self, times: u64) {
        let add = |missed: u64| Some(missed.saturating_add(times));
        let _ = self
            .missed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Takes the number of those for which there was no room.
    pub(crate) fn take_missed(&self) -> u64 {
        self.missed.swap(0, Ordering::Relaxed)
    }
}

impl Ear {
    /// Hears one kind from now on, or as soon as that is possible. Returns the reason if it cannot
    /// be heard yet.
    pub(crate) async fn open(
        sound: Sound,
        settings: &BusConfig,
        outlet: &Outlet,
        tasks: &mut JoinSet<()>,
    ) -> (Self, Option<BusError>) {
        Self::open_pausing(sound, settings, outlet, tasks, PAUSES).await
    }

    async fn open_pausing(
        sound: Sound,
        settings: &BusConfig,
        outlet: &Outlet,
        tasks: &mut JoinSet<()>,
        pauses: Pauses,
    ) -> (Self, Option<BusError>) {
        let silence = Silence::default();
        let connected = connect(sound, settings, &silence).await;
        let (heard, failed) = match connected {
            Ok(listeners) => (Ok(listeners), None),
            Err(error) => {
                silence.begin(clock::now());
                (Err(pauses.again.after(&error)), Some(error))
            }
        };
        let task = Task {
            sound,
            settings: settings.clone(),
            silence: silence.clone(),
            outlet: outlet.clone(),
            pauses,
        };
        tasks.spawn(task.keep(heard));
        let every = pauses.gaps;
        let ear = Self {
            every,
            ..Self::of(sound.name(), silence)
        };
        (ear, failed)
    }

    /// One of which others note when it does not hear.
    pub(crate) fn of(name: &'static str, silence: Silence) -> Self {
        Self {
            name,
            silence,
            every: PAUSES.gaps,
            due: Instant::now(),
        }
    }

    /// What it hears.
    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    /// A time that is over in which it did not hear, if one is to be told now.
    pub(crate) fn gap(&mut self) -> Option<Gap> {
        if Instant::now() < self.due {
            return None;
        }
        let gap = self.silence.take()?;
        self.due = Instant::now() + self.every;
        Some(gap)
    }

    /// The same at the end of the service, also if it is not over.
    pub(crate) fn last_gap(&self) -> Option<Gap> {
        self.silence.end(clock::now());
        self.silence.take()
    }
}

impl Again {
    /// The pause after this error.
    pub(crate) const fn after(self, error: &BusError) -> Duration {
        match error {
            BusError::Denied { .. } => self.denied,
            _ => self.failed,
        }
    }
}

/// The task behind an ear.
struct Task {
    sound: Sound,
    settings: BusConfig,
    silence: Silence,
    outlet: Outlet,
    pauses: Pauses,
}

impl Task {
    /// Hears for ever, with pauses.
    async fn keep(self, mut heard: Result<Vec<Listener>, Duration>) {
        let sound = self.sound;
        loop {
            let pause = match heard {
                Ok(listeners) => {
                    let error = hear_all(sound, listeners, &self.outlet).await;
                    say_unable(sound, &error);
                    self.silence.begin(clock::now());
                    self.pauses.again.after(&error)
                }
                Err(pause) => pause,
            };
            sleep(pause).await;
            heard = match connect(sound, &self.settings, &self.silence).await {
                Ok(listeners) => {
                    self.silence.end(clock::now());
                    tracing::info!("{} are heard from now on", sound.name());
                    Ok(listeners)
                }
                Err(error) => {
                    say_unable(sound, &error);
                    Err(self.pauses.again.after(&error))
                }
            };
        }
    }
}

async fn connect(
    sound: Sound,
    settings: &BusConfig,
    silence: &Silence,
) -> Result<Vec<Listener>, BusError> {
    let (name, filters) = (sound.connection(), sound.filters());
    Listener::connect_noting(name, settings, &filters, clock::now(), silence.clone()).await
}

/// Says that a kind of report is not heard.
pub(crate) fn say_unable(sound: Sound, error: &BusError) {
    let code = Code::SentryUnable;
    let (title, what) = (code.title(), sound.name());
    tracing::warn!(%code, next = code.next_step(), "{title}: {what} are not heard: {error}");
}

/// Hears until the broker takes the right away.
async fn hear_all(sound: Sound, listeners: Vec<Listener>, outlet: &Outlet) -> BusError {
    let mut hearing = JoinSet::new();
    for listener in listeners {
        hearing.spawn(hear(sound, listener, outlet.clone()));
    }
    // They end together, and the others with this.
    match hearing.join_next().await {
        Some(Ok(error)) => error,
        Some(Err(_)) | None => BusError::Lost {
            subject: sound.filters().join(", "),
        },
    }
}

async fn hear(sound: Sound, mut listener: Listener, outlet: Outlet) -> BusError {
    let mut dropped = 0;
    loop {
        match listener.next().await {
            Ok(delivery) => {
                let now_dropped = listener.dropped();
                outlet.miss(now_dropped - dropped);
                dropped = now_dropped;
                sound.take(&delivery, &outlet);
            }
            Err(error) => return error,
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::security::{RefusalReport, Refused};
    use schemas::{Message as _, V};

    use super::*;
    use crate::played::{Played, Presented};

    const SHORT: Pauses = Pauses {
        again: Again {
            failed: Duration::from_millis(1),
            denied: Duration::from_millis(2),
        },
        gaps: Duration::ZERO,
    };
    const DENIED: &[u8] =
        b"-ERR 'Permissions Violation for Subscription to \"diloco.refusal.>\"'\r\n";

    async fn report(peer: &mut Presented, subject: &str, count: u64) {
        let account = format!("A{}", "B".repeat(55));
        let refused = Refused::of(subject, Code::MessageInvalid).expect("it is of security");
        let report = RefusalReport {
            v: V,
            refusals: vec![Refused { count, ..refused }],
            more: 0,
            posture: None,
        };
        let place = format!("diloco.refusal.{account}.coordinator");
        peer.deliver(0, &place, &report.encode()).await;
    }

    /// The broker has a fault, then older tokens, then the present ones; then it is lost, and takes
    /// the right away.
    #[tokio::test]
    async fn tl_29_what_cannot_be_heard_is_tried_again_and_each_time_of_silence_is_told_once() {
        let broker = Played::start().await;
        let (outlet, mut sightings) = Outlet::new(8);
        let mut tasks = JoinSet::new();
        let settings = broker.config();
        let opening = Ear::open_pausing(Sound::Services, &settings, &outlet, &mut tasks, SHORT);
        let ((mut ear, failed), ()) = tokio::join!(opening, broker.turn_away());
        assert!(failed.is_some());
        assert_eq!(ear.gap(), None, "it is not over");
        broker.turn_away().await;
        broker.accept().await.say(DENIED).await;
        let mut peer = broker.accept().await;
        peer.say(b"PONG\r\n").await;
        report(&mut peer, "first", 3).await;
        let (sighting, times) = sightings.recv().await.expect("it is heard");
        assert_eq!((sighting.subject.as_str(), times), ("first", 3));
        let gap = ear.gap().expect("it is over");
        assert_eq!((gap.times, ear.gap()), (1, None));
        // A lost connection is a gap too, and so is a right that was taken away.
        drop(peer);
        let mut peer = broker.accept().await;
        peer.say(b"PONG\r\n").await;
        report(&mut peer, "second", 1).await;
        let _second = sightings.recv().await.expect("it is heard");
        peer.say(DENIED).await;
        let mut peer = broker.accept().await;
        peer.say(b"PONG\r\n").await;
        report(&mut peer, "third", 1).await;
        let _third = sightings.recv().await.expect("it is heard");
        let gap = ear.gap().expect("both are over");
        assert_eq!((gap.times, ear.last_gap()), (2, None));
    }

    #[tokio::test]
    async fn tl_29_a_silence_that_lasts_until_the_end_is_told_then() {
        let broker = Played::start().await;
        let (outlet, _sightings) = Outlet::new(8);
        let mut tasks = JoinSet::new();
        let settings = broker.config();
        let opening = Ear::open(Sound::Services, &settings, &outlet, &mut tasks);
        let denying = async { broker.accept().await.say(DENIED).await };
        let ((mut ear, failed), ()) = tokio::join!(opening, denying);
        assert!(matches!(failed, Some(BusError::Denied { .. })));
        assert_eq!(ear.gap(), None);
        assert_eq!(ear.last_gap().map(|gap| gap.times), Some(1));
    }

    #[tokio::test]
    async fn tl_29_what_the_channel_has_no_room_for_is_counted() {
        let (outlet, mut sightings) = Outlet::new(1);
        let refused = Refused::of("x", Code::MessageInvalid).expect("it is of security");
        let (one, _) =
            audit_core::sentry::of_refused(schemas::security::Refuser::Coordinator, refused);
        outlet.put(one.clone(), 2);
        outlet.put(one.clone(), 5);
        outlet.miss(u64::MAX);
        assert_eq!(outlet.take_missed(), u64::MAX, "it does not overflow");
        outlet.put(one, 5);
        assert_eq!((outlet.take_missed(), outlet.take_missed()), (5, 0));
        assert_eq!(sightings.recv().await.expect("it has room").1, 2);
    }

    #[test]
    fn tl_29_a_denied_connection_is_tried_seldom_and_another_soon() {
        let denied = BusError::Denied {
            direction: runtime::bus::Direction::Subscribe,
            subject: String::new(),
        };
        assert_eq!(AGAIN.after(&denied), AGAIN.denied);
        let lost = BusError::Lost {
            subject: String::new(),
        };
        assert_eq!(AGAIN.after(&lost), AGAIN.failed);
        assert!(AGAIN.failed <= Duration::from_secs(30) && AGAIN.denied >= AGAIN.failed);
    }
}
