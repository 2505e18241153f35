//! Checks that a store enforces what this design depends on. Run it before you trust a store: the
//! rows are facts, the product's name is not. It writes a few small objects into both buckets and
//! removes them.

mod answer;
mod pairs;
mod report;
mod tried;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE32_NOPAD;
use http::HeaderValue;
use http::header::CONTENT_LENGTH;
use http_body_util::BodyExt as _;
use identity::{AccessKey, StoreKeys};
use schemas::{Code, Digest, Millis, PublicKey, UnixMillis};
use tokio::time::timeout;

use crate::buckets::{self, Buckets, local_now};
use crate::client::{self, Client, Response};
use crate::endpoint::Endpoint;
use crate::error::ObjectError;
use crate::key::{BlobKey, BucketName, IncomingKey};
use crate::limits::TransferLimits;
use crate::presign::{CHECKSUM, CONTENT_TYPE, Place, Request, StoreClock, checksum};

use answer::Answer;
pub use report::{Report, Row, Rule};
use tried::{Part, Tried, Unanswered};

/// Longest wait for any one request of a check.
const PATIENCE: Duration = Duration::from_secs(20);
/// Uploads that race for one key.
const RACERS: usize = 4;

/// Tries the store at `endpoint` by every rule.
///
/// # Errors
/// The store cannot be reached, has no time or refuses the admin key, so that nothing can be said
/// about it.
pub async fn check(endpoint: &Endpoint, keys: &StoreKeys) -> Result<Report, ObjectError> {
    let probe = Probe::new(endpoint, keys)?;
    let mut report = probe.briefly().await?;
    probe.tries(&[Part::Housekeeping], &mut report).await?;
    Ok(report)
}

/// Tries the store at `endpoint` by all rules but one: some fifty requests, however many objects
/// the store has. That objects are listed and deleted is left out, since the list of a large store
/// is long; a coordinator that starts needs neither.
///
/// # Errors
/// The store cannot be reached, has no time or refuses the admin key, so that nothing can be said
/// about it.
pub async fn check_briefly(endpoint: &Endpoint, keys: &StoreKeys) -> Result<Report, ObjectError> {
    Probe::new(endpoint, keys)?.briefly().await
}

struct Probe {
    unanswered: Unanswered,
    /// The number of the try, so that each has objects of its own.
    number: AtomicU32,
    /// The holder of the certificate that is shown to the store.
    holder: Option<PublicKey>,
    http: Client,
    buckets: Buckets,
    clock: StoreClock,
    operator: PublicKey,
    put: Place,
    get: Place,
    put_on_blobs: Place,
    get_on_incoming: Place,
    admin_incoming: Place,
}

/// A small object of this check, with its place in quarantine.
struct Sample {
    bytes: Bytes,
    digest: Digest,
    key: IncomingKey,
    path: String,
}

impl Probe {
    fn new(endpoint: &Endpoint, keys: &StoreKeys) -> Result<Self, ObjectError> {
        let limits = TransferLimits::default();
        let clock = StoreClock::default();
        let random: Vec<u8> = (0..5_u8)
            .flat_map(|seed| RandomState::new().hash_one(seed).to_le_bytes())
            .collect();
        let name = format!("U{}", &BASE32_NOPAD.encode(&random)[..55]);
        let place = |bucket, key: &AccessKey| Place::new(endpoint, bucket, key.clone());
        // A store with mutual TLS takes URLs from the holder that they name.
        let holder = endpoint.holder();
        let during = || "check of the store".to_owned();
        let holder = holder.map_err(|error| ObjectError::own_certificate(during(), &error))?;
        Ok(Self {
            unanswered: Unanswered::default(),
            number: AtomicU32::new(0),
            holder,
            http: Client::new(endpoint.trust(), &limits)?,
            buckets: Buckets::new(endpoint, &keys.admin, clock.clone(), limits, PATIENCE)?,
            clock,
            operator: name
                .parse()
                .expect("a letter and base32 have the form of a key"),
            put: place(BucketName::Incoming, &keys.put)?,
            get: place(BucketName::Blobs, &keys.get)?,
            put_on_blobs: place(BucketName::Blobs, &keys.put)?,
            get_on_incoming: place(BucketName::Incoming, &keys.get)?,
            admin_incoming: place(BucketName::Incoming, &keys.admin)?,
        })
    }

    fn sample(&self, name: &str) -> Sample {
        let bytes = Bytes::from(format!(
            "store check, {name}, {}, {}, {}",
            self.operator,
            self.number.load(Ordering::Relaxed),
            "x".repeat(1000)
        ));
        let digest = Digest::of(&bytes);
        let key = IncomingKey::operator(&self.operator, digest);
        Sample {
            bytes,
            digest,
            path: key.to_string(),
            key,
        }
    }

    async fn briefly(&self) -> Result<Report, ObjectError> {
        self.buckets.ping().await?;
        let mut report = Report { rows: Vec::new() };
        let parts = [
            Part::Uploads,
            Part::Bindings,
            Part::Rights,
            Part::Creation,
            Part::Reading,
        ];
        self.tries(&parts, &mut report).await?;
        let offset = self.clock.offset_ms();
        report.note(
            Rule::ClocksAgree,
            !self.clock.is_alarming(),
            format!("store minus local: {offset} ms"),
        );
        Ok(report)
    }

    async fn uploads(&self, report: &mut Tried<'_>) {
        let good = self.sample("good");
        let answer = self.upload(&self.put, &good, &good.bytes).await;
        report.note(
            Rule::RightBytesStored,
            answer.accepted() && self.has(&good).await,
            answer.to_string(),
        );

        let wrong = self.sample("wrong");
        let answer = self.upload(&self.put, &wrong, &altered(&wrong.bytes)).await;
        report.note(
            Rule::WrongBytesRefused,
            answer.refused() && !self.has(&wrong).await,
            answer.to_string(),
        );

        let over = self
            .send_put(
                &self.admin_incoming,
                &good.path,
                &headers(&good, false),
                &altered(&good.bytes),
            )
            .await;
        let kept = self
            .buckets
            .get_incoming(&good.key, schemas::ObjectRef::of(&good.bytes))
            .await;
        let kept = self.heard(kept).is_ok();
        report.note(
            Rule::GoodObjectKept,
            over.refused() && kept,
            over.to_string(),
        );

        let again = self.upload(&self.put, &good, &good.bytes).await;
        report.note(
            Rule::OverwriteRefused,
            matches!(again.0, Ok(409 | 412)),
            again.to_string(),
        );
        self.forget(&[good, wrong]).await;
    }

    async fn bindings(&self, report: &mut Tried<'_>) {
        let sample = self.sample("bindings");
        let signed = headers(&sample, true);
        let other = checksum(Digest::of(b"other"));
        let without: Vec<_> = signed
            .iter()
            .filter(|(name, _)| *name != CHECKSUM)
            .cloned()
            .collect();
        let mut changed = without.clone();
        changed.push((CHECKSUM, other));
        let url = self.sign(&self.put, rusty_s3::Method::Put, &sample.path, &signed, 0);
        let omitted = self.put_to(&url, &without, sample.bytes.clone()).await;
        let replaced = self.put_to(&url, &changed, sample.bytes.clone()).await;
        let holds = omitted.refused() && replaced.refused() && !self.has(&sample).await;
        report.note(
            Rule::SignedHeadersBind,
            holds,
            format!("omitted: {omitted}, altered: {replaced}"),
        );

        let longer = Bytes::from([&sample.bytes[..], b"more"].concat());
        let mut lengthened = signed.clone();
        lengthened[0].1 = longer.len().to_string();
        let answer = self.put_to(&url, &lengthened, longer).await;
        report.note(
            Rule::LengthBinds,
            answer.refused() && !self.has(&sample).await,
            answer.to_string(),
        );

        let target = self.sample("other key");
        let answer = self
            .put_to(
                &url.replace(&sample.path, &target.path),
                &signed,
                sample.bytes.clone(),
            )
            .await;
        let holds = answer.refused() && !self.has(&target).await;
        report.note(Rule::KeyBinds, holds, answer.to_string());

        let bare = url.split('?').next().unwrap_or_default();
        let answer = self.put_to(bare, &signed, sample.bytes.clone()).await;
        report.note(
            Rule::AnonymousRefused,
            answer.refused() && !self.has(&sample).await,
            answer.to_string(),
        );

        let expired = self.sign(
            &self.put,
            rusty_s3::Method::Put,
            &sample.path,
            &signed,
            120_000,
        );
        let answer = self.put_to(&expired, &signed, sample.bytes.clone()).await;
        report.note(
            Rule::ExpiredRefused,
            answer.refused() && !self.has(&sample).await,
            answer.to_string(),
        );

        let mut extra = signed.clone();
        extra.push(("x-amz-meta-note", "unsigned".to_owned()));
        let answer = self.put_to(&url, &extra, sample.bytes.clone()).await;
        report.note(
            Rule::ExtraHeaderRefused,
            answer.refused(),
            answer.to_string(),
        );
        self.forget(&[sample, target]).await;
    }

    async fn rights(&self, report: &mut Tried<'_>) {
        let sample = self.sample("rights");
        let blob = BlobKey(sample.digest).to_string();
        let url = self.sign(&self.get, rusty_s3::Method::Get, &blob, &[], 0);
        let answer = self
            .put_to(&url, &headers(&sample, true), sample.bytes.clone())
            .await;
        let absent = self.blob_is_absent(&sample).await;
        report.note(
            Rule::ReadUrlCannotWrite,
            answer.refused() && absent,
            answer.to_string(),
        );

        let answer = self
            .send_put(
                &self.put_on_blobs,
                &blob,
                &headers(&sample, true),
                &sample.bytes,
            )
            .await;
        let absent = self.blob_is_absent(&sample).await;
        report.note(
            Rule::PutKeyCannotWriteBlobs,
            answer.refused() && absent,
            answer.to_string(),
        );

        let blobs = self
            .send_put(&self.get, &blob, &headers(&sample, true), &sample.bytes)
            .await;
        let incoming = self
            .send_put(
                &self.get_on_incoming,
                &sample.path,
                &headers(&sample, true),
                &sample.bytes,
            )
            .await;
        let absent = self.blob_is_absent(&sample).await && !self.has(&sample).await;
        let holds = blobs.refused() && incoming.refused() && absent;
        report.note(
            Rule::GetKeyCannotWrite,
            holds,
            format!("blobs: {blobs}, incoming: {incoming}"),
        );
        self.forget(&[sample]).await;
        self.pairs(report).await;
    }

    async fn creation(&self, report: &mut Tried<'_>) {
        let sample = self.sample("race");
        let racers = (0..RACERS).map(|_| self.upload(&self.put, &sample, &sample.bytes));
        let answers = futures::future::join_all(racers).await;
        let seen: Vec<String> = answers.iter().map(ToString::to_string).collect();
        let winners = answers.iter().filter(|answer| answer.accepted()).count();
        report.note(Rule::OneCreatorWins, winners == 1, seen.join(", "));

        let recorded = self
            .buckets
            .head_checked(&sample.key, schemas::ObjectRef::of(&sample.bytes))
            .await;
        let recorded = self.heard(recorded);
        let holds = matches!(recorded, Ok(crate::buckets::Recorded::Yes));
        report.note(
            Rule::ChecksumRecorded,
            holds,
            recorded.map_or_else(|error| error.to_string(), |seen| format!("{seen:?}")),
        );
        self.forget(&[sample]).await;
    }

    async fn reading(&self, report: &mut Tried<'_>) {
        let sample = self.sample("reading");
        let stored = self.upload(&self.put, &sample, &sample.bytes).await;
        let promoted = self
            .buckets
            .promote(&sample.key, schemas::ObjectRef::of(&sample.bytes))
            .await;
        let promoted = self.heard(promoted);
        let read = self.heard(self.buckets.get(sample.digest).await);
        let holds =
            stored.accepted() && promoted.is_ok() && read.as_ref().ok() == Some(&sample.bytes);
        report.note(Rule::CopyBetweenBuckets, holds, outcome(&promoted));

        let url = self.sign(
            &self.get,
            rusty_s3::Method::Get,
            &BlobKey(sample.digest).to_string(),
            &[],
            0,
        );
        let (holds, seen) = match self
            .send(
                rusty_s3::Method::Get,
                &url,
                &[("range", "bytes=5-14")],
                Bytes::new(),
            )
            .await
        {
            Ok(response) => {
                let status = response.status().as_u16();
                let answer = Answer(Ok(status));
                let silent = answer.says_nothing().then(|| answer.to_string());
                self.unanswered.note(silent);
                let body = timeout(PATIENCE, response.collect()).await;
                let body = body
                    .ok()
                    .and_then(Result::ok)
                    .map(|body| body.to_bytes())
                    .unwrap_or_default();
                (
                    status == 206 && body == sample.bytes[5..15],
                    format!("{status}, {} bytes", body.len()),
                )
            }
            Err(reason) => {
                self.unanswered.note(Some(reason.clone()));
                (false, reason)
            }
        };
        report.note(Rule::RangeServed, holds, seen);
        self.forget(&[sample]).await;
    }

    async fn housekeeping(&self, report: &mut Tried<'_>) {
        use futures::StreamExt as _;
        let sample = self.sample("housekeeping");
        let stored = self.heard(self.buckets.put_blob(sample.bytes.clone()).await);
        let mut listing = self.buckets.list();
        let mut listed = false;
        while let Some(Ok(entry)) = listing.next().await.map(|entry| self.heard(entry)) {
            listed |= entry.object.digest == sample.digest;
        }
        let deleted = self.heard(self.buckets.delete(sample.digest).await);
        let gone = self.blob_is_absent(&sample).await;
        let seen = format!(
            "stored: {}, listed: {listed}, deleted: {}",
            outcome(&stored),
            outcome(&deleted)
        );
        report.note(
            Rule::ListedAndDeleted,
            stored.is_ok() && listed && deleted.is_ok() && gone,
            seen,
        );
        self.forget(&[sample]).await;
    }

    /// Uploads as a worker does.
    async fn upload(&self, place: &Place, sample: &Sample, bytes: &Bytes) -> Answer {
        self.send_put(place, &sample.path, &headers(sample, true), bytes)
            .await
    }

    async fn send_put(
        &self,
        place: &Place,
        path: &str,
        headers: &[(&'static str, String)],
        bytes: &Bytes,
    ) -> Answer {
        let url = self.sign(place, rusty_s3::Method::Put, path, headers, 0);
        self.put_to(&url, headers, bytes.clone()).await
    }

    fn sign(
        &self,
        place: &Place,
        method: rusty_s3::Method,
        key: &str,
        headers: &[(&'static str, String)],
        ago_ms: u64,
    ) -> String {
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let at = UnixMillis(self.clock.at(local_now()).get() - ago_ms);
        place
            .sign(
                &Request {
                    method,
                    key,
                    headers: &headers,
                    holder: self.holder.as_ref(),
                    grant: None,
                },
                at,
                Millis::from_secs(60),
            )
            .into()
    }

    async fn put_to(&self, url: &str, headers: &[(&'static str, String)], bytes: Bytes) -> Answer {
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let sent = self.send(rusty_s3::Method::Put, url, &headers, bytes).await;
        let answer = Answer(sent.map(|response| response.status().as_u16()));
        let silent = answer.says_nothing().then(|| answer.to_string());
        self.unanswered.note(silent);
        answer
    }

    async fn send(
        &self,
        method: rusty_s3::Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response, String> {
        let (uri, mut headers) = buckets::parts(url, headers);
        if matches!(method, rusty_s3::Method::Put) {
            // The length of the bytes that are sent, whatever was signed.
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        match timeout(
            PATIENCE,
            self.http.send(client::method(method), uri, headers, body),
        )
        .await
        {
            Ok(sent) => sent.map_err(|error| client::describe(&error)),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    async fn has(&self, sample: &Sample) -> bool {
        let object = schemas::ObjectRef::of(&sample.bytes);
        let found = self.buckets.head_checked(&sample.key, object).await;
        !matches!(self.heard(found), Err(ObjectError::Missing { .. }))
    }

    async fn blob_is_absent(&self, sample: &Sample) -> bool {
        let found = self.buckets.exists(sample.digest).await;
        matches!(self.heard(found), Ok(None))
    }

    /// Notes that the store gave no answer, if that is so.
    fn heard<T>(&self, answer: Result<T, ObjectError>) -> Result<T, ObjectError> {
        self.unanswered.note(match &answer {
            Err(error) if error.code() == Code::StoreUnreachable => Some(error.to_string()),
            _ => None,
        });
        answer
    }

    async fn forget(&self, samples: &[Sample]) {
        for sample in samples {
            for done in [
                self.buckets.delete_incoming(&sample.key).await,
                self.buckets.delete(sample.digest).await,
            ] {
                if let Err(error) = done {
                    tracing::debug!(%error, "cannot remove an object of the store check");
                }
            }
        }
    }
}

/// The headers of an upload, sorted by name.
fn headers(sample: &Sample, once: bool) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("content-length", sample.bytes.len().to_string()),
        ("content-type", CONTENT_TYPE.to_owned()),
    ];
    if once {
        headers.push(("if-none-match", "*".to_owned()));
    }
    headers.push((CHECKSUM, checksum(sample.digest)));
    headers
}

/// Other bytes of the same length.
fn altered(bytes: &Bytes) -> Bytes {
    let mut other = bytes.to_vec();
    other[0] ^= 1;
    other.into()
}

fn outcome<T>(result: &Result<T, ObjectError>) -> String {
    result
        .as_ref()
        .map_or_else(ToString::to_string, |_| "ok".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Trust;

    #[test]
    fn only_an_error_of_a_store_that_is_away_says_that_it_gave_no_answer() {
        let endpoint = Endpoint::new("http://127.0.0.1:1", "r", Trust::PlainLoopback).unwrap();
        let probe = Probe::new(&endpoint, &StoreKeys::generate()).unwrap();
        let [during, reason, what] = ["a try", "it is away", "an object"].map(str::to_owned);
        for (answer, silent) in [
            (Ok(()), false),
            (Err(ObjectError::Missing { what }), false),
            (Err(ObjectError::Unreachable { during, reason }), true),
        ] {
            let said = answer.as_ref().err().map(ToString::to_string);
            assert_eq!(
                probe.heard(answer).err().map(|error| error.to_string()),
                said
            );
            let noted = probe.unanswered.reason().clone();
            assert_eq!(noted, said.filter(|_| silent));
        }
    }

    #[test]
    fn altered_bytes_differ_and_are_as_many() {
        for bytes in [b"\x00\x01".as_slice(), b"\x01\x01"] {
            let bytes = Bytes::copy_from_slice(bytes);
            let other = altered(&bytes);
            assert!(other != bytes && other.len() == bytes.len());
        }
    }
}
