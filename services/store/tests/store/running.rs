//! The work that a running store does by itself, and the numbers that it gives.

use std::io;
use std::time::{Duration, SystemTime};

use diloco_store::StoreLimits;
use identity::StoreKeys;
use objects::{Signer, StoreClock, Stored};
use runtime::ready::Ready;
use schemas::{Digest, ObjectRef};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::binary::Setup;
use crate::support::{TestStore, key_of, nobody, noise, now, quick, soon};
use crate::uploads::upload;

const PATIENCE: Duration = Duration::from_secs(20);

/// A log that passes its lines on.
#[derive(Clone)]
struct LogLines(mpsc::Sender<String>);

impl io::Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _nobody_waits = self.0.try_send(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// On one thread, so that the log of this test is its own.
#[tokio::test]
async fn uploads_that_were_never_promoted_are_removed_while_the_store_runs() {
    let (sender, mut lines) = mpsc::channel(64);
    let told = LogLines(sender);
    let log = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || told.clone())
        .finish();
    let _log = tracing::subscriber::set_default(log);
    let life = Duration::from_secs(3600);
    let folder = tempfile::tempdir().unwrap();
    let upload = |seed| {
        let bytes = noise(100, seed);
        let key = key_of(ObjectRef::of(&bytes)).to_string();
        let path = folder.path().join("incoming").join(key.replace('/', ","));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let (old, young) = (upload(1), upload(2));
    let file = std::fs::File::options().append(true).open(&old).unwrap();
    file.set_modified(SystemTime::now() - 2 * life).unwrap();
    let limits = StoreLimits {
        incoming_life: life,
        sweep_every: life,
        ..StoreLimits::default()
    };
    let store = TestStore::on(folder, StoreKeys::generate(), limits).await;
    let swept = async {
        while let Some(line) = lines.recv().await {
            if line.contains("never promoted were removed") {
                return line;
            }
        }
        panic!("the store has ended");
    };
    let line = timeout(PATIENCE, swept).await.expect("it sweeps");
    assert!(line.contains("removed=1"), "{line}");
    assert!(!old.exists() && young.exists());
    let _root = store.stop().await;
}

/// A machine that was booted has all uploads read, which takes long where there are many. This one
/// is a pipe: its reader waits for a writer.
#[tokio::test]
async fn a_store_serves_while_it_checks_the_uploads_from_before_a_boot() {
    let folder = tempfile::tempdir().unwrap();
    let key = key_of(ObjectRef::of(b"endless")).to_string();
    let pipe = folder.path().join("incoming").join(key.replace('/', ","));
    std::fs::create_dir(folder.path().join("incoming")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let limits = StoreLimits::default();
    let started = TestStore::on(folder, StoreKeys::generate(), limits);
    let store = timeout(PATIENCE, started).await.expect("it starts");
    let object = upload(&store, &noise(1000, 1)).await;
    let promoted = store.buckets().promote(&key_of(object), object).await;
    assert_eq!(promoted.unwrap(), Stored::Now);
    let end = pipe.clone();
    let write = move || std::fs::File::options().write(true).open(end).map(drop);
    let opened = tokio::task::spawn_blocking(write);
    timeout(PATIENCE, opened)
        .await
        .expect("it is read")
        .unwrap()
        .unwrap();
    let _root = store.stop().await;
    assert!(!pipe.exists(), "it has not the bytes that its key names");
}

/// The value behind the text `begins` at the beginning of a line.
fn value(text: &str, begins: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(begins));
    let line = line.unwrap_or_else(|| panic!("{begins} is not in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn requests_are_counted_by_method_and_status() {
    let setup = Setup::new();
    let listen = ["--set", "metrics.listen=127.0.0.1:0"];
    let (_child, endpoint, _log) = setup.start_with(|command| command.args(listen)).await;
    let ready = std::fs::read(setup.path("ready")).unwrap();
    let ready: Ready = serde_json::from_slice(&ready).unwrap();
    let signer = Signer::new(&endpoint, &setup.keys, StoreClock::default()).unwrap();
    let transfer = objects::Transfer::new(endpoint.trust(), quick()).unwrap();
    let bytes = noise(1000, 1);
    let object = ObjectRef::of(&bytes);
    let grant = signer.put(&key_of(object), object.bytes, now());
    transfer
        .put(&grant, bytes, &nobody(), soon())
        .await
        .unwrap();
    let absent = signer.get(Digest::of(b"absent"), now());
    let read = transfer.get(&absent, object.bytes, &nobody(), soon()).await;
    assert!(read.is_err());

    let address = ready.metrics.expect("it serves numbers");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    for (method, status) in [("PUT", 200), ("GET", 404)] {
        let counted =
            format!("diloco_store_requests_total{{method=\"{method}\",status=\"{status}\"}} ");
        assert_eq!(value(&text, &counted), 1.0);
        let timed = format!("diloco_store_request_seconds_count{{method=\"{method}\"}} ");
        assert_eq!(value(&text, &timed), 1.0);
    }
    assert!(value(&text, "diloco_store_connections ") >= 1.0);
}
