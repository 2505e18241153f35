use schemas::Code;

use schemas::enrolment::{Admission, Guest};
use schemas::member::Posture;
use schemas::{PublicKey, RunId, V};

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

const PREPARED: UnixMillis = NOW.after(HOUR);
const ADOPTED: UnixMillis = PREPARED.after(HOUR);
const HOUR: Millis = Millis::from_secs(3600);

fn issue(domain: &Domain, role: Role, name: &str, now: UnixMillis) -> PublicKey {
    let run: RunId = "demo".parse().expect("a name");
    let run = Some(&run).filter(|_| role.is_tenant());
    let issued = domain.readmit(role, name, run, Millis(20 * HOUR.get()), now);
    issued.expect("a name that is free").public
}

fn invite(domain: &Domain, name: &str, now: UnixMillis) -> PublicKey {
    let invite = crate::invitation::Invite {
        name: name.to_owned(),
        run: "demo".parse().expect("a name"),
        seat: None,
        admission: Admission::Token,
        life: Millis(12 * HOUR.get()),
        bus: "tls://127.0.0.1:4222".to_owned(),
    };
    let made = domain.invite(invite, now).expect("a name that is free");
    made.id().clone()
}

/// Removes a holder's files from the domain's folder: they lie on its own machine.
fn carry_away(domain: &Domain, name: &str) {
    let file = domain.layout().credentials(name);
    let shown = ClientFile::beside(&file);
    for path in [&file, shown.path()] {
        fs::remove_file(path).expect("it was issued here");
    }
}

/// The holders and invitations that are left behind now, by name.
fn behind(domain: &Domain, seen: &[&PublicKey], now: UnixMillis) -> (Vec<String>, Vec<String>) {
    let seen = seen.iter().map(|key| (*key).clone()).collect();
    let behind = domain.left_behind(&seen, now).expect("its own files");
    let holders = behind.holders.into_iter().map(|one| one.name);
    let invitations = behind.invitations.into_iter().map(|one| one.name);
    let mut names = (holders.collect::<Vec<_>>(), invitations.collect::<Vec<_>>());
    names.1.sort_unstable();
    names
}

fn names(holders: &[&str], invitations: &[&str]) -> (Vec<String>, Vec<String>) {
    let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    (texts(holders), texts(invitations))
}

#[test]
fn tl_28_fg_08_who_may_still_have_a_certificate_of_the_former_authority_is_known() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = made(scratch.path(), true);
    let worker = |name, now| issue(&domain, Role::Worker, name, now);
    let seen = worker("seen", NOW);
    for name in ["again", "blocked", "here", "off"] {
        worker(name, NOW);
    }
    for name in ["again", "off", "seen"] {
        carry_away(&domain, name);
    }
    // Its token is dated after the revocation, so ahead of the clock.
    let account = domain.tenant().expect("it has one");
    let dated = worker("dated", NOW);
    let just_before = UnixMillis(ADOPTED.get() - 1000);
    let revoked = domain.revoke(&account, &dated, None, just_before);
    revoked.expect("the folder takes files");
    worker("dated", just_before);
    carry_away(&domain, "dated");
    // Nobody renews a provisioner's token, and this one's ends.
    issue(&domain, Role::Provisioner, "ended", NOW);
    carry_away(&domain, "ended");
    let blocked = domain.layout().issued().all().expect("they are ours");
    let blocked = blocked.into_iter().find(|one| one.name == "blocked");
    let list = domain.layout().issued();
    let key = blocked.expect("it was issued").public;
    list.block(&key, NOW).expect("the folder takes files");
    carry_away(&domain, "blocked");

    let nobody = names(&[], &[]);
    assert_eq!(behind(&domain, &[], NOW), nobody, "none is former");
    domain.prepare_authorities(PREPARED).expect("it is ours");
    assert_eq!(behind(&domain, &[], PREPARED), nobody, "nor is one yet");
    domain.adopt_authorities(&[], PREPARED).expect("prepared");
    let unknown = domain.left_behind(&[].into(), PREPARED.after(Millis(100 * HOUR.get())));
    let unknown = unknown.expect("its own files").until;
    assert_eq!(unknown, Some(Until::Unknown), "the command ended there");
    domain
        .note_adopted(ADOPTED)
        .expect("the folder takes files");
    let later = ADOPTED.after(HOUR);
    let off = behind(&domain, &[&seen], later).0;
    assert_eq!(off, ["again", "dated", "ended", "here", "off"]);
    let file = domain.layout().credentials("here");
    let made = domain.refresh_certificate(&file, HOUR, later);
    assert!(made.expect("its own files"), "it was of the former one");
    worker("fresh", later);
    // It was issued again, and the files were carried to its machine.
    list.record(&crate::Registration {
        issued: later,
        ..list
            .all()
            .expect("they are ours")
            .into_iter()
            .find(|one| one.name == "again")
            .expect("it was issued")
    })
    .expect("the folder takes files");
    carry_away(&domain, "fresh");
    assert_eq!(
        behind(&domain, &[&seen], later).0,
        ["dated", "ended", "off"]
    );
    assert_eq!(
        behind(&domain, &[], later).0,
        ["dated", "ended", "off", "seen"],
        "nobody was looked at"
    );
    let known = domain.left_behind(&[seen.clone()].into(), later);
    let until = ADOPTED.after(clients::CERTIFICATE_LIFE_MAX);
    let known = known.expect("its own files").until;
    assert_eq!(known, Some(Until::Time(until)));

    let last = UnixMillis(until.get() - 1);
    assert_eq!(behind(&domain, &[&seen], last).0, ["dated", "off"]);
    let known = domain.left_behind(&[].into(), until);
    let known = known.expect("its own files");
    assert_eq!(
        (known.until, known.holders),
        (None, vec![]),
        "all have ended"
    );
    // A build that noted nothing has let the present one sign at some time before now.
    fs::remove_file(domain.layout().rotation()).expect("it was noted");
    let all = ["again", "dated", "fresh", "off"];
    assert_eq!(behind(&domain, &[&seen], until).0, all);
    domain.retire_authorities().expect("it is ours");
    assert_eq!(behind(&domain, &[], later), nobody, "none is former");
}

#[test]
fn tl_28_fg_03_open_invitations_that_know_only_the_former_authority_are_known() {
    let between = PREPARED.after(Millis(HOUR.get() / 2));
    let later = ADOPTED.after(HOUR);
    for (mutual, expected) in [(true, &["before", "between"][..]), (false, &["before"][..])] {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = made(scratch.path(), mutual);
        invite(&domain, "before", NOW);
        let (used, withdrawn) = (invite(&domain, "used", NOW), invite(&domain, "out", NOW));
        let list = domain.layout().invitations();
        list.withdraw(&withdrawn).expect("the folder takes files");
        let mut guest = Guest {
            v: V,
            worker: used.clone(),
            audit_key: used.clone(),
            asked: NOW,
            posture: Posture::default(),
            enrolled: None,
        };
        list.note(&used, &guest).expect("the folder takes files");
        domain.prepare_authorities(PREPARED).expect("it is ours");
        invite(&domain, "between", between);
        // Said again, it brings nobody anything.
        domain.prepare_authorities(between).expect("it is ours");
        domain.adopt_authorities(&[], ADOPTED).expect("prepared");
        domain
            .note_adopted(ADOPTED)
            .expect("the folder takes files");
        invite(&domain, "after", ADOPTED);
        let waits = [expected, &["used"][..]].concat();
        assert_eq!(behind(&domain, &[], later).1, waits, "it asked in vain");
        guest.enrolled = Some(NOW);
        list.note(&used, &guest).expect("the folder takes files");
        assert_eq!(behind(&domain, &[], later).1, expected);
        let ended = NOW.after(Millis(12 * HOUR.get()));
        let left = &expected[1..];
        assert_eq!(behind(&domain, &[], ended).1, left);
        domain.retire_authorities().expect("it is ours");
        assert_eq!(behind(&domain, &[], later), names(&[], &[]));
        assert!(
            !domain.layout().rotation().exists(),
            "the next rotation has times of its own"
        );
    }
}
