//! What crosses the bus.

use std::fmt::Debug;
use std::path::PathBuf;
use std::str::FromStr;

use audit_core::sentry::{Lines, StoreLooks, of_line, of_refusals, of_report};
use data_encoding::HEXLOWER_PERMISSIVE;
use schemas::blob::{GetRequest, Grants, PutRequest};
use schemas::collection::{CollectReply, CollectRequest};
use schemas::contribution::{StageRequest, Statement, SubmitReply, SubmitRequest};
use schemas::control::{
    OperatorObjects, RunNew, RunNewReply, Shutdown, ShutdownReply, ViewReply, ViewRequest,
};
use schemas::ending::{LeasesEndReply, LeasesEndRequest};
use schemas::enrolment::{EnrolmentReply, EnrolmentRequest};
use schemas::event::{EventBody, SignedEvent};
use schemas::foundry::{FoundryAnswer, FoundryOrder};
use schemas::head::{CosignRequest, HeadReply, HeadRequest};
use schemas::hold::{HoldReply, HoldRequest, Reason};
use schemas::keys::{KeysReply, KeysRequest};
use schemas::layout::Layout;
use schemas::lease::{
    ClaimReply, ClaimRequest, Done, Offer, ReleaseRequest, RenewReply, RenewRequest,
};
use schemas::masking::{CohortStatement, KeyStatement, MaskReply, MaskRequest};
use schemas::member::{JoinReply, JoinRequest, LeaveRequest};
use schemas::promotion::{PointerName, PromoteReply, PromoteRequest};
use schemas::public::Status;
use schemas::quarantine::{QuarantineReply, QuarantineRequest};
use schemas::renewal::{RenewalReply, RenewalRequest};
use schemas::restore::{RestoreReply, RestoreRequest};
use schemas::revocation::{RevokeReply, RevokeRequest};
use schemas::run::RunSpec;
use schemas::security::{RefusalReport, SEEN_BYTES_MAX, StoreRefusals};
use schemas::subject::{self, Incoming};
use schemas::telemetry::Heartbeat;
use schemas::tenant::{TenantEndReply, TenantEndRequest, TenantReply, TenantRequest};
use schemas::{
    AccountId, Addressee, Answer, Code, Digest, GroupId, Message, PublicKey, Refusal, RunId,
    UnixMillis, WorkerId,
};

/// Reads bytes as a message. What reads must be what is written, and must not grow.
fn read<T: Message + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(message) = T::decode(bytes) else {
        return;
    };
    let written = message.encode();
    let again = T::decode(&written).unwrap_or_else(|error| panic!("{}: {error}", T::NAME));
    assert_eq!(again.encode(), written, "{} has two encodings", T::NAME);
}

macro_rules! readers {
    ($($type:ty),* $(,)?) => {
        /// A reader for each type of message, and its name.
        pub(super) const READERS: &[(&str, fn(&[u8]))] = &[$((<$type as Message>::NAME, read::<$type>)),*];
    };
}

readers![
    HeadRequest,
    HeadReply,
    CosignRequest,
    RefusalReport,
    EnrolmentRequest,
    EnrolmentReply,
    RenewalRequest,
    RenewalReply,
    HoldRequest,
    HoldReply,
    LeasesEndRequest,
    LeasesEndReply,
    PromoteRequest,
    PromoteReply,
    RunNew,
    ViewRequest,
    ViewReply,
    OperatorObjects,
    Shutdown,
    ShutdownReply,
    RunNewReply,
    StageRequest,
    SubmitRequest,
    Statement,
    SubmitReply,
    PutRequest,
    GetRequest,
    Grants,
    RestoreRequest,
    RestoreReply,
    QuarantineRequest,
    QuarantineReply,
    SignedEvent,
    EventBody,
    Layout,
    FoundryOrder,
    FoundryAnswer,
    Status,
    RunSpec,
    Heartbeat,
    ClaimRequest,
    ClaimReply,
    RenewRequest,
    RenewReply,
    ReleaseRequest,
    Done,
    Offer,
    Refusal,
    JoinRequest,
    JoinReply,
    LeaveRequest,
    CollectRequest,
    CollectReply,
    MaskRequest,
    MaskReply,
    KeyStatement,
    CohortStatement,
    TenantRequest,
    TenantReply,
    TenantEndRequest,
    TenantEndReply,
    RevokeRequest,
    RevokeReply,
    KeysRequest,
    KeysReply,
    Answer<Done>,
    Answer<ViewReply>,
    Answer<JoinReply>,
];

/// The first byte chooses the type.
pub(super) fn message(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    let (_, read) = READERS[usize::from(*which) % READERS.len()];
    read(bytes);
}

/// Every example on file, as each type that has its name. An answer's example is tried as every
/// type of answer.
pub(super) fn messages() -> Vec<Vec<u8>> {
    let examples = golden();
    let of_each = READERS.iter().enumerate().flat_map(|(which, (name, _))| {
        let plain = name.replace(['.', ' '], "-");
        let examples = examples.iter().filter(move |(file, _)| {
            file.starts_with(&format!("{plain}."))
                || file.starts_with(&format!("{plain}-of"))
                || file.starts_with(&format!("{plain}-that"))
                || file.starts_with("answer")
        });
        examples.map(move |(_, bytes)| [&[which as u8], &bytes[..]].concat())
    });
    of_each.collect()
}

/// The examples of the protocol, with the names of their files.
pub(super) fn golden() -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../schemas/golden");
    let files = std::fs::read_dir(&folder).expect("the examples of the protocol");
    let mut found: Vec<_> = files
        .map(|file| {
            let path = file.expect("a file").path();
            let text = std::fs::read_to_string(&path).expect("an example");
            let bytes = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes());
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, bytes.expect("bytes in hex"))
        })
        .collect();
    found.sort();
    found
}

/// Reads a text as a name. A name is written as it was read.
fn parse<T: FromStr + ToString>(text: &str) {
    if let Ok(name) = text.parse::<T>() {
        assert_eq!(name.to_string(), text, "a name with two spellings");
    }
}

/// Reads a text as everything that is a short text here.
pub(super) fn name(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    parse::<RunId>(&text);
    parse::<WorkerId>(&text);
    parse::<AccountId>(&text);
    parse::<PublicKey>(&text);
    parse::<GroupId>(&text);
    parse::<PointerName>(&text);
    parse::<Reason>(&text);
    parse::<Code>(&text);
    parse::<Digest>(&text);
    parse::<objects::BucketName>(&text);
    parse::<objects::BlobKey>(&text);
    parse::<objects::IncomingKey>(&text);
    let _spans = (
        text.parse::<runtime::ConfigDuration>(),
        text.parse::<runtime::ConfigBytes>(),
    );
    if let Ok(pattern) = text.parse::<data::Pattern>() {
        let _matches = pattern.matches("a/b.txt".as_ref());
    }
    let incoming = text.parse::<Incoming>();
    let sender = subject::sender_key(&text);
    let sent = subject::as_sent(&text);
    assert!(sent.len() <= text.len(), "a sender wrote no more than came");
    if let Ok(Incoming::Recorded {
        account,
        run,
        worker,
        ..
    }) = &incoming
    {
        let named = Some((account.clone(), run.clone(), worker.clone()));
        assert_eq!(subject::recorded_worker(&text), named);
    }
    if let Ok(Incoming::Request { worker, .. }) = &incoming {
        // The answer goes to the key in the subject, or nobody could read it.
        let named = sender.expect("a question has a sender");
        assert_eq!(named.as_str(), worker.as_str());
        assert!(Addressee::of(&text, b"question").is_some());
    }
}

pub(super) fn names() -> Vec<Vec<u8>> {
    let (account, run, worker) = (kit::account(1), kit::run_id(), kit::worker(1));
    let texts = [
        format!("diloco.request.{account}.{run}.{worker}.lease.claim"),
        format!("diloco.telemetry.{account}.{run}.{worker}.heartbeat"),
        format!("diloco.event.{account}.{run}.{worker}.unit-started"),
        subject::record_subject(&account, &run, &worker, "unit-started"),
        subject::ledger_subject(Some(&run), &kit::public_key(1), "round-opened"),
        subject::control_subject(&kit::operator(), subject::ControlVerb::ALL[0]),
        subject::renewal_subject(Some(&run), &kit::public_key(1)),
        subject::enrolment_subject(&kit::public_key(1)),
        account.to_string(),
        worker.to_string(),
        run.to_string(),
        Digest::of(b"x").to_string(),
        objects::BlobKey(Digest::of(b"x")).to_string(),
        "DL0101".to_owned(),
        "1h 30m".to_owned(),
        "64 MiB".to_owned(),
        "**/*.txt".to_owned(),
    ];
    texts.into_iter().map(String::into_bytes).collect()
}

/// A report of the broker under one of its subjects, or pieces of its log.
pub(super) fn sighting(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    let mut found = Vec::new();
    match which % 4 {
        0 => found.extend(of_report(
            UnixMillis(1_700_000_000_000),
            "$SYS.ACCOUNT.x.CONNECT",
            bytes,
        )),
        1 => found.extend(of_report(
            UnixMillis(1_700_000_000_000),
            "$SYS.SERVER.x.CLIENT.AUTH.ERR",
            bytes,
        )),
        2 => found.extend(of_report(
            UnixMillis(1_700_000_000_000),
            "report.ledger",
            bytes,
        )),
        254 => {
            let mut looks = StoreLooks::default();
            for list in bytes.split(|byte| *byte == b'\n') {
                if let Ok(list) = serde_json::from_slice::<StoreRefusals>(list) {
                    let (seen, _) = looks.take(list);
                    found.extend(seen.into_iter().map(|(one, _)| one));
                }
            }
        }
        255 => {
            let subject = format!("diloco.refusal.{}.coordinator", kit::account(1));
            let heard = of_refusals(&subject, bytes);
            found.extend(
                heard
                    .into_iter()
                    .flat_map(|heard| heard.sightings)
                    .map(|(one, _)| one),
            );
        }
        _ => {
            let mut lines = Lines::default();
            for piece in bytes.chunks(1 + usize::from(*which)) {
                lines.feed(piece, &mut |line| found.extend(of_line(line)));
            }
        }
    }
    for one in found {
        for text in [&one.name, &one.address, &one.subject, &one.reason] {
            assert!(text.len() <= SEEN_BYTES_MAX && !text.contains(char::is_control));
        }
        let user = one.user.as_ref().map_or("U", |user| user.as_str());
        assert!(user.starts_with('U'), "{user}");
    }
}

pub(super) fn sightings() -> Vec<Vec<u8>> {
    let client = format!(
        r#""client":{{"host":"10.0.0.1","acc":"{}","user":"{}","name":"x","jwt":"e.eyJzdWIiOiJVIn0.s"}}"#,
        kit::account(1),
        kit::worker(1)
    );
    let report = |which: u8, kind: &str, more: &str| {
        let text = format!(r#"{{"type":"io.nats.{kind}",{client}{more}}}"#);
        [&[which], text.as_bytes()].concat()
    };
    let line = |kind: &str| {
        format!(
            "[7] 2026/11/28 09:33:43.8 [ERR] 127.0.0.1:38062 - cid:9 - \"v1:rust:x\" - \"{}/default/jwt:{}\" - {kind} - Subject \"a.b\"\n",
            kit::account(1),
            kit::worker(1)
        )
    };
    let log = line("Publish Violation") + &line("Subscription Violation");
    let tls = "[7] 2026/11/28 09:33:43.8 [ERR] 127.0.0.1:3 - cid:9 - TLS handshake error: EOF\n";
    let failed = r#","reason":"Authentication Failure""#;
    let changed =
        r#","subject":"$JS.API.STREAM.DELETE.X","response":"{\"error\":{\"description\":\"no\"}}""#;
    let list = |process: u64, count: u64| {
        format!(
            r#"{{"v":1,"process":{process},"refusals":[{{"address":"10.0.0.1","holder":"{}","key":"get","request":"GET blobs","reason":"AccessDenied: x","count":{count}}}],"more":{count}}}"#,
            kit::worker(1)
        )
    };
    let lists = [list(1, 1), list(1, 3), list(2, 2)].join("\n");
    let examples = golden();
    let refused = examples
        .iter()
        .find(|(name, _)| name.starts_with("refusal-report"));
    let (_, refused) = refused.expect("it is an example");
    vec![
        report(0, "server.advisory.v1.client_connect", ""),
        report(1, "server.advisory.v1.client_disconnect", failed),
        report(2, "jetstream.advisory.v1.api_audit", changed),
        [&[3], log.as_bytes()].concat(),
        [&[7], tls.as_bytes()].concat(),
        [&[255], &refused[..]].concat(),
        [&[254], lists.as_bytes()].concat(),
    ]
}

/// The first byte is the size of the pieces in which the rest arrives.
pub(super) fn broker(bytes: &[u8]) {
    if let Some((piece, bytes)) = bytes.split_first() {
        let whole = runtime::fuzz::words(bytes, bytes.len().max(1));
        let pieces = runtime::fuzz::words(bytes, usize::from(*piece).max(1));
        assert_eq!(whole, pieces, "pieces change what is understood");
    }
}

pub(super) fn broker_words() -> Vec<Vec<u8>> {
    [
        &b"\x07INFO {\"nonce\":\"abc\",\"tls_required\":true,\"ldm\":false}\r\nPING\r\n"[..],
        b"\x03MSG diloco.request.A.demo.U.join 1 _INBOX.x 5\r\nhello\r\nPONG\r\n+OK\r\n",
        b"\x01MSG a.b 2 0\r\n\r\n-ERR 'Authorization Violation'\r\n",
        b"\x10MSG a 1 99999999\r\nshort",
    ]
    .map(<[u8]>::to_vec)
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines in which a type of message is declared.
    fn declared(folder: &std::path::Path) -> usize {
        let entries = std::fs::read_dir(folder).expect("sources");
        let paths = entries.map(|entry| entry.expect("a file").path());
        paths.fold(0, |sum, path| {
            let lines = |text: String| {
                let starts = text.lines().filter(|line| line.starts_with("message!("));
                starts.count()
            };
            sum + match path.is_dir() {
                true => declared(&path),
                false => lines(std::fs::read_to_string(path).expect("a source")),
            }
        })
    }

    #[test]
    fn every_type_of_message_is_read() {
        let sources = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../schemas/src");
        let names: std::collections::BTreeSet<_> = READERS.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), declared(&sources));
    }
}
