//! What the coordinator asks of the world, in order: an effect is carried out only when every
//! [`Effect::Append`] before it is in the stream. So nothing leaves the coordinator that the ledger
//! does not hold.

use schemas::blob::Grants;
use schemas::contribution::SubmitReply;
use schemas::control::{RunNewReply, ShutdownReply, ViewReply};
use schemas::event::LedgerEvent;
use schemas::lease::{ClaimReply, Done, LeaseRef, Manifest, RenewReply, UnitId};
use schemas::member::JoinReply;
use schemas::public::{CommandVerb, Status};
use schemas::run::RunSpec;
use schemas::snapshot::{MergeInput, MergeRecord};
use schemas::{
    AccountId, Digest, ObjectRef, PublicKey, Refusal, Round, RunId, SyncId, UnixMillis, WorkerId,
};

use crate::input::{DeliveryId, ReplyId, ScreeningId, Submission};

/// Something to do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Append an event to the ledger. When that fails nothing after it is done, and this
    /// coordinator with its state is given up.
    Append {
        /// When, as the core's state holds it: the event's body carries exactly this time, or a
        /// replay would differ.
        time: UnixMillis,
        /// The run it concerns.
        run: Option<RunId>,
        /// The event; the core's state already holds it.
        event: Box<LedgerEvent>,
    },
    /// Answer a request.
    Reply {
        /// Which.
        reply: ReplyId,
        /// With what.
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
        /// The objects; all may be read by the asker.
        objects: Vec<Digest>,
    },
    /// Answer with URLs to upload objects into quarantine.
    GrantPut {
        /// The request.
        reply: ReplyId,
        /// Whose quarantine.
        place: Quarantine,
        /// The objects.
        objects: Vec<ObjectRef>,
    },
    /// Check an operator's uploads; answer with `Input::UploadsChecked`.
    CheckUploads {
        /// The request.
        reply: ReplyId,
        /// Whose quarantine.
        place: Quarantine,
        /// The objects.
        objects: Vec<ObjectRef>,
    },
    /// Promote uploads that were checked; answer with `Input::Promoted`. The ledger holds the order
    /// by then.
    Promote {
        /// The request.
        reply: ReplyId,
        /// Whose quarantine.
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
    /// The unit is still held: keep its offer from being delivered again.
    Hold {
        /// The delivery.
        delivery: DeliveryId,
    },
    /// Read and screen an uploaded chunk ahead of its submit. A hint: the result is kept until the
    /// submit or the end of the lease, or thrown away.
    Stage {
        /// The run.
        run: RunId,
        /// The lease.
        lease: LeaseRef,
        /// Whose.
        worker: WorkerId,
        /// Position of the chunk.
        index: u32,
        /// The uploaded object.
        object: ObjectRef,
    },
    /// Forget what was staged for a lease that ended.
    Unstage {
        /// The run.
        run: RunId,
        /// The lease.
        lease: LeaseRef,
    },
    /// Delete what was uploaded under a lease that is over: what counts lies in `blobs`, and the
    /// rest counts nowhere. A hint: what is not deleted is forgotten by the store some days later.
    Sweep {
        /// Whose quarantine.
        place: Quarantine,
        /// What may lie there.
        objects: Vec<Digest>,
    },
    /// Check a result: signature, objects at the store, layout, sizes, finite, norm; promote its
    /// objects; answer with `Input::Screened`. What the statement says about lease, tokens and
    /// steps was checked already.
    Screen {
        /// This check.
        screening: ScreeningId,
        /// The run's settings.
        spec: Box<RunSpec>,
        /// Whose.
        worker: WorkerId,
        /// The key that must have signed it.
        audit_key: PublicKey,
        /// The result.
        submission: Box<Submission>,
    },
    /// Make the outer step over `inputs`, publish the weights, answer with `Input::Merged`.
    Merge {
        /// The run.
        run: RunId,
        /// The round that it closes, and the fragment that it steps.
        sync: SyncId,
        /// The sealed set, ascending by unit: the order of the sum.
        inputs: Vec<MergeInput>,
    },
    /// Save the weights that `round` starts from, with the outer state, off the critical path; then
    /// move the run's pointer; answer with `Input::Saved`.
    Save {
        /// The run.
        run: RunId,
        /// The round.
        round: Round,
        /// The full snapshot before it.
        parent: Option<Digest>,
        /// The merges since that snapshot.
        merges: Vec<MergeRecord>,
    },
    /// Load a run's weights into the merge executor: from its newest full snapshot (or its initial
    /// weights), then the merges since, each of which must give the digest that the ledger
    /// recorded; read the run's data manifest as well. Answer with `Input::DataLoaded` and then
    /// `Input::Restored`.
    Restore {
        /// The run's settings.
        spec: Box<RunSpec>,
        /// The newest full snapshot's manifest.
        snapshot: Option<ObjectRef>,
        /// The merges since, oldest first.
        merges: Vec<MergeRecord>,
    },
    /// Drop a run's weights from memory: it is complete.
    Forget {
        /// The run.
        run: RunId,
    },
    /// Send a signed order to a worker.
    Command {
        /// The tenant's account.
        account: AccountId,
        /// The run.
        run: RunId,
        /// The worker.
        worker: WorkerId,
        /// The order.
        verb: CommandVerb,
    },
    /// Publish the read-only view of a run.
    Publish(Box<Status>),
    /// Everything is in order: end the process.
    Stop {
        /// Why.
        reason: String,
    },
}

impl Effect {
    /// Its kind, as logs and numbers name it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Append { .. } => "append",
            Self::Reply { .. } => "reply",
            Self::Lease { .. } => "lease",
            Self::GrantGet { .. } => "grant_get",
            Self::GrantPut { .. } => "grant_put",
            Self::CheckUploads { .. } => "check_uploads",
            Self::Promote { .. } => "promote",
            Self::CheckRun { .. } => "check_run",
            Self::Offer { .. } => "offer",
            Self::Settle { .. } => "settle",
            Self::Hold { .. } => "hold",
            Self::Stage { .. } => "stage",
            Self::Unstage { .. } => "unstage",
            Self::Sweep { .. } => "sweep",
            Self::Screen { .. } => "screen",
            Self::Merge { .. } => "merge",
            Self::Save { .. } => "save",
            Self::Restore { .. } => "restore",
            Self::Forget { .. } => "forget",
            Self::Command { .. } => "command",
            Self::Publish(_) => "publish",
            Self::Stop { .. } => "stop",
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
    Grants(Grants),
    RunNew(RunNewReply),
    View(Box<ViewReply>),
    Shutdown(ShutdownReply),
}

/// Under which prefix of the bucket `incoming` objects are uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quarantine {
    /// A worker's, under one lease: what lies there was uploaded by it and under this lease.
    Worker {
        /// The run.
        run: RunId,
        /// The lease.
        lease: LeaseRef,
        /// The worker.
        worker: WorkerId,
    },
    /// An operator's.
    Operator {
        /// Its key.
        operator: PublicKey,
    },
}
