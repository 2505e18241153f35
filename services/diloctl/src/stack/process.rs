//! One service as a process: a note of it on disk, so that a later `up` or `down` finds it again.

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
/// Between two looks at a process or port: there is nothing to wait on across processes that are
/// not our children.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Bytes of a log that are shown when its process died.
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
    /// It writes this file.
    File(PathBuf),
    /// It listens here, and writes a file of its own naming into this folder when it does:
    /// connecting to try it would leave an error in its log.
    Broker {
        address: SocketAddr,
        folder: PathBuf,
    },
}

/// A process that was started, here or by an earlier command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) name: String,
    /// 0 in a note that was written before its process was started.
    pub(super) pid: u32,
    /// Its start, in clock ticks since boot: a process number alone may have been given to another.
    started: u64,
    pub(super) log: PathBuf,
    /// The place of the domain's folder when it was started.
    home: Home,
    /// Program and arguments: finds a process whose start was not noted to its end.
    line: Vec<String>,
    #[serde(skip)]
    note: PathBuf,
}

/// A domain's folder: the same one after it was renamed, another one after it was copied, notes and
/// all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Home {
    device: u64,
    inode: u64,
    path: PathBuf,
}

/// A process that this one has just started.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) running: Running,
    /// Its exit status, once it has ended.
    ended: Arc<OnceLock<ExitStatus>>,
    /// The begin of its part of the log: earlier lives have written there too.
    log_from: u64,
}

/// The outcome for a process that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// It can be used.
    Ready,
    /// It had nothing to do and has ended with success.
    Done,
}

impl Running {
    /// The process that goes by `name`, if it lives.
    pub(super) fn find(domain: &Path, name: &str) -> Result<Option<Self>, Failure> {
        let note = notes(domain).join(format!("{name}.json"));
        let text = match fs::read(&note) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unusable(&note, &error)),
        };
        // One that does not parse was left by an older build; there is nothing to find by it.
        let Ok(running) = serde_json::from_slice::<Self>(&text) else {
            return Ok(None);
        };
        if !running.home.same_folder(&Home::of(domain)?) {
            // It came with a copy of the folder; the process is the original's.
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

    /// True when the folder was moved after the process was started: the process was given paths
    /// to the old place.
    pub(super) fn moved(&self, domain: &Path) -> Result<bool, Failure> {
        Ok(self.home != Home::of(domain)?)
    }

    /// The process of a note whose writer ended between starting it and noting its number, by its
    /// command line: it names files of this domain.
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

    /// Starts a service in a process group of its own, so that Ctrl-C at the terminal reaches only
    /// who is in front.
    pub(super) fn start(domain: &Path, spec: &Spec) -> Result<Started, Failure> {
        if let Ready::Broker { address, .. } = &spec.ready
            && !is_free(*address)
        {
            return Err(taken(*address, &spec.name));
        }
        if let Ready::File(path) = &spec.ready {
            // Left by a process that was killed.
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
        // Before it is started as well: a process that nobody has noted cannot be stopped by
        // anybody.
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
        // Reaped in the background: a child that ended must not look alive.
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

    /// Waits until a process that an earlier command started can be used. One that ends meanwhile
    /// is none.
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

    /// Asks the process to end, once: says whether there was one to ask.
    pub(super) fn terminate(&self) -> bool {
        let lives = self.lives();
        if lives {
            self.signal(libc::SIGTERM);
        }
        lives
    }

    /// Waits for the end of a process that was asked, and makes it end when it does not. Says
    /// whether it ended by itself.
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
            // Its own last words say more than that it has ended.
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
pub(super) fn log_file(domain: &Path, name: &str) -> PathBuf {
    domain.join("logs").join(format!("{name}.log"))
}

/// The end of a log, from this place on. A log that is shorter was begun anew since, as the broker
/// does at a size, and all of it is of this process's life.
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

/// The coded error that a service of ours ends with, as [`runtime::exit::render`] writes it, and
/// what it says after the title.
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

/// True when nobody listens there.
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

/// The start of a process (proc(5), field 22 of stat); none when there is no such process, or only
/// its remains.
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
