//! The subjects that are tried: every row of the table in every form, with the client's own names
//! and with all others', and the broker's own subjects.

use std::collections::BTreeSet;

use schemas::account::Copied;
use schemas::permission::PLUMBING;
use schemas::subject::{Lane, Row, TABLE};
use schemas::{AccountId, PublicKey};

/// Names of buckets that could exist; no role may use any.
const BUCKETS: [&str; 3] = ["state", "leader", "other"];

/// The names that subjects are filled with.
pub(crate) struct Names<'a> {
    pub(crate) keys: &'a [PublicKey],
    pub(crate) runs: &'a [&'a str],
    pub(crate) accounts: &'a [AccountId],
}

/// Subjects without wildcards.
pub(crate) fn to_publish(names: &Names<'_>) -> Vec<String> {
    let mut subjects = rows(names, TABLE);
    subjects.extend(
        PLUMBING
            .iter()
            .map(|row| row.subject.replace(['>', '*'], "probe")),
    );
    subjects.extend(of_the_broker(names.accounts));
    subjects.extend(copies(names.accounts));
    subjects.extend(inboxes(names).map(|inbox| format!("{inbox}.probe")));
    subjects.into_iter().collect()
}

/// Subjects, and patterns over them.
pub(crate) fn to_subscribe(names: &Names<'_>) -> Vec<String> {
    let mut subjects = rows(names, TABLE);
    for lane in Lane::ALL {
        subjects.extend([
            lane.prefix().to_owned(),
            format!("{}.>", lane.prefix()),
            format!("{}.*", lane.prefix()),
        ]);
    }
    for run in names.runs {
        subjects.extend([
            format!("diloco.command.{run}.>"),
            format!("diloco.command.{run}.all.*"),
        ]);
        subjects.extend(
            names
                .keys
                .iter()
                .map(|key| format!("diloco.command.{run}.{key}.*")),
        );
        subjects.extend([
            format!("diloco.public.{run}.*"),
            format!("diloco.*.{run}.>"),
        ]);
    }
    subjects.extend(
        names
            .accounts
            .iter()
            .map(|account| format!("diloco.command.{account}.>")),
    );
    subjects.extend(PLUMBING.iter().map(|row| row.subject.to_owned()));
    subjects.extend(of_the_broker(names.accounts));
    subjects.extend(copies(names.accounts));
    subjects
        .extend(inboxes(names).flat_map(|inbox| [format!("{inbox}.>"), format!("{inbox}.probe")]));
    let wide = [
        ">",
        "*",
        "*.>",
        "*.*.>",
        "diloco.>",
        "diloco.*.>",
        "_INBOX.>",
        "_INBOX.*",
        "_INBOX.*.>",
        "_R_.>",
        "$JS.>",
        "$JS.API.>",
        "$JS.ACK.>",
        "$JS.FC.>",
        "$JS.EVENT.>",
        "$JS.EVENT.ADVISORY.>",
        "$KV.>",
        "$KV.state.>",
        "$SYS.>",
        "$SYS.ACCOUNT.>",
        "$SRV.>",
        "$JSC.>",
    ];
    subjects.extend(wide.map(str::to_owned));
    subjects.into_iter().collect()
}

/// `rows` filled with every combination of names, as their sender writes them and as the control
/// account sees them.
pub(crate) fn rows(names: &Names<'_>, rows: &[Row]) -> BTreeSet<String> {
    let mut subjects = BTreeSet::new();
    for row in rows {
        for key in names.keys {
            for run in names.runs {
                let tail = fill(row, key, run);
                subjects.insert(format!("{}.{tail}", row.lane.prefix()));
                for account in names.accounts {
                    subjects.insert(format!("{}.{account}.{tail}", row.lane.prefix()));
                }
            }
        }
    }
    subjects
}

/// Fills the variable part of a row's subject.
pub(crate) fn fill(row: &Row, key: &PublicKey, run: &str) -> String {
    let tokens = row.pattern.split('.').map(|token| match token {
        "{run}" => run,
        "{worker}" | "{operator}" | "{emitter}" | "{holder}" => key.as_str(),
        "{kind}" => "joined",
        // A role that may name one tenant's account may name any account.
        "{account}" => "account",
        "{verb}" => "drain",
        "{round}" => "0",
        "{unit}" => "train-0",
        token if token.starts_with('{') => {
            panic!(
                "a new variable {token} in {}: say here what stands for it",
                row.pattern
            )
        }
        token => token,
    });
    tokens.collect::<Vec<_>>().join(".")
}

fn inboxes(names: &Names<'_>) -> impl Iterator<Item = String> {
    names.keys.iter().map(|key| format!("_INBOX.{key}"))
}

/// Every stream that could exist.
pub(crate) fn streams(accounts: &[AccountId]) -> Vec<String> {
    let mut streams = ["AUDIT", "WORK"].map(str::to_owned).to_vec();
    streams.extend(BUCKETS.map(|bucket| format!("KV_{bucket}")));
    streams.extend(
        Copied::all(accounts)
            .into_iter()
            .map(|copied| copied.stream),
    );
    streams
}

/// The subjects over which the broker copies streams across accounts; no role may publish or
/// subscribe to them.
fn copies(accounts: &[AccountId]) -> impl Iterator<Item = String> {
    let paths = Copied::all(accounts)
        .into_iter()
        .flat_map(|copied| copied.paths());
    paths
        .flat_map(|path| [path.local, path.exported])
        .map(|subject| subject.replace('>', "probe"))
}

/// Subjects of the broker itself, for all operations on streams, buckets, leases, accounts and
/// servers.
pub(crate) fn of_the_broker(accounts: &[AccountId]) -> BTreeSet<String> {
    let mut subjects: BTreeSet<String> = BTreeSet::new();
    for stream in &streams(accounts) {
        for verb in [
            "CREATE",
            "UPDATE",
            "DELETE",
            "PURGE",
            "INFO",
            "MSG.DELETE",
            "MSG.GET",
            "RESTORE",
            "SNAPSHOT",
            "LEADER.STEPDOWN",
        ] {
            subjects.insert(format!("$JS.API.STREAM.{verb}.{stream}"));
        }
        subjects.insert(format!("$JS.API.DIRECT.GET.{stream}"));
        subjects.insert(format!("$JS.API.DIRECT.GET.{stream}.probe"));
        for verb in [
            "CREATE",
            "DURABLE.CREATE",
            "DELETE",
            "INFO",
            "MSG.NEXT",
            "PAUSE",
            "UNPIN",
        ] {
            subjects.insert(format!("$JS.API.CONSUMER.{verb}.{stream}.lease"));
        }
        subjects.insert(format!("$JS.API.CONSUMER.CREATE.{stream}"));
        subjects.insert(format!("$JS.API.CONSUMER.LIST.{stream}"));
        subjects.insert(format!("$JS.API.CONSUMER.NAMES.{stream}"));
        subjects.insert(format!("$JS.ACK.{stream}.lease.1.1.1.0.0"));
        subjects.insert(format!("$JS.FC.{stream}.probe"));
    }
    for bucket in BUCKETS {
        subjects.extend(
            ["epoch", "leader", "run.demo.snapshot"].map(|key| format!("$KV.{bucket}.{key}")),
        );
    }
    let others = [
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.LIST",
        "$JS.API.ACCOUNT.PURGE.probe",
        "$JS.API.SERVER.REMOVE",
        "$JS.API.META.LEADER.STEPDOWN",
        "$SYS.REQ.CLAIMS.UPDATE",
        "$SYS.REQ.CLAIMS.DELETE",
        "$SYS.REQ.CLAIMS.LIST",
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.SERVER.PING.CONNZ",
        "$SYS.REQ.USER.INFO",
        "$SYS.REQ.ACCOUNT.probe.CLAIMS.UPDATE",
        "$SYS.ACCOUNT.probe.CONNECT",
        "$SYS.ACCOUNT.probe.DISCONNECT",
        "$SYS.ACCOUNT.probe.CLAIMS",
        "$SYS.SERVER.probe.CLIENT.AUTH.ERR",
        "$SYS.SERVER.probe.STATSZ",
        "$JS.EVENT.ADVISORY.API",
        "$JS.EVENT.ADVISORY.STREAM.DELETED.AUDIT",
        "report.control",
        "report.ledger",
        "report.audit",
        "report.probe",
        "$SRV.PING",
        "$SRV.INFO",
        "$SRV.STATS",
        "$JSC.R.probe",
        "_R_.probe",
        "_INBOX.probe",
        "diloco",
        "diloco.request",
        "diloco.probe",
        "probe",
    ];
    subjects.extend(others.map(str::to_owned));
    subjects
}
