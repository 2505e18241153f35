//! Tenants of a trust domain: their entries, accounts, credentials and ends.

use std::path::Path;

use identity::claims::AccountClaims;
use identity::domain::LIFETIME_DEFAULT;
use identity::jwt::verify;
use identity::{Credentials, Domain, InitOptions, Issuer};
use schemas::permission::Role;
use schemas::tenant::Quota;
use schemas::{AccountId, Code, RunId, TenantName, UnixMillis};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const LATER: UnixMillis = UnixMillis(1_700_000_060_000);

fn domain(scratch: &Path) -> Domain {
    Domain::init(&scratch.join(".diloco"), &InitOptions::default(), NOW).expect("an empty folder")
}

fn acme() -> TenantName {
    "acme".parse().expect("a name")
}

fn run(name: &str) -> RunId {
    name.parse().expect("a name")
}

fn claims(domain: &Domain, account: &AccountId) -> AccountClaims {
    let config = domain.server_config("", LATER).expect("all keys are there");
    let found = config.accounts.iter().find(|(id, _)| id == account);
    let (_, token) = found.expect("every account has a token");
    verify(token, LATER).expect("just minted").claims
}

#[test]
fn tl_03_a_tenants_credentials_belong_to_its_account_and_to_no_other() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let issue = |domain: &Domain, name: &str, of: &str| {
        domain.issue(Role::Worker, name, Some(&run(of)), LIFETIME_DEFAULT, NOW)
    };
    let early = issue(&domain, "w1", "acme_demo").expect_err("there is no such tenant");
    assert_eq!(early.code(), Code::TenantUnknown);
    let quota = Quota {
        connections: Some(3),
        ..Quota::default()
    };
    let (domain, entry) = domain.make_tenant(&acme(), quota, NOW).expect("a new name");
    let own = domain.tenant().expect("a key");
    assert_ne!(entry.account, own);
    assert_eq!(domain.trust().tenants, [own.clone(), entry.account.clone()]);
    assert_eq!(*domain.trust().own_tenant(), own);
    let (theirs, ours) = (
        issue(&domain, "w1", "acme_demo"),
        issue(&domain, "w2", "demo"),
    );
    for (issued, account) in [(theirs, &entry.account), (ours, &own)] {
        let issued = issued.expect("a fresh name");
        let read = Credentials::read(&issued.credentials).expect("just written");
        assert_eq!(read.token().claims.issuer_account.as_ref(), Some(account));
        let list = domain.layout().issued();
        let record = list
            .find(&issued.public)
            .expect("it reads")
            .expect("a record");
        assert_eq!(record.account, *account);
        // The registrar renews it there, and nowhere else.
        let issuer = Issuer::open(&domain.layout().issuer()).expect("all keys");
        assert!(issuer.sign(&record, LATER, NOW).is_ok());
        for other in [&entry.account, &own] {
            if other != account {
                let mut forged = record.clone();
                forged.account = other.clone();
                let refused = issuer
                    .sign(&forged, LATER, NOW)
                    .expect_err("another account");
                assert_eq!(refused.code(), Code::HolderMismatch);
            }
        }
    }
    let of = claims(&domain, &entry.account);
    assert_eq!(of.limits.conn, 3);
    let prefixed =
        |import: &identity::claims::Import| import.subject.contains(entry.account.as_str());
    assert!(
        of.imports.iter().all(prefixed),
        "nothing of another tenant is imported"
    );
    assert!(claims(&domain, &own).limits.conn > 3);
}

#[test]
fn making_a_tenant_again_completes_it_and_another_quota_needs_its_own_word() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let first = domain(scratch.path());
    let bundle = std::fs::read(first.layout().trust()).expect("it is there");
    let (_, entry) = first
        .make_tenant(&acme(), Quota::default(), NOW)
        .expect("a new name");
    // As if the first call had broken off before the trust bundle was written.
    std::fs::write(first.layout().trust(), bundle).expect("the folder takes files");
    let first = Domain::open(first.layout().folder()).expect("a domain");
    let (domain, again) = first
        .make_tenant(&acme(), Quota::default(), LATER)
        .expect("its own");
    assert_eq!(again, entry);
    assert!(domain.trust().tenants.contains(&entry.account));
    let other = Quota {
        connections: Some(1),
        ..Quota::default()
    };
    let refused = domain
        .make_tenant(&acme(), other, LATER)
        .expect_err("another quota");
    assert_eq!(refused.code(), Code::TenantExists);
    domain.set_quota(&acme(), other).expect("it lasts");
    assert_eq!(claims(&domain, &entry.account).limits.conn, 1);
    let nobody = "nobody".parse().expect("a name");
    let refused = domain.set_quota(&nobody, other).expect_err("there is none");
    assert_eq!(refused.code(), Code::TenantUnknown);
}

#[test]
fn tl_31_the_account_of_an_ended_tenant_lets_nobody_in_and_its_holders_get_nothing() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let made = domain.make_tenant(&acme(), Quota::default(), NOW);
    let (domain, entry) = made.expect("a new name");
    let of = run("acme_demo");
    let issued = domain.issue(Role::Worker, "w1", Some(&of), LIFETIME_DEFAULT, NOW);
    let issued = issued.expect("a fresh name");
    domain
        .issue(
            Role::Worker,
            "w2",
            Some(&run("demo")),
            LIFETIME_DEFAULT,
            NOW,
        )
        .expect("a fresh name");
    let before = claims(&domain, &domain.tenant().expect("a key"));
    let (_, holders) = domain.end_tenant(&acme(), LATER).expect("it is there");
    let keys: Vec<_> = holders.iter().map(|holder| &holder.public).collect();
    assert_eq!(keys, [&issued.public], "its own holders alone");
    let shut = claims(&domain, &entry.account);
    assert!(shut.signing_keys.is_empty() && shut.imports.is_empty());
    assert_eq!(shut.limits.conn, 0);
    let mut after = claims(&domain, &domain.tenant().expect("a key"));
    assert!(after.limits.conn > before.limits.conn, "its share grows");
    after.limits = before.limits;
    assert_eq!(after, before);
    let issuer = Issuer::open(&domain.layout().issuer()).expect("all keys");
    let refused = issuer.sign(&holders[0], LATER, NOW).expect_err("it ended");
    assert_eq!(refused.code(), Code::TenantEnded);
    let refused = domain.issue(Role::Worker, "w3", Some(&of), LIFETIME_DEFAULT, LATER);
    assert_eq!(refused.expect_err("it ended").code(), Code::TenantEnded);
    let refused = domain.make_tenant(&acme(), Quota::default(), LATER);
    assert_eq!(refused.expect_err("it ended").code(), Code::TenantEnded);
    let (again, _) = domain
        .end_tenant(&acme(), UnixMillis(9))
        .expect("it is there");
    assert_eq!(again.ended, Some(LATER), "it ended once");
}

/// Two commands may have opened the domain before either had made its tenant.
#[test]
fn a_tenant_that_another_command_made_stays_in_the_trust_bundle() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let first = domain(scratch.path());
    let second = Domain::open(first.layout().folder()).expect("a domain");
    let (_, acme) = first
        .make_tenant(&acme(), Quota::default(), NOW)
        .expect("a new name");
    let blue = "blue".parse().expect("a name");
    let made = second.make_tenant(&blue, Quota::default(), NOW);
    let (domain, blue) = made.expect("a new name");
    let own = domain.tenant().expect("a key");
    assert_eq!(domain.trust().tenants, [own, acme.account, blue.account]);
}

/// The connections of all tenants are divided by those that can have any.
#[test]
fn an_ended_tenant_has_no_share_of_the_connections() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut domain = domain(scratch.path());
    let own = domain.tenant().expect("a key");
    let share = |domain: &Domain| claims(domain, &own).limits.conn;
    let alone = share(&domain);
    for name in ["acme", "blue"] {
        let name = name.parse().expect("a name");
        let made = domain.make_tenant(&name, Quota::default(), NOW);
        (domain, _) = made.expect("a new name");
    }
    let of_three = share(&domain);
    assert!(of_three < alone);
    domain.end_tenant(&acme(), LATER).expect("it is there");
    assert!(share(&domain) > of_three);
    let blue = "blue".parse().expect("a name");
    domain.end_tenant(&blue, LATER).expect("it is there");
    assert_eq!(share(&domain), alone);
}

#[test]
fn a_domain_has_at_most_as_many_tenants_as_its_bundle_names() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut domain = domain(scratch.path());
    let name = |number: usize| -> TenantName { format!("t{number}").parse().expect("a name") };
    for number in 1..schemas::limits::TENANTS_MAX {
        let made = domain.make_tenant(&name(number), Quota::default(), NOW);
        (domain, _) = made.expect("there is room");
    }
    let refused = domain.make_tenant(&acme(), Quota::default(), NOW);
    assert_eq!(refused.expect_err("no room").code(), Code::TenantExists);
    let again = domain.make_tenant(&name(3), Quota::default(), NOW);
    assert!(again.is_ok(), "it is there already");
}

/// A file under another name would give a tenant the account of another.
#[test]
fn an_entry_under_another_name_is_refused() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let made = domain(scratch.path()).make_tenant(&acme(), Quota::default(), NOW);
    let (domain, _) = made.expect("a new name");
    let folder = domain.layout().issuer().join("tenants");
    let copied = std::fs::copy(folder.join("acme.json"), folder.join("other.json"));
    copied.expect("the folder takes files");
    let refused = domain.tenants().expect_err("it names acme");
    assert_eq!(refused.code(), Code::IssuerInvalid);
    assert!(Issuer::open(&domain.layout().issuer()).is_err());
}
