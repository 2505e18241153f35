//! Starts from a checkpoint of the ledger, against a real server, and as a process with a real
//! store. Whatever is wrong with a checkpoint, the start then reads all events.

use std::path::{Path, PathBuf};
use std::time::Duration;

use diloco_coordinator::{Ledger, LedgerError, Marked, Named};
use identity::AuditKey;
use runtime::clock;
use schemas::checkpoint::Checkpoint;
use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::permission::Role;
use schemas::view::RunPhase;
use schemas::{ChainSequence, Digest, Message as _, ObjectRef, UnixMillis, V};

use crate::ledger::{Scene, append, at, read_on, reasons, stopped};
use crate::scene;

const PATIENCE: Duration = Duration::from_secs(20);
/// Number of events after which a coordinator takes a checkpoint.
const EVERY: usize = coordinator_core::CHECKPOINT_EVERY as usize;

/// Appends an event that takes a checkpoint, and returns the checkpoint.
async fn take(ledger: &mut Ledger) -> Checkpoint {
    let taken = append(ledger, 1, LedgerEvent::CheckpointTaken).await;
    taken.expect("appended");
    Checkpoint {
        covers: ChainSequence(ledger.len() - 1),
        head: ledger.previous().expect("an event was appended"),
        stream_sequence: ledger.stream_sequence(),
        format: 1,
        object: ObjectRef::of(b"a state"),
    }
}

async fn name(ledger: &mut Ledger, checkpoint: &Checkpoint) {
    let checkpoint = checkpoint.clone();
    let named = append(ledger, 1, LedgerEvent::CheckpointSaved { checkpoint }).await;
    named.expect("appended");
}

/// A ledger of three events, a checkpoint, and two events after it. A message that is in no chain
/// lies between the first two events.
async fn with_checkpoint() -> (Scene, Checkpoint) {
    let scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    append(&mut ledger, 1, stopped("a"))
        .await
        .expect("appended");
    scene.litter().await;
    append(&mut ledger, 1, stopped("b"))
        .await
        .expect("appended");
    append(&mut ledger, 1, stopped("c"))
        .await
        .expect("appended");
    let checkpoint = take(&mut ledger).await;
    append(&mut ledger, 1, stopped("d"))
        .await
        .expect("appended");
    name(&mut ledger, &checkpoint).await;
    append(&mut ledger, 1, stopped("e"))
        .await
        .expect("appended");
    (scene, checkpoint)
}

/// The same ledger, read from the checkpoint to its end.
async fn resumed(scene: &Scene) -> (Ledger, Result<Vec<EventBody>, LedgerError>) {
    let mut ledger = scene.unread().await;
    match ledger.newest_checkpoint().await.expect("it can be read") {
        Named::Checkpoint(checkpoint, emitter) => ledger.continue_from(&checkpoint, &emitter),
        other => panic!("no checkpoint: {other:?}"),
    }
    let read = read_on(&mut ledger).await;
    (ledger, read)
}

fn tail(events: Vec<EventBody>) -> Vec<String> {
    let said = events
        .into_iter()
        .filter(|body| body.event.kind() != "checkpoint-saved");
    reasons(&said.collect::<Vec<_>>())
}

#[tokio::test]
async fn what_lies_behind_a_checkpoint_is_read_and_goes_on() {
    let (scene, checkpoint) = with_checkpoint().await;
    let (mut ledger, events) = resumed(&scene).await;
    let events = events.expect("it verifies");
    assert_eq!(events[0].sequence, checkpoint.covers.next());
    assert_eq!(tail(events), ["d", "e"]);
    append(&mut ledger, 1, stopped("f"))
        .await
        .expect("appended");
    let (whole, all) = scene.open().await.expect("it verifies");
    assert_eq!(
        (whole.len(), whole.previous()),
        (ledger.len(), ledger.previous())
    );
    assert_eq!(all.len() as u64, ledger.len());
    // Events that were not read are found where they lie.
    for body in &all[..=checkpoint.covers.get() as usize] {
        let found = ledger.digest_before(body.sequence).await;
        let expected = Digest::of(&body.encode());
        assert_eq!(found.expect("it can be read"), Some(expected));
    }
    ledger.begin_anew();
    let again = read_on(&mut ledger).await.expect("it verifies");
    assert_eq!(again, all);
}

#[tokio::test]
async fn a_ledger_without_a_checkpoint_names_none() {
    let scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    let named = async |ledger: &Ledger| ledger.newest_checkpoint().await.expect("read");
    assert_eq!(named(&ledger).await, Named::None);
    append(&mut ledger, 1, stopped("a"))
        .await
        .expect("appended");
    take(&mut ledger).await;
    assert_eq!(named(&ledger).await, Named::None, "taken, and not saved");
}

/// A copy, however old, neither fences nor misleads; another event in an old place does.
#[tokio::test]
async fn events_from_before_a_checkpoint_are_known_when_they_come_again() {
    let (scene, _) = with_checkpoint().await;
    let (_, all) = scene.open().await.expect("it verifies");
    let key = scene.key.clone();
    for body in &all[..3] {
        scene.forge(&key, body, |_| {}).await;
    }
    let (mut ledger, events) = resumed(&scene).await;
    assert_eq!(tail(events.expect("copies are skipped")), ["d", "e"]);
    scene.forge(&key, &all[1], |_| {}).await;
    append(&mut ledger, 1, stopped("f"))
        .await
        .expect("a copy is skipped");
    let other = EventBody {
        event: Event::Ledger(stopped("another b")),
        ..all[1].clone()
    };
    scene.forge(&key, &other, |_| {}).await;
    let (_, events) = resumed(&scene).await;
    let error = events.expect_err("the chain has another event there");
    assert!(matches!(error, LedgerError::Broken { .. }), "{error}");
    let refused = append(&mut ledger, 1, stopped("g")).await;
    let error = refused.expect_err("the same while it leads");
    assert!(matches!(error, LedgerError::Broken { .. }), "{error}");
}

#[tokio::test]
async fn a_checkpoint_that_does_not_fit_the_stream_is_not_begun_with() {
    let (scene, checkpoint) = with_checkpoint().await;
    let changes: [fn(&mut Checkpoint); 5] = [
        |checkpoint| checkpoint.stream_sequence -= 1,
        |checkpoint| checkpoint.stream_sequence = 1 << 40,
        |checkpoint| checkpoint.covers = ChainSequence(checkpoint.covers.get() - 1),
        |checkpoint| checkpoint.covers = ChainSequence(u64::MAX),
        |checkpoint| checkpoint.head = Digest::of(b"another event"),
    ];
    for change in changes {
        let (mut ledger, _) = scene.open().await.expect("it verifies");
        let mut changed = checkpoint.clone();
        change(&mut changed);
        name(&mut ledger, &changed).await;
        let named = ledger.newest_checkpoint().await.expect("it can be read");
        assert!(matches!(named, Named::Unfit(_)), "{changed:?}: {named:?}");
    }
    // The key that signed this one may not write the ledger.
    let (mut ledger, _) = scene.open().await.expect("it verifies");
    name(&mut ledger, &checkpoint).await;
    name_as_stranger(&scene, &ledger, checkpoint).await;
    let named = ledger.newest_checkpoint().await.expect("it can be read");
    assert!(matches!(named, Named::Unfit(_)), "{named:?}");
}

/// Puts an event behind the ledger's last that names a checkpoint, signed by a key that may not
/// write there.
async fn name_as_stranger(scene: &Scene, ledger: &Ledger, checkpoint: Checkpoint) {
    let stranger = AuditKey::generate();
    let forged = EventBody {
        v: V,
        known: None,
        emitter: stranger.public().clone(),
        sequence: ChainSequence(ledger.len()),
        previous: ledger.previous(),
        time: UnixMillis(1),
        run: None,
        event: Event::Ledger(LedgerEvent::CheckpointSaved { checkpoint }),
    };
    scene.forge(&stranger, &forged, |_| {}).await;
}

#[tokio::test]
async fn the_checkpoint_before_the_newest_is_found_wherever_it_lies() {
    let (scene, first) = with_checkpoint().await;
    let (mut ledger, _) = scene.open().await.expect("it verifies");
    let older = async |ledger: &Ledger| ledger.older_checkpoint().await.expect("it can be read");
    assert_eq!(older(&ledger).await, Named::None, "there is one only");
    let by = || scene.key.public().clone();
    let mut before = first;
    for _ in 0..3 {
        let checkpoint = take(&mut ledger).await;
        name(&mut ledger, &checkpoint).await;
        assert_eq!(older(&ledger).await, Named::Checkpoint(before, by()));
        before = checkpoint;
    }
    // Further away than the first look goes.
    let far = (0..2 * EVERY + 9).map(|_| at(1, stopped("again")));
    ledger.append(far).await.expect("appended");
    let checkpoint = take(&mut ledger).await;
    name(&mut ledger, &checkpoint).await;
    assert_eq!(older(&ledger).await, Named::Checkpoint(before, by()));
    // A stranger's word on the newest hides it from nobody.
    name_as_stranger(&scene, &ledger, checkpoint.clone()).await;
    assert_eq!(older(&ledger).await, Named::Checkpoint(checkpoint, by()));
}

/// A checkpoint that says it covers the marked event, in a ledger that has no such event, is
/// another ledger's. Nothing may be begun with it.
#[tokio::test]
async fn a_marked_event_that_lies_nowhere_has_all_events_read() {
    let (scene, checkpoint) = with_checkpoint().await;
    let (mut ledger, _) = resumed(&scene).await;
    let marked = async |ledger: &mut Ledger, at: u64| {
        let found = ledger.find_marked(Some(ChainSequence(at))).await;
        found.expect("it can be read")
    };
    let covered = checkpoint.covers.get();
    for at in 0..=covered {
        assert!(matches!(marked(&mut ledger, at).await, Marked::Covered(_)));
    }
    assert_eq!(marked(&mut ledger, covered + 1).await, Marked::Ahead);
    let none = ledger
        .find_marked(None)
        .await
        .expect("nothing is looked for");
    assert_eq!(none, Marked::Ahead);
    // A second domain's keys sign what the first one's events are not: its checkpoint covers ten
    // events, of which the stream has the one that took it.
    let scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    append(&mut ledger, 1, stopped("a"))
        .await
        .expect("appended");
    let body = |sequence: u64, event: LedgerEvent| EventBody {
        v: V,
        known: None,
        emitter: scene.key.public().clone(),
        sequence: ChainSequence(sequence),
        previous: Some(Digest::of(b"an event of the other ledger")),
        time: UnixMillis(1),
        run: None,
        event: Event::Ledger(event),
    };
    let taken = body(9, LedgerEvent::CheckpointTaken);
    scene.put_signed(&taken).await;
    let checkpoint = Checkpoint {
        covers: ChainSequence(9),
        head: Digest::of(&taken.encode()),
        stream_sequence: 2,
        ..checkpoint
    };
    scene
        .put_signed(&body(10, LedgerEvent::CheckpointSaved { checkpoint }))
        .await;
    let mut ledger = scene.unread().await;
    match ledger.newest_checkpoint().await.expect("it can be read") {
        Named::Checkpoint(checkpoint, emitter) => ledger.continue_from(&checkpoint, &emitter),
        other => panic!("it fits by itself: {other:?}"),
    }
    assert_eq!(marked(&mut ledger, 3).await, Marked::Nowhere);
    let events = read_on(&mut ledger).await;
    let error = events.expect_err("from the first event on the chain has a gap");
    assert!(matches!(error, LedgerError::Broken { .. }), "{error}");
}

/// A domain whose ledger has so many events that a coordinator which starts takes a checkpoint.
async fn grown() -> scene::Scene {
    let mut scene = scene::Scene::start(2).await;
    scene.cluster.kill9("coordinator");
    let mut ledger = unread(&scene).await;
    read_on(&mut ledger).await.expect("it verifies");
    let now = clock::now().get();
    let events = (0..EVERY).map(|_| at(now, stopped("again")));
    ledger.append(events).await.expect("appended");
    scene
}

/// The ledger of a domain, for a process that holds the coordinator's keys.
async fn unread(scene: &scene::Scene) -> Ledger {
    let domain = scene.cluster.domain();
    let key = AuditKey::read(&domain.layout().coordinator_audit_key());
    let bus = scene.cluster.connect(Role::LedgerWriter, "filler").await;
    let trust = domain.trust().clone();
    Ledger::new(bus, key.expect("the domain has it"), trust, PATIENCE)
}

/// Waits until a checkpoint that covers more than `than` is named.
async fn newest(scene: &scene::Scene, than: ChainSequence) -> Checkpoint {
    let ledger = unread(scene).await;
    let named = async {
        loop {
            match ledger.newest_checkpoint().await.expect("it can be read") {
                Named::Checkpoint(checkpoint, _) if checkpoint.covers > than => return checkpoint,
                Named::Unfit(reason) => panic!("{reason}"),
                _ => tokio::task::yield_now().await,
            }
        }
    };
    let named = tokio::time::timeout(PATIENCE, named).await;
    named.expect("the coordinator saves a checkpoint")
}

/// The file in which the store keeps an object.
fn file(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder of the store");
    let mut paths = entries.map(|entry| entry.expect("an entry").path());
    paths.find_map(|path| match path.is_dir() {
        true => file(&path, name),
        false => Some(path).filter(|path| path.ends_with(name)),
    })
}

/// Restarts the coordinator, and returns its log since then.
async fn restarted(scene: &mut scene::Scene) -> String {
    let before = scene.cluster.process("coordinator").log().len();
    scene.cluster.kill9("coordinator");
    scene.cluster.restart("coordinator").await;
    let phase = scene.operator.run(scene.cluster.run()).await;
    let phase = phase.expect("the run is known").view.phase;
    assert_eq!(phase, RunPhase::Waiting);
    scene.cluster.process("coordinator").log()[before..].to_owned()
}

/// The coordinator reads from a checkpoint on.
const USED: &str = "read from a checkpoint";
/// It says why one is not used.
const UNUSED: &str = "DL0650";
/// None of them is.
const ALL: &str = "all events are read";

/// So many events come that the next start takes a checkpoint.
async fn grow(scene: &mut scene::Scene) {
    scene.cluster.kill9("coordinator");
    let mut ledger = unread(scene).await;
    read_on(&mut ledger).await.expect("it verifies");
    let now = clock::now().get();
    let more = (0..EVERY).map(|_| at(now, stopped("again")));
    ledger.append(more).await.expect("appended");
    scene.cluster.restart("coordinator").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_starts_from_its_checkpoint_and_without_it_from_all_events() {
    let mut scene = grown().await;
    // A ledger of an earlier release: no checkpoint, and then its first.
    let log = restarted(&mut scene).await;
    assert!(!log.contains(USED) && !log.contains(UNUSED), "{log}");
    let first = newest(&scene, ChainSequence(0)).await;
    assert!(first.covers.get() >= EVERY as u64);
    let log = restarted(&mut scene).await;
    assert!(log.contains(USED), "{log}");
    // Garbage in its place: all events, and at once one that is as good.
    let blobs = scene.cluster.path("store").join("blobs");
    let place = |checkpoint: &Checkpoint| file(&blobs, &checkpoint.object.digest.hex());
    let object = place(&first).expect("it is stored");
    let length = std::fs::metadata(&object).expect("a file").len();
    std::fs::write(object, vec![7; length as usize]).expect("the store's folder is the test's");
    let log = restarted(&mut scene).await;
    assert!(log.contains(UNUSED) && !log.contains(USED), "{log}");
    let second = newest(&scene, first.covers).await;
    assert!(place(&second).is_some());
    let log = restarted(&mut scene).await;
    assert!(log.contains(USED) && !log.contains(UNUSED), "{log}");
    // The newest is missing: the one before it serves, and again there is a new one at once.
    grow(&mut scene).await;
    let third = newest(&scene, second.covers).await;
    std::fs::remove_file(place(&third).expect("it is stored")).expect("it is the test's");
    let log = restarted(&mut scene).await;
    assert!(log.contains(UNUSED) && log.contains(USED), "{log}");
    assert!(!log.contains(ALL), "{log}");
    let fourth = newest(&scene, third.covers).await;
    let log = restarted(&mut scene).await;
    assert!(log.contains(USED) && !log.contains(UNUSED), "{log}");
    // Both are missing.
    std::fs::remove_file(place(&fourth).expect("it is stored")).expect("it is the test's");
    let log = restarted(&mut scene).await;
    assert!(log.contains(ALL) && !log.contains(USED), "{log}");
    newest(&scene, fourth.covers).await;
    let log = restarted(&mut scene).await;
    assert!(log.contains(USED), "{log}");
}
