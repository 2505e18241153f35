//! The tree of commands.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use schemas::{Digest, RunId};

use crate::commands::settings::RunArgs;
use crate::output::Format;

/// Runs DiLoCo training over a message bus: sets up, starts runs, watches them, stops them, and
/// shows what happened.
#[derive(Debug, Parser)]
#[command(name = "diloctl", version, after_help = runtime::exit::EXIT_HELP, arg_required_else_help = true)]
pub struct Cli {
    /// What everything has in common.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// How data is printed.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub(crate) output: Format,
    /// Folder of the trust domain: keys, credentials, certificates.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = ".diloco",
        env = "DILOCO_DOMAIN"
    )]
    pub(crate) domain: PathBuf,
    /// Credentials file to connect with, instead of the folder's own for the role that the command
    /// needs.
    #[arg(long, global = true, value_name = "FILE", env = "DILOCTL_CREDENTIALS")]
    pub(crate) credentials: Option<PathBuf>,
    /// Address of the NATS servers; by default the one that `up` started, or tls://127.0.0.1:4222.
    #[arg(long, global = true, value_name = "URL", env = "DILOCO_BUS__URL")]
    pub(crate) bus: Option<String>,
    /// How long to wait for one answer.
    #[arg(long, global = true, value_name = "TIME", default_value = "30s")]
    pub(crate) timeout: runtime::ConfigDuration,
    /// Logging; only errors where nothing is asked for.
    #[command(flatten)]
    pub(crate) log: runtime::LogArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Keys, credentials and certificates.
    #[command(subcommand)]
    Auth(Auth),
    /// Streams of the bus.
    #[command(subcommand)]
    Cluster(Cluster),
    /// Training text.
    #[command(subcommand)]
    Data(Data),
    /// Training jobs.
    #[command(subcommand)]
    Run(Run),
    /// The machines of a run.
    #[command(subcommand)]
    Worker(OfRun),
    /// Units that are held.
    #[command(subcommand)]
    Lease(OfRun),
    /// Rounds of a run.
    #[command(subcommand)]
    Round(OfRun),
    /// Saved models.
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Orders to the coordinator.
    #[command(subcommand)]
    Control(Control),
    /// The signed record of what happened.
    #[command(subcommand)]
    Audit(Audit),
    /// Start broker, store, coordinator, audit and workers on this machine; what runs already is
    /// left alone, streams that are missing are made. It succeeds when the coordinator has
    /// answered.
    Up(Up),
    /// Stop in order what `up` started.
    Down(Down),
    /// Print a completion script.
    Completions {
        /// For which shell.
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Auth {
    /// Make a new trust domain, and credentials for every role.
    Init {
        /// The run that the workers' credentials are for.
        #[arg(long, default_value = "demo")]
        run: RunId,
        /// How many workers get credentials: worker-0, worker-1, and so on.
        #[arg(long, default_value_t = 2)]
        workers: u32,
        /// Further host names or addresses of broker and store, for their certificate.
        #[arg(long, value_name = "NAME")]
        server_name: Vec<String>,
        /// Folder with the committed part of the broker's configuration; it is copied into the
        /// trust domain.
        #[arg(long, value_name = "DIR", default_value = "nats-config")]
        nats_config: PathBuf,
    },
    /// Issue credentials, or renew those of a name.
    Issue {
        /// For what.
        #[arg(value_parser = parse_role)]
        role: schemas::permission::Role,
        /// Under which name: letters, digits, `-` and `_`. diloctl itself uses the one that is
        /// called like the role, unless `--credentials` names another.
        name: String,
        /// The run, for workers and for them alone.
        #[arg(long)]
        run: Option<RunId>,
        /// How long they are valid.
        #[arg(long, default_value = "30d")]
        lifetime: runtime::ConfigDuration,
    },
    /// Make a new certificate for broker and store, valid for 30 days; restart both afterwards.
    Certificate {
        /// Host names or addresses of broker and store besides localhost; all of them, the old ones
        /// are not kept.
        #[arg(long, value_name = "NAME")]
        server_name: Vec<String>,
    },
    /// Write the broker's configuration again: after an upgrade that changes who may say what, or
    /// after the trust domain's folder was moved. Where the broker listens stays as it is.
    Config {
        /// Folder with the committed part of the broker's configuration; it is copied into the
        /// trust domain.
        #[arg(long, value_name = "DIR", default_value = "nats-config")]
        nats_config: PathBuf,
    },
    /// Show the trust domain: public keys and who was issued what. No secret is printed.
    Show,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Create the streams that are missing, and report those that differ.
    Init(Declarations),
    /// Compare live streams with their declarations.
    Check(Declarations),
}

#[derive(Debug, Args)]
pub(crate) struct Declarations {
    /// Folder with `streams` and `kv`.
    #[arg(long, value_name = "DIR", default_value = "nats-config")]
    pub(crate) nats_config: PathBuf,
    /// Copies of each stream, on a cluster.
    #[arg(long, default_value_t = 1)]
    pub(crate) replicas: usize,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Make a data set of text and upload it.
    Import {
        /// A file or folder of text in UTF-8; by default the Rust sources in cargo's registry
        /// folder. Links inside the folder are followed; what is passed over is counted and told.
        #[arg(long, value_name = "PATH")]
        text: Option<PathBuf>,
        /// Leave out files and folders of this name, or path below the folder where the pattern has
        /// a `/`: `*` and `?` stand for what is within a name, `**` for anything. May be repeated.
        #[arg(long, value_name = "GLOB")]
        exclude: Vec<data::Pattern>,
        /// How much text at most.
        #[arg(long, value_name = "SIZE", default_value = "32MiB")]
        limit: runtime::ConfigBytes,
        /// A Hugging Face tokenizer.json; bytes without one. Special tokens that are spelt in the
        /// text are encoded as text.
        #[arg(long, value_name = "FILE")]
        tokenizer: Option<PathBuf>,
    },
    /// The data sets imported from here.
    Ls,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Run {
    /// Create a run.
    New(Box<RunArgs>),
    /// All runs.
    Ls,
    /// One run in full.
    Get {
        /// Its name.
        run: RunId,
    },
    /// Follow a run until it is complete: bars on a terminal, lines elsewhere.
    Watch {
        /// Its name.
        run: RunId,
    },
    /// Wait until a run is complete, or has closed a number of rounds; fails with the reason when
    /// the run is halted or nobody is left to work for it.
    Wait {
        /// Its name.
        run: RunId,
        /// For what: `complete`, or `round=N`.
        #[arg(long = "for", default_value = "complete")]
        target: crate::commands::run::Target,
        /// For how long; then the exit status is 7.
        #[arg(long, value_name = "TIME", default_value = "24h")]
        within: runtime::ConfigDuration,
        /// For how long no worker may be left for the run; then it fails with the reason.
        #[arg(long, value_name = "TIME", default_value = "5m")]
        nobody_for: runtime::ConfigDuration,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum OfRun {
    /// List them.
    Ls {
        /// The run.
        #[arg(default_value = "demo")]
        run: RunId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// The full snapshots of a run.
    Ls {
        /// The run.
        #[arg(default_value = "demo")]
        run: RunId,
    },
    /// Download a snapshot as a model folder that other tools read as it was trained: config.json,
    /// generation_config.json, model.safetensors, and the tokenizer with its settings.
    Pull {
        /// The run.
        run: RunId,
        /// The round that starts from it; by default the newest.
        #[arg(long)]
        round: Option<u64>,
        /// Where to.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// Let a snapshot write text.
    Sample {
        /// The run.
        run: RunId,
        /// The round that starts from it; by default the newest.
        #[arg(long)]
        round: Option<u64>,
        /// Text to go on from.
        #[arg(long, default_value = "pub fn ")]
        prompt: String,
        /// How many tokens.
        #[arg(long, default_value_t = 200)]
        tokens: u32,
        /// 0 takes the likeliest token; 1 draws as the model says.
        #[arg(long, default_value_t = 0.9)]
        temperature: f64,
        /// Decides the draws.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Control {
    /// Stop the coordinator and the workers in order; runs go on where they were when they are
    /// started again.
    Shutdown {
        /// How long holders of leases may take to finish.
        #[arg(long, default_value = "30s")]
        drain: runtime::ConfigDuration,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Check every event in the stream and show what happened.
    Replay {
        /// Only events of this run, and of no run.
        #[arg(long)]
        run: Option<RunId>,
        /// Show the coordinator's state as it was after this stream sequence.
        #[arg(long, value_name = "SEQUENCE")]
        at: Option<u64>,
        /// Only the summary.
        #[arg(long, conflicts_with = "at")]
        summary: bool,
    },
    /// Follow events as they come.
    Tail {
        /// Only events of this run, and of no run.
        #[arg(long)]
        run: Option<RunId>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Workers on this machine, with the credentials worker-0, worker-1, and so on.
    #[arg(long, default_value_t = 2)]
    pub(crate) workers: u32,
    /// The run they work for.
    #[arg(long, default_value = "demo")]
    pub(crate) run: RunId,
    /// Threads of each worker.
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: u32,
    /// Device of each worker: `cpu`, `cuda:0`, or `auto`.
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
    /// Port of the broker; by default that of the last time, or 4222.
    #[arg(long)]
    pub(crate) bus_port: Option<u16>,
    /// Port of the store; by default that of the last time, or 9000.
    #[arg(long)]
    pub(crate) store_port: Option<u16>,
    /// Folder with the committed part of the broker's configuration, and the declarations of
    /// streams.
    #[arg(long, value_name = "DIR", default_value = "nats-config")]
    pub(crate) nats_config: PathBuf,
    /// The NATS server.
    #[arg(
        long,
        value_name = "FILE",
        default_value = ".deps/nats/nats-server",
        env = "NATS_SERVER_BIN"
    )]
    pub(crate) nats_server: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// How long holders of leases may take to finish.
    #[arg(long, default_value = "20s")]
    pub(crate) drain: runtime::ConfigDuration,
}

fn parse_role(text: &str) -> Result<schemas::permission::Role, String> {
    use schemas::permission::Role;
    let names = || Role::ALL.map(Role::name).join(", ");
    Role::ALL
        .into_iter()
        .find(|role| role.name() == text)
        .ok_or_else(|| format!("one of {}", names()))
}

/// Digests on the command line: `sha256:…`.
pub(crate) fn parse_digest(text: &str) -> Result<Digest, String> {
    text.parse()
        .map_err(|error: schemas::digest::DigestError| error.to_string())
}
