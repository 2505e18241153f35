//! Presigned requests: SigV4 in the query, by the store's clock, with every header that matters
//! under the signature.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use identity::{AccessKey, StoreKeys, UrlsOf};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use rusty_s3::UrlStyle;
use schemas::blob::{Grant, HttpAction, Method};
use schemas::limits::URL_LIFE;
use schemas::{Digest, Millis, PublicKey, UnixMillis};
use url::Url;

use crate::endpoint::{Endpoint, EndpointError};
use crate::key::{BlobKey, BucketName, HolderTag, IncomingKey};

/// Difference of clocks at which somebody should look at them: it uses up a tenth of a URL's life.
pub const CLOCK_ALARM: Millis = Millis::from_secs(5);

/// The header that carries an object's sha256, in base64.
pub(crate) const CHECKSUM: &str = "x-amz-checksum-sha256";
/// The query parameter that names the holder a URL was given to; a store with mutual TLS takes the
/// URL from that holder alone. It is under the signature like the rest of the query.
pub const HOLDER: &str = "x-w";
/// The query parameter that tells a granted URL to read from all others: two that were signed for
/// the same object in the same second would be equal otherwise, and the embedded store serves an
/// object once for each URL. Its first half is the same for all URLs of a holder, so that the store
/// can bound how many one holder has in use, and refuse those of one worker; the second half is a
/// number.
pub const GRANT: &str = "x-diloco-grant";
/// The only content type: nothing reads the content.
pub(crate) const CONTENT_TYPE: &str = "application/octet-stream";

/// The store's clock, as its `Date` headers show it. Clones share the measurement.
#[derive(Clone, Debug, Default)]
pub struct StoreClock(Arc<AtomicI64>);

/// Numbers of grants, from a random one on, so that a coordinator that was started anew, or another
/// one, does not repeat them. Clones share the count.
#[derive(Clone, Debug)]
struct Numbers(Arc<AtomicU64>);

/// Signs URLs for workers: uploads into `incoming`, reads from `blobs`. It does no I/O and is
/// cheap: six HMACs a URL.
#[derive(Clone, Debug)]
pub struct Signer {
    incoming: Place,
    blobs: Place,
    clock: StoreClock,
    numbers: Numbers,
    names_holders: bool,
    /// True for a store that derives a pair for each kind of URLs, as the embedded one does.
    derives: bool,
    /// The holder that URLs are given to, where they name one.
    holder: Option<PublicKey>,
    /// The first half of the grants of this holder.
    tag: HolderTag,
}

/// A bucket of an endpoint with the access key that signs for it.
#[derive(Clone)]
pub(crate) struct Place {
    bucket: rusty_s3::Bucket,
    key: AccessKey,
}

/// The parts of a request that its signature covers, beside bucket and date.
pub(crate) struct Request<'a> {
    pub(crate) method: rusty_s3::Method,
    pub(crate) key: &'a str,
    /// Sorted by name, lower case.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    /// The holder that the URL is given to, where URLs name one.
    pub(crate) holder: Option<&'a PublicKey>,
    /// What tells the URL from others for the same object.
    pub(crate) grant: Option<&'a str>,
}

impl Numbers {
    fn new() -> Self {
        let first = u64::from_le_bytes(*identity::secret::random::<8>());
        Self(Arc::new(AtomicU64::new(first)))
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

impl StoreClock {
    /// Measures the store's clock by the `Date` header of an answer, whose request was sent and
    /// which was received at these local times.
    ///
    /// The header counts whole seconds, so the measurement is good to about half a second.
    pub fn observe(&self, date: &str, sent: UnixMillis, received: UnixMillis) {
        let Ok(date) = rfc2822::DateTimeParser::new().parse_timestamp(date) else {
            return;
        };
        let middle = sent.get().midpoint(received.get());
        let offset = date.as_millisecond() + 500 - i64::try_from(middle).unwrap_or(i64::MAX);
        let before = self.0.swap(offset, Ordering::Relaxed);
        if begins_to_alarm(before, offset) {
            tracing::warn!(
                offset_ms = offset,
                "the store's clock differs from this machine's; correct one of them"
            );
        }
    }

    /// The store's time minus this machine's, in milliseconds; 0 before the first measurement.
    pub fn offset_ms(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// True when the clocks differ by more than [`CLOCK_ALARM`].
    pub fn is_alarming(&self) -> bool {
        alarms(self.offset_ms())
    }

    /// The store's time when this machine's clock shows `now`.
    pub fn at(&self, now: UnixMillis) -> UnixMillis {
        UnixMillis(now.get().saturating_add_signed(self.offset_ms()))
    }
}

fn alarms(offset_ms: i64) -> bool {
    Millis(offset_ms.unsigned_abs()) > CLOCK_ALARM
}

/// True for a measurement to tell, and not for the next ones that are no better.
fn begins_to_alarm(before_ms: i64, offset_ms: i64) -> bool {
    alarms(offset_ms) && !alarms(before_ms)
}

impl Signer {
    /// A signer for `endpoint`. It uses the `put` and `get` keys only.
    ///
    /// # Errors
    /// The endpoint does not make a bucket URL.
    pub fn new(
        endpoint: &Endpoint,
        keys: &StoreKeys,
        clock: StoreClock,
    ) -> Result<Self, EndpointError> {
        Ok(Self {
            incoming: Place::new(endpoint, BucketName::Incoming, keys.put.clone())?,
            blobs: Place::new(endpoint, BucketName::Blobs, keys.get.clone())?,
            clock,
            numbers: Numbers::new(),
            names_holders: false,
            derives: false,
            holder: None,
            tag: HolderTag::default(),
        })
    }

    /// The same signer for a store that derives a pair for each kind of URLs
    /// ([`crate::Buckets::takes`]): [`Signer::of`] signs with that pair.
    #[must_use]
    pub fn deriving(self, derives: bool) -> Self {
        Self { derives, ..self }
    }

    /// True if [`Signer::of`] gives each kind of URLs a pair of its own.
    pub const fn derives(&self) -> bool {
        self.derives
    }

    /// The same signer for URLs of this kind. The store takes uploads with them to the places of
    /// this kind alone, and can refuse those of one run; a URL to read is for its object, whichever
    /// run needs that. For a store that derives no pairs it is the same signer.
    #[must_use]
    pub fn of(&self, urls: &UrlsOf) -> Self {
        if !self.derives {
            return self.clone();
        }
        Self {
            incoming: self.incoming.of(urls),
            blobs: self.blobs.of(urls),
            ..self.clone()
        }
    }

    /// The same signer for a store with mutual TLS: [`Signer::given_to`] names the holder.
    #[must_use]
    pub fn naming_holders(self, names_holders: bool) -> Self {
        Self {
            names_holders,
            ..self
        }
    }

    /// The same signer for URLs that this holder gets. A store with mutual TLS takes them from
    /// nobody else, and the embedded one bounds how many of them are in use.
    #[must_use]
    pub fn given_to(&self, holder: &PublicKey) -> Self {
        Self {
            holder: self.names_holders.then(|| holder.clone()),
            tag: HolderTag::of(holder),
            ..self.clone()
        }
    }

    /// A URL to create `key` with exactly `bytes` bytes of its digest, once. `now` is this
    /// machine's clock.
    pub fn put(&self, key: &IncomingKey, bytes: schemas::Bytes, now: UnixMillis) -> Grant {
        let now = self.clock.at(now);
        let (name, holder) = (key.to_string(), self.holder.as_ref());
        let put = self
            .incoming
            .put(&name, key.digest(), bytes, true, holder, now);
        Grant {
            digest: key.digest(),
            action: Some(put),
        }
    }

    /// A URL to read one verified object, another one at each call. `now` is this machine's clock.
    pub fn get(&self, digest: Digest, now: UnixMillis) -> Grant {
        let now = self.clock.at(now);
        let grant = self.tag.grant(self.numbers.next());
        let name = BlobKey(digest).to_string();
        let request = Request {
            method: rusty_s3::Method::Get,
            key: &name,
            headers: &[],
            holder: self.holder.as_ref(),
            grant: Some(&grant),
        };
        Grant {
            digest,
            action: Some(self.blobs.action(&request, now)),
        }
    }

    /// The measurement this signer uses.
    pub const fn clock(&self) -> &StoreClock {
        &self.clock
    }
}

impl Place {
    pub(crate) fn new(
        endpoint: &Endpoint,
        name: BucketName,
        key: AccessKey,
    ) -> Result<Self, EndpointError> {
        let bucket = rusty_s3::Bucket::new(
            endpoint.url().clone(),
            UrlStyle::Path,
            name.as_str(),
            endpoint.region().to_owned(),
        )
        .map_err(|error| EndpointError::Url(error.to_string()))?;
        Ok(Self { bucket, key })
    }

    /// The same bucket for the pair that is derived for these URLs.
    pub(crate) fn of(&self, urls: &UrlsOf) -> Self {
        Self {
            bucket: self.bucket.clone(),
            key: self.key.derived(urls),
        }
    }

    /// The same bucket for another pair.
    pub(crate) fn with(&self, key: AccessKey) -> Self {
        Self {
            bucket: self.bucket.clone(),
            key,
        }
    }

    /// A PUT of exactly these bytes; with `once` the store refuses it if the key exists.
    pub(crate) fn put(
        &self,
        key: &str,
        digest: Digest,
        bytes: schemas::Bytes,
        once: bool,
        holder: Option<&PublicKey>,
        store_now: UnixMillis,
    ) -> HttpAction {
        let (length, checksum) = (bytes.to_string(), checksum(digest));
        let mut headers = vec![
            ("content-length", length.as_str()),
            ("content-type", CONTENT_TYPE),
        ];
        if once {
            headers.push(("if-none-match", "*"));
        }
        headers.push((CHECKSUM, &checksum));
        let request = Request {
            method: rusty_s3::Method::Put,
            key,
            headers: &headers,
            holder,
            grant: None,
        };
        self.action(&request, store_now)
    }

    pub(crate) fn get(
        &self,
        key: &str,
        holder: Option<&PublicKey>,
        store_now: UnixMillis,
    ) -> HttpAction {
        let request = Request {
            method: rusty_s3::Method::Get,
            key,
            headers: &[],
            holder,
            grant: None,
        };
        self.action(&request, store_now)
    }

    fn action(&self, request: &Request<'_>, store_now: UnixMillis) -> HttpAction {
        let url = self.sign(request, store_now, URL_LIFE);
        let headers = request.headers.iter();
        let headers = headers.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        HttpAction {
            method: match request.method {
                rusty_s3::Method::Put => Method::Put,
                _ => Method::Get,
            },
            href: url.into(),
            headers: headers.collect::<BTreeMap<_, _>>(),
            expires_at: UnixMillis(store_now.get() / 1000 * 1000).after(URL_LIFE),
        }
    }

    /// The address of `key`, or that of the bucket for an empty key, without a signature.
    pub(crate) fn unsigned(&self, key: &str) -> Url {
        if key.is_empty() {
            self.bucket.base_url().clone()
        } else {
            self.bucket.object_url(key)
        }
    }

    /// The signed URL of `request`, valid for `life` from `store_now`.
    pub(crate) fn sign(&self, request: &Request<'_>, store_now: UnixMillis, life: Millis) -> Url {
        let seconds = i64::try_from(store_now.get() / 1000).unwrap_or(i64::MAX);
        let date = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        let url = self.unsigned(request.key);
        rusty_s3::signing::sign(
            &date,
            request.method,
            url,
            self.key.id(),
            self.key.expose_secret(),
            None,
            self.bucket.region(),
            life.get() / 1000,
            // Sorted by name.
            request
                .grant
                .map(|grant| (GRANT, grant))
                .into_iter()
                .chain(request.holder.map(|holder| (HOLDER, holder.as_str()))),
            request.headers.iter().copied(),
        )
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place")
            .field("bucket", &self.bucket.name())
            .field("key", &self.key)
            .finish()
    }
}

/// A digest as S3 writes it in headers.
pub(crate) fn checksum(digest: Digest) -> String {
    BASE64.encode(digest.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Trust;

    fn signer() -> Signer {
        let endpoint =
            Endpoint::new("http://127.0.0.1:9000", "us-east-1", Trust::PlainLoopback).unwrap();
        Signer::new(&endpoint, &StoreKeys::generate(), StoreClock::default()).unwrap()
    }

    #[test]
    fn tl_20_a_put_signs_what_bounds_it() {
        let digest = Digest::of(b"abc");
        let operator = format!("U{}", "A".repeat(55)).parse().unwrap();
        let key = IncomingKey::operator(&operator, digest);
        let grant = signer().put(&key, schemas::Bytes(3), UnixMillis(1_700_000_000_000));
        let action = grant.action.unwrap();
        let signed = "content-length%3Bcontent-type%3Bhost%3Bif-none-match%3Bx-amz-checksum-sha256";
        assert!(
            action
                .href
                .contains(&format!("X-Amz-SignedHeaders={signed}&")),
            "{}",
            action.href
        );
        assert!(
            action
                .href
                .starts_with(&format!("http://127.0.0.1:9000/incoming/{key}?")),
            "{}",
            action.href
        );
        assert!(
            action.href.contains("%2Fus-east-1%2Fs3%2F"),
            "{}",
            action.href
        );
        assert_eq!(action.headers["content-length"], "3");
        assert_eq!(action.headers["if-none-match"], "*");
        assert_eq!(
            action.headers[CHECKSUM],
            "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="
        );
        assert_eq!(action.expires_at, UnixMillis(1_700_000_060_000));
        assert!(
            action.href.contains("&X-Amz-Expires=60&"),
            "{}",
            action.href
        );
    }

    #[test]
    fn fg_08_a_url_names_its_holder_where_the_store_compares() {
        let holder = format!("U{}", "B".repeat(55)).parse().unwrap();
        let url = |signer: Signer| {
            let grant = signer.get(Digest::of(b""), UnixMillis(1_700_000_000_000));
            grant.action.unwrap().href
        };
        let naming = signer().naming_holders(true);
        let named = url(naming.given_to(&holder));
        assert!(named.contains(&format!("{HOLDER}={holder}&")), "{named}");
        assert!(!url(naming).contains(HOLDER), "it is given to nobody");
        let plain = url(signer().given_to(&holder));
        assert!(!plain.contains(HOLDER), "{plain}");
    }

    /// Other stores know the domain's pairs alone.
    #[test]
    fn tl_20_a_url_names_its_run_by_its_pair_where_the_store_derives_pairs() {
        let keys = StoreKeys::generate();
        let endpoint =
            Endpoint::new("http://127.0.0.1:9000", "us-east-1", Trust::PlainLoopback).unwrap();
        let plain = Signer::new(&endpoint, &keys, StoreClock::default()).unwrap();
        let run = UrlsOf::Run("demo".parse().unwrap());
        let operator = format!("U{}", "A".repeat(55)).parse().unwrap();
        let key = IncomingKey::operator(&operator, Digest::of(b"abc"));
        let named = |signer: &Signer| {
            let now = UnixMillis(1_700_000_000_000);
            let urls = [
                signer.put(&key, schemas::Bytes(3), now),
                signer.get(Digest::of(b""), now),
            ];
            urls.map(|grant| {
                let url = Url::parse(&grant.action.unwrap().href).unwrap();
                let mut pairs = url.query_pairs();
                let found = pairs.find(|(name, _)| name == "X-Amz-Credential");
                let credential = found.expect("it is signed").1.into_owned();
                credential.split('/').next().unwrap().to_owned()
            })
        };
        let ids = |ending: &str| [&keys.put, &keys.get].map(|key| format!("{}{ending}", key.id()));
        assert_eq!(named(&plain), ids(""));
        assert_eq!(named(&plain.of(&run)), ids(""));
        assert!(!plain.derives());
        let deriving = plain.deriving(true);
        assert!(deriving.derives());
        assert_eq!(named(&deriving.of(&run)), ids(".demo"));
        assert_eq!(named(&deriving.of(&UrlsOf::Operators)), ids(".operator"));
    }

    /// A store counts the bytes that a URL has served by its signature.
    #[test]
    fn tl_27_each_url_to_read_is_another_one() {
        let signer = signer();
        let other = Signer::new(
            &Endpoint::new("http://127.0.0.1:9000", "us-east-1", Trust::PlainLoopback).unwrap(),
            &StoreKeys::generate(),
            StoreClock::default(),
        );
        let url = |signer: &Signer| {
            let grant = signer.get(Digest::of(b""), UnixMillis(1_700_000_000_000));
            let url = Url::parse(&grant.action.unwrap().href).unwrap();
            let mut pairs = url.query_pairs();
            let number = pairs.find(|(name, _)| name == GRANT);
            number.expect("it has a number").1.into_owned()
        };
        let urls = [&signer, &signer, &signer.clone(), &other.unwrap()].map(url);
        let different: std::collections::BTreeSet<_> = urls.iter().collect();
        assert_eq!(different.len(), urls.len(), "{urls:?}");
    }

    /// The embedded store bounds the URLs of each holder by it.
    #[test]
    fn tl_27_the_grants_of_a_holder_begin_alike_and_those_of_others_do_not() {
        let holders = ["B", "C"].map(|name| format!("U{}", name.repeat(55)).parse().unwrap());
        let signer = signer();
        let begin = |signer: &Signer| {
            let grant = signer.get(Digest::of(b""), UnixMillis(1_700_000_000_000));
            let url = Url::parse(&grant.action.unwrap().href).unwrap();
            let mut pairs = url.query_pairs();
            let grant = pairs.find(|(name, _)| name == GRANT).unwrap().1;
            assert_eq!(grant.len(), 32, "{grant}");
            grant[..16].to_owned()
        };
        let [one, other] = holders.map(|holder| signer.given_to(&holder));
        assert_eq!(begin(&one), begin(&one));
        assert_ne!(begin(&one), begin(&other));
        assert_eq!(begin(&signer), "0".repeat(16), "it is given to nobody");
    }

    #[test]
    fn signatures_follow_the_store_clock() {
        let signer = signer();
        let now = UnixMillis(1_700_000_000_000);
        // Tue, 14 Nov 2023 22:13:20 GMT is 1_700_000_000; the store is 100 s ahead.
        signer
            .clock()
            .observe("Tue, 14 Nov 2023 22:15:00 GMT", now, now);
        assert_eq!(signer.clock().offset_ms(), 100_500);
        assert!(signer.clock().is_alarming());
        let action = signer.get(Digest::of(b""), now).action.unwrap();
        assert!(
            action.href.contains("X-Amz-Date=20231114T221500Z"),
            "{}",
            action.href
        );
        assert_eq!(action.headers.len(), 0);
    }

    #[test]
    fn logs_name_a_signer_by_its_buckets_and_hold_no_secret() {
        let signer = signer();
        let said = format!("{signer:?}");
        for place in [&signer.incoming, &signer.blobs] {
            let bucket = format!("bucket: {:?}", place.bucket.name());
            assert!(said.contains(&bucket), "{said}");
            assert!(said.contains(place.key.id()), "{said}");
            assert!(!said.contains(place.key.expose_secret()), "{said}");
        }
    }

    #[test]
    fn clocks_that_drift_apart_are_told_once() {
        let told = [
            (0, 5000),
            (0, 5001),
            (0, -5001),
            (5000, -5001),
            (-5001, 5001),
            (9000, 0),
        ];
        let told = told.map(|(before, offset)| begins_to_alarm(before, offset));
        assert_eq!(told, [false, true, true, true, false, false]);
    }

    #[test]
    fn a_measurement_is_of_the_middle_of_the_exchange_and_of_a_second() {
        let clock = StoreClock::default();
        let date = "Tue, 14 Nov 2023 22:13:20 GMT";
        let sent = UnixMillis(1_700_000_000_000);
        clock.observe(date, sent, sent.after(Millis(400)));
        assert_eq!(clock.offset_ms(), 300);
        assert!(!clock.is_alarming());
    }

    #[test]
    fn nonsense_dates_change_nothing() {
        let clock = StoreClock::default();
        clock.observe("yesterday", UnixMillis(0), UnixMillis(0));
        assert_eq!(clock.offset_ms(), 0);
    }
}
