//! Units, their leases and their results.

use schemas::contribution::{Contribution, Evaluation, Outcome, Statement};
use schemas::lease::{LeaseRef, UnitId, UnitKind, Weights};
use schemas::run::{Codec, Privacy, RunSpec};
use schemas::{Chunks, Epoch, Round, Tokens, UnitIndex, V, WorkerId};

/// A training unit.
pub const fn train(round: u64, index: u32) -> UnitId {
    UnitId {
        round: Round(round),
        kind: UnitKind::Train,
        index: UnitIndex(index),
    }
}

/// The evaluation of a version of the weights.
pub const fn evaluate(version: u64) -> UnitId {
    UnitId {
        round: Round(version),
        kind: UnitKind::Evaluate,
        index: UnitIndex(0),
    }
}

/// A lease of a unit.
pub const fn lease(unit: UnitId, epoch: u64) -> LeaseRef {
    LeaseRef {
        unit,
        epoch: Epoch(epoch),
    }
}

/// The contribution of a unit of this run, made of these chunks.
pub fn contribution(spec: &RunSpec, chunks: impl Into<Chunks>) -> Contribution {
    Contribution {
        layout: spec.model.layout.digest,
        codec: spec.upload,
        chunks: chunks.into(),
        tokens: spec.unit_tokens(),
        steps: spec.schedule.inner_steps,
        loss: match spec.privacy.is_some() || spec.secure_aggregation.is_some() {
            true => 0.0,
            false => 2.5,
        },
        train_ms: 10,
        privacy: spec.privacy.as_ref().map(Privacy::applied),
        cohort: None,
    }
}

/// An evaluation with a loss of 2 nats a token.
pub const fn evaluation() -> Evaluation {
    Evaluation {
        loss_sum: 32.0,
        tokens: Tokens(16),
    }
}

/// A worker's statement about its unit.
pub fn statement(spec: &RunSpec, worker: WorkerId, lease: LeaseRef, outcome: Outcome) -> Statement {
    Statement {
        v: V,
        run: spec.run.clone(),
        spec: spec.to_object().1,
        worker,
        lease,
        outcome,
    }
}

/// A version of the weights.
pub fn weights(version: u64, codec: Codec, chunks: impl Into<Chunks>) -> Weights {
    Weights {
        round: Round(version),
        codec,
        chunks: chunks.into(),
    }
}
