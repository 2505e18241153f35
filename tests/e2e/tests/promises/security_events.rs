//! Security events: what the broker refuses, who connects, and who changes a stream is in the
//! record with its reason, in few events however often it happens, and without a secret.

use async_nats::jetstream;
use e2e::{Recipe, secrets};
use harness::{Cluster, Options, RawConnection, Recorded, publication};
use identity::claims::UserClaims;
use identity::jwt::{Subject, mint};
use identity::{ConnectionKey, KeyKind, SigningKey};
use runtime::clock;
use schemas::event::{Event, LedgerEvent};
use schemas::permission::Role;
use schemas::security::{SecurityEvent, Seen};
use schemas::subject::WORK_STREAM;
use schemas::{Millis, PublicKey, UnixMillis};

/// Refused messages of the flood.
const FLOOD: usize = 5000;
const HOUR: Millis = Millis::from_secs(3600);

fn seen<'a>(recorded: &'a Recorded, kind: &str, user: &PublicKey) -> Option<&'a Seen> {
    let Event::Security(event) = &recorded.body.event else {
        return None;
    };
    let seen = event.seen().filter(|_| event.kind() == kind)?;
    (seen.user.as_ref() == Some(user)).then_some(seen)
}

/// What is recorded of `user`, once something of this kind is, about this subject, and for this
/// reason.
async fn recorded(
    cluster: &Cluster,
    kind: &str,
    user: &PublicKey,
    subject: &str,
    reason: &str,
) -> Seen {
    let wanted = |one: &Recorded| {
        seen(one, kind, user)
            .is_some_and(|seen| seen.subject == subject && seen.reason.contains(reason))
    };
    let what = format!("{kind} of {user}, {subject:?}, {reason:?}");
    let found = cluster.evidence().await.until(&what, wanted).await;
    seen(&found, kind, user).expect("it was found so").clone()
}

/// Tries to connect with a token that is made by hand, and must be refused.
async fn refused(cluster: &Cluster, signer: &SigningKey, expires: UnixMillis) -> PublicKey {
    let key = ConnectionKey::generate();
    let subject = Subject {
        name: "worker-0",
        key: key.public(),
        not_before: None,
        expires: Some(expires),
    };
    let account = cluster.domain().tenant().unwrap();
    let claims = UserClaims::of_role(account, vec![format!("run:{}", cluster.run())]);
    let token = mint(&subject, claims, signer, clock::now()).unwrap();
    let public = key.public().clone();
    let connected = cluster.connect_by_hand(&token, key).await;
    assert!(connected.is_err(), "the broker takes it");
    public
}

#[tokio::test]
async fn fg_07_tl_29_each_refusal_of_the_broker_is_an_event_with_its_reason_and_tl_22_no_event_holds_a_secret()
 {
    let options = Options {
        sentry: true,
        ..Options::default()
    };
    let mut cluster = Cluster::start(options, 0).await;
    Recipe::reference(1, 1, 5).create(&cluster).await;
    let run = cluster.run().clone();
    let worker = |name: &str| cluster.issue_for(Role::Worker, name, Some(&run), HOUR);
    let (thief, victim) = (worker("thief"), worker("victim"));

    // A wrong credential, and one that has ended.
    let issuer = cluster.domain().layout().folder().join("issuer");
    let real = SigningKey::read(KeyKind::Account, &issuer.join("role-worker.nk")).unwrap();
    let now = clock::now();
    let wrong = SigningKey::generate(KeyKind::Account);
    let wrong = refused(&cluster, &wrong, now.after(HOUR)).await;
    let ended = refused(&cluster, &real, UnixMillis(now.get() - HOUR.get())).await;
    for (user, reason) in [(&wrong, "Authentication"), (&ended, "the token has ended")] {
        let found = recorded(&cluster, "authentication-failed", user, "", reason).await;
        assert_eq!(found.name, "worker-0");
        assert_eq!(found.address, "127.0.0.1");
    }

    // A worker gives an order, and listens to another's answers.
    let mut client = RawConnection::connect(&cluster, &thief.credentials).await;
    let found = recorded(&cluster, "client-connected", &thief.public, "", "").await;
    assert_eq!((found.name.as_str(), found.count), ("thief", 1));
    assert_eq!(found.account, Some(cluster.domain().tenant().unwrap()));
    let order = format!("diloco.control.{}.shutdown", thief.public);
    let inbox = format!("_INBOX.{}.>", victim.public);
    client
        .say(publication(order.as_bytes(), b"", b"", b"x"))
        .await;
    client.say(format!("SUB {inbox} 7\r\n")).await;
    assert_eq!(client.settled().await.len(), 2, "both are refused");
    let kind = "permission-denied";
    recorded(&cluster, kind, &thief.public, &order, "publish").await;
    recorded(&cluster, kind, &thief.public, &inbox, "subscribe").await;

    // A flood of the same is told once, and later all together.
    let flood = "diloco.ledger.flood";
    let burst = publication(flood.as_bytes(), b"", b"", b"x").repeat(FLOOD / 10);
    for _ in 0..10 {
        client.say(&burst).await;
        client.settled().await;
    }
    recorded(&cluster, kind, &thief.public, flood, "publish").await;

    // Somebody with the right to do it changes a stream.
    let provisioner = cluster.connect(Role::Provisioner, "provisioner").await;
    let context = jetstream::new(provisioner.client().clone());
    let mut work = context.get_stream(WORK_STREAM).await.unwrap();
    let mut config = work.info().await.unwrap().config.clone();
    config.description = Some("altered".to_owned());
    context.update_stream(config).await.unwrap();
    let public = provisioner.public().expect("it has a key").clone();
    let subject = format!("$JS.API.STREAM.UPDATE.{WORK_STREAM}");
    let found = recorded(&cluster, "stream-changed", &public, &subject, "done").await;
    assert_eq!(found.address, "127.0.0.1");

    // Revocation cuts the connection; a quarantine is the coordinator's own event.
    cluster.diloctl_ok(&["auth", "revoke", "thief"]).await;
    recorded(
        &cluster,
        "client-disconnected",
        &thief.public,
        "",
        "Revoked",
    )
    .await;
    let name = victim.public.as_str();
    let order = ["worker", "quarantine", name, "--run", run.as_str()];
    let order = [&order[..], &["--reason", "a strange loss"]].concat();
    cluster.diloctl_ok(&order).await;
    let shut_out = |event: &LedgerEvent| matches!(event, LedgerEvent::WorkerQuarantined { worker, .. } if worker.as_str() == name);
    let mut evidence = cluster.evidence().await;
    evidence.until_ledger("a quarantine", &run, shut_out).await;

    // At its end the service tells what it has only counted.
    cluster.stop_well(&["audit"]).await;
    cluster.copied().await;
    let all = cluster.evidence().await.everything().await;
    let of_flood: Vec<u64> = all
        .iter()
        .filter_map(|one| seen(one, kind, &thief.public))
        .filter(|seen| seen.subject == flood)
        .map(|seen| seen.count)
        .collect();
    assert_eq!(of_flood.iter().sum::<u64>(), FLOOD as u64, "{of_flood:?}");
    assert!(of_flood.len() < 6, "{of_flood:?}");
    let ends = |one: &Recorded| {
        matches!(
            one.body.event,
            Event::Security(
                SecurityEvent::SentryStarted {
                    broker_log: true,
                    ..
                } | SecurityEvent::SentryStopped
            )
        )
    };
    assert_eq!(all.iter().filter(|one| ends(one)).count(), 2);

    // The record verifies, and shows them to an auditor who asks for them.
    let replay = ["audit", "replay", "--kind", "security"];
    let shown = cluster.diloctl_ok(&replay).await;
    for kind in [
        "authentication-failed",
        "permission-denied",
        "stream-changed",
    ] {
        assert!(shown.contains(kind), "{shown}");
    }
    assert!(!shown.contains("run-created"), "{shown}");
    let replay = ["audit", "replay", "--kind", "client-disconnected"];
    let shown = cluster.diloctl_ok(&replay).await;
    assert!(!shown.contains("permission-denied"), "{shown}");
    cluster.diloctl_ok(&["audit", "diff"]).await;

    let raw: Vec<u8> = all.iter().flat_map(|one| one.raw.clone()).collect();
    assert_eq!(secrets::found(&cluster, &raw), Vec::<String>::new());
    for name in cluster.names() {
        let log = cluster.process(&name).log();
        let found = secrets::found(&cluster, log.as_bytes());
        assert_eq!(found, Vec::<String>::new(), "in the log of {name}");
    }
}
