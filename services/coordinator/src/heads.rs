//! Follows the log of all events, so that the ledger is kept as well as the events of workers: the
//! newest head that was verified stays on this machine, no older one and no other history is taken
//! for it, and events of the ledger that no head covers are said. Which they are, the core decides
//! ([`Receipts`]).
//!
//! Nothing here holds up a round or ends the process. Without heads, or with heads that contradict
//! each other, the coordinator says so and goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use backoff::spread;
use coordinator_core::{Receipts, Say, Sent};
use identity::TrustBundle;
use identity::secret::replace_private;
use runtime::evidence::Evidence;
use runtime::metrics::{LEDGER_UNCOVERED, LEDGER_UNCOVERED_SECONDS, also};
use runtime::refusals::DENIED_AGAIN;
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

/// Longest pause between two questions; the half of it is the shortest. A head is signed ten
/// seconds after an event.
const PAUSE: Duration = Duration::from_secs(10);
/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(8);
/// Ending of the file with the newest verified head, after the name of the ledger's mark.
const HEAD: &str = "head";
/// Ending of the file with the text of the first head against the kept one.
const REFUSED: &str = "head-refused";

/// What is known of the log, for the decision loop; nothing where no heads are signed or followed.
#[derive(Clone, Debug, Default)]
pub(crate) struct LedgerHeads(Option<Arc<Mutex<Shared>>>);

#[derive(Debug)]
struct Shared {
    receipts: Receipts,
    /// The newest head that this process has verified. One of an earlier process is not named in
    /// events: the ledger may have moved to another machine and back meanwhile, and its events
    /// never name an older head than those before them.
    known: Option<KnownHead>,
}

impl LedgerHeads {
    /// Begins with the head that was kept beside the ledger's mark at `mark`. If the log cannot be
    /// followed, the log of this process says why, and the view has the code. `own` is the key that
    /// signs the ledger.
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
                let mut receipts = Receipts::new(within, 0, None);
                receipts.doubt(code);
                return (Self::of(receipts), None);
            }
        };
        let head = memory.head.as_ref().map(|head| head.size);
        let receipts = Receipts::new(within, memory.covered, head);
        let receipts = receipts.waiting(memory.wait.since, memory.wait.had);
        let heads = Self::of(receipts);
        let follower = Follower {
            heads: heads.clone(),
            memory,
            emitter: own,
            said: BTreeSet::new(),
        };
        (heads, Some(follower))
    }

    fn of(receipts: Receipts) -> Self {
        let known = None;
        Self(Some(Arc::new(Mutex::new(Shared { receipts, known }))))
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
    /// What this process has said, and not the end of since then: it is said once.
    said: BTreeSet<Code>,
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
            self.heard(asked.as_ref().err());
            self.say(clock::now());
            tokio::time::sleep(spread(longest_pause(&asked), objects::random_fraction())).await;
        }
    }

    async fn ask(&mut self, bus: &Bus, subject: &str) -> Result<(), BusError> {
        let (question, entries) = self.question();
        self.remember(clock::now());
        let reply: HeadReply = bus.request(subject, &question, ANSWER_MAX).await?;
        self.take(clock::now(), &reply, &entries);
        Ok(())
    }

    /// Takes note of how a question ended. One that the broker denies says nothing by itself: the
    /// coordinator's right to ask is younger than the accounts' tokens at the broker, or was taken.
    fn heard(&mut self, error: Option<&BusError>) {
        match error {
            None => {
                self.said.remove(&Code::BusDenied);
            }
            Some(error @ BusError::Denied { .. }) if self.said.insert(Code::BusDenied) => {
                tracing::warn!(code = %Code::BusDenied, next = "run `diloctl auth config` and `diloctl auth push`", "this coordinator \
                               may not ask for heads of the log, so it cannot see that the log has its ledger's events: {error}");
            }
            Some(error) => tracing::debug!(%error, "no head of the log came"),
        }
    }

    /// Keeps how long the oldest event waits that no head covers, for another process.
    fn remember(&mut self, now: UnixMillis) {
        let shared = self.heads.lock();
        let wait = shared.map_or_else(Wait::default, |shared| Wait::of(&shared.receipts, now));
        let kept = self.memory.remember(wait);
        self.kept(kept, "the time since which events of the ledger wait");
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
    fn take(
        &mut self,
        now: UnixMillis,
        reply: &HeadReply,
        entries: &BTreeMap<ChainSequence, Vec<u8>>,
    ) {
        match self.memory.see(reply) {
            Ok(head) => {
                let kept = self.verified(now, head, reply, entries);
                self.kept(kept, "a head of the log");
            }
            Err(doubt) => {
                // A disk without room hides nothing.
                self.raise(&doubt);
                if is_signed(&doubt) {
                    let kept = self.memory.refused.keep(reply.note.as_bytes());
                    let kept = kept.map_err(|error| Failure::new(Code::HeadUnkept, error));
                    self.kept(
                        kept.map(|()| true),
                        "the text of a head that contradicts the kept one",
                    );
                }
            }
        }
    }

    /// Keeps a head that continues the kept one. True if something was written.
    fn verified(
        &mut self,
        now: UnixMillis,
        head: Head,
        reply: &HeadReply,
        entries: &BTreeMap<ChainSequence, Vec<u8>>,
    ) -> Result<bool, Failure> {
        let under = under(&head, &reply.events, entries);
        let (covered, wait) = self
            .heads
            .lock()
            .map_or_else(Default::default, |mut shared| {
                shared.receipts.verified(head.size, &under);
                let receipts = &shared.receipts;
                (receipts.covered(), Wait::of(receipts, now))
            });
        let known = KnownHead {
            size: head.size,
            root: ByteArray::new(head.root),
        };
        let is_newer = self.memory.head.as_ref() != Some(&head);
        let written = self.memory.keep(head, &reply.note, covered, wait)?;
        if let Some(mut shared) = self.heads.lock() {
            shared.known = Some(known);
        }
        if is_newer {
            // What contradicts this one is news again, and so is its text.
            self.said.remove(&Code::HeadContradicted);
            self.memory.set_aside()?;
        }
        Ok(written)
    }

    /// Says that something is not on the disk: once, until something is written again.
    fn kept(&mut self, written: Result<bool, Failure>, what: &str) {
        match written {
            Ok(true) => {
                self.said.remove(&Code::HeadUnkept);
            }
            Ok(false) => {}
            Err(failure) if self.said.insert(failure.code()) => {
                let (code, next) = (failure.code(), failure.code().next_step());
                tracing::warn!(%code, next, "not kept: {what}: {failure}");
            }
            Err(failure) => tracing::debug!(%failure, "still not kept: {what}"),
        }
    }

    /// Says that the log contradicts itself, once for each head that is kept; of answers that the
    /// log's key has not signed, once.
    fn raise(&mut self, doubt: &Doubt) {
        let code = match is_signed(doubt) {
            true => Code::HeadContradicted,
            false => Code::HeadInvalid,
        };
        if let Some(mut shared) = self.heads.lock() {
            shared.receipts.doubt(code);
        }
        if self.said.insert(code) {
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

/// True if the log's own key has signed what is doubted: that alone is evidence.
const fn is_signed(doubt: &Doubt) -> bool {
    match doubt {
        Doubt::Head(_) => false,
        Doubt::WentBack { .. } | Doubt::Forked(_) | Doubt::Unproven { .. } => true,
    }
}

/// The longest pause after a question that ended so. Each that is denied is a security event.
const fn longest_pause(asked: &Result<(), BusError>) -> Duration {
    match asked {
        Err(BusError::Denied { .. }) => DENIED_AGAIN,
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

/// How long the oldest event waits that no head covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wait {
    /// Since then; none if no event waits.
    since: Option<UnixMillis>,
    /// How much of the time to see a head over it processes have had that did not append it.
    had: Millis,
}

impl Wait {
    fn of(receipts: &Receipts, now: UnixMillis) -> Self {
        Self {
            since: receipts.oldest(),
            had: receipts.had(now),
        }
    }
}

/// What this machine has seen of the log, on its disk.
#[derive(Debug)]
struct Memory {
    followed: Followed,
    head: Option<Head>,
    /// Its signed text.
    note: String,
    /// The first so many events of the ledger are under it.
    covered: u64,
    /// How long the oldest of the others waits.
    wait: Wait,
    file: PathBuf,
    refused: Evidence,
}

/// The form of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    v: V<1>,
    /// The signed text of the head.
    note: String,
    covered: u64,
    /// A restart gives events that wait a minute more, and no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<UnixMillis>,
    /// How much of that minute was had.
    #[serde(default, skip_serializing_if = "is_none")]
    had: Millis,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference to the field"
)]
const fn is_none(had: &Millis) -> bool {
    had.get() == 0
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
        let mut memory = Self {
            followed,
            head: None,
            note: String::new(),
            covered: 0,
            wait: Wait::default(),
            refused: Evidence::at(beside(REFUSED)),
            file: file.clone(),
        };
        match std::fs::read(&file) {
            Ok(text) => {
                let kept: Kept = serde_json::from_slice(&text).map_err(|error| unusable(&error))?;
                let head = memory.followed.open(kept.note.as_bytes());
                memory.head = Some(head.map_err(|error| unusable(&error))?);
                (memory.note, memory.covered) = (kept.note, kept.covered);
                let Kept { since, had, .. } = kept;
                memory.wait = Wait { since, had };
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(unusable(&error)),
        }
        Ok(Some(memory))
    }

    /// Compares a head with the kept one: the head if it is that, or continues it.
    fn see(&self, reply: &HeadReply) -> Result<Head, Doubt> {
        let note = reply.note.as_bytes();
        let hashes: Vec<[u8; 32]> = reply.consistency.iter().map(|hash| **hash).collect();
        let step = self.followed.follow(self.head.as_ref(), note, &hashes)?;
        match (step, &self.head) {
            (Step::Newer(head), _) => Ok(head),
            (Step::Same, Some(head)) => Ok(head.clone()),
            (Step::Same, None) => unreachable!("the first head is newer than none"),
        }
    }

    /// Keeps a head that was taken, with how far it covers the ledger and since when the oldest
    /// other event waits. It is on the disk when this returns. True if it was not there before.
    ///
    /// # Errors
    /// It cannot be written; then the one from before stays.
    fn keep(&mut self, head: Head, note: &str, covered: u64, wait: Wait) -> Result<bool, Failure> {
        let is_newer = self.head.as_ref() != Some(&head);
        if !is_newer && covered == self.covered && wait == self.wait {
            return Ok(false);
        }
        let kept = Kept {
            v: V,
            note: note.to_owned(),
            covered,
            since: wait.since,
            had: wait.had,
        };
        let text =
            serde_json::to_vec(&kept).map_err(|error| Failure::new(Code::Internal, error))?;
        replace_private(&self.file, &text)
            .map_err(|error| Failure::new(Code::HeadUnkept, error))?;
        (self.head, self.note) = (Some(head), kept.note);
        (self.covered, self.wait) = (covered, wait);
        Ok(true)
    }

    /// Keeps how long the oldest event waits that the kept head does not cover. Where no head was
    /// ever seen nobody waits.
    ///
    /// # Errors
    /// It cannot be written.
    fn remember(&mut self, wait: Wait) -> Result<bool, Failure> {
        let Some(head) = self.head.clone() else {
            return Ok(false);
        };
        let (note, covered) = (self.note.clone(), self.covered);
        self.keep(head, &note, covered, wait)
    }

    /// Moves evidence against an earlier head aside.
    ///
    /// # Errors
    /// It cannot be moved.
    fn set_aside(&self) -> Result<(), Failure> {
        let moved = self.refused.set_aside();
        moved.map_err(|error| {
            let text = format!("{}: {error}", self.file.display());
            Failure::new(Code::HeadUnkept, text)
        })
    }
}

#[cfg(test)]
mod tests;
