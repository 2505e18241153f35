//! The tree of commands.

mod audit;
mod invite;
mod rotate;
mod snapshot;
mod store;
mod tenant;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use schemas::hold::Reason;
use schemas::permission::Role;
use schemas::{Digest, RunId};

pub(crate) use self::audit::{
    AncestrySource, Audit, Descendants, Lineage, Log, LoggedEvent, ObjectSource, Recompute,
    SECURITY, ShowLineage, StoreAddress, Witnessing,
};
pub(crate) use self::invite::InviteArgs;
pub(crate) use self::rotate::{RolesArgs, Rotate};
pub(crate) use self::snapshot::{PromoteArgs, RestoreArgs, Snapshot};
pub(crate) use self::store::{Store, StoreCheck};
pub(crate) use self::tenant::{QuotaArgs, Tenant};
use crate::commands::settings::RunArgs;
use crate::output::Format;

/// Runs DiLoCo training over a message bus: sets up, starts runs, watches them, stops them, and
/// shows what happened.
#[derive(Debug, Parser)]
#[command(name = "diloctl", version, after_help = runtime::exit::EXIT_HELP, arg_required_else_help = true)]
pub struct Cli {
    /// Flags that all commands share.
    #[command(flatten)]
    pub(crate) global: Global,
    /// The command to run.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Format of the printed data.
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
    /// Credentials file to connect with; by default the file in the domain's folder for the role
    /// that the command needs.
    #[arg(long, global = true, value_name = "FILE", env = "DILOCTL_CREDENTIALS")]
    pub(crate) credentials: Option<PathBuf>,
    /// Address of the NATS servers; by default that of the broker that `up` started, or
    /// tls://127.0.0.1:4222.
    #[arg(long, global = true, value_name = "URL", env = "DILOCO_BUS__URL")]
    pub(crate) bus: Option<String>,
    /// Longest wait for one answer.
    #[arg(long, global = true, value_name = "TIME", default_value = "30s")]
    pub(crate) timeout: runtime::ConfigDuration,
    /// Flags of logging; by default only errors are logged.
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
    /// Parties that share the domain, each with runs and workers of its own.
    #[command(subcommand)]
    Tenant(Tenant),
    /// Training text.
    #[command(subcommand)]
    Data(Data),
    /// Training jobs.
    #[command(subcommand)]
    Run(Run),
    /// The machines of a run.
    #[command(subcommand)]
    Worker(Worker),
    /// Leases: the units that workers hold now.
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
    /// Look for what is wrong, and say what to do next: files and processes of this machine,
    /// broker, streams, coordinator, store, runs and workers. A second table shows which layers
    /// of authentication each process has open. The command fails with the code of the first
    /// check that fails.
    Doctor {
        /// Folder whose subfolder `streams` declares the streams.
        #[arg(long, value_name = "DIR", default_value = "nats-config")]
        nats_config: PathBuf,
    },
    /// The store of objects.
    #[command(subcommand)]
    Store(Store),
    /// What descends from what.
    #[command(subcommand)]
    Lineage(Lineage),
    /// Start broker, store, coordinator, audit service and workers on this machine. Processes that
    /// run already are left alone, and missing streams are created. The command succeeds when the
    /// coordinator has answered.
    Up(Up),
    /// Stop everything that `up` started, in order.
    Down(Down),
    /// Print a completion script.
    Completions {
        /// The shell that the script is for.
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
        /// Number of workers that get credentials: worker-0, worker-1, and so on.
        #[arg(long, default_value_t = 2)]
        workers: u32,
        /// Host names or addresses of broker and store besides localhost, for their certificate.
        #[arg(long, value_name = "NAME")]
        server_name: Vec<String>,
        /// Mutual TLS: broker and store take only clients that show a certificate, which comes with
        /// the credentials, names their holder, and lives for a day at most.
        #[arg(long)]
        mutual_tls: bool,
        /// File with the witnesses of the log, and which of them are enough (C2SP tlog-policy). The
        /// owner signs it into the log's manifest, for good: `audit verify` then asks for them.
        /// `audit witness-key NAME --key FILE` makes a witness's key before there is a domain.
        #[arg(long, value_name = "FILE")]
        witness_policy: Option<PathBuf>,
        /// Folder with the committed part of the broker's configuration; the trust domain gets a
        /// copy.
        #[arg(long, value_name = "DIR", default_value = "nats-config")]
        nats_config: PathBuf,
    },
    /// Issue new credentials under a name, or renew those that the name has.
    Issue {
        /// Role of the credentials.
        #[arg(value_parser = parse_role)]
        role: Role,
        /// Name of the credentials: letters, digits, `-` and `_`. diloctl uses the credentials
        /// whose name is that of the role, unless `--credentials` names a file.
        name: String,
        /// Run that a worker works for; required for workers, and not allowed for other roles.
        #[arg(long)]
        run: Option<RunId>,
        /// Time for which the credentials are valid.
        #[arg(long, default_value = "30d")]
        lifetime: runtime::ConfigDuration,
    },
    /// Make a new certificate for broker and store, valid for 30 days; restart both afterwards.
    Certificate {
        /// Host names or addresses of broker and store besides localhost. Name all of them: those
        /// of the old certificate are not kept.
        #[arg(long, value_name = "NAME")]
        server_name: Vec<String>,
    },
    /// Write the broker's configuration again. This is needed after an upgrade that changes
    /// permissions, and after the trust domain's folder was moved. The broker keeps the address
    /// that it listens on.
    Config {
        /// Give the domain mutual TLS, see `auth init --mutual-tls`. The credentials in its folder
        /// get certificates; restart broker, store and services afterwards.
        #[arg(long)]
        mutual_tls: bool,
        /// Folder with the committed part of the broker's configuration; the trust domain gets a
        /// copy.
        #[arg(long, value_name = "DIR", default_value = "nats-config")]
        nats_config: PathBuf,
    },
    /// Void all tokens that were issued to holders up to now, and cut their connections. The broker
    /// confirms it before the command succeeds; if the broker is away, the revocations are kept,
    /// the exit status is 8, and `auth push` or `up` brings them into effect. Naming the domain's
    /// own coordinator or auditor revokes both connections of the service. A revoked holder can get
    /// new credentials with `auth issue`. Repeated, the command says `revoked already`. Tokens are
    /// void that are dated up to the time in column `void up to`, five minutes ahead. The
    /// coordinator records the revocation in the ledger, and answers the key nothing any more; if
    /// it cannot be told, the exit status is 8 too (DL0784), and `auth push` or `up` tells it.
    Revoke {
        /// Names of holders, or keys (U...), as `auth ls` shows them.
        #[arg(required = true, value_name = "NAME|KEY")]
        holders: Vec<String>,
        /// Reason for the revocation, one line.
        #[arg(long, value_name = "TEXT")]
        reason: Option<Reason>,
    },
    /// Replace keys while runs go on.
    #[command(subcommand)]
    Rotate(Rotate),
    /// End the overlap that `auth rotate role` has begun: tokens of the role's earlier signing keys
    /// are void, and their connections are cut.
    Retire {
        #[command(flatten)]
        of: RolesArgs,
    },
    /// Give the running broker the tokens of all accounts, with permissions and revocations as the
    /// trust domain has them now. Clients whose rights change reconnect; others stay connected. The
    /// coordinator is told of revocations that the ledger does not have.
    Push,
    /// List all keys that credentials were issued for, with their end, and their revocation. A
    /// revocation voids every token that is dated up to the time in column `void up to`, five
    /// minutes after it was made, so that clocks may differ; a token that is issued again is dated
    /// after that.
    Ls,
    /// Show the public keys of the trust domain and the credentials that were issued; no secret is
    /// printed.
    Show,
    /// Print the public keys that sign leases and commands as a JSON Web Key Set (RFC 7517), for
    /// readers in other languages: `kid` is what the header of a document names. Publish it again
    /// after `auth rotate manifest`.
    Jwks {
        /// Ask the coordinator for the keys that it publishes on the bus, and print them if they
        /// are those of the trust bundle; others are refused (DL0672).
        #[arg(long)]
        from_bus: bool,
        /// A trust bundle, on a machine without the trust domain's folder.
        #[arg(long, value_name = "FILE")]
        trust: Option<PathBuf>,
        /// Write to this file instead of stdout.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
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
    /// Folder whose subfolder `streams` declares the streams.
    #[arg(long, value_name = "DIR", default_value = "nats-config")]
    pub(crate) nats_config: PathBuf,
    /// Copies of each stream in a cluster of brokers.
    #[arg(long, default_value_t = 1)]
    pub(crate) replicas: usize,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Make a data set of text and upload it.
    Import {
        /// A file or folder of text in UTF-8; by default the Rust sources in cargo's registry
        /// folder. Links inside the folder are followed. Files that are left out are counted, and
        /// the counts are printed.
        #[arg(long, value_name = "PATH")]
        text: Option<PathBuf>,
        /// Leave out files and folders with this name. A pattern with a `/` is compared with the
        /// whole path below the folder. `*` and `?` do not match a `/`, `**` does. May be repeated.
        #[arg(long, value_name = "GLOB")]
        exclude: Vec<data::Pattern>,
        /// Most text to import.
        #[arg(long, value_name = "SIZE", default_value = "32MiB")]
        limit: runtime::ConfigBytes,
        /// Approximate tokens of a shard; a mebi token by default. The units of a private run's
        /// round read different shards.
        #[arg(long, value_name = "TOKENS")]
        shard_tokens: Option<u64>,
        /// A Hugging Face tokenizer.json; without one every byte is a token. Text that spells a
        /// special token is encoded as ordinary text.
        #[arg(long, value_name = "FILE")]
        tokenizer: Option<PathBuf>,
    },
    /// List the data sets that were imported into this domain's folder.
    Ls,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Run {
    /// Create a run.
    New(Box<RunArgs>),
    /// List all runs.
    Ls {
        /// Only those of this tenant; `default` is the domain's own.
        #[arg(long, value_name = "NAME", value_parser = tenant::parse_any)]
        tenant: Option<tenant::AnyTenant>,
    },
    /// Show one run in full.
    Get {
        /// Name of the run.
        run: RunId,
    },
    /// Keep a run's weights as they are, for an incident: no round is merged, no snapshot is
    /// promoted, and the run does not complete until `run unfreeze`. Workers go on with the round
    /// that is open. The freeze outlives a restart of the coordinator, and the audit keeps the
    /// reason.
    Freeze(HoldArgs),
    /// Let a frozen run merge again. What waited is merged at once.
    Unfreeze(HoldArgs),
    /// Stop the URLs of a run at once, for an incident: its workers get none any more, and no
    /// leases, and the embedded store refuses those that they have. Transfers that began before go
    /// on, and so do other runs and operators. Another store takes the URLs that are out until they
    /// end, a minute at most. The stop outlives restarts of coordinator and store, until `run
    /// allow-urls`; if the store could not be told, the same command tells it again.
    StopUrls(HoldArgs),
    /// Let the workers of a run have URLs again. They go on by themselves.
    AllowUrls(HoldArgs),
    /// Tell which objects of a run's old rounds nothing needs any more, and with `--yes` delete
    /// them: contributions, weights for workers, and full snapshots. Kept are the newest full
    /// snapshots, everything that was made since the oldest of these, each snapshot to which a
    /// pointer leads, everything that a run works with, the settings and data of all runs, and all
    /// statements of provenance. The ledger first names what is given up, so that nobody takes it
    /// for lost or altered. Another trust domain that keeps its objects in the same bucket is not
    /// asked: never delete where there is one. A run may be in progress; a frozen one keeps
    /// everything. If the command is interrupted, the same command deletes the rest.
    Gc(GcArgs),
    /// Follow a run until it is complete: bars on a terminal, lines elsewhere.
    Watch {
        /// Name of the run.
        run: RunId,
    },
    /// Wait until a run is complete or has closed a number of rounds. The command fails with the
    /// reason when the run is halted, has no workers left, or was ended by its privacy budget.
    Wait {
        /// Name of the run.
        run: RunId,
        /// Event to wait for: `complete`, or `round=N`.
        #[arg(long = "for", default_value = "complete")]
        target: crate::commands::run::Target,
        /// Longest wait; the exit status is 7 when it is over.
        #[arg(long, value_name = "TIME", default_value = "24h")]
        within: runtime::ConfigDuration,
        /// Fail, with the reason, when the run has had no worker for this long.
        #[arg(long, value_name = "TIME", default_value = "5m")]
        nobody_for: runtime::ConfigDuration,
    },
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Name of the run.
    pub(crate) run: RunId,
    /// Full snapshots to keep, from which the run can be restored and its merges recomputed.
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keep: u32,
    /// Delete; without this the command only tells.
    #[arg(long, requires_all = ["reason", "store_is_ours"])]
    pub(crate) yes: bool,
    /// No other trust domain keeps anything in this bucket. The coordinator knows what its own runs
    /// need, and would delete equal objects that another domain needs.
    #[arg(long, requires = "yes")]
    pub(crate) store_is_ours: bool,
    /// Reason for the order, one line.
    #[arg(long, value_name = "TEXT", requires = "yes")]
    pub(crate) reason: Option<Reason>,
}

#[derive(Debug, Args)]
pub(crate) struct HoldArgs {
    /// Name of the run.
    pub(crate) run: RunId,
    /// Reason for the order, one line.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Reason,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Worker {
    /// List all workers of one run, present and past.
    Ls {
        /// Name of the run.
        #[arg(default_value = "demo")]
        run: RunId,
    },
    /// Shut a worker out of a run at once, for an incident. Its lease ends, and its contributions
    /// to the round that is open count no more: other workers get these units. Its uploads are
    /// deleted. It gets no lease and no URL and cannot join, its events are not recorded, and its
    /// process ends with DL0412; all this goes by its key and outlives a restart of the
    /// coordinator. What was merged before stays merged: the printed lines name these rounds. The
    /// embedded store refuses the URLs that it got before, but a transfer that has begun goes on as
    /// long as bytes come; another store takes them until they end, a minute at most. What an
    /// upload brings counts nowhere; repeat the command later to delete it.
    ///
    /// Where the vault of the trust domain is on this machine, its credential is revoked in the
    /// same command, after the quarantine is in the ledger: its connections are cut, and nobody
    /// connects with its key. Elsewhere the quarantine takes effect all the same, and the line
    /// `credential` says which command to run where.
    Quarantine {
        #[command(flatten)]
        order: QuarantineArgs,
        /// Leave its credential valid: it connects, and hears nothing but refusals.
        #[arg(long)]
        keep_credential: bool,
    },
    /// Let a worker join again that was shut out. A credential that was revoked stays so: the line
    /// `credential` says how it gets a new one. Then start its process: nothing else does.
    Readmit(QuarantineArgs),
    /// Invite a machine to become a worker: write a file that it asks with, once, for minutes.
    /// Carry the file to the machine over a channel that nobody else reads, and run `worker enrol`
    /// there. The registrar must run. The command works on the trust domain's folder on the
    /// registrar's machine.
    Invite(InviteArgs),
    /// List the machines that asked with an invitation and wait for approval.
    Pending,
    /// Admit a machine that waits. Compare the key with the one that its own `worker enrol` shows.
    Approve {
        /// The key that the machine shows, or its first 8 letters.
        key: String,
    },
    /// Refuse a machine that waits, or withdraw an invitation that nobody has used. A worker that
    /// is enrolled already is shut out with `auth revoke`.
    Deny {
        /// The key of the machine, or the name that the invitation promises.
        what: String,
    },
    /// On a machine that will be invited: make its keys, unless they are there, and show their
    /// public halves. An operator can list them in an invitation.
    Keys,
    /// On an invited machine: make its keys, ask the registrar, and write credentials and a
    /// configuration into the folder that `--domain` names. The keys never leave the machine. If a
    /// person has to approve it, the command shows the key and waits until the invitation ends.
    /// After a failure it can be repeated.
    Enrol {
        /// The file that `worker invite` has written.
        #[arg(value_name = "FILE")]
        invitation: PathBuf,
        /// Device of the worker: auto, cpu, cuda or cuda:N.
        #[arg(long, default_value = "auto")]
        device: String,
        /// CPU threads of the worker.
        #[arg(long, default_value_t = 1)]
        threads: u32,
    },
    /// Ask the registrar for another key, for a worker of this machine, while `auth rotate user`
    /// waits for it where the trust domain lies. The keys are made here and never leave the
    /// machine.
    Rekey {
        /// Name of the worker's credentials.
        name: String,
    },
    /// Make a new token for a worker whose keys lie on its own machine: it was off for longer than
    /// its token, or the signing key of its role was replaced. The file holds no secret. Carry it
    /// to the machine and run `worker accept` there. A revoked key gets none. The command works on
    /// the trust domain's folder; the registrar needs the worker's new file in the folder `issued`.
    Reissue {
        /// Name of the worker, or its key (U...).
        worker: String,
        /// Time for which the token is valid: longer than the way to the machine takes.
        #[arg(long, value_name = "TIME", default_value = "1d")]
        lifetime: runtime::ConfigDuration,
        /// File to write.
        #[arg(long, value_name = "FILE", default_value = "token.json")]
        into: PathBuf,
    },
    /// On a worker's machine: put a token from `worker reissue` beside the key that lies there, in
    /// the folder that `--domain` names. Then start the worker.
    Accept {
        /// The file that `worker reissue` has written.
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct QuarantineArgs {
    /// The worker: its key, the first 8 letters of it as `worker ls` shows them, or the name of its
    /// credentials in the domain's folder, such as worker-0. It need not have joined, or be there.
    pub(crate) worker: String,
    /// Name of the run.
    #[arg(long)]
    pub(crate) run: RunId,
    /// Reason for the order, one line, which the audit keeps. The worker is not told.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Reason,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OfRun {
    /// List all entries of one run.
    Ls {
        /// Name of the run.
        #[arg(default_value = "demo")]
        run: RunId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Control {
    /// Stop the workers and the coordinator in order. Runs continue where they were when both are
    /// started again.
    Shutdown {
        /// Time that workers get to finish the units they hold.
        #[arg(long, default_value = "30s")]
        drain: runtime::ConfigDuration,
        /// Do not ask for confirmation.
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Workers on this machine, with the credentials worker-0, worker-1, and so on.
    #[arg(long, default_value_t = 2)]
    pub(crate) workers: u32,
    /// Run that the workers work for.
    #[arg(long, default_value = "demo")]
    pub(crate) run: RunId,
    /// Threads of each worker.
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: u32,
    /// Device of each worker: `cpu`, `cuda:0`, or `auto`.
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
    /// Life of the tokens of services and workers. The registrar renews them when half of it has
    /// passed; without it they end.
    #[arg(long, default_value = "1h")]
    pub(crate) token_lifetime: runtime::ConfigDuration,
    /// Port of the broker; by default the port of the last start, or 4222.
    #[arg(long)]
    pub(crate) bus_port: Option<u16>,
    /// Port of the store; by default the port of the last start, or 9000.
    #[arg(long)]
    pub(crate) store_port: Option<u16>,
    /// Folder with the committed part of the broker's configuration and the declarations of
    /// streams.
    #[arg(long, value_name = "DIR", default_value = "nats-config")]
    pub(crate) nats_config: PathBuf,
    /// Program of the NATS server.
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
    /// Time that workers get to finish the units they hold.
    #[arg(long, default_value = "20s")]
    pub(crate) drain: runtime::ConfigDuration,
}

fn parse_role(text: &str) -> Result<Role, String> {
    one_of(text, |role| !role.is_momentary())
}

/// True for a role whose signing key can be replaced: that of newcomers lies with the registrar's,
/// and can be stolen with them.
fn is_rotated(role: &Role) -> bool {
    !role.is_momentary() || role.is_signed_online()
}

fn parse_signing_role(text: &str) -> Result<Role, String> {
    one_of(text, is_rotated)
}

fn one_of(text: &str, allowed: impl Fn(&Role) -> bool) -> Result<Role, String> {
    let mut roles = Role::ALL.into_iter().filter(|role| allowed(role));
    let names: Vec<&str> = roles.clone().map(Role::name).collect();
    roles
        .find(|role| role.name() == text)
        .ok_or_else(|| format!("one of {}", names.join(", ")))
}

/// Parses a digest from the command line: `sha256:…`.
pub(crate) fn parse_digest(text: &str) -> Result<Digest, String> {
    text.parse()
        .map_err(|error: schemas::digest::DigestError| error.to_string())
}
