//! Reports of refusals with a real broker and real permissions.

use harness::{Cluster, Options, PATIENCE};
use runtime::{Listener, Refusals, clock};
use schemas::member::{Layer, OpenLayer, Posture};
use schemas::permission::Role;
use schemas::security::{REFUSALS_MAX, RefusalReport, Refuser};
use schemas::subject::{ControlVerb, REFUSALS_FILTER, control_subject, refusal_subject};
use schemas::{Code, Message as _};
use tokio::time::timeout;

/// A broker, and the recorder, which listens for reports.
async fn listening() -> (Cluster, Listener) {
    let cluster = Cluster::bare(Options::default()).await;
    let recorder = cluster.issue(Role::Recorder, "recorder");
    let config = cluster.bus_config(&recorder.credentials);
    let heard = Listener::connect("test", &config, &[REFUSALS_FILTER], clock::now()).await;
    let heard = heard.expect("its right").remove(0);
    (cluster, heard)
}

/// The broker writes the service's account into the subject, and holds each service to its own.
#[tokio::test]
async fn tl_29_a_service_reports_under_its_own_subject_and_a_denied_report_is_noticed() {
    let (cluster, mut heard) = listening().await;
    let bus = cluster.connect(Role::Coordinator, "coordinator").await;
    let refusals = Refusals::of(Refuser::Coordinator);
    let operator = cluster.issue(Role::Operator, "operator").public;
    let order = control_subject(&operator, ControlVerb::View);
    refusals.note(&order, Code::IdentityMismatch);
    refusals.note(&order, Code::Draining);
    let reports = tokio::spawn(refusals.clone().report(bus.clone()));
    let delivery = timeout(PATIENCE, heard.next())
        .await
        .expect("it comes")
        .expect("its right");
    reports.abort();
    let control = cluster.domain().control().unwrap();
    let subject = format!("diloco.refusal.{control}.coordinator");
    assert_eq!(delivery.subject, subject);
    let report = RefusalReport::decode(&delivery.payload).expect("a report");
    assert_eq!((report.refusals.len(), report.more), (1, 0));
    let one = report.refusals.first().expect("there is one");
    assert_eq!((one.code, one.count), (Code::IdentityMismatch, 1));
    assert_eq!((&one.user, &one.subject), (&Some(operator), &order));

    let other = refusal_subject(Refuser::Registrar);
    let denied = bus.publish_checked(&other, b"x".to_vec().into()).await;
    assert_eq!(denied.expect_err("the registrar's").code(), Code::BusDenied);
    let own = refusal_subject(Refuser::Coordinator);
    let allowed = bus.publish_checked(&own, b"x".to_vec().into()).await;
    allowed.expect("its own");
}

/// As many as may wait are several reports.
#[tokio::test]
async fn tl_29_all_that_waits_is_reported_at_an_end() {
    let (cluster, mut heard) = listening().await;
    let bus = cluster.connect(Role::Coordinator, "coordinator").await;
    let refusals = Refusals::of(Refuser::Coordinator);
    let full = runtime::refusals::WAITING_MAX / runtime::refusals::WAITING_OF_SENDER_MAX;
    for sender in 0..full {
        let letter = char::from(b'A' + u8::try_from(sender).unwrap());
        let key = format!("U{}", letter.to_string().repeat(55));
        for number in 0..runtime::refusals::WAITING_OF_SENDER_MAX {
            let order = format!("diloco.control.{key}.{number}");
            refusals.note(&order, Code::IdentityMismatch);
        }
    }
    refusals.last(&bus).await;
    let mut left = runtime::refusals::WAITING_MAX;
    while left > 0 {
        let delivery = timeout(PATIENCE, heard.next()).await;
        let delivery = delivery.expect("it comes").expect("its right");
        let report = RefusalReport::decode(&delivery.payload).expect("a report");
        assert_eq!((report.refusals.len(), report.more), (REFUSALS_MAX, 0));
        left -= report.refusals.len();
    }
}

/// A service that refuses nothing says all the same which layers it runs with open.
#[tokio::test]
async fn la_01_a_service_states_its_posture_without_a_refusal() {
    let (cluster, mut heard) = listening().await;
    let bus = cluster.connect(Role::Registrar, "registrar").await;
    let posture = Posture {
        open: vec![OpenLayer {
            layer: Layer::Bus,
            reason: "a measurement".to_owned(),
        }],
    };
    let refusals = Refusals::of(Refuser::Registrar).stating(posture.clone());
    let reports = tokio::spawn(refusals.report(bus));
    let delivery = timeout(PATIENCE, heard.next())
        .await
        .expect("it comes")
        .expect("its right");
    reports.abort();
    let report = RefusalReport::decode(&delivery.payload).expect("a report");
    assert_eq!((report.refusals.len(), report.more), (0, 0));
    assert_eq!(report.posture, Some(posture));
}
