//! A data set: content-addressed shards of tokens, listed in a manifest object (JSON, hashed as stored).

use serde::{Deserialize, Serialize};

use crate::message::V;
use crate::{ObjectRef, Tokens};

/// The manifest of a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataManifest {
    /// Version.
    pub v: V<1>,
    /// What it was made of, for people.
    pub source: String,
    /// How text became tokens.
    pub tokenizer: Tokenizer,
    /// Token ids are below this.
    pub vocabulary: u32,
    /// Bytes a token in a shard, little endian: 1, 2 or 4.
    pub token_bytes: u8,
    /// Shards to train on.
    pub train: Vec<Shard>,
    /// Shards to evaluate on; no text is in both.
    pub held_out: Vec<Shard>,
    /// Entropy of the held-out text under models fitted to it, to compare a loss with.
    pub entropy: Entropy,
}

/// How text became tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tokenizer {
    /// Every byte is a token; the vocabulary is 256.
    Byte,
    /// A Hugging Face `tokenizer.json`, itself an object.
    HuggingFace(ObjectRef),
}

/// A piece of a data set: consecutive tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// The object.
    pub object: ObjectRef,
    /// How many tokens it holds.
    pub tokens: Tokens,
}

/// Entropy of the held-out tokens, in nats a token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// Of single tokens.
    pub unigram: f64,
    /// Of a token given the one before it.
    pub bigram: f64,
}
