//! Vault, issuer and the list of issued credentials: what works without the vault, and what is not
//! issued any more.

use std::fs;
use std::path::Path;

use identity::domain::LIFETIME_DEFAULT;
use identity::key::public_bytes;
use identity::{Credentials, Domain, InitOptions, Issuer, KeyKind, ManifestKey, SigningKey, jws};
use schemas::account::Account;
use schemas::lease::MANIFEST_TYPE;
use schemas::permission::Role;
use schemas::{Code, RunId, UnixMillis};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn run() -> RunId {
    "demo".parse().expect("a name")
}

fn new_domain(scratch: &Path) -> Domain {
    Domain::init(&scratch.join(".diloco"), &InitOptions::default(), NOW).expect("an empty folder")
}

/// The vault may lie offline: nothing that runs needs it, and what is issued every day does not
/// either.
#[test]
fn tl_06_without_the_vault_the_issuer_still_issues_and_nothing_else_does() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let folder = domain.layout().folder().to_owned();
    fs::rename(folder.join("vault"), scratch.path().join("offline")).expect("it is ours");
    assert!(!domain.has_vault());
    let issuer = Issuer::open(&domain.layout().issuer()).expect("it needs nothing else");
    assert_eq!(*issuer.domain(), domain.trust().domain);
    for role in Role::ALL {
        let run = role.is_tenant().then(run);
        let issued = domain.issue(role, role.name(), run.as_ref(), LIFETIME_DEFAULT, NOW);
        assert_eq!(
            issuer.public(role).is_some(),
            role.is_renewable(),
            "{role:?}"
        );
        if !role.is_signed_online() {
            let error = issued.expect_err("its key is in the vault");
            assert_eq!(error.code(), Code::VaultMissing, "{error}");
            continue;
        }
        let issued = issued.expect("its key is in the issuer's folder");
        if !role.is_renewable() {
            continue;
        }
        let record = domain.layout().issued().find(&issued.public);
        let record = record.expect("it is whole").expect("it was written");
        let later = NOW.after(LIFETIME_DEFAULT).after(LIFETIME_DEFAULT);
        let token = issuer.sign(&record, later, NOW).expect("a renewed token");
        let old = Credentials::read(&issued.credentials).expect("they are there");
        assert!(
            old.renewed(token).is_ok(),
            "{role:?}: the same, with a later end"
        );
        let mut elsewhere = record.clone();
        elsewhere.account = domain.account(Account::Audit).expect("a name");
        assert!(issuer.sign(&elsewhere, later, NOW).is_err(), "{role:?}");
    }
    let error = domain
        .server_config("", NOW)
        .expect_err("the operator signs accounts");
    assert_eq!(error.code(), Code::VaultMissing);
    let error = domain
        .renew_server_certificate(&[], NOW)
        .expect_err("so does the authority");
    assert_eq!(error.code(), Code::VaultMissing);
    assert!(
        domain.accounts().is_ok() && domain.tenant().is_ok(),
        "names are public"
    );
    // Nothing in the issuer's folder is a key of the operator or of an account.
    let names = fs::read_dir(domain.layout().issuer()).expect("it is there");
    for name in names.map(|entry| entry.expect("it is ours").file_name()) {
        let name = name.to_string_lossy().into_owned();
        assert!(
            name == "accounts.json" || name.starts_with("role-"),
            "{name}"
        );
        assert!(!name.contains("provisioner"), "{name}");
    }
    fs::remove_file(domain.layout().issuer().join("role-auditor.nk")).expect("it was there");
    let error = Issuer::open(&domain.layout().issuer()).expect_err("a key is missing");
    assert!(
        error.code() == Code::IssuerInvalid && error.to_string().contains("auditor"),
        "{error}"
    );
}

#[test]
fn a_blocked_name_is_not_issued_again() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let issue = |name| domain.issue(Role::Worker, name, Some(&run()), LIFETIME_DEFAULT, NOW);
    let first = issue("w1").expect("a fresh name");
    issue("w1").expect("it is renewed");
    let list = domain.layout().issued();
    list.block(&first.public, NOW).expect("it is ours");
    let error = issue("w1").expect_err("the key is blocked");
    assert_eq!(error.code(), Code::HolderBlocked);
    let record = list.find(&first.public).expect("it is ours");
    assert_eq!(
        record.and_then(|record| record.blocked),
        Some(NOW),
        "and stays so"
    );
    assert!(issue("w2").is_ok());
}

/// The registrar's machine signs tokens. None of its keys, in whichever of their forms, is one that
/// events, leases, heads or accounts are checked with.
#[test]
fn tl_06_no_key_that_lies_online_signs_an_event_or_a_lease() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let trust = domain.trust();
    let named = [
        &trust.audit_keys[..],
        &trust.sentry_keys,
        &trust.manifest_keys,
        std::slice::from_ref(&trust.domain),
    ];
    let mut counts: Vec<[u8; 32]> = trust.raw_head_keys();
    counts.extend(
        named
            .concat()
            .iter()
            .map(|key| public_bytes(key).expect("a key")),
    );
    assert!(counts.len() > 4, "{}", counts.len());
    let mut tried = 0;
    for role in Role::ALL {
        let path = Issuer::key(&domain.layout().issuer(), role);
        if !path.exists() {
            continue;
        }
        let signer = SigningKey::read(KeyKind::Account, &path).expect("a signing key");
        let public = public_bytes(signer.public()).expect("a key");
        assert!(!counts.contains(&public), "{role:?}");
        // As a lease, whose form does not come into it: the signature is looked at first.
        let thief = ManifestKey::read(&path).expect("a key of the same kind");
        let lease = thief.sign_document(MANIFEST_TYPE, &serde_json::json!({}));
        let lease = lease.expect("it is short");
        let read = jws::verify::<serde_json::Value>(&lease, MANIFEST_TYPE, trust);
        let error = read.expect_err("no key of a lease");
        assert_eq!(error.code(), Code::SignatureInvalid, "{role:?}: {error}");
        tried += 1;
    }
    assert!(tried > 4, "{tried}");
}
