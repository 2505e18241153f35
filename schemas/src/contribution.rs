//! Results: a worker's signed statement about the outcome of a unit, with the objects that were
//! uploaded for it.

use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};

use crate::codec::Codec;
use crate::lease::LeaseRef;
use crate::limits::WORKER_MESSAGE_BYTES_MAX;
use crate::message::{DecodeError, Message as _, V, message};
use crate::{Chunks, Digest, ObjectRef, RunId, Steps, Tokens, WorkerId};

/// `contribution.stage`: chunk `index` of my contribution is uploaded; read and screen it while I
/// make the next.
///
/// A hint for speed: a result counts only by `contribution.submit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRequest {
    /// Version.
    pub v: V<1>,
    /// The lease.
    pub lease: LeaseRef,
    /// Position of the chunk in the layout.
    pub index: u32,
    /// The uploaded object.
    pub object: ObjectRef,
}

/// `contribution.submit`: the result of a leased unit. May be repeated; it counts once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubmitRequest {
    /// Version.
    pub v: V<2>,
    /// The encoding of a [`Statement`], which is signed as it is and never encoded again.
    pub statement: ByteBuf,
    /// A signature by the worker's audit key, over the statement under its own domain prefix.
    pub signature: ByteArray<64>,
    /// A signature by the same key over the [`Provenance`](crate::provenance::Provenance) of a
    /// contribution, as a DSSE envelope has it; none for an evaluation. The coordinator makes the
    /// signed bytes itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<ByteArray<64>>,
}

/// A worker's signed claims about a unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Version.
    pub v: V<1>,
    /// The run.
    pub run: RunId,
    /// The digest of the run's settings under which the worker worked.
    pub spec: Digest,
    /// The worker.
    pub worker: WorkerId,
    /// The lease.
    pub lease: LeaseRef,
    /// The result.
    pub outcome: Outcome,
}

/// The result of a unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The result of a training unit.
    Contribution(Contribution),
    /// The result of an evaluation unit.
    Evaluation(Evaluation),
}

/// A contribution (the paper's outer gradient): base minus local, in the layout's order, encoded by
/// chunk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contribution {
    /// The fingerprint of the layout it was made with.
    pub layout: Digest,
    /// The encoding of the chunks.
    pub codec: Codec,
    /// The chunks of the layout, in order.
    pub chunks: Chunks,
    /// Tokens trained on; the weight in the mean.
    pub tokens: Tokens,
    /// Inner steps done.
    pub steps: Steps,
    /// Mean training loss over the unit, in nats a token.
    ///
    /// 0 in a private run, since noise does not cover it.
    pub loss: f64,
    /// Wall time of the inner steps, milliseconds.
    pub train_ms: u64,
    /// The clipping and the noise that the worker applied before it encoded, in a private run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<Applied>,
    /// The digest of the cohort whose masks it is under, in a run with secure aggregation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cohort: Option<Digest>,
}

/// The clipping and the noise of a contribution, as its worker states them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Applied {
    /// The largest norm before the noise.
    pub clip: f64,
    /// The deviation of the noise of each parameter, as a multiple of `clip`.
    pub noise_multiplier: f64,
}

/// Held-out loss of a global snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Sum of the loss over all tokens, in nats.
    pub loss_sum: f64,
    /// Tokens it was summed over.
    pub tokens: Tokens,
}

/// The answer to a submit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubmitReply {
    /// Version.
    pub v: V<1>,
    /// Its fate.
    pub fate: Fate,
}

/// The fate of a unit's tokens. Tokens issued always equal the sum over fates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Accepted: part of its round's merge (or of the run's evaluations).
    Merged,
    /// It came after its unit was complete or its round closed.
    Late,
    /// It was refused.
    Rejected,
    /// Its lease ended without a result.
    Abandoned,
}

/// A `contribution.submit`, decoded in full. Its signatures are not checked yet: the check needs
/// the key that the worker joined with.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The statement, decoded.
    pub statement: Box<Statement>,
    /// The statement's bytes in the form in which they were signed.
    pub bytes: Vec<u8>,
    /// The signature.
    pub signature: [u8; 64],
    /// The signature over the provenance.
    pub provenance: Option<[u8; 64]>,
}

impl TryFrom<SubmitRequest> for Submission {
    type Error = DecodeError;

    fn try_from(request: SubmitRequest) -> Result<Self, DecodeError> {
        let bytes = request.statement.into_vec();
        Ok(Self {
            statement: Box::new(Statement::decode(&bytes)?),
            bytes,
            signature: request.signature.into_array(),
            provenance: request.provenance.map(ByteArray::into_array),
        })
    }
}

message!(StageRequest, "contribution.stage", WORKER_MESSAGE_BYTES_MAX);
message!(
    SubmitRequest,
    "contribution.submit",
    WORKER_MESSAGE_BYTES_MAX
);
message!(Statement, "statement", WORKER_MESSAGE_BYTES_MAX);
message!(SubmitReply, "contribution.submit reply", 4096);
