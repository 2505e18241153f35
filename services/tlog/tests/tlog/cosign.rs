//! Cosignatures of witnesses, and policies.

use std::collections::BTreeSet;

use data_encoding::BASE64;
use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest as _, Sha256};
use tlog::cosign::{Policy, PolicyError, Witness, cosigned};
use tlog::note::NOTE_BYTES_MAX;
use tlog::{Head, HeadError};

use crate::support::{ORIGIN, public, sign};

fn head(size: u64) -> Head {
    Head {
        origin: ORIGIN.to_owned(),
        size,
        root: [9; 32],
    }
}

fn witness(seed: u8, name: &str) -> (SigningKey, Witness) {
    let key = SigningKey::from_bytes(&[seed; 32]);
    let witness = Witness::new(name, key.verifying_key().to_bytes()).unwrap();
    (key, witness)
}

fn line((key, witness): &(SigningKey, Witness), head: &Head, time: u64) -> String {
    let signature = key.sign(cosigned(head, time).as_bytes());
    witness.line(time, &signature.to_bytes())
}

/// As the specification words it, without the code that is tested.
#[test]
fn fg_07_a_cosignature_has_the_form_of_c2sp() {
    let (one, head) = (witness(1, "site.example"), head(20_852_163));
    let text = format!(
        "cosignature/v1\ntime 1679315147\n{ORIGIN}\n20852163\n{}\n",
        BASE64.encode(&[9; 32])
    );
    assert_eq!(cosigned(&head, 1_679_315_147), text);
    let signature = one.0.sign(text.as_bytes()).to_bytes();
    let key = one.0.verifying_key().to_bytes();
    let id = Sha256::digest([b"site.example\n\x04", &key[..]].concat());
    let stated = [&id[..4], &1_679_315_147_u64.to_be_bytes(), &signature].concat();
    let expected = format!("\u{2014} site.example {}\n", BASE64.encode(&stated));
    assert_eq!(line(&one, &head, 1_679_315_147), expected);
    let hex = data_encoding::HEXLOWER.encode(&id[..4]);
    let named = BASE64.encode(&[&[4][..], &key].concat());
    assert_eq!(one.1.text(), format!("site.example+{hex}+{named}"));
    assert_eq!(Witness::read(&one.1.text()), Ok(one.1));
}

#[test]
fn fg_07_a_cosignature_counts_for_its_witness_and_its_head_alone() {
    let (one, two) = (witness(1, "one"), witness(2, "two"));
    let (head, other) = (head(5), head(6));
    let note = sign(&head) + &line(&one, &head, 77);
    let at = |witness: &Witness, note: &str| witness.cosigned_at(note.as_bytes(), &head);
    assert_eq!(at(&one.1, &note), Ok(Some(77)));
    assert_eq!(at(&two.1, &note), Ok(None));
    assert_eq!(at(&one.1, &sign(&head)), Ok(None));
    // The log's own readers take the text as before, with any number of witnesses.
    let both = note.clone() + &line(&two, &head, 78);
    assert_eq!(
        Head::open(both.as_bytes(), ORIGIN, &[public()]).as_ref(),
        Ok(&head)
    );
    assert_eq!(
        (at(&one.1, &both), at(&two.1, &both)),
        (Ok(Some(77)), Ok(Some(78)))
    );
    // A line under the witness's name that its key has not signed for this head.
    let forged = Err(HeadError::Forged);
    assert_eq!(at(&one.1, &(sign(&head) + &line(&one, &other, 77))), forged);
    let moved = line(&one, &head, 77);
    let stated = moved.rsplit_once(' ').unwrap().1.trim_end();
    let mut bytes = BASE64.decode(stated.as_bytes()).unwrap();
    bytes[11] ^= 1;
    let moved = moved.replace(stated, &BASE64.encode(&bytes));
    assert_eq!(at(&one.1, &(sign(&head) + &moved)), forged, "another time");
    let short = moved.replace(&BASE64.encode(&bytes), &BASE64.encode(&bytes[..9]));
    assert_eq!(at(&one.1, &(sign(&head) + &short)), forged);
    // Another key under the same name is another witness.
    let namesake = witness(3, "one");
    assert_eq!(at(&namesake.1, &note), Ok(None));
    let long = note + &line(&two, &head, 1).repeat(NOTE_BYTES_MAX / 100);
    assert!(at(&one.1, &long).is_err());
}

#[test]
fn a_key_of_a_witness_is_read_in_one_form() {
    let (_, one) = witness(1, "one");
    let text = one.text();
    let (_, other) = witness(2, "one");
    let other_text = other.text();
    let tail = other_text.rsplit_once('+').unwrap().1;
    for bad in [
        "",
        "one",
        &text[..text.len() - 1],
        &text.replacen("one", "two", 1),
        &text.replacen('+', " ", 1),
        &format!("{}+{tail}", text.rsplit_once('+').unwrap().0),
        &text.replacen("+B", "+A", 1),
    ] {
        assert!(
            matches!(Witness::read(bad), Err(PolicyError::Key(_))),
            "{bad}"
        );
    }
    for name in ["", "a b", "a+b", "ä", &"a".repeat(129)] {
        assert!(Witness::new(name, [1; 32]).is_err(), "{name}");
    }
}

/// A policy with these lines behind three witnesses.
fn policy(lines: &str) -> Result<Policy, PolicyError> {
    let names = ["a", "b", "c"];
    let mut text = String::from("# witnesses\n\n");
    for (seed, name) in (1..).zip(names) {
        let (_, witness) = witness(seed, &format!("site-{name}"));
        text += &format!("witness {name} {} https://{name}.example\n", witness.text());
    }
    Policy::read((text + lines).as_bytes())
}

#[test]
fn fg_07_a_policy_says_which_witnesses_are_enough() {
    let met = |lines: &str, by: &str| {
        let by: BTreeSet<&str> = by.split_ascii_whitespace().collect();
        policy(lines).unwrap().is_met(&by)
    };
    for (lines, enough, too_few) in [
        ("quorum b", &["b", "a b"][..], &["", "a c"][..]),
        (
            "group g 2 a b c\nquorum g",
            &["a b", "b c", "a b c"],
            &["", "a", "c"],
        ),
        (
            "group g all a b\nquorum g",
            &["a b", "a b c"],
            &["a", "b c"],
        ),
        ("group g any a b\nquorum g", &["a", "b"], &["", "c"]),
        (
            "group g any a b\ngroup h all g c\nquorum h",
            &["a c", "b c"],
            &["c", "a b"],
        ),
        ("quorum none", &["", "a"], &[]),
    ] {
        for by in enough {
            assert!(met(lines, by), "{lines}: {by}");
        }
        for by in too_few {
            assert!(!met(lines, by), "{lines}: {by}");
        }
    }
    let asking = |least| policy("quorum none").unwrap().asking(least);
    let two = asking(2).unwrap();
    assert!(!two.is_met(&BTreeSet::from(["a"])));
    assert!(two.is_met(&BTreeSet::from(["a", "c"])));
    assert!(asking(0).is_err() && asking(4).is_err());
}

#[test]
fn a_policy_that_is_not_clear_is_none() {
    let (_, a) = witness(1, "again");
    for lines in [
        "",
        "quorum",
        "quorum d",
        "quorum a b",
        "quorum a\nquorum b",
        "group g 2 a\nquorum g",
        "group g 0 a\nquorum g",
        "group g a\nquorum a",
        "group g x a\nquorum g",
        "group g 1 a d\nquorum g",
        "group g 2 a a\nquorum g",
        "group g 1 g\nquorum g",
        "group g 1 a b\ngroup h 1 a c\nquorum h",
        "group g 1 a b\ngroup h 1 g c\ngroup i 2 g h\nquorum i",
        "quorum a\r",
        "quorum\u{b}a",
        "quorum\u{c}a",
        "quorum\u{a0}a",
        "group a 1 b\nquorum a",
        "group none 1 b\nquorum a",
        "witness d x\nquorum a",
        &format!("witness d {}\nquorum a", a.text()),
        &format!("log {}\nquorum a", a.text()),
        "log x\nquorum a",
        "something\nquorum a",
    ] {
        assert!(policy(lines).is_err(), "{lines}");
    }
    assert!(matches!(Policy::read(b"\xff"), Err(PolicyError::NoText)));
    let long = vec![b'\n'; tlog::cosign::POLICY_BYTES_MAX + 1];
    assert!(matches!(Policy::read(&long), Err(PolicyError::NoText)));
}

#[test]
fn a_policy_may_name_the_log() {
    let key = public();
    let id = Sha256::digest([ORIGIN.as_bytes(), b"\n\x01", &key[..]].concat());
    let hex = data_encoding::HEXLOWER.encode(&id[..4]);
    let stated = BASE64.encode(&[&[1][..], &key].concat());
    let named = policy(&format!("log {ORIGIN}+{hex}+{stated}\nquorum a")).unwrap();
    assert!(named.names_log(ORIGIN, &[[0; 32], key]));
    let line = format!("log {ORIGIN}+{hex}+{stated}\n");
    assert!(policy(&format!("{line}log  {}\nquorum a", &line[4..])).is_err());
    assert!(policy(&format!("{}\t \nquorum\ta", line.trim_end())).is_ok());
    assert!(!named.names_log(ORIGIN, &[[0; 32]]));
    assert!(!named.names_log("diloco/other", &[key]));
    assert!(policy("quorum a").unwrap().names_log(ORIGIN, &[key]));
}

/// What is wrong is said of the line in which it is.
#[test]
fn a_policy_names_the_line_that_it_does_not_take() {
    let named = |lines: &str| match policy(lines) {
        Err(PolicyError::Line { line, reason }) => (line, reason),
        other => panic!("{lines}: {other:?}"),
    };
    // Five lines stand before these.
    for (lines, line, reason) in [
        ("quorum d", 6, "it names no witness and no group"),
        ("quorum a\n\nquorum b", 8, "there is a quorum already"),
        ("quorum", 6, "it is no line"),
        ("\ngroup g", 7, "it is no line"),
        ("group g any", 6, "it is no line"),
        ("log x", 6, "no key of a log"),
    ] {
        let (at, said) = named(lines);
        assert_eq!(at, line, "{lines}");
        assert!(said.contains(reason), "{lines}: {said}");
    }
    assert_eq!(policy(""), Err(PolicyError::NoQuorum));
}

#[test]
fn a_policy_lists_its_witnesses_under_its_own_names() {
    let policy = policy("quorum a").unwrap();
    let listed: Vec<(&str, &str)> = policy
        .witnesses()
        .map(|(name, witness)| (name, witness.name()))
        .collect();
    assert_eq!(listed, [("a", "site-a"), ("b", "site-b"), ("c", "site-c")]);
}

/// A text of the greatest length is read still.
#[test]
fn names_policies_and_heads_are_read_up_to_their_bounds() {
    let name = "a".repeat(128);
    assert_eq!(Witness::new(&name, [1; 32]).unwrap().name(), name);
    let end = "quorum none";
    let longest = "\n".repeat(tlog::cosign::POLICY_BYTES_MAX - end.len()) + end;
    assert!(Policy::read(longest.as_bytes()).is_ok());
    let (one, head) = (witness(1, "one"), head(5));
    let line = line(&one, &head, 7);
    // A line of another, as long as what is left.
    let text = sign(&head) + &line;
    let left = NOTE_BYTES_MAX - text.len() - "\u{2014} x \n".len();
    let long = text + &format!("\u{2014} x {}\n", "A".repeat(left));
    assert_eq!(long.len(), NOTE_BYTES_MAX);
    assert_eq!(one.1.cosigned_at(long.as_bytes(), &head), Ok(Some(7)));
}

/// A witness may cosign a head again, later.
#[test]
fn the_last_cosignature_of_a_witness_counts() {
    let (one, head) = (witness(1, "one"), head(5));
    let [early, late] = [70, 90].map(|time| line(&one, &head, time));
    for lines in [[&early, &late], [&late, &early]] {
        let note = sign(&head) + lines[0] + lines[1];
        assert_eq!(one.1.cosigned_at(note.as_bytes(), &head), Ok(Some(90)));
    }
}
