//! A stream whose messages come many at a time is read as message by message: nothing that is there
//! is missing, nothing that is missing is passed over.

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use audit_core::{Finding, StreamSequence};
use diloco_audit::Replay;
use harness::PATIENCE;
use schemas::permission::Role;
use schemas::subject::{AUDIT_STREAM, LEDGER_STREAM, ledger_subject};
use tokio::time::timeout;

use crate::broker::{Broker, Cast};

/// Messages in the stream: more than are asked for with one question.
const MESSAGES: u64 = 700;
/// Bytes of a long message; with this length a full batch takes several questions.
const LONG: usize = 60_000;

/// Everything that a replay says: a line for each message, and the findings. `alone` is true if the
/// messages should come one by one.
async fn replayed(broker: &Broker, alone: bool) -> (Vec<String>, Vec<Finding>, u64) {
    let bus = broker.bus(Role::Auditor.name()).await;
    let opened = Replay::open(&bus, broker.domain.trust()).await;
    let mut replay = opened.expect("there is a stream");
    let mut lines = Vec::new();
    let mut keep = |checked: diloco_audit::Checked| lines.push(format!("{:?}", checked.row));
    let read = replay.run(PATIENCE, &mut keep).await;
    read.expect("it is read to its end");
    assert_eq!(replay.is_refused_many(), alone);
    let findings = replay.auditor().findings().iter();
    let findings = findings.map(|found| found.finding.clone()).collect();
    (lines, findings, replay.auditor().summary().foreign)
}

/// The stream, altered so that it answers questions for many messages, or does not.
async fn answers_together(provisioner: &jetstream::Context, allow_direct: bool) {
    let live = provisioner.get_stream(AUDIT_STREAM).await;
    let config = stream::Config {
        allow_direct,
        ..live.expect("it is there").cached_info().config.clone()
    };
    provisioner.update_stream(config).await.expect("it may");
}

/// Fills the ledger with signed events, and with long messages and headers that nobody signed.
async fn filled(broker: &Broker) -> (jetstream::Context, Cast) {
    let provisioner = broker.create_streams().await;
    let mut cast = broker.cast().await;
    let account = broker.domain.tenant().expect("a fresh name");
    let (worker, key) = (cast.worker.clone(), cast.worker_key.clone());
    for said in cast.ledger.beginning(&worker, &account, &key) {
        cast.publish(&said).await;
    }
    let subject = ledger_subject(None, key.public(), "control-received");
    let thief = broker.bus(Role::LedgerWriter.name()).await;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Sequence", "5");
    headers.insert("Nats-Subject", "diloco.ledger.other");
    for number in 3..MESSAGES {
        let (headers, payload) = match number % 4 {
            0 => (HeaderMap::new(), vec![b'x'; LONG]),
            1 => (headers.clone(), b"forged".to_vec()),
            _ => {
                let said = cast.ledger.remark();
                let payload = schemas::Message::encode(&said.event);
                let stored =
                    thief.request_raw(&said.subject, HeaderMap::new(), payload.into(), PATIENCE);
                stored.await.expect("a PubAck");
                continue;
            }
        };
        let stored = thief.request_raw(&subject, headers, payload.into(), PATIENCE);
        stored.await.expect("a PubAck");
    }
    let reader = broker.bus(Role::AuditProvisioner.name()).await;
    let reader = runtime::StreamReader::new(reader, AUDIT_STREAM);
    let copied = async {
        while reader.span().await.map_or(0, |span| span.last) < MESSAGES {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, copied).await.expect("it is copied");
    (provisioner, cast)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_holes_long_messages_and_false_headers_reads_the_same_both_ways() {
    let broker = Broker::start().await;
    let (provisioner, _cast) = filled(&broker).await;
    let stream = provisioner.get_stream(AUDIT_STREAM).await;
    let stream = stream.expect("it is there");
    // In the middle of a batch, at both of its ends, and the last of the stream.
    let holes = [20, 256, 257, 300, 301, 302, MESSAGES];
    for position in holes {
        stream.delete_message(position).await.expect("it may");
    }
    let together = replayed(&broker, false).await;
    answers_together(&provisioner, false).await;
    let alone = replayed(&broker, true).await;
    assert!(together == alone, "{together:#?}\n{alone:#?}");
    let (lines, findings, foreign) = together;
    assert_eq!(lines.len() as u64, MESSAGES - holes.len() as u64);
    assert!(foreign > MESSAGES / 3, "{foreign}");
    for (from, to) in [(20, 20), (256, 257), (300, 302), (MESSAGES, MESSAGES)] {
        let (from, to) = (StreamSequence(from), StreamSequence(to));
        let hole = Finding::Hole { from, to };
        assert!(findings.contains(&hole), "{hole:?} in {findings:?}");
    }
}

/// A domain of an earlier release, where nobody may ask for many messages.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_may_not_ask_for_many_messages_reads_them_one_by_one() {
    let broker = Broker::start().await;
    broker.create_streams().await;
    let mut cast = broker.cast().await;
    for _ in 0..3 {
        cast.remark().await;
    }
    let writer = broker.bus(Role::LedgerWriter.name()).await;
    let reader = runtime::StreamReader::new(writer, LEDGER_STREAM).together();
    assert!(!reader.is_refused_many(), "it has not asked yet");
    for _ in 0..2 {
        let mut ahead = reader.ahead(1, 3, |messages| messages);
        let batch = timeout(PATIENCE, ahead.next()).await.expect("at once");
        let batch = batch.expect("there is one").expect("it may be read");
        let positions: Vec<u64> = batch.found.iter().map(|one| one.sequence).collect();
        assert_eq!(positions, [1, 2, 3]);
        assert!(reader.is_refused_many());
    }
}

/// What an auditor may ask is answered in its account, and each of the three is needed.
#[tokio::test(flavor = "multi_thread")]
async fn the_questions_of_readers_are_answered_across_accounts_as_often_as_they_should_be() {
    use futures::StreamExt as _;

    let broker = Broker::start().await;
    broker.create_streams().await;
    let mut cast = broker.cast().await;
    for _ in 0..3 {
        cast.remark().await;
    }
    let auditor = broker.bus(Role::Auditor.name()).await;
    let cases = [
        ("STREAM.INFO", "", 1),
        ("STREAM.MSG.GET", r#"{"seq":2}"#, 1),
        ("STREAM.MSG.GET", r#"{"seq":9}"#, 1),
        ("DIRECT.GET", r#"{"seq":1,"batch":9}"#, 4),
        ("DIRECT.GET", r#"{"seq":9,"batch":9}"#, 1),
        ("DIRECT.GET", r#"{"seq":2}"#, 1),
    ];
    for (verb, question, answers) in cases {
        let client = auditor.client();
        let inbox = client.new_inbox();
        let mut heard = client.subscribe(inbox.clone()).await.expect("its inbox");
        let subject = format!("$JS.API.{verb}.{AUDIT_STREAM}");
        let asked = client.publish_with_reply(subject, inbox.clone(), question.into());
        asked.await.expect("sent");
        for _ in 0..answers {
            let answer = timeout(PATIENCE, heard.next()).await.expect("it answers");
            let answer = answer.expect("the connection lives");
            let text = String::from_utf8_lossy(&answer.payload).into_owned();
            assert!(!text.contains("not enabled"), "{verb} {question}: {text}");
        }
        // The broker answers in order, so another answer would be here before this one.
        client.publish(inbox, "end".into()).await.expect("sent");
        let end = timeout(PATIENCE, heard.next()).await.expect("it comes");
        let end = end.expect("the connection lives").payload;
        assert_eq!(end, "end", "{verb} {question} has {answers} answers");
    }
}
