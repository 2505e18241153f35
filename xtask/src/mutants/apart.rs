//! Tries the mutants that cannot be switched, one by one: cargo-mutants changes the code, compiles
//! it and runs the tests of the package.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::judge::End;
use super::listed::Mutant;
use super::{Ended, Ends, MutationRun, testers, tree};
use crate::console;

/// Longest time for the tests of one mutant; those of the slowest package take a third of this.
const TIMEOUT_SECONDS: &str = "180";
/// The folder in which cargo-mutants leaves its results.
const OUTPUT: &str = "mutants.out";

impl MutationRun<'_> {
    /// Tests the code of one package as it is, then these mutants.
    ///
    /// # Errors
    /// The tests fail without any mutant, or cargo-mutants cannot work.
    pub(super) fn judge_apart(
        &self,
        package: &str,
        mutants: &[&Mutant],
        ends: &mut Ends,
    ) -> Result<()> {
        if mutants.is_empty() {
            return Ok(());
        }
        console::say(format_args!("  {} are built one by one", mutants.len()));
        let plain = self.folder.join("tree");
        tree::update(self.workspace, &plain, &Default::default())?;
        let output = self.folder.join(package);
        std::fs::create_dir_all(&output)
            .with_context(|| format!("cannot make {}", output.display()))?;
        let mut command = self.cargo_mutants(&plain);
        command
            .args(["--package", package, "--in-place", "--baseline", "skip"])
            .args(["--test-package", &testers(package).join(",")])
            .args(["--timeout", TIMEOUT_SECONDS, "--no-times", "--output"])
            .arg(&output);
        for mutant in mutants {
            command.args(["--re", &format!("^{}$", escaped(&mutant.name))]);
        }
        // cargo-mutants tries left out fields whatever the expressions say, but in these files
        // only.
        for file in mutants
            .iter()
            .map(|mutant| &mutant.file)
            .collect::<BTreeSet<_>>()
        {
            command.arg("--file").arg(file);
        }
        // Doc tests are left out: examples in comments do not test guards.
        command.args(["--", "--lib", "--bins", "--tests"]);
        let status = command.status().context("cannot start cargo-mutants")?;
        // Status 2: some mutants were missed. Status 3: some tests took too long, which a person
        // would notice as well.
        if !matches!(status.code(), Some(0 | 2 | 3)) {
            bail!(
                "cargo mutants ended with {status}; its logs are in {}",
                output.display()
            );
        }
        let folder = output.join(OUTPUT);
        let caught = outcome(&folder, "caught")?;
        let missed = outcome(&folder, "missed")?;
        let timeout = outcome(&folder, "timeout")?;
        for mutant in mutants {
            let end = if caught.contains(&mutant.name) {
                Ended::Tested(End::Caught)
            } else if missed.contains(&mutant.name) {
                Ended::Tested(End::Survived)
            } else if timeout.contains(&mutant.name) {
                Ended::Tested(End::TimedOut)
            } else {
                Ended::Unbuildable
            };
            ends.insert(mutant.number, end);
        }
        Ok(())
    }
}

/// The names of the mutants with this outcome: `missed`, `caught`, `timeout`.
fn outcome(folder: &Path, end: &str) -> Result<Vec<String>> {
    let names = std::fs::read_to_string(folder.join(format!("{end}.txt")))
        .with_context(|| format!("cargo mutants left no result in {}", folder.display()))?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// A regular expression that matches this name only.
fn escaped(name: &str) -> String {
    let mut pattern = String::new();
    for character in name.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(character) {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}
