//! The keys that sign in a log, beside those that its owner has named in the manifest with which
//! the log begins. A trust bundle counts keys because of a file; the manifest counts them because
//! of the owner's signature, under the heads of the log itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::log_manifest::{EmitterRole, LogManifest};
use schemas::{Message as _, PublicKey, RunId};
use tlog::Head;

use super::fault::LogFault;
use super::open::{Log, Read, Trusted};

/// A key that counts by the trust bundle, and that the owner has not named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unnamed {
    /// The key that has signed the newest head.
    Head,
    /// A key that has signed events.
    Emitter {
        /// The index of its first event in the log.
        index: u64,
        /// The key.
        key: PublicKey,
        /// What it speaks of: a kind of event.
        kind: &'static str,
    },
}

/// What the manifest of a log says of the keys in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Keys of services that sign events and that the manifest names.
    pub services: usize,
    /// Keys of the ledger that it does not name, and that the key before each has named.
    pub successors: usize,
    /// Keys of workers, named by a key that the manifest lets do that.
    pub workers: usize,
    /// The others, in the order of the log.
    pub unnamed: Vec<Unnamed>,
}

/// Compares the keys of known emitters, and the key of the newest head, with the manifest. `heads`
/// are the keys for heads that the manifest names, as raw keys. Strangers, which the trust bundle
/// does not count either, are left out.
///
/// # Errors
/// As [`Log::again`].
pub fn check_named(
    log: &Log,
    read: &Read<'_>,
    trusted: &Trusted,
    manifest: &LogManifest,
    heads: &[[u8; 32]],
) -> Result<Named, LogFault> {
    let mut seen = Seen::default();
    log.again(read, &mut |index, entry| {
        if let Some(body) = chain::of_leaf(entry).and_then(|event| {
            let body = EventBody::decode(&event.body).ok();
            body.filter(|body| body.emitter == event.key)
        }) {
            seen.note(log, index, &body, (trusted, manifest));
        }
        Ok(())
    })?;
    let head = log.head();
    let opened = Head::open(log.note().as_bytes(), &head.origin, heads);
    let mut named = seen.end(log);
    if opened.as_ref() != Ok(head) {
        named.unnamed.insert(0, Unnamed::Head);
    }
    Ok(named)
}

/// A worker's key in a run.
type OfWorker = (RunId, PublicKey);

/// Who has named the key of a service.
#[derive(Clone, Copy)]
enum By {
    Owner,
    /// The key of the ledger before it.
    KeyBefore,
    Nobody,
}

#[derive(Default)]
struct Seen {
    /// Keys of services, each with its first event, what that speaks of, and who has named the key.
    services: BTreeMap<(PublicKey, bool), (u64, &'static str, By)>,
    /// Keys of workers that have signed events, with the first one.
    workers: BTreeMap<OfWorker, (u64, &'static str)>,
    /// Keys of workers, named by a key that the owner lets do that.
    enrolled: BTreeSet<OfWorker>,
}

impl Seen {
    fn note(
        &mut self,
        log: &Log,
        index: u64,
        body: &EventBody,
        (trusted, manifest): (&Trusted, &LogManifest),
    ) {
        let key = &body.emitter;
        let ledger = matches!(body.event, Event::Ledger(_));
        if ledger && !log.course().goes_on(key, index) {
            // It is not its turn: a stranger, to the ledger.
            return;
        }
        let (role, is_known) = match (&body.event, &body.run) {
            (Event::Ledger(told), run) => {
                if let (LedgerEvent::WorkerJoined { audit_key, .. }, Some(run)) = (told, run)
                    && log
                        .course()
                        .is_vouched(key, |key| manifest.enrolment.contains(key))
                {
                    self.enrolled.insert((run.clone(), audit_key.clone()));
                }
                (EmitterRole::Coordinator, true)
            }
            (Event::Security(_), _) => (EmitterRole::Sentry, trusted.sentries.contains(key)),
            (Event::Worker(_), Some(run)) => {
                let worker = (run.clone(), key.clone());
                let first = (index, body.event.kind());
                self.workers.entry(worker).or_insert(first);
                return;
            }
            (Event::Worker(_), None) => return,
        };
        if is_known {
            let of = (key.clone(), role == EmitterRole::Coordinator);
            let names = |key: &PublicKey| manifest.names(key, role);
            let by = match (names(key), ledger && log.course().is_vouched(key, names)) {
                (true, _) => By::Owner,
                (false, true) => By::KeyBefore,
                (false, false) => By::Nobody,
            };
            let first = (index, body.event.kind(), by);
            self.services.entry(of).or_insert(first);
        }
    }

    fn end(self, log: &Log) -> Named {
        let mut named = Named::default();
        for ((key, _), (index, kind, by)) in self.services {
            match by {
                By::Owner => named.services += 1,
                By::KeyBefore => named.successors += 1,
                By::Nobody => named.unnamed.push(Unnamed::Emitter { index, key, kind }),
            }
        }
        // The broker copies ledger and events side by side, so a join may stand behind them.
        for (worker, (index, kind)) in self.workers {
            if !log.members().contains_key(&worker) {
                continue;
            }
            match self.enrolled.contains(&worker) {
                true => named.workers += 1,
                false => {
                    let key = worker.1;
                    named.unnamed.push(Unnamed::Emitter { index, key, kind });
                }
            }
        }
        named.unnamed.sort();
        named
    }
}

impl fmt::Display for Unnamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => write!(
                f,
                "the newest head is signed by a key that the owner has not named"
            ),
            Self::Emitter { index, key, kind } => write!(
                f,
                "the owner has not named {key}, which has signed events from entry {index} on, of kind {kind}"
            ),
        }
    }
}
