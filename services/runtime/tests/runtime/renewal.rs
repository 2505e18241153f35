//! Renewal with the real broker and the real registrar: tokens of seconds, under which questions,
//! a long poll and a listener go on.

use std::collections::BTreeMap;
use std::time::Duration;

use harness::{Cluster, Options, PATIENCE, RawConnection};
use identity::Credentials;
use runtime::{Bus, BusError, Listener, clock};
use schemas::lease::{Done, ReleaseRequest};
use schemas::permission::Role;
use schemas::subject::{Verb, request_subject};
use schemas::{Addressee, Answer, Code, Message as _, Millis, Reply, UnixMillis};

use super::bus::question_of_a_worker;

/// Life of the tokens, of which half passes before they are renewed.
const LIFE: Millis = Millis::from_secs(4);
/// Renewals that each side lives through.
const RENEWALS: u64 = 4;
/// Time that a question may take. One that is lost takes the whole time.
const WAIT: Duration = Duration::from_secs(20);

async fn cluster(life: Millis) -> Cluster {
    let options = Options {
        token_lifetime: Some(life),
        ..Options::default()
    };
    let mut cluster = Cluster::bare(options).await;
    cluster.start_registrar().await;
    cluster
}

/// The end of the token that a name has now.
fn ends(cluster: &Cluster, name: &str) -> UnixMillis {
    let path = cluster.domain().layout().credentials(name);
    let read = Credentials::read(&path).unwrap_or_else(|error| panic!("{error}"));
    read.token().expires.expect("it ends")
}

fn asked(number: u64) -> ReleaseRequest {
    ReleaseRequest {
        reason: number.to_string(),
        ..question_of_a_worker()
    }
}

/// Answers each question of the worker, and holds the one that says so for two lives. Returns how
/// often each was heard.
async fn answer(bus: Bus, mut listener: Listener) -> BTreeMap<String, u32> {
    let mut heard = BTreeMap::new();
    loop {
        let delivery = listener.next().await.expect("it may listen");
        let question = ReleaseRequest::decode(&delivery.payload).expect("of our worker");
        *heard.entry(question.reason.clone()).or_default() += 1;
        let addressee = Addressee::of(&delivery.subject, &delivery.payload).expect("a worker");
        let reply = delivery.reply.expect("it waits for an answer");
        let bytes = Answer::new(&addressee, Reply::Ok(Done::default())).encode();
        match question.reason.as_str() {
            "end" => {
                bus.publish(&reply, bytes.into()).await.expect("sent");
                bus.round_trip().await.expect("the answer has left");
                return heard;
            }
            "hold" => {
                let bus = bus.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(LIFE.as_duration()).await;
                    // The connection that asked has been replaced by then.
                    let _unheard = bus.publish(&reply, bytes.into()).await;
                });
            }
            _ => bus.publish(&reply, bytes.into()).await.expect("sent"),
        }
    }
}

#[tokio::test]
async fn tl_06_tokens_of_seconds_are_renewed_and_no_question_is_lost() {
    let cluster = cluster(LIFE).await;
    let coordinator = cluster.issue(Role::Coordinator, "coordinator");
    let config = cluster.bus_config(&coordinator.credentials);
    let listening = Listener::connect("test", &config, &["diloco.request.>"], clock::now()).await;
    let listener = listening.expect("a coordinator may").remove(0);
    let answers = cluster.connect(Role::Coordinator, "coordinator").await;
    let answering = tokio::spawn(answer(answers, listener));

    let issued = cluster.issue(Role::Worker, "worker-0");
    let worker = issued.public.as_str().parse().expect("a worker's name");
    let bus = cluster.connect(Role::Worker, "worker-0").await;
    let subject = request_subject(cluster.run(), &worker, Verb::Release);
    let held = tokio::spawn({
        let (bus, subject) = (bus.clone(), subject.clone());
        async move { bus.request::<_, Done>(&subject, &hold(), WAIT).await }
    });
    let first = [ends(&cluster, "worker-0"), ends(&cluster, "coordinator")];
    let last = UnixMillis(first[1].get() + RENEWALS * LIFE.get() / 2);
    let (mut number, mut lost) = (0, 0);
    while ends(&cluster, "worker-0") < last || ends(&cluster, "coordinator") < last {
        match bus.request::<_, Done>(&subject, &asked(number), WAIT).await {
            Ok(_) => number += 1,
            // It was on its way when the connection was replaced, and is asked again.
            Err(BusError::Lost { .. }) => lost += 1,
            Err(error) => panic!("question {number}: {error}"),
        }
    }
    let held = held.await.expect("no panic");
    assert!(
        held.is_ok() || matches!(held, Err(BusError::Lost { .. })),
        "who waits long is told at once, or answered: {held:?}"
    );
    let end = ReleaseRequest {
        reason: "end".to_owned(),
        ..question_of_a_worker()
    };
    let ended = bus.request::<_, Done>(&subject, &end, WAIT).await;
    ended.expect("the coordinator still answers");
    let heard = answering.await.expect("no panic");
    let wanted = (0..number).map(|number| number.to_string());
    let missing: Vec<String> = wanted.filter(|one| !heard.contains_key(one)).collect();
    assert_eq!(missing, Vec::<String>::new());
    let repeated: u32 = heard.values().map(|times| times - 1).sum();
    assert!(
        repeated <= lost,
        "{repeated} heard twice, {lost} asked again"
    );
    assert!(
        u64::from(lost) <= 2 * RENEWALS + 2,
        "{lost} of {number} asked again"
    );
}

fn hold() -> ReleaseRequest {
    ReleaseRequest {
        reason: "hold".to_owned(),
        ..question_of_a_worker()
    }
}

/// The connection of a client that does not renew is cut at the end of its token, and the token
/// opens nothing after that; the renewed one does.
#[tokio::test]
async fn fg_10_an_old_token_ends_by_itself_and_the_new_one_goes_on() {
    let cluster = cluster(LIFE).await;
    let issued = cluster.issue(Role::Worker, "worker-0");
    let thief = cluster.path("stolen.creds");
    std::fs::copy(&issued.credentials, &thief).expect("the folder takes files");
    let mut raw = RawConnection::connect(&cluster, &thief).await;
    let bus = cluster.connect(Role::Worker, "worker-0").await;
    let said = raw.closed().await;
    assert!(
        said.iter()
            .any(|line| line.contains("User Authentication Expired")),
        "{said:?}"
    );
    let error = Bus::connect("thief", &cluster.bus_config(&thief), clock::now()).await;
    assert_eq!(
        error.expect_err("it has ended").code(),
        Code::CredentialExpired
    );
    bus.round_trip().await.expect("the renewed one is good");
    assert!(ends(&cluster, "worker-0") > issued.expires);
    let now = Credentials::read(&issued.credentials).expect("it is whole");
    assert_eq!(*now.public(), issued.public, "the key is the same");
}

/// Without a registrar the token ends, the reason is told with its code, and nothing spins.
#[tokio::test]
async fn tl_06_a_token_that_cannot_be_renewed_ends_with_a_code() {
    let cluster = Cluster::bare(Options::default()).await;
    let life = Millis::from_secs(3);
    let issued = cluster.issue_for(Role::Operator, "short", None, life);
    let bus = Bus::connect(
        "test",
        &cluster.bus_config(&issued.credentials),
        clock::now(),
    )
    .await
    .expect("it is good");
    let lapsed = tokio::time::timeout(PATIENCE, bus.lapsed()).await;
    let failure = lapsed.expect("it ends with its token");
    assert_eq!(failure.code(), Code::CredentialLapsed);
    assert!(clock::now() >= issued.expires, "and not before");
    let text = failure.to_string();
    let file = issued.credentials.display().to_string();
    assert!(
        text.contains(&file) && text.contains("ended at 2"),
        "{text}"
    );
    assert!(text.contains("DL0204"), "{text} says why");
}

/// A longer token than those of the registrar is kept until half of one of them is left.
#[tokio::test]
async fn tl_06_a_longer_token_is_used_until_the_registrar_has_a_later_one() {
    let offered = Millis::from_secs(8);
    let cluster = cluster(offered).await;
    let life = Millis(3 * offered.get());
    let issued = cluster.issue_for(Role::Operator, "longer", None, life);
    let config = cluster.bus_config(&issued.credentials);
    let connected = Bus::connect("test", &config, clock::now()).await;
    let bus = connected.expect("it is good");
    // A stranger's connection tells when the first token has ended.
    let first = cluster.path("first.creds");
    std::fs::copy(&issued.credentials, &first).expect("the folder takes files");
    RawConnection::connect(&cluster, &first)
        .await
        .closed()
        .await;
    bus.round_trip().await.expect("it is renewed");
    let token = Credentials::read(&issued.credentials).expect("it is whole");
    let left = token.token().issued.until(issued.expires);
    assert!(left < Millis(offered.get() * 3 / 4), "{left} were left");
}

/// The client connects by itself after a loss, and may find a token in the file that ends earlier.
#[tokio::test]
async fn tl_06_a_shorter_token_that_a_reconnect_finds_ends_in_its_time() {
    let mut cluster = Cluster::bare(Options::default()).await;
    let long = Millis::from_secs(3600);
    let issued = cluster.issue_for(Role::Coordinator, "replaced", None, long);
    let config = cluster.bus_config(&issued.credentials);
    let connected = Bus::connect("test", &config, clock::now()).await;
    let bus = connected.expect("it is good");
    let short = Millis::from_secs(10);
    let again = cluster.issue_for(Role::Coordinator, "replaced", None, short);
    assert!(again.expires < issued.expires);
    cluster.kill9("broker");
    cluster.restart("broker").await;
    let lapsed = tokio::time::timeout(PATIENCE, bus.lapsed()).await;
    let failure = lapsed.expect("it does not wait for the end of the first token");
    assert_eq!(failure.code(), Code::CredentialLapsed);
}

/// A file that an operator replaces is taken up before the old token ends, also where nobody
/// renews.
#[tokio::test]
async fn a_file_that_is_replaced_in_time_is_taken_up() {
    let cluster = Cluster::bare(Options::default()).await;
    let life = Millis::from_secs(4);
    let issued = cluster.issue_for(Role::Coordinator, "short", None, life);
    let config = cluster.bus_config(&issued.credentials);
    let bus = Bus::connect("test", &config, clock::now())
        .await
        .expect("it is good");
    let listening = Listener::connect("test", &config, &["diloco.control.>"], clock::now()).await;
    let mut listener = listening.expect("a coordinator may").remove(0);
    let long = Millis::from_secs(3600);
    let again = cluster.issue_for(Role::Coordinator, "short", None, long);
    assert_eq!(again.public, issued.public);
    // A stranger's connection tells when the old token has ended.
    let old = cluster.issue_for(Role::Worker, "clock", Some(cluster.run()), life);
    RawConnection::connect(&cluster, &old.credentials)
        .await
        .closed()
        .await;
    bus.round_trip().await.expect("it goes on");
    let operator = cluster.connect(Role::Operator, "operator").await;
    let key = operator.public().expect("with credentials");
    let subject = schemas::subject::control_subject(key, schemas::subject::ControlVerb::View);
    operator.publish(&subject, "x".into()).await.expect("sent");
    let heard = tokio::time::timeout(PATIENCE, listener.next()).await;
    assert_eq!(heard.expect("it comes").expect("it may").subject, subject);
}
