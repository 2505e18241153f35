//! The log in the store: the same as in the audit service's folder, verified with read access to
//! the store alone, and never written by two services.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE, Signal};
use identity::{HeadKey, WitnessKey};
use runtime::exit::{EXIT_NO_VERDICT, EXIT_TAMPERED};
use schemas::Code;
use tlog::Head;

/// All files below a folder, by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path.strip_prefix(folder).unwrap().display().to_string();
                    found.insert(name, fs::read(&path).unwrap());
                }
            }
        }
    }
    found
}

/// What an auditor has: public facts of the domain, and its own key to the store.
fn auditor(cluster: &Cluster) -> PathBuf {
    let (folder, layout) = (cluster.path("auditor"), cluster.domain().layout());
    fs::create_dir_all(folder.join("tls")).unwrap();
    fs::copy(layout.trust(), folder.join("trust.json")).unwrap();
    fs::copy(layout.ca(), folder.join("tls/ca.pem")).unwrap();
    fs::copy(layout.store_auditor_key(), folder.join("key.json")).unwrap();
    folder
}

/// A command of the auditor, who reads the store alone: the exit status, and all that it said.
async fn audit(cluster: &Cluster, command: &[&str]) -> (i32, String) {
    let own = ["--domain", "auditor", "audit"];
    let url = cluster.store_url();
    let from = ["--store-keys", "auditor/key.json", "--store", &url];
    let output = cluster.diloctl(&[&own[..], command, &from].concat()).await;
    let text = format!("{}{}", output.stdout, output.stderr);
    (output.status.code().unwrap(), text)
}

/// A cosigned head is one that a machine has verified: the log must lead to each, and without
/// enough of them there is no verdict.
async fn witnesses(cluster: &Cluster) {
    let own = |command: &[&str]| {
        let all = [&["--domain", "auditor", "audit"][..], command].concat();
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut policy = String::new();
    for name in ["one", "two", "three"] {
        let file = format!("{name}.nk");
        let key = own(&["witness-key", name, "--key", &file]);
        let key: Vec<&str> = key.iter().map(String::as_str).collect();
        let text = cluster.diloctl_ok(&key).await;
        let mut words = text.split_whitespace();
        let stated = words.find(|word| word.starts_with(&format!("{name}+")));
        policy += &format!("witness {name} {}\n", stated.unwrap());
    }
    policy += "group all-sites 2 one two three\nquorum all-sites\n";
    fs::write(cluster.path("policy"), policy).unwrap();
    let cosign = async |name: &str, to: &str| {
        let key = format!("{name}.nk");
        audit(cluster, &["cosign", name, "--key", &key, "--to", to]).await
    };
    let (status, text) = cosign("one", "cosigned").await;
    assert_eq!(status, 0, "{text}");
    let verify = ["verify", "--policy", "policy", "--cosigned", "cosigned"];
    let (status, text) = audit(cluster, &verify).await;
    assert_eq!(status, i32::from(EXIT_NO_VERDICT), "one is too few: {text}");
    assert!(text.contains(&Code::LogUnwitnessed.to_string()), "{text}");
    let (status, text) = audit(cluster, &[&verify[..], &["--witnesses", "1"]].concat()).await;
    assert_eq!(status, 0, "{text}");
    let (status, text) = cosign("two", "cosigned").await;
    assert_eq!(status, 0, "{text}");
    let (status, text) = audit(cluster, &verify).await;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("by one two"), "{text}");
    // What is another head, or none, is not written over.
    fs::write(cluster.path("kept"), "of another head").unwrap();
    let (status, text) = cosign("one", "kept").await;
    assert_ne!(status, 0, "{text}");
    assert_eq!(fs::read(cluster.path("kept")).unwrap(), b"of another head");

    // Another history under the service's own key: a witness that trusts the key alone would take
    // it.
    let note = fs::read(cluster.path("cosigned")).unwrap();
    let trust = cluster.domain().trust();
    let origin = format!("diloco/{}", trust.domain);
    let head = Head::open(&note, &origin, &trust.raw_head_keys()).unwrap();
    let root = [1; 32];
    let forked = Head { root, ..head };
    let signer = HeadKey::read(&cluster.domain().layout().head_key()).unwrap();
    let stored = cluster.path("store/log/checkpoint");
    let whole = fs::read(&stored).unwrap();
    fs::write(&stored, signer.sign_head(&forked)).unwrap();
    let (status, text) = cosign("three", "forked").await;
    assert_eq!(
        status,
        i32::from(EXIT_TAMPERED),
        "a fork is not cosigned: {text}"
    );
    assert!(!cluster.path("forked").exists());
    // A key remembers what it cosigned, also where nothing is pinned.
    let (pin, aside) = (
        cluster.path("auditor/audit-head.pin"),
        cluster.path("aside"),
    );
    fs::rename(&pin, &aside).unwrap();
    let heads = fs::read_dir(cluster.path("store/log/heads")).unwrap();
    let heads = heads.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let oldest = heads
        .min_by_key(|size| size.parse::<u64>().unwrap())
        .unwrap();
    fs::copy(cluster.path("store/log/heads").join(oldest), &stored).unwrap();
    let (status, text) = cosign("one", "older").await;
    assert_eq!(status, i32::from(EXIT_TAMPERED), "{text}");
    assert!(text.contains(&Code::HeadRolledBack.to_string()), "{text}");
    assert!(!cluster.path("older").exists());
    let _unpinned = fs::remove_file(&pin);
    fs::rename(&aside, &pin).unwrap();
    fs::write(&stored, whole).unwrap();
    // A witness that was shown that other history shows it to those who verify this one.
    let three = WitnessKey::read(&cluster.path("three.nk")).unwrap();
    let witness = three.witness("three").unwrap();
    let shown = signer.sign_head(&forked) + &three.cosign(&witness, &forked, 1);
    fs::write(cluster.path("forked"), shown).unwrap();
    let beside = [&verify[..], &["--cosigned", "forked"]].concat();
    let (status, text) = audit(cluster, &beside).await;
    assert_eq!(status, i32::from(EXIT_TAMPERED), "{text}");
    assert!(text.contains(&Code::HistoryForked.to_string()), "{text}");
    // Nor can a log be cut below a head that was cosigned.
    let size = forked.size + 1;
    let newer = Head { size, ..forked };
    let shown = signer.sign_head(&newer) + &three.cosign(&witness, &newer, 1);
    fs::write(cluster.path("forked"), shown).unwrap();
    let (status, text) = audit(cluster, &beside).await;
    assert_eq!(status, i32::from(EXIT_TAMPERED), "{text}");
    assert!(text.contains(&Code::HeadRolledBack.to_string()), "{text}");
}

/// Another copy may be behind the store, and go on; what it has shown it may not take back.
async fn copy_behind(cluster: &Cluster, whole: &BTreeMap<String, Vec<u8>>, oldest: &str) {
    let copy = cluster.path("copy");
    for (name, bytes) in whole {
        let path = copy.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let own = ["--domain", "auditor", "audit", "verify"];
    let verify = [&own[..], &["--log-folder", "copy"]].concat();
    for (head, status, part) in [
        (oldest, EXIT_NO_VERDICT, Code::LogStoreBehind.to_string()),
        (oldest, EXIT_NO_VERDICT, "at bucket log of".to_owned()),
        ("checkpoint", 0, "verified".to_owned()),
        (oldest, EXIT_TAMPERED, Code::HeadRolledBack.to_string()),
    ] {
        fs::write(copy.join("checkpoint"), &whole[head]).unwrap();
        let output = cluster.diloctl(&verify).await;
        let text = format!("{}{}", output.stdout, output.stderr);
        assert_eq!(
            output.status.code(),
            Some(i32::from(status)),
            "{head}: {text}"
        );
        assert!(text.contains(&part), "{head}: no {part:?} in {text}");
    }
}

async fn trained(cluster: &Cluster) {
    Recipe::reference(2, 1, 10)
        .set("schedule.snapshot_every=1")
        .create(cluster)
        .await;
    cluster.operator().await.until_complete(cluster.run()).await;
    cluster.kept().await;
}

#[tokio::test]
async fn fg_07_the_store_alone_proves_the_record_and_shows_what_was_altered_in_it() {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    cluster.kept().await;
    cluster.stop_well(&["audit"]).await;
    cluster.restart("audit").await;
    trained(&cluster).await;
    // It signs a head over everything, and copies it, before it ends.
    cluster.stop_well(&["audit"]).await;
    cluster.kill9("broker");
    let (log, stored) = (
        cluster.domain().layout().audit_log(),
        cluster.path("store/log"),
    );
    let whole = files(&stored);
    assert_eq!(files(&log), whole, "the store has what the folder has");

    auditor(&cluster);
    for command in [
        &["head"][..],
        &["verify"],
        &["prove", "index:3", "--to", "three.tlog-proof"],
        &["replay"],
        &["replay", "--summary"],
        &["replay", "--at", "5"],
        &["recompute", "--all", "--ledger-in-store"],
    ] {
        let (status, text) = audit(&cluster, command).await;
        assert_eq!(status, 0, "{command:?}: {text}");
    }
    let (status, text) = audit(&cluster, &["replay", "--at", "100000"]).await;
    assert_eq!(status, i32::from(EXIT_NO_VERDICT), "{text}");

    witnesses(&cluster).await;

    // Each kind of file that stands under the head, altered and gone.
    let size = whole["checkpoint"].clone();
    let size = String::from_utf8(size).unwrap();
    let size: u64 = size.lines().nth(1).unwrap().parse().unwrap();
    let newest = [
        "checkpoint".to_owned(),
        format!("tile/0/000.p/{size}"),
        format!("tile/entries/000.p/{size}"),
    ];
    for name in newest {
        let path = stored.join(&name);
        let mut altered = whole[&name].clone();
        altered[40] ^= 1;
        fs::write(&path, &altered).unwrap();
        let (status, text) = audit(&cluster, &["verify"]).await;
        assert_eq!(status, i32::from(EXIT_TAMPERED), "{name}: {text}");
        fs::remove_file(&path).unwrap();
        let (status, text) = audit(&cluster, &["verify"]).await;
        assert_eq!(status, i32::from(EXIT_NO_VERDICT), "{name}: {text}");
        fs::write(&path, &whole[&name]).unwrap();
    }
    // An older head, under which the log is whole.
    let heads = whole.keys().filter_map(|name| name.strip_prefix("heads/"));
    let oldest = heads.min_by_key(|size| size.parse::<u64>().unwrap());
    let oldest = format!("heads/{}", oldest.unwrap());
    assert_ne!(
        whole[&oldest], whole["checkpoint"],
        "there is an older head"
    );
    fs::write(stored.join("checkpoint"), &whole[&oldest]).unwrap();
    let (status, text) = audit(&cluster, &["head"]).await;
    assert_eq!(status, i32::from(EXIT_TAMPERED), "{text}");
    assert!(text.contains(&Code::HeadRolledBack.to_string()), "{text}");
    fs::write(stored.join("checkpoint"), &whole["checkpoint"]).unwrap();
    let (status, text) = audit(&cluster, &["verify"]).await;
    assert_eq!(status, 0, "{text}");
    copy_behind(&cluster, &whole, &oldest).await;
    // Without the store there is no verdict.
    cluster.stop_well(&["store"]).await;
    let (status, text) = audit(&cluster, &["--timeout", "3s", "verify"]).await;
    assert_eq!(status, i32::from(EXIT_NO_VERDICT), "{text}");
}

/// A run that waits for its workers: freezing it and letting it go are events that need no store.
async fn waiting_run(cluster: &Cluster) {
    Recipe::reference(2, 1, 10).create(cluster).await;
}

async fn order(cluster: &Cluster, verb: &str) {
    cluster
        .diloctl_ok(&["run", verb, "demo", "--reason", "a test"])
        .await;
    cluster.copied().await;
}

#[tokio::test]
async fn fg_07_a_store_that_is_away_delays_the_copy_alone_and_is_caught_up_with() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    let (log, stored) = (
        cluster.domain().layout().audit_log(),
        cluster.path("store/log"),
    );
    waiting_run(&cluster).await;
    cluster.kept().await;
    // A service that begins while the store is away keeps events, and signs no head.
    cluster.stop_well(&["audit", "store"]).await;
    let before = files(&log);
    assert_eq!(files(&stored), before);
    order(&cluster, "freeze").await;
    cluster.restart("audit").await;
    let behind = Code::LogStoreBehind.to_string();
    let said = |text: &str| text.contains(&behind);
    cluster.process("audit").until_logged(PATIENCE, said).await;
    cluster.kept().await;
    cluster.stop_well(&["audit"]).await;
    assert_eq!(files(&log), before);
    // When the store comes, it goes on where the store is.
    cluster.restart("audit").await;
    cluster.restart("store").await;
    let (head, copied) = (log.join("checkpoint"), stored.join("checkpoint"));
    let newer = || (fs::read(&copied).unwrap() != before["checkpoint"]).then_some(());
    let newer = harness::look(PATIENCE, newer).await;
    newer.expect("the store has a new head");
    // From here on it knows what the store has, and signs without it.
    cluster.stop_well(&["store"]).await;
    let old = fs::read(&head).unwrap();
    order(&cluster, "unfreeze").await;
    let signed = || fs::read(&head).ok().filter(|now| *now != old);
    let signed = harness::look(PATIENCE, signed).await;
    assert!(signed.is_some(), "a head is signed without the store");
    assert_eq!(fs::read(&copied).unwrap(), old);
    cluster.restart("store").await;
    let level = || (fs::read(&copied).ok() == fs::read(&head).ok()).then_some(());
    let level = harness::look(PATIENCE, level).await;
    level.expect("the store has caught up");
    cluster.stop_well(&["audit"]).await;
    assert_eq!(files(&log), files(&stored));
    let doctor = cluster.diloctl(&["doctor"]).await.stdout;
    let row = doctor.lines().find(|row| row.contains("log in the store"));
    assert!(row.is_some_and(|row| row.starts_with("ok")), "{doctor}");
}

#[tokio::test]
async fn fg_07_of_two_audit_services_on_one_log_the_one_that_knows_less_ends() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    waiting_run(&cluster).await;
    cluster.kept().await;
    cluster.stop_well(&["audit"]).await;
    cluster.restart("audit").await;
    let stored = cluster.path("store/log/checkpoint");
    let first = fs::read(&stored).unwrap();
    // The first one hears nothing for a while. A second one, with the same keys and a folder of its
    // own, takes the log up from the store.
    cluster.process("audit").signal(Signal::Stop);
    let own = cluster.path("second-audit");
    cluster.start_audit_in("second", &own).await;
    order(&cluster, "freeze").await;
    let frozen = |text: &str| text.contains("all that the stream holds");
    cluster
        .process("second")
        .until_logged(PATIENCE, frozen)
        .await;
    let signed = || fs::read(&stored).ok().filter(|now| *now != first);
    let signed = harness::look(PATIENCE, signed).await;
    let signed = signed.expect("the second one goes on with the log");
    cluster.stop_well(&["second"]).await;
    order(&cluster, "unfreeze").await;
    cluster.process("audit").signal(Signal::Continue);
    let status = cluster.process("audit").exit(PATIENCE).await;
    assert!(!status.success(), "{status}");
    let taken = Code::LogTaken.to_string();
    let said = cluster.process("audit").log();
    assert!(said.contains(&taken), "{said}");
    assert_eq!(fs::read(&stored).unwrap(), signed, "it has changed nothing");
    cluster.restart("second").await;
    let more = || fs::read(&stored).ok().filter(|now| *now != signed);
    let more = harness::look(PATIENCE, more).await;
    assert!(more.is_some(), "the second one goes on");
    auditor(&cluster);
    let (status, text) = audit(&cluster, &["verify"]).await;
    assert_eq!(status, 0, "{text}");
}

/// Who can write to the store's disk stops the signing of heads, and not the recording.
#[tokio::test]
async fn fg_07_other_bytes_in_the_store_end_the_signing_of_heads_and_no_recording() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    waiting_run(&cluster).await;
    cluster.kept().await;
    cluster.copied().await;
    let head = cluster.domain().layout().audit_log().join("checkpoint");
    let stored = cluster.path("store/log/checkpoint");
    let right = harness::look(PATIENCE, || fs::read(&stored).ok()).await;
    let right = right.expect("the first head is copied");
    fs::write(&stored, "other bytes").unwrap();
    order(&cluster, "freeze").await;
    let altered = Code::LogStoreAltered.to_string();
    let said = |text: &str| text.contains(&altered);
    cluster.process("audit").until_logged(PATIENCE, said).await;
    order(&cluster, "unfreeze").await;
    cluster.kept().await;
    let signed = fs::read(&head).unwrap();
    // A person puts the newest head back, and the service goes on by itself.
    fs::write(&stored, &right).unwrap();
    let newer = || {
        let (own, copied) = (fs::read(&head).unwrap(), fs::read(&stored).unwrap());
        (own == copied && own != signed).then_some(own)
    };
    let newer = harness::look(PATIENCE, newer).await;
    let signed = newer.expect("what was kept meanwhile is under a signed head, here and there");
    fs::write(&stored, "other bytes").unwrap();
    order(&cluster, "freeze").await;
    let twice = |text: &str| {
        let lines = text.lines().filter(|line| line.contains(&altered));
        lines.count() > 1
    };
    let process = cluster.process("audit");
    process.until_logged(PATIENCE, twice).await;
    order(&cluster, "unfreeze").await;
    cluster.kept().await;
    let last = fs::read(&head).unwrap();
    cluster.stop_well(&["audit"]).await;
    assert_eq!(fs::read(&head).unwrap(), last, "nothing more is signed");
    // Nor does it keep the service from starting.
    cluster.restart("audit").await;
    order(&cluster, "freeze").await;
    cluster.kept().await;
    assert_eq!(fs::read(&head).unwrap(), last);
    assert_eq!(fs::read(&stored).unwrap(), b"other bytes");
    fs::write(&stored, &signed).unwrap();
    let newer = || {
        let (own, copied) = (fs::read(&head).unwrap(), fs::read(&stored).unwrap());
        (own == copied && own != last).then_some(())
    };
    let newer = harness::look(PATIENCE, newer).await;
    newer.expect("it signs once the store has what was written there");
    cluster.stop_well(&["audit"]).await;
    auditor(&cluster);
    let (status, text) = audit(&cluster, &["verify"]).await;
    assert_eq!(status, 0, "{text}");
}
