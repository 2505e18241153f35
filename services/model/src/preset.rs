//! Models that have a name.

use crate::{LlamaConfig, ModelConfig, ReferenceConfig};

/// A model with a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// Its purpose.
    pub purpose: &'static str,
    /// The model.
    pub config: ModelConfig,
}

/// The names of all presets, smallest first.
pub const PRESETS: [&str; 5] = ["reference", "tiny", "demo", "25m", "100m"];

/// Bytes as tokens.
const BYTE_VOCABULARY: u32 = 256;

impl Preset {
    /// The preset of that name.
    pub fn named(name: &str) -> Option<Self> {
        let (name, purpose, config) = match name {
            "reference" => {
                let config = ReferenceConfig {
                    vocabulary: BYTE_VOCABULARY,
                    context: 6,
                    embedding: 16,
                    hidden: 64,
                };
                (
                    "reference",
                    "bytes in plain Rust, without libtorch, for tests",
                    ModelConfig::Reference(config),
                )
            }
            "tiny" => (
                "tiny",
                "0.3 M parameters over bytes, for tests",
                llama(96, 264, 2, (3, 3), 512),
            ),
            "demo" => (
                "demo",
                "0.9 M parameters over bytes, learns on two CPU cores in minutes",
                llama(128, 384, 4, (4, 4), 1024),
            ),
            "25m" => (
                "25m",
                "25 M parameters over bytes",
                llama(512, 1376, 8, (8, 8), 2048),
            ),
            "100m" => (
                "100m",
                "100 M parameters over bytes, grouped queries",
                llama(768, 2560, 13, (12, 4), 2048),
            ),
            _ => return None,
        };
        Some(Self {
            name,
            purpose,
            config,
        })
    }
}

fn llama(
    hidden: u32,
    intermediate: u32,
    layers: u32,
    heads: (u32, u32),
    positions: u32,
) -> ModelConfig {
    ModelConfig::Llama(LlamaConfig {
        vocabulary: BYTE_VOCABULARY,
        hidden,
        intermediate,
        layers,
        heads: heads.0,
        key_value_heads: heads.1,
        head: hidden / heads.0,
        norm_epsilon: 1e-5,
        rope_theta: 10_000.0,
        tied: true,
        positions,
        initial_deviation: 0.02,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_parses_and_has_the_size_it_says() {
        let sizes = [
            (10_000, 60_000),
            (200_000, 400_000),
            (800_000, 1_000_000),
            (23e6 as u64, 27e6 as u64),
            (95e6 as u64, 105e6 as u64),
        ];
        for (name, (min, max)) in PRESETS.into_iter().zip(sizes) {
            let preset = Preset::named(name).expect("listed");
            assert_eq!(preset.name, name);
            let parsed = ModelConfig::parse(preset.config.trainer(), &preset.config.to_json())
                .expect("valid");
            assert_eq!(parsed, preset.config);
            let parameters = parsed.parameters();
            assert!(
                (min..=max).contains(&parameters),
                "{name} has {parameters} parameters"
            );
        }
        assert!(Preset::named("none").is_none());
    }
}
