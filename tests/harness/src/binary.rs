//! The paths of the programs.

use std::path::{Path, PathBuf};

/// The workspace's root folder.
pub(crate) fn workspace() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    folder
        .canonicalize()
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

/// The real nats-server: `NATS_SERVER_BIN`, or the pinned one.
///
/// # Panics
/// It is not there.
pub fn nats_server() -> PathBuf {
    let given = std::env::var_os("NATS_SERVER_BIN")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    let path = given.unwrap_or_else(|| workspace().join(".deps/nats/nats-server"));
    assert!(
        path.is_file(),
        "no nats-server at {}: run `cargo xtask deps`, or set NATS_SERVER_BIN",
        path.display()
    );
    path
}

/// A program of this workspace, built with the same profile as the running test or bench.
///
/// # Panics
/// It was not built.
pub fn program(name: &str) -> PathBuf {
    let this =
        std::env::current_exe().unwrap_or_else(|error| panic!("where this program is: {error}"));
    let mut folder = this
        .parent()
        .unwrap_or_else(|| panic!("{} lies nowhere", this.display()));
    if folder.ends_with("deps") {
        folder = folder.parent().unwrap_or(folder);
    }
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "no {name} at {}: run `cargo build --workspace --bins`",
        path.display()
    );
    path
}
