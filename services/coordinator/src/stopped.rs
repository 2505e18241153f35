//! Tells the store which runs are stopped, so that it refuses their URLs. The ledger says which they
//! are; the store has a file for each. The two are compared at the start and after each order, and what
//! differs is put right. An order is answered when that was tried with a URL of each run that it
//! concerns, or when it takes too long; then it is tried again until it succeeds.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use identity::{AccessKey, UrlsOf};
use objects::{Buckets, Endpoint, ObjectError};
use schemas::hold::AtStore;
use schemas::{Code, Refusal, RunId};
use tokio::sync::Notify;

use crate::store::{Store, refusal};

/// Longest time that an operator waits for the store.
const TELL_WAIT: Duration = Duration::from_secs(15);
/// Time between two tries.
const AGAIN: Duration = Duration::from_secs(10);

/// The stopped runs, as the ledger has them and as the store knows them. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Stopped(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The pair from which those are derived that sign URLs to read.
    get: AccessKey,
    /// Where the file of the certificate is that this process shows to the store.
    endpoint: Endpoint,
    wanted: Mutex<BTreeSet<RunId>>,
    changed: Notify,
    /// One at a time, so that none undoes the work of a later one.
    telling: tokio::sync::Mutex<()>,
}

impl Stopped {
    pub(crate) fn new(get: AccessKey, endpoint: Endpoint) -> Self {
        Self(Arc::new(Shared {
            get,
            endpoint,
            wanted: Mutex::default(),
            changed: Notify::new(),
            telling: tokio::sync::Mutex::default(),
        }))
    }

    /// True if the store derives a pair for each run, and so can refuse the URLs of one.
    ///
    /// # Errors
    /// The store does not answer.
    pub(crate) async fn can(&self, buckets: &Buckets) -> Result<bool, ObjectError> {
        self.takes(buckets, &UrlsOf::Operators).await
    }

    /// True if the store takes URLs of this kind.
    async fn takes(&self, buckets: &Buckets, urls: &UrlsOf) -> Result<bool, ObjectError> {
        let holder = self.0.endpoint.holder();
        buckets.takes(urls, &self.0.get, holder.as_ref()).await
    }

    /// These runs are stopped from now on, and no others.
    pub(crate) fn want(&self, runs: BTreeSet<RunId>) {
        *self.wanted() = runs;
        self.0.changed.notify_one();
    }

    fn wanted(&self) -> std::sync::MutexGuard<'_, BTreeSet<RunId>> {
        self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the store, for as long as an operator waits.
    pub(crate) async fn tell_soon(&self, store: &Store) -> AtStore {
        if !store.signer.derives() {
            return AtStore::Unable;
        }
        match tokio::time::timeout(TELL_WAIT, self.tell(store)).await {
            Ok(Ok(())) => AtStore::Done,
            Ok(Err(error)) => {
                tracing::warn!(code = %error.code, %error, "the store does not know yet which runs are stopped");
                AtStore::Later
            }
            Err(_) => AtStore::Later,
        }
    }

    /// Puts right what the store knows, and tries it.
    ///
    /// # Errors
    /// The store does not answer, or does otherwise than it was told.
    async fn tell(&self, store: &Store) -> Result<(), Refusal> {
        let _alone = self.0.telling.lock().await;
        let wanted = self.wanted().clone();
        let runs = self.put_right(&store.buckets, &wanted).await;
        for run in runs.map_err(|error| refusal(&error))? {
            let urls = UrlsOf::Run(run.clone());
            let takes = self.takes(&store.buckets, &urls).await;
            let takes = takes.map_err(|error| refusal(&error))?;
            if takes == wanted.contains(&run) {
                let does = if takes { "takes" } else { "refuses" };
                let detail = format!("it {does} the urls of run {run}, and was told otherwise");
                return Err(Refusal::new(Code::StoreUnfit, detail));
            }
        }
        Ok(())
    }

    /// Has the store know the stopped runs, and returns those to try.
    async fn put_right(
        &self,
        buckets: &Buckets,
        wanted: &BTreeSet<RunId>,
    ) -> Result<BTreeSet<RunId>, ObjectError> {
        let known = buckets.stopped_runs().await?;
        for run in wanted.difference(&known) {
            buckets.stop_run(run).await?;
        }
        for run in known.difference(wanted) {
            buckets.allow_run(run).await?;
        }
        Ok(wanted.union(&known).cloned().collect())
    }

    /// Tells the store after each change, and again until it knows. Ends with the process.
    pub(crate) async fn keep(self, store: Store) {
        if !store.signer.derives() {
            return;
        }
        let mut failing = false;
        loop {
            match self.tell(&store).await {
                Ok(()) => {
                    failing = false;
                    self.0.changed.notified().await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(code = %error.code, %error, "the store is not told which runs are stopped; trying again");
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::answering;

    #[tokio::test]
    async fn tl_20_an_order_hears_what_the_store_does_and_success_only_when_it_was_tried() {
        let (mut store, _serving) = answering("403 Forbidden").await;
        let run: RunId = "demo".parse().expect("a name");
        store.stopped.want([run].into());
        let told = store.stopped.tell_soon(&store).await;
        assert_eq!(told, AtStore::Unable, "it derives no pairs");
        store.signer = store.signer.deriving(true);
        let told = store.stopped.tell_soon(&store).await;
        assert_eq!(told, AtStore::Later, "it refuses to be told");
    }
}
