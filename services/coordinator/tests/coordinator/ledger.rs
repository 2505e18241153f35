//! The ledger against a real server: what it holds is exactly what was appended, by one coordinator at a time, and a
//! chain that was tampered with is not followed.

use std::time::Duration;

use async_nats::HeaderMap;
use data_encoding::BASE64URL_NOPAD;
use diloco_coordinator::{Ledger, LedgerError};
use identity::{AuditKey, KeyKind, ManifestKey, SigningKey, TrustBundle};
use schemas::event::{Event, EventBody, KEY_HEADER, LedgerEvent, SIGNATURE_HEADER};
use schemas::subject::{ledger_subject, worker_event_subject};
use schemas::{Digest, Message as _, Sequence, UnixMillis, V};

use crate::server::Server;

const PATIENCE: Duration = Duration::from_secs(20);

struct Scene {
    server: Server,
    key: AuditKey,
    trust: TrustBundle,
}

impl Scene {
    async fn new() -> Self {
        let key = AuditKey::generate();
        let trust = TrustBundle {
            v: V,
            domain: SigningKey::generate(KeyKind::Operator).public().clone(),
            tenants: vec![SigningKey::generate(KeyKind::Account).public().as_str().parse().expect("an account's id")],
            manifest_keys: vec![ManifestKey::generate().public().clone()],
            audit_keys: vec![key.public().clone()],
            ca: "ca.pem".into(),
        };
        Self { server: Server::start().await, key, trust }
    }

    async fn open(&self) -> Result<(Ledger, Vec<EventBody>), LedgerError> {
        let mut ledger = Ledger::new(self.server.bus().await, self.key.clone(), self.trust.clone(), PATIENCE);
        let events = read_on(&mut ledger).await?;
        Ok((ledger, events))
    }

    /// Puts an event into the stream past the ledger.
    async fn forge(&self, key: &AuditKey, body: &EventBody, tamper: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = body.encode();
        let signature = key.sign_event(self.trust.domain.as_str(), &bytes);
        tamper(&mut bytes);
        let mut headers = HeaderMap::new();
        headers.insert(KEY_HEADER, key.public().as_str());
        headers.insert(SIGNATURE_HEADER, BASE64URL_NOPAD.encode(&signature));
        let subject = ledger_subject(None, key.public(), body.event.kind());
        let bus = self.server.bus().await;
        bus.request_raw(&subject, headers, bytes.into(), PATIENCE).await.expect("the stream takes anything");
    }
}

async fn read_on(ledger: &mut Ledger) -> Result<Vec<EventBody>, LedgerError> {
    let mut events = Vec::new();
    let follow = |body| {
        events.push(body);
        Ok::<(), String>(())
    };
    ledger.catch_up(follow).await?;
    Ok(events)
}

fn stopped(reason: &str) -> LedgerEvent {
    LedgerEvent::CoordinatorStopped { reason: reason.into() }
}

fn reasons(events: &[EventBody]) -> Vec<String> {
    let reason = |body: &EventBody| match &body.event {
        Event::Ledger(LedgerEvent::CoordinatorStopped { reason }) => reason.clone(),
        other => panic!("not appended here: {other:?}"),
    };
    events.iter().map(reason).collect()
}

#[tokio::test]
async fn what_was_appended_is_read_back_in_order_and_goes_on() {
    let scene = Scene::new().await;
    let (mut ledger, events) = scene.open().await.expect("an empty ledger");
    assert!(events.is_empty() && ledger.is_empty());
    // Events of others lie in between and do not disturb the fence.
    let other = scene.server.bus().await;
    for (time, reason) in [(1, "a"), (2, "b"), (3, "c")] {
        ledger.append(UnixMillis(time), None, stopped(reason)).await.expect("appended");
        let account = SigningKey::generate(KeyKind::Account).public().to_string();
        let worker = AuditKey::generate().public().as_str().parse().expect("a user key");
        let subject = worker_event_subject(&"demo".parse().expect("a name"), &worker, "joined");
        let subject = subject.replacen("diloco.event.", &format!("diloco.event.{account}."), 1);
        other.request_raw(&subject, HeaderMap::new(), "x".into(), PATIENCE).await.expect("stored");
    }
    let (mut again, events) = scene.open().await.expect("it verifies");
    assert_eq!(reasons(&events), ["a", "b", "c"]);
    assert_eq!(events.iter().map(|body| body.sequence).collect::<Vec<_>>(), [0, 1, 2].map(Sequence));
    again.append(UnixMillis(4), Some(&"demo".parse().expect("a name")), stopped("d")).await.expect("appended");
    assert_eq!(reasons(&scene.open().await.expect("it verifies").1), ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn tl_15_a_second_coordinator_fences_the_first_off() {
    let scene = Scene::new().await;
    let (mut first, _) = scene.open().await.expect("an empty ledger");
    first.append(UnixMillis(1), None, stopped("first")).await.expect("appended");
    let (mut second, _) = scene.open().await.expect("it verifies");
    second.append(UnixMillis(2), Some(&"demo".parse().expect("a name")), stopped("second")).await.expect("appended");
    // Under another subject, so that only the filter over all of the ledger can notice.
    let refused = first.append(UnixMillis(3), None, stopped("late")).await;
    assert!(matches!(refused, Err(LedgerError::Fenced { expected: 1, found: 2 })), "{refused:?}");
    assert_eq!(reasons(&scene.open().await.expect("it verifies").1), ["first", "second"]);
}

/// What a coordinator does that starts while another one is busy: it reads on until its own event is the next.
#[tokio::test]
async fn one_that_was_overtaken_reads_on_and_then_appends() {
    let scene = Scene::new().await;
    let (mut first, _) = scene.open().await.expect("an empty ledger");
    first.append(UnixMillis(1), None, stopped("first")).await.expect("appended");
    let (mut second, _) = scene.open().await.expect("it verifies");
    first.append(UnixMillis(2), None, stopped("meanwhile")).await.expect("appended");
    let refused = second.append(UnixMillis(3), None, stopped("second")).await;
    assert!(matches!(refused, Err(LedgerError::Fenced { .. })), "{refused:?}");
    assert_eq!(second.len(), 1, "nothing of its own is in the chain");
    assert_eq!(reasons(&read_on(&mut second).await.expect("it verifies")), ["meanwhile"]);
    assert_eq!(read_on(&mut second).await.expect("it verifies"), []);
    second.append(UnixMillis(3), None, stopped("second")).await.expect("appended");
    assert_eq!(reasons(&scene.open().await.expect("it verifies").1), ["first", "meanwhile", "second"]);
}

/// The answer to a publish can be lost after the event was stored. The same event from the same place stands for that
/// here: the second appender finds its own event at the end and does not append it again.
#[tokio::test]
async fn an_event_that_landed_without_an_answer_is_not_appended_twice() {
    let scene = Scene::new().await;
    let (mut first, _) = scene.open().await.expect("an empty ledger");
    let (mut second, _) = scene.open().await.expect("an empty ledger");
    first.append(UnixMillis(1), None, stopped("same")).await.expect("appended");
    second.append(UnixMillis(1), None, stopped("same")).await.expect("found to be there");
    second.append(UnixMillis(2), None, stopped("next")).await.expect("appended");
    assert_eq!(reasons(&scene.open().await.expect("it verifies").1), ["same", "next"]);
}

#[tokio::test]
async fn an_append_outlives_a_server_that_is_killed() {
    let mut scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    ledger.append(UnixMillis(1), None, stopped("before")).await.expect("appended");
    scene.server.kill();
    let append = tokio::spawn(async move { ledger.append(UnixMillis(2), None, stopped("meanwhile")).await });
    scene.server.restart().await;
    append.await.expect("no panic").expect("appended when the server is back");
    assert_eq!(reasons(&scene.open().await.expect("it verifies").1), ["before", "meanwhile"]);
}

#[tokio::test]
async fn a_chain_that_was_tampered_with_is_not_followed() {
    type Change = fn(&mut EventBody, &mut Vec<u8>);
    let stranger = AuditKey::generate();
    let changes: [(&str, Change, bool); 5] = [
        ("signature", |_, bytes| *bytes.last_mut().expect("a body has bytes") ^= 1, false),
        ("position", |body, _| body.sequence = Sequence(7), false),
        ("follows", |body, _| body.previous = Some(Digest::of(b"another past")), false),
        ("subject", |body, _| body.run = Some("demo".parse().expect("a name")), false),
        ("not an audit key", |_, _| {}, true),
    ];
    for (expected, change, by_stranger) in changes {
        let scene = Scene::new().await;
        let (mut ledger, _) = scene.open().await.expect("an empty ledger");
        ledger.append(UnixMillis(1), None, stopped("good")).await.expect("appended");
        let (_, events) = scene.open().await.expect("it verifies");
        let key = if by_stranger { &stranger } else { &scene.key };
        let mut body = EventBody {
            v: V,
            emitter: key.public().clone(),
            sequence: Sequence(1),
            previous: Some(Digest::of(&events[0].encode())),
            time: UnixMillis(2),
            run: None,
            event: Event::Ledger(stopped("bad")),
        };
        change(&mut body, &mut vec![0]);
        scene.forge(key, &body, |bytes| change(&mut body.clone(), bytes)).await;
        match scene.open().await {
            Err(LedgerError::Broken { stream: 2, reason }) => {
                assert!(reason.contains(expected), "{expected}: {reason}")
            }
            other => panic!("{expected}: {:?}", other.map(|(_, events)| events)),
        }
    }
}
