//! A child process, with its log in a file, that can be killed, restarted and told to end.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::process::{Child, Command};

use crate::{PATIENCE, look};

/// Lines of a log that are printed when a test panics.
const TAIL_LINES: usize = 40;
/// Most characters of each line: refusals name long subjects.
const TAIL_LINE_CHARACTERS: usize = 400;

/// The start of a process, and the sign that it can be used.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) folder: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) ready: Ready,
}

/// The sign that a process can be used.
#[derive(Clone, Debug)]
pub(crate) enum Ready {
    /// A ready file of `runtime`.
    File(PathBuf),
    /// The ports file that the nats-server writes into this folder.
    Ports(PathBuf),
}

/// A process of a cluster.
#[derive(Debug)]
pub struct Process {
    recipe: Recipe,
    child: Option<Child>,
    addresses: Vec<String>,
}

/// A signal to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt = libc::SIGINT,
    /// A service manager, or `diloctl down`.
    Terminate = libc::SIGTERM,
    /// The terminal has gone.
    Hangup = libc::SIGHUP,
    /// It stands still until [`Signal::Continue`].
    Stop = libc::SIGSTOP,
    /// It goes on.
    Continue = libc::SIGCONT,
}

/// The output of a finished program.
#[derive(Debug)]
pub struct Output {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its stdout.
    pub stdout: String,
    /// Its stderr: the log.
    pub stderr: String,
}

impl Process {
    /// Starts it and waits until it can be used.
    pub(crate) async fn start(recipe: Recipe) -> Self {
        let mut process = Self::spawn(recipe);
        process.wait_ready().await;
        process
    }

    /// Starts the process without waiting for it: it may be meant to fail.
    pub(crate) fn spawn(recipe: Recipe) -> Self {
        let mut process = Self {
            recipe,
            child: None,
            addresses: Vec::new(),
        };
        process.launch();
        process
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.recipe.name
    }

    /// The addresses in its ready file.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The file of its log.
    pub fn log_file(&self) -> &Path {
        &self.recipe.log
    }

    /// Everything that the process logged so far, over all its starts.
    ///
    /// # Panics
    /// The log cannot be read.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.recipe.log);
        let bytes = bytes.unwrap_or_else(|error| panic!("{}: {error}", self.recipe.log.display()));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until `wanted` holds for the log, and returns the log.
    ///
    /// # Panics
    /// It does not hold within `within`.
    pub async fn until_logged(&self, within: Duration, wanted: impl Fn(&str) -> bool) -> String {
        let seen = look(within, || Some(self.log()).filter(|log| wanted(log))).await;
        seen.unwrap_or_else(|| {
            panic!(
                "{} has not logged what was waited for:\n{}",
                self.recipe.name,
                self.tail()
            )
        })
    }

    /// Its process id; none when it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Its exit status; none while it runs.
    ///
    /// # Panics
    /// It was never started.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let name = &self.recipe.name;
        let child = self
            .child
            .as_mut()
            .unwrap_or_else(|| panic!("{name} was reaped"));
        child
            .try_wait()
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Ends the process as a crash does, with a signal that it cannot catch. Returns when it is
    /// gone.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The process may have ended by itself.
            let _ = child.start_kill();
            reap(&mut child);
        }
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Panics
    /// It does not run.
    pub fn terminate(&self) {
        self.signal(Signal::Terminate);
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// It does not run.
    pub fn signal(&self, signal: Signal) {
        let pid = self
            .pid()
            .unwrap_or_else(|| panic!("{} does not run", self.recipe.name));
        let pid = libc::pid_t::try_from(pid).unwrap_or_else(|_| panic!("{pid} is no process id"));
        // SAFETY: `kill` takes no memory; the child is not reaped yet, so the id is still its own.
        let sent = unsafe { libc::kill(pid, signal as libc::c_int) };
        assert_eq!(
            sent,
            0,
            "{signal:?} to {}: {}",
            self.recipe.name,
            std::io::Error::last_os_error()
        );
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// It runs on after `within`.
    pub async fn exit(&mut self, within: Duration) -> ExitStatus {
        let name = self.recipe.name.clone();
        let child = self
            .child
            .as_mut()
            .unwrap_or_else(|| panic!("{name} does not run"));
        let ended = tokio::time::timeout(within, child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("{name} runs on after {within:?}"));
        status.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Starts it again after it ended, with the same arguments, and waits until it can be used.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn restart(&mut self) {
        self.kill9();
        self.launch();
        self.wait_ready().await;
    }

    /// Replaces the arguments for the next start.
    pub(crate) fn set_arguments(&mut self, arguments: Vec<String>) {
        self.recipe.arguments = arguments;
    }

    /// Sets these variables from the next start on.
    pub fn set_environment(&mut self, environment: &[(&str, &str)]) {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        self.recipe.environment = environment.iter().map(owned).collect();
    }

    /// The last lines of its log.
    pub(crate) fn tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(TAIL_LINES)..].iter();
        last.map(|line| line.chars().take(TAIL_LINE_CHARACTERS).collect::<String>())
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn launch(&mut self) {
        let Recipe {
            name,
            program,
            arguments,
            environment,
            folder,
            log,
            ready,
        } = &self.recipe;
        if let Ready::File(path) = ready {
            // A killed process leaves its ready file.
            let _ = std::fs::remove_file(path);
        }
        let out = append(log);
        let again = out
            .try_clone()
            .unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let mut command = quiet(program, folder);
        command
            .args(arguments)
            .envs(environment.iter().cloned())
            .stdout(Stdio::from(out))
            .stderr(Stdio::from(again));
        self.child = Some(
            command
                .spawn()
                .unwrap_or_else(|error| panic!("{name} ({}): {error}", program.display())),
        );
    }

    /// Waits until it can be used.
    ///
    /// # Panics
    /// It ends, or takes too long.
    pub async fn wait_ready(&mut self) {
        self.wait_ready_within(PATIENCE).await;
    }

    /// Waits until the process can be used, for `patience` at most: a coordinator first reads its
    /// ledger, which may be long.
    ///
    /// # Panics
    /// It ends, or takes longer.
    pub async fn wait_ready_within(&mut self, patience: Duration) {
        let ready = self.recipe.ready.clone();
        let name = self.recipe.name.clone();
        let pid = self.pid();
        let seen = look(patience, || match self.ended() {
            Some(status) => Some(Err(status)),
            None => read_ready(&ready, pid).map(Ok),
        });
        let outcome = seen.await;
        match outcome {
            Some(Ok(addresses)) => self.addresses = addresses,
            Some(Err(status)) => panic!(
                "{name} ended before it was ready ({status}):\n{}",
                self.tail()
            ),
            None => panic!("{name} is not ready after {patience:?}:\n{}", self.tail()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Runs a program to its end.
///
/// # Panics
/// It does not start, or runs on after `within`.
pub(crate) async fn run(
    program: &Path,
    folder: &Path,
    arguments: &[&str],
    environment: &[(&str, &str)],
    within: Duration,
) -> Output {
    let mut command = quiet(program, folder);
    command
        .args(arguments)
        .envs(environment.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let shown = format!("{} {}", program.display(), arguments.join(" "));
    let ended = tokio::time::timeout(within, command.output()).await;
    let output = ended.unwrap_or_else(|_| panic!("{shown}: runs on after {within:?}"));
    let output = output.unwrap_or_else(|error| panic!("{shown}: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Output {
        status: output.status,
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// A command without the caller's variables, since some of them would configure the child.
fn quiet(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DILOCO_") {
            command.env_remove(name);
        }
    }
    command
}

fn append(path: &Path) -> File {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Waits for a child that was killed, which takes a moment.
fn reap(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|pid| libc::id_t::try_from(pid).ok()) {
        let mut ended = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: `ended` is room for one siginfo_t. WNOWAIT leaves the child for `try_wait` to
        // reap.
        unsafe {
            libc::waitid(
                libc::P_PID,
                pid,
                ended.as_mut_ptr(),
                libc::WEXITED | libc::WNOWAIT,
            )
        };
    }
    let _ = child.try_wait();
}

/// The ports file of the nats-server.
#[derive(Deserialize)]
struct Ports {
    nats: Vec<String>,
}

/// The addresses in a ready file; none while the file is absent or incomplete.
fn read_ready(ready: &Ready, pid: Option<u32>) -> Option<Vec<String>> {
    match ready {
        Ready::File(path) => {
            let ready: runtime::ready::Ready =
                serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
            (Some(ready.pid) == pid).then_some(ready.addresses)
        }
        Ready::Ports(folder) => {
            let path = folder.join(format!("nats-server_{}.ports", pid?));
            let ports: Ports = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
            Some(ports.nats)
        }
    }
}
