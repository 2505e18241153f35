//! Gives the benches the run-time search path of libtorch, as the worker's build script does for
//! the worker.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=DEP_DILOCO_TORCH_RPATH");
    if let Ok(rpath) = std::env::var("DEP_DILOCO_TORCH_RPATH") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{rpath}");
    }
}
