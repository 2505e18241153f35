//! The outcome of a whole replay.

use std::collections::{BTreeMap, BTreeSet};

use ledger::{Run, State};
use schemas::contribution::Fate;
use schemas::view::RunPhase;
use schemas::{AccountId, ObjectRef, PublicKey, Round, RunId, Tokens, WorkerId};
use serde::Serialize;

use crate::emitter::Chain;
use crate::finding::PlacedFinding;
use crate::record::StreamSequence;
use crate::timeline::{COORDINATOR, SENTRY, TimelineRow};
use crate::verdict::Verdict;

/// Most workers whose faults are listed. The broker lets nobody speak without credentials, so there
/// are no more than were issued. The findings of all are counted.
const FAULTY_WORKERS_MAX: usize = 4096;
/// Most foreign messages that are listed: one is enough to begin the search for the sender. All are
/// counted.
const FOREIGN_LISTED_MAX: usize = 100;
/// Most findings that are kept: a stream that is wrong throughout has one for each message. All are
/// counted.
const FINDINGS_MAX: usize = 10_000;

/// A summary of a replay.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The newest position that was checked.
    pub last: StreamSequence,
    /// Messages that were checked.
    pub events: u64,
    /// Messages that verify.
    pub verified: u64,
    /// Repetitions of events that verify.
    pub repeated: u64,
    /// Events of workers that have not joined yet.
    pub unenrolled: u64,
    /// Messages with evidence against them.
    pub rejected: u64,
    /// Messages that are in nobody's chain, and were skipped. Nothing depends on them.
    pub foreign: u64,
    /// The first foreign messages.
    pub foreign_messages: Vec<ForeignMessage>,
    /// True if there is evidence against the ledger or the stream. Without evidence the runs below
    /// are proven, whatever single workers did.
    pub evidence: bool,
    /// Findings by their names.
    pub findings: BTreeMap<String, u64>,
    /// The first finding that is evidence against ledger or stream, in words.
    pub first_evidence: Option<String>,
    /// Number of events of each kind, counting only those that verify.
    pub kinds: BTreeMap<String, u64>,
    /// Workers whose own events do not verify.
    pub faulty_workers: Vec<FaultyWorker>,
    /// Every emitter of a chain.
    pub emitters: Vec<EmitterSummary>,
    /// Every run in the ledger.
    pub runs: Vec<RunSummary>,
}

/// A message that is in nobody's chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ForeignMessage {
    /// Its position in the stream.
    pub stream_sequence: StreamSequence,
    /// The reason why it is in no chain, in words.
    pub reason: String,
}

/// Faults in the events of one worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FaultyWorker {
    /// The run under which it spoke, by the subject.
    pub run: RunId,
    /// The worker, by the subject.
    pub worker: WorkerId,
    /// The number of faults.
    pub faults: u64,
    /// The first of them, in words.
    pub first: String,
}

/// One chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EmitterSummary {
    /// The audit key.
    pub key: PublicKey,
    /// `coordinator`, `sentry`, or the first letters of a worker's connection key.
    pub name: String,
    /// Events in it.
    pub events: u64,
    /// True if no event is missing, altered or out of order.
    pub whole: bool,
}

/// One run, as the ledger tells it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunSummary {
    /// Its name.
    pub run: RunId,
    /// The phase that it is in.
    pub phase: RunPhase,
    /// Rounds that are closed.
    pub rounds_closed: Round,
    /// Rounds of the run.
    pub rounds: u64,
    /// Tokens issued with leases.
    pub issued: Tokens,
    /// Tokens of leases held now.
    pub in_flight: Tokens,
    /// The fates of the other tokens.
    pub fates: Vec<(Fate, Tokens)>,
    /// True if issued tokens equal the sum of fates and in flight.
    pub adds_up: bool,
    /// The newest held-out loss, in nats a token, with the round of its snapshot.
    pub held_out_loss: Option<(Round, f64)>,
    /// The newest full snapshot.
    pub snapshot: Option<(Round, ObjectRef)>,
}

/// Counts that are kept while records are checked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    verdicts: [u64; 5],
    kinds: BTreeMap<String, u64>,
    findings: Vec<PlacedFinding>,
    names: BTreeMap<&'static str, u64>,
    first_evidence: Option<PlacedFinding>,
    faulty_workers: Vec<FaultyWorker>,
    foreign: Vec<ForeignMessage>,
}

impl Tally {
    /// Counts a record with its final verdict.
    pub(crate) fn count(&mut self, row: &TimelineRow, verdict: Verdict) {
        self.verdicts[verdict as usize] += 1;
        if verdict == Verdict::Verified {
            *self.kinds.entry(row.kind.clone()).or_default() += 1;
        }
    }

    pub(crate) fn find(&mut self, found: &PlacedFinding) {
        *self.names.entry(found.finding.name()).or_default() += 1;
        if self.first_evidence.is_none() && found.is_evidence() {
            self.first_evidence = Some(found.clone());
        }
        if found.finding.is_foreign() && self.foreign.len() < FOREIGN_LISTED_MAX {
            let (stream_sequence, reason) = (found.stream_sequence, found.finding.to_string());
            self.foreign.push(ForeignMessage {
                stream_sequence,
                reason,
            });
        }
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(found.clone());
        }
    }

    /// Counts a finding against the worker whose events it concerns.
    pub(crate) fn blame(&mut self, run: &RunId, worker: &WorkerId, found: &PlacedFinding) {
        if found.is_evidence() || !found.finding.is_evidence() {
            return;
        }
        let place = self
            .faulty_workers
            .binary_search_by(|faulty| (&faulty.run, &faulty.worker).cmp(&(run, worker)));
        match place {
            Ok(at) => self.faulty_workers[at].faults += 1,
            Err(at) if self.faulty_workers.len() < FAULTY_WORKERS_MAX => {
                let (run, worker) = (run.clone(), worker.clone());
                self.faulty_workers.insert(
                    at,
                    FaultyWorker {
                        run,
                        worker,
                        faults: 1,
                        first: found.to_string(),
                    },
                );
            }
            Err(_) => {}
        }
    }

    pub(crate) fn faulty_workers(&self) -> &[FaultyWorker] {
        &self.faulty_workers
    }

    pub(crate) fn findings(&self) -> &[PlacedFinding] {
        &self.findings
    }

    pub(crate) fn first_evidence(&self) -> Option<&PlacedFinding> {
        self.first_evidence.as_ref()
    }

    fn of(&self, verdict: Verdict) -> u64 {
        self.verdicts[verdict as usize]
    }
}

impl Summary {
    pub(crate) fn new(
        last: StreamSequence,
        held: usize,
        tally: &Tally,
        emitters: Vec<EmitterSummary>,
        state: &State,
    ) -> Self {
        let unenrolled = held as u64;
        Self {
            last,
            events: tally.verdicts.iter().sum::<u64>() + unenrolled,
            verified: tally.of(Verdict::Verified),
            repeated: tally.of(Verdict::Repeated),
            unenrolled,
            rejected: tally.of(Verdict::Rejected),
            foreign: tally.of(Verdict::Foreign),
            foreign_messages: tally.foreign.clone(),
            evidence: tally.first_evidence.is_some(),
            findings: tally
                .names
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect(),
            first_evidence: tally.first_evidence.as_ref().map(ToString::to_string),
            kinds: tally.kinds.clone(),
            faulty_workers: tally.faulty_workers.clone(),
            emitters,
            runs: state
                .runs()
                .map(|(name, run)| RunSummary::new(name, run))
                .collect(),
        }
    }
}

impl EmitterSummary {
    pub(crate) fn all(
        chains: &BTreeMap<PublicKey, Chain>,
        enrolled: &BTreeMap<(RunId, WorkerId), BTreeSet<(AccountId, PublicKey)>>,
        sentries: &BTreeSet<PublicKey>,
    ) -> Vec<Self> {
        let worker = |key: &PublicKey| {
            let mut members = enrolled.iter();
            members
                .find(|(_, keys)| keys.iter().any(|(_, own)| own == key))
                .map(|((_, worker), _)| worker.short())
        };
        let one = |(key, chain): (&PublicKey, &Chain)| Self {
            key: key.clone(),
            name: match sentries.contains(key) {
                true => SENTRY,
                false => worker(key).unwrap_or(COORDINATOR),
            }
            .to_owned(),
            events: chain.events,
            whole: !chain.broken,
        };
        chains.iter().map(one).collect()
    }
}

impl RunSummary {
    fn new(name: &RunId, run: &Run) -> Self {
        let view = run.view(name);
        let in_flight = run.tokens_in_flight();
        let settled = view
            .tokens
            .iter()
            .fold(Tokens(0), |sum, (_, tokens)| sum + *tokens);
        Self {
            run: name.clone(),
            phase: view.phase,
            rounds_closed: run.rounds_closed(),
            rounds: view.rounds,
            issued: run.tokens.issued,
            in_flight,
            adds_up: settled + in_flight == run.tokens.issued,
            fates: view.tokens,
            held_out_loss: view.held_out_loss,
            snapshot: view.snapshot,
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::ChainSequence;

    use super::*;
    use crate::finding::Finding;

    fn found(ledger: bool, finding: Finding) -> PlacedFinding {
        let stream_sequence = StreamSequence(1);
        PlacedFinding {
            stream_sequence,
            ledger,
            finding,
        }
    }

    fn reused() -> Finding {
        Finding::Reused {
            sequence: ChainSequence(1),
        }
    }

    #[test]
    fn all_findings_are_counted_and_the_first_are_listed() {
        let mut tally = Tally::default();
        for _ in 0..FINDINGS_MAX + 5 {
            let reason = "of nobody".to_owned();
            tally.find(&found(false, Finding::Foreign { reason }));
        }
        tally.find(&found(true, reused()));
        let summary = Summary::new(StreamSequence(1), 0, &tally, Vec::new(), &State::default());
        assert_eq!(summary.findings["foreign"], FINDINGS_MAX as u64 + 5);
        assert_eq!(tally.findings().len(), FINDINGS_MAX);
        assert_eq!(summary.foreign_messages.len(), FOREIGN_LISTED_MAX);
        assert!(summary.evidence, "also when the lists are full");
    }

    #[test]
    fn evidence_is_no_foreign_message() {
        let mut tally = Tally::default();
        tally.find(&found(true, reused()));
        assert!(tally.foreign.is_empty());
    }

    #[test]
    fn a_worker_is_blamed_for_each_of_its_faults_however_many_workers_there_are() {
        let (mut tally, run) = (Tally::default(), "demo".parse().expect("a name"));
        for number in 0..FAULTY_WORKERS_MAX as u32 + 5 {
            tally.blame(&run, &kit::worker(number), &found(false, reused()));
        }
        assert_eq!(tally.faulty_workers().len(), FAULTY_WORKERS_MAX);
        for _ in 0..2 {
            tally.blame(&run, &kit::worker(7), &found(false, reused()));
        }
        let seventh = kit::worker(7);
        let mut faulty = tally.faulty_workers().iter();
        let faulty = faulty.find(|faulty| faulty.worker == seventh);
        assert_eq!(faulty.map(|faulty| faulty.faults), Some(3));
    }
}
