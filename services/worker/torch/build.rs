//! Compiles the C++ shim against the libtorch that torch-sys found, and tells executables where it
//! lies.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/shim.cpp");
    println!("cargo::rerun-if-changed=src/watch.cpp");
    let library = env::var_os("DEP_TCH_LIBTORCH_LIB")
        .map(PathBuf::from)
        .expect("torch-sys names its library folder");
    let headers = match env::var_os("LIBTORCH_INCLUDE") {
        Some(root) => PathBuf::from(root).join("include"),
        None => library
            .parent()
            .expect("the library folder lies in libtorch's folder")
            .join("include"),
    };
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&headers)
        .include(headers.join("torch/csrc/api/include"))
        .file("src/shim.cpp")
        .file("src/watch.cpp")
        .compile("diloco_torch_shim");
    let rpath = rpath(&library);
    println!("cargo::rustc-link-arg=-Wl,-rpath,{rpath}");
    println!("cargo::metadata=RPATH={rpath}");
}

/// The search paths for libtorch: for programs in `target/<profile>/`, in its `deps/` and
/// `examples/`, and in an installed `bin/` beside `lib/`. If libtorch lies elsewhere, its absolute
/// path comes first. The linker writes RUNPATH, so LD_LIBRARY_PATH still takes precedence.
fn rpath(library: &Path) -> String {
    let places = [
        "$ORIGIN/../../.deps/libtorch/lib",
        "$ORIGIN/../../../.deps/libtorch/lib",
        "$ORIGIN/../lib",
    ];
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .expect("cargo sets it");
    let own = manifest
        .ancestors()
        .nth(3)
        .map(|workspace| workspace.join(".deps/libtorch/lib"));
    let elsewhere = own.as_deref() != Some(library);
    let absolute = elsewhere.then(|| library.display().to_string());
    absolute
        .into_iter()
        .chain(places.map(str::to_owned))
        .collect::<Vec<_>>()
        .join(":")
}
