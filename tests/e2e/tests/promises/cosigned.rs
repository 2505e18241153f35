//! Workers are witnesses of the log: they follow it and cosign its heads by themselves, and one
//! that has seen another history says so and trains on.

use std::fs;
use std::path::{Path, PathBuf};

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE};
use identity::{HeadKey, TrustBundle, WitnessKey, log_manifest};
use runtime::exit::{EXIT_NO_VERDICT, EXIT_TAMPERED};
use schemas::event::EventBody;
use schemas::log_manifest::LogManifest;
use schemas::{Code, Digest, Message as _, UnixMillis};
use tlog::Head;

use crate::log_owner::{entries, machine};

/// The size of the head that a signed text is of; 0 if there is none yet.
fn size(note: &Path) -> u64 {
    let note = fs::read_to_string(note).unwrap_or_default();
    let size = note.lines().nth(1).and_then(|line| line.parse().ok());
    size.unwrap_or(0)
}

/// Waits until a file holds a head over more events than so many.
async fn until_over(note: &Path, events: u64) {
    let more = harness::look(PATIENCE, || (size(note) > events).then_some(())).await;
    assert!(more.is_some(), "{} stays at {}", note.display(), size(note));
}

fn state(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.path("work").join(name).join("state")
}

fn key(cluster: &Cluster, name: &str) -> String {
    let credentials = cluster.domain().layout().credentials(name);
    cluster.source(&credentials).public().to_string()
}

/// A run that waits: its workers are members, and no round of it is sealed.
async fn waiting_run(cluster: &Cluster) {
    Recipe::reference(20, 2, 10).create(cluster).await;
    cluster
        .diloctl_ok(&["run", "freeze", "demo", "--reason", "a test"])
        .await;
}

/// Asserts the exit status of a command, and that each part is in what it said.
async fn ends(cluster: &Cluster, arguments: &[&str], status: u8, parts: &[&str]) {
    let output = cluster.diloctl(arguments).await;
    let text = format!("{}{}", output.stdout, output.stderr);
    let got = output.status.code();
    assert_eq!(got, Some(i32::from(status)), "{arguments:?}: {text}");
    for part in parts {
        assert!(text.contains(part), "{arguments:?}: no {part:?} in {text}");
    }
}

/// The holder of the owner's key and of that for heads begins another log, with a manifest that is
/// newly signed, and gives out trust bundles that suit it. It has nothing but the true log's
/// cosigned heads against it.
async fn another_beginning_is_found(cluster: &Cluster, cosigned: &[(String, Vec<u8>)]) {
    let layout = cluster.domain().layout();
    let (trust, whole) = (
        cluster.domain().trust(),
        entries(cluster, &layout.audit_log()),
    );
    let document = fs::read_to_string(layout.log_manifest()).unwrap();
    let manifest = log_manifest::open(&document, trust).unwrap();
    let later = LogManifest {
        at: UnixMillis(manifest.at.get() + 1),
        ..manifest
    };
    let later = log_manifest::sign(&layout.vault().operator().unwrap(), &later).unwrap();
    // Events that name a head of the true log would contradict it as well.
    let names_no_head = |entry: &&Vec<u8>| {
        let event = chain::of_leaf(entry).unwrap();
        EventBody::decode(&event.body).unwrap().known.is_none()
    };
    let events = whole[1..].iter().filter(names_no_head).cloned();
    let forged: Vec<Vec<u8>> = [chain::manifest_leaf(&later)]
        .into_iter()
        .chain(events)
        .collect();
    let over = Head::open(
        &cosigned[0].1,
        &format!("diloco/{}", trust.domain),
        &trust.raw_head_keys(),
    );
    assert!(over.unwrap().size <= forged.len() as u64, "it is as long");
    for (name, named) in [
        ("names-none", None),
        ("names-the-new", Some(Digest::of(later.as_bytes()))),
    ] {
        let trust = TrustBundle {
            log_manifest: named,
            ..trust.clone()
        };
        machine(cluster, name, &trust, &forged);
        let log = format!("{name}/log");
        let verify = ["--domain", name, "audit", "verify", "--log-folder", &log];
        ends(cluster, &verify, 0, &["has signed entry 0"]).await;
        fs::create_dir(cluster.path(&log).join("cosigned")).unwrap();
        for (worker, note) in cosigned {
            fs::write(cluster.path(&log).join("cosigned").join(worker), note).unwrap();
        }
        let asks = ["--policy", "policy", "--unwitnessed-max", "100000"];
        let fork = Code::HistoryForked.to_string();
        ends(
            cluster,
            &[&verify[..], &asks].concat(),
            EXIT_TAMPERED,
            &[&fork],
        )
        .await;
    }
}

#[tokio::test]
async fn fg_07_workers_cosign_the_log_by_themselves_and_verifiers_ask_for_them() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    waiting_run(&cluster).await;
    let (log, stored) = (
        cluster.domain().layout().audit_log(),
        cluster.path("store/log"),
    );
    let names = ["worker-0", "worker-1"];
    let workers = names.map(|name| key(&cluster, name));
    let mut cosigned = Vec::new();
    for (name, worker) in names.iter().zip(&workers) {
        until_over(&state(&cluster, name).join("log.head"), 0).await;
        until_over(&log.join("cosigned").join(worker), 0).await;
        until_over(&stored.join("cosigned").join(worker), 0).await;
        let early = fs::read(log.join("cosigned").join(worker)).unwrap();
        cosigned.push((worker.clone(), early));
    }

    // Each worker's public key, as its keeper reads it on the worker's machine.
    let mut policy = String::new();
    for (name, worker) in names.iter().zip(&workers) {
        let file = state(&cluster, name).join("witness.nk");
        let file = file.display().to_string();
        let show = ["audit", "witness-key", worker, "--key", &file];
        let shown = cluster.diloctl_ok(&show).await;
        let mut words = shown.split_whitespace();
        let stated = words.find(|word| word.starts_with(&format!("{worker}+")));
        policy += &format!("witness {name} {}\n", stated.unwrap());
    }
    policy += "group both 2 worker-0 worker-1\nquorum both\n";
    fs::write(cluster.path("policy"), policy).unwrap();
    let auditor = cluster.domain().layout().store_auditor_key();
    fs::copy(auditor, cluster.path("auditor.json")).unwrap();

    let url = cluster.store_url();
    let verify = [
        "audit",
        "verify",
        "--policy",
        "policy",
        "--unwitnessed-max",
        "100000",
    ];
    let from_store = ["--store-keys", "auditor.json", "--store", &url];
    let by = "by worker-0 worker-1";
    ends(&cluster, &verify, 0, &["verified", by]).await;
    ends(&cluster, &["audit", "head"], 0, &["by 2 workers"]).await;

    // Nobody cosigns any more, so what is there stays.
    cluster.stop_well(&names).await;
    cluster.stop_well(&["audit"]).await;
    let all = [&verify[..], &from_store].concat();
    ends(&cluster, &all, 0, &["verified", by]).await;
    // What the workers said last is not older than the heads that they had seen.
    let shown = cluster.diloctl_ok(&verify).await;
    let behind = shown.lines().find(|line| line.contains("name a head"));
    let mut words = behind.unwrap_or(&shown).split_whitespace();
    let named = words.find_map(|word| word.parse::<u64>().ok());
    assert!(named.is_some_and(|named| named > 0), "{shown}");
    let own = log.join("cosigned").join(&workers[0]);
    let whole = fs::read(&own).unwrap();
    fs::remove_file(&own).unwrap();
    let unwitnessed = Code::LogUnwitnessed.to_string();
    ends(&cluster, &verify, EXIT_NO_VERDICT, &[&unwitnessed]).await;
    // A file that is none of the log's counts as missing, and keeps nobody from the others.
    fs::write(&own, "no head").unwrap();
    let file = format!("cosigned/{}", workers[0]);
    let says = [unwitnessed.as_str(), "cannot be used", file.as_str()];
    ends(&cluster, &verify, EXIT_NO_VERDICT, &says).await;
    let one = [&verify[..], &["--witnesses", "1"]].concat();
    let says = ["verified", "by worker-1", "counts as missing", &file];
    ends(&cluster, &one, 0, &says).await;
    // One that a person names is no such thing.
    fs::write(cluster.path("named"), "no head").unwrap();
    let named = [&one[..], &["--cosigned", "named"]].concat();
    let refused = cluster.diloctl(&named).await;
    assert!(!refused.status.success(), "{}", refused.stdout);
    let trust = cluster.domain().trust();
    let name = format!("diloco/{}", trust.domain);
    let head = Head::open(&whole, &name, &trust.raw_head_keys()).unwrap();
    let signer = HeadKey::read(&cluster.domain().layout().head_key()).unwrap();
    let file = state(&cluster, names[0]).join("witness.nk");
    let seed = WitnessKey::read(&file).unwrap();
    let witness = seed.witness(&workers[0]).unwrap();
    let root = [1; 32];
    let forked = Head { root, ..head };
    let note = signer.sign_head(&forked) + &seed.cosign(&witness, &forked, 1);
    fs::write(&own, note).unwrap();
    let fork = Code::HistoryForked.to_string();
    ends(&cluster, &verify, EXIT_TAMPERED, &[&fork]).await;
    another_beginning_is_found(&cluster, &cosigned).await;
}

/// What the key for heads signs twice is found by the first worker that has seen the one and is
/// given the other. It says so in its log and in its own chain, and trains on.
#[tokio::test]
async fn fg_07_a_worker_that_saw_another_history_says_so_and_trains_on() {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    waiting_run(&cluster).await;
    let (state, worker) = (state(&cluster, "worker-0"), key(&cluster, "worker-0"));
    until_over(&state.join("log.head"), 0).await;
    let log = cluster.domain().layout().audit_log();
    let cosigned = log.join("cosigned").join(&worker);
    until_over(&cosigned, 0).await;
    cluster.stop_well(&["worker-0"]).await;
    let before = fs::read(&cosigned).unwrap();

    // As if this machine had been shown a longer log, under the same key.
    let trust = cluster.domain().trust();
    let signer = HeadKey::read(&cluster.domain().layout().head_key()).unwrap();
    let longer = Head {
        origin: format!("diloco/{}", trust.domain),
        size: 1_000_000,
        root: [1; 32],
    };
    let note = signer.sign_head(&longer);
    fs::write(state.join("log.head"), &note).unwrap();
    cluster.restart("worker-0").await;
    let contradicted = Code::HeadContradicted.to_string();
    let said = |text: &str| text.contains(&contradicted);
    let process = cluster.process("worker-0");
    process.until_logged(PATIENCE, said).await;
    until_over(&state.join("log.refused"), 0).await;
    cluster
        .diloctl_ok(&["run", "unfreeze", "demo", "--reason", "a test"])
        .await;
    let run = cluster.run().clone();
    cluster.operator().await.until_complete(&run).await;
    cluster.kept().await;
    let kept = fs::read_to_string(state.join("log.head")).unwrap();
    assert_eq!(kept, note, "nothing takes its place");
    assert_eq!(fs::read(&cosigned).unwrap(), before, "nothing is cosigned");
    let replay = cluster
        .diloctl_ok(&["audit", "replay", "--run", "demo"])
        .await;
    let event = replay
        .lines()
        .find(|line| line.contains("refused") && line.contains(&contradicted));
    assert!(event.is_some(), "it is in the worker's own chain: {replay}");
    // Its own events name that head, so who verifies this log finds it without asking the worker.
    cluster.stop_well(&["worker-0"]).await;
    cluster.stop_well(&["audit"]).await;
    let named = Code::KnownHeadFalse.to_string();
    let parts = [&named[..], "a head over 1000000 events"];
    ends(&cluster, &["audit", "verify"], EXIT_TAMPERED, &parts).await;
}
