//! Matches permission violations with calls. A violation reaches the client as text, apart from the
//! call that caused it, so that a denied request would look like a slow one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// The operation that the server refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Publishing a message.
    Publish,
    /// Subscribing to a subject.
    Subscribe,
}

/// Calls that wait, and fail when the server refuses their subject.
#[derive(Clone, Debug, Default)]
pub(crate) struct Denials(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    calls: BTreeMap<(Direction, String, u64), oneshot::Sender<()>>,
}

/// Resolves when the server refuses the subject. Dropping it removes the call.
pub(crate) struct Denied {
    denials: Denials,
    key: (Direction, String, u64),
    heard: oneshot::Receiver<()>,
}

impl Denials {
    pub(crate) fn watch(&self, direction: Direction, subject: &str) -> Denied {
        let (sender, heard) = oneshot::channel();
        let mut waiting = self.lock();
        waiting.next += 1;
        let key = (direction, subject.to_owned(), waiting.next);
        waiting.calls.insert(key.clone(), sender);
        drop(waiting);
        Denied {
            denials: self.clone(),
            key,
            heard,
        }
    }

    /// Fails every call that the server's text concerns. Returns true if there was one.
    pub(crate) fn hear(&self, text: &str) -> bool {
        let Some((direction, subject)) = parse(text) else {
            return false;
        };
        let mut waiting = self.lock();
        let range = (direction, subject.to_owned(), 0)..=(direction, subject.to_owned(), u64::MAX);
        let keys: Vec<_> = waiting
            .calls
            .range(range)
            .map(|(key, _)| key.clone())
            .collect();
        for key in &keys {
            if let Some(call) = waiting.calls.remove(key) {
                // The caller may have its answer already.
                let _ = call.send(());
            }
        }
        !keys.is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Denied {
    /// True when a refusal has come and nobody has waited for it yet.
    pub(crate) fn was_heard(&mut self) -> bool {
        self.heard.try_recv().is_ok()
    }

    /// Waits for a refusal; if none comes, for ever.
    pub(crate) async fn heard(&mut self) {
        if (&mut self.heard).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Denied {
    fn drop(&mut self) {
        self.denials.lock().calls.remove(&self.key);
    }
}

/// `Permissions Violation for Publish to "subject"`, or `… for Subscription to "subject"`.
pub(crate) fn parse(text: &str) -> Option<(Direction, &str)> {
    let lower = text.to_ascii_lowercase();
    if !lower.contains("permissions violation") {
        return None;
    }
    let (direction, marker) = [
        (Direction::Publish, "publish to \""),
        (Direction::Subscribe, "subscription to \""),
    ]
    .into_iter()
    .find(|(_, marker)| lower.contains(marker))?;
    let start = lower.find(marker)? + marker.len();
    // Lowering ASCII keeps every byte in its place.
    text.get(start..)?
        .split('"')
        .next()
        .map(|subject| (direction, subject))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_violation_finds_the_calls_of_its_subject() {
        let denials = Denials::default();
        let mut mine = denials.watch(Direction::Publish, "a.B.c");
        let other = denials.watch(Direction::Publish, "a.B.d");
        let hearing = denials.watch(Direction::Subscribe, "a.B.c");
        assert!(denials.hear("Permissions Violation for Publish to \"a.B.c\""));
        mine.heard().await;
        assert!(
            !denials.hear("Permissions Violation for Publish to \"a.B.c\""),
            "it was told"
        );
        assert!(
            denials.hear("permissions violation for subscription to \"a.B.c\" using queue \"q\"")
        );
        assert!(!denials.hear("slow consumer"));
        drop((mine, other, hearing));
        assert!(denials.lock().calls.is_empty());
    }
}
