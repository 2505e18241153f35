//! Invitations: which of them a domain refuses to make, and what it keeps of each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use identity::domain::DomainError;
use identity::invitation::{INVITATION_DEFAULT, INVITATION_MAX, INVITATION_MIN, Invite};
use identity::revocation::MOMENTARY_NAME;
use identity::secret::write_private;
use identity::{Domain, InitOptions, InvitationFile, InvitationList, Registration};
use schemas::enrolment::{Admission, Guest, LISTED_MAX, Word};
use schemas::member::Posture;
use schemas::permission::Role;
use schemas::{Code, Millis, PublicKey, Rank, RunId, Seat, UnixMillis, V};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn domain(scratch: &Path) -> Domain {
    let made = Domain::init(&scratch.join("domain"), &InitOptions::default(), NOW);
    made.expect("an empty folder")
}

fn run() -> RunId {
    "demo".parse().expect("a name")
}

/// A key that nobody has.
fn key(number: usize) -> PublicKey {
    let letter = |at: u32| char::from(b'A' + (number >> (4 * at) & 15) as u8);
    let digits: String = (0..4).rev().map(letter).collect();
    let text = format!("U{}{digits}", "A".repeat(51));
    text.parse().expect("the form of a user's key")
}

fn named(name: &str) -> Invite {
    Invite {
        name: name.to_owned(),
        run: run(),
        seat: None,
        admission: Admission::Token,
        life: INVITATION_DEFAULT,
        bus: "tls://127.0.0.1:4222".to_owned(),
    }
}

/// An invitation for the holders of keys 0, 1, …, each with its name.
fn listed(names: &[&str]) -> Invite {
    let each = names.iter().enumerate();
    let each = each.map(|(number, name)| (key(number), (*name).to_owned()));
    Invite {
        admission: Admission::Listed(each.collect()),
        ..named("team")
    }
}

fn seat(rank: u32) -> Option<Seat> {
    Seat::new("left".parse().expect("a name"), Rank(rank), 2).ok()
}

/// The record of a worker whose keys are on its own machine.
fn record(domain: &Domain, name: &str) -> Registration {
    Registration {
        v: V,
        name: name.to_owned(),
        role: Role::Worker,
        run: Some(run()),
        account: domain.tenant().expect("an account"),
        public: key(77),
        issued: NOW,
        ends: NOW.after(INVITATION_DEFAULT),
        blocked: None,
        audit_key: Some(key(78)),
        seat: None,
        before: None,
        changes_until: None,
    }
}

fn code(made: Result<InvitationFile, DomainError>) -> Option<Code> {
    made.err().map(|error| error.code())
}

#[test]
fn fg_03_an_invitation_lives_for_seconds_at_least_and_a_day_at_most() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let cases = [
        (Millis(INVITATION_MIN.get() - 1), false),
        (INVITATION_MIN, true),
        (INVITATION_MAX, true),
        (Millis(INVITATION_MAX.get() + 1), false),
    ];
    for (number, (life, works)) in cases.into_iter().enumerate() {
        let invite = Invite {
            life,
            ..named(&format!("w{number}"))
        };
        let made = code(domain.invite(invite, NOW));
        assert_eq!(made, (!works).then_some(Code::ConfigInvalid), "{life}");
    }
    // Tokens count whole seconds, and the invitation ends with its token.
    let odd = UnixMillis(NOW.get() + 777);
    let file = domain.invite(named("odd"), odd).expect("a fresh name");
    let ends = NOW.after(INVITATION_DEFAULT);
    assert_eq!((file.made, file.ends), (odd, ends));
    assert_eq!(file.credentials.token().expires, Some(ends));
}

#[test]
fn fg_03_a_list_of_keys_is_neither_empty_nor_too_long_and_names_nobody_twice() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let of = |count: usize| {
        let names: Vec<String> = (0..count).map(|number| format!("w{number}")).collect();
        listed(&names.iter().map(|name| &**name).collect::<Vec<_>>())
    };
    let with = |seat, invite| Invite { seat, ..invite };
    for (invite, word) in [
        (of(0), "is empty"),
        (of(LISTED_MAX + 1), "longer than"),
        (listed(&["a", "b", "a"]), "two keys alike"),
        (with(seat(0), of(2)), "a seat is for one"),
    ] {
        let refused = domain.invite(invite, NOW).expect_err("no such list");
        assert_eq!(refused.code(), Code::ConfigInvalid);
        assert!(refused.to_string().contains(word), "{refused}");
    }
    assert_eq!(
        code(domain.invite(listed(&["a", "b/c"]), NOW)),
        Some(Code::ConfigInvalid)
    );
    let longest: Vec<String> = (0..LISTED_MAX)
        .map(|number| format!("{number:0>64}"))
        .collect();
    let longest = listed(&longest.iter().map(|name| &**name).collect::<Vec<_>>());
    for invite in [
        longest,
        with(seat(0), listed(&["one"])),
        listed(&["x", "y"]),
    ] {
        domain.invite(invite, NOW).expect("such a list may be");
    }
}

#[test]
fn fg_03_nobody_is_invited_under_a_name_that_somebody_has() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    // Credentials that lie here, of any holder.
    write_private(&domain.layout().credentials("here"), b"x").expect("the folder takes files");
    // A worker whose credentials lie on its own machine.
    let mut elsewhere = record(&domain, "elsewhere");
    let list = domain.layout().issued();
    list.record(&elsewhere).expect("the folder takes files");
    for name in ["here", "elsewhere"] {
        for invite in [named(name), listed(&["free", name])] {
            assert_eq!(
                code(domain.invite(invite, NOW)),
                Some(Code::NameTaken),
                "{name}"
            );
        }
    }
    // One who was shut out has no name.
    elsewhere.blocked = Some(NOW);
    list.record(&elsewhere).expect("the folder takes files");
    domain.invite(named("elsewhere"), NOW).expect("it is free");
}

/// The broker reports these credentials by their name, under a key that is nowhere listed.
#[test]
fn fg_03_nobody_has_the_name_of_credentials_that_commands_make_for_themselves() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    for invite in [named(MOMENTARY_NAME), listed(&["free", MOMENTARY_NAME])] {
        assert_eq!(code(domain.invite(invite, NOW)), Some(Code::NameReserved));
    }
    let day = Millis::from_secs(24 * 3600);
    let run = run();
    for (role, run) in [(Role::Worker, Some(&run)), (Role::Operator, None)] {
        for issued in [
            domain.issue(role, MOMENTARY_NAME, run, day, NOW),
            domain.readmit(role, MOMENTARY_NAME, run, day, NOW),
        ] {
            assert_eq!(issued.expect_err("reserved").code(), Code::NameReserved);
        }
    }
    let made = domain.account_writer(NOW).expect("the vault is here");
    let token = identity::Credentials::read(&made.credentials()).expect("just made");
    assert_eq!(token.token().name, MOMENTARY_NAME);
}

#[test]
fn fg_03_a_name_is_promised_once_until_the_invitation_ends_or_is_withdrawn() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let first = domain.invite(named("a"), NOW).expect("a fresh name");
    domain
        .invite(listed(&["b", "c"]), NOW)
        .expect("fresh names");
    for invite in [
        named("a"),
        named("b"),
        named("c"),
        listed(&["x", "a"]),
        listed(&["c"]),
    ] {
        assert_eq!(code(domain.invite(invite, NOW)), Some(Code::NameTaken));
    }
    // The name of an invitation for listed keys is nobody's.
    let team = domain.invite(named("team"), NOW);
    team.expect("no machine of the list has that name");
    let withdrawn = domain.layout().invitations().withdraw(first.id());
    withdrawn.expect("the folder takes files");
    domain.invite(named("a"), NOW).expect("it is free again");
    let before = UnixMillis(first.ends.get() - 1);
    assert_eq!(
        code(domain.invite(named("b"), before)),
        Some(Code::NameTaken)
    );
    domain
        .invite(named("b"), first.ends)
        .expect("the promise has ended");
}

#[test]
fn fg_03_a_seat_that_another_worker_has_is_promised_to_nobody() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let mut held = record(&domain, "holder");
    held.seat = seat(0);
    let list = domain.layout().issued();
    list.record(&held).expect("the folder takes files");
    let sits = |rank, name| Invite {
        seat: seat(rank),
        ..named(name)
    };
    assert_eq!(
        code(domain.invite(sits(0, "a"), NOW)),
        Some(Code::SeatTaken)
    );
    domain
        .invite(sits(1, "b"), NOW)
        .expect("the other seat is free");
}

#[test]
fn fg_03_a_join_token_is_one_that_was_generated() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let path = scratch.path().join("invitation.json");
    let file = domain.invite(named("a"), NOW).expect("a fresh name");
    file.write(&path).expect("the folder takes files");
    let again = InvitationFile::read(&path).expect("it was written");
    assert_eq!(
        (again.id(), again.token.digest()),
        (file.id(), file.token.digest())
    );
    // The folders of the machine that invites are nobody's business.
    assert_eq!(file.trust.ca, Path::new("tls/ca.pem"));
    assert_eq!((&again.trust, &again.ca), (&file.trust, &file.ca));
    let shown = format!("{again:?}");
    assert!(
        shown.contains(file.id().as_str()) && shown.contains("demo"),
        "{shown}"
    );
    let text = fs::read_to_string(&path).expect("it was written");
    let whole: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let token = whole["token"].as_str().expect("a text").to_owned();
    assert!(!shown.contains(&token), "it is a secret");
    // Base32 of 30 and of 35 bytes, and no base32.
    for wrong in [
        "",
        &token[..48],
        &format!("{}{}", &token[..48], "AAAAAAAA"),
        "hello",
    ] {
        let mut changed = whole.clone();
        changed["token"] = wrong.into();
        write_private(&path, changed.to_string().as_bytes()).expect("the folder takes files");
        let refused = InvitationFile::read(&path).expect_err("nobody generated it");
        assert_eq!(refused.code(), Code::InvitationInvalid, "{wrong}");
    }
}

fn guest(worker: PublicKey, enrolled: Option<UnixMillis>) -> Guest {
    Guest {
        v: V,
        audit_key: worker.clone(),
        worker,
        asked: NOW,
        posture: Posture::default(),
        enrolled,
    }
}

#[test]
fn fg_03_a_domain_knows_what_became_of_an_invitation() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let list = domain.layout().invitations();
    assert_eq!(list.all().expect("there is no folder"), []);
    let file = domain.invite(named("a"), NOW).expect("a fresh name");
    let id = file.id().clone();
    let found = || list.find(&id).expect("it reads").expect("it was made");
    let terms = found().terms;
    assert_eq!(
        (&terms.invitation, &*terms.name, &terms.run),
        (&id, "a", &run())
    );
    assert_eq!(
        (terms.made, terms.ends, terms.token),
        (NOW, file.ends, file.token.digest())
    );
    assert_eq!(list.find(&key(1)).expect("it reads"), None);
    let guests = [
        guest(key(1), None),
        guest(key(2), Some(NOW)),
        guest(key(3), None),
    ];
    for guest in &guests {
        list.note(&id, guest).expect("the folder takes files");
    }
    for (number, word) in [(1, Word::Denied), (2, Word::Denied), (4, Word::Approved)] {
        list.say(&id, &key(number), word)
            .expect("the folder takes files");
    }
    // Files that nobody named after a key are none of ours.
    let folder = list.folder().join(id.as_str());
    write_private(&folder.join("guests/half.tmp"), b"x").expect("the folder takes files");
    let known = found();
    let all: BTreeMap<_, _> = guests
        .into_iter()
        .map(|one| (one.worker.clone(), one))
        .collect();
    assert_eq!(known.guests, all);
    assert_eq!(known.approved, BTreeSet::from([key(4)]));
    assert_eq!(known.denied, BTreeSet::from([key(1), key(2)]));
    assert!(!known.withdrawn);
    // A machine that was denied and never enrolled is forgotten, and no other.
    list.forget_denied(&known).expect("its files are ours");
    let left: Vec<_> = found().guests.into_keys().collect();
    assert_eq!(left, [key(2), key(3)]);
    list.forget_denied(&known).expect("it is gone already");
    let odd = folder.join(format!("guests/{}.json", key(1)));
    fs::create_dir(&odd).expect("the folder takes folders");
    assert!(list.forget_denied(&known).is_err(), "it cannot be removed");
    fs::remove_dir(&odd).expect("it is empty");
    list.withdraw(&id).expect("the folder takes files");
    assert!(found().withdrawn);
}

#[test]
fn invitations_are_listed_the_newest_first() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    for (name, after) in [("a", 1), ("b", 3), ("c", 2)] {
        let made = domain.invite(named(name), NOW.after(Millis(after)));
        made.expect("a fresh name");
    }
    let list = domain.layout().invitations();
    fs::create_dir(list.folder().join("no-key")).expect("the folder takes folders");
    let all = list.all().expect("they read");
    let names: Vec<&str> = all.iter().map(|one| &*one.terms.name).collect();
    assert_eq!(names, ["b", "c", "a"]);
}

/// A record under another name would give one machine what was promised to another.
#[test]
fn fg_03_a_record_about_somebody_else_is_refused() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let list = domain.layout().invitations();
    let file = domain.invite(named("a"), NOW).expect("a fresh name");
    let folder = list.folder().join(file.id().as_str());
    let code = |id: &PublicKey| list.find(id).map_err(|error| error.code()).err();
    let terms = fs::read(folder.join("terms.json")).expect("it was written");
    let moved = list.folder().join(key(1).as_str()).join("terms.json");
    write_private(&moved, &terms).expect("the folder takes files");
    assert_eq!(code(&key(1)), Some(Code::InvitationInvalid));
    list.note(file.id(), &guest(key(2), None))
        .expect("the folder takes files");
    let guests = folder.join("guests");
    let [own, other] = [2, 3].map(|number| guests.join(format!("{}.json", key(number))));
    assert_eq!(code(file.id()), None);
    fs::rename(own, other).expect("the folder is ours");
    assert_eq!(code(file.id()), Some(Code::InvitationInvalid));
}

/// What cannot be read is not the same as what is not there.
#[test]
fn an_invitation_that_cannot_be_read_is_an_error() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let list = InvitationList::at(&scratch.path().join("list"));
    fs::create_dir_all(list.folder().join(key(1).as_str()).join("terms.json"))
        .expect("the folder takes folders");
    assert!(list.find(&key(1)).is_err() && list.all().is_err());
    write_private(
        &list.folder().join(key(2).as_str()).join("terms.json"),
        b"{}",
    )
    .expect("the folder takes files");
    let refused = list.find(&key(2)).expect_err("these are no terms");
    assert_eq!(refused.code(), Code::InvitationInvalid);
    let in_its_place = list.folder().join(key(3).as_str());
    write_private(&in_its_place, b"x").expect("the folder takes files");
    assert!(list.find(&key(3)).is_err(), "it is no folder");
    let file = scratch.path().join("file");
    write_private(&file, b"x").expect("the folder takes files");
    assert!(InvitationList::at(&file).all().is_err(), "it is no folder");
}
