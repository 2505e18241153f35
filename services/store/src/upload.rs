//! The path of an upload: socket → bounded channel → one blocking thread that hashes and writes →
//! check → name.

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use s3s::dto::StreamingBlob;
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use schemas::{Digest, Hasher};
use tokio::sync::mpsc;

use crate::body::is_late;
use crate::landing::Ahead;
use crate::log_rules::GoesBack;
use crate::place::Place;
use crate::root::{Claim, Publish, Reservation, Root};

/// Frames (16 KiB under TLS) gathered before they go to the writing thread: fewer wake-ups, larger
/// writes.
const BATCH_BYTES: usize = 512 << 10;
/// Batches under way; together with [`BATCH_BYTES`] this limits the memory of one upload.
const BATCHES_MAX: usize = 4;

/// The requirements for a body, and its destination.
pub(crate) struct Upload {
    pub(crate) place: Place,
    pub(crate) bytes: u64,
    /// The sha256 that the client sent, base64.
    pub(crate) checksum: Option<String>,
    pub(crate) how: Publish,
    pub(crate) room: Reservation,
    /// The claim on its name, if that is given only once: a URL that is opened often gets one
    /// upload and one reservation.
    pub(crate) claim: Option<Claim>,
}

enum Piece {
    Frames(Vec<Bytes>),
    /// The body is complete. Without this the writing thread removes the file.
    End,
}

/// A body that has its name.
struct Stored {
    digest: Digest,
    /// The turn to wait for the disk, if it is an upload.
    ahead: Option<Ahead>,
}

/// Reasons why a complete body was not stored.
enum Failure {
    Io(io::Error),
    Refused(S3Error),
    Abandoned,
}

/// Stores a body. Nothing appears under the key unless length and sha256 agree, and nothing remains
/// if the client leaves.
pub(crate) async fn receive(
    root: Arc<Root>,
    mut body: StreamingBlob,
    upload: Upload,
) -> S3Result<Digest> {
    let (sender, pieces) = mpsc::channel(BATCHES_MAX);
    let writers = root.writers().clone();
    let written = root.clone();
    let writer = writers.spawn_blocking(move || write(&written, upload, pieces));
    let mut batch = Vec::new();
    let mut gathered = 0;
    while let Some(frame) = body.next().await {
        match frame {
            Ok(frame) => {
                gathered += frame.len();
                batch.push(frame);
            }
            Err(error) => {
                // The key is free for another try once this is answered.
                drop(sender);
                let _abandoned = writer.await;
                return Err(match is_late(&*error) {
                    true => s3_error!(RequestTimeout, "the body came too slowly"),
                    false => s3_error!(IncompleteBody, "the body broke off"),
                });
            }
        }
        if gathered >= BATCH_BYTES {
            gathered = 0;
            if sender
                .send(Piece::Frames(std::mem::take(&mut batch)))
                .await
                .is_err()
            {
                break;
            }
        }
    }
    // If the send fails, the writing thread has ended early; its result says why.
    if sender.send(Piece::Frames(batch)).await.is_ok() {
        let _ended = sender.send(Piece::End).await;
    }
    drop(sender);
    match writer.await {
        Ok(Ok(stored)) => {
            if let Some(upload) = stored.ahead {
                wait_ahead(&root, upload);
            }
            Ok(stored.digest)
        }
        Ok(Err(Failure::Refused(error))) => Err(error),
        Ok(Err(Failure::Io(error))) => Err(storage_error(error)),
        Ok(Err(Failure::Abandoned)) => Err(s3_error!(IncompleteBody)),
        Err(error) => Err(S3Error::with_source(
            S3ErrorCode::InternalError,
            Box::new(error),
        )),
    }
}

/// Waits for the disk beside the answer to an upload. A failure removes the upload, and its
/// promotion then finds none.
fn wait_ahead(root: &Arc<Root>, upload: Ahead) {
    let waiting = root.clone();
    root.writers().spawn_blocking(move || {
        if let Err(error) = waiting.land(&upload.name, &upload.file) {
            let name = upload.name.display();
            tracing::error!(%error, %name, "the disk has lost an upload");
        }
    });
}

/// The S3 error for a disk error: 507 if the disk is full.
pub(crate) fn storage_error(error: io::Error) -> S3Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => full(),
        _ => {
            tracing::error!(%error, "the store's disk failed");
            S3Error::with_source(S3ErrorCode::InternalError, Box::new(error))
        }
    }
}

/// The error for a full store: 507, which clients repeat a few times before they report it.
pub(crate) fn full() -> S3Error {
    let mut error = S3Error::with_message(
        S3ErrorCode::Custom("InsufficientStorage".into()),
        "the store has no room",
    );
    error.set_status_code(http::StatusCode::INSUFFICIENT_STORAGE);
    error
}

fn write(
    root: &Root,
    mut upload: Upload,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<Stored, Failure> {
    let mut file = root.temporary().map_err(Failure::Io)?;
    let mut hasher = Hasher::default();
    let mut length = 0_u64;
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Frames(frames)) => {
                let arrived = frames.iter().map(|frame| frame.len() as u64).sum();
                length += arrived;
                frames.iter().for_each(|frame| hasher.update(frame));
                if length > upload.bytes {
                    return Err(Failure::Refused(s3_error!(
                        IncompleteBody,
                        "more bytes than announced"
                    )));
                }
                write_frames(file.as_file_mut(), &frames).map_err(Failure::Io)?;
                upload.room.landed(arrived);
            }
            Some(Piece::End) => break,
            None => return Err(Failure::Abandoned),
        }
    }
    let digest = hasher.finish();
    check(&upload, length, digest).map_err(Failure::Refused)?;
    let name = upload.place.path(root.path());
    let ahead = match root.publish(file, &name, upload.how) {
        Ok(ahead) => ahead,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Failure::Refused(s3_error!(
                PreconditionFailed,
                "the object exists"
            )));
        }
        Err(error) if error.get_ref().is_some_and(|inner| inner.is::<GoesBack>()) => {
            return Err(Failure::Refused(s3_error!(AccessDenied, "{GoesBack}")));
        }
        Err(error) => return Err(Failure::Io(error)),
    };
    // From now on a request for the name finds the object.
    drop(upload.claim);
    Ok(Stored { digest, ahead })
}

fn check(upload: &Upload, length: u64, digest: Digest) -> Result<(), S3Error> {
    use base64::Engine as _;
    if length != upload.bytes {
        return Err(s3_error!(
            IncompleteBody,
            "{length} bytes instead of {}",
            upload.bytes
        ));
    }
    let sent = base64::engine::general_purpose::STANDARD.encode(digest.as_bytes());
    if upload
        .checksum
        .as_ref()
        .is_some_and(|announced| *announced != sent)
    {
        return Err(s3_error!(BadDigest, "the sha256 of the body is another"));
    }
    if upload
        .place
        .digest
        .is_some_and(|promised| promised != digest)
    {
        return Err(s3_error!(
            BadDigest,
            "the sha256 of the body is not that of the key"
        ));
    }
    Ok(())
}

/// Writes all frames with as few calls as the kernel allows, without copying them together.
fn write_frames(file: &mut impl io::Write, frames: &[Bytes]) -> io::Result<()> {
    /// The kernel accepts 1024 at most.
    const SLICES_MAX: usize = 512;
    for group in frames.chunks(SLICES_MAX) {
        let mut slices: Vec<IoSlice<'_>> = group.iter().map(|frame| IoSlice::new(frame)).collect();
        let mut rest = &mut slices[..];
        // Skips empty frames at the front, so that an empty group writes nothing.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match file.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use objects::BlobKey;
    use tempfile::TempDir;

    use super::*;
    use crate::config::Durability;

    const BODY: &[u8] = b"what is sent";

    struct Scene {
        folder: TempDir,
        root: Arc<Root>,
    }

    impl Scene {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let root = Root::open(folder.path(), Durability::Kernel, 0).unwrap();
            Self {
                folder,
                root: Arc::new(root),
            }
        }

        /// Sends [`BODY`] in two frames, after `change`. Returns the code of the refusal, if any.
        async fn send(&self, change: impl FnOnce(&mut Upload)) -> Result<Digest, String> {
            let bytes = BODY.len() as u64;
            let mut upload = Upload {
                place: Place::parse("blobs", &BlobKey(Digest::of(BODY)).to_string()).unwrap(),
                bytes,
                checksum: None,
                how: Publish::Once,
                room: self.root.reserve(bytes).unwrap().unwrap(),
                claim: None,
            };
            change(&mut upload);
            let frames = BODY
                .chunks(5)
                .map(|frame| Ok::<_, io::Error>(Bytes::from_static(frame)));
            let body = StreamingBlob::wrap(futures::stream::iter(frames));
            receive(self.root.clone(), body, upload)
                .await
                .map_err(|error| error.code().as_str().to_owned())
        }

        fn files(&self, folder: &str) -> usize {
            std::fs::read_dir(self.folder.path().join(folder))
                .unwrap()
                .count()
        }
    }

    #[tokio::test]
    async fn a_body_that_is_not_what_was_announced_leaves_nothing() {
        let scene = Scene::new();
        let length = BODY.len() as u64;
        assert_eq!(
            scene
                .send(|upload| upload.bytes = length - 1)
                .await
                .unwrap_err(),
            "IncompleteBody"
        );
        assert_eq!(
            scene
                .send(|upload| upload.bytes = length + 1)
                .await
                .unwrap_err(),
            "IncompleteBody"
        );
        let other = || Some("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned());
        assert_eq!(
            scene
                .send(|upload| upload.checksum = other())
                .await
                .unwrap_err(),
            "BadDigest"
        );
        let digest = Some(Digest::of(b"something else"));
        assert_eq!(
            scene
                .send(|upload| upload.place.digest = digest)
                .await
                .unwrap_err(),
            "BadDigest"
        );
        assert_eq!((scene.files("tmp"), scene.files("blobs")), (0, 0));
        assert_eq!(scene.send(|_| {}).await, Ok(Digest::of(BODY)));
    }

    /// A client that announces few bytes and sends many is stopped before it fills the disk.
    #[tokio::test]
    async fn a_body_that_is_longer_than_announced_is_not_read_to_its_end() {
        const FRAMES: usize = 64;
        let scene = Scene::new();
        let taken = Arc::new(AtomicUsize::new(0));
        let count = taken.clone();
        let frame = Bytes::from(vec![0; 1 << 20]);
        let frames = (0..FRAMES).map(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, io::Error>(frame.clone())
        });
        let upload = Upload {
            place: Place::parse("blobs", "announced/little").unwrap(),
            bytes: 10,
            checksum: None,
            how: Publish::Once,
            room: scene.root.reserve(10).unwrap().unwrap(),
            claim: None,
        };
        let body = StreamingBlob::wrap(futures::stream::iter(frames));
        let refused = receive(scene.root.clone(), body, upload).await.unwrap_err();
        assert_eq!(refused.code().as_str(), "IncompleteBody");
        let taken = taken.load(Ordering::Relaxed);
        assert!(taken < FRAMES / 2, "{taken} frames were read");
        assert_eq!(scene.files("tmp"), 0);
    }

    #[tokio::test]
    async fn a_disk_that_fails_is_no_fault_of_the_request() {
        let scene = Scene::new();
        let place = Place::parse("blobs", &BlobKey(Digest::of(BODY)).to_string()).unwrap();
        // Something else has the name: a folder that no file replaces.
        std::fs::create_dir_all(place.path(scene.folder.path()).join("x")).unwrap();
        let failed = scene.send(|upload| upload.how = Publish::Replace).await;
        assert_eq!(failed.unwrap_err(), "InternalError");
        assert_eq!(scene.files("tmp"), 0);
        for (kind, status) in [
            (io::ErrorKind::StorageFull, Some(507)),
            (io::ErrorKind::QuotaExceeded, Some(507)),
            (io::ErrorKind::PermissionDenied, Some(500)),
        ] {
            let answered = storage_error(kind.into());
            let status_code = answered.status_code().map(|status| status.as_u16());
            assert_eq!(status_code, status, "{kind}");
        }
    }

    /// Takes three bytes a call, after one call that a signal interrupted, and has no room at last.
    struct Stubborn {
        taken: Vec<u8>,
        calls: usize,
        room: usize,
    }

    impl io::Write for Stubborn {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            if self.calls == 2 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let most = bytes.len().min(3).min(self.room - self.taken.len());
            self.taken.extend(&bytes[..most]);
            Ok(most)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_frames_are_written_however_the_kernel_takes_them() {
        let frames = [&b"what"[..], b"", b" is sent"].map(Bytes::from_static);
        let mut file = Stubborn {
            taken: Vec::new(),
            calls: 0,
            room: BODY.len(),
        };
        write_frames(&mut file, &frames).unwrap();
        assert_eq!(file.taken, BODY);
        let full = write_frames(&mut file, &frames).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WriteZero);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), b"").unwrap();
        let mut unwritable = std::fs::File::open(folder.path().join("a")).unwrap();
        assert!(write_frames(&mut unwritable, &frames).is_err());
    }

    /// The same holds however the place was taken meanwhile.
    #[tokio::test]
    async fn a_place_that_was_taken_meanwhile_keeps_what_it_has() {
        let scene = Scene::new();
        scene.send(|_| {}).await.unwrap();
        assert_eq!(scene.send(|_| {}).await.unwrap_err(), "PreconditionFailed");
        assert_eq!(
            scene.send(|upload| upload.how = Publish::Replace).await,
            Ok(Digest::of(BODY))
        );
        assert_eq!(scene.files("tmp"), 0);
    }
}
