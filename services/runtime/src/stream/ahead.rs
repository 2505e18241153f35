//! Reading ahead: while one batch is worked off in order, the next ones are asked for, decoded, and
//! looked at on all cores.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use rayon::prelude::*;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::{ASKED_MAX, StoredMessage, StreamError, StreamReader};

/// Batches that are on their way at a time: one is being asked for while others are looked at and
/// the first is worked off. A message of a stream of ours has some 600 bytes, and 64 KiB at most,
/// so that this is 1 MB, and 90 MB at worst.
const BATCHES_AHEAD: usize = 4;
/// Batches whose answers are on the line at a time: the broker has the next questions when it has
/// answered the last ones, and on a slow line no batch waits for more than one other.
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
    /// Those that were begun, oldest first.
    begun: VecDeque<AbortOnDropHandle<Result<Batch<T>, StreamError>>>,
    /// The first position that nobody was asked for yet.
    next: u64,
    /// The last position to read.
    to: u64,
}

/// The messages between two positions of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<T> {
    /// The last position that was looked at, whether a message is there or not.
    pub to: u64,
    /// The result of `look` for each message that is there.
    pub found: Vec<T>,
}

impl StreamReader {
    /// Reads the messages from one position to another, both included, and gives what `look` makes
    /// of each, in order. `look` runs on all cores. It sees some messages that follow each other at
    /// a time, makes one thing of each, in their order, and sees such parts in no order. Messages
    /// that are not there are left out.
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
    /// The next batch; none behind the last. May be dropped while it waits; nothing is lost.
    ///
    /// # Errors
    /// The batch cannot be read; those behind it were not handed out, and are not any more.
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
    let answers = reader.answers(from, to).await?;
    drop(on_the_line);
    let looked = tokio::task::spawn_blocking(move || {
        let look_in = |answers: &[Bytes]| {
            let there = answers
                .iter()
                .filter_map(|answer| reader.message_in(answer).transpose());
            Ok(look(
                there.collect::<Result<Vec<StoredMessage>, StreamError>>()?,
            ))
        };
        let looked = answers.par_chunks(LOOKED_AT_TOGETHER).map(look_in);
        looked.collect::<Result<Vec<Vec<T>>, StreamError>>()
    });
    let looked = looked
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let found = looked?.into_iter().flatten().collect();
    Ok(Batch { to, found })
}
