//! The trainer `torch`: a Llama-style decoder on libtorch, through tch and a small C++ shim. The
//! only crate of this workspace that links libtorch.
//!
//! A package that makes executables from it needs libtorch's folder in their run-time search path,
//! and link arguments do not travel from a library to its users. Let that package depend on this
//! crate directly, and give it this `build.rs`:
//!
//! ```text
//! fn main() {
//!     println!("cargo::rerun-if-changed=build.rs");
//!     if let Ok(rpath) = std::env::var("DEP_DILOCO_TORCH_RPATH") {
//!         println!("cargo::rustc-link-arg=-Wl,-rpath,{rpath}");
//!     }
//! }
//! ```

mod card;
mod codec;
mod decoder;
mod error;
mod flat;
mod lane;
#[cfg(feature = "mkl-amd")]
mod mkl;
mod runtime;
mod shim;
mod trainer;

pub use crate::runtime::{DeviceChoice, Library, init, processor_has_bf16};
pub use crate::trainer::{TorchOptions, TorchTrainer};
