//! `diloco-store`: the embedded S3 store as a program.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use diloco_store::Store;
use diloco_store::settings::Settings;
use runtime::exit::{EXIT_USAGE, report};
use runtime::ready::ReadyFile;
use runtime::{
    ConfigArgs, Failure, LogArgs, clock, config, expiry, handles, log, memory, shutdown,
};
use schemas::Code;

/// An S3 store for one machine: two buckets, three access keys, every object verified before it can
/// be seen.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    log: LogArgs,
    /// Address to listen on; port 0 takes any free one.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<SocketAddr>,
    /// Folder of the objects.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// File of the access keys (JSON, mode 600).
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Certificate chain (PEM).
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// What an answered upload survives: `always` (power failure) or `kernel` (end of the process).
    #[arg(long, value_name = "WHEN")]
    durability: Option<String>,
    /// File to write when the store can be used; removed when it ends.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    memory::keep_freed();
    match Cli::try_parse() {
        Ok(cli) => report(start(cli)),
        Err(usage) => {
            let status = if usage.use_stderr() {
                ExitCode::from(EXIT_USAGE)
            } else {
                ExitCode::SUCCESS
            };
            // Nobody is left to tell when the terminal is gone.
            let _printed = usage.print();
            status
        }
    }
}

fn start(cli: Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime
        .map_err(|error| Failure::new(Code::Internal, format!("no async runtime: {error}")))?
        .block_on(run(cli))
}

#[expect(
    clippy::print_stdout,
    reason = "the configuration was asked for on stdout"
)]
async fn run(mut cli: Cli) -> Result<(), Failure> {
    let loaded = config::load::<Settings>(&cli.config, &cli.flags())?;
    if cli.config.print_config {
        print!("{}", loaded.print());
        return Ok(());
    }
    // The protocol layer's own lines show requests with their signatures; ours show the path.
    cli.log.log.push_str(",s3s=off");
    log::init(&cli.log).map_err(|error| Failure::new(Code::ConfigInvalid, error))?;
    let store = loaded.value.resolve(&loaded.origins, clock::now())?;
    if cli.config.check_config {
        return Ok(());
    }
    expiry::watch(loaded.value.materials(clock::now()));
    handles::raise().map_err(|error| {
        Failure::new(Code::Internal, format!("the limit of open files: {error}"))
    })?;
    let stop = shutdown::on_signals().map_err(|error| Failure::new(Code::Internal, error))?;
    let tls = store.tls.clone();
    let store = Store::bind(store).await?;
    let address = store.address();
    let path = &loaded.value.store_server.ready_file;
    let path = (!path.as_os_str().is_empty()).then_some(path.as_path());
    let ready = ReadyFile::announce(path, "diloco-store", vec![address.to_string()]);
    let _ready = ready.map_err(|error| {
        Failure::new(
            Code::ConfigInvalid,
            format!("cannot write the ready file: {error}"),
        )
    })?;
    tracing::info!(%address, ?tls, "the store listens");
    store.run(stop).await;
    tracing::info!("the store has ended");
    Ok(())
}

impl Cli {
    /// The flags that are given, with the keys they set.
    fn flags(&self) -> Vec<(&'static str, &'static str, String)> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let flags = [
            (
                "store_server.listen",
                "--listen",
                self.listen.map(|listen| listen.to_string()),
            ),
            ("store_server.root", "--root", path(&self.root)),
            ("store_server.keys", "--keys", path(&self.keys)),
            ("store_server.tls_cert", "--tls-cert", path(&self.tls_cert)),
            ("store_server.tls_key", "--tls-key", path(&self.tls_key)),
            (
                "store_server.durability",
                "--durability",
                self.durability.clone(),
            ),
            (
                "store_server.ready_file",
                "--ready-file",
                path(&self.ready_file),
            ),
        ];
        flags
            .into_iter()
            .filter_map(|(key, flag, value)| Some((key, flag, value?)))
            .collect()
    }
}
