//! Enrolment in a domain with mutual TLS: the invitation brings a certificate with which the
//! machine may ask, and the answer one for the machine's own key. The first serves for nothing
//! else.

use std::fs;

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE};
use identity::{ClientFile, Credentials, Holder, InvitationFile, Newcomer, StoreKeys};
use objects::{Endpoint, Signer, StoreClock, Trust};
use runtime::{Bus, BusError, accounts, clock};
use schemas::enrolment::EnrolmentReply;
use schemas::member::{JoinReply, JoinRequest, Posture, Session};
use schemas::permission::Role;
use schemas::subject::{Verb, enrolment_subject, request_subject};
use schemas::{Code, Digest, Millis, V};

use crate::enrolment::{approach, enrol, invite, layout, record};
use crate::mutual_tls::ask;

/// Life of tokens and certificates in a run that renews them.
const LIFE: Millis = Millis::from_secs(12);

fn options(life: Millis) -> Options {
    Options {
        mutual_tls: true,
        token_lifetime: Some(life),
        ..Options::default()
    }
}

#[tokio::test]
async fn fg_03_fg_08_an_invited_machine_trains_and_renews_under_mutual_tls() {
    let mut cluster = Cluster::start(options(LIFE), 0).await;
    let run = cluster.run().clone();
    let file = invite(&cluster, "invited", &[]).await;
    enrol(&cluster, "machine", &file).await.unwrap();
    let path = layout(&cluster, "machine").credentials("invited");
    let shown = ClientFile::beside(&path);
    let first = Credentials::read(&path).unwrap();
    let expected = Holder {
        key: first.public().clone(),
        role: Role::Worker,
        ends: first.token().expires.unwrap(),
    };
    assert_eq!(shown.holder().unwrap(), expected);
    assert!(record(&cluster, first.public()).is_some());
    assert!(!layout(&cluster, "machine").newcomer().exists());

    Recipe::reference(4000, 2, 40)
        .set("policy.lease=20s")
        .create(&cluster)
        .await;
    cluster
        .start_worker_of(&cluster.path("machine"), "invited")
        .await;
    let renewed = |log: &str| log.matches("certified=true").count() >= 3;
    let process = cluster.process("invited");
    process.until_logged(PATIENCE, renewed).await;
    let now = shown.holder().unwrap();
    assert!(now.ends > expected.ends && expected.ends < clock::now());
    assert_eq!((now.key, now.role), (expected.key, expected.role));
    let operator = cluster.operator().await;
    let round = operator.run(&run).await.unwrap().view.round;
    operator
        .until(&run, PATIENCE, |view| view.round > round)
        .await;
    assert!(cluster.process("invited").ended().is_none());
    let seen = accounts::certificates(cluster.domain(), cluster.bus_url(), clock::now()).await;
    let seen = seen.unwrap();
    assert!(seen.strays.is_empty() && seen.bound > 3, "{seen:?}");
    cluster.record_verifies().await;
}

#[tokio::test]
async fn fg_03_fg_08_the_certificate_of_an_invitation_serves_for_nothing_else() {
    let mut cluster = Cluster::bare(options(Millis::from_secs(3600))).await;
    cluster.start_registrar().await;
    cluster.start_store().await;
    let run = cluster.run().clone();
    let file = invite(&cluster, "short", &["--ends", "10s"]).await;
    let invitation = InvitationFile::read(&file).unwrap();
    let machine = Newcomer::prepare(&layout(&cluster, "machine")).unwrap();
    let bus = approach(&cluster, &machine, &invitation).await;
    let creds = layout(&cluster, "machine")
        .newcomer()
        .join("invitation.creds");
    let shown = ClientFile::beside(&creds);
    let holder = shown.holder().unwrap();
    assert_eq!(
        (&holder.key, holder.role),
        (invitation.id(), Role::Newcomer)
    );
    assert_eq!(holder.ends, invitation.ends);

    // Its key is no worker's.
    let own = invitation.id().as_str().parse().unwrap();
    let join = JoinRequest {
        v: V,
        session: Session(1),
        release: "0".to_owned(),
        posture: Posture::default(),
        device: String::new(),
        audit_key: machine.audit_key().clone(),
        proof: [0; 64].into(),
        trainers: Vec::new(),
    };
    let joined: Result<JoinReply, BusError> = bus
        .request(&request_subject(&run, &own, Verb::Join), &join, PATIENCE)
        .await;
    assert_eq!(joined.unwrap_err().code(), Code::BusDenied);
    // The store serves it nothing: neither what a worker was given, nor what its own key signs.
    let worker = cluster.issue(Role::Worker, "worker-0");
    let keys = StoreKeys::read(&cluster.domain().layout().store_keys()).unwrap();
    let ca = cluster.domain().layout().ca();
    let trust = Trust::Shown(ca, shown.clone());
    let endpoint = Endpoint::new(&cluster.store_url(), "us-east-1", trust).unwrap();
    let signer = Signer::new(&endpoint, &keys, StoreClock::default()).unwrap();
    let given = signer.naming_holders(true).given_to(&worker.public);
    let grant = given.get(Digest::of(b"nothing"), clock::now());
    let url = grant.action.unwrap().href;
    let refused = ask(&cluster, &url, &shown).await;
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    let served = ask(&cluster, &url, &ClientFile::beside(&worker.credentials)).await;
    assert!(served.starts_with("HTTP/1.1 404"), "{served}");

    // One that connected in time is cut off at the end.
    let subject = enrolment_subject(invitation.id());
    while clock::now() < invitation.ends {
        bus.round_trip().await.ok();
        tokio::task::yield_now().await;
    }
    let question = machine.question(&invitation, Posture::default(), clock::now());
    let late: Result<EnrolmentReply, BusError> = bus.request(&subject, &question, PATIENCE).await;
    assert!(late.is_err());
    assert!(record(&cluster, machine.worker()).is_none());
    // Nor does the broker take it beside credentials that still hold.
    let borrowed = ClientFile::beside(&worker.credentials);
    let config = cluster.bus_config(&worker.credentials);
    Bus::connect("test", &config, clock::now()).await.unwrap();
    fs::copy(shown.path(), borrowed.path()).unwrap();
    let refused = Bus::connect("test", &config, clock::now())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::ClientCertificateExpired, "{refused}");
    let said = refused.to_string();
    assert!(said.contains(invitation.id().as_str()), "{said}");
}
