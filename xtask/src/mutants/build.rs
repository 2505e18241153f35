//! The woven build: all mutants of some packages compiled at once. Mutants that do not compile are
//! taken out and the rest is compiled again, until all of it does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use schemas::Digest;
use serde_json::Value;

use super::listed::{Mutant, MutantKind};
use super::weave::{self, Woven};
use crate::console;

/// Most attempts to compile; if more are needed, an error is attributed to the wrong mutant again
/// and again.
const ROUNDS_MAX: usize = 30;
/// Codes of errors that need not be the mutant's own fault: a switch cannot be evaluated at compile
/// time, and borrows of the alternatives may conflict.
const OF_THE_SWITCH: &[&str] = &[
    "E0015", "E0373", "E0382", "E0493", "E0499", "E0502", "E0505", "E0506", "E0515", "E0521",
    "E0597", "E0658", "E0700", "E0716",
];
/// Code of the error for a `match` that does not cover a case: the compiler does not count an arm
/// with a switch as covering its case.
const NOT_EXHAUSTIVE: &str = "E0004";
/// The root files of a crate, below its `src`.
const ROOTS: &[&str] = &["lib.rs", "main.rs"];

/// The reason why a mutant is not part of the woven build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeftOut {
    /// It does not compile, so nobody can ship it.
    Unbuildable,
    /// It cannot be switched, so it is built by itself.
    Apart,
}

/// A test program.
pub(super) struct Program {
    pub(super) package: String,
    /// The folder in which cargo runs the program.
    pub(super) folder: PathBuf,
    pub(super) path: PathBuf,
}

/// The result of the build.
pub(super) struct Built {
    pub(super) programs: Vec<Program>,
    pub(super) out: BTreeMap<u32, LeftOut>,
}

/// The copy of the checkout, with mutants woven into it.
pub(super) struct WovenBuild<'a> {
    /// The checkout.
    pub(super) root: &'a Path,
    pub(super) tree: &'a Path,
    pub(super) mutants: &'a [Mutant],
    pub(super) cargo: &'a dyn Fn(&[&str]) -> Command,
    pub(super) packages: &'a [&'a str],
    /// A file with the mutants that are left out of the build; it is kept from run to run.
    pub(super) memory: &'a Path,
}

impl WovenBuild<'_> {
    /// Files that differ from the checkout: those with mutants, and the roots of their crates.
    pub(super) fn files(&self) -> BTreeSet<PathBuf> {
        let mut files = BTreeSet::new();
        for mutant in self.mutants {
            files.insert(mutant.file.clone());
            files.extend(roots(self.root, &mutant.file));
        }
        files
    }

    /// Compiles the tests of all packages.
    ///
    /// # Errors
    /// cargo cannot be started, or no mutant causes an error of the compiler.
    pub(super) fn build(&self) -> Result<Built> {
        let mut out = self.remembered()?;
        let mut kept_const = BTreeSet::new();
        for mutant in self.mutants {
            if mutant.kind == MutantKind::Value && mutant.returns_opaque {
                out.insert(mutant.number, LeftOut::Apart);
            }
        }
        for _ in 0..ROUNDS_MAX {
            let woven = self.write(&mut out, &kept_const)?;
            let messages = self.compile()?;
            let errors: Vec<&Value> = messages
                .iter()
                .filter(|message| message["message"]["level"] == "error")
                .map(|message| &message["message"])
                .collect();
            if errors.is_empty() {
                let programs = programs(&messages)?;
                self.remember(&out)?;
                return Ok(Built { programs, out });
            }
            console::say(format_args!("  {} errors of mutants", errors.len()));
            for error in errors {
                blame(error, &woven, &mut out, &mut kept_const)?;
            }
        }
        bail!("the woven build does not compile after {ROUNDS_MAX} rounds")
    }

    /// The mutants that an earlier run over the same code left out of the build.
    fn remembered(&self) -> Result<BTreeMap<u32, LeftOut>> {
        let kept = fs::read_to_string(self.memory).unwrap_or_default();
        let kept: BTreeSet<&str> = kept.lines().collect();
        let mut out = BTreeMap::new();
        for (mutant, line) in self.lines()? {
            for why in [LeftOut::Unbuildable, LeftOut::Apart] {
                if kept.contains(&*format!("{why:?} {line}")) {
                    out.insert(mutant.number, why);
                }
            }
        }
        Ok(out)
    }

    fn remember(&self, out: &BTreeMap<u32, LeftOut>) -> Result<()> {
        let kept = fs::read_to_string(self.memory).unwrap_or_default();
        let mut kept: BTreeSet<String> = kept.lines().map(str::to_owned).collect();
        for (mutant, line) in self.lines()? {
            if let Some(why) = out.get(&mutant.number) {
                kept.insert(format!("{why:?} {line}"));
            }
        }
        let text: Vec<String> = kept.into_iter().collect();
        fs::write(self.memory, text.join("\n"))
            .with_context(|| format!("cannot write {}", self.memory.display()))
    }

    /// Each mutant with its name and the digest of its file.
    fn lines(&self) -> Result<Vec<(&Mutant, String)>> {
        let mut digests: BTreeMap<&Path, String> = BTreeMap::new();
        let mut lines = Vec::new();
        for mutant in self.mutants {
            if !digests.contains_key(&*mutant.file) {
                let bytes = fs::read(self.root.join(&mutant.file))
                    .with_context(|| format!("cannot read {}", mutant.file.display()))?;
                digests.insert(&mutant.file, Digest::of(&bytes).to_string());
            }
            lines.push((
                mutant,
                format!("{} {}", digests[&*mutant.file], mutant.name),
            ));
        }
        Ok(lines)
    }

    fn write(
        &self,
        out: &mut BTreeMap<u32, LeftOut>,
        kept_const: &BTreeSet<String>,
    ) -> Result<BTreeMap<PathBuf, Woven>> {
        let mut written = BTreeMap::new();
        let gone: BTreeSet<u32> = out.keys().copied().collect();
        for file in self.files() {
            let text = fs::read_to_string(self.root.join(&file))
                .with_context(|| format!("cannot read {}", file.display()))?;
            let here = self.mutants.iter().filter(|mutant| mutant.file == file);
            let mut woven = weave::weave(&text, here, &gone, kept_const)
                .with_context(|| format!("cannot weave {}", file.display()))?;
            for number in &woven.apart {
                out.insert(*number, LeftOut::Apart);
            }
            if roots(self.root, &file).contains(&file) {
                woven.text.push_str(weave::SWITCH);
            }
            let path = self.tree.join(&file);
            if !fs::read_to_string(&path).is_ok_and(|there| there == woven.text) {
                let folder = path.parent().expect("it lies in the tree");
                fs::create_dir_all(folder)
                    .and_then(|()| fs::write(&path, &woven.text))
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
            written.insert(file, woven);
        }
        Ok(written)
    }

    /// Builds the tests, as far as they compile. Returns the output of cargo, line by line.
    fn compile(&self) -> Result<Vec<Value>> {
        let mut arguments = vec!["build", "--tests", "--keep-going"];
        arguments.extend(["--message-format=json", "--quiet"]);
        for package in self.packages {
            arguments.extend(["--package", package]);
        }
        let output = (self.cargo)(&arguments)
            .stderr(Stdio::piped())
            .output()
            .context("cannot start cargo")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let messages: Vec<Value> = said
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let is_error = |message: &Value| message["message"]["level"] == "error";
        ensure!(
            output.status.success() || messages.iter().any(is_error),
            "cargo failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(messages)
    }
}

/// The root files of the crate that a file belongs to.
fn roots(root: &Path, file: &Path) -> Vec<PathBuf> {
    let source = file
        .ancestors()
        .find(|folder| folder.file_name().is_some_and(|name| name == "src"));
    let source = source.expect("cargo-mutants changes files below src");
    let paths = ROOTS.iter().map(|name| source.join(name));
    paths.filter(|path| root.join(path).is_file()).collect()
}

/// Finds the mutants that cause an error of the compiler.
fn blame(
    error: &Value,
    woven: &BTreeMap<PathBuf, Woven>,
    out: &mut BTreeMap<u32, LeftOut>,
    kept_const: &mut BTreeSet<String>,
) -> Result<()> {
    let code = error["code"]["code"].as_str().unwrap_or_default();
    let why = if OF_THE_SWITCH.contains(&code) {
        LeftOut::Apart
    } else {
        LeftOut::Unbuildable
    };
    let mut spans = Vec::new();
    collect_spans(error, &mut spans);
    for (file, span) in &spans {
        let Some(woven) = woven.get(file) else {
            continue;
        };
        let inside = woven
            .code
            .iter()
            .filter(|(range, _)| range.start <= span.start && span.end <= range.end)
            .min_by_key(|(range, _)| range.len());
        if let Some((_, number)) = inside {
            out.insert(*number, why);
            return Ok(());
        }
    }
    let message = error["message"].as_str().unwrap_or_default();
    if code == "E0015" {
        let called = message.split('`').nth(1).unwrap_or_default();
        let name = called.rsplit("::").next().unwrap_or_default();
        kept_const.insert(name.to_owned());
        return Ok(());
    }
    let mut is_attributed = message.starts_with("aborting due to");
    for (file, span) in &spans {
        let Some(woven) = woven.get(file) else {
            continue;
        };
        let line = if code == NOT_EXHAUSTIVE {
            body_after(&woven.text, span)
        } else {
            line_around(&woven.text, span)
        };
        for (range, number) in &woven.code {
            if line.start <= range.start && range.start < line.end {
                out.insert(*number, LeftOut::Apart);
                is_attributed = true;
            }
        }
    }
    let rendered = error["rendered"].as_str().unwrap_or(message);
    ensure!(is_attributed, "an error is no mutant's: {rendered}");
    Ok(())
}

fn line_around(text: &str, span: &Range<usize>) -> Range<usize> {
    let start = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
    let end = text[span.end..].find('\n');
    start..end.map_or(text.len(), |at| span.end + at)
}

/// The range from a place to the end of its function.
fn body_after(text: &str, span: &Range<usize>) -> Range<usize> {
    let rest = &text[span.end..];
    let end = ["\n}\n", "\n    }\n"]
        .iter()
        .filter_map(|end| rest.find(end))
        .min();
    span.start..span.end + end.unwrap_or(rest.len())
}

/// All places that an error names, its main one first.
fn collect_spans(message: &Value, spans: &mut Vec<(PathBuf, Range<usize>)>) {
    let own = message["spans"].as_array().into_iter().flatten();
    let (main, others): (Vec<&Value>, Vec<&Value>) =
        own.partition(|span| span["is_primary"] == true);
    for span in main.into_iter().chain(others) {
        let mut place = span;
        loop {
            let byte = |field: &str| place[field].as_u64().and_then(|n| usize::try_from(n).ok());
            if let (Some(file), Some(start), Some(end)) = (
                place["file_name"].as_str(),
                byte("byte_start"),
                byte("byte_end"),
            ) {
                spans.push((file.into(), start..end));
            }
            if place["expansion"].is_null() {
                break;
            }
            place = &place["expansion"]["span"];
        }
    }
    for child in message["children"].as_array().into_iter().flatten() {
        collect_spans(child, spans);
    }
}

/// The test programs that cargo built.
fn programs(messages: &[Value]) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for message in messages {
        let (Some(path), true) = (
            message["executable"].as_str(),
            message["profile"]["test"] == true,
        ) else {
            continue;
        };
        let manifest = message["manifest_path"].as_str().context("no manifest")?;
        let folder = Path::new(manifest).parent().context("no folder")?;
        let manifest_text =
            fs::read_to_string(manifest).with_context(|| format!("cannot read {manifest}"))?;
        let name = manifest_text
            .lines()
            .find_map(|line| line.strip_prefix("name = "))
            .context("no name")?;
        programs.push(Program {
            package: name.trim_matches('"').to_owned(),
            folder: folder.to_owned(),
            path: path.into(),
        });
    }
    Ok(programs)
}
