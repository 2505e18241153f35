//! All services of one machine as processes: started in order, each when the one before it can be
//! used, and stopped in the opposite order. `up` may be repeated: it leaves running services alone,
//! starts those that died, and creates missing streams. It succeeds when the coordinator has
//! answered.

pub(crate) mod health;
mod process;
pub(crate) mod services;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use identity::{BrokerFiles, Domain, DomainLock};
use runtime::accounts;
use runtime::{Failure, clock};
use schemas::call::control as call;
use schemas::control::{Query, Shutdown, ShutdownReply};
use schemas::{Code, V};
use serde::Serialize;
use tokio::time::Instant;

use crate::cli::{Declarations, Down, Up};
use crate::commands::cluster;
use crate::context::{BUS_PORT, Context, Endpoints, STORE_PORT};
use crate::output::Row;
use process::{Readiness, Running, Spec};

/// Time that the coordinator may take for an answer at the end of `up`. One that leads takes
/// milliseconds, and seconds while an event waits for a slow disk.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The address on which the broker of a single machine listens.
pub(crate) fn listen_address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// Finds one of our programs: beside this one, or on the PATH.
pub(crate) fn program(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::new(Code::ToolMissing, format!("{name}: {error}")))?;
    let beside = own.with_file_name(name);
    if beside.exists() {
        return Ok(beside);
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .map(|folder| folder.join(name))
        .find(|path| path.exists())
        .ok_or_else(|| {
            Failure::new(
                Code::ToolMissing,
                format!("{name} is neither beside {} nor on the path", own.display()),
            )
        })
}

/// The services that every machine runs on which `up` is used; workers come beside them.
pub(crate) const SERVICES: [&str; 5] = services::ORDER;

/// Names of the processes that `up` started from this folder and that live, in their order.
pub(crate) fn running(folder: &Path) -> Result<Vec<String>, Failure> {
    let mut names: Vec<String> = Running::all(folder)?
        .into_iter()
        .map(|process| process.name)
        .collect();
    names.sort_by_key(|name| (services::rank(name), name.clone()));
    Ok(names)
}

/// The ready files of those processes; the broker has none.
pub(crate) fn ready_files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let names = running(folder)?.into_iter();
    let own = names.filter(|name| name != services::BROKER);
    Ok(own
        .map(|name| services::ready_file(folder, &name))
        .collect())
}

pub(crate) async fn up(context: &Context, options: &Up) -> Result<(), Failure> {
    let domain = context.domain()?;
    let lock = context.lock("diloctl up")?;
    for process in Running::all(&context.folder)? {
        if process.moved(&context.folder)? {
            let text = format!(
                "{} (process {}) was started when the folder lay elsewhere",
                process.name, process.pid
            );
            return Err(Failure::new(Code::DomainMoved, text));
        }
    }
    let ports = Ports::choose(context, options)?;
    let endpoints = ports.endpoints();
    let here = Context {
        endpoints: endpoints.clone(),
        credentials: None,
        ..context.clone()
    };
    let specs = services::all(context, &domain, options, &endpoints)?;
    let mut rows = Vec::new();
    for spec in &specs {
        if spec.name == services::BROKER && Running::find(&context.folder, &spec.name)?.is_none() {
            prepare_broker(context, &domain, options, ports.bus)?;
            endpoints.write(&context.folder)?;
        }
        if spec.name == services::BROKER {
            refresh_tokens(context, &domain)?;
        }
        if Running::find(&context.folder, &spec.name)?.is_none() {
            let life = options.token_lifetime.millis();
            let stays = services::renew_tokens(&domain, &options.run, life, &spec.name)?;
            if let Some(reason) = stays {
                let text = format!("warning {} is not started: {reason}", spec.name);
                context.printer.talk(&text);
                continue;
            }
        }
        let (running, begun) = ensure(context, spec).await?;
        let state = match begun {
            None => "runs",
            Some(Readiness::Ready) => "started",
            Some(Readiness::Done) => "ended",
        };
        rows.push(Outcome::new(&running, state));
        if spec.name == services::BROKER {
            // A broker that ran already may lack what was revoked while it could not be reached.
            bring_into_effect(&here, &domain, &lock).await?;
            // The streams are compared even if the broker ran already: somebody may have deleted or
            // altered one.
            let declarations = Declarations {
                nats_config: options.nats_config.clone(),
                replicas: 1,
            };
            let compared = cluster::compare(&here, &declarations, true).await?;
            cluster::say_what_differs(context, &compared);
        }
    }
    let answer = coordinator_answers(&here).await;
    context.printer.rows(&rows);
    cluster::say_what_ends(context)?;
    answer
}

/// Renews the tokens of operators, auditors and provisioners that have ended or soon will, where the
/// keys for that are.
fn refresh_tokens(context: &Context, domain: &Domain) -> Result<(), Failure> {
    if !domain.has_vault() {
        return Ok(());
    }
    for name in domain.refresh_tokens(clock::now())? {
        let text = format!("{name} has a new token; the old one has ended or would soon");
        context.printer.talk(&text);
    }
    Ok(())
}

/// Gives the broker the accounts' tokens that it lacks. A broker of an earlier release takes none;
/// that is an error only if somebody was revoked. Without the vault no token can be made.
async fn bring_into_effect(
    context: &Context,
    domain: &Domain,
    lock: &DomainLock,
) -> Result<(), Failure> {
    if !domain.has_vault() {
        return Ok(());
    }
    let url = context.accounts_url()?;
    let pushed = accounts::push(domain, lock, &url, clock::now()).await;
    match pushed {
        Err(failure)
            if failure.code() == Code::AccountsBehind && domain.revocations()?.is_empty() =>
        {
            context.printer.talk(&format!("warning {failure}"));
            Ok(())
        }
        pushed => pushed.map(drop),
    }
}

/// Asks the coordinator, with the operator's credentials, something that only a leading coordinator
/// can answer. A process that lives, and was ready once, need not be usable.
async fn coordinator_answers(context: &Context) -> Result<(), Failure> {
    let context = Context {
        timeout: context.timeout.min(ANSWER_MAX),
        ..context.clone()
    };
    let operator = context.operator().await?;
    let answer = operator.view(Query::Runs).await;
    answer.map(drop).map_err(|failure| {
        let detail = &failure.refusal().detail;
        Failure::new(
            failure.code(),
            format!("all processes run, but the coordinator cannot be used: {detail}"),
        )
    })
}

/// Writes the broker's configuration for this build and for the folder's present place, and renews
/// the certificate of broker and store in the second half of its life: so that happens only when the
/// broker is started. Without the vault both stay
/// as they were made where the vault is.
fn prepare_broker(
    context: &Context,
    domain: &Domain,
    options: &Up,
    port: u16,
) -> Result<(), Failure> {
    let written = || {
        let auth = domain.layout().broker_generated().join("auth.conf");
        if !domain.has_vault() && auth.exists() {
            let text = "the vault is not here, so the broker's accounts stay as they are";
            context.printer.talk(text);
            return domain.write_listen(&listen_address(port));
        }
        let committed = BrokerFiles::read(&options.nats_config)?;
        domain.write_broker(&committed, clock::now())?;
        if domain.refresh_server_certificate(clock::now())? {
            let text = "the certificate of broker and store is new; the old one has ended or would soon. A \
                 store that runs keeps the old one until it is started anew";
            context.printer.talk(text);
        }
        domain.write_listen(&listen_address(port))
    };
    written().map_err(Failure::from)
}

/// The ports of broker and store of this machine.
#[derive(Clone, Copy, Debug)]
struct Ports {
    bus: u16,
    store: u16,
}

impl Ports {
    /// Takes the ports that the command line names, or those of the last start, so that two domains
    /// of one machine keep theirs apart. The port of a service that does not run must be free; this
    /// is checked before anything is written or started.
    fn choose(context: &Context, options: &Up) -> Result<Self, Failure> {
        let last = Endpoints::read(&context.folder)?;
        let ports = Self {
            bus: options
                .bus_port
                .or_else(|| port(&last.bus))
                .unwrap_or(BUS_PORT),
            store: options
                .store_port
                .or_else(|| port(&last.store))
                .unwrap_or(STORE_PORT),
        };
        for (name, wanted, last) in [
            (services::BROKER, ports.bus, port(&last.bus)),
            (services::STORE, ports.store, port(&last.store)),
        ] {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, wanted));
            match Running::find(&context.folder, name)? {
                Some(running) if last.is_some_and(|last| last != wanted) => {
                    let text = format!(
                        "{name} (process {}) runs on another port than {wanted}",
                        running.pid
                    );
                    return Err(Failure::new(
                        Code::ConfigInvalid,
                        format!("{text}; `diloctl down` first"),
                    ));
                }
                Some(_) => {}
                None if !process::is_free(address) => return Err(process::taken(address, name)),
                None => {}
            }
        }
        Ok(ports)
    }

    fn endpoints(self) -> Endpoints {
        Endpoints {
            bus: format!("tls://127.0.0.1:{}", self.bus),
            store: format!("https://127.0.0.1:{}", self.store),
        }
    }
}

fn port(address: &str) -> Option<u16> {
    address.rsplit_once(':')?.1.parse().ok()
}

/// Starts a service unless it runs, and waits until it can be used. Reports how the start of a new
/// process ended.
async fn ensure(context: &Context, spec: &Spec) -> Result<(Running, Option<Readiness>), Failure> {
    if let Some(running) = Running::find(&context.folder, &spec.name)? {
        let trouble = Some(&running)
            .filter(|_| spec.name == services::BROKER)
            .and_then(health::BrokerFault::of);
        if let Some(trouble) = trouble {
            trouble.check_room()?;
            let words = &trouble.words;
            context.printer.talk(&format!(
                "the broker lives, but stores nothing, and is started again; it says: {words}"
            ));
            running.terminate();
            running.end(services::stop_max(&spec.name)).await;
        } else if running.usable(spec).await? {
            return Ok((running, None));
        }
    }
    let started = Running::start(&context.folder, spec)?;
    let readiness = started.ready(spec).await?;
    Ok((started.running, Some(readiness)))
}

pub(crate) async fn down(context: &Context, options: &Down) -> Result<(), Failure> {
    if !context.folder.is_dir() {
        context.printer.talk("nothing runs");
        return Ok(());
    }
    let _lock = context.lock("diloctl down")?;
    let mut running = Running::all(&context.folder)?;
    if running.is_empty() {
        context.printer.talk("nothing runs");
        return Ok(());
    }
    // Services are stopped in this order: those that ask before those that answer.
    running.sort_by_key(|process| std::cmp::Reverse(services::rank(&process.name)));
    let leads = |process: &Running| process.name == services::COORDINATOR;
    if running.iter().any(leads) {
        drain(context, options, &running).await;
    }
    // Workers end in parallel: each may take its time to save its state. Each is told once.
    let side_by_side = |process: &Running| services::drains(&process.name) && !leads(process);
    let told: Vec<bool> = running
        .iter()
        .map(|process| side_by_side(process) && process.terminate())
        .collect();
    let mut rows = Vec::new();
    for (process, told) in running.iter().zip(told) {
        let told = told || (!side_by_side(process) && process.terminate());
        let by_itself = process.end(services::stop_max(&process.name)).await;
        let how = match (told, by_itself) {
            (false, _) => "ended",
            (true, true) => "stopped",
            (true, false) => "killed",
        };
        rows.push(Outcome::new(process, how));
    }
    context.printer.rows(&rows);
    Ok(())
}

/// Asks the coordinator to drain and waits for its end: by then no lease is held any more. The
/// processes are stopped even if this fails, so a failure is only reported.
async fn drain(context: &Context, options: &Down, running: &[Running]) {
    let asked: Result<ShutdownReply, Failure> = async {
        let operator = context.operator().await?;
        operator
            .ask::<call::Shutdown>(&Shutdown {
                v: V,
                drain: options.drain.millis(),
            })
            .await
    }
    .await;
    if let Err(failure) = asked {
        context.printer.talk(&format!(
            "the coordinator could not be asked to drain: {failure}"
        ));
        return;
    }
    let drained = Instant::now() + options.drain.0;
    // Workers are not waited for: the coordinator does not tell a worker that has not joined a run.
    for process in running
        .iter()
        .filter(|process| process.name == services::COORDINATOR)
    {
        process
            .ended(drained + services::stop_max(&process.name))
            .await;
    }
}

/// The outcome for one service, as a row.
#[derive(Debug, Serialize)]
struct Outcome {
    service: String,
    pid: u32,
    state: &'static str,
    log: String,
}

impl Outcome {
    fn new(running: &Running, state: &'static str) -> Self {
        Self {
            service: running.name.clone(),
            pid: running.pid,
            state,
            log: running.log.display().to_string(),
        }
    }
}

impl Row for Outcome {
    const TITLES: &'static [&'static str] = &["service", "state", "pid", "log"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            self.state.to_owned(),
            self.pid.to_string(),
            self.log.clone(),
        ]
    }
}
