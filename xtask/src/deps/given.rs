//! `NATS_SERVER_BIN` and `LIBTORCH`: the user's own files instead of the pinned ones.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use schemas::{Code, Refusal};

use super::component::LIBTORCH;
use crate::process::{self, Workspace};

/// The oldest server with everything that the project uses: message TTL, atomic batches, pinned
/// consumers.
const NATS_SERVER_MIN: (u32, u32) = (2, 12);

/// The paths that the environment names.
pub(crate) struct Overrides {
    /// `NATS_SERVER_BIN`.
    pub(super) nats_server: Option<PathBuf>,
    /// `LIBTORCH`, unless its value is the one that `.cargo/config.toml` sets.
    pub(super) libtorch: Option<PathBuf>,
}

impl Overrides {
    /// Reads the two variables; empty is the same as unset.
    pub(crate) fn from_environment(workspace: &Workspace) -> Self {
        let read = |name| {
            std::env::var_os(name)
                .filter(|value: &OsString| !value.is_empty())
                .map(PathBuf::from)
        };
        let libtorch = if workspace.is_libtorch_exported() {
            read("LIBTORCH")
        } else {
            None
        };
        Self {
            nats_server: read("NATS_SERVER_BIN"),
            libtorch,
        }
    }
}

/// Returns the path, if the program there is a new enough server.
pub(super) fn check_nats_server(path: &Path) -> Result<PathBuf> {
    if !path.is_file() {
        return Err(unusable(format!(
            "NATS_SERVER_BIN names {}, which is not a file",
            path.display()
        )));
    }
    let answer = process::capture(Command::new(path).arg("--version")).map_err(|error| {
        unusable(format!(
            "NATS_SERVER_BIN names {}: {error:#}",
            path.display()
        ))
    })?;
    let (major, minor) = NATS_SERVER_MIN;
    match version(&answer) {
        Some(found) if found >= NATS_SERVER_MIN => Ok(path.to_path_buf()),
        _ => Err(unusable(format!(
            "NATS_SERVER_BIN names {}, which says {:?}; nats-server {major}.{minor} or later is needed",
            path.display(),
            answer.lines().next().unwrap_or_default()
        ))),
    }
}

/// Returns the folder, if it holds libtorch of the version that tch is pinned to.
pub(super) fn check_libtorch(folder: &Path) -> Result<PathBuf> {
    for part in ["lib/libtorch_cpu.so", "include/ATen/ATen.h"] {
        if !folder.join(part).is_file() {
            return Err(unusable(format!(
                "LIBTORCH names {}, which has no {part}",
                folder.display()
            )));
        }
    }
    let Ok(text) = std::fs::read_to_string(folder.join("build-version")) else {
        return Ok(folder.to_path_buf());
    };
    // The part after `+` names the variant: cpu, cu130.
    let found = text.trim().split('+').next().unwrap_or_default();
    if found == LIBTORCH.version {
        return Ok(folder.to_path_buf());
    }
    let message = format!(
        "LIBTORCH names {}, which is version {found}; {} is needed",
        folder.display(),
        LIBTORCH.version
    );
    Err(unusable(message))
}

/// Major and minor from `nats-server: v2.15.1`.
fn version(answer: &str) -> Option<(u32, u32)> {
    let (_, number) = answer.trim().rsplit_once('v')?;
    let mut parts = number.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

fn unusable(detail: String) -> anyhow::Error {
    Refusal::new(Code::ToolUnusable, detail).into()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn code(error: &anyhow::Error) -> Code {
        error.downcast_ref::<Refusal>().expect("coded").code
    }

    fn server_saying(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("server");
        fs::write(&path, format!("#!/bin/sh\necho '{text}'\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert_eq!(version("nats-server: v2.9.10-beta.1"), Some((2, 9)));
        assert_eq!(version("something else"), None);
    }

    #[test]
    fn a_server_of_ones_own_must_be_new_enough() {
        let folder = tempfile::tempdir().unwrap();
        let old = server_saying(folder.path(), "nats-server: v2.9.10");
        let error = check_nats_server(&old).expect_err("too old");
        assert_eq!(code(&error), Code::ToolUnusable);
        assert!(error.to_string().contains("2.12 or later"), "{error}");
        let new = server_saying(folder.path(), "nats-server: v3.0.0");
        assert_eq!(check_nats_server(&new).unwrap(), new);
        assert_eq!(
            code(&check_nats_server(&folder.path().join("absent")).expect_err("absent")),
            Code::ToolUnusable
        );
    }

    #[test]
    fn libtorch_of_ones_own_must_match() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            code(&check_libtorch(folder.path()).expect_err("empty")),
            Code::ToolUnusable
        );
        for part in ["lib/libtorch_cpu.so", "include/ATen/ATen.h"] {
            let path = folder.path().join(part);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        assert!(
            check_libtorch(folder.path()).is_ok(),
            "without build-version the build's own check decides"
        );
        fs::write(folder.path().join("build-version"), "2.11.0+cu130\n").unwrap();
        assert!(check_libtorch(folder.path()).is_ok());
        fs::write(folder.path().join("build-version"), "2.13.0\n").unwrap();
        let error = check_libtorch(folder.path()).expect_err("other version");
        assert!(error.to_string().contains("2.13.0"), "{error}");
    }
}
