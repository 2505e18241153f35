//! The ledger goes on under another key, against a real server: it stays one chain, and the key of
//! before neither writes on nor says where the ledger is read from.

use diloco_coordinator::{Ledger, Named};
use identity::{AuditKey, EndedKey};
use schemas::checkpoint::Checkpoint;
use schemas::event::{Event, EventBody, LedgerEvent};
use schemas::{ChainSequence, Code, Digest, Message as _, ObjectRef, UnixMillis, V};

use crate::ledger::{Scene, append, read_on, reasons, stopped};

/// A ledger of one event of the old key, whose trust bundle knows the next key.
async fn prepared() -> (Scene, AuditKey, Ledger) {
    let (mut scene, next) = (Scene::new().await, AuditKey::generate());
    scene.trust.audit_keys.push(next.public().clone());
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    let appended = append(&mut ledger, 1, stopped("a")).await;
    appended.expect("appended");
    (scene, next, ledger)
}

fn names(next: &AuditKey) -> LedgerEvent {
    LedgerEvent::EmitterSucceeded {
        next: next.public().clone(),
    }
}

/// The same, once the next key has gone on with an event.
async fn succeeded() -> (Scene, AuditKey, Ledger) {
    let (scene, next, mut ledger) = prepared().await;
    append(&mut ledger, 2, names(&next))
        .await
        .expect("appended");
    ledger.sign_with(next.clone());
    append(&mut ledger, 3, stopped("b"))
        .await
        .expect("appended");
    (scene, next, ledger)
}

/// It is no break of the chain, and what helps is another file.
#[tokio::test]
async fn tl_28_a_trust_bundle_of_before_the_next_key_is_told_from_a_broken_ledger() {
    let (mut scene, next, _ledger) = succeeded().await;
    scene.trust.audit_keys.retain(|key| key != next.public());
    let refused = scene
        .open()
        .await
        .map(|_| ())
        .expect_err("it lacks the key");
    assert_eq!(refused.code(), Code::TrustOutdated);
    let text = refused.to_string();
    assert!(text.contains(next.public().as_str()), "{text}");
}

/// An event of the old key behind the present end.
async fn late(scene: &Scene, event: LedgerEvent) -> EventBody {
    EventBody {
        event: Event::Ledger(event),
        ..scene.successor(&scene.key, "late").await
    }
}

#[tokio::test]
async fn tl_28_the_ledger_goes_on_under_the_next_key_as_one_chain() {
    let (scene, next, mut ledger) = succeeded().await;
    ledger.check_own().expect("the next key goes on");
    assert_eq!(ledger.emitter(), next.public());
    let (of_old, events) = scene.open().await.expect("it verifies");
    assert_eq!((of_old.len(), of_old.previous()), (3, ledger.previous()));
    let signers: Vec<_> = events.iter().map(|body| &body.emitter).collect();
    let (old, new) = (scene.key.public(), next.public());
    assert_eq!(signers, [old, old, new]);
    assert_eq!(events[2].previous, Some(Digest::of(&events[1].encode())));
    // A coordinator that has the old key does not lead.
    let refused = of_old.check_own().expect_err("it is succeeded");
    assert_eq!(refused.code(), Code::EventKeySucceeded);
    // Read anew, the ledger begins with the old key.
    ledger.begin_anew();
    assert_eq!(ledger.emitter(), old);
    assert_eq!(read_on(&mut ledger).await.expect("it verifies"), events);
    assert_eq!(ledger.emitter(), new);
}

#[tokio::test]
async fn tl_28_what_the_old_key_signs_later_is_foreign_and_stops_nobody() {
    let (scene, next, mut ledger) = succeeded().await;
    let stolen = late(&scene, stopped("stolen")).await;
    scene.put_signed(&stolen).await;
    // Another event in the place of one that the old key has signed.
    let forked = EventBody {
        sequence: ChainSequence(0),
        previous: None,
        ..stolen.clone()
    };
    scene.put_signed(&forked).await;
    scene
        .put_signed(&late(&scene, names(&scene.key)).await)
        .await;
    append(&mut ledger, 4, stopped("c"))
        .await
        .expect("appended");
    assert_eq!(ledger.foreign(), 3);
    let (read, events) = scene.open().await.expect("it verifies");
    assert_eq!((read.foreign(), read.emitter()), (3, next.public()));
    let said: Vec<_> = events
        .into_iter()
        .filter(|body| body.event.next_emitter().is_none())
        .collect();
    assert_eq!(reasons(&said), ["a", "b", "c"]);
}

#[tokio::test]
async fn the_next_key_writes_nothing_before_it_is_named() {
    let (scene, next, mut ledger) = prepared().await;
    let early = EventBody {
        emitter: next.public().clone(),
        ..scene.successor(&next, "early").await
    };
    scene.forge(&next, &early, |_| {}).await;
    append(&mut ledger, 2, stopped("b"))
        .await
        .expect("appended");
    assert_eq!(ledger.foreign(), 1);
    assert_eq!(ledger.emitter(), scene.key.public());
    assert!(ledger.knows(next.public()));
    let stranger = AuditKey::generate();
    assert!(
        !ledger.knows(stranger.public()),
        "its bundle has no such key"
    );
}

/// A thief of the old key signs a checkpoint of a state of its own, and an event that took it.
#[tokio::test]
async fn tl_28_the_old_key_does_not_say_where_the_ledger_is_read_from() {
    let (scene, next, _ledger) = succeeded().await;
    let taken = late(&scene, LedgerEvent::CheckpointTaken).await;
    scene.put_signed(&taken).await;
    let checkpoint = Checkpoint {
        covers: taken.sequence,
        head: Digest::of(&taken.encode()),
        stream_sequence: 4,
        format: 1,
        object: ObjectRef::of(b"a false state"),
    };
    let saved = EventBody {
        v: V,
        sequence: ChainSequence(4),
        previous: Some(checkpoint.head),
        time: UnixMillis(9),
        event: Event::Ledger(LedgerEvent::CheckpointSaved { checkpoint }),
        ..taken
    };
    scene.put_signed(&saved).await;
    let at = |key: &AuditKey| key.clone();
    let bus = scene.server.bus().await;
    let of_new = Ledger::new(bus, at(&next), scene.trust.clone(), crate::ledger::PATIENCE);
    let named = of_new.newest_checkpoint().await.expect("it can be read");
    assert!(
        matches!(&named, Named::Unfit(reason) if reason.contains("is of")),
        "{named:?}"
    );
    // Nor to a machine that still has the old key, whatever bundle it has: it reads the ledger, and
    // stands down.
    let mut of_before = scene.trust.clone();
    of_before.audit_keys.truncate(1);
    for trust in [scene.trust.clone(), of_before] {
        let bus = scene.server.bus().await;
        let of_old = Ledger::new(bus, at(&scene.key), trust, crate::ledger::PATIENCE);
        let named = of_old.newest_checkpoint().await.expect("it can be read");
        assert!(
            matches!(&named, Named::Unfit(reason) if reason.contains("has named the next key")),
            "{named:?}"
        );
    }
    let (of_old, _) = scene.open().await.expect("it verifies");
    assert!(of_old.check_own().is_err());
}

/// The trust bundle says that the key has ended: whatever a stream shows, it does not sign.
#[tokio::test]
async fn tl_28_a_coordinator_whose_key_has_ended_does_not_sign() {
    let (mut scene, next, mut ledger) = prepared().await;
    ledger.check_unended().expect("nobody says so");
    scene.trust.ended_audit_keys.push(EndedKey {
        key: scene.key.public().clone(),
        last: ChainSequence(4),
    });
    let of_old = scene.unread().await;
    let refused = of_old.check_unended().expect_err("the bundle says so");
    assert_eq!(refused.code(), Code::EventKeySucceeded);
    assert!(refused.to_string().contains("ended with event 4"));
    ledger = scene.unread().await;
    ledger.sign_with(next);
    ledger.check_unended().expect("the next one has not");
}

/// The present key vouches for a checkpoint that the old one took: reading goes on across the
/// change.
#[tokio::test]
async fn a_checkpoint_before_the_change_is_read_from_under_the_next_key() {
    let (scene, next, mut ledger) = prepared().await;
    let taken = append(&mut ledger, 2, LedgerEvent::CheckpointTaken).await;
    taken.expect("appended");
    let checkpoint = Checkpoint {
        covers: ChainSequence(ledger.len() - 1),
        head: ledger.previous().expect("an event was appended"),
        stream_sequence: ledger.stream_sequence(),
        format: 1,
        object: ObjectRef::of(b"a state"),
    };
    append(&mut ledger, 3, names(&next))
        .await
        .expect("appended");
    ledger.sign_with(next.clone());
    let saved = LedgerEvent::CheckpointSaved { checkpoint };
    append(&mut ledger, 4, saved).await.expect("appended");
    let bus = scene.server.bus().await;
    let mut resumed = Ledger::new(
        bus,
        next.clone(),
        scene.trust.clone(),
        crate::ledger::PATIENCE,
    );
    match resumed.newest_checkpoint().await.expect("it can be read") {
        Named::Checkpoint(checkpoint, emitter) => {
            assert_eq!(emitter, *scene.key.public());
            resumed.continue_from(&checkpoint, &emitter);
        }
        other => panic!("no checkpoint: {other:?}"),
    }
    let read = read_on(&mut resumed).await.expect("it verifies");
    assert_eq!(read.len(), 2);
    resumed.check_own().expect("the next key goes on");
    assert_eq!(resumed.previous(), ledger.previous());
}
