//! The worker as a witness of the log of all events. It keeps the newest head that it has seen,
//! takes another only if that continues it, and cosigns it then, with a key that does nothing else.
//! So the holder of the key for heads who shows one history here and another there has signed two
//! that contradict each other, and a worker that saw both has them.
//!
//! Nothing here holds up training: without heads, or with heads that contradict each other, the
//! worker says so and trains on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backoff::spread;
use identity::{AuditKey, TrustBundle, WitnessKey};
use runtime::evidence::Evidence;
use runtime::{Bus, BusError, Failure, clock};
use schemas::event::WorkerEvent;
use schemas::head::{CosignRequest, HeadReply, HeadRequest, Inclusion};
use schemas::lease::Done;
use schemas::subject::{LogVerb, log_subject};
use schemas::{ChainSequence, Code, RunId, UnixMillis, V, WorkerId};
use tlog::Head;
use tokio_util::sync::{CancellationToken, DropGuard};
use witness::{Doubt, Followed, Step, is_included};

use crate::events::Events;
use crate::outbox::{Looked, Receipts};
use crate::state::StateFolder;

/// Longest pause between two questions; the half of it is the shortest. A head is signed ten
/// seconds after an event; four thousand workers then ask some 300 times a second.
const PAUSE: Duration = Duration::from_secs(15);
/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(8);
/// Questions in vain, one after another, after which the log says so. Right after a join, or while
/// the audit service starts, a few are usual.
const UNHEARD_MAX: u32 = 8;

/// Follows the log while it is kept.
#[derive(Debug)]
pub(crate) struct Witnessing(#[expect(dead_code, reason = "dropping it ends the task")] DropGuard);

impl Witnessing {
    /// Begins to follow the log. If that cannot be, the log of this process says why, once.
    pub(crate) fn begin(asking: Asking, state: &StateFolder, trust: &TrustBundle) -> Self {
        let stop = CancellationToken::new();
        match Memory::open(state, &asking.worker, trust) {
            Ok(Some(memory)) => {
                memory.kept.iter().for_each(|head| asking.events.know(head));
                let stopped = stop.clone();
                let follower = Follower {
                    asking,
                    memory,
                    cosigned: 0,
                    unheard: 0,
                };
                tokio::spawn(async move {
                    // Dropped at once when it is told, with its hold on the chain of events.
                    tokio::select! {
                        () = stopped.cancelled() => {}
                        () = follower.run() => {}
                    }
                });
            }
            Ok(None) => tracing::info!(
                "the trust bundle names no key for tree heads, so this worker cosigns none"
            ),
            Err(failure) => {
                let (code, next) = (failure.code(), failure.code().next_step());
                tracing::warn!(%code, next, "this worker follows no log and cosigns no heads: {failure}");
            }
        }
        Self(stop.drop_guard())
    }
}

/// The one who asks.
#[derive(Debug)]
pub(crate) struct Asking {
    pub(crate) bus: Bus,
    pub(crate) run: RunId,
    pub(crate) worker: WorkerId,
    /// The audit key of its chain.
    pub(crate) key: Arc<AuditKey>,
    /// The trust domain in which it signs.
    pub(crate) domain: String,
    pub(crate) events: Events,
    pub(crate) receipts: Receipts,
}

/// The task that asks, keeps and cosigns.
#[derive(Debug)]
struct Follower {
    asking: Asking,
    memory: Memory,
    /// The events under the newest head whose cosignature the audit service keeps.
    cosigned: u64,
    /// Questions in vain, one after another.
    unheard: u32,
}

impl Follower {
    async fn run(mut self) {
        loop {
            match self.ask().await {
                Ok(()) => self.unheard = 0,
                Err(error) => self.say_unheard(&error),
            }
            tokio::time::sleep(spread(PAUSE, objects::random_fraction())).await;
        }
    }

    async fn ask(&mut self) -> Result<(), BusError> {
        let asked = self.asking.receipts.asked.borrow().clone();
        let question = HeadRequest {
            v: V,
            known: self.memory.kept.as_ref().map_or(0, |head| head.size),
            emitter: self.asking.key.public().clone(),
            events: asked.iter().map(|(sequence, _)| *sequence).collect(),
        };
        let reply: HeadReply = self.request(LogVerb::Head, &question).await?;
        match self.memory.see(&reply) {
            Ok(Seen::Taken) => {
                let kept = self.memory.kept.iter();
                kept.for_each(|head| self.asking.events.know(head));
                let entry = |body: Vec<u8>| {
                    chain::leaf(&self.asking.key.sign_event(&self.asking.domain, body))
                };
                let asked = asked.into_iter();
                let entries = asked.filter_map(|(sequence, body)| Some((sequence, entry(body)?)));
                let covered = self.memory.covered(&reply.events, &entries.collect());
                // If the publisher is busy, the next look says the same.
                let _told = self.asking.receipts.looked.try_send(Looked(covered));
                self.cosign().await
            }
            Ok(Seen::Refused {
                doubt,
                again,
                unkept,
            }) => {
                self.raise(&doubt, again);
                if let Some(failure) = unkept.filter(|_| !again) {
                    let code = Code::WorkerStateInvalid;
                    tracing::warn!(%code, next = code.next_step(), "the text of that head is not kept: {failure}");
                }
                Ok(())
            }
            Err(failure) => {
                // What is not on the disk is not cosigned.
                tracing::warn!(code = %failure.code(), next = failure.code().next_step(), "a head is not kept, and not cosigned: {failure}");
                Ok(())
            }
        }
    }

    /// Cosigns the kept head, unless the audit service has that already.
    async fn cosign(&mut self) -> Result<(), BusError> {
        let Some(request) = self.memory.cosign(clock::now(), self.cosigned) else {
            return Ok(());
        };
        let size = request.size;
        let done: Result<Done, BusError> = self.request(LogVerb::Cosign, &request).await;
        done?;
        tracing::debug!(size, "a head of the log is cosigned");
        self.cosigned = size;
        Ok(())
    }

    async fn request<Q: schemas::Message, A: schemas::Message>(
        &self,
        verb: LogVerb,
        question: &Q,
    ) -> Result<A, BusError> {
        let subject = log_subject(&self.asking.run, &self.asking.worker, verb);
        self.asking
            .bus
            .request(&subject, question, ANSWER_MAX)
            .await
    }

    /// Says that the log contradicts itself: here, and in the worker's own chain. It is said once
    /// for each head that the worker keeps.
    fn raise(&self, doubt: &Doubt, again: bool) {
        if again {
            return;
        }
        let code = doubt_code(doubt);
        tracing::error!(%code, next = code.next_step(), "the log of all events is not the one that this worker has seen, and \
                        is not cosigned: {doubt}");
        self.asking.events.emit(WorkerEvent::Refused {
            code,
            detail: doubt.to_string(),
        });
    }

    fn say_unheard(&mut self, error: &BusError) {
        self.unheard += 1;
        if self.unheard == UNHEARD_MAX {
            let (code, next) = (error.code(), error.code().next_step());
            tracing::warn!(%code, next, "this worker gets no heads of the log, or cannot give its cosignature: {error}");
        } else {
            tracing::debug!(%error, "no head of the log came");
        }
    }
}

const fn doubt_code(doubt: &Doubt) -> Code {
    match doubt {
        Doubt::Head(_) => Code::HeadInvalid,
        Doubt::WentBack { .. } | Doubt::Forked(_) | Doubt::Unproven { .. } => {
            Code::HeadContradicted
        }
    }
}

/// What this worker has seen of the log, on its disk, and its key as a witness.
#[derive(Debug)]
struct Memory {
    followed: Followed,
    key: WitnessKey,
    kept: Option<Head>,
    /// The file of the kept head.
    head: PathBuf,
    /// The text against it that came first.
    refused: Evidence,
    /// True if a head against the kept one was said.
    is_contradicted: bool,
    /// True if this process has said that a text is no signed head of this log.
    is_unsigned_said: bool,
}

/// What became of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// It is the kept one now, on the disk.
    Taken,
    /// It is not taken.
    Refused {
        doubt: Doubt,
        /// True if it was said before.
        again: bool,
        /// The reason why its text is not on the disk and should be.
        unkept: Option<String>,
    },
}

impl Memory {
    /// Reads what was kept, and makes a key if there is none. None if this domain signs no heads.
    fn open(
        state: &StateFolder,
        worker: &WorkerId,
        trust: &TrustBundle,
    ) -> Result<Option<Self>, Failure> {
        let origin = format!("diloco/{}", trust.domain);
        let followed = Followed::new(origin, trust.raw_head_keys());
        if followed.is_unsigned() {
            return Ok(None);
        }
        let unusable = |file: &std::path::Path, error: &dyn std::fmt::Display| {
            let text = format!("{}: {error}", file.display());
            Failure::new(Code::WorkerStateInvalid, text)
        };
        let file = state.witness_key();
        let key = match file.exists() {
            true => WitnessKey::read(&file)?,
            false => {
                let key = WitnessKey::generate();
                let written = key.seed().write(&file);
                written.map_err(|error| unusable(&file, &error))?;
                key
            }
        };
        let witness = key
            .witness(worker.as_str())
            .map_err(|error| unusable(&file, &error))?;
        let head = state.log_head();
        let kept = match std::fs::read(&head) {
            Ok(note) => {
                let kept = followed.open(&note);
                Some(kept.map_err(|error| unusable(&head, &error))?)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(unusable(&head, &error)),
        };
        let refused = Evidence::at(state.log_refused());
        tracing::info!(
            witness = witness.text(),
            "this worker cosigns heads of the log"
        );
        Ok(Some(Self {
            followed,
            key,
            kept,
            head,
            is_contradicted: refused.is_kept(),
            is_unsigned_said: false,
            refused,
        }))
    }

    /// Compares a head with the kept one. What is taken is on the disk when this returns.
    ///
    /// # Errors
    /// It cannot be written; then the kept one stays.
    fn see(&mut self, reply: &HeadReply) -> Result<Seen, Failure> {
        let note = reply.note.as_bytes();
        let hashes: Vec<[u8; 32]> = reply.consistency.iter().map(|hash| **hash).collect();
        let unwritten = |error: &dyn std::fmt::Display| {
            Failure::new(Code::WorkerStateInvalid, format!("worker.state: {error}"))
        };
        match self.followed.follow(self.kept.as_ref(), note, &hashes) {
            Ok(Step::Same) => Ok(Seen::Taken),
            Ok(Step::Newer(head)) => {
                let written = identity::secret::replace_private(&self.head, note);
                written.map_err(|error| unwritten(&error))?;
                self.kept = Some(head);
                // Evidence against an earlier head stays, and makes room for what contradicts this
                // one.
                self.is_contradicted = false;
                let moved = self.refused.set_aside();
                moved.map_err(|error| unwritten(&error))?;
                Ok(Seen::Taken)
            }
            Err(doubt @ Doubt::Head(_)) => Ok(Seen::Refused {
                // Anybody can write such a text: it is no evidence and takes the place of none.
                doubt,
                again: std::mem::replace(&mut self.is_unsigned_said, true),
                unkept: None,
            }),
            Err(doubt) => Ok(Seen::Refused {
                // The first text is the strongest evidence; the event about it makes the next head
                // another one, which is no news. A disk without room hides nothing.
                doubt,
                again: std::mem::replace(&mut self.is_contradicted, true),
                unkept: self.refused.keep(note).err().map(|error| error.to_string()),
            }),
        }
    }

    /// The events that are under the kept head, of those whose entries are given.
    fn covered(
        &self,
        shown: &[Inclusion],
        entries: &BTreeMap<ChainSequence, Vec<u8>>,
    ) -> Vec<ChainSequence> {
        let Some(head) = &self.kept else {
            return Vec::new();
        };
        let holds = |one: &&Inclusion| {
            let hashes: Vec<[u8; 32]> = one.hashes.iter().map(|hash| **hash).collect();
            let entry = entries.get(&one.sequence);
            entry.is_some_and(|entry| is_included(head, one.index, entry, &hashes))
        };
        let shown = shown.iter().filter(holds);
        shown.map(|one| one.sequence).collect()
    }

    /// The cosignature of the kept head, if it covers more than `known` events.
    fn cosign(&self, now: UnixMillis, known: u64) -> Option<CosignRequest> {
        let head = self.kept.as_ref().filter(|head| head.size > known)?;
        let signature = self.key.cosign_raw(head, now.get() / 1000);
        Some(CosignRequest {
            v: V,
            key: self.key.public().clone(),
            size: head.size,
            time: now,
            signature: serde_bytes::ByteArray::new(signature),
        })
    }
}

#[cfg(test)]
mod tests;
