//! Checks that forbidden dependencies are absent: I/O, clocks and randomness under a core, and
//! libtorch outside its one crate.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Outcome, Tools};
use crate::process;

/// Crates that reach outside the program. A core that needs one of them has its decision in the
/// wrong place.
const IMPURE: &[&str] = &[
    "async-nats",
    "async-std",
    "chrono",
    "fastrand",
    "futures-executor",
    "getrandom",
    "hyper",
    "hyper-util",
    "indicatif",
    "jiff",
    "memmap2",
    "mio",
    "nkeys",
    "object_store",
    "quinn",
    "rand",
    "rayon",
    "reqwest",
    "ring",
    "rustls",
    "rusty-s3",
    "s3s",
    "smol",
    "socket2",
    "tch",
    "tempfile",
    "time",
    "tokio",
    "tokio-rustls",
    "tokio-util",
    "torch-sys",
    "tracing-subscriber",
    "ureq",
    "walkdir",
];
/// Packages that must be as pure as a core though their names do not say so: cores are built on
/// them.
const PURE: &[&str] = &[
    "backoff", "chain", "ledger", "masking", "privacy", "tlog", "witness",
];
/// The bindings to libtorch, and the one package that may name them.
const TORCH: (&[&str], &str) = (&["tch", "torch-sys"], "torch");

/// Runs the step.
pub(super) fn check(tools: &Tools<'_>) -> Result<Outcome> {
    let arguments = ["metadata", "--no-deps", "--locked", "--format-version", "1"];
    let metadata: Value =
        serde_json::from_str(&process::capture(&mut tools.workspace.cargo(&arguments))?)
            .context("cannot read cargo's metadata")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo's metadata names no packages")?;
    let mut faults: Vec<String> = packages.iter().flat_map(torch_faults).collect();
    let cores: Vec<_> = packages.iter().filter_map(core_name).collect();
    for core in &cores {
        let tree = [
            "tree",
            "--locked",
            "--package",
            core,
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ];
        let tree = process::capture(&mut tools.workspace.cargo(&tree))?;
        faults.extend(
            impure_in(&tree)
                .into_iter()
                .map(|name| format!("{core} depends on {name}")),
        );
    }
    if cores.is_empty() {
        bail!("no package lies in a folder named core: this check looks at nothing");
    }
    if faults.is_empty() {
        return Ok(Outcome::PassedWith(cores.join(", ")));
    }
    bail!("{}", faults.join("; "))
}

/// The name of a package that must be pure: its folder is called `core`, or [`PURE`] names it.
fn core_name(package: &Value) -> Option<&str> {
    let manifest = Path::new(package["manifest_path"].as_str()?);
    let name = package["name"].as_str()?;
    let pure = manifest.parent()?.ends_with("core") || PURE.contains(&name);
    pure.then_some(name)
}

/// Direct dependencies on libtorch's bindings outside the one crate that may have them.
fn torch_faults(package: &Value) -> Vec<String> {
    let (bindings, owner) = TORCH;
    let name = package["name"].as_str().unwrap_or_default();
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    let found = dependencies
        .filter_map(|dependency| dependency["name"].as_str())
        .filter(|found| bindings.contains(found));
    found
        .filter(|_| name != owner)
        .map(|found| format!("{name} depends on {found}, which belongs to {owner} alone"))
        .collect()
}

/// The impure crates in the output of `cargo tree`, each once.
fn impure_in(tree: &str) -> Vec<&str> {
    let mut found: Vec<_> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| IMPURE.contains(name))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impure_crates_are_seen_by_whole_name() {
        let tree = "audit-core v0.1.0 (/x)\nrand_core v0.6.4\nserde v1.0.1\ntokio v1.2.3\ntokio v1.2.3 (*)\n";
        assert_eq!(impure_in(tree), ["tokio"]);
        assert!(impure_in("audit-core v0.1.0\nrand_core v0.6.4\n").is_empty());
    }

    #[test]
    fn a_core_is_known_by_its_folder_or_by_name() {
        let package = serde_json::json!({ "name": "audit-core", "manifest_path": "/x/services/audit/core/Cargo.toml" });
        assert_eq!(core_name(&package), Some("audit-core"));
        let package =
            serde_json::json!({ "name": "score", "manifest_path": "/x/score/Cargo.toml" });
        assert_eq!(core_name(&package), None);
        let package = serde_json::json!({ "name": "ledger", "manifest_path": "/x/services/ledger/Cargo.toml" });
        assert_eq!(core_name(&package), Some("ledger"));
    }

    #[test]
    fn libtorch_outside_its_crate_is_a_fault() {
        let package = |name| serde_json::json!({ "name": name, "dependencies": [{ "name": "tch" }, { "name": "serde" }] });
        assert_eq!(torch_faults(&package("merge")).len(), 1);
        assert!(torch_faults(&package("torch")).is_empty());
    }
}
