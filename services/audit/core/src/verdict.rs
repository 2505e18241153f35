//! Verdicts on single records.

use serde::{Deserialize, Serialize};

/// The verdict on a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything is right.
    Verified,
    /// It repeats a verified event byte for byte, and counts once.
    Repeated,
    /// It is signed by a key that the ledger has not enrolled yet.
    Unenrolled,
    /// Something is wrong.
    Rejected,
    /// The message is in nobody's chain, and is skipped.
    Foreign,
}
