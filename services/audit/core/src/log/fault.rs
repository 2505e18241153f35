//! Everything that can be wrong with a log.

use schemas::{Code, PublicKey};
use tlog::HeadError;

/// The reason why a log, a head or a proof does not verify, or why nothing can be said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFault {
    /// The trust bundle names no key that may sign heads.
    #[error("the trust bundle names no key that signs tree heads, so no head can be checked")]
    NoKey,
    /// A file that the head stands for is not there.
    #[error("{0} is not there")]
    Missing(String),
    /// A file cannot be read.
    #[error("{path}: {reason}")]
    Unreadable {
        /// The file.
        path: String,
        /// The system's answer.
        reason: String,
    },
    /// There is a head, and nothing under it.
    #[error("the head covers no event; nothing was checked")]
    Empty,
    /// It is no head of this log.
    #[error("{path}: {error}")]
    Head {
        /// The file.
        path: String,
        /// What is wrong.
        error: HeadError,
    },
    /// A newer head was seen before.
    #[error("the newest head covers {found} events, but a head over {pinned} was pinned here")]
    RolledBack {
        /// Entries of the head.
        found: u64,
        /// Entries of the pinned one.
        pinned: u64,
    },
    /// The pinned head is of another history.
    #[error("the first {size} events are others than those of the head that was pinned here")]
    Forked {
        /// Entries of the pinned head.
        size: u64,
    },
    /// The entries lead to another root.
    #[error("the {size} events lead to another root than the signed one{}", at(.tile.as_deref()))]
    Root {
        /// Entries of the head.
        size: u64,
        /// The first tile that differs from the entries, if one does.
        tile: Option<String>,
    },
    /// A tile has other hashes than its entries.
    #[error("{0} has other hashes than the events under it")]
    Tile(String),
    /// A bundle is not the number of entries that it should be.
    #[error("{path} is not exactly {width} events")]
    Bundle {
        /// The file.
        path: String,
        /// The entries that it should have.
        width: usize,
    },
    /// A file changed while it was read.
    #[error("{0} changed while the log was read")]
    Changed(String),
    /// An entry is no event of this domain.
    #[error("event {index} of the log is none: {reason}")]
    Entry {
        /// Its index.
        index: u64,
        /// The reason.
        reason: String,
    },
    /// Somebody signed an entry that this build cannot read. A newer one may.
    #[error(
        "event {index} of the log cannot be read by this build; use the release of the audit service: {reason}"
    )]
    Undecodable {
        /// Its index.
        index: u64,
        /// The reason.
        reason: String,
    },
    /// A proof does not hold.
    #[error("the proof does not hold: {0}")]
    Proof(String),
    /// An event of the ledger under a key that is no coordinator's. A log may have such events: a
    /// stranger can send them.
    #[error(
        "{0}, which signed this event of the ledger, is no coordinator's key in the trust bundle"
    )]
    Stranger(PublicKey),
    /// An event of the ledger under a coordinator's key whose turn it was not, as far as is known.
    #[error(
        "{0}, which signed this event of the ledger, is not known to have gone on with the ledger there; name the log, or get \
         the newest trust.json of the domain, in which the key before it has ended"
    )]
    OutOfTurn(PublicKey),
    /// No event of a known emitter is in the log.
    #[error(
        "none of the {0} events was signed by a key that is known; the trust bundle may name no coordinator's key of this log"
    )]
    Unverified(u64),
    /// A file is no proof, or only a part of one.
    #[error("it is no text of a proof, or not all of one")]
    NoProof,
    /// The event is not in the log.
    #[error("{wanted} is not among the {size} events under the newest head")]
    Unlogged {
        /// The event, as it was asked for.
        wanted: String,
        /// Entries of the head.
        size: u64,
    },
}

impl LogFault {
    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        match self {
            Self::NoKey
            | Self::Missing(_)
            | Self::Unreadable { .. }
            | Self::Empty
            | Self::Stranger(_)
            | Self::OutOfTurn(_)
            | Self::Unverified(_)
            | Self::NoProof
            | Self::Undecodable { .. }
            | Self::Changed(_) => Code::LogUnproven,
            // Nobody signed it: it may be empty, or a part of a copy.
            Self::Head {
                error: HeadError::Malformed(_),
                ..
            } => Code::LogUnproven,
            Self::Head { .. } => Code::HeadInvalid,
            Self::RolledBack { .. } => Code::HeadRolledBack,
            Self::Forked { .. } => Code::HistoryForked,
            Self::Root { .. } | Self::Tile(_) | Self::Bundle { .. } | Self::Entry { .. } => {
                Code::LogAltered
            }
            Self::Proof(_) => Code::ProofInvalid,
            Self::Unlogged { .. } => Code::EventUnlogged,
        }
    }
}

schemas::coded!(LogFault);

fn at(tile: Option<&str>) -> String {
    tile.map_or_else(
        || "; no tile differs from them".to_owned(),
        |tile| format!("; the first tile that differs from them is {tile}"),
    )
}
