//! Deletes the uploads of workers in quarantine, and uploads from before a restore, beside all
//! other work. Operators that wait hear how many were deleted. If the store is away or this process
//! ends, uploads are left, and the operators hear that.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coordinator_core::Uploads;
use futures::stream::TryStreamExt as _;
use objects::IncomingKey;
use schemas::RunId;
use schemas::hold::AtStore;
use tokio::task::{AbortHandle, JoinSet};

use crate::store::Store;
use crate::sweep::DELETIONS_MAX;

/// Most deletions at a time: for each, all uploads to its run are listed.
const PURGES_MAX: usize = 4;
/// Most orders that wait for one deletion.
const ORDERS_MAX: usize = 16;
/// Longest time of a deletion: an operator waits for the answer.
const PURGE_WAIT: Duration = Duration::from_secs(15);

/// The uploads to delete, with their run.
type Doomed = (RunId, Uploads);

/// The deletions under way, with the orders of kind `O` that wait for them.
#[derive(Debug)]
pub(crate) struct Purges<O> {
    open: BTreeMap<Doomed, Purge<O>>,
    tasks: JoinSet<Purged>,
}

#[derive(Debug)]
struct Purge<O> {
    orders: Vec<O>,
    deleted: Arc<AtomicU32>,
    task: AbortHandle,
}

/// The end of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Purged {
    /// True if everything was deleted.
    pub(crate) whole: bool,
    /// What the store does about the URLs that could bring more.
    pub(crate) at_store: AtStore,
}

impl<O> Default for Purges<O> {
    fn default() -> Self {
        Self {
            open: BTreeMap::new(),
            tasks: JoinSet::new(),
        }
    }
}

impl<O> Purges<O> {
    /// Has uploads deleted by `work`, which counts them. If that is under way, it begins anew,
    /// since uploads may have come behind it, and all its orders are answered together.
    ///
    /// # Errors
    /// Too many are under way, or wait for this one: the order comes back.
    pub(crate) fn begin<W>(
        &mut self,
        of: Doomed,
        order: O,
        work: impl FnOnce(Arc<AtomicU32>) -> W,
    ) -> Result<(), O>
    where
        W: Future<Output = Purged> + Send + 'static,
    {
        if let Some(purge) = self.open.get_mut(&of) {
            if purge.orders.len() >= ORDERS_MAX {
                return Err(order);
            }
            purge.task.abort();
            purge.task = self.tasks.spawn(work(Arc::clone(&purge.deleted)));
            purge.orders.push(order);
            return Ok(());
        }
        if self.open.len() >= PURGES_MAX {
            return Err(order);
        }
        let deleted = Arc::default();
        let task = self.tasks.spawn(work(Arc::clone(&deleted)));
        let orders = vec![order];
        let purge = Purge {
            orders,
            deleted,
            task,
        };
        self.open.insert(of, purge);
        Ok(())
    }

    /// The next deletion that ends: the orders that wait for it, how many uploads it deleted, none
    /// if some are left, and what the store does about URLs. Without one under way it waits. Loses
    /// nothing when it is dropped.
    pub(crate) async fn next(&mut self) -> (Vec<O>, Option<u32>, AtStore) {
        loop {
            let Some(ended) = self.tasks.join_next_with_id().await else {
                return pending().await;
            };
            let unknown = Purged {
                whole: false,
                at_store: AtStore::Later,
            };
            let (id, Purged { whole, at_store }) = match ended {
                Ok(ended) => ended,
                // It was begun anew, or it panicked.
                Err(error) => (error.id(), unknown),
            };
            let mut open = self.open.iter();
            let of = open.find(|(_, purge)| purge.task.id() == id);
            let of = of.map(|(of, _)| of.clone());
            if let Some(purge) = of.and_then(|of| self.open.remove(&of)) {
                let deleted = purge.deleted.load(Ordering::Relaxed);
                return (purge.orders, whole.then_some(deleted), at_store);
            }
        }
    }

    /// Ends all deletions, and returns the orders that wait for them.
    pub(crate) fn give_up(&mut self) -> Vec<O> {
        self.tasks.abort_all();
        let open = std::mem::take(&mut self.open).into_values();
        open.flat_map(|purge| purge.orders).collect()
    }
}

/// Deletes if this process leads. Another coordinator may have let the worker in again meanwhile,
/// and these are the uploads of its present work.
pub(crate) async fn as_leader(
    leads: impl Future<Output = bool>,
    purge: impl Future<Output = bool>,
) -> bool {
    leads.await && purge.await
}

/// Deletes uploads to a run, and counts them. False if the store refuses, is away, or takes too
/// long.
pub(crate) async fn purge(
    store: &Store,
    run: &RunId,
    doomed: &Uploads,
    deleted: &AtomicU32,
) -> bool {
    let purged = async {
        let _listing = store.look().await;
        let uploads = store.buckets.list_incoming(run);
        let goes = |key: &IncomingKey| match doomed {
            Uploads::Of(worker) => key.uploader() == Some(worker),
            Uploads::Before(round) => key.lease().is_some_and(|lease| lease.unit.round < *round),
        };
        let gone = uploads.try_filter(|key| futures::future::ready(goes(key)));
        let deletions = gone.map_ok(|key| async move {
            let _permit = store.look().await;
            store.buckets.delete_incoming(&key).await?;
            deleted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let deletions = deletions.try_buffer_unordered(DELETIONS_MAX);
        deletions.try_collect::<Vec<()>>().await
    };
    match tokio::time::timeout(PURGE_WAIT, purged).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            tracing::warn!(%run, uploads = ?doomed, code = %error.code(), %error, "uploads that count no more are left to the store");
            false
        }
        Err(_) => {
            let seconds = PURGE_WAIT.as_secs();
            tracing::warn!(%run, uploads = ?doomed, seconds, "uploads that count no more are not deleted in time");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use futures::future::BoxFuture;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn tl_31_a_coordinator_that_another_one_has_followed_deletes_no_upload() {
        for (leads, ends) in [(true, true), (true, false), (false, true)] {
            let begun = AtomicU32::new(0);
            let purge = async {
                begun.fetch_add(1, Ordering::Relaxed);
                ends
            };
            let whole = as_leader(async { leads }, purge).await;
            assert_eq!(whole, leads && ends);
            assert_eq!(begun.into_inner(), u32::from(leads));
        }
    }

    const LETTERS: [&str; PURGES_MAX + 1] = ["A", "B", "C", "D", "E"];

    fn of(number: usize) -> Doomed {
        let key = format!("U{}{}", "A".repeat(54), LETTERS[number]);
        (
            "demo".parse().expect("a name"),
            Uploads::Of(key.parse().expect("the form of a key")),
        )
    }

    /// A deletion of some uploads that ends when it is told to.
    fn deletion(
        count: u32,
    ) -> (
        oneshot::Sender<bool>,
        impl FnOnce(Arc<AtomicU32>) -> BoxFuture<'static, Purged>,
    ) {
        let (end, ended) = oneshot::channel();
        let work = move |deleted: Arc<AtomicU32>| {
            deleted.fetch_add(count, Ordering::Relaxed);
            let ended = async move {
                let whole = ended.await.expect("it is told");
                let at_store = AtStore::ShutOut;
                Purged { whole, at_store }
            };
            ended.boxed()
        };
        (end, work)
    }

    #[tokio::test]
    async fn an_order_is_answered_when_its_deletion_ends() {
        let mut purges = Purges::default();
        let ((first, work), (second, other)) = (deletion(3), deletion(5));
        purges.begin(of(1), 'a', work).expect("there is room");
        purges.begin(of(2), 'b', other).expect("there is room");
        second.send(true).expect("it waits");
        let done = AtStore::ShutOut;
        assert_eq!(purges.next().await, (vec!['b'], Some(5), done));
        first.send(false).expect("it waits");
        let left = (vec!['a'], None, done);
        assert_eq!(purges.next().await, left, "some are left");
        let panics = |_| async { panic!("in a test") };
        purges.begin(of(1), 'c', panics).expect("there is room");
        let unknown = (vec!['c'], None, AtStore::Later);
        assert_eq!(purges.next().await, unknown);
    }

    /// What came behind the first is deleted by the second, and none is counted twice or forgotten.
    #[tokio::test]
    async fn a_repeat_begins_anew_and_both_orders_hear_how_it_ends() {
        let mut purges = Purges::default();
        let ((first, work), (second, again)) = (deletion(3), deletion(1));
        purges.begin(of(1), 'a', work).expect("there is room");
        // The first has ended, and nobody has looked yet.
        first.send(true).expect("it waits");
        tokio::task::yield_now().await;
        purges.begin(of(1), 'b', again).expect("there is room");
        let early = purges.next().now_or_never();
        assert!(early.is_none(), "{early:?}");
        second.send(true).expect("it waits");
        let both = (vec!['a', 'b'], Some(4), AtStore::ShutOut);
        assert_eq!(purges.next().await, both);
        assert!(purges.open.is_empty() && purges.tasks.is_empty());
    }

    #[tokio::test]
    async fn deletions_and_those_who_wait_for_one_are_bounded() {
        let mut purges = Purges::default();
        let mut ends = Vec::new();
        for number in 0..PURGES_MAX {
            let (end, work) = deletion(1);
            purges
                .begin(of(number), number, work)
                .expect("there is room");
            ends.push(end);
        }
        assert_eq!(purges.begin(of(PURGES_MAX), 99, deletion(1).1), Err(99));
        for order in 1..ORDERS_MAX {
            let (end, work) = deletion(1);
            purges.begin(of(0), order, work).expect("there is room");
            ends[0] = end;
        }
        assert_eq!(purges.begin(of(0), 99, deletion(1).1), Err(99));
        ends.remove(0).send(true).expect("the last one runs on");
        let (orders, deleted, _) = purges.next().await;
        assert_eq!(
            (orders.len(), deleted),
            (ORDERS_MAX, Some(ORDERS_MAX as u32))
        );
        let (_end, work) = deletion(1);
        purges
            .begin(of(PURGES_MAX), 99, work)
            .expect("there is room");
    }

    #[tokio::test]
    async fn a_process_that_ends_has_an_answer_for_each_order() {
        let mut purges = Purges::default();
        let (mut first, work) = deletion(3);
        purges.begin(of(1), 'a', work).expect("there is room");
        let (_second, work) = deletion(3);
        purges.begin(of(2), 'b', work).expect("there is room");
        assert_eq!(purges.give_up(), ['a', 'b']);
        // What it did is ended.
        first.closed().await;
        assert!(purges.give_up().is_empty());
    }
}
