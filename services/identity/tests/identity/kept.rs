//! What a trust domain keeps about its holders, and what it does when a part of that is missing or
//! old.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use identity::claims::{AccountClaims, AccountKey};
use identity::domain::LIFETIME_DEFAULT;
use identity::jwt::verify;
use identity::{ConnectionKey, CredentialSource, Credentials, Domain, InitOptions, Issued, Issuer};
use schemas::account::Account;
use schemas::permission::Role;
use schemas::{Code, RunId, UnixMillis};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const LATER: UnixMillis = UnixMillis(1_700_000_060_000);

fn new_domain(scratch: &Path) -> Domain {
    Domain::init(&scratch.join(".diloco"), &InitOptions::default(), NOW).expect("an empty folder")
}

fn run() -> RunId {
    "demo".parse().expect("a name")
}

fn worker(domain: &Domain, name: &str) -> Issued {
    let issued = domain.issue(Role::Worker, name, Some(&run()), LIFETIME_DEFAULT, NOW);
    issued.expect("a fresh name")
}

/// Credentials with a later token for the same key.
fn renewed(domain: &Domain, issued: &Issued) -> Credentials {
    let issuer = Issuer::open(&domain.layout().issuer()).expect("it was made");
    let record = domain.layout().issued().find(&issued.public);
    let record = record.expect("it is whole").expect("it was written");
    let ends = issued.expires.after(LIFETIME_DEFAULT);
    let token = issuer.sign(&record, ends, LATER).expect("a good record");
    let old = Credentials::read(&issued.credentials).expect("they are there");
    old.renewed(token).expect("the same, with a later end")
}

#[test]
fn tl_28_renewed_credentials_are_in_the_file_for_the_next_process() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let issued = worker(&domain, "w1");
    let source = CredentialSource::open(&issued.credentials, LATER).expect("they are valid");
    let renewed = renewed(&domain, &issued);
    assert_ne!(
        source.read().expect("they are there").token().expires,
        renewed.token().expires
    );
    source.replace(&renewed).expect("the folder takes files");
    assert_eq!(
        source.read().expect("they are there").token().expires,
        renewed.token().expires
    );
    let mode = fs::metadata(&issued.credentials)
        .expect("they are there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    // They are said to be in that file, as those before.
    let past = issued
        .expires
        .after(LIFETIME_DEFAULT)
        .after(LIFETIME_DEFAULT);
    let ended = renewed
        .check(past)
        .expect_err("they have ended")
        .to_string();
    assert!(
        ended.contains(&*issued.credentials.display().to_string()),
        "{ended}"
    );

    let other = worker(&domain, "w2");
    let refused = source.replace(&self::renewed(&domain, &other));
    refused.expect_err("it is another key's");
    // A folder that is gone is not made again: its name may belong to another disk.
    fs::remove_dir_all(domain.layout().folder()).expect("it is ours");
    source.replace(&renewed).expect_err("there is no folder");
    assert!(!domain.layout().folder().exists());
}

/// Without the record, the token says what its holder was.
#[test]
fn a_holder_whose_record_is_lost_is_issued_the_same_again_and_nothing_else() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let issued = worker(&domain, "w1");
    let record = domain.layout().folder().join("issued");
    let forget = || {
        fs::remove_dir_all(&record).expect("it is ours");
        fs::create_dir(&record).expect("its folder is ours");
    };
    forget();
    let other: RunId = "other".parse().expect("a name");
    for (role, run) in [(Role::Worker, Some(&other)), (Role::Operator, None)] {
        let taken = domain.issue(role, "w1", run, LIFETIME_DEFAULT, LATER);
        assert_eq!(
            taken.expect_err("it is a worker of demo").code(),
            Code::NameTaken
        );
    }
    let again = domain.issue(Role::Worker, "w1", Some(&run()), LIFETIME_DEFAULT, LATER);
    assert_eq!(again.expect("it is the same").public, issued.public);
    // A role's former key no longer says what its holders are.
    forget();
    domain
        .make_role_key(Role::Worker)
        .expect("the folder takes files");
    domain
        .adopt_role_key(Role::Worker)
        .expect("the folder takes files");
    let taken = domain.issue(Role::Worker, "w1", Some(&run()), LIFETIME_DEFAULT, LATER);
    assert_eq!(
        taken.expect_err("another key signed its token").code(),
        Code::NameTaken
    );
}

#[test]
fn a_record_that_cannot_be_read_is_not_one_that_is_missing() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let list = domain.layout().issued();
    let key = ConnectionKey::generate().public().clone();
    assert_eq!(list.find(&key).expect("nothing is wrong"), None);
    let issued = worker(&domain, "w1");
    let folder = domain.layout().folder().join("issued");
    let files = fs::read_dir(&folder).expect("it is there");
    let file = files
        .map(|entry| entry.expect("it is ours").path())
        .find(|path| path.display().to_string().contains(issued.public.as_str()));
    let file = file.expect("a record has its key's name");
    fs::remove_file(&file).expect("it is ours");
    fs::create_dir(&file).expect("its folder is ours");
    list.find(&issued.public)
        .expect_err("a folder is no record");
}

#[test]
fn the_accounts_of_a_domain_are_all_those_in_which_somebody_connects() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    assert!(domain.has_vault());
    let accounts = domain.accounts().expect("their names are public");
    let mut all = accounts.all();
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count, "none twice");
    // Tenants have one each.
    assert_eq!(count, Account::ALL.len() - 1 + accounts.tenants.len());
    for account in Account::ALL
        .into_iter()
        .filter(|one| *one != Account::Tenant)
    {
        assert!(
            all.contains(&domain.account(account).expect("a name")),
            "{account:?}"
        );
    }
    assert!(all.contains(&domain.tenant().expect("a name")));
}

#[test]
fn an_issuer_shows_names_and_no_key() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let folder = domain.layout().issuer();
    let shown = format!("{:?}", Issuer::open(&folder).expect("it was made"));
    assert!(
        shown.contains(domain.tenant().expect("a name").as_str()),
        "{shown}"
    );
    for entry in fs::read_dir(&folder).expect("it is there") {
        let path = entry.expect("it is ours").path();
        if path.extension().is_some_and(|kind| kind == "nk") {
            let seed = fs::read_to_string(&path).expect("it is text");
            assert!(!shown.contains(seed.trim()), "{}", path.display());
        }
    }
}

#[test]
fn names_of_accounts_that_are_not_those_of_the_vault_are_written_again() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let file = domain.layout().issuer().join("accounts.json");
    let right = fs::read_to_string(&file).expect("it was made");
    let control = domain.account(Account::Control).expect("a name");
    let ledger = domain.account(Account::Ledger).expect("a name");
    let wrong = right.replace(control.as_str(), ledger.as_str());
    assert_ne!(wrong, right);
    fs::write(&file, wrong).expect("it is ours");
    domain.take_over(LATER).expect("all keys are there");
    assert_eq!(fs::read_to_string(&file).expect("it was made"), right);
}

#[test]
fn tl_28_a_holder_that_gets_a_token_of_a_new_key_is_recorded_with_it() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let issued = worker(&domain, "w1");
    // Its own file has a later end than the record knows.
    renewed(&domain, &issued)
        .write(&issued.credentials)
        .expect("the folder takes files");
    domain
        .make_role_key(Role::Worker)
        .expect("the folder takes files");
    domain
        .adopt_role_key(Role::Worker)
        .expect("the folder takes files");
    let resigned = domain
        .resign_holders(Role::Worker, LATER)
        .expect("the folder takes files");
    let record = domain.layout().issued().find(&issued.public);
    let record = record.expect("it is whole").expect("it was written");
    assert_eq!(resigned.renewed, std::slice::from_ref(&record));
    let token = Credentials::read(&issued.credentials)
        .expect("they are there")
        .token()
        .clone();
    assert_eq!(Some(record.ends), token.expires);
    assert_eq!(record.ends, issued.expires.after(LIFETIME_DEFAULT));
    assert_eq!(record.issued, token.issued);
    assert!(record.issued >= LATER);
}

/// An earlier key of a role has that role's rights, in an account that has several roles.
#[test]
fn tl_30_an_earlier_key_keeps_the_rights_of_its_role_alone() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    domain
        .make_role_key(Role::Operator)
        .expect("the folder takes files");
    let keys = domain
        .adopt_role_key(Role::Operator)
        .expect("the folder takes files");
    let control = domain.account(Account::Control).expect("a name");
    let config = domain.server_config("", LATER).expect("all keys are there");
    let found = config.accounts.iter().find(|(id, _)| *id == control);
    let token = &found.expect("every account has one").1;
    let claims = verify::<AccountClaims>(token, LATER)
        .expect("just minted")
        .claims;
    let roles: Vec<&str> = claims
        .signing_keys
        .iter()
        .filter_map(|key| match key {
            AccountKey::Scoped(scope) if scope.key == keys.old => Some(scope.role.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(roles, [Role::Operator.name()]);
}
