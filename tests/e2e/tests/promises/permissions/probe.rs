//! A connection that notices the broker's refusals.

use std::collections::BTreeSet;
use std::path::Path;

use async_nats::{Client, Event, ServerError};
use harness::{Cluster, PATIENCE};
use identity::source::connect_options;
use tokio::sync::mpsc;

/// Subjects that are tried before the broker is asked whether it has handled them all. The client
/// keeps 128 events for a slow reader.
const BATCH: usize = 64;

/// A connection and the refusals that came over it.
pub(crate) struct Probe {
    pub(crate) client: Client,
    refusals: mpsc::Receiver<String>,
    sentinels: u64,
}

impl Probe {
    pub(crate) async fn connect(cluster: &Cluster, credentials: &Path) -> Self {
        let (sender, refusals) = mpsc::channel(4 * BATCH);
        let options = connect_options(&cluster.source(credentials), &cluster.tls()).event_callback(
            move |event| {
                let sender = sender.clone();
                async move {
                    if let Event::ServerError(ServerError::Other(text)) = event {
                        sender.send(text).await.expect("the probe reads on");
                    }
                }
            },
        );
        let client = options
            .connect(cluster.bus_url())
            .await
            .expect("credentials of this domain");
        Self {
            client,
            refusals,
            sentinels: 0,
        }
    }

    /// Those of `subjects` to which this client may not publish.
    pub(crate) async fn refused_publishes(&mut self, subjects: &[String]) -> BTreeSet<String> {
        let mut refused = BTreeSet::new();
        for batch in subjects.chunks(BATCH) {
            for subject in batch {
                self.client
                    .publish(subject.clone(), "".into())
                    .await
                    .expect("it is sent");
            }
            refused.extend(self.refused("publish to \"").await);
        }
        refused
    }

    /// Those of `subjects` to which this client may not subscribe.
    pub(crate) async fn refused_subscriptions(&mut self, subjects: &[String]) -> BTreeSet<String> {
        let mut refused = BTreeSet::new();
        // A worker may hold 64 subscriptions. Refused ones do not count, and the others are given
        // back below.
        for batch in subjects.chunks(BATCH / 2) {
            let mut held = Vec::new();
            for subject in batch {
                held.push(
                    self.client
                        .subscribe(subject.clone())
                        .await
                        .expect("it is sent"),
                );
            }
            refused.extend(self.refused("subscription to \"").await);
            for subscriber in &mut held {
                subscriber.unsubscribe().await.expect("it is sent");
            }
        }
        refused
    }

    /// The subjects refused since the last call. The broker works in order, so all of them are
    /// known when a subject that nobody may use is refused.
    async fn refused(&mut self, marker: &str) -> Vec<String> {
        self.sentinels += 1;
        let sentinel = format!("diloco.sentinel.{}", self.sentinels);
        self.client
            .publish(sentinel.clone(), "".into())
            .await
            .expect("it is sent");
        let mut refused = Vec::new();
        loop {
            let text = tokio::time::timeout(PATIENCE, self.refusals.recv())
                .await
                .expect("the sentinel is refused");
            let text = text.expect("the connection lives");
            let lower = text.to_ascii_lowercase();
            assert!(
                lower.contains("permissions violation"),
                "the broker says {text:?}"
            );
            if text.contains(&sentinel) {
                return refused;
            }
            let start = lower
                .find(marker)
                .unwrap_or_else(|| panic!("{text:?} is no refusal to {marker}"))
                + marker.len();
            refused.push(
                text[start..]
                    .split('"')
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            );
        }
    }
}
