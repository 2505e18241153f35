//! The ledger against a real server: it holds exactly what was appended, by one coordinator at a
//! time, and a coordinator does not continue a chain that was tampered with.

use std::path::Path;
use std::time::Duration;

use async_nats::HeaderMap;
use diloco_coordinator::{Ledger, LedgerError, LedgerMark, NewEvent};
use identity::join::new_session;
use identity::{AuditKey, ManifestKey, TrustBundle};
use runtime::{Bus, Failure};
use schemas::event::{Event, EventBody, LedgerEvent, SignedEvent};
use schemas::member::Posture;
use schemas::subject::{LEDGER_STREAM, ledger_subject};
use schemas::{ChainSequence, Code, Digest, Message as _, UnixMillis, V};

use crate::server::Server;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Scene {
    pub(crate) server: Server,
    pub(crate) key: AuditKey,
    pub(crate) trust: TrustBundle,
}

impl Scene {
    /// Two coordinators' ledgers: each has written one event, and the first does not know the
    /// second's.
    pub(crate) async fn overtaken(&self) -> (Ledger, Ledger) {
        let (mut first, _) = self.open().await.expect("an empty ledger");
        append(&mut first, 1, stopped("first"))
            .await
            .expect("appended");
        let (mut second, _) = self.open().await.expect("it verifies");
        second
            .append([of_demo(2, stopped("second"))])
            .await
            .expect("appended");
        (first, second)
    }

    pub(crate) async fn new() -> Self {
        let key = AuditKey::generate();
        let trust = kit::trust(ManifestKey::generate().public(), key.public());
        Self {
            server: Server::start().await,
            key,
            trust,
        }
    }

    pub(crate) fn domain(&self) -> &str {
        self.trust.domain.as_str()
    }

    /// A ledger of which nothing was read.
    pub(crate) async fn unread(&self) -> Ledger {
        self.unread_at(self.server.bus().await)
    }

    pub(crate) fn unread_at(&self, bus: Bus) -> Ledger {
        Ledger::new(bus, self.key.clone(), self.trust.clone(), PATIENCE)
    }

    pub(crate) async fn open(&self) -> Result<(Ledger, Vec<EventBody>), LedgerError> {
        self.open_at(self.server.bus().await).await
    }

    pub(crate) async fn open_at(&self, bus: Bus) -> Result<(Ledger, Vec<EventBody>), LedgerError> {
        let mut ledger = self.unread_at(bus);
        let events = read_on(&mut ledger).await?;
        Ok((ledger, events))
    }

    /// Puts an event into the stream without the ledger's writer.
    pub(crate) async fn forge(
        &self,
        key: &AuditKey,
        body: &EventBody,
        tamper: impl FnOnce(&mut SignedEvent),
    ) {
        let mut signed = key.sign_event(self.trust.domain.as_str(), body.encode());
        tamper(&mut signed);
        self.put(
            &ledger_subject(None, key.public(), body.event.kind()),
            signed.encode(),
        )
        .await;
    }

    /// Puts a signed event of the coordinator into the stream without the ledger's writer.
    pub(crate) async fn put_signed(&self, body: &EventBody) {
        self.forge(&self.key, body, |_| {}).await;
    }

    /// The bytes of an event as they are stored.
    pub(crate) fn sign(&self, body: &EventBody) -> Vec<u8> {
        let domain = self.trust.domain.as_str();
        self.key.sign_event(domain, body.encode()).encode()
    }

    async fn put(&self, subject: &str, payload: Vec<u8>) {
        let bus = self.server.bus().await;
        let stored = bus
            .request_raw(subject, HeaderMap::new(), payload.into(), PATIENCE)
            .await;
        let answer = stored.expect("the stream takes anything");
        assert!(
            String::from_utf8_lossy(&answer).contains("\"seq\""),
            "{answer:?}"
        );
    }

    /// The event that would follow the present ones.
    pub(crate) async fn successor(&self, key: &AuditKey, reason: &str) -> EventBody {
        let (_, events) = self.open().await.expect("it verifies");
        EventBody {
            v: V,
            known: None,
            emitter: key.public().clone(),
            sequence: ChainSequence(events.len() as u64),
            previous: events.last().map(|last| Digest::of(&last.encode())),
            time: UnixMillis(2),
            run: None,
            event: Event::Ledger(stopped(reason)),
        }
    }

    /// Puts one foreign message of each kind into the stream.
    pub(crate) async fn litter(&self) -> u64 {
        let own = ledger_subject(None, self.key.public(), "coordinator-stopped");
        self.put(&own, Vec::new()).await;
        self.put(&own, b"nonsense".to_vec()).await;
        self.put(&own, vec![7; 100_000]).await;
        self.put("diloco.ledger.x", b"nonsense".to_vec()).await;
        let body = self.successor(&self.key, "not ours").await;
        self.forge(&self.key, &body, |signed| signed.signature[0] ^= 1)
            .await;
        self.forge(&self.key, &body, |signed| {
            *signed.body.last_mut().expect("a body has bytes") ^= 1
        })
        .await;
        self.forge(&AuditKey::generate(), &body, |_| {}).await;
        // The signature is right, and the subject is that of another event.
        let moved = EventBody {
            run: Some("demo".parse().expect("a name")),
            ..body
        };
        self.forge(&self.key, &moved, |_| {}).await;
        8
    }
}

pub(crate) async fn read_on(ledger: &mut Ledger) -> Result<Vec<EventBody>, LedgerError> {
    let mut events = Vec::new();
    let follow = |body| {
        events.push(body);
        Ok::<(), String>(())
    };
    ledger.catch_up(follow).await?;
    Ok(events)
}

/// Reads a ledger as a coordinator does at its start, and compares it with a mark.
async fn start_with(scene: &Scene, mark: &Path) -> Result<(Ledger, LedgerMark), Failure> {
    let mut mark = LedgerMark::open(mark, &scene.trust.domain)?;
    let mut ledger = Ledger::new(
        scene.server.bus().await,
        scene.key.clone(),
        scene.trust.clone(),
        PATIENCE,
    );
    let follow = |body| {
        mark.follow(&body);
        Ok::<(), String>(())
    };
    ledger.catch_up(follow).await?;
    mark.agree(&ledger)?;
    Ok((ledger, mark))
}

async fn append_all(scene: &Scene, mark: &Path, reasons: &[&str]) {
    let (mut ledger, mut mark) = start_with(scene, mark)
        .await
        .expect("what is known is there");
    for reason in reasons {
        append(&mut ledger, 1, stopped(reason))
            .await
            .expect("appended");
        mark.note(&ledger);
    }
}

/// A second server stands for a stream that was lost, replaced, or restored from a backup.
#[tokio::test]
async fn a_ledger_that_does_not_reach_its_mark_is_not_led_on() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mark = scratch.path().join("ledger.mark");
    let scene = Scene::new().await;
    append_all(&scene, &mark, &["a", "b"]).await;
    // A mark that is older than the ledger is no loss: not every mark reaches the disk.
    let older = scratch.path().join("older.mark");
    std::fs::copy(&mark, &older).expect("it was written");
    append_all(&scene, &mark, &["c"]).await;
    start_with(&scene, &older)
        .await
        .expect("the ledger has more than is known");
    start_with(&scene, &mark).await.expect("nothing is missing");

    let other = Scene {
        server: Server::start().await,
        key: scene.key.clone(),
        trust: scene.trust.clone(),
    };
    let unmarked = scratch.path().join("none.mark");
    for (events, said) in [
        (&[][..], "holds 0 events"),
        (&["a", "b"], "holds 2 events"),
        (&["other"], "was appended there"),
    ] {
        append_all(&other, &unmarked, events).await;
        let refused = start_with(&other, &mark)
            .await
            .expect_err("it is not what is known");
        assert_eq!(refused.code(), Code::LedgerLost);
        assert!(refused.to_string().contains(said), "{refused}");
    }
    // The other ledger has more events, and a different one in the place of the last known.
    append_all(&other, &unmarked, &["d", "e"]).await;
    assert_eq!(
        start_with(&other, &mark)
            .await
            .expect_err("other events")
            .code(),
        Code::LedgerLost
    );
    // A refused start has not moved the mark.
    start_with(&scene, &mark).await.expect("nothing is missing");
}

pub(crate) async fn append(
    ledger: &mut Ledger,
    time: u64,
    event: LedgerEvent,
) -> Result<(), LedgerError> {
    ledger.append([at(time, event)]).await
}

pub(crate) fn at(time: u64, event: LedgerEvent) -> NewEvent {
    NewEvent {
        time: UnixMillis(time),
        run: None,
        event,
    }
}

pub(crate) fn of_demo(time: u64, event: LedgerEvent) -> NewEvent {
    NewEvent {
        run: Some("demo".parse().expect("a name")),
        ..at(time, event)
    }
}

pub(crate) fn stopped(reason: &str) -> LedgerEvent {
    LedgerEvent::CoordinatorStopped {
        reason: reason.into(),
    }
}

/// Asserts that the first ledger of [`Scene::overtaken`] was refused because of the second's event.
pub(crate) fn assert_overtaken(refused: &Result<(), LedgerError>) {
    assert!(
        matches!(
            refused,
            Err(LedgerError::Fenced {
                expected: 1,
                found: 2
            })
        ),
        "{refused:?}"
    );
}

pub(crate) fn reasons(events: &[EventBody]) -> Vec<String> {
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
    for (time, reason) in [(1, "a"), (2, "b"), (3, "c")] {
        append(&mut ledger, time, stopped(reason))
            .await
            .expect("appended");
    }
    let (mut again, events) = scene.open().await.expect("it verifies");
    assert_eq!(reasons(&events), ["a", "b", "c"]);
    assert_eq!(
        events.iter().map(|body| body.sequence).collect::<Vec<_>>(),
        [0, 1, 2].map(ChainSequence)
    );
    again
        .append([of_demo(4, stopped("d"))])
        .await
        .expect("appended");
    assert_eq!(
        reasons(&scene.open().await.expect("it verifies").1),
        ["a", "b", "c", "d"]
    );
}

#[tokio::test]
async fn tl_15_a_second_coordinator_fences_the_first_off() {
    let scene = Scene::new().await;
    let (mut first, _) = scene.overtaken().await;
    // The event has another subject, so that only the filter over the whole ledger can notice it.
    let refused = append(&mut first, 3, stopped("late")).await;
    assert_overtaken(&refused);
    assert_eq!(
        reasons(&scene.open().await.expect("it verifies").1),
        ["first", "second"]
    );
}

/// A coordinator that starts while another one is busy reads on, until its own event is the next.
#[tokio::test]
async fn one_that_was_overtaken_reads_on_and_then_appends() {
    let scene = Scene::new().await;
    let (mut first, _) = scene.open().await.expect("an empty ledger");
    append(&mut first, 1, stopped("first"))
        .await
        .expect("appended");
    let (mut second, _) = scene.open().await.expect("it verifies");
    append(&mut first, 2, stopped("meanwhile"))
        .await
        .expect("appended");
    let refused = append(&mut second, 3, stopped("second")).await;
    assert!(
        matches!(refused, Err(LedgerError::Fenced { .. })),
        "{refused:?}"
    );
    assert_eq!(second.len(), 1, "nothing of its own is in the chain");
    assert_eq!(
        reasons(&read_on(&mut second).await.expect("it verifies")),
        ["meanwhile"]
    );
    assert_eq!(read_on(&mut second).await.expect("it verifies"), []);
    append(&mut second, 3, stopped("second"))
        .await
        .expect("appended");
    assert_eq!(
        reasons(&scene.open().await.expect("it verifies").1),
        ["first", "meanwhile", "second"]
    );
}

/// The answer to a publish can be lost after the event was stored. Here the same event from the
/// same place stands for that: the second appender finds its own event at the end, and does not
/// append it again.
#[tokio::test]
async fn an_event_that_landed_without_an_answer_is_not_appended_twice() {
    let scene = Scene::new().await;
    let (mut first, _) = scene.open().await.expect("an empty ledger");
    let (mut second, _) = scene.open().await.expect("an empty ledger");
    append(&mut first, 1, stopped("same"))
        .await
        .expect("appended");
    append(&mut second, 1, stopped("same"))
        .await
        .expect("found to be there");
    append(&mut second, 2, stopped("next"))
        .await
        .expect("appended");
    assert_eq!(
        reasons(&scene.open().await.expect("it verifies").1),
        ["same", "next"]
    );
}

#[tokio::test]
async fn an_append_outlives_a_server_that_is_killed() {
    let mut scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    append(&mut ledger, 1, stopped("before"))
        .await
        .expect("appended");
    scene.server.kill();
    let append = tokio::spawn(async move { append(&mut ledger, 2, stopped("meanwhile")).await });
    scene.server.restart().await;
    append
        .await
        .expect("no panic")
        .expect("appended when the server is back");
    assert_eq!(
        reasons(&scene.open().await.expect("it verifies").1),
        ["before", "meanwhile"]
    );
}

/// Two processes with the same key that start in the same millisecond sign different first events,
/// so that the ledger accepts one and refuses the other. With equal events each would take the
/// other's for its own.
#[tokio::test]
async fn two_that_start_in_the_same_moment_do_not_both_lead() {
    let scene = Scene::new().await;
    let (mut first, _) = scene.open().await.expect("an empty ledger");
    let (mut second, _) = scene.open().await.expect("an empty ledger");
    let started = || LedgerEvent::CoordinatorStarted {
        release: "1".to_owned(),
        posture: Posture::default(),
        session: new_session(),
    };
    append(&mut first, 5, started()).await.expect("it leads");
    let error = append(&mut second, 5, started())
        .await
        .expect_err("another leads");
    assert_eq!(error.code(), Code::LedgerFenced, "{error}");
}

/// Foreign messages at the start, in the middle and at the end, while this process writes and when
/// it starts.
#[tokio::test]
async fn messages_that_nobody_signed_are_skipped_wherever_they_lie() {
    let scene = Scene::new().await;
    let mut foreign = scene.litter().await;
    let (mut ledger, events) = scene.open().await.expect("it starts on them");
    assert!(events.is_empty() && ledger.foreign() == foreign);
    for (time, reason) in [(1, "a"), (2, "b")] {
        append(&mut ledger, time, stopped(reason))
            .await
            .expect("appended");
        // The next append finds them where it expects its predecessor.
        foreign += scene.litter().await;
    }
    append(&mut ledger, 3, stopped("c"))
        .await
        .expect("appended");
    assert_eq!(ledger.foreign(), foreign);
    foreign += scene.litter().await;
    let (again, events) = scene.open().await.expect("it starts on them");
    assert_eq!(
        (reasons(&events), again.foreign()),
        (["a", "b", "c"].map(str::to_owned).to_vec(), foreign)
    );
}

/// A process that may write the stream but has no audit key can only repeat old events.
#[tokio::test]
async fn a_copied_event_is_skipped_however_old_it_is() {
    let scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    for reason in ["a", "b"] {
        append(&mut ledger, 1, stopped(reason))
            .await
            .expect("appended");
    }
    let (_, events) = scene.open().await.expect("it verifies");
    for event in &events {
        scene.forge(&scene.key, event, |_| {}).await;
    }
    append(&mut ledger, 2, stopped("c"))
        .await
        .expect("appended");
    assert_eq!(
        (
            ledger.foreign(),
            reasons(&scene.open().await.expect("it verifies").1).len()
        ),
        (2, 3)
    );
}

#[tokio::test]
async fn a_chain_that_its_own_key_broke_is_not_followed() {
    type Change = fn(&mut EventBody);
    let changes: [(&str, Change); 3] = [
        ("event 1 is expected", |body| {
            body.sequence = ChainSequence(7)
        }),
        ("another event", |body| body.sequence = ChainSequence(0)),
        ("follows", |body| {
            body.previous = Some(Digest::of(b"another past"))
        }),
    ];
    for (expected, change) in changes {
        let scene = Scene::new().await;
        let (mut ledger, _) = scene.open().await.expect("an empty ledger");
        append(&mut ledger, 1, stopped("good"))
            .await
            .expect("appended");
        let mut body = scene.successor(&scene.key, "bad").await;
        change(&mut body);
        scene.forge(&scene.key, &body, |_| {}).await;
        let appended = append(&mut ledger, 3, stopped("late")).await;
        for error in [
            appended.expect_err("somebody has the key"),
            scene.open().await.map(|_| ()).expect_err("broken"),
        ] {
            match &error {
                LedgerError::Broken { stream: 2, reason } => {
                    assert!(reason.contains(expected), "{expected}: {reason}")
                }
                other => panic!("{expected}: {other:?}"),
            }
            assert_eq!(error.code(), Code::LedgerBroken);
        }
    }
}

/// The coordinator waits for a stream without space, logs the broker's own words, and goes on when
/// there is space.
#[tokio::test]
async fn a_full_stream_is_waited_for() {
    let scene = Scene::new().await;
    let (mut ledger, _) = scene.open().await.expect("an empty ledger");
    append(&mut ledger, 1, stopped("before"))
        .await
        .expect("appended");
    let jetstream = async_nats::jetstream::new(scene.server.bus().await.client().clone());
    let mut config = jetstream
        .get_stream(LEDGER_STREAM)
        .await
        .expect("it is there")
        .cached_info()
        .config
        .clone();
    config.discard = async_nats::jetstream::stream::DiscardPolicy::New;
    config.max_messages = 1;
    jetstream
        .update_stream(config.clone())
        .await
        .expect("this server takes it");
    let mut short = Ledger::new(
        scene.server.bus().await,
        scene.key.clone(),
        scene.trust.clone(),
        Duration::ZERO,
    );
    read_on(&mut short).await.expect("it verifies");
    let given_up = append(&mut short, 2, stopped("never"))
        .await
        .expect_err("there is no room");
    assert!(
        matches!(&given_up, LedgerError::Unwritable { reason, .. } if reason.contains("maximum messages")),
        "{given_up}"
    );
    let append = tokio::spawn(async move { append(&mut ledger, 2, stopped("meanwhile")).await });
    config.max_messages = -1;
    jetstream
        .update_stream(config)
        .await
        .expect("this server takes it");
    append
        .await
        .expect("no panic")
        .expect("appended when there is room");
    assert_eq!(
        reasons(&scene.open().await.expect("it verifies").1),
        ["before", "meanwhile"]
    );
}

#[tokio::test]
async fn only_a_stream_that_is_not_there_is_missing() {
    let mut scene = Scene::new().await;
    let bus = scene.server.bus().await;
    let open = || {
        Ledger::new(
            bus.clone(),
            scene.key.clone(),
            scene.trust.clone(),
            PATIENCE,
        )
    };
    let (mut missing, mut away) = (open(), open());
    async_nats::jetstream::new(bus.client().clone())
        .delete_stream(LEDGER_STREAM)
        .await
        .expect("this server takes it");
    assert_eq!(
        read_on(&mut missing).await.expect_err("it is gone").code(),
        Code::StreamMissing
    );
    scene.server.kill();
    assert_eq!(
        read_on(&mut away).await.expect_err("nobody answers").code(),
        Code::StreamUnreadable
    );
}
