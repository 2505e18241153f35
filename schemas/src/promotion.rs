//! Promotion: an operator moves a named pointer of a run to a full snapshot. The ledger holds where
//! each pointer is, who moved it there and why. To go back is to promote an older snapshot.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::hold::Reason;
use crate::limits::RUN_ID_BYTES_MAX;
use crate::message::{V, message};
use crate::{Digest, ObjectRef, Round, RunId, WorkerId};

/// Most pointers of one run: a handful of stages on the way to a release, and room. A view names
/// all of them.
pub const POINTERS_MAX: usize = 16;
/// Most workers in quarantine whose contributions one promotion accepts: an operator decides about
/// each, and the event that names all of them fits into an entry of the log.
pub const ACCEPTED_MAX: usize = 32;

/// The name of a pointer: 1 to 32 of a-z, 0-9 and -, starting with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PointerName(String);

/// The error for a text that is not the name of a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name of a pointer is 1 to 32 of a-z, 0-9 and -, and starts with a letter or digit")]
pub struct PointerNameError;

impl PointerName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PointerName {
    type Error = PointerNameError;

    fn try_from(text: String) -> Result<Self, PointerNameError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let formed = !text.is_empty() && text.len() <= RUN_ID_BYTES_MAX;
        if formed && text.chars().all(allowed) && !text.starts_with('-') {
            Ok(Self(text))
        } else {
            Err(PointerNameError)
        }
    }
}

impl FromStr for PointerName {
    type Err = PointerNameError;

    fn from_str(text: &str) -> Result<Self, PointerNameError> {
        text.to_owned().try_into()
    }
}

impl From<PointerName> for String {
    fn from(name: PointerName) -> Self {
        name.0
    }
}

impl fmt::Display for PointerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `snapshot.promote`: move a pointer of a run to one of its full snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// Version.
    pub v: V<1>,
    /// The run; none if the snapshot decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// The digest of the snapshot's manifest.
    pub snapshot: Digest,
    /// The pointer, which begins to exist when it is moved for the first time.
    pub pointer: PointerName,
    /// Workers in quarantine whose contributions to the snapshot the operator accepts, at most
    /// [`ACCEPTED_MAX`]. A snapshot with contributions of any other worker in quarantine is not
    /// promoted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept: Vec<WorkerId>,
    /// True to be told if the ledger allows the move, which is then not made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub check_only: bool,
    /// The reason, which the ledger keeps.
    pub reason: Reason,
}

message!(PromoteRequest, "snapshot.promote", 4096);

/// The answer to a [`PromoteRequest`], sent when the ledger says that the pointer is there, or at
/// once to one that only asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromoteReply {
    /// Version.
    pub v: V<1>,
    /// True if this request moved the pointer, or would move it; false if it was there already.
    pub changed: bool,
    /// The pointer.
    pub pointer: PointerName,
    /// The round that starts from the snapshot.
    pub round: Round,
    /// The snapshot's manifest.
    pub manifest: ObjectRef,
    /// The round of the snapshot to which the pointer led before; none if it is new.
    pub before: Option<Round>,
    /// True if a restore has undone the snapshot: the present weights do not descend from it.
    pub undone: bool,
    /// The workers in quarantine whose contributions to the snapshot are accepted with this move,
    /// ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<WorkerId>,
}

message!(PromoteReply, "snapshot.promote reply", 4096);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_pointer_is_one_safe_token() {
        let long = "a".repeat(RUN_ID_BYTES_MAX);
        for good in ["release", "latest-good", "0", &long] {
            assert!(good.parse::<PointerName>().is_ok(), "{good}");
        }
        let longer = "a".repeat(RUN_ID_BYTES_MAX + 1);
        for bad in ["", "-a", "a.b", "A", "a b", "é", &longer] {
            assert_eq!(bad.parse::<PointerName>(), Err(PointerNameError), "{bad}");
        }
    }
}
