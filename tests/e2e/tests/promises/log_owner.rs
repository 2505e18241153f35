//! A log begins with what the owner of the domain has signed, so trust in those who speak in it
//! rests on nothing that the holder of the key for heads can write.

use std::fs;
use std::path::Path;

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE};
use identity::{AuditKey, Domain, HeadKey, InitOptions, TrustBundle, WitnessKey, log_manifest};
use runtime::exit::{EXIT_NO_VERDICT, EXIT_NOT_FOUND, EXIT_TAMPERED};
use schemas::event::EventBody;
use schemas::log_manifest::{EmitterRole, LogManifest};
use schemas::{Code, Digest, Message as _, UnixMillis};
use tlog::layout::{Bundle, entries_of};
use tlog::{Head, Writer};

/// All that a command said, once its exit status is the expected one.
async fn ends(cluster: &Cluster, arguments: &[&str], status: u8) -> String {
    let output = cluster.diloctl(arguments).await;
    let text = format!("{}{}", output.stdout, output.stderr);
    let got = output.status.code();
    assert_eq!(got, Some(i32::from(status)), "{arguments:?}: {text}");
    text
}

/// The entries of the log in a folder, under its newest head.
pub(crate) fn entries(cluster: &Cluster, log: &Path) -> Vec<Vec<u8>> {
    let trust = cluster.domain().trust();
    let note = fs::read(log.join("checkpoint")).unwrap();
    let origin = format!("diloco/{}", trust.domain);
    let head = Head::open(&note, &origin, &trust.raw_head_keys()).unwrap();
    let mut all = Vec::new();
    for bundle in Bundle::all(head.size) {
        let bytes = fs::read(log.join(bundle.path())).unwrap();
        let entries = entries_of(&bytes, bundle.width).unwrap();
        all.extend(entries.into_iter().map(<[u8]>::to_vec));
    }
    all
}

/// A machine with this trust bundle, and a log of these entries that the key for heads has signed,
/// as its holder can write it.
pub(crate) fn machine(cluster: &Cluster, name: &str, trust: &TrustBundle, entries: &[Vec<u8>]) {
    let folder = cluster.path(name);
    fs::create_dir_all(&folder).unwrap();
    let bundle = TrustBundle {
        ca: "tls/ca.pem".into(),
        ..trust.clone()
    };
    bundle.write(&folder.join("trust.json")).unwrap();
    let key = HeadKey::read(&cluster.domain().layout().head_key()).unwrap();
    let mut writer = Writer::new(format!("diloco/{}", trust.domain), None).unwrap();
    for entry in entries {
        writer.push(entry, 0).unwrap();
    }
    let batch = writer.batch(|head| key.sign_head(head)).unwrap();
    for write in batch.writes {
        let path = folder.join("log").join(write.path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, write.bytes).unwrap();
    }
}

/// These events as they would be had nobody seen a head: those of the worker that name one are left
/// out, and the ledger's are signed anew.
fn naming_no_head(cluster: &Cluster, entries: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let file = cluster.domain().layout().coordinator_audit_key();
    let key = AuditKey::read(&file).unwrap();
    let domain = cluster.domain().trust().domain.to_string();
    let mut end = chain::End::default();
    let anew = |entry: &Vec<u8>| {
        let event = chain::of_leaf(entry).unwrap();
        let body = EventBody::decode(&event.body).unwrap();
        if body.emitter != *key.public() {
            return body.known.is_none().then(|| entry.clone());
        }
        let draft = end.write(key.public(), body.time, body.run.as_ref(), body.event);
        end = draft.end();
        chain::leaf(&key.sign_event(&domain, draft.body))
    };
    entries.iter().filter_map(anew).collect()
}

/// A command of `audit` about that log, on that machine.
fn of<'a>(name: &'a str, log: &'a str, command: &[&'a str]) -> Vec<&'a str> {
    let about = ["--log-folder", log];
    [&["--domain", name, "audit"], command, &about].concat()
}

#[tokio::test]
async fn fg_07_a_log_begins_with_what_its_owner_signed_and_another_beginning_is_found() {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    Recipe::reference(2, 1, 10).create(&cluster).await;
    cluster.operator().await.until_complete(cluster.run()).await;
    cluster.kept().await;
    // A process that begins with a manifest is followed by one that goes on behind it.
    cluster.stop_well(&["audit"]).await;
    cluster.restart("audit").await;
    cluster.kept().await;
    cluster.stop_well(&["audit"]).await;
    let layout = cluster.domain().layout().clone();
    let (trust, log) = (cluster.domain().trust().clone(), layout.audit_log());

    // Everybody who speaks in a new domain is named by its owner.
    let text = ends(&cluster, &["audit", "verify"], 0).await;
    assert!(text.contains("has signed entry 0"), "{text}");
    assert!(text.contains("1 keys of workers"), "{text}");
    assert!(!text.contains("NOT NAMED"), "{text}");
    let unlogged = ends(&cluster, &["audit", "prove", "index:0"], EXIT_NOT_FOUND).await;
    assert!(unlogged.contains("manifest of its owner"), "{unlogged}");
    let shown = ends(&cluster, &["auth", "show"], 0).await;
    let document = fs::read_to_string(layout.log_manifest()).unwrap();
    let digest = Digest::of(document.as_bytes());
    assert_eq!(trust.log_manifest, Some(digest));
    assert!(shown.contains(&digest.to_string()), "{shown}");
    let whole = entries(&cluster, &log);
    assert_eq!(whole[0], chain::manifest_leaf(&document));

    // The holder of the key for heads begins another log with the same events.
    let owner = layout.vault().operator().unwrap();
    let manifest = log_manifest::open(&document, &trust).unwrap();
    let options = InitOptions::default();
    let other = Domain::init(&cluster.path("other"), &options, UnixMillis(1)).unwrap();
    let stranger = other.layout().vault().operator().unwrap();
    let by = |key, manifest: &LogManifest| {
        let document = log_manifest::sign(key, manifest).unwrap();
        chain::manifest_leaf(&document)
    };
    // Heads that emitters had seen are those of the log with the first beginning.
    let events = naming_no_head(&cluster, &whole[1..]);
    let begun = |first: Vec<u8>| [&[first], &events[..]].concat();
    let mut altered = whole[0].clone();
    let at = altered.len() / 2;
    altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
    let older = TrustBundle {
        log_manifest: None,
        ..trust.clone()
    };
    let later = LogManifest {
        at: UnixMillis(manifest.at.get() + 1),
        ..manifest.clone()
    };
    for (name, trust, all) in [
        ("root", &trust, begun(by(&stranger, &manifest))),
        ("root-older", &older, begun(by(&stranger, &manifest))),
        ("altered", &trust, begun(altered.clone())),
        ("altered-older", &older, begun(altered)),
        ("later", &trust, begun(by(&owner, &later))),
        ("none", &trust, events.clone()),
    ] {
        machine(&cluster, name, trust, &all);
        let log = format!("{name}/log");
        for command in [&["verify"][..], &["head"], &["replay", "--summary"]] {
            let text = ends(&cluster, &of(name, &log, command), EXIT_TAMPERED).await;
            let code = Code::LogManifestFalse.to_string();
            assert!(text.contains(&code), "{name} {command:?}: {text}");
        }
        let pin = cluster.path(name).join("audit-head.pin");
        assert!(!pin.exists(), "{name}: nothing of it is pinned");
    }

    // A log that an earlier build has begun has none, and its trust bundle names none.
    machine(&cluster, "earlier", &older, &events);
    let text = ends(&cluster, &of("earlier", "earlier/log", &["verify"]), 0).await;
    let says = "has signed nothing in this log";
    assert!(
        text.contains(says) && !text.contains("entry 0 at"),
        "{text}"
    );

    // The owner has signed, and has not named all who speak: nobody can say who is right.
    let mut fewer = manifest.clone();
    fewer
        .emitters
        .retain(|named| named.role != EmitterRole::Coordinator);
    let heads = LogManifest {
        heads: vec![],
        ..manifest.clone()
    };
    let key = trust.audit_keys[0].as_str();
    for (name, manifest, unnamed) in [
        ("fewer", &fewer, key),
        ("heads", &heads, "the newest head is signed by a key"),
    ] {
        machine(&cluster, name, &older, &begun(by(&owner, manifest)));
        let log = format!("{name}/log");
        let text = ends(&cluster, &of(name, &log, &["verify"]), EXIT_NO_VERDICT).await;
        let code = Code::EmitterUnnamed.to_string();
        for part in [&code[..], "NOT NAMED", unnamed] {
            assert!(text.contains(part), "{name}: no {part:?} in {text}");
        }
    }

    // Without it the service signs nothing.
    let mut arguments = cluster.audit_arguments();
    arguments.extend(["--set", "audit.log_manifest=none.jws"].map(str::to_owned));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let refused = cluster
        .run_program("diloco-audit", &arguments, PATIENCE)
        .await;
    assert!(!refused.status.success());
    let missing = Code::LogManifestMissing.to_string();
    assert!(refused.stderr.contains(&missing), "{}", refused.stderr);
}

/// Policies are those of C2SP tlog-policy.
#[tokio::test]
async fn fg_07_the_owners_witnesses_are_asked_for_unless_a_verifier_asks_for_others() {
    let keys = [WitnessKey::generate(), WitnessKey::generate()];
    let names = ["first", "second"];
    let mut lines = String::new();
    for (key, name) in keys.iter().zip(names) {
        lines += &format!("witness {name} {}\n", key.witness(name).unwrap().text());
    }
    let both = format!("{lines}group both all first second\nquorum both\n");
    let options = Options {
        witnesses: Some(both.clone()),
        ..Options::default()
    };
    let mut cluster = Cluster::start(options, 0).await;
    cluster.kept().await;
    cluster.stop_well(&["audit"]).await;
    let document = fs::read_to_string(cluster.domain().layout().log_manifest()).unwrap();
    let manifest = log_manifest::open(&document, cluster.domain().trust()).unwrap();
    assert_eq!(manifest.witnesses, Some(both));
    // Nobody has seen the log, and the owner asks for two.
    let unwitnessed = Code::LogUnwitnessed.to_string();
    let text = ends(&cluster, &["audit", "verify"], EXIT_NO_VERDICT).await;
    assert!(text.contains(&unwitnessed), "{text}");
    for (key, name) in keys.iter().zip(names) {
        let file = cluster.path(name).display().to_string();
        key.seed().write(Path::new(&file)).unwrap();
        let head = format!("{name}.head");
        let cosign = ["audit", "cosign", name, "--key", &file, "--to", &head];
        ends(&cluster, &cosign, 0).await;
    }
    let one = ["audit", "verify", "--cosigned", "first.head"];
    let text = ends(&cluster, &one, EXIT_NO_VERDICT).await;
    assert!(text.contains(&unwitnessed), "one is not enough: {text}");
    let all = [&one[..], &["--cosigned", "second.head"]].concat();
    let (weaker, by) = (Code::PolicyWeaker.to_string(), "by first second");
    let text = ends(&cluster, &all, 0).await;
    assert!(text.contains(by) && !text.contains(&weaker), "{text}");
    // A verifier who asks for one of the two is told that this is less.
    let policy = cluster.path("policy");
    fs::write(&policy, format!("{lines}quorum first\n")).unwrap();
    let policy = policy.display().to_string();
    let text = ends(&cluster, &[&one[..], &["--policy", &policy]].concat(), 0).await;
    assert!(
        text.contains(&weaker) && text.contains("by first"),
        "{text}"
    );
    let text = ends(&cluster, &[&all[..], &["--policy", &policy]].concat(), 0).await;
    assert!(!text.contains(&weaker), "the owner's is met too: {text}");
}
