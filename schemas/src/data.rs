//! A data set: content-addressed shards of tokens, listed in a manifest object (JSON, hashed as
//! stored).

use serde::{Deserialize, Serialize};

use crate::code::{Code, Refusal};
use crate::limits::{OBJECT_BYTES_MAX, SHARDS_MAX, UNIT_SHARDS_MAX};
use crate::message::V;
use crate::{ObjectRef, Tokens};

/// The manifest of a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataManifest {
    /// Version.
    pub v: V<1>,
    /// The source of the text, for people.
    pub source: String,
    /// The tokenizer that made the tokens.
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

/// A way to make tokens of text.
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
    /// The number of tokens in it.
    pub tokens: Tokens,
}

/// Entropy of the held-out tokens, in nats a token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// The entropy of single tokens.
    pub unigram: f64,
    /// The entropy of a token given the one before it.
    pub bigram: f64,
}

/// Tokens of the vocabulary of bytes.
pub const BYTE_VOCABULARY: u32 = 256;

/// Bytes that a token takes in the shards of a vocabulary.
pub const fn token_bytes(vocabulary: u32) -> u8 {
    match vocabulary {
        0..=0x100 => 1,
        0x101..=0x1_0000 => 2,
        _ => 4,
    }
}

impl DataManifest {
    /// Training shards that a unit of so many tokens reads: as many of mean size as hold them; at
    /// least 1, at most as many as there are and [`UNIT_SHARDS_MAX`].
    pub fn shards_of_unit(&self, unit_tokens: Tokens) -> u64 {
        let count = self.train.len() as u64;
        let tokens = self.train.iter().map(|shard| shard.tokens.get());
        let tokens = tokens.fold(0_u64, u64::saturating_add);
        let mean = (tokens / count.max(1)).max(1);
        unit_tokens
            .get()
            .div_ceil(mean)
            .clamp(1, count.min(UNIT_SHARDS_MAX as u64).max(1))
    }

    /// Checks that the manifest is consistent and within the limits. Readers of a manifest depend
    /// on each of these checks.
    ///
    /// # Errors
    /// [`Code::DataInvalid`], naming both sides of the contradiction.
    pub fn validate(&self) -> Result<(), Refusal> {
        let invalid = |reason: String| {
            Err(Refusal::new(
                Code::DataInvalid,
                format!("manifest: {reason}"),
            ))
        };
        let Self {
            vocabulary,
            token_bytes: width,
            tokenizer,
            train,
            held_out,
            ..
        } = self;
        if *vocabulary < 2 || *tokenizer == Tokenizer::Byte && *vocabulary != BYTE_VOCABULARY {
            return invalid(format!(
                "vocabulary is {vocabulary} with tokenizer {tokenizer:?}"
            ));
        }
        if *width != token_bytes(*vocabulary) {
            let expected = token_bytes(*vocabulary);
            return invalid(format!(
                "token_bytes is {width}, expected {expected} for a vocabulary of {vocabulary}"
            ));
        }
        for (name, shards) in [("train", train), ("held_out", held_out)] {
            if shards.is_empty() || shards.len() > SHARDS_MAX {
                return invalid(format!(
                    "{name} has {} shards, expected 1 to {SHARDS_MAX}",
                    shards.len()
                ));
            }
            if let Some(shard) = shards.iter().find(|shard| !shard.fits(*width)) {
                let (tokens, bytes) = (shard.tokens, shard.object.bytes);
                return invalid(format!(
                    "{name} lists a shard of {tokens} tokens in {bytes} bytes, {width} a token"
                ));
            }
        }
        Ok(())
    }
}

impl Shard {
    /// True if the shard's bytes are those of its tokens, and an object may have that size.
    fn fits(&self, width: u8) -> bool {
        let bytes = self.tokens.get().checked_mul(width.into());
        self.tokens.get() > 0
            && bytes == Some(self.object.bytes.get())
            && self.object.bytes <= OBJECT_BYTES_MAX
    }
}
