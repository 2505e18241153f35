//! A store in this process, a proxy that cuts connections, and a stub that answers what it is told.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use diloco_store::{Durability, Store, StoreConfig, StoreLimits, Tls};
use identity::StoreKeys;
use identity::secret::write_private;
use objects::{
    Buckets, Endpoint, IncomingKey, Regrant, Signer, StoreClock, Transfer, TransferLimits, Trust,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair as CertificateKey};
use schemas::blob::Grant;
use schemas::lease::{LeaseRef, UnitId, UnitKind};
use schemas::{Code, Digest, Epoch, ObjectRef, Refusal, Round, UnitIndex, UnixMillis};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) struct TestStore {
    pub(crate) root: TempDir,
    pub(crate) keys: StoreKeys,
    /// The certificate authority; empty without TLS.
    pub(crate) authority: Vec<u8>,
    pub(crate) address: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

pub(crate) struct Certificates {
    pub(crate) authority: Vec<u8>,
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

pub(crate) fn certificates() -> Certificates {
    let authority_key = CertificateKey::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap();
    let key = CertificateKey::generate().unwrap();
    let issuer = Issuer::from_params(&params, authority_key);
    let leaf =
        CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let certificate = leaf.signed_by(&key, &issuer).unwrap();
    Certificates {
        authority: authority.pem().into_bytes(),
        certificate: certificate.pem().into_bytes(),
        key: key.serialize_pem().into_bytes(),
    }
}

/// The usual limits, on a disk with any room.
fn roomy() -> StoreLimits {
    StoreLimits {
        free_bytes_min: schemas::Bytes(0),
        ..StoreLimits::default()
    }
}

impl TestStore {
    pub(crate) async fn start() -> Self {
        Self::with(roomy()).await
    }

    /// The same store in another process, with its keys and what it holds.
    pub(crate) async fn again(self) -> Self {
        let keys = self.keys.clone();
        Self::on(self.stop().await, keys, roomy()).await
    }

    pub(crate) async fn with(limits: StoreLimits) -> Self {
        Self::on(tempfile::tempdir().unwrap(), StoreKeys::generate(), limits).await
    }

    pub(crate) async fn on(root: TempDir, keys: StoreKeys, limits: StoreLimits) -> Self {
        let (made, folder) = (certificates(), tempfile::tempdir().unwrap());
        let (certificate, key) = (
            folder.path().join("cert.pem"),
            folder.path().join("key.pem"),
        );
        write_private(&certificate, &made.certificate).unwrap();
        write_private(&key, &made.key).unwrap();
        let tls = Tls::Files {
            certificate,
            key,
            clients: None,
        };
        Self::serve(root, keys, limits, tls, made.authority).await
    }

    /// A store without TLS.
    pub(crate) async fn plain() -> Self {
        let root = tempfile::tempdir().unwrap();
        Self::serve(
            root,
            StoreKeys::generate(),
            roomy(),
            Tls::PlainLoopback,
            Vec::new(),
        )
        .await
    }

    async fn serve(
        root: TempDir,
        keys: StoreKeys,
        limits: StoreLimits,
        tls: Tls,
        authority: Vec<u8>,
    ) -> Self {
        let config = StoreConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            root: root.path().to_owned(),
            keys: keys.clone(),
            tls,
            durability: Durability::Kernel,
            limits,
        };
        let store = Store::bind(config).await.unwrap();
        let (address, shutdown) = (store.address(), CancellationToken::new());
        let serving = tokio::spawn(store.run(shutdown.clone()));
        Self {
            root,
            keys,
            authority,
            address,
            shutdown,
            serving,
        }
    }

    pub(crate) fn trust(&self) -> Trust {
        if self.authority.is_empty() {
            Trust::PlainLoopback
        } else {
            Trust::Authority(self.authority.clone())
        }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint_at(self.address)
    }

    /// The store as seen through another port.
    pub(crate) fn endpoint_at(&self, address: SocketAddr) -> Endpoint {
        let scheme = if self.authority.is_empty() {
            "http"
        } else {
            "https"
        };
        Endpoint::new(&format!("{scheme}://{address}"), "us-east-1", self.trust()).unwrap()
    }

    pub(crate) fn signer_at(&self, address: SocketAddr) -> Signer {
        Signer::new(
            &self.endpoint_at(address),
            &self.keys,
            StoreClock::default(),
        )
        .unwrap()
    }

    pub(crate) fn buckets(&self) -> Buckets {
        buckets(&self.endpoint(), &self.keys)
    }

    pub(crate) fn transfer(&self) -> Transfer {
        Transfer::new(&self.trust(), quick()).unwrap()
    }

    pub(crate) fn uploads(&self) -> Vec<String> {
        files(&self.root.path().join("incoming"))
    }

    /// The file of an upload.
    pub(crate) fn upload(&self, key: &IncomingKey) -> PathBuf {
        let name = key.to_string().replace('/', ",");
        self.root.path().join("incoming").join(name)
    }

    pub(crate) fn unfinished(&self) -> Vec<String> {
        files(&self.root.path().join("tmp"))
    }

    /// Ends the store in order; when this returns no writer runs any more.
    pub(crate) async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        self.serving.await.unwrap();
        self.root
    }
}

pub(crate) fn buckets(endpoint: &Endpoint, keys: &StoreKeys) -> Buckets {
    Buckets::new(
        endpoint,
        &keys.admin,
        StoreClock::default(),
        quick(),
        Duration::from_secs(20),
    )
    .unwrap()
}

fn files(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names.extend(files(&path))
        } else {
            names.push(path.display().to_string())
        }
    }
    names
}

pub(crate) fn quick() -> TransferLimits {
    TransferLimits {
        pause_first: Duration::from_millis(10),
        pause_max: Duration::from_millis(50),
        ..TransferLimits::default()
    }
}

/// Limits for one attempt: the first pause is longer than any deadline here.
pub(crate) fn once() -> TransferLimits {
    TransferLimits {
        pause_first: Duration::from_secs(600),
        pause_max: Duration::from_secs(600),
        ..TransferLimits::default()
    }
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

pub(crate) fn now() -> UnixMillis {
    UnixMillis(
        u64::try_from(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_millis(),
        )
        .unwrap(),
    )
}

/// Bytes that do not repeat.
pub(crate) fn noise(length: usize, seed: u64) -> Bytes {
    let mut state = 2 * seed + 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next)
        .take(length)
        .collect::<Vec<u8>>()
        .into()
}

pub(crate) fn key_of(object: ObjectRef) -> IncomingKey {
    let worker = format!("U{}", "B".repeat(55)).parse().unwrap();
    let unit = UnitId {
        round: Round(3),
        kind: UnitKind::Train,
        index: UnitIndex(1),
    };
    IncomingKey::worker(
        &"demo".parse().unwrap(),
        LeaseRef {
            unit,
            epoch: Epoch(2),
        },
        &worker,
        object.digest,
    )
}

/// Grants by a closure, and counts the requests.
pub(crate) struct Grants<F> {
    grant: F,
    pub(crate) asked: AtomicUsize,
}

impl<F: Fn(Digest) -> Option<Grant> + Send + Sync> Grants<F> {
    pub(crate) fn new(grant: F) -> Self {
        Self {
            grant,
            asked: AtomicUsize::new(0),
        }
    }
}

#[async_trait]
impl<F: Fn(Digest) -> Option<Grant> + Send + Sync> Regrant for Grants<F> {
    async fn regrant(&self, digest: Digest) -> Result<Grant, Refusal> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        (self.grant)(digest).ok_or_else(|| Refusal::new(Code::ObjectForbidden, "no more"))
    }
}

/// Grants nothing.
pub(crate) fn nobody() -> Grants<impl Fn(Digest) -> Option<Grant> + Send + Sync> {
    Grants::new(|_| None)
}

/// The fault that a [`Proxy`] causes in a connection.
#[derive(Clone, Copy)]
pub(crate) enum Cut {
    /// Passes this many bytes from the store, then closes.
    Down(u64),
    /// Passes this many bytes to the store, then closes.
    Up(u64),
    /// Passes everything to the store, but not its answer to the last request of at least this many
    /// bytes.
    Answer(u64),
}

/// A TCP proxy that mistreats its first connections.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    running: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(target: SocketAddr, cut: Cut, times: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let running = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let nth = count.fetch_add(1, Ordering::SeqCst);
                let cut = (nth < times).then_some(cut);
                tokio::spawn(pass(client, target, cut));
            }
        });
        Self {
            address,
            connections,
            running,
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn pass(client: TcpStream, target: SocketAddr, cut: Option<Cut>) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (mut up, mut down) = ([0; 16 << 10], [0; 16 << 10]);
    let (mut sent, mut received) = (0_u64, 0_u64);
    loop {
        tokio::select! {
            read = from_client.read(&mut up) => {
                let Ok(length @ 1..) = read else { return };
                sent += length as u64;
                if to_server.write_all(&up[..length]).await.is_err() || matches!(cut, Some(Cut::Up(most)) if sent > most) {
                    return;
                }
            }
            read = from_server.read(&mut down) => {
                let Ok(length @ 1..) = read else { return };
                received += length as u64;
                let lost = matches!(cut, Some(Cut::Answer(most)) if sent > most);
                if lost || to_client.write_all(&down[..length]).await.is_err() || matches!(cut, Some(Cut::Down(most)) if received > most) {
                    return;
                }
            }
        }
    }
}

/// A plain HTTP server that gives these answers in turn, one for each connection, and remembers the
/// heads of the requests.
pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    pub(crate) heads: Arc<tokio::sync::Mutex<Vec<String>>>,
}

impl Stub {
    pub(crate) async fn start(answers: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(tokio::sync::Mutex::new(Vec::new()));
        let seen = heads.clone();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                seen.lock().await.push(String::from_utf8(head).unwrap());
                stream.write_all(&answer).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        Self { address, heads }
    }

    pub(crate) fn grant(&self, digest: Digest) -> Grant {
        let endpoint = Endpoint::new(
            &format!("http://{}", self.address),
            "us-east-1",
            Trust::PlainLoopback,
        )
        .unwrap();
        Signer::new(&endpoint, &StoreKeys::generate(), StoreClock::default())
            .unwrap()
            .get(digest, now())
    }
}

/// An HTTP answer.
pub(crate) fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}
