//! The model of trainer `reference`: a feed-forward language model over the last few tokens (Bengio
//! et al. 2003, without the direct connections). Small enough to train in plain Rust in a test.

use serde::{Deserialize, Serialize};

use crate::config::{check_layout, whole};
use crate::{Initial, ModelConfig, ModelError};

/// Embeddings of the last `context` tokens, one hidden layer, one output layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceConfig {
    /// Token ids are below this.
    pub vocabulary: u32,
    /// Number of tokens before the predicted one that the model reads.
    pub context: u32,
    /// Width of a token's embedding.
    pub embedding: u32,
    /// Width of the hidden layer.
    pub hidden: u32,
}

impl ReferenceConfig {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, ModelError> {
        let config: Self = serde_json::from_slice(json)?;
        // Plain loops train this model: anything larger belongs to trainer `torch`.
        whole("vocabulary", config.vocabulary.into(), 2, 1 << 16)?;
        whole("context", config.context.into(), 1, 64)?;
        whole("embedding", config.embedding.into(), 1, 1024)?;
        whole("hidden", config.hidden.into(), 1, 8192)?;
        check_layout(&ModelConfig::Reference(config.clone()))?;
        Ok(config)
    }

    pub(crate) fn tensors(&self) -> Vec<(String, Vec<u64>, Initial)> {
        let [vocabulary, context, embedding, hidden] =
            [self.vocabulary, self.context, self.embedding, self.hidden].map(u64::from);
        let scaled = |inputs: u64| Initial::Normal {
            deviation: (1.0 / (inputs as f64).sqrt()) as f32,
        };
        let input = context * embedding;
        [
            (
                "embedding.weight",
                vec![vocabulary, embedding],
                Initial::Normal { deviation: 1.0 },
            ),
            ("hidden.weight", vec![hidden, input], scaled(input)),
            ("hidden.bias", vec![hidden], Initial::Zero),
            (
                "output.weight",
                vec![vocabulary, hidden],
                Initial::Normal { deviation: 0.02 },
            ),
            ("output.bias", vec![vocabulary], Initial::Zero),
        ]
        .map(|(name, shape, initial)| (name.to_owned(), shape, initial))
        .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use schemas::run::TrainerKind;

    use super::*;

    #[test]
    fn parses_its_own_text_and_refuses_unknown_keys_and_bounds() {
        let config = ModelConfig::Reference(ReferenceConfig {
            vocabulary: 256,
            context: 4,
            embedding: 8,
            hidden: 32,
        });
        assert_eq!(config.parameters(), 256 * 8 + 32 * 32 + 32 + 256 * 32 + 256);
        let json = String::from_utf8(config.to_json()).expect("text");
        let parse = |text: &str| ModelConfig::parse(TrainerKind::Reference, text.as_bytes());
        assert_eq!(parse(&json).expect("own output"), config);
        assert!(parse(&json.replace("\"context\": 4", "\"context\": 0")).is_err());
        assert!(parse(&json.replace("\"context\": 4", "\"contexts\": 4")).is_err());
    }
}
