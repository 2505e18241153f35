//! Tests of faults in a configuration: each is reported with a code and the key, before anything is
//! connected (LA-02, LA-05).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use diloco_worker::config::{Checked, WorkerConfig};
use identity::{AuditKey, ManifestKey};
use runtime::config::load_from;
use runtime::{ConfigArgs, Failure, clock};
use schemas::Code;

fn check(set: &[String]) -> Result<Checked, Failure> {
    let args = ConfigArgs {
        set: set.to_vec(),
        ..ConfigArgs::default()
    };
    let loaded = load_from::<WorkerConfig>(&args, &[], std::iter::empty())?;
    Checked::new(loaded, clock::now())
}

fn open(folder: &Path) -> Vec<String> {
    let key = folder.join("audit.seed");
    AuditKey::generate()
        .seed()
        .write(&key)
        .expect("a fresh folder takes files");
    vec![
        "auth.require_auth=false".to_owned(),
        "worker.run=demo".to_owned(),
        "training.trainers=[\"reference\"]".to_owned(),
        format!("worker.audit_key={}", key.display()),
    ]
}

fn fails(set: &[String], code: Code, names: &str) {
    let failure = check(set).expect_err(names);
    assert_eq!(failure.code(), code, "{failure}");
    assert!(
        failure.to_string().contains(names),
        "{failure} does not name {names}"
    );
}

#[test]
fn without_credentials_nothing_starts() {
    let failure = check(&["worker.run=demo".to_owned()]).expect_err("the umbrella is on");
    assert_eq!(failure.code(), Code::CredentialMissing);
    let text = failure.to_string();
    for key in [
        "bus.credentials",
        "bus.ca",
        "store.ca",
        "worker.trust",
        "worker.audit_key",
    ] {
        assert!(text.contains(key), "{key} in {text}");
    }
}

#[test]
fn wrong_values_are_named() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let with = |extra: &str| [open(scratch.path()), vec![extra.to_owned()]].concat();
    fails(&with("worker.run="), Code::ConfigInvalid, "worker.run");
    fails(
        &with("worker.run=Not A Name"),
        Code::ConfigInvalid,
        "worker.run",
    );
    fails(
        &with("training.threads=0"),
        Code::ConfigInvalid,
        "training.threads",
    );
    fails(
        &with("training.threads=many"),
        Code::ConfigInvalid,
        "training.threads",
    );
    fails(
        &with("training.trainers=[\"quantum\"]"),
        Code::ConfigInvalid,
        "quantum",
    );
    fails(
        &with("cache.limit=lots"),
        Code::ConfigInvalid,
        "cache.limit",
    );
    fails(&with("worker.rum=demo"), Code::ConfigInvalid, "rum");
    fails(
        &open(scratch.path()),
        Code::CredentialMissing,
        "worker.trust",
    );
    fails(
        &with("worker.trust=/nowhere/trust.json"),
        Code::CredentialUnreadable,
        "trust",
    );
    if !cfg!(feature = "torch") {
        fails(
            &with("training.trainers=[\"torch\"]"),
            Code::TrainerMissing,
            "training.trainers",
        );
    }
}

#[test]
fn a_malformed_credential_is_an_error_at_start() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut set = open(scratch.path());
    let path = scratch.path().join("user.creds");
    identity::secret::write_private(&path, b"not a credentials file").expect("written");
    set.push(format!("bus.credentials={}", path.display()));
    fails(&set, Code::CredentialMalformed, "bus.credentials");
}

/// A worker transfers only through URLs that it was granted, so its configuration has no place for
/// a key of the store.
#[test]
fn tl_20_a_worker_takes_no_key_of_the_store() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    for key in ["store.keys", "store.access_key", "store.secret"] {
        let set = [open(scratch.path()), vec![format!("{key}=x")]].concat();
        fails(&set, Code::ConfigInvalid, key.trim_start_matches("store."));
    }
}

/// The umbrella `require_auth` is off here: the files that decide which leases are followed are
/// checked in any case.
#[test]
fn tl_12_keys_and_trust_come_from_files_that_only_their_owner_can_change() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let path = scratch.path().join("trust.json");
    let bundle = kit::trust(
        ManifestKey::generate().public(),
        AuditKey::generate().public(),
    );
    bundle.write(&path).expect("written");
    let set = [
        open(scratch.path()),
        vec![format!("worker.trust={}", path.display())],
    ]
    .concat();
    assert_eq!(
        check(&set).expect("it is all there").trust.manifest_keys,
        bundle.manifest_keys
    );
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours")
    };
    mode(&path, 0o666);
    fails(&set, Code::CredentialExposed, "trust.json");
    mode(&path, 0o600);
    mode(&scratch.path().join("audit.seed"), 0o640);
    fails(&set, Code::CredentialExposed, "audit.seed");
}

#[test]
fn a_time_to_a_head_that_cannot_be_kept_is_refused() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let with = |within: &str| {
        let mut set = open(folder.path());
        set.push(format!("worker.receipt_within={within}"));
        set
    };
    for within in ["19s", "25h", "0s"] {
        fails(&with(within), Code::ConfigInvalid, "worker.receipt_within");
    }
    for within in ["20s", "1day"] {
        // These settings lack a trust bundle, which is looked for afterwards.
        fails(&with(within), Code::CredentialMissing, "worker.trust");
    }
}
