//! Tests of the decisions.

use schemas::permission::Role;
use schemas::{Addressee, Answer, Reply, V};

use super::*;

const NOW: UnixMillis = UnixMillis(1_700_000_000_500);
const LIFETIME: Millis = Millis::from_secs(3600);

fn key(kind: char, letter: char) -> String {
    format!("{kind}{}", letter.to_string().repeat(55))
}

fn holder(letter: char) -> PublicKey {
    key('U', letter).parse().expect("the form of a user's key")
}

fn account(letter: char) -> AccountId {
    key('A', letter)
        .parse()
        .expect("the form of an account's key")
}

fn run(name: &str) -> RunId {
    name.parse().expect("a name")
}

fn record() -> Registration {
    Registration {
        v: V,
        name: "worker-0".to_owned(),
        role: Role::Worker,
        run: Some(run("demo")),
        account: account('B'),
        public: holder('A'),
        issued: UnixMillis(1),
        ends: UnixMillis(2),
        blocked: None,
        audit_key: None,
        seat: None,
        before: None,
        changes_until: None,
    }
}

fn asked() -> Asked {
    Asked {
        account: account('B'),
        run: Some(run("demo")),
        holder: holder('A'),
    }
}

fn subject(asked: &Asked) -> String {
    let run = asked.run.as_ref().map_or("cluster", RunId::as_str);
    format!(
        "diloco.renewal.{}.{run}.{}.token",
        asked.account, asked.holder
    )
}

fn question() -> Vec<u8> {
    RenewalRequest {
        v: V,
        ends: UnixMillis(2),
        successor: None,
    }
    .encode()
}

#[test]
fn tl_06_a_holder_gets_a_token_of_whole_seconds_and_of_the_registrars_life() {
    let mut registrar = Registrar::new(LIFETIME, Posture::default());
    let heard = registrar.hear(NOW, &subject(&asked()), &question());
    assert_eq!(heard, Heard::Asked(asked()));
    let decided = registrar.decide(NOW, &asked(), Some(&record()));
    let expected = Validity {
        issued: NOW,
        ends: UnixMillis(1_700_003_600_000),
    };
    assert_eq!(decided, Ok(expected));
    // A record from long ago, whose token was never used, is as good as a new one: it is the broker
    // that asks for a token that has not ended.
    let mut of_no_run = record();
    (of_no_run.role, of_no_run.run) = (Role::Auditor, None);
    let without = Asked {
        run: None,
        ..asked()
    };
    let heard = registrar.hear(NOW, &subject(&without), &question());
    assert_eq!(heard, Heard::Asked(without.clone()));
    assert!(registrar.decide(NOW, &without, Some(&of_no_run)).is_ok());
}

/// After a revocation a key's newest token is dated ahead, and the broker takes none from before.
#[test]
fn tl_07_a_token_is_never_dated_before_the_one_on_record() {
    let registrar = Registrar::new(LIFETIME, Posture::default());
    let mut ahead = record();
    ahead.issued = NOW.after(Millis::from_secs(300));
    let expected = Validity {
        issued: ahead.issued,
        ends: UnixMillis(1_700_003_900_000),
    };
    let decided = registrar.decide(NOW, &asked(), Some(&ahead));
    assert_eq!(decided, Ok(expected));
}

#[test]
fn a_holder_gets_nothing_but_what_was_issued_for_its_key() {
    let registrar = Registrar::new(LIFETIME, Posture::default());
    let code = |asked: &Asked, record: Option<&Registration>| {
        let decided = registrar.decide(NOW, asked, record);
        decided.expect_err("it is not to be renewed").code
    };
    assert_eq!(code(&asked(), None), Code::HolderUnknown);
    let mut other = record();
    other.public = holder('C');
    assert_eq!(code(&asked(), Some(&other)), Code::HolderUnknown);
    let mut blocked = record();
    blocked.blocked = Some(NOW);
    assert_eq!(code(&asked(), Some(&blocked)), Code::HolderBlocked);
    for wrong in [
        Asked {
            account: account('C'),
            ..asked()
        },
        Asked {
            run: Some(run("other")),
            ..asked()
        },
        Asked {
            run: None,
            ..asked()
        },
    ] {
        assert_eq!(
            code(&wrong, Some(&record())),
            Code::HolderMismatch,
            "{wrong:?}"
        );
    }
    // Records that nobody writes: a role that is not renewed, and roles with and without a run.
    for (role, run) in [
        (Role::Provisioner, None),
        (Role::Operator, Some(run("demo"))),
        (Role::Worker, None),
    ] {
        let mut odd = record();
        (odd.role, odd.run) = (role, run.clone());
        let asked = Asked { run, ..asked() };
        assert_eq!(code(&asked, Some(&odd)), Code::HolderMismatch, "{role:?}");
    }
}

#[test]
fn garbage_and_answers_are_told_apart() {
    let mut registrar = Registrar::new(LIFETIME, Posture::default());
    let own = subject(&asked());
    // Somebody has other answers than ours sent here.
    for _ in 0..10 * QUESTIONS_BURST {
        for garbage in [&b""[..], b"\xc0", b"{}", &[0x80; 4096]] {
            assert_eq!(registrar.hear(NOW, &own, garbage), Heard::Nobody);
        }
    }
    let addressee = Addressee::of(&own, &question()).expect("it names a key");
    assert_eq!(addressee.by, holder('A'));
    let refused: Reply<schemas::renewal::RenewalReply> =
        Reply::Refused(Refusal::new(Code::HolderUnknown, "x"));
    let answer = Answer::new(&addressee, refused).encode();
    // Somebody has the answers to its own questions sent to a subject of somebody else, who is not
    // to pay for that.
    for _ in 0..10 * QUESTIONS_BURST {
        assert_eq!(registrar.hear(NOW, &own, &answer), Heard::Answer);
    }
    assert_eq!(
        registrar.hear(NOW, &own, &question()),
        Heard::Asked(asked())
    );
    for odd in [
        "diloco.renewal",
        "diloco.renewal.>",
        "diloco.request.a.b.c",
        &own.replace(".token", ".other"),
        &own.replace(".token", ""),
        &format!("{own}.more"),
        &own.replace("demo", "operator"),
    ] {
        assert_eq!(
            registrar.hear(NOW, odd, &question()),
            Heard::Nobody,
            "{odd}"
        );
    }
}

#[test]
fn a_flood_of_one_holder_is_dropped_and_hides_nobody_else() {
    let mut registrar = Registrar::new(LIFETIME, Posture::default());
    let flooder = subject(&asked());
    let mut heard = 0;
    for _ in 0..1000 {
        match registrar.hear(NOW, &flooder, &question()) {
            Heard::Asked(_) => heard += 1,
            Heard::TooOften(holder) => assert_eq!(holder, asked().holder),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard, QUESTIONS_BURST);
    let other = Asked {
        holder: holder('C'),
        ..asked()
    };
    let heard = registrar.hear(NOW, &subject(&other), &question());
    assert_eq!(heard, Heard::Asked(other));
    let later = NOW.after(QUESTION_EVERY);
    let again = registrar.hear(later, &flooder, &question());
    assert_eq!(again, Heard::Asked(asked()), "one more after a while");
    let again = registrar.hear(later, &flooder, &question());
    assert_eq!(again, Heard::TooOften(asked().holder));
}

#[test]
fn rates_are_forgotten_when_they_mean_nothing_any_more() {
    let mut registrar = Registrar::new(LIFETIME, Posture::default());
    let letters = ['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H'];
    for (first, second) in letters
        .iter()
        .flat_map(|a| letters.iter().map(move |b| (a, b)))
    {
        let key = format!("U{first}{second}{}", "A".repeat(53));
        assert!(registrar.admit(&key.parse().expect("a key"), NOW));
    }
    assert_eq!(registrar.rates.len(), 64);
    let rested = NOW.after(QUESTION_EVERY);
    assert!(registrar.rates.values().all(|rate| rate.is_full(rested)));
    assert!(registrar.rates.values().all(|rate| !rate.is_full(NOW)));
}

/// So many holders can be told apart and no more: those that asked lately keep others out, and make
/// room as soon as forgetting them changes nothing for them.
#[test]
fn the_rates_of_a_bounded_number_of_holders_are_remembered() {
    let mut registrar = Registrar::new(LIFETIME, Posture::default());
    let key = |number: usize| -> PublicKey {
        let letter = |at: u32| char::from(b'A' + (number >> (4 * at) & 15) as u8);
        let digits: String = (0..5).rev().map(letter).collect();
        let text = format!("U{}{digits}", "A".repeat(50));
        text.parse().expect("the form of a user's key")
    };
    for number in 0..HOLDERS_MAX {
        assert!(registrar.admit(&key(number), NOW));
    }
    let (known, other) = (key(7), key(HOLDERS_MAX));
    assert!(!registrar.admit(&other, NOW), "there is no room");
    assert!(registrar.admit(&known, NOW), "it has its place");
    assert_eq!(registrar.rates.len(), HOLDERS_MAX);
    let rested = NOW.after(QUESTION_EVERY);
    assert!(registrar.admit(&other, rested), "the others have rested");
    let left: Vec<&PublicKey> = registrar.rates.keys().collect();
    assert_eq!(left, [&known, &other], "one has asked twice");
}
