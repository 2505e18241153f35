use schemas::Code;

use super::*;
use crate::domain::InitOptions;
use crate::endorsed::{newer, read_endorsed};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn made(scratch: &Path, mutual_tls: bool) -> Domain {
    let options = InitOptions {
        server_names: vec!["bus.example".to_owned()],
        mutual_tls,
        ..InitOptions::default()
    };
    Domain::init(&scratch.join("domain"), &options, NOW).expect("an empty folder")
}

fn ids(known: &[Known], side: Side, state: State) -> Vec<String> {
    let found = known
        .iter()
        .filter(|one| one.side == side && one.state == state);
    found.map(|one| one.id.clone()).collect()
}

/// The authority that has signed the certificate of broker and store, and its names.
fn shown(domain: &Domain) -> (String, Vec<String>) {
    let all = lifetimes(&domain.layout().server_certificate()).expect("it is there");
    (
        all[0].authority.clone().expect("it names it"),
        all[0].names.clone(),
    )
}

#[test]
fn tl_28_old_and_new_authority_are_trusted_until_the_overlap_ends() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = made(scratch.path(), true);
    let sides = [Side::Servers, Side::Clients];
    let first = domain.authorities().expect("they are ours");
    assert_eq!(first.len(), 2);
    let (old, names) = shown(&domain);
    assert_eq!(
        ids(&first, Side::Servers, State::Present),
        std::slice::from_ref(&old)
    );
    let refused = domain.adopt_authorities(&[], NOW).expect_err("no next one");
    assert_eq!(refused.code(), Code::AuthorityOverlap);

    let prepared = domain.prepare_authorities(NOW).expect("it is ours");
    // A command that broke off is repeated, and makes no other.
    assert_eq!(domain.prepare_authorities(NOW).expect("again"), prepared);
    for side in sides {
        assert_eq!(
            ids(&prepared, side, State::Present),
            ids(&first, side, State::Present)
        );
        assert_eq!(ids(&prepared, side, State::Next).len(), 1, "{side}");
    }
    assert_eq!(shown(&domain).0, old, "nothing is signed with it yet");
    assert_eq!(domain.retire_authorities().expect("it is ours"), []);
    assert_eq!(domain.authorities().expect("they are ours"), prepared);

    let adopted = domain.adopt_authorities(&[], NOW).expect("prepared");
    for side in sides {
        let next = ids(&prepared, side, State::Next);
        assert_eq!(ids(&adopted, side, State::Present), next, "{side}");
        assert_eq!(
            ids(&adopted, side, State::Former),
            ids(&first, side, State::Present)
        );
    }
    let new = ids(&adopted, Side::Servers, State::Present)[0].clone();
    assert_eq!(shown(&domain), (new.clone(), names));
    let clients = ClientAuthority::read(&domain.layout().clients_key()).expect("its key");
    assert_eq!(ids(&adopted, Side::Clients, State::Present), [clients.id()]);
    // The next rotation waits.
    for refused in [
        domain.prepare_authorities(NOW).expect_err("an overlap"),
        domain.adopt_authorities(&[], NOW).expect_err("none waits"),
    ] {
        assert_eq!(refused.code(), Code::AuthorityOverlap);
    }

    let gone = domain.retire_authorities().expect("it is ours");
    assert_eq!(gone.len(), 2);
    assert_eq!(ids(&gone, Side::Servers, State::Former), [old]);
    let left = domain.authorities().expect("they are ours");
    assert_eq!(left.len(), 2);
    assert_eq!(ids(&left, Side::Servers, State::Present), [new]);
    domain.prepare_authorities(NOW).expect("the next one");
}

/// The key of the next authority is there and its certificate is not, as after a crash.
#[test]
fn a_rotation_of_the_authority_that_broke_off_goes_on() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = made(scratch.path(), true);
    let layout = domain.layout();
    let (ca, clients) = (layout.ca(), layout.clients());
    let bundles = [&ca, &clients].map(|path| fs::read_to_string(path).expect("it is there"));
    let prepared = domain.prepare_authorities(NOW).expect("it is ours");
    for (path, text) in [&ca, &clients].into_iter().zip(bundles) {
        write_private(path, text.as_bytes()).expect("it is ours");
    }
    let next = |known: &[Known]| ids(known, Side::Servers, State::Next);
    let again = domain.prepare_authorities(NOW).expect("again");
    assert_eq!(next(&again), next(&prepared));
    // Only the servers' half was adopted.
    let waits = fs::read(layout.next_clients_key()).expect("it waits");
    domain.adopt_authorities(&[], NOW).expect("prepared");
    let key = fs::read(layout.clients_key()).expect("it is there");
    assert_eq!(key, waits);
    fs::rename(layout.clients_key(), layout.next_clients_key()).expect("it is ours");
    let (_, first) = ClientAuthority::generate(NOW).expect("the generator works");
    write_private(&layout.clients_key(), first.key.as_bytes()).expect("it is ours");
    domain.adopt_authorities(&[], NOW).expect("half waits");
    assert_eq!(fs::read(layout.clients_key()).expect("it is there"), waits);
}

#[test]
fn without_mutual_tls_only_the_servers_authority_is_replaced_and_the_trial_is_of_the_next() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let plain = made(&scratch.path().join("plain"), false);
    let known = plain.prepare_authorities(NOW).expect("it is ours");
    assert!(known.iter().all(|one| one.side == Side::Servers));
    assert_eq!(plain.write_trial(NOW).expect("nothing to write"), None);
    let mutual = made(&scratch.path().join("mutual"), true);
    assert_eq!(mutual.write_trial(NOW).expect("none waits"), None);
    let known = mutual.prepare_authorities(NOW).expect("it is ours");
    let trial = mutual.write_trial(NOW).expect("one waits");
    let facts = trial.expect("one waits").facts().expect("it is ours");
    let next = ids(&known, Side::Clients, State::Next);
    assert_eq!(facts.authority.as_ref(), next.first());
    assert_eq!(facts.ends, NOW.after(TRIAL));
}

#[test]
fn without_the_vault_no_authority_is_made() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = made(scratch.path(), true);
    let vault = domain.layout().folder().join("vault");
    fs::rename(vault, scratch.path().join("vault")).expect("it is ours");
    let refused = domain.prepare_authorities(NOW).expect_err("no vault");
    assert_eq!(refused.code(), Code::VaultMissing);
}

/// A machine that enrols with an invitation from before the rotation learns of the new authority.
#[test]
fn tl_28_a_signed_bundle_brings_the_authorities_of_now() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = made(scratch.path(), false);
    let trust = domain.layout().trust();
    let handed = || read_endorsed(&trust).expect("it reads");
    domain.endorse_trust(NOW).expect("the vault is here");
    let before = fs::read_to_string(domain.layout().ca()).expect("it is there");
    let brought = |document: &str| {
        let known = domain.trust();
        newer(known, NOW, document).expect("the root signed it").ca
    };
    let document = handed().expect("it was signed");
    assert_eq!(brought(&document), Some(before.clone()));
    domain.prepare_authorities(NOW).expect("it is ours");
    assert_eq!(handed(), None, "it lacks an authority");
    domain.endorse_trust(NOW).expect("the vault is here");
    let now = brought(&handed().expect("it was signed")).expect("it brings them");
    assert_eq!(blocks(&now).len(), 2);
    assert!(now.starts_with(before.trim_end()));
    // An older one than the invitation is no news.
    let known = domain.trust();
    let later = UnixMillis(NOW.get() + 1);
    let document = handed().expect("it was signed");
    let kept = newer(known, later, &document).expect("the root signed it");
    assert_eq!(kept.ca, None);
}
