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

use identity::{BrokerFiles, Credentials, Domain, DomainLock};
use runtime::accounts;
use runtime::{Failure, clock};
use schemas::call::control as call;
use schemas::control::{Query, Shutdown, ShutdownReply};
use schemas::{Code, RunId, V};
use serde::Serialize;
use tokio::time::Instant;

use crate::cli::{Declarations, Down, Up};
use crate::commands::{cluster, revocation};
use crate::context::{BUS_PORT, Context, Endpoints, STORE_PORT};
use crate::output::Row;
use crate::table::or_dash;
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

pub(crate) use process::log_file;
pub(crate) use services::{BROKER, COORDINATOR, REGISTRAR, STORE};

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
    let (domain, lock) = context.locked("diloctl up").await?;
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
    let before = running(&context.folder)?;
    let mut start = Start {
        context,
        here: &here,
        domain: &domain,
        lock: &lock,
        options,
        rows: Vec::new(),
        left_out: Vec::new(),
    };
    let started = start.all(&specs, ports).await;
    let Start {
        mut rows, left_out, ..
    } = start;
    if let Err(failure) = started {
        // The machine is left as it was found.
        let stopped = stop_again(context, &before, &mut rows).await;
        context.printer.rows(&rows);
        return Err(match stopped {
            Ok(()) => failure,
            Err(other) => failure.and(&other),
        });
    }
    context.printer.rows(&rows);
    // Services that serve others stay, also if this command cannot see that they do.
    coordinator_answers(&here).await?;
    // What was revoked while the coordinator was away is in no ledger yet.
    if let Err(failure) = revocation::tell_rest(&here, &domain, &lock).await {
        context.printer.talk(&format!("warning {failure}"));
    }
    for name in left_out {
        say_left_out(&here, &domain, &options.run, &name).await;
    }
    cluster::say_what_ends(context)
}

/// The start of all services of a machine.
struct Start<'a> {
    context: &'a Context,
    /// The same with the addresses of broker and store of this machine.
    here: &'a Context,
    domain: &'a Domain,
    lock: &'a DomainLock,
    options: &'a Up,
    rows: Vec<Outcome>,
    /// Workers that are not started, since their credentials are revoked.
    left_out: Vec<String>,
}

impl Start<'_> {
    async fn all(&mut self, specs: &[Spec], ports: Ports) -> Result<(), Failure> {
        for spec in specs {
            let began = self.one(spec, ports).await;
            if began.is_err() && !self.rows.iter().any(|row| row.service == spec.name) {
                self.rows
                    .push(Outcome::without(self.context, spec, "failed"));
            }
            began?;
        }
        Ok(())
    }

    async fn one(&mut self, spec: &Spec, ports: Ports) -> Result<(), Failure> {
        let Self {
            context,
            domain,
            options,
            ..
        } = *self;
        let is_broker = spec.name == services::BROKER;
        let is_new = Running::find(&context.folder, &spec.name)?.is_none();
        if is_broker && is_new {
            prepare_broker(context, domain, options, ports.bus)?;
            ports.endpoints().write(&context.folder)?;
        }
        if is_broker {
            refresh_tokens(context, domain)?;
        }
        if is_new {
            let life = options.token_lifetime.millis();
            if services::renew_tokens(domain, &options.run, life, &spec.name)?.is_some() {
                self.left_out.push(spec.name.clone());
                let row = Outcome::without(context, spec, "not started");
                self.rows.push(row);
                return Ok(());
            }
        }
        let (running, begun) = ensure(context, spec).await?;
        let state = match begun {
            None => "runs",
            Some(Readiness::Ready) => "started",
            Some(Readiness::Done) => "ended",
        };
        self.rows.push(Outcome::new(&running, state));
        context.finished(format!("{} {state}", spec.name));
        if is_broker {
            // A broker that ran already may lack what was revoked while it could not be reached.
            bring_into_effect(self.here, domain, self.lock).await?;
            // The streams are compared even if the broker ran already: somebody may have deleted or
            // altered one.
            let declarations = Declarations {
                nats_config: options.nats_config.clone(),
                replicas: 1,
            };
            let compared = cluster::compare(self.here, &declarations, true).await?;
            cluster::say_what_differs(context, &compared);
        }
        Ok(())
    }
}

/// Stops the processes that this command has started, those that ask before those that answer. What
/// ran before goes on.
async fn stop_again(
    context: &Context,
    before: &[String],
    rows: &mut Vec<Outcome>,
) -> Result<(), Failure> {
    let mut started = Running::all(&context.folder)?;
    started.retain(|process| !before.contains(&process.name));
    started.sort_by_key(|process| std::cmp::Reverse(services::rank(&process.name)));
    // Workers end side by side: each may take a while.
    for process in started.iter().filter(|one| services::is_worker(&one.name)) {
        process.terminate();
    }
    for process in &started {
        if !services::is_worker(&process.name) {
            process.terminate();
        }
        let state = match process.end(services::stop_max(&process.name)).await {
            true => "stopped again",
            false => "killed",
        };
        let row = Outcome::new(process, state);
        match rows.iter_mut().find(|known| known.service == row.service) {
            Some(known) => *known = row,
            None => rows.push(row),
        }
    }
    Ok(())
}

/// Says why a worker was not started, and how it comes back: its credentials are revoked, and it
/// may be shut out of its run as well, which a new token does not change.
async fn say_left_out(context: &Context, domain: &Domain, run: &RunId, name: &str) {
    let key = Credentials::read(&domain.layout().credentials(name));
    let key = key.map(|read| read.public().to_string()).ok();
    let workers = async { context.operator().await?.workers(run).await };
    let shut_out = match workers.await {
        Ok(workers) => Some(workers.iter().any(|view| {
            let is_it = key.as_deref() == Some(view.worker.as_str());
            is_it && view.quarantined
        })),
        Err(_) => None,
    };
    context.printer.talk(&left_out(run, name, shut_out));
}

fn left_out(run: &RunId, name: &str, shut_out: Option<bool>) -> String {
    let issue = format!("`diloctl auth issue worker {name} --run {run}`");
    let readmit = format!("`diloctl worker readmit {name} --run {run} --reason TEXT`");
    let text = match shut_out {
        Some(true) => format!(
            "it is shut out of run {run}, and its credential is revoked. If it may come back, run \
             {readmit}, then {issue}, then `diloctl up` again"
        ),
        Some(false) => format!(
            "its credential is revoked. If its holder may come back, run {issue}, then `diloctl up` again"
        ),
        None => format!(
            "its credential is revoked, and the coordinator does not say if it is shut out of run {run} \
             too: `diloctl worker ls {run}` shows it. If it may come back, run {readmit}, then {issue}, \
             then `diloctl up` again"
        ),
    };
    format!("warning {name} is not started: {text}")
}

/// Renews the tokens of operators, auditors and provisioners that have ended or soon will, where
/// the keys for that are.
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
/// the certificate of broker and store in the second half of its life: so that happens only when
/// the broker is started. Without the vault both stay as they were made where the vault is.
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
    let _lock = context.lock("diloctl down").await?;
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
        context.finished(format!("{} {how}", process.name));
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
    /// Its process number; none if it has no process.
    pid: Option<u32>,
    state: &'static str,
    log: String,
}

impl Outcome {
    fn new(running: &Running, state: &'static str) -> Self {
        Self {
            service: running.name.clone(),
            pid: Some(running.pid),
            state,
            log: running.log.display().to_string(),
        }
    }

    /// That of a service without a process.
    fn without(context: &Context, spec: &Spec, state: &'static str) -> Self {
        let log = process::log_file(&context.folder, &spec.name);
        Self {
            service: spec.name.clone(),
            pid: None,
            state,
            log: log.display().to_string(),
        }
    }
}

impl Row for Outcome {
    const TITLES: &'static [&'static str] = &["service", "state", "pid", "log"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            self.state.to_owned(),
            or_dash(self.pid, |pid| pid.to_string()),
            self.log.clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tl_31_who_is_not_started_hears_each_step_back() {
        let run: RunId = "demo".parse().expect("a name");
        let said = |shut_out| left_out(&run, "worker-2", shut_out);
        let issue = "`diloctl auth issue worker worker-2 --run demo`";
        let readmit = "`diloctl worker readmit worker-2 --run demo";
        for shut_out in [Some(true), Some(false), None] {
            let text = said(shut_out);
            assert!(text.contains("worker-2 is not started") && text.contains(issue));
            assert_eq!(text.contains(readmit), shut_out != Some(false), "{text}");
        }
        let both = said(Some(true));
        assert!(both.contains("it is shut out of run demo, and its credential is revoked"));
        assert!(
            both.find(readmit) < both.find(issue),
            "in this order: {both}"
        );
    }
}
