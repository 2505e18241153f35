//! A domain of an earlier release, whose auditors connected to the account of the copy, is taken
//! over when the broker's configuration is written.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use identity::claims::UserClaims;
use identity::domain::LIFETIME_DEFAULT;
use identity::jwt::{Subject, mint};
use identity::{
    AccessKey, ConnectionKey, Credentials, Domain, HeadKey, InitOptions, Issuer, KeyKind,
    SigningKey, StoreKeys, log_manifest,
};
use schemas::account::Account;
use schemas::log_manifest::EmitterRole;
use schemas::permission::Role;
use schemas::{AccountId, Code, PublicKey, UnixMillis};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const LATER: UnixMillis = UnixMillis(1_700_000_060_000);

/// A domain as the earlier release made it, with two auditors and an operator.
fn older(scratch: &Path) -> Domain {
    let domain = Domain::init(&scratch.join(".diloco"), &InitOptions::default(), NOW);
    let domain = domain.expect("an empty folder");
    let layout = domain.layout();
    let signer = SigningKey::read(KeyKind::Account, &layout.issuer().join("role-auditor.nk"));
    let signer = signer.expect("it was made");
    let copy = domain.account(Account::Audit).expect("a key");
    for name in ["auditor", "second"] {
        let key = ConnectionKey::generate();
        let subject = Subject {
            name,
            key: key.public(),
            not_before: None,
            expires: Some(NOW.after(LIFETIME_DEFAULT)),
        };
        let claims = UserClaims::of_role(copy.clone(), vec![]);
        let token = mint(&subject, claims, &signer, NOW).expect("a name");
        let credentials = Credentials::new(token, key).expect("they fit");
        let written = credentials.write(&layout.credentials(name));
        written.expect("the folder takes files");
    }
    let issued = domain.issue(Role::Operator, "operator", None, LIFETIME_DEFAULT, NOW);
    issued.expect("a fresh name");
    one_folder_of_keys(layout.folder());
    domain
}

/// Puts all keys into the one folder in which earlier releases kept them, without those that they
/// did not have.
fn one_folder_of_keys(folder: &Path) {
    let keys = folder.join("keys");
    for part in ["vault", "issuer"] {
        for entry in fs::read_dir(folder.join(part)).expect("it is there") {
            let path = entry.expect("it is ours").path();
            let name = path.file_name().expect("a file");
            let to = match name.to_str() {
                Some("ca.key") => folder.join("tls/ca.key"),
                _ => keys.join(name),
            };
            fs::rename(&path, to).expect("it is ours");
        }
    }
    for part in ["vault", "issuer", "issued"] {
        fs::remove_dir_all(folder.join(part)).expect("it is ours");
    }
    for new in [
        "account-readers.nk",
        "account-registrar.nk",
        "role-registrar.nk",
        "role-account-writer.nk",
        "account-enrolment.nk",
        "role-newcomer.nk",
        "accounts.json",
    ] {
        fs::remove_file(keys.join(new)).expect("it was made");
    }
}

/// The key, the account and the end of an auditor's credentials.
fn auditor(domain: &Domain, name: &str) -> (PublicKey, AccountId, Option<UnixMillis>) {
    let read = Credentials::read(&domain.layout().credentials(name)).expect("they are there");
    let token = read.token();
    let account = token.claims.issuer_account.clone();
    let account = account.expect("a role's key signed it");
    (read.public().clone(), account, token.expires)
}

#[test]
fn an_older_domain_gets_an_account_for_readers_and_its_auditors_tokens_for_it() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = older(scratch.path());
    let names = ["auditor", "second"];
    let before = names.map(|name| auditor(&domain, name));
    let operator = || fs::read(domain.layout().credentials("operator")).expect("it is there");
    let (generated, untouched) = (scratch.path().join("generated"), operator());

    let issued = domain.issue(Role::Auditor, "third", None, LIFETIME_DEFAULT, LATER);
    let refused = issued.expect_err("the broker would not take it").code();
    assert_eq!(refused, Code::ReadersBehind);

    let written = domain.write_server_config(&generated, LATER);
    written.expect("all other keys are there");
    let readers = domain.account(Account::Readers).expect("a key");
    let auth = fs::read_to_string(generated.join("auth.conf")).expect("it was written");
    assert!(auth.contains(readers.as_str()), "the broker knows it");
    for (name, (key, copy, expires)) in names.iter().zip(before) {
        assert_ne!(copy, readers);
        assert_eq!(auditor(&domain, name), (key, readers.clone(), expires));
    }
    assert_eq!(operator(), untouched);
    let issued = domain.issue(Role::Auditor, "third", None, LIFETIME_DEFAULT, LATER);
    issued.expect("as in a new domain");
}

/// Every key goes to its new place, also if the first attempt broke off, and the registrar can
/// renew what was issued before there was one.
#[test]
fn an_older_domain_gets_a_vault_an_issuer_and_a_list_of_what_was_issued() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = older(scratch.path());
    let folder = domain.layout().folder().to_owned();
    let error = domain
        .tenant()
        .expect_err("the names of accounts are not there");
    assert_eq!(error.code(), Code::ReadersBehind);
    let error = domain
        .renew_server_certificate(&[], NOW)
        .expect_err("the key is elsewhere");
    assert_eq!(error.code(), Code::ReadersBehind);
    // As a first attempt leaves it.
    fs::create_dir(folder.join("vault")).expect("it is ours");
    let key = "account-control.nk";
    fs::rename(
        folder.join("keys").join(key),
        folder.join("vault").join(key),
    )
    .expect("it is ours");
    assert!(domain.has_vault());
    let written = domain.write_server_config(&scratch.path().join("generated"), LATER);
    written.expect("all other keys are there");
    let left = fs::read_dir(folder.join("keys")).expect("it is there");
    let mut left: Vec<_> = left
        .map(|entry| entry.expect("it is ours").file_name())
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            "audit-head.nk",
            "coordinator-audit.nk",
            "manifest.nk",
            "sentry.nk"
        ]
    );
    assert!(!folder.join("tls/ca.key").exists());
    domain
        .renew_server_certificate(&[], LATER)
        .expect("as in a new domain");
    let issuer = Issuer::open(&domain.layout().issuer()).expect("it is whole");
    let records = domain.layout().issued().all().expect("they were written");
    let names: Vec<&str> = records.iter().map(|record| record.name.as_str()).collect();
    assert_eq!(names, ["auditor", "operator", "second"]);
    for record in &records {
        let expected = match record.name.as_str() {
            "operator" => Role::Operator,
            _ => Role::Auditor,
        };
        assert_eq!(record.role, expected, "{record:?}");
        let later = LATER.after(LIFETIME_DEFAULT);
        let token = issuer.sign(record, later, LATER).expect("a renewed token");
        let old = Credentials::read(&domain.layout().credentials(&record.name));
        assert!(old.expect("they are there").renewed(token).is_ok());
    }
    let issued = domain.issue(Role::Registrar, "registrar", None, LIFETIME_DEFAULT, LATER);
    issued.expect("its key was made");
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).expect("it is ours");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("it is ours");
}

/// It may be an auditor's, whose token the broker would refuse.
#[test]
fn credentials_that_cannot_be_read_stop_the_take_over() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = older(scratch.path());
    let second = domain.layout().credentials("second");
    fs::set_permissions(&second, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let written = domain.write_server_config(&scratch.path().join("generated"), NOW);
    let error = written.expect_err("others can read it").to_string();
    assert!(
        error.contains("second") && error.contains("0644"),
        "{error}"
    );
}

#[test]
fn a_domain_that_was_taken_over_stays_as_it_is() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = older(scratch.path());
    let foreign = domain.layout().credentials("foreign");
    write_private(&foreign, "no credentials");
    let write = |now| {
        let written = domain.write_server_config(&scratch.path().join("generated"), now);
        written.expect("all keys are there");
    };
    let bytes = || {
        let files = ["auditor", "second", "operator", "foreign"];
        files.map(|name| fs::read(domain.layout().credentials(name)).expect("it is there"))
    };
    write(NOW);
    let (account, taken) = (domain.account(Account::Readers), bytes());
    write(LATER);
    assert_eq!(bytes(), taken);
    let again = domain.account(Account::Readers);
    assert_eq!(again.expect("a key"), account.expect("a key"));
}

#[test]
fn tl_04_an_older_domain_gets_an_auditors_key_to_its_store_once() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = older(scratch.path());
    let layout = domain.layout();
    let (all, own) = (layout.store_keys(), layout.store_auditor_key());
    let log = layout.store_log_key();
    let mut keys = StoreKeys::read(&all).expect("it was made");
    (keys.audit, keys.log) = (None, None);
    keys.write(&all).expect("the folder takes files");
    fs::remove_file(&own).expect("it was made");
    fs::remove_file(&log).expect("it was made");
    let coordinators = layout.store_coordinator_keys();
    fs::remove_file(&coordinators).expect("it was made");
    assert_eq!(layout.coordinators_store_keys(), all, "as it was before");
    let id = || AccessKey::read_auditors(&own).map(|key| key.id().to_owned());
    let log_id = || AccessKey::read_log(&log).map(|key| key.id().to_owned());
    assert!(
        domain
            .give_auditors_store_key()
            .expect("the files are ours")
    );
    let first = id().expect("it was written");
    let kept = StoreKeys::read(&all).expect("it was written");
    assert_eq!(kept.admin.id(), keys.admin.id());
    assert_eq!(kept.audit.expect("it was added").id(), first);
    let first_log = log_id().expect("it was written");
    assert_eq!(kept.log.expect("it was added").id(), first_log);
    assert_eq!(layout.coordinators_store_keys(), coordinators);
    let kept = StoreKeys::read(&coordinators).expect("it was written");
    assert_eq!(kept.admin.id(), keys.admin.id());
    assert!(kept.log.is_none() && kept.audit.is_none());
    // Keys that were exchanged since then.
    let other = StoreKeys::generate().of_coordinator();
    other.write(&coordinators).expect("the folder takes files");
    domain
        .give_auditors_store_key()
        .expect("the files are ours");
    let kept = StoreKeys::read(&coordinators).expect("it was written");
    assert_eq!(kept.admin.id(), keys.admin.id());
    // A second call changes nothing, and makes up for a first one that broke off.
    for _ in 0..2 {
        assert!(
            !domain
                .give_auditors_store_key()
                .expect("the files are ours")
        );
        assert_eq!(id().expect("it is there"), first);
        assert_eq!(log_id().expect("it is there"), first_log);
        fs::remove_file(&own).expect("it was there");
        fs::remove_file(&log).expect("it was there");
    }
}

/// The bundle as the release before this one wrote it.
fn without_head_key(domain: &Domain) {
    let (trust, key) = (domain.layout().trust(), domain.layout().head_key());
    let text = fs::read_to_string(&trust).expect("it was made");
    let mut value: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    value["v"] = 2.into();
    value
        .as_object_mut()
        .expect("an object")
        .remove("head_keys");
    let fields = value.as_object_mut().expect("an object");
    fields.remove("log_manifest");
    write_private(&trust, &value.to_string());
    fs::remove_file(key).expect("it was made");
    fs::remove_file(domain.layout().log_manifest()).expect("it was made");
}

#[test]
fn tl_03_an_older_domain_gets_a_key_for_tree_heads_once() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let made = older(scratch.path());
    without_head_key(&made);
    let folder = made.layout().folder().to_owned();
    let open = || Domain::open(&folder).expect("the bundle is one");
    let before = open();
    assert!(before.trust().head_keys.is_empty());
    let mut keys = Vec::new();
    for now in [NOW, LATER] {
        let written = before.write_server_config(&scratch.path().join("generated"), now);
        written.expect("all other keys are there");
        keys.push(open().trust().head_keys.clone());
    }
    assert_eq!(keys[0], keys[1], "a second time changes nothing");
    let key = HeadKey::read(&made.layout().head_key()).expect("it was made");
    assert_eq!(keys[0], [key.public().clone()]);
    let trust = open().trust().clone();
    let manifest = log_manifest::read(&made.layout().log_manifest(), &trust);
    let manifest = log_manifest::open(&manifest.expect("it was made"), &trust);
    let manifest = manifest.expect("the owner has signed it");
    assert_eq!(manifest.heads, keys[0]);
    let sentry = EmitterRole::Sentry;
    assert!(manifest.names(&trust.sentry_keys[0], sentry), "all keys");
    let (was, is) = (before.trust(), open());
    assert_eq!(
        (&was.ca, &was.audit_keys),
        (&is.trust().ca, &is.trust().audit_keys)
    );
    // A take-over that broke off before the bundle was written goes on with the key that it made.
    without_head_key(&made);
    key.seed()
        .write(&made.layout().head_key())
        .expect("the folder takes files");
    let written = before.write_server_config(&scratch.path().join("generated"), LATER);
    written.expect("all keys are there");
    assert_eq!(open().trust().head_keys, keys[0]);
}

/// The log of such a domain has begun, and a log gets no other beginning.
#[test]
fn fg_07_a_domain_with_a_key_for_heads_gets_no_log_manifest_afterwards() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let made = older(scratch.path());
    let (trust, manifest) = (made.layout().trust(), made.layout().log_manifest());
    let text = fs::read_to_string(&trust).expect("it was made");
    let mut value: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let fields = value.as_object_mut().expect("an object");
    fields.remove("log_manifest").expect("a new domain has one");
    fields.remove("sentry_keys").expect("a new domain has some");
    write_private(&trust, &value.to_string());
    fs::remove_file(&manifest).expect("it was made");
    let domain = Domain::open(made.layout().folder()).expect("the bundle is one");
    let written = domain.write_server_config(&scratch.path().join("generated"), LATER);
    written.expect("all other keys are there");
    let after = Domain::open(made.layout().folder()).expect("the bundle is one");
    assert_eq!(after.trust().sentry_keys.len(), 1, "it is taken over");
    assert_eq!(after.trust().log_manifest, None);
    assert!(!manifest.exists());
}
