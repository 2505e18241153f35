//! Each artifact has a statement of provenance that its maker signed, in a form that tools of
//! others read: a contribution by its worker, a snapshot by the coordinator, a data set by the
//! operator who imported it.

use std::fs;
use std::path::Path;
use std::process::Command;

use data_encoding::BASE64;
use harness::{Cluster, Options, Output};
use identity::AuditKey;
use runtime::exit::{EXIT_NO_VERDICT, EXIT_TAMPERED};
use schemas::event::LedgerEvent;
use schemas::lease::Weights;
use schemas::{Code, Digest, PublicKey, Round, WorkerId};
use serde_json::Value;

use crate::recompute::{Signer, auditor, file_of, lines, rewrite, trained, write};

/// A contribution, by the ledger.
struct Handed {
    worker: WorkerId,
    statement: Digest,
    chunks: Vec<String>,
}

/// What the ledger says about the contributions to a round.
struct Told {
    handed: Vec<Handed>,
    /// The weights that the round began with.
    base: Weights,
    ledger: Vec<LedgerEvent>,
}

async fn told(cluster: &Cluster, of: Round) -> Told {
    let ledger = cluster.evidence().await.ledger().await;
    let mut handed = Vec::new();
    let mut base = None;
    for event in &ledger {
        match event {
            LedgerEvent::RoundClosed {
                round, broadcast, ..
            } if round.next() == of => base = Some(broadcast.clone()),
            LedgerEvent::ContributionAccepted {
                lease,
                worker,
                contribution,
                statement,
                ..
            } if lease.unit.round == of => {
                let chunks = contribution.chunks.objects().iter();
                handed.push(Handed {
                    worker: worker.clone(),
                    statement: *statement,
                    chunks: chunks.map(|chunk| chunk.digest.hex()).collect(),
                });
            }
            _ => {}
        }
    }
    let base = base.expect("a round before");
    Told {
        handed,
        base,
        ledger,
    }
}

impl Told {
    /// The key with which a worker joined.
    fn key(&self, of: &WorkerId) -> PublicKey {
        let key = self.ledger.iter().find_map(|event| match event {
            LedgerEvent::WorkerJoined {
                worker, audit_key, ..
            } if worker == of => Some(audit_key.clone()),
            _ => None,
        });
        key.expect("it joined")
    }
}

/// A command of an auditor, with copies of the ledger and of the store's folder.
async fn lineage(cluster: &Cluster, verb: &str, digest: Digest) -> Output {
    let digest = digest.to_string();
    let own = ["--domain", "auditor", "lineage", verb, &digest];
    let from = [
        "--ledger",
        "auditor/ledger",
        "--store-folder",
        "auditor/store",
    ];
    cluster.diloctl(&[&own[..], &from].concat()).await
}

/// The statement's parts as the reference implementations of others read them, in the Python of
/// `tests/attack`; none if they are not there.
#[expect(clippy::print_stderr, reason = "says what is not proven here")]
fn foreign(file: &Path, key: &PublicKey) -> Option<Result<Value, String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let packages = root.join(".deps/attack");
    if !packages.join("in_toto_attestation").is_dir() {
        eprintln!("skipped: Python has no packages to read the provenance with");
        return None;
    }
    let output = Command::new("python3")
        .args(["-s", "-B", "-m", "attack.provenance"])
        .arg(file)
        .arg(key.as_str())
        .env("PYTHONPATH", packages)
        .current_dir(root.join("tests/attack"))
        .output()
        .expect("python3 runs");
    Some(match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).expect("JSON")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    })
}

/// The envelope with another character in its document.
fn changed(envelope: &str) -> String {
    let mut envelope: Value = serde_json::from_str(envelope).unwrap();
    let payload = envelope["payload"].as_str().unwrap();
    let text = String::from_utf8(BASE64.decode(payload.as_bytes()).unwrap()).unwrap();
    let other = text.replacen(r#""tokens":""#, r#""tokens":"1"#, 1);
    assert_ne!(other, text);
    envelope["payload"] = BASE64.encode(other.as_bytes()).into();
    envelope.to_string()
}

/// The digests that are named so.
fn digests(named: &Value, begins: &str) -> Vec<String> {
    let each = named.as_array().expect("a list").iter();
    let wanted = each.filter(|one| one[0].as_str().is_some_and(|name| name.starts_with(begins)));
    wanted
        .map(|one| one[1].as_str().expect("hex").to_owned())
        .collect()
}

#[tokio::test]
async fn tl_19_tools_of_others_verify_what_a_worker_signed_about_its_contribution() {
    let cluster = trained().await;
    let operator = cluster.operator().await;
    let detail = operator.run(cluster.run()).await.unwrap();
    let told = told(&cluster, Round(2)).await;
    assert_eq!(told.handed.len(), 2, "a round of two units");
    auditor(&cluster);
    let file = cluster.path("envelope.json");
    for handed in &told.handed {
        let output = lineage(&cluster, "export", handed.statement).await;
        assert!(output.status.success(), "{}", output.stderr);
        fs::write(&file, &output.stdout).unwrap();
        let key = told.key(&handed.worker);
        assert!(output.stdout.contains(key.as_str()), "{}", output.stdout);
        let Some(read) = foreign(&file, &key) else {
            break;
        };
        let read = read.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(digests(&read["subject"], "contribution/"), handed.chunks);
        let made_from = &read["dependencies"];
        let base = told.base.chunks.objects().iter();
        let base: Vec<String> = base.map(|chunk| chunk.digest.hex()).collect();
        assert_eq!(digests(made_from, "base/"), base);
        assert_eq!(digests(made_from, "data"), [detail.spec.data.digest.hex()]);
        assert_eq!(digests(made_from, "settings"), [detail.spec_digest.hex()]);
        assert!(!digests(made_from, "shard/").is_empty(), "{read}");
        let said = digests(&read["byproducts"], "statement");
        assert_eq!(said, [handed.statement.hex()]);
        let release = &read["version"]["diloco-worker"];
        assert_eq!(release, env!("CARGO_PKG_VERSION"));
        // Under another worker's key, or with another byte, it does not hold.
        let others = told.handed.iter().find(|one| one.worker != handed.worker);
        if let Some(other) = others {
            let read = foreign(&file, &told.key(&other.worker));
            read.unwrap().expect_err("another worker's key");
        }
        fs::write(&file, changed(&output.stdout)).unwrap();
        foreign(&file, &key).unwrap().expect_err("another byte");
    }
    let snapshots = operator.snapshots(cluster.run()).await;
    let output = lineage(&cluster, "export", snapshots[0].manifest.digest).await;
    assert!(output.status.success(), "{}", output.stderr);
    fs::write(&file, &output.stdout).unwrap();
    let key = &cluster.domain().trust().audit_keys[0];
    if let Some(read) = foreign(&file, key) {
        let read = read.unwrap_or_else(|error| panic!("{error}"));
        let manifest = digests(&read["subject"], "manifest");
        assert_eq!(manifest, [snapshots[0].manifest.digest.hex()]);
    }
    // The data set's, by the key of the operator who imported it.
    let data = detail.spec.data;
    let output = lineage(&cluster, "export", data.digest).await;
    assert!(output.status.success(), "{}", output.stderr);
    fs::write(&file, &output.stdout).unwrap();
    let key = AuditKey::read(&cluster.domain().layout().data_key()).unwrap();
    if let Some(read) = foreign(&file, key.public()) {
        let read = read.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(digests(&read["subject"], "manifest"), [data.digest.hex()]);
        assert!(!digests(&read["subject"], "train/").is_empty(), "{read}");
    }
    let output = lineage(&cluster, "show", data.digest).await;
    let signed = format!("(signed by {}): verified", key.public());
    assert!(output.stdout.contains(&signed), "{}", output.stdout);
}

/// The list of data sets of an operator names a statement for each.
#[tokio::test]
async fn tl_19_a_run_takes_no_data_set_with_a_statement_about_another_one() {
    let cluster = Cluster::start(Options::default(), 0).await;
    let mut made = Vec::new();
    for (name, text) in [
        ("one.txt", "a line of text\n"),
        ("two.txt", "another line\n"),
    ] {
        let lines = (0..4000).map(|line| format!("{line} {text}"));
        fs::write(cluster.path(name), lines.collect::<String>()).unwrap();
        let import = ["-o", "json", "data", "import", "--text", name];
        let imported: Value = serde_json::from_str(&cluster.diloctl_ok(&import).await).unwrap();
        made.push(imported["provenance"].clone());
    }
    assert!(
        made[0]["digest"].is_string() && made[0] != made[1],
        "{made:?}"
    );
    let list = cluster.domain().layout().folder().join("data.jsonl");
    let right = fs::read_to_string(&list).unwrap();
    let other = |at: usize| made[at]["digest"].as_str().unwrap();
    let swapped = right.replace(other(1), other(0));
    fs::write(&list, swapped).unwrap();
    let new = ["run", "new", "other", "--model", "reference"];
    let output = cluster.diloctl(&new).await;
    let code = Code::StatementForged.to_string();
    assert!(!output.status.success(), "{}", output.stdout);
    assert!(output.stderr.contains(&code), "{}", output.stderr);
    fs::write(&list, right).unwrap();
    cluster.diloctl_ok(&new).await;
    let spec = cluster
        .operator()
        .await
        .run(&"other".parse().unwrap())
        .await;
    let named = spec.unwrap().spec.data_provenance.unwrap();
    assert_eq!(named.digest.to_string(), other(1));
    // A byte of the statement in the store.
    let file = file_of(&cluster.path("."), named);
    let mut bytes = fs::read(&file).unwrap();
    bytes[50] ^= 1;
    fs::write(&file, bytes).unwrap();
    let data = named.digest.to_string();
    let output = cluster.diloctl(&["lineage", "show", &data]).await;
    let status = output.status.code();
    assert_eq!(status, Some(EXIT_TAMPERED.into()), "{}", output.stdout);
    let code = Code::ObjectAltered.to_string();
    assert!(output.stdout.contains(&code), "{}", output.stdout);
}

#[tokio::test]
async fn tl_19_a_provenance_that_no_worker_signed_is_found_and_an_old_ledger_is_read_without_one() {
    let cluster = trained().await;
    let told = told(&cluster, Round(2)).await;
    let snapshots = cluster.operator().await.snapshots(cluster.run()).await;
    let last = snapshots.last().unwrap().manifest.digest;
    let folder = auditor(&cluster);
    let whole = lines(&folder.join("ledger"));
    let key = AuditKey::read(&cluster.domain().layout().coordinator_audit_key()).unwrap();
    let trust = cluster.domain().trust();
    let signer = Signer::Coordinator(&key, trust.domain.as_str());
    let of = told.handed[0].statement;
    let output = lineage(&cluster, "show", of).await;
    assert!(
        output.stdout.contains("provenance sha256:"),
        "{}",
        output.stdout
    );

    // A coordinator that records a signature which the worker did not make.
    let mut lied = whole.clone();
    let mut change = |event: &mut LedgerEvent| {
        if let LedgerEvent::ContributionAccepted {
            provenance: Some(signature),
            statement,
            ..
        } = event
            && *statement == of
        {
            signature[7] ^= 1;
        }
    };
    rewrite(&mut lied, &mut change, &signer);
    write(&folder.join("ledger"), &lied);
    for (verb, digest) in [("show", of), ("show", last), ("export", of)] {
        let output = lineage(&cluster, verb, digest).await;
        let text = format!("{}{}", output.stdout, output.stderr);
        let status = output.status.code();
        assert_eq!(status, Some(EXIT_TAMPERED.into()), "{verb}: {text}");
        let code = Code::StatementForged.to_string();
        assert!(text.contains(&code), "{verb}: {text}");
    }

    let last = last.to_string();
    let promote = ["snapshot", "promote", &last, "--reason", "it reads well"];
    let from = ["--ledger", "auditor/ledger"];
    let output = cluster.diloctl(&[&promote[..], &from].concat()).await;
    let status = output.status.code();
    assert_eq!(status, Some(EXIT_TAMPERED.into()), "{}", output.stderr);
    let code = Code::StatementForged.to_string();
    assert!(output.stderr.contains(&code), "{}", output.stderr);

    // The ledger of an earlier release.
    let last = snapshots.last().unwrap().manifest.digest;
    let mut old = whole;
    let mut change = |event: &mut LedgerEvent| {
        if let LedgerEvent::ContributionAccepted { provenance, .. } = event {
            *provenance = None;
        }
    };
    rewrite(&mut old, &mut change, &signer);
    write(&folder.join("ledger"), &old);
    for digest in [of, last] {
        let output = lineage(&cluster, "show", digest).await;
        assert!(output.status.success(), "{}", output.stderr);
        let none = "provenance (none: an earlier release";
        assert!(output.stdout.contains(none), "{}", output.stdout);
    }
    let output = lineage(&cluster, "export", of).await;
    let status = output.status.code();
    assert_eq!(status, Some(EXIT_NO_VERDICT.into()), "{}", output.stderr);
    let code = Code::LineageUnproven.to_string();
    assert!(output.stderr.contains(&code), "{}", output.stderr);
}
