//! Reading ahead: while one batch is handled in order, the next ones are requested, decoded, and
//! examined on all cores.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use rayon::prelude::*;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::{ASKED_MAX, StoredMessage, StreamError, StreamReader};

/// Most batches under way: one is being requested while others are examined and the first is
/// handled. A message of our streams has some 600 bytes, and 64 KiB at most, so that this is 1 MB,
/// and 90 MB at worst.
const BATCHES_AHEAD: usize = 4;
/// Most batches whose requests the broker has and has not answered. With two, the broker can go on
/// with the second while its answers to the first travel; on a slow line a batch waits for at most
/// one other.
const BATCHES_ASKED: usize = 2;

/// A part of a stream that is being read.
pub struct Ahead<T> {
    reader: StreamReader,
    line: Arc<Semaphore>,
    look: Arc<dyn Fn(StoredMessage) -> T + Send + Sync>,
    /// The batches under way, oldest first.
    begun: VecDeque<AbortOnDropHandle<Result<Batch<T>, StreamError>>>,
    /// The first position that was not requested yet.
    next: u64,
    /// The last position to read.
    to: u64,
}

/// The messages between two positions of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<T> {
    /// The last position that was read, even if it holds no message.
    pub to: u64,
    /// The result of `look` for each message.
    pub found: Vec<T>,
}

impl StreamReader {
    /// Reads the messages from one position to another, both included, and returns the result of
    /// `look` for each, in order. `look` runs on all cores, and sees the messages in any order.
    /// Missing messages are left out.
    pub fn ahead<T: Send + 'static>(
        &self,
        from: u64,
        to: u64,
        look: impl Fn(StoredMessage) -> T + Send + Sync + 'static,
    ) -> Ahead<T> {
        Ahead {
            reader: self.clone(),
            line: Arc::new(Semaphore::new(BATCHES_ASKED)),
            look: Arc::new(look),
            begun: VecDeque::with_capacity(BATCHES_AHEAD),
            next: from,
            to,
        }
    }
}

impl<T: Send + 'static> Ahead<T> {
    /// The next batch; none after the last. If the future is dropped while it waits, nothing is
    /// lost.
    ///
    /// # Errors
    /// The batch cannot be read, and no later batch is returned.
    pub async fn next(&mut self) -> Option<Result<Batch<T>, StreamError>> {
        while self.next <= self.to && self.begun.len() < BATCHES_AHEAD {
            let last = self.to.min(self.next.saturating_add(ASKED_MAX - 1));
            let (line, look) = (Arc::clone(&self.line), Arc::clone(&self.look));
            let batch = read(self.reader.clone(), self.next..=last, line, look);
            self.begun
                .push_back(AbortOnDropHandle::new(tokio::spawn(batch)));
            self.next = last + 1;
        }
        let batch = self.begun.front_mut()?.await;
        self.begun.pop_front();
        let batch = batch.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        if batch.is_err() {
            self.begun.clear();
            self.next = self.to.saturating_add(1);
        }
        Some(batch)
    }
}

async fn read<T: Send + 'static>(
    reader: StreamReader,
    positions: RangeInclusive<u64>,
    line: Arc<Semaphore>,
    look: Arc<dyn Fn(StoredMessage) -> T + Send + Sync>,
) -> Result<Batch<T>, StreamError> {
    let (from, to) = positions.into_inner();
    let on_the_line = line.acquire().await;
    let answers = reader.answers(from, to).await?;
    drop(on_the_line);
    let looked = tokio::task::spawn_blocking(move || {
        let look_in = |answer: Bytes| Ok(reader.message_in(&answer)?.map(&*look));
        let looked = answers.into_par_iter().map(look_in);
        looked.collect::<Result<Vec<Option<T>>, StreamError>>()
    });
    let looked = looked
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let found = looked?.into_iter().flatten().collect();
    Ok(Batch { to, found })
}
