//! Orders of the coordinator to a run's foundry, and the foundry's answers. Only the foundry holds
//! the run's weights and the bytes of its contributions: it checks and merges them, and saves and
//! restores the weights. The coordinator decides, and holds no weights.
//!
//! A foundry takes orders in the order in which they are given. Orders to read or check run in
//! parallel; orders that change the weights run one after another.

use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};

use crate::data::DataManifest;
use crate::lease::{LeaseRef, Weights};
use crate::limits::FOUNDRY_BYTES_MAX;
use crate::masking::Unmasking;
use crate::member::Session;
use crate::message::{V, message};
use crate::provenance::MadeFrom;
use crate::run::RunSpec;
use crate::snapshot::{MergeInput, MergeRecord};
use crate::sync::ComparedInput;
use crate::{Digest, Listed, ObjectRef, PublicKey, Refusal, Round, RunId, SyncId, WorkerId};

/// One check of a submitted result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ScreeningId(pub u64);

/// An order to the foundry of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoundryOrder {
    /// Version.
    pub v: V<5>,
    /// The run of the foundry.
    pub run: RunId,
    /// The session of the coordinator that asks. Its numbers of checks begin anew in each session.
    pub session: Session,
    /// The order itself.
    pub order: Order,
}

message!(FoundryOrder, "foundry order", FOUNDRY_BYTES_MAX);

/// An order to a foundry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Load the weights: from the newest full snapshot (or the initial weights), then the merges
    /// since, each of which must give the digest that the ledger recorded; read the run's data
    /// manifest as well. Answer with [`Answer::DataLoaded`] and then [`Answer::Restored`].
    Restore {
        /// The run's settings.
        spec: Box<RunSpec>,
        /// The newest full snapshot's manifest.
        snapshot: Option<ObjectRef>,
        /// The version that the snapshot's weights have: the snapshot's own round, or a later one
        /// if an operator restored it. 0 for the initial weights.
        version: Round,
        /// The merges since, oldest first.
        merges: Vec<MergeRecord>,
    },
    /// Check an uploaded chunk before its submit. A hint without an answer: the result is kept
    /// until the submit or the end of the lease, or dropped.
    Stage {
        /// The lease under which it was uploaded.
        lease: LeaseRef,
        /// The worker that uploaded it.
        worker: WorkerId,
        /// Position of the chunk.
        index: u32,
        /// The uploaded object.
        object: ObjectRef,
    },
    /// Forget everything that was staged or kept for a lease that ended.
    Unstage {
        /// The lease.
        lease: LeaseRef,
    },
    /// Check a result (signatures, objects at the store, layout, sizes, finite values, norm),
    /// promote its objects, and answer with [`Answer::Screened`]. The coordinator has checked the
    /// statement's lease, tokens and steps.
    Screen {
        /// This check.
        screening: ScreeningId,
        /// The worker that submitted it.
        worker: WorkerId,
        /// The key that must have signed it.
        audit_key: PublicKey,
        /// The encoded statement, as it was signed.
        statement: ByteBuf,
        /// The signature over it.
        signature: ByteArray<64>,
        /// The provenance of a contribution; none for an evaluation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        provenance: Option<Box<SignedProvenance>>,
    },
    /// Compare the directions of a round's contributions, and answer with [`Answer::Compared`]. All
    /// have a norm above 0.
    Compare {
        /// The round.
        round: Round,
        /// The contributions, ascending by unit.
        inputs: Vec<MergeInput>,
    },
    /// Make the outer step over `inputs`, publish the weights, answer with [`Answer::Merged`].
    Merge {
        /// The round that it closes, and the fragment that it steps.
        sync: SyncId,
        /// The version of the fragment's weights that the step starts from; it gives the next.
        base: Round,
        /// The sealed set, ascending by unit: the order of the sum.
        inputs: Vec<MergeInput>,
        /// What takes the masks from the sum, in a run with secure aggregation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unmasking: Option<Box<Unmasking>>,
    },
    /// Save the weights that `round` starts from, with the outer state, off the critical path, and
    /// then the signed statement of their provenance; answer with [`Answer::Saved`].
    Save {
        /// The round.
        round: Round,
        /// The full snapshot before it.
        parent: Option<Digest>,
        /// The merges since that snapshot.
        merges: Vec<MergeRecord>,
    },
    /// Read a list of chunks; answer with [`Answer::ListRead`].
    ReadList {
        /// The list.
        listed: Listed,
    },
    /// End: the run is complete. No answer follows.
    Forget,
}

impl Order {
    /// Its kind, as logs and metrics name it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Restore { .. } => "restore",
            Self::Stage { .. } => "stage",
            Self::Unstage { .. } => "unstage",
            Self::Screen { .. } => "screen",
            Self::Compare { .. } => "compare",
            Self::Merge { .. } => "merge",
            Self::Save { .. } => "save",
            Self::ReadList { .. } => "read_list",
            Self::Forget => "forget",
        }
    }
}

/// The provenance of a contribution, as the coordinator knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedProvenance {
    /// What it was made from.
    pub from: MadeFrom,
    /// The signature that its worker made over the statement.
    pub signature: ByteArray<64>,
}

/// An answer from the foundry of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoundryAnswer {
    /// Version.
    pub v: V<5>,
    /// The run of the foundry.
    pub run: RunId,
    /// The session of the coordinator that asked; another session drops the answer.
    pub session: Session,
    /// The outcome of an order.
    pub answer: Answer,
}

message!(FoundryAnswer, "foundry answer", FOUNDRY_BYTES_MAX);

/// The outcome of an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// The run's data manifest was read.
    DataLoaded {
        /// The object that the run's settings name.
        data: Box<DataManifest>,
    },
    /// The foundry holds the run's weights.
    Restored {
        /// An error stops the run: it would continue from other weights than those in the ledger.
        outcome: Result<(), Refusal>,
    },
    /// A result was checked.
    Screened {
        /// The check.
        screening: ScreeningId,
        /// Ok if it may count; then its objects are in `blobs`.
        verdict: Result<Screened, Refusal>,
    },
    /// The directions of a round's contributions were compared.
    Compared {
        /// The round.
        round: Round,
        /// Each contribution of the order with its cosine, in the same order.
        outcome: Result<Vec<ComparedInput>, Refusal>,
    },
    /// An outer step was made and its weights published.
    Merged {
        /// The round that it closes, and the fragment that it stepped.
        sync: SyncId,
        /// The weights of the next round.
        outcome: Result<Merged, Refusal>,
    },
    /// A full snapshot was saved, and the statement about it.
    Saved {
        /// The round that starts from it.
        round: Round,
        /// Its objects.
        outcome: Result<Saved, Refusal>,
    },
    /// A list of chunks was read.
    ListRead {
        /// The list's digest.
        list: Digest,
        /// The chunks in it.
        outcome: Result<Vec<Digest>, Refusal>,
    },
}

impl Answer {
    /// Its kind, as logs and metrics name it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::DataLoaded { .. } => "data_loaded",
            Self::Restored { .. } => "restored",
            Self::Screened { .. } => "screened",
            Self::Compared { .. } => "compared",
            Self::Merged { .. } => "merged",
            Self::Saved { .. } => "saved",
            Self::ListRead { .. } => "list_read",
        }
    }
}

/// The findings about a result that passed its check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Screened {
    /// Euclidean norm of the contribution, over all its elements as decoded; 0 for an evaluation.
    pub norm: f64,
    /// The chunks in its list; empty if it names its chunks itself.
    pub listed: Vec<Digest>,
}

/// A full snapshot in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Its manifest.
    pub manifest: ObjectRef,
    /// The signed statement of its provenance, in its envelope.
    pub statement: ObjectRef,
}

/// The outcome of an outer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merged {
    /// The published weights.
    pub broadcast: Weights,
    /// Euclidean norm of the mean contribution.
    pub norm: f64,
}
