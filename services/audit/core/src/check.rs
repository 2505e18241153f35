//! The auditor: every check on every record, in the order of the stream, and the fold of the
//! ledger.

mod succession;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ledger::State;
use schemas::checkpoint::Checkpoint;
use schemas::event::{Departure, Event, EventBody, LedgerEvent};
use schemas::{
    AccountId, ChainSequence, Digest, Millis, ObjectRef, PublicKey, RunId, UnixMillis, WorkerId,
};

use crate::ancestry::Ancestry;
use crate::cohorts::{CohortFinding, Cohorts};
use crate::emitter::{Chain, Link};
use crate::examine::{Account, Content, Examined, Examiner, LedgerRecord, WorkerRecord};
use crate::finding::{Finding, PlacedFinding};
use crate::intake::{Enrolment, Notice};
use crate::lineage::Lineage;
use crate::recompute::Merges;
use crate::record::{Record, StreamSequence};
use crate::summary::{EmitterSummary, FaultyWorker, Summary, Tally};
use crate::timeline::TimelineRow;
use crate::verdict::Verdict;
use succession::Emitters;

/// Most events that wait until their emitter is enrolled. The broker copies ledger and events side
/// by side, so a new copy can bring many events before the joins that enrol their workers.
/// Strangers cannot fill this, since their messages are not recorded. An event has some hundred
/// bytes, and 16 KiB at most.
pub const HELD_MAX: usize = 16_384;
/// Most by which an emitter's time may lie after the broker's, or go back: machines without NTP
/// drift by seconds a day.
pub const CLOCK_SKEW_MAX: Millis = Millis::from_secs(600);

/// A record after its checks.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The verdict.
    pub verdict: Verdict,
    /// Everything that is wrong or unusual.
    pub findings: Vec<PlacedFinding>,
    /// The record as a line for people.
    pub row: TimelineRow,
}

/// Checks records one by one. Give it the stream from its first message on.
#[derive(Debug)]
pub struct Auditor {
    examiner: Examiner,
    /// The keys that security events may be signed with.
    sentries: BTreeSet<PublicKey>,
    chains: BTreeMap<PublicKey, Chain>,
    /// The keys that sign the ledger.
    emitters: Emitters,
    enrolled: BTreeMap<(RunId, WorkerId), BTreeSet<(AccountId, PublicKey)>>,
    /// Notices that wait for [`Auditor::take_notices`].
    notices: Vec<Notice>,
    /// Chains of workers that have grown since the last call, each with its next number.
    reached: BTreeMap<PublicKey, ChainSequence>,
    held: VecDeque<WorkerRecord>,
    state: State,
    /// The event that took the last checkpoint, with the digest of its body.
    taken: Option<(ChainSequence, Digest)>,
    /// True until an event did not follow; from then on the state differs from the coordinator's.
    follows: bool,
    last: StreamSequence,
    tally: Tally,
    cohorts: Cohorts,
    /// The merges of a run, if they are wanted.
    merges: Option<Merges>,
    /// The lineage of an object, if it is wanted.
    lineage: Option<Lineage>,
    /// The ancestry of an object, if it is wanted.
    ancestry: Option<Ancestry>,
}

impl Auditor {
    /// An auditor of the trust domain `domain` (its id as text) that takes ledger events from these
    /// audit keys only: first from the first of them, then from each that an event of the ledger
    /// names as the next, which must be a later one.
    pub fn new(domain: &str, coordinators: impl IntoIterator<Item = PublicKey>) -> Self {
        let coordinators: Vec<PublicKey> = coordinators.into_iter().collect();
        Self {
            cohorts: Cohorts::new(domain, &coordinators),
            examiner: Examiner::new(domain, coordinators.iter().cloned()),
            emitters: Emitters::new(coordinators),
            sentries: BTreeSet::new(),
            chains: BTreeMap::new(),
            enrolled: BTreeMap::new(),
            notices: Vec::new(),
            reached: BTreeMap::new(),
            held: VecDeque::new(),
            state: State::default(),
            taken: None,
            follows: true,
            last: StreamSequence(0),
            tally: Tally::default(),
            merges: None,
            lineage: None,
            ancestry: None,
        }
    }

    /// The same auditor, which also collects the merges of a run from now on.
    #[must_use]
    pub fn collecting(self, merges: Merges) -> Self {
        let merges = Some(merges);
        Self { merges, ..self }
    }

    /// The merges that were collected.
    pub fn take_merges(&mut self) -> Option<Merges> {
        self.merges.take()
    }

    /// The same auditor, which also traces an object from now on.
    #[must_use]
    pub fn tracing(self, lineage: Lineage) -> Self {
        let lineage = Some(lineage);
        Self { lineage, ..self }
    }

    /// The same auditor, which also collects the ancestry of an object from now on.
    #[must_use]
    pub fn tracing_back(self, ancestry: Ancestry) -> Self {
        let ancestry = Some(ancestry);
        Self { ancestry, ..self }
    }

    /// The ancestry that was collected.
    pub fn take_ancestry(&mut self) -> Option<Ancestry> {
        self.ancestry.take()
    }

    /// The lineage that was traced.
    pub fn take_lineage(&mut self) -> Option<Lineage> {
        self.lineage.take()
    }

    /// The part that examines records, which may run on other threads and ahead of the order.
    pub const fn examiner(&self) -> &Examiner {
        &self.examiner
    }

    /// Checks the next record: examines it and puts it in its place.
    pub fn observe(&mut self, record: &Record) -> Vec<Checked> {
        let examined = self.examiner.examine(record);
        self.place(examined)
    }

    /// Takes the next record, which [`Auditor::examiner`] has examined. The first result is about
    /// this record. Further results are about earlier records that waited for the worker that this
    /// one enrols, or that will wait no longer.
    pub fn place(&mut self, examined: Examined) -> Vec<Checked> {
        let mut findings = self.position(examined.at);
        let mut results = Vec::new();
        match examined.content {
            Content::Ledger(told) => {
                let enrols = matches!(
                    told.body.event,
                    Event::Ledger(LedgerEvent::WorkerJoined { .. })
                );
                results.push(self.ledger(*told, findings));
                if enrols {
                    self.release(&mut results);
                }
            }
            Content::Security(seen) => results.push(self.security(*seen, findings)),
            Content::Worker(event) => self.worker(*event, findings, &mut results),
            Content::Nothing {
                finding,
                account,
                row,
            } => {
                findings.push(self.of_the_present_key(finding));
                results.push(self.settle(Verdict::Rejected, &account, findings, *row));
            }
        }
        results
    }

    /// Reports what is still open at the end of the stream, whose last position is `last`: events
    /// whose emitter never joined, and messages that the stream counts and does not deliver.
    pub fn conclude(&mut self, last: StreamSequence) -> Vec<Checked> {
        let mut results: Vec<Checked> = Vec::new();
        while let Some(held) = self.held.pop_front() {
            results.push(self.stranger(held));
        }
        let missing = (last > self.last).then(|| Finding::Hole {
            from: self.last.next(),
            to: last,
        });
        for finding in missing.into_iter().chain(self.contradiction()) {
            self.note(&PlacedFinding {
                stream_sequence: last,
                ledger: true,
                finding,
            });
        }
        results
    }

    /// The enrolments since the last call, and the progress of the workers' chains.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        let reached = std::mem::take(&mut self.reached).into_iter();
        let reached = reached.map(|(key, next)| Notice::Reached { key, next });
        // Progress comes first: once a key is enrolled its events are accepted, and by then the
        // intake must know how much of its chain is recorded.
        reached.chain(std::mem::take(&mut self.notices)).collect()
    }

    /// Adds a finding that was made elsewhere, for instance by comparing with kept files.
    pub fn note(&mut self, found: &PlacedFinding) {
        self.tally.find(found);
    }

    /// The coordinator's state after the newest record.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The position of the newest record; 0 before the first.
    pub fn last(&self) -> StreamSequence {
        self.last
    }

    /// Everything that was found so far.
    pub fn findings(&self) -> &[PlacedFinding] {
        self.tally.findings()
    }

    /// The first finding that is evidence against the ledger or the stream: then nothing that the
    /// record says about the runs is proven. [`Auditor::faulty_workers`] has the faults in the
    /// accounts of single workers.
    pub fn evidence(&self) -> Option<&PlacedFinding> {
        self.tally.first_evidence()
    }

    /// Workers whose own events do not verify, in order of run and worker. The ledger does not
    /// depend on them.
    pub fn faulty_workers(&self) -> &[FaultyWorker] {
        self.tally.faulty_workers()
    }

    /// The summary of everything so far.
    pub fn summary(&self) -> Summary {
        let emitters = EmitterSummary::all(&self.chains, &self.enrolled, &self.sentries);
        Summary::new(
            self.last,
            self.held.len(),
            &self.tally,
            emitters,
            &self.state,
        )
    }

    fn position(&mut self, at: StreamSequence) -> Vec<Finding> {
        let before = std::mem::replace(&mut self.last, at);
        if at <= before {
            vec![Finding::Rewound {
                sequence: at,
                after: before,
            }]
        } else if at > before.next() {
            vec![Finding::Hole {
                from: before.next(),
                to: StreamSequence(at.0 - 1),
            }]
        } else {
            Vec::new()
        }
    }

    fn ledger(&mut self, told: LedgerRecord, mut findings: Vec<Finding>) -> Checked {
        let LedgerRecord {
            stored_at,
            body,
            digest,
            row,
        } = told;
        if let Some(stranger) = self.of_another_key(&body, digest) {
            findings.extend(stranger);
            return self.settle(Verdict::Repeated, &Account::Ledger, findings, row);
        }
        if self.link(&body, digest, stored_at, &mut findings) {
            return self.settle(Verdict::Repeated, &Account::Ledger, findings, row);
        }
        findings.extend(self.succeed(&body));
        let Event::Ledger(event) = &body.event else {
            unreachable!("the subject of a ledger was checked")
        };
        if let LedgerEvent::CheckpointSaved { checkpoint } = event {
            findings.extend(self.false_checkpoint(checkpoint));
        }
        match self.state.apply(body.time, body.run.as_ref(), event) {
            Ok(()) => {
                if matches!(event, LedgerEvent::CheckpointTaken) {
                    self.taken = Some((body.sequence, digest));
                }
                self.notice(body.run.as_ref(), event);
                let shown = self.cohorts.note(body.run.as_ref(), event, &self.state);
                findings.extend(shown);
                if let Some(merges) = &mut self.merges {
                    merges.note(row.stream_sequence, body.run.as_ref(), event, &self.state);
                }
                if let Some(lineage) = &mut self.lineage {
                    lineage.note(row.stream_sequence, body.run.as_ref(), event, &self.state);
                }
                if let Some(ancestry) = &mut self.ancestry {
                    let (at, run) = (row.stream_sequence, body.run.as_ref());
                    ancestry.note(at, body.time, run, event, &self.state);
                }
                if matches!(event, LedgerEvent::RoundClosed { .. }) {
                    findings.extend(self.contradiction());
                }
            }
            Err(error) => {
                self.follows = false;
                findings.push(Finding::OutOfPlace {
                    reason: error.to_string(),
                });
            }
        }
        self.settle(Verdict::Verified, &Account::Ledger, findings, row)
    }

    /// A security event: a link in its chain, and nothing that a state follows from.
    fn security(&mut self, seen: LedgerRecord, mut findings: Vec<Finding>) -> Checked {
        let LedgerRecord {
            stored_at,
            body,
            digest,
            row,
        } = seen;
        let verdict = match self.link(&body, digest, stored_at, &mut findings) {
            true => Verdict::Repeated,
            false => Verdict::Verified,
        };
        self.settle(verdict, &Account::Ledger, findings, row)
    }

    /// Compares a checkpoint that the ledger names with the state after the events before it.
    /// Checkpoints in a form that this release does not write are not judged, since no start of
    /// this release uses them. Nor are those after an event that did not follow, which is a finding
    /// by itself.
    fn false_checkpoint(&self, checkpoint: &Checkpoint) -> Option<Finding> {
        let state = self.state.taken().filter(|_| self.follows)?;
        let (covers, head) = self.taken?;
        if checkpoint.format != u16::from(ledger::FORMAT) || checkpoint.covers != covers {
            return None;
        }
        let text = |head: Digest, object: ObjectRef| {
            format!("{} of {} bytes behind {head}", object.digest, object.bytes)
        };
        let object = ObjectRef::of(&state.to_checkpoint());
        let named = text(checkpoint.head, checkpoint.object);
        let recomputed = text(head, object);
        (named != recomputed).then_some(Finding::FalseCheckpoint {
            covers,
            named,
            recomputed,
        })
    }

    /// Notes which workers may speak from now on, and which may not.
    fn notice(&mut self, run: Option<&RunId>, event: &LedgerEvent) {
        match (event, run.cloned()) {
            (
                LedgerEvent::WorkerJoined {
                    worker,
                    account,
                    audit_key,
                    ..
                },
                Some(run),
            ) => {
                let member = self
                    .enrolled
                    .entry((run.clone(), worker.clone()))
                    .or_default();
                if member.insert((account.clone(), audit_key.clone())) {
                    let (account, worker, key) =
                        (account.clone(), worker.clone(), audit_key.clone());
                    self.notices.push(Notice::Enrolled(Enrolment {
                        account,
                        run,
                        worker,
                        key,
                    }));
                }
            }
            (
                LedgerEvent::WorkerLeft {
                    worker,
                    cause: Departure::Removed,
                    ..
                },
                Some(run),
            ) => {
                let worker = worker.clone();
                self.notices.push(Notice::Removed { run, worker });
            }
            (LedgerEvent::WorkerQuarantined { worker, .. }, Some(run)) => {
                let worker = worker.clone();
                self.notices.push(Notice::ShutOut { run, worker });
            }
            (LedgerEvent::WorkerReadmitted { worker, .. }, Some(run)) => {
                let worker = worker.clone();
                self.notices.push(Notice::Readmitted { run, worker });
            }
            _ => {}
        }
    }

    fn worker(&mut self, event: WorkerRecord, findings: Vec<Finding>, results: &mut Vec<Checked>) {
        if self.is_enrolled(&event) {
            results.push(self.member(event, findings));
            return;
        }
        let (verdict, row) = (Verdict::Unenrolled, event.row.clone());
        let findings = self.book(&event.account(), findings, row.stream_sequence);
        results.push(Checked {
            verdict,
            findings,
            row: TimelineRow { verdict, ..row },
        });
        self.held.push_back(event);
        if self.held.len() > HELD_MAX {
            let oldest = self.held.pop_front().expect("it was just filled");
            results.push(self.stranger(oldest));
        }
    }

    /// A worker's event whose key the ledger names.
    fn member(&mut self, event: WorkerRecord, mut findings: Vec<Finding>) -> Checked {
        let repeated = self.link(&event.body, event.digest, event.stored_at, &mut findings);
        let emitter = &event.body.emitter;
        if let Some(chain) = self.chains.get(emitter).filter(|_| !repeated) {
            self.reached.insert(emitter.clone(), chain.next());
        }
        let verdict = if repeated {
            Verdict::Repeated
        } else {
            Verdict::Verified
        };
        let mut of_ledger = None;
        if let (false, Event::Worker(said)) = (repeated, &event.body.event) {
            let (at, run) = (event.row.stream_sequence, &event.run);
            match self.cohorts.told(at, run, said, &self.state) {
                Some(CohortFinding::OfWorker(finding)) => findings.push(finding),
                Some(CohortFinding::OfLedger(finding)) => of_ledger = Some(finding),
                None => {}
            }
        }
        let mut checked = self.settle(verdict, &event.account(), findings, event.row);
        if let Some(finding) = of_ledger {
            let at = checked.row.stream_sequence;
            checked
                .findings
                .extend(self.book(&Account::Ledger, vec![finding], at));
        }
        checked
    }

    /// A worker's event whose key the ledger does not name.
    fn stranger(&mut self, event: WorkerRecord) -> Checked {
        let account = event.account();
        let finding = Finding::UnknownEmitter {
            key: event.body.emitter,
        };
        self.settle(Verdict::Rejected, &account, vec![finding], event.row)
    }

    /// Continues, in their order, with the events that waited for an enrolment that has come.
    fn release(&mut self, results: &mut Vec<Checked>) {
        if self.held.is_empty() {
            return;
        }
        let (ready, waiting) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|event| self.is_enrolled(event));
        self.held = waiting;
        for event in ready {
            results.push(self.member(event, Vec::new()));
        }
    }

    fn is_enrolled(&self, event: &WorkerRecord) -> bool {
        let member = self
            .enrolled
            .get(&(event.run.clone(), event.worker.clone()));
        member
            .is_some_and(|keys| keys.contains(&(event.account.clone(), event.body.emitter.clone())))
    }

    /// Links an event into its emitter's chain and checks its time. Returns true for a repetition.
    fn link(
        &mut self,
        body: &EventBody,
        digest: Digest,
        stored_at: UnixMillis,
        findings: &mut Vec<Finding>,
    ) -> bool {
        let chain = self.chains.entry(body.emitter.clone()).or_default();
        let before = chain.time;
        match chain.link(body, digest) {
            Link::Repeats => return true,
            Link::Follows => {}
            Link::Breaks(finding) => findings.push(finding),
        }
        let against = [(body.time, stored_at), (before, body.time)];
        let clock = against
            .into_iter()
            .find(|(late, early)| early.until(*late) > CLOCK_SKEW_MAX);
        findings.extend(clock.map(|(late, early)| {
            let against = if late == body.time { early } else { late };
            Finding::Clock {
                time: body.time,
                against,
            }
        }));
        false
    }

    fn contradiction(&self) -> Option<Finding> {
        self.state
            .check()
            .err()
            .map(|reason| Finding::Contradiction { reason })
    }

    /// Counts a result. Findings overrule the verdict, and evidence overrules other findings.
    fn settle(
        &mut self,
        verdict: Verdict,
        account: &Account,
        findings: Vec<Finding>,
        row: TimelineRow,
    ) -> Checked {
        let verdict = if findings.iter().any(Finding::is_evidence) {
            Verdict::Rejected
        } else if findings.iter().any(Finding::is_foreign) {
            Verdict::Foreign
        } else {
            verdict
        };
        let findings = self.book(account, findings, row.stream_sequence);
        self.tally.count(&row, verdict);
        let problem = findings
            .iter()
            .map(|found| found.finding.to_string())
            .collect::<Vec<_>>()
            .join("; ");
        let row = TimelineRow {
            verdict,
            problem: (!problem.is_empty()).then_some(problem),
            ..row
        };
        Checked {
            verdict,
            findings,
            row,
        }
    }

    fn book(
        &mut self,
        account: &Account,
        findings: Vec<Finding>,
        stream_sequence: StreamSequence,
    ) -> Vec<PlacedFinding> {
        let ledger = matches!(account, Account::Ledger);
        let found = findings.into_iter().map(|finding| PlacedFinding {
            stream_sequence,
            ledger,
            finding,
        });
        found
            .inspect(|found| {
                self.tally.find(found);
                if let Account::Worker(run, worker) = account {
                    self.tally.blame(run, worker, found);
                }
            })
            .collect()
    }
}
