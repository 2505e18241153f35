//! Credentials that live for seconds: a run goes on through their renewals, without a registrar for
//! a while, and ends with a code when there is none for longer than they live. An asker gets a
//! token for its own key, role and run, and nothing else.

use std::time::Duration;

use e2e::{Recipe, Scripted};
use harness::{Cluster, Options, PATIENCE};
use identity::claims::UserClaims;
use identity::jwt::{Subject, mint};
use identity::{ConnectionKey, Credentials, KeyKind, SigningKey};
use runtime::{Bus, BusError, clock};
use schemas::event::LedgerEvent;
use schemas::permission::Role;
use schemas::renewal::{RenewalReply, RenewalRequest};
use schemas::subject::renewal_subject;
use schemas::{Code, Message as _, Millis, PublicKey, RunId, UnixMillis, V};

/// Life of the tokens of services and workers.
const LIFE: Millis = Millis::from_secs(12);
/// Processes that renew, with the number of their credentials.
const PROCESSES: [(&str, usize); 4] = [
    ("worker-0", 1),
    ("worker-1", 1),
    ("coordinator", 2),
    ("audit", 2),
];
const WAIT: Duration = Duration::from_secs(10);

fn options() -> Options {
    Options {
        token_lifetime: Some(LIFE),
        ..Options::default()
    }
}

fn renewals(log: &str) -> usize {
    log.matches("the token is renewed").count()
}

/// Waits until each process has renewed each of its credentials `times` more.
async fn until_renewed(cluster: &mut Cluster, times: usize) {
    for (name, credentials) in PROCESSES {
        let process = cluster.process(name);
        let wanted = renewals(&process.log()) + times * credentials;
        process
            .until_logged(PATIENCE, |log| renewals(log) >= wanted)
            .await;
    }
}

#[tokio::test]
async fn tl_28_a_run_goes_on_while_every_credential_is_renewed() {
    let mut cluster = Cluster::start(options(), 2).await;
    let run = cluster.run().clone();
    Recipe::reference(4000, 2, 40)
        .set("policy.lease=20s")
        .create(&cluster)
        .await;
    until_renewed(&mut cluster, 2).await;
    let operator = cluster.operator().await;
    let round = operator.run(&run).await.unwrap().view.round;

    // A registrar that is away for a part of a life costs nothing.
    cluster.kill9("registrar");
    let delayed = Code::RenewalDelayed.to_string();
    // The first that asks in vain has half of its life left.
    let logs = PROCESSES.map(|(name, _)| cluster.process(name).log_file().to_owned());
    let line = || {
        let texts = logs.iter().map(|log| std::fs::read_to_string(log).unwrap());
        let told = |text: String| {
            let line = text.lines().find(|line| line.contains(&delayed));
            line.map(str::to_owned)
        };
        texts.filter_map(told).next()
    };
    let worker = cluster.process("worker-0");
    worker.until_logged(PATIENCE, |_| line().is_some()).await;
    let line = line().unwrap();
    assert!(
        line.contains("left=") && line.contains(" ends at 2"),
        "{line}"
    );
    cluster.restart("registrar").await;
    until_renewed(&mut cluster, 1).await;
    operator
        .until(&run, PATIENCE, |view| view.round > round)
        .await;

    for (name, _) in PROCESSES {
        assert!(cluster.process(name).ended().is_none(), "{name} ended");
        let log = cluster.process(name).log();
        assert!(
            !log.contains("connection to the bus lost"),
            "{name} was cut off"
        );
    }
    let recorded = cluster.evidence().await.everything().await;
    let events = || recorded.iter().filter_map(|one| one.ledger());
    let count = |wanted: fn(&LedgerEvent) -> bool| events().filter(|event| wanted(event)).count();
    let ended = count(|event| matches!(event, LedgerEvent::LeaseEnded { .. }));
    assert_eq!(ended, 0, "a lease was lost");
    let joined = count(|event| matches!(event, LedgerEvent::WorkerJoined { .. }));
    assert_eq!(joined, 2, "a renewal is no join");
    let started = count(|event| matches!(event, LedgerEvent::CoordinatorStarted { .. }));
    assert_eq!(started, 1);
    cluster.record_verifies().await;

    // One that is away for longer than a life is the end, with a code and not with a loop.
    cluster.kill9("registrar");
    for (name, _) in PROCESSES {
        let status = cluster.process(name).exit(2 * PATIENCE).await;
        let log = cluster.process(name).log();
        assert_eq!(status.code(), Some(64), "{name}: {status}");
        assert!(log.contains(&Code::CredentialLapsed.to_string()), "{name}");
        let tries = log.matches("User Authentication Expired").count();
        assert!(tries < 40, "{name} tried {tries} times");
    }
}

/// Asks under `subject`.
async fn ask(bus: &Bus, subject: &str) -> Result<RenewalReply, BusError> {
    let question = RenewalRequest {
        v: V,
        ends: UnixMillis(0),
        successor: None,
    };
    bus.request(subject, &question, WAIT).await
}

async fn code(bus: &Bus, subject: &str) -> Code {
    ask(bus, subject).await.expect_err("not to be given").code()
}

/// Credentials that a thief of the workers' signing key makes.
fn forged(cluster: &Cluster, run: &RunId) -> std::path::PathBuf {
    let folder = cluster.domain().layout().folder().join("issuer");
    let signer = SigningKey::read(KeyKind::Account, &folder.join("role-worker.nk")).unwrap();
    let key = ConnectionKey::generate();
    let subject = Subject {
        name: "forged",
        key: key.public(),
        not_before: None,
        expires: Some(clock::now().after(Millis::from_secs(3600))),
    };
    let account = cluster.domain().tenant().unwrap();
    let claims = UserClaims::of_role(account, vec![format!("run:{run}")]);
    let token = mint(&subject, claims, &signer, clock::now()).unwrap();
    let path = cluster.path("forged.creds");
    Credentials::new(token, key).unwrap().write(&path).unwrap();
    path
}

#[tokio::test]
async fn tl_06_nobody_gets_a_token_but_its_own() {
    let mut cluster = Cluster::bare(Options {
        token_lifetime: Some(Millis::from_secs(3600)),
        ..Options::default()
    })
    .await;
    // Its own token it signs itself.
    let soon = Millis::from_secs(60);
    let own_token = cluster.issue_for(Role::Registrar, "registrar", None, soon);
    cluster.start_registrar().await;
    let renewed = Credentials::read(&own_token.credentials).unwrap();
    let days = clock::now().after(Millis::from_secs(20 * 24 * 3600));
    assert!(renewed.token().expires.unwrap() > days, "{renewed:?}");
    assert_eq!(*renewed.public(), own_token.public);
    let (run, other): (RunId, RunId) = (cluster.run().clone(), "other".parse().unwrap());
    let life = Millis::from_secs(120);
    let mine = cluster.issue_for(Role::Worker, "worker-0", Some(&run), life);
    let victim = cluster.issue(Role::Worker, "worker-1").public;
    let operator = cluster.issue(Role::Operator, "operator").public;
    let bus = cluster.connect(Role::Worker, "worker-0").await;
    let own = renewal_subject(Some(&run), &mine.public);

    // Twice the same question gives twice a token for the same key.
    let old = Credentials::read(&mine.credentials).unwrap();
    for _ in 0..2 {
        let reply = ask(&bus, &own).await.unwrap();
        let new = Credentials::parse(&text_of(&old, &reply.token)).unwrap();
        assert_eq!(new.token().claims, old.token().claims);
        assert_eq!(
            (&new.token().name, new.public()),
            (&old.token().name, &mine.public)
        );
        assert!(
            !new.token().claims.has_rights(),
            "the role's template decides"
        );
        let hour = Millis::from_secs(3601);
        assert!(
            reply.ends <= clock::now().after(hour),
            "no longer than the registrar's life"
        );
    }
    // The broker refuses every other subject: another's key, another run, another role's form.
    for subject in [
        renewal_subject(Some(&run), &victim),
        renewal_subject(Some(&other), &mine.public),
        renewal_subject(None, &mine.public),
        renewal_subject(None, &operator),
        format!("{own}.more"),
    ] {
        assert_eq!(code(&bus, &subject).await, Code::BusDenied, "{subject}");
    }
    let person = cluster.connect(Role::Operator, "operator").await;
    assert!(
        ask(&person, &renewal_subject(None, &operator))
            .await
            .is_ok()
    );
    let as_worker = renewal_subject(Some(&run), &operator);
    assert_eq!(code(&person, &as_worker).await, Code::BusDenied);

    // Keys that nobody issued, that are blocked, and that were issued for another run since.
    let path = forged(&cluster, &run);
    let thief = Bus::connect("thief", &cluster.bus_config(&path), clock::now())
        .await
        .unwrap();
    let key: PublicKey = thief.public().unwrap().clone();
    let subject = renewal_subject(Some(&run), &key);
    assert_eq!(code(&thief, &subject).await, Code::HolderUnknown);
    let list = cluster.domain().layout().issued();
    let mut record = list.find(&mine.public).unwrap().unwrap();
    record.run = Some(other);
    list.record(&record).unwrap();
    assert_eq!(code(&bus, &own).await, Code::HolderMismatch);
    record.run = Some(run.clone());
    list.record(&record).unwrap();
    assert!(ask(&bus, &own).await.is_ok());
    list.block(&mine.public, clock::now()).unwrap();
    assert_eq!(code(&bus, &own).await, Code::HolderBlocked);
    let log = cluster.process("registrar").log();
    for code in [
        Code::HolderUnknown,
        Code::HolderMismatch,
        Code::HolderBlocked,
    ] {
        assert!(log.contains(&code.to_string()), "{code} is in the log");
    }
}

/// A credentials file with the same key and another token.
fn text_of(old: &Credentials, token: &str) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("new.creds");
    old.renewed(token.to_owned()).unwrap().write(&path).unwrap();
    std::fs::read_to_string(&path).unwrap()
}

#[tokio::test]
async fn garbage_and_floods_on_the_subject_of_renewals_harm_nobody_else() {
    let mut cluster = Cluster::bare(Options {
        token_lifetime: Some(Millis::from_secs(3600)),
        ..Options::default()
    })
    .await;
    cluster.start_registrar().await;
    let run = cluster.run().clone();
    let flooder = Scripted::connect(&cluster, "flooder").await;
    let key: PublicKey = flooder.worker.as_str().parse().unwrap();
    let own = renewal_subject(Some(&run), &key);
    for garbage in [
        vec![],
        vec![0xc0],
        b"{}".to_vec(),
        vec![0xc1; 64],
        vec![0x81; 60_000],
    ] {
        flooder.bus.publish(&own, garbage.into()).await.unwrap();
    }
    let question = RenewalRequest {
        v: V,
        ends: UnixMillis(0),
        successor: None,
    };
    for _ in 0..20_000 {
        let sent = flooder.bus.publish(&own, question.encode().into()).await;
        sent.unwrap();
    }
    flooder.bus.round_trip().await.unwrap();
    let honest = cluster.issue(Role::Worker, "honest").public;
    let bus = cluster.connect(Role::Worker, "honest").await;
    assert!(
        ask(&bus, &renewal_subject(Some(&run), &honest))
            .await
            .is_ok()
    );
    let code = Code::RenewalTooOften.to_string();
    let dropped = Code::MessagesDropped.to_string();
    let told = |log: &str| log.contains(&code) || log.contains(&dropped);
    let log = cluster
        .process("registrar")
        .until_logged(PATIENCE, told)
        .await;
    assert!(log.lines().count() < 100, "a flood is a few lines");
    assert!(cluster.process("registrar").ended().is_none());
}
