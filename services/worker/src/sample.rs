//! `diloco-worker sample`: prints text from a model folder that `diloctl snapshot pull` wrote:
//! `config.json`, `model.safetensors` and `tokenizer.json`. Without the last file every byte is a
//! token.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use data::TextTokenizer;
use model::ModelConfig;
use runtime::Failure;
use schemas::run::Precision;
use schemas::text::ShownText;
use schemas::{Code, Refusal};

use crate::config::TrainingSection;
use crate::trainers;

/// Flags of `sample`.
#[derive(Args, Clone, Debug)]
pub(crate) struct SampleArgs {
    /// Folder with config.json, model.safetensors and tokenizer.json; without the last file every
    /// byte is a token.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Text that the model continues.
    #[arg(long, default_value = "\n")]
    pub prompt: String,
    /// Number of tokens to add.
    #[arg(long, default_value_t = 200)]
    pub tokens: usize,
    /// 0 takes the likeliest token each time; 1 draws from the model's own distribution.
    #[arg(long, default_value_t = 0.8)]
    pub temperature: f64,
    /// Seed of the random draws; the same seed gives the same text.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Device to compute on: auto, cpu, cuda or cuda:NUMBER.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Number of CPU threads.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
}

/// Loads the model, prints prompt and continuation.
///
/// # Errors
/// A file is missing or does not fit, the arguments are out of bounds, or the model needs a trainer
/// that is not here.
pub(crate) fn sample(args: &SampleArgs) -> Result<(), Failure> {
    let config = read_config(&args.model.join("config.json"))?;
    let tokenizer = read_tokenizer(&args.model.join("tokenizer.json"))?;
    let section = TrainingSection {
        device: args.device.clone(),
        threads: args.threads,
        trainers: Vec::new(),
    };
    let mut trainer = trainers::build(&config, &section, Precision::Fp32).map_err(Failure::from)?;
    let elements =
        usize::try_from(trainer.layout().elements()).expect("the trainer holds as many in memory");
    let mut values = vec![0.0; elements];
    let weights = args.model.join("model.safetensors");
    model::import_safetensors(trainer.layout(), &weights, &mut values)
        .map_err(|error| Failure::new(Code::ModelInvalid, error))?;
    let failed = |error: trainer::TrainerError| Failure::from(Refusal::from(error));
    trainer.set_parameters(0, &values).map_err(failed)?;
    drop(values);
    let prompt = tokenizer
        .encode(&args.prompt)
        .map_err(|error| Failure::from(Refusal::from(error)))?;
    let added = trainer
        .generate(&prompt, args.tokens, args.temperature, args.seed)
        .map_err(failed)?;
    let tokens: Vec<u32> = prompt.into_iter().chain(added).collect();
    let text = tokenizer
        .decode(&tokens)
        .map_err(|error| Failure::from(Refusal::from(error)))?;
    let mut out = std::io::stdout();
    // The reader may have closed the pipe. The model may write control characters, which a terminal
    // would obey.
    let _ = if out.is_terminal() {
        writeln!(out, "{}", ShownText(&text))
    } else {
        writeln!(out, "{text}")
    };
    Ok(())
}

fn read_config(path: &Path) -> Result<ModelConfig, Failure> {
    let invalid = |error: &dyn std::fmt::Display| {
        Failure::new(Code::ModelInvalid, format!("{}: {error}", path.display()))
    };
    let json = std::fs::read(path).map_err(|error| invalid(&error))?;
    ModelConfig::recognise(&json).map_err(|error| invalid(&error))
}

fn read_tokenizer(path: &Path) -> Result<TextTokenizer, Failure> {
    match std::fs::read(path) {
        Ok(json) => {
            TextTokenizer::hugging_face(&json).map_err(|error| Failure::from(Refusal::from(error)))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(TextTokenizer::Byte),
        Err(error) => Err(Failure::new(
            Code::TokenizerInvalid,
            format!("{}: {error}", path.display()),
        )),
    }
}
