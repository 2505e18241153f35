//! A long ledger is read ahead and checked on all cores, with the same outcome as message by
//! message.

use std::fmt::Debug;

use async_nats::jetstream;
use chain::{Judgement, Reader};
use diloco_coordinator::{Ledger, LedgerError};
use runtime::{StreamError, StreamReader};
use schemas::event::EventBody;
use schemas::subject::LEDGER_STREAM;
use schemas::{ChainSequence, Digest, V};

use crate::ledger::{Scene, append, at, of_demo, reasons, stopped};

/// More events than are read ahead, so that the reader never has all of them at once.
const LONG: u64 = 2600;
/// A position in the middle of a batch of questions.
const MIDDLE: u64 = 700;

async fn write(ledger: &mut Ledger, name: &str, count: u64) {
    let events = (0..count).map(|number| {
        let event = stopped(&format!("{name} {number}"));
        match number % 3 {
            0 => at(number, event),
            _ => of_demo(number, event),
        }
    });
    ledger.append(events).await.expect("appended");
}

fn names(name: &str, count: u64) -> Vec<String> {
    (0..count)
        .map(|number| format!("{name} {number}"))
        .collect()
}

/// The outcome of a read.
#[derive(Debug, PartialEq)]
struct Read {
    bodies: Vec<EventBody>,
    foreign: u64,
    /// The position of the first signed event that does not follow, and the reason why it does not.
    broken: Option<(u64, String)>,
}

/// Reads as a coordinator does at its start.
async fn read(scene: &Scene) -> Read {
    let mut ledger = scene.unread().await;
    let mut bodies = Vec::new();
    let follow = |body| {
        bodies.push(body);
        Ok::<(), String>(())
    };
    let broken = match ledger.catch_up(follow).await {
        Ok(()) => None,
        Err(LedgerError::Broken { stream, reason }) => Some((stream, reason)),
        Err(error) => panic!("{error}"),
    };
    let foreign = ledger.foreign();
    Read {
        bodies,
        foreign,
        broken,
    }
}

/// Reads one message after another, and judges each before it asks for the next.
async fn read_slowly(scene: &Scene) -> Read {
    let stream = StreamReader::new(scene.server.bus().await, LEDGER_STREAM);
    let mut chain = Reader::new(scene.domain(), vec![scene.key.public().clone()]);
    let (mut bodies, mut foreign, mut at) = (Vec::new(), 0, 0);
    let mut broken = None;
    while let Some(stored) = stream.next(at + 1).await.expect("the server answers") {
        at = stored.sequence;
        match chain.judge(&stored.subject, &stored.payload) {
            Judgement::Next { body, digest } => {
                chain.extend(digest, None);
                bodies.push(*body);
            }
            Judgement::Repeated | Judgement::Foreign(_) => foreign += 1,
            Judgement::Before { .. } => unreachable!("this reader began with the first event"),
            Judgement::Unknown(next) => unreachable!("nobody names {next}"),
            Judgement::Broken(reason) => {
                broken = Some((at, reason));
                break;
            }
        }
    }
    Read {
        bodies,
        foreign,
        broken,
    }
}

fn assert_same<T: Debug + PartialEq>(fast: &T, slow: &T) {
    assert!(fast == slow, "read ahead: {fast:#?}\none by one: {slow:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_signed_in_the_middle_of_a_long_ledger_is_skipped_there() {
    let scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    write(&mut ledger, "a", MIDDLE).await;
    let strange = scene.litter().await;
    // It has to read past these messages before it can append.
    write(&mut ledger, "b", MIDDLE).await;
    let fast = read(&scene).await;
    assert_same(&fast, &read_slowly(&scene).await);
    assert_eq!((fast.broken, fast.foreign), (None, strange));
    let mut expected = names("a", MIDDLE);
    expected.extend(names("b", MIDDLE));
    assert_eq!(reasons(&fast.bodies), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_event_that_does_not_follow_ends_reading_at_its_place() {
    let scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    write(&mut ledger, "a", MIDDLE).await;
    let next = scene.successor(&scene.key, "a fork").await;
    let fork = EventBody {
        previous: Some(Digest::of(b"another past")),
        ..next.clone()
    };
    scene.put_signed(&fork).await;
    // The events after it are in order, but must not be followed.
    let mut body = next;
    for _ in 0..40 {
        scene.put_signed(&body).await;
        body = EventBody {
            v: V,
            sequence: ChainSequence(body.sequence.get() + 1),
            previous: Some(Digest::of(&schemas::Message::encode(&body))),
            ..body
        };
    }
    let fast = read(&scene).await;
    assert_same(&fast, &read_slowly(&scene).await);
    assert_eq!(fast.bodies.len() as u64, MIDDLE);
    assert_eq!(fast.broken.map(|(stream, _)| stream), Some(MIDDLE + 1));
}

/// The server is killed after the first events were followed. The messages that were read ahead are
/// followed or read again, and no event is followed twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_is_torn_off_goes_on_where_it_was() {
    let mut scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    write(&mut ledger, "a", LONG).await;
    let mut ledger = scene.unread().await;
    let mut bodies: Vec<EventBody> = Vec::new();
    let follow = |body| {
        bodies.push(body);
        if bodies.len() == 1 {
            scene.server.kill();
        }
        Ok::<(), String>(())
    };
    let torn = ledger.catch_up(follow).await;
    assert!(matches!(torn, Err(LedgerError::Unreadable(_))), "{torn:?}");
    assert!((bodies.len() as u64) < LONG, "all of it was read ahead");
    scene.server.restart().await;
    let mut ledger = reconnected(&scene, ledger, &mut bodies).await;
    assert_eq!(reasons(&bodies), names("a", LONG));
    append(&mut ledger, LONG, stopped("behind it"))
        .await
        .expect("appended");
}

/// The reason why a ledger is read by single questions, and its copy from an account without
/// streams, though a direct get of many messages takes the broker a fifth of the time: it ends with
/// an empty message, which goes where the asker says. A direct get of one message that is not there
/// is answered by an empty one too. A broker that no longer obeys that message
/// makes this test fail, and direct gets possible everywhere.
#[tokio::test]
async fn the_end_of_a_direct_get_of_many_can_delete_a_stream_and_no_single_answer_can() {
    let scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    write(&mut ledger, "a", 3).await;
    let bus = scene.server.bus().await;
    let server = jetstream::new(bus.client().clone());
    let stream = server.get_stream(LEDGER_STREAM).await.expect("it is there");
    let config = jetstream::stream::Config {
        allow_direct: true,
        ..stream.cached_info().config.clone()
    };
    server.update_stream(config).await.expect("it may");

    let reader = StreamReader::new(bus.clone(), LEDGER_STREAM);
    let deletes = format!("$JS.API.STREAM.DELETE.{LEDGER_STREAM}");
    let ask = async |verb: &str, question: &'static str| {
        let subject = format!("$JS.API.{verb}.{LEDGER_STREAM}");
        let asked = bus.client();
        let asked = asked.publish_with_reply(subject, deletes.clone(), question.into());
        asked.await.expect("sent");
    };
    for question in [r#"{"seq":1}"#, r#"{"seq":9}"#, ""] {
        ask("STREAM.MSG.GET", question).await;
        // Asked behind it on the same connection, and answered behind it.
        let message = reader.message(3).await.expect("the stream is there");
        assert_eq!(message.map(|message| message.sequence), Some(3));
    }
    assert_eq!(reader.span().await.expect("it is whole").messages, 3);

    ask("DIRECT.GET", r#"{"seq":1,"batch":1}"#).await;
    let gone = async {
        while let Ok(span) = reader.span().await {
            assert_eq!(span.messages, 3);
        }
    };
    tokio::time::timeout(crate::ledger::PATIENCE, gone)
        .await
        .expect("the broker deletes a stream that an empty answer names");
    let gone = reader.span().await;
    assert!(matches!(gone, Err(StreamError::Missing(_))), "{gone:?}");
}

/// Reads on once the client has its connection again.
async fn reconnected(scene: &Scene, mut ledger: Ledger, bodies: &mut Vec<EventBody>) -> Ledger {
    scene
        .server
        .bus()
        .await
        .round_trip()
        .await
        .expect("it is back");
    let deadline = tokio::time::Instant::now() + crate::ledger::PATIENCE;
    loop {
        let follow = |body| {
            bodies.push(body);
            Ok::<(), String>(())
        };
        match ledger.catch_up(follow).await {
            Ok(()) => return ledger,
            Err(LedgerError::Unreadable(error)) => {
                assert!(tokio::time::Instant::now() < deadline, "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
