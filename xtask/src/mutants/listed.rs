//! The mutants of some packages, as cargo-mutants lists them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::find::{self, Lines, Places};
use crate::process;

/// The kind of a change to the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MutantKind {
    /// A function returns a value at once.
    Value,
    /// An operator becomes another one, or is left out.
    Operator,
    /// A field of a struct expression takes the value of the base.
    Field,
    /// A guard of a `match` becomes always true, or always false.
    Guard,
    /// An arm of a `match` is left out.
    Arm,
}

/// A change of the code that a test should notice.
#[derive(Clone, Debug)]
pub(crate) struct Mutant {
    /// File, line, column and the change, as cargo-mutants writes them.
    pub(super) name: String,
    pub(super) package: String,
    pub(super) file: PathBuf,
    pub(super) kind: MutantKind,
    pub(super) replacement: String,
    /// The place where the replaced code begins: a line from 1, a column in characters from 0.
    pub(super) from: (usize, usize),
    /// The place where it ends.
    pub(super) to: (usize, usize),
    /// True for a function that returns `impl Trait`: a value of another type cannot be returned
    /// beside its own.
    pub(super) returns_opaque: bool,
    /// Its place in the list, from 1: the switch in a woven build knows the mutant by this number.
    pub(super) number: u32,
}

/// Asks cargo-mutants for all of `packages`.
///
/// # Errors
/// cargo-mutants fails, or its list has a form that this program does not know.
pub(super) fn list(cargo_mutants: &mut Command, packages: &[&str]) -> Result<Vec<Mutant>> {
    cargo_mutants.args(["--list", "--json"]);
    for package in packages {
        cargo_mutants.args(["--package", package]);
    }
    read(&process::capture(cargo_mutants)?)
}

/// Drops the mutants in constants: a test of `64 * 1024` would only repeat it, and the effect of a
/// limit is tested where it is compared.
///
/// # Errors
/// A file cannot be read, or is not Rust.
pub(super) fn without_constants(root: &Path, mutants: Vec<Mutant>) -> Result<Vec<Mutant>> {
    let mut files: BTreeMap<PathBuf, (Lines, Places)> = BTreeMap::new();
    let mut kept = Vec::new();
    for mutant in mutants {
        if !files.contains_key(&mutant.file) {
            let text = fs::read_to_string(root.join(&mutant.file))
                .with_context(|| format!("cannot read {}", mutant.file.display()))?;
            let lines = Lines::of(&text);
            let places = find::places(&text, &lines)?;
            files.insert(mutant.file.clone(), (lines, places));
        }
        let (lines, places) = &files[&mutant.file];
        let at = lines.byte(mutant.from.0, mutant.from.1);
        if !places.constants.iter().any(|range| range.contains(&at)) {
            kept.push(mutant);
        }
    }
    Ok(kept)
}

fn read(listed: &str) -> Result<Vec<Mutant>> {
    let listed: Vec<Value> =
        serde_json::from_str(listed).context("the list of cargo-mutants is no JSON")?;
    let numbered = (1..).zip(listed);
    numbered
        .map(|(number, value)| {
            one(number, &value).with_context(|| format!("cargo-mutants listed {value}"))
        })
        .collect()
}

fn one(number: u32, value: &Value) -> Result<Mutant> {
    let text = |field: &str| -> Result<String> {
        let text = value[field].as_str();
        Ok(text.with_context(|| format!("no text {field}"))?.to_owned())
    };
    let place = |end: &str| -> Result<(usize, usize)> {
        let number = |field: &str| -> Result<usize> {
            let number = value["span"][end][field].as_u64();
            Ok(usize::try_from(number.context("no position")?)?)
        };
        Ok((number("line")?, number("column")?.saturating_sub(1)))
    };
    Ok(Mutant {
        name: text("name")?,
        package: text("package")?,
        file: text("file")?.into(),
        kind: match &*text("genre")? {
            "FnValue" => MutantKind::Value,
            "BinaryOperator" | "UnaryOperator" => MutantKind::Operator,
            "StructField" => MutantKind::Field,
            "MatchArmGuard" => MutantKind::Guard,
            "MatchArm" => MutantKind::Arm,
            other => bail!("unknown genre {other}"),
        },
        replacement: text("replacement")?,
        from: place("start")?,
        to: place("end")?,
        returns_opaque: value["function"]["return_type"]
            .as_str()
            .is_some_and(|kind| kind.contains("impl ")),
        number,
    })
}
