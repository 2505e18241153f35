//! Starts from a checkpoint of the ledger, against a real server, and as a process with a real
//! store. Whatever is wrong with a checkpoint, the start then reads all events.

use std::path::{Path, PathBuf};
use std::time::Duration;

use diloco_coordinator::{Ledger, LedgerError, Named};
use identity::AuditKey;
use runtime::clock;
use schemas::checkpoint::Checkpoint;
use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::permission::Role;
use schemas::view::RunPhase;
use schemas::{Digest, Message as _, ObjectRef, Sequence, UnixMillis, V};

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
        covers: Sequence(ledger.len() - 1),
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
        Named::Checkpoint(checkpoint) => ledger.continue_from(&checkpoint),
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
    assert_eq!(tail(events.expect("copies are passed over")), ["d", "e"]);
    scene.forge(&key, &all[1], |_| {}).await;
    append(&mut ledger, 1, stopped("f"))
        .await
        .expect("a copy is passed over");
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
        |checkpoint| checkpoint.covers = Sequence(checkpoint.covers.get() - 1),
        |checkpoint| checkpoint.covers = Sequence(u64::MAX),
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
    let stranger = AuditKey::generate();
    let event = LedgerEvent::CheckpointSaved { checkpoint };
    let forged = EventBody {
        v: V,
        emitter: stranger.public().clone(),
        sequence: Sequence(ledger.len()),
        previous: ledger.previous(),
        time: UnixMillis(1),
        run: None,
        event: Event::Ledger(event),
    };
    scene.forge(&stranger, &forged, |_| {}).await;
    let named = ledger.newest_checkpoint().await.expect("it can be read");
    assert!(matches!(named, Named::Unfit(_)), "{named:?}");
}

/// A domain whose ledger has so many events that a starting coordinator takes a checkpoint.
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
async fn newest(scene: &scene::Scene, than: Sequence) -> Checkpoint {
    let ledger = unread(scene).await;
    let named = async {
        loop {
            match ledger.newest_checkpoint().await.expect("it can be read") {
                Named::Checkpoint(checkpoint) if checkpoint.covers > than => return checkpoint,
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

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_starts_from_its_checkpoint_and_without_it_from_all_events() {
    const USED: &str = "read from its newest checkpoint";
    const UNUSED: &str = "DL0650";
    let mut scene = grown().await;
    // A ledger of an earlier release has no checkpoint, and then gets its first.
    let log = restarted(&mut scene).await;
    assert!(!log.contains(USED) && !log.contains(UNUSED), "{log}");
    let checkpoint = newest(&scene, Sequence(0)).await;
    assert!(checkpoint.covers.get() >= EVERY as u64);
    let log = restarted(&mut scene).await;
    assert!(log.contains(USED), "{log}");
    // The object of the checkpoint is garbage, and then is gone.
    let blobs = scene.cluster.path("store").join("blobs");
    let object = file(&blobs, &checkpoint.object.digest.hex()).expect("it is stored");
    let bytes = std::fs::read(&object).expect("it can be read");
    for spoil in [
        |object: &Path, bytes: &[u8]| std::fs::write(object, vec![7; bytes.len()]),
        |object: &Path, _: &[u8]| std::fs::remove_file(object),
    ] {
        spoil(&object, &bytes).expect("the store's folder is the test's");
        let log = restarted(&mut scene).await;
        assert!(log.contains(UNUSED) && !log.contains(USED), "{log}");
    }
    // The next checkpoint comes from a read of all events, and is as good.
    scene.cluster.kill9("coordinator");
    let mut ledger = unread(&scene).await;
    read_on(&mut ledger).await.expect("it verifies");
    let now = clock::now().get();
    let more = (0..EVERY).map(|_| at(now, stopped("again")));
    ledger.append(more).await.expect("appended");
    scene.cluster.restart("coordinator").await;
    let next = newest(&scene, checkpoint.covers).await;
    assert!(file(&blobs, &next.object.digest.hex()).is_some());
    let log = restarted(&mut scene).await;
    assert!(log.contains(USED), "{log}");
}
