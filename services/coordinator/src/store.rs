//! The store as the coordinator uses it: the coordinator's own access, the signer of URLs for
//! others, and the limit on bytes in transfer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use coordinator_core::Quarantine;
use identity::{ClientFile, StoreKeys};
use objects::check::check_briefly;
use objects::{
    Buckets, Endpoint, IncomingKey, ObjectError, Signer, StoreClock, TransferLimits, Trust,
};
use recompute::Objects;
use runtime::Failure;
use schemas::member::{Layer, Posture};
use schemas::run::RunSpec;
use schemas::view::RunView;
use schemas::{Chunks, Code, Digest, ObjectRef, PublicKey, Refusal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::collection::Keeper;
use crate::config::Config;
use crate::mark::StoreMark;
use crate::stopped::Stopped;

/// The unit in which memory for contributions is counted. The count of a semaphore is too small for
/// all bytes of a large machine, so it counts pages.
const PAGE_BYTES: u64 = 4096;
/// Most requests at a time that ask the store whether it has an object.
const LOOKS_MAX: usize = 32;

/// Time between two looks at the store's clock: much less than a URL's life, so that a transfer
/// outlives a step of the clock.
const TIME_EVERY: Duration = Duration::from_secs(20);

/// Access to the store. Cheap to clone; clones share connections and bounds.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) buckets: Buckets,
    pub(crate) signer: Signer,
    /// One permit for each chunk that is being fetched or stored.
    transfers: Arc<Semaphore>,
    /// As many again, for work that rounds wait for.
    of_rounds: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    /// Keeps what is written while old objects are deleted.
    pub(crate) keeper: Keeper,
    /// The runs whose URLs the store refuses.
    pub(crate) stopped: Stopped,
    memory: Arc<Semaphore>,
    /// The reason why the store did not answer the last look at its clock.
    away: Arc<Mutex<Option<Refusal>>>,
}

/// Bytes that are kept within the bound for contributions; dropping them frees the room.
#[derive(Debug)]
pub(crate) struct Kept {
    /// The digest of the bytes.
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// The store's address with what it is trusted by, and the access keys.
fn reach(config: &Config) -> Result<(Endpoint, StoreKeys), Failure> {
    let trust = match config.store.url.starts_with("https://") {
        true => {
            let unreadable = |error| format!("store.ca {}: {error}", config.store.ca.display());
            std::fs::read(&config.store.ca)
                .map_err(|error| Failure::new(Code::CredentialUnreadable, unreadable(error)))?;
            let shown = ClientFile::beside(&config.bus.credentials);
            Trust::Shown(config.store.ca.clone(), shown)
        }
        false => Trust::PlainLoopback,
    };
    let endpoint = Endpoint::new(&config.store.url, &config.store.region, trust)
        .map_err(|error| invalid(&error))?;
    let keys = StoreKeys::read(&config.store.keys)
        .map_err(|error| Failure::new(error.code(), format!("store.keys: {error}")))?;
    Ok((endpoint, keys))
}

fn invalid(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::ConfigInvalid, format!("store: {error}"))
}

/// Tries that the store keeps the rules without which nothing here is safe. What else it lacks is
/// said in the log.
///
/// # Errors
/// [`Code::StoreUnfit`], or the store cannot be reached.
async fn check(config: &Config) -> Result<(), Failure> {
    let (endpoint, keys) = reach(config)?;
    let report = check_briefly(&endpoint, &keys).await?;
    for row in report.rows.iter().filter(|row| !row.holds) {
        if let Some(without) = row.rule.without() {
            let (rule, seen) = (row.rule.to_string(), &row.seen);
            tracing::warn!(rule, seen, "the store does not keep a rule: {without}");
        }
    }
    let unfit = report.unfit();
    if unfit.is_empty() {
        return Ok(());
    }
    let text = format!("{}: {unfit}", config.store.url);
    Err(Failure::new(Code::StoreUnfit, text))
}

impl Store {
    /// Access to the store, once it has shown that it is there, serves no strangers and keeps the
    /// rules that it must, as far as the configuration wants that.
    ///
    /// # Errors
    /// The coded reason why this store is not used.
    pub(crate) async fn open(
        config: &Config,
        posture: &Posture,
        domain: &PublicKey,
    ) -> Result<Self, Failure> {
        let mut store = Self::new(config)?;
        store.buckets.ping().await?;
        if !posture.is_open(Layer::Bulk) {
            let known = StoreMark::digest(domain);
            store.buckets.refuse_strangers(known).await?;
        }
        if config.store.check {
            check(config).await?;
        }
        let derives = store.stopped.can(&store.buckets).await?;
        tracing::info!(
            derives,
            "urls of a run are signed with a pair of its own where the store derives pairs"
        );
        store.signer = store.signer.deriving(derives);
        Ok(store)
    }

    fn new(config: &Config) -> Result<Self, Failure> {
        let (endpoint, keys) = reach(config)?;
        let clock = StoreClock::default();
        let limits = TransferLimits::default();
        let patience = config.limits.store_patience.0;
        let buckets = Buckets::new(&endpoint, &keys.admin, clock.clone(), limits, patience)?;
        let stopped = Stopped::new(keys.get.clone(), endpoint.clone());
        let signer = Signer::new(&endpoint, &keys, clock).map_err(|error| invalid(&error))?;
        let signer = signer.naming_holders(config.auth.mutual_tls);
        let pages = usize::try_from(config.limits.contributions_memory.0 / PAGE_BYTES)
            .unwrap_or(usize::MAX);
        let transfers = || Arc::new(Semaphore::new(config.limits.transfers.max(1) as usize));
        Ok(Self {
            buckets,
            signer,
            transfers: transfers(),
            of_rounds: transfers(),
            looks: Arc::new(Semaphore::new(LOOKS_MAX)),
            keeper: Keeper::default(),
            stopped,
            memory: Arc::new(Semaphore::new(pages.min(Semaphore::MAX_PERMITS))),
            away: Arc::default(),
        })
    }

    /// The same access for work that rounds wait for: merges, restores, saves, and the lists of the
    /// weights that workers read. Its transfers never queue behind checks of results, of which any
    /// number may wait.
    #[must_use]
    pub(crate) fn for_rounds(&self) -> Self {
        Self {
            transfers: Arc::clone(&self.of_rounds),
            ..self.clone()
        }
    }

    /// Keeps the bytes of an object if there is room for them.
    pub(crate) fn keep(&self, digest: Digest, bytes: Bytes) -> Option<Kept> {
        let pages = u32::try_from((bytes.len() as u64).div_ceil(PAGE_BYTES)).ok()?;
        let room = Arc::clone(&self.memory)
            .try_acquire_many_owned(pages)
            .ok()?;
        Some(Kept {
            digest,
            bytes,
            _room: room,
        })
    }

    /// Reads the store's clock now and then, for as long as it is polled. URLs are signed by that
    /// clock: a worker whose URL was refused for its time asks again, and must get a better one.
    pub(crate) async fn keep_time(self) {
        loop {
            tokio::time::sleep(TIME_EVERY).await;
            self.look_at_time().await;
        }
    }

    async fn look_at_time(&self) {
        let looked = self.buckets.ping().await;
        if let Err(error) = &looked {
            tracing::warn!(code = %error.code(), %error, "the store's clock was not measured again");
        }
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        *away = looked.err().map(|error| refusal(&error));
    }

    /// Writes into the views of runs that the store does not answer, if it did not lately. What a
    /// run itself is held up by stays, and runs that are over need no store.
    pub(crate) fn tell_away<'a>(&self, runs: impl IntoIterator<Item = &'a mut RunView>) {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(why) = &*away else {
            return;
        };
        let open = runs.into_iter().filter(|run| run.completed_at.is_none());
        for run in open.filter(|run| run.halted.is_none()) {
            run.trouble.get_or_insert_with(|| why.clone());
        }
    }

    /// Waits until the store may be asked whether it has an object. At most [`LOOKS_MAX`] of these
    /// requests run at a time, since the store has other work.
    pub(crate) async fn look(&self) -> SemaphorePermit<'_> {
        self.looks
            .acquire()
            .await
            .expect("the semaphore is never closed")
    }

    /// Waits until a chunk may be fetched or stored.
    pub(crate) async fn transfer(&self) -> OwnedSemaphorePermit {
        let permit = Arc::clone(&self.transfers).acquire_owned().await;
        permit.expect("the semaphore is never closed")
    }

    /// Fetches an object and verifies its digest and length.
    pub(crate) async fn fetch(&self, object: ObjectRef) -> Result<Bytes, Refusal> {
        let _permit = self.transfer().await;
        let bytes = self
            .buckets
            .get(object.digest)
            .await
            .map_err(|error| refusal(&error))?;
        if bytes.len() as u64 == object.bytes.get() {
            return Ok(bytes);
        }
        let detail = format!(
            "{} has {} bytes, expected {}",
            object.digest,
            bytes.len(),
            object.bytes
        );
        Err(Refusal::new(Code::ObjectMismatch, detail))
    }

    /// Names chunks as the run does, and stores their list if there is one.
    pub(crate) async fn name_chunks(
        &self,
        spec: &RunSpec,
        chunks: Vec<ObjectRef>,
    ) -> Result<Chunks, Refusal> {
        let (named, list) = spec.name_chunks(chunks);
        if let Some(list) = list {
            self.publish(list.into()).await?;
        }
        Ok(named)
    }

    /// Stores bytes in `blobs`.
    pub(crate) async fn publish(&self, bytes: Bytes) -> Result<ObjectRef, Refusal> {
        let hashed = bytes.clone();
        let object = tokio::task::spawn_blocking(move || ObjectRef::of(&hashed)).await;
        let object = object.expect("hashing does not panic");
        self.keeper.writes(object.digest).await;
        let stored = self.buckets.put_hashed(object, bytes).await;
        stored.map_err(|error| refusal(&error))?;
        Ok(object)
    }

    /// Copies a checked upload to `blobs`.
    pub(crate) async fn promote(
        &self,
        key: &IncomingKey,
        object: ObjectRef,
    ) -> Result<(), ObjectError> {
        self.keeper.writes(object.digest).await;
        self.buckets.promote(key, object).await.map(drop)
    }
}

#[async_trait]
impl Objects for Store {
    async fn fetch(&self, object: ObjectRef) -> Result<Bytes, Refusal> {
        Self::fetch(self, object).await
    }
}

/// The key of an object in a quarantine.
pub(crate) fn incoming_key(place: &Quarantine, digest: Digest) -> IncomingKey {
    match place {
        Quarantine::Worker { run, lease, worker } => {
            IncomingKey::worker(run, *lease, worker, digest)
        }
        Quarantine::Operator { operator } => IncomingKey::operator(operator, digest),
    }
}

/// A failed operation at the store, as the answer to the request that needed it.
pub(crate) fn refusal(error: &ObjectError) -> Refusal {
    Refusal::new(error.code(), error.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;

    use futures::FutureExt as _;
    use runtime::{ConfigBytes, ConfigDuration};
    use schemas::member::OpenLayer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::config::{LimitsConfig, StoreConfig};

    /// A server; dropping it ends it.
    type Serving = AbortOnDropHandle<()>;

    /// A configuration with keys in `folder`.
    fn config(folder: &std::path::Path, limits: LimitsConfig) -> Config {
        let keys = folder.join("keys.json");
        identity::StoreKeys::generate()
            .write(&keys)
            .expect("the folder takes files");
        let store = StoreConfig {
            url: "http://127.0.0.1:9".to_owned(),
            keys,
            ..StoreConfig::default()
        };
        Config {
            store,
            limits,
            ..Config::default()
        }
    }

    /// Access to a store that nobody listens for, as `limits` say.
    fn of(limits: LimitsConfig) -> Store {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let config = config(scratch.path(), limits);
        Store::new(&config).expect("nothing is connected yet")
    }

    /// Access to a store that is away, and every permit of the checks of results.
    pub(crate) async fn away_and_full_of_checks() -> (Store, Vec<OwnedSemaphorePermit>) {
        let limits = LimitsConfig {
            transfers: 2,
            store_patience: ConfigDuration::from_secs(0),
            ..LimitsConfig::default()
        };
        let store = of(limits);
        let permits = vec![store.transfer().await, store.transfer().await];
        assert!(store.transfer().now_or_never().is_none(), "all are taken");
        (store, permits)
    }

    /// A configuration whose store gives this answer to everything. It answers while the task runs.
    async fn config_of(folder: &std::path::Path, status: &'static str) -> (Config, Serving) {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port is free");
        let address = listener.local_addr().expect("it listens");
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, status));
            }
        });
        let mut config = config(folder, LimitsConfig::default());
        config.store.url = format!("http://{address}");
        config.limits.store_patience = ConfigDuration::from_secs(5);
        (config, AbortOnDropHandle::new(serving))
    }

    /// Answers one request, with its body read.
    async fn answer(mut stream: TcpStream, status: &str) -> Option<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let length = |line: &str| line.strip_prefix("content-length: ")?.parse().ok();
        let mut body = vec![0; head.lines().find_map(length).unwrap_or(0)];
        stream.read_exact(&mut body).await.ok()?;
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.ok()?;
        stream.shutdown().await.ok()
    }

    /// Access to the store that listens there.
    pub(crate) fn at(address: SocketAddr) -> Store {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let mut config = config(scratch.path(), LimitsConfig::default());
        config.store.url = format!("http://{address}");
        config.limits.store_patience = ConfigDuration::from_secs(5);
        Store::new(&config).expect("nothing is connected yet")
    }

    /// Access to a store that gives this answer to everything, while the task runs.
    pub(crate) async fn answering(status: &'static str) -> (Store, Serving) {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let (config, serving) = config_of(scratch.path(), status).await;
        let store = Store::new(&config).expect("nothing is connected yet");
        (store, serving)
    }

    /// A server that says yes to everything: it would take other bytes than were announced.
    #[tokio::test]
    async fn tl_20_a_store_that_takes_everything_is_refused_at_the_start() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let (mut config, serving) = config_of(scratch.path(), "200 OK").await;
        let domain = format!("O{}", "A".repeat(55)).parse().expect("a key");
        let bulk_is_open = Posture {
            open: vec![OpenLayer {
                layer: Layer::Bulk,
                reason: "a test".to_owned(),
            }],
        };
        let open = async |config: &Config, posture: &Posture| {
            let opened = Store::open(config, posture, &domain).await;
            opened.map(|_| ()).map_err(|failure| {
                let said = failure.refusal().to_string();
                (failure.code(), said)
            })
        };
        let (code, said) = open(&config, &bulk_is_open).await.expect_err("no rule");
        assert_eq!(code, Code::StoreUnfit);
        let rule = "wrong bytes are refused and absent";
        assert!(said.contains(rule), "{said}");
        let (code, _) = open(&config, &Posture::default()).await.expect_err("open");
        assert_eq!(code, Code::StrangerServed);
        config.store.check = false;
        open(&config, &bulk_is_open).await.expect("it is not tried");
        config.store.check = true;
        drop(serving);
        let (code, _) = open(&config, &bulk_is_open).await.expect_err("nobody");
        assert_eq!(code, Code::StoreUnreachable, "nothing is known");
    }

    #[tokio::test]
    async fn the_views_of_open_runs_say_that_the_store_does_not_answer_while_it_does_not() {
        let (store, _permits) = away_and_full_of_checks().await;
        let mut state = ledger::State::default();
        let name = "demo".parse().expect("a name");
        let created = schemas::event::LedgerEvent::RunCreated {
            spec: Box::new(kit::run_spec().build()),
            operator: kit::operator(),
        };
        let time = schemas::UnixMillis(1);
        state
            .apply(time, Some(&name), &created)
            .expect("a first run");
        let view = state.run(&name).expect("it was created").view(&name);
        let own = Refusal::new(Code::TooFewWorkers, "one is needed");
        let told = |store: &Store| {
            let mut views = [view.clone(), view.clone(), view.clone()];
            views[1].completed_at = Some(time);
            views[2].trouble = Some(own.clone());
            store.tell_away(&mut views);
            views.map(|view| view.trouble.map(|trouble| trouble.code))
        };
        assert_eq!(
            told(&store),
            [None, None, Some(own.code)],
            "nobody has looked"
        );
        store.look_at_time().await;
        let away = Some(Code::StoreUnreachable);
        assert_eq!(told(&store.for_rounds()), [away, None, Some(own.code)]);
    }

    #[tokio::test]
    async fn work_that_rounds_wait_for_has_transfers_of_its_own() {
        let (store, _permits) = away_and_full_of_checks().await;
        let (one, other) = (store.for_rounds(), store.for_rounds());
        let held = (
            one.transfer().now_or_never(),
            other.transfer().now_or_never(),
        );
        assert!(
            held.0.is_some() && held.1.is_some(),
            "as many as checks have"
        );
        assert!(one.transfer().now_or_never().is_none(), "and no more");
    }

    #[tokio::test]
    async fn fg_24_memory_for_contributions_is_bounded_however_many_workers_send_them() {
        let store = of(LimitsConfig {
            contributions_memory: ConfigBytes(3 * PAGE_BYTES),
            ..LimitsConfig::default()
        });
        let chunk = Bytes::from(vec![0; PAGE_BYTES as usize]);
        let digest = Digest::of(&chunk);
        let kept: Vec<Option<Kept>> = (0..100)
            .map(|_| store.keep(digest, chunk.clone()))
            .collect();
        assert_eq!(kept.iter().flatten().count(), 3);
        drop(kept);
        assert!(
            store
                .keep(digest, vec![0; 4 * PAGE_BYTES as usize].into())
                .is_none(),
            "more than there is room for"
        );
        assert!(
            store
                .keep(digest, vec![0; 3 * PAGE_BYTES as usize].into())
                .is_some(),
            "what was dropped gave its room back"
        );
    }
}
