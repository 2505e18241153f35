//! The reasons why text or a data set is refused.

use std::path::PathBuf;

use schemas::Code;

use crate::skipped::{SkippedFiles, shown};

/// The reason why text or a data set is refused.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Too little text.
    #[error(
        "{} holds {found} bytes of usable text, at least {needed} are needed{}",
        shown(path),
        why(skipped)
    )]
    Empty {
        /// The place that was searched.
        path: PathBuf,
        /// Bytes of distinct text found.
        found: u64,
        /// Bytes that a training and a held-out part need.
        needed: u64,
        /// Files that were left out.
        skipped: Vec<SkippedFiles>,
    },
    /// All of the text is the same, so that it cannot be split.
    #[error(
        "{} holds a single distinct passage of text ({found} bytes): nothing would be left to hold out",
        shown(path)
    )]
    Undivided {
        /// The place that was searched.
        path: PathBuf,
        /// Bytes of distinct text found.
        found: u64,
    },
    /// A file or folder cannot be read.
    #[error("cannot read {}: {reason}", shown(path))]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        reason: String,
    },
    /// The requested amount of text is zero, or does not fit into memory.
    #[error("{0}")]
    Bounds(String),
    /// A manifest or a shard contradicts itself or the other.
    #[error("{0}")]
    Invalid(String),
    /// A tokenizer that does not load or fit.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
}

impl DataError {
    /// The code that an operator sees.
    pub const fn code(&self) -> Code {
        match self {
            Self::Empty { .. } | Self::Undivided { .. } => Code::CorpusEmpty,
            Self::Unreadable { .. } => Code::CorpusUnreadable,
            Self::Bounds(_) => Code::SpecInvalid,
            Self::Invalid(_) => Code::DataInvalid,
            Self::Tokenizer(_) => Code::TokenizerInvalid,
        }
    }
}

schemas::coded!(DataError);

/// The end of a message about missing text.
fn why(skipped: &[SkippedFiles]) -> String {
    let lines: Vec<String> = skipped.iter().map(SkippedFiles::to_string).collect();
    if lines.is_empty() {
        String::new()
    } else {
        format!("; skipped: {}", lines.join("; "))
    }
}
