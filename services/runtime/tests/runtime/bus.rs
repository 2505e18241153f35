//! The bus with a real broker and real permissions: a refused call fails at once, and its error
//! names the subject.

use std::time::{Duration, Instant};

use harness::{Cluster, Options};
use identity::{Domain, InitOptions};
use runtime::bus::Direction;
use runtime::{Bus, BusConfig, BusError, Listener, clock};
use schemas::answer::question;
use schemas::lease::{Done, ReleaseRequest};
use schemas::permission::Role;
use schemas::subject::{ControlVerb, command_filter, control_subject};
use schemas::text::Time;
use schemas::{
    Addressee, Answer, Code, Message as _, Millis, PublicKey, Reply, UnixMillis, WorkerId,
};

/// Much longer than a refusal takes, much shorter than a request waits.
const AT_ONCE: Duration = Duration::from_secs(5);
const WAIT: Duration = Duration::from_secs(30);

pub(crate) fn question_of_a_worker() -> ReleaseRequest {
    let unit = schemas::lease::UnitId {
        round: schemas::Round(0),
        kind: schemas::lease::UnitKind::Train,
        index: schemas::UnitIndex(0),
    };
    let lease = schemas::lease::LeaseRef {
        unit,
        epoch: schemas::Epoch(1),
    };
    ReleaseRequest {
        v: schemas::V,
        lease,
        reason: "a test".into(),
    }
}

#[tokio::test]
async fn ls_11_a_refused_request_fails_at_once_and_by_name() {
    let cluster = Cluster::bare(Options::default()).await;
    let worker = cluster.connect(Role::Worker, "worker-0").await;
    let operator = cluster.connect(Role::Operator, "operator").await;
    let public = operator.public().expect("connected with credentials");
    let subject = control_subject(public, ControlVerb::Shutdown);
    let started = Instant::now();
    let error = worker
        .request::<_, Done>(&subject, &question_of_a_worker(), WAIT)
        .await
        .expect_err("workers control nothing");
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    assert_eq!(error.code(), Code::BusDenied);
    match error {
        BusError::Denied {
            direction: Direction::Publish,
            subject: refused,
        } => assert_eq!(refused, subject),
        other => panic!("{other}"),
    }
    // A verb of its own, which nobody answers yet.
    let error = operator
        .request::<_, Done>(&subject, &question_of_a_worker(), WAIT)
        .await
        .expect_err("no coordinator");
    assert_eq!(error.code(), Code::NoAnswer);
}

#[tokio::test]
async fn many_questions_are_answered_in_their_order_or_refused_at_once() {
    let cluster = Cluster::bare(Options::default()).await;
    let worker = cluster.connect(Role::Worker, "worker-0").await;
    let questions = || (0..300).map(|number| format!("{{\"seq\":{number}}}").into());
    let subject = "$JS.API.STREAM.MSG.GET.LEDGER";
    let started = Instant::now();
    let refused = worker.request_many(subject, questions(), WAIT).await;
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    assert_eq!(refused.expect_err("no right to it").code(), Code::BusDenied);
    let operator = cluster.connect(Role::Operator, "operator").await;
    let public = operator.public().expect("connected with credentials");
    let unheard = control_subject(public, ControlVerb::Shutdown);
    let unanswered = operator.request_many(&unheard, questions(), WAIT).await;
    assert_eq!(
        unanswered.expect_err("no coordinator").code(),
        Code::NoAnswer
    );
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());

    // A peer that answers in the opposite order.
    let config = cluster.bus_config(&cluster.domain().layout().credentials("coordinator"));
    let heard =
        Listener::connect("coordinator", &config, &["diloco.control.>"], clock::now()).await;
    let mut heard = heard.expect("it may").remove(0);
    let coordinator = cluster.connect(Role::Coordinator, "coordinator").await;
    let answering = async {
        let mut asked = Vec::new();
        while asked.len() < 300 {
            asked.push(heard.next().await.expect("it is connected"));
        }
        for question in asked.into_iter().rev() {
            let reply = question.reply.expect("somebody asks");
            coordinator
                .publish(&reply, question.payload)
                .await
                .expect("sent");
        }
    };
    let asking = operator.request_many(&unheard, questions(), WAIT);
    let (answers, ()) = tokio::join!(asking, answering);
    assert_eq!(
        answers.expect("all are answered"),
        questions().collect::<Vec<bytes::Bytes>>()
    );
}

#[tokio::test]
async fn a_refused_subscription_is_an_error_and_a_granted_one_stands() {
    let cluster = Cluster::bare(Options::default()).await;
    let worker = cluster.connect(Role::Worker, "worker-0").await;
    let id: WorkerId = worker
        .public()
        .expect("connected with credentials")
        .as_str()
        .parse()
        .expect("a user key");
    worker
        .subscribe(&command_filter(cluster.run(), &id))
        .await
        .expect("its own commands");
    let error = worker
        .subscribe("diloco.request.>")
        .await
        .map(|_| ())
        .expect_err("requests are the coordinator's");
    assert!(
        matches!(
            error,
            BusError::Denied {
                direction: Direction::Subscribe,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn only_the_answer_to_what_was_asked_is_taken() {
    let cluster = Cluster::bare(Options::default()).await;
    let config = cluster.bus_config(&cluster.domain().layout().credentials("coordinator"));
    let listening =
        Listener::connect("coordinator", &config, &["diloco.control.>"], clock::now()).await;
    let mut listener = listening.expect("it may").remove(0);
    let coordinator = cluster.connect(Role::Coordinator, "coordinator").await;
    let operator = cluster.connect(Role::Operator, "operator").await;
    let subject = control_subject(
        operator.public().expect("with credentials"),
        ControlVerb::Shutdown,
    );
    let other: PublicKey = cluster.issue(Role::Worker, "worker-0").public;
    let done = |asked: &Addressee| Answer::new(asked, Reply::Ok(Done::default())).encode();
    type Made<'a> = Box<dyn Fn(&Addressee) -> Vec<u8> + 'a>;
    let answers: [(Made<'_>, Option<Code>); 5] = [
        (Box::new(done), None),
        (
            Box::new(|asked| {
                done(&Addressee {
                    by: other.clone(),
                    ..asked.clone()
                })
            }),
            Some(Code::NoAnswer),
        ),
        (
            Box::new(|asked| {
                done(&Addressee {
                    question: question("x", b""),
                    ..asked.clone()
                })
            }),
            Some(Code::NoAnswer),
        ),
        (
            Box::new(|_| Done::default().encode()),
            Some(Code::MessageInvalid),
        ),
        (
            Box::new(|_| b"{\"stream\":\"AUDIT\",\"seq\":1}".to_vec()),
            Some(Code::MessageInvalid),
        ),
    ];
    for (place, (made, expected)) in answers.iter().enumerate() {
        let asking = question_of_a_worker();
        let answering = async {
            let heard = listener.next().await.expect("it may");
            let asked = Addressee::of(&heard.subject, &heard.payload).expect("an operator asks");
            let reply = heard.reply.expect("it wants an answer");
            coordinator
                .publish(&reply, made(&asked).into())
                .await
                .expect("sent");
        };
        let (answer, ()) = tokio::join!(
            operator.request::<_, Done>(&subject, &asking, WAIT),
            answering
        );
        assert_eq!(
            answer.map_err(|error| error.code()).err(),
            *expected,
            "{place}"
        );
    }
}

#[tokio::test]
async fn a_lost_connection_ends_what_waited_and_comes_back() {
    let mut cluster = Cluster::bare(Options::default()).await;
    let coordinator = cluster.connect(Role::Coordinator, "coordinator").await;
    let mut silent = coordinator
        .subscribe("diloco.control.>")
        .await
        .expect("it may");
    let operator = cluster.connect(Role::Operator, "operator").await;
    let subject = control_subject(
        operator.public().expect("with credentials"),
        ControlVerb::Shutdown,
    );
    let asker = operator.clone();
    let asked = subject.clone();
    let asking = tokio::spawn(async move {
        asker
            .request::<_, Done>(&asked, &question_of_a_worker(), WAIT)
            .await
    });
    silent
        .next()
        .await
        .expect("allowed")
        .expect("the question arrives and is not answered");
    cluster.kill9("broker");
    let error = asking.await.expect("no panic").expect_err("nobody answers");
    assert!(matches!(error, BusError::Lost { .. }), "{error}");
    cluster.restart("broker").await;
    operator.round_trip().await.expect("connected again");
}

#[tokio::test]
async fn strangers_and_absent_servers_have_codes() {
    let cluster = Cluster::bare(Options::default()).await;
    let other = Domain::init(
        &cluster.path("other"),
        &InitOptions::default(),
        clock::now(),
    )
    .expect("another domain");
    let lifetime = schemas::Millis::from_secs(3600);
    let issued = other
        .issue(Role::Coordinator, "stranger", None, lifetime, clock::now())
        .expect("issued");
    let config = cluster.bus_config(&issued.credentials);
    let error = Bus::connect("stranger", &config, clock::now())
        .await
        .expect_err("of another domain");
    assert_eq!(error.code(), Code::BusRefused, "{error}");
    let own = cluster.issue(Role::Coordinator, "coordinator");
    // Another domain's authority, which did not sign this server's certificate.
    let config = BusConfig {
        ca: other.layout().ca(),
        ..cluster.bus_config(&own.credentials)
    };
    let error = Bus::connect("mistaken", &config, clock::now())
        .await
        .expect_err("an unknown server");
    assert_eq!(error.code(), Code::CertificateUntrusted, "{error}");
    let text = error.to_string();
    assert!(
        text.contains("issued to localhost, 127.0.0.1") && text.contains(cluster.bus_url()),
        "{text}"
    );
    let nowhere = BusConfig {
        url: "tls://127.0.0.1:1".into(),
        ..cluster.bus_config(&own.credentials)
    };
    let error = Bus::connect("early", &nowhere, clock::now())
        .await
        .expect_err("nobody there");
    assert_eq!(error.code(), Code::BusUnreachable, "{error}");
}

#[tokio::test]
async fn an_expired_certificate_of_the_server_is_named_with_its_day() {
    let mut cluster = Cluster::bare(Options::default()).await;
    let own = cluster.issue(Role::Coordinator, "coordinator");
    let now = clock::now();
    let made = UnixMillis(now.get() - 31 * 24 * 3_600_000);
    cluster
        .domain()
        .renew_server_certificate(&[], made)
        .expect("the domain makes certificates");
    cluster.kill9("broker");
    cluster.restart("broker").await;
    let error = Bus::connect("late", &cluster.bus_config(&own.credentials), now)
        .await
        .expect_err("it is over");
    let (text, ended) = (
        error.to_string(),
        Time(made.after(Millis::from_secs(30 * 24 * 3600))).to_string(),
    );
    assert_eq!(error.code(), Code::ServerCertificateExpired, "{text}");
    assert!(
        text.contains("issued to localhost") && text.contains(&ended[..16]),
        "{text}, {ended}"
    );
}
