//! Runs the tests of a woven build: first without a mutant, to learn which test reaches which
//! mutant; then, for each mutant, the tests that reach it with the mutant on.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::build::Program;
use crate::process;

/// Pause between two looks at a test program.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Factor by which tests may take longer than without a mutant, since the machine may be busy.
const TIMES_SLOWER: u32 = 20;
/// Most time that the factor adds. Without it, a hang in tests that take a minute would be noticed
/// after twenty.
const SLOWER_MOST: Duration = Duration::from_secs(45);
/// Time that tests may take in any case.
const TIME_LEAST: Duration = Duration::from_secs(15);
/// Number of slow tests that run one by one.
const SINGLY: usize = 3;
/// Longest time for a test without any mutant.
const TIME_UNCHANGED: Duration = Duration::from_secs(300);
/// Most memory for a mutant that allocates for ever, in KiB of address space.
const MEMORY_KIB: &str = "12000000";
/// Tests that together take no longer than this run first, in one process: they catch most mutants.
/// Of the slower tests the first ones run one by one, the others together.
const QUICK: Duration = Duration::from_millis(150);

/// The end of a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// A test failed.
    Caught,
    /// The tests did not end.
    TimedOut,
    /// All tests passed.
    Survived,
    /// No test runs that code.
    Unreached,
}

impl End {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Caught => "caught",
            Self::TimedOut => "ran for ever",
            Self::Survived => "survived",
            Self::Unreached => "no test runs it",
        }
    }
}

struct Test {
    program: usize,
    name: String,
    time: Duration,
}

/// The facts about a test that a run without mutants shows.
struct TestFacts {
    name: String,
    millis: u64,
    reached: Vec<u32>,
}

/// The facts about tests, by the stamp of their program.
type Memory = BTreeMap<String, Vec<TestFacts>>;

/// A value that tells a program from that of another build.
fn stamp(program: &Path) -> Result<String> {
    let found =
        fs::metadata(program).with_context(|| format!("cannot look at {}", program.display()))?;
    let changed = found.modified()?.duration_since(UNIX_EPOCH)?;
    Ok(format!(
        "{} {} {}",
        program.display(),
        found.len(),
        changed.as_nanos()
    ))
}

/// The facts from an earlier run; none if there was none.
fn read_memory(path: &Path) -> Memory {
    let text = fs::read_to_string(path).unwrap_or_default();
    let read: Value = serde_json::from_str(&text).unwrap_or_default();
    let test = |value: &Value| {
        let reached = value["reached"].as_array()?;
        Some(TestFacts {
            name: value["name"].as_str()?.to_owned(),
            millis: value["millis"].as_u64()?,
            reached: reached
                .iter()
                .filter_map(|number| u32::try_from(number.as_u64()?).ok())
                .collect(),
        })
    };
    let programs = read.as_object().into_iter().flatten();
    programs
        .map(|(stamp, tests)| {
            let tests = tests.as_array().into_iter().flatten();
            (stamp.clone(), tests.filter_map(test).collect())
        })
        .collect()
}

fn write_memory(path: &Path, memory: &Memory) -> Result<()> {
    let test = |test: &TestFacts| json!({"name": test.name, "millis": test.millis, "reached": test.reached});
    let programs = memory.iter().map(|(stamp, tests)| {
        let tests: Vec<Value> = tests.iter().map(test).collect();
        (stamp.clone(), Value::Array(tests))
    });
    let text = Value::Object(programs.collect()).to_string();
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The programs, and the mutants that each of their tests reaches.
pub(super) struct Judge {
    programs: Vec<Program>,
    /// What tells each program from that of another build.
    stamps: Vec<String>,
    tests: Vec<Test>,
    /// Tests by mutant, the quickest first.
    reaching: BTreeMap<u32, Vec<usize>>,
    nats_server: PathBuf,
    scratch: PathBuf,
}

impl Judge {
    /// Runs every test by itself, without a mutant.
    ///
    /// # Errors
    /// A test fails.
    pub(super) fn learn(programs: Vec<Program>, nats_server: &Path, folder: &Path) -> Result<Self> {
        let mut judge = Self {
            programs,
            stamps: Vec::new(),
            tests: Vec::new(),
            reaching: BTreeMap::new(),
            nats_server: nats_server.to_owned(),
            scratch: folder.join("scratch"),
        };
        let memory = folder.join("learnt");
        let mut known = read_memory(&memory);
        for program in 0..judge.programs.len() {
            let stamp = stamp(&judge.programs[program].path)?;
            if !known.contains_key(&stamp) {
                let mut learnt = Vec::new();
                for name in judge.names(program)? {
                    learnt.push(judge.try_test(program, name, &folder.join("reached"))?);
                }
                known.insert(stamp.clone(), learnt);
                write_memory(&memory, &known)?;
            }
            judge.stamps.push(stamp.clone());
            for test in &known[&stamp] {
                for number in &test.reached {
                    let reaching = judge.reaching.entry(*number).or_default();
                    reaching.push(judge.tests.len());
                }
                judge.tests.push(Test {
                    program,
                    name: test.name.clone(),
                    time: Duration::from_millis(test.millis),
                });
            }
        }
        for tests in judge.reaching.values_mut() {
            tests.sort_by_key(|test| judge.tests[*test].time);
        }
        Ok(judge)
    }

    fn names(&self, program: usize) -> Result<Vec<String>> {
        let path = &self.programs[program].path;
        let listed = process::capture(Command::new(path).args(["--list", "--format", "terse"]))?;
        let names = listed
            .lines()
            .filter_map(|line| line.strip_suffix(": test"));
        Ok(names.map(str::to_owned).collect())
    }

    fn try_test(&self, program: usize, name: String, reached: &Path) -> Result<TestFacts> {
        let mut command = self.command(program, std::slice::from_ref(&name))?;
        command.env("MUTANTS_REACHED", reached);
        // A test that fails is run once more: a busy machine is no fault of the code.
        for _ in 0..2 {
            let _ = fs::remove_file(reached);
            let begun = Instant::now();
            let status = ended(command.spawn()?, TIME_UNCHANGED)?;
            if status.is_some_and(|status| status.success()) {
                let numbers = fs::read_to_string(reached).unwrap_or_default();
                let mut numbers: Vec<u32> = numbers
                    .lines()
                    .filter_map(|line| line.parse().ok())
                    .collect();
                numbers.sort_unstable();
                numbers.dedup();
                return Ok(TestFacts {
                    name,
                    millis: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
                    reached: numbers,
                });
            }
        }
        bail!(
            "{}: {name} fails without any mutant",
            self.programs[program].package
        )
    }

    /// Runs the tests of these packages that reach the mutant.
    ///
    /// # Errors
    /// A program cannot be run, or is of another build: it may lack the mutant, and nothing follows
    /// from its tests.
    pub(super) fn judge(&self, number: u32, packages: &[&str]) -> Result<End> {
        let own = |test: &&usize| {
            let program = &self.programs[self.tests[**test].program];
            packages.contains(&&*program.package)
        };
        let reaching = self.reaching.get(&number);
        let tests: Vec<usize> = reaching
            .into_iter()
            .flatten()
            .filter(own)
            .copied()
            .collect();
        if tests.is_empty() {
            return Ok(End::Unreached);
        }
        let mut sum = Duration::ZERO;
        let (quick, slow): (Vec<usize>, Vec<usize>) = tests.iter().partition(|test| {
            sum += self.tests[**test].time;
            sum <= QUICK
        });
        let (next, rest) = slow.split_at(slow.len().min(SINGLY));
        let batches = [&quick[..]].into_iter().chain(next.chunks(1)).chain([rest]);
        for batch in batches {
            let end = self.run(number, batch)?;
            if end != End::Survived {
                return Ok(end);
            }
        }
        Ok(End::Survived)
    }

    fn run(&self, number: u32, tests: &[usize]) -> Result<End> {
        let mut by_program: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        let mut time = Duration::ZERO;
        for test in tests {
            let test = &self.tests[*test];
            time += test.time;
            by_program
                .entry(test.program)
                .or_default()
                .push(test.name.clone());
        }
        for (program, names) in by_program {
            let path = &self.programs[program].path;
            ensure!(
                stamp(path)? == self.stamps[program],
                "{} was built anew while its tests ran",
                path.display()
            );
            let mut command = self.command(program, &names)?;
            command.env("MUTANT_ON", number.to_string());
            match ended(command.spawn()?, patience(time))? {
                None => return Ok(End::TimedOut),
                Some(status) if !status.success() => return Ok(End::Caught),
                Some(_) => {}
            }
        }
        Ok(End::Survived)
    }

    fn command(&self, program: usize, names: &[String]) -> Result<Command> {
        let program = &self.programs[program];
        if self.scratch.exists() {
            let _ = fs::remove_dir_all(&self.scratch);
        }
        fs::create_dir_all(&self.scratch)
            .with_context(|| format!("cannot make {}", self.scratch.display()))?;
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!(
                "ulimit -v {MEMORY_KIB}; ulimit -c 0; exec \"$0\" \"$@\""
            ))
            .arg(&program.path)
            .arg("--exact")
            .args(names)
            .current_dir(&program.folder)
            .env("CARGO_MANIFEST_DIR", &program.folder)
            .env("NATS_SERVER_BIN", &self.nats_server)
            .env("TMPDIR", &self.scratch)
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1")
            .env("PROPTEST_MAX_SHRINK_ITERS", "0")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(command)
    }
}

/// Returns the time after which tests that took `time` without a mutant count as endless.
fn patience(time: Duration) -> Duration {
    TIME_LEAST + time + (time * TIMES_SLOWER).min(SLOWER_MOST)
}

/// Waits for the end of a program. Returns `None` if the program took too long and was ended, with
/// all processes that it started.
fn ended(mut child: Child, most: Duration) -> Result<Option<ExitStatus>> {
    let begun = Instant::now();
    let mut pause = LOOK_EVERY;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for tests")? {
            end_group(&child);
            return Ok(Some(status));
        }
        if begun.elapsed() > most {
            end_group(&child);
            child.wait().context("cannot wait for tests")?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LOOK_EVERY * 16);
    }
}

/// Ends the processes that a test program left behind, as a failed test may.
fn end_group(child: &Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        // SAFETY: it sends a signal and touches no memory; the group is the one that the program
        // was started in.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn nothing_follows_from_a_program_that_was_built_anew() {
        let scratch = tempfile::tempdir().expect("a folder");
        let path = scratch.path().join("program");
        let build = |text: &str| {
            fs::write(&path, text).expect("it is written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is its own");
        };
        build("#!/bin/sh\nexit 0\n");
        let judge = Judge {
            programs: vec![Program {
                package: "a".to_owned(),
                folder: scratch.path().to_owned(),
                path: path.clone(),
            }],
            stamps: vec![stamp(&path).expect("it is there")],
            tests: vec![Test {
                program: 0,
                name: "t".to_owned(),
                time: Duration::from_millis(1),
            }],
            reaching: BTreeMap::from([(7, vec![0])]),
            nats_server: PathBuf::new(),
            scratch: scratch.path().join("scratch"),
        };
        assert_eq!(judge.judge(7, &["a"]).ok(), Some(End::Survived));
        assert_eq!(judge.judge(8, &["a"]).ok(), Some(End::Unreached));
        build("#!/bin/sh\n# without mutants\nexit 0\n");
        let refused = judge.judge(7, &["a"]).expect_err("it is another program");
        assert!(refused.to_string().contains("built anew"), "{refused}");
    }
}
