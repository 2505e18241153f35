//! Effects: requests of the coordinator to the world, in order. An effect is carried out only when
//! every [`Effect::Append`] before it is in the stream, so that nothing leaves the coordinator
//! before the ledger holds it. [`Effect::is_early`] names the two that may begin earlier.

use std::collections::BTreeSet;
use std::sync::Arc;

use ledger::{Needed, State, StoppedHolders, UrlHolders};
use schemas::blob::Grants;
use schemas::collection::CollectReply;
use schemas::contribution::SubmitReply;
use schemas::control::{RunNewReply, ShutdownReply, ViewReply};
use schemas::ending::LeasesEndReply;
use schemas::event::LedgerEvent;
use schemas::foundry::Order;
use schemas::hold::{AtStore, HoldReply};
use schemas::keys::KeysReply;
use schemas::lease::{ClaimReply, Done, LeaseRef, Manifest, RenewReply, UnitId};
use schemas::masking::{CohortStatement, MaskReply};
use schemas::member::{JoinReply, Session};
use schemas::promotion::PromoteReply;
use schemas::public::{CommandVerb, Status};
use schemas::quarantine::QuarantineReply;
use schemas::restore::RestoreReply;
use schemas::revocation::RevokeReply;
use schemas::run::RunSpec;
use schemas::telemetry::Heartbeat;
use schemas::tenant::{TenantEndReply, TenantReply};
use schemas::{
    AccountId, Digest, ObjectRef, PublicKey, Refusal, Round, RunId, UnixMillis, WorkerId,
};

use crate::input::{DeliveryId, ReplyId};

/// Something to do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Append an event to the ledger. If that fails, no later effect is carried out except a merge,
    /// whose outcome nobody hears, and this coordinator is given up with its state.
    Append {
        /// The time of the event, as the core's state holds it: the event's body carries exactly
        /// this time, or a replay would differ.
        time: UnixMillis,
        /// The run it concerns.
        run: Option<RunId>,
        /// The event; the core's state already holds it.
        event: Box<LedgerEvent>,
    },
    /// Answer a request.
    Reply {
        /// The request.
        reply: ReplyId,
        /// The answer, or the refusal.
        answer: Result<Answer, Refusal>,
    },
    /// Sign a lease's manifest and answer a claim with it.
    Lease {
        /// The claim.
        reply: ReplyId,
        /// The manifest; the shell writes the key it signs with into `iss`.
        manifest: Box<Manifest>,
    },
    /// Answer with URLs to read objects from `blobs`.
    GrantGet {
        /// The request.
        reply: ReplyId,
        /// The run whose worker asks; none for an operator.
        run: Option<RunId>,
        /// The objects; all may be read by the asker.
        objects: Vec<Digest>,
    },
    /// Answer with the keys that sign leases and commands, as the trust bundle has them now.
    ShowKeys {
        /// The request.
        reply: ReplyId,
    },
    /// Answer with URLs to upload objects into quarantine.
    GrantPut {
        /// The request.
        reply: ReplyId,
        /// The quarantine to upload into.
        place: Quarantine,
        /// The objects.
        objects: Vec<ObjectRef>,
    },
    /// Check an operator's uploads; answer with `Input::UploadsChecked`.
    CheckUploads {
        /// The request.
        reply: ReplyId,
        /// The quarantine that holds the uploads.
        place: Quarantine,
        /// The objects.
        objects: Vec<ObjectRef>,
    },
    /// Promote uploads that were checked; answer with `Input::Promoted`. The ledger holds the order
    /// by then.
    Promote {
        /// The request.
        reply: ReplyId,
        /// The quarantine that holds the uploads.
        place: Quarantine,
        /// The objects that `blobs` does not have.
        objects: Vec<ObjectRef>,
    },
    /// Check that every object a new run names is in `blobs`, parses and fits; answer with
    /// `Input::RunChecked`.
    CheckRun {
        /// The request.
        reply: ReplyId,
        /// The run's settings, already within their bounds.
        spec: Box<RunSpec>,
    },
    /// Publish an offer of a unit unless the queue holds one.
    Offer {
        /// The run.
        run: RunId,
        /// The unit.
        unit: UnitId,
    },
    /// The unit is complete: take its offer off the queue.
    Settle {
        /// The delivery.
        delivery: DeliveryId,
    },
    /// The unit is not complete: keep its offer from being delivered again.
    Hold {
        /// The delivery.
        delivery: DeliveryId,
    },
    /// Delete the uploads under a lease that is over. Objects that count are in `blobs`, and the
    /// others count nowhere. This is a hint: the store deletes what is left some days later.
    Sweep {
        /// The quarantine of the lease.
        place: Quarantine,
        /// The objects that may lie there.
        objects: Vec<Digest>,
    },
    /// Delete uploads to a run that are in quarantine, once the store refuses the URLs that might
    /// bring others, and then answer the request with their number. An answer without a number says
    /// that the store was too slow; it deletes what is left some days later.
    Purge {
        /// The request.
        reply: ReplyId,
        /// The run.
        run: RunId,
        /// The uploads.
        uploads: Uploads,
        /// The URLs that are stopped first, where the order stops any.
        stop: Option<Stop>,
        /// The answer, to which the number is added, and what the store does about URLs.
        told: Box<Purging>,
    },
    /// Have the store refuse these URLs and no others, and then answer the request.
    StopUrls {
        /// The request.
        reply: ReplyId,
        /// The URLs.
        stop: Stop,
        /// The answer, to which is added what the store does.
        told: Box<Stopping>,
    },
    /// No URL of this run is alive from then on: the store need refuse none of them any more.
    UrlsEnd {
        /// The run.
        run: RunId,
        /// The time.
        at: UnixMillis,
    },
    /// Read every object of a full snapshot back, and check that it is as it was saved; answer with
    /// `Input::SnapshotChecked`.
    CheckSnapshot {
        /// The settings of its run.
        spec: Box<RunSpec>,
        /// The round that first started from it.
        round: Round,
        /// Its manifest.
        manifest: ObjectRef,
    },
    /// A step of the collection of old objects.
    Collect(Collect),
    /// Give an order to a run's foundry, which holds its weights; the answer comes as
    /// `Input::Foundry`. The first order to each is to restore the weights, the last to forget
    /// them.
    Foundry {
        /// The run.
        run: RunId,
        /// The order.
        order: Order,
    },
    /// Send a signed order to a worker.
    Command {
        /// The tenant's account.
        account: AccountId,
        /// The run.
        run: RunId,
        /// The worker.
        worker: WorkerId,
        /// The process of that worker that is told.
        session: Session,
        /// The order.
        verb: CommandVerb,
    },
    /// Publish the read-only view of a run.
    Publish(Box<Status>),
    /// Write the bytes of the checkpoint that was taken last to the store, beside everything else;
    /// answer with `Input::CheckpointWritten`.
    WriteCheckpoint {
        /// The state as it was after the event that took it.
        state: Arc<State>,
    },
    /// Delete the object of a checkpoint that no start uses any more.
    DiscardCheckpoint {
        /// The object.
        object: Digest,
    },
    /// Show a member's report about itself, which is plausible and the newest one.
    ShowHeartbeat {
        /// The run.
        run: RunId,
        /// The worker.
        worker: WorkerId,
        /// The heartbeat.
        heartbeat: Box<Heartbeat>,
    },
    /// Everything is in order: end the process.
    Stop {
        /// The reason.
        reason: String,
    },
}

impl Effect {
    /// True for an order to merge, which may begin before the events before it are in the stream:
    /// nobody is told of the object that it makes before the next event names it. Also true for
    /// [`Collect::KeepWritten`], which keeps its place among merges.
    pub const fn is_early(&self) -> bool {
        matches!(
            self,
            Self::Collect(Collect::KeepWritten)
                | Self::Foundry {
                    order: Order::Merge { .. },
                    ..
                }
        )
    }

    /// The kind of effect, as logs and metrics name it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Append { .. } => "append",
            Self::Reply { .. } => "reply",
            Self::Lease { .. } => "lease",
            Self::ShowKeys { .. } => "show_keys",
            Self::GrantGet { .. } => "grant_get",
            Self::GrantPut { .. } => "grant_put",
            Self::CheckUploads { .. } => "check_uploads",
            Self::Promote { .. } => "promote",
            Self::CheckRun { .. } => "check_run",
            Self::Offer { .. } => "offer",
            Self::Settle { .. } => "settle",
            Self::Hold { .. } => "hold",
            Self::Sweep { .. } => "sweep",
            Self::Purge { .. } => "purge",
            Self::StopUrls { .. } => "stop_urls",
            Self::UrlsEnd { .. } => "urls_end",
            Self::CheckSnapshot { .. } => "check_snapshot",
            Self::Collect(step) => step.kind(),
            Self::Foundry { order, .. } => order.kind(),
            Self::Command { .. } => "command",
            Self::Publish(_) => "publish",
            Self::WriteCheckpoint { .. } => "write_checkpoint",
            Self::DiscardCheckpoint { .. } => "discard_checkpoint",
            Self::ShowHeartbeat { .. } => "show_heartbeat",
            Self::Stop { .. } => "stop",
        }
    }
}

/// A step of the collection of old objects.
#[derive(Clone, Debug)]
pub enum Collect {
    /// From now on keep every object that is written, also if [`Collect::Delete`] names it, until
    /// [`Collect::End`]. Like a merge, and in its order among merges, this may be done before the
    /// events before it are in the stream: nothing that is ordered after it is written before it.
    KeepWritten,
    /// Find out what goes ([`ledger::Mark`]); answer with `Input::Looked`.
    Look {
        /// The state, to which all events of the ledger so far have led.
        state: Arc<State>,
        /// The run whose objects go.
        run: RunId,
        /// The round before which they go.
        through: Round,
        /// What is needed besides: weights that no event names yet, and objects that operators
        /// committed lately.
        needed: Vec<Needed>,
    },
    /// Delete objects; answer with `Input::Collected`.
    Delete {
        /// The objects, each group only after the one before.
        groups: Vec<Vec<Digest>>,
    },
    /// The collection is over.
    End,
}

impl Collect {
    /// The kind of step, as logs and metrics name it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::KeepWritten => "keep_written",
            Self::Look { .. } => "look",
            Self::Delete { .. } => "delete",
            Self::End => "end_collection",
        }
    }
}

/// The answer to a request.
#[derive(Clone, Debug)]
#[expect(
    missing_docs,
    reason = "one variant for each type of answer on the bus"
)]
pub enum Answer {
    Join(Box<JoinReply>),
    Claim(ClaimReply),
    Renew(RenewReply),
    Done(Done),
    Submit(SubmitReply),
    Mask {
        reply: Box<MaskReply>,
        /// What the shell signs into the reply, since the ledger has it.
        seals: Option<Box<CohortStatement>>,
    },
    Grants(Grants),
    RunNew(RunNewReply),
    Hold(HoldReply),
    Collect(Box<CollectReply>),
    Quarantine(Box<QuarantineReply>),
    LeasesEnd(LeasesEndReply),
    Promote(Box<PromoteReply>),
    Restore(RestoreReply),
    Tenant(TenantReply),
    TenantEnd(TenantEndReply),
    Revoke(RevokeReply),
    View(Box<ViewReply>),
    Keys(Box<KeysReply>),
    Shutdown(ShutdownReply),
}

/// Uploads of workers to a run, by the order that has them deleted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Uploads {
    /// All of a worker, whatever their leases.
    Of(WorkerId),
    /// Those to rounds before this one, of all workers.
    Before(Round),
}

/// An answer that waits for the store to refuse the URLs of stopped runs.
#[derive(Clone, Debug)]
pub enum Stopping {
    /// That to an order of a hold.
    Hold(HoldReply),
    /// That to the end of a tenant.
    TenantEnd(TenantEndReply),
    /// That to an order which lets a worker in again.
    Readmit(Box<QuarantineReply>),
}

/// What the store is to know about URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// All holders whose URLs are stopped.
    pub holders: StoppedHolders,
    /// The holders that the order concerns, at least one; each may have URLs, and the answer says
    /// what the store does with these.
    pub concerned: BTreeSet<UrlHolders>,
}

impl Stopping {
    /// The whole answer.
    pub fn with(self, store: AtStore) -> Answer {
        let store = Some(store);
        match self {
            Self::Hold(told) => Answer::Hold(HoldReply { store, ..told }),
            Self::TenantEnd(told) => Answer::TenantEnd(TenantEndReply { store, ..told }),
            Self::Readmit(told) => Answer::Quarantine(Box::new(QuarantineReply { store, ..*told })),
        }
    }
}

/// An answer that waits for the number of uploads that were deleted.
#[derive(Clone, Debug)]
pub enum Purging {
    /// That to an order of quarantine.
    Quarantine(QuarantineReply),
    /// That to an order to restore.
    Restore(RestoreReply),
}

impl Purging {
    /// The whole answer; without a number if the store was too slow. Where the worker has no URLs,
    /// the answer says so already, and the store does nothing about them.
    pub fn with(self, uploads: Option<u32>, store: AtStore) -> Answer {
        match self {
            Self::Quarantine(told) => Answer::Quarantine(Box::new(QuarantineReply {
                uploads,
                store: told.store.or(Some(store)),
                ..told
            })),
            Self::Restore(told) => Answer::Restore(RestoreReply { uploads, ..told }),
        }
    }
}

/// The prefix of the bucket `incoming` under which objects are uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quarantine {
    /// The quarantine of a worker under one lease: all objects in it were uploaded by that worker
    /// under that lease.
    Worker {
        /// The run.
        run: RunId,
        /// The lease.
        lease: LeaseRef,
        /// The worker.
        worker: WorkerId,
    },
    /// The quarantine of an operator.
    Operator {
        /// Its key.
        operator: PublicKey,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{run_id, sync};
    use crate::input::Input;

    #[test]
    fn only_an_order_to_merge_may_begin_before_the_ledger_names_it() {
        let order = |order| Effect::Foundry {
            run: run_id(),
            order,
        };
        let merge = order(Order::Merge {
            sync: sync(0),
            base: schemas::Round(0),
            inputs: Vec::new(),
            unmasking: None,
        });
        assert!(merge.is_early() && !order(Order::Forget).is_early());
        let step = |step| Effect::Collect(step).is_early();
        assert!(step(Collect::KeepWritten) && !step(Collect::End));
        assert!(!step(Collect::Delete { groups: Vec::new() }));
    }

    #[test]
    fn logs_and_numbers_name_effects_and_inputs_by_their_kind() {
        let stop = Effect::Stop {
            reason: String::new(),
        };
        let forget = Effect::Foundry {
            run: run_id(),
            order: Order::Forget,
        };
        assert_eq!((stop.kind(), forget.kind()), ("stop", Order::Forget.kind()));
        assert_eq!(Input::Tick.kind(), "tick");
    }
}
