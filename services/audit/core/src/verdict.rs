//! Verdicts on single records.

use serde::{Deserialize, Serialize};

/// The verdict on a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything about it is right.
    Verified,
    /// Byte for byte an event that was verified before. It counts once.
    Repeated,
    /// Signed, by a key that the ledger has not enrolled yet.
    Unenrolled,
    /// Something is wrong.
    Rejected,
    /// The message is in nobody's chain; it is passed over.
    Foreign,
}
