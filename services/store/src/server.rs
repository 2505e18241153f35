//! Connections: TLS, limits, and an orderly end.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Method, Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use identity::TlsFault;
use identity::tls::{TlsError, mutual_config, server_config};
use metrics::{counter, gauge, histogram};
use objects::BucketName;
use runtime::metrics::{STORE_CONNECTIONS, STORE_REQUEST_SECONDS, STORE_REQUESTS};
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};
use schemas::Code;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;
use crate::body::Paced;
use crate::budget::Budgets;
use crate::config::{StoreConfig, StoreLimits, Tls};
use crate::gate;
use crate::guard::Guarded;
use crate::landing::AHEAD_MAX;
use crate::peer::{self, Peer};
use crate::peers::Peers;
use crate::refused::{Asked, Refusals};
use crate::rights::{Admission, Rights};
use crate::root::{Root, RootError};
use crate::stopped::Stopped;
use crate::sweep;

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after the system refused to accept a connection because no file handles were left, which
/// does not pass at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Files and sockets that are open in any case: the port, the lock, logs, folders that are listed
/// or synced, uploads that are synced ahead of their promotion.
const HANDLES_OWN: u64 = 24 + AHEAD_MAX as u64;
/// Files and sockets of one connection at its peak: its socket, the file of its object, a folder
/// that is synced.
const HANDLES_A_CONNECTION: u64 = 3;
/// Fewest connections to start with: with fewer than one worker opens, a store serves nobody well.
const CONNECTIONS_MIN: usize = 8;
/// Time for which the store still reads from a peer after it ended the connection. A socket that is
/// closed while bytes arrive is reset, and the reset discards the answer at a client that still
/// sends its body: the client would then see a broken line instead of the reason.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes read from a socket at a time. rustls alone asks for 4 KiB, which is four calls for each
/// record of an upload.
const SOCKET_READ_BYTES: usize = 128 << 10;

/// TLS of a store.
#[derive(Clone)]
struct Secure {
    acceptor: TlsAcceptor,
    /// True if it asks for certificates of clients.
    asks: bool,
}

/// A store that holds its root and its port; [`Store::run`] serves.
pub struct Store {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Secure>,
    service: S3Service,
    rights: Rights,
    refusals: Refusals,
    root: Arc<Root>,
    limits: StoreLimits,
}

/// Reasons why a store does not start, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process serves the root.
    #[error("another process holds {}", root.join("lock").display())]
    Busy {
        /// The folder.
        root: PathBuf,
    },
    /// The root cannot be made or read.
    #[error("cannot use the store's folder {}: {source}", root.display())]
    Root {
        /// The folder.
        root: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file system under the root cannot do what a store needs.
    #[error("the file system of {} does not do what a store needs; to {tried}: {source}", root.display())]
    Ground {
        /// The folder.
        root: PathBuf,
        /// The operation that was tried.
        tried: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The process may open too few files and sockets.
    #[error(
        "the process may hold {handles} files and sockets open, which is too few; {HANDLES_OWN} and {HANDLES_A_CONNECTION} a connection are needed"
    )]
    Handles {
        /// The number of files and sockets that it may open.
        handles: u64,
    },
    /// The certificate or its key is not usable.
    #[error("the store's certificate is not usable: {0}")]
    Tls(#[from] TlsError),
    /// Plaintext beyond loopback.
    #[error("plain http is for loopback addresses, {0} is not one; give a certificate")]
    Plaintext(SocketAddr),
    /// The port cannot be used.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

impl StoreError {
    /// The coded error that this is.
    pub fn code(&self) -> Code {
        match self {
            Self::Busy { .. } => Code::StoreBusy,
            Self::Root { .. } => Code::ConfigInvalid,
            Self::Ground { .. } => Code::StoreGround,
            Self::Handles { .. } => Code::HandlesTooFew,
            Self::Tls(error) => error.code(),
            Self::Plaintext(_) => Code::PlaintextRefused,
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Code::PortTaken
            }
            Self::Listen { .. } => Code::ConfigInvalid,
        }
    }
}

schemas::coded!(StoreError);

impl Store {
    /// Checks everything, locks the root, empties its temporary folder and takes the port.
    ///
    /// # Errors
    /// The reason why the store cannot start. Only the empty folders of the root are left behind.
    pub async fn bind(config: StoreConfig) -> Result<Self, StoreError> {
        let tls = match &config.tls {
            Tls::Files {
                certificate,
                key,
                clients,
            } => {
                let config = match clients {
                    Some(clients) => mutual_config(certificate, key, clients, peer::tell)?,
                    None => server_config(certificate, key)?,
                };
                Some(Secure {
                    acceptor: TlsAcceptor::from(Arc::new(config)),
                    asks: clients.is_some(),
                })
            }
            Tls::PlainLoopback if config.listen.ip().is_loopback() => None,
            Tls::PlainLoopback => return Err(StoreError::Plaintext(config.listen)),
        };
        // If the system does not report the limit, the limit shows when it is reached.
        let limits = match runtime::handles::limit() {
            Ok(handles) => within_handles(config.limits, handles)?,
            Err(_) => config.limits,
        };
        let root = Root::open(&config.root, config.durability, limits.free_bytes_min.get())
            .map_err(|error| match error {
                RootError::Busy => StoreError::Busy {
                    root: config.root.clone(),
                },
                RootError::Io(source) => StoreError::Root {
                    root: config.root.clone(),
                    source,
                },
                RootError::Ground { tried, source } => StoreError::Ground {
                    root: config.root.clone(),
                    tried,
                    source,
                },
            })?;
        if !root.has_links() {
            let root = config.root.display();
            tracing::warn!(%root, "the file system has no hard links: each promoted upload is copied, which costs time and room");
        }
        let root = Arc::new(root);
        let no_port = |source| StoreError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(no_port)?;
        let address = listener.local_addr().map_err(no_port)?;
        let refusals = Refusals::new();
        let backend = Backend {
            root: root.clone(),
            budgets: Budgets::default(),
            refusals: refusals.clone(),
        };
        let rights = Rights::new(config.keys, Stopped::of(root.path()));
        Ok(Self {
            listener,
            address,
            tls,
            service: service(backend, rights.clone()),
            rights,
            refusals,
            root,
            limits,
        })
    }

    /// Says in the list of refusals, which the audit service reads, which layers the store runs
    /// with open: it has no connection to the bus.
    pub fn state(&self, posture: schemas::member::Posture) {
        self.refusals.state(posture);
    }

    /// The address it took.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is cancelled, and then waits for requests in progress, for as long
    /// as the limits allow.
    pub async fn run(self, shutdown: CancellationToken) {
        let root = self.root.clone();
        self.root
            .writers()
            .spawn_blocking(move || root.check_suspects());
        let sweeper = tokio::spawn(sweeper(
            self.root.clone(),
            self.limits.clone(),
            shutdown.clone(),
        ));
        let mut peers = Peers::new(
            self.limits.connections_max,
            self.limits.connections_peer_percent,
        );
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                // Freed places are counted before another is given away.
                biased;
                () = shutdown.cancelled() => break,
                Some(ended) = connections.join_next_with_id(), if !connections.is_empty() => {
                    peers.closed(ended.map_or_else(|failed| failed.id(), |(task, ())| task));
                    gauge!(STORE_CONNECTIONS).set(connections.len() as f64);
                    continue;
                }
                accepted = self.listener.accept(), if peers.can_take() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok((stream, peer)) => (stream, peer.ip()),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Meanwhile the holders of places may have become known, and then no place is free.
            if !peers.can_take() || !peers.has_room(peer) {
                continue;
            }
            peers.make_room();
            let known = Admission::default();
            let front = Front {
                service: self.service.clone(),
                limits: self.limits.clone(),
                known: known.clone(),
                rights: self.rights.clone(),
                refusals: self.refusals.clone(),
                address: peer,
                peer: Peer::Unasked,
            };
            // Counted first, since the task may answer before this one runs on.
            gauge!(STORE_CONNECTIONS).set((connections.len() + 1) as f64);
            let task = connections.spawn(serve(stream, self.tls.clone(), front, shutdown.clone()));
            peers.opened(task, peer, known);
        }
        drop(self.listener);
        let drained = timeout(self.limits.drain, async {
            while connections.join_next().await.is_some() {}
        })
        .await;
        if drained.is_err() {
            tracing::warn!(
                connections = connections.len(),
                "requests still in progress are cut off"
            );
            connections.shutdown().await;
        }
        sweeper.abort();
        self.root.writers().close();
        self.root.writers().wait().await;
    }
}

/// The service that answers the requests of one connection, with its limits.
#[derive(Clone)]
struct Front {
    service: S3Service,
    limits: StoreLimits,
    /// Set once one of them was signed and allowed.
    known: Admission,
    rights: Rights,
    refusals: Refusals,
    /// Where it comes from.
    address: IpAddr,
    /// The holder of the connection.
    peer: Peer,
}

async fn serve(stream: TcpStream, tls: Option<Secure>, front: Front, shutdown: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set a socket's options");
    }
    let stream =
        BufReader::with_capacity(SOCKET_READ_BYTES, Guarded::new(stream, front.limits.idle));
    match tls {
        None => speak(stream, front, shutdown).await,
        Some(Secure { acceptor, asks }) => {
            let accepting = acceptor.accept(stream).into_fallible();
            match timeout(HANDSHAKE, accepting).await {
                Ok(Ok(stream)) => match Peer::of(stream.get_ref().1, asks) {
                    Ok(peer) => speak(stream, Front { peer, ..front }, shutdown).await,
                    Err(fault) => peer::tell(&fault),
                },
                Ok(Err((error, stream))) => {
                    match TlsFault::at_server(&error) {
                        Some(fault) => peer::tell(&fault),
                        None => tracing::debug!(%error, "a tls handshake failed"),
                    }
                    // The client has to hear the alert, which a reset of the connection discards.
                    let _gone = timeout(LINGER, part(stream, &shutdown)).await;
                }
                Err(_) => tracing::debug!("a tls handshake took too long"),
            }
        }
    }
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    front: Front,
    shutdown: CancellationToken,
) {
    let (idle, ends) = (front.limits.idle, certified_until(front.peer.clone()));
    let answer = service_fn(move |request| Box::pin(answer(front.clone(), request)));
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .serve_connection(TokioIo::new(stream), answer);
    let ended = tokio::select! {
        ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => ended,
        () = shutdown.cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
        // The request in progress is answered; the next one needs a connection with a certificate
        // that has not ended.
        () = ends => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
    let _gone = timeout(
        LINGER,
        part(connection.into_parts().io.into_inner(), &shutdown),
    )
    .await;
}

/// Resolves when the certificate of a connection ends.
async fn certified_until(peer: Peer) {
    let Peer::Holder(holder) = peer else {
        return std::future::pending().await;
    };
    let left = runtime::clock::now().until(holder.ends);
    tokio::time::sleep(left.as_duration()).await;
}

/// Tells the peer that nothing more follows, and discards its bytes until it is done too. A store
/// that ends does not wait for the peer, but it does send the end: over TLS a peer would otherwise
/// think that its answer was cut off.
async fn part<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, shutdown: &CancellationToken) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut nowhere = tokio::io::sink();
    tokio::select! {
        _peer_is_done = tokio::io::copy(&mut stream, &mut nowhere) => {}
        () = shutdown.cancelled() => {}
    }
}

async fn answer(
    front: Front,
    request: Request<Incoming>,
) -> Result<Response<s3s::Body>, s3s::HttpError> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let since = Instant::now();
    let parts = (request.method(), request.uri(), request.headers());
    let asked = Asked::of(&front.rights, front.address, &front.peer, parts);
    let response = match gate::refusal(&request, front.limits.object_bytes_max.get()) {
        Some(refusal) => refusal,
        None => admitted(&front, request).await?,
    };
    front.refusals.note(runtime::clock::now(), asked, &response);
    count(&method, response.status(), since.elapsed());
    // Only the path is logged, since a query may hold a signature.
    tracing::debug!(%method, path, status = response.status().as_u16(), "answered");
    Ok(response)
}

/// Returns the label of a method. Methods that the store does not know share one label, since
/// anybody can make one up.
pub(crate) fn label(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "PUT", "POST", "DELETE"].into_iter();
    let mut found = known.filter(|known| method.as_str() == *known);
    found.next().unwrap_or("other")
}

/// Counts an answer.
fn count(method: &Method, status: StatusCode, took: Duration) {
    let method = label(method);
    let status = status.as_str().to_owned();
    counter!(STORE_REQUESTS, "method" => method, "status" => status).increment(1);
    histogram!(STORE_REQUEST_SECONDS, "method" => method).record(took);
}

/// Passes a request to the protocol layer. Every read of its body is bounded, including those of
/// that layer; a peer whose signature turns out to be wrong is disconnected.
async fn admitted(
    front: &Front,
    request: Request<Incoming>,
) -> Result<Response<s3s::Body>, s3s::HttpError> {
    let idle = front.limits.idle;
    let mut request = request.map(|body| match body.is_end_stream() {
        true => s3s::Body::empty(),
        false => s3s::Body::http_body(Paced::new(body, idle)),
    });
    let admission = Admission::for_request_of(&front.known);
    request.extensions_mut().insert(admission.clone());
    request.extensions_mut().insert(front.peer.clone());
    let mut response = front.service.call(request).await?;
    if !admission.is_given() {
        gate::close(&mut response);
    }
    Ok(response)
}

/// Limits the connections to the handles that the process has: a store that runs out of them would
/// fail in the middle of uploads.
fn within_handles(limits: StoreLimits, handles: u64) -> Result<StoreLimits, StoreError> {
    let most = handles.saturating_sub(HANDLES_OWN) / HANDLES_A_CONNECTION;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    if most >= limits.connections_max {
        return Ok(limits);
    }
    if most < CONNECTIONS_MIN {
        return Err(StoreError::Handles { handles });
    }
    let (wanted, connections) = (limits.connections_max, most);
    tracing::warn!(
        handles,
        wanted,
        connections,
        "fewer connections than configured: the system allows few open files"
    );
    Ok(StoreLimits {
        connections_max: most,
        ..limits
    })
}

async fn sweeper(root: Arc<Root>, limits: StoreLimits, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(limits.sweep_every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let (folder, life) = (root.bucket(BucketName::Incoming), limits.incoming_life);
        let root = root.clone();
        let swept = tokio::task::spawn_blocking(move || {
            let swept = sweep::sweep(&folder, life, SystemTime::now());
            root.landings().forget_gone();
            swept
        });
        let swept = swept.await;
        match swept {
            Ok(Ok(0)) => {}
            Ok(Ok(removed)) => {
                tracing::info!(removed, "old uploads that were never promoted were removed")
            }
            Ok(Err(error)) => tracing::warn!(%error, "cannot sweep old uploads"),
            Err(error) => tracing::error!(%error, "the sweep of old uploads panicked"),
        }
    }
}

fn service(backend: Backend, rights: Rights) -> S3Service {
    let mut config = S3Config::default();
    config.xml_max_body_size =
        usize::try_from(gate::XML_BYTES_MAX).expect("a mebibyte is a number of bytes");
    // There are no forms, since the gate refuses them.
    config.post_object_max_file_size = 0;
    config.form_max_field_size = 0;
    config.form_max_fields_size = 0;
    config.form_max_parts = 0;
    let mut builder = S3ServiceBuilder::new(backend);
    builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
    builder.set_auth(rights.clone());
    builder.set_access(rights);
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The connections of a store whose process may open so many files, and the code when it does
    /// not start.
    fn connections(handles: u64, connections_max: usize) -> Result<usize, Code> {
        let limits = StoreLimits {
            connections_max,
            ..StoreLimits::default()
        };
        let within = within_handles(limits, handles);
        within
            .map(|limits| limits.connections_max)
            .map_err(|error| error.code())
    }

    #[test]
    fn no_more_connections_are_taken_than_there_are_files_for() {
        let of = |connections: u64| HANDLES_OWN + connections * HANDLES_A_CONNECTION;
        assert_eq!(connections(u64::MAX, 500), Ok(500));
        assert_eq!(connections(of(500), 500), Ok(500));
        assert_eq!(connections(of(500) - 1, 500), Ok(499));
        let least = CONNECTIONS_MIN as u64;
        assert_eq!(connections(of(least), 500), Ok(CONNECTIONS_MIN));
        let too_few = Err(Code::HandlesTooFew);
        assert_eq!(connections(of(least) - 1, 500), too_few);
        assert_eq!(connections(0, 500), too_few);
        assert_eq!(connections(of(1), 1), Ok(1), "more were not asked for");
    }

    #[test]
    fn made_up_methods_share_a_label() {
        for known in ["GET", "HEAD", "PUT", "POST", "DELETE"] {
            assert_eq!(label(&known.parse().unwrap()), known);
        }
        assert_eq!(label(&"BREW".parse().unwrap()), "other");
    }

    #[test]
    fn only_a_port_that_another_process_has_is_called_taken() {
        let code = |kind: io::ErrorKind| {
            let (address, source) = (([127, 0, 0, 1], 1).into(), kind.into());
            StoreError::Listen { address, source }.code()
        };
        assert_eq!(code(io::ErrorKind::AddrInUse), Code::PortTaken);
        assert_eq!(code(io::ErrorKind::AddrNotAvailable), Code::ConfigInvalid);
    }
}
