//! From text to tokens and back: choosing a corpus, splitting it, cutting it into shards, measuring its entropy; reading
//! shards, and drawing training sequences from them.
//!
//! Everything is decided by content, paths and seeds: the same files give the same data set, and the same unit the same
//! sequences, on every machine. A corpus is held in memory while it is imported, at most [`CORPUS_BYTES_MAX`] of text.

mod corpus;
mod entropy;
mod error;
mod import;
mod sampler;
mod shard;
mod text;

pub use corpus::{CORPUS_BYTES_MAX, Document, Source, select};
pub use entropy::entropy;
pub use error::DataError;
pub use import::{ImportOptions, Imported, import};
pub use sampler::{HeldOut, UnitSampler};
pub use shard::{TokenShard, encode_shard, parse_manifest, token_bytes};
pub use text::TextTokenizer;
