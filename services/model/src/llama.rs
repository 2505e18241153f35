//! A Llama-style decoder as Hugging Face describes it in `config.json` (model type `llama`,
//! transformers' `LlamaConfig`): RMSNorm, rotary positions on rotated halves, grouped-query
//! attention, SwiGLU, no biases.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{check_layout, whole};
use crate::{Initial, ModelConfig, ModelError};

/// A decoder whose fields are within bounds and fit together. It is built by [`ModelConfig::parse`]
/// or from a preset.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Token ids are below this (`vocab_size`).
    pub vocabulary: u32,
    /// Width of the residual stream (`hidden_size`).
    pub hidden: u32,
    /// Width between the two matrices of the feed-forward part (`intermediate_size`).
    pub intermediate: u32,
    /// Decoder layers (`num_hidden_layers`).
    pub layers: u32,
    /// Query heads (`num_attention_heads`).
    pub heads: u32,
    /// Heads of keys and values; divides `heads` (`num_key_value_heads`).
    pub key_value_heads: u32,
    /// Width of a head, even (`head_dim`).
    pub head: u32,
    /// Added to the mean square in RMSNorm (`rms_norm_eps`).
    pub norm_epsilon: f64,
    /// Base of the rotary frequencies (`rope_theta`).
    pub rope_theta: f64,
    /// True when the output matrix is the embedding (`tie_word_embeddings`).
    pub tied: bool,
    /// Longest sequence (`max_position_embeddings`).
    pub positions: u32,
    /// Standard deviation of initial matrices (`initializer_range`).
    pub initial_deviation: f64,
}

/// The keys of `config.json` that matter; others, of which transformers writes many, are ignored.
#[derive(Serialize, Deserialize)]
pub(crate) struct LlamaFile {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    architectures: Vec<String>,
    model_type: String,
    vocab_size: u32,
    hidden_size: u32,
    intermediate_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default = "norm_epsilon")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope_scaling: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope_parameters: Option<RopeParameters>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "positions")]
    max_position_embeddings: u32,
    #[serde(default = "initial_deviation")]
    initializer_range: f64,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

/// The form in which transformers 5 writes the rotary settings.
#[derive(Serialize, Deserialize)]
struct RopeParameters {
    #[serde(default = "default_rope")]
    rope_type: String,
    rope_theta: Option<f64>,
}

const MODEL_TYPE: &str = "llama";
const ARCHITECTURE: &str = "LlamaForCausalLM";
/// The value that transformers uses if `rope_theta` is absent.
const ROPE_THETA: f64 = 10_000.0;

fn silu() -> String {
    "silu".to_owned()
}

fn default_rope() -> String {
    "default".to_owned()
}

fn norm_epsilon() -> f64 {
    1e-6
}

fn positions() -> u32 {
    2048
}

fn initial_deviation() -> f64 {
    0.02
}

impl LlamaConfig {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, ModelError> {
        let file: LlamaFile = serde_json::from_slice(json)?;
        file.check_kind()?;
        let head = match file.head_dim {
            Some(head) => head,
            None if file.num_attention_heads > 0
                && file.hidden_size.is_multiple_of(file.num_attention_heads) =>
            {
                file.hidden_size / file.num_attention_heads
            }
            None => {
                let wanted = format!(
                    "a multiple of num_attention_heads ({}), or head_dim",
                    file.num_attention_heads
                );
                return Err(ModelError::field("hidden_size", file.hidden_size, wanted));
            }
        };
        let config = Self {
            vocabulary: file.vocab_size,
            hidden: file.hidden_size,
            intermediate: file.intermediate_size,
            layers: file.num_hidden_layers,
            heads: file.num_attention_heads,
            key_value_heads: file.num_key_value_heads.unwrap_or(file.num_attention_heads),
            head,
            norm_epsilon: file.rms_norm_eps,
            rope_theta: file.rope_theta()?,
            tied: file.tie_word_embeddings,
            positions: file.max_position_embeddings,
            initial_deviation: file.initializer_range,
        };
        config.validate()?;
        Ok(config)
    }

    pub(crate) fn to_file(&self) -> LlamaFile {
        LlamaFile {
            architectures: vec![ARCHITECTURE.to_owned()],
            model_type: MODEL_TYPE.to_owned(),
            vocab_size: self.vocabulary,
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: Some(self.key_value_heads),
            head_dim: Some(self.head),
            hidden_act: silu(),
            rms_norm_eps: self.norm_epsilon,
            rope_theta: Some(self.rope_theta),
            rope_scaling: None,
            rope_parameters: None,
            tie_word_embeddings: self.tied,
            max_position_embeddings: self.positions,
            initializer_range: self.initial_deviation,
            attention_bias: false,
            mlp_bias: false,
        }
    }

    fn validate(&self) -> Result<(), ModelError> {
        // A quarter of the value that would overflow 32 bits: more than any model has.
        whole("vocab_size", self.vocabulary.into(), 2, 1 << 24)?;
        whole("hidden_size", self.hidden.into(), 1, 1 << 18)?;
        whole("intermediate_size", self.intermediate.into(), 1, 1 << 20)?;
        whole("num_hidden_layers", self.layers.into(), 1, 1024)?;
        whole("num_attention_heads", self.heads.into(), 1, 4096)?;
        whole(
            "num_key_value_heads",
            self.key_value_heads.into(),
            1,
            self.heads.into(),
        )?;
        whole("head_dim", self.head.into(), 2, 4096)?;
        whole(
            "max_position_embeddings",
            self.positions.into(),
            1,
            schemas::limits::SEQUENCE_TOKENS_MAX.into(),
        )?;
        if !self.heads.is_multiple_of(self.key_value_heads) {
            let wanted = format!("a divisor of num_attention_heads ({})", self.heads);
            return Err(ModelError::field(
                "num_key_value_heads",
                self.key_value_heads,
                wanted,
            ));
        }
        if !self.head.is_multiple_of(2) {
            return Err(ModelError::field(
                "head_dim",
                self.head,
                "an even number, for rotary positions",
            ));
        }
        real("rms_norm_eps", self.norm_epsilon, 1e-12, 1e-1)?;
        real("rope_theta", self.rope_theta, 1.0, 1e12)?;
        real("initializer_range", self.initial_deviation, 1e-6, 1.0)?;
        check_layout(&ModelConfig::Llama(self.clone()))
    }

    /// Hugging Face names and shapes. Queries, keys and values of a layer lie side by side, and so
    /// do gate and up, so that a trainer may use each group as one matrix.
    pub(crate) fn tensors(&self) -> Vec<(String, Vec<u64>, Initial)> {
        let [vocabulary, hidden, intermediate] =
            [self.vocabulary, self.hidden, self.intermediate].map(u64::from);
        let queries = u64::from(self.heads) * u64::from(self.head);
        let keys = u64::from(self.key_value_heads) * u64::from(self.head);
        let normal = Initial::Normal {
            deviation: self.initial_deviation as f32,
        };
        // GPT-2's rule: a matrix whose output is added to the residual stream starts smaller by the
        // root of the number of additions.
        let additions = f64::from(2 * self.layers);
        let residual = Initial::Normal {
            deviation: (self.initial_deviation / additions.sqrt()) as f32,
        };
        let mut tensors = vec![(
            "model.embed_tokens.weight".to_owned(),
            vec![vocabulary, hidden],
            normal,
        )];
        for layer in 0..self.layers {
            let mut add = |part: &str, shape: &[u64], initial| {
                tensors.push((
                    format!("model.layers.{layer}.{part}.weight"),
                    shape.to_vec(),
                    initial,
                ));
            };
            add("input_layernorm", &[hidden], Initial::One);
            add("self_attn.q_proj", &[queries, hidden], normal);
            add("self_attn.k_proj", &[keys, hidden], normal);
            add("self_attn.v_proj", &[keys, hidden], normal);
            add("self_attn.o_proj", &[hidden, queries], residual);
            add("post_attention_layernorm", &[hidden], Initial::One);
            add("mlp.gate_proj", &[intermediate, hidden], normal);
            add("mlp.up_proj", &[intermediate, hidden], normal);
            add("mlp.down_proj", &[hidden, intermediate], residual);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden], Initial::One));
        if !self.tied {
            tensors.push((
                "lm_head.weight".to_owned(),
                vec![vocabulary, hidden],
                normal,
            ));
        }
        tensors
    }
}

impl LlamaFile {
    /// Refuses every variant of the architecture that this decoder does not compute, so that it
    /// never trains something else.
    fn check_kind(&self) -> Result<(), ModelError> {
        if self.model_type != MODEL_TYPE {
            return Err(ModelError::field(
                "model_type",
                format!("{:?}", self.model_type),
                "\"llama\"",
            ));
        }
        if !self.architectures.is_empty()
            && !self.architectures.iter().any(|name| name == ARCHITECTURE)
        {
            let value = format!("{:?}", self.architectures);
            return Err(ModelError::field(
                "architectures",
                value,
                format!("[{ARCHITECTURE:?}]"),
            ));
        }
        if !["silu", "swish"].contains(&self.hidden_act.as_str()) {
            return Err(ModelError::field(
                "hidden_act",
                format!("{:?}", self.hidden_act),
                "\"silu\"",
            ));
        }
        if self.attention_bias {
            return Err(ModelError::field(
                "attention_bias",
                true,
                "false: biases are not supported",
            ));
        }
        if self.mlp_bias {
            return Err(ModelError::field(
                "mlp_bias",
                true,
                "false: biases are not supported",
            ));
        }
        if let Some(scaling) = self
            .rope_scaling
            .as_ref()
            .filter(|scaling| !scaling.is_null())
        {
            return Err(ModelError::field(
                "rope_scaling",
                scaling,
                "null: scaled rotary positions are not supported",
            ));
        }
        Ok(())
    }

    fn rope_theta(&self) -> Result<f64, ModelError> {
        let nested = match &self.rope_parameters {
            Some(rope) if rope.rope_type != "default" => {
                let value = format!("{:?}", rope.rope_type);
                return Err(ModelError::field(
                    "rope_parameters.rope_type",
                    value,
                    "\"default\"",
                ));
            }
            Some(rope) => rope.rope_theta,
            None => None,
        };
        match (self.rope_theta, nested) {
            (Some(outer), Some(inner)) if outer != inner => Err(ModelError::field(
                "rope_theta",
                outer,
                format!("rope_parameters.rope_theta ({inner})"),
            )),
            (outer, inner) => Ok(outer.or(inner).unwrap_or(ROPE_THETA)),
        }
    }
}

fn real(field: &'static str, value: f64, min: f64, max: f64) -> Result<(), ModelError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(ModelError::field(field, value, format!("{min} to {max}")))
    }
}

#[cfg(test)]
mod tests {
    use schemas::run::TrainerKind;

    use super::*;

    /// A file as transformers writes it, with keys that this program does not know.
    const FILE: &str = r#"{
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
        "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 176,
        "max_position_embeddings": 128, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 4,
        "num_hidden_layers": 2, "num_key_value_heads": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": null, "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.44.0", "use_cache": true, "vocab_size": 256
    }"#;

    fn parse(text: &str) -> Result<ModelConfig, ModelError> {
        ModelConfig::parse(TrainerKind::Torch, text.as_bytes())
    }

    #[test]
    fn a_hugging_face_file_gives_its_names_and_shapes() {
        let config = parse(FILE).expect("valid");
        let layout = config.layout();
        let shape = |name: &str| {
            layout
                .tensors
                .iter()
                .find(|t| t.name == name)
                .map(|t| t.shape.clone())
        };
        assert_eq!(layout.tensors.len(), 2 + 2 * 9 + 1);
        assert_eq!(
            shape("model.layers.1.self_attn.q_proj.weight"),
            Some(vec![64, 64])
        );
        assert_eq!(
            shape("model.layers.1.self_attn.k_proj.weight"),
            Some(vec![32, 64])
        );
        assert_eq!(
            shape("model.layers.0.mlp.down_proj.weight"),
            Some(vec![64, 176])
        );
        assert_eq!(shape("lm_head.weight"), Some(vec![256, 64]));
        assert_eq!(
            config.parameters(),
            2 * 256 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 176 + 2 * 64) + 64
        );
        assert_eq!(
            (config.vocabulary(), config.sequence_tokens_max()),
            (256, 128)
        );
    }

    #[test]
    fn writing_and_reading_gives_the_same() {
        let config = parse(FILE).expect("valid");
        let again = ModelConfig::parse(TrainerKind::Torch, &config.to_json()).expect("own output");
        assert_eq!(again, config);
        assert_eq!(again.to_json(), config.to_json());
    }

    #[test]
    fn contradictions_and_variants_are_refused_by_name() {
        let cases = [
            (
                "\"hidden_size\": 64",
                "\"hidden_size\": 66",
                "hidden_size is 66",
            ),
            (
                "\"num_key_value_heads\": 2",
                "\"num_key_value_heads\": 3",
                "num_key_value_heads is 3",
            ),
            (
                "\"num_key_value_heads\": 2",
                "\"num_key_value_heads\": 8",
                "num_key_value_heads is 8",
            ),
            (
                "\"num_attention_heads\": 4",
                "\"num_attention_heads\": 0",
                "hidden_size is 64",
            ),
            (
                "\"vocab_size\": 256",
                "\"vocab_size\": 256, \"head_dim\": 15",
                "head_dim is 15",
            ),
            (
                "\"vocab_size\": 256",
                "\"vocab_size\": 0",
                "vocab_size is 0",
            ),
            (
                "\"num_hidden_layers\": 2",
                "\"num_hidden_layers\": 4000000000",
                "num_hidden_layers is 4000000000",
            ),
            (
                "\"model_type\": \"llama\"",
                "\"model_type\": \"gpt2\"",
                "model_type is \"gpt2\"",
            ),
            ("LlamaForCausalLM", "MistralForCausalLM", "architectures is"),
            ("\"silu\"", "\"gelu\"", "hidden_act is \"gelu\""),
            (
                "\"attention_bias\": false",
                "\"attention_bias\": true",
                "attention_bias is true",
            ),
            (
                "\"rope_scaling\": null",
                "\"rope_scaling\": {\"factor\": 8}",
                "rope_scaling is",
            ),
            ("1e-05", "-1.0", "rms_norm_eps is -1"),
            (
                "10000.0",
                "10000.0, \"rope_parameters\": {\"rope_theta\": 5e5}",
                "rope_theta is 10000",
            ),
        ];
        for (from, to, expected) in cases {
            assert!(FILE.contains(from), "{from}");
            let error = parse(&FILE.replace(from, to)).expect_err(to).to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
    }

    #[test]
    fn newer_rotary_settings_are_read() {
        let file = FILE.replace(
            "\"rope_theta\": 10000.0",
            "\"rope_parameters\": {\"rope_theta\": 500000.0}",
        );
        let ModelConfig::Llama(config) = parse(&file).expect("valid") else {
            panic!("a llama")
        };
        assert_eq!(config.rope_theta, 500_000.0);
    }
}
