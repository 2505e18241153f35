//! Checks of workers' events before they are recorded. The cheapest come first: rate, length, form,
//! key, signature, and at last the chain, whose end must be fetched. Refused events never reach a
//! stream.

mod questions;

use std::collections::{BTreeMap, BTreeSet};

use chain::{Claimed, End, Entry, Relation, Signatures};
use schemas::subject::{Incoming, events_stream};
use schemas::{
    AccountId, ChainSequence, Code, Digest, PublicKey, Refusal, RunId, UnixMillis, WorkerId,
    is_answer,
};

use crate::places::{Logged, Places};
use crate::rate::Rate;

pub use questions::{Question, QuestionCheck};

/// Most workers whose rates and chains are remembered: twice as many as a run may have. A worker
/// that is forgotten starts with a full burst, and the end of its chain is fetched again.
const REMEMBERED_MAX: usize = 8192;

/// A worker's audit key, as the ledger names it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are named after the words of `schemas`")]
pub struct Enrolment {
    pub account: AccountId,
    pub run: RunId,
    pub worker: WorkerId,
    pub key: PublicKey,
}

/// A notice from the readers' copy for the intake: an enrolment, or the progress of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are named after the words of `schemas`")]
pub enum Notice {
    /// A worker joined with this key.
    Enrolled(Enrolment),
    /// A worker was removed for good.
    Removed { run: RunId, worker: WorkerId },
    /// An operator shut a worker out, which need not have joined.
    ShutOut { run: RunId, worker: WorkerId },
    /// An operator let a worker in again.
    Readmitted { run: RunId, worker: WorkerId },
    /// The readers' copy shows the chain of this key up to the position before `next`.
    Reached { key: PublicKey, next: ChainSequence },
    /// An event of a worker has this index in the log.
    Logged { key: PublicKey, logged: Logged },
    /// An event of the ledger has this index in the log.
    LedgerLogged { key: PublicKey, logged: Logged },
}

/// A sender: a tenant's account, a run, a worker.
type Sender = (AccountId, RunId, WorkerId);

/// The end of a worker's recorded chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Its position in the tenant's stream.
    pub stream: u64,
    /// The emitter of the chain.
    pub emitter: PublicKey,
    /// Its position in the chain.
    pub sequence: ChainSequence,
    /// Digest of its body.
    pub digest: Digest,
}

/// An event that has passed all checks but that of its chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The tenant.
    pub account: AccountId,
    /// The run.
    pub run: RunId,
    /// The worker.
    pub worker: WorkerId,
    /// The event's kind, as one token.
    pub kind: String,
    event: Entry,
}

/// The outcome of the checks of a message so far.
#[derive(Clone, Debug, PartialEq)]
pub enum MessageCheck {
    /// An answer of ours that somebody had sent here. No known sender is to blame.
    Answer,
    /// The worker sends too fast. There is no answer, since an answer would cost the work that the
    /// limit is to save.
    Over(WorkerId),
    /// The message comes from no worker.
    Nobody,
    /// The refusal to answer with.
    Refused(Refusal),
    /// A candidate, to be compared with the end of its chain.
    Candidate(Box<Candidate>),
}

/// The relation of an event to its chain.
#[derive(Clone, Debug, PartialEq)]
pub enum ChainCheck {
    /// It follows, and is to be recorded.
    Follows,
    /// It is the last event byte for byte, and is recorded already.
    Known,
    /// It does not follow, and never will.
    Refused(Refusal),
}

/// The facts about workers that decide before an event is recorded.
#[derive(Debug)]
pub struct Intake {
    signatures: Signatures,
    /// The keys of each worker that joined; none for a worker that was removed.
    enrolled: BTreeMap<Sender, BTreeSet<PublicKey>>,
    /// The workers in quarantine: no more than the ledger has.
    shut_out: BTreeSet<(RunId, WorkerId)>,
    rates: BTreeMap<WorkerId, Rate>,
    tails: BTreeMap<Sender, Option<Tail>>,
    /// The position up to which the copy shows each chain.
    reached: BTreeMap<PublicKey, ChainSequence>,
    places: Places,
    /// The places of the ledger's events.
    ledger: Places,
}

impl Intake {
    /// The intake for the trust domain `domain` (its id as text), in which nobody is enrolled yet.
    pub fn new(domain: &str) -> Self {
        let (enrolled, rates, tails) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self {
            signatures: Signatures::new(domain, []),
            enrolled,
            shut_out: BTreeSet::new(),
            rates,
            tails,
            reached: BTreeMap::new(),
            places: Places::default(),
            ledger: Places::of_ledger(),
        }
    }

    /// Takes a notice from the copy.
    pub fn learn(&mut self, notice: Notice) {
        match notice {
            Notice::Enrolled(enrolment) => self.enrol(enrolment),
            Notice::Removed { run, worker } => self.remove(&run, &worker),
            Notice::ShutOut { run, worker } => drop(self.shut_out.insert((run, worker))),
            Notice::Readmitted { run, worker } => drop(self.shut_out.remove(&(run, worker))),
            Notice::Reached { key, next } => drop(self.reached.insert(key, next)),
            Notice::Logged { key, logged } => self.places.note(&key, logged),
            Notice::LedgerLogged { key, logged } => self.ledger.note(&key, logged),
        }
    }

    /// Removes the keys of a worker that was removed, so that nothing of it is recorded any more.
    /// Its entry stays, without a key.
    fn remove(&mut self, run: &RunId, worker: &WorkerId) {
        for ((_, its_run, its_worker), keys) in &mut self.enrolled {
            if its_run == run && its_worker == worker {
                keys.clear();
            }
        }
    }

    /// Adds a key that the ledger names.
    pub fn enrol(&mut self, enrolment: Enrolment) {
        let Enrolment {
            account,
            run,
            worker,
            key,
        } = enrolment;
        self.enrolled
            .entry((account, run, worker))
            .or_default()
            .insert(key);
    }

    /// Checks a message under `subject`, into which the broker wrote the worker's name.
    pub fn check_message(
        &mut self,
        now: UnixMillis,
        subject: &str,
        payload: &[u8],
    ) -> MessageCheck {
        let Ok(named) = subject.parse::<Incoming>() else {
            return MessageCheck::Nobody;
        };
        let Incoming::WorkerEvent {
            account,
            run,
            worker,
            kind,
        } = &named
        else {
            return MessageCheck::Nobody;
        };
        if is_answer(payload) {
            return MessageCheck::Answer;
        }
        if !self.rate(now, worker).take(now, payload.len() as u64) {
            return MessageCheck::Over(worker.clone());
        }
        let sender = (account.clone(), run.clone(), worker.clone());
        match self.authentic(&sender, &named, payload) {
            Ok(_) if !self.rate(now, worker).record(payload.len() as u64) => {
                MessageCheck::Over(worker.clone())
            }
            Ok(event) => {
                let (account, run, worker) = sender;
                MessageCheck::Candidate(Box::new(Candidate {
                    account,
                    run,
                    worker,
                    kind: kind.clone(),
                    event,
                }))
            }
            Err(refusal) => MessageCheck::Refused(refusal),
        }
    }

    /// True if this very event is in the log already. A worker sends what no head covers again,
    /// also when more events have followed.
    pub fn is_logged(&self, candidate: &Candidate) -> bool {
        let Entry { body, digest, .. } = &candidate.event;
        self.places.has(&body.emitter, body.sequence, *digest)
    }

    /// The end of the sender's chain, if it is known; the chain may be empty.
    pub fn tail(&self, candidate: &Candidate) -> Option<&Option<Tail>> {
        self.tails.get(&candidate.sender())
    }

    /// The refusal if the tenant's stream ends before a position of the sender's chain that the
    /// copy has shown: the stream was lost, or put back from a backup. Recording more would leave a
    /// gap, or a second chain behind the first.
    pub fn lost(&self, candidate: &Candidate, tail: Option<&Tail>) -> Option<Refusal> {
        let emitter = &candidate.event.body.emitter;
        let next = tail
            .filter(|tail| tail.emitter == *emitter)
            .map_or(ChainSequence(0), |tail| tail.sequence.next());
        let reached = self
            .reached
            .get(emitter)
            .copied()
            .unwrap_or(ChainSequence(0));
        (next < reached).then(|| {
            let (stream, worker) = (events_stream(&candidate.account), &candidate.worker);
            let text =
                format!("{stream} lacks event {next} of {worker}, and a copy of it has all before event {reached}");
            Refusal::new(Code::EventsLost, text)
        })
    }

    /// Remembers the end of a sender's chain, as the stream has it.
    pub fn remember(&mut self, candidate: &Candidate, tail: Option<Tail>) {
        if self.tails.len() >= REMEMBERED_MAX {
            self.tails.pop_first();
        }
        self.tails.insert(candidate.sender(), tail);
    }

    /// Forgets the end of a sender's chain: the stream may have another one.
    pub fn forget(&mut self, candidate: &Candidate) {
        self.tails.remove(&candidate.sender());
    }

    fn rate(&mut self, now: UnixMillis, worker: &WorkerId) -> &mut Rate {
        if self.rates.len() >= REMEMBERED_MAX && !self.rates.contains_key(worker) {
            // A sender that was silent for a while has its whole allowance back, so forgetting it
            // changes nothing.
            self.rates.retain(|_, rate| {
                rate.refill(now);
                !rate.is_full()
            });
            if self.rates.len() >= REMEMBERED_MAX {
                self.rates.pop_first();
            }
        }
        self.rates
            .entry(worker.clone())
            .or_insert_with(|| Rate::full(now))
    }

    /// Checks a message of `sender` under the subject `named`, without its chain.
    fn authentic(
        &self,
        sender: &Sender,
        named: &Incoming,
        payload: &[u8],
    ) -> Result<Entry, Refusal> {
        let refused = |reason: String| Refusal::new(Code::EventRefused, reason);
        let claimed = Claimed::read(payload).map_err(|error| refused(error.to_string()))?;
        self.allowed(sender, claimed.key())?;
        let entry = claimed
            .open(&self.signatures)
            .map_err(|fault| refused(fault.to_string()))?;
        entry
            .stands_under(named)
            .map_err(|misplaced| refused(misplaced.to_string()))?;
        Ok(entry)
    }

    /// Checks that the ledger names `key` as the sender's audit key.
    fn allowed(&self, sender: &Sender, key: &PublicKey) -> Result<(), Refusal> {
        let (_, run, worker) = sender;
        let text =
            || format!("the ledger does not name {key} as the audit key of {worker} in run {run}");
        match self.standing(sender) {
            Ok(keys) if keys.contains(key) => Ok(()),
            // A worker with another key than its first is never named.
            Ok(_) => Err(Refusal::new(Code::EventRefused, text())),
            Err(refusal) if refusal.code == Code::EventLater => {
                Err(Refusal::new(Code::EventLater, text()))
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// The keys that the ledger names for the sender, if anything is taken from it.
    fn standing(&self, sender: &Sender) -> Result<&BTreeSet<PublicKey>, Refusal> {
        let known = self.enrolled.get(sender);
        let (_, run, worker) = sender;
        if known.is_some_and(BTreeSet::is_empty) {
            let text = format!("{worker} was removed from run {run}");
            return Err(Refusal::new(Code::EventRefused, text));
        }
        if self.shut_out.contains(&(run.clone(), worker.clone())) {
            // This may end, and then the chain goes on where it stopped.
            let text = format!("{worker} is shut out of run {run}");
            return Err(Refusal::new(Code::WorkerQuarantined, text));
        }
        // The ledger names a worker that has just joined in a moment.
        known.ok_or_else(|| {
            let text = format!("the ledger does not name {worker} in run {run}");
            Refusal::new(Code::EventLater, text)
        })
    }
}

impl Candidate {
    fn sender(&self) -> Sender {
        (self.account.clone(), self.run.clone(), self.worker.clone())
    }

    /// The relation of the event to the recorded end of its chain.
    pub fn check_chain(&self, tail: Option<&Tail>) -> ChainCheck {
        // Another key begins another chain.
        let tail = tail.filter(|tail| tail.emitter == self.event.body.emitter);
        let end = tail.map_or(End::default(), |tail| {
            End::after(tail.sequence, tail.digest)
        });
        let (sequence, previous) = (self.event.body.sequence, self.event.body.previous);
        let found = match end.relation(sequence, previous, self.event.digest) {
            Relation::Next => return ChainCheck::Follows,
            Relation::Repeated => return ChainCheck::Known,
            Relation::OtherPast { .. } => "with another event before it".to_owned(),
            Relation::Gap { .. } => {
                format!("{sequence}, and what comes between was lost, or was never handed in")
            }
            Relation::Taken | Relation::Late | Relation::Passed { .. } => sequence.to_string(),
        };
        let text = format!(
            "event {} is the next in the recorded chain of {}, this is {found}",
            end.next, self.worker
        );
        ChainCheck::Refused(Refusal::new(Code::ChainForked, text))
    }

    /// The end of the chain once the event is recorded at position `stream`.
    pub fn as_tail(&self, stream: u64) -> Tail {
        Tail::of(stream, self.event.clone())
    }
}

impl Tail {
    /// Reads a recorded event. None if the message is not one; then the end of the chain is not
    /// known.
    pub fn read(stream: u64, payload: &[u8]) -> Option<Self> {
        let entry = Claimed::read(payload).ok()?.unchecked().ok()?;
        Some(Self::of(stream, entry))
    }

    fn of(stream: u64, entry: Entry) -> Self {
        Self {
            stream,
            emitter: entry.body.emitter,
            sequence: entry.body.sequence,
            digest: entry.digest,
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::V;
    use schemas::event::{Event, EventBody, WorkerEvent};

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    /// A key that differs for each `number`.
    fn key(kind: char, number: usize) -> String {
        let letter = |place: u32| {
            char::from(b'A' + u8::try_from((number >> (4 * place)) % 16).expect("below 16"))
        };
        let tail: String = (0..8).map(letter).collect();
        format!("{kind}{}{tail}", "A".repeat(47))
    }

    fn worker(number: usize) -> WorkerId {
        key('U', number).parse().expect("a key")
    }

    fn candidate(number: usize) -> Candidate {
        let body = EventBody {
            v: V,
            known: None,
            emitter: key('U', number).parse().expect("a key"),
            sequence: ChainSequence(0),
            previous: None,
            time: NOW,
            run: None,
            event: Event::Worker(WorkerEvent::Stopped {
                reason: String::new(),
            }),
        };
        let (account, run) = (
            key('A', 1).parse().expect("a key"),
            "demo".parse().expect("a name"),
        );
        Candidate {
            account,
            run,
            worker: worker(number),
            kind: "stopped".to_owned(),
            event: Entry {
                body,
                digest: Digest::of(b""),
            },
        }
    }

    #[test]
    fn the_end_of_a_chain_is_known_until_it_is_forgotten() {
        let (mut intake, first) = (Intake::new("a domain"), candidate(1));
        assert_eq!(intake.tail(&first), None, "it was never fetched");
        intake.remember(&first, None);
        assert_eq!(intake.tail(&first), Some(&None), "the chain is empty");
        let tail = Some(first.as_tail(7));
        intake.remember(&first, tail.clone());
        intake.remember(&candidate(2), None);
        assert_eq!(intake.tail(&first), Some(&tail));
        intake.forget(&first);
        assert_eq!(intake.tail(&first), None);
        assert_eq!(intake.tail(&candidate(2)), Some(&None), "that of another");
    }

    /// The limit holds however many names a tenant makes up.
    #[test]
    fn what_is_remembered_of_workers_is_bounded_and_who_is_quiet_goes_first() {
        let mut intake = Intake::new("a domain");
        for number in 0..REMEMBERED_MAX + 10 {
            assert!(intake.rate(NOW, &worker(number)).take(NOW, 1));
            intake.remember(&candidate(number), None);
        }
        assert_eq!(
            (intake.rates.len(), intake.tails.len()),
            (REMEMBERED_MAX, REMEMBERED_MAX)
        );
        // A second later all are as if they had never sent anything, except one that goes on.
        let (later, busy) = (UnixMillis(NOW.get() + 1000), worker(REMEMBERED_MAX + 9));
        assert!(intake.rate(later, &busy).take(later, 1));
        assert_eq!(
            intake.rates.len(),
            REMEMBERED_MAX,
            "who is known needs no room"
        );
        assert!(
            intake
                .rate(later, &worker(REMEMBERED_MAX + 10))
                .take(later, 1)
        );
        assert_eq!(intake.rates.keys().collect::<Vec<_>>().len(), 2);
        assert!(intake.rates.contains_key(&busy));
    }
}
