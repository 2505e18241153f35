//! Each snapshot has a signed statement of what it was made from; `lineage show` follows it back,
//! `snapshot promote` moves a pointer to a snapshot once every byte and signature is verified, and
//! `snapshot pull --promoted` brings that one.

use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use harness::{Cluster, Output};
use identity::AuditKey;
use runtime::exit::{EXIT_DENIED, EXIT_NO_VERDICT, EXIT_NOT_FOUND, EXIT_TAMPERED};
use schemas::event::LedgerEvent;
use schemas::view::SnapshotView;
use schemas::{Code, ObjectRef};
use serde_json::Value;

use crate::recompute::{Signer, auditor, file_of, lines, rewrite, trained, write};

const BECAUSE: [&str; 2] = ["--reason", "it reads well"];

/// The end of a command: its exit status, and all that it printed.
fn ended(output: &Output) -> (Option<u8>, String) {
    let status = output.status.code().and_then(|code| code.try_into().ok());
    (status, format!("{}{}", output.stdout, output.stderr))
}

async fn promote(
    cluster: &Cluster,
    snapshot: &SnapshotView,
    more: &[&str],
) -> (Option<u8>, String) {
    let digest = snapshot.manifest.digest.to_string();
    let own = ["snapshot", "promote", &digest];
    ended(&cluster.diloctl(&[&own, &BECAUSE[..], more].concat()).await)
}

async fn show(cluster: &Cluster, digest: ObjectRef, more: &[&str]) -> (Option<u8>, String) {
    let digest = digest.digest.to_string();
    let own = ["--domain", "auditor", "lineage", "show", &digest];
    let from = [
        "--ledger",
        "auditor/ledger",
        "--store-folder",
        "auditor/store",
    ];
    ended(&cluster.diloctl(&[&own, &from[..], more].concat()).await)
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[5] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The document in an envelope, read without our own code.
fn payload(envelope: &Value) -> Value {
    let payload = envelope["payload"].as_str().unwrap();
    let payload = BASE64.decode(payload.as_bytes()).unwrap();
    serde_json::from_slice(&payload).unwrap()
}

#[tokio::test]
async fn tl_19_a_snapshot_that_verifies_is_promoted_and_pulled_and_an_altered_one_is_refused() {
    let mut cluster = trained().await;
    let run = cluster.run().clone();
    let snapshots = cluster.operator().await.snapshots(&run).await;
    let [first, last] = &snapshots[..] else {
        panic!("{snapshots:?}")
    };
    let (status, text) = promote(&cluster, first, &[]).await;
    assert_eq!(status, Some(0), "{text}");
    assert!(
        text.contains("latest-good: is new; this is in the ledger"),
        "{text}"
    );
    let (status, text) = promote(&cluster, last, &[]).await;
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("moved from round 2"), "{text}");
    let (_, text) = promote(&cluster, last, &[]).await;
    assert!(text.contains("leads there already"), "{text}");
    let (status, text) = promote(&cluster, last, &["--as", "release"]).await;
    assert_eq!(status, Some(0), "{text}");
    cluster.kill9("coordinator");
    cluster.restart("coordinator").await;

    // Back to the older one; both pointers outlive the coordinator's process.
    let (_, text) = promote(&cluster, first, &[]).await;
    assert!(text.contains("moved from round 3"), "{text}");
    let pull = ["snapshot", "pull", "demo", "--to", "model", "--promoted"];
    cluster.diloctl_ok(&pull).await;
    let folder = cluster.path("model");
    let manifest = fs::read(folder.join("snapshot.json")).unwrap();
    assert_eq!(ObjectRef::of(&manifest), first.manifest);
    let said = payload(&json(&folder.join("snapshot.intoto.json")));
    let subject = &said["subject"][0]["digest"]["sha256"];
    assert_eq!(subject, &first.manifest.digest.hex());
    a_release_is_verified_by_us_and_by_the_reference_tool(&cluster).await;
    let output = cluster.diloctl(&[&pull[..], &["nightly"]].concat()).await;
    let (status, text) = ended(&output);
    assert_eq!(status, Some(EXIT_NOT_FOUND), "{text}");
    assert!(text.contains(&Code::PointerUnknown.to_string()), "{text}");

    // A byte of a stored chunk, then a byte of the statement: nothing is promoted.
    let chunk = last_chunk(&cluster, last);
    for altered in [chunk, last.statement.unwrap()] {
        let file = file_of(&cluster.path("."), altered);
        flip(&file);
        let (status, text) = promote(&cluster, last, &[]).await;
        assert_eq!(status, Some(EXIT_TAMPERED), "{text}");
        assert!(text.contains(&Code::ObjectAltered.to_string()), "{text}");
        assert!(text.contains(&altered.digest.to_string()), "{text}");
        let pull = [
            "snapshot", "pull", "demo", "--round", "3", "--to", "altered",
        ];
        let (status, text) = ended(&cluster.diloctl(&pull).await);
        assert_eq!(status, Some(EXIT_TAMPERED), "{text}");
        assert!(text.contains(&Code::ObjectAltered.to_string()), "{text}");
        flip(&file);
    }
    let file = file_of(&cluster.path("."), chunk);
    fs::rename(&file, cluster.path("aside")).unwrap();
    let (status, text) = promote(&cluster, last, &[]).await;
    assert_eq!(status, Some(EXIT_NO_VERDICT), "{text}");
    assert!(text.contains(&Code::LineageUnproven.to_string()), "{text}");
    assert!(text.contains(&chunk.digest.to_string()), "{text}");
    assert_eq!(promoted(&cluster).await, [2, 3, 3, 2]);
    let pointers: Vec<Vec<String>> = cluster
        .operator()
        .await
        .snapshots(&run)
        .await
        .iter()
        .map(|one| one.pointers.iter().map(ToString::to_string).collect())
        .collect();
    assert_eq!(pointers, [["latest-good"], ["release"]]);
}

/// The operator says by its key whose contributions he accepts, and the record keeps that.
#[tokio::test]
async fn tl_19_tl_31_a_snapshot_of_a_worker_in_quarantine_is_promoted_only_if_that_worker_is_named()
{
    let cluster = trained().await;
    let snapshots = cluster.operator().await.snapshots(cluster.run()).await;
    let last = snapshots.last().unwrap();
    let shut = makers(&cluster, 2).await.remove(0);
    let order = ["worker", "quarantine", &shut, "--keep-credential"];
    let order = [&order[..], &["--run", "demo", "--reason", "odd norms"]].concat();
    cluster.diloctl_ok(&order).await;
    // The refusal comes first: the altered chunk was not looked at.
    let chunk = file_of(&cluster.path("."), last_chunk(&cluster, last));
    flip(&chunk);
    let (status, text) = promote(&cluster, last, &[]).await;
    assert_eq!(status, Some(EXIT_DENIED), "{text}");
    let code = Code::SnapshotDescends.to_string();
    assert!(text.contains(&code) && text.contains(&shut), "{text}");
    let accept = ["--accept-quarantined", &shut];
    let (status, text) = promote(&cluster, last, &accept).await;
    assert_eq!(status, Some(EXIT_TAMPERED), "{text}");
    flip(&chunk);
    assert!(promoted(&cluster).await.is_empty());
    let (status, text) = promote(&cluster, last, &accept).await;
    assert_eq!(status, Some(0), "{text}");
    let accepted = format!("contributions of {shut}, which is in quarantine");
    assert!(text.contains(&accepted), "{text}");
    let listed = cluster.diloctl_ok(&["snapshot", "ls", "demo"]).await;
    assert!(listed.contains(" quarantine "), "{listed}");
    let pull = ["snapshot", "pull", "demo", "--to", "model", "--promoted"];
    let pulled = cluster.diloctl_ok(&pull).await;
    assert!(pulled.contains("shut out now"), "{pulled}");
    // An audit shows it too, by the first digits of the digest.
    cluster.kept().await;
    auditor(&cluster);
    let digits = &last.manifest.digest.hex()[..8];
    let own = ["--domain", "auditor", "lineage", "show", digits];
    let from = [
        "--ledger",
        "auditor/ledger",
        "--store-folder",
        "auditor/store",
    ];
    let (status, text) = ended(&cluster.diloctl(&[&own[..], &from].concat()).await);
    assert_eq!(status, Some(0), "{text}");
    let accepted = format!("contributions of a worker in quarantine accepted {shut}");
    assert!(text.contains(&accepted), "{text}");
    let replayed = cluster
        .diloctl_ok(&["audit", "replay", "--kind", "snapshot-promoted"])
        .await;
    let said = format!("accepts {} in quarantine", &shut[..8]);
    assert!(replayed.contains(&said), "{replayed}");
}

/// The last chunk of a snapshot's weights.
fn last_chunk(cluster: &Cluster, snapshot: &SnapshotView) -> ObjectRef {
    let manifest = json(&file_of(&cluster.path("."), snapshot.manifest));
    let chunks = manifest["weights"].as_array().unwrap();
    serde_json::from_value(chunks.last().unwrap().clone()).unwrap()
}

/// The rounds of the snapshots that the ledger says were promoted.
async fn promoted(cluster: &Cluster) -> Vec<u64> {
    let recorded = cluster.evidence().await.everything().await;
    let round = |event: &LedgerEvent| match event {
        LedgerEvent::SnapshotPromoted { round, .. } => Some(round.get()),
        _ => None,
    };
    let events = recorded.iter().filter_map(|one| one.ledger());
    events.filter_map(round).collect()
}

#[tokio::test]
async fn tl_19_lineage_leads_from_a_snapshot_to_keys_data_and_code_and_a_lie_is_found() {
    let cluster = trained().await;
    let run = cluster.run().clone();
    let operator = cluster.operator().await;
    let snapshots = operator.snapshots(&run).await;
    let last = snapshots.last().unwrap();
    let detail = operator.run(&run).await.unwrap();
    let folder = auditor(&cluster);
    let (status, text) = show(&cluster, last.manifest, &[]).await;
    assert_eq!(status, Some(0), "{text}");
    let trust = cluster.domain().trust();
    let mut parts = vec![
        snapshots[0].manifest.digest.to_string(),
        last.statement.unwrap().digest.to_string(),
        detail.spec_digest.to_string(),
        detail.spec.data.digest.to_string(),
        trust.audit_keys[0].to_string(),
        format!("release {}", env!("CARGO_PKG_VERSION")),
        "tokens to train on".to_owned(),
    ];
    parts.extend(makers(&cluster, 2).await);
    for part in parts {
        assert!(text.contains(&part), "{part} in {text}");
    }
    let (status, text) = show(&cluster, last.manifest, &["-o", "json"]).await;
    let shown: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &shown["verified"]), (Some(0), &Value::Bool(true)));
    // By a contribution's statement as well.
    let lines_of = lines(&folder.join("ledger"));
    let mut statement = None;
    let mut look = |event: &mut LedgerEvent| {
        if let LedgerEvent::ContributionAccepted { statement: of, .. } = event {
            statement = Some(*of);
        }
    };
    rewrite(&mut lines_of.clone(), &mut look, &Signer::Forger);
    let of = ObjectRef {
        digest: statement.unwrap(),
        ..last.manifest
    };
    let (status, text) = show(&cluster, of, &[]).await;
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("contribution 2/train-"), "{text}");

    // A coordinator that names another statement, which somebody else has signed.
    let key = AuditKey::read(&cluster.domain().layout().coordinator_audit_key()).unwrap();
    let envelope = json(&file_of(&folder, last.statement.unwrap()));
    let said = payload(&envelope);
    let text = serde_json::to_vec(&said).unwrap();
    let foreign = AuditKey::generate().seal_provenance(&text);
    lie(&cluster, &lines_of, &key, &foreign, Code::StatementForged).await;
    // One that it signed itself, with other dependencies.
    let mut changed = said.clone();
    let made_from = &mut changed["predicate"]["buildDefinition"]["resolvedDependencies"];
    made_from.as_array_mut().unwrap().pop().unwrap();
    let changed = key.seal_provenance(&serde_json::to_vec(&changed).unwrap());
    lie(&cluster, &lines_of, &key, &changed, Code::StatementForged).await;
    // A signature in a worker's name that the worker did not make.
    let mut lied = lines_of;
    let mut change = |event: &mut LedgerEvent| {
        if let LedgerEvent::ContributionAccepted { signature, .. } = event {
            signature[7] ^= 1;
        }
    };
    let domain = trust.domain.as_str();
    rewrite(&mut lied, &mut change, &Signer::Coordinator(&key, domain));
    write(&folder.join("ledger"), &lied);
    let (status, text) = show(&cluster, last.manifest, &[]).await;
    assert_eq!(status, Some(EXIT_TAMPERED), "{text}");
    assert!(text.contains(&Code::LineageDiffers.to_string()), "{text}");
}

/// The workers whose contributions to a round were accepted.
async fn makers(cluster: &Cluster, of: u64) -> Vec<String> {
    let recorded = cluster.evidence().await.everything().await;
    let maker = |event: &LedgerEvent| match event {
        LedgerEvent::ContributionAccepted { lease, worker, .. } if lease.unit.round.get() == of => {
            Some(worker.to_string())
        }
        _ => None,
    };
    let events = recorded.iter().filter_map(|one| one.ledger());
    let makers: Vec<String> = events.filter_map(maker).collect();
    assert_eq!(makers.len(), 2, "a round of two units");
    makers
}

/// Puts another statement into the auditor's copy of the store, has the ledger name it for the last
/// snapshot, and expects that this is found.
async fn lie(cluster: &Cluster, whole: &[Value], key: &AuditKey, envelope: &[u8], code: Code) {
    let (folder, named) = (cluster.path("auditor"), ObjectRef::of(envelope));
    let hex = named.digest.hex();
    let place = folder.join("store/blobs/sha256").join(&hex[..2]);
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join(&hex), envelope).unwrap();
    let mut snapshot = None;
    let mut change = |event: &mut LedgerEvent| {
        if let LedgerEvent::SnapshotSaved {
            round,
            manifest,
            statement,
        } = event
            && round.get() == 3
        {
            *statement = Some(named);
            snapshot = Some(*manifest);
        }
    };
    let mut lied = whole.to_vec();
    let domain = cluster.domain().trust().domain.as_str();
    rewrite(&mut lied, &mut change, &Signer::Coordinator(key, domain));
    write(&folder.join("ledger"), &lied);
    let (status, text) = show(cluster, snapshot.unwrap(), &[]).await;
    assert_eq!(status, Some(EXIT_TAMPERED), "{text}");
    assert!(text.contains(&code.to_string()), "{text}");
}

/// Signs the folder `model`, and verifies it with our command and, where Python has it, with the
/// reference tool of OpenSSF Model Signing.
#[expect(clippy::print_stderr, reason = "says what is not proven here")]
async fn a_release_is_verified_by_us_and_by_the_reference_tool(cluster: &Cluster) {
    cluster
        .diloctl_ok(&["snapshot", "release-key", "release.pem"])
        .await;
    let again = cluster
        .diloctl(&["snapshot", "release-key", "release.pem"])
        .await;
    assert!(!again.status.success(), "a key was replaced");
    let sign = ["snapshot", "release", "model", "--key", "release.pem"];
    cluster.diloctl_ok(&sign).await;
    let verify = ["snapshot", "verify", "model", "--key", "release.pem.pub"];
    let text = cluster.diloctl_ok(&verify).await;
    assert!(text.contains("each as it was signed"), "{text}");
    let reference = ReferenceTool::find();
    match &reference {
        Some(tool) => assert_eq!(by_reference(cluster, tool), (true, true), "{tool:?}"),
        None => {
            eprintln!("skipped: Python has no package model-signing to verify the release with")
        }
    }
    let (model, extra) = (
        cluster.path("model/model.safetensors"),
        cluster.path("model/extra"),
    );
    for (change, undo) in [
        (
            &(|| flip(&model)) as &dyn Fn(),
            &(|| flip(&model)) as &dyn Fn(),
        ),
        (&|| fs::write(&extra, "x").unwrap(), &|| {
            fs::remove_file(&extra).unwrap()
        }),
        (
            &|| fs::rename(cluster.path("model/config.json"), cluster.path("aside")).unwrap(),
            &|| fs::rename(cluster.path("aside"), cluster.path("model/config.json")).unwrap(),
        ),
    ] {
        change();
        let (status, text) = ended(&cluster.diloctl(&verify).await);
        assert_eq!(status, Some(EXIT_TAMPERED), "{text}");
        assert!(text.contains(&Code::ReleaseAltered.to_string()), "{text}");
        if let Some(tool) = &reference {
            assert_eq!(by_reference(cluster, tool), (false, true), "{tool:?}");
        }
        undo();
    }
    cluster.diloctl_ok(&verify).await;
}

/// A Python that has the package `model-signing`: `DILOCO_MODEL_SIGNING_PYTHON`, or the one in the
/// path with the packages of `tests/attack`.
#[derive(Debug)]
struct ReferenceTool {
    python: std::ffi::OsString,
    packages: Option<PathBuf>,
}

impl ReferenceTool {
    fn find() -> Option<Self> {
        let tool = match std::env::var_os("DILOCO_MODEL_SIGNING_PYTHON") {
            Some(python) => Self {
                python,
                packages: None,
            },
            None => {
                let deps = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.deps/attack");
                Self {
                    python: "python3".into(),
                    packages: deps.join("model_signing").is_dir().then_some(deps),
                }
            }
        };
        let found = tool.command().args(["-c", "import model_signing"]).output();
        found
            .is_ok_and(|output| output.status.success())
            .then_some(tool)
    }

    fn command(&self) -> std::process::Command {
        let mut command = std::process::Command::new(&self.python);
        if let Some(packages) = &self.packages {
            command.arg("-B").env("PYTHONPATH", packages);
        }
        command
    }
}

/// What the reference tool says about the release, under its own key and under another one: true if
/// it verifies, and true if it does not.
fn by_reference(cluster: &Cluster, reference: &ReferenceTool) -> (bool, bool) {
    let other = identity::release::ReleaseKey::generate().unwrap();
    fs::write(cluster.path("other.pub"), other.public().pem()).unwrap();
    let verifies = |key: &str| {
        let mut tool = reference.command();
        tool.args(["-m", "model_signing", "verify", "key", "model"])
            .args(["--signature", "model/model.sig", "--public_key", key])
            .current_dir(cluster.path("."));
        tool.output().unwrap().status.success()
    };
    (verifies("release.pem.pub"), !verifies("other.pub"))
}
