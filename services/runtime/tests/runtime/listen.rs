//! The listener on a real broker: it hears what other clients hear, and bytes that end their
//! connection do not end its own.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use harness::{Cluster, Options, PATIENCE, RawConnection, publication};
use identity::{Domain, InitOptions};
use runtime::{Bus, BusConfig, Delivery, Listener, clock};
use schemas::permission::Role;
use schemas::subject::{COORDINATOR_FILTERS, Incoming, Verb, request_subject};
use schemas::{Code, WorkerId};

/// Header blocks that the broker passes on. Most of them end the connection of the client library.
const FOREIGN: [&[u8]; 6] = [
    b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n",
    b"NATS/1.0\r\nno colon in this line\r\n\r\n",
    b"NATS/1.0\r\na name: x\r\n\r\n",
    b"NATS/9.9 strange\r\nX: y\r\n\r\n",
    b"NATS/1.0 \xff\xff\r\n\r\n",
    b"\r\n",
];

struct Scene {
    cluster: Cluster,
    worker: WorkerId,
    credentials: PathBuf,
}

impl Scene {
    async fn start() -> Self {
        let cluster = Cluster::bare(Options::default()).await;
        let issued = cluster.issue(Role::Worker, "worker-0");
        let worker = issued.public.as_str().parse().expect("a user key");
        Self {
            cluster,
            worker,
            credentials: issued.credentials,
        }
    }

    fn config(&self, name: &str) -> BusConfig {
        self.cluster
            .bus_config(&self.cluster.domain().layout().credentials(name))
    }

    async fn listen(&self) -> Vec<Listener> {
        let config = self.config("coordinator");
        let listeners =
            Listener::connect("test", &config, &COORDINATOR_FILTERS, clock::now()).await;
        listeners.unwrap_or_else(|error| panic!("{error}"))
    }

    fn subject(&self) -> String {
        request_subject(self.cluster.run(), &self.worker, Verb::Claim)
    }

    /// True for this scene's worker's request, with the account that the broker wrote.
    fn is_ours(&self, heard: &Delivery) -> bool {
        let account = self.cluster.domain().tenant().expect("there is one");
        let (run, worker) = (self.cluster.run().clone(), self.worker.clone());
        heard.subject.parse()
            == Ok(Incoming::Request {
                account,
                run,
                worker,
                verb: Verb::Claim,
            })
    }
}

async fn next(listener: &mut Listener) -> Delivery {
    let heard = tokio::time::timeout(PATIENCE, listener.next())
        .await
        .expect("it comes");
    heard.unwrap_or_else(|error| panic!("{}: {error}", listener.filter()))
}

#[tokio::test]
async fn headers_that_no_client_can_read_are_not_in_the_way() {
    let scene = Scene::start().await;
    let mut listeners = scene.listen().await;
    let (subject, inbox) = (scene.subject(), format!("_INBOX.{}.x", scene.worker));
    let mut raw = RawConnection::connect(&scene.cluster, &scene.credentials).await;
    raw.say(format!("SUB _INBOX.{}.> 1\r\n", scene.worker))
        .await;
    let long = [
        b"NATS/1.0\r\nX: ".to_vec(),
        vec![b'x'; 60 << 10],
        b"\r\n\r\n".to_vec(),
    ]
    .concat();
    for (place, headers) in FOREIGN.iter().copied().chain([&long[..]]).enumerate() {
        raw.publish(
            subject.as_bytes(),
            inbox.as_bytes(),
            headers,
            format!("{place}").as_bytes(),
        )
        .await;
    }
    assert_eq!(
        raw.settled().await,
        Vec::<String>::new(),
        "the broker takes all of it"
    );
    let answers = scene
        .cluster
        .connect(Role::Coordinator, "coordinator")
        .await;
    for place in 0..=FOREIGN.len() {
        let heard = next(&mut listeners[0]).await;
        assert!(scene.is_ours(&heard), "{}", heard.subject);
        // A header block that is malformed stays in front of its sender's payload.
        assert!(
            heard.payload.ends_with(format!("{place}").as_bytes()),
            "{place}: {:?}",
            heard.payload
        );
        // The answer arrives where the asker listens, in another account.
        let reply = heard.reply.expect("it wants an answer");
        assert!(reply.starts_with("_R_."), "{reply}");
        answers
            .publish(&reply, Bytes::from(format!("answer {place}")))
            .await
            .expect("sent");
        assert!(raw.line().await.starts_with(&format!("MSG {inbox} 1 ")));
        assert_eq!(raw.line().await, format!("answer {place}"));
    }
}

#[tokio::test]
async fn subjects_that_are_no_text_are_heard_as_nobodys_and_answered_nowhere() {
    let scene = Scene::start().await;
    let credentials = scene.cluster.domain().layout().credentials("operator");
    let inbox = format!("_INBOX.{}", scene.cluster.source(&credentials).public());
    let listening = Listener::connect(
        "test",
        &scene.config("operator"),
        &[format!("{inbox}.>")],
        clock::now(),
    )
    .await;
    let mut own = listening.expect("its own inbox").remove(0);
    let mut raw = RawConnection::connect(&scene.cluster, &credentials).await;
    raw.publish(
        &[inbox.as_bytes(), b".\xff\xfe"].concat(),
        b"\xff.x",
        b"",
        b"hi",
    )
    .await;
    let heard = next(&mut own).await;
    assert_eq!(heard.subject, format!("{inbox}.\u{fffd}\u{fffd}"));
    assert_eq!((heard.reply, &heard.payload[..]), (None, &b"hi"[..]));
}

#[tokio::test]
async fn a_burst_is_heard_in_order_and_a_flood_takes_nobody_elses_place() {
    let scene = Scene::start().await;
    let mut listeners = scene.listen().await;
    let mut raw = RawConnection::connect(&scene.cluster, &scene.credentials).await;
    let subject = scene.subject();
    let burst = |from: u32, to: u32| -> Vec<u8> {
        let one =
            |number: u32| publication(subject.as_bytes(), b"", FOREIGN[0], &number.to_be_bytes());
        (from..to).flat_map(one).collect()
    };
    raw.say(burst(0, 4_000)).await;
    for number in 0..4_000_u32 {
        assert_eq!(
            next(&mut listeners[0]).await.payload,
            number.to_be_bytes().as_slice()
        );
    }
    assert_eq!(listeners[0].dropped(), 0);
    // Nobody takes these messages: the connection is still read, and other subjects are heard.
    raw.say(burst(0, 100_000)).await;
    raw.settled().await;
    let heartbeat = format!(
        "diloco.telemetry.{}.{}.heartbeat",
        scene.cluster.run(),
        scene.worker
    );
    raw.publish(heartbeat.as_bytes(), b"", b"", b"beat").await;
    assert_eq!(next(&mut listeners[1]).await.payload, "beat");
    let dropped = listeners[0].dropped();
    assert!(dropped > 90_000, "{dropped}");
    assert_eq!(listeners[1].dropped(), 0);
    // Nobody has taken any of them, and another worker is heard nevertheless.
    let other = scene.cluster.issue(Role::Worker, "worker-1");
    let mut quiet = RawConnection::connect(&scene.cluster, &other.credentials).await;
    let other = other.public.as_str().parse().expect("a user key");
    let request = request_subject(scene.cluster.run(), &other, Verb::Claim);
    quiet
        .publish(
            request.as_bytes(),
            format!("_INBOX.{other}.x").as_bytes(),
            b"",
            b"quiet",
        )
        .await;
    quiet.settled().await;
    assert_eq!(
        next(&mut listeners[0]).await.payload,
        0_u32.to_be_bytes().as_slice(),
        "the oldest wait"
    );
    while next(&mut listeners[0]).await.payload != "quiet" {}
    assert_eq!(
        listeners[0].dropped(),
        dropped,
        "none but those of who flooded"
    );
}

#[tokio::test]
async fn it_comes_back_after_the_broker_did_with_the_credentials_of_then() {
    let mut scene = Scene::start().await;
    let mut listeners = scene.listen().await;
    // The credentials file is renewed meanwhile: the same key, another token.
    scene.cluster.kill9("broker");
    scene.cluster.issue(Role::Coordinator, "coordinator");
    scene.cluster.restart("broker").await;
    let worker = scene.cluster.connect(Role::Worker, "worker-0").await;
    let subject = scene.subject();
    let heard = tokio::time::timeout(PATIENCE, async {
        loop {
            // Nobody hears until the listener has reconnected.
            let outcome = worker.request_raw(
                &subject,
                HeaderMap::new(),
                "x".into(),
                Duration::from_secs(1),
            );
            tokio::select! {
                delivery = listeners[0].next() => break delivery.expect("it may"),
                _ = outcome => {}
            }
        }
    });
    assert_eq!(heard.await.expect("it reconnects").payload, "x");
}

#[tokio::test]
async fn refused_strangers_and_absent_servers_have_the_codes_that_a_bus_gives_them() {
    let scene = Scene::start().await;
    let try_with = async |config: &BusConfig, filter: &str| {
        let tried = Listener::connect("test", config, &[filter], clock::now()).await;
        let listener = tried.map(|_| ()).expect_err("it cannot listen").code();
        let bus = match Bus::connect("test", config, clock::now()).await {
            Ok(bus) => bus
                .subscribe(filter)
                .await
                .map(|_| ())
                .expect_err("it cannot listen")
                .code(),
            Err(error) => error.code(),
        };
        assert_eq!(listener, bus);
        listener
    };
    let mine = "diloco.request.>";
    let own = scene.config("coordinator");
    assert_eq!(
        try_with(&scene.config("operator"), mine).await,
        Code::BusDenied
    );
    let other = Domain::init(
        &scene.cluster.path("other"),
        &InitOptions::default(),
        clock::now(),
    )
    .expect("a domain");
    let lifetime = schemas::Millis::from_secs(3600);
    let stranger = other
        .issue(Role::Coordinator, "stranger", None, lifetime, clock::now())
        .expect("issued");
    assert_eq!(
        try_with(&scene.cluster.bus_config(&stranger.credentials), mine).await,
        Code::BusRefused
    );
    let mistaken = BusConfig {
        ca: other.layout().ca(),
        ..own.clone()
    };
    assert_eq!(try_with(&mistaken, mine).await, Code::CertificateUntrusted);
    assert_eq!(
        try_with(
            &BusConfig {
                url: "tls://127.0.0.1:1".into(),
                ..own.clone()
            },
            mine
        )
        .await,
        Code::BusUnreachable
    );
    let absent = BusConfig {
        credentials: PathBuf::from("/nowhere"),
        ..own.clone()
    };
    assert_eq!(try_with(&absent, mine).await, Code::CredentialUnreadable);
    assert_eq!(
        try_with(
            &BusConfig {
                ca: PathBuf::new(),
                ..own.clone()
            },
            mine
        )
        .await,
        Code::CredentialMissing
    );
    // The second of two servers accepts.
    let second = BusConfig {
        url: format!("tls://127.0.0.1:1,{}", own.url),
        ..own
    };
    Listener::connect("test", &second, &[mine], clock::now())
        .await
        .expect("one of them is there");
}
