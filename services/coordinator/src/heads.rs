//! Follows the log of all events, so that the ledger is kept as well as the events of workers: the
//! newest head that was verified stays on this machine, no older one and no other history is taken
//! for it, and events of the ledger that no head covers are said. Which they are, the core decides
//! ([`Receipts`]).
//!
//! Nothing here holds up a round or ends the process. Without heads, or with heads that contradict
//! each other, the coordinator says so and goes on.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use backoff::spread;
use coordinator_core::{Receipts, Say, Sent};
use identity::TrustBundle;
use identity::secret::replace_private;
use runtime::metrics::{LEDGER_UNCOVERED, LEDGER_UNCOVERED_SECONDS, also};
use runtime::{Bus, BusError, Failure, clock};
use schemas::event::SignedEvent;
use schemas::head::{HeadReply, HeadRequest, Inclusion, KnownHead};
use schemas::subject::ledger_head_subject;
use schemas::view::LedgerCover;
use schemas::{ChainSequence, Code, Message as _, Millis, PublicKey, UnixMillis, V};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;
use tlog::Head;
use witness::{Doubt, Followed, Step, is_included};

/// Longest pause between two questions; the half of it is the shortest. A head is signed ten seconds
/// after an event.
const PAUSE: Duration = Duration::from_secs(10);
/// The same after a question that the broker has denied, since it has older tokens of the accounts: each is
/// a security event.
const PAUSE_DENIED: Duration = Duration::from_secs(1200);
/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(8);
/// Ending of the file with the newest verified head, after the name of the ledger's mark.
const HEAD: &str = "head";
/// Ending of the file with the text of the first head that was not taken since.
const REFUSED: &str = "head-refused";
/// Ending of that file once a newer head was taken.
const REFUSED_BEFORE: &str = "head-refused.before";

/// What is known of the log, for the decision loop; nothing where no heads are signed or followed.
#[derive(Clone, Debug, Default)]
pub(crate) struct LedgerHeads(Option<Arc<Mutex<Shared>>>);

#[derive(Debug)]
struct Shared {
    receipts: Receipts,
    /// The newest head that this process has verified. One of an earlier process is not named in
    /// events: the ledger may have moved to another machine and back meanwhile, and its events never
    /// name an older head than those before them.
    known: Option<KnownHead>,
}

impl LedgerHeads {
    /// Begins with the head that was kept beside the ledger's mark at `mark`. If the log cannot be
    /// followed, the log of this process says why. `own` is the key that signs the ledger.
    pub(crate) fn open(
        mark: &Path,
        trust: &TrustBundle,
        own: PublicKey,
        within: Millis,
    ) -> (Self, Option<Follower>) {
        let memory = match Memory::open(mark, trust) {
            Ok(Some(memory)) => memory,
            Ok(None) => {
                tracing::info!(
                    "the trust bundle names no key for tree heads, so this coordinator follows no log"
                );
                return (Self(None), None);
            }
            Err(failure) => {
                let (code, next) = (failure.code(), failure.code().next_step());
                tracing::warn!(%code, next, "this coordinator follows no log: {failure}");
                return (Self(None), None);
            }
        };
        let head = memory.head.as_ref().map(|head| head.size);
        let receipts = Receipts::new(within, memory.covered, head);
        let shared = Shared {
            receipts,
            known: None,
        };
        let heads = Self(Some(Arc::new(Mutex::new(shared))));
        let follower = Follower {
            heads: heads.clone(),
            memory,
            emitter: own,
        };
        (heads, Some(follower))
    }

    fn lock(&self) -> Option<MutexGuard<'_, Shared>> {
        let shared = self.0.as_ref()?;
        Some(shared.lock().expect("nobody panics while holding it"))
    }

    /// Takes note of the newest event of the ledger, which the stream has.
    pub(crate) fn appended(&self, now: UnixMillis, sent: Sent) {
        if let Some(mut shared) = self.lock() {
            shared.receipts.appended(now, sent);
        }
    }

    /// The head that events name from now on.
    pub(crate) fn known(&self) -> Option<KnownHead> {
        self.lock()?.known
    }

    /// How far the log covers the ledger; none if no log is followed.
    pub(crate) fn view(&self, now: UnixMillis) -> Option<LedgerCover> {
        Some(self.lock()?.receipts.view(now))
    }

    /// Shows that in the metrics from now on.
    pub(crate) fn show(&self) {
        let heads = self.clone();
        also(move |samples| {
            let now = clock::now();
            if let Some(view) = heads.view(now) {
                let waits = view.since.map_or(0, |since| since.until(now).get());
                samples.add(LEDGER_UNCOVERED, &[], view.uncovered as f64);
                samples.add(LEDGER_UNCOVERED_SECONDS, &[], waits as f64 / 1000.0);
            }
        });
    }
}

/// The task that asks for heads.
#[derive(Debug)]
pub(crate) struct Follower {
    heads: LedgerHeads,
    memory: Memory,
    /// The key that has signed the ledger's newest event.
    emitter: PublicKey,
}

impl Follower {
    /// Asks as long as it is not dropped.
    pub(crate) async fn run(mut self, bus: Bus) {
        let Some(holder) = bus.public().cloned() else {
            tracing::info!(
                "a connection without credentials has no name under which to ask for heads"
            );
            return;
        };
        let subject = ledger_head_subject(&holder);
        loop {
            let asked = self.ask(&bus, &subject).await;
            if let Err(error) = &asked {
                tracing::debug!(%error, "no head of the log came");
            }
            self.say(clock::now());
            tokio::time::sleep(spread(longest_pause(&asked), objects::random_fraction())).await;
        }
    }

    async fn ask(&mut self, bus: &Bus, subject: &str) -> Result<(), BusError> {
        let (question, entries) = self.question();
        let reply: HeadReply = bus.request(subject, &question, ANSWER_MAX).await?;
        self.take(&reply, &entries);
        Ok(())
    }

    /// The next question, and the entries of the events in it.
    fn question(&mut self) -> (HeadRequest, BTreeMap<ChainSequence, Vec<u8>>) {
        let asked = self.heads.lock().map(|mut shared| shared.receipts.ask());
        let events = asked.into_iter().flatten();
        let events = events.filter_map(|sent| {
            let event = SignedEvent::decode(&sent.message).ok()?;
            Some((sent.sequence, event))
        });
        let events: Vec<_> = events.collect();
        if let Some((_, newest)) = events.last() {
            self.emitter = newest.key.clone();
        }
        // What another key has signed, before this one, the newest event stands for.
        let own = events.iter().filter(|(_, event)| event.key == self.emitter);
        let entries = own.filter_map(|(sequence, event)| Some((*sequence, chain::leaf(event)?)));
        let entries: BTreeMap<_, _> = entries.collect();
        let question = HeadRequest {
            v: V,
            known: self.memory.head.as_ref().map_or(0, |head| head.size),
            emitter: self.emitter.clone(),
            events: entries.keys().copied().collect(),
        };
        (question, entries)
    }

    /// Takes the answer: what is verified is kept, and what contradicts it is said.
    fn take(&mut self, reply: &HeadReply, entries: &BTreeMap<ChainSequence, Vec<u8>>) {
        let taken = match self.memory.see(reply) {
            Ok(Seen::Taken(head)) => {
                let under = under(&head, &reply.events, entries);
                let covered = self.heads.lock().map_or(0, |mut shared| {
                    shared.receipts.verified(head.size, &under);
                    shared.receipts.covered()
                });
                let known = KnownHead {
                    size: head.size,
                    root: ByteArray::new(head.root),
                };
                let kept = self.memory.keep(head, &reply.note, covered);
                kept.map(|()| {
                    if let Some(mut shared) = self.heads.lock() {
                        shared.known = Some(known);
                    }
                })
            }
            Ok(Seen::Refused { doubt, again }) => {
                self.raise(&doubt, again);
                Ok(())
            }
            Err(failure) => Err(failure),
        };
        if let Err(failure) = taken {
            let (code, next) = (failure.code(), failure.code().next_step());
            tracing::warn!(%code, next, "a head of the log is not kept: {failure}");
        }
    }

    /// Says that the log contradicts itself: once for each head that is kept.
    fn raise(&self, doubt: &Doubt, again: bool) {
        let code = match doubt {
            Doubt::Head(_) => Code::HeadInvalid,
            Doubt::WentBack { .. } | Doubt::Forked(_) | Doubt::Unproven { .. } => {
                Code::HeadContradicted
            }
        };
        if let Some(mut shared) = self.heads.lock() {
            shared.receipts.doubt(code);
        }
        if !again {
            tracing::error!(%code, next = code.next_step(), "the log of all events is not the one that this coordinator has \
                            seen: {doubt}");
        }
    }

    /// Says what the core wants said.
    fn say(&self, now: UnixMillis) {
        let say = self
            .heads
            .lock()
            .and_then(|mut shared| shared.receipts.say(now));
        match say {
            Some(Say::Overdue { count, oldest }) => {
                let code = Code::LedgerUncovered;
                tracing::warn!(%code, count, oldest = oldest.get(), next = code.next_step(), "events of the ledger are under no \
                               head of the log that this coordinator has verified");
            }
            Some(Say::Covered) => {
                tracing::info!("the events of the ledger that waited for a head are under one");
            }
            None => {}
        }
    }
}

/// The longest pause after a question that ended so.
const fn longest_pause(asked: &Result<(), BusError>) -> Duration {
    match asked {
        Err(BusError::Denied { .. }) => PAUSE_DENIED,
        _ => PAUSE,
    }
}

/// The events that are shown to be under the head, of those whose entries are given.
fn under(
    head: &Head,
    shown: &[Inclusion],
    entries: &BTreeMap<ChainSequence, Vec<u8>>,
) -> Vec<ChainSequence> {
    let holds = |one: &&Inclusion| {
        let hashes: Vec<[u8; 32]> = one.hashes.iter().map(|hash| **hash).collect();
        let entry = entries.get(&one.sequence);
        entry.is_some_and(|entry| is_included(head, one.index, entry, &hashes))
    };
    shown.iter().filter(holds).map(|one| one.sequence).collect()
}

/// What this machine has seen of the log, on its disk.
#[derive(Debug)]
struct Memory {
    followed: Followed,
    head: Option<Head>,
    /// The first so many events of the ledger are under it.
    covered: u64,
    file: PathBuf,
    refused: PathBuf,
    refused_before: PathBuf,
}

/// The form of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    v: V<1>,
    /// The signed text of the head.
    note: String,
    covered: u64,
}

/// What became of a head.
#[derive(Debug)]
enum Seen {
    /// It is the kept one, or continues it.
    Taken(Head),
    /// It is not taken.
    Refused {
        doubt: Doubt,
        /// True if another was refused since the kept one was taken.
        again: bool,
    },
}

impl Memory {
    /// Reads what was kept; none if this domain signs no heads.
    ///
    /// # Errors
    /// The file is there and is no head of this domain's log. A coordinator that went on without it
    /// would take a shorter log, or another one, for the first that it sees.
    fn open(mark: &Path, trust: &TrustBundle) -> Result<Option<Self>, Failure> {
        let beside = |ending: &str| {
            let mut name = mark.as_os_str().to_owned();
            name.push(".");
            name.push(ending);
            PathBuf::from(name)
        };
        let origin = schemas::log_manifest::origin(trust.domain.as_str());
        let followed = Followed::new(origin, trust.raw_head_keys());
        if followed.is_unsigned() {
            return Ok(None);
        }
        let file = beside(HEAD);
        let unusable = |error: &dyn std::fmt::Display| {
            Failure::new(Code::HeadUnkept, format!("{}: {error}", file.display()))
        };
        let (head, covered) = match std::fs::read(&file) {
            Ok(text) => {
                let kept: Kept = serde_json::from_slice(&text).map_err(|error| unusable(&error))?;
                let head = followed.open(kept.note.as_bytes());
                (Some(head.map_err(|error| unusable(&error))?), kept.covered)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => (None, 0),
            Err(error) => return Err(unusable(&error)),
        };
        Ok(Some(Self {
            followed,
            head,
            covered,
            refused: beside(REFUSED),
            refused_before: beside(REFUSED_BEFORE),
            file,
        }))
    }

    /// Compares a head with the kept one, and keeps the text of one that contradicts it.
    ///
    /// # Errors
    /// That text cannot be written.
    fn see(&self, reply: &HeadReply) -> Result<Seen, Failure> {
        let note = reply.note.as_bytes();
        let hashes: Vec<[u8; 32]> = reply.consistency.iter().map(|hash| **hash).collect();
        match (
            self.followed.follow(self.head.as_ref(), note, &hashes),
            &self.head,
        ) {
            (Ok(Step::Newer(head)), _) => Ok(Seen::Taken(head)),
            (Ok(Step::Same), Some(head)) => Ok(Seen::Taken(head.clone())),
            (Ok(Step::Same), None) => unreachable!("the first head is newer than none"),
            (Err(doubt), _) => {
                // The first text is the strongest evidence.
                let again = self.refused.exists();
                if !again {
                    write(&self.refused, note)?;
                }
                Ok(Seen::Refused { doubt, again })
            }
        }
    }

    /// Keeps a head that was taken, with how far it covers the ledger. It is on the disk when this
    /// returns.
    ///
    /// # Errors
    /// It cannot be written; then the one from before stays.
    fn keep(&mut self, head: Head, note: &str, covered: u64) -> Result<(), Failure> {
        let is_newer = self.head.as_ref() != Some(&head);
        if !is_newer && covered == self.covered {
            return Ok(());
        }
        let note = note.to_owned();
        let kept = Kept {
            v: V,
            note,
            covered,
        };
        let text =
            serde_json::to_vec(&kept).map_err(|error| Failure::new(Code::Internal, error))?;
        write(&self.file, &text)?;
        (self.head, self.covered) = (Some(head), covered);
        // Evidence against an earlier head stays, and makes room for what contradicts this one.
        if is_newer && self.refused.exists() {
            std::fs::rename(&self.refused, &self.refused_before)
                .map_err(|error| unwritten(&self.refused, &error))?;
        }
        Ok(())
    }
}

fn write(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    replace_private(file, bytes).map_err(|error| unwritten(file, &error))
}

fn unwritten(file: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::HeadUnkept, format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests;
