//! A domain of an earlier release, whose auditors connected to the account of the copy, is taken
//! over when the broker's configuration is written.

use std::fs;
use std::path::Path;

use identity::claims::UserClaims;
use identity::domain::LIFETIME_DEFAULT;
use identity::jwt::{Subject, mint};
use identity::{ConnectionKey, Credentials, Domain, InitOptions, KeyKind, SigningKey};
use schemas::account::Account;
use schemas::permission::Role;
use schemas::{AccountId, Code, PublicKey, UnixMillis};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const LATER: UnixMillis = UnixMillis(1_700_000_060_000);

/// A domain as the earlier release made it, with two auditors and an operator.
fn older(scratch: &Path) -> Domain {
    let domain = Domain::init(&scratch.join(".diloco"), &InitOptions::default(), NOW);
    let domain = domain.expect("an empty folder");
    let layout = domain.layout();
    let keys = layout.folder().join("keys");
    fs::remove_file(keys.join("account-readers.nk")).expect("it was made");
    let signer = SigningKey::read(KeyKind::Account, &keys.join("role-auditor.nk"));
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
    domain
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

#[test]
fn a_domain_that_was_taken_over_stays_as_it_is() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = older(scratch.path());
    let foreign = domain.layout().credentials("foreign");
    fs::write(&foreign, "no credentials").expect("it is ours");
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
