//! The broker: its configuration below the domain's folder, with a port that the system chose and
//! that it keeps.

use std::fs;
use std::path::{Path, PathBuf};

use identity::{BrokerFiles, Domain};
use runtime::clock;

use crate::binary::{nats_server, workspace};
use crate::process::{Process, Ready, Recipe};

/// The broker's name among a cluster's processes.
pub(crate) const BROKER: &str = "broker";

/// Starts the broker in `folder`, where the domain lies, and returns its address. After a crash the
/// broker listens on the same port.
pub(crate) async fn start(folder: &Path, domain: &Domain, plaintext: bool) -> (Process, String) {
    // `diloctl` reads the declarations of streams from there.
    copy_config(&folder.join("nats-config"));
    let committed = BrokerFiles::read(&workspace().join("nats-config"));
    let written = committed.and_then(|committed| domain.write_broker(&committed, clock::now()));
    written.unwrap_or_else(|error| panic!("the broker's configuration: {error}"));
    let generated = domain.layout().broker_generated();
    if plaintext {
        write(&generated.join("tls.conf"), "# No TLS.\n");
    }
    let config = domain.layout().broker_config();
    let config = config
        .to_str()
        .unwrap_or_else(|| panic!("{} is not text", config.display()));
    let (process, port) = launch(folder, config, &generated).await;
    let scheme = match plaintext {
        true => "nats",
        false => "tls",
    };
    (process, format!("{scheme}://127.0.0.1:{port}"))
}

/// Starts a nats-server in `folder` and returns its port. The next start uses the same port:
/// `listen.conf` in the folder `listening` names it, and `config` includes that file.
pub(crate) async fn launch(folder: &Path, config: &str, listening: &Path) -> (Process, String) {
    let listen = |port: &str| {
        write(
            &listening.join("listen.conf"),
            &format!("listen: \"127.0.0.1:{port}\"\n"),
        )
    };
    listen("-1");
    let ports = folder.join("ports");
    let logs = folder.join("logs");
    for folder in [&ports, &logs] {
        fs::create_dir_all(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    }
    let recipe = Recipe {
        name: BROKER.to_owned(),
        program: nats_server(),
        arguments: ["-c", config, "--ports_file_dir", "ports"]
            .map(str::to_owned)
            .to_vec(),
        environment: Vec::new(),
        folder: folder.to_owned(),
        log: logs.join("broker.log"),
        ready: Ready::Ports(ports),
    };
    let process = Process::start(recipe).await;
    let address = process
        .addresses()
        .first()
        .unwrap_or_else(|| panic!("the broker listens nowhere"));
    let port = address
        .rsplit(':')
        .next()
        .filter(|port| port.parse::<u16>().is_ok());
    let port = port
        .unwrap_or_else(|| panic!("{address} has no port"))
        .to_owned();
    listen(&port);
    (process, port)
}

/// Copies the committed part of the configuration.
fn copy_config(to: &Path) {
    let from = workspace().join("nats-config");
    for part in ["", "include", "streams"] {
        let (from, to) = (from.join(part), to.join(part));
        fs::create_dir_all(&to).unwrap_or_else(|error| panic!("{}: {error}", to.display()));
        for path in files(&from) {
            let name = path
                .file_name()
                .unwrap_or_else(|| panic!("{} has no name", path.display()));
            fs::copy(&path, to.join(name))
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

/// The files in a folder, sorted.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let listed =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = listed
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    paths
}

pub(crate) fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
