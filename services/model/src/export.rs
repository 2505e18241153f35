//! Files beside exported weights that describe the model, for programs that read Hugging Face model
//! folders.

use serde_json::{Value, json};

use crate::ModelConfig;

/// Keys for tokens that begin, end or pad a text. A run's text has none of these; without the keys
/// a program would use its own default, which may not even be in the embedding.
const TOKENS_THAT_ARE_NOT: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

impl ModelConfig {
    /// `config.json` and, where other programs know this kind of model, `generation_config.json`:
    /// names and bytes.
    pub fn export_files(&self) -> Vec<(&'static str, Vec<u8>)> {
        let own = self.to_json();
        let Self::Llama(_) = self else {
            return vec![("config.json", own)];
        };
        let mut config: Value = serde_json::from_slice(&own).expect("is JSON of our own");
        let mut generation = json!({});
        for key in TOKENS_THAT_ARE_NOT {
            config[key] = Value::Null;
            generation[key] = Value::Null;
        }
        // The type of the weights in the file; without it a reader would use its library's setting.
        config["torch_dtype"] = json!("float32");
        let text = |value: &Value| serde_json::to_vec_pretty(value).expect("JSON serialises");
        vec![
            ("config.json", text(&config)),
            ("generation_config.json", text(&generation)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use schemas::run::TrainerKind;

    use super::*;
    use crate::{PRESETS, Preset};

    #[test]
    fn exported_configurations_are_the_model_and_name_no_token() {
        for name in PRESETS {
            let model = Preset::named(name).expect("a preset").config;
            let files = model.export_files();
            assert_eq!(
                ModelConfig::recognise(&files[0].1).expect("parses"),
                model,
                "{name}"
            );
            assert_eq!(
                files.len(),
                if model.trainer() == TrainerKind::Torch {
                    2
                } else {
                    1
                },
                "{name}"
            );
            for (file, bytes) in files
                .iter()
                .filter(|_| model.trainer() == TrainerKind::Torch)
            {
                let value: Value = serde_json::from_slice(bytes).expect("JSON");
                for key in TOKENS_THAT_ARE_NOT {
                    assert_eq!(
                        value.get(key),
                        Some(&Value::Null),
                        "{key} of {file}: absent is not null"
                    );
                }
            }
        }
        assert!(ModelConfig::recognise(b"{}").is_err());
    }
}
