//! Models without running them: configurations, layouts of parameters, initial weights, and tensors
//! in safetensors files. The crate needs no libtorch, so that diloctl and the coordinator's tools
//! can use the whole crate.

mod config;
mod export;
mod file;
mod fit;
mod initial;
mod llama;
mod preset;
mod reference;
mod synthetic;

pub use config::{ModelConfig, ModelError};
pub use file::{
    FileError, NamedTensor, TensorFile, export_safetensors, import_safetensors, remove_parts,
    write_tensors,
};
pub use fit::{check_length, check_private_data};
pub use initial::{Initial, InitialWeights};
pub use llama::LlamaConfig;
pub use preset::{PRESETS, Preset};
pub use reference::ReferenceConfig;
pub use synthetic::SyntheticConfig;
