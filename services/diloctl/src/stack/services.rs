//! The services of one machine: their order, their configuration files, how each is started.
//!
//! `up` starts a service with the same file that a person would start it with by hand. The files
//! hold paths, never secrets.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use identity::Domain;
use identity::domain::{DomainError, LIFETIME_DEFAULT};
use identity::secret::write_private;
use runtime::{ConfigDuration, Failure, clock};
use schemas::permission::Role;
use schemas::{Code, Millis, RunId};
use toml::{Table, Value};

use super::process::{Ready, Spec};
use super::program;
use crate::cli::Up;
use crate::context::{Context, Endpoints};

pub(crate) const BROKER: &str = "nats-server";
pub(crate) const STORE: &str = "store";
pub(crate) const COORDINATOR: &str = "coordinator";
pub(crate) const REGISTRAR: &str = "registrar";
pub(super) const AUDIT: &str = "audit";
const WORKER: &str = "worker-";
/// Longest time from the signal to the end of a process, without the drain time.
const STOP_MAX: Duration = Duration::from_secs(10);
/// The same for a worker: it takes 8 seconds for its goodbye and up to a minute to save its inner
/// state.
const WORKER_STOP_MAX: Duration = Duration::from_secs(75);

/// The services of a machine, in the order of starting.
pub(super) const ORDER: [&str; 5] = [BROKER, STORE, REGISTRAR, AUDIT, COORDINATOR];

/// The position in the order of starting.
pub(super) fn rank(name: &str) -> usize {
    let known = ORDER.iter().position(|known| *known == name);
    known.unwrap_or(ORDER.len())
}

/// True for the name of a worker.
pub(super) fn is_worker(name: &str) -> bool {
    name.starts_with(WORKER)
}

/// True when the service ends by itself once the coordinator drains.
pub(super) fn drains(name: &str) -> bool {
    name == COORDINATOR || name.starts_with(WORKER)
}

/// Longest time from the signal to the end of the service, without the drain time.
pub(super) fn stop_max(name: &str) -> Duration {
    if name.starts_with(WORKER) {
        WORKER_STOP_MAX
    } else {
        STOP_MAX
    }
}

/// The name of worker `index` of this machine, and of its credentials.
pub(crate) fn worker_name(index: u32) -> String {
    format!("{WORKER}{index}")
}

/// The choices that differ from one machine to the next.
#[derive(Clone, Debug)]
pub(crate) struct Choices {
    pub(crate) endpoints: Endpoints,
    pub(crate) run: RunId,
    pub(crate) workers: u32,
    pub(crate) threads: u32,
    pub(crate) device: String,
    /// Life of the tokens that the registrar gives.
    pub(crate) token_lifetime: ConfigDuration,
}

/// Everything that `up` starts, in order. Writes the configuration files of the services.
pub(super) fn all(
    context: &Context,
    domain: &Domain,
    options: &Up,
    endpoints: &Endpoints,
) -> Result<Vec<Spec>, Failure> {
    let choices = Choices {
        endpoints: endpoints.clone(),
        run: options.run.clone(),
        workers: options.workers,
        threads: options.threads,
        device: options.device.clone(),
        token_lifetime: options.token_lifetime,
    };
    for index in 0..options.workers {
        let credentials = domain.layout().credentials(&worker_name(index));
        if !credentials.exists() {
            let text = format!(
                "{} does not exist; `diloctl auth issue worker {} --run {}` makes it",
                credentials.display(),
                worker_name(index),
                options.run
            );
            return Err(Failure::new(Code::CredentialMissing, text));
        }
    }
    // A domain of an earlier release has no store key for the audit service.
    if domain.layout().store_keys().exists() && domain.give_auditors_store_key()? {
        let text = "the store has a new access key: if it runs already, start it again";
        context.printer.talk(text);
    }
    let folder = absolute(&context.folder)?;
    let mut specs = vec![broker(&folder, options, endpoints)?];
    for (name, path) in write_configs(&folder, &folder, &choices)? {
        let worker = name.starts_with(WORKER);
        let ready = ready_file(&folder, &name);
        let program_name = if worker {
            "diloco-worker".to_owned()
        } else {
            format!("diloco-{name}")
        };
        specs.push(Spec {
            program: program(&program_name)?,
            arguments: [
                "--config",
                &path.display().to_string(),
                "--ready-file",
                &ready.display().to_string(),
            ]
            .map(str::to_owned)
            .to_vec(),
            environment: Vec::new(),
            folder: folder.clone(),
            ready: Ready::File(ready),
            name,
        });
    }
    specs.sort_by_key(|spec| rank(&spec.name));
    Ok(specs)
}

/// Issues tokens to a service before it starts, for the keys that it has. They live for `lifetime`,
/// and the registrar renews them while the service runs. The registrar renews its own token by
/// itself, which lives longer.
///
/// Returns a reason to leave a worker out: its key was revoked. The other processes are started.
pub(super) fn renew_tokens(
    domain: &Domain,
    run: &RunId,
    lifetime: Millis,
    name: &str,
) -> Result<Option<DomainError>, Failure> {
    let roles: &[Role] = match name {
        REGISTRAR => &[Role::Registrar],
        AUDIT => &[Role::Auditor, Role::Recorder],
        COORDINATOR => &[Role::Coordinator, Role::LedgerWriter],
        worker if worker.starts_with(WORKER) => &[Role::Worker],
        _ => &[],
    };
    for role in roles {
        let (label, run) = match role.is_tenant() {
            true => (name, Some(run)),
            false => (role.name(), None),
        };
        let lifetime = match role {
            Role::Registrar => LIFETIME_DEFAULT,
            _ => lifetime,
        };
        match domain.issue(*role, label, run, lifetime, clock::now()) {
            // The name is that of a credential for another role or run. The service reads it when
            // it starts, and says what is wrong with it.
            Ok(_) | Err(DomainError::Taken(_)) => {}
            Err(error @ DomainError::Blocked(_)) if *role == Role::Worker => {
                return Ok(Some(error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

fn broker(folder: &Path, options: &Up, endpoints: &Endpoints) -> Result<Spec, Failure> {
    let server = absolute(&options.nats_server).map_err(|_| {
        let text = format!(
            "{}; `cargo xtask deps` puts it there",
            options.nats_server.display()
        );
        Failure::new(Code::ToolMissing, text)
    })?;
    let config = identity::DomainLayout::new(folder).broker_config();
    let ports = folder.join("up");
    let port = super::port(&endpoints.bus).expect("these endpoints were made of ports");
    // The broker opens its log itself, since it can rotate only a file that it opened.
    let log = super::process::log_file(folder, BROKER);
    let named = [
        ("-c", &config),
        ("--log", &log),
        ("--ports_file_dir", &ports),
    ];
    Ok(Spec {
        name: BROKER.to_owned(),
        program: server,
        arguments: named
            .iter()
            .flat_map(|(flag, path)| [(*flag).to_owned(), path.display().to_string()])
            .collect(),
        environment: Vec::new(),
        folder: folder.to_owned(),
        ready: Ready::Broker {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            folder: ports,
        },
    })
}

pub(super) fn ready_file(folder: &Path, name: &str) -> PathBuf {
    folder.join("up").join(format!("{name}.ready"))
}

pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize()
        .map_err(|error| Failure::new(Code::ConfigInvalid, format!("{}: {error}", path.display())))
}

/// Writes one file for each service into the subfolder `config` of `place`; returns the services'
/// names and the files' paths. In the files, the domain's folder is `folder`: `place` may be moved
/// there later.
pub(crate) fn write_configs(
    place: &Path,
    folder: &Path,
    choices: &Choices,
) -> Result<Vec<(String, PathBuf)>, Failure> {
    let mutual = identity::DomainLayout::new(place).clients().exists();
    let mut configs = vec![
        (STORE.to_owned(), store(folder, choices, mutual)),
        (COORDINATOR.to_owned(), coordinator(folder, choices)),
        (REGISTRAR.to_owned(), registrar(folder, choices)),
        (AUDIT.to_owned(), audit(folder, choices)),
    ];
    configs.extend((0..choices.workers).map(|index| {
        let name = worker_name(index);
        let config = worker(folder, choices, &name);
        (name, config)
    }));
    let mut written = Vec::new();
    for (name, mut config) in configs {
        if mutual {
            demand_certificates(&mut config);
        }
        let path = place.join("config").join(format!("{name}.toml"));
        let text = format!("# Written by diloctl; `up` writes it again.\n\n{config}");
        write_private(&path, text.as_bytes())?;
        written.push((name, path));
    }
    Ok(written)
}

/// Writes the configuration of one worker of a domain in `folder`, unless there is one; returns its
/// path.
pub(crate) fn write_worker(
    folder: &Path,
    choices: &Choices,
    name: &str,
) -> Result<PathBuf, Failure> {
    let path = folder.join("config").join(format!("{name}.toml"));
    if path.exists() {
        return Ok(path);
    }
    let mut config = worker(folder, choices, name);
    let credentials = identity::DomainLayout::new(folder).credentials(name);
    if identity::ClientFile::beside(&credentials).exists() {
        demand_certificates(&mut config);
    }
    let text = format!("# Written by `diloctl worker enrol`.\n\n{config}");
    write_private(&path, text.as_bytes())?;
    Ok(path)
}

/// Says in a configuration that its domain has mutual TLS.
fn demand_certificates(config: &mut Table) {
    let auth = table([("mutual_tls", Value::Boolean(true))]);
    config.insert("auth".to_owned(), auth);
}

/// A text value for a TOML table.
fn text(value: impl ToString) -> Value {
    Value::String(value.to_string())
}

fn path(value: &Path) -> Value {
    text(value.display())
}

fn table<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Table(
        entries
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    )
}

fn store(folder: &Path, choices: &Choices, mutual: bool) -> Table {
    let layout = identity::DomainLayout::new(folder);
    let listen = choices.endpoints.store.trim_start_matches("https://");
    let mut server = Table::from_iter(
        [
            ("listen", text(listen)),
            ("root", path(&folder.join("objects"))),
            ("keys", path(&layout.store_keys())),
            ("tls_cert", path(&layout.server_certificate())),
            ("tls_key", path(&layout.server_key())),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    if mutual {
        server.insert("tls_clients".to_owned(), path(&layout.clients()));
    }
    Table::from_iter([("store_server".to_owned(), Value::Table(server))])
}

fn coordinator(folder: &Path, choices: &Choices) -> Table {
    Table::from_iter([
        ("domain".to_owned(), path(folder)),
        (
            "bus".to_owned(),
            table([("url", text(&choices.endpoints.bus))]),
        ),
        (
            "store".to_owned(),
            table([
                ("url", text(&choices.endpoints.store)),
                // It is the embedded one.
                ("check", Value::Boolean(false)),
            ]),
        ),
    ])
}

fn registrar(folder: &Path, choices: &Choices) -> Table {
    let lifetime = choices.token_lifetime.to_string();
    Table::from_iter([
        ("domain".to_owned(), path(folder)),
        (
            "bus".to_owned(),
            table([("url", text(&choices.endpoints.bus))]),
        ),
        (
            "registrar".to_owned(),
            table([("lifetime", text(lifetime))]),
        ),
    ])
}

fn audit(folder: &Path, choices: &Choices) -> Table {
    let log = super::process::log_file(folder, BROKER);
    Table::from_iter([
        ("domain".to_owned(), path(folder)),
        ("audit".to_owned(), table([("broker_log", path(&log))])),
        (
            "bus".to_owned(),
            table([("url", text(&choices.endpoints.bus))]),
        ),
        (
            "store".to_owned(),
            table([("url", text(&choices.endpoints.store))]),
        ),
    ])
}

fn worker(folder: &Path, choices: &Choices, name: &str) -> Table {
    let layout = identity::DomainLayout::new(folder);
    Table::from_iter([
        (
            "bus".to_owned(),
            table([
                ("url", text(&choices.endpoints.bus)),
                ("credentials", path(&layout.credentials(name))),
                ("ca", path(&layout.ca())),
            ]),
        ),
        (
            "worker".to_owned(),
            table([
                ("run", text(&choices.run)),
                ("audit_key", path(&layout.audit_key(name))),
                ("trust", path(&layout.trust())),
                ("state", path(&folder.join("workers").join(name))),
            ]),
        ),
        ("store".to_owned(), table([("ca", path(&layout.ca()))])),
        (
            "cache".to_owned(),
            table([("folder", path(&folder.join("cache")))]),
        ),
        (
            "training".to_owned(),
            table([
                ("device", text(&choices.device)),
                ("threads", Value::Integer(choices.threads.into())),
            ]),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tl_07_a_revoked_worker_is_named_and_ends_nothing_for_the_others() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let made = Domain::init(
            &scratch.path().join(".diloco"),
            &identity::InitOptions::default(),
            clock::now(),
        );
        let domain = made.expect("an empty folder");
        let run = "demo".parse().expect("a name");
        let hour = Millis::from_secs(3600);
        let renew = |name: &str| renew_tokens(&domain, &run, hour, name);
        for name in ["worker-0", "worker-1", AUDIT] {
            assert!(renew(name).expect("a fresh name").is_none());
        }
        for name in ["worker-0", "auditor"] {
            for holder in domain.holders_of(name).expect("they can be read") {
                let revoked = domain.revoke(&holder.account, &holder.public, None, clock::now());
                revoked.expect("the folder takes files");
            }
        }
        let reason = renew("worker-0").expect("no failure").expect("a reason");
        assert!(reason.to_string().contains("worker-0"), "{reason}");
        assert!(renew("worker-1").expect("it is another").is_none());
        let failure = renew(AUDIT).expect_err("nothing runs without it");
        assert_eq!(failure.code(), Code::HolderBlocked);
    }
}
