//! `diloco-audit`: reads and checks every event, and keeps what it saw.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use diloco_audit::{Config, Service};
use identity::Layout;
use runtime::ready::ReadyFile;
use runtime::{
    ConfigArgs, Failure, Loaded, LogArgs, clock, config, exit, expiry, log, shutdown, validate,
};
use schemas::Code;

/// Checks every event on the bus against its emitter's key and chain, and keeps what it saw in
/// append-only files.
#[derive(Parser)]
#[command(name = "diloco-audit", version)]
struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    log: LogArgs,
    /// Folder of the trust domain.
    #[arg(long, value_name = "DIR")]
    domain: Option<PathBuf>,
    /// Folder of the append-only files.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Written when the service reads the stream; removed when it ends.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    match exit::parse::<Args>() {
        Ok(args) => exit::report(start(&args)),
        Err(status) => status,
    }
}

fn start(args: &Args) -> Result<(), Failure> {
    log::init(&args.log).map_err(|error| Failure::new(Code::ConfigInvalid, error))?;
    let given = [
        ("domain", "--domain", &args.domain),
        ("audit.folder", "--folder", &args.folder),
        ("audit.ready", "--ready-file", &args.ready_file),
    ];
    let flags = given
        .into_iter()
        .filter_map(|(key, flag, path)| Some((key, flag, path.as_ref()?.display().to_string())));
    let Loaded { value, origins } =
        config::load::<Config>(&args.config, &flags.collect::<Vec<_>>())?;
    let loaded = Loaded {
        value: value.completed(),
        origins,
    };
    if args.config.print_config {
        return exit::print(&loaded.print());
    }
    let materials = loaded.value.materials(clock::now());
    validate(&loaded.value.auth, &materials, &loaded.origins).map_err(Failure::all)?;
    if args.config.check_config {
        let served = Layout::new(&loaded.value.domain).server_certificate();
        expiry::check_served("domain", &served, materials.now)?;
        return exit::print("configuration is valid\n");
    }
    identity::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime
        .map_err(|error| Failure::new(Code::Internal, error))?
        .block_on(async {
            expiry::watch(materials);
            audit(&loaded.value).await
        })
}

async fn audit(config: &Config) -> Result<(), Failure> {
    let internal = |error: std::io::Error| Failure::new(Code::Internal, error);
    let stop = shutdown::on_signals().map_err(internal)?;
    let service = tokio::select! {
        service = Service::build(config) => service?,
        () = stop.cancelled() => return Ok(()),
    };
    let ready = ReadyFile::announce(config.ready_file(), "audit", Vec::new()).map_err(internal)?;
    let ended = service.run(stop).await;
    drop(ready);
    ended
}
