//! Who may read and write which objects.

use std::collections::BTreeSet;

use ledger::Run;
use schemas::blob::{GetRequest, PutRequest};
use schemas::contribution::StageRequest;
use schemas::control::OperatorObjects;
use schemas::lease::{Done, UnitKind};
use schemas::limits::{CHUNKS_MAX, GRANTS_MAX, OBJECT_BYTES_MAX};
use schemas::{Bytes, Code, Digest, ObjectRef, PublicKey, Refusal, RunId, V, WorkerId};

use crate::coordinator::{Coordinator, draining};
use crate::effect::{Answer, Effect, Quarantine};
use crate::input::{Peer, ReplyId};
use crate::lease::check_holder;
use crate::live::{LiveRun, Read};
use crate::membership::check_member;

/// Most different objects that may be uploaded under one lease, for each chunk of the run: a worker
/// that begins a unit anew may come to other bytes, but not often. An upload that is asked for
/// again is the same object.
const UPLOADS_A_CHUNK_MAX: usize = 4;
/// Most uploads of a worker, for each chunk of the run, that are in no result which counts, however
/// often it takes a lease and gives it back. Those of one contribution are forgotten in every lease
/// time: whoever loses a lease by being slow took at least that long.
const UNUSED_A_CHUNK_MAX: usize = 4;
/// Most chunks read ahead under one lease: every chunk again and again while a bad line makes a
/// worker repeat.
const LEASE_STAGED_MAX: usize = 16 * CHUNKS_MAX;
/// Most requests of one operator whose uploads are being checked at once: several imports side by
/// side.
const COMMITS_MAX: usize = 16;

impl Coordinator {
    pub(crate) fn put(
        &mut self,
        peer: &Peer,
        request: PutRequest,
        reply: ReplyId,
    ) -> Result<(), Refusal> {
        let now = self.now;
        let (run, live) = self.open_run(&peer.run)?;
        check_holder(run, peer, &request.lease)?;
        check_objects(&request.objects)?;
        check_uploads(run, &request)?;
        let asked: BTreeSet<Digest> = request.objects.iter().map(|object| object.digest).collect();
        if asked.len() < request.objects.len() {
            return Err(Refusal::new(
                Code::MessageInvalid,
                "an object is named twice in one request",
            ));
        }
        let held = live
            .leases
            .get_mut(&request.lease.unit)
            .expect("every lease that is held is watched");
        let chunks = run.spec.model.initial.len();
        let new = asked
            .iter()
            .filter(|digest| !held.uploads.contains(digest))
            .count();
        let (different, different_max) = (held.uploads.len() + new, UPLOADS_A_CHUNK_MAX * chunks);
        if different > different_max {
            let detail = format!(
                "{different} different objects under lease {}, at most {different_max}",
                request.lease
            );
            return Err(Refusal::new(Code::ObjectForbidden, detail));
        }
        let (unused, life) = (
            live.unused.entry(peer.worker.clone()).or_default(),
            run.spec.policy.lease,
        );
        let total = unused.at(now, chunks, life) + new;
        if new > 0 && total > UNUSED_A_CHUNK_MAX * chunks {
            let detail = format!(
                "{total} uploads that are in no result, {chunks} are forgotten every {life} ms"
            );
            return Err(Refusal::new(Code::AskedTooMuch, detail));
        }
        unused.add(new);
        held.uploads.extend(asked);
        let place = Quarantine::Worker {
            run: peer.run.clone(),
            lease: request.lease,
            worker: peer.worker.clone(),
        };
        self.out.push(Effect::GrantPut {
            reply,
            place,
            objects: request.objects,
        });
        Ok(())
    }

    pub(crate) fn stage(
        &mut self,
        peer: &Peer,
        request: &StageRequest,
        reply: ReplyId,
    ) -> Result<(), Refusal> {
        let (run, live) = self.open_run(&peer.run)?;
        check_holder(run, peer, &request.lease)?;
        check_objects(&[request.object])?;
        let chunks = run.spec.model.initial.len();
        if request.index as usize >= chunks {
            let detail = format!("chunk {} of {chunks}", request.index);
            return Err(Refusal::new(Code::LayoutMismatch, detail));
        }
        let held = live
            .leases
            .get_mut(&request.lease.unit)
            .expect("every lease that is held is watched");
        held.staged = held.staged.saturating_add(1);
        if held.staged <= LEASE_STAGED_MAX && held.screening.is_none() {
            let StageRequest {
                lease,
                index,
                object,
                ..
            } = *request;
            let (run, worker) = (peer.run.clone(), peer.worker.clone());
            self.out.push(Effect::Stage {
                run,
                lease,
                worker,
                index,
                object,
            });
        }
        self.reply(reply, Ok(Answer::Done(Done { v: V })));
        Ok(())
    }

    pub(crate) fn get(
        &mut self,
        peer: &Peer,
        request: GetRequest,
        reply: ReplyId,
    ) -> Result<(), Refusal> {
        let (run, live) = self.open_run(&peer.run)?;
        check_member(run, peer)?;
        check_count(request.objects.len())?;
        if let Some(halted) = live.executor.halted.clone() {
            self.reply(reply, Err(halted));
            return Ok(());
        }
        match forbidden(run, live, &request.objects) {
            None => self.out.push(Effect::GrantGet {
                reply,
                objects: request.objects,
            }),
            // After a restart the data manifest may not be here yet, and the object may be one of
            // its shards.
            Some(_) if live.data.is_none() => {
                let older = live.reads.insert(
                    peer.worker.clone(),
                    Read {
                        reply,
                        objects: request.objects,
                    },
                );
                if let Some(older) = older {
                    self.reply(
                        older.reply,
                        Err(Refusal::new(
                            Code::NoAnswer,
                            "a newer request took its place",
                        )),
                    );
                }
            }
            Some(digest) => return Err(object_forbidden(digest)),
        }
        Ok(())
    }

    /// Answers requests that waited for the data manifest.
    pub(crate) fn answer_reads(&mut self, name: &RunId) {
        let Ok((run, live)) = self.open_run(name) else {
            return;
        };
        let waiting = std::mem::take(&mut live.reads);
        let judge = |(worker, Read { reply, objects })| {
            (worker, reply, forbidden(run, live, &objects), objects)
        };
        let judged: Vec<_> = waiting.into_iter().map(judge).collect();
        for (worker, reply, forbidden, objects) in judged {
            match forbidden {
                None => self.out.push(Effect::GrantGet { reply, objects }),
                Some(digest) => self.refuse_read(name, worker, reply, digest),
            }
        }
    }

    fn refuse_read(&mut self, name: &RunId, worker: WorkerId, reply: ReplyId, digest: Digest) {
        let member = self.state.run(name).and_then(|run| run.member(&worker));
        let account = member
            .expect("the reads of who leaves are answered then")
            .account
            .clone();
        let refusal = object_forbidden(digest);
        self.record_denial(
            &Peer {
                account,
                run: name.clone(),
                worker,
            },
            "blob.get",
            &refusal,
        );
        self.reply(reply, Err(refusal));
    }

    pub(crate) fn operator_put(
        &mut self,
        operator: PublicKey,
        request: OperatorObjects,
        reply: ReplyId,
    ) -> Result<(), Refusal> {
        self.check_operator(&request)?;
        let place = Quarantine::Operator { operator };
        self.out.push(Effect::GrantPut {
            reply,
            place,
            objects: request.objects,
        });
        Ok(())
    }

    pub(crate) fn operator_commit(
        &mut self,
        operator: PublicKey,
        request: OperatorObjects,
        reply: ReplyId,
    ) -> Result<(), Refusal> {
        self.check_operator(&request)?;
        self.check_orders(&operator)?;
        if self
            .commits
            .values()
            .filter(|other| **other == operator)
            .count()
            >= COMMITS_MAX
        {
            let detail =
                format!("{COMMITS_MAX} uploads of {operator} are being checked; ask again");
            return Err(Refusal::new(Code::AskedTooMuch, detail));
        }
        self.commits.insert(reply, operator.clone());
        let place = Quarantine::Operator { operator };
        self.out.push(Effect::CheckUploads {
            reply,
            place,
            objects: request.objects,
        });
        Ok(())
    }

    /// The order is written before anything is promoted, and only if something will be: one that
    /// names what is not there is refused, and one that is said again finds its objects in `blobs`.
    pub(crate) fn uploads_checked(
        &mut self,
        reply: ReplyId,
        verdict: Result<Vec<ObjectRef>, Refusal>,
    ) {
        let Some(operator) = self.commits.get(&reply).cloned() else {
            // The drain is over: the operator was told that nothing more is carried out.
            return;
        };
        match verdict.and_then(|objects| self.check_orders(&operator).map(|()| objects)) {
            Ok(objects) if !objects.is_empty() => {
                self.record_order(operator.clone(), "blob.commit");
                self.out.push(Effect::Promote {
                    reply,
                    place: Quarantine::Operator { operator },
                    objects,
                });
            }
            outcome => self.promoted(reply, outcome.map(drop)),
        }
    }

    /// The uploads are promoted, or the order has failed.
    pub(crate) fn promoted(&mut self, reply: ReplyId, outcome: Result<(), Refusal>) {
        if self.commits.remove(&reply).is_some() {
            self.reply(reply, outcome.map(|()| Answer::Done(Done { v: V })));
        }
    }

    /// Operators may read every object.
    pub(crate) fn operator_get(
        &mut self,
        request: GetRequest,
        reply: ReplyId,
    ) -> Result<(), Refusal> {
        check_count(request.objects.len())?;
        self.out.push(Effect::GrantGet {
            reply,
            objects: request.objects,
        });
        Ok(())
    }

    fn check_operator(&self, request: &OperatorObjects) -> Result<(), Refusal> {
        if self.drain.is_some() {
            return Err(draining());
        }
        check_objects(&request.objects)
    }
}

fn check_count(objects: usize) -> Result<(), Refusal> {
    if (1..=GRANTS_MAX).contains(&objects) {
        return Ok(());
    }
    Err(Refusal::new(
        Code::MessageInvalid,
        format!("{objects} objects in one request, expected 1 to {GRANTS_MAX}"),
    ))
}

fn check_objects(objects: &[ObjectRef]) -> Result<(), Refusal> {
    check_count(objects.len())?;
    if let Some(empty) = objects.iter().find(|object| object.bytes == Bytes(0)) {
        return Err(Refusal::new(
            Code::SizeMismatch,
            format!("object {} is empty", empty.digest),
        ));
    }
    match objects
        .iter()
        .find(|object| object.bytes > OBJECT_BYTES_MAX)
    {
        Some(large) => {
            let detail = format!(
                "object {} has {} bytes, at most {OBJECT_BYTES_MAX}",
                large.digest, large.bytes
            );
            Err(Refusal::new(Code::ObjectTooLarge, detail))
        }
        None => Ok(()),
    }
}

/// What is uploaded under a lease are chunks of a contribution, and nothing of another length.
fn check_uploads(run: &Run, request: &PutRequest) -> Result<(), Refusal> {
    if request.lease.unit.kind == UnitKind::Evaluate {
        let detail = format!(
            "lease {} is of an evaluation, which uploads nothing",
            request.lease
        );
        return Err(Refusal::new(Code::ObjectForbidden, detail));
    }
    match request
        .objects
        .iter()
        .find(|object| !run.spec.is_upload_length(object.bytes))
    {
        Some(other) => {
            let detail = format!(
                "object {} has {} bytes, no chunk of the run has",
                other.digest, other.bytes
            );
            Err(Refusal::new(Code::SizeMismatch, detail))
        }
        None => Ok(()),
    }
}

/// The first object that a member may not read.
fn forbidden(run: &Run, live: &LiveRun, objects: &[Digest]) -> Option<Digest> {
    let is_weight = |digest: &Digest| {
        run.weights
            .values()
            .any(|weights| weights.chunks.iter().any(|chunk| chunk.digest == *digest))
    };
    objects
        .iter()
        .find(|digest| !live.readable.contains(digest) && !is_weight(digest))
        .copied()
}

fn object_forbidden(digest: Digest) -> Refusal {
    Refusal::new(
        Code::ObjectForbidden,
        format!("{digest} is no object that the run lets its workers read now"),
    )
}
