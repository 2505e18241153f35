//! Data sets.

use schemas::data::{DataManifest, Entropy, Shard, Tokenizer};
use schemas::{ObjectRef, Tokens, V};

use crate::name::object;

/// A data set in the making. A method sets the field of its name; `build` ends it.
#[derive(Clone, Debug)]
#[must_use]
pub struct DataBuilder(DataManifest);

/// A data set whose tokens are bytes, without shards so far.
pub fn data() -> DataBuilder {
    DataBuilder(DataManifest {
        v: V,
        source: "a test".to_owned(),
        tokenizer: Tokenizer::Byte,
        vocabulary: 256,
        token_bytes: 1,
        train: Vec::new(),
        held_out: Vec::new(),
        entropy: Entropy {
            unigram: 3.0,
            bigram: 2.0,
        },
    })
}

impl DataBuilder {
    /// Shards to train on.
    pub fn train(mut self, shards: Vec<Shard>) -> Self {
        self.0.train = shards;
        self
    }

    /// Shards to evaluate on.
    pub fn held_out(mut self, shards: Vec<Shard>) -> Self {
        self.0.held_out = shards;
        self
    }

    /// `train` named shards of `tokens` tokens each, and one to evaluate on.
    pub fn named(self, train: usize, tokens: u64) -> Self {
        let shard = |name: String| Shard {
            object: object(&name),
            tokens: Tokens(tokens),
        };
        self.train((0..train).map(|n| shard(format!("train {n}"))).collect())
            .held_out(vec![shard("held out".to_owned())])
    }

    /// Makes words the tokens. The tokenizer is an object, and the vocabulary decides the width of
    /// a token.
    pub fn words(mut self, tokenizer: ObjectRef, vocabulary: u32) -> Self {
        self.0.tokenizer = Tokenizer::HuggingFace(tokenizer);
        self.0.vocabulary = vocabulary;
        self.0.token_bytes = schemas::data::token_bytes(vocabulary);
        self
    }

    /// The data set.
    pub fn build(self) -> DataManifest {
        self.0
    }
}
