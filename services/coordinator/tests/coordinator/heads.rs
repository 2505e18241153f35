//! Events of the ledger name the newest head of the log that was verified before them.

use schemas::event::EventBody;
use schemas::head::KnownHead;
use schemas::{Message as _, UnixMillis};
use serde_bytes::ByteArray;

use crate::ledger::{Scene, append, stopped};

#[tokio::test]
async fn tl_03_an_event_names_the_head_that_was_verified_before_it_unless_it_has_no_room() {
    let scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    let appended = append(&mut ledger, 1, stopped("a")).await;
    appended.expect("appended");
    let root = ByteArray::new([3; 32]);
    let head = Some(KnownHead { size: 7, root });
    ledger.know(head);
    append(&mut ledger, 2, stopped("b"))
        .await
        .expect("appended");
    // It has room for itself alone.
    let (_, events) = scene.open().await.expect("it verifies");
    let beside = EventBody {
        time: UnixMillis(3),
        previous: ledger.previous(),
        known: None,
        event: schemas::event::Event::Ledger(stopped(&"c".repeat(300))),
        ..events[1].clone()
    };
    let room = EventBody::BYTES_MAX - beside.encode().len();
    let long = "c".repeat(300 + room);
    append(&mut ledger, 3, stopped(&long))
        .await
        .expect("appended");
    let (_, events) = scene.open().await.expect("it verifies");
    let named: Vec<_> = events.iter().map(|body| body.known).collect();
    assert_eq!(named, [None, head, None]);
    assert_eq!(events[2].encode().len(), EventBody::BYTES_MAX);
    let stored = ledger.stored().map(|(sequence, _)| sequence.get());
    assert_eq!(stored, Some(2));
}
