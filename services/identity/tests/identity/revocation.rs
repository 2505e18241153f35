//! Revocations as they are kept in a trust domain, and as they stand in its accounts' tokens.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use identity::claims::{AccountClaims, UserClaims};
use identity::domain::{LIFETIME_DEFAULT, LIFETIME_MAX};
use identity::jwt::{JwtError, verify, verify_chain};
use identity::server_config::ServerConfig;
use identity::{AuditKey, Credentials, Domain, InitOptions, Issued, Registration};
use schemas::hold::Reason;
use schemas::permission::Role;
use schemas::{AccountId, Code, Millis, PublicKey, UnixMillis};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const LATER: UnixMillis = UnixMillis(1_700_000_060_700);

fn domain(scratch: &Path) -> Domain {
    Domain::init(&scratch.join(".diloco"), &InitOptions::default(), NOW).expect("an empty folder")
}

fn worker(domain: &Domain, name: &str, now: UnixMillis) -> Issued {
    let run = "demo".parse().expect("a name");
    let issued = domain.issue(Role::Worker, name, Some(&run), LIFETIME_DEFAULT, now);
    issued.expect("a fresh name")
}

/// Issues credentials to a holder that was revoked.
fn issue_again(domain: &Domain, name: &str, now: UnixMillis) -> Issued {
    let run = "demo".parse().expect("a name");
    let issued = domain.readmit(Role::Worker, name, Some(&run), LIFETIME_DEFAULT, now);
    issued.expect("it was revoked")
}

fn reason() -> Reason {
    "its laptop was stolen"
        .to_owned()
        .try_into()
        .expect("a line")
}

fn config(domain: &Domain, earlier: &str, now: UnixMillis) -> ServerConfig {
    let config = domain.server_config(earlier, now);
    config.expect("all keys are there")
}

fn token<'a>(config: &'a ServerConfig, account: &AccountId) -> &'a str {
    let found = config.accounts.iter().find(|(id, _)| id == account);
    &found.expect("every account has one").1
}

fn revoked_in(config: &ServerConfig, account: &AccountId, now: UnixMillis) -> Vec<(String, u64)> {
    let token = verify::<AccountClaims>(token(config, account), now).expect("just minted");
    token.claims.revocations.into_iter().collect()
}

/// Checks a user's token as the broker does.
fn accepts(domain: &Domain, issued: &Issued, config: &ServerConfig, at: UnixMillis) -> bool {
    let text = fs::read_to_string(&issued.credentials).expect("it is ours");
    let user = text.lines().find(|line| line.starts_with("eyJ"));
    let operator = config
        .auth
        .lines()
        .find(|line| line.starts_with("operator"));
    let operator = operator.and_then(|line| line.split('"').nth(1));
    let account = token(config, &domain.tenant().expect("a key"));
    let (user, operator) = (user.expect("a token"), operator.expect("a token"));
    match verify_chain(user, account, operator, &domain.trust().domain, at) {
        Ok(_) => true,
        Err(JwtError::Revoked(key)) => {
            assert_eq!(key, issued.public);
            false
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn tl_07_a_revoked_key_is_void_until_it_gets_a_newer_token() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let (first, second) = (worker(&domain, "w1", NOW), worker(&domain, "w2", NOW));
    let tenant = domain.tenant().expect("a key");
    let before = config(&domain, "", NOW);
    assert!(accepts(&domain, &first, &before, LATER));

    let revoked = domain.revoke(&tenant, &first.public, Some(&reason()), LATER);
    let revoked = revoked.expect("the folder takes files");
    // The registrar's clock may be ahead by minutes.
    let until = UnixMillis(LATER.get() / 1000 * 1000 + 300_000);
    assert_eq!(revoked.until, until);
    let after = config(&domain, &before.auth, LATER);
    assert!(!accepts(&domain, &first, &after, LATER));
    assert!(accepts(&domain, &second, &after, LATER));
    for (account, own) in &before.accounts {
        let changed = token(&after, account) != own;
        assert_eq!(changed, *account == tenant, "{account}");
    }
    // Repeated, it covers what was signed meanwhile, and a clock that was put back undoes nothing.
    let again = domain.revoke(&tenant, &first.public, None, LATER.after(Millis(5000)));
    let again = again.expect("the folder takes files");
    assert_eq!(again.until, until.after(Millis(5000)));
    assert_eq!(again.reason, revoked.reason, "nobody gave another");
    let revoked = domain.revoke(&tenant, &first.public, None, LATER);
    let revoked = revoked.expect("the folder takes files");
    assert_eq!(revoked, again);
    let after = config(&domain, &after.auth, LATER);
    let in_its_second = |millis| UnixMillis(revoked.until.get() + millis);
    assert!(revoked.covers(in_its_second(999)) && !revoked.covers(in_its_second(1000)));

    // A new token is dated ahead, since the broker would refuse it otherwise, and lives no shorter
    // for that; it can be revoked in that second as well.
    let first = issue_again(&domain, "w1", LATER);
    let dated = UnixMillis(revoked.until.get() + 1000);
    assert_eq!(first.expires, dated.after(LIFETIME_DEFAULT));
    let renewed = config(&domain, &after.auth, LATER);
    assert_eq!(token(&renewed, &tenant), token(&after, &tenant));
    assert!(accepts(&domain, &first, &renewed, LATER));
    let revoked = domain.revoke(&tenant, &first.public, None, LATER);
    assert!(revoked.expect("it can be revoked again").reason.is_none());
    let over = config(&domain, &renewed.auth, LATER);
    assert!(!accepts(&domain, &first, &over, LATER));
}

/// A broker that starts keeps the newer of two tokens, and a broker whose clock is ahead may have
/// one from the future.
#[test]
fn tl_07_a_token_that_replaces_another_is_always_later() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let issued = worker(&domain, "w1", NOW);
    let tenant = domain.tenant().expect("a key");
    let before = config(&domain, "", LATER);
    let revoked = domain.revoke(&tenant, &issued.public, None, NOW);
    revoked.expect("the folder takes files");
    let issued_at = |config: &ServerConfig| {
        let read = verify::<AccountClaims>(token(config, &tenant), LATER);
        read.expect("just minted").issued
    };
    let after = config(&domain, &before.auth, NOW);
    assert_eq!(
        issued_at(&after),
        UnixMillis(issued_at(&before).get() + 1000)
    );

    let generated = scratch.path().join("generated");
    let written = domain.write_server_config(&generated, NOW);
    let own = issued_at(&written.expect("the folder takes files"));
    for (standing, expected) in [(own.get() - 1000, own.get()), (own.get(), own.get() + 1000)] {
        let above = [(tenant.clone(), UnixMillis(standing))].into();
        let written = domain.write_server_config_above(&generated, &above, NOW);
        let written = written.expect("the folder takes files");
        assert_eq!(
            issued_at(&written),
            UnixMillis(expected),
            "above {standing}"
        );
    }
}

#[test]
fn tl_07_a_revocation_ends_when_every_token_that_it_is_about_has_ended() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let (first, second) = (worker(&domain, "w1", NOW), worker(&domain, "w2", NOW));
    let tenant = domain.tenant().expect("a key");
    let revoke = |issued: &Issued, at| {
        let revoked = domain.revoke(&tenant, &issued.public, None, at);
        revoked.expect("the folder takes files")
    };
    let revocation = revoke(&first, NOW);
    let longest = domain.issue(Role::Operator, "longest", None, LIFETIME_MAX, NOW);
    assert!(longest.expect("a fresh name").expires < revocation.ends);
    let last = UnixMillis(revocation.ends.get() - 1);
    assert_eq!(
        revoked_in(&config(&domain, "", last), &tenant, last).len(),
        1
    );
    let over = config(&domain, "", revocation.ends);
    assert_eq!(revoked_in(&over, &tenant, last), []);
    revoke(&second, revocation.ends);
    let left = domain.revocations().expect("they can be read");
    assert_eq!(left.len(), 1, "the other one is forgotten");
    assert_eq!(left[0].key, second.public);
}

#[test]
fn what_is_kept_is_the_owners_alone_and_nothing_is_guessed_from_a_damaged_file() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let issued = worker(&domain, "w1", NOW);
    let tenant = domain.tenant().expect("a key");
    let revoked = domain.revoke(&tenant, &issued.public, Some(&reason()), NOW);
    let revoked = revoked.expect("the folder takes files");
    let found = domain
        .revocation(&tenant, &issued.public)
        .expect("it can be read");
    assert_eq!(found, Some(revoked));
    let folder = domain.layout().revoked_folder();
    let name = format!("{tenant}.{}.json", issued.public);
    let path = folder.join(name);
    for (path, expected) in [(&folder, 0o700), (&path, 0o600)] {
        let mode = fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, expected, "{}", path.display());
    }
    fs::write(&path, "{}").expect("it is ours");
    let refused = domain
        .server_config("", NOW)
        .expect_err("a key would be valid again");
    assert_eq!(refused.code(), Code::CredentialMalformed);
    assert!(refused.to_string().contains(&*path.to_string_lossy()));

    let account: PublicKey = tenant.as_str().parse().expect("a key");
    let refused = domain.revoke(&tenant, &account, None, NOW);
    assert!(refused.is_err(), "an account's key is no user's");
}

#[test]
fn the_record_knows_who_holds_which_key() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    for role in [
        Role::Coordinator,
        Role::LedgerWriter,
        Role::Auditor,
        Role::Recorder,
    ] {
        let issued = domain.issue(role, role.name(), None, LIFETIME_DEFAULT, NOW);
        issued.expect("a fresh name");
    }
    let issued = worker(&domain, "w1", NOW);
    worker(&domain, "w2", NOW);
    let names = |text: &str| {
        let found = domain.holders_of(text).expect("they can be read");
        found
            .into_iter()
            .map(|holder| holder.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names("coordinator"), ["coordinator", "ledger-writer"]);
    assert_eq!(names("auditor"), ["auditor", "recorder"]);
    assert_eq!(names("ledger-writer"), ["ledger-writer"]);
    assert_eq!(names("w1"), ["w1"]);
    assert_eq!(names(issued.public.as_str()), ["w1"]);
    assert_eq!(names("w"), Vec::<String>::new());
    let [holder] = &domain.holders_of("w1").expect("it can be read")[..] else {
        panic!("one key");
    };
    let expected = Registration {
        v: schemas::V,
        name: "w1".to_owned(),
        role: Role::Worker,
        run: Some("demo".parse().expect("a name")),
        account: domain.tenant().expect("a key"),
        public: issued.public,
        issued: NOW,
        ends: issued.expires,
        blocked: None,
        audit_key: holder.audit_key.clone(),
        seat: None,
        before: None,
        changes_until: None,
    };
    assert_eq!(*holder, expected);
    let audit_key = issued.audit_key.expect("workers sign events");
    let audit_key = AuditKey::read(&audit_key).expect("it was made");
    assert_eq!(holder.audit_key.as_ref(), Some(audit_key.public()));
    let renewed = worker(&domain, "w1", LATER);
    let [holder] = &domain.holders_of("w1").expect("it can be read")[..] else {
        panic!("still one key");
    };
    assert_eq!((holder.issued, holder.ends), (LATER, renewed.expires));
}

#[test]
fn tl_07_holders_of_an_earlier_release_can_be_revoked_as_well() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let issued = worker(&domain, "w1", NOW);
    let layout = domain.layout();
    let list = layout.issued();
    let recorded = list.all().expect("they can be read");
    fs::remove_dir_all(list.folder()).expect("it was made");
    let writer = layout.folder().join("vault/role-account-writer.nk");
    fs::remove_file(&writer).expect("it was made");
    let missing = domain.holders_of("w1").expect_err("nobody can tell");
    assert_eq!(missing.code(), Code::RecordsMissing);
    assert!(domain.account_writer(NOW).is_err());

    domain.take_over(LATER).expect("the folder takes files");
    assert_eq!(list.all().expect("they can be read"), recorded);
    domain.account_writer(NOW).expect("it has a key");
    let tenant = domain.tenant().expect("a key");
    let revoked = domain.revoke(&tenant, &issued.public, None, LATER);
    revoked.expect("the folder takes files");
    // The record is of the newest token: a take-over does not put an older one back.
    let renewed = issue_again(&domain, "w1", LATER);
    domain.take_over(LATER).expect("the folder takes files");
    let found = domain.holders_of("w1").expect("they can be read");
    assert_eq!(found[0].ends, renewed.expires);
}

/// The registrar signs no token for a key that is revoked, and again for one that was issued anew.
#[test]
fn tl_07_a_revoked_key_is_renewed_no_more_until_it_is_issued_again() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let issued = worker(&domain, "w1", NOW);
    let tenant = domain.tenant().expect("a key");
    let blocked = || {
        let found = domain.holders_of("w1").expect("they can be read");
        found[0].blocked.is_some()
    };
    assert!(!blocked());
    let revoked = domain.revoke(&tenant, &issued.public, None, LATER);
    let revoked = revoked.expect("the folder takes files");
    assert!(blocked());
    // A registrar that has read the record just before may sign once more.
    assert!(revoked.covers(LATER.after(Millis(1000))));
    // What issues tokens by itself, as `up` does, lets nobody in again.
    let run = "demo".parse().expect("a name");
    let refused = domain.issue(Role::Worker, "w1", Some(&run), LIFETIME_DEFAULT, LATER);
    assert_eq!(
        refused.expect_err("it is revoked").code(),
        Code::HolderBlocked
    );
    // A command that fails lets nobody in, for whatever reason it does.
    let other = "other".parse().expect("a name");
    let readmit = |run, lifetime| domain.readmit(Role::Worker, "w1", run, lifetime, LATER);
    assert!(readmit(Some(&other), LIFETIME_DEFAULT).is_err());
    assert!(readmit(None, LIFETIME_DEFAULT).is_err());
    assert!(readmit(Some(&run), Millis(1)).is_err());
    let audit_key = issued.audit_key.expect("workers have one");
    let seed = fs::read(&audit_key).expect("it is ours");
    fs::write(&audit_key, "no seed").expect("it is ours");
    assert!(readmit(Some(&run), LIFETIME_DEFAULT).is_err());
    fs::write(&audit_key, seed).expect("it is ours");
    assert!(blocked());
    issue_again(&domain, "w1", LATER);
    assert!(!blocked());
    // Nor does it let in another key of the name, as one that lies on a lost machine.
    let revoked = domain.revoke(&tenant, &issued.public, None, LATER);
    revoked.expect("the folder takes files");
    fs::remove_file(&issued.credentials).expect("it was made");
    let new = issue_again(&domain, "w1", LATER);
    assert_ne!(new.public, issued.public);
    let lost = domain.layout().issued().find(&issued.public);
    let lost = lost.expect("it can be read").expect("it has a record");
    assert!(lost.blocked.is_some());
    // Blocked without a revocation is another matter: the key may not come back.
    let list = domain.layout().issued();
    let second = worker(&domain, "w2", NOW);
    list.block(&second.public, LATER).expect("it is ours");
    let refused = domain.readmit(Role::Worker, "w2", Some(&run), LIFETIME_DEFAULT, LATER);
    assert_eq!(
        refused.expect_err("it is blocked").code(),
        Code::HolderBlocked
    );
}

/// Whose token replaces accounts' tokens may do anything, so it lasts for minutes and lies around
/// nowhere.
#[test]
fn tl_07_the_account_writers_credentials_go_with_the_command() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let names = || {
        let entries = fs::read_dir(domain.layout().folder()).expect("it is ours");
        let mut names: Vec<_> = entries.map(|one| one.expect("it is ours").path()).collect();
        names.sort();
        names
    };
    let before = names();
    let made = domain.account_writer(NOW).expect("the role has a key");
    let path = made.credentials();
    let read = Credentials::read(&path).expect("the owner's alone");
    let token = read.token();
    assert_eq!(token.expires, Some(UnixMillis(NOW.get() + 300_000)));
    let system = domain.accounts().expect("keys").system;
    assert_eq!(token.claims, UserClaims::of_role(system, vec![]));
    let second = domain.account_writer(NOW).expect("the role has a key");
    let other = Credentials::read(&second.credentials()).expect("the owner's alone");
    assert_ne!(other.public(), read.public(), "each command has its own");
    drop((made, second));
    assert!(!path.exists());
    assert_eq!(names(), before);
}

#[test]
fn tl_07_a_key_that_was_revoked_without_a_record_is_blocked_in_the_record_that_its_file_gets() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let issued = worker(&domain, "w1", NOW);
    let list = domain.layout().issued();
    fs::remove_dir_all(list.folder()).expect("it was made");
    let tenant = domain.tenant().expect("a key");
    let revoked = domain.revoke(&tenant, &issued.public, None, LATER);
    let revoked = revoked.expect("the folder takes files");
    let written = domain.write_server_config(&scratch.path().join("generated"), LATER);
    written.expect("the domain is taken over");
    let record = list.find(&issued.public).expect("it can be read");
    let record = record.expect("the file is in the domain's folder");
    assert_eq!(record.blocked, Some(revoked.until));
}
