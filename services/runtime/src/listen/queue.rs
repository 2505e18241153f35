//! Messages that wait for their listener. The connection is read as fast as messages arrive, so
//! that the broker never cuts it off for being slow; messages that a listener cannot take in time
//! are dropped here and counted. Each sender has a share of the places: a sender that floods fills
//! its own share, and loses only its own messages.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use schemas::PublicKey;
use schemas::subject::sender_key;
use tokio::sync::mpsc;

use super::protocol::Delivery;

/// Most messages of one subject that wait: as many short ones as the broker can send in a second.
const MESSAGES_MAX: usize = 65_536;
/// Most bytes of one subject that wait, including the overhead of each message.
const BYTES_MAX: usize = 32 << 20;
/// The share of one sender is this fraction of both bounds: 4,096 messages. A worker in the middle
/// of a round asks a few times for each of at most 256 chunks, far fewer than its share. Only
/// sixteen keys that flood together fill all places.
const SHARES: usize = 16;
/// Memory of a message beside its own bytes.
const OVERHEAD_BYTES: usize = 128;

/// The end where messages come in.
#[derive(Debug)]
pub(crate) struct QueueSender {
    sender: mpsc::Sender<(Option<PublicKey>, Delivery)>,
    waiting: Arc<Mutex<Waiting>>,
}

/// The end where a listener takes them.
#[derive(Debug)]
pub(crate) struct QueueReceiver {
    receiver: mpsc::Receiver<(Option<PublicKey>, Delivery)>,
    waiting: Arc<Mutex<Waiting>>,
}

/// Messages that wait, in all and by sender. Where a subject names no sender's key, its messages
/// count as those of one sender.
#[derive(Debug, Default)]
struct Waiting {
    all: Share,
    /// The share of each sender; a sender without messages has no entry.
    senders: BTreeMap<Option<PublicKey>, Share>,
    dropped: u64,
    /// The sender that exceeded its share last.
    flooder: Option<PublicKey>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    messages: usize,
    bytes: usize,
}

impl Share {
    /// The share with one more message; none if that exceeds `1 / part` of the bounds.
    fn with(self, bytes: usize, part: usize) -> Option<Self> {
        let more = Self {
            messages: self.messages + 1,
            bytes: self.bytes + bytes,
        };
        (more.messages <= MESSAGES_MAX / part && more.bytes <= BYTES_MAX / part).then_some(more)
    }

    fn without(self, bytes: usize) -> Self {
        Self {
            messages: self.messages - 1,
            bytes: self.bytes - bytes,
        }
    }
}

impl Waiting {
    /// Takes a place for a message out of its sender's share and out of the whole; false if one is
    /// full.
    fn admit(&mut self, sender: Option<&PublicKey>, bytes: usize) -> bool {
        let key = sender.cloned();
        let own = self.senders.get(&key).copied().unwrap_or_default();
        let Some(own) = own.with(bytes, SHARES) else {
            self.flooder = key;
            return false;
        };
        let Some(all) = self.all.with(bytes, 1) else {
            return false;
        };
        self.all = all;
        self.senders.insert(key, own);
        true
    }

    /// Frees the place of a message that waits no longer.
    fn leave(&mut self, sender: &Option<PublicKey>, bytes: usize) {
        self.all = self.all.without(bytes);
        let Some(own) = self.senders.get_mut(sender) else {
            return;
        };
        *own = own.without(bytes);
        if own.messages == 0 {
            self.senders.remove(sender);
        }
    }
}

/// Makes both ends.
pub(crate) fn pair() -> (QueueSender, QueueReceiver) {
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    let waiting = Arc::<Mutex<Waiting>>::default();
    (
        QueueSender {
            sender,
            waiting: Arc::clone(&waiting),
        },
        QueueReceiver { receiver, waiting },
    )
}

impl QueueSender {
    /// Passes a message on. Drops and counts it if too many messages wait, in all or of its sender.
    pub(crate) fn put(&self, delivery: Delivery) {
        let (from, bytes) = (sender_key(&delivery.subject), cost(&delivery));
        let fits = lock(&self.waiting).admit(from.as_ref(), bytes);
        if !fits {
            lock(&self.waiting).dropped += 1;
        } else if let Err(refused) = self.sender.try_send((from, delivery)) {
            // Nobody listens any more: the channel has as many places as messages may wait.
            let (from, _) = refused.into_inner();
            let mut waiting = lock(&self.waiting);
            waiting.leave(&from, bytes);
            waiting.dropped += 1;
        }
    }

    /// Messages dropped since the beginning.
    pub(crate) fn dropped(&self) -> u64 {
        lock(&self.waiting).dropped
    }

    /// Takes the sender that exceeded its share since the last call.
    pub(crate) fn flooder(&self) -> Option<PublicKey> {
        lock(&self.waiting).flooder.take()
    }

    /// Resolves when nobody listens any more.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }
}

impl QueueReceiver {
    /// The next message; none when the connection has ended for good.
    pub(crate) async fn take(&mut self) -> Option<Delivery> {
        let (from, delivery) = self.receiver.recv().await?;
        lock(&self.waiting).leave(&from, cost(&delivery));
        Some(delivery)
    }

    /// Messages dropped since the beginning.
    pub(crate) fn dropped(&self) -> u64 {
        lock(&self.waiting).dropped
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().expect("no holder panics")
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
        Delivery {
            subject: "a.b".to_owned(),
            reply: None,
            payload: Bytes::from(vec![0; bytes]),
        }
    }

    /// A request of one of many workers.
    fn of(number: usize, bytes: usize) -> Delivery {
        let account = format!("A{}", "A".repeat(55));
        let letter = |at: usize| {
            char::from(b'A' + u8::try_from(number >> (4 * at) & 15).expect("four bits"))
        };
        let worker: String = (0..4).map(letter).collect();
        let subject = format!(
            "diloco.request.{account}.demo.U{}{worker}.lease.claim",
            "A".repeat(51)
        );
        assert!(sender_key(&subject).is_some(), "{subject}");
        Delivery {
            subject,
            ..delivery(bytes)
        }
    }

    #[tokio::test]
    async fn who_floods_fills_its_own_share_and_the_others_are_heard() {
        let (sender, mut receiver) = pair();
        for _ in 0..100_000 {
            sender.put(of(1, 1));
        }
        assert_eq!(sender.dropped(), 100_000 - 4096);
        assert_eq!(sender.flooder(), sender_key(&of(1, 1).subject));
        sender.put(of(2, 1));
        sender.put(delivery(1));
        assert_eq!(
            (sender.dropped(), sender.flooder()),
            (100_000 - 4096, None),
            "both found a place"
        );
        for _ in 0..4096 {
            assert_eq!(receiver.take().await, Some(of(1, 1)));
        }
        assert_eq!(
            (receiver.take().await, receiver.take().await),
            (Some(of(2, 1)), Some(delivery(1)))
        );
        assert!(
            lock(&sender.waiting).senders.is_empty(),
            "a sender of which nothing waits is forgotten"
        );
        // Few long messages are a flood as well.
        for _ in 0..1000 {
            sender.put(of(1, 200 << 10));
        }
        assert_eq!(sender.dropped(), 100_000 - 4096 + 1000 - 10);
        sender.put(of(2, 200 << 10));
        assert_eq!(sender.dropped(), 100_000 - 4096 + 1000 - 10);
    }

    #[tokio::test]
    async fn many_short_and_few_long_messages_wait_and_the_rest_is_counted() {
        let (sender, mut receiver) = pair();
        for number in 0..MESSAGES_MAX + 10 {
            sender.put(of(number / 100, 1));
        }
        assert_eq!((sender.dropped(), receiver.dropped()), (10, 10));
        for _ in 0..MESSAGES_MAX {
            receiver.take().await.expect("it waits");
        }
        for number in 0..100 {
            sender.put(of(number, 1 << 20));
        }
        assert_eq!(sender.dropped(), 10 + 100 - 31);
        for _ in 0..31 {
            receiver.take().await.expect("it waits");
        }
        sender.put(delivery(1));
        assert_eq!(
            (receiver.take().await, sender.dropped()),
            (Some(delivery(1)), 79),
            "there is room again"
        );
    }

    #[tokio::test]
    async fn both_ends_learn_that_the_other_has_gone() {
        let (sender, receiver) = pair();
        drop(receiver);
        sender.closed().await;
        sender.put(delivery(1));
        assert_eq!(sender.dropped(), 1);
        let (sender, mut receiver) = pair();
        sender.put(delivery(1));
        drop(sender);
        assert_eq!(receiver.take().await, Some(delivery(1)));
        assert_eq!(receiver.take().await, None);
    }
}
