//! Reading ahead: while one batch is handled in order, the next ones are requested, decoded, and
//! examined on all cores.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use rayon::prelude::*;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::{ASKED_MAX, Sent, StoredMessage, StreamError, StreamReader};

/// Most batches under way: one is being requested while others are examined and the first is
/// handled. A message of our streams has some 600 bytes, and 64 KiB at most, so that this is 1 MB,
/// and 90 MB at worst.
const BATCHES_AHEAD: usize = 4;
/// Most batches whose requests the broker has and has not answered. With two, the broker can go on
/// with the second while its answers to the first travel; on a slow line a batch waits for at most
/// one other.
const BATCHES_ASKED: usize = 2;

/// Messages that are looked at together, on one core: what they share costs each of them little,
/// and a batch has several such parts, for several cores.
const LOOKED_AT_TOGETHER: usize = 64;

/// Makes something of each of some messages.
type Look<T> = dyn Fn(Vec<StoredMessage>) -> Vec<T> + Send + Sync;

/// A part of a stream that is being read.
pub struct Ahead<T> {
    reader: StreamReader,
    line: Arc<Semaphore>,
    look: Arc<Look<T>>,
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
    /// `look` for each, in order. `look` runs on all cores. It sees a part of the messages at a
    /// time, and the parts in any order; it returns one result for each message, in their order.
    /// Missing messages are left out.
    pub fn ahead<T: Send + 'static>(
        &self,
        from: u64,
        to: u64,
        look: impl Fn(Vec<StoredMessage>) -> Vec<T> + Send + Sync + 'static,
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
    look: Arc<Look<T>>,
) -> Result<Batch<T>, StreamError> {
    let (from, to) = positions.into_inner();
    let on_the_line = line.acquire().await;
    let sent = reader.sent(from, to).await?;
    drop(on_the_line);
    let looked = tokio::task::spawn_blocking(move || {
        let look_in = |sent: Vec<Sent>| {
            let there = sent
                .into_iter()
                .filter_map(|one| reader.message_of(one).transpose());
            Ok(look(
                there.collect::<Result<Vec<StoredMessage>, StreamError>>()?,
            ))
        };
        let parts = sent.into_par_iter().chunks(LOOKED_AT_TOGETHER);
        let looked = parts.map(look_in);
        looked.collect::<Result<Vec<Vec<T>>, StreamError>>()
    });
    let looked = looked
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let found = looked?.into_iter().flatten().collect();
    Ok(Batch { to, found })
}
