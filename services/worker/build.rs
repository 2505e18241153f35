//! Gives the worker the run-time search path of libtorch; link arguments do not travel from a
//! library to its users.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Set by the crate `torch`; absent in a build without it.
    println!("cargo::rerun-if-env-changed=DEP_DILOCO_TORCH_RPATH");
    if let Ok(rpath) = std::env::var("DEP_DILOCO_TORCH_RPATH") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{rpath}");
    }
}
