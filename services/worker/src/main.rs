//! `diloco-worker`: see `--help`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use diloco_worker::cli::{Cli, Command};
use diloco_worker::config::{Checked, WorkerConfig};
use diloco_worker::{devices, launch, sample, service::Service};
use runtime::exit::{EXIT_USAGE, report};
use runtime::{Failure, clock, config, expiry, log, memory, shutdown};
use schemas::Code;

fn main() -> ExitCode {
    launch::settle();
    memory::keep_freed();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; their text goes where clap sends it.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(EXIT_USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    report(start(&cli))
}

fn start(cli: &Cli) -> Result<(), Failure> {
    log::init(&cli.log).map_err(|error| Failure::new(Code::ConfigInvalid, error))?;
    match &cli.command {
        Some(Command::Sample(args)) => sample::sample(args),
        Some(Command::Devices) => devices::devices(),
        None => serve(cli),
    }
}

fn serve(cli: &Cli) -> Result<(), Failure> {
    let loaded = config::load::<WorkerConfig>(&cli.config, &cli.overrides())?;
    if cli.config.print_config {
        // Whoever reads may have seen enough.
        let _ = write!(std::io::stdout(), "{}", loaded.print());
        return Ok(());
    }
    let checked = Checked::new(loaded, clock::now())?;
    if cli.config.check_config {
        return Ok(());
    }
    identity::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Internal, format!("no async runtime: {error}")))?;
    let result = runtime.block_on(async {
        expiry::watch(checked.materials.clone());
        let signalled =
            shutdown::on_signals().map_err(|error| Failure::new(Code::Internal, error))?;
        let service = Box::pin(Service::build(checked)).await?;
        Box::pin(service.run(signalled)).await
    });
    // Whatever still runs is of no use to anyone.
    runtime.shutdown_background();
    result
}
