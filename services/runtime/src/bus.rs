//! The connection to NATS. A refused request fails at once instead of at its time-out, a
//! subscription is known to stand, and changes of the connection are logged.

mod checked;
mod error;
mod keeper;
mod many;
mod parts;
mod void;
mod why;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{
    Client, ConnectOptions, Event, HeaderMap, RequestErrorKind, ServerError, Subscriber,
};
use bytes::Bytes;
use futures::StreamExt as _;
use identity::source::connect_options;
use identity::{BusTls, ClientFile, CredentialSource, Own};
use schemas::answer::{self, Answer};
use schemas::{Code, Message, PublicKey, Refusal, UnixMillis};
use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, watch};

pub use error::BusError;

pub use crate::denial::Direction;
use crate::denial::{Denials, Denied};
use crate::exit::Failure;
use crate::probe::OutageProbe;
use crate::renewal::Freshness;
use void::Void;
pub(crate) use why::causes;
use why::why_not;

/// Longest wait for the server to show that a subscription stands.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(5);

/// Time that the client's own task may take to hand on a refusal that has arrived.
const REFUSAL_GRACE: Duration = Duration::from_millis(100);

/// The section `bus` of every configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BusConfig {
    /// Address of the NATS servers: `tls://host:port`, several separated by commas.
    pub url: String,
    /// Credentials file.
    pub credentials: PathBuf,
    /// Certificate authority of the servers, PEM.
    pub ca: PathBuf,
}

/// A connection to the bus. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct Bus {
    client: Client,
    denials: Denials,
    /// Counts how often the connection was lost: an answer that was waited for at that moment does
    /// not come any more.
    lost: watch::Sender<u64>,
    /// Counts how often the connection was made.
    connected: watch::Sender<u64>,
    /// True from a reconnect on purpose until it is noticed.
    planned: Arc<AtomicBool>,
    /// Held by requests that wait for their answer, and by a reconnect on purpose.
    requests: Arc<RwLock<()>>,
    /// The same for messages that nobody answers.
    publishes: Arc<RwLock<()>>,
    void: Void,
    public: Option<PublicKey>,
    url: String,
    /// None without credentials, and in the keeper itself.
    kept: Option<Arc<keeper::Kept>>,
}

/// A subscription. It ends with an error when the server takes the right to the subject away.
pub struct Subscription {
    subject: String,
    messages: Subscriber,
    denied: Denied,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            url: "tls://127.0.0.1:4222".to_owned(),
            credentials: PathBuf::new(),
            ca: PathBuf::new(),
        }
    }
}

impl BusConfig {
    /// True when every address asks for encryption.
    pub fn is_encrypted(&self) -> bool {
        self.addresses()
            .all(|url| url.starts_with("tls://") || url.starts_with("wss://"))
    }

    /// TLS settings for connections to the servers.
    pub(crate) fn tls(&self) -> Result<BusTls, BusError> {
        if !self.is_encrypted() {
            return Ok(BusTls::Off);
        }
        if self.ca.as_os_str().is_empty() {
            let reason =
                "the address is encrypted but bus.ca names no certificate authority".to_owned();
            return Err(BusError::Credential {
                url: self.url.clone(),
                reason,
                code: Code::CredentialMissing,
            });
        }
        Ok(BusTls::Required {
            ca: self.ca.clone(),
        })
    }

    /// The file with the certificate that belongs to the credentials; it exists in domains with
    /// mutual TLS.
    pub(crate) fn certificate(&self) -> Option<ClientFile> {
        let named = !self.credentials.as_os_str().is_empty();
        named.then(|| ClientFile::beside(&self.credentials))
    }

    /// That certificate as it is now.
    pub(crate) fn own(&self) -> Own {
        Own::look(self.certificate().as_ref())
    }

    /// The addresses of the servers, without blanks.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.url
            .split(',')
            .map(str::trim)
            .filter(|url| !url.is_empty())
    }
}

impl Bus {
    /// Connects as `name`, with the credentials that `config` names, or without credentials when it
    /// names none (a layer that was opened on purpose; see [`crate::validate`]). One attempt; once
    /// connected, the client reconnects by itself, and its token is renewed for as long as the
    /// connection is used.
    ///
    /// # Errors
    /// The credentials cannot be used, no server answers, or it refuses them.
    pub async fn connect(
        name: &str,
        config: &BusConfig,
        now: UnixMillis,
    ) -> Result<Self, BusError> {
        let url = config.url.clone();
        let tls = config.tls()?;
        let (options, source) = if config.credentials.as_os_str().is_empty() {
            let options =
                ConnectOptions::new().reconnect_delay_callback(identity::source::reconnect_delay);
            let options = match tls {
                BusTls::Required { ca } => options.require_tls(true).add_root_certificates(ca),
                BusTls::Off => options,
            };
            (options, None)
        } else {
            let source = CredentialSource::open(&config.credentials, now).map_err(|error| {
                BusError::Credential {
                    url: url.clone(),
                    reason: error.to_string(),
                    code: error.code(),
                }
            })?;
            (connect_options(&source, &tls), Some(source))
        };
        let denials = Denials::default();
        let lost = watch::Sender::new(0);
        let (connected, planned) = (watch::Sender::new(0), Arc::<AtomicBool>::default());
        let public = source.as_ref().map(|source| source.public().clone());
        let void = Void::of(config.credentials.clone(), public.clone());
        let listener = EventListener {
            denials: denials.clone(),
            lost: lost.clone(),
            connected: connected.clone(),
            planned: Arc::clone(&planned),
            void: void.clone(),
            outage: OutageProbe::over(config),
        };
        let options = options.name(name).event_callback(move |event| {
            listener.hear(&event);
            listener.void.follow(&event);
            std::future::ready(())
        });
        let addresses: Vec<&str> = config.addresses().collect();
        let client = match options.connect(addresses).await {
            Ok(client) => client,
            Err(error) => return Err(why_not(config, &error).await),
        };
        let mut bus = Self {
            client,
            denials,
            lost,
            connected,
            planned,
            requests: Arc::default(),
            publishes: Arc::default(),
            void,
            public,
            url,
            kept: None,
        };
        bus.let_in().await?;
        bus.kept = source.map(|source| keeper::keep(bus.clone(), Freshness::new(source)));
        Ok(bus)
    }

    /// Waits until the server has done something for this client, or has refused it. To the client,
    /// a connection stands with the first line from the server, which may be news of its addresses
    /// and precede a refusal.
    async fn let_in(&self) -> Result<(), BusError> {
        tokio::select! {
            biased;
            () = self.void.refused() => Err(BusError::Credential {
                url: self.url.clone(),
                reason: "the server refuses the credentials".to_owned(),
                code: Code::BusRefused,
            }),
            // A server that is silent now is the caller's to find out.
            _ = self.round_trip() => Ok(()),
        }
    }

    /// Waits until the token has ended and could not be renewed, or the broker refuses it for good.
    /// Without a token this never resolves.
    pub async fn lapsed(&self) -> Failure {
        tokio::select! {
            failure = self.unrenewed() => failure,
            refusal = self.refused() => refusal.into(),
        }
    }

    async fn unrenewed(&self) -> Failure {
        if let Some(kept) = &self.kept {
            let mut lapsed = kept.lapsed.clone();
            if let Ok(reason) = lapsed.wait_for(Option::is_some).await
                && let Some(refusal) = reason.clone()
            {
                return refusal.into();
            }
        }
        std::future::pending().await
    }

    /// The client underneath, for JetStream.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// The key of the credentials; none for a connection without credentials.
    pub const fn public(&self) -> Option<&PublicKey> {
        self.public.as_ref()
    }

    /// The address that was configured.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sends a request and waits for the answer, at most `wait`.
    ///
    /// # Errors
    /// [`BusError::Refused`] is the peer's own refusal; the others say why there is no answer.
    pub async fn request<Q: Message, A: Message>(
        &self,
        subject: &str,
        question: &Q,
        wait: Duration,
    ) -> Result<A, BusError> {
        let payload = question.encode();
        let asked = answer::question(subject, &payload);
        let request = async_nats::Request::new()
            .payload(payload.into())
            .timeout(Some(wait));
        let payload = self.send(subject, request, wait).await?;
        let decoded = Answer::<A>::decode(&payload);
        let answer = decoded.map_err(|source| BusError::Message {
            subject: subject.to_owned(),
            source,
        })?;
        if !answer.is_for(self.public.as_ref(), asked) {
            return Err(BusError::Foreign {
                subject: subject.to_owned(),
            });
        }
        Ok(answer.reply.into_result()?)
    }

    /// Publishes a message that nobody answers. A denial arrives later, so it is logged and not
    /// returned.
    ///
    /// # Errors
    /// The client is closing, or the message is too long.
    pub async fn publish(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        let _open = self.publishes.read().await;
        let sent = self.client.publish(subject.to_owned(), payload).await;
        sent.map_err(|error| BusError::Send {
            subject: subject.to_owned(),
            reason: causes(&error),
        })
    }

    /// Publishes a message with headers.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub async fn publish_with(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<(), BusError> {
        let _open = self.publishes.read().await;
        let sent = self
            .client
            .publish_with_headers(subject.to_owned(), headers, payload)
            .await;
        sent.map_err(|error| BusError::Send {
            subject: subject.to_owned(),
            reason: causes(&error),
        })
    }

    /// Publishes a message with headers into a stream, and returns the bytes of the stream's
    /// acknowledgement.
    ///
    /// # Errors
    /// As [`Bus::request`]; the answer is the caller's to read.
    pub async fn request_raw(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
        wait: Duration,
    ) -> Result<Bytes, BusError> {
        let request = async_nats::Request::new()
            .headers(headers)
            .payload(payload)
            .timeout(Some(wait));
        self.send(subject, request, wait).await
    }

    /// Explains why `stream` did not acknowledge a message in time. A server whose store has
    /// failed, most often because its disk was full, still answers all other requests, and gives
    /// the reason in its log only.
    pub async fn explain_silence(&self, error: BusError, stream: &str) -> BusError {
        let BusError::TimedOut { subject, .. } = &error else {
            return error;
        };
        let request = async_nats::Request::new().timeout(Some(ROUND_TRIP_MAX));
        let answer = self
            .send(
                &format!("$JS.API.STREAM.INFO.{stream}"),
                request,
                ROUND_TRIP_MAX,
            )
            .await;
        let said = match answer.as_deref().map(serde_json::from_slice::<StreamInfo>) {
            Ok(Ok(StreamInfo { error: Some(said) })) => {
                format!("JetStream says: {}", said.description)
            }
            Ok(Ok(StreamInfo { error: None })) => {
                "its store has failed, most often since its disk was full; its log \
                says why, and it takes nothing more until it is restarted"
                    .to_owned()
            }
            _ => return error,
        };
        BusError::NotStored(format!(
            "the server answers, but does not acknowledge what is written to {subject}: {said}"
        ))
    }

    /// Asks under `subject`, and gives up once no answer can come.
    ///
    /// # Errors
    /// The server denies the subject, or the connection is lost.
    async fn until_hopeless<T>(
        &self,
        subject: &str,
        asked: impl Future<Output = T>,
    ) -> Result<T, BusError> {
        let _open = self.requests.read().await;
        // Before the question is sent, so that no denial is missed.
        let mut denied = self.denials.watch(Direction::Publish, subject);
        let mut lost = self.lost.subscribe();
        tokio::select! {
            answered = asked => Ok(answered),
            () = denied.heard() => Err(BusError::Denied {
                direction: Direction::Publish,
                subject: subject.to_owned(),
            }),
            _ = lost.changed() => Err(BusError::Lost { subject: subject.to_owned() }),
        }
    }

    /// Sends a request and waits for its answer, a denial, the loss of the connection, or the end
    /// of `wait`.
    async fn send(
        &self,
        subject: &str,
        request: async_nats::Request,
        wait: Duration,
    ) -> Result<Bytes, BusError> {
        let subject = subject.to_owned();
        let asked = self.client.send_request(subject.clone(), request);
        let answer = self.until_hopeless(&subject, asked).await?;
        answer
            .map(|message| message.payload)
            .map_err(|error| match error.kind() {
                RequestErrorKind::TimedOut => BusError::TimedOut {
                    subject,
                    after: wait,
                },
                RequestErrorKind::NoResponders => BusError::NoResponders { subject },
                RequestErrorKind::InvalidSubject
                | RequestErrorKind::MaxPayloadExceeded
                | RequestErrorKind::Other => BusError::Send {
                    subject,
                    reason: causes(&error),
                },
            })
    }

    /// Subscribes to a subject. When this returns, the server has the subscription, so that every
    /// message published from now on arrives.
    ///
    /// # Errors
    /// [`BusError::Denied`]: the subject is refused; or the server does not answer.
    pub async fn subscribe(&self, subject: &str) -> Result<Subscription, BusError> {
        let subject = subject.to_owned();
        let denied = self.denials.watch(Direction::Subscribe, &subject);
        let messages = match self.client.subscribe(subject.clone()).await {
            Ok(messages) => messages,
            Err(error) => {
                return Err(BusError::Send {
                    subject,
                    reason: causes(&error),
                });
            }
        };
        let mut subscription = Subscription {
            subject,
            messages,
            denied,
        };
        self.round_trip().await?;
        // The server works in order: refusals have arrived before the end of the round trip. But
        // the client hands them on through a task of its own, which the answer can overtake.
        tokio::time::sleep(REFUSAL_GRACE).await;
        match subscription.denied.was_heard() {
            true => Err(subscription.refusal()),
            false => Ok(subscription),
        }
    }

    /// Waits until the server has handled everything that was sent before. The client publishes
    /// into its own inbox; a role without that right is refused, which serves as an answer too.
    ///
    /// # Errors
    /// No answer.
    pub async fn round_trip(&self) -> Result<(), BusError> {
        let inbox = self.client.new_inbox();
        let send = |reason: String| BusError::Send {
            subject: inbox.clone(),
            reason,
        };
        let mut denied = self.denials.watch(Direction::Publish, &inbox);
        let answered = async {
            let mut echo = self
                .client
                .subscribe(inbox.clone())
                .await
                .map_err(|error| send(causes(&error)))?;
            self.client
                .publish(inbox.clone(), Bytes::new())
                .await
                .map_err(|error| send(causes(&error)))?;
            tokio::select! {
                _ = echo.next() => {}
                () = denied.heard() => {}
            }
            Ok(())
        };
        // Without a server, even sending does not end once the client's queue is full.
        let answered = tokio::time::timeout(ROUND_TRIP_MAX, answered).await;
        answered.unwrap_or_else(|_| {
            Err(BusError::TimedOut {
                subject: inbox.clone(),
                after: ROUND_TRIP_MAX,
            })
        })
    }

    /// Waits until the broker refuses this connection's credentials for good: they were revoked, or
    /// the file holds those of another key. The process that uses them has to end.
    pub async fn refused(&self) -> Refusal {
        self.void.verdict().await
    }

    /// True when there is a connection at this moment. Without one, what is published waits in the
    /// client.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }
}

impl Subscription {
    /// The next message; none when the connection is closed for good.
    ///
    /// # Errors
    /// [`BusError::Denied`]: the server took the right away.
    pub async fn next(&mut self) -> Result<Option<async_nats::Message>, BusError> {
        tokio::select! {
            biased;
            message = self.messages.next() => Ok(message),
            () = self.denied.heard() => Err(self.refusal()),
        }
    }

    fn refusal(&self) -> BusError {
        BusError::Denied {
            direction: Direction::Subscribe,
            subject: self.subject.clone(),
        }
    }
}

/// The part of a stream's description that is read.
#[derive(Deserialize)]
struct StreamInfo {
    error: Option<JetStreamError>,
}

#[derive(Deserialize)]
struct JetStreamError {
    #[serde(default)]
    description: String,
}

/// Follows what happens to a connection.
struct EventListener {
    denials: Denials,
    lost: watch::Sender<u64>,
    connected: watch::Sender<u64>,
    planned: Arc<AtomicBool>,
    void: Void,
    outage: OutageProbe,
}

impl EventListener {
    fn hear(&self, event: &Event) {
        match event {
            Event::Connected => {
                tracing::info!(cause = "bus", "connected to the bus");
                self.connected.send_modify(|count| *count += 1);
                self.outage.end();
            }
            Event::Disconnected => {
                if self.planned.swap(false, Ordering::Relaxed) {
                    tracing::debug!("connecting anew with another token");
                } else {
                    tracing::warn!("connection to the bus lost; trying again");
                }
                self.lost.send_modify(|count| *count += 1);
                self.outage.begin();
            }
            Event::Closed => {
                tracing::info!("connection to the bus closed");
                self.outage.end();
            }
            Event::LameDuckMode | Event::Draining => tracing::info!("bus: {event}"),
            Event::SlowConsumer(_) => tracing::warn!("bus: {event}; messages were dropped"),
            Event::ServerError(ServerError::Other(text)) => {
                if !self.denials.hear(text) {
                    tracing::warn!("bus: {}", void::explained(text));
                }
            }
            Event::ServerError(_) | Event::ClientError(_) => tracing::warn!("bus: {event}"),
        }
    }
}
