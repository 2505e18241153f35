//! Records about the ledger that are kept apart from it. On this machine, the end of the chain is
//! noted in a small file after each append, and no coordinator continues a ledger that does not
//! reach that end. In the store, an object says that this domain has a ledger, for a machine that
//! does not have the file. Without these records an empty stream would look like a new one, and
//! positions of the chain would be signed a second time.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use identity::{Mark, MarkFile};
use objects::{BlobKey, BucketName, Buckets};
use runtime::Failure;
use schemas::event::EventBody;
use schemas::{ChainSequence, Code, Digest, PublicKey, V};

use crate::ledger::Ledger;

/// Longest wait for the store to show whether it holds any object; the answer is only used in a
/// message.
const GLANCE_MAX: Duration = Duration::from_secs(5);

/// The mark in the store. It is an object like all others, under the digest of its bytes, and its
/// bytes follow from the domain's id. So one request shows whether it is there, and domains that
/// share a store each have their own. No URL can write it. An operator of another domain in the
/// same store could upload it, and so delay the first start of this domain.
#[derive(Debug)]
pub(crate) struct StoreMark {
    buckets: Buckets,
    /// The store's address, for people.
    url: String,
    bytes: Bytes,
    was_there: bool,
}

impl StoreMark {
    /// Asks the store for the mark. To be called before the ledger is read: a coordinator that
    /// finds the mark must then find a first event.
    ///
    /// # Errors
    /// The store does not answer. Such a coordinator does not lead, since it could not work without
    /// the store anyway.
    pub(crate) async fn look(
        buckets: &Buckets,
        url: &str,
        domain: &PublicKey,
    ) -> Result<Self, Failure> {
        let bytes = mark_bytes(domain);
        let found = buckets.exists(Digest::of(&bytes)).await;
        let found = found?;
        Ok(Self {
            buckets: buckets.clone(),
            url: url.to_owned(),
            bytes,
            was_there: found.is_some(),
        })
    }

    /// The digest of a domain's mark.
    pub(crate) fn digest(domain: &PublicKey) -> Digest {
        Digest::of(&mark_bytes(domain))
    }

    /// Refuses to begin an empty ledger if the store has the mark. A store with objects and no mark
    /// was used by another domain, or by a release that left no mark. Nobody can tell which, so
    /// this is logged and does not stop the start.
    ///
    /// # Errors
    /// [`Code::LedgerLost`]: the mark was there before the ledger.
    pub(crate) async fn allow_beginning(&self) -> Result<(), Failure> {
        let store = &self.url;
        if self.was_there {
            let key = BlobKey(Digest::of(&self.bytes));
            let text = format!(
                "the ledger has no event; object {key} in bucket {} of the store {store} says that this domain's has",
                BucketName::Blobs
            );
            return Err(Failure::new(Code::LedgerLost, text));
        }
        let first = tokio::time::timeout(GLANCE_MAX, self.buckets.list().next()).await;
        if let Ok(Some(Ok(found))) = first {
            let code = Code::StoreUsedBefore;
            tracing::warn!(%code, %store, object = %found.object.digest, "a ledger begins, and the store holds objects already");
        }
        Ok(())
    }

    /// Puts the mark into the store if it is missing. To be called once the ledger has an event. A
    /// failure stops nothing, since the file shows a loss too; the next start tries again.
    pub(crate) async fn put(self) {
        if self.was_there {
            return;
        }
        if let Err(error) = self.buckets.put_blob(self.bytes).await {
            tracing::warn!(code = %error.code(), %error, "the store could not be told that there is a ledger");
        }
    }
}

fn mark_bytes(domain: &PublicKey) -> Bytes {
    format!("The trust domain {domain} has a ledger.\n").into()
}

/// The mark on this machine, and the event that the ledger has in its place.
#[derive(Debug)]
pub struct LedgerMark {
    file: MarkFile,
    known: Mark,
    /// The digest that the event after the marked one names as its predecessor; none before that
    /// event was read.
    followed: Option<Option<Digest>>,
    /// True if the last write failed, so that a failure is logged once.
    failing: bool,
}

impl LedgerMark {
    /// Opens the file, and makes it if it is missing.
    ///
    /// # Errors
    /// The file cannot be used, or is the mark of another domain.
    pub fn open(path: &Path, domain: &PublicKey) -> Result<Self, Failure> {
        let opened = MarkFile::open(path, domain).map_err(Failure::from);
        opened.map(|(file, known)| Self {
            file,
            known,
            followed: None,
            failing: false,
        })
    }

    /// Takes note of an event of the ledger. To be called for each one, in order.
    pub fn follow(&mut self, body: &EventBody) {
        if body.sequence.get() == self.known.events {
            self.followed = Some(body.previous);
        }
    }

    /// The position of the event at the mark; none before the first.
    pub fn event(&self) -> Option<ChainSequence> {
        self.known.events.checked_sub(1).map(ChainSequence)
    }

    /// Tells the mark which event the ledger has in its place, for a ledger that is not read from
    /// there.
    pub fn found(&mut self, digest: Digest) {
        self.followed = Some(Some(digest));
    }

    /// Compares the mark with a ledger that was read to its end, and notes that end.
    ///
    /// # Errors
    /// [`Code::LedgerLost`]: the ledger ends before the mark, or holds another event there.
    pub fn agree(&mut self, ledger: &Ledger) -> Result<(), Failure> {
        let Mark {
            events,
            stream_sequence,
            last,
            ..
        } = &self.known;
        let lost = |what: String| Err(Failure::new(Code::LedgerLost, what));
        if ledger.len() < *events {
            return lost(format!(
                "the ledger holds {} events; {events} were appended, the last at stream sequence {stream_sequence}",
                ledger.len()
            ));
        }
        let found = if ledger.len() == *events {
            ledger.previous()
        } else {
            self.followed.unwrap_or(*last)
        };
        if found != *last {
            let named = |digest: &Option<Digest>| {
                digest.map_or_else(|| "none".to_owned(), |digest| digest.to_string())
            };
            return lost(format!(
                "event {} of the ledger is {}; {} was appended there",
                events.saturating_sub(1),
                named(&found),
                named(last)
            ));
        }
        self.note(ledger);
        Ok(())
    }

    /// Notes the end of the ledger, before anything that depends on it leaves this process. A
    /// failure stops nothing: the older mark still shows a loss.
    pub fn note(&mut self, ledger: &Ledger) {
        let domain = self.known.domain.clone();
        let (events, stream_sequence, last) =
            (ledger.len(), ledger.stream_sequence(), ledger.previous());
        self.known = Mark {
            v: V,
            domain,
            events,
            stream_sequence,
            last,
        };
        self.followed = None;
        match self.file.write(&self.known) {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                tracing::warn!(code = %error.code(), %error, "the ledger's mark could not be written");
                self.failing = true;
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stores keep the mark for years. With another text it would be another object, and nobody
    /// would notice the loss of a ledger.
    #[test]
    fn the_mark_in_the_store_stays_the_same_object() {
        let domain: PublicKey = format!("O{}", "A".repeat(55))
            .parse()
            .expect("the form of a key");
        let bytes = mark_bytes(&domain);
        assert_eq!(
            BlobKey(Digest::of(&bytes)).to_string(),
            "sha256/b1/b1e4449386658362a571fc64758d8f62b797b38b2aa1517910595fe3267f4780"
        );
    }
}
