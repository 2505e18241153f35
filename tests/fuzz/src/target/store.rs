//! The S3 store, by its socket: bytes of a stranger, who has no key.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use identity::StoreKeys;
use store::{Durability, Store, StoreConfig, StoreLimits, Tls};
use tokio_util::sync::CancellationToken;

/// Longest that a stranger waits for the store: much more than it needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store that serves as long as this process lives.
struct Served {
    address: SocketAddr,
    root: PathBuf,
}

static STORE: LazyLock<Served> = LazyLock::new(|| {
    let root = tempfile::tempdir().expect("a scratch folder").keep();
    let config = StoreConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        root: root.clone(),
        keys: StoreKeys::generate(),
        tls: Tls::PlainLoopback,
        durability: Durability::Kernel,
        limits: StoreLimits::default(),
    };
    let (say, hear) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let store = Store::bind(config).await.expect("a free port");
            say.send(store.address()).expect("somebody waits");
            store.run(CancellationToken::new()).await;
        });
    });
    let address = hear.recv().expect("the store starts");
    Served { address, root }
});

/// Nothing that a stranger sends is stored, or is the store's own failure.
pub(super) fn request(bytes: &[u8]) {
    let store = &*STORE;
    let mut stream = TcpStream::connect(store.address).expect("the store listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    // The store may close before it has read everything.
    let _sent = stream
        .write_all(bytes)
        .and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset,
            "the store went quiet"
        );
    }
    let status = answer.get(..12).map(String::from_utf8_lossy);
    if let Some(status) = status {
        assert!(
            !status.starts_with("HTTP/1.1 2"),
            "a stranger was served: {status}"
        );
        assert!(
            !status.starts_with("HTTP/1.1 5"),
            "the store failed: {status}"
        );
    }
    assert_eq!(
        files(&store.root.join("blobs")),
        0,
        "a stranger stored something"
    );
    assert_eq!(
        files(&store.root.join("incoming")),
        0,
        "a stranger stored something"
    );
}

fn files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).expect("a folder of the store");
    entries
        .map(|entry| entry.expect("an entry").path())
        .map(|path| match path.is_dir() {
            true => files(&path),
            false => 1,
        })
        .sum()
}

pub(super) fn requests() -> Vec<Vec<u8>> {
    let digest = schemas::Digest::of(b"x").hex();
    let query = format!(
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=k%2F20260101%2Fr%2Fs3%2Faws4_request\
         &X-Amz-Date=20260101T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature={digest}"
    );
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential=k/20260101/r/s3/aws4_request, SignedHeaders=host, Signature={digest}"
    );
    [
        format!("GET /blobs/{digest}?{query} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        format!(
            "PUT /incoming/a,b?{query} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nx"
        ),
        format!(
            "POST /blobs?delete HTTP/1.1\r\nhost: localhost\r\nauthorization: {authorization}\r\n\
             x-amz-content-sha256: {digest}\r\ncontent-type: text/xml\r\ncontent-length: 9\r\n\r\n<Delete/>"
        ),
        format!("HEAD /blobs/{digest} HTTP/1.1\r\nhost: localhost\r\n\r\nGET / HTTP/1.0\r\n\r\n"),
    ]
    .map(String::into_bytes)
    .to_vec()
}
