//! Transfers over slow lines, and over one that goes dead. Limits are scaled down, so that seconds
//! suffice.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use diloco_store::StoreLimits;
use futures::future::join_all;
use harness::{Line, Quality};
use objects::{ObjectError, Regrant, Signer, Stored, Transfer, TransferLimits};
use schemas::blob::Grant;
use schemas::{Code, Digest, ObjectRef, Refusal};
use tokio::sync::Barrier;
use tokio::time::{Instant, timeout};

use crate::support::{Grants, TestStore, key_of, noise, now, once, quick, soon};

/// Longest silence here.
const IDLE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_share_a_slow_line_all_end_and_nothing_is_sent_twice() {
    let store = TestStore::start().await;
    // Eight at once have 25 KB/s each, and take longer than twice the longest silence.
    let line = Line::start(
        store.address,
        Quality::Slow {
            up: 200_000,
            down: 0,
        },
    );
    let signer = store.signer_at(line.address());
    let transfer = Transfer::new(
        &store.trust(),
        TransferLimits {
            idle: IDLE,
            ..quick()
        },
    )
    .unwrap();
    let bodies: Vec<_> = (0..8).map(|seed| noise(200_000, seed)).collect();
    let sum: u64 = bodies.iter().map(|body| body.len() as u64).sum();
    let begun = Instant::now();
    let uploads = bodies.iter().map(|body| async {
        let object = ObjectRef::of(body);
        let grant = signer.put(&key_of(object), object.bytes, now());
        let again = Grants::new(|_| Some(signer.put(&key_of(object), object.bytes, now())));
        let stored = transfer
            .put(
                &grant,
                body.clone(),
                &again,
                begun + Duration::from_secs(60),
            )
            .await;
        (stored.unwrap(), again.asked.into_inner())
    });
    let stored = join_all(uploads).await;
    assert!(
        stored.iter().all(|one| *one == (Stored::Now, 0)),
        "{stored:?}"
    );
    assert!(begun.elapsed() > 2 * IDLE, "the line was slow");
    assert!(
        line.bytes_up() < sum + sum / 10,
        "{} bytes for {sum}",
        line.bytes_up()
    );
    let counted = transfer
        .moved()
        .up
        .load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(counted, sum, "and all of it was seen to move");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_seen_to_move_before_an_upload_is_over() {
    let store = TestStore::start().await;
    let line = Line::start(
        store.address,
        Quality::Slow {
            up: 200_000,
            down: 0,
        },
    );
    let transfer = Transfer::new(&store.trust(), quick()).unwrap();
    let bytes = noise(4 << 20, 70);
    let object = ObjectRef::of(&bytes);
    let grant = store
        .signer_at(line.address())
        .put(&key_of(object), object.bytes, now());
    let nobody = crate::support::nobody();
    let upload = transfer.put(&grant, bytes, &nobody, soon());
    // Long before its twenty seconds are over.
    assert!(timeout(Duration::from_secs(4), upload).await.is_err());
    let moved = transfer
        .moved()
        .up
        .load(std::sync::atomic::Ordering::SeqCst);
    assert!((100_000..1_200_000).contains(&moved), "{moved}");
}

/// The deadline limits new attempts; an attempt that still moves bytes is finished.
#[tokio::test(flavor = "multi_thread")]
async fn what_moves_goes_on_beyond_its_deadline() {
    let store = TestStore::start().await;
    let line = Line::start(
        store.address,
        Quality::Slow {
            up: 200_000,
            down: 200_000,
        },
    );
    let (signer, transfer) = (
        store.signer_at(line.address()),
        Transfer::new(&store.trust(), once()).unwrap(),
    );
    let object = store.buckets().put_blob(noise(400_000, 75)).await.unwrap();
    let (begun, short) = (Instant::now(), Duration::from_millis(700));
    let grant = signer.get(object.digest, now());
    let read = transfer
        .get(
            &grant,
            object.bytes,
            &crate::support::nobody(),
            begun + short,
        )
        .await;
    assert!(read.is_ok_and(|bytes| bytes.len() == 400_000));
    assert!(begun.elapsed() > short, "the line was slow");
    let bytes = noise(400_000, 76);
    let object = ObjectRef::of(&bytes);
    let (begun, grant) = (
        Instant::now(),
        signer.put(&key_of(object), object.bytes, now()),
    );
    let stored = transfer
        .put(&grant, bytes, &crate::support::nobody(), begun + short)
        .await
        .unwrap();
    assert_eq!(stored, Stored::Now);
    assert!(begun.elapsed() > short, "the line was slow");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_goes_dead_is_noticed_within_the_longest_silence() {
    let store = TestStore::start().await;
    let line = Line::start(
        store.address,
        Quality::Slow {
            up: 200_000,
            down: 100_000,
        },
    );
    let signer = store.signer_at(line.address());
    let transfer = Transfer::new(
        &store.trust(),
        TransferLimits {
            idle: IDLE,
            ..once()
        },
    )
    .unwrap();
    let object = store.buckets().put_blob(noise(2 << 20, 71)).await.unwrap();
    let down = async {
        let grant = signer.get(object.digest, now());
        transfer
            .get(&grant, object.bytes, &crate::support::nobody(), soon())
            .await
            .map(|_| Stored::Now)
    };
    let bytes = noise(2 << 20, 72);
    let up = async {
        let object = ObjectRef::of(&bytes);
        let grant = signer.put(&key_of(object), object.bytes, now());
        transfer
            .put(&grant, bytes.clone(), &crate::support::nobody(), soon())
            .await
    };
    let (mut down, mut up) = (Box::pin(down), Box::pin(up));
    // Both are under way, and far from complete.
    let going = Duration::from_secs(2);
    assert!(
        timeout(going, async {
            tokio::select! { _ = &mut down => {}, _ = &mut up => {} }
        })
        .await
        .is_err()
    );
    line.set(Quality::Dead);
    let died = Instant::now();
    let (down, up) = tokio::join!(down, up);
    let noticed = died.elapsed();
    assert!(noticed >= IDLE / 2 && noticed < 3 * IDLE, "{noticed:?}");
    assert!(
        matches!(down, Err(ObjectError::Unreachable { .. })),
        "{down:?}"
    );
    assert!(matches!(up, Err(ObjectError::Uncertain { .. })), "{up:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_waits_for_slow_peers_in_both_directions() {
    // A body arrives in whole TLS records of 16 KiB each: two seconds of this line.
    let idle = IDLE;
    let store = TestStore::with(StoreLimits {
        idle,
        free_bytes_min: schemas::Bytes(0),
        ..StoreLimits::default()
    })
    .await;
    // A little more than each of eight transfers has on a line of 40 KB/s, and slow enough to be
    // behind for several windows.
    let line = Line::start(
        store.address,
        Quality::Slow {
            up: 8_000,
            down: 40_000,
        },
    );
    let (signer, transfer) = (
        store.signer_at(line.address()),
        Transfer::new(&store.trust(), once()).unwrap(),
    );
    let object = store.buckets().put_blob(noise(400_000, 73)).await.unwrap();
    let read = transfer
        .get(
            &signer.get(object.digest, now()),
            object.bytes,
            &crate::support::nobody(),
            soon(),
        )
        .await;
    assert!(read.is_ok_and(|bytes| bytes.len() == 400_000));
    let bytes = noise(96_000, 74);
    let object = ObjectRef::of(&bytes);
    let grant = signer.put(&key_of(object), object.bytes, now());
    // Neither may try twice, so neither was cut off.
    let stored = transfer
        .put(&grant, bytes, &crate::support::nobody(), soon())
        .await
        .unwrap();
    assert_eq!(stored, Stored::Now);
}

/// A log in memory.
#[derive(Clone, Default)]
struct LogBuffer(Arc<Mutex<Vec<u8>>>);

impl LogBuffer {
    /// The lines that name `code`.
    fn lines(&self, code: Code) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines()
            .filter(|line| line.contains(&code.to_string()))
            .map(str::to_owned)
            .collect()
    }
}

impl io::Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Grants new URLs once all transfers have asked for one; from then on the line is good again.
struct Together<'a> {
    all: Barrier,
    line: &'a Line,
    signer: &'a Signer,
    bytes: u64,
}

#[async_trait]
impl Regrant for Together<'_> {
    async fn regrant(&self, digest: Digest) -> Result<Grant, Refusal> {
        self.all.wait().await;
        self.line.set(Quality::Good);
        let object = ObjectRef {
            digest,
            bytes: schemas::Bytes(self.bytes),
        };
        Ok(self.signer.put(&key_of(object), object.bytes, now()))
    }
}

/// Number of transfers that run in parallel at first.
const TOGETHER: usize = 4;

/// On one thread, so that the log of this test is its own.
#[tokio::test]
async fn uploads_that_stand_still_together_are_given_up_told_once_and_made_again() {
    let logged = LogBuffer::default();
    let writer = logged.clone();
    let log = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _log = tracing::subscriber::set_default(log);
    let store = TestStore::start().await;
    let line = Line::start(
        store.address,
        Quality::Slow {
            up: 200_000,
            down: 0,
        },
    );
    let signer = store.signer_at(line.address());
    let transfer = Transfer::new(
        &store.trust(),
        TransferLimits {
            idle: IDLE,
            ..quick()
        },
    )
    .unwrap();
    let bodies: Vec<_> = (80..)
        .take(TOGETHER)
        .map(|seed| noise(400_000, seed))
        .collect();
    let together = Together {
        all: Barrier::new(TOGETHER),
        line: &line,
        signer: &signer,
        bytes: bodies[0].len() as u64,
    };
    let uploads = bodies.iter().map(|body| async {
        let object = ObjectRef::of(body);
        let grant = signer.put(&key_of(object), object.bytes, now());
        transfer.put(&grant, body.clone(), &together, soon()).await
    });
    let mut uploads = Box::pin(join_all(uploads));
    line.until_up(200_000, &mut uploads).await;
    line.set(Quality::Dead);
    let stored = uploads.await;
    assert!(
        stored.iter().all(|one| matches!(one, Ok(Stored::Now))),
        "{stored:?}"
    );
    let told = logged.lines(Code::LineStalled);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("nothing moved for"), "{told:?}");
    assert_eq!(store.uploads().len(), TOGETHER);
}
