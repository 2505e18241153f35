//! `diloco-coordinator`: leads runs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use diloco_coordinator::{Config, Service};
use identity::Layout;
use runtime::ready::ReadyFile;
use runtime::{
    ConfigArgs, Failure, Loaded, LogArgs, clock, config, exit, expiry, log, memory, shutdown,
    validate,
};
use schemas::Code;
use schemas::member::Posture;

/// Leads DiLoCo runs: rounds, leases, merges, and the signed ledger of all of it.
#[derive(Parser)]
#[command(name = "diloco-coordinator", version)]
struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    log: LogArgs,
    /// Folder of the trust domain.
    #[arg(long, value_name = "FOLDER")]
    domain: Option<PathBuf>,
    /// Written when the coordinator leads and hears; removed when it ends.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    memory::keep_freed();
    match exit::parse::<Args>() {
        Ok(args) => exit::report(start(&args)),
        Err(status) => status,
    }
}

fn start(args: &Args) -> Result<(), Failure> {
    let invalid = |error: &dyn std::fmt::Display| Failure::new(Code::ConfigInvalid, error);
    log::init(&args.log).map_err(|error| invalid(&error))?;
    let domain = args
        .domain
        .iter()
        .map(|path| ("domain", "--domain", path.display().to_string()));
    let Loaded { value, origins } =
        config::load::<Config>(&args.config, &domain.collect::<Vec<_>>())?;
    let loaded = Loaded {
        value: value.completed(),
        origins,
    };
    if args.config.print_config {
        return exit::print(&loaded.print());
    }
    let materials = loaded.value.materials(clock::now());
    let posture =
        validate(&loaded.value.auth, &materials, &loaded.origins).map_err(Failure::all)?;
    let served = Layout::new(&loaded.value.domain).server_certificate();
    if args.config.check_config {
        expiry::check_served("domain", &served, materials.now)?;
        return exit::print("configuration is valid\n");
    }
    identity::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| invalid(&error))?;
    runtime.block_on(async {
        expiry::watch(materials);
        lead(args, &loaded.value, posture).await
    })
}

async fn lead(args: &Args, config: &Config, posture: Posture) -> Result<(), Failure> {
    let internal = |error: std::io::Error| Failure::new(Code::Internal, error);
    let shutdown = shutdown::on_signals().map_err(internal)?;
    let service = tokio::select! {
        service = Box::pin(Service::build(config, posture)) => service?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let ready = ReadyFile::announce(args.ready_file.as_deref(), "coordinator", Vec::new())
        .map_err(internal)?;
    tracing::info!("the coordinator leads");
    let ended = Box::pin(service.run(shutdown)).await;
    drop(ready);
    ended
}
