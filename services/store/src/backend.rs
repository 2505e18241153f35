//! The S3 operations that this store has, over its folder.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::Stream;
use objects::BucketName;
use s3s::dto::{
    ChecksumMode, CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource,
    DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject,
    ETag, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput,
    HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, Object, PutObjectInput,
    PutObjectOutput, Range, StreamingBlob,
};
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use schemas::Digest;
use schemas::security::STORE_REFUSALS;
use tlog::layout::Lasting;
use tokio::task::JoinHandle;

use crate::budget::{Budgets, Charge, CountedUrl};
use crate::listing;
use crate::log_rules;
use crate::place::{Place, parse_bucket};
use crate::refused::Refusals;
use crate::root::{Claim, Publish, Root};
use crate::upload::{self, Upload, storage_error};

/// Bytes of one read, which costs one switch to the blocking threads and one allocation.
const READ_BYTES: u64 = 1 << 20;
/// Most keys on a page, as in S3.
const KEYS_MAX: usize = 1000;

/// The backend under `s3s`.
pub(crate) struct Backend {
    pub(crate) root: Arc<Root>,
    /// What each presigned URL may still serve.
    pub(crate) budgets: Budgets,
    /// What the store refused, for the audit service.
    pub(crate) refusals: Refusals,
}

/// An open object, with facts that were read from this very file: another may have its name by now.
struct Found {
    file: File,
    bytes: u64,
    modified: SystemTime,
    tag: ETag,
}

/// An open object, with the first piece of the requested bytes.
struct Opened {
    file: File,
    bytes: u64,
    modified: SystemTime,
    tag: ETag,
    range: std::ops::Range<u64>,
    first: Bytes,
}

#[async_trait]
impl S3 for Backend {
    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        parse_bucket(&request.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let place = Place::parse(&input.bucket, &input.key)?;
        let bytes = input
            .content_length
            .and_then(|length| u64::try_from(length).ok());
        let bytes = bytes.ok_or_else(|| s3_error!(MissingContentLength))?;
        let once = match &input.if_none_match {
            None => false,
            Some(condition) if condition.is_any() => true,
            Some(_) => return Err(s3_error!(NotImplemented, "if-none-match takes * only")),
        };
        let how = log_rules::publish(&place, once, input.if_match.as_ref())?;
        let is_note = matches!(place.lasting(), Some(Lasting::Newest | Lasting::Cosigned));
        if is_note && bytes > log_rules::CHECKPOINT_BYTES_MAX {
            return Err(s3_error!(EntityTooLarge, "no head is that long"));
        }
        self.check_suspect(&place).await?;
        let claim = self.claim(&place, how)?;
        let room = self
            .root
            .reserve(bytes)
            .map_err(storage_error)?
            .ok_or_else(upload::full)?;
        let body = input
            .body
            .unwrap_or_else(|| StreamingBlob::from(s3s::Body::empty()));
        let upload = Upload {
            place,
            bytes,
            checksum: input.checksum_sha256,
            how,
            room,
            claim,
        };
        let digest = upload::receive(self.root.clone(), body, upload).await?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(ETag::Strong(digest.hex())),
            checksum_sha256: Some(BASE64.encode(digest.as_bytes())),
            ..Default::default()
        }))
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let url = request.extensions.get::<CountedUrl>().copied();
        let input = request.input;
        if input.bucket == BucketName::Log.as_str() && input.key == STORE_REFUSALS {
            return Ok(S3Response::new(self.refused()));
        }
        let place = Place::parse(&input.bucket, &input.key)?;
        self.check_suspect(&place).await?;
        let path = place.path(self.root.path());
        let ranged = input.range.is_some();
        let checksum = recorded(&place, input.checksum_mode.as_ref()).filter(|_| !ranged);
        let opened = blocking(move || open(&place, &path, input.range.as_ref())).await?;
        let length = opened.range.end - opened.range.start;
        let charge = url.map(|url| self.budgets.charge(url, opened.bytes, length));
        let charge = charge.transpose()?;
        let content_range = ranged.then(|| {
            format!(
                "bytes {}-{}/{}",
                opened.range.start,
                opened.range.end - 1,
                opened.bytes
            )
        });
        let (modified, tag) = (opened.modified, opened.tag.clone());
        Ok(S3Response::new(GetObjectOutput {
            body: Some(StreamingBlob::wrap(stream(opened, charge))),
            content_length: Some(as_length(length)),
            content_range,
            accept_ranges: Some("bytes".to_owned()),
            content_type: Some("application/octet-stream".to_owned()),
            e_tag: Some(tag),
            checksum_sha256: checksum,
            last_modified: Some(modified.into()),
            ..Default::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        let place = Place::parse(&input.bucket, &input.key)?;
        self.check_suspect(&place).await?;
        let path = place.path(self.root.path());
        let checksum = recorded(&place, input.checksum_mode.as_ref());
        let found = blocking(move || find(&place, &path)).await?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(as_length(found.bytes)),
            accept_ranges: Some("bytes".to_owned()),
            content_type: Some("application/octet-stream".to_owned()),
            e_tag: Some(found.tag),
            checksum_sha256: checksum,
            last_modified: Some(found.modified.into()),
            ..Default::default()
        }))
    }

    async fn copy_object(
        &self,
        request: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = request.input;
        let CopySource::Bucket {
            bucket,
            key,
            version_id: None,
        } = &input.copy_source
        else {
            return Err(s3_error!(
                NotImplemented,
                "copies are from a bucket and a key"
            ));
        };
        let source = Place::parse(bucket, key)?;
        let target = Place::parse(&input.bucket, &input.key)?;
        if (source.bucket, target.bucket) != (BucketName::Incoming, BucketName::Blobs) {
            return Err(s3_error!(
                NotImplemented,
                "copies are from incoming to blobs"
            ));
        }
        let digest = source
            .digest
            .filter(|digest| target.digest == Some(*digest));
        let digest = digest.ok_or_else(|| {
            s3_error!(
                InvalidArgument,
                "a copy keeps the digest that its key names"
            )
        })?;
        let root = self.root.clone();
        let modified = blocking(move || {
            let (from, to) = (source.path(root.path()), target.path(root.path()));
            match root.link(&from, &to) {
                // The name is the digest, so the file that is there has the same bytes.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(no_key(error)),
                Ok(()) => {}
            }
            fs::metadata(&to)
                .and_then(|metadata| metadata.modified())
                .map_err(no_key)
        })
        .await?;
        let result = CopyObjectResult {
            e_tag: Some(ETag::Strong(digest.hex())),
            checksum_sha256: Some(BASE64.encode(digest.as_bytes())),
            last_modified: Some(modified.into()),
            ..Default::default()
        };
        Ok(S3Response::new(CopyObjectOutput {
            copy_object_result: Some(result),
            ..Default::default()
        }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let place = Place::parse(&request.input.bucket, &request.input.key)?;
        log_rules::delete(&place, self.root.path())?;
        let root = self.root.clone();
        blocking(move || remove(&root, &place.path(root.path()))).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let input = request.input;
        if input.delete.objects.len() > KEYS_MAX {
            return Err(s3_error!(
                MalformedXML,
                "at most {KEYS_MAX} keys are deleted at a time"
            ));
        }
        let places = input
            .delete
            .objects
            .into_iter()
            .map(|object| Place::parse(&input.bucket, &object.key));
        let places = places.collect::<S3Result<Vec<_>>>()?;
        let root = self.root.clone();
        let may = |place| log_rules::delete(place, root.path());
        places.iter().try_for_each(may)?;
        let deleted = blocking(move || {
            let delete = |place: Place| {
                remove(&root, &place.path(root.path()))?;
                Ok(DeletedObject {
                    key: Some(place.key),
                    ..Default::default()
                })
            };
            places.into_iter().map(delete).collect::<S3Result<Vec<_>>>()
        })
        .await?;
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: Some(deleted),
            ..Default::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let bucket = parse_bucket(&input.bucket)?;
        if input.delimiter.is_some() {
            return Err(s3_error!(NotImplemented, "listings have no delimiter here"));
        }
        let asked = input
            .max_keys
            .map_or(KEYS_MAX, |keys| usize::try_from(keys).unwrap_or(0));
        let keys_max = asked.min(KEYS_MAX);
        let prefix = input.prefix.clone().unwrap_or_default();
        // A page's token is its last key.
        let after = input
            .continuation_token
            .clone()
            .or(input.start_after.clone());
        let folder = self.root.bucket(bucket);
        let (found, more) = blocking(move || {
            let page = listing::Page {
                prefix: &prefix,
                after: after.as_deref(),
                keys_max,
            };
            listing::list(bucket, &folder, &page).map_err(storage_error)
        })
        .await?;
        let next = found.last().filter(|_| more).map(|last| last.key.clone());
        let contents: Vec<Object> = found
            .into_iter()
            .filter_map(|found| listed(bucket.as_str(), found))
            .collect();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            max_keys: Some(i32::try_from(keys_max).unwrap_or(i32::MAX)),
            key_count: Some(i32::try_from(contents.len()).unwrap_or(i32::MAX)),
            continuation_token: input.continuation_token,
            // A page without a key has nothing to go on from.
            is_truncated: Some(next.is_some()),
            next_continuation_token: next,
            contents: Some(contents),
            ..Default::default()
        }))
    }
}

impl Backend {
    /// The list of what the store refused.
    fn refused(&self) -> GetObjectOutput {
        let list = self.refusals.listed();
        GetObjectOutput {
            content_length: i64::try_from(list.len()).ok(),
            body: Some(StreamingBlob::from(s3s::Body::from(list))),
            ..Default::default()
        }
    }

    /// Has an upload checked that a power failure may have torn: nobody is answered for one that is
    /// not whole, and it is not in the way of another try.
    async fn check_suspect(&self, place: &Place) -> S3Result<()> {
        if !self.root.suspects().are_left() {
            return Ok(());
        }
        let (root, path) = (self.root.clone(), place.path(self.root.path()));
        blocking(move || root.suspects().check(&path).map_err(storage_error)).await
    }

    /// Claims the name for one upload, if it may be given only once. Fails with 412 if the name is
    /// taken, and with 409 while another upload of it is in progress; clients repeat after a 409,
    /// since the other may break off.
    fn claim(&self, place: &Place, how: Publish) -> Result<Option<Claim>, S3Error> {
        if how != Publish::Once {
            return Ok(None);
        }
        let name = place.path(self.root.path());
        let claim = self.root.claim(name.clone());
        if name.exists() {
            return Err(s3_error!(PreconditionFailed, "the object exists"));
        }
        let in_progress = || {
            s3_error!(
                ConditionalRequestConflict,
                "another upload of the object is in progress"
            )
        };
        claim.map(Some).ok_or_else(in_progress)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> S3Result<T> + Send + 'static,
) -> S3Result<T> {
    let failed = |error| S3Error::with_source(S3ErrorCode::InternalError, Box::new(error));
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

fn find(place: &Place, path: &std::path::Path) -> S3Result<Found> {
    let file = File::open(path).map_err(no_key)?;
    let metadata = file.metadata().map_err(storage_error)?;
    if !metadata.is_file() {
        return Err(s3_error!(NoSuchKey));
    }
    let bytes = metadata.len();
    let modified = metadata.modified().map_err(storage_error)?;
    let tag = log_rules::e_tag(place, &file).map_err(storage_error)?;
    let tag = tag.unwrap_or_else(|| e_tag(place, bytes, modified));
    Ok(Found {
        file,
        bytes,
        modified,
        tag,
    })
}

fn open(place: &Place, path: &std::path::Path, range: Option<&Range>) -> S3Result<Opened> {
    let Found {
        mut file,
        bytes,
        modified,
        tag,
    } = find(place, path)?;
    let range = match range {
        Some(range) => range.check(bytes)?,
        None => 0..bytes,
    };
    file.seek(SeekFrom::Start(range.start))
        .map_err(storage_error)?;
    let (file, first) = read(file, range.end - range.start).map_err(storage_error)?;
    Ok(Opened {
        file,
        bytes,
        modified,
        tag,
        range,
        first,
    })
}

/// Reads the next piece of a file, at most `left` bytes. Returns the file too, so that it can move
/// between threads.
fn read(file: File, left: u64) -> io::Result<(File, Bytes)> {
    let wanted = left.min(READ_BYTES);
    let mut piece = Vec::with_capacity(usize::try_from(wanted).expect("a piece fits into memory"));
    (&file).take(wanted).read_to_end(&mut piece)?;
    if (piece.len() as u64) < wanted {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "an object became shorter",
        ));
    }
    Ok((file, piece.into()))
}

/// Streams the requested bytes; while one piece is sent, the next one is read.
fn stream(
    opened: Opened,
    charge: Option<Charge>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + Sync {
    struct Rest {
        ready: Option<Bytes>,
        /// Bytes after the piece that is ready.
        left: u64,
        reading: Option<JoinHandle<io::Result<(File, Bytes)>>>,
        charge: Option<Charge>,
    }
    impl Rest {
        fn hand_over(&mut self, piece: &Bytes) {
            let charge = self.charge.iter_mut();
            charge.for_each(|charge| charge.sent(piece.len() as u64));
        }
    }
    let ahead =
        |file, left| (left > 0).then(|| tokio::task::spawn_blocking(move || read(file, left)));
    let left = opened.range.end - opened.range.start - opened.first.len() as u64;
    let start = Rest {
        ready: Some(opened.first),
        left,
        reading: ahead(opened.file, left),
        charge,
    };
    futures::stream::try_unfold(start, move |mut rest| async move {
        if let Some(piece) = rest.ready.take() {
            rest.hand_over(&piece);
            return Ok((!piece.is_empty()).then_some((piece, rest)));
        }
        let Some(reading) = rest.reading.take() else {
            return Ok(None);
        };
        let (file, piece) = reading.await.map_err(io::Error::other)??;
        rest.left -= piece.len() as u64;
        rest.hand_over(&piece);
        rest.reading = ahead(file, rest.left);
        Ok(Some((piece, rest)))
    })
}

/// Removes an object. A key without an object is no error, as in S3.
fn remove(root: &Root, path: &std::path::Path) -> Result<(), S3Error> {
    match root.remove(path) {
        Err(error) if is_no_object(&error) => Ok(()),
        result => result.map_err(storage_error),
    }
}

fn no_key(error: io::Error) -> S3Error {
    match is_no_object(&error) {
        true => s3_error!(NoSuchKey),
        false => storage_error(error),
    }
}

/// True if no object has the key: nothing has the name, a folder has it, or a file has the name of
/// a folder above it.
fn is_no_object(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory
    )
}

/// The digest, if the key names one; otherwise a value that changes with the file.
fn e_tag(place: &Place, bytes: u64, modified: SystemTime) -> ETag {
    let since = modified
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    ETag::Strong(place.digest.map_or_else(
        || format!("{:x}-{bytes:x}", since.as_nanos()),
        |digest| digest.hex(),
    ))
}

/// The checksum header, if the client asks for it. The digest was compared before the object got
/// its name.
fn recorded(place: &Place, mode: Option<&ChecksumMode>) -> Option<String> {
    let asked = mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED);
    place
        .digest
        .filter(|_| asked)
        .map(|digest: Digest| BASE64.encode(digest.as_bytes()))
}

/// An entry for a found file; none for a file without a valid key, which somebody put there by
/// hand.
fn listed(bucket: &str, found: listing::Found) -> Option<Object> {
    let place = Place::parse(bucket, &found.key).ok()?;
    Some(Object {
        e_tag: Some(e_tag(&place, found.bytes, found.modified)),
        key: Some(found.key),
        size: Some(as_length(found.bytes)),
        last_modified: Some(found.modified.into()),
        ..Default::default()
    })
}

fn as_length(bytes: u64) -> i64 {
    i64::try_from(bytes).expect("no file has more than 2^63 bytes")
}

#[cfg(test)]
mod tests;
