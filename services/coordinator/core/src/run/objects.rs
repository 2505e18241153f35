//! The objects that workers may read and write.

use std::collections::BTreeSet;

use ledger::Run;
use schemas::blob::{GetRequest, PutRequest};
use schemas::contribution::StageRequest;
use schemas::foundry::Order;
use schemas::hold::Hold;
use schemas::lease::{UnitKind, Weights};
use schemas::limits::{GRANTS_MAX, NAMED_CHUNKS_MAX, OBJECT_BYTES_MAX};
use schemas::text::Time;
use schemas::{Bytes, Code, Digest, Millis, ObjectRef, Refusal, UnixMillis, WorkerId};

use crate::effect::{Effect, Quarantine};
use crate::input::{Peer, ReplyId};
use crate::run::RunRoom;
use crate::run::leases::check_holder;
use crate::run::live::{HeldRead, LiveRun, Unused};
use crate::run::members::check_member;
use crate::turn::{Handled, Outcome, Turn};

/// Different objects that may be uploaded under one lease for each object of a contribution. A
/// worker that begins a unit anew may get other bytes, but not often. A repeated upload is the same
/// object.
const UPLOADS_A_CHUNK_MAX: usize = 4;
/// Hints to read a chunk ahead under one lease, for each chunk of a contribution of
/// [`NAMED_CHUNKS_MAX`], since a bad line makes a worker repeat them. A larger contribution gets
/// two for each chunk, since every hint costs the read of a chunk.
const STAGED_A_CHUNK_MAX: usize = 16;

/// A read that waited for the data manifest or for a list, and is refused.
#[derive(Debug)]
pub(crate) struct RefusedRead {
    pub(crate) peer: Peer,
    pub(crate) reply: ReplyId,
    pub(crate) refusal: Refusal,
}

impl RunRoom<'_> {
    pub(crate) fn put(
        &mut self,
        turn: &mut Turn<'_>,
        peer: &Peer,
        request: PutRequest,
        reply: ReplyId,
    ) -> Handled {
        check_holder(&self.run, peer, &request.lease)?;
        if let Some(stopped) = urls_stopped(&self.run) {
            return Ok(Outcome::NotNow(stopped));
        }
        check_objects(&request.objects)?;
        check_uploads(&self.run, &request)?;
        let asked: BTreeSet<Digest> = request.objects.iter().map(|object| object.digest).collect();
        if asked.len() < request.objects.len() {
            let detail = "an object is named twice in one request";
            return Err(Refusal::new(Code::MessageInvalid, detail).into());
        }
        if let Some(full) = self.full_of_uploads(&request.lease, &asked) {
            return Ok(Outcome::NotNow(full));
        }
        self.count_uploads(turn, peer, &request, asked)?;
        let place = Quarantine::Worker {
            run: self.run.name().clone(),
            lease: request.lease,
            worker: peer.worker.clone(),
        };
        turn.out.push(Effect::GrantPut {
            reply,
            place,
            objects: request.objects,
        });
        Ok(Outcome::Later)
    }

    /// Counts the uploads of a worker under its lease, or refuses them if they are too many.
    fn count_uploads(
        &mut self,
        turn: &Turn<'_>,
        peer: &Peer,
        request: &PutRequest,
        asked: BTreeSet<Digest>,
    ) -> Result<(), Refusal> {
        let chunks = self.run.spec.uploads();
        let held = &self.live.lease(&request.lease.unit).uploads;
        let new = asked.difference(held).count();
        let (different, different_max) = (held.len() + new, UPLOADS_A_CHUNK_MAX * chunks);
        if different > different_max {
            let detail = format!(
                "{different} different objects under lease {}, at most {different_max}",
                request.lease
            );
            return Err(Refusal::new(Code::ObjectForbidden, detail));
        }
        let life = self.run.spec.policy.lease;
        let unused = self.live.unused.entry(peer.worker.clone()).or_default();
        check_unused(unused, turn.now, new, (chunks, life))?;
        unused.add(new);
        let held = self.live.lease_mut(&request.lease.unit);
        held.uploads.extend(asked);
        Ok(())
    }

    /// Refuses a training unit to a worker that may not upload a contribution now: it would train
    /// in vain.
    ///
    /// # Errors
    /// [`Code::AskedTooMuch`].
    pub(crate) fn check_room_for_uploads(
        &mut self,
        now: UnixMillis,
        worker: &WorkerId,
    ) -> Result<(), Refusal> {
        let (chunks, life) = (self.run.spec.uploads(), self.run.spec.policy.lease);
        match self.live.unused.get_mut(worker) {
            Some(unused) => check_unused(unused, now, chunks, (chunks, life)),
            None => Ok(()),
        }
    }

    pub(crate) fn stage(
        &mut self,
        turn: &mut Turn<'_>,
        peer: &Peer,
        request: &StageRequest,
    ) -> Handled {
        check_holder(&self.run, peer, &request.lease)?;
        check_objects(&[request.object])?;
        let chunks = self.run.spec.model.initial.count();
        if request.index as usize >= chunks {
            let detail = format!("chunk {} of {chunks}", request.index);
            return Err(Refusal::new(Code::LayoutMismatch, detail).into());
        }
        let held = self.live.lease_mut(&request.lease.unit);
        held.staged = held.staged.saturating_add(1);
        let staged_max = (STAGED_A_CHUNK_MAX * NAMED_CHUNKS_MAX).max(2 * chunks);
        if held.staged <= staged_max && !held.is_checked() {
            let order = Order::Stage {
                lease: request.lease,
                worker: peer.worker.clone(),
                index: request.index,
                object: request.object,
            };
            self.order(turn, order);
        }
        Ok(Outcome::done())
    }

    pub(crate) fn get(
        &mut self,
        turn: &mut Turn<'_>,
        peer: &Peer,
        request: GetRequest,
        reply: ReplyId,
    ) -> Handled {
        check_member(&self.run, peer)?;
        check_count(request.objects.len())?;
        if let Some(halted) = &self.live.foundry.halted {
            return Ok(Outcome::NotNow(halted.clone()));
        }
        if let Some(stopped) = urls_stopped(&self.run) {
            return Ok(Outcome::NotNow(stopped));
        }
        let objects = request.objects;
        match forbidden(&self.run, self.live, &objects) {
            None => turn.out.push(self.grant_get(reply, objects)),
            Some(_) if self.may_learn() => {
                let read = HeldRead { reply, objects };
                if let Some(older) = self.live.reads.insert(peer.worker.clone(), read) {
                    let refusal = Refusal::new(Code::NoAnswer, "a newer request took its place");
                    turn.reply(older.reply, Err(refusal));
                }
                self.read_lists(turn);
            }
            Some(digest) => return Err(object_forbidden(digest).into()),
        }
        Ok(Outcome::Later)
    }

    fn grant_get(&self, reply: ReplyId, objects: Vec<Digest>) -> Effect {
        let run = Some(self.run.name().clone());
        Effect::GrantGet {
            reply,
            run,
            objects,
        }
    }

    /// True if an object that is not known to be readable may turn out to be. After a restart the
    /// data manifest, which names shards, is not here yet; and a list that was not read yet may
    /// hold chunks of the weights.
    fn may_learn(&self) -> bool {
        self.live.data.is_none() || self.live.lists.unread(&self.run).next().is_some()
    }

    /// Answers requests that waited for the data manifest or for a list, as far as that is possible
    /// now. Returns those that are to be refused.
    pub(crate) fn answer_reads(&mut self, turn: &mut Turn<'_>) -> Vec<RefusedRead> {
        let mut refused = Vec::new();
        let stopped = urls_stopped(&self.run);
        for (worker, HeldRead { reply, objects }) in std::mem::take(&mut self.live.reads) {
            if let Some(stopped) = &stopped {
                turn.reply(reply, Err(stopped.clone()));
                continue;
            }
            match forbidden(&self.run, self.live, &objects) {
                None => turn.out.push(self.grant_get(reply, objects)),
                Some(_) if self.may_learn() => {
                    let read = HeldRead { reply, objects };
                    self.live.reads.insert(worker, read);
                }
                Some(digest) => {
                    let member = self.run.member(&worker);
                    let member = member.expect("the reads of a worker that leaves are answered");
                    let peer = Peer {
                        account: member.account.clone(),
                        run: self.run.name().clone(),
                        worker,
                    };
                    refused.push(RefusedRead {
                        peer,
                        reply,
                        refusal: object_forbidden(digest),
                    });
                }
            }
        }
        if !self.live.reads.is_empty() {
            self.read_lists(turn);
        }
        refused
    }
}

/// The refusal of whatever needs URLs, while an operator has stopped them. The asker is not at
/// fault, and asks again.
pub(crate) fn urls_stopped(run: &Run) -> Option<Refusal> {
    let record = run.holds.get(&Hold::Urls)?;
    let (operator, since) = (&record.operator, Time(record.since));
    let detail = format!("of run {}, by {operator} since {since}", run.spec.run);
    Some(Refusal::new(Code::UrlsStopped, detail))
}

pub(crate) fn check_count(objects: usize) -> Result<(), Refusal> {
    if (1..=GRANTS_MAX).contains(&objects) {
        return Ok(());
    }
    Err(Refusal::new(
        Code::MessageInvalid,
        format!("{objects} objects in one request, expected 1 to {GRANTS_MAX}"),
    ))
}

pub(crate) fn check_objects(objects: &[ObjectRef]) -> Result<(), Refusal> {
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

/// Checks that the objects to upload have the lengths of a contribution's chunks.
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

/// Refuses `new` uploads of a worker if too many others are in no result.
fn check_unused(
    unused: &mut Unused,
    now: UnixMillis,
    new: usize,
    (chunks, life): (usize, Millis),
) -> Result<(), Refusal> {
    let total = unused.at(now, chunks, life).saturating_add(new);
    if total <= Unused::CONTRIBUTIONS_MAX * chunks {
        return Ok(());
    }
    let span = unused.span(chunks, life);
    let detail =
        format!("{total} uploads that are in no result, {chunks} are forgotten every {span} ms");
    Err(Refusal::new(Code::AskedTooMuch, detail))
}

/// The first object that a member may not read.
fn forbidden(run: &Run, live: &LiveRun, objects: &[Digest]) -> Option<Digest> {
    let is_weight = |digest: &Digest| {
        run.weights.values().any(|Weights { chunks, .. }| {
            let listed = chunks.listed();
            chunks.objects().iter().any(|chunk| chunk.digest == *digest)
                || listed.is_some_and(|listed| live.lists.holds(&listed.list.digest, digest))
        })
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
