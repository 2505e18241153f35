//! Starts programs, cargo in this workspace and others, and handles their output and exit status.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use schemas::{Code, Refusal};

/// The checkout that this program was built from.
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The folder above this crate's, unless cargo says at run time that the crate was moved.
    pub(crate) fn locate() -> Self {
        let built = env!("CARGO_MANIFEST_DIR");
        let crate_folder = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(built), PathBuf::from);
        Self {
            root: crate_folder
                .parent()
                .expect("xtask lies in the workspace's folder")
                .to_path_buf(),
        }
    }

    /// The top folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A built program; `profile` names its folder below `target`.
    pub(crate) fn program(&self, profile: &str, name: &str) -> PathBuf {
        self.root.join("target").join(profile).join(name)
    }

    /// The folder of downloads.
    pub(crate) fn deps(&self) -> PathBuf {
        self.root.join(".deps")
    }

    /// A cargo command in the top folder, as if a person had typed it. Variables that cargo itself
    /// added to our environment are removed; with them cargo would build crates anew each time a
    /// person and this program take turns.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .current_dir(&self.root)
            .args(arguments)
            .stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let ours = text.starts_with("CARGO_PKG_")
                || text.starts_with("CARGO_MANIFEST_")
                || text == "CARGO_PRIMARY_PACKAGE";
            if ours || (text == "LIBTORCH" && !self.is_libtorch_exported()) {
                command.env_remove(&name);
            }
        }
        command
    }

    /// True when a person exported LIBTORCH. `.cargo/config.toml` sets the variable too, to the
    /// pinned copy.
    pub(crate) fn is_libtorch_exported(&self) -> bool {
        let set = std::env::var_os("LIBTORCH").filter(|value| !value.is_empty());
        set.is_some_and(|value| Path::new(&value) != self.deps().join("libtorch"))
    }
}

/// Runs a command to its end; its output goes where ours goes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .map_err(|error| not_started(command, &error))?;
    if status.success() {
        Ok(())
    } else {
        bail!("`{}` failed ({status})", line(command))
    }
}

/// Runs a command and returns its stdout; its stderr is part of the error.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| not_started(command, &error))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    bail!(
        "`{}` failed ({}): {}",
        line(command),
        output.status,
        tail(&String::from_utf8_lossy(&output.stderr))
    )
}

/// Runs a command and shows its stdout as it comes; each line is passed to `see` as well.
pub(crate) fn run_seen(command: &mut Command, mut see: impl FnMut(&str)) -> Result<()> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| not_started(command, &error))?;
    let mut reader = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut bytes = Vec::new();
    while read_line(&mut reader, &mut bytes)? {
        see(String::from_utf8_lossy(&bytes).trim_end());
        stdout()
            .lock()
            .write_all(&bytes)
            .context("cannot write to stdout")?;
        bytes.clear();
    }
    let status = child.wait().context("cannot wait for the program")?;
    if status.success() {
        Ok(())
    } else {
        bail!("`{}` failed ({status})", line(command))
    }
}

/// The last lines of a text, for an error message.
pub(crate) fn tail(text: &str) -> String {
    const LINES: usize = 6;
    let lines: Vec<_> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}

/// Longest piece of a line; tests may print megabytes without a line end.
const LINE_BYTES_MAX: u64 = 1 << 20;

fn read_line(reader: &mut impl BufRead, bytes: &mut Vec<u8>) -> Result<bool> {
    let count = reader
        .by_ref()
        .take(LINE_BYTES_MAX)
        .read_until(b'\n', bytes)
        .context("cannot read the program's output")?;
    Ok(count > 0)
}

fn not_started(command: &Command, error: &std::io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy().into_owned();
    if error.kind() == ErrorKind::NotFound {
        return Refusal::new(
            Code::ToolMissing,
            format!("`{program}` was not found on the PATH"),
        )
        .into();
    }
    anyhow::anyhow!("cannot start `{program}`: {error}")
}

fn line(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_has_a_code() {
        let error = run(&mut Command::new("no-such-program-here")).expect_err("cannot run");
        let refusal = error.downcast_ref::<Refusal>().expect("coded");
        assert_eq!(refusal.code, Code::ToolMissing);
        assert!(refusal.detail.contains("no-such-program-here"));
    }

    #[test]
    fn lines_are_seen_and_the_failure_is_told() {
        let mut seen = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "printf 'one\\ntwo'; exit 3"]);
        let error = run_seen(&mut command, |line| seen.push(line.to_owned())).expect_err("exit 3");
        assert_eq!(seen, ["one", "two"]);
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }

    #[test]
    fn the_end_of_a_long_text_is_kept() {
        let text = (0..20).map(|n| format!("line {n}\n\n")).collect::<String>();
        assert!(tail(&text).starts_with("line 14 | "));
        assert!(tail(&text).ends_with("line 19"));
    }
}
