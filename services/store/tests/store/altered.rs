//! Bytes that somebody alters on a line without TLS. The reader knows an object's digest from
//! elsewhere, from the grant and the statement on the bus. So store or reader refuse a change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use objects::{ObjectError, Stored};
use schemas::{Code, ObjectRef};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::{TestStore, buckets, key_of, nobody, noise, now, soon};

/// The bytes to replace, and their replacement of the same length.
type Swap = (Vec<u8>, Vec<u8>);

/// A proxy that reads whole requests and answers, and passes them on with all swaps applied.
struct Forger {
    address: SocketAddr,
    swapped: Arc<AtomicUsize>,
    running: JoinHandle<()>,
}

impl Forger {
    async fn start(target: SocketAddr, swaps: Vec<Swap>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let swapped = Arc::new(AtomicUsize::new(0));
        let (count, swaps) = (swapped.clone(), Arc::new(swaps));
        let running = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, target, swaps.clone(), count.clone()));
            }
        });
        Self {
            address,
            swapped,
            running,
        }
    }

    fn swapped(&self) -> usize {
        self.swapped.load(Ordering::SeqCst)
    }
}

impl Drop for Forger {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn pass(
    mut client: TcpStream,
    target: SocketAddr,
    swaps: Arc<Vec<Swap>>,
    count: Arc<AtomicUsize>,
) {
    let Ok(mut store) = TcpStream::connect(target).await else {
        return;
    };
    let swap = |message: &mut Vec<u8>| {
        for (from, to) in swaps.iter() {
            while let Some(at) = message
                .windows(from.len())
                .position(|window| window == from)
            {
                message[at..at + to.len()].copy_from_slice(to);
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    while let Some(mut request) = message(&mut client, true).await {
        let has_body = !request.starts_with(b"HEAD ");
        swap(&mut request);
        if store.write_all(&request).await.is_err() {
            return;
        }
        let Some(mut answer) = message(&mut store, has_body).await else {
            return;
        };
        swap(&mut answer);
        if client.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// The next message with its body.
pub(crate) async fn message(stream: &mut TcpStream, has_body: bool) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    while !message.ends_with(b"\r\n\r\n") {
        message.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&message).to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; if has_body { length } else { 0 }];
    stream.read_exact(&mut body).await.ok()?;
    message.extend(body);
    Some(message)
}

/// The sha256 in the form that headers and answers have.
fn checksum(object: ObjectRef) -> Vec<u8> {
    BASE64.encode(object.digest.as_bytes()).into_bytes()
}

#[tokio::test]
async fn fg_09_bytes_altered_on_a_plaintext_way_are_refused_on_every_way() {
    let store = TestStore::plain().await;
    let (truth, lie) = (noise(1000, 31), noise(1000, 32));
    let (object, other) = (ObjectRef::of(&truth), ObjectRef::of(&lie));
    let key = key_of(object);
    let bytes = (truth.to_vec(), lie.to_vec());
    // An attacker who alters the bytes can adjust the checksum beside them.
    let ways = [
        vec![bytes.clone()],
        vec![bytes, (checksum(object), checksum(other))],
    ];

    // Upload: the store compares, and the signature covers the value that it compares with.
    for (swaps, code) in ways
        .iter()
        .zip([Code::ObjectMismatch, Code::ObjectForbidden])
    {
        let forger = Forger::start(store.address, swaps.clone()).await;
        let grant = store
            .signer_at(forger.address)
            .put(&key, object.bytes, now());
        let refused = store
            .transfer()
            .put(&grant, truth.clone(), &nobody(), soon())
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code(), forger.swapped()),
            (code, swaps.len()),
            "{refused}"
        );
        assert_eq!(
            (store.uploads(), store.unfinished()),
            (Vec::new(), Vec::new())
        );
    }
    let forger = Forger::start(store.address, ways[0].clone()).await;
    let refused = buckets(&store.endpoint_at(forger.address), &store.keys)
        .put_blob(truth.clone())
        .await;
    assert!(
        matches!(refused, Err(ObjectError::Mismatch { .. })) && forger.swapped() > 0,
        "{refused:?}"
    );
    assert_eq!(store.buckets().exists(object.digest).await.unwrap(), None);

    // The same line without an attacker.
    let faithful = Forger::start(store.address, Vec::new()).await;
    let grant = store
        .signer_at(faithful.address)
        .put(&key, object.bytes, now());
    assert_eq!(
        store
            .transfer()
            .put(&grant, truth.clone(), &nobody(), soon())
            .await
            .unwrap(),
        Stored::Now
    );
    store.buckets().promote(&key, object).await.unwrap();
    let grant = store.signer_at(faithful.address).get(object.digest, now());
    assert_eq!(
        store
            .transfer()
            .get(&grant, object.bytes, &nobody(), soon())
            .await
            .unwrap(),
        truth
    );

    // Download: by workers and by the coordinator.
    for swaps in ways {
        let forger = Forger::start(store.address, swaps).await;
        let grant = store.signer_at(forger.address).get(object.digest, now());
        let read = store
            .transfer()
            .get(&grant, object.bytes, &nobody(), soon())
            .await;
        assert!(
            matches!(read, Err(ObjectError::Mismatch { .. })),
            "{read:?}"
        );
        let coordinator = buckets(&store.endpoint_at(forger.address), &store.keys);
        let screened = coordinator.get_incoming(&key, object).await;
        assert!(
            matches!(screened, Err(ObjectError::Mismatch { .. })),
            "{screened:?}"
        );
        let merged = coordinator.get(object.digest).await;
        assert!(
            matches!(merged, Err(ObjectError::Mismatch { .. })),
            "{merged:?}"
        );
        assert!(forger.swapped() >= 3, "each answer was altered");
    }
}
