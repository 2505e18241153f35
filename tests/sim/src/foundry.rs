//! The foundry of the run: the jobs of the merge executor and of the screen, on a model of the
//! weights.

use coordinator_core::{Input, Merged, Screened, ScreeningId};
use ledger::{Named, Old};
use schemas::contribution::Statement;
use schemas::foundry::{self, Order, Saved, SignedProvenance};
use schemas::snapshot::{MergeInput, MergeRecord};
use schemas::{
    Chunks, Code, Digest, Listed, Message as _, ObjectRef, PublicKey, Refusal, Round, SyncId,
    WorkerId,
};

use crate::comparison::compare;
use crate::plan::{audit_key, run_id, worker_id};
use crate::store::Model;
use crate::world::{SimEvent, World};

/// A job for the executor or the screen; each takes a while.
#[derive(Debug)]
pub(crate) enum Job {
    Restore {
        snapshot: Option<ObjectRef>,
        version: Round,
        merges: Vec<MergeRecord>,
    },
    Compare {
        round: Round,
        inputs: Vec<MergeInput>,
    },
    Merge {
        sync: SyncId,
        inputs: Vec<MergeInput>,
        /// Orders to restore weights before it.
        restores: u64,
    },
    CheckSnapshot {
        manifest: ObjectRef,
    },
    /// A save holds the weights of the moment at which it was ordered.
    Save {
        round: Round,
        weights: Model,
        parent: Option<Digest>,
    },
    Screen {
        screening: ScreeningId,
        worker: WorkerId,
        audit_key: PublicKey,
        statement: Box<Statement>,
        provenance: Option<Box<SignedProvenance>>,
    },
    ReadList {
        listed: Listed,
    },
    Look {
        old: Vec<Old>,
        needed: Vec<Named>,
    },
    Collect {
        objects: Vec<Digest>,
    },
    Checkpoint {
        bytes: Vec<u8>,
    },
}

impl World {
    /// Takes an order to the run's foundry.
    pub(crate) fn order(&mut self, order: Order) {
        match order {
            Order::Screen {
                screening,
                worker,
                audit_key,
                statement,
                provenance,
                ..
            } => {
                let statement = Statement::decode(&statement);
                self.begin(Job::Screen {
                    screening,
                    worker,
                    audit_key,
                    statement: Box::new(statement.expect("it was decoded when it was submitted")),
                    provenance,
                });
            }
            Order::Compare { round, inputs } => self.begin(Job::Compare { round, inputs }),
            Order::Merge {
                sync, base, inputs, ..
            } => {
                assert_eq!(base, sync.round, "rounds are merged in their order");
                let process = self.site.process.as_ref();
                let restores = process.map_or(0, |process| process.restores);
                self.begin(Job::Merge {
                    sync,
                    inputs,
                    restores,
                });
            }
            Order::Save { round, parent, .. } => {
                let process = self.site.process.as_ref();
                let weights = process.and_then(|process| process.weights);
                let weights = weights.expect("a save is asked for when the weights are there");
                assert_eq!(
                    weights.round, round,
                    "a save of other weights than the executor holds"
                );
                self.begin(Job::Save {
                    round,
                    weights,
                    parent,
                });
            }
            Order::Restore {
                snapshot,
                version,
                merges,
                ..
            } => {
                if let Some(process) = &mut self.site.process {
                    process.restores += 1;
                }
                self.begin(Job::Restore {
                    snapshot,
                    version,
                    merges,
                });
            }
            Order::ReadList { listed } => self.begin(Job::ReadList { listed }),
            // These are hints, or free memory, and have no effect here.
            Order::Stage { .. } | Order::Unstage { .. } | Order::Forget => {}
        }
    }

    pub(crate) fn begin(&mut self, job: Job) {
        let generation = self.site.generation();
        let span = self.random.millis(5, 3_000);
        self.after(span, SimEvent::Executor { generation, job });
    }

    pub(crate) fn finish_job(&mut self, job: Job) {
        let failed = self
            .random
            .hits(self.faults.store)
            .then(|| Refusal::new(Code::StoreUnreachable, "simulated"));
        let answer = match job {
            Job::Checkpoint { bytes } => return self.checkpoint_written(bytes, failed),
            Job::Look { old, needed } => {
                let outcome = failed.map_or_else(|| Ok(self.look(old, needed)), Err);
                return self.tell_coordinator(Input::Looked { outcome });
            }
            Job::Collect { objects } => {
                let deleted = self.deleted(objects, failed);
                return self.tell_coordinator(deleted);
            }
            Job::ReadList { listed } => {
                let list = listed.list.digest;
                assert!(self.store.blobs.contains(&list), "a list that is not there");
                let chunks = Chunks::Listed(listed);
                let chunks = self.store.chunks(&chunks).iter().map(|chunk| chunk.digest);
                let outcome = failed.map_or_else(|| Ok(chunks.collect()), Err);
                foundry::Answer::ListRead { list, outcome }
            }
            Job::CheckSnapshot { manifest } => {
                let found = self.store.snapshot(&manifest);
                let found = found.expect("a snapshot that the ledger names stands");
                let weights = found.broadcast(&self.plan.spec);
                return self.tell_coordinator(Input::SnapshotChecked {
                    run: run_id(),
                    verdict: failed.map_or(Ok(weights), Err),
                });
            }
            Job::Restore {
                snapshot,
                version,
                merges,
            } => {
                let outcome = failed.map_or_else(|| self.restore(snapshot, version, &merges), Err);
                if outcome.is_ok() {
                    let data = Box::new(self.plan.data.clone());
                    self.tell_of_foundry(foundry::Answer::DataLoaded { data });
                }
                foundry::Answer::Restored { outcome }
            }
            Job::Compare { round, inputs } => {
                let outcome = failed.map_or_else(|| Ok(compare(&inputs)), Err);
                foundry::Answer::Compared { round, outcome }
            }
            Job::Merge {
                sync,
                inputs,
                restores,
            } => {
                let outcome =
                    failed.map_or_else(|| Ok(self.merge(sync.round, &inputs, restores)), Err);
                foundry::Answer::Merged { sync, outcome }
            }
            Job::Save {
                round,
                weights,
                parent,
            } => {
                let mut save = || {
                    let manifest = self.store.save(weights, parent);
                    let statement = ObjectRef::of(manifest.digest.as_bytes());
                    Saved {
                        manifest,
                        statement,
                    }
                };
                let outcome = failed.map_or_else(|| Ok(save()), Err);
                foundry::Answer::Saved { round, outcome }
            }
            Job::Screen {
                screening,
                worker,
                audit_key,
                statement,
                provenance,
            } => {
                let screen = || self.screen(&worker, &audit_key, &statement, provenance.as_deref());
                let verdict = failed.map_or_else(screen, Err);
                foundry::Answer::Screened { screening, verdict }
            }
        };
        self.tell_of_foundry(answer);
    }

    fn tell_of_foundry(&mut self, answer: foundry::Answer) {
        self.tell_coordinator(Input::Foundry {
            run: run_id(),
            answer,
        });
    }

    fn restore(
        &mut self,
        snapshot: Option<ObjectRef>,
        version: Round,
        merges: &[MergeRecord],
    ) -> Result<(), Refusal> {
        let mut model = match snapshot {
            Some(manifest) => self
                .store
                .snapshot(&manifest)
                .expect("a snapshot that the ledger names stands"),
            None => Model::initial(&self.plan.spec),
        };
        model.round = version;
        for merge in merges {
            assert_eq!(merge.round, model.round, "merges follow on the snapshot");
            model = model.step(&merge.inputs);
            let again = model.broadcast(&self.plan.spec).digest();
            assert_eq!(
                again, merge.broadcast,
                "the merge of round {} gives other weights again",
                merge.round
            );
        }
        if let Some(process) = &mut self.site.process {
            process.weights = Some(model);
        }
        Ok(())
    }

    fn merge(&mut self, round: Round, inputs: &[MergeInput], restores: u64) -> Merged {
        let process = self.site.process.as_ref();
        if process.is_some_and(|process| process.restores != restores) {
            // The core must not hear it: these are no weights of the run.
            let other = Model::initial(&self.plan.spec).under(round).step(&[]);
            return Merged {
                broadcast: other.broadcast(&self.plan.spec),
                norm: 1.0,
            };
        }
        self.monitor.merge(round, inputs);
        assert!(
            inputs
                .windows(2)
                .all(|pair| pair[0].lease.unit < pair[1].lease.unit),
            "inputs ascend by unit"
        );
        let process = self
            .site
            .process
            .as_mut()
            .expect("a job of a process that lives");
        let weights = process
            .weights
            .expect("a merge is asked for when the weights are there");
        assert_eq!(
            weights.round, round,
            "a merge into other weights than the executor holds"
        );
        let next = weights.step(inputs);
        process.weights = Some(next);
        let broadcast = next.broadcast(&self.plan.spec);
        self.store.note(next.chunks(&self.plan.spec));
        self.store.publish(&broadcast.chunks);
        Merged {
            broadcast,
            norm: 1.0,
        }
    }

    fn screen(
        &mut self,
        worker: &WorkerId,
        key: &PublicKey,
        statement: &Statement,
        provenance: Option<&SignedProvenance>,
    ) -> Result<Screened, Refusal> {
        let signer = (0..self.plan.workers).find(|number| worker_id(*number) == *worker);
        let signer = signer.expect("only workers of this run are screened");
        assert_eq!(
            *key,
            audit_key(signer),
            "the key must be the one that the worker joined with"
        );
        let schemas::contribution::Outcome::Contribution(result) = &statement.outcome else {
            return Ok(Screened {
                norm: 0.0,
                listed: Vec::new(),
            });
        };
        self.check_provenance(key, statement, result, provenance)?;
        let chunks = self.store.chunks(&result.chunks);
        for chunk in chunks.iter().chain(result.chunks.objects()) {
            if !self.store.incoming.contains(&chunk.digest)
                && !self.store.blobs.contains(&chunk.digest)
            {
                return Err(Refusal::new(Code::ObjectMissing, "simulated"));
            }
            if self.store.poisoned.contains(&chunk.digest) {
                return Err(Refusal::new(Code::NotFinite, "simulated"));
            }
        }
        let listed = match result.chunks {
            Chunks::Named(_) => Vec::new(),
            Chunks::Listed(_) => chunks.iter().map(|chunk| chunk.digest).collect(),
        };
        self.store.publish(&result.chunks);
        let spec = &self.plan.spec;
        let noised = spec.privacy.map(|privacy| privacy.norms(spec.parameters()));
        let norm = noised.map_or(1.0, |(least, most)| f64::midpoint(least, most));
        Ok(Screened { norm, listed })
    }
}
