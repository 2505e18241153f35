//! Speed of store and clients over TLS loopback: MB/s, and CPU seconds per GB of each side.
//!
//! `cargo run --release -p diloco-store --example transfers [MiB of one object]... [--durability kernel]`
//!
//! The store runs as a process of its own, so that its CPU time can be told from the client's.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use diloco_store::{Durability, Store, StoreConfig, StoreLimits, Tls};
use identity::StoreKeys;
use objects::{Buckets, Endpoint, IncomingKey, Regrant, Signer, StoreClock, Transfer, TransferLimits, Trust};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use schemas::blob::Grant;
use schemas::{Code, Digest, ObjectRef, Refusal, Round, UnixMillis};
use tokio_util::sync::CancellationToken;

/// Bytes moved in each measurement.
const VOLUME_BYTES: u64 = 1 << 30;

struct Nobody;

#[async_trait]
impl Regrant for Nobody {
    async fn regrant(&self, digest: Digest) -> Result<Grant, Refusal> {
        Err(Refusal::new(Code::ObjectForbidden, digest.to_string()))
    }
}

struct Bench {
    folder: PathBuf,
    server: Child,
    transfer: Transfer,
    buckets: Buckets,
    signer: Signer,
}

#[expect(clippy::print_stdout, reason = "a measurement is printed")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    if let [serve, folder, durability] = &arguments[..]
        && serve == "serve"
    {
        return runtime.block_on(serve_from(Path::new(folder), durability));
    }
    let kernel = arguments.iter().any(|argument| argument == "kernel");
    let mut sizes: Vec<u64> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![8, 64];
    }
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let durability = if kernel { "kernel" } else { "always" };
    println!("durability {durability}; {} MiB a row; CPU in s per GB", VOLUME_BYTES >> 20);
    println!("{:<34} {:>9} {:>11} {:>11}", "", "MB/s", "client CPU", "store CPU");
    runtime.block_on(async {
        let mut bench = Bench::start(scratch.path(), durability);
        for mebibytes in sizes {
            bench.measure(mebibytes << 20).await;
        }
        bench.server.kill().expect("it runs");
        bench.server.wait().expect("it was killed");
    });
}

/// The store's side.
#[expect(clippy::print_stdout, reason = "the address goes to the parent through a pipe")]
async fn serve_from(folder: &Path, durability: &str) {
    let read = |name: &str| std::fs::read(folder.join(name)).expect("the parent wrote it");
    let config = StoreConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        root: folder.join("root"),
        keys: StoreKeys::read(&folder.join("keys.json")).expect("the parent wrote it"),
        tls: Tls::Pem { certificate: read("cert.pem"), key: read("key.pem") },
        durability: if durability == "kernel" { Durability::Kernel } else { Durability::Always },
        limits: StoreLimits::default(),
    };
    let store = Store::bind(config).await.expect("a fresh folder and any port");
    println!("{}", store.address());
    store.run(CancellationToken::new()).await;
}

impl Bench {
    fn start(folder: &Path, durability: &str) -> Self {
        let keys = StoreKeys::generate();
        keys.write(&folder.join("keys.json")).expect("a fresh folder");
        let authority = certificates(folder);
        let program = std::env::current_exe().expect("it runs");
        let mut server = Command::new(program)
            .arg("serve")
            .arg(folder)
            .arg(durability)
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts again");
        let mut address = String::new();
        let output = server.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut address).expect("the store prints its address");
        let url = format!("https://{}", address.trim());
        let endpoint = Endpoint::new(&url, "us-east-1", Trust::Authority(authority)).expect("https");
        let clock = StoreClock::default();
        let limits = TransferLimits::default();
        let patience = Duration::from_secs(60);
        Self {
            folder: folder.to_owned(),
            server,
            transfer: Transfer::new(endpoint.trust(), limits.clone()).expect("a good CA"),
            buckets: Buckets::new(&endpoint, &keys.admin, clock.clone(), limits, patience).expect("a good CA"),
            signer: Signer::new(&endpoint, &keys, clock).expect("a good endpoint"),
        }
    }

    async fn measure(&mut self, size: u64) {
        let count = VOLUME_BYTES / size;
        let bodies: Vec<Bytes> = (0..count).map(|seed| noise(size, seed + size)).collect();
        let worker = format!("U{}", "C".repeat(55)).parse().expect("the form of a key");
        let run = "bench".parse().expect("a run's name");
        let soon = || tokio::time::Instant::now() + Duration::from_secs(60);
        let label = |verb: &str| format!("{verb}, {} MiB objects", size >> 20);

        let start = self.now();
        let mut objects = Vec::new();
        for body in &bodies {
            let object = ObjectRef::of(body);
            let key = IncomingKey::worker(&run, Round(size), &worker, object.digest).expect("not reserved");
            let grant = self.signer.put(&key, object.bytes, local_now());
            self.transfer.put(&grant, body.clone(), &Nobody, soon()).await.expect("it is stored");
            objects.push((key, object));
        }
        self.print(&label("worker PUT (hash included)"), &start);

        let start = self.now();
        for (key, object) in &objects {
            self.buckets.head_checked(key, *object).await.expect("it is there");
            self.buckets.promote(key, *object).await.expect("it is copied");
        }
        let each = start.wall.elapsed() / u32::try_from(count).expect("few objects");
        self.print_line(&label("head and promote"), &format!("{:.2} ms each", each.as_secs_f64() * 1000.0));

        let start = self.now();
        for (_, object) in &objects {
            let grant = self.signer.get(object.digest, local_now());
            self.transfer.get(&grant, object.bytes, &Nobody, soon()).await.expect("it is read");
        }
        self.print(&label("worker GET (verified)"), &start);

        let path = self.folder.join("download");
        let start = self.now();
        for (_, object) in &objects {
            let grant = self.signer.get(object.digest, local_now());
            self.transfer.get_to_file(&grant, object.bytes, &path, &Nobody, soon()).await.expect("it is read");
        }
        self.print(&label("worker GET to file (verified)"), &start);

        for (key, object) in &objects {
            self.buckets.delete(object.digest).await.expect("it is deleted");
            self.buckets.delete_incoming(key).await.expect("it is deleted");
        }
        let start = self.now();
        for body in &bodies {
            self.buckets.put_blob(body.clone()).await.expect("it is stored");
        }
        self.print(&label("coordinator PUT (hash included)"), &start);

        let start = self.now();
        for (_, object) in &objects {
            self.buckets.get(object.digest).await.expect("it is read");
        }
        self.print(&label("coordinator GET (verified)"), &start);
        for (_, object) in &objects {
            self.buckets.delete(object.digest).await.expect("it is deleted");
        }
    }

    fn now(&self) -> Start {
        Start { wall: Instant::now(), client: cpu("self"), store: cpu(&self.server.id().to_string()) }
    }

    fn print(&self, label: &str, start: &Start) {
        let end = self.now();
        let gigabytes = VOLUME_BYTES as f64 / 1e9;
        let speed = VOLUME_BYTES as f64 / 1e6 / (end.wall - start.wall).as_secs_f64();
        let (client, store) = ((end.client - start.client) / gigabytes, (end.store - start.store) / gigabytes);
        self.print_line(label, &format!("{speed:>9.0} {client:>11.2} {store:>11.2}"));
    }

    #[expect(clippy::print_stdout, reason = "a measurement is printed")]
    fn print_line(&self, label: &str, text: &str) {
        println!("{label:<46} {text}");
    }
}

struct Start {
    wall: Instant,
    client: f64,
    store: f64,
}

/// User and system time of a process, in seconds.
fn cpu(process: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process runs");
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number of ticks");
    // Fields 14 and 15 of proc(5), in ticks of 10 ms.
    (ticks(11) + ticks(12)) / 100.0
}

/// Writes a certificate for loopback and its key; returns its authority.
fn certificates(folder: &Path) -> Vec<u8> {
    let authority_key = KeyPair::generate().expect("randomness");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).expect("a fresh key");
    let key = KeyPair::generate().expect("randomness");
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    let certificate = leaf.signed_by(&key, &Issuer::from_params(&params, authority_key)).expect("a fresh key");
    std::fs::write(folder.join("cert.pem"), certificate.pem()).expect("a fresh folder");
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).expect("a fresh folder");
    authority.pem().into_bytes()
}

fn noise(length: u64, seed: u64) -> Bytes {
    let mut state = 2 * seed + 1;
    let mut bytes = Vec::with_capacity(usize::try_from(length).expect("it fits into memory"));
    while (bytes.len() as u64) < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.into()
}

fn local_now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
