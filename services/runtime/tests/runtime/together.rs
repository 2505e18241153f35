//! Many messages for one question: a reader that may ask nothing else reads a whole stream, and a
//! missing message is asked for by itself.

use async_nats::jetstream::{self, stream};
use harness::{NatsServer, PATIENCE};
use runtime::{Bus, BusConfig, StreamError, StreamReader, clock};
use tokio::time::timeout;

/// More than are asked for with one question.
const MESSAGES: u64 = 600;
/// With this length a full batch is answered by several questions.
const LONG: usize = 60_000;

/// A client that may not ask for single messages.
const CONFIG: &str = "jetstream { store_dir: \"data\" }\n\
    accounts { A { jetstream: enabled, users: [{ user: a, password: a, permissions: {\n\
    publish: { deny: [\"$JS.API.STREAM.MSG.GET.S\"] } } }] } }\n\
    no_auth_user: a\n";

async fn filled() -> (NatsServer, Bus, stream::Stream) {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let server = NatsServer::start(scratch, CONFIG).await;
    let config = BusConfig {
        url: format!("nats://{}", server.address()),
        ..BusConfig::default()
    };
    let bus = Bus::connect("test", &config, clock::now()).await;
    let bus = bus.expect("it serves everybody");
    let jetstream = jetstream::new(bus.client().clone());
    let config = stream::Config {
        name: "S".to_owned(),
        subjects: vec!["s.>".to_owned()],
        allow_direct: true,
        ..stream::Config::default()
    };
    let stream = jetstream.create_stream(config).await.expect("it may");
    for number in 1..=MESSAGES {
        let text = match number % 3 {
            0 => "x".repeat(LONG),
            _ => format!("message {number}"),
        };
        let stored = jetstream.publish("s.a", text.into()).await;
        stored.expect("sent").await.expect("stored");
    }
    (server, bus, stream)
}

/// The positions of the messages of a range, and the error that ended reading.
async fn read(reader: &StreamReader, from: u64, to: u64) -> (Vec<u64>, Option<StreamError>) {
    let mut ahead = reader.ahead(from, to, |messages| messages);
    let (mut positions, mut reached) = (Vec::new(), from);
    while let Some(batch) = timeout(PATIENCE, ahead.next()).await.expect("in time") {
        match batch {
            Ok(batch) => {
                for message in &batch.found {
                    let long = message.sequence.is_multiple_of(3);
                    assert_eq!(message.payload.len() == LONG, long, "{}", message.sequence);
                    assert_eq!(message.subject, "s.a");
                }
                positions.extend(batch.found.iter().map(|message| message.sequence));
                reached = batch.to;
            }
            Err(error) => return (positions, Some(error)),
        }
    }
    assert_eq!(reached, to);
    (positions, None)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_may_ask_for_many_messages_needs_no_other_question() {
    let (_server, bus, _stream) = filled().await;
    let together = StreamReader::new(bus.clone(), "S").together();
    let (positions, error) = read(&together, 1, MESSAGES).await;
    assert_eq!((positions.len() as u64, error), (MESSAGES, None));
    assert!(positions.is_sorted());
    let (positions, _) = read(&together, 250, 260).await;
    assert_eq!(positions, (250..=260).collect::<Vec<u64>>());
    let (none, error) = read(&StreamReader::new(bus, "S"), 1, 2).await;
    assert!(none.is_empty() && matches!(error, Some(StreamError::Denied(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_does_not_come_together_with_the_others_is_asked_for_by_itself() {
    let (_server, bus, stream) = filled().await;
    let together = StreamReader::new(bus, "S").together();
    for (missing, from, to) in [(100, 90, 110), (300, 300, 310), (400, 390, 400)] {
        stream.delete_message(missing).await.expect("it may");
        let (positions, error) = read(&together, from, to).await;
        let denied = matches!(error, Some(StreamError::Denied(_)));
        assert!(denied && positions.is_empty(), "{missing}: {positions:?}");
    }
    // Nothing is left out: the end of the stream is not the end of the range.
    let (_, error) = read(&together, MESSAGES - 5, MESSAGES + 1).await;
    assert!(matches!(error, Some(StreamError::Denied(_))), "{error:?}");
}
