//! What this machine knows of the ledger apart from the ledger: after each append the end of the chain is noted in a small
//! file, and a ledger that does not reach that end is not led on. An empty stream would otherwise look like a new one, and
//! positions of the chain would be signed a second time.

use std::path::Path;

use identity::{Mark, MarkFile};
use runtime::Failure;
use schemas::event::EventBody;
use schemas::{Code, Digest, PublicKey, V};

use crate::ledger::Ledger;

/// The mark, and what the ledger shows in its place.
#[derive(Debug)]
pub struct LedgerMark {
    file: MarkFile,
    known: Mark,
    /// What the event after the marked one names as the one before it; none until it was read.
    followed: Option<Option<Digest>>,
    /// Whether the last write failed: told once.
    failing: bool,
}

impl LedgerMark {
    /// Opens the file, which is made where it is missing.
    ///
    /// # Errors
    /// It cannot be used, or is the mark of another domain.
    pub fn open(path: &Path, domain: &PublicKey) -> Result<Self, Failure> {
        let opened = MarkFile::open(path, domain).map_err(|error| Failure::new(error.code(), error));
        opened.map(|(file, known)| Self { file, known, followed: None, failing: false })
    }

    /// Looks at an event that the ledger holds; to be called for each, in order.
    pub fn follow(&mut self, body: &EventBody) {
        if body.sequence.get() == self.known.events {
            self.followed = Some(body.previous);
        }
    }

    /// Compares the mark with a ledger that was read to its end, and notes that end.
    ///
    /// # Errors
    /// [`Code::LedgerLost`]: the ledger ends before the mark, or holds another event there.
    pub fn agree(&mut self, ledger: &Ledger) -> Result<(), Failure> {
        let Mark { events, stream_sequence, last, .. } = &self.known;
        let lost = |what: String| Err(Failure::new(Code::LedgerLost, what));
        if ledger.len() < *events {
            return lost(format!(
                "the ledger holds {} events; {events} were appended, the last at stream sequence {stream_sequence}",
                ledger.len()
            ));
        }
        let found = if ledger.len() == *events { ledger.previous() } else { self.followed.unwrap_or(*last) };
        if found != *last {
            let named = |digest: &Option<Digest>| digest.map_or_else(|| "none".to_owned(), |digest| digest.to_string());
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

    /// Notes the end of the ledger, before anything that depends on it leaves this process. A mark that cannot be written
    /// stops nothing: the older one still shows a loss.
    pub fn note(&mut self, ledger: &Ledger) {
        let domain = self.known.domain.clone();
        let (events, stream_sequence, last) = (ledger.len(), ledger.stream_sequence(), ledger.previous());
        self.known = Mark { v: V, domain, events, stream_sequence, last };
        self.followed = None;
        match self.file.write(&self.known) {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                tracing::warn!(code = %error.code(), %error, "how far the ledger has come could not be noted");
                self.failing = true;
            }
            Err(_) => {}
        }
    }
}
