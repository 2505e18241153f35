//! Deletes uploads from quarantine that nothing uses any more, beside all other work. Nothing
//! depends on it: if the store is away or this process ends, uploads are left, and the store
//! deletes them some days later.

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use objects::IncomingKey;
use tokio::sync::mpsc;

use crate::store::Store;

/// Leases and orders whose uploads wait to be deleted; above that they are left to the store.
const SWEEPS_MAX: usize = 64;
/// Deletions at a time: few, since other requests wait for the store.
pub(crate) const DELETIONS_MAX: usize = 4;

/// Takes objects that are to be deleted. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Sweeper(mpsc::Sender<Vec<IncomingKey>>);

/// The receiving end of a [`Sweeper`].
#[derive(Debug)]
pub(crate) struct Sweeps(mpsc::Receiver<Vec<IncomingKey>>);

/// Makes both ends.
pub(crate) fn pair() -> (Sweeper, Sweeps) {
    let (sender, receiver) = mpsc::channel(SWEEPS_MAX);
    (Sweeper(sender), Sweeps(receiver))
}

impl Sweeper {
    /// Has these uploads deleted, unless too many wait.
    pub(crate) fn sweep(&self, keys: Vec<IncomingKey>) {
        if self.0.try_send(keys).is_err() {
            tracing::debug!("uploads are left to the store, since too many wait to be deleted");
        }
    }
}

impl Sweeps {
    /// Deletes uploads for as long as it is polled.
    pub(crate) async fn run(mut self, store: Store) {
        let mut failing = false;
        while let Some(keys) = self.0.recv().await {
            let deletions = stream::iter(keys).map(|key| {
                let store = &store;
                async move {
                    let _permit = store.look().await;
                    store.buckets.delete_incoming(&key).await
                }
            });
            // The first failure ends the others, which would fail in the same way.
            match deletions
                .buffer_unordered(DELETIONS_MAX)
                .try_collect::<Vec<()>>()
                .await
            {
                Ok(_) => failing = false,
                Err(error) if !std::mem::replace(&mut failing, true) => {
                    tracing::warn!(code = %error.code(), %error, "uploads that nothing uses any more are left to the store");
                }
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_too_much_is_left_to_the_store_and_holds_nobody_up() {
        let (sweeper, Sweeps(mut queue)) = pair();
        (0..2 * SWEEPS_MAX).for_each(|_| sweeper.sweep(Vec::new()));
        drop(sweeper);
        let mut waiting = 0;
        while queue.recv().await.is_some() {
            waiting += 1;
        }
        assert_eq!(waiting, SWEEPS_MAX);
    }
}
