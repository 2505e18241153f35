//! The mark of a collection: among the objects that the ledger names, those that go.
//!
//! Only what an event of the run names as part of an old round can go. So nothing is deleted that
//! the ledger does not know, such as an operator's uploads, a data set or a checkpoint. Of that
//! stays what anything else needs: what any run keeps, its settings, its data, the weights that are
//! in use. Two runs may need the same bytes, since an object is named by its contents.
//!
//! Most names are of objects that name others: manifests and lists. The shell reads these, and
//! gives back which object names which.

use std::collections::{BTreeMap, BTreeSet};

use schemas::collection::Collected;
use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::{Bytes, Chunks, Digest, Hasher, ObjectRef, Round, RunId};

use crate::state::{Run, State};

/// The kind of something old, which goes as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A contribution.
    Contribution,
    /// Weights that workers got.
    Weights,
    /// A full snapshot.
    Snapshot,
}

/// Objects that are named together.
#[derive(Clone, Debug, PartialEq)]
pub enum Named {
    /// Chunks, or a list that names them.
    Chunks(Chunks),
    /// The manifest of a full snapshot.
    Snapshot(ObjectRef),
    /// The manifest of a data set.
    Data(ObjectRef),
    /// An object that names no others.
    Plain(ObjectRef),
}

/// Something that is needed.
#[derive(Clone, Debug, PartialEq)]
pub struct Needed {
    /// The run that needs it; none if everybody does.
    pub run: Option<RunId>,
    /// Its objects.
    pub named: Named,
}

/// Something old of the run.
#[derive(Clone, Debug, PartialEq)]
pub struct Old {
    /// Its kind.
    pub kind: Kind,
    /// The round that it belongs to.
    pub round: Round,
    /// Its objects.
    pub objects: Named,
}

/// What the events of all runs name, sorted into what goes and what is needed.
#[derive(Debug)]
pub struct Mark<'a> {
    state: &'a State,
    run: &'a RunId,
    through: Round,
    going: BTreeSet<Digest>,
    /// What goes, unless something needs the same objects.
    pub old: Vec<Old>,
    /// What is needed.
    pub needed: Vec<Needed>,
}

/// The objects that go.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Those of contributions.
    pub contributions: Collected,
    /// Those of weights for workers.
    pub weights: Collected,
    /// Those of full snapshots.
    pub snapshots: Collected,
    /// All of them.
    pub objects: BTreeMap<Digest, Going>,
}

/// An object that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Going {
    /// Its length.
    pub bytes: Bytes,
    /// How many layers of objects it names: 0 for a chunk, 1 for a list, 2 for a manifest.
    pub names: u8,
}

impl<'a> Mark<'a> {
    /// Begins with what the state itself needs. `through` is the round before which objects of
    /// `run` go. The events of the ledger that led to the state follow, all of them.
    pub fn new(state: &'a State, run: &'a RunId, through: Round) -> Self {
        let going = state.run(run).map(|run| run.snapshots_going(through));
        let mut mark = Self {
            state,
            run,
            through,
            going: going.unwrap_or_default(),
            old: Vec::new(),
            needed: Vec::new(),
        };
        let saved = state.saved.iter().map(|one| Named::Plain(one.object));
        mark.needed.extend(saved.map(Needed::by_all));
        for (name, run) in state.runs() {
            let by_run = |named| Needed {
                run: Some(name.clone()),
                named,
            };
            mark.needed.extend(of_state(run).map(by_run));
        }
        mark
    }

    /// The runs that may have made objects which this one names too: itself, and those that began
    /// with the same weights. What such a run has lost may name anything old of this run.
    pub fn kin(&self) -> BTreeSet<RunId> {
        let initial = |run: &Run| run.spec.model.initial.digest();
        let own = self.state.run(self.run).map(initial);
        let others = self.state.runs();
        let kin = others.filter(|(_, other)| Some(initial(other)) == own);
        kin.map(|(name, _)| name.clone())
            .chain([self.run.clone()])
            .collect()
    }

    /// Takes the next event of the ledger.
    pub fn note(&mut self, body: &EventBody) {
        let (Some(run), Event::Ledger(event)) = (&body.run, &body.event) else {
            return;
        };
        let (kind, round, objects) = match event {
            LedgerEvent::ContributionAccepted {
                lease,
                contribution,
                ..
            } => {
                let objects = Named::Chunks(contribution.chunks.clone());
                (Kind::Contribution, lease.unit.round, objects)
            }
            LedgerEvent::RoundClosed { broadcast, .. } => {
                let objects = Named::Chunks(broadcast.chunks.clone());
                (Kind::Weights, broadcast.round, objects)
            }
            LedgerEvent::SnapshotSaved {
                round, manifest, ..
            } => (Kind::Snapshot, *round, Named::Snapshot(*manifest)),
            _ => return,
        };
        let old = Old {
            kind,
            round,
            objects,
        };
        match (self.goes(run, &old), run == self.run) {
            (true, true) => self.old.push(old),
            // Another run has given it up, and needs it no more.
            (true, false) => {}
            (false, _) => self.needed.push(Needed {
                run: Some(run.clone()),
                named: old.objects,
            }),
        }
    }

    /// True for something that this collection gives up, or that an earlier one gave up.
    fn goes(&self, name: &RunId, old: &Old) -> bool {
        let Some(run) = self.state.run(name) else {
            return false;
        };
        let own = name == self.run;
        match &old.objects {
            Named::Snapshot(manifest) => {
                let digest = &manifest.digest;
                (own && self.going.contains(digest)) || run.snapshot_given_up(digest).is_some()
            }
            _ if own => old.round < self.through,
            _ => old.round < run.given_up_before(),
        }
    }

    /// The objects that go: those of what is old that the store has, and that are not among the
    /// `needed` ones. Each comes with the number of layers that it names. An object that is of
    /// several kinds counts as the first.
    pub fn sweep(
        old: impl IntoIterator<Item = (Kind, Round, Vec<(Digest, u8)>)>,
        needed: &BTreeSet<Digest>,
        stored: &BTreeMap<Digest, Bytes>,
    ) -> Plan {
        let mut plan = Plan::default();
        for (kind, round, objects) in old {
            for (digest, names) in objects {
                let Some(bytes) = stored.get(&digest).filter(|_| !needed.contains(&digest)) else {
                    continue;
                };
                if let Some(known) = plan.objects.get_mut(&digest) {
                    known.names = known.names.max(names);
                    continue;
                }
                let bytes = *bytes;
                plan.objects.insert(digest, Going { bytes, names });
                let counted = match kind {
                    Kind::Contribution => &mut plan.contributions,
                    Kind::Weights => &mut plan.weights,
                    Kind::Snapshot => &mut plan.snapshots,
                };
                counted.objects += 1;
                counted.bytes += bytes;
                let (oldest, newest) = counted.rounds.unwrap_or((round, round));
                counted.rounds = Some((oldest.min(round), newest.max(round)));
            }
        }
        plan
    }
}

impl Needed {
    /// What everybody needs.
    pub const fn by_all(named: Named) -> Self {
        Self { run: None, named }
    }
}

impl Plan {
    /// The sha256 over the digests of the objects, ascending.
    pub fn list(&self) -> Digest {
        let mut hasher = Hasher::default();
        for digest in self.objects.keys() {
            hasher.update(digest.as_bytes());
        }
        hasher.finish()
    }

    /// The sum of the objects' lengths.
    pub fn bytes(&self) -> Bytes {
        let add = |sum: Bytes, going: &Going| sum + going.bytes;
        self.objects.values().fold(Bytes(0), add)
    }

    /// The objects in the order of their deletion: each group only after the one before. What names
    /// others goes after these. So whatever is left after a deletion that broke off can be found
    /// again.
    pub fn in_order(&self) -> Vec<Vec<Digest>> {
        let mut groups: BTreeMap<u8, Vec<Digest>> = BTreeMap::new();
        for (digest, going) in &self.objects {
            groups.entry(going.names).or_default().push(*digest);
        }
        groups.into_values().collect()
    }
}

/// What a run needs whatever its history is.
fn of_state(run: &Run) -> impl Iterator<Item = Named> {
    let model = &run.spec.model;
    let named = [model.config, model.layout].map(Named::Plain);
    let initial = Named::Chunks(model.initial.clone());
    let weights = run.weights.values();
    let in_use = weights.map(|weights| Named::Chunks(weights.chunks.clone()));
    let statements = run.statements.values().map(|one| Named::Plain(*one));
    // Lineage leads through the manifests of all snapshots, also of those that are given up.
    let manifests = run.snapshots.iter();
    let manifests = manifests.map(|one| Named::Plain(one.manifest));
    let open = run.open.values().flat_map(|open| open.inputs());
    let merges = run.merges.iter().flat_map(|merge| &merge.inputs);
    let inputs = open.chain(merges);
    let inputs = inputs.map(|input| Named::Chunks(input.chunks.clone()));
    named
        .into_iter()
        .chain([initial, Named::Data(run.spec.data)])
        .chain(run.spec.data_provenance.map(Named::Plain))
        .chain(in_use)
        .chain(statements)
        .chain(manifests)
        .chain(inputs)
}
