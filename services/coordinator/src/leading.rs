//! Tells if this process still leads, for work that changes what a later coordinator relies on and
//! that no append precedes: nobody has appended anything that this process does not know.

use std::time::Duration;

use runtime::StreamReader;
use tokio::sync::watch;
use tokio::time::timeout;

/// Longest time until an append of this process, which the stream has, is known here.
const KNOWN_WAIT: Duration = Duration::from_secs(5);

/// The stream, and how much of it this process knows.
#[derive(Clone, Debug)]
pub(crate) struct Leading {
    stream: StreamReader,
    known: watch::Receiver<u64>,
}

impl Leading {
    /// `known` is the position of the last message that this process has read or appended.
    pub(crate) const fn new(stream: StreamReader, known: watch::Receiver<u64>) -> Self {
        Self { stream, known }
    }

    /// True if this process led when the broker answered. False if another one has appended, or if
    /// the broker does not answer.
    pub(crate) async fn leads(self) -> bool {
        match self.stream.span().await {
            Ok(span) => is_known(self.known, span.last).await,
            Err(_) => false,
        }
    }
}

/// True once everything up to this position is known.
async fn is_known(mut known: watch::Receiver<u64>, last: u64) -> bool {
    let reached = known.wait_for(|known| *known >= last);
    matches!(timeout(KNOWN_WAIT, reached).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_ledger_without_an_unknown_end_is_led() {
        let (known, reader) = watch::channel(7);
        assert!(is_known(reader.clone(), 7).await);
        assert!(!is_known(reader.clone(), 8).await, "another has appended");
        let waits = tokio::spawn(is_known(reader, 8));
        tokio::task::yield_now().await;
        known.send_replace(8);
        assert!(waits.await.expect("it ends"), "it was an own append");
    }
}
