//! The commands that read the record: `audit` and `lineage`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use diloco_audit::{DigestPrefix, UNREADABLE};
use schemas::event::Event;
use schemas::{Digest, RunId};

use super::parse_digest;

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Check every event in the stream and show what happened. With `--log-folder` or
    /// `--store-keys` the events come from the log instead, without a bus; sequences then count its
    /// events from 1.
    Replay {
        /// Show only events of this run, and events that concern no run.
        #[arg(long)]
        run: Option<RunId>,
        /// Show only events of this kind, such as `permission-denied`, or with `security` all that
        /// the audit service saw of refusals, connections and changes of streams.
        #[arg(long, conflicts_with_all = ["at", "summary"], value_parser = parse_kind)]
        kind: Option<String>,
        /// Show the coordinator's state as it was after this stream sequence.
        #[arg(long, value_name = "SEQUENCE")]
        at: Option<u64>,
        /// Print only the summary.
        #[arg(long, conflicts_with = "at")]
        summary: bool,
        #[command(flatten)]
        log: Log,
    },
    /// Make the merges of a run again, from the objects that the ledger names, and compare the
    /// outcome with the ledger bit for bit. The rows say what is verified; a round that differs is
    /// evidence against the coordinator, and a round without its objects has no verdict.
    Recompute(Recompute),
    /// Verify the newest signed head of the log of all events, that it continues the head that this
    /// machine verified last, and pin it here. A place that goes back behind its own head, or has
    /// another history, is evidence (exit status 10). An older copy than another place has shown
    /// here is none: nothing is said about it (11).
    Head(Log),
    /// Write the proof that one event is in the log, with the signed head: a C2SP tlog-proof, which
    /// holds the event and needs nothing else to be verified than the trust bundle.
    Prove {
        /// The event: the sha256 of its body (`sha256:…`), its emitter and number (`KEY:NUMBER`),
        /// or its index in the log (`index:NUMBER`), which counts from 0. The column `seq` of
        /// `audit replay` is another number, so one alone names no event.
        event: LoggedEvent,
        /// File to write; by default `event-INDEX.tlog-proof` in the current folder.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
        #[command(flatten)]
        log: Log,
    },
    /// Verify the log, without a bus: its head, the tree over its events, its tiles, the signature
    /// and chain of every event, and that it continues the head that this machine verified last.
    Verify {
        /// Verify this proof. Without `--log-folder` and `--store-keys` the proof alone, which
        /// needs no log.
        #[arg(long, value_name = "FILE")]
        proof: Option<PathBuf>,
        #[command(flatten)]
        witnessing: Witnessing,
        #[command(flatten)]
        log: Log,
    },
    /// Make a key with which this machine cosigns heads of the log, as a witness, and print its
    /// public half in the form that a policy names it.
    WitnessKey {
        /// Name of the witness: printable characters without blank and `+`, such as a host's name.
        name: String,
        /// File to write; by default `keys/witness.nk` of the domain's folder. One that is there
        /// stays.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Cosign the newest head of the log, as a witness: only if the whole log leads to it, and it
    /// continues the head that this machine verified last. It is pinned here first. Give the file
    /// to those who verify the log.
    Cosign {
        /// Name of the witness.
        name: String,
        /// File of its key; by default `keys/witness.nk` of the domain's folder.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// File to write; by default `head-SIZE.cosigned` in the current folder. If it has the same
        /// head already, with cosignatures of other witnesses, this one is added. A file with
        /// anything else stays as it is.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
        #[command(flatten)]
        log: Log,
    },
    /// Compare stream AUDIT with the log, and say what the stream lost or what was changed in it.
    Diff(Log),
    /// Print events as they come, until Ctrl-C; the exit status is then the verdict on what was
    /// read. Evidence against the ledger ends the command at once, with status 10.
    Tail {
        /// Show only events of this run, and events that concern no run.
        #[arg(long)]
        run: Option<RunId>,
        /// Show only events of this kind, or with `security` all security events.
        #[arg(long, value_parser = parse_kind)]
        kind: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Lineage {
    /// Show the merged rounds and full snapshots that descend from an object, from the ledger
    /// alone. The first rows say what the object is to each run. Weights descend from everything
    /// that was merged into them or into weights before them.
    Descendants(Descendants),
    /// Show what a full snapshot, a contribution or a data set was made from, back to the run's
    /// beginning, and verify each step: the ledger, manifests and signed statements of provenance
    /// against it, the signatures of coordinators and workers. Weights are not read; `snapshot
    /// promote` reads them. The exit status is 0 when all is verified, 10 with evidence, 11 without
    /// a verdict.
    Show(ShowLineage),
    /// Print the signed statement of provenance of a full snapshot, a contribution or a run's data
    /// set, as a DSSE envelope with an in-toto statement, for tools of others. It is verified
    /// before. The `keyid` in it is the maker's public key (Ed25519) in the text form of nkeys.
    Export(ShowLineage),
}

#[derive(Debug, Args)]
pub(crate) struct ShowLineage {
    /// Digest of the object, or its first 8 digits or more: a snapshot's manifest or its statement;
    /// a contribution's statement, list or chunk; the manifest of a data set or the statement of
    /// its provenance. `audit replay` shows those of contributions.
    #[arg(value_name = "DIGEST")]
    pub(crate) digest: DigestPrefix,
    #[command(flatten)]
    pub(crate) from: AncestrySource,
}

/// Where the ledger and the objects are read.
#[derive(Debug, Args)]
pub(crate) struct AncestrySource {
    /// Folder with the files of an audit service, or with a copy of these. Without it stream AUDIT
    /// is read, with the auditor's credentials.
    #[arg(long, value_name = "DIR")]
    pub(crate) ledger: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) objects: ObjectSource,
}

#[derive(Debug, Args)]
pub(crate) struct Descendants {
    /// Digest of the object, or its first 8 digits or more: a contribution's statement, list or
    /// chunk; published weights, their list or a chunk; a snapshot's manifest; the manifest of a
    /// data set; a model's configuration or layout. Where a list names chunks, the ledger names the
    /// list. `audit replay` shows those of contributions.
    #[arg(value_name = "DIGEST")]
    pub(crate) digest: DigestPrefix,
    /// Folder with the files of an audit service, or with a copy of these. Without it stream AUDIT
    /// is read, with the auditor's credentials.
    #[arg(long, value_name = "DIR")]
    pub(crate) ledger: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Log {
    /// Folder of the log, or of a copy; by default that of the audit service in the domain's
    /// folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) log_folder: Option<PathBuf>,
    /// File with an auditor's key to the store, `store/auditor.json` of the trust domain: the log
    /// is read from the store, and nothing else is asked.
    #[arg(long, value_name = "FILE", conflicts_with = "log_folder")]
    pub(crate) store_keys: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) at: StoreAddress,
}

/// The place of the store that a key opens.
#[derive(Clone, Debug, Args)]
pub(crate) struct StoreAddress {
    /// Address of the store; by default that of the store that `up` started, or
    /// https://127.0.0.1:9000. Its certificate must be signed by the domain's authority.
    #[arg(long, value_name = "URL", requires = "store_keys")]
    pub(crate) store: Option<String>,
    /// Region that signatures name; embedded stores accept any.
    #[arg(
        long,
        value_name = "NAME",
        requires = "store_keys",
        default_value = "us-east-1"
    )]
    pub(crate) store_region: String,
}

#[derive(Debug, Args)]
pub(crate) struct Witnessing {
    /// File with a policy (C2SP tlog-policy): the witnesses, and which of them are enough; without
    /// one that of the log's owner counts, if the log's manifest has one. With either the log must
    /// lead to each head that they have cosigned, and enough of them must have cosigned the newest
    /// one, or one as near to it as `--unwitnessed-max` says. What workers of the policy have
    /// cosigned lies beside the log.
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// File with a cosigned head; give the switch once for each file.
    #[arg(long, value_name = "FILE")]
    pub(crate) cosigned: Vec<PathBuf>,
    /// Ask for any so many of the policy's witnesses, instead of its quorum.
    #[arg(long, value_name = "COUNT", requires = "policy")]
    pub(crate) witnesses: Option<usize>,
    /// Most events of the log that came after the head which enough witnesses have cosigned. A log
    /// that grows is always ahead of its witnesses.
    #[arg(long, value_name = "EVENTS", default_value_t = 0)]
    pub(crate) unwitnessed_max: u64,
}

impl Log {
    /// True if the command line says where the log is.
    pub(crate) const fn is_named(&self) -> bool {
        self.log_folder.is_some() || self.store_keys.is_some()
    }
}

/// The name for all events of the audit service's sentry.
pub(crate) const SECURITY: &str = "security";

/// A kind of event, or [`SECURITY`]. A word that no event has would show nothing, for ever.
fn parse_kind(text: &str) -> Result<String, String> {
    let mut kinds = Event::kinds().chain([SECURITY, UNREADABLE]);
    if kinds.any(|kind| kind == text) {
        return Ok(text.to_owned());
    }
    let mut all: Vec<&str> = Event::kinds().chain([SECURITY, UNREADABLE]).collect();
    all.sort_unstable();
    Err(format!(
        "no event is of this kind; there are {}",
        all.join(", ")
    ))
}

/// An event, as `audit prove` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LoggedEvent {
    /// By the digest of its body.
    Digest(Digest),
    /// By its emitter and its number.
    Number(schemas::PublicKey, schemas::ChainSequence),
    /// By its index in the log.
    Index(u64),
}

/// The word before an index.
const INDEX: &str = "index";

impl std::str::FromStr for LoggedEvent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("sha256:") {
            return parse_digest(text).map(Self::Digest);
        }
        let refused = || "a digest `sha256:…`, `KEY:NUMBER`, or `index:NUMBER`".to_owned();
        match text.split_once(':') {
            Some((INDEX, number)) => number.parse().map(Self::Index).map_err(|_| refused()),
            Some((key, number)) => {
                let key = key.parse().map_err(|_| refused())?;
                let number = number.parse().map_err(|_| refused())?;
                Ok(Self::Number(key, schemas::ChainSequence(number)))
            }
            None if text.parse::<u64>().is_ok() => Err(format!(
                "which number? `{INDEX}:{text}` is the index in the log, which counts from 0; the column `seq` of `audit \
                 replay` is another, and with `-o jsonl` it names each event as `KEY:NUMBER` (`event`)"
            )),
            None => Err(refused()),
        }
    }
}

impl std::fmt::Display for LoggedEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Digest(digest) => write!(f, "the event with the body {digest}"),
            Self::Number(key, number) => write!(f, "event {number} of {key}"),
            Self::Index(index) => write!(f, "index {index}"),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Recompute {
    /// Name of the run.
    #[arg(long, default_value = "demo")]
    pub(crate) run: RunId,
    /// The round to make again. This begins at the last full snapshot before it, whose weights are
    /// taken as they are.
    #[arg(long, required_unless_present = "all", conflicts_with = "all")]
    pub(crate) round: Option<u64>,
    /// Make every round again, from the initial weights, and compare every full snapshot.
    #[arg(long)]
    pub(crate) all: bool,
    /// Folder with the files of an audit service, or with a copy of these. Without it stream AUDIT
    /// is read, with the auditor's credentials.
    #[arg(long, value_name = "DIR")]
    pub(crate) ledger: Option<PathBuf>,
    /// Read the ledger from the log in the store, with `--store-keys`: then read access to the
    /// store is all that is needed.
    #[arg(long, requires = "store_keys", conflicts_with = "ledger")]
    pub(crate) ledger_in_store: bool,
    #[command(flatten)]
    pub(crate) objects: ObjectSource,
}

#[derive(Debug, Args)]
pub(crate) struct ObjectSource {
    /// File with an auditor's key to the store, `store/auditor.json` of the trust domain: objects
    /// are read from the store itself, and no coordinator is asked.
    #[arg(long, value_name = "FILE", conflicts_with = "store_folder")]
    pub(crate) store_keys: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) at: StoreAddress,
    /// Folder of an embedded store, or a copy. Without it and without `--store-keys` objects are
    /// read through URLs of the coordinator, with the operator's credentials.
    #[arg(long, value_name = "DIR")]
    pub(crate) store_folder: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stream and the log count differently, so a number says which of them it is of.
    #[test]
    fn a_number_alone_names_no_event_of_the_log() {
        let read = |text: &str| text.parse::<LoggedEvent>();
        assert_eq!(read("index:3"), Ok(LoggedEvent::Index(3)));
        let refused = read("3").expect_err("an index, or a sequence of the stream");
        for part in ["`index:3`", "column `seq`", "KEY:NUMBER"] {
            assert!(refused.contains(part), "{refused}");
        }
        let key = format!("U{}", "A".repeat(55));
        let number = schemas::ChainSequence(3);
        let named = LoggedEvent::Number(key.parse().expect("a key"), number);
        assert_eq!(read(&format!("{key}:3")), Ok(named));
        for wrong in ["index:", "index:x", "seq:3", "x"] {
            let refused = read(wrong).expect_err("it names nothing");
            assert!(refused.ends_with("or `index:NUMBER`"), "{refused}");
        }
    }

    #[test]
    fn a_kind_that_no_event_has_is_wrong_usage() {
        for kind in [
            "security",
            "unreadable",
            "submitted",
            "round-sealed",
            "stream-changed",
        ] {
            assert_eq!(parse_kind(kind).as_deref(), Ok(kind));
        }
        let refused = parse_kind("secrity").expect_err("it is mistyped");
        assert!(
            refused.contains("security, sentry-interrupted"),
            "{refused}"
        );
    }
}
