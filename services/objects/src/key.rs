//! Object keys. Three buckets: `incoming` takes what workers upload, `blobs` holds what was
//! verified, and `log` holds the log of all events.
//!
//! ```text
//! incoming/<run>/<round>/<worker>/<unit>-<epoch>/<64 hex>   quarantine of a lease
//! incoming/operator/<user nkey>/<64 hex>                    quarantine of an operator's import
//! blobs/sha256/<ab>/<64 hex>                                verified objects
//! blobs/stopped/<run>                                       the embedded store refuses this run's urls
//! blobs/stopped/<run>.<16 hex>                              it refuses those of one of its workers
//! log/checkpoint, log/heads/<size>, log/tile/...            the log, as crate `tlog` names its files
//! ```
//! `operator` is therefore not usable as the name of a run that uploads; [`IncomingKey::worker`]
//! refuses it.

use std::fmt;
use std::str::FromStr;

use schemas::id::OPERATOR;
use schemas::lease::{LeaseRef, UnitId, UnitKind};
use schemas::{Digest, Epoch, PublicKey, Round, RunId, UnitIndex, WorkerId};

/// Longest key that is accepted anywhere: ours have at most 220 bytes, S3 allows 1024.
pub const KEY_BYTES_MAX: usize = 256;

const ALGORITHM: &str = "sha256";
/// The folder of `blobs` with a small file for each run whose URLs the embedded store refuses, and
/// for each worker of a run ([`StoppedUrls`]). The admin key alone writes there.
pub const STOPPED: &str = "stopped";
/// The embedded store's words when it refuses a URL of a stopped run. Clients read `expired` in
/// them and ask for another URL (`refusal.rs`), and the coordinator then tells them why there is
/// none; by the same words the coordinator knows that the store refuses for this reason.
pub const STOPPED_WORDS: &str =
    "the url has expired: an operator stopped all urls of its run; ask for another";
/// The same for a URL of a worker that an operator has shut out of its run. The coordinator refuses
/// the worker with the code that they name.
pub const SHUT_OUT_WORDS: &str =
    "the url has expired: an operator shut its worker out of the run (DL0412); ask for another";
/// Joins run and worker in the name of a file of [`STOPPED`]. No name of a run has this character.
const JOINT: char = '.';
/// Digits of a number in a URL's grant, and of a [`HolderTag`].
const TAG_DIGITS: usize = 16;

/// One of the buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BucketName {
    /// Quarantine: write-once for holders of a PUT URL, read by the coordinator.
    Incoming,
    /// Verified objects: written by the coordinator, read through GET URLs.
    Blobs,
    /// The log of all events: written by the audit service, read by auditors.
    Log,
}

/// The key of a verified object in `blobs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobKey(pub Digest);

/// The key of an upload in `incoming`. Its last segment is the digest that the bytes must have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IncomingKey {
    owner: Owner,
    digest: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Owner {
    Worker {
        run: RunId,
        worker: WorkerId,
        lease: LeaseRef,
    },
    Operator(PublicKey),
}

/// What stands for the holder of a URL in its grant ([`crate::presign::GRANT`]): the first eight
/// bytes of the sha256 of its key. Nobody gains by a key with the tag of another: both share a
/// bound, and are shut out together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderTag(u64);

/// URLs that the embedded store refuses: all of a run, or those of one of its workers. It prints as
/// the name of its file in [`STOPPED`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoppedUrls {
    /// The run.
    pub run: RunId,
    /// The worker; none for all of them.
    pub worker: Option<HolderTag>,
}

/// Reasons why a text is not a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not of the form that this bucket uses.
    #[error("not an object key of bucket {bucket}: {text:?}")]
    Form {
        /// The bucket.
        bucket: BucketName,
        /// The given text, shortened.
        text: String,
    },
    /// Not the name of a file of [`STOPPED`].
    #[error("not the name of stopped urls: {0:?}")]
    Stopped(String),
    /// Not one of the buckets.
    #[error("no bucket {0:?}; there are incoming, blobs and log")]
    Bucket(String),
}

impl BucketName {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Incoming, Self::Blobs, Self::Log];

    /// The name in URLs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Incoming => "incoming",
            Self::Blobs => "blobs",
            Self::Log => "log",
        }
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for BucketName {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::ALL
            .into_iter()
            .find(|name| name.as_str() == text)
            .ok_or_else(|| KeyError::Bucket(shortened(text)))
    }
}

impl HolderTag {
    /// That of a holder of URLs.
    pub fn of(holder: &PublicKey) -> Self {
        Self::of_key(holder.as_str())
    }

    /// That of a worker.
    pub fn of_worker(worker: &WorkerId) -> Self {
        Self::of_key(worker.as_str())
    }

    fn of_key(key: &str) -> Self {
        let digest = Digest::of(key.as_bytes());
        let first = digest.as_bytes().first_chunk();
        Self(u64::from_be_bytes(*first.expect("a digest has 32 bytes")))
    }

    /// The holder that a grant names; none for a grant that names none, or that is written in
    /// another way than the signer's.
    pub fn of_grant(grant: &str) -> Option<Self> {
        let (tag, number) = grant.split_at_checked(TAG_DIGITS)?;
        number_of(number)?;
        number_of(tag).map(Self)
    }

    /// The grant with this number.
    pub fn grant(self, number: u64) -> String {
        format!("{self}{number:016x}")
    }

    /// As a number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A number of [`TAG_DIGITS`] small hexadecimal digits.
fn number_of(text: &str) -> Option<u64> {
    let plain = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_number = text.len() == TAG_DIGITS && text.bytes().all(plain);
    is_number.then(|| u64::from_str_radix(text, 16).ok())?
}

impl fmt::Display for HolderTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl StoppedUrls {
    /// All of a run.
    pub const fn of_run(run: RunId) -> Self {
        Self { run, worker: None }
    }

    /// Those of one worker of a run.
    pub const fn of_worker(run: RunId, worker: HolderTag) -> Self {
        let worker = Some(worker);
        Self { run, worker }
    }
}

impl fmt::Display for StoppedUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, worker } = self;
        match worker {
            None => run.fmt(f),
            Some(worker) => write!(f, "{run}{JOINT}{worker}"),
        }
    }
}

impl FromStr for StoppedUrls {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let parsed = match text.split_once(JOINT) {
            None => text.parse().ok().map(Self::of_run),
            Some((run, tag)) => {
                let tag = number_of(tag).map(HolderTag);
                let run = run.parse().ok();
                run.zip(tag).map(|(run, tag)| Self::of_worker(run, tag))
            }
        };
        parsed.ok_or_else(|| KeyError::Stopped(shortened(text)))
    }
}

impl fmt::Display for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = self.0.hex();
        write!(f, "{ALGORITHM}/{}/{hex}", &hex[..2])
    }
}

impl FromStr for BlobKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let key = text.rsplit('/').next().and_then(digest_of_hex).map(Self);
        key.filter(|key| key.to_string() == text)
            .ok_or_else(|| KeyError::Form {
                bucket: BucketName::Blobs,
                text: shortened(text),
            })
    }
}

impl IncomingKey {
    /// The key under which `worker` uploads an object under `lease`. Only this worker can upload
    /// there, and only under this lease.
    pub fn worker(run: &RunId, lease: LeaseRef, worker: &WorkerId, digest: Digest) -> Self {
        Self {
            owner: Owner::Worker {
                run: run.clone(),
                worker: worker.clone(),
                lease,
            },
            digest,
        }
    }

    /// The key under which an operator uploads an object of an import.
    pub fn operator(operator: &PublicKey, digest: Digest) -> Self {
        Self {
            owner: Owner::Operator(operator.clone()),
            digest,
        }
    }

    /// The run that it is for; none for an operator's import.
    pub const fn run(&self) -> Option<&RunId> {
        match &self.owner {
            Owner::Worker { run, .. } => Some(run),
            Owner::Operator(_) => None,
        }
    }

    /// The worker that uploads there; none for an operator's import.
    pub const fn uploader(&self) -> Option<&WorkerId> {
        match &self.owner {
            Owner::Worker { worker, .. } => Some(worker),
            Owner::Operator(_) => None,
        }
    }

    /// The lease under which it is uploaded; none for an operator's import.
    pub const fn lease(&self) -> Option<LeaseRef> {
        match &self.owner {
            Owner::Worker { lease, .. } => Some(*lease),
            Owner::Operator(_) => None,
        }
    }

    /// The digest that its bytes must hash to.
    pub const fn digest(&self) -> Digest {
        self.digest
    }
}

impl fmt::Display for IncomingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            Owner::Worker {
                run,
                worker,
                lease: LeaseRef { unit, epoch },
            } => {
                write!(
                    f,
                    "{run}/{}/{worker}/{}-{epoch}/{}",
                    unit.round,
                    unit.token(),
                    self.digest.hex()
                )
            }
            Owner::Operator(operator) => write!(f, "{OPERATOR}/{operator}/{}", self.digest.hex()),
        }
    }
}

impl FromStr for IncomingKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        parse_incoming(text)
            .filter(|key| key.to_string() == text)
            .ok_or_else(|| KeyError::Form {
                bucket: BucketName::Incoming,
                text: shortened(text),
            })
    }
}

fn parse_incoming(text: &str) -> Option<IncomingKey> {
    let segments: Vec<&str> = text.split('/').collect();
    match segments[..] {
        [OPERATOR, operator, hex] => Some(IncomingKey::operator(
            &operator.parse().ok()?,
            digest_of_hex(hex)?,
        )),
        [run, round, worker, lease, hex] => {
            let lease = lease_of(Round(round.parse().ok()?), lease)?;
            Some(IncomingKey::worker(
                &run.parse().ok()?,
                lease,
                &worker.parse().ok()?,
                digest_of_hex(hex)?,
            ))
        }
        _ => None,
    }
}

/// `train-3-2`: the second grant of training unit 3. Whether it is written as we write it, the
/// caller compares.
fn lease_of(round: Round, text: &str) -> Option<LeaseRef> {
    let (unit, epoch) = text.rsplit_once('-')?;
    let (kind, index) = unit.rsplit_once('-')?;
    let index = UnitIndex(index.parse().ok()?);
    let found = [UnitKind::Train, UnitKind::Evaluate].map(|kind| UnitId { round, kind, index });
    let unit = found
        .into_iter()
        .find(|found| found.token() == format!("{kind}-{index}"))?;
    Some(LeaseRef {
        unit,
        epoch: Epoch(epoch.parse().ok()?),
    })
}

fn digest_of_hex(hex: &str) -> Option<Digest> {
    format!("{ALGORITHM}:{hex}").parse().ok()
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn worker(seed: u8) -> WorkerId {
        format!("U{}", char::from(b'A' + seed % 26).to_string().repeat(55))
            .parse()
            .unwrap()
    }

    proptest! {
        #[test]
        fn tl_18_a_key_reads_back(raw in any::<[u8; 32]>(), numbers in any::<(u64, u32, u64)>(), train in any::<bool>(), run in "[a-z0-9][a-z0-9-]{0,31}", seed in any::<u8>()) {
            let digest = Digest::from_bytes(raw);
            prop_assert_eq!(BlobKey(digest).to_string().parse(), Ok(BlobKey(digest)));
            let run: RunId = run.parse().unwrap();
            let id = worker(seed);
            let kind = if train { UnitKind::Train } else { UnitKind::Evaluate };
            let unit = UnitId { round: Round(numbers.0), kind, index: UnitIndex(numbers.1) };
            let key = IncomingKey::worker(&run, LeaseRef { unit, epoch: Epoch(numbers.2) }, &id, digest);
            prop_assert!(key.to_string().len() <= KEY_BYTES_MAX);
            prop_assert_eq!(key.to_string().parse(), Ok(key));
            let operator = IncomingKey::operator(&id.as_str().parse().unwrap(), digest);
            prop_assert_eq!(operator.to_string().parse(), Ok(operator));
        }

        #[test]
        fn whatever_parses_prints_itself(text in "[a-z0-9/.%U-]{0,120}") {
            if let Ok(key) = text.parse::<IncomingKey>() {
                prop_assert_eq!(key.to_string(), text.clone());
            }
            if let Ok(key) = text.parse::<BlobKey>() {
                prop_assert_eq!(key.to_string(), text);
            }
        }
    }

    #[test]
    fn stopped_urls_are_those_of_a_run_or_of_one_of_its_workers() {
        let run: RunId = "acme_demo".parse().unwrap();
        let tag = HolderTag::of_worker(&worker(1));
        assert_eq!(tag, HolderTag::of(&worker(1).as_str().parse().unwrap()));
        assert_ne!(tag, HolderTag::of_worker(&worker(2)));
        let hex = Digest::of(worker(1).as_str().as_bytes()).hex();
        assert_eq!(
            tag.to_string(),
            hex[..TAG_DIGITS],
            "as much as fits of the digest"
        );
        assert_eq!(HolderTag::of_grant(&tag.grant(7)), Some(tag));
        assert_eq!(tag.grant(7), format!("{:016x}0000000000000007", tag.get()));
        let name = format!("acme_demo.{tag}");
        for (urls, name) in [
            (StoppedUrls::of_run(run.clone()), "acme_demo"),
            (StoppedUrls::of_worker(run, tag), &name),
        ] {
            assert_eq!(urls.to_string(), name);
            assert_eq!(name.parse(), Ok(urls));
        }
        for text in [
            String::new(),
            "A".to_owned(),
            "demo.".to_owned(),
            "demo.0".to_owned(),
            format!(".{tag}"),
            format!("demo.{tag}0"),
            format!(
                "demo.{}",
                tag.to_string()
                    .replace(|one: char| one.is_alphabetic(), "A")
            ),
            format!("demo.+{}", &tag.to_string()[1..]),
        ] {
            assert!(text.parse::<StoppedUrls>().is_err(), "{text}");
        }
        for grant in [
            String::new(),
            tag.to_string(),
            format!("{tag}000000000000000A"),
            format!("%30{:029}", 0),
            format!("{tag}00000000000000ä"),
            format!("{tag}+000000000000007"),
        ] {
            assert_eq!(HolderTag::of_grant(&grant), None, "{grant}");
        }
    }

    #[test]
    fn a_key_names_run_worker_and_lease_and_that_of_an_import_none() {
        let (run, id, digest) = (
            "demo".parse::<RunId>().unwrap(),
            worker(3),
            Digest::of(b"x"),
        );
        let (kind, index) = (UnitKind::Train, UnitIndex(4));
        let round = Round(5);
        let unit = UnitId { round, kind, index };
        let lease = LeaseRef {
            unit,
            epoch: Epoch(6),
        };
        let key = IncomingKey::worker(&run, lease, &id, digest);
        assert_eq!((key.run(), key.uploader()), (Some(&run), Some(&id)));
        assert_eq!((key.lease(), key.digest()), (Some(lease), digest));
        let import = IncomingKey::operator(&id.as_str().parse().unwrap(), digest);
        assert_eq!((import.run(), import.uploader()), (None, None));
        assert_eq!((import.lease(), import.digest()), (None, digest));
    }

    #[test]
    fn hostile_texts_are_not_keys() {
        let hex = Digest::of(b"x").hex();
        let id = worker(3);
        for text in [
            String::new(),
            format!("../{id}/{hex}"),
            format!("/demo/1/{id}/{hex}"),
            format!("demo/1/{id}/{hex}"),
            format!("demo/01/{id}/train-0-1/{hex}"),
            format!("demo/+1/{id}/train-0-1/{hex}"),
            format!("demo/1/{id}/train-0-1/{}", hex.to_uppercase()),
            format!("demo/1/{id}/train-0-1/{hex}/"),
            format!("operator/1/{id}/train-0-1/{hex}"),
            format!("dëmo/1/{id}/train-0-1/{hex}"),
            format!("demo/1/{id}/train-00-1/{hex}"),
            format!("demo/1/{id}/train-0-+1/{hex}"),
            format!("demo/1/{id}/train-0/{hex}"),
            format!("demo/1/{id}/guess-0-1/{hex}"),
            format!("demo/1/{id}/../{hex}"),
            "a".repeat(4096),
        ] {
            assert!(text.parse::<IncomingKey>().is_err(), "{text}");
        }
        for text in [
            hex.clone(),
            format!("sha256/00/{hex}"),
            format!("sha256/{hex}"),
            format!("sha256/../{hex}"),
        ] {
            assert!(text.parse::<BlobKey>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_shows_the_begin_of_what_is_no_key() {
        let begin = "a".repeat(80);
        for text in [format!("{begin}b"), begin.clone()] {
            let said = text.parse::<IncomingKey>().unwrap_err().to_string();
            assert_eq!(
                said,
                format!("not an object key of bucket incoming: {begin:?}")
            );
        }
    }

    #[test]
    fn a_run_cannot_shadow_imports() {
        assert!(OPERATOR.parse::<RunId>().is_err());
    }
}
