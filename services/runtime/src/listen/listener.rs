//! The public side: a listener listens on its subject for as long as it is kept, and reconnects
//! whenever the connection is lost.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use identity::CredentialSource;
use identity::join::new_session;
use identity::source::{PING_INTERVAL, reconnect_delay};
use schemas::{Code, PublicKey, UnixMillis};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::link::{Address, Dialer, Link, Lost};
use super::protocol::{Delivery, PING, PONG, Word};
use super::queue::{QueueReceiver, QueueSender, pair};
use super::silence::Silence;
use crate::bus::{BusConfig, BusError, Direction};
use crate::renewal::Freshness;
use crate::{clock, denial};

/// Most pings without an answer; after one more the server counts as gone.
const PINGS_MAX: u32 = 2;
/// Time between two log lines about dropped messages.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// A subject that a process listens on over a connection of its own. No bytes of a sender can end
/// that connection. Messages that arrive while there is no connection are lost, and so are those
/// that come faster than this process takes them.
#[derive(Debug)]
pub struct Listener {
    filter: String,
    receiver: QueueReceiver,
    denied: Arc<OnceLock<String>>,
}

/// The task behind a listener: it owns the connection until nobody listens.
struct ListenerTask {
    dialer: Dialer,
    senders: Vec<QueueSender>,
    /// None without credentials.
    fresh: Option<Freshness>,
    denied: Arc<OnceLock<String>>,
    silence: Silence,
    /// When the server answered last: what was sent since then may be lost with the connection.
    alive: UnixMillis,
    /// Messages that were skipped because they were too long or malformed.
    unheard: u64,
    reported: u64,
}

/// Reasons why the task stops reading a connection.
enum End {
    /// The connection is lost; there may be another.
    Lost(Lost),
    /// The server took the right to this subject away.
    Denied(String),
    /// The credentials file holds a newer token.
    Outdated,
    /// Nobody listens any more.
    Unwanted,
}

impl Listener {
    /// Connects as `name`, with the credentials that `config` names (without credentials when it
    /// names none), and listens on each of `filters`. It tries each server once. Once connected, it
    /// reconnects by itself, with the credentials that the file holds by then. When this returns,
    /// the server has the subscriptions.
    ///
    /// # Errors
    /// As [`crate::Bus::connect`] and [`crate::Bus::subscribe`].
    pub async fn connect(
        name: &str,
        config: &BusConfig,
        filters: &[impl AsRef<str> + Sync],
        now: UnixMillis,
    ) -> Result<Vec<Self>, BusError> {
        Self::connect_noting(name, config, filters, now, Silence::default()).await
    }

    /// As [`Listener::connect`]; notes in `silence` when the connection is lost and when it is
    /// back.
    ///
    /// # Errors
    /// As [`Listener::connect`].
    pub async fn connect_noting(
        name: &str,
        config: &BusConfig,
        filters: &[impl AsRef<str> + Sync],
        now: UnixMillis,
        silence: Silence,
    ) -> Result<Vec<Self>, BusError> {
        let url = config.url.clone();
        let source =
            match config.credentials.as_os_str().is_empty() {
                true => None,
                false => Some(CredentialSource::open(&config.credentials, now).map_err(
                    |error| BusError::Credential {
                        url: url.clone(),
                        reason: error.to_string(),
                        code: error.code(),
                    },
                )?),
            };
        let addresses = config
            .addresses()
            .map(Address::parse)
            .collect::<Result<_, _>>()?;
        let filters: Vec<String> = filters
            .iter()
            .map(|filter| filter.as_ref().to_owned())
            .collect();
        let ca = Dialer::authority(config.tls()?);
        let dialer = Dialer {
            name: name.to_owned(),
            addresses,
            ca,
            certificate: config.certificate(),
            source,
            filters: filters.clone(),
            group: format!("{name}-{}", new_session()),
        };
        let (senders, receivers): (Vec<_>, Vec<_>) = filters.iter().map(|_| pair()).unzip();
        let denied = Arc::<OnceLock<String>>::default();
        let fresh = dialer.source.clone().map(Freshness::new);
        let mut task = ListenerTask {
            dialer,
            senders,
            fresh,
            denied: Arc::clone(&denied),
            silence,
            alive: now,
            unheard: 0,
            reported: 0,
        };
        let link = task.dial().await?;
        tokio::spawn(task.keep(link));
        let listener = |(filter, receiver)| Self {
            filter,
            receiver,
            denied: Arc::clone(&denied),
        };
        Ok(filters.into_iter().zip(receivers).map(listener).collect())
    }

    /// The subject filter that it listens on.
    pub fn filter(&self) -> &str {
        &self.filter
    }

    /// Waits for the next message, for as long as it takes.
    ///
    /// # Errors
    /// [`BusError::Denied`]: the server took the right away.
    pub async fn next(&mut self) -> Result<Delivery, BusError> {
        match self.receiver.take().await {
            Some(delivery) => Ok(delivery),
            None => {
                let subject = self.denied.get().unwrap_or(&self.filter).clone();
                Err(BusError::Denied {
                    direction: Direction::Subscribe,
                    subject,
                })
            }
        }
    }

    /// Messages that arrived and were dropped for lack of room, since the beginning.
    pub fn dropped(&self) -> u64 {
        self.receiver.dropped()
    }
}

impl ListenerTask {
    /// Reads until nobody listens any more, or until the server takes the right away.
    async fn keep(mut self, mut link: Link) {
        loop {
            let lost = match self.hear(&mut link).await {
                End::Lost(lost) => lost,
                End::Denied(subject) => return self.give_up(subject),
                End::Unwanted => return,
                End::Outdated => match self.replace(&mut link).await {
                    Some(denied) => return self.give_up(denied),
                    None => continue,
                },
            };
            self.silence.begin(self.alive);
            self.report();
            tracing::warn!(connection = self.dialer.name, reason = %lost, "connection to the bus lost; trying again");
            match self.again().await {
                Ok(next) => link = next,
                Err(End::Denied(subject)) => return self.give_up(subject),
                Err(End::Lost(_) | End::Outdated | End::Unwanted) => return,
            }
            self.silence.end(clock::now());
            tracing::info!(connection = self.dialer.name, "connected to the bus");
        }
    }

    /// Replaces the connection by one with the newer token, without a moment in which nobody
    /// listens: the old one is left once the new one stands. Returns a subject that the server
    /// denies. If the new one does not come about, the old one stays, and another look finds the
    /// token again.
    async fn replace(&mut self, link: &mut Link) -> Option<String> {
        let mut next = match self.dial().await {
            Ok(next) => next,
            Err(BusError::Denied { subject, .. }) => return Some(subject),
            Err(error) => {
                let (connection, code) = (&self.dialer.name, error.code());
                tracing::warn!(connection, %code, reason = %error, "no connection with the newer token; the old one stays");
                return None;
            }
        };
        std::mem::swap(link, &mut next);
        let mut old = next;
        let (senders, unheard) = (&self.senders, &mut self.unheard);
        let subscriptions = self.dialer.filters.len() as u64;
        let left = old
            .leave(subscriptions, &mut |word| take(senders, unheard, word))
            .await;
        if let Err(lost) = left {
            tracing::debug!(connection = self.dialer.name, reason = %lost, "the old connection was lost first");
        }
        tracing::debug!(
            connection = self.dialer.name,
            "listens with the newer token"
        );
        None
    }

    fn give_up(&self, subject: String) {
        self.silence.begin(clock::now());
        // A second denial changes nothing: the connection ends with the first.
        let _ = self.denied.set(subject);
    }

    /// Reads one connection to its end.
    async fn hear(&mut self, link: &mut Link) -> End {
        let (mut pings, mut reports) = (interval(PING_INTERVAL), interval(REPORT_EVERY));
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once; the connection has just answered.
        pings.tick().await;
        let mut unanswered = 0;
        loop {
            let mut word = tokio::select! {
                word = link.word() => match word {
                    Ok(word) => Some(word),
                    Err(lost) => return End::Lost(lost),
                },
                _ = pings.tick() => {
                    if unanswered == PINGS_MAX {
                        return End::Lost(Lost::Silent);
                    }
                    unanswered += 1;
                    if let Err(lost) = link.say(PING).await {
                        return End::Lost(lost);
                    }
                    None
                }
                _ = reports.tick() => {
                    self.report();
                    None
                }
                () = unwanted(&self.senders) => return End::Unwanted,
                () = outdated(&mut self.fresh) => return End::Outdated,
            };
            while let Some(this) = word {
                match this {
                    Word::Pong => {
                        unanswered = 0;
                        self.alive = clock::now();
                    }
                    Word::Ping => {
                        if let Err(lost) = link.say(PONG).await {
                            return End::Lost(lost);
                        }
                    }
                    Word::Error(text) => {
                        if let Some((Direction::Subscribe, subject)) = denial::parse(&text) {
                            return End::Denied(subject.to_owned());
                        }
                        // The server closes the connection itself after a fatal error.
                        tracing::warn!(connection = self.dialer.name, "bus: {text}");
                    }
                    other => self.take(other),
                }
                word = match link.buffered() {
                    Ok(word) => word,
                    Err(lost) => return End::Lost(lost),
                };
            }
        }
    }

    /// Reconnects, with pauses, for as long as it takes.
    async fn again(&mut self) -> Result<Link, End> {
        let mut last = String::new();
        for attempt in 1.. {
            tokio::select! {
                () = sleep(reconnect_delay(attempt)) => {}
                () = unwanted(&self.senders) => return Err(End::Unwanted),
            }
            match self.dial().await {
                Ok(link) => return Ok(link),
                Err(BusError::Denied { subject, .. }) => return Err(End::Denied(subject)),
                Err(error) => {
                    let text = error.to_string();
                    if text != last {
                        let (connection, code) = (&self.dialer.name, error.code());
                        tracing::warn!(connection, %code, reason = text, "no connection to the bus; trying again");
                        last = text;
                    }
                }
            }
        }
        unreachable!("attempts are not counted out")
    }

    async fn dial(&mut self) -> Result<Link, BusError> {
        let (senders, unheard) = (&self.senders, &mut self.unheard);
        let link = self
            .dialer
            .dial(&mut |word| take(senders, unheard, word))
            .await?;
        if let Some(fresh) = &mut self.fresh {
            fresh.connected();
        }
        self.alive = clock::now();
        Ok(link)
    }

    fn take(&mut self, word: Word) {
        take(&self.senders, &mut self.unheard, word);
    }

    /// Logs how many messages were lost since the last line about them.
    fn report(&mut self) {
        let all = self.unheard + self.senders.iter().map(QueueSender::dropped).sum::<u64>();
        let count = all - std::mem::replace(&mut self.reported, all);
        if count > 0 {
            let (connection, code) = (&self.dialer.name, Code::MessagesDropped);
            // Names a sender that exceeded its share, if there was one. All outlets are asked, so
            // that none is named later.
            let flooders: Vec<PublicKey> = self
                .senders
                .iter()
                .filter_map(QueueSender::flooder)
                .collect();
            let flooder = flooders.first();
            let sender = flooder.map_or("many", PublicKey::as_str);
            tracing::warn!(connection, %code, sender, count, "messages dropped");
        }
    }
}

fn take(senders: &[QueueSender], unheard: &mut u64, word: Word) {
    match word {
        Word::Message {
            subscription,
            delivery,
        } => {
            match usize::try_from(subscription)
                .ok()
                .and_then(|place| senders.get(place))
            {
                Some(sender) => sender.put(delivery),
                None => *unheard += 1,
            }
        }
        Word::Unheard { .. } => *unheard += 1,
        Word::Info(info) if info.ending => tracing::info!("bus: the server is about to end"),
        Word::Info(_) | Word::Ok | Word::Ping | Word::Pong | Word::Error(_) => {}
    }
}

/// Resolves when the credentials file holds a newer token than the connection uses.
async fn outdated(fresh: &mut Option<Freshness>) {
    match fresh {
        Some(fresh) => fresh.outdated().await,
        None => std::future::pending().await,
    }
}

/// Resolves when the last listener has gone.
async fn unwanted(senders: &[QueueSender]) {
    for sender in senders {
        sender.closed().await;
    }
}
