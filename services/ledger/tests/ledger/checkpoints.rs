//! Checkpoints: a state that continues from one equals the state of all events, and no other bytes
//! are accepted.

use ledger::{ApplyError, CHECKPOINTS_KEPT, CheckpointError, FORMAT, State};
use schemas::checkpoint::Checkpoint;
use schemas::event::{Departure, LedgerEvent};
use schemas::{ChainSequence, Digest, Millis, ObjectRef, RunId, UnixMillis};

use crate::kit::{
    TIME, accepted, closed, created, ended, evaluated, evaluating, evaluation, granted, joined,
    lease, left, opened, run_id, saved, sealed, spec,
};

type Written = (Option<RunId>, LedgerEvent);

/// A history that contains something of everything in a state.
fn history() -> Vec<Written> {
    let mut with_evaluations = evaluating();
    with_evaluations.run = "other".parse().expect("a name");
    let other = Some(with_evaluations.run.clone());
    let of_demo = [
        created(spec()),
        joined(0),
        joined(1),
        joined(2),
        opened(0),
        granted(lease(0, 0, 1), 0),
        granted(lease(0, 1, 1), 1),
        ended(lease(0, 1, 1), 1),
        accepted(lease(0, 0, 1), 0),
        left(0, Departure::Replaced),
        granted(lease(0, 1, 2), 2),
        accepted(lease(0, 1, 2), 2),
        sealed(0, &[(0, 1, 32)], 1),
        sealed(0, &[(1, 2, 32)], 0),
        closed(0, 1),
        opened(1),
        granted(lease(1, 0, 1), 1),
        left(1, Departure::Silent),
    ];
    let of_other = [
        created(with_evaluations),
        joined(0),
        opened(0),
        granted(lease(0, 0, 1), 0),
        accepted(lease(0, 0, 1), 0),
        sealed(0, &[(0, 1, 32)], 0),
        closed(0, 1),
        saved(1),
        granted(evaluation(0, 1), 0),
        evaluated(evaluation(0, 1), 0),
    ];
    let of_demo = of_demo.map(|event| (Some(run_id()), event));
    let of_other = of_other.map(|event| (other.clone(), event));
    of_demo.into_iter().chain(of_other).collect()
}

fn fold(state: &mut State, (run, event): &Written) {
    let folded = state.apply(TIME, run.as_ref(), event);
    folded.unwrap_or_else(|error| panic!("{event:?}: {error}"));
}

/// Takes a checkpoint. Returns its bytes and the event that names them.
fn take(state: &mut State) -> (Vec<u8>, Written) {
    fold(state, &(None, LedgerEvent::CheckpointTaken));
    let bytes = state.taken().expect("it was taken").to_checkpoint();
    let checkpoint = Checkpoint {
        covers: ChainSequence(state.events() - 1),
        head: Digest::of(b"head"),
        stream_sequence: state.events(),
        format: FORMAT.into(),
        object: ObjectRef::of(&bytes),
    };
    (bytes, (None, LedgerEvent::CheckpointSaved { checkpoint }))
}

fn whole() -> State {
    let mut state = State::default();
    history().iter().for_each(|event| fold(&mut state, event));
    state
}

#[test]
fn a_state_that_goes_on_from_a_checkpoint_is_that_of_all_events() {
    let history = history();
    for at in 0..=history.len() {
        let (before, after) = history.split_at(at);
        // The event that names the checkpoint comes at once, or only after all others.
        for late in [0, after.len()] {
            let mut all = State::default();
            before.iter().for_each(|event| fold(&mut all, event));
            let (bytes, named) = take(&mut all);
            let mut resumed = State::from_checkpoint(&bytes).expect("these are its bytes");
            let mut after = after.to_vec();
            after.insert(late, named);
            for event in &after {
                assert!(resumed == all, "before {event:?}");
                fold(&mut all, event);
                fold(&mut resumed, event);
            }
            assert!(resumed == all);
            assert_eq!(resumed.to_checkpoint(), all.to_checkpoint(), "at {at}");
        }
    }
}

/// If these bytes change, or the effect of an event on a state, then [`FORMAT`] must become the
/// next number, and this digest changes.
#[test]
fn the_bytes_of_a_state_are_those_of_its_form() {
    let (bytes, _) = take(&mut whole());
    assert_eq!(
        (FORMAT, Digest::of(&bytes).hex().as_str()),
        (
            2,
            "525441376eb61f42e016ddaea656bd39195bcd3bd004f290c3fcbf3fe758eee2"
        ),
        "{} bytes",
        bytes.len()
    );
}

#[test]
fn what_is_taken_stays_as_it_was_while_the_state_moves_on() {
    let mut state = State::default();
    let history = history();
    let (before, after) = history.split_at(10);
    before.iter().for_each(|event| fold(&mut state, event));
    let (bytes, _) = take(&mut state);
    after.iter().for_each(|event| fold(&mut state, event));
    let taken = state.taken().expect("nothing saved it");
    assert_eq!(taken.to_checkpoint(), bytes);
    assert_ne!(state.to_checkpoint(), bytes);
    assert_eq!(state.since_taken(), after.len() as u64);
}

#[test]
fn other_bytes_are_no_checkpoint() {
    let (bytes, _) = take(&mut whole());
    for end in 0..bytes.len() {
        assert!(
            State::from_checkpoint(&bytes[..end]).is_err(),
            "{end} bytes"
        );
    }
    let longer = [&bytes[..], &[0xc0]].concat();
    let trailing = State::from_checkpoint(&longer);
    assert!(matches!(trailing, Err(CheckpointError::Trailing(1))));
    let mut newer = bytes.clone();
    let version = bytes.windows(2).position(|two| two == [0xa1, b'v']);
    newer[version.expect("it has a version") + 2] = FORMAT + 1;
    let other = State::from_checkpoint(&newer).expect_err("of another form");
    let unknown = format!("unknown version {}", FORMAT + 1);
    assert!(other.to_string().contains(&unknown), "{other}");
}

#[test]
fn a_state_that_contradicts_itself_is_no_checkpoint() {
    let mut state = State::default();
    let granted = &history()[..6];
    granted.iter().for_each(|event| fold(&mut state, event));
    let (mut bytes, _) = take(&mut state);
    let fates = b"\xa5fates\x95";
    let at = bytes.windows(fates.len()).position(|found| found == fates);
    let issued = &mut bytes[at.expect("a run has fates") + fates.len()];
    assert_eq!(*issued, 32, "the tokens of one unit");
    *issued = 33;
    let error = State::from_checkpoint(&bytes).expect_err("no ledger comes to this");
    assert!(
        matches!(error, CheckpointError::Contradiction(_)),
        "{error}"
    );
}

#[test]
fn only_the_checkpoint_that_was_taken_is_saved_and_the_newest_are_kept() {
    let mut state = whole();
    let (_, first) = take(&mut state);
    let refused = |state: &mut State, event: &Written| {
        let before = state.clone();
        let error = state.apply(TIME, None, &event.1).expect_err("out of place");
        assert!(matches!(error, ApplyError::OutOfPlace { .. }), "{error}");
        assert!(*state == before, "a refused event changed the state");
    };
    let (_, second) = take(&mut state);
    refused(&mut state, &first);
    fold(&mut state, &second);
    refused(&mut state, &second);
    assert_eq!(state.since_taken(), 1);
    let mut objects = vec![state.checkpoints()[0].object.digest];
    for _ in 0..2 * CHECKPOINTS_KEPT {
        let (bytes, named) = take(&mut state);
        fold(&mut state, &named);
        objects.push(Digest::of(&bytes));
        let kept = state.checkpoints().iter();
        let kept: Vec<Digest> = kept.map(|checkpoint| checkpoint.object.digest).collect();
        let old = objects.len().saturating_sub(CHECKPOINTS_KEPT);
        assert_eq!(kept, objects[old..]);
        let outdated: Vec<Digest> = state.outdated_objects().collect();
        assert_eq!(outdated, objects[old.saturating_sub(1)..old]);
    }
}

#[test]
fn a_run_that_is_over_for_an_hour_leaves_its_results_out() {
    let mut state = State::default();
    let run = run_id();
    let mut events = vec![created(evaluating()), joined(0)];
    for round in 0..3 {
        let weights = sealed(round, &[(0, 1, 32)], 0);
        let unit = lease(round, 0, 1);
        events.extend([opened(round), granted(unit, 0), accepted(unit, 0), weights]);
        events.push(closed(round, round + 1));
    }
    for version in 0..=3 {
        let unit = evaluation(version, 1);
        events.extend([granted(unit, 0), evaluated(unit, 0)]);
    }
    events.push(LedgerEvent::RunCompleted);
    for event in events {
        fold(&mut state, &(Some(run.clone()), event));
    }
    let remembered = |state: &State| state.run(&run).expect("it was created").accepted.len();
    let hour = Millis::from_secs(3600);
    let taken = LedgerEvent::CheckpointTaken;
    let at = |span: Millis| UnixMillis(TIME.get() + span.get());
    state.apply(at(hour), None, &taken).expect("it follows");
    assert!(remembered(&state) > 0);
    let later = at(Millis(hour.get() + 1));
    state.apply(later, None, &taken).expect("it follows");
    assert_eq!(remembered(&state), 0);
}
