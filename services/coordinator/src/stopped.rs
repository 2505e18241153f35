//! Tells the store which URLs are stopped, so that it refuses them: those of runs, and those of
//! workers in quarantine. The ledger says which they are, and from when on none of their URLs is
//! alive; the store has a file for each until then. The two are compared at the start, after each
//! order and every minute while this process leads, and what differs is put right. An order is
//! answered with what the store did when it was tried with a URL of each run and worker that the
//! order concerns, or when that takes too long; then it is tried again until it succeeds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use identity::{AccessKey, UrlsOf};
use ledger::{StoppedHolders, UrlHolders};
use objects::key::{HolderTag, StoppedUrls};
use objects::{Buckets, Endpoint, ObjectError, Taken};
use runtime::clock;
use schemas::hold::AtStore;
use schemas::{Code, Refusal, RunId, UnixMillis};
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
    wanted: Mutex<Wanted>,
    changed: Notify,
    /// One at a time, so that none undoes the work of a later one.
    telling: Arc<tokio::sync::Mutex<Untried>>,
    waits: Waits,
}

/// The stopped URLs, each with the time from which on none of them is alive, if their run is over.
pub(crate) type Wanted = BTreeMap<StoppedUrls, Option<UnixMillis>>;

/// What the store was told something about, of which no URL was tried since.
type Untried = BTreeSet<StoppedUrls>;

/// The URLs of this holder, as the store names them.
fn named_one(holder: UrlHolders) -> StoppedUrls {
    StoppedUrls {
        run: holder.run,
        worker: holder.worker.map(|worker| HolderTag::of_worker(&worker)),
    }
}

/// The URLs that are stopped, as the store names them.
pub(crate) fn wanted(holders: StoppedHolders) -> Wanted {
    let named = holders.into_iter();
    named.map(|(one, end)| (named_one(one), end)).collect()
}

/// The URLs of these holders, as the store names them.
pub(crate) fn named(holders: BTreeSet<UrlHolders>) -> BTreeSet<StoppedUrls> {
    holders.into_iter().map(named_one).collect()
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
            Taken::Taken | Taken::Stopped | Taken::ShutOut => Ok(true),
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
    pub(crate) fn want(&self, urls: Wanted) {
        *self.kept() = urls;
        self.0.changed.notify_one();
    }

    /// No URL of this run is alive from then on.
    pub(crate) fn end(&self, run: &RunId, at: UnixMillis) {
        let mut wanted = self.kept();
        let of_run = wanted.iter_mut().filter(|(urls, _)| urls.run == *run);
        of_run.for_each(|(_, end)| *end = Some(at));
    }

    fn kept(&self) -> MutexGuard<'_, Wanted> {
        self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The URLs that the store is to refuse now: those of which one may be alive.
    fn wanted(&self) -> BTreeSet<StoppedUrls> {
        let now = clock::now();
        let mut wanted = self.kept();
        wanted.retain(|_, end| end.is_none_or(|end| now < end));
        wanted.keys().cloned().collect()
    }

    /// The right to tell the store.
    async fn alone(&self) -> OwnedMutexGuard<Untried> {
        Arc::clone(&self.0.telling).lock_owned().await
    }

    /// Tells the store, for as long as an operator waits, and tries it with such URLs: what it does
    /// with them. Does so while this process `leads`.
    pub(crate) async fn tell_soon(
        &self,
        store: &Store,
        concerned: BTreeSet<StoppedUrls>,
        leads: impl Future<Output = bool> + Send + 'static,
    ) -> AtStore {
        let wait = self.0.waits.tell;
        self.tell_within(wait, store, concerned, leads).await
    }

    /// The same for an operator that waits for more than this.
    pub(crate) async fn tell_first(
        &self,
        store: &Store,
        concerned: BTreeSet<StoppedUrls>,
        leads: impl Future<Output = bool> + Send + 'static,
    ) -> AtStore {
        let wait = self.0.waits.first;
        self.tell_within(wait, store, concerned, leads).await
    }

    async fn tell_within(
        &self,
        wait: Duration,
        store: &Store,
        concerned: BTreeSet<StoppedUrls>,
        leads: impl Future<Output = bool> + Send + 'static,
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
                // A coordinator that another one has followed would undo what that one did: it
                // answers an order that changes nothing, and what it knows is of before.
                if !leads.await {
                    tracing::warn!(
                        "the store is not told which urls are stopped: it is not certain that this coordinator leads"
                    );
                    return None;
                }
                match stopped.tell(&store, untried, Some(concerned)).await {
                    Ok(does) => does,
                    Err(error) => {
                        tracing::warn!(code = %error.code, %error, "the store does not know yet which urls are stopped");
                        None
                    }
                }
            });
            telling.await.ok().flatten()
        };
        let told = timeout(wait, told).await;
        told.ok().flatten().unwrap_or(AtStore::Later)
    }

    /// Puts right what the store knows, and tries it with such URLs; without any, with those that
    /// are not tried yet. Returns what it does with them, of several the weakest.
    ///
    /// # Errors
    /// The store does not answer, or does otherwise than it was told.
    async fn tell(
        &self,
        store: &Store,
        mut untried: OwnedMutexGuard<Untried>,
        concerned: Option<BTreeSet<StoppedUrls>>,
    ) -> Result<Option<AtStore>, Refusal> {
        let wanted = self.wanted();
        untried.extend(concerned.iter().flatten().cloned());
        let right = self.put_right(&store.buckets, &wanted, &mut untried).await;
        right.map_err(|error| refusal(&error))?;
        let (mut does, mut unfit) = (None, None);
        for urls in concerned.unwrap_or_else(|| untried.clone()) {
            let of = UrlsOf::Run(urls.run.clone());
            let taken = self.takes(&store.buckets, (&of, urls.worker)).await;
            let taken = taken.map_err(|error| refusal(&error))?;
            // Those of a worker are stopped with those of its run, too.
            let with_all = wanted.contains(&StoppedUrls::of_run(urls.run.clone()));
            let shut_out = urls.worker.is_some() && wanted.contains(&urls);
            let (says, fits, words) = match taken {
                Taken::Taken => (AtStore::Taken, !with_all && !shut_out, "takes"),
                Taken::Stopped => (AtStore::Stopped, with_all, "refuses, with their run,"),
                Taken::ShutOut => (AtStore::ShutOut, shut_out, "refuses, with their worker,"),
                Taken::NoPair(_) => (AtStore::Unable, false, "knows no pair for"),
            };
            if fits {
                untried.remove(&urls);
                does = Some(does.map_or(says, |others: AtStore| others.min(says)));
            } else {
                let detail = format!("it {words} the urls of {urls}, and was told otherwise");
                unfit = Some(Refusal::new(Code::StoreUnfit, detail));
            }
        }
        unfit.map_or(Ok(does), Err)
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
            // A coordinator that another one has followed would undo what that one did. It is asked
            // after an earlier telling, which may take long.
            let untried = self.alone().await;
            let told = match leads().await {
                true => Some(self.tell(&store, untried, None).await),
                false => {
                    drop(untried);
                    None
                }
            };
            let wait = match told {
                Some(Ok(_)) => {
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
