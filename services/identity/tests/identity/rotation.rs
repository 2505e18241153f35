//! New signing keys for roles: which tokens are valid before, during and after the overlap.

use std::fs;
use std::path::Path;

use identity::claims::UserClaims;
use identity::domain::LIFETIME_DEFAULT;
use identity::jwt::{Subject, mint, verify_chain};
use identity::rotation::NewKey;
use identity::server_config::ServerConfig;
use identity::{ConnectionKey, Domain, InitOptions, Issued, KeyKind, SigningKey};
use schemas::permission::Role;
use schemas::{Code, Millis, UnixMillis};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const LATER: UnixMillis = UnixMillis(1_700_000_060_000);

fn domain(scratch: &Path) -> Domain {
    Domain::init(&scratch.join(".diloco"), &InitOptions::default(), NOW).expect("an empty folder")
}

fn worker(domain: &Domain, name: &str, lifetime: Millis) -> Issued {
    let run = "demo".parse().expect("a name");
    let issued = domain.issue(Role::Worker, name, Some(&run), lifetime, NOW);
    issued.expect("a fresh name")
}

fn rotate(domain: &Domain) -> NewKey {
    let made = domain.make_role_key(Role::Worker);
    made.expect("the folder takes files");
    let adopted = domain.adopt_role_key(Role::Worker);
    adopted.expect("the folder takes files")
}

fn config(domain: &Domain) -> ServerConfig {
    let config = domain.server_config("", LATER);
    config.expect("all keys are there")
}

fn token_in(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("it is ours");
    let line = text.lines().find(|line| line.starts_with("eyJ"));
    line.expect("a token").to_owned()
}

/// Checks a user's token as the broker does.
fn accepts(domain: &Domain, token: &str, config: &ServerConfig) -> bool {
    let operator = config
        .auth
        .lines()
        .find(|line| line.starts_with("operator"));
    let operator = operator.and_then(|line| line.split('"').nth(1));
    let tenant = domain.tenant().expect("a name");
    let account = config.accounts.iter().find(|(id, _)| *id == tenant);
    let (account, operator) = (&account.expect("its own").1, operator.expect("a token"));
    let chain = verify_chain(token, account, operator, &domain.trust().domain, LATER);
    chain.is_ok_and(|chain| chain.role.as_deref() == Some("worker"))
}

#[test]
fn tl_30_a_token_of_the_old_key_is_void_after_the_overlap_and_of_the_new_one_valid_before() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let issued = worker(&domain, "w1", LIFETIME_DEFAULT);
    let file = &issued.credentials;
    let old = token_in(file);
    let folder = domain.layout().issuer();
    let stolen = SigningKey::read(KeyKind::Account, &folder.join("role-worker.nk"));
    let stolen = stolen.expect("it was made");
    let before = config(&domain);

    let keys = rotate(&domain);
    assert_eq!(keys.old, *stolen.public());
    let resigned = domain.resign_holders(Role::Worker, LATER);
    let resigned = resigned.expect("the folder takes files");
    let [holder] = &resigned.renewed[..] else {
        panic!("{resigned:?}");
    };
    assert_eq!(
        (&holder.public, holder.ends),
        (&issued.public, issued.expires)
    );
    let new = token_in(file);
    assert!(accepts(&domain, &old, &before) && !accepts(&domain, &new, &before));
    let during = config(&domain);
    assert!(accepts(&domain, &old, &during) && accepts(&domain, &new, &during));

    let gone = domain.retire(Role::Worker).expect("the folder is ours");
    assert_eq!(gone, [keys.old]);
    let after = config(&domain);
    assert!(!accepts(&domain, &old, &after) && accepts(&domain, &new, &after));
    // What the thief makes is void as well, also if it is dated ahead.
    let key = ConnectionKey::generate();
    let subject = Subject {
        name: "thief",
        key: key.public(),
        not_before: None,
        expires: None,
    };
    let claims = UserClaims::of_role(domain.tenant().expect("a name"), vec!["run:demo".into()]);
    let ahead = LATER.after(LIFETIME_DEFAULT);
    let forged = mint(&subject, claims, &stolen, ahead).expect("good claims");
    assert!(accepts(&domain, &forged, &during) && !accepts(&domain, &forged, &after));
    assert_eq!(domain.retire(Role::Worker).expect("nothing is left"), []);
}

#[test]
fn tl_30_who_is_revoked_or_ended_gets_no_token_of_the_new_key() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let revoked = worker(&domain, "revoked", LIFETIME_DEFAULT);
    let ended = worker(&domain, "ended", Millis::from_secs(10));
    let moved = worker(&domain, "moved", LIFETIME_DEFAULT);
    // The registrar renews it where it is.
    let renewed = worker(&domain, "renewed", Millis::from_secs(10));
    let other = domain.issue(Role::Operator, "operator", None, LIFETIME_DEFAULT, NOW);
    let other = other.expect("a fresh name");
    let tenant = domain.tenant().expect("a name");
    let revocation = domain.revoke(&tenant, &revoked.public, None, NOW);
    revocation.expect("the folder takes files");
    for elsewhere in [&moved, &renewed] {
        fs::remove_file(&elsewhere.credentials).expect("it was issued");
    }
    let read = || [&revoked, &ended, &other].map(|issued| token_in(&issued.credentials));
    let before = read();
    rotate(&domain);
    let resigned = domain.resign_holders(Role::Worker, LATER);
    let resigned = resigned.expect("the folder takes files");
    assert_eq!(resigned.renewed, []);
    let names: Vec<&str> = resigned.elsewhere.iter().map(|one| &*one.name).collect();
    assert_eq!(names, ["moved", "renewed"]);
    assert_eq!(read(), before);
    // Both come back with the keys that they have, and as nothing else.
    let run = "demo".parse().expect("a name");
    for old in [&revoked, &ended] {
        let name = old.credentials.file_stem().and_then(|name| name.to_str());
        let name = name.expect("a name");
        let back = domain.readmit(Role::Worker, name, Some(&run), LIFETIME_DEFAULT, LATER);
        assert_eq!(back.expect("it was a worker before").public, old.public);
        assert!(accepts(
            &domain,
            &token_in(&old.credentials),
            &config(&domain)
        ));
        let role = Role::Auditor;
        let other = domain.readmit(role, name, None, LIFETIME_DEFAULT, LATER);
        assert_eq!(other.expect_err("it is a worker").code(), Code::NameTaken);
    }
}

/// Nobody renews a provisioner, so one whose token has ended needs nothing from the rotation.
#[test]
fn tl_30_a_provisioner_elsewhere_is_named_until_its_token_ends() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let role = Role::Provisioner;
    let issued = domain.issue(role, "provisioner", None, Millis::from_secs(10), NOW);
    let issued = issued.expect("a fresh name");
    fs::remove_file(&issued.credentials).expect("it was issued");
    let named = |now| {
        let resigned = domain.resign_holders(role, now);
        resigned.expect("the folder takes files").elsewhere.len()
    };
    assert_eq!(named(UnixMillis(issued.expires.get() - 1)), 1);
    assert_eq!(named(issued.expires), 0);
}

/// A rotation that broke off is begun anew: no key that somebody has a token of is forgotten.
#[test]
fn tl_28_every_earlier_key_stays_valid_until_all_are_retired() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let issued = worker(&domain, "w1", LIFETIME_DEFAULT);
    let mut tokens = vec![token_in(&issued.credentials)];
    let mut old = Vec::new();
    for _ in 0..2 {
        old.push(rotate(&domain).old);
        domain
            .resign_holders(Role::Worker, LATER)
            .expect("the folder takes files");
        tokens.push(token_in(&issued.credentials));
    }
    let during = config(&domain);
    assert!(tokens.iter().all(|token| accepts(&domain, token, &during)));
    assert_eq!(
        domain.retire(Role::Worker).expect("the folder is ours"),
        old
    );
    let after = config(&domain);
    let valid: Vec<bool> = tokens
        .iter()
        .map(|token| accepts(&domain, token, &after))
        .collect();
    assert_eq!(valid, [false, false, true]);
}

#[test]
fn tl_30_the_account_knows_the_next_key_before_anything_is_signed_with_it() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let adopted = domain.adopt_role_key(Role::Worker);
    assert!(adopted.is_err(), "none was made");
    let made = domain.make_role_key(Role::Worker);
    made.expect("the folder takes files");
    let known = config(&domain);
    // Whatever ends the rotation here: issued is with the key that every broker knows.
    let issued = worker(&domain, "w1", LIFETIME_DEFAULT);
    let old = token_in(&issued.credentials);
    let adopted = domain.adopt_role_key(Role::Worker);
    adopted.expect("the folder takes files");
    let resigned = domain.resign_holders(Role::Worker, LATER);
    resigned.expect("the folder takes files");
    let new = token_in(&issued.credentials);
    assert_ne!(old, new);
    assert!(accepts(&domain, &old, &known) && accepts(&domain, &new, &known));
    let again = domain.adopt_role_key(Role::Worker);
    assert!(again.is_err(), "it is in its place");
}

/// Without the vault no account learns a key, so nothing is replaced.
#[test]
fn tl_28_a_key_is_not_replaced_where_the_vault_is_not() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let folder = domain.layout().folder();
    fs::rename(folder.join("vault"), scratch.path().join("away")).expect("it is ours");
    let made = domain.make_role_key(Role::Worker);
    assert_eq!(made.expect_err("no vault").code(), Code::VaultMissing);
    worker(&domain, "w1", LIFETIME_DEFAULT);
}
