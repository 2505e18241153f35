//! The way from text to tokens and back: choosing a corpus, splitting it, cutting it into shards,
//! measuring its entropy; reading shards, and drawing training sequences from them.
//!
//! Everything is decided by content, paths and seeds: the same files give the same data set, and
//! the same unit the same sequences, on every machine. A corpus is held in memory while it is
//! imported, at most [`CORPUS_BYTES_MAX`] of text.

mod corpus;
mod entropy;
mod error;
mod export;
#[cfg(test)]
mod fixture;
mod glob;
mod import;
mod passages;
mod sampler;
mod shard;
mod skipped;
mod text;
mod walk;

pub use corpus::{CORPUS_BYTES_MAX, ImportCounts, Source};
pub use entropy::entropy;
pub use error::DataError;
pub use export::{ExportFile, tokenizer_files};
pub use glob::Pattern;
pub use import::{ImportOptions, Imported, import};
pub use sampler::{HeldOut, UnitSampler};
pub use schemas::data::token_bytes;
pub use shard::{TokenShard, encode_shard, parse_manifest};
pub use skipped::{Reason, SkippedFiles, shown};
pub use text::TextTokenizer;
