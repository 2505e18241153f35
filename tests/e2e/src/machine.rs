//! One machine as a person uses it: a folder in which `diloctl` is typed, and ports that nobody
//! else has.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use harness::{PATIENCE, nats_server, program};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// A scratch folder, and the processes that `up` started from there. Dropping it stops the
/// processes and removes the folder.
#[derive(Debug)]
pub struct Machine {
    scratch: tempfile::TempDir,
    bus_port: String,
    store_port: String,
}

/// The outcome of a command.
#[derive(Debug)]
pub struct CommandOutcome {
    /// The command's exit status.
    pub status: ExitStatus,
    /// The command's stdout and stderr.
    pub text: String,
}

impl Machine {
    /// An empty folder.
    ///
    /// # Panics
    /// There is none to be had.
    #[expect(
        clippy::new_without_default,
        reason = "it takes ports of the machine; a default value does not"
    )]
    pub fn new() -> Self {
        let scratch = tempfile::Builder::new().prefix("diloco-machine-").tempdir();
        let scratch = scratch.unwrap_or_else(|error| panic!("a scratch folder: {error}"));
        let (bus_port, store_port) = (free_port(), free_port());
        Self {
            scratch,
            bus_port,
            store_port,
        }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// A command of `diloctl` in the folder; the test starts it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("diloctl"));
        command
            .args(arguments)
            .current_dir(self.scratch.path())
            .stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("DILOC") {
                command.env_remove(name);
            }
        }
        command
            .env("NATS_SERVER_BIN", nats_server())
            .kill_on_drop(true);
        command
    }

    /// Runs `diloctl` to its end.
    ///
    /// # Panics
    /// The command still runs after [`PATIENCE`].
    pub async fn diloctl(&self, arguments: &[&str]) -> CommandOutcome {
        let output = tokio::time::timeout(PATIENCE, self.command(arguments).output()).await;
        let output =
            output.unwrap_or_else(|_| panic!("diloctl {arguments:?} runs on after {PATIENCE:?}"));
        let output = output.unwrap_or_else(|error| panic!("diloctl {arguments:?}: {error}"));
        let text = [output.stdout, output.stderr].concat();
        CommandOutcome {
            status: output.status,
            text: String::from_utf8_lossy(&text).into_owned(),
        }
    }

    /// Runs a command that must succeed.
    ///
    /// # Panics
    /// The command fails.
    pub async fn ok(&self, arguments: &[&str]) -> String {
        let CommandOutcome { status, text } = self.diloctl(arguments).await;
        assert!(status.success(), "diloctl {arguments:?}: {status}\n{text}");
        text
    }

    /// `auth init` of a domain with this number of workers.
    pub async fn init(&self, domain: &str, workers: &str) -> CommandOutcome {
        let config = nats_config();
        self.diloctl(&[
            "--domain",
            domain,
            "auth",
            "init",
            "--workers",
            workers,
            "--nats-config",
            &config,
        ])
        .await
    }

    /// `up` at the ports of this machine.
    pub async fn up(&self, domain: &str, workers: &str) -> CommandOutcome {
        let config = nats_config();
        let ports = [
            "--bus-port",
            &self.bus_port,
            "--store-port",
            &self.store_port,
        ];
        let arguments = [
            "--domain",
            domain,
            "up",
            "--workers",
            workers,
            "--nats-config",
            &config,
        ];
        self.diloctl(&[&arguments[..], &ports].concat()).await
    }

    /// `up` of a domain that was up before, as a person types it again: without ports.
    pub async fn up_again(&self, domain: &str, workers: &str) -> CommandOutcome {
        self.diloctl(&[
            "--domain",
            domain,
            "up",
            "--workers",
            workers,
            "--nats-config",
            &nats_config(),
        ])
        .await
    }

    /// Starts the broker of a domain that was up before, and nothing else. It ends with the value.
    ///
    /// # Panics
    /// It does not start.
    pub async fn broker_alone(&self, domain: &str) -> tokio::process::Child {
        let folder = self.path(domain);
        let mut child = Command::new(nats_server())
            .arg("-c")
            .arg(identity::DomainLayout::new(&folder).broker_config())
            .current_dir(&folder)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("the broker: {error}"));
        let said = child.stderr.take();
        let mut lines = BufReader::new(said.unwrap_or_else(|| panic!("it is piped"))).lines();
        let ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("Server is ready") {
                    // Somebody has to read what it says later.
                    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                    return;
                }
            }
            panic!("the broker has ended");
        };
        let waited = tokio::time::timeout(PATIENCE, ready).await;
        waited.unwrap_or_else(|_| panic!("the broker is not ready after {PATIENCE:?}"));
        child
    }

    /// Sends a signal, such as `-STOP`, to a service that `up` started.
    ///
    /// # Panics
    /// There is no note of such a service, or the process is gone.
    pub fn signal(&self, domain: &str, service: &str, signal: &str) {
        let path = self.path(&format!("{domain}/up/{service}.json"));
        let note =
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let note: serde_json::Value = serde_json::from_slice(&note)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let pid = note["pid"].to_string();
        let sent = std::process::Command::new("kill")
            .args([signal, &pid])
            .status();
        let sent = sent.unwrap_or_else(|error| panic!("kill: {error}"));
        assert!(sent.success(), "kill {signal} {pid} ({service}): {sent}");
    }

    /// Creates a small run and waits until it is complete.
    ///
    /// # Panics
    /// The run does not complete.
    pub async fn train(&self, domain: &str) {
        std::fs::write(self.path("corpus.txt"), crate::recipe::corpus())
            .unwrap_or_else(|error| panic!("corpus.txt: {error}"));
        self.ok(&[
            "--domain",
            domain,
            "data",
            "import",
            "--text",
            "corpus.txt",
            "--limit",
            "512KiB",
        ])
        .await;
        let new = [
            "--domain",
            domain,
            "run",
            "new",
            "demo",
            "--model",
            "reference",
            "--rounds",
            "1",
            "--units",
            "1",
        ];
        let mut new = new.to_vec();
        new.extend(["--steps", "5"]);
        for setting in crate::recipe::REFERENCE {
            new.extend(["--set", setting]);
        }
        self.ok(&new).await;
        self.ok(&["--domain", domain, "run", "wait", "demo", "--within", "50s"])
            .await;
    }

    /// Stops the processes of a domain.
    ///
    /// # Panics
    /// `down` fails.
    pub async fn down(&self, domain: &str) -> String {
        self.ok(&["--domain", domain, "down", "--drain", "5s"])
            .await
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let Ok(entries) = std::fs::read_dir(self.scratch.path()) else {
            return;
        };
        for folder in entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.join("up").is_dir())
        {
            let mut down = std::process::Command::new(program("diloctl"));
            down.arg("--domain")
                .arg(&folder)
                .args(["down", "--drain", "0s"])
                .current_dir(self.scratch.path());
            // A failed test may have left processes that no longer stop in order.
            let _stopped = down.output();
        }
    }
}

/// The committed configuration.
///
/// # Panics
/// The folder is not in the repository.
pub fn nats_config() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../nats-config");
    let folder = folder
        .canonicalize()
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    folder.display().to_string()
}

/// A port that was free a moment ago.
fn free_port() -> String {
    let listener =
        TcpListener::bind("127.0.0.1:0").unwrap_or_else(|error| panic!("a port: {error}"));
    listener
        .local_addr()
        .unwrap_or_else(|error| panic!("a port: {error}"))
        .port()
        .to_string()
}
