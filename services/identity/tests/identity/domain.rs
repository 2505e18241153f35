//! A trust domain on disk: what is written, for whom, and what is refused.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use identity::claims::{AccountClaims, OperatorClaims};
use identity::domain::{DomainError, LIFETIME_DEFAULT, LIFETIME_MAX};
use identity::jwt::{verify, verify_chain};
use identity::tls::server_config;
use identity::{AuditKey, Credentials, Domain, InitOptions, ManifestKey, StoreKeys};
use schemas::permission::Role;
use schemas::{Code, Millis, RunId, UnixMillis};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn run() -> RunId {
    "demo".parse().expect("a name")
}

fn new_domain(scratch: &Path) -> Domain {
    Domain::init(&scratch.join(".diloco"), &InitOptions::default(), NOW).expect("an empty folder")
}

/// Every file and folder under `path`.
fn walk(path: &Path, visit: &mut impl FnMut(&Path)) {
    visit(path);
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("it is ours") {
            walk(&entry.expect("it is ours").path(), visit);
        }
    }
}

#[test]
fn everything_is_the_owners_alone_and_nothing_temporary_stays() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    for role in Role::ALL {
        let run = role.is_tenant().then(run);
        domain.issue(role, role.name(), run.as_ref(), LIFETIME_DEFAULT, NOW).expect("a fresh name");
    }
    domain.write_server_config(&scratch.path().join("generated"), NOW).expect("the folder takes files");
    let mut files = 0;
    for root in [".diloco", "generated"] {
        walk(&scratch.path().join(root), &mut |path| {
            let mode = fs::metadata(path).expect("it is ours").permissions().mode() & 0o777;
            let expected = if path.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode, expected, "{}", path.display());
            assert!(!path.to_string_lossy().contains(".init-"), "{}", path.display());
            files += usize::from(path.is_file());
        });
    }
    // 10 keys and one for each role, 4 of TLS, the store's keys, the bundle; credentials of each role and 2 audit keys; 2 of
    // configuration.
    let roles = Role::ALL.len();
    assert_eq!(files, 10 + roles + 4 + 1 + 1 + roles + 2 + 2);
    let layout = domain.layout();
    let trust = domain.trust();
    assert_eq!(trust.manifest_keys, [ManifestKey::read(&layout.manifest_key()).expect("a key").public().clone()]);
    assert_eq!(trust.audit_keys, [AuditKey::read(&layout.coordinator_audit_key()).expect("a key").public().clone()]);
    assert_eq!(trust.ca, layout.ca());
    assert!(StoreKeys::read(&layout.store_keys()).is_ok());
}

#[test]
fn a_domain_is_never_overwritten() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folder = scratch.path().join(".diloco");
    assert_eq!(Domain::open(&folder).expect_err("none yet").code(), Code::DomainMissing);
    let domain = new_domain(scratch.path());
    let again = Domain::init(&folder, &InitOptions::default(), NOW).expect_err("there is one");
    assert_eq!(again.code(), Code::DomainExists);
    assert_eq!(Domain::open(&folder).expect("still the first").trust(), domain.trust());
    // A crash between the moves leaves a folder without the bundle: no domain, and not one to write over.
    fs::remove_file(domain.layout().trust()).expect("it is ours");
    assert!(matches!(Domain::open(&folder), Err(DomainError::Missing(_))));
    assert!(matches!(Domain::init(&folder, &InitOptions::default(), NOW), Err(DomainError::Unfinished(_))));
}

#[test]
fn a_failed_init_leaves_nothing() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folder = scratch.path().join(".diloco");
    let options = InitOptions { server_names: vec!["not a host\u{e9}".into()] };
    let error = Domain::init(&folder, &options, NOW).expect_err("no certificate carries that");
    assert_eq!(error.code(), Code::CertificateInvalid);
    assert_eq!(fs::read_dir(&folder).expect("it was made").count(), 0);
    assert!(Domain::init(&folder, &InitOptions::default(), NOW).is_ok(), "and the next one succeeds");
}

#[test]
fn other_files_in_the_folder_do_not_matter() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    fs::create_dir_all(scratch.path().join(".diloco/logs")).expect("it is ours");
    assert_eq!(new_domain(scratch.path()).layout().folder(), scratch.path().join(".diloco"));
}

#[test]
fn issued_tokens_stand_in_the_chain_that_the_broker_gets() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let auth = domain.server_config(NOW).expect("all keys are there").auth;
    let tokens: Vec<&str> = auth.split('"').filter(|part| part.starts_with("eyJ")).collect();
    let operator = tokens.iter().find(|token| verify::<OperatorClaims>(token, NOW).is_ok()).expect("an operator");
    let account = |id: &str| {
        let about = |token: &&&str| verify::<AccountClaims>(token, NOW).is_ok_and(|jwt| jwt.subject.as_str() == id);
        tokens.iter().find(about).expect("an account")
    };
    for role in Role::ALL {
        let run = role.is_tenant().then(run);
        let issued = domain.issue(role, role.name(), run.as_ref(), LIFETIME_DEFAULT, NOW).expect("a fresh name");
        let text = fs::read_to_string(&issued.credentials).expect("it is ours");
        let user = text.lines().find(|line| line.starts_with("eyJ")).expect("a token");
        let home = domain.account(role.account()).expect("a key");
        let chain = verify_chain(user, account(home.as_str()), operator, &domain.trust().domain, NOW).expect("a chain");
        assert_eq!(chain.role.as_deref(), Some(role.name()));
        assert_eq!(chain.user.expires, Some(NOW.after(LIFETIME_DEFAULT)));
        assert_eq!(chain.user.subject, issued.public);
        assert_eq!(chain.user.claims.tags, if role.is_tenant() { vec!["run:demo"] } else { vec![] });
        let emits = matches!(role, Role::Worker | Role::Auditor | Role::Coordinator);
        assert_eq!(issued.audit_key.is_some(), emits);
        if let Some(path) = issued.audit_key {
            assert_ne!(AuditKey::read(&path).expect("a key").public(), &issued.public, "never the connection key");
        }
    }
}

#[test]
fn issuing_again_renews_and_keeps_the_keys() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let issue = |lifetime, now| domain.issue(Role::Worker, "w1", Some(&run()), lifetime, now).expect("the same holder");
    let first = issue(Millis::from_secs(60), NOW);
    let audit = AuditKey::read(first.audit_key.as_deref().expect("workers emit")).expect("a key");
    let second = issue(Millis::from_secs(3600), NOW.after(Millis(30_500)));
    assert_eq!((first.public, first.credentials), (second.public, second.credentials.clone()));
    assert_eq!(second.expires, UnixMillis(NOW.get() + 3_630_000));
    let again = AuditKey::read(second.audit_key.as_deref().expect("workers emit")).expect("a key");
    assert_eq!(again.public(), audit.public());
    let credentials = Credentials::read(&second.credentials).expect("it is ours");
    assert_eq!(credentials.token().expires, Some(second.expires));
}

#[test]
fn a_renewed_server_certificate_is_of_the_same_authority() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let layout = domain.layout();
    let read = |path: &Path| fs::read_to_string(path).expect("it is ours");
    let (ca, old) = (read(&layout.ca()), read(&layout.server_certificate()));
    let config = domain.server_config(NOW).expect("all keys are there").tls;
    domain.renew_server_certificate(&["nats.example".into()], NOW).expect("its own authority");
    assert_eq!(read(&layout.ca()), ca);
    assert_ne!(read(&layout.server_certificate()), old);
    assert!(server_config(&layout.server_certificate(), &layout.server_key()).is_ok(), "certificate and key fit");
    assert_eq!(domain.server_config(NOW).expect("all keys are there").tls, config, "under the same paths");
}

#[test]
fn names_runs_and_lifetimes_are_checked_before_anything_is_written() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let run = run();
    let day = Millis::from_secs(24 * 3600);
    for name in ["", "*", "../w1", "a.b", "a/b", ">"] {
        let error = domain.issue(Role::Worker, name, Some(&run), day, NOW).expect_err("no such name");
        assert_eq!(error.code(), Code::ConfigInvalid, "{name}");
    }
    assert!(matches!(domain.issue(Role::Worker, "w1", None, day, NOW), Err(DomainError::Run { .. })));
    assert!(matches!(domain.issue(Role::Auditor, "a", Some(&run), day, NOW), Err(DomainError::Run { .. })));
    for lifetime in [Millis(0), Millis(999), LIFETIME_MAX.next()] {
        assert!(matches!(domain.issue(Role::Worker, "w1", Some(&run), lifetime, NOW), Err(DomainError::Lifetime(_))));
    }
    assert_eq!(fs::read_dir(domain.layout().folder().join("credentials")).expect("it is ours").count(), 0);
    domain.issue(Role::Worker, "w1", Some(&run), day, NOW).expect("a fresh name");
    let other: RunId = "other".parse().expect("a name");
    for (role, run) in [(Role::Worker, Some(&other)), (Role::Auditor, None)] {
        assert_eq!(domain.issue(role, "w1", run, day, NOW).expect_err("taken").code(), Code::NameTaken);
    }
}

#[test]
fn nothing_that_can_be_printed_holds_a_seed() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let issued = domain.issue(Role::Worker, "w1", Some(&run()), LIFETIME_DEFAULT, NOW).expect("a fresh name");
    let config = domain.server_config(NOW).expect("all keys are there");
    let keys = StoreKeys::read(&domain.layout().store_keys()).expect("it is ours");
    let trust = fs::read_to_string(domain.layout().trust()).expect("it is ours");
    let printed = format!("{domain:?} {issued:?} {config:?} {keys:?} {trust}");
    let mut seeds = 0;
    for folder in ["keys", "audit-keys"] {
        walk(&domain.layout().folder().join(folder), &mut |path| {
            if path.is_file() {
                let seed = fs::read_to_string(path).expect("it is ours");
                assert!(!printed.contains(seed.trim_end()), "{}", path.display());
                seeds += 1;
            }
        });
    }
    assert_eq!(seeds, 10 + Role::ALL.len() + 1);
    assert!(!printed.contains(keys.admin.expose_secret()));
}
