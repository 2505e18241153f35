//! `cargo xtask fuzz`: builds the fuzz targets with counters in the code, and lets libFuzzer search
//! for inputs that reach new code. The inputs worth keeping go into `tests/fuzz/corpus`, which
//! tests replay.
//!
//! The compiler's counters are options of a stable rustc, so no nightly one is needed, and no
//! address sanitizer: the targets have next to no unsafe code, and a panic is what they look for.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::console;
use crate::process::{self, Workspace};

/// Counters at every edge of the code, and what is compared there; checks that release builds leave
/// out.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks";
/// Longest input, in bytes, so that the corpus stays small.
const INPUT_BYTES_MAX: u32 = 4096;
/// Seconds after which an input counts as an endless loop.
const SECONDS_MAX: u32 = 20;

/// What to try.
#[derive(Args)]
pub(crate) struct FuzzOptions {
    /// The target; without one, all of them, one after another
    target: Option<String>,
    /// Read this one input instead of searching
    input: Option<PathBuf>,
    /// Seconds of search for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Add the inputs that reach new code to the corpus of the tests
    #[arg(long)]
    keep: bool,
    /// List the targets
    #[arg(long)]
    list: bool,
}

/// Does what the options say.
pub(crate) fn run_fuzz(workspace: &Workspace, options: &FuzzOptions) -> Result<()> {
    let seeds = build_seeds(workspace)?;
    let listed = process::capture(&mut Command::new(&seeds))?;
    if options.list {
        console::say(listed.trim_end());
        return Ok(());
    }
    let names = listed.lines().filter_map(|line| line.split('\t').next());
    let wanted = |name: &&str| options.target.as_ref().is_none_or(|wanted| wanted == name);
    let names: Vec<&str> = names.filter(wanted).collect();
    if names.is_empty() {
        bail!("no such target; `cargo xtask fuzz --list` shows them");
    }
    let fuzzer = Fuzzer {
        program: build(workspace)?,
        seeds,
        folder: workspace.root().join("target/fuzz"),
        kept: workspace.root().join("tests/fuzz/corpus"),
    };
    match &options.input {
        Some(input) => fuzzer.read(names[0], input),
        None => {
            // A target that fails does not keep the others from being tried.
            let ended = names.into_iter().map(|name| fuzzer.search(name, options));
            let failed: Vec<_> = ended.filter_map(Result::err).collect();
            failed.iter().for_each(console::failure);
            ensure!(failed.is_empty(), "{} targets failed", failed.len());
            Ok(())
        }
    }
}

/// The built fuzzer, and its folders.
struct Fuzzer {
    program: PathBuf,
    seeds: PathBuf,
    /// Everything that no commit holds: the found corpus, and inputs that failed.
    folder: PathBuf,
    /// The corpus of the tests.
    kept: PathBuf,
}

impl Fuzzer {
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("DILOCO_FUZZ_TARGET", name)
            .arg(format!("-max_len={INPUT_BYTES_MAX}"))
            .arg(format!("-timeout={SECONDS_MAX}"));
        command
    }

    /// Reads one input, as a debugger needs it.
    fn read(&self, name: &str, input: &Path) -> Result<()> {
        ensure!(input.is_file(), "{} is no file", input.display());
        process::run(self.command(name).arg(input))
    }

    fn search(&self, name: &str, options: &FuzzOptions) -> Result<()> {
        let found = self.folder.join("corpus").join(name);
        let failed = self.folder.join("failed").join(name);
        let kept = self.kept.join(name);
        for folder in [&found, &failed, &kept] {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let seeds = self.folder.join("seeds").join(name);
        process::run(Command::new(&self.seeds).arg(name).arg(&seeds))?;
        console::say(format!("{name}: {} s", options.seconds));
        let mut search = self.command(name);
        search
            .args([&found, &kept, &seeds])
            .arg(format!("-max_total_time={}", options.seconds))
            .arg(format!("-artifact_prefix={}/", failed.display()))
            .args(["-print_final_stats=1", "-verbosity=0"]);
        process::run(&mut search).with_context(|| {
            let again = format!("cargo xtask fuzz {name} FILE");
            format!(
                "target {name} failed; the input is in {}; `{again}` reads it again",
                failed.display()
            )
        })?;
        match options.keep {
            true => process::run(
                self.command(name)
                    .arg("-set_cover_merge=1")
                    .args([&kept, &seeds, &found]),
            ),
            false => Ok(()),
        }
    }
}

/// The program that knows the targets and their seeds.
fn build_seeds(workspace: &Workspace) -> Result<PathBuf> {
    process::run(&mut workspace.cargo(&[
        "build",
        "--quiet",
        "--locked",
        "--package",
        "fuzz",
        "--bin",
        "seeds",
    ]))?;
    Ok(workspace.program("debug", "seeds"))
}

fn build(workspace: &Workspace) -> Result<PathBuf> {
    let target = process::capture(&mut workspace.cargo(&["-vV"]))?;
    let target = target.lines().find_map(|line| line.strip_prefix("host: "));
    let target = target.context("`cargo -vV` names no host")?;
    let folder = workspace.root().join("target/fuzz");
    // With a named target, build scripts and macros get none of these flags.
    let mut build = workspace.cargo(&[
        "build",
        "--release",
        "--locked",
        "--package",
        "fuzz",
        "--bin",
        "fuzz",
        "--features",
        "libfuzzer",
        "--target",
        target,
    ]);
    build
        .env("RUSTFLAGS", FLAGS)
        .arg("--target-dir")
        .arg(&folder);
    process::run(&mut build)?;
    Ok(folder.join(target).join("release/fuzz"))
}
