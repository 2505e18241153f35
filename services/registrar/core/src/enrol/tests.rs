//! Tests of enrolment: the right machine gets what was promised, again and again; nobody else gets
//! anything.

use std::collections::{BTreeMap, BTreeSet};

use schemas::member::OpenLayer;
use schemas::{Digest, Message as _, Rank, RunId};

use super::*;
use crate::Heard;

const NOW: UnixMillis = UnixMillis(1_700_000_000_500);
const LIFETIME: Millis = Millis::from_secs(3600);
/// An alteration of a question.
type Alter = fn(&mut AskedToEnrol);

const TOKEN: &str = "a token that was generated";

fn key(letter: char) -> PublicKey {
    let text = format!("U{}", letter.to_string().repeat(55));
    text.parse().expect("the form of a user's key")
}

fn run(name: &str) -> RunId {
    name.parse().expect("a name")
}

fn digest(text: &str) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(text.as_bytes());
    hasher.finish()
}

fn seat(rank: u32) -> Seat {
    Seat::new("left".parse().expect("a name"), Rank(rank), 2).expect("one of two")
}

fn registrar() -> Registrar {
    Registrar::new(LIFETIME, Posture::default())
}

fn terms(admission: Admission) -> Terms {
    let account = format!("A{}", "B".repeat(55));
    Terms {
        v: V,
        invitation: key('I'),
        name: "worker-7".to_owned(),
        run: run("demo"),
        account: account.parse().expect("the form of an account's key"),
        seat: Some(seat(1)),
        admission,
        token: digest(TOKEN),
        made: UnixMillis(NOW.get() - 1000),
        ends: UnixMillis(NOW.get() + 60_000),
    }
}

/// The machine with keys `worker` and `worker`'s next letter asks.
fn asks(worker: char) -> AskedToEnrol {
    let audit = char::from(worker as u8 + 1);
    AskedToEnrol {
        invitation: key('I'),
        request: EnrolmentRequest {
            v: V,
            run: run("demo"),
            worker: key(worker),
            audit_key: key(audit),
            token: TOKEN.to_owned(),
            at: NOW,
            posture: Posture::default(),
            by_worker: [7; 64].into(),
            by_audit_key: [8; 64].into(),
        },
    }
}

/// What the domain has on its disk.
struct Disk {
    invitation: Invitation,
    records: BTreeMap<PublicKey, Registration>,
}

impl Disk {
    fn with(admission: Admission) -> Self {
        Self {
            invitation: Invitation {
                terms: terms(admission),
                withdrawn: false,
                guests: BTreeMap::new(),
                approved: BTreeSet::new(),
                denied: BTreeSet::new(),
            },
            records: BTreeMap::new(),
        }
    }

    fn decide(
        &self,
        now: UnixMillis,
        asked: &AskedToEnrol,
    ) -> Result<Enrolled, (Refusal, Option<Box<Guest>>)> {
        let known = Known {
            invitation: Some(&self.invitation),
            record: self.records.get(&asked.request.worker),
            in_the_way: None,
            proven: true,
        };
        registrar().enrol(now, asked, known)
    }

    fn note(&mut self, guest: Guest) {
        self.invitation.guests.insert(guest.worker.clone(), guest);
    }

    /// Decides, and keeps everything that was decided.
    fn ask(&mut self, asked: &AskedToEnrol) -> Result<Enrolled, Code> {
        let decided = self.decide(NOW, asked);
        match decided {
            Ok(enrolled) => {
                if let Some(guest) = enrolled.guest.clone() {
                    self.note(guest);
                }
                let record = enrolled.record.clone();
                self.records.insert(record.public.clone(), record);
                Ok(enrolled)
            }
            Err((refusal, guest)) => {
                if let Some(guest) = guest {
                    self.note(*guest);
                }
                Err(refusal.code)
            }
        }
    }

    fn refuses(&self, asked: &AskedToEnrol) -> Code {
        let (refusal, guest) = self.decide(NOW, asked).expect_err("not to be enrolled");
        assert_eq!(guest, None, "nobody is kept who was refused");
        refusal.code
    }
}

#[test]
fn fg_03_a_machine_becomes_what_its_invitation_says() {
    let disk = Disk::with(Admission::Token);
    let enrolled = disk.decide(NOW, &asks('C')).expect("it was invited");
    let terms = &disk.invitation.terms;
    let expected = Registration {
        v: V,
        name: "worker-7".to_owned(),
        role: Role::Worker,
        run: Some(run("demo")),
        account: terms.account.clone(),
        public: key('C'),
        issued: NOW,
        ends: UnixMillis(1_700_003_600_000),
        blocked: None,
        audit_key: Some(key('D')),
        seat: Some(seat(1)),
        before: None,
        changes_until: None,
    };
    assert_eq!(enrolled.record, expected);
    assert!(enrolled.is_new);
    let validity = Validity {
        issued: NOW,
        ends: expected.ends,
    };
    assert_eq!(enrolled.validity, validity);
    let guest = enrolled.guest.expect("it is kept");
    assert_eq!((guest.worker, guest.audit_key), (key('C'), key('D')));
    assert_eq!((guest.asked, guest.enrolled), (NOW, Some(NOW)));
}

/// The registrar may die between any two of its writes, and the answer may be lost.
#[test]
fn fg_03_the_same_keys_get_the_same_answer_after_a_crash_at_any_point() {
    for written in 0..=2 {
        let mut disk = Disk::with(Admission::Token);
        let first = disk.decide(NOW, &asks('C')).expect("it was invited");
        if written >= 1 {
            disk.note(first.guest.clone().expect("it is kept first"));
        }
        if written >= 2 {
            disk.records.insert(key('C'), first.record.clone());
        }
        let later = UnixMillis(NOW.get() + 5000);
        let again = disk.decide(later, &asks('C')).expect("it was invited");
        let same = Registration {
            issued: first.record.issued,
            ends: first.record.ends,
            ..again.record.clone()
        };
        assert_eq!(same, first.record, "after {written} writes");
        assert_eq!(again.is_new, written < 2);
        assert_eq!(again.guest.is_some(), written < 1);
        let thief = disk.decide(later, &asks('E'));
        let code = thief.map_err(|(refusal, _)| refusal.code).err();
        let expected = (written >= 1).then_some(Code::InvitationUsed);
        assert_eq!(code, expected, "after {written} writes");
    }
}

/// Its revocation may be known only where the vault lies. It covers the tokens of its next minutes.
#[test]
fn fg_03_an_enrolled_machine_that_asks_again_later_is_refused() {
    let listed = BTreeMap::from([(key('C'), "worker-7".to_owned())]);
    for admission in [Admission::Token, Admission::Hand, Admission::Listed(listed)] {
        let mut disk = Disk::with(admission);
        disk.invitation.terms.ends = NOW.after(Millis::from_secs(3600));
        disk.invitation.approved.insert(key('C'));
        disk.ask(&asks('C')).expect("it was invited");
        let at = |after: Millis| {
            let mut asked = asks('C');
            asked.request.at = NOW.after(after);
            let decided = disk.decide(asked.request.at, &asked);
            decided.map_err(|(refusal, guest)| (refusal.code, guest))
        };
        let last = at(REPEATED_MAX).expect("its answer may have been lost");
        assert_eq!(last.validity.issued, NOW.after(REPEATED_MAX));
        let later = at(REPEATED_MAX + Millis(1));
        assert_eq!(later, Err((Code::InvitationUsed, None)));
    }
}

#[test]
fn fg_03_a_used_invitation_is_worth_nothing_to_its_thief() {
    let mut disk = Disk::with(Admission::Token);
    disk.ask(&asks('C')).expect("it was invited");
    assert_eq!(disk.refuses(&asks('E')), Code::InvitationUsed);
    let mut other_audit_key = asks('C');
    other_audit_key.request.audit_key = key('F');
    assert_eq!(disk.refuses(&other_audit_key), Code::InvitationUsed);
}

#[test]
fn fg_03_nothing_that_a_machine_sends_changes_what_it_gets() {
    let disk = Disk::with(Admission::Token);
    let alter: [(Alter, Code); 8] = [
        (|asked| asked.invitation = key('J'), Code::InvitationUnknown),
        (
            |asked| asked.request.run = run("other"),
            Code::InvitationMismatch,
        ),
        (
            |asked| asked.request.token = "changeme".to_owned(),
            Code::InvitationMismatch,
        ),
        (
            |asked| asked.request.token = String::new(),
            Code::InvitationMismatch,
        ),
        (
            |asked| asked.request.token = "  ".to_owned(),
            Code::InvitationMismatch,
        ),
        (
            |asked| asked.request.audit_key = key('C'),
            Code::EnrolmentUnproven,
        ),
        (
            |asked| asked.request.at = UnixMillis(NOW.get() + PROOF_AGE_MAX.get() + 1),
            Code::EnrolmentUnproven,
        ),
        (
            |asked| asked.request.at = UnixMillis(NOW.get() - PROOF_AGE_MAX.get() - 1),
            Code::EnrolmentUnproven,
        ),
    ];
    for (alter, code) in alter {
        let mut asked = asks('C');
        alter(&mut asked);
        assert_eq!(disk.refuses(&asked), code, "{asked:?}");
    }
    for off in [
        NOW.get() + PROOF_AGE_MAX.get(),
        NOW.get() - PROOF_AGE_MAX.get(),
    ] {
        let mut asked = asks('C');
        asked.request.at = UnixMillis(off);
        assert!(disk.decide(NOW, &asked).is_ok());
    }
}

#[test]
fn fg_03_a_forged_proof_and_a_taken_seat_are_refused() {
    let disk = Disk::with(Admission::Token);
    let asked = asks('C');
    let right = Known {
        invitation: Some(&disk.invitation),
        record: None,
        in_the_way: None,
        proven: true,
    };
    let code = |known: Known<'_>| {
        let decided = registrar().enrol(NOW, &asked, known);
        decided.expect_err("not to be enrolled").0.code
    };
    let forged = Known {
        proven: false,
        ..right
    };
    assert_eq!(code(forged), Code::EnrolmentUnproven);
    let nobodys = Known {
        invitation: None,
        ..right
    };
    assert_eq!(code(nobodys), Code::InvitationUnknown);
    let other = ("worker-3".to_owned(), seat(1));
    let taken = Known {
        in_the_way: Some(&other),
        ..right
    };
    assert_eq!(code(taken), Code::SeatTaken);
    assert!(registrar().enrol(NOW, &asked, right).is_ok());
}

#[test]
fn fg_03_an_invitation_ends_and_can_be_withdrawn() {
    let mut disk = Disk::with(Admission::Token);
    let end = disk.invitation.terms.ends;
    let at = |disk: &Disk, now: UnixMillis| {
        let mut asked = asks('C');
        asked.request.at = now;
        disk.decide(now, &asked)
            .map_err(|(refusal, _)| refusal.code)
    };
    assert!(at(&disk, UnixMillis(end.get() - 1)).is_ok());
    assert_eq!(at(&disk, end), Err(Code::InvitationEnded));
    disk.invitation.withdrawn = true;
    assert_eq!(disk.refuses(&asks('C')), Code::EnrolmentDenied);
}

#[test]
fn fg_03_by_hand_one_key_is_enrolled_when_a_person_has_approved_it() {
    let mut disk = Disk::with(Admission::Hand);
    for letter in ['C', 'E', 'C'] {
        assert_eq!(disk.ask(&asks(letter)), Err(Code::EnrolmentPending));
    }
    assert_eq!(disk.invitation.guests.len(), 2);
    assert!(disk.records.is_empty());
    assert_eq!(disk.invitation.guests[&key('C')].enrolled, None);
    disk.invitation.denied.insert(key('E'));
    assert_eq!(disk.refuses(&asks('E')), Code::EnrolmentDenied);
    disk.invitation.denied.clear();
    disk.invitation.approved.insert(key('C'));
    // Once one is approved, the others need not wait.
    assert_eq!(disk.refuses(&asks('E')), Code::InvitationUsed);
    assert_eq!(disk.refuses(&asks('G')), Code::InvitationUsed);
    // What was approved is this pair of keys.
    let mut other_audit_key = asks('C');
    other_audit_key.request.audit_key = key('F');
    assert_eq!(disk.refuses(&other_audit_key), Code::InvitationUsed);
    let enrolled = disk.ask(&asks('C')).expect("it was approved");
    assert_eq!(enrolled.record.name, "worker-7");
    assert_eq!(disk.invitation.guests[&key('C')].asked, NOW);
    assert!(disk.ask(&asks('C')).is_ok(), "again");
    // An approval that is taken back does not let another in.
    disk.invitation.approved = BTreeSet::from([key('E')]);
    assert_eq!(disk.refuses(&asks('E')), Code::InvitationUsed);
}

#[test]
fn those_who_wait_for_approval_are_few() {
    let mut disk = Disk::with(Admission::Hand);
    for index in 0..GUESTS_MAX {
        let mut asked = asks('C');
        let letter = char::from(b'A' + u8::try_from(index).expect("few"));
        let text = format!("U{letter}{}", "C".repeat(54));
        asked.request.worker = text.parse().expect("a key");
        assert_eq!(disk.ask(&asked), Err(Code::EnrolmentPending));
        assert_eq!(disk.ask(&asked), Err(Code::EnrolmentPending), "it waits");
    }
    assert_eq!(disk.refuses(&asks('E')), Code::InvitationUsed);
    // A denial makes room for one.
    let denied = disk.invitation.guests.keys().next().cloned();
    disk.invitation.denied.extend(denied);
    assert_eq!(disk.ask(&asks('E')), Err(Code::EnrolmentPending));
    assert_eq!(disk.refuses(&asks('G')), Code::InvitationUsed);
}

#[test]
fn fg_03_listed_keys_are_enrolled_under_their_own_names_and_no_others() {
    let names = [('C', "left"), ('E', "right")];
    let listed = names.map(|(letter, name)| (key(letter), name.to_owned()));
    let mut disk = Disk::with(Admission::Listed(listed.into()));
    for (letter, name) in names {
        let enrolled = disk.ask(&asks(letter)).expect("it is listed");
        assert_eq!(enrolled.record.name, name);
        assert!(disk.ask(&asks(letter)).is_ok(), "again");
    }
    assert_eq!(disk.refuses(&asks('G')), Code::InvitationMismatch);
}

/// An enrolled worker may hold another invitation: it stays what it is.
#[test]
fn fg_03_no_invitation_changes_an_enrolled_worker() {
    let mut disk = Disk::with(Admission::Token);
    let enrolled = disk.ask(&asks('C')).expect("it was invited").record;
    let differ: [fn(&mut Registration); 6] = [
        |record| record.name = "worker-8".to_owned(),
        |record| record.run = Some(run("other")),
        |record| record.seat = Some(seat(0)),
        |record| record.seat = None,
        |record| record.audit_key = Some(key('F')),
        |record| record.role = Role::Auditor,
    ];
    for differ in differ {
        let mut record = enrolled.clone();
        differ(&mut record);
        disk.records.insert(key('C'), record.clone());
        assert_eq!(
            disk.refuses(&asks('C')),
            Code::InvitationMismatch,
            "{record:?}"
        );
    }
    let blocked = Registration {
        blocked: Some(NOW),
        ..enrolled.clone()
    };
    disk.records.insert(key('C'), blocked);
    assert_eq!(disk.refuses(&asks('C')), Code::HolderBlocked);
    // A token that was dated ahead stays the oldest that the broker takes.
    let ahead = Registration {
        issued: NOW.after(Millis::from_secs(300)),
        ..enrolled
    };
    disk.records.insert(key('C'), ahead.clone());
    let again = disk.decide(NOW, &asks('C')).expect("it is enrolled");
    assert_eq!(again.validity.issued, ahead.issued);
    assert_eq!(again.record, ahead);
}

#[test]
fn a_machine_that_opens_a_layer_is_refused_where_the_registrar_does_not() {
    let disk = Disk::with(Admission::Token);
    let open = |layer| OpenLayer {
        layer,
        reason: "a test".to_owned(),
    };
    let mut asked = asks('C');
    asked.request.posture.open = vec![open(Layer::Bulk)];
    assert_eq!(disk.refuses(&asked), Code::LayerOpen);
    let known = Known {
        invitation: Some(&disk.invitation),
        record: None,
        in_the_way: None,
        proven: true,
    };
    let lenient = Registrar::new(LIFETIME, asked.request.posture.clone());
    assert!(lenient.enrol(NOW, &asked, known).is_ok());
    asked.request.posture.open = vec![open(Layer::Bulk); 5];
    assert_eq!(disk.refuses(&asked), Code::MessageInvalid);
    asked.request.posture.open = vec![OpenLayer {
        layer: Layer::Bulk,
        reason: "x".repeat(TEXT_BYTES_MAX + 1),
    }];
    assert_eq!(disk.refuses(&asked), Code::MessageInvalid);
    // As long as a posture may be, it is looked at.
    let longest = OpenLayer {
        layer: Layer::Bulk,
        reason: "x".repeat(TEXT_BYTES_MAX),
    };
    asked.request.posture.open = vec![longest; Layer::ALL.len()];
    assert_eq!(disk.refuses(&asked), Code::LayerOpen);
}

#[test]
fn a_flood_on_one_invitation_is_dropped_and_garbage_is_nobodys() {
    let mut registrar = registrar();
    let account = format!("A{}", "B".repeat(55));
    let subject = format!("diloco.enrolment.{account}.{}.ask", key('I'));
    let asked = asks('C');
    let payload = asked.request.encode();
    let expected = Heard::Newcomer(Box::new(asked));
    for _ in 0..crate::QUESTIONS_BURST {
        assert_eq!(registrar.hear(NOW, &subject, b"\xc0"), Heard::Nobody);
        assert_eq!(registrar.hear(NOW, &subject, &payload), expected);
    }
    let over = registrar.hear(NOW, &subject, &payload);
    assert_eq!(over, Heard::TooOften(key('I')));
    let renewal = schemas::renewal::RenewalRequest {
        v: V,
        ends: NOW,
        successor: None,
    };
    let other = subject.replace(key('I').as_str(), key('J').as_str());
    assert_eq!(
        registrar.hear(NOW, &other, &renewal.encode()),
        Heard::Nobody
    );
    assert_eq!(
        registrar.hear(NOW, &other.replace(".ask", ".token"), &payload),
        Heard::Nobody
    );
}
