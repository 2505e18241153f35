//! Collections of old objects: the operator who orders them, the store that loses them, and the
//! monitor's own record of what must stay.

use std::collections::{BTreeMap, BTreeSet};

use coordinator_core::{Collect, ControlRequest, Input};
use ledger::{Mark, Named, Plan};
use schemas::collection::CollectRequest;
use schemas::promotion::PointerName;
use schemas::{Bytes, Chunks, Digest, ObjectRef, Refusal, Round, V};

use crate::foundry::Job;
use crate::plan::run_id;
use crate::store::Store;
use crate::world::World;

/// The monitor's record of what the run has, and of what was given up.
#[derive(Debug, Default)]
pub(crate) struct Keeping {
    /// Contributions that were accepted, with their rounds.
    contributions: Vec<(Round, Chunks)>,
    /// Full snapshots in the order of the ledger, a restored one once more.
    listed: Vec<(Round, Digest)>,
    gone: BTreeSet<Digest>,
    through: Round,
}

impl Keeping {
    pub(crate) fn accepted(&mut self, round: Round, chunks: &Chunks) {
        self.contributions.push((round, chunks.clone()));
    }

    pub(crate) fn listed(&mut self, round: Round, manifest: Digest) {
        self.listed.push((round, manifest));
    }

    /// Asserts that a snapshot to which the run or a pointer is led was not given up.
    pub(crate) fn stands(&self, manifest: Digest) {
        assert!(!self.gone.contains(&manifest), "{manifest} was given up");
    }

    pub(crate) fn give_up(
        &mut self,
        through: Round,
        snapshots: u32,
        pointers: &BTreeMap<PointerName, Digest>,
    ) {
        let versions = self.listed.iter().map(|(round, _)| *round);
        let newest = versions.max().expect("a snapshot is kept");
        assert!(self.through <= through, "what was given up stays so");
        assert!(through <= newest, "the newest snapshot is kept");
        let kept = self.listed.iter().filter(|(round, _)| *round >= through);
        let kept = kept.map(|(_, manifest)| manifest);
        let kept: BTreeSet<&Digest> = kept.chain(pointers.values()).collect();
        let all: BTreeSet<Digest> = self.listed.iter().map(|(_, one)| *one).collect();
        let going = all.into_iter().filter(|one| !kept.contains(one));
        let before = self.gone.len();
        self.gone.extend(going);
        assert_eq!(self.gone.len() - before, snapshots as usize, "snapshots");
        self.through = through;
    }

    /// Checks that the store has everything that was not given up. Returns the number of
    /// contributions and snapshots that it has lost.
    pub(crate) fn check(&self, store: &Store) -> u64 {
        let mut lost = 0;
        for (round, chunks) in &self.contributions {
            let has = store.has_all(chunks);
            assert!(has || *round < self.through, "a contribution to {round}");
            lost += u64::from(!has);
        }
        for (round, manifest) in &self.listed {
            let has = store.has_snapshot(manifest);
            assert!(has || self.gone.contains(manifest), "snapshot {round}");
            lost += u64::from(!has);
        }
        lost
    }
}

impl World {
    /// Has old objects deleted, and again later, while there are faults.
    pub(crate) fn collect_now_and_again(&mut self) {
        if self.now < crate::world::START.after(self.plan.faults_last) {
            let delete = self.random.hits(900);
            let reason = "the disk is full".parse().expect("a reason");
            let request = CollectRequest {
                v: V,
                run: run_id(),
                keep: self.random.between(1, 2) as u32,
                delete: delete.then_some(reason),
                store_is_ours: delete,
            };
            for _ in 0..self.random.between(1, 2) {
                self.ask_as_operator(ControlRequest::RunGc(request.clone()));
            }
            let pause = self.random.millis(1_000, 15_000);
            self.after(pause, crate::world::SimEvent::Collect);
        }
    }

    pub(crate) fn collect(&mut self, step: Collect) {
        match step {
            Collect::KeepWritten => self.store.written = Some(BTreeSet::new()),
            Collect::End => self.store.written = None,
            Collect::Look {
                state,
                run,
                through,
                needed,
            } => {
                assert_eq!(run, run_id());
                let mut mark = Mark::new(&state, &run, through);
                mark.needed.extend(needed);
                let events = state.events() as usize;
                let known = &self.journal[..events];
                known.iter().for_each(|body| mark.note(body));
                let needed = mark.needed.into_iter().map(|one| one.named);
                let (old, needed) = (mark.old, needed.collect());
                self.begin(Job::Look { old, needed });
            }
            Collect::Delete { groups } => {
                let groups = groups.into_iter().flatten();
                self.begin(Job::Collect {
                    objects: groups.collect(),
                });
            }
        }
    }

    /// Looks at the store some time after the mark.
    pub(crate) fn look(&self, old: Vec<ledger::Old>, needed: Vec<Named>) -> Plan {
        let expand = |named: &Named| self.store.expand(named, &self.plan.spec);
        let needed: BTreeSet<Digest> = needed.iter().flat_map(&expand).collect();
        let old = old.into_iter().map(|old| {
            let objects = expand(&old.objects).into_iter().map(|object| (object, 0));
            (old.kind, old.round, objects.collect())
        });
        Mark::sweep(old, &needed, &self.store.stored())
    }

    /// Deletes objects; some of them if the store fails.
    pub(crate) fn deleted(&mut self, objects: Vec<Digest>, failed: Option<Refusal>) -> Input {
        let most = objects.len();
        let some = match failed {
            Some(_) => self.random.between(0, most as u64) as usize,
            None => most,
        };
        let mut deleted = 0;
        for object in &objects[..some] {
            let written = self.store.written.as_ref();
            let written = written.expect("what is written is kept until the end");
            if !written.contains(object) {
                self.store.delete(object);
                deleted += 1;
            }
        }
        self.monitor.collected(&self.store);
        let outcome = failed.map_or(Ok(deleted), Err);
        Input::Collected { outcome }
    }
}

impl Store {
    fn has_all(&self, chunks: &Chunks) -> bool {
        let mut all = self.chunks(chunks).iter().chain(chunks.objects());
        all.all(|object| self.blobs.contains(&object.digest))
    }

    fn expand(&self, named: &Named, spec: &schemas::run::RunSpec) -> Vec<Digest> {
        let of_chunks = |chunks: &Chunks| -> Vec<Digest> {
            let all = self.chunks(chunks).iter().chain(chunks.objects());
            all.map(|object| object.digest).collect()
        };
        match named {
            Named::Plain(object) | Named::Data(object) => vec![object.digest],
            Named::Chunks(chunks) => of_chunks(chunks),
            Named::Snapshot(manifest) => match self.snapshot(manifest) {
                Some(model) => {
                    let mut all = of_chunks(&model.broadcast(spec).chunks);
                    all.push(manifest.digest);
                    all
                }
                None => Vec::new(),
            },
        }
    }

    fn stored(&self) -> BTreeMap<Digest, Bytes> {
        let snapshots = self.manifests();
        let all = self.blobs.iter().chain(snapshots);
        all.map(|digest| (*digest, Bytes(1))).collect()
    }

    fn has_snapshot(&self, manifest: &Digest) -> bool {
        let bytes = Bytes(0);
        let digest = *manifest;
        self.snapshot(&ObjectRef { digest, bytes }).is_some()
    }
}
