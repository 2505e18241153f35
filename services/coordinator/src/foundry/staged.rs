//! The checks of the chunks under one lease, both those that its worker announced and those that
//! its result names. What is read once is not read again, however often a result names it, and only
//! so many are read at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use futures::future::{BoxFuture, FutureExt as _, Shared};
use schemas::{Code, ObjectRef, Refusal};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

/// Chunks of one lease that wait for a transfer at a time: results of other workers and runs have
/// their turn between them.
pub(crate) const CHECKS_MAX: usize = 16;

/// A chunk's bytes and the number of its elements: what its check depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Content {
    pub(crate) object: ObjectRef,
    pub(crate) elements: usize,
}

/// The checks of one lease, each of which comes to a `T`.
#[derive(Debug)]
pub(crate) struct Checks<T> {
    /// Checks by position in the layout: the last for each.
    begun: BTreeMap<u32, Arc<Check<T>>>,
    /// The same by content. Entries without a position are empty, and go with the lease.
    by_content: BTreeMap<Content, Weak<Check<T>>>,
    turns: Arc<Semaphore>,
}

/// A check that was begun. It ends when nothing waits for it any more.
#[derive(Debug)]
pub(crate) struct Check<T> {
    outcome: Shared<BoxFuture<'static, Result<Arc<T>, Refusal>>>,
    task: AbortHandle,
}

impl<T> Default for Checks<T> {
    fn default() -> Self {
        Self {
            begun: BTreeMap::new(),
            by_content: BTreeMap::new(),
            turns: Arc::new(Semaphore::new(CHECKS_MAX)),
        }
    }
}

impl<T: Send + Sync + 'static> Checks<T> {
    /// The check of the chunk at position `index`: the one of the same content that was begun, or
    /// `work`. It is kept until another content takes this position.
    pub(crate) fn begin<W>(&mut self, index: u32, content: Content, work: W) -> Arc<Check<T>>
    where
        W: Future<Output = Result<T, Refusal>> + Send + 'static,
    {
        let begun = self.by_content.get(&content).and_then(Weak::upgrade);
        let check = begun.unwrap_or_else(|| {
            let turns = Arc::clone(&self.turns);
            let check = Arc::new(Check::begin(async move {
                let turn = turns.acquire().await;
                let _turn = turn.expect("the semaphore is never closed");
                work.await
            }));
            self.by_content.insert(content, Arc::downgrade(&check));
            check
        });
        self.begun.insert(index, Arc::clone(&check));
        check
    }
}

impl<T: Send + Sync + 'static> Check<T> {
    fn begin(work: impl Future<Output = Result<T, Refusal>> + Send + 'static) -> Self {
        let running = tokio::spawn(work);
        let task = running.abort_handle();
        let outcome = async move {
            let ended = running.await;
            let broke = |error| Refusal::new(Code::Internal, format!("check of a chunk: {error}"));
            ended.map_err(broke)?.map(Arc::new)
        };
        Self {
            outcome: outcome.boxed().shared(),
            task,
        }
    }

    /// The outcome of the check.
    pub(crate) async fn outcome(&self) -> Result<Arc<T>, Refusal> {
        self.outcome.clone().await
    }
}

impl<T> Drop for Check<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use schemas::{Bytes, Digest};

    use super::*;

    /// Checks that end when they are told to, and how many were begun.
    struct ManualChecks {
        begun: Arc<AtomicUsize>,
        gate: Arc<Semaphore>,
    }

    impl ManualChecks {
        fn closed() -> Self {
            Self {
                begun: Arc::default(),
                gate: Arc::new(Semaphore::new(0)),
            }
        }

        fn work(&self, fails: bool) -> impl Future<Output = Result<usize, Refusal>> + use<> {
            let (begun, gate) = (Arc::clone(&self.begun), Arc::clone(&self.gate));
            async move {
                let number = begun.fetch_add(1, Ordering::SeqCst);
                gate.acquire().await.expect("it is never closed").forget();
                match fails {
                    true => Err(Refusal::new(Code::NotFinite, "test")),
                    false => Ok(number),
                }
            }
        }

        /// The number of checks that were begun once nothing moves any more.
        async fn begun(&self) -> usize {
            // One thread polls everything that is ready before it comes back here.
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            self.begun.load(Ordering::SeqCst)
        }
    }

    fn content(number: u64, elements: usize) -> Content {
        let object = ObjectRef {
            digest: Digest::of(&number.to_le_bytes()),
            bytes: Bytes(number + 1),
        };
        Content { object, elements }
    }

    #[tokio::test]
    async fn so_many_chunks_of_a_lease_are_read_at_a_time_announced_or_not() {
        let manual = ManualChecks::closed();
        let mut checks = Checks::default();
        for number in 0..100 {
            let _ = checks.begin(number, content(number.into(), 8), manual.work(false));
        }
        let named: Vec<_> = (100..200)
            .map(|number| checks.begin(number, content(number.into(), 8), manual.work(false)))
            .collect();
        assert_eq!(manual.begun().await, CHECKS_MAX);
        manual.gate.add_permits(3);
        assert_eq!(manual.begun().await, CHECKS_MAX + 3, "each end is a turn");
        // Another lease has turns of its own.
        let mut other = Checks::default();
        let _ = other.begin(0, content(0, 8), manual.work(false));
        assert_eq!(manual.begun().await, CHECKS_MAX + 4);
        manual.gate.add_permits(500);
        for check in named {
            assert!(check.outcome().await.is_ok());
        }
        assert_eq!(manual.begun().await, 201);
    }

    #[tokio::test]
    async fn what_is_named_often_is_read_once() {
        let manual = ManualChecks::closed();
        manual.gate.add_permits(1000);
        let mut checks = Checks::default();
        for number in 0..1000 {
            let check = checks.begin(number, content(1, 8), manual.work(false));
            // As in the check of a result, nobody holds one that has ended.
            assert_eq!(*check.outcome().await.expect("it is good"), 0);
        }
        assert_eq!(manual.begun().await, 1);
        // As many elements as another place has are checked for themselves: the same bytes may be
        // good there and bad here.
        let longer = checks.begin(1000, content(1, 9), manual.work(true));
        assert_eq!(
            longer.outcome().await.expect_err("bad").code,
            Code::NotFinite
        );
        assert_eq!(manual.begun().await, 2);
    }

    #[tokio::test]
    async fn a_check_that_nobody_waits_for_ends_and_is_begun_anew() {
        let manual = ManualChecks::closed();
        let mut checks = Checks::default();
        let _ = checks.begin(0, content(0, 8), manual.work(false));
        assert_eq!(manual.begun().await, 1);
        // Another object takes its place.
        let _ = checks.begin(0, content(1, 8), manual.work(false));
        assert_eq!(manual.begun().await, 2);
        assert_eq!(checks.turns.available_permits(), CHECKS_MAX - 1);
        let again = checks.begin(1, content(0, 8), manual.work(false));
        assert_eq!(manual.begun().await, 3);
        manual.gate.add_permits(2);
        assert!(again.outcome().await.is_ok());
    }

    #[tokio::test]
    async fn a_check_that_panics_is_an_internal_fault_of_everybody_who_waits() {
        let mut checks: Checks<usize> = Checks::default();
        let broken = "a broken check";
        let work = async move {
            match broken.is_empty() {
                true => Ok(0),
                false => panic!("{broken}"),
            }
        };
        let check = checks.begin(0, content(0, 8), work);
        for _ in 0..2 {
            let refusal = check.outcome().await.expect_err("it panicked");
            assert_eq!(refusal.code, Code::Internal);
        }
    }
}
