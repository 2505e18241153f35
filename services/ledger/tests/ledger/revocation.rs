//! Revoked keys in the fold: what they forbid, until when, and where they stand in a checkpoint.

use kit::operator;
use ledger::State;
use schemas::event::LedgerEvent;
use schemas::revocation::REVOKED_KEYS_MAX;
use schemas::{PublicKey, UnixMillis};

use crate::kit::{TIME, created, granted, joined, lease, opened, run_id, spec, worker};

fn key(number: u32) -> PublicKey {
    worker(number).as_str().parse().expect("both are nkeys")
}

fn revoked(key: PublicKey, until: u64) -> LedgerEvent {
    LedgerEvent::CredentialRevoked {
        key,
        role: None,
        name: None,
        until: UnixMillis(until),
        reason: None,
        operator: operator(),
    }
}

fn reissued(number: u32, issued: u64) -> LedgerEvent {
    LedgerEvent::CredentialReissued {
        key: key(number),
        issued: UnixMillis(issued),
    }
}

fn note(state: &mut State, event: &LedgerEvent) {
    let of_all = matches!(
        event,
        LedgerEvent::CredentialRevoked { .. } | LedgerEvent::CredentialReissued { .. }
    );
    let run = (!of_all).then(run_id);
    let noted = state.apply(TIME, run.as_ref(), event);
    noted.unwrap_or_else(|error| panic!("{}: {error}", event.kind()));
}

fn refuse(state: &mut State, event: &LedgerEvent) {
    let before = state.clone();
    for run in [None, Some(run_id())] {
        assert!(state.apply(TIME, run.as_ref(), event).is_err(), "{event:?}");
    }
    assert_eq!(*state, before);
}

#[test]
fn tl_07_no_ledger_lets_a_revoked_key_join_or_hold_a_lease() {
    let mut state = State::default();
    note(&mut state, &created(spec()));
    note(&mut state, &joined(1));
    note(&mut state, &opened(0));
    note(&mut state, &revoked(key(1), 5_000));
    note(&mut state, &revoked(key(2), 5_000));
    assert!(state.is_revoked(&worker(1)) && !state.is_revoked(&worker(3)));
    refuse(&mut state, &joined(1));
    refuse(&mut state, &joined(2));
    refuse(&mut state, &granted(lease(0, 0, 1), 1));
    // A state that comes from a checkpoint refuses the same.
    let bytes = state.to_checkpoint();
    let mut again = State::from_checkpoint(&bytes).expect("a checkpoint");
    assert_eq!(again.to_checkpoint(), bytes);
    refuse(&mut again, &joined(2));
    note(&mut again, &joined(3));
    note(&mut again, &granted(lease(0, 0, 1), 3));
    note(&mut again, &reissued(2, 6_000));
    note(&mut again, &joined(2));
    let none = State::default().to_checkpoint();
    let word = b"revoked";
    assert!(
        !none.windows(word.len()).any(|part| part == word),
        "older states keep their bytes"
    );
}

#[test]
fn tl_07_a_revocation_reaches_farther_than_the_one_before_or_does_not_follow() {
    let mut state = State::default();
    note(&mut state, &created(spec()));
    refuse(&mut state, &reissued(1, 9_000));
    note(&mut state, &revoked(key(1), 5_000));
    refuse(&mut state, &revoked(key(1), 5_000));
    refuse(&mut state, &revoked(key(1), 4_000));
    note(&mut state, &revoked(key(1), 7_000));
    assert_eq!(state.revoked_until(&key(1)), Some(UnixMillis(7_000)));
    // Tokens count whole seconds.
    for issued in [6_000, 7_000, 7_999] {
        refuse(&mut state, &reissued(1, issued));
    }
    note(&mut state, &reissued(1, 8_000));
    assert_eq!(state.revoked_until(&key(1)), None);
    note(&mut state, &revoked(key(1), 5_000));
    let in_run = state.apply(TIME, Some(&run_id()), &revoked(key(3), 5_000));
    assert!(in_run.is_err(), "it is an event of the whole coordinator");
}

#[test]
fn tl_07_of_too_many_revoked_keys_the_one_that_is_void_for_longest_gives_its_place() {
    let number = |at: usize| {
        let letters: String = (0..4)
            .map(|place| {
                char::from(b'A' + u8::try_from(at >> (4 * place) & 15).expect("four bits"))
            })
            .collect();
        format!("U{}{letters}", "A".repeat(51))
            .parse::<PublicKey>()
            .expect("a key")
    };
    let mut state = State::default();
    for at in 0..REVOKED_KEYS_MAX {
        let until = if at == 7 { 1_000 } else { 5_000 + at as u64 };
        note(&mut state, &revoked(number(at), until));
    }
    assert!(state.revoked_until(&number(7)).is_some());
    // A later revocation of a known key needs no place.
    note(&mut state, &revoked(number(8), 1_000_000));
    assert!(state.revoked_until(&number(7)).is_some());
    note(&mut state, &revoked(number(REVOKED_KEYS_MAX), 9_000));
    assert_eq!(state.revoked_until(&number(7)), None);
    assert!(state.revoked_until(&number(0)).is_some());
    assert!(state.revoked_until(&number(REVOKED_KEYS_MAX)).is_some());
}
