//! Signed heads of the log of all events show what chains cannot: a record that was cut off,
//! rewritten, or shown differently to others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use async_nats::jetstream::{self, stream};
use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE};
use runtime::exit::{EXIT_NO_VERDICT, EXIT_NOT_FOUND, EXIT_TAMPERED};
use schemas::Code;
use schemas::permission::Role;
use schemas::subject::AUDIT_STREAM;
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// The exit status of an argument that cannot be read.
const WRONG_USAGE: u8 = 2;

/// A cluster whose run is complete, and whose events are all under a head.
pub(crate) async fn trained() -> Cluster {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    cluster.kept().await;
    // It publishes a head over everything before it ends.
    cluster.stop_well(&["audit"]).await;
    cluster.restart("audit").await;
    Recipe::reference(2, 1, 10).create(&cluster).await;
    cluster.operator().await.until_complete(cluster.run()).await;
    // A service that is killed publishes nothing more; its successor continues the log.
    cluster.kill9("audit");
    cluster.restart("audit").await;
    cluster.kept().await;
    cluster.stop_well(&["audit"]).await;
    cluster
}

/// Asserts the exit status, and that each part is in what the command said.
pub(crate) async fn ends(
    cluster: &Cluster,
    arguments: &[&str],
    status: u8,
    parts: &[&str],
) -> String {
    let output = cluster.diloctl(arguments).await;
    let text = format!("{}{}", output.stdout, output.stderr);
    let got = output.status.code();
    assert_eq!(got, Some(i32::from(status)), "{arguments:?}: {text}");
    for part in parts {
        assert!(text.contains(part), "{arguments:?}: no {part:?} in {text}");
    }
    text
}

/// A reader of the stream that is ended by Ctrl-C has verified what it showed.
async fn followed_to_the_end(cluster: &Cluster) {
    let mut tail = tokio::process::Command::new(harness::program("diloctl"))
        .args(["audit", "tail"])
        .current_dir(cluster.path(""))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut rows = BufReader::new(tail.stdout.take().unwrap()).lines();
    let titles = rows.next_line().await.unwrap().unwrap();
    assert!(titles.contains("VERDICT"), "{titles}");
    rows.next_line().await.unwrap().unwrap();
    let id = tail.id().unwrap().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-INT", &id])
        .status();
    assert!(sent.unwrap().success());
    let ended = tokio::time::timeout(PATIENCE, tail.wait()).await;
    assert_eq!(ended.expect("it ends").unwrap().code(), Some(0));
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

/// The only file below a folder that is a partial bundle or tile of the newest head.
fn newest(folder: &Path, size: u64) -> PathBuf {
    let part = folder.join(format!("000.p/{size}"));
    assert!(part.exists(), "{}", part.display());
    part
}

fn flip(path: &Path) -> Vec<u8> {
    let whole = fs::read(path).unwrap();
    let mut altered = whole.clone();
    altered[40] ^= 1;
    fs::write(path, altered).unwrap();
    whole
}

/// The size of the newest head.
fn size(log: &Path) -> u64 {
    let note = fs::read_to_string(log.join("checkpoint")).unwrap();
    note.lines().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn fg_07_a_head_proves_the_record_and_shows_what_was_cut_altered_or_put_back() {
    let cluster = trained().await;
    let log = cluster.domain().layout().audit_log();
    let events = size(&log);
    assert!((10..256).contains(&events), "{events} events");

    // Everything is right: head, proof, log, and the stream beside it.
    let of = format!("events       {events}");
    ends(
        &cluster,
        &["audit", "head"],
        0,
        &["verified", "the first head"],
    )
    .await;
    let text = ends(&cluster, &["audit", "head"], 0, &["verified"]).await;
    assert!(
        text.contains(&format!("the head over {events} events")),
        "{of}: {text}"
    );
    let prove = ["audit", "prove", "index:3", "--to", "three.tlog-proof"];
    let text = ends(&cluster, &prove, 0, &["verified", "sha256:"]).await;
    let body = text
        .split_whitespace()
        .find(|word| word.starts_with("sha256:"));
    let prove = ["audit", "prove", body.unwrap(), "--to", "again.tlog-proof"];
    ends(&cluster, &prove, 0, &["verified"]).await;
    let file = |name: &str| fs::read(cluster.path(name)).unwrap();
    assert_eq!(file("three.tlog-proof"), file("again.tlog-proof"));
    // A row of the replay names its event as the log does, and its number alone is refused.
    let rows = ends(&cluster, &["audit", "replay", "-o", "jsonl"], 0, &[]).await;
    let mut rows = rows
        .lines()
        .filter_map(|row| serde_json::from_str(row).ok());
    let row: serde_json::Value = rows.nth(2).unwrap();
    let event = row["event"].as_str().unwrap();
    let prove = ["audit", "prove", event, "--to", "row.tlog-proof"];
    let text = ends(&cluster, &prove, 0, &["verified"]).await;
    assert!(text.contains(row["kind"].as_str().unwrap()), "{text}");
    let bare = ["audit", "prove", "3"];
    ends(&cluster, &bare, WRONG_USAGE, &["index:3", "KEY:NUMBER"]).await;
    let range = format!("entries 0 to {}", events - 1);
    ends(&cluster, &["audit", "verify"], 0, &["verified", &range]).await;
    ends(
        &cluster,
        &["audit", "diff"],
        0,
        &["verified", "differences"],
    )
    .await;
    followed_to_the_end(&cluster).await;
    let unknown = ["audit", "prove", "index:100000"];
    let unlogged = Code::EventUnlogged.to_string();
    ends(&cluster, &unknown, EXIT_NOT_FOUND, &[&unlogged]).await;

    // Elsewhere, with nothing but the trust bundle, and no cluster that runs.
    let elsewhere = cluster.path("elsewhere");
    fs::create_dir_all(elsewhere.join("tls")).unwrap();
    let layout = cluster.domain().layout().clone();
    fs::copy(layout.trust(), elsewhere.join("trust.json")).unwrap();
    copy(&log, &elsewhere.join("log"));
    let proof = [
        "--domain",
        "elsewhere",
        "audit",
        "verify",
        "--proof",
        "three.tlog-proof",
    ];
    ends(&cluster, &proof, 0, &["verified", "3 of the log"]).await;
    let mut with_log = proof.to_vec();
    with_log.extend(["--log-folder", "elsewhere/log"]);
    ends(&cluster, &with_log, 0, &["verified", &range]).await;
    let altered = fs::read_to_string(cluster.path("three.tlog-proof")).unwrap();
    let altered = altered.replace("index 3\n", "index 4\n");
    fs::write(cluster.path("three.tlog-proof"), altered).unwrap();
    let invalid = Code::ProofInvalid.to_string();
    ends(&cluster, &proof, EXIT_TAMPERED, &[&invalid]).await;

    // Each file of the log, altered, gone, or of an older time.
    let verify = [
        "--domain",
        "elsewhere",
        "audit",
        "verify",
        "--log-folder",
        "elsewhere/log",
    ];
    let there = elsewhere.join("log");
    let log_altered = Code::LogAltered.to_string();
    for folder in ["tile/entries", "tile/0"] {
        let file = newest(&there.join(folder), events);
        let whole = flip(&file);
        ends(&cluster, &verify, EXIT_TAMPERED, &[&log_altered]).await;
        fs::remove_file(&file).unwrap();
        let unproven = Code::LogUnproven.to_string();
        ends(
            &cluster,
            &verify,
            EXIT_NO_VERDICT,
            &[&unproven, "is not there"],
        )
        .await;
        fs::write(&file, whole).unwrap();
    }
    ends(&cluster, &verify, 0, &["verified"]).await;
    let head = fs::read(there.join("checkpoint")).unwrap();
    let bad = String::from_utf8(head.clone())
        .unwrap()
        .replace(&format!("\n{events}\n"), "\n9\n");
    fs::write(there.join("checkpoint"), bad).unwrap();
    let invalid = Code::HeadInvalid.to_string();
    ends(&cluster, &verify, EXIT_TAMPERED, &[&invalid]).await;
    let heads = fs::read_dir(there.join("heads")).unwrap();
    let sizes = heads.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let oldest = sizes
        .min_by_key(|size| size.parse::<u64>().unwrap())
        .unwrap();
    assert_ne!(oldest, events.to_string(), "there is an older head");
    fs::copy(there.join("heads").join(oldest), there.join("checkpoint")).unwrap();
    let back = Code::HeadRolledBack.to_string();
    for command in ["verify", "head"] {
        let run = [
            "--domain",
            "elsewhere",
            "audit",
            command,
            "--log-folder",
            "elsewhere/log",
        ];
        ends(&cluster, &run, EXIT_TAMPERED, &[&back]).await;
    }

    // A machine that has pinned nothing takes the older log, and not beside a proof that is newer.
    let third = cluster.path("third");
    fs::create_dir_all(&third).unwrap();
    fs::copy(layout.trust(), third.join("trust.json")).unwrap();
    let log_folder = [
        "--domain",
        "third",
        "audit",
        "verify",
        "--log-folder",
        "elsewhere/log",
    ];
    let beside = [&log_folder[..], &["--proof", "again.tlog-proof"]].concat();
    ends(&cluster, &beside, EXIT_TAMPERED, &[&back]).await;
    ends(&cluster, &log_folder, 0, &["verified", "the first head"]).await;

    // The broker's copy loses its beginning, and then everything.
    let provisioner = cluster
        .connect(Role::AuditProvisioner, "audit-provisioner")
        .await;
    let context = jetstream::new(provisioner.client().clone());
    let mut stream = context.get_stream(AUDIT_STREAM).await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    config.max_messages = 5;
    config.discard = stream::DiscardPolicy::Old;
    context.update_stream(config).await.unwrap();
    let differs = Code::StreamDiffers.to_string();
    let diff = ["audit", "diff"];
    let words = [&differs[..], "altered: event 1 of the log"];
    ends(&cluster, &diff, EXIT_TAMPERED, &words).await;
    // So does a reader that would follow the stream.
    ends(&cluster, &["audit", "tail"], EXIT_TAMPERED, &[]).await;
    context.delete_stream(AUDIT_STREAM).await.unwrap();
    let empty = stream::Config {
        name: AUDIT_STREAM.to_owned(),
        subjects: vec!["nothing".to_owned()],
        allow_direct: true,
        ..stream::Config::default()
    };
    context.create_stream(empty).await.unwrap();
    let tail = format!(
        "missing tail: the stream ends before events 1 to {}",
        events - 1
    );
    ends(&cluster, &diff, EXIT_TAMPERED, &[&differs, &tail]).await;
    ends(&cluster, &["audit", "tail"], EXIT_TAMPERED, &[]).await;
    // The log itself has them all.
    ends(&cluster, &["audit", "verify"], 0, &["verified", &range]).await;
}
