//! Tells the store which URLs are stopped, so that it refuses them: those of runs, and those of
//! workers in quarantine. The ledger says which they are; the store has a file for each. The two
//! are compared at the start, after each order and every minute while this process leads, and what
//! differs is put right. An order is answered when that was tried with a URL of each run and worker
//! that it concerns, or when it takes too long; then it is tried again until it succeeds.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use identity::{AccessKey, UrlsOf};
use ledger::UrlHolders;
use objects::key::{HolderTag, StoppedUrls};
use objects::{Buckets, Endpoint, ObjectError, Taken};
use schemas::hold::AtStore;
use schemas::{Code, Refusal};
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::store::{Store, refusal};

/// The waits of this file.
const WAITS: Waits = Waits {
    tell: Duration::from_secs(15),
    first: Duration::from_secs(5),
    look: Duration::from_secs(60),
    again: Duration::from_secs(10),
};

#[derive(Clone, Copy, Debug)]
struct Waits {
    /// Longest time that an operator waits for the store.
    tell: Duration,
    /// The same for an order that does other things at the store afterwards.
    first: Duration,
    /// Time between two looks: a store may lose a file or get one back, as from a backup, and a
    /// request of an earlier coordinator may come late.
    look: Duration,
    /// Time between two tries.
    again: Duration,
}

/// The stopped URLs, as the ledger has them and as the store knows them. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Stopped(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The pair from which those are derived that sign URLs to read.
    get: AccessKey,
    /// Where the file of the certificate is that this process shows to the store.
    endpoint: Endpoint,
    wanted: Mutex<BTreeSet<StoppedUrls>>,
    changed: Notify,
    /// One at a time, so that none undoes the work of a later one.
    telling: Arc<tokio::sync::Mutex<Untried>>,
    waits: Waits,
}

/// What the store was told something about, of which no URL was tried since.
type Untried = BTreeSet<StoppedUrls>;

/// The URLs of these holders, as the store names them.
pub(crate) fn named(holders: BTreeSet<UrlHolders>) -> BTreeSet<StoppedUrls> {
    let named = holders.into_iter().map(|one| StoppedUrls {
        run: one.run,
        worker: one.worker.map(|worker| HolderTag::of_worker(&worker)),
    });
    named.collect()
}

impl Stopped {
    pub(crate) fn new(get: AccessKey, endpoint: Endpoint) -> Self {
        Self::with(get, endpoint, WAITS)
    }

    fn with(get: AccessKey, endpoint: Endpoint, waits: Waits) -> Self {
        Self(Arc::new(Shared {
            get,
            endpoint,
            wanted: Mutex::default(),
            changed: Notify::new(),
            telling: Arc::default(),
            waits,
        }))
    }

    /// True if the store derives a pair for each run, and so can refuse the URLs of one.
    ///
    /// # Errors
    /// The store does not answer, or refuses for another reason than that it derives none; or the
    /// certificate cannot be read that is shown to it.
    pub(crate) async fn can(&self, buckets: &Buckets) -> Result<bool, ObjectError> {
        match self.takes(buckets, (&UrlsOf::Operators, None)).await? {
            Taken::Taken | Taken::Stopped => Ok(true),
            Taken::NoPair(said) => {
                tracing::warn!(
                    said,
                    "the store derives no pair for each run: urls that are out cannot be stopped, and last until they end"
                );
                Ok(false)
            }
        }
    }

    /// What the store does with URLs of this kind, given to this worker.
    async fn takes(
        &self,
        buckets: &Buckets,
        urls: (&UrlsOf, Option<HolderTag>),
    ) -> Result<Taken, ObjectError> {
        let holder = self.0.endpoint.holder();
        let during = || format!("try of a url of {}", urls.0);
        let holder = holder.map_err(|error| ObjectError::own_certificate(during(), &error))?;
        buckets.takes(urls, &self.0.get, holder.as_ref()).await
    }

    /// These URLs are stopped from now on, and no others.
    pub(crate) fn want(&self, urls: BTreeSet<StoppedUrls>) {
        *self.wanted() = urls;
        self.0.changed.notify_one();
    }

    fn wanted(&self) -> std::sync::MutexGuard<'_, BTreeSet<StoppedUrls>> {
        self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to tell the store.
    async fn alone(&self) -> OwnedMutexGuard<Untried> {
        Arc::clone(&self.0.telling).lock_owned().await
    }

    /// Tells the store, for as long as an operator waits, and tries it with such URLs.
    pub(crate) async fn tell_soon(
        &self,
        store: &Store,
        concerned: BTreeSet<StoppedUrls>,
    ) -> AtStore {
        self.tell_within(self.0.waits.tell, store, concerned).await
    }

    /// The same for an operator that waits for more than this.
    pub(crate) async fn tell_first(
        &self,
        store: &Store,
        concerned: BTreeSet<StoppedUrls>,
    ) -> AtStore {
        self.tell_within(self.0.waits.first, store, concerned).await
    }

    async fn tell_within(
        &self,
        wait: Duration,
        store: &Store,
        concerned: BTreeSet<StoppedUrls>,
    ) -> AtStore {
        if !store.signer.derives() {
            return AtStore::Unable;
        }
        let told = async {
            let untried = self.alone().await;
            let (stopped, store) = (self.clone(), store.clone());
            // It does not end with the wait: a request that was cut off might come to the store
            // behind that of a later order.
            let telling = tokio::spawn(async move {
                let told = stopped.tell(&store, untried, Some(concerned)).await;
                if let Err(error) = &told {
                    tracing::warn!(code = %error.code, %error, "the store does not know yet which urls are stopped");
                }
                told.is_ok()
            });
            telling.await.unwrap_or(false)
        };
        match timeout(wait, told).await {
            Ok(true) => AtStore::Done,
            Ok(false) | Err(_) => AtStore::Later,
        }
    }

    /// Puts right what the store knows, and tries it with such URLs; without any, with those that
    /// are not tried yet.
    ///
    /// # Errors
    /// The store does not answer, or does otherwise than it was told.
    async fn tell(
        &self,
        store: &Store,
        mut untried: OwnedMutexGuard<Untried>,
        concerned: Option<BTreeSet<StoppedUrls>>,
    ) -> Result<(), Refusal> {
        let wanted = self.wanted().clone();
        untried.extend(concerned.iter().flatten().cloned());
        let right = self.put_right(&store.buckets, &wanted, &mut untried).await;
        right.map_err(|error| refusal(&error))?;
        let mut unfit = None;
        for urls in concerned.unwrap_or_else(|| untried.clone()) {
            let of = UrlsOf::Run(urls.run.clone());
            let taken = self.takes(&store.buckets, (&of, urls.worker)).await;
            // Those of a worker are stopped with those of its run, too.
            let with_all = StoppedUrls::of_run(urls.run.clone());
            let is_stopped = wanted.contains(&urls) || wanted.contains(&with_all);
            let does = match (taken.map_err(|error| refusal(&error))?, is_stopped) {
                (Taken::Taken, false) | (Taken::Stopped, true) => {
                    untried.remove(&urls);
                    continue;
                }
                (Taken::Taken, true) => "takes",
                (Taken::Stopped, false) => "refuses",
                (Taken::NoPair(_), _) => "knows no pair for",
            };
            let detail = format!("it {does} the urls of {urls}, and was told otherwise");
            unfit = Some(Refusal::new(Code::StoreUnfit, detail));
        }
        unfit.map_or(Ok(()), Err)
    }

    /// Has the store know the stopped URLs, and notes those that it knew otherwise. A stop that
    /// fails, as in a store without room, keeps nobody's URLs stopped that are allowed again.
    async fn put_right(
        &self,
        buckets: &Buckets,
        wanted: &BTreeSet<StoppedUrls>,
        untried: &mut Untried,
    ) -> Result<(), ObjectError> {
        let known = buckets.stopped_urls().await?;
        untried.extend(wanted.symmetric_difference(&known).cloned());
        let mut done = Ok(());
        for urls in wanted.difference(&known) {
            done = done.and(buckets.stop_urls(urls).await);
        }
        for urls in known.difference(wanted) {
            done = done.and(buckets.allow_urls(urls).await);
        }
        done
    }

    /// Tells the store after each change, again until it knows, and every minute in case it forgot,
    /// while this process `leads`. Ends with the process.
    pub(crate) async fn keep<Answer: Future<Output = bool>>(
        self,
        store: Store,
        leads: impl Fn() -> Answer,
    ) {
        if !store.signer.derives() {
            return;
        }
        let mut failing = false;
        loop {
            // A coordinator that another one has followed would undo what that one did.
            let told = match leads().await {
                true => {
                    let untried = self.alone().await;
                    Some(self.tell(&store, untried, None).await)
                }
                false => None,
            };
            let wait = match told {
                Some(Ok(())) => {
                    failing = false;
                    self.0.waits.look
                }
                Some(Err(error)) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(code = %error.code, %error, "the store is not told which urls are stopped; trying again");
                    }
                    self.0.waits.again
                }
                None => self.0.waits.again,
            };
            let _look = timeout(wait, self.0.changed.notified()).await;
        }
    }
}

/// The orders whose operators wait for the store. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiting {
    ending: CancellationToken,
    tasks: TaskTracker,
}

impl Waiting {
    /// Answers an order with what comes of `telling`, or when this process ends: then the next
    /// coordinator tells the store, at its start.
    pub(crate) fn begin<Sent: Future<Output = ()> + Send + 'static>(
        &self,
        telling: impl Future<Output = AtStore> + Send + 'static,
        answer: impl FnOnce(AtStore) -> Sent + Send + 'static,
    ) {
        let ending = self.ending.clone();
        self.tasks.spawn(async move {
            let at_store = tokio::select! {
                at_store = telling => at_store,
                () = ending.cancelled() => AtStore::Later,
            };
            answer(at_store).await;
        });
    }

    /// Answers all orders that still wait.
    pub(crate) async fn end(&self) {
        self.ending.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests;
