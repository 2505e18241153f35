//! Where downloaded bytes go while they are hashed: memory, or a temporary file that becomes the real one.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use schemas::{Digest, Hasher};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::ObjectError;

/// Pieces on their way to the writing thread: with frames of 16 KiB about 1 MiB.
const PIECES_MAX: usize = 64;
/// Bytes gathered before a write.
const WRITE_BYTES: usize = 1 << 20;

pub(crate) struct Sink {
    digest: Digest,
    bytes_max: u64,
    /// What the first answer announced.
    total: Option<u64>,
    length: u64,
    place: Place,
}

enum Place {
    Memory { buffer: Vec<u8>, hasher: Hasher },
    File { path: PathBuf, pieces: mpsc::Sender<Bytes>, writer: JoinHandle<std::io::Result<(NamedTempFile, Hasher)>> },
}

impl Sink {
    pub(crate) fn memory(digest: Digest, bytes_max: schemas::Bytes) -> Self {
        Self::new(digest, bytes_max, Place::Memory { buffer: Vec::new(), hasher: Hasher::default() })
    }

    pub(crate) fn file(digest: Digest, bytes_max: schemas::Bytes, path: &Path) -> Result<Self, ObjectError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let failed = |source| ObjectError::File { path: path.to_owned(), source };
        let file = tempfile::Builder::new().prefix(".part-").tempfile_in(folder).map_err(failed)?;
        let (pieces, queue) = mpsc::channel(PIECES_MAX);
        let writer = tokio::task::spawn_blocking(move || write_all(file, queue));
        Ok(Self::new(digest, bytes_max, Place::File { path: path.to_owned(), pieces, writer }))
    }

    const fn new(digest: Digest, bytes_max: schemas::Bytes, place: Place) -> Self {
        Self { digest, bytes_max: bytes_max.get(), total: None, length: 0, place }
    }

    /// Bytes taken so far.
    pub(crate) const fn len(&self) -> u64 {
        self.length
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.total == Some(self.length)
    }

    /// The object's length as an answer states it; it must be acceptable and may not change.
    pub(crate) fn expect(&mut self, total: u64) -> Result<(), ObjectError> {
        if total > self.bytes_max {
            return Err(ObjectError::TooLarge { digest: self.digest, bytes: total, bytes_max: self.bytes_max });
        }
        if let Some(before) = self.total.filter(|before| *before != total) {
            return Err(self.mismatch(format!("its length was {before} and is now {total}")));
        }
        self.total = Some(total);
        if let Place::Memory { buffer, .. } = &mut self.place {
            let missing = usize::try_from(total - self.length).unwrap_or(usize::MAX);
            buffer.reserve_exact(missing);
        }
        Ok(())
    }

    pub(crate) async fn take(&mut self, piece: Bytes) -> Result<(), ObjectError> {
        self.length += piece.len() as u64;
        if self.total.is_none_or(|total| self.length > total) {
            return Err(self.mismatch("more bytes than announced".to_owned()));
        }
        match &mut self.place {
            Place::Memory { buffer, hasher } => {
                hasher.update(&piece);
                buffer.extend_from_slice(&piece);
                Ok(())
            }
            Place::File { path, pieces, writer } => {
                if pieces.send(piece).await.is_ok() {
                    return Ok(());
                }
                let source = match writer.await {
                    Ok(Err(source)) => source,
                    Ok(Ok(_)) | Err(_) => std::io::Error::other("the writing thread ended"),
                };
                Err(ObjectError::File { path: path.clone(), source })
            }
        }
    }

    /// The bytes, if they are the right ones.
    pub(crate) fn into_bytes(self) -> Result<Bytes, ObjectError> {
        match self.place {
            Place::Memory { buffer, hasher } => compare(self.digest, hasher).map(|()| buffer.into()),
            Place::File { .. } => unreachable!("a file sink is finished by into_file"),
        }
    }

    /// Gives the file its name, if the bytes are the right ones.
    pub(crate) async fn into_file(self) -> Result<schemas::Bytes, ObjectError> {
        let Place::File { path, pieces, writer } = self.place else {
            unreachable!("a memory sink is finished by into_bytes")
        };
        drop(pieces);
        let written = writer.await.map_err(std::io::Error::other).and_then(|result| result);
        let (file, hasher) = written.map_err(|source| ObjectError::File { path: path.clone(), source })?;
        compare(self.digest, hasher)?;
        file.persist(&path).map_err(|error| ObjectError::File { path, source: error.error })?;
        Ok(schemas::Bytes(self.length))
    }

    const fn mismatch(&self, reason: String) -> ObjectError {
        ObjectError::Mismatch { digest: self.digest, reason }
    }
}

fn compare(digest: Digest, hasher: Hasher) -> Result<(), ObjectError> {
    let got = hasher.finish();
    if got == digest { Ok(()) } else { Err(ObjectError::Mismatch { digest, reason: format!("they hash to {got}") }) }
}

fn write_all(mut file: NamedTempFile, mut pieces: mpsc::Receiver<Bytes>) -> std::io::Result<(NamedTempFile, Hasher)> {
    let mut hasher = Hasher::default();
    let mut gathered = Vec::with_capacity(WRITE_BYTES);
    while let Some(piece) = pieces.blocking_recv() {
        hasher.update(&piece);
        if gathered.len() + piece.len() > WRITE_BYTES {
            file.write_all(&gathered)?;
            gathered.clear();
        }
        gathered.extend_from_slice(&piece);
    }
    file.write_all(&gathered)?;
    Ok((file, hasher))
}
