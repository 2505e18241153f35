//! Holds: an operator keeps a run from doing something, until an operator lifts the hold. A hold is
//! in the ledger, so it outlives the coordinator's process.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::REASON_BYTES_MAX;
use crate::message::{V, message};
use crate::text::is_plain;
use crate::{Round, RunId};

/// Something that an operator keeps a run from doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// The run's weights stay as they are: no round is sealed, no merge counts, no snapshot is
    /// promoted, and the run does not complete. Leases are granted and results accepted as before.
    Merges,
    /// The run's workers get no URLs to the store, and so no leases, and the store refuses the URLs
    /// that they have. What they have handed in counts as before.
    Urls,
}

/// What the store does with the URLs that an order is about: those of a run, of all runs of a
/// tenant, or of one worker in a run. Where it says `Taken`, `Stopped` or `ShutOut`, the store was
/// tried with such URLs after it was told, and answered that. Of several it says the weakest, in
/// the order that these are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtStore {
    /// It takes them.
    Taken,
    /// It refuses them, since all URLs of their run are stopped.
    Stopped,
    /// It refuses them, since a key of their worker is shut out.
    ShutOut,
    /// There are none: the worker never joined the run, or the last ones of the run have ended.
    NoUrls,
    /// It did not answer, or did otherwise than it was told, or was not told since another
    /// coordinator leads. The coordinator that leads goes on telling it.
    Later,
    /// It cannot tell whose they are: it takes the URLs that are out until they end.
    Unable,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Merges => "merges",
            Self::Urls => "urls",
        })
    }
}

/// The reason that a person gives for an order: not blank, at most [`REASON_BYTES_MAX`] bytes, and
/// without characters that a terminal would obey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reason(String);

/// The fault of a text that is no [`Reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReasonError {
    /// Nothing but spaces.
    #[error("a reason has at least one letter")]
    Blank,
    /// Too long.
    #[error("a reason has at most {REASON_BYTES_MAX} bytes, not {0}")]
    TooLong(usize),
    /// It holds control characters, or invisible ones.
    #[error("a reason is one line of visible characters")]
    NotPlain,
}

impl Reason {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Reason {
    type Error = ReasonError;

    fn try_from(text: String) -> Result<Self, ReasonError> {
        if text.trim().is_empty() {
            Err(ReasonError::Blank)
        } else if text.len() > REASON_BYTES_MAX {
            Err(ReasonError::TooLong(text.len()))
        } else if !is_plain(&text) {
            Err(ReasonError::NotPlain)
        } else {
            Ok(Self(text))
        }
    }
}

impl FromStr for Reason {
    type Err = ReasonError;

    fn from_str(text: &str) -> Result<Self, ReasonError> {
        text.to_owned().try_into()
    }
}

impl From<Reason> for String {
    fn from(reason: Reason) -> Self {
        reason.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `run.hold`: place a hold on a run, or lift it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldRequest {
    /// Version.
    pub v: V<1>,
    /// The run.
    pub run: RunId,
    /// The hold.
    pub hold: Hold,
    /// True to place it, false to lift it.
    pub held: bool,
    /// The reason, which the ledger keeps.
    pub reason: Reason,
}

message!(HoldRequest, "run.hold", 4096);

/// The answer to a [`HoldRequest`], sent when the hold is in the ledger, or is lifted there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldReply {
    /// Version.
    pub v: V<1>,
    /// True if this request changed the run; false if the run already was so.
    pub changed: bool,
    /// The version of the run's weights.
    pub weights: Round,
    /// Accepted contributions that are not merged.
    pub contributions: u32,
    /// Leases that workers hold.
    pub leases: u32,
    /// Workers of the run that are shut out, for a hold on URLs: the store refuses theirs without
    /// it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shut_out: u32,
    /// What the store does now with the URLs of the run, for a hold on URLs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<AtStore>,
}

message!(HoldReply, "run.hold reply", 4096);

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference to the field"
)]
const fn is_zero(count: &u32) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_that_says_something() {
        let fault = |text: &str| text.parse::<Reason>().err();
        assert_eq!(fault("worker 3 sends odd norms ✓"), None);
        assert_eq!(fault(&"a".repeat(REASON_BYTES_MAX)), None);
        assert_eq!(fault(" \t"), Some(ReasonError::Blank));
        assert_eq!(fault(""), Some(ReasonError::Blank));
        assert_eq!(fault("two\nlines"), Some(ReasonError::NotPlain));
        assert_eq!(fault("\u{1b}[2Jx"), Some(ReasonError::NotPlain));
        let long = "a".repeat(REASON_BYTES_MAX + 1);
        assert_eq!(
            fault(&long),
            Some(ReasonError::TooLong(REASON_BYTES_MAX + 1))
        );
    }
}
