//! Ancestry: what a full snapshot, or a contribution, was made from, collected while the ledger is
//! folded. The ledger names the objects; what they say is compared with it here, and read
//! elsewhere.

use std::collections::{BTreeMap, BTreeSet};

pub use ledger::Draw;
use ledger::{Run, State};
use schemas::contribution::{Contribution, Outcome, Statement};
use schemas::event::LedgerEvent;
use schemas::hold::Reason;
use schemas::lease::{LeaseRef, Weights};
use schemas::promotion::PointerName;
use schemas::provenance::{HandedIn, MadeFrom, Maker, Provenance};
use schemas::run::RunSpec;
use schemas::snapshot::{MergeRecord, SnapshotManifest};
use schemas::{
    ChainSequence, Digest, Message as _, ObjectRef, PublicKey, Round, RunId, UnixMillis, V,
    WorkerId,
};
use serde_bytes::ByteArray;

use crate::record::StreamSequence;
use crate::sought::{DigestPrefix, Sought};

/// A contribution that was accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Handed {
    /// The lease under which it came.
    pub lease: LeaseRef,
    /// Its maker.
    pub worker: WorkerId,
    /// The key that signs its maker's results.
    pub audit_key: PublicKey,
    /// The release of its maker.
    pub release: String,
    /// What was handed in.
    pub contribution: Contribution,
    /// The digest of the statement that its maker signed.
    pub statement: Digest,
    /// The signature.
    pub signature: [u8; 64],
    /// The weights that its unit started from.
    pub base: Option<Weights>,
    /// The signature of its maker over its provenance; none if an earlier release accepted it.
    pub provenance: Option<[u8; 64]>,
    /// The position of the event in the stream.
    pub at: StreamSequence,
}

/// A full snapshot, as the ledger came to it.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedSnapshot {
    /// The round that starts from it.
    pub round: Round,
    /// Its manifest.
    pub manifest: ObjectRef,
    /// The signed statement of its provenance.
    pub statement: Option<ObjectRef>,
    /// The release of the coordinator that saved it.
    pub release: String,
    /// The full snapshot before it; none if it rests on the initial weights.
    pub parent: Option<Digest>,
    /// The merges between the two.
    pub merges: Vec<MergeRecord>,
    /// The position of the event in the stream.
    pub at: StreamSequence,
}

/// A round that was merged.
#[derive(Clone, Debug, PartialEq)]
pub struct MergedRound {
    /// The weights that it published.
    pub broadcast: Weights,
    /// The release of the coordinator that merged it.
    pub release: String,
    /// The position of the event in the stream.
    pub at: StreamSequence,
}

/// A pointer that was moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Promotion {
    /// The pointer.
    pub pointer: PointerName,
    /// The manifest of the snapshot to which it was moved.
    pub manifest: Digest,
    /// The operator who moved it.
    pub operator: PublicKey,
    /// The operator's reason.
    pub reason: Reason,
    /// The time of the order.
    pub time: UnixMillis,
    /// The workers in quarantine whose contributions the operator accepted with it.
    pub accepted: Vec<WorkerId>,
}

/// The object that is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Subject<'a> {
    /// A full snapshot, by its manifest or its statement.
    Snapshot(&'a SavedSnapshot),
    /// A contribution, by its statement, its list or a chunk.
    Contribution(&'a Handed),
    /// The run's data set, by its manifest or the statement of its provenance.
    Data,
}

/// The history of one run.
#[derive(Clone, Debug)]
pub struct History {
    /// Its settings.
    pub spec: RunSpec,
    /// Their digest.
    pub spec_digest: Digest,
    /// The operator who created it.
    pub operator: PublicKey,
    /// Its full snapshots, oldest first.
    pub snapshots: Vec<SavedSnapshot>,
    /// Its merged rounds, by round.
    pub merged: BTreeMap<Round, MergedRound>,
    /// Its accepted contributions.
    pub handed: BTreeMap<LeaseRef, Handed>,
    /// Its promotions, oldest first.
    pub promotions: Vec<Promotion>,
    /// The manifests of the full snapshots that collections gave up, with their events.
    given_up: BTreeMap<Digest, ChainSequence>,
    /// The newest full snapshot and the merges since, before the event that comes next.
    base: Option<Digest>,
    merges: Vec<MergeRecord>,
    /// The lease of the contribution that is wanted.
    wanted: Option<LeaseRef>,
}

/// The histories of all runs, for the ancestry of one object.
#[derive(Clone, Debug)]
pub struct Ancestry {
    wanted: Sought,
    /// The release of the coordinator that leads.
    release: String,
    runs: BTreeMap<RunId, History>,
}

impl Ancestry {
    /// Nothing of the object with this digest yet.
    pub fn new(wanted: impl Into<DigestPrefix>) -> Self {
        Self {
            wanted: Sought::new(wanted.into()),
            release: String::new(),
            runs: BTreeMap::new(),
        }
    }

    /// The digests in the ledger that begin as wanted, ascending, a few of them if there are many.
    pub const fn found(&self) -> &BTreeSet<Digest> {
        self.wanted.found()
    }

    /// The object that is wanted, with its run; none if the ledger names no such snapshot, no such
    /// contribution and no such data set. Identical contributions are one object: this is the one
    /// that came first.
    pub fn find(&self) -> Option<(&RunId, &History, Subject<'_>)> {
        self.runs.iter().find_map(|(name, history)| {
            let found = self.found().first();
            let snapshot = found.and_then(|wanted| history.snapshot(*wanted));
            let subject = snapshot.map(Subject::Snapshot);
            let subject = subject.or_else(|| {
                let handed = history.handed.get(&history.wanted?)?;
                Some(Subject::Contribution(handed))
            });
            let is_data = found.is_some_and(|wanted| history.is_data(*wanted));
            let subject = subject.or(is_data.then_some(Subject::Data));
            Some((name, history, subject?))
        })
    }

    /// Notes an event that the state has just taken.
    pub(crate) fn note(
        &mut self,
        at: StreamSequence,
        time: UnixMillis,
        run: Option<&RunId>,
        event: &LedgerEvent,
        state: &State,
    ) {
        if let LedgerEvent::CoordinatorStarted { release, .. } = event {
            self.release.clone_from(release);
        }
        let Some((name, run)) = run.and_then(|name| Some((name, state.run(name)?))) else {
            return;
        };
        if !self.runs.contains_key(name) {
            let (data, statement) = (run.spec.data, run.spec.data_provenance);
            for object in [data].into_iter().chain(statement) {
                self.wanted.is(object.digest);
            }
        }
        let history = self.runs.entry(name.clone()).or_insert_with(|| History {
            spec: run.spec.clone(),
            spec_digest: run.spec_digest,
            operator: run.operator.clone(),
            snapshots: Vec::new(),
            merged: BTreeMap::new(),
            handed: BTreeMap::new(),
            promotions: Vec::new(),
            given_up: BTreeMap::new(),
            base: None,
            merges: Vec::new(),
            wanted: None,
        });
        history.note(at, time, event, run, &self.release, &mut self.wanted);
        history.follow(run);
    }
}

impl History {
    /// A full snapshot, by the digest of its manifest or of its statement.
    pub fn snapshot(&self, wanted: Digest) -> Option<&SavedSnapshot> {
        self.snapshots.iter().find(|one| {
            let statement = one.statement.map(|statement| statement.digest);
            one.manifest.digest == wanted || statement == Some(wanted)
        })
    }

    /// True for the digest of the data set's manifest, or of the statement about it.
    fn is_data(&self, wanted: Digest) -> bool {
        let (data, statement) = (self.spec.data, self.spec.data_provenance);
        let statement = statement.map(|statement| statement.digest);
        data.digest == wanted || statement == Some(wanted)
    }

    /// The event with which a collection gave the snapshot up: its weights are no more.
    pub fn given_up(&self, snapshot: &SavedSnapshot) -> Option<ChainSequence> {
        self.given_up.get(&snapshot.manifest.digest).copied()
    }

    /// The snapshot and those that it rests on, the snapshot first.
    pub fn line<'a>(&'a self, snapshot: &'a SavedSnapshot) -> Vec<&'a SavedSnapshot> {
        let parent = |one: &&'a SavedSnapshot| {
            let digest = one.parent?;
            // A parent was saved before, so the line ends.
            let mut before = self.snapshots.iter().filter(|other| other.at < one.at);
            before.find(|other| other.manifest.digest == digest)
        };
        std::iter::successors(Some(snapshot), parent).collect()
    }

    fn note(
        &mut self,
        at: StreamSequence,
        time: UnixMillis,
        event: &LedgerEvent,
        run: &Run,
        release: &str,
        wanted: &mut Sought,
    ) {
        match event {
            LedgerEvent::ContributionAccepted {
                lease,
                worker,
                contribution,
                statement,
                signature,
                provenance,
                ..
            } => {
                // Nothing is accepted of a worker that never joined.
                let Some(member) = run.members.get(worker) else {
                    return;
                };
                if wanted.is(*statement) | wanted.is_of(&contribution.chunks) {
                    self.wanted.get_or_insert(*lease);
                }
                let handed = Handed {
                    lease: *lease,
                    worker: worker.clone(),
                    audit_key: member.audit_key.clone(),
                    release: member.release.clone(),
                    contribution: (**contribution).clone(),
                    statement: *statement,
                    signature: **signature,
                    base: run.base(&lease.unit).next().cloned(),
                    provenance: provenance.map(ByteArray::into_array),
                    at,
                };
                self.handed.insert(*lease, handed);
            }
            LedgerEvent::RoundClosed {
                round, broadcast, ..
            } => {
                let merged = MergedRound {
                    broadcast: broadcast.clone(),
                    release: release.to_owned(),
                    at,
                };
                self.merged.insert(*round, merged);
            }
            LedgerEvent::SnapshotSaved {
                round,
                manifest,
                statement,
            } => {
                wanted.is(manifest.digest);
                statement.iter().for_each(|statement| {
                    wanted.is(statement.digest);
                });
                let own = self.merges.iter().filter(|merge| merge.round < *round);
                self.snapshots.push(SavedSnapshot {
                    round: *round,
                    manifest: *manifest,
                    statement: *statement,
                    release: release.to_owned(),
                    parent: self.base,
                    merges: own.cloned().collect(),
                    at,
                });
            }
            LedgerEvent::SnapshotPromoted {
                pointer,
                manifest,
                operator,
                reason,
                accepted,
                ..
            } => self.promotions.push(Promotion {
                pointer: pointer.clone(),
                manifest: *manifest,
                operator: operator.clone(),
                reason: reason.clone(),
                time,
                accepted: accepted.clone(),
            }),
            LedgerEvent::ObjectsGivenUp { .. } => {
                let last = run.given_up.last().expect("the event has just been folded");
                let gone = last.snapshots.iter().map(|gone| (*gone, last.sequence));
                self.given_up.extend(gone);
            }
            _ => {}
        }
    }

    /// Takes over what the next full snapshot will rest on.
    fn follow(&mut self, run: &Run) {
        let base = run.last_snapshot().map(|last| last.manifest.digest);
        if self.base != base || self.merges.len() != run.merges.len() {
            self.base = base;
            self.merges.clone_from(&run.merges);
        }
    }
}

impl SavedSnapshot {
    /// Compares a manifest, whose bytes have the digest that the ledger names, with the ledger.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_manifest(
        &self,
        run: &RunId,
        history: &History,
        manifest: &SnapshotManifest,
    ) -> Result<(), String> {
        let (spec, model) = (&history.spec, &history.spec.model);
        let none = || "none".to_owned();
        let parent = |digest: Option<Digest>| digest.map_or_else(none, |it| it.to_string());
        let before = self.round.get().checked_sub(1).map(Round);
        let closed = before.and_then(|round| history.merged.get(&round));
        let published = closed.map(|closed| closed.broadcast.digest());
        let same = |what: &str, named: String, recorded: String| {
            let differs = || format!("the manifest names {what} {named}, the ledger {recorded}");
            (named == recorded).then_some(()).ok_or_else(differs)
        };
        let text = Digest::to_string;
        same("run", manifest.run.to_string(), run.to_string())?;
        same("round", manifest.round.to_string(), self.round.to_string())?;
        let recorded = text(&history.spec_digest);
        same("settings", text(&manifest.spec), recorded)?;
        for (what, named, recorded) in [
            ("configuration", manifest.config, model.config),
            ("layout", manifest.layout, model.layout),
            ("data", manifest.data, spec.data),
        ] {
            same(what, text(&named.digest), text(&recorded.digest))?;
        }
        same("parent", parent(manifest.parent), parent(self.parent))?;
        let weights = Some(manifest.broadcast.digest());
        same("published weights", parent(weights), parent(published))?;
        let differs = manifest
            .merges
            .iter()
            .zip(&self.merges)
            .find(|(named, recorded)| named != recorded);
        if let Some((_, merge)) = differs {
            let text = "the manifest names other contributions than the ledger";
            return Err(format!("{text} for round {}", merge.round));
        }
        let rounds = |merges: &[MergeRecord]| merges.len().to_string();
        same(
            "a number of merges,",
            rounds(&manifest.merges),
            rounds(&self.merges),
        )
    }

    /// Compares a statement that `key` has signed with what a coordinator says about this snapshot.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_statement(
        &self,
        statement: &Provenance,
        manifest: &SnapshotManifest,
        domain: &str,
        key: &PublicKey,
    ) -> Result<(), String> {
        let maker = Maker {
            domain,
            key,
            release: &self.release,
        };
        let expected = Provenance::of_snapshot(manifest, self.manifest, maker);
        let (said, right) = (&statement.predicate, &expected.predicate);
        let what = if statement.subject != expected.subject {
            "another subject"
        } else if said.run_details != right.run_details {
            "another maker"
        } else if said.build_definition.resolved_dependencies
            != right.build_definition.resolved_dependencies
        {
            "other dependencies"
        } else if *statement != expected {
            "another kind of thing, or another run or round"
        } else {
            return Ok(());
        };
        let digest = self.manifest.digest;
        Err(format!("the statement about {digest} names {what}"))
    }
}

impl Handed {
    /// The statement that its maker signed, encoded again; none if the bytes come out differently,
    /// as with a client that encodes in another way.
    pub fn signed_bytes(&self, run: &RunId, spec: Digest) -> Option<Vec<u8>> {
        let statement = Statement {
            v: V,
            run: run.clone(),
            spec,
            worker: self.worker.clone(),
            lease: self.lease,
            outcome: Outcome::Contribution(self.contribution.clone()),
        };
        Some(statement.encode()).filter(|bytes| Digest::of(bytes) == self.statement)
    }

    /// The statement of provenance that its maker signed in `domain`, made again from the ledger
    /// and the run's data; none if the ledger does not say what its unit started from.
    pub fn provenance_statement(
        &self,
        history: &History,
        draw: &Draw,
        domain: &str,
    ) -> Option<Provenance> {
        let from = MadeFrom {
            base: self.base.clone()?,
            shards: draw.train_shards(&history.spec, &self.lease.unit),
            release: self.release.clone(),
        };
        let handed = HandedIn {
            spec: &history.spec,
            spec_digest: history.spec_digest,
            worker: &self.worker,
            lease: self.lease,
            contribution: &self.contribution,
            statement: self.statement,
        };
        let key = &self.audit_key;
        Some(Provenance::of_contribution(handed, &from, domain, key))
    }
}
