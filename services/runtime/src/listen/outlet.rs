//! Messages that wait for their listener. The connection is read as fast as it brings them, so that the broker never cuts
//! it off for being slow; what a listener cannot follow is dropped here and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::protocol::Delivery;

/// Messages of one subject that may wait: a second of what the broker can send in a burst of short ones.
const MESSAGES_MAX: usize = 65_536;
/// Bytes of one subject that may wait, with what each message costs beside its own.
const BYTES_MAX: usize = 32 << 20;
/// What a message costs beside its own bytes.
const OVERHEAD_BYTES: usize = 128;

/// The end where messages come in.
#[derive(Debug)]
pub(crate) struct Outlet {
    sender: mpsc::Sender<Delivery>,
    shared: Arc<Shared>,
}

/// The end where a listener takes them.
#[derive(Debug)]
pub(crate) struct Inlet {
    receiver: mpsc::Receiver<Delivery>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting_bytes: AtomicUsize,
    dropped: AtomicU64,
}

/// Both ends.
pub(crate) fn pair() -> (Outlet, Inlet) {
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    let shared = Arc::<Shared>::default();
    (Outlet { sender, shared: Arc::clone(&shared) }, Inlet { receiver, shared })
}

impl Outlet {
    /// Hands a message on, or drops and counts it when too many wait.
    pub(crate) fn put(&self, delivery: Delivery) {
        let bytes = cost(&delivery);
        // Only the connection adds, so nothing can come between the look and the addition.
        let fits = self.shared.waiting_bytes.load(Ordering::Relaxed) + bytes <= BYTES_MAX;
        if fits {
            self.shared.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
            if self.sender.try_send(delivery).is_ok() {
                return;
            }
            self.shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages dropped since the beginning.
    pub(crate) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Resolves when nobody listens any more.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }
}

impl Inlet {
    /// The next message; none when the connection has ended for good.
    pub(crate) async fn take(&mut self) -> Option<Delivery> {
        let delivery = self.receiver.recv().await?;
        self.shared.waiting_bytes.fetch_sub(cost(&delivery), Ordering::Relaxed);
        Some(delivery)
    }

    /// Messages dropped since the beginning.
    pub(crate) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

fn cost(delivery: &Delivery) -> usize {
    let reply = delivery.reply.as_ref().map_or(0, String::len);
    OVERHEAD_BYTES + delivery.subject.len() + reply + delivery.payload.len()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn delivery(bytes: usize) -> Delivery {
        Delivery { subject: "a.b".to_owned(), reply: None, payload: Bytes::from(vec![0; bytes]) }
    }

    #[tokio::test]
    async fn many_short_and_few_long_messages_wait_and_the_rest_is_counted() {
        let (outlet, mut inlet) = pair();
        for _ in 0..MESSAGES_MAX + 10 {
            outlet.put(delivery(1));
        }
        assert_eq!((outlet.dropped(), inlet.dropped()), (10, 10));
        for _ in 0..MESSAGES_MAX {
            inlet.take().await.expect("it waits");
        }
        for _ in 0..100 {
            outlet.put(delivery(1 << 20));
        }
        assert_eq!(outlet.dropped(), 10 + 100 - 31);
        for _ in 0..31 {
            inlet.take().await.expect("it waits");
        }
        outlet.put(delivery(1));
        assert_eq!((inlet.take().await, outlet.dropped()), (Some(delivery(1)), 79), "there is room again");
    }

    #[tokio::test]
    async fn both_ends_learn_that_the_other_has_gone() {
        let (outlet, inlet) = pair();
        drop(inlet);
        outlet.closed().await;
        outlet.put(delivery(1));
        assert_eq!(outlet.dropped(), 1);
        let (outlet, mut inlet) = pair();
        outlet.put(delivery(1));
        drop(outlet);
        assert_eq!(inlet.take().await, Some(delivery(1)));
        assert_eq!(inlet.take().await, None);
    }
}
