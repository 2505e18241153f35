//! `cargo xtask mutants`: takes guards out of the code one at a time and checks that a test fails.
//! `docs/survivors.md` lists changes that no test notices, with the reason why they may survive;
//! any other survivor is an error.
//!
//! cargo-mutants lists the possible changes. They are woven into one build, each behind a switch
//! (`weave`), so that a mutant costs no compilation, only a run of the tests that reach it. The few
//! that cannot be switched, in constants above all, are built one by one by cargo-mutants itself.
//! All of it is done in copies of the checkout under `target/mutants`.

mod apart;
mod build;
mod chosen;
mod compare;
mod find;
mod judge;
mod listed;
mod survivors;
mod tree;
mod weave;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::deps::{self, Overrides};
use crate::process::Workspace;
use crate::{console, tools};
use build::{LeftOut, WovenBuild};
use judge::{End, Judge};
use listed::Mutant;
use survivors::Survivors;

const VERSION: &str = "27.1.0";
/// A file below `target/mutants`: the names of the mutants that survived the last run.
const SURVIVED: &str = "survived.txt";
/// The number of mutants that `cargo xtask test` tries: their tests take about a minute. The build,
/// and the first run of all tests, take a few, most of them if the store is among the packages.
const SAMPLE: usize = 40;
/// A package whose every line is a decision, a guard or a check.
struct GuardedPackage {
    package: &'static str,
    /// The files of the package that hold guards.
    files: &'static str,
    /// Another package whose tests cover this one too.
    also_tested_by: Option<&'static str>,
}

/// All guarded packages, in the order in which they are tried.
const GUARDED: &[GuardedPackage] = &[
    guarded("chain", "services/chain/src"),
    GuardedPackage {
        // Proofs are tested with those who check them.
        also_tested_by: Some("witness"),
        ..guarded("tlog", "services/tlog/src")
    },
    guarded("witness", "services/witness/src"),
    guarded("registrar-core", "services/registrar/core/src"),
    guarded("ledger", "services/ledger/src"),
    guarded("merge", "services/merge/src"),
    guarded("privacy", "services/privacy/src"),
    guarded("masking", "services/masking/src"),
    guarded("identity", "services/identity/src"),
    guarded("worker-core", "services/worker/core/src"),
    guarded("diloco-worker", "services/worker/src/verify.rs"),
    guarded("audit-core", "services/audit/core/src"),
    GuardedPackage {
        // Clients of a store are tested with the store.
        also_tested_by: Some("diloco-store"),
        ..guarded("objects", "services/objects/src")
    },
    guarded("coordinator-core", "services/coordinator/core/src"),
    guarded("diloco-store", "services/store/src"),
];

const fn guarded(package: &'static str, files: &'static str) -> GuardedPackage {
    GuardedPackage {
        package,
        files,
        also_tested_by: None,
    }
}

/// The packages whose tests cover this one: the package itself, and perhaps another.
fn testers(package: &str) -> Vec<&str> {
    let guarded = GUARDED.iter().find(|guarded| guarded.package == package);
    let other = guarded.and_then(|guarded| guarded.also_tested_by);
    [package].into_iter().chain(other).collect()
}

/// Options of `mutants`.
#[derive(Debug, Args)]
pub(crate) struct MutantOptions {
    /// Try only mutants of this package; may be given several times; by default all packages that
    /// hold guards
    #[arg(long, value_name = "PACKAGE")]
    package: Vec<String>,
    /// Try only mutants whose name contains this text: a file, a function, an operator
    #[arg(long, value_name = "TEXT")]
    matching: Option<String>,
    /// Try only this many, drawn from files that changed lately
    #[arg(long, value_name = "COUNT")]
    sample: Option<usize>,
    /// Try only those that survived the last run
    #[arg(long)]
    again: bool,
    /// Leave out the mutants that have to be built one by one
    #[arg(long)]
    switched: bool,
    /// Try each mutant twice, woven and built by itself, and compare; a sample is then drawn from
    /// all files
    #[arg(long)]
    compare: bool,
    /// Print the names of the mutants and run no test
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
    let all: Vec<&str> = GUARDED.iter().map(|guarded| guarded.package).collect();
    let packages: Vec<&str> = if options.package.is_empty() {
        all
    } else {
        options.package.iter().map(String::as_str).collect()
    };
    let listed = run.list(&packages)?;
    let mut chosen = listed.clone();
    if let Some(text) = &options.matching {
        chosen.retain(|mutant| mutant.name.contains(text.as_str()));
    }
    if let Some(count) = options.sample {
        chosen = match options.compare {
            true => chosen::draw(workspace, chosen, count)?,
            false => chosen::sample(workspace, chosen, count)?,
        };
    }
    if options.list {
        chosen.iter().for_each(|mutant| console::say(&mutant.name));
        return Ok(());
    }
    let is_whole = chosen.len() == listed.len() && !options.switched;
    if options.again {
        let before = run.survived_before()?;
        chosen.retain(|mutant| before.contains(&mutant.name));
    }
    if options.compare {
        return run.compare(&listed, &chosen).map(console::say);
    }
    let ends = run.judge(&listed, &chosen, options.switched)?;
    run.report(&chosen, &ends, is_whole).map(console::say)
}

/// Tries some mutants for `cargo xtask test`: those in files that changed lately, of packages that
/// `docs/survivors.md` calls complete. Returns a summary in words.
///
/// # Errors
/// A mutant survives.
pub(crate) fn try_sample(workspace: &Workspace, overrides: &Overrides) -> Result<String> {
    let survivors = Survivors::read(workspace.root())?;
    let Ok(changed) = chosen::changed(workspace) else {
        return Ok("no history to choose from".to_owned());
    };
    let complete = GUARDED.iter().filter(|guarded| {
        survivors.is_complete(guarded.package)
            && changed.iter().any(|file| file.starts_with(guarded.files))
    });
    let packages: Vec<&str> = complete.map(|guarded| guarded.package).collect();
    let nothing = "no guard changed lately".to_owned();
    if packages.is_empty() {
        return Ok(nothing);
    }
    let run = MutationRun::set_up(workspace, overrides)?;
    let mut listed = run.list(&packages)?;
    listed.retain(|mutant| changed.contains(&mutant.file));
    let drawn = chosen::draw(workspace, listed.clone(), SAMPLE)?;
    if drawn.is_empty() {
        return Ok(nothing);
    }
    let ends = run.judge(&listed, &drawn, true)?;
    run.report(&drawn, &ends, false)
}

fn is_meant(mutant: &Mutant) -> bool {
    GUARDED
        .iter()
        .find(|guarded| guarded.package == mutant.package)
        .is_none_or(|guarded| mutant.file.starts_with(guarded.files))
}

/// The end of each tried mutant, by its number.
type Ends = BTreeMap<u32, Ended>;

/// The end of a mutant, also of one that no test was run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Tested(End),
    /// The mutant does not compile.
    Unbuildable,
    /// The mutant would have to be built by itself, and the caller did not ask for that.
    NotTried,
}

/// The folders and programs of one run of `mutants`.
struct MutationRun<'a> {
    workspace: &'a Workspace,
    program: PathBuf,
    folder: PathBuf,
    nats_server: PathBuf,
    survivors: Survivors,
}

impl<'a> MutationRun<'a> {
    fn set_up(workspace: &'a Workspace, overrides: &Overrides) -> Result<Self> {
        let found = deps::ensure(&workspace.deps(), overrides)?;
        Ok(Self {
            workspace,
            program: tools::ensure(workspace, "cargo-mutants", VERSION)?,
            folder: workspace.root().join("target/mutants"),
            nats_server: found.nats_server,
            survivors: Survivors::read(workspace.root())?,
        })
    }

    /// All mutants in the guarded files of these packages.
    fn list(&self, packages: &[&str]) -> Result<Vec<Mutant>> {
        let root = self.workspace.root();
        let mut listed = listed::list(&mut self.cargo_mutants(root), packages)?;
        listed.retain(is_meant);
        listed.sort_by_key(|mutant| {
            let is_its = |guarded: &GuardedPackage| guarded.package == mutant.package;
            GUARDED.iter().position(is_its)
        });
        listed::without_constants(root, listed)
    }

    /// The names of the mutants that survived the last run.
    fn survived_before(&self) -> Result<Vec<String>> {
        let path = self.folder.join(SURVIVED);
        let names = fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}: there was no run", path.display()))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Builds all mutants that are `listed`, so that another choice among them compiles nothing
    /// anew, and runs the tests on the `chosen` ones.
    fn judge(&self, listed: &[Mutant], chosen: &[Mutant], only_switched: bool) -> Result<Ends> {
        console::say(format_args!("weaving {} mutants", listed.len()));
        let begun = Instant::now();
        let since = || console::span(begun.elapsed());
        let tree = self.folder.join("woven");
        let cargo = |arguments: &[&str]| self.cargo(&tree, arguments);
        let tested = |mutants| -> Vec<&str> {
            let testers = packages(mutants).into_iter().flat_map(testers);
            let unique: BTreeSet<&str> = testers.collect();
            unique.into_iter().collect()
        };
        let build = WovenBuild {
            root: self.workspace.root(),
            tree: &tree,
            mutants: listed,
            cargo: &cargo,
            memory: &self.folder.join("out"),
            packages: &tested(listed),
        };
        tree::update(self.workspace, &tree, &build.files())?;
        let mut built = build.build()?;
        console::say(format_args!("  built after {}", since()));
        let asked = tested(chosen);
        built
            .programs
            .retain(|program| asked.contains(&&*program.package));
        let judge = Judge::learn(built.programs, &self.nats_server, &self.folder)?;
        console::say(format_args!("  tests learnt after {}", since()));
        let mut ends = Ends::new();
        let mut alone = Vec::new();
        for package in packages(listed) {
            let own = chosen.iter().filter(|mutant| mutant.package == package);
            let (apart, switched): (Vec<&Mutant>, Vec<&Mutant>) = own
                .filter(|mutant| built.out.get(&mutant.number) != Some(&LeftOut::Unbuildable))
                .partition(|mutant| built.out.contains_key(&mutant.number));
            for mutant in switched {
                let end = judge.judge(mutant.number, &testers(package))?;
                if end != End::Caught && !self.survivors.contains(&mutant.name) {
                    console::say(format_args!("  {}: {}", end.word(), mutant.name));
                }
                ends.insert(mutant.number, Ended::Tested(end));
            }
            console::say(format_args!("  {package} judged after {}", since()));
            alone.push((package, apart));
        }
        // These builds replace woven programs, also those of other packages.
        for (package, apart) in alone {
            if only_switched {
                ends.extend(apart.iter().map(|mutant| (mutant.number, Ended::NotTried)));
            } else {
                self.judge_apart(package, &apart, &mut ends)?;
            }
        }
        self.remember(chosen, &ends)?;
        ends.extend(built.out.keys().filter_map(|number| {
            (built.out[number] == LeftOut::Unbuildable).then_some((*number, Ended::Unbuildable))
        }));
        Ok(ends)
    }

    fn remember(&self, chosen: &[Mutant], ends: &Ends) -> Result<()> {
        let survived = chosen.iter().filter(|mutant| {
            let end = ends.get(&mutant.number);
            matches!(end, Some(Ended::Tested(End::Survived | End::Unreached)))
        });
        let names: Vec<&str> = survived.map(|mutant| &*mutant.name).collect();
        let path = self.folder.join(SURVIVED);
        fs::write(&path, names.join("\n"))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Sums up the result in a line. A mutant that survived and is not listed is an error.
    fn report(&self, mutants: &[Mutant], ends: &Ends, is_whole: bool) -> Result<String> {
        let mut news = Vec::new();
        let mut known = Vec::new();
        let mut counts = [0; 4];
        for mutant in mutants {
            match ends[&mutant.number] {
                Ended::Tested(End::Caught) => counts[0] += 1,
                Ended::Tested(End::TimedOut) => counts[1] += 1,
                Ended::Unbuildable => counts[2] += 1,
                Ended::NotTried => counts[3] += 1,
                Ended::Tested(_) if self.survivors.contains(&mutant.name) => {
                    known.push(&*mutant.name)
                }
                Ended::Tested(_) => news.push(&*mutant.name),
            }
        }
        let said = format!(
            "{} mutants: {} caught, {} ran for ever, {} on the list, {} do not compile, {} not tried",
            mutants.len(),
            counts[0],
            counts[1],
            known.len(),
            counts[2],
            counts[3]
        );
        let mut faults = Vec::new();
        if !news.is_empty() {
            faults.push(format!(
                "no test fails when the code is changed like this:\n       {}\n       write the \
                 test, or say in {} why there is none",
                news.join("\n       "),
                survivors::FILE
            ));
        }
        if is_whole {
            let files: Vec<&Path> = mutants.iter().map(|mutant| &*mutant.file).collect();
            let gone = self.survivors.others(&files, &known);
            if !gone.is_empty() {
                faults.push(format!(
                    "{} lists what no longer survives:\n       {}",
                    survivors::FILE,
                    gone.join("\n       ")
                ));
            }
        }
        if faults.is_empty() {
            return Ok(said);
        }
        bail!("{said}\n       {}", faults.join("\n       "))
    }

    /// A cargo command in one of the copies of the checkout.
    fn cargo(&self, tree: &Path, arguments: &[&str]) -> Command {
        let mut command = self.workspace.cargo(arguments);
        command
            .current_dir(tree)
            .env("CARGO_TARGET_DIR", self.folder.join("build"));
        if arguments.contains(&"diloco-worker") {
            // The tests of this package need no libtorch.
            command.arg("--no-default-features");
        }
        command
    }

    fn cargo_mutants(&self, tree: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("mutants")
            .arg("--dir")
            .arg(tree)
            .stdin(Stdio::null())
            .env("CARGO", self.workspace.cargo(&[]).get_program())
            .env("CARGO_TARGET_DIR", self.folder.join("build"))
            .env("NATS_SERVER_BIN", &self.nats_server);
        command
    }
}

fn packages(mutants: &[Mutant]) -> Vec<&str> {
    let mut packages: Vec<&str> = Vec::new();
    for mutant in mutants {
        if !packages.contains(&&*mutant.package) {
            packages.push(&mutant.package);
        }
    }
    packages
}
