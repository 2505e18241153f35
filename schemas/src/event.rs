//! Events: signed, chained per emitter, kept in streams. The coordinator's chain is the ledger: its
//! state is its fold.

use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};

use crate::checkpoint::Checkpoint;
use crate::code::Code;
use crate::contribution::{Contribution, Evaluation};
use crate::head::KnownHead;
use crate::hold::{Hold, Reason};
use crate::lease::{LeaseRef, Weights};
use crate::limits::{EVENT_BYTES_MAX, SIGNED_EVENT_BYTES_MAX};
use crate::masking::{CohortMember, CohortSeal, UnitKey};
use crate::member::{Posture, Session};
use crate::message::{V, message};
use crate::promotion::PointerName;
use crate::role::Role;
use crate::run::{RunSpec, TrainerKind};
use crate::security::SecurityEvent;
use crate::sync::{ComparedInput, SealedInput};
use crate::tenant::Quota;
use crate::{
    AccountId, Bytes, ChainSequence, Digest, Fragment, ObjectRef, PublicKey, Round, RunId, Seat,
    TenantName, Tokens, UnitIndex, UnixMillis, WorkerId,
};

/// An event as it is sent and stored. Key and signature are beside the body in one payload, and not
/// in headers: a reader of strangers' messages asks the broker for no headers, since those may hold
/// anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedEvent {
    /// Version.
    pub v: V<1>,
    /// The public audit key that signed.
    pub key: PublicKey,
    /// The signature over the body under its domain prefix.
    pub signature: ByteArray<64>,
    /// An encoded [`EventBody`], as it was signed.
    pub body: ByteBuf,
}

message!(SignedEvent, "signed event", SIGNED_EVENT_BYTES_MAX);

/// The body of an event, which is encoded once, and then signed, hashed and stored unchanged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventBody {
    /// Version.
    pub v: V<1>,
    /// The public audit key of the emitter.
    pub emitter: PublicKey,
    /// Its position in the emitter's chain.
    pub sequence: ChainSequence,
    /// The digest of the emitter's previous body; none for the first.
    pub previous: Option<Digest>,
    /// The emitter's clock, which nobody has checked.
    pub time: UnixMillis,
    /// The run that it concerns; none if it concerns the whole cluster.
    pub run: Option<RunId>,
    /// The newest head of the log of all events that the emitter had verified when it wrote this
    /// one: the event is not older than that head. None if it knew none, and in events of an
    /// earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<KnownHead>,
    /// The event itself.
    pub event: Event,
}

message!(EventBody, "event", EVENT_BYTES_MAX);

/// An event, by kind of emitter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// An event of the coordinator: a change of its state.
    Ledger(LedgerEvent),
    /// An event of a worker: its own account of its life.
    Worker(WorkerEvent),
    /// An event of the audit service's sentry: what it saw at the broker.
    Security(SecurityEvent),
}

/// A change of the coordinator's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "fields are named after the types and words of this crate"
)]
pub enum LedgerEvent {
    /// A coordinator took the lead. Every lease that is still open runs for one lease time from
    /// here.
    CoordinatorStarted {
        release: String,
        posture: Posture,
        /// The process that took the lead, named by a random number, so that two that begin at the
        /// same moment sign different events. A ledger of an earlier release names none.
        #[serde(default)]
        session: Session,
    },
    /// The coordinator gave the lead up in order.
    CoordinatorStopped { reason: String },
    /// The coordinator has another key for its events: this is the last event that the present one
    /// signs, and the next one is signed by `next`. The chain goes on in number and digest.
    EmitterSucceeded { next: PublicKey },
    /// An operator created a run.
    RunCreated {
        spec: Box<RunSpec>,
        operator: PublicKey,
    },
    /// All rounds are closed and the last snapshot is evaluated.
    RunCompleted,
    /// A worker became a member, or renewed its entry.
    WorkerJoined {
        worker: WorkerId,
        account: AccountId,
        audit_key: PublicKey,
        trainers: Vec<TrainerKind>,
        device: String,
        release: String,
        posture: Posture,
        /// The session that joined; a ledger of an earlier release names none.
        #[serde(default)]
        session: Session,
        /// The worker's seat, from the record of issued credentials; none if it works alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seat: Option<Seat>,
        /// The key that the same worker had before, from the same record, if its key was replaced.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<WorkerId>,
    },
    /// A worker is no longer a member.
    WorkerLeft {
        worker: WorkerId,
        cause: Departure,
        detail: String,
    },
    /// The round's units are on offer. The run's settings say which units these are.
    RoundOpened { round: Round },
    /// A worker holds a unit.
    LeaseGranted { lease: LeaseRef, worker: WorkerId },
    /// The worker no longer holds the unit, and left no result. `tokens` are abandoned.
    LeaseEnded {
        lease: LeaseRef,
        worker: WorkerId,
        cause: LeaseEnd,
        tokens: Tokens,
    },
    /// A contribution counts. From now on its objects are kept until a full snapshot contains it.
    ContributionAccepted {
        lease: LeaseRef,
        worker: WorkerId,
        contribution: Box<Contribution>,
        norm: f64,
        statement: Digest,
        signature: ByteArray<64>,
        /// Its worker's signature over its [`Provenance`](crate::provenance::Provenance); a ledger
        /// of an earlier release has none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        provenance: Option<ByteArray<64>>,
    },
    /// A result was refused. `tokens` are rejected.
    ContributionRejected {
        lease: LeaseRef,
        worker: WorkerId,
        code: Code,
        detail: String,
        tokens: Tokens,
    },
    /// A held-out loss of the round's snapshot.
    EvaluationAccepted {
        lease: LeaseRef,
        worker: WorkerId,
        evaluation: Evaluation,
        statement: Digest,
        signature: ByteArray<64>,
    },
    /// The directions of an open round's contributions were compared: the cosine of each to the
    /// mean direction of the others. The run's settings say which of them are left out. A round
    /// with more than [`COMPARED_MAX`](crate::limits::COMPARED_MAX) takes several such events.
    RoundCompared {
        round: Round,
        cosines: Vec<ComparedInput>,
    },
    /// Only these contributions are merged; later contributions to the round are late. A set of
    /// more than [`SEALED_MAX`](crate::limits::SEALED_MAX) is named by several events in a row,
    /// ascending by unit; `rest` counts the contributions that the following ones name, and 0
    /// completes the seal.
    RoundSealed {
        round: Round,
        fragment: Fragment,
        inputs: Vec<SealedInput>,
        /// Those of `inputs` that are left out, and why.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        left_out: Vec<(UnitIndex, Code)>,
        rest: u32,
    },
    /// The sealed set is merged; `broadcast` are the resulting weights. In a ledger of an earlier
    /// release there is no seal before, and the set is everything that was accepted.
    RoundClosed {
        round: Round,
        #[serde(default, skip_serializing_if = "Fragment::is_first")]
        fragment: Fragment,
        broadcast: Weights,
        norm: f64,
        tokens: Tokens,
    },
    /// The workers of a masked round have agreed on their masks, and are fixed: a unit that loses
    /// its holder from here on is granted to nobody else, and is left out of the sum.
    CohortSealed {
        round: Round,
        members: Vec<CohortMember>,
    },
    /// Workers have revealed what takes the masks from the sum of a sealed set: a secret of each
    /// worker of the cohort, in its order.
    RoundUnmasked { round: Round, secrets: Vec<UnitKey> },
    /// The sum of a masked round cannot be had: too few contributions are in, or too few workers
    /// reveal shares. Its units are open again, under new keys; the tokens of its `contributions`
    /// are abandoned.
    CohortDissolved { round: Round, contributions: u32 },
    /// The rounds of a private run are over: another contribution could pass its budget.
    /// `disclosures` of one protected part have cost `epsilon`. A round that is open is dropped:
    /// its contributions are late.
    PrivacySpent { disclosures: u64, epsilon: f64 },
    /// A full snapshot of the weights that round `round` starts from was saved, and the signed
    /// statement of its provenance. A ledger of an earlier release names no statement.
    SnapshotSaved {
        round: Round,
        manifest: ObjectRef,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        statement: Option<ObjectRef>,
    },
    /// An operator moved a pointer of the run to a full snapshot that was saved. `accepted` are all
    /// workers that were in quarantine then and have contributions in the snapshot, ascending: the
    /// operator named each of them.
    SnapshotPromoted {
        pointer: PointerName,
        round: Round,
        manifest: Digest,
        operator: PublicKey,
        reason: Reason,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        accepted: Vec<WorkerId>,
    },
    /// An operator gave an order that changes state, and was allowed to. Refused and repeated
    /// orders are not recorded.
    ControlReceived { operator: PublicKey, verb: String },
    /// An operator keeps the run from doing something.
    HoldPlaced {
        hold: Hold,
        operator: PublicKey,
        reason: Reason,
    },
    /// An operator lets the run do it again.
    HoldLifted {
        hold: Hold,
        operator: PublicKey,
        reason: Reason,
    },
    /// An operator had leases ended, `leases` of them: an event for each follows at once.
    LeasesEnded {
        operator: PublicKey,
        reason: Reason,
        leases: u32,
    },
    /// An operator shut a worker out of the run. Its membership ends with this event, and so does
    /// `lease`, whose tokens are abandoned. Its contributions to rounds of which no seal has begun
    /// count no more: `withdrawn` of them, whose tokens are rejected and whose units are open
    /// again.
    WorkerQuarantined {
        worker: WorkerId,
        operator: PublicKey,
        reason: Reason,
        lease: Option<LeaseRef>,
        withdrawn: u32,
    },
    /// An operator lets a worker join again.
    WorkerReadmitted {
        worker: WorkerId,
        operator: PublicKey,
        reason: Reason,
    },
    /// An operator led the run back to a full snapshot: its weights and its outer state are version
    /// `weights.round` from here on, and the merges since the snapshot are undone. All leases end
    /// with this event, `leases` of them, and so do the open rounds, whose contributions count no
    /// more, `contributions` of them; the tokens of both are abandoned. The run is frozen at that
    /// time. `from` is the version before.
    SnapshotRestored {
        snapshot: Round,
        manifest: ObjectRef,
        from: Round,
        weights: Weights,
        operator: PublicKey,
        reason: Reason,
        leases: u32,
        contributions: u32,
    },
    /// An operator had the objects of the run's old rounds deleted. Given up are contributions to
    /// rounds before `through`, the weights that workers got for them, and the full snapshots of
    /// before, `snapshots` of them with this event, except those to which a pointer leads. What
    /// something else needs stays, and so do all statements. The store had `objects` of these, of
    /// `bytes` together, when the event was written, and loses them afterwards; `list` is the
    /// sha256 over their digests, ascending.
    ObjectsGivenUp {
        through: Round,
        snapshots: u32,
        objects: u64,
        bytes: Bytes,
        list: Digest,
        operator: PublicKey,
        reason: Reason,
    },
    /// An operator lets a tenant have runs, or gives it another quota.
    TenantSet {
        tenant: TenantName,
        account: AccountId,
        quota: Quota,
        operator: PublicKey,
    },
    /// An operator shut a tenant out for good. It gets no run and no member any more, and no hold
    /// on its runs is lifted.
    TenantEnded {
        tenant: TenantName,
        operator: PublicKey,
        reason: Reason,
    },
    /// An operator had a credential revoked: its tokens that were issued up to `until` are void,
    /// and the coordinator takes nothing of the key from here on, until it was issued anew. The
    /// list of issued credentials names the holder, if it has the key.
    CredentialRevoked {
        key: PublicKey,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<Role>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        until: UnixMillis,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<Reason>,
        operator: PublicKey,
    },
    /// A revoked key was issued anew, by the list of issued credentials: a token of this time is
    /// not void, and what the key's holder asks is answered again.
    CredentialReissued { key: PublicKey, issued: UnixMillis },
    /// A request was refused. A few refusals of each sender are recorded at once, then one now and
    /// again; `suppressed` counts the others, of all senders, since the last recorded one.
    RequestDenied {
        account: AccountId,
        worker: WorkerId,
        verb: String,
        code: Code,
        suppressed: u64,
    },
    /// The state after this event is written as a checkpoint. The event marks the state, so that
    /// every reader of the chain knows which one it is.
    CheckpointTaken,
    /// The state of the last `CheckpointTaken` is in the store, where the coordinator has found it.
    CheckpointSaved { checkpoint: Checkpoint },
}

/// The reason why a worker is no longer a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Departure {
    /// It said goodbye.
    Left,
    /// It was silent for too long.
    Silent,
    /// It was removed for too many refused results.
    Removed,
    /// Another process joined with its credentials, and is now the worker.
    Replaced,
    /// A worker of its group left, and a group ends as a whole.
    GroupEnded,
    /// Its tenant was ended.
    TenantEnded,
}

/// The reason why a lease ended without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseEnd {
    /// The holder did not renew it in time.
    Expired,
    /// The holder gave it back.
    Released,
    /// Its holder is no longer a member.
    Orphaned,
    /// The holder renewed it for long without progress.
    Stalled,
    /// An operator ended it: somebody else may have taken it in the holder's name.
    Ordered,
}

/// A worker's own account of its life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "fields are named after the types and words of this crate"
)]
pub enum WorkerEvent {
    /// It joined the run.
    Joined { release: String, device: String },
    /// It verified a lease and started on it.
    Started { lease: LeaseRef },
    /// It masks the contribution of a lease for the cohort with this digest, which is in the ledger
    /// by the coordinator's word.
    Masked {
        lease: LeaseRef,
        cohort: Digest,
        seal: CohortSeal,
    },
    /// It handed in a result, whose statement has this digest.
    Submitted { lease: LeaseRef, statement: Digest },
    /// It gave up a lease.
    Dropped {
        lease: LeaseRef,
        code: Code,
        detail: String,
    },
    /// It refused something that was sent to it.
    Refused { code: Code, detail: String },
    /// It stops working.
    Stopped { reason: String },
}

/// Declares the kinds of a type of events: a line for each variant, with one subject token.
macro_rules! kinds {
    ($type:ident { $($variant:ident => $kind:literal,)+ }) => {
        impl $type {
            /// All kinds.
            pub const KINDS: &[&str] = &[$($kind),+];

            /// Its kind as one subject token.
            pub const fn kind(&self) -> &'static str {
                match self { $(Self::$variant { .. } => $kind,)+ }
            }
        }
    };
}
pub(crate) use kinds;

impl Event {
    /// The key that goes on with the chain after this event, if it names one.
    pub const fn next_emitter(&self) -> Option<&PublicKey> {
        match self {
            Self::Ledger(LedgerEvent::EmitterSucceeded { next }) => Some(next),
            _ => None,
        }
    }

    /// All kinds.
    pub fn kinds() -> impl Iterator<Item = &'static str> {
        let all = [LedgerEvent::KINDS, WorkerEvent::KINDS, SecurityEvent::KINDS];
        all.into_iter().flatten().copied()
    }

    /// Its kind as one subject token.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Ledger(event) => event.kind(),
            Self::Worker(event) => event.kind(),
            Self::Security(event) => event.kind(),
        }
    }
}

kinds! { LedgerEvent {
    CoordinatorStarted => "coordinator-started",
    CoordinatorStopped => "coordinator-stopped",
    EmitterSucceeded => "emitter-succeeded",
    RunCreated => "run-created",
    RunCompleted => "run-completed",
    WorkerJoined => "worker-joined",
    WorkerLeft => "worker-left",
    RoundOpened => "round-opened",
    LeaseGranted => "lease-granted",
    LeaseEnded => "lease-ended",
    ContributionAccepted => "contribution-accepted",
    ContributionRejected => "contribution-rejected",
    EvaluationAccepted => "evaluation-accepted",
    RoundCompared => "round-compared",
    RoundSealed => "round-sealed",
    RoundClosed => "round-closed",
    CohortSealed => "cohort-sealed",
    RoundUnmasked => "round-unmasked",
    CohortDissolved => "cohort-dissolved",
    PrivacySpent => "privacy-spent",
    SnapshotSaved => "snapshot-saved",
    SnapshotPromoted => "snapshot-promoted",
    ControlReceived => "control-received",
    HoldPlaced => "hold-placed",
    HoldLifted => "hold-lifted",
    LeasesEnded => "leases-ended",
    WorkerQuarantined => "worker-quarantined",
    WorkerReadmitted => "worker-readmitted",
    SnapshotRestored => "snapshot-restored",
    ObjectsGivenUp => "objects-given-up",
    TenantSet => "tenant-set",
    TenantEnded => "tenant-ended",
    CredentialRevoked => "credential-revoked",
    CredentialReissued => "credential-reissued",
    RequestDenied => "request-denied",
    CheckpointTaken => "checkpoint-taken",
    CheckpointSaved => "checkpoint-saved",
} }

kinds! { WorkerEvent {
    Joined => "joined",
    Started => "started",
    Masked => "masked",
    Submitted => "submitted",
    Dropped => "dropped",
    Refused => "refused",
    Stopped => "stopped",
} }
