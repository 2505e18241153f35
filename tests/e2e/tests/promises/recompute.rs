//! An auditor makes every merge of a run again, bit for bit, with a copy of the ledger and read
//! access to the objects, and notices a coordinator that lies.

use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use diloco_audit::{Payload, Record, StreamSequence};
use e2e::Recipe;
use harness::{Cluster, Options};
use identity::AuditKey;
use runtime::exit::{EXIT_NO_VERDICT, EXIT_NOT_FOUND, EXIT_TAMPERED};
use schemas::event::{Event, EventBody, LedgerEvent, SignedEvent};
use schemas::{Chunks, Code, Digest, Message as _, ObjectRef, Round, UnixMillis};
use serde_json::Value;

const ROUNDS: u64 = 3;
const UNITS: u32 = 2;
/// The objects, in a copy of the store's folder.
const FOLDER: [&str; 2] = ["--store-folder", "auditor/store"];

/// A cluster whose run is complete, with full snapshots of versions 2 and 3.
pub(crate) async fn trained() -> Cluster {
    let cluster = Cluster::start(Options::default(), 2).await;
    Recipe::reference(ROUNDS, UNITS, 10)
        .set("schedule.snapshot_every=2")
        .create(&cluster)
        .await;
    cluster.operator().await.until_complete(cluster.run()).await;
    cluster.kept().await;
    cluster
}

/// What an auditor has: public facts of the domain, its own key to the store, and copies of the
/// ledger and of the store's folder.
pub(crate) fn auditor(cluster: &Cluster) -> PathBuf {
    let (folder, layout) = (cluster.path("auditor"), cluster.domain().layout());
    fs::create_dir_all(folder.join("tls")).unwrap();
    fs::copy(layout.trust(), folder.join("trust.json")).unwrap();
    fs::copy(layout.ca(), folder.join("tls/ca.pem")).unwrap();
    fs::copy(layout.store_auditor_key(), folder.join("key.json")).unwrap();
    copy(&layout.audit_files(), &folder.join("ledger"));
    copy(&cluster.path("store"), &folder.join("store"));
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// A recomputation in the auditor's folder: its exit status, its rows, its last words.
async fn recompute(cluster: &Cluster, which: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let own = [
        "--domain",
        "auditor",
        "-o",
        "json",
        "audit",
        "recompute",
        "--ledger",
        "auditor/ledger",
    ];
    let output = cluster.diloctl(&[&own, which].concat()).await;
    let rows: Option<Value> = serde_json::from_str(&output.stdout).ok();
    let rows = rows.and_then(|rows| rows["items"].as_array().cloned());
    (
        output.status.code(),
        rows.unwrap_or_default(),
        output.stderr,
    )
}

fn verdicts(rows: &[Value]) -> Vec<&str> {
    rows.iter()
        .map(|row| row["verdict"].as_str().unwrap())
        .collect()
}

/// The objects of the weights that a round published, and of the contributions to it.
async fn objects(cluster: &Cluster, of: Round) -> (Vec<ObjectRef>, Vec<ObjectRef>) {
    let (mut published, mut contributed) = (Vec::new(), Vec::new());
    for event in cluster.evidence().await.ledger().await {
        match event {
            LedgerEvent::RoundClosed {
                round, broadcast, ..
            } if round == of => published.extend_from_slice(broadcast.chunks.objects()),
            LedgerEvent::ContributionAccepted {
                lease,
                contribution,
                ..
            } if lease.unit.round == of => {
                contributed.extend_from_slice(contribution.chunks.objects());
            }
            _ => {}
        }
    }
    (published, contributed)
}

pub(crate) fn file_of(folder: &Path, object: ObjectRef) -> PathBuf {
    let hex = object.digest.hex();
    let path = folder.join("store/blobs/sha256").join(&hex[..2]).join(hex);
    assert!(path.exists(), "{}", path.display());
    path
}

#[tokio::test]
async fn tl_04_an_auditor_recomputes_every_round_and_finds_what_was_altered_or_removed() {
    let mut cluster = trained().await;
    // Over the bus, with the auditor's and the operator's credentials.
    let text = cluster.diloctl_ok(&["audit", "recompute", "--all"]).await;
    assert_eq!(text.matches("verified").count() as u64, ROUNDS, "{text}");
    let ((published, _), (_, contributed)) = (
        objects(&cluster, Round(1)).await,
        objects(&cluster, Round(2)).await,
    );

    // From another folder, with a copy of the ledger and the auditor's own key to the store. A
    // service that ends signs a head over all that it keeps.
    cluster.kept().await;
    cluster.stop_well(&["audit"]).await;
    let folder = auditor(&cluster);
    for gone in ["coordinator", "broker"] {
        cluster.kill9(gone);
    }
    let store = cluster.store_url();
    let keys = ["--store", &store, "--store-keys", "auditor/key.json"];
    let keys = [&keys[..], &["--timeout", "3s", "--all"]].concat();
    let (status, rows, text) = recompute(&cluster, &keys).await;
    assert_eq!(status, Some(0), "{text}");
    assert_eq!(verdicts(&rows), ["verified"; 3]);
    let snapshots = rows.iter().map(|row| row["snapshot"].as_u64());
    assert!(snapshots.eq([None, Some(2), Some(3)]), "{rows:?}");
    assert!(text.contains("3 of 3 rounds verified"), "{text}");
    cluster.kill9("store");
    let (status, rows, text) = recompute(&cluster, &keys).await;
    assert_eq!(status, Some(i32::from(EXIT_NO_VERDICT)), "{text}");
    assert_eq!(verdicts(&rows), ["unproven"; 3]);

    // Nothing runs any more: copies of the ledger and of the objects are all that there is.
    let all = [&FOLDER[..], &["--all"]].concat();
    let (status, rows, text) = recompute(&cluster, &all).await;
    assert_eq!(status, Some(0), "{text}");
    assert_eq!(verdicts(&rows), ["verified"; 3]);

    let two = [&FOLDER[..], &["--round", "2"]].concat();
    let (status, rows, _) = recompute(&cluster, &two).await;
    assert_eq!((status, rows.len()), (Some(0), 1));
    assert_eq!(
        (&rows[0]["round"], &rows[0]["from"]),
        (&2.into(), &2.into())
    );
    let nine = [&FOLDER[..], &["--round", "9"]].concat();
    let (status, _, text) = recompute(&cluster, &nine).await;
    assert_eq!(status, Some(i32::from(EXIT_NOT_FOUND)));
    assert!(text.contains(&Code::RoundNotMerged.to_string()), "{text}");

    // Files of events that were altered or cut prove nothing, with the signed head beside them or
    // without it.
    let file = newest_file(&folder.join("ledger"));
    let whole = fs::read(&file).unwrap();
    let mut altered = whole.clone();
    let place = altered
        .windows(6)
        .position(|bytes| bytes == b"base64")
        .unwrap();
    altered[place + 20] ^= 1;
    fs::write(&file, altered).unwrap();
    let (status, _, text) = recompute(&cluster, &all).await;
    assert_eq!(status, Some(i32::from(EXIT_TAMPERED)), "{text}");
    assert!(text.contains(&Code::AuditFileAltered.to_string()), "{text}");
    let middle = whole.len() / 2;
    let middle = middle + usize::from(whole[middle - 1] == b'\n');
    fs::write(&file, &whole[..middle]).unwrap();
    let (status, _, text) = recompute(&cluster, &all).await;
    assert_eq!(status, Some(i32::from(EXIT_TAMPERED)), "{text}");
    assert!(text.contains(&Code::AuditFilesShort.to_string()), "{text}");
    fs::write(&file, &whole[..whole.len() - 9]).unwrap();
    let log = folder.join("ledger/log");
    fs::rename(&log, folder.join("log")).unwrap();
    let (status, rows, text) = recompute(&cluster, &all).await;
    assert_eq!(status, Some(i32::from(EXIT_NO_VERDICT)), "{text}");
    assert_eq!(verdicts(&rows), ["verified"; 3]);
    assert!(text.contains("ends inside a line"), "{text}");
    fs::rename(folder.join("log"), &log).unwrap();
    fs::write(&file, &whole).unwrap();

    // A contribution that is gone leaves its round without a verdict, and names it.
    let gone = file_of(&folder, contributed[0]);
    fs::remove_file(gone).unwrap();
    let (status, rows, text) = recompute(&cluster, &all).await;
    assert_eq!(status, Some(i32::from(EXIT_NO_VERDICT)), "{text}");
    assert_eq!(verdicts(&rows), ["verified", "verified", "unproven"]);
    assert!(text.contains(&Code::RoundUnproven.to_string()), "{text}");
    assert!(text.contains(&contributed[0].digest.hex()), "{text}");

    // Published weights that were altered in the store are evidence, and are named.
    let altered = file_of(&folder, published[0]);
    let mut bytes = fs::read(&altered).unwrap();
    bytes[5] ^= 1;
    fs::write(&altered, bytes).unwrap();
    let (status, rows, text) = recompute(&cluster, &all).await;
    assert_eq!(status, Some(i32::from(EXIT_TAMPERED)), "{text}");
    assert_eq!(verdicts(&rows), ["verified", "altered", "unproven"]);
    assert!(text.contains(&Code::ObjectAltered.to_string()), "{text}");
    assert!(text.contains(&published[0].digest.to_string()), "{text}");
}

#[tokio::test]
async fn tl_04_a_coordinator_that_records_other_weights_than_it_merged_is_found() {
    let cluster = trained().await;
    let folder = auditor(&cluster);
    let ledger = folder.join("ledger");
    let key = AuditKey::read(&cluster.domain().layout().coordinator_audit_key()).unwrap();
    let domain = cluster.domain().trust().domain.as_str();

    let (whole, lie) = (lines(&ledger), ObjectRef::of(b"other weights"));
    let mut honest = None;
    let mut change = |event: &mut LedgerEvent| {
        if let LedgerEvent::RoundClosed {
            round: Round(1),
            broadcast,
            ..
        } = event
            && let Chunks::Named(chunks) = &mut broadcast.chunks
        {
            honest = Some(std::mem::replace(&mut chunks[0], lie));
        }
    };

    let all = [&FOLDER[..], &["--all"]].concat();
    // Without the coordinator's key the change is nobody's word, and nothing is recomputed.
    let mut forged = whole.clone();
    rewrite(&mut forged, &mut change, &Signer::Forger);
    write(&ledger, &forged);
    let (status, rows, text) = recompute(&cluster, &all).await;
    assert_eq!((status, rows.len()), (Some(i32::from(EXIT_NO_VERDICT)), 0));
    assert!(text.contains(&Code::RecordUnproven.to_string()), "{text}");

    // With the key the ledger verifies, and the merge does not.
    let mut lied = whole;
    rewrite(&mut lied, &mut change, &Signer::Coordinator(&key, domain));
    write(&ledger, &lied);
    let (status, rows, text) = recompute(&cluster, &all).await;
    assert_eq!(status, Some(i32::from(EXIT_TAMPERED)), "{text}");
    let honest = honest.expect("it was changed");
    assert_eq!(verdicts(&rows)[..2], ["verified", "differs"], "{rows:?}");
    assert!(text.contains(&Code::RoundDiverged.to_string()), "{text}");
    for part in [
        "round 1: chunk 0".to_owned(),
        lie.digest.to_string(),
        honest.digest.to_string(),
    ] {
        assert!(text.contains(&part), "{part} in {text}");
    }
}

/// The newest of the audit files.
fn newest_file(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.max().unwrap()
}

/// The lines of the audit files.
pub(crate) fn lines(folder: &Path) -> Vec<Value> {
    let mut names: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    names.sort();
    let text = names.iter().map(|name| fs::read_to_string(name).unwrap());
    let text: String = text.collect();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Writes the lines in place of the audit files.
pub(crate) fn write(folder: &Path, lines: &[Value]) {
    fs::remove_dir_all(folder).unwrap();
    fs::create_dir(folder).unwrap();
    let lines = lines.iter().map(|line| format!("{line}\n"));
    fs::write(folder.join("20260101.log"), lines.collect::<String>()).unwrap();
}

/// The maker of a changed ledger.
pub(crate) enum Signer<'a> {
    /// Somebody without the coordinator's key, who changes an event and leaves the rest.
    Forger,
    /// The coordinator, in the domain of this name.
    Coordinator(&'a AuditKey, &'a str),
}

/// Changes the events of the ledger, in lines that are whole.
pub(crate) fn rewrite(
    lines: &mut [Value],
    change: &mut dyn FnMut(&mut LedgerEvent),
    signer: &Signer<'_>,
) {
    let mut head: Option<Digest> = None;
    for line in lines {
        let subject = line["subject"].as_str().unwrap_or_default().to_owned();
        if line["line"] != "record" || !subject.starts_with("diloco.ledger.") {
            continue;
        }
        let payload = line["payload"]["base64"].as_str().unwrap();
        let payload = BASE64.decode(payload.as_bytes()).unwrap();
        let signed = SignedEvent::decode(&payload).unwrap();
        let mut body = EventBody::decode(&signed.body).unwrap();
        let Event::Ledger(event) = &mut body.event else {
            panic!("an event of the ledger")
        };
        change(event);
        let signed = match signer {
            Signer::Forger => SignedEvent {
                body: body.encode().into(),
                ..signed
            },
            Signer::Coordinator(key, domain) => {
                body.previous = head;
                let bytes = body.encode();
                head = Some(Digest::of(&bytes));
                key.sign_event(domain, bytes)
            }
        };
        let payload = signed.encode();
        let record = Record {
            stream_sequence: StreamSequence(line["stream_sequence"].as_u64().unwrap()),
            subject,
            stored_at: UnixMillis(line["stored_at"].as_u64().unwrap()),
            payload: Payload::of(&payload),
        };
        line["payload"]["base64"] = BASE64.encode(&payload).into();
        line["digest"] = serde_json::to_value(record.digest()).unwrap();
    }
}
