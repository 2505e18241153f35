//! The configuration of any model, and the reasons to refuse one.

use std::fmt::Display;

use schemas::layout::{Layout, TensorSpec};
use schemas::run::TrainerKind;
use schemas::{Code, V};

use crate::{Initial, InitialWeights, LlamaConfig, ReferenceConfig, SyntheticConfig};

/// Longest `config.json` that is read; real ones have a few KiB.
const CONFIG_BYTES_MAX: usize = 1 << 20;

/// A model that one of the trainers can train. The text form is the `config.json` of its kind.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelConfig {
    /// A Llama-style decoder, for trainer `torch`.
    Llama(LlamaConfig),
    /// A small model in plain Rust, for trainer `reference`.
    Reference(ReferenceConfig),
    /// Parameters without mathematics, for trainer `synthetic`.
    Synthetic(SyntheticConfig),
}

/// A model configuration that is refused.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// It has more bytes than any configuration.
    #[error("config.json of {0} bytes, at most {CONFIG_BYTES_MAX} are accepted")]
    TooLong(usize),
    /// Not JSON, or a field is missing or of another type.
    #[error("config.json does not parse: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A value that is out of bounds, not supported, or contradicts another field.
    #[error("{field} is {value}, expected {wanted}")]
    Field {
        /// The field of `config.json`.
        field: &'static str,
        /// Its value.
        value: String,
        /// The values that would be accepted.
        wanted: String,
    },
}

impl ModelError {
    pub(crate) fn field(
        field: &'static str,
        value: impl Display,
        wanted: impl Into<String>,
    ) -> Self {
        Self::Field {
            field,
            value: value.to_string(),
            wanted: wanted.into(),
        }
    }

    /// The code that an operator sees.
    pub const fn code(&self) -> Code {
        Code::ModelInvalid
    }
}

schemas::coded!(ModelError);

impl ModelConfig {
    /// Reads the `config.json` of a model for `trainer`.
    ///
    /// # Errors
    /// [`ModelError`]: it is too long, does not parse, or has a value that cannot be trained.
    pub fn parse(trainer: TrainerKind, json: &[u8]) -> Result<Self, ModelError> {
        if json.len() > CONFIG_BYTES_MAX {
            return Err(ModelError::TooLong(json.len()));
        }
        Ok(match trainer {
            TrainerKind::Torch => Self::Llama(LlamaConfig::parse(json)?),
            TrainerKind::Reference => Self::Reference(ReferenceConfig::parse(json)?),
            TrainerKind::Synthetic => Self::Synthetic(SyntheticConfig::parse(json)?),
        })
    }

    /// Reads the `config.json` of a model whose kind is unknown: each kind refuses the
    /// configurations of the others.
    ///
    /// # Errors
    /// No kind accepts it; the reason is that of the kind that people write by hand.
    pub fn recognise(json: &[u8]) -> Result<Self, ModelError> {
        let others = [TrainerKind::Reference, TrainerKind::Synthetic];
        Self::parse(TrainerKind::Torch, json).or_else(|error| {
            others
                .iter()
                .find_map(|kind| Self::parse(*kind, json).ok())
                .ok_or(error)
        })
    }

    /// The `config.json` to store as an object: the same bytes for equal configurations.
    pub fn to_json(&self) -> Vec<u8> {
        let text = match self {
            Self::Llama(config) => serde_json::to_vec_pretty(&config.to_file()),
            Self::Reference(config) => serde_json::to_vec_pretty(config),
            Self::Synthetic(config) => serde_json::to_vec_pretty(config),
        };
        text.expect("configurations hold numbers, texts and booleans only")
    }

    /// The trainer that trains it.
    pub const fn trainer(&self) -> TrainerKind {
        match self {
            Self::Llama(_) => TrainerKind::Torch,
            Self::Reference(_) => TrainerKind::Reference,
            Self::Synthetic(_) => TrainerKind::Synthetic,
        }
    }

    /// Its tensors in the order in which they lie in the flat vector, all in fragment 0.
    pub fn layout(&self) -> Layout {
        let tensors = self
            .tensors()
            .into_iter()
            .map(|(name, shape, _)| TensorSpec {
                name,
                shape,
                fragment: 0,
            });
        Layout {
            v: V,
            tensors: tensors.collect(),
        }
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        self.layout().elements()
    }

    /// Token ids must be below this.
    pub const fn vocabulary(&self) -> u32 {
        match self {
            Self::Llama(config) => config.vocabulary,
            Self::Reference(config) => config.vocabulary,
            Self::Synthetic(_) => u32::MAX,
        }
    }

    /// The longest sequence that it can be trained on.
    pub const fn sequence_tokens_max(&self) -> u32 {
        match self {
            Self::Llama(config) => config.positions,
            Self::Reference(_) | Self::Synthetic(_) => schemas::limits::SEQUENCE_TOKENS_MAX,
        }
    }

    /// The initial weights that `seed` gives; anyone can compute them again.
    pub fn initial(&self, seed: u64) -> InitialWeights {
        let mut start = 0;
        let tensors = self.tensors().into_iter().map(|(_, shape, initial)| {
            let span = start..start + shape.iter().product::<u64>();
            start = span.end;
            (span, initial)
        });
        InitialWeights::new(seed, tensors.collect())
    }

    fn tensors(&self) -> Vec<(String, Vec<u64>, Initial)> {
        match self {
            Self::Llama(config) => config.tensors(),
            Self::Reference(config) => config.tensors(),
            Self::Synthetic(config) => config.tensors(),
        }
    }
}

pub(crate) fn whole(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), ModelError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(ModelError::field(field, value, format!("{min} to {max}")))
    }
}

/// Checks the facts that the layout's users rely on, last, when every single field is in bounds.
pub(crate) fn check_layout(config: &ModelConfig) -> Result<(), ModelError> {
    let layout = config.layout();
    layout
        .validate()
        .map_err(|error| ModelError::field("model", error, "a layout within the limits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_broken_texts_are_refused() {
        let long = vec![b' '; CONFIG_BYTES_MAX + 1];
        assert!(matches!(
            ModelConfig::parse(TrainerKind::Torch, &long),
            Err(ModelError::TooLong(_))
        ));
        for trainer in [
            TrainerKind::Torch,
            TrainerKind::Reference,
            TrainerKind::Synthetic,
        ] {
            let error = ModelConfig::parse(trainer, b"{\"vocabulary\": ").expect_err("not JSON");
            assert_eq!(error.code(), Code::ModelInvalid);
        }
    }
}
