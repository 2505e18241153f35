//! TL-01, FG-11: whatever bytes arrive, a decoder returns a message or an error. It does not panic,
//! and it allocates nothing that the length check does not cover.

use crate::examples;

use proptest::prelude::*;
use schemas::answer::question;
use schemas::blob::PutRequest;
use schemas::event::{Event, EventBody, LedgerEvent, SignedEvent};
use schemas::lease::{ClaimRequest, Done};
use schemas::member::{Posture, Session};
use schemas::{Addressee, Answer, DecodeError, Message, Millis, Reply, V, is_answer};
use serde::Serialize;

#[test]
fn too_long_is_refused_before_parsing() {
    let bytes = vec![0; Done::BYTES_MAX + 1];
    assert!(matches!(
        Done::decode(&bytes),
        Err(DecodeError::TooLong { .. })
    ));
}

#[test]
fn another_version_is_refused_by_name() {
    let mut bytes = ClaimRequest {
        v: V,
        session: Session(3),
        wait: Millis(1),
    }
    .encode();
    let at = bytes
        .windows(3)
        .position(|window| window == [0xa1, b'v', 2])
        .expect("the version field")
        + 2;
    bytes[at] = 3;
    let error = ClaimRequest::decode(&bytes)
        .expect_err("version 3")
        .to_string();
    assert!(
        error.contains("unknown version 3, this build speaks version 2"),
        "{error}"
    );
}

#[test]
fn unknown_fields_and_trailing_bytes_are_refused() {
    #[derive(serde::Serialize)]
    struct Extra {
        v: u8,
        session: u64,
        wait: u64,
        more: u8,
    }
    let bytes = rmp_serde::to_vec_named(&Extra {
        v: 2,
        session: 3,
        wait: 1,
        more: 1,
    })
    .expect("encodes");
    assert!(ClaimRequest::decode(&bytes).is_err());
    let mut bytes = ClaimRequest {
        v: V,
        session: Session(3),
        wait: Millis(1),
    }
    .encode();
    bytes.push(0);
    assert!(matches!(
        ClaimRequest::decode(&bytes),
        Err(DecodeError::Trailing { extra: 1, .. })
    ));
}

#[test]
fn an_answer_is_nothing_else_and_nothing_else_is_an_answer() {
    for example in examples::all() {
        let answers = example.name.starts_with("answer");
        assert_eq!(is_answer(&example.bytes), answers, "{}", example.name);
        for other in examples::all()
            .iter()
            .filter(|other| other.name.starts_with("answer") != answers)
        {
            assert!(
                (other.decode)(&example.bytes).is_err(),
                "{} reads as {}",
                example.name,
                other.name
            );
        }
    }
    // Other messages on subjects that an answer can reach: signed documents, the broker's own
    // words, nothing.
    for bytes in [
        "eyJhbGciOiJFZERTQSJ9.e30.c2ln",
        "{\"stream\":\"AUDIT\",\"seq\":1}",
        "+OK",
        "-ERR",
        "",
    ] {
        assert!(!is_answer(bytes.as_bytes()), "{bytes}");
    }
}

#[test]
fn an_answer_is_for_who_asked_and_for_what_was_asked() {
    let subject = "diloco.request.demo.x.join";
    let asked = examples::asked();
    let answer = Answer::new(
        &Addressee {
            question: question(subject, b"a"),
            ..asked.clone()
        },
        Reply::Ok(Done::default()),
    );
    let answer = Answer::<Done>::decode(&answer.encode()).expect("it reads back");
    assert!(answer.is_for(Some(&asked.by), question(subject, b"a")));
    assert!(
        answer.is_for(None, question(subject, b"a")),
        "who is connected as nobody"
    );
    let other: schemas::PublicKey = format!("U{}", "B".repeat(55)).parse().expect("a key");
    assert!(!answer.is_for(Some(&other), question(subject, b"a")));
    assert!(!answer.is_for(Some(&asked.by), question(subject, b"b")));
    assert!(!answer.is_for(
        Some(&asked.by),
        question("diloco.request.demo.x.leave", b"a")
    ));
    // The same bytes, divided elsewhere.
    assert_ne!(question("a", b"bc"), question("ab", b"c"));
}

#[test]
fn announced_lengths_are_not_believed() {
    // A map of one field `objects` whose array claims four thousand million elements.
    let mut bytes = vec![0x81, 0xa7];
    bytes.extend_from_slice(b"objects");
    bytes.extend_from_slice(&[0xdd, 0xff, 0xff, 0xff, 0xff]);
    assert!(PutRequest::decode(&bytes).is_err());
}

#[test]
fn deep_nesting_is_an_error_not_an_overflow() {
    let bytes = vec![0x91; 200_000];
    assert!(PutRequest::decode(&bytes).is_err());
}

#[test]
fn the_largest_seal_fits() {
    let sealed = examples::comparison::sealed(schemas::limits::SEALED_MAX);
    let bytes = examples::event(Event::Ledger(sealed)).encode();
    assert!(
        bytes.len() <= EventBody::BYTES_MAX,
        "{} bytes are sealed",
        bytes.len()
    );
}

#[test]
fn the_largest_comparison_and_a_seal_that_leaves_out_as_much_as_it_can_fit() {
    let compared = examples::comparison::compared(schemas::limits::COMPARED_MAX);
    let sealed = examples::comparison::sealed_without(schemas::limits::SEALED_MAX);
    for event in [compared, sealed] {
        let bytes = examples::event(Event::Ledger(event)).encode();
        assert!(bytes.len() <= EventBody::BYTES_MAX, "{} bytes", bytes.len());
        assert!(EventBody::decode(&bytes).is_ok());
    }
}

#[test]
fn the_largest_event_fits() {
    let bytes = examples::largest_event().encode();
    assert!(bytes.len() <= EventBody::BYTES_MAX, "{} bytes", bytes.len());
    assert!(EventBody::decode(&bytes).is_ok());
    // The same holds for the longest valid body, once it is signed.
    let body = serde_bytes::ByteBuf::from(vec![7; EventBody::BYTES_MAX]);
    let emitter = examples::largest_event().emitter;
    let signed = SignedEvent {
        v: V,
        key: emitter,
        signature: serde_bytes::ByteArray::new([7; 64]),
        body,
    };
    assert_eq!(
        SignedEvent::decode(&signed.encode()).expect("it fits"),
        signed
    );
}

#[test]
fn settings_out_of_bounds_name_the_field() {
    let mut spec = examples::spec();
    spec.validate().expect("the example is valid");
    spec.inner.learning_rate = f64::NAN;
    assert!(
        spec.validate()
            .expect_err("NaN")
            .detail
            .contains("inner.learning_rate")
    );
    let mut spec = examples::spec();
    spec.schedule.accumulation = 3;
    assert!(
        spec.validate()
            .expect_err("not a divisor")
            .detail
            .contains("schedule.accumulation")
    );
}

/// A ledger of an earlier release names no process in the event with which a coordinator takes the
/// lead. Such an event is still read.
#[test]
fn a_lead_of_an_earlier_release_is_read() {
    #[derive(Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Earlier {
        CoordinatorStarted { release: String, posture: Posture },
    }
    let (release, posture) = ("0.1.0".to_owned(), Posture::default());
    let earlier = Earlier::CoordinatorStarted {
        release: release.clone(),
        posture: posture.clone(),
    };
    let bytes = rmp_serde::to_vec_named(&earlier).expect("encodes");
    let read: LedgerEvent = rmp_serde::from_slice(&bytes).expect("it is read");
    assert_eq!(
        read,
        LedgerEvent::CoordinatorStarted {
            release,
            posture,
            session: Session(0)
        }
    );
}

proptest! {
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        for example in examples::all() {
            let _ = (example.decode)(&bytes);
        }
    }

    #[test]
    fn damaged_messages(index in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let all = examples::all();
        let example = index.get(&all);
        let mut bytes = example.bytes.clone();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        let _ = (example.decode)(&bytes);
    }
}
