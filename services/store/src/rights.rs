//! The rights of the access keys; no other key has any.
//!
//! | key | may |
//! | --- | --- |
//! | admin | everything this store does, except write or delete in `log` |
//! | put | create objects in `incoming`, through presigned URLs whose signature covers length, sha256 and `if-none-match` |
//! | get | read verified objects in `blobs`, through presigned URLs, each of which serves its object once (`budget`) |
//! | derived from put | the same for the uploads to one run, or for those of operators |
//! | derived from get | the same as get, for one run or for operators |
//! | audit | read verified objects in `blobs` and the log in `log`, and list none |
//! | log | read and write the log in `log`, and delete its partial tiles and bundles; read what the store refused (`refused`) |
//!
//! A head, a full tile and a full bundle of the log are written once and never deleted, with any
//! key; its checkpoint is replaced only by a request that names the one before. See `log_rules`.
//!
//! The pairs of a run are refused while the run is among those that the coordinator has stopped
//! (`stopped`), and so are the URLs of a worker of the run: uploads by their place, which names it,
//! and reads by their grant, which is under the signature and bears its tag. The domain's own pairs
//! sign for a coordinator of an earlier release, which derives none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use identity::{AccessKey, StoreKeys, UrlsOf};
use objects::key::{HolderTag, SHUT_OUT_WORDS, STOPPED_WORDS, StoppedUrls};
use objects::presign::GRANT;
use objects::{BucketName, IncomingKey};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::path::S3Path;
use s3s::{S3Error, S3Result, s3_error};
use schemas::security::STORE_REFUSALS;

use crate::budget::CountedUrl;
use crate::gate::query_value;
use crate::peer::{Key, Peer};
use crate::stopped::Stopped;

/// Longest life of a presigned URL, as in S3.
const EXPIRES_SECONDS_MAX: u32 = 7 * 24 * 3600;
/// Headers that the signature of an upload by the put key must cover.
const UPLOAD_HEADERS: [&str; 3] = ["content-length", "if-none-match", "x-amz-checksum-sha256"];
/// Operations that the admin key may use; no other is implemented.
const OPERATIONS: [&str; 8] = [
    "CopyObject",
    "DeleteObject",
    "DeleteObjects",
    "GetObject",
    "HeadBucket",
    "HeadObject",
    "ListObjectsV2",
    "PutObject",
];

/// The rights table in the form that `s3s` asks for.
#[derive(Clone)]
pub(crate) struct Rights {
    keys: StoreKeys,
    stopped: Stopped,
}

/// Set once the signature of a request and the rights of its key were found good. It travels with
/// the request, and a connection keeps it for its later requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Admission {
    given: Arc<AtomicBool>,
    connection: Option<Arc<AtomicBool>>,
}

/// What the pair of a request is for. One that signs URLs is the domain's own, or derived for some.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    Admin,
    Put(Option<UrlsOf>),
    Get(Option<UrlsOf>),
    Audit,
    Log,
}

impl Admission {
    /// The admission of a further request on the connection of `known`.
    pub(crate) fn for_request_of(known: &Self) -> Self {
        Self {
            given: Arc::default(),
            connection: Some(known.given.clone()),
        }
    }

    pub(crate) fn is_given(&self) -> bool {
        self.given.load(Ordering::Relaxed)
    }

    pub(crate) fn give(&self) {
        for given in [Some(&self.given), self.connection.as_ref()]
            .into_iter()
            .flatten()
        {
            given.store(true, Ordering::Relaxed);
        }
    }
}

impl Rights {
    pub(crate) const fn new(keys: StoreKeys, stopped: Stopped) -> Self {
        Self { keys, stopped }
    }

    /// The name of the key with this id, for what is told of refusals; empty if there is none.
    pub(crate) fn name(&self, access: &str) -> &'static str {
        match self.role(access) {
            Some(Role::Admin) => "admin",
            Some(Role::Put(_)) => "put",
            Some(Role::Get(_)) => "get",
            Some(Role::Audit) => "audit",
            Some(Role::Log) => "log",
            None => "",
        }
    }

    fn role(&self, access: &str) -> Option<Role> {
        let derived = |key: &AccessKey| key.derives(access);
        match access {
            _ if access == self.keys.admin.id() => Some(Role::Admin),
            _ if access == self.keys.put.id() => Some(Role::Put(None)),
            _ if access == self.keys.get.id() => Some(Role::Get(None)),
            _ if Some(access) == self.keys.audit.as_ref().map(AccessKey::id) => Some(Role::Audit),
            _ if Some(access) == self.keys.log.as_ref().map(AccessKey::id) => Some(Role::Log),
            _ => derived(&self.keys.put)
                .map(|urls| Role::Put(Some(urls)))
                .or_else(|| derived(&self.keys.get).map(|urls| Role::Get(Some(urls)))),
        }
    }

    fn key(&self, role: &Role) -> Option<AccessKey> {
        let of = |key: &AccessKey, urls: &Option<UrlsOf>| match urls {
            Some(urls) => key.derived(urls),
            None => key.clone(),
        };
        match role {
            Role::Admin => Some(self.keys.admin.clone()),
            Role::Put(urls) => Some(of(&self.keys.put, urls)),
            Role::Get(urls) => Some(of(&self.keys.get, urls)),
            Role::Audit => self.keys.audit.clone(),
            Role::Log => self.keys.log.clone(),
        }
    }

    /// Refuses a URL of a stopped run or of a worker that is shut out: one that the run's pair has
    /// signed, and one to upload there, whatever pair of the domain has signed it. A client that
    /// reads these words asks the coordinator for another URL.
    fn check_stopped(&self, role: &Role, cx: &S3AccessContext<'_>) -> S3Result<()> {
        let place = || upload_key(cx.s3_path());
        let uploader = || place()?.uploader().map(HolderTag::of_worker);
        let holder = || HolderTag::of_grant(query_value(cx.uri().query()?, GRANT)?);
        let (run, worker) = match role {
            Role::Put(Some(UrlsOf::Run(run))) => (Some(run.clone()), uploader()),
            Role::Put(None) => (place().and_then(|key| key.run().cloned()), uploader()),
            Role::Get(Some(UrlsOf::Run(run))) => (Some(run.clone()), holder()),
            _ => return Ok(()),
        };
        let Some(run) = run else { return Ok(()) };
        if self.stopped.has(&StoppedUrls::of_run(run.clone())) {
            return Err(s3_error!(AccessDenied, "{STOPPED_WORDS}"));
        }
        match worker {
            Some(worker) if self.stopped.has(&StoppedUrls::of_worker(run, worker)) => {
                Err(s3_error!(AccessDenied, "{SHUT_OUT_WORDS}"))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl S3Auth for Rights {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let key = self.role(access_key).and_then(|role| self.key(&role));
        let key = key.ok_or_else(|| s3_error!(InvalidAccessKeyId))?;
        Ok(SecretKey::from(key.expose_secret()))
    }
}

#[async_trait]
impl S3Access for Rights {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> Result<(), S3Error> {
        let role = cx
            .credentials()
            .and_then(|credentials| self.role(&credentials.access_key));
        let role = role.ok_or_else(|| s3_error!(AccessDenied, "a signature is required"))?;
        let signed = signed_headers(cx)?;
        if !OPERATIONS.contains(&cx.s3_op().name()) {
            return Err(s3_error!(
                NotImplemented,
                "this store has no {}",
                cx.s3_op().name()
            ));
        }
        let peer = cx.extensions_mut().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| s3_error!(AccessDenied, "the connection is not known"))?;
        let key = match role {
            Role::Admin => Key::Admin,
            Role::Audit => Key::Audit,
            Role::Log => Key::Log,
            Role::Put(_) | Role::Get(_) => Key::Url,
        };
        peer.check(key, cx.uri().query().unwrap_or_default())?;
        self.check_stopped(&role, cx)?;
        let allowed = match &role {
            // Who was refused is for the audit service alone.
            _ if is_of_refusals(cx) => {
                matches!(role, Role::Log) && cx.s3_op().name() == "GetObject"
            }
            Role::Admin => !changes_log(cx),
            Role::Put(urls) => {
                cx.s3_op().name() == "PutObject"
                    && in_bucket(cx.s3_path(), BucketName::Incoming, "")
                    && urls.as_ref().is_none_or(|urls| uploads(cx.s3_path(), urls))
                    && signed.is_some_and(|signed| {
                        UPLOAD_HEADERS
                            .iter()
                            .all(|name| signed.iter().any(|have| have == name))
                    })
            }
            Role::Get(_) => reads_verified(cx) && signed.is_some(),
            Role::Audit => reads_verified(cx) || reads_log(cx),
            Role::Log => reads_log(cx) || writes_log(cx),
        };
        if !allowed {
            return Err(s3_error!(AccessDenied, "not a right of this key"));
        }
        if matches!(role, Role::Get(_)) {
            let query = cx.uri().query().unwrap_or_default();
            let url = CountedUrl::of(query, runtime::clock::now())?;
            cx.extensions_mut().insert(url);
        }
        if let Some(admission) = cx.extensions_mut().get::<Admission>() {
            admission.give();
        }
        Ok(())
    }
}

/// The header names that a presigned URL's signature covers; none for a request that is signed in
/// its header. Headers that change the stored object must be among them.
fn signed_headers(cx: &S3AccessContext<'_>) -> Result<Option<Vec<String>>, S3Error> {
    let Some(query) = cx
        .uri()
        .query()
        .filter(|query| query_value(query, "X-Amz-Signature").is_some())
    else {
        return Ok(None);
    };
    let seconds = query_value(query, "X-Amz-Expires").and_then(|text| text.parse::<u32>().ok());
    if !seconds.is_some_and(|seconds| (1..=EXPIRES_SECONDS_MAX).contains(&seconds)) {
        return Err(s3_error!(
            AuthorizationQueryParametersError,
            "X-Amz-Expires must lie between 1 and 604800"
        ));
    }
    let names = query_value(query, "X-Amz-SignedHeaders").unwrap_or_default();
    let names: Vec<String> = names
        .replace("%3B", ";")
        .replace("%3b", ";")
        .split(';')
        .map(str::to_owned)
        .collect();
    let unsigned = |name: &&http::HeaderName| {
        name.as_str().starts_with("x-amz-") && !names.iter().any(|have| have == name.as_str())
    };
    // The answer's words are listed for the audit service, so it names no header of the requester.
    match cx.headers().keys().any(|name| unsigned(&name)) {
        true => Err(s3_error!(
            AccessDenied,
            "a header that begins with x-amz- is not signed"
        )),
        false => Ok(Some(names)),
    }
}

/// The key of an upload; none for what is no key of `incoming`.
fn upload_key(path: &S3Path) -> Option<IncomingKey> {
    match path {
        S3Path::Object { bucket, key } if **bucket == *BucketName::Incoming.as_str() => {
            key.parse().ok()
        }
        _ => None,
    }
}

/// True for the place of an upload that URLs of this kind are for.
fn uploads(path: &S3Path, urls: &UrlsOf) -> bool {
    upload_key(path).is_some_and(|key| match urls {
        UrlsOf::Operators => key.run().is_none(),
        UrlsOf::Run(run) => key.run() == Some(run),
    })
}

/// True if a request reads one verified object.
fn reads_verified(cx: &S3AccessContext<'_>) -> bool {
    matches!(cx.s3_op().name(), "GetObject" | "HeadObject")
        && in_bucket(cx.s3_path(), BucketName::Blobs, "sha256/")
}

/// True if a request reads one file of the log.
fn reads_log(cx: &S3AccessContext<'_>) -> bool {
    matches!(cx.s3_op().name(), "GetObject" | "HeadObject")
        && in_bucket(cx.s3_path(), BucketName::Log, "")
}

/// True if a request writes or deletes one file of the log.
fn writes_log(cx: &S3AccessContext<'_>) -> bool {
    matches!(cx.s3_op().name(), "PutObject" | "DeleteObject")
        && in_bucket(cx.s3_path(), BucketName::Log, "")
}

/// True if a request is about the list of what the store refused.
fn is_of_refusals(cx: &S3AccessContext<'_>) -> bool {
    let log = BucketName::Log.as_str();
    matches!(cx.s3_path(), S3Path::Object { bucket, key } if **bucket == *log && **key == *STORE_REFUSALS)
}

/// True if a request changes anything in the bucket of the log.
fn changes_log(cx: &S3AccessContext<'_>) -> bool {
    let log = BucketName::Log.as_str();
    let is_of_log = match cx.s3_path() {
        S3Path::Object { bucket, .. } | S3Path::Bucket { bucket } => **bucket == *log,
        S3Path::Root => false,
    };
    let reads = ["GetObject", "HeadBucket", "HeadObject", "ListObjectsV2"];
    is_of_log && !reads.contains(&cx.s3_op().name())
}

fn in_bucket(path: &S3Path, wanted: BucketName, prefix: &str) -> bool {
    matches!(path, S3Path::Object { bucket, key } if **bucket == *wanted.as_str() && key.starts_with(prefix))
}
