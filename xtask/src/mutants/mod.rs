//! `cargo xtask mutants`: takes guards out of the code one at a time (`cargo-mutants`) and looks
//! whether a test fails. What no test misses is listed in `docs/survivors.md` with the reason why
//! it may be missed; anything else that survives is an error.
//!
//! The mutants are made in a copy of the checkout under `target/mutants`, which stays where it is,
//! so that a later run compiles only what changed.

mod chosen;
mod survivors;
mod tree;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::deps::{self, Overrides};
use crate::process::{self, Workspace};
use crate::{console, tools};
use chosen::Mutant;
use survivors::Survivors;

const VERSION: &str = "27.1.0";
/// Packages whose every line is a decision, a guard or a check.
pub(crate) const GUARDED: &[&str] = &[
    "audit-core",
    "chain",
    "coordinator-core",
    "diloco-store",
    "identity",
    "ledger",
    "merge",
    "objects",
    "worker-core",
];
/// How long the tests of one mutant may take: the slowest package needs a third of this.
const TIMEOUT_SECONDS: &str = "180";
/// The folder in which cargo-mutants leaves its results.
const OUTPUT: &str = "mutants.out";

/// What can be chosen.
#[derive(Debug, Args)]
pub(crate) struct MutantOptions {
    /// Only mutants of this package; may be given several times; by default all that hold guards
    #[arg(long, value_name = "PACKAGE")]
    package: Vec<String>,
    /// Only mutants whose name contains this text: a file, a function, an operator
    #[arg(long, value_name = "TEXT")]
    matching: Option<String>,
    /// Only so many, drawn from files that changed lately
    #[arg(long, value_name = "COUNT")]
    sample: Option<usize>,
    /// Print their names and run no test
    #[arg(long)]
    list: bool,
}

/// Makes mutants and runs the tests of their package on each.
pub(crate) fn run_mutants(
    workspace: &Workspace,
    overrides: &Overrides,
    options: &MutantOptions,
) -> Result<()> {
    let run = MutationRun::set_up(workspace, overrides)?;
    let packages: Vec<&str> = if options.package.is_empty() {
        GUARDED.to_vec()
    } else {
        options.package.iter().map(String::as_str).collect()
    };
    let mut mutants = run.list(&packages)?;
    if let Some(text) = &options.matching {
        mutants.retain(|mutant| mutant.name.contains(text.as_str()));
    }
    if let Some(count) = options.sample {
        mutants = chosen::sample(workspace, mutants, count)?;
    }
    if options.list {
        mutants.iter().for_each(|mutant| console::say(&mutant.name));
        return Ok(());
    }
    run.judge(&mutants).map(console::say)
}

/// The copy of the checkout, and what works on it.
struct MutationRun {
    program: PathBuf,
    tree: PathBuf,
    folder: PathBuf,
    nats_server: PathBuf,
    cargo: PathBuf,
    survivors: Survivors,
}

impl MutationRun {
    fn set_up(workspace: &Workspace, overrides: &Overrides) -> Result<Self> {
        let found = deps::ensure(&workspace.deps(), overrides)?;
        let program = tools::ensure(workspace, "cargo-mutants", VERSION)?;
        let folder = workspace.root().join("target/mutants");
        let tree = folder.join("tree");
        tree::update(workspace, &tree)?;
        Ok(Self {
            program,
            tree,
            folder,
            nats_server: found.nats_server,
            cargo: workspace.cargo(&[]).get_program().into(),
            survivors: Survivors::read(workspace.root())?,
        })
    }

    fn list(&self, packages: &[&str]) -> Result<Vec<Mutant>> {
        let mut mutants = Vec::new();
        for package in packages {
            let listed = process::capture(self.command().args(["--list", "--package", package]))?;
            mutants.extend(listed.lines().map(|name| Mutant {
                name: name.to_owned(),
                package: (*package).to_owned(),
            }));
        }
        Ok(mutants)
    }

    /// Runs the tests on each; the remark says how many there were.
    fn judge(&self, mutants: &[Mutant]) -> Result<String> {
        let (mut survived, mut caught) = (Vec::new(), 0);
        for package in packages(mutants) {
            let names = mutants.iter().filter(|mutant| mutant.package == package);
            self.test(package, names)?;
            survived.extend(self.outcome(package, "missed")?);
            caught += self.outcome(package, "caught")?.len();
            caught += self.outcome(package, "timeout")?.len();
        }
        let (known, news): (Vec<_>, Vec<_>) = survived
            .into_iter()
            .partition(|name| self.survivors.contains(name));
        if !news.is_empty() {
            bail!(
                "no test fails when the code is changed like this:\n       {}\n       write the \
                 test, or say in {} why there is none",
                news.join("\n       "),
                survivors::FILE
            );
        }
        Ok(format!(
            "{} mutants: {caught} caught, {} on the list, the others do not compile",
            mutants.len(),
            known.len()
        ))
    }

    /// Tests the code of one package as it is, then its mutants.
    ///
    /// # Errors
    /// The tests fail without any mutant, or cargo-mutants cannot work.
    fn test<'a>(&self, package: &str, mutants: impl Iterator<Item = &'a Mutant>) -> Result<()> {
        let output = self.folder.join(package);
        std::fs::create_dir_all(&output)
            .with_context(|| format!("cannot make {}", output.display()))?;
        let mut command = self.command();
        command
            .args(["--package", package, "--in-place"])
            .args(["--timeout", TIMEOUT_SECONDS, "--no-times", "--output"])
            .arg(&output);
        for mutant in mutants {
            command.args(["--re", &format!("^{}$", escaped(&mutant.name))]);
        }
        let status = command.status().context("cannot start cargo-mutants")?;
        // 2: some were missed; 3: some took too long, which a test would notice as well.
        if !matches!(status.code(), Some(0 | 2 | 3)) {
            bail!(
                "cargo mutants ended with {status}; its logs are in {}",
                output.display()
            );
        }
        Ok(())
    }

    /// The names of a package's mutants that ended like this: `missed`, `caught`, `timeout`.
    fn outcome(&self, package: &str, end: &str) -> Result<Vec<String>> {
        let path = self.folder.join(package).join(OUTPUT);
        let names = std::fs::read_to_string(path.join(format!("{end}.txt")))
            .with_context(|| format!("cargo mutants left no result in {}", path.display()))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("mutants")
            .arg("--dir")
            .arg(&self.tree)
            .stdin(Stdio::null())
            .env("CARGO", &self.cargo)
            .env("CARGO_TARGET_DIR", self.folder.join("build"))
            .env("NATS_SERVER_BIN", &self.nats_server);
        command
    }
}

fn packages(mutants: &[Mutant]) -> Vec<&str> {
    let mut packages: Vec<&str> = mutants.iter().map(|mutant| &*mutant.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// A name as a regular expression that matches nothing else.
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

/// Path of a mutant's file, below the top folder.
fn file_of(name: &str) -> &Path {
    Path::new(name.split(':').next().unwrap_or(name))
}
