//! One service as a process. A note on disk lets a later `up` or `down` find the process again.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use identity::secret::write_private;
use runtime::Failure;
use schemas::Code;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Time that a service may take until it can be used; a worker loads libtorch first.
const READY_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks at a process or port: nothing signals the end of a process that is not
/// our child.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Bytes of a log that are shown when its process has died.
const TAIL_BYTES: u64 = 2048;

/// The program and arguments of a service.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(&'static str, String)>,
    pub(super) folder: PathBuf,
    pub(super) ready: Ready,
}

/// The sign that a service can be used.
#[derive(Clone, Debug)]
pub(super) enum Ready {
    /// The service writes this file.
    File(PathBuf),
    /// The broker listens here, and then writes a file into this folder under a name of its own.
    /// Connecting as a test would leave an error in its log.
    Broker {
        address: SocketAddr,
        folder: PathBuf,
    },
}

/// A process that was started, here or by an earlier command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) name: String,
    /// Process number; 0 in a note that was written before the process was started.
    pub(super) pid: u32,
    /// Start time in clock ticks since boot: a process number alone may have been given to another
    /// process.
    started: u64,
    pub(super) log: PathBuf,
    /// The domain's folder at the time of the start.
    home: Home,
    /// Program and arguments: they find a process whose number was never noted.
    line: Vec<String>,
    #[serde(skip)]
    note: PathBuf,
}

/// The identity of a domain's folder. It stays the same when the folder is renamed, and differs in
/// a copy of the folder, notes included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Home {
    device: u64,
    inode: u64,
    path: PathBuf,
}

/// A process that this command has just started.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) running: Running,
    /// Its exit status, once it has ended.
    ended: Arc<OnceLock<ExitStatus>>,
    /// The length of the log at the start: earlier processes have written there too.
    log_from: u64,
}

/// The outcome for a process that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// It can be used.
    Ready,
    /// The process had nothing to do and has ended with success.
    Done,
}

impl Running {
    /// The process with the service name `name`, if it lives.
    pub(super) fn find(domain: &Path, name: &str) -> Result<Option<Self>, Failure> {
        let note = notes(domain).join(format!("{name}.json"));
        let text = match fs::read(&note) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unusable(&note, &error)),
        };
        // A note that does not parse was left by an older build, and names no process that could be
        // found.
        let Ok(running) = serde_json::from_slice::<Self>(&text) else {
            return Ok(None);
        };
        if !running.home.same_folder(&Home::of(domain)?) {
            // The note came with a copy of the folder; the process is the original's.
            return Ok(None);
        }
        let running = match running.pid {
            0 => running.searched(),
            _ => Some(running),
        };
        Ok(running
            .map(|running| Self { note, ..running })
            .filter(Self::lives))
    }

    /// True when the folder was moved after the process was started: the process still uses paths
    /// to the old place.
    pub(super) fn moved(&self, domain: &Path) -> Result<bool, Failure> {
        Ok(self.home != Home::of(domain)?)
    }

    /// Finds the process of a note whose writer ended between starting the process and noting its
    /// number. The command line identifies it, since it names files of this domain.
    fn searched(self) -> Option<Self> {
        let line: Vec<u8> = self
            .line
            .iter()
            .flat_map(|part| part.bytes().chain([0]))
            .collect();
        let processes = fs::read_dir("/proc")
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let found = processes.into_iter().find(|pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|own| own == line)
        });
        let pid = found?;
        Some(Self {
            pid,
            started: start_time(pid)?,
            ..self
        })
    }

    /// All processes that live.
    pub(super) fn all(domain: &Path) -> Result<Vec<Self>, Failure> {
        let folder = notes(domain);
        let mut all = Vec::new();
        let Ok(entries) = fs::read_dir(&folder) else {
            return Ok(all);
        };
        for entry in entries {
            let path = entry.map_err(|error| unusable(&folder, &error))?.path();
            let name = path
                .file_stem()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if path.extension().is_some_and(|ending| ending == "json")
                && let Some(running) = Self::find(domain, name)?
            {
                all.push(running);
            }
        }
        Ok(all)
    }

    /// Starts a service in a process group of its own, so that Ctrl-C at the terminal does not
    /// reach it.
    pub(super) fn start(domain: &Path, spec: &Spec) -> Result<Started, Failure> {
        if let Ready::Broker { address, .. } = &spec.ready
            && !is_free(*address)
        {
            return Err(taken(*address, &spec.name));
        }
        if let Ready::File(path) = &spec.ready {
            // A ready file that a killed process left.
            let _absent = fs::remove_file(path);
        }
        let log = log_file(domain, &spec.name);
        for folder in [notes(domain), domain.join("logs")] {
            fs::create_dir_all(&folder).map_err(|error| unusable(&folder, &error))?;
        }
        let out = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|error| unusable(&log, &error))?;
        let log_from = out
            .metadata()
            .map_err(|error| unusable(&log, &error))?
            .len();
        let err = out.try_clone().map_err(|error| unusable(&log, &error))?;
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.arguments)
            .envs(spec.environment.iter().map(|(name, value)| (name, value)));
        command
            .current_dir(&spec.folder)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0);
        let line = std::iter::once(spec.program.display().to_string())
            .chain(spec.arguments.iter().cloned())
            .collect();
        let note = notes(domain).join(format!("{}.json", spec.name));
        let running = Self {
            name: spec.name.clone(),
            pid: 0,
            started: 0,
            log,
            home: Home::of(domain)?,
            line,
            note,
        };
        // The note is written before the start as well: nobody could stop a process that was not
        // noted.
        running.write()?;
        let child = command.spawn().map_err(|error| {
            Failure::new(
                Code::ToolMissing,
                format!("{}: {error}", spec.program.display()),
            )
        })?;
        let pid = child.id();
        let ended = Arc::new(OnceLock::new());
        let end = Arc::clone(&ended);
        // The child is reaped in the background: a child that ended must not look alive.
        std::thread::spawn(move || {
            let mut child = child;
            if let Ok(status) = child.wait() {
                let _first = end.set(status);
            }
        });
        let running = Self {
            pid,
            started: start_time(pid).unwrap_or_default(),
            ..running
        };
        running.write()?;
        Ok(Started {
            running,
            ended,
            log_from,
        })
    }

    pub(super) fn lives(&self) -> bool {
        start_time(self.pid).is_some_and(|started| started == self.started)
    }

    /// True when the process shows that it can be used.
    fn shows_ready(&self, spec: &Spec) -> bool {
        match &spec.ready {
            Ready::File(path) => path.exists(),
            Ready::Broker { folder, .. } => {
                let program = spec
                    .program
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy();
                folder
                    .join(format!("{program}_{}.ports", self.pid))
                    .exists()
            }
        }
    }

    /// Waits until a process that an earlier command started can be used. Returns false if the
    /// process ends first.
    pub(super) async fn usable(&self, spec: &Spec) -> Result<bool, Failure> {
        let deadline = Instant::now() + READY_MAX;
        while self.lives() {
            if self.shows_ready(spec) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                let (name, log) = (&self.name, self.log.display());
                let text = format!(
                    "{name} lives, but cannot be used after a minute; the end of {log}:\n{}",
                    tail(&self.log, 0)
                );
                return Err(Failure::new(Code::ProcessDied, text));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(false)
    }

    /// Waits until the process has ended, at most until `deadline`.
    pub(super) async fn ended(&self, deadline: Instant) -> bool {
        while self.lives() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        true
    }

    /// Tells the process to end, once. Returns true if the process lived.
    pub(super) fn terminate(&self) -> bool {
        let lives = self.lives();
        if lives {
            self.signal(libc::SIGTERM);
        }
        lives
    }

    /// Waits for the end of a process that was told to end, and kills it when `patience` is over.
    /// Returns true if it ended by itself.
    pub(super) async fn end(&self, patience: Duration) -> bool {
        let ended = self.ended(Instant::now() + patience).await;
        if !ended {
            self.signal(libc::SIGKILL);
            self.ended(Instant::now() + patience).await;
        }
        let _absent = fs::remove_file(&self.note);
        ended
    }

    fn write(&self) -> Result<(), Failure> {
        let text = serde_json::to_vec(self).map_err(|error| Failure::new(Code::Internal, error))?;
        write_private(&self.note, &text).map_err(Failure::from)
    }

    fn signal(&self, signal: libc::c_int) {
        let Ok(pid) = libc::pid_t::try_from(self.pid) else {
            return;
        };
        // SAFETY: kill(2) takes two integers and touches no memory of ours; `lives` has just shown
        // whose number it is.
        unsafe { libc::kill(pid, signal) };
    }
}

impl Started {
    /// Waits until the service can be used, or has ended with success: a worker has nothing to do
    /// when its run is complete.
    pub(super) async fn ready(&self, spec: &Spec) -> Result<Readiness, Failure> {
        let deadline = Instant::now() + READY_MAX;
        let Running { name, log, .. } = &self.running;
        loop {
            if self.running.shows_ready(spec) {
                return Ok(Readiness::Ready);
            }
            let what = match self.ended.get() {
                Some(status) if status.success() => return Ok(Readiness::Done),
                Some(status) => format!("ended before it could be used ({status})"),
                None if Instant::now() >= deadline => "cannot be used after a minute".to_owned(),
                None => {
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
            };
            let tail = tail(log, self.log_from);
            // The service's own last words say more than the fact that it has ended.
            if let Some((code, detail)) = last_words(&tail) {
                return Err(Failure::new(
                    code,
                    format!("{name} {what}: {detail} (log: {})", log.display()),
                ));
            }
            let text = format!("{name} {what}; the end of {}:\n{tail}", log.display());
            return Err(Failure::new(Code::ProcessDied, text));
        }
    }
}

/// The log file of a process that `up` starts.
pub(crate) fn log_file(domain: &Path, name: &str) -> PathBuf {
    domain.join("logs").join(format!("{name}.log"))
}

/// The end of a log, from this position on. A shorter log was begun anew since then, as the broker
/// does at a certain size, and all of its lines belong to this process.
fn tail(log: &Path, from: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(log)?;
        let length = file.metadata()?.len();
        let from = if from > length { 0 } else { from };
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES).max(from)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

/// The coded error with which a service ends, as [`runtime::exit::render`] writes it: the code, and
/// the text after the title.
fn last_words(log: &str) -> Option<(Code, String)> {
    log.lines().rev().find_map(|line| {
        let (code, rest) = line.strip_prefix("error ")?.split_once(' ')?;
        let code: Code = code.parse().ok()?;
        let detail = rest.strip_prefix(code.title())?.strip_prefix(": ")?;
        Some((code, detail.to_owned()))
    })
}

impl Home {
    fn of(domain: &Path) -> Result<Self, Failure> {
        let path = domain
            .canonicalize()
            .map_err(|error| unusable(domain, &error))?;
        let folder = path.metadata().map_err(|error| unusable(domain, &error))?;
        Ok(Self {
            device: folder.dev(),
            inode: folder.ino(),
            path,
        })
    }

    fn same_folder(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// True when nobody listens on the address.
pub(super) fn is_free(address: SocketAddr) -> bool {
    std::net::TcpListener::bind(address).is_ok()
}

pub(super) fn taken(address: SocketAddr, name: &str) -> Failure {
    Failure::new(Code::PortTaken, format!("{address}, wanted for {name}"))
}

fn notes(domain: &Path) -> PathBuf {
    domain.join("up")
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::ConfigInvalid, format!("{}: {error}", path.display()))
}

/// The start time of a process (proc(5), field 22 of stat); none when there is no such process, or
/// only a zombie.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests;
