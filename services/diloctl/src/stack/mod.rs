//! All services of one machine as processes: started in order, each when the one before it can be used, and stopped in the
//! opposite order. `up` may be repeated: what runs is left alone, what died is started again.

pub(crate) mod health;
mod process;
pub(crate) mod services;

use std::path::{Path, PathBuf};

use runtime::{Failure, clock};
use schemas::control::{Shutdown, ShutdownReply};
use schemas::subject::ControlVerb;
use schemas::{Code, V};
use serde::Serialize;
use tokio::time::Instant;

use crate::cli::{Declarations, Down, Up};
use crate::commands::cluster;
use crate::context::{Context, Endpoints};
use crate::output::Row;
use process::{Readiness, Running, Spec};

/// The usual port of the broker.
pub(crate) const BUS_PORT: u16 = 4222;

/// Writes where the broker listens, beside the other generated parts of its configuration.
pub(crate) fn write_listen(generated: &Path, port: u16) -> Result<(), Failure> {
    let path = generated.join("listen.conf");
    let text = format!("# Written by diloctl.\nlisten: \"127.0.0.1:{port}\"\n");
    std::fs::write(&path, text)
        .map_err(|error| Failure::new(Code::ConfigInvalid, format!("{}: {error}", path.display())))
}

/// One of our programs: beside this one, or on the path.
pub(crate) fn program(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().map_err(|error| Failure::new(Code::ToolMissing, format!("{name}: {error}")))?;
    let beside = own.with_file_name(name);
    if beside.exists() {
        return Ok(beside);
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).map(|folder| folder.join(name)).find(|path| path.exists()).ok_or_else(|| {
        Failure::new(Code::ToolMissing, format!("{name} is neither beside {} nor on the path", own.display()))
    })
}

pub(crate) async fn up(context: &Context, options: &Up) -> Result<(), Failure> {
    let domain = context.domain()?;
    let endpoints = Endpoints {
        bus: format!("tls://127.0.0.1:{}", options.bus_port),
        store: format!("https://127.0.0.1:{}", options.store_port),
    };
    let specs = services::all(context, &domain, options, &endpoints)?;
    let mut rows = Vec::new();
    for spec in &specs {
        if spec.name == services::BROKER && Running::find(&context.folder, &spec.name)?.is_none() {
            let generated = options.nats_config.join("generated");
            domain.write_server_config(&generated, clock::now()).map_err(|error| Failure::new(error.code(), error))?;
            write_listen(&generated, options.bus_port)?;
            write_endpoints(context, &endpoints)?;
        }
        let (running, begun) = ensure(context, spec).await?;
        let state = match begun {
            None => "runs",
            Some(Readiness::Ready) => "started",
            Some(Readiness::Done) => "ended",
        };
        rows.push(Outcome::new(&running, state));
        if spec.name == services::BROKER && begun.is_some() {
            let declarations = Declarations { nats_config: options.nats_config.clone(), replicas: 1 };
            let here = Context { endpoints: endpoints.clone(), credentials: None, ..context.clone() };
            cluster::compare(&here, &declarations, true).await?;
        }
    }
    context.printer.rows(&rows);
    cluster::say_what_ends(context)
}

/// Starts a service unless it runs, and waits until it can be used. Says what became of one that was started.
async fn ensure(context: &Context, spec: &Spec) -> Result<(Running, Option<Readiness>), Failure> {
    if let Some(running) = Running::find(&context.folder, &spec.name)? {
        let trouble = Some(&running).filter(|_| spec.name == services::BROKER).and_then(health::Trouble::of);
        if let Some(trouble) = trouble {
            trouble.check_room()?;
            let words = &trouble.words;
            context
                .printer
                .talk(&format!("the broker lives, but stores nothing, and is started again; it says: {words}"));
            running.stop(services::stop_max(&spec.name)).await;
        } else if running.usable(spec).await? {
            return Ok((running, None));
        }
    }
    let started = Running::start(&context.folder, spec)?;
    let readiness = started.ready(spec).await?;
    Ok((started.running, Some(readiness)))
}

fn write_endpoints(context: &Context, endpoints: &Endpoints) -> Result<(), Failure> {
    let path = Endpoints::path(&context.folder);
    let text = toml::to_string(endpoints).map_err(|error| Failure::new(Code::Internal, error))?;
    std::fs::write(&path, text)
        .map_err(|error| Failure::new(Code::ConfigInvalid, format!("{}: {error}", path.display())))
}

pub(crate) async fn down(context: &Context, options: &Down) -> Result<(), Failure> {
    let mut running = Running::all(&context.folder)?;
    if running.is_empty() {
        context.printer.talk("nothing runs");
        return Ok(());
    }
    // The order of stopping: who asks before who answers.
    running.sort_by_key(|process| std::cmp::Reverse(services::rank(&process.name)));
    let leads = |process: &Running| process.name == services::COORDINATOR;
    if running.iter().any(leads) {
        drain(context, options, &running).await;
    }
    // Workers end side by side: each may take its time to save what it has.
    for process in running.iter().filter(|process| services::drains(&process.name) && !leads(process)) {
        process.terminate();
    }
    let mut rows = Vec::new();
    for process in &running {
        let how = process.stop(services::stop_max(&process.name)).await;
        rows.push(Outcome::new(process, how));
    }
    context.printer.rows(&rows);
    Ok(())
}

/// Asks the coordinator to drain and waits for it and the workers. Whatever goes wrong here, the processes are stopped
/// all the same, so it is only told.
async fn drain(context: &Context, options: &Down, running: &[Running]) {
    let asked: Result<ShutdownReply, Failure> = async {
        let operator = context.operator().await?;
        operator.ask(ControlVerb::Shutdown, &Shutdown { v: V, drain: options.drain.millis() }).await
    }
    .await;
    if let Err(failure) = asked {
        context.printer.talk(&format!("the coordinator could not be asked to drain: {failure}"));
        return;
    }
    let drained = Instant::now() + options.drain.0;
    for process in running.iter().filter(|process| services::drains(&process.name)) {
        process.ended(drained + services::stop_max(&process.name)).await;
    }
}

/// What became of one service.
#[derive(Debug, Serialize)]
struct Outcome {
    service: String,
    pid: u32,
    state: &'static str,
    log: String,
}

impl Outcome {
    fn new(running: &Running, state: &'static str) -> Self {
        Self { service: running.name.clone(), pid: running.pid, state, log: running.log.display().to_string() }
    }
}

impl Row for Outcome {
    const TITLES: &'static [&'static str] = &["service", "state", "pid", "log"];

    fn cells(&self) -> Vec<String> {
        vec![self.service.clone(), self.state.to_owned(), self.pid.to_string(), self.log.clone()]
    }
}
