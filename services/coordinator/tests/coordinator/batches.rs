//! Events that are appended together, against a real server: stored whole or not at all, and once.

use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::stream::Config;
use diloco_coordinator::{LedgerError, NewEvent};
use harness::{Line, Quality};
use runtime::StreamReader;
use schemas::event::EventBody;
use schemas::subject::{LEDGER_STREAM, ledger_subject};

use crate::ledger::{Scene, append, assert_overtaken, at, of_demo, reasons, stopped};

/// Number of events that needs more than two batches.
const MANY: u64 = 2100;
/// Events of the longest batch.
const BATCH: u64 = 1000;

/// Events of two subjects in turns, since a batch is fenced over both.
fn events(name: &str, count: u64) -> Vec<NewEvent> {
    let event = |number: u64| {
        let event = stopped(&format!("{name} {number}"));
        match number % 2 {
            0 => at(number, event),
            _ => of_demo(number, event),
        }
    };
    (0..count).map(event).collect()
}

fn names(name: &str, count: u64) -> Vec<String> {
    (0..count)
        .map(|number| format!("{name} {number}"))
        .collect()
}

async fn messages(scene: &Scene) -> u64 {
    let stream = StreamReader::new(scene.server.bus().await, LEDGER_STREAM);
    stream.span().await.expect("it is there").messages
}

/// Changes the settings of the stream.
async fn set(scene: &Scene, change: impl FnOnce(&mut Config)) {
    let jetstream = jetstream::new(scene.server.bus().await.client().clone());
    let stream = jetstream.get_stream(LEDGER_STREAM).await;
    let mut config = stream.expect("it is there").cached_info().config.clone();
    change(&mut config);
    let updated = jetstream.update_stream(config).await;
    updated.expect("this server takes it");
}

async fn read(scene: &Scene) -> Vec<EventBody> {
    scene.open().await.expect("it verifies").1
}

#[tokio::test]
async fn what_is_appended_together_is_read_back_in_order_and_goes_on() {
    let scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    ledger.append(events("a", MANY)).await.expect("appended");
    append(&mut ledger, 1, stopped("alone"))
        .await
        .expect("appended");
    ledger.append(events("b", 20)).await.expect("appended");
    ledger.append(events("c", 3)).await.expect("appended");
    ledger.append([]).await.expect("nothing to do");
    let mut expected = names("a", MANY);
    expected.push("alone".to_owned());
    expected.extend(names("b", 20));
    expected.extend(names("c", 3));
    assert_eq!(reasons(&read(&scene).await), expected);
    assert_eq!(ledger.len(), expected.len() as u64);
    assert_eq!(ledger.stream_sequence(), ledger.len());
}

#[tokio::test]
async fn tl_15_a_batch_that_is_fenced_off_stores_nothing() {
    let scene = Scene::new().await;
    let (mut first, mut second) = scene.overtaken().await;
    let refused = first.append(events("late", 20)).await;
    assert_overtaken(&refused);
    assert_eq!(first.len(), 1, "nothing of its own is in the chain");
    assert_eq!(messages(&scene).await, 2);
    // After it has read to the end, it may append.
    let (mut first, _) = scene.open().await.expect("it verifies");
    first.append(events("again", 20)).await.expect("appended");
    let refused = second.append(events("late", 20)).await;
    assert!(
        matches!(refused, Err(LedgerError::Fenced { .. })),
        "{refused:?}"
    );
    assert_eq!(messages(&scene).await, 22);
}

/// The answer to a commit can be lost after the batch was stored. The test sends the same batch
/// from the same place again. A longer batch then finds its first part stored, and appends the
/// rest.
#[tokio::test]
async fn a_batch_that_landed_without_an_answer_is_not_appended_twice() {
    let scene = Scene::new().await;
    let (mut first, _) = scene.open().await.expect("an empty ledger");
    let (mut second, _) = scene.open().await.expect("an empty ledger");
    let (mut third, _) = scene.open().await.expect("an empty ledger");
    first.append(events("same", 20)).await.expect("appended");
    second
        .append(events("same", 20))
        .await
        .expect("found to be there");
    assert_eq!(messages(&scene).await, 20);
    third
        .append(events("same", 40))
        .await
        .expect("the rest is appended");
    assert_eq!(reasons(&read(&scene).await), names("same", 40));
}

/// A process that is killed before it commits leaves nothing behind, and delays nobody.
#[tokio::test]
async fn a_batch_without_its_commit_is_not_there() {
    let scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    append(&mut ledger, 1, stopped("before"))
        .await
        .expect("appended");
    let bus = scene.server.bus().await;
    let subject = ledger_subject(None, scene.key.public(), "coordinator-stopped");
    for (place, reason) in [(1, "half"), (2, "a batch")] {
        let body = scene.successor(&scene.key, reason).await;
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Batch-Id", "never committed");
        headers.insert("Nats-Batch-Sequence", place.to_string());
        let payload = scene.sign(&body);
        bus.publish_with(&subject, headers, payload.into())
            .await
            .expect("sent");
    }
    bus.round_trip().await.expect("the server has them");
    assert_eq!(messages(&scene).await, 1);
    ledger.append(events("after", 20)).await.expect("appended");
    let mut expected = vec!["before".to_owned()];
    expected.extend(names("after", 20));
    assert_eq!(reasons(&read(&scene).await), expected);
}

#[tokio::test]
async fn a_batch_outlives_a_server_that_is_killed() {
    let mut scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    append(&mut ledger, 1, stopped("before"))
        .await
        .expect("appended");
    scene.server.kill();
    let appending = tokio::spawn(async move { ledger.append(events("batch", 20)).await });
    scene.server.restart().await;
    appending
        .await
        .expect("no panic")
        .expect("appended when the server is back");
    let mut expected = vec!["before".to_owned()];
    expected.extend(names("batch", 20));
    assert_eq!(reasons(&read(&scene).await), expected);
}

/// Another's message lies where the batch expected its predecessor.
#[tokio::test]
async fn a_batch_goes_past_messages_that_nobody_signed() {
    let scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    append(&mut ledger, 1, stopped("before"))
        .await
        .expect("appended");
    let foreign = scene.litter().await;
    ledger.append(events("batch", 20)).await.expect("appended");
    assert_eq!((ledger.foreign(), ledger.len()), (foreign, 21));
    assert_eq!(ledger.stream_sequence(), 21 + foreign);
}

/// A stream that takes no batches gets one event after another.
#[tokio::test]
async fn a_stream_that_takes_no_batches_is_written_to_all_the_same() {
    let scene = Scene::new().await;
    set(&scene, |config| config.allow_atomic_publish = false).await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    ledger.append(events("a", 20)).await.expect("appended");
    ledger.append(events("b", 20)).await.expect("appended");
    let expected: Vec<_> = names("a", 20).into_iter().chain(names("b", 20)).collect();
    assert_eq!(reasons(&read(&scene).await), expected);
}

/// The line to the first coordinator goes dead while its second batch is under way, and another
/// coordinator takes the lead. Of the first one's events the ledger keeps the first batch.
#[tokio::test]
async fn tl_15_the_second_of_several_batches_is_fenced_off_and_the_first_stays() {
    let scene = Scene::new().await;
    let line = Line::start(scene.server.address(), Quality::Good);
    let bus = scene.server.bus_at(line.address()).await;
    let (mut first, _) = scene.open_at(bus).await.expect("an empty ledger");
    append(&mut first, 1, stopped("alone"))
        .await
        .expect("appended");
    let before = line.bytes_up();
    let batch = first.append(events("sized", BATCH));
    batch.await.expect("appended");
    let of_a_batch = line.bytes_up() - before;
    // At this rate the rest of a batch takes a second.
    line.set(Quality::Slow {
        up: of_a_batch,
        down: of_a_batch,
    });
    let half = line.bytes_up() + of_a_batch + of_a_batch / 2;
    let appending = tokio::spawn(async move {
        let ended = first.append(events("late", MANY)).await;
        (first, ended)
    });
    line.until_up(half, std::future::pending::<()>()).await;
    line.set(Quality::Dead);
    assert_eq!(messages(&scene).await, 1 + 2 * BATCH);
    let (mut second, _) = scene.open().await.expect("it verifies");
    append(&mut second, MANY, stopped("another"))
        .await
        .expect("appended");
    line.set(Quality::Good);
    let (first, ended) = appending.await.expect("no panic");
    let place = 1 + 2 * BATCH;
    assert!(
        matches!(ended, Err(LedgerError::Fenced { expected, found }) if (expected, found) == (place, place + 1)),
        "{ended:?}"
    );
    assert_eq!(first.len(), place, "its first batch is in the chain");
    let mut expected = vec!["alone".to_owned()];
    expected.extend(names("sized", BATCH));
    expected.extend(names("late", BATCH));
    expected.push("another".to_owned());
    assert_eq!(reasons(&read(&scene).await), expected);
}

/// A few events are published one by one, without waiting for each answer. If an event of another
/// coordinator lies in the place of the first one, the second one expects the right position, but
/// is refused too.
#[tokio::test]
async fn tl_15_a_few_events_that_are_fenced_off_store_nothing() {
    let scene = Scene::new().await;
    let (mut first, _) = scene.overtaken().await;
    let refused = first.append(events("late", 5)).await;
    assert_overtaken(&refused);
    assert_eq!(messages(&scene).await, 2);
    let (mut first, _) = scene.open().await.expect("it verifies");
    first.append(events("again", 5)).await.expect("appended");
    let foreign = scene.litter().await;
    first.append(events("more", 5)).await.expect("appended");
    assert_eq!((first.len(), first.foreign()), (12, foreign));
    assert_eq!(messages(&scene).await, 12 + foreign);
}

/// An event that the broker never accepts is named, and the events before it are stored.
#[tokio::test]
async fn a_batch_with_an_event_that_is_refused_for_good_is_stored_up_to_it() {
    let scene = Scene::new().await;
    set(&scene, |config| config.max_message_size = 2000).await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    let mut together = events("a", 40);
    together[25] = at(25, stopped(&"long ".repeat(600)));
    let refused = ledger.append(together).await;
    assert!(
        matches!(&refused, Err(LedgerError::Unwritable { sequence, .. }) if sequence.get() == 25),
        "{refused:?}"
    );
    assert_eq!(ledger.len(), 25);
    assert_eq!(reasons(&read(&scene).await), names("a", 25));
}
