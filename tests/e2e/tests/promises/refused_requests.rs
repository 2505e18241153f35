//! Refused requests: what coordinator, registrar and audit service refuse for a reason of security
//! is in the record with sender, code and number, in few events; what they refuse for an ordinary
//! reason is not. The audit service starts, and receives events, also at a broker with older tokens
//! of the accounts, and says what it did not hear.

use std::fs;
use std::path::PathBuf;

use e2e::Recipe;
use harness::{
    Cluster, Options, PATIENCE, RawConnection, Recorded, Scripted, publication, scripted,
};
use identity::claims::{AccountClaims, AccountKey, UserClaims};
use identity::jwt::{self, Subject, mint};
use identity::{AccessKey, ConnectionKey, Credentials, KeyKind, SigningKey};
use objects::{BlobReader, Endpoint, TransferLimits, Trust};
use runtime::clock;
use schemas::control::Query;
use schemas::event::{Event, WorkerEvent};
use schemas::lease::{LeaseRef, UnitId, UnitKind};
use schemas::permission::Role;
use schemas::renewal::RenewalRequest;
use schemas::security::{Refuser, SecurityEvent, Seen};
use schemas::subject::{
    ControlVerb, LOG_FILTER, REFUSALS_FILTER, Verb, control_subject, renewal_subject,
    worker_event_subject,
};
use schemas::{
    Code, Epoch, Message as _, Millis, ObjectRef, PublicKey, Round, UnitIndex, UnixMillis, V,
};

const HOUR: Millis = Millis::from_secs(3600);
/// Refused requests of the flood: less than a sender may ask at once.
const FLOOD: usize = 3000;

pub(crate) fn refusal(recorded: &Recorded) -> Option<(Refuser, &Seen)> {
    match &recorded.body.event {
        Event::Security(SecurityEvent::RequestRefused { by, seen }) => Some((*by, seen)),
        _ => None,
    }
}

/// The refusal of `user` by a service, once it is recorded.
pub(crate) async fn recorded(
    cluster: &Cluster,
    by: Refuser,
    user: &PublicKey,
    subject: &str,
    code: Code,
) -> Seen {
    let beginning = format!("{code} ");
    let wanted = |one: &Recorded| {
        refusal(one).is_some_and(|(service, seen)| {
            service == by
                && seen.user.as_ref() == Some(user)
                && seen.subject == subject
                && seen.reason.starts_with(&beginning)
        })
    };
    let what = format!("{code} by {by:?} to {user}, {subject}");
    let found = cluster.evidence().await.until(&what, wanted).await;
    refusal(&found).expect("it was found so").1.clone()
}

/// Credentials of a worker that nobody has issued: a thief of the signing key made them.
fn forged(cluster: &Cluster) -> (PathBuf, PublicKey) {
    let issuer = cluster.domain().layout().folder().join("issuer");
    let signer = SigningKey::read(KeyKind::Account, &issuer.join("role-worker.nk")).unwrap();
    let key = ConnectionKey::generate();
    let public = key.public().clone();
    let subject = Subject {
        name: "forged",
        key: &public,
        not_before: None,
        expires: Some(clock::now().after(HOUR)),
    };
    let account = cluster.domain().tenant().unwrap();
    let claims = UserClaims::of_role(account, vec![format!("run:{}", cluster.run())]);
    let token = mint(&subject, claims, &signer, clock::now()).unwrap();
    let path = cluster.path("forged.creds");
    Credentials::new(token, key).unwrap().write(&path).unwrap();
    (path, public)
}

#[tokio::test]
async fn fg_07_tl_29_what_services_refuse_for_a_reason_of_security_is_an_event_and_nothing_else_is()
{
    let options = Options {
        sentry: true,
        token_lifetime: Some(HOUR),
        ..Options::default()
    };
    let mut cluster = Cluster::start(options, 0).await;
    Recipe::reference(1, 1, 5).create(&cluster).await;
    let (run, tenant) = (cluster.run().clone(), cluster.domain().tenant().unwrap());
    let by = Refuser::Coordinator;

    // An order whose answer would go to somebody else, and one that is no order.
    let operator = cluster.issue(Role::Operator, "second");
    let other = cluster.issue(Role::Operator, "third");
    let mut orders = RawConnection::connect(&cluster, &operator.credentials).await;
    let view = control_subject(&operator.public, ControlVerb::View);
    let elsewhere = format!("_INBOX.{}.1", other.public);
    let own = format!("_INBOX.{}.1", operator.public);
    for reply in [&elsewhere, &own] {
        orders
            .publish(view.as_bytes(), reply.as_bytes(), b"", b"x")
            .await;
    }
    for code in [Code::IdentityMismatch, Code::MessageInvalid] {
        let seen = recorded(&cluster, by, &operator.public, &view, code).await;
        assert_eq!((seen.count, seen.account), (1, None), "{code}");
        assert_eq!((seen.name.as_str(), seen.address.as_str()), ("", ""));
    }

    // A worker that names a lease which it never had, and one that was shut out.
    let worker = Scripted::connect(&cluster, "worker").await;
    worker.join().await;
    let key: PublicKey = worker.worker.as_str().parse().unwrap();
    let foreign = LeaseRef {
        unit: UnitId {
            round: Round(0),
            kind: UnitKind::Train,
            index: UnitIndex(0),
        },
        epoch: Epoch(9),
    };
    let object = ObjectRef::of(b"x");
    let refused = worker.grant(foreign, object).await.unwrap_err();
    assert_eq!(refused.code(), Code::LeaseUnknown);
    let put = worker.subject(Verb::Put);
    let seen = recorded(&cluster, by, &key, &put, Code::LeaseUnknown).await;
    assert_eq!(seen.account, Some(tenant));
    let order = ["worker", "quarantine", key.as_str(), "--run", run.as_str()];
    let order = [&order[..], &["--reason", "a test"]].concat();
    cluster
        .diloctl_ok(&[&order[..], &["--keep-credential"]].concat())
        .await;
    let join = worker.join_request().encode();
    let refused = worker.refused_raw(Verb::Join, join).await;
    assert_eq!(refused, Some(Code::WorkerQuarantined));
    let join = worker.subject(Verb::Join);
    recorded(&cluster, by, &key, &join, Code::WorkerQuarantined).await;

    // A token that nobody issued is not renewed.
    let (credentials, stranger) = forged(&cluster);
    let mut asks = RawConnection::connect(&cluster, &credentials).await;
    let renewal = renewal_subject(Some(&run), &stranger);
    let question = RenewalRequest {
        v: V,
        ends: UnixMillis(0),
        successor: None,
    };
    let reply = format!("_INBOX.{stranger}.1");
    asks.publish(
        renewal.as_bytes(),
        reply.as_bytes(),
        b"",
        &question.encode(),
    )
    .await;
    let by = Refuser::Registrar;
    recorded(&cluster, by, &stranger, &renewal, Code::HolderUnknown).await;

    // Bytes that are no event, to the audit service.
    let event = worker_event_subject(&run, &worker.worker, "started");
    let code = scripted::refused_raw(&worker.bus, &event, b"x".to_vec()).await;
    let code = code.expect("it is no event");
    recorded(&cluster, Refuser::Audit, &key, &event, code).await;

    // A worker that begins its chain of events a second time, as one with an old copy of its state.
    let twin = Scripted::connect(&cluster, "twin").await;
    twin.join().await;
    let stopped = |reason: &str| WorkerEvent::Stopped {
        reason: reason.to_owned(),
    };
    twin.emit(stopped("first life")).await;
    twin.forget_events();
    let forked = twin.try_emit(stopped("second life")).await;
    assert_eq!(forked.expect_err("a fork").code, Code::ChainForked);
    let of_twin: PublicKey = twin.worker.as_str().parse().unwrap();
    let event = worker_event_subject(&run, &twin.worker, "stopped");
    recorded(
        &cluster,
        Refuser::Audit,
        &of_twin,
        &event,
        Code::ChainForked,
    )
    .await;

    // A key that the store does not have.
    let ca = fs::read(cluster.domain().layout().ca()).unwrap();
    let trust = Trust::Authority(ca);
    let endpoint = Endpoint::new(&cluster.store_url(), "us-east-1", trust).unwrap();
    let stranger = AccessKey::generate();
    let limits = TransferLimits::default();
    let reader = BlobReader::new(&endpoint, &stranger, limits, PATIENCE).unwrap();
    assert!(reader.get(object).await.is_err());
    let by_store = |one: &Recorded| {
        refusal(one).is_some_and(|(by, seen)| {
            let is_known = seen.reason.starts_with("InvalidAccessKeyId");
            by == Refuser::Store && is_known && seen.subject == "GET blobs"
        })
    };
    let found = cluster
        .evidence()
        .await
        .until("a refusal of the store", by_store)
        .await;
    let (_, seen) = refusal(&found).expect("it was found so");
    assert_eq!(seen.address, "127.0.0.1");

    // A flood, and what is ordinary.
    let claim = worker.subject(Verb::Claim);
    let reply = format!("_INBOX.{key}.1");
    let mut flood =
        RawConnection::connect(&cluster, &cluster.domain().layout().credentials("worker")).await;
    flood
        .say(publication(claim.as_bytes(), reply.as_bytes(), b"", b"x").repeat(FLOOD))
        .await;
    flood.settled().await;
    let by = Refuser::Coordinator;
    recorded(&cluster, by, &key, &claim, Code::MessageInvalid).await;
    let unknown = cluster.operator().await;
    let unknown = unknown.view(Query::Run("nothere".parse().unwrap())).await;
    assert_eq!(unknown.unwrap_err().code(), Code::RunUnknown);

    // At their ends coordinator and audit service tell what they have only counted.
    cluster.stop_well(&["coordinator"]).await;
    cluster.stop_well(&["audit"]).await;
    cluster.copied().await;
    let all = cluster.evidence().await.everything().await;
    let of_flood: Vec<u64> = all
        .iter()
        .filter_map(refusal)
        .filter(|(_, seen)| seen.subject == claim)
        .map(|(_, seen)| seen.count)
        .collect();
    assert_eq!(of_flood.iter().sum::<u64>(), FLOOD as u64, "{of_flood:?}");
    assert!(of_flood.len() < 6, "{of_flood:?}");
    let ordinary = format!("{} ", Code::RunUnknown);
    let mut refusals = all.iter().filter_map(refusal);
    assert!(refusals.all(|(_, seen)| !seen.reason.starts_with(&ordinary)));
    let shown = cluster
        .diloctl_ok(&["audit", "replay", "--kind", "request-refused"])
        .await;
    assert!(shown.contains("by the registrar"), "{shown}");
    cluster.diloctl_ok(&["audit", "diff"]).await;
}

/// The token of the account of events as a release made it in which the recorder could not hear
/// `denied`.
fn older(cluster: &Cluster, denied: &[&str]) -> String {
    let layout = cluster.domain().layout();
    let now = clock::now();
    let config = layout.broker_generated().join("auth.conf");
    let config = fs::read_to_string(config).unwrap();
    let words = config.split(|c: char| c.is_whitespace() || "\",".contains(c));
    let mut tokens = words.filter_map(|word| jwt::verify::<AccountClaims>(word, now).ok());
    let is_recorder = |key: &AccountKey| matches!(key, AccountKey::Scoped(scope) if scope.role == Role::Recorder.name());
    let mut account = tokens
        .find(|token| token.claims.signing_keys.iter().any(is_recorder))
        .expect("the account of events");
    for key in &mut account.claims.signing_keys {
        if let AccountKey::Scoped(scope) = key {
            let allow = &mut scope.template.subscribe.allow;
            allow.retain(|subject| !denied.contains(&subject.as_str()));
        }
    }
    let subject = Subject {
        name: &account.name,
        key: &account.subject,
        not_before: None,
        expires: account.expires,
    };
    let signer = layout.vault().operator_signing().unwrap();
    mint(&subject, account.claims, &signer, now).unwrap()
}

/// Gives the broker a token of an account, with the credentials `older` of an account writer.
pub(crate) async fn push(cluster: &Cluster, token: String) {
    let writer = cluster.connect(Role::AccountWriter, "older").await;
    let headers = async_nats::HeaderMap::new();
    let answer = writer
        .request_raw("$SYS.REQ.CLAIMS.UPDATE", headers, token.into(), PATIENCE)
        .await
        .unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains("200"), "{answer}");
}

fn interruption(recorded: &Recorded, what: &str) -> Option<(UnixMillis, UnixMillis, u64)> {
    match &recorded.body.event {
        Event::Security(SecurityEvent::SentryInterrupted {
            unheard,
            from,
            until,
            times,
        }) if unheard == what => Some((*from, *until, *times)),
        _ => None,
    }
}

#[tokio::test]
async fn tl_29_the_audit_service_starts_at_a_broker_with_older_tokens_and_says_what_it_did_not_hear()
 {
    let options = Options {
        sentry: true,
        ..Options::default()
    };
    let mut cluster = Cluster::start(options, 0).await;
    Recipe::reference(1, 1, 5).create(&cluster).await;
    cluster.stop_well(&["audit"]).await;
    cluster.issue(Role::AccountWriter, "older");
    push(&cluster, older(&cluster, &[LOG_FILTER, REFUSALS_FILTER])).await;

    // It starts, and events of workers are recorded.
    cluster.restart("audit").await;
    let said = |text: &'static str| move |log: &str| log.contains(text);
    for text in [
        "workers' questions about the log are not heard",
        "refusals by services are not heard",
    ] {
        cluster
            .process("audit")
            .until_logged(PATIENCE, said(text))
            .await;
    }
    let worker = Scripted::connect(&cluster, "worker").await;
    worker.join().await;
    let joined = WorkerEvent::Joined {
        release: "0".to_owned(),
        device: "cpu".to_owned(),
    };
    worker.emit(joined).await;

    // A connection that is lost and comes back is told.
    cluster.restart("broker").await;
    let what = "reports of the broker";
    let lost = |one: &Recorded| interruption(one, what).is_some();
    let found = cluster
        .evidence()
        .await
        .until("an interruption", lost)
        .await;
    let (from, until, times) = interruption(&found, what).expect("it was found so");
    assert!(from < until && times >= 1, "{from:?} {until:?} {times}");

    // What it could not hear from its start on is told at the start, and at the end.
    cluster.stop_well(&["audit"]).await;
    cluster.diloctl_ok(&["auth", "push"]).await;
    cluster.restart("audit").await;
    cluster.copied().await;
    let all = cluster.evidence().await.everything().await;
    let starts: Vec<_> = all
        .iter()
        .filter_map(|one| match &one.body.event {
            Event::Security(SecurityEvent::SentryStarted { unheard, .. }) => Some(unheard.clone()),
            _ => None,
        })
        .collect();
    let services = "refusals by services";
    let none = Vec::<String>::new();
    assert_eq!(starts, [none.clone(), vec![services.to_owned()], none]);
    let mut ends = all.iter().filter_map(|one| interruption(one, services));
    let (from, until, times) = ends.next().expect("it never heard them");
    assert!(from < until && times == 1, "{from:?} {until:?} {times}");
    assert_eq!(ends.next(), None);
}
