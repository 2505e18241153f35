//! The generated accounts, roles and certificates in front of a real broker.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream;
use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerError};
use futures::StreamExt as _;
use identity::claims::UserClaims;
use identity::domain::LIFETIME_DEFAULT;
use identity::jwt::{Subject, mint};
use identity::source::connect_options;
use identity::{
    BusTls, ConnectionKey, CredentialSource, Credentials, Domain, InitOptions, Issuer, KeyKind,
    SigningKey,
};
use schemas::account::Account;
use schemas::permission::Role;
use schemas::public::CommandVerb;
use schemas::subject::{
    EVENTS_FILTER, Lane, Verb, command_filter, command_subject, events_stream, record_subject,
    request_subject, worker_event_subject,
};
use schemas::{AccountId, Code, Millis, RunId, UnixMillis, WorkerId};
use tokio::sync::mpsc;

/// Longer than any step here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A broker that runs until it is dropped, in a domain of its own.
struct Bus {
    child: Child,
    url: String,
    domain: Domain,
    _scratch: tempfile::TempDir,
}

fn binary() -> PathBuf {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.deps/nats/nats-server");
    let path = std::env::var_os("NATS_SERVER_BIN").map_or(bundled, PathBuf::from);
    assert!(
        path.exists(),
        "no nats-server at {}; run `cargo xtask deps`, or set NATS_SERVER_BIN",
        path.display()
    );
    path
}

fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970");
    UnixMillis(since.as_millis().try_into().expect("it is not that late"))
}

fn run() -> RunId {
    "demo".parse().expect("a name")
}

impl Bus {
    fn start() -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = Domain::init(
            &scratch.path().join(".diloco"),
            &InitOptions::default(),
            now(),
        )
        .expect("an empty folder");
        domain
            .write_server_config(&scratch.path().join("generated"), now())
            .expect("the folder takes files");
        let config = format!(
            "listen: \"127.0.0.1:-1\"\ninclude \"generated/auth.conf\"\ninclude \"generated/resolver.conf\"\ninclude \"generated/tls.conf\"\n\
             jetstream {{ store_dir: \"{}/js\" }}\n",
            scratch.path().display()
        );
        let path = scratch.path().join("server.conf");
        fs::write(&path, config).expect("the folder takes files");
        let mut child = Command::new(binary())
            .arg("-c")
            .arg(&path)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the broker starts");
        let mut log = BufReader::new(child.stderr.take().expect("it is piped"));
        let (mut port, mut seen) = (None, String::new());
        loop {
            let mut line = String::new();
            let bytes = log.read_line(&mut line).expect("the broker logs text");
            assert!(bytes > 0, "the broker ended:\n{seen}");
            if let Some((_, rest)) =
                line.split_once("Listening for client connections on 127.0.0.1:")
            {
                port = rest.trim().parse::<u16>().ok();
            }
            if line.contains("Server is ready") {
                break;
            }
            seen.push_str(&line);
        }
        // A full pipe would stop the broker.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let url = format!(
            "tls://127.0.0.1:{}",
            port.expect("it said where it listens")
        );
        Self {
            child,
            url,
            domain,
            _scratch: scratch,
        }
    }

    fn tls(&self) -> BusTls {
        BusTls::Required {
            ca: self.domain.trust().ca.clone(),
        }
    }

    fn issue(&self, role: Role, name: &str) -> CredentialSource {
        let run = role.is_tenant().then(run);
        let issued = self
            .domain
            .issue(role, name, run.as_ref(), LIFETIME_DEFAULT, now())
            .expect("a fresh name");
        CredentialSource::open(&issued.credentials, now()).expect("just issued")
    }

    /// Connects, and returns the events of the connection.
    async fn connect(
        &self,
        source: &CredentialSource,
    ) -> Result<(Client, mpsc::Receiver<Event>), ConnectError> {
        let (sender, events) = mpsc::channel(64);
        let options = connect_options(source, &self.tls()).event_callback(move |event| {
            let sender = sender.clone();
            async move {
                let _ = sender.send(event).await;
            }
        });
        Ok((options.connect(self.url.as_str()).await?, events))
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn until(events: &mut mpsc::Receiver<Event>, wanted: impl Fn(&Event) -> bool) -> Event {
    let found = async {
        loop {
            let event = events.recv().await.expect("the connection lives");
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found)
        .await
        .expect("the event comes")
}

fn violation(event: &Event) -> Option<&str> {
    match event {
        Event::ServerError(ServerError::Other(text)) if text.contains("Permissions Violation") => {
            Some(text)
        }
        _ => None,
    }
}

/// The line of a credentials file that starts with `prefix`.
fn line(source: &CredentialSource, prefix: &str) -> String {
    let text = fs::read_to_string(source.path()).expect("it is ours");
    text.lines()
        .find(|line| line.starts_with(prefix))
        .expect("it has such a line")
        .to_owned()
}

fn assert_refused(outcome: Result<Client, ConnectError>) {
    let kind = outcome.expect_err("the broker refuses").kind();
    assert!(
        matches!(
            kind,
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication
        ),
        "{kind:?}"
    );
}

#[tokio::test]
async fn every_role_connects_and_may_say_what_its_table_says() {
    let bus = Bus::start();
    for role in Role::ALL {
        let source = bus.issue(role, role.name());
        let (client, mut events) = bus.connect(&source).await.expect("its own domain's broker");
        client
            .publish("diloco.none.of.ours", "".into())
            .await
            .expect("it is sent");
        let event = until(&mut events, |event| violation(event).is_some()).await;
        let text = violation(&event).expect("it was waited for").to_lowercase();
        assert!(
            text.contains("publish to \"diloco.none.of.ours\""),
            "{text}"
        );
    }
}

#[tokio::test]
async fn ls_02_a_request_reaches_the_coordinator_with_the_senders_name_on_it() {
    let bus = Bus::start();
    let (coordinator, _events) = bus
        .connect(&bus.issue(Role::Coordinator, "c1"))
        .await
        .expect("its own domain");
    let mut requests = coordinator
        .subscribe("diloco.request.>")
        .await
        .expect("it is sent");
    // After a round trip the subscription is known before anyone asks.
    coordinator
        .request("$JS.API.INFO", "".into())
        .await
        .expect("JetStream answers");
    let source = bus.issue(Role::Worker, "w1");
    let worker: WorkerId = source.public().as_str().parse().expect("a user's key");
    let (client, mut events) = bus.connect(&source).await.expect("its own domain");
    let subject = request_subject(&run(), &worker, Verb::Join);
    let asked = tokio::spawn({
        let client = client.clone();
        async move { client.request(subject, "me".into()).await }
    });
    let message = tokio::time::timeout(PATIENCE, requests.next())
        .await
        .expect("it comes")
        .expect("it is subscribed");
    let tenant = bus.domain.tenant().expect("a key");
    assert_eq!(
        message.subject.as_str(),
        format!("diloco.request.{tenant}.demo.{worker}.join")
    );
    let reply = message.reply.expect("it waits for an answer");
    coordinator
        .publish(reply, "welcome".into())
        .await
        .expect("it is sent");
    let answer = asked.await.expect("no panic").expect("an answer");
    assert_eq!(answer.payload.as_ref(), b"welcome");

    let other = bus.issue(Role::Worker, "w2");
    let other: WorkerId = other.public().as_str().parse().expect("a user's key");
    let elsewhere: RunId = "other".parse().expect("a name");
    for forged in [
        request_subject(&run(), &other, Verb::Join),
        request_subject(&elsewhere, &worker, Verb::Join),
        "$JS.API.INFO".into(),
        "$KV.state.epoch".into(),
    ] {
        client
            .publish(forged.clone(), "".into())
            .await
            .expect("it is sent");
        until(&mut events, |event| {
            violation(event).is_some_and(|text| text.contains(&forged))
        })
        .await;
    }
}

#[tokio::test]
async fn events_reach_who_checks_them_and_commands_reach_the_tenant_they_name() {
    let bus = Bus::start();
    let (recorder, _events) = bus
        .connect(&bus.issue(Role::Recorder, "r"))
        .await
        .expect("its own domain");
    let mut heard = recorder.subscribe(EVENTS_FILTER).await.expect("it is sent");
    let (provisioner, _events) = bus
        .connect(&bus.issue(Role::EventsProvisioner, "p"))
        .await
        .expect("its own domain");
    let name = events_stream(&bus.domain.tenant().expect("a key"));
    let subjects = vec![format!("{}.>", Lane::Record.prefix())];
    let stream = jetstream::stream::Config {
        name: name.clone(),
        subjects,
        ..Default::default()
    };
    jetstream::new(provisioner)
        .create_stream(stream)
        .await
        .expect("a provisioner may");
    let source = bus.issue(Role::Worker, "w1");
    let worker: WorkerId = source.public().as_str().parse().expect("a user's key");
    let (client, _worker_events) = bus.connect(&source).await.expect("its own domain");
    let mut commands = client
        .subscribe(command_filter(&run(), &worker))
        .await
        .expect("it is sent");
    // The answer is a round trip: the subscription is known when it comes.
    let (subject, tenant) = (
        worker_event_subject(&run(), &worker, "joined"),
        bus.domain.tenant().expect("a key"),
    );
    let asked = tokio::spawn({
        let client = client.clone();
        async move { client.request(subject, "body".into()).await }
    });
    let message = tokio::time::timeout(PATIENCE, heard.next())
        .await
        .expect("it comes")
        .expect("it is subscribed");
    assert_eq!(
        message.subject.as_str(),
        format!("diloco.event.{tenant}.demo.{worker}.joined")
    );
    let recorded = record_subject(&tenant, &run(), &worker, "joined");
    let sent = jetstream::new(recorder.clone())
        .publish(recorded, message.payload)
        .await
        .expect("it is sent");
    let ack = sent.await.expect("the stream answers");
    assert_eq!((ack.stream.as_str(), ack.sequence), (name.as_str(), 1));
    recorder
        .publish(
            message.reply.expect("it waits for an answer"),
            "recorded".into(),
        )
        .await
        .expect("it is sent");
    assert_eq!(
        asked
            .await
            .expect("no panic")
            .expect("an answer")
            .payload
            .as_ref(),
        b"recorded"
    );

    let (coordinator, _events) = bus
        .connect(&bus.issue(Role::Coordinator, "c1"))
        .await
        .expect("its own domain");
    let tenant = bus.domain.tenant().expect("a key");
    let elsewhere: AccountId = bus.domain.control().expect("a key");
    for (account, payload) in [(&elsewhere, "for others"), (&tenant, "for us")] {
        let subject = command_subject(account, &run(), &worker, CommandVerb::Drain);
        coordinator
            .publish(subject, payload.into())
            .await
            .expect("it is sent");
    }
    let command = tokio::time::timeout(PATIENCE, commands.next())
        .await
        .expect("it comes")
        .expect("it is subscribed");
    assert_eq!(command.payload.as_ref(), b"for us");
}

/// Whatever token is made with the keys of the folder `issuer`, in whichever account: the broker
/// lets nobody in who may do what a provisioner may.
#[tokio::test]
async fn tl_06_nobody_becomes_a_provisioner_with_the_keys_that_lie_online() {
    let bus = Bus::start();
    let issuer = bus.domain.layout().issuer();
    let (mut refused, mut powerless) = (0, 0);
    for (number, role) in (0..).zip(Role::ALL) {
        let path = Issuer::key(&issuer, role);
        if !path.exists() {
            continue;
        }
        let signer = SigningKey::read(KeyKind::Account, &path).expect("a signing key");
        for account in Account::ALL {
            let Some(provisioner) = Role::provisioner(account) else {
                continue;
            };
            let name = format!("thief-{number}-{}", account.name());
            let key = ConnectionKey::generate();
            let subject = Subject {
                name: provisioner.name(),
                key: key.public(),
                not_before: None,
                expires: Some(now().after(LIFETIME_DEFAULT)),
            };
            let account = bus.domain.account(account).expect("a name");
            let claims = UserClaims::of_role(account, Vec::new());
            let token = mint(&subject, claims, &signer, now()).expect("a token");
            let path = bus.domain.layout().folder().join(format!("{name}.creds"));
            Credentials::new(token, key)
                .and_then(|made| made.write(&path))
                .expect("the folder takes files");
            let source = CredentialSource::open(&path, now()).expect("its form is right");
            let Ok((client, mut events)) = bus.connect(&source).await else {
                refused += 1;
                continue;
            };
            // It is one of the key's own role.
            for subject in [
                "$JS.API.STREAM.CREATE.THIEF",
                "$JS.API.STREAM.DELETE.LEDGER",
                "$JS.API.STREAM.PURGE.LEDGER",
            ] {
                let said = client.publish(subject, "{}".into()).await;
                said.expect("the client sends anything");
                let denied = |event: &Event| {
                    violation(event)
                        .is_some_and(|text| text.to_lowercase().contains(&subject.to_lowercase()))
                };
                until(&mut events, denied).await;
            }
            powerless += 1;
        }
    }
    assert!(refused > 10 && powerless > 2, "{refused}, {powerless}");
}

#[tokio::test]
async fn tl_05_strangers_and_mixed_pairs_are_refused() {
    let bus = Bus::start();
    let connect = |options: ConnectOptions| async {
        options
            .require_tls(true)
            .add_root_certificates(bus.domain.trust().ca.clone())
            .connect(bus.url.as_str())
            .await
    };
    assert_refused(connect(ConnectOptions::new()).await);
    let (a, b) = (bus.issue(Role::Worker, "a"), bus.issue(Role::Worker, "b"));
    let pair = nkeys::KeyPair::from_seed(&line(&b, "SU")).expect("a seed");
    let pair = std::sync::Arc::new(pair);
    let mixed = ConnectOptions::with_jwt(line(&a, "eyJ"), move |nonce| {
        let pair = std::sync::Arc::clone(&pair);
        async move { pair.sign(&nonce).map_err(async_nats::AuthError::new) }
    });
    assert_refused(connect(mixed).await);
    // Complete credentials of another domain.
    let stranger = Bus::start();
    let source = stranger.issue(Role::Worker, "w1");
    assert_refused(
        connect_options(&source, &bus.tls())
            .connect(bus.url.as_str())
            .await,
    );
    // A broker of another domain: its certificate is not trusted, so it never sees the token.
    let elsewhere = connect_options(&a, &bus.tls())
        .connect(stranger.url.as_str())
        .await;
    assert_eq!(
        elsewhere.expect_err("a strange authority").kind(),
        ConnectErrorKind::Io
    );
}

#[tokio::test]
async fn an_expired_token_stops_a_process_at_its_start_and_is_refused_by_the_broker() {
    let bus = Bus::start();
    let past = UnixMillis(now().get() - 60_000);
    let issue = bus.domain.issue(
        Role::Worker,
        "w1",
        Some(&run()),
        Millis::from_secs(10),
        past,
    );
    let path = issue.expect("a fresh name").credentials;
    assert_eq!(
        CredentialSource::open(&path, now())
            .expect_err("it is over")
            .code(),
        Code::CredentialExpired
    );
    let slow_clock = CredentialSource::open(&path, past).expect("valid then");
    assert_refused(
        connect_options(&slow_clock, &bus.tls())
            .connect(bus.url.as_str())
            .await,
    );
}

#[tokio::test]
async fn a_token_that_was_renewed_on_disk_is_used_at_the_next_reconnect() {
    let bus = Bus::start();
    let issue = |lifetime| {
        bus.domain
            .issue(Role::Worker, "w1", Some(&run()), lifetime, now())
            .expect("one holder")
    };
    let path = issue(Millis::from_secs(3)).credentials;
    let source = CredentialSource::open(&path, now()).expect("just issued");
    let (client, mut events) = bus.connect(&source).await.expect("its own domain");
    until(&mut events, |event| matches!(event, Event::Connected)).await;
    issue(LIFETIME_DEFAULT);
    // The broker cuts the connection when the old token ends; only the file can help then.
    until(&mut events, |event| matches!(event, Event::Disconnected)).await;
    until(&mut events, |event| matches!(event, Event::Connected)).await;
    drop(client);
}

#[tokio::test]
async fn a_file_that_changed_hands_is_not_used() {
    let bus = Bus::start();
    let (a, b) = (bus.issue(Role::Worker, "a"), bus.issue(Role::Worker, "b"));
    fs::copy(b.path(), a.path()).expect("both are ours");
    let outcome = connect_options(&a, &bus.tls())
        .connect(bus.url.as_str())
        .await;
    let error = outcome.expect_err("subjects and inboxes belong to the first key");
    assert_eq!(error.kind(), ConnectErrorKind::Authentication);
}

/// A handshake with the broker by a client that speaks this version alone.
fn handshake(bus: &Bus, version: &'static rustls::SupportedProtocolVersion) -> std::io::Result<()> {
    let address = bus.url.strip_prefix("tls://").expect("a TLS address");
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // The broker sends one line about itself before TLS begins.
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
    }
    let ca = fs::read(&bus.domain.trust().ca)?;
    let name = "localhost".try_into().expect("a host name");
    let config = crate::tls::client_of_version(&ca, version);
    let mut client =
        rustls::ClientConnection::new(Arc::new(config), name).expect("a configuration that fits");
    while client.is_handshaking() {
        client.complete_io(&mut stream)?;
    }
    Ok(())
}

#[test]
fn tl_21_the_broker_speaks_nothing_older_than_tls_1_3() {
    let bus = Bus::start();
    handshake(&bus, &rustls::version::TLS13).expect("the version that is pinned");
    let refused = handshake(&bus, &rustls::version::TLS12).expect_err("an old version");
    assert!(refused.to_string().contains("ProtocolVersion"), "{refused}");
}
