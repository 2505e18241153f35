//! The reasons why a round is not verified: evidence of a lie, altered objects, and what was not
//! there to be checked.

use std::fmt;

use schemas::lease::LeaseRef;
use schemas::{ChainSequence, Code, Digest, ObjectRef, Refusal, Round, Tokens};

/// A difference between the record and the merge that was made again, from objects that were all
/// there and had their digests.
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    /// A chunk of the published weights.
    Chunk {
        /// Its position.
        index: usize,
        /// The object that the ledger names.
        expected: ObjectRef,
        /// The object that the merge gives.
        got: ObjectRef,
    },
    /// The published weights as a whole. The list of their chunks is gone, so that nobody can tell
    /// which chunk differs.
    Weights {
        /// The digest that the ledger names.
        expected: Digest,
        /// The digest of the weights that the merge gives.
        got: Digest,
    },
    /// The published weights have another form than the run's settings say.
    Form {
        /// The difference.
        what: String,
    },
    /// The merge gives a parameter that is no number, so nothing could be published.
    NotFinite {
        /// The chunk.
        index: usize,
    },
    /// The sealed set cannot be merged.
    Unmergeable {
        /// The reason.
        reason: String,
    },
    /// The norm of the mean contribution.
    Norm {
        /// The norm in the ledger.
        expected: f64,
        /// The norm that the merge gives.
        got: f64,
    },
    /// The norm of an input, by which the run's rule of combination goes.
    InputNorm {
        /// The lease of the input.
        lease: LeaseRef,
        /// The norm in the ledger.
        expected: f64,
        /// The norm of the contribution.
        got: f64,
    },
    /// The cosine of an input's direction to the others, which decides if it is left out.
    Cosine {
        /// The lease of the input.
        lease: LeaseRef,
        /// The cosine in the ledger.
        expected: f64,
        /// The cosine of the contribution.
        got: f64,
    },
    /// The tokens of the inputs.
    Tokens {
        /// The number in the ledger.
        expected: Tokens,
        /// The sum over the sealed set.
        got: Tokens,
    },
    /// A part of the full snapshot of these weights.
    Snapshot {
        /// The round that starts from it.
        round: Round,
        /// The part, and the difference.
        what: String,
    },
}

/// The reason why a round is not verified.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// The record says something else than its objects lead to.
    Differs(Difference),
    /// An object has other bytes than its name says. This is evidence against those who keep the
    /// objects, and says nothing about the merge.
    Altered(String),
    /// Something was not there to be checked.
    Unproven(String),
    /// Something is not there, since a collection gave the objects of the round up with this event.
    GivenUp(ChainSequence),
}

impl Fault {
    /// The fault that a refusal stands for: of the objects that a merge needs, or of the merge.
    pub fn of(refusal: &Refusal) -> Self {
        let Refusal { code, detail, .. } = refusal;
        match code {
            Code::ObjectMismatch | Code::ObjectTooLarge => Self::Altered(detail.clone()),
            Code::ListInvalid
            | Code::ListMismatch
            | Code::LayoutMismatch
            | Code::SizeMismatch
            | Code::SpecInvalid
            | Code::ReplayDiverged => Self::Differs(Difference::Unmergeable {
                reason: detail.clone(),
            }),
            Code::ObjectMissing => Self::Unproven(detail.clone()),
            code => Self::Unproven(format!("{code} {}: {detail}", code.title())),
        }
    }

    /// True if somebody must have lied, or altered something.
    pub const fn is_evidence(&self) -> bool {
        !matches!(self, Self::Unproven(_) | Self::GivenUp(_))
    }

    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        match self {
            Self::Differs(Difference::Snapshot { .. }) => Code::SnapshotDiverged,
            Self::Differs(_) => Code::RoundDiverged,
            Self::Altered(_) => Code::ObjectAltered,
            Self::Unproven(_) => Code::RoundUnproven,
            Self::GivenUp(_) => Code::ObjectsGivenUp,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Differs(difference) => difference.fmt(f),
            Self::Altered(detail) | Self::Unproven(detail) => f.write_str(detail),
            Self::GivenUp(event) => {
                write!(
                    f,
                    "its objects were given up by gc at event {event} of the ledger"
                )
            }
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chunk {
                index,
                expected,
                got,
            } => write!(
                f,
                "chunk {index}: the ledger has {} of {} bytes, the merge gives {} of {} bytes",
                expected.digest, expected.bytes, got.digest, got.bytes
            ),
            Self::Weights { expected, got } => {
                write!(
                    f,
                    "weights: the ledger has {expected}, the merge gives {got}"
                )
            }
            Self::Form { what } => write!(f, "weights: {what}"),
            Self::NotFinite { index } => {
                write!(
                    f,
                    "chunk {index}: the merge gives a parameter that is no number"
                )
            }
            Self::Unmergeable { reason } => write!(f, "the sealed set cannot be merged: {reason}"),
            Self::Norm { expected, got } => {
                write!(f, "norm: the ledger has {expected}, the merge gives {got}")
            }
            Self::InputNorm {
                lease,
                expected,
                got,
            } => write!(
                f,
                "norm of {lease}: the ledger has {expected}, the contribution has {got}"
            ),
            Self::Cosine {
                lease,
                expected,
                got,
            } => write!(
                f,
                "cosine of {lease}: the ledger has {expected}, the contributions give {got}"
            ),
            Self::Tokens { expected, got } => {
                write!(
                    f,
                    "tokens: the ledger has {expected}, the sealed set has {got}"
                )
            }
            Self::Snapshot { round, what } => write!(f, "snapshot {round}: {what}"),
        }
    }
}
