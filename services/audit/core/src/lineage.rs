//! Lineage: the rounds and full snapshots that descend from an object, collected while the ledger
//! is folded. Weights descend from everything that was merged into them, and rounds are merged one
//! after another, so one number decides: the first version of the weights that the object is part
//! of. All later versions descend from it, until a restore leads the run back to a snapshot: from
//! there on it depends on that snapshot.

use std::collections::{BTreeMap, BTreeSet};

use ledger::{Run, Standing, State};
use schemas::event::LedgerEvent;
use schemas::lease::{LeaseRef, Weights};
use schemas::run::RunSpec;
use schemas::{Digest, ObjectRef, Round, RunId, Weight, WorkerId};
use serde::Serialize;

use crate::record::StreamSequence;
use crate::sought::{DigestPrefix, Sought};

/// What an object is to a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The data set, whose text every unit of the run reads.
    Data,
    /// The configuration or the layout of the model.
    Model,
    /// The weights that the run began with, or a chunk of them.
    InitialWeights,
    /// A worker's contribution: its statement, its list, or a chunk.
    Contribution {
        /// The lease under which it came.
        lease: LeaseRef,
        /// The worker.
        worker: WorkerId,
        /// Its fate.
        fate: ContributionFate,
    },
    /// Weights that were published to workers, their list, or a chunk.
    Weights {
        /// The round that starts from them.
        round: Round,
    },
    /// The manifest of a full snapshot.
    Snapshot {
        /// The round that starts from it.
        round: Round,
    },
}

/// What became of a contribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ContributionFate {
    /// It was accepted, and nothing names it yet.
    Accepted,
    /// It came after the seal of its round, and counts nowhere.
    Late,
    /// A quarantine withdrew it.
    Withdrawn,
    /// A restore ended its round before the merge.
    Dropped,
    /// It weighs nothing in its merge.
    LeftOut,
    /// It is sealed, and not merged yet.
    Sealed,
    /// It is part of the weights since its round.
    Merged,
}

/// Something that descends from the object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Descendant {
    /// The round that was merged, or the round that starts from the snapshot.
    pub round: Round,
    /// True for a full snapshot, false for a merged round.
    pub snapshot: bool,
    /// The digest of the weights that the round published, or the snapshot's manifest.
    pub digest: Digest,
    /// The position in the stream of the event that names it.
    pub at: StreamSequence,
    /// True where the object is part of it by itself, and not only by what it descends from.
    pub direct: bool,
}

/// What the ledger says about the object in one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfRun {
    /// Everything that the object is to the run.
    pub origins: Vec<Origin>,
    /// The first version of the weights that it is part of; none if it is part of none.
    pub version: Option<Round>,
    /// What descends from it, in the order of the ledger.
    pub descendants: Vec<Descendant>,
    /// The newest full snapshot that does not descend from it.
    pub clean: Option<(Round, ObjectRef)>,
    /// The first version since the last restore that it is part of; none if it is part of none.
    since: Option<Round>,
    /// The versions of full snapshots that descend from it.
    snapshots: BTreeSet<Round>,
}

/// The lineage of one object, over all runs.
#[derive(Clone, Debug)]
pub struct Lineage {
    wanted: Sought,
    runs: BTreeMap<RunId, OfRun>,
}

impl Lineage {
    /// Nothing of the object with this digest yet.
    pub fn new(wanted: impl Into<DigestPrefix>) -> Self {
        Self {
            wanted: Sought::new(wanted.into()),
            runs: BTreeMap::new(),
        }
    }

    /// The digests in the ledger that begin as wanted, ascending, a few of them if there are many.
    /// The lineage is that of one object only if there is one.
    pub const fn found(&self) -> &BTreeSet<Digest> {
        self.wanted.found()
    }

    /// The runs that the object is anything to.
    pub fn runs(&self) -> impl Iterator<Item = (&RunId, &OfRun)> {
        let runs = self.runs.iter();
        runs.filter(|(_, found)| !found.origins.is_empty())
    }

    /// Notes an event that the state has just taken.
    pub(crate) fn note(
        &mut self,
        at: StreamSequence,
        run: Option<&RunId>,
        event: &LedgerEvent,
        state: &State,
    ) {
        let Some((name, run)) = run.and_then(|name| Some((name, state.run(name)?))) else {
            return;
        };
        let wanted = &mut self.wanted;
        let found = self.runs.entry(name.clone()).or_default();
        match event {
            LedgerEvent::RunCreated { spec, .. } => found.begin(wanted, spec),
            LedgerEvent::ContributionAccepted {
                lease,
                worker,
                contribution,
                statement,
                ..
            } if wanted.is(*statement) | wanted.is_of(&contribution.chunks) => {
                found.origins.push(Origin::Contribution {
                    lease: *lease,
                    worker: worker.clone(),
                    fate: match stands(run, lease) {
                        true => ContributionFate::Accepted,
                        false => ContributionFate::Late,
                    },
                });
            }
            LedgerEvent::WorkerQuarantined { .. } => {
                found.withdraw(run, ContributionFate::Withdrawn);
            }
            LedgerEvent::RoundSealed { round, inputs, .. } => {
                for input in inputs {
                    found.seal(
                        *round,
                        |lease| lease.unit.index == input.unit && lease.epoch == input.epoch,
                        input.weight,
                    );
                }
            }
            LedgerEvent::RoundClosed {
                round, broadcast, ..
            } => found.close(wanted, at, *round, broadcast),
            LedgerEvent::SnapshotSaved {
                round, manifest, ..
            } => {
                found.saved(wanted, at, *round, *manifest);
            }
            LedgerEvent::SnapshotRestored {
                snapshot,
                manifest,
                weights,
                ..
            } => {
                found.withdraw(run, ContributionFate::Dropped);
                found.restored(wanted, at, *snapshot, (weights.round, *manifest));
            }
            _ => {}
        }
    }
}

impl OfRun {
    fn begin(&mut self, wanted: &mut Sought, spec: &RunSpec) {
        let model = [spec.model.config.digest, spec.model.layout.digest];
        let model = model.map(|digest| wanted.is(digest));
        let named = [
            (wanted.is(spec.data.digest), Origin::Data),
            (model.contains(&true), Origin::Model),
            (wanted.is_of(&spec.model.initial), Origin::InitialWeights),
        ];
        for (_, origin) in named.into_iter().filter(|(is, _)| *is) {
            self.origins.push(origin);
            self.part_of(Round(0));
        }
    }

    /// The object is part of this version of the weights.
    fn part_of(&mut self, version: Round) {
        let least = |first: Option<Round>| Some(first.map_or(version, |first| first.min(version)));
        (self.version, self.since) = (least(self.version), least(self.since));
    }

    /// The fates of its contributions to a round, each with its lease.
    fn contributions(&mut self) -> impl Iterator<Item = (&LeaseRef, &mut ContributionFate)> {
        self.origins.iter_mut().filter_map(|origin| match origin {
            Origin::Contribution { lease, fate, .. } => Some((&*lease, fate)),
            _ => None,
        })
    }

    /// Contributions whose unit is open again, or gone, are in no merge.
    fn withdraw(&mut self, run: &Run, becomes: ContributionFate) {
        for (lease, fate) in self.contributions() {
            let waits = matches!(*fate, ContributionFate::Accepted | ContributionFate::Sealed);
            if waits && !stands(run, lease) {
                *fate = becomes;
            }
        }
    }

    fn seal(&mut self, round: Round, named: impl Fn(&LeaseRef) -> bool, weight: Weight) {
        for (lease, fate) in self.contributions() {
            if *fate == ContributionFate::Accepted && lease.unit.round == round && named(lease) {
                *fate = match weight {
                    Weight(0) => ContributionFate::LeftOut,
                    _ => ContributionFate::Sealed,
                };
            }
        }
    }

    fn close(
        &mut self,
        wanted: &mut Sought,
        at: StreamSequence,
        round: Round,
        broadcast: &Weights,
    ) {
        let version = broadcast.round;
        let mut merged = false;
        for (lease, fate) in self.contributions() {
            // A ledger of an earlier release merges what it has accepted without a seal.
            let counts = matches!(*fate, ContributionFate::Sealed | ContributionFate::Accepted);
            if counts && lease.unit.round == round {
                *fate = ContributionFate::Merged;
                merged = true;
            }
        }
        if wanted.is_of(&broadcast.chunks) | wanted.is(broadcast.digest()) {
            self.origins.push(Origin::Weights { round: version });
            merged = true;
        }
        if merged {
            self.part_of(version);
        }
        if self.since.is_some_and(|first| first <= version) {
            self.descendants.push(Descendant {
                round,
                snapshot: false,
                digest: broadcast.digest(),
                at,
                direct: merged,
            });
        }
    }

    fn saved(
        &mut self,
        wanted: &mut Sought,
        at: StreamSequence,
        round: Round,
        manifest: ObjectRef,
    ) {
        let direct = wanted.is(manifest.digest);
        if direct {
            self.origins.push(Origin::Snapshot { round });
            self.part_of(round);
        }
        if self.since.is_some_and(|first| first <= round) {
            self.snapshots.insert(round);
            self.descendants.push(Descendant {
                round,
                snapshot: true,
                digest: manifest.digest,
                at,
                direct,
            });
        } else {
            self.clean = Some((round, manifest));
        }
    }

    /// A restored snapshot is saved again, in a way: under another version.
    fn restored(
        &mut self,
        wanted: &mut Sought,
        at: StreamSequence,
        snapshot: Round,
        (version, manifest): (Round, ObjectRef),
    ) {
        let descends = self.snapshots.contains(&snapshot);
        self.since = descends.then_some(version);
        if descends {
            self.snapshots.insert(version);
            self.descendants.push(Descendant {
                round: version,
                snapshot: true,
                digest: manifest.digest,
                at,
                direct: wanted.is(manifest.digest),
            });
        } else {
            self.clean = Some((version, manifest));
        }
    }
}

/// True while the result of a lease is the one that its unit has.
fn stands(run: &Run, lease: &LeaseRef) -> bool {
    let unit = run.units.get(&lease.unit);
    unit.is_some_and(|unit| unit.standing == Standing::Done && unit.epoch == lease.epoch)
}
