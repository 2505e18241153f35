//! The part of a recomputation that needs no weights: which merges the ledger records, from which
//! snapshot each can be made again, and how the outcome compares with the record. It handles
//! references; `diloco-audit` fetches the objects and makes the merges.

mod compare;
mod fault;
mod merges;
mod plan;

pub use compare::{
    Comparison, INPUT_NORM_TOLERANCE, NORM_TOLERANCE, Remade, Round as RoundOutcome,
};
pub use fault::{Difference, Fault};
pub use merges::{Merges, Recorded, Wanted};
pub use plan::{Restored, Saved, Segment};
