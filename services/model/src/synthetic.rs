//! The model of trainer `synthetic`: parameters without mathematics, to load bus and store with any
//! size.

use serde::{Deserialize, Serialize};

use crate::config::{check_layout, whole};
use crate::{Initial, ModelConfig, ModelError};

/// Elements of a tensor while there are few; larger models get larger tensors, but at most
/// [`TENSORS`].
const TENSOR_ELEMENTS: u64 = 1 << 20;
const TENSORS: u64 = 1024;
/// Most parameters: 64 Gi, 256 GiB of fp32.
const PARAMETERS_MAX: u64 = 1 << 36;
/// Longest time that a step pretends to take: one minute.
const STEP_MS_MAX: u64 = 60_000;

/// The number of parameters, and the time that a step takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyntheticConfig {
    /// Number of parameters.
    pub parameters: u64,
    /// Milliseconds that an inner step takes.
    pub step_ms: u64,
}

impl SyntheticConfig {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, ModelError> {
        let config: Self = serde_json::from_slice(json)?;
        whole("parameters", config.parameters, 1, PARAMETERS_MAX)?;
        whole("step_ms", config.step_ms, 0, STEP_MS_MAX)?;
        check_layout(&ModelConfig::Synthetic(config.clone()))?;
        Ok(config)
    }

    pub(crate) fn tensors(&self) -> Vec<(String, Vec<u64>, Initial)> {
        let block = TENSOR_ELEMENTS
            .max(self.parameters.div_ceil(TENSORS))
            .max(1);
        let count = self.parameters.div_ceil(block);
        let elements = |index: u64| block.min(self.parameters - index * block);
        let initial = Initial::Normal { deviation: 0.02 };
        (0..count)
            .map(|index| (format!("synthetic.{index}"), vec![elements(index)], initial))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use schemas::run::TrainerKind;

    use super::*;

    #[test]
    fn any_size_gives_a_layout_of_exactly_that_size() {
        for parameters in [
            1,
            TENSOR_ELEMENTS,
            TENSOR_ELEMENTS + 1,
            100_000_000,
            PARAMETERS_MAX,
        ] {
            let json = format!("{{\"parameters\": {parameters}, \"step_ms\": 5}}");
            let config =
                ModelConfig::parse(TrainerKind::Synthetic, json.as_bytes()).expect("valid");
            assert_eq!(config.parameters(), parameters);
        }
        assert!(
            ModelConfig::parse(
                TrainerKind::Synthetic,
                b"{\"parameters\": 0, \"step_ms\": 5}"
            )
            .is_err()
        );
    }
}
