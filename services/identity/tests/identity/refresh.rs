//! What nothing that runs renews is renewed where the domain's keys are.

use std::fs;
use std::path::Path;

use identity::domain::LIFETIME_DEFAULT;
use identity::tls::lifetimes;
use identity::{Credentials, Domain, InitOptions};
use schemas::role::Role;
use schemas::{Millis, UnixMillis};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn new_domain(scratch: &Path) -> Domain {
    let domain = Domain::init(&scratch.join(".diloco"), &InitOptions::default(), NOW);
    domain.expect("an empty folder")
}

#[test]
fn a_server_certificate_is_renewed_for_its_names_in_the_second_half_of_its_life() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let names = ["nats.example".to_owned(), "10.0.0.7".to_owned()];
    let renewed = domain.renew_server_certificate(&names, NOW);
    renewed.expect("its own authority");
    let facts =
        || lifetimes(&domain.layout().server_certificate()).expect("a certificate")[0].clone();
    let old = facts();
    let half = old.ends.get() / 2 + old.begins.get() / 2;
    let refresh = |at| {
        domain
            .refresh_server_certificate(UnixMillis(at))
            .expect("its own authority")
    };
    assert!(!refresh(half - 1));
    assert_eq!(facts(), old);
    assert!(refresh(half));
    let new = facts();
    assert_eq!(new.names, old.names);
    assert!(new.ends > old.ends);
    assert!(refresh(new.ends.get()), "also after its end");
}

#[test]
fn tokens_of_people_and_provisioners_are_renewed_in_the_second_half_of_their_lives() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let layout = domain.layout();
    let issue = |role, name, life| {
        domain
            .issue(role, name, None, life, NOW)
            .expect("a fresh name")
    };
    let own: Vec<Role> = vec![
        Role::Operator,
        Role::Provisioner,
        Role::LedgerProvisioner,
        Role::EventsProvisioner,
        Role::AuditProvisioner,
        Role::Coordinator,
        Role::LedgerWriter,
        Role::Recorder,
        Role::Registrar,
        Role::Auditor,
    ];
    for role in &own {
        issue(*role, role.name(), LIFETIME_DEFAULT);
    }
    issue(Role::Auditor, "reader", LIFETIME_DEFAULT);
    issue(Role::Operator, "elsewhere", LIFETIME_DEFAULT);
    fs::remove_file(layout.credentials("elsewhere")).expect("it is ours");
    let blocked = issue(Role::Operator, "blocked", LIFETIME_DEFAULT);
    let until = NOW.after(LIFETIME_DEFAULT);
    layout
        .issued()
        .block(&blocked.public, until)
        .expect("it is known");
    let read = |name: &str| Credentials::read(&layout.credentials(name)).expect("they are there");
    let before = read("reader");

    let half = LIFETIME_DEFAULT.get() / 2;
    let early = UnixMillis(NOW.get() + half - 1_000);
    let renewed = domain.refresh_tokens(early).expect("its own keys");
    assert_eq!(renewed, Vec::<String>::new());
    let late = UnixMillis(NOW.get() + half);
    let mut renewed = domain.refresh_tokens(late).expect("its own keys");
    renewed.sort_unstable();
    let wanted = [
        "audit-provisioner",
        "events-provisioner",
        "ledger-provisioner",
        "operator",
        "provisioner",
        "reader",
    ];
    assert_eq!(
        renewed, wanted,
        "services renew their own, and a blocked key gets none"
    );
    let after = read("reader");
    assert_eq!(after.public(), before.public(), "the same key");
    assert!(after.token().expires > before.token().expires);
    let ended = UnixMillis(late.get() + LIFETIME_DEFAULT.get() * 2);
    let renewed = domain.refresh_tokens(ended).expect("its own keys");
    assert_eq!(renewed.len(), wanted.len(), "also after their ends");
    // A visit ends; while it lasts it is renewed for as long as before.
    let visit = Millis::from_secs(2 * 3600);
    let guest = domain.issue(Role::Auditor, "guest", None, visit, ended);
    guest.expect("the name is free");
    let renewed = |after: u64| {
        let now = UnixMillis(ended.get() + after);
        domain.refresh_tokens(now).expect("its own keys")
    };
    let second = visit.get() / 2 + 1_000;
    assert_eq!(renewed(second), ["guest"]);
    let ends = read("guest").token().expires.expect("it ends");
    let most = ended.get() + second + visit.get() + 1_000;
    assert!(ends.get() <= most, "it lives no longer than before");
    assert_eq!(renewed(2 * visit.get() + 5_000), Vec::<String>::new());
}
