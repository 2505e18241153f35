//! Somebody who holds the broker writes the readers' stream anew: with an event that was altered,
//! two that changed places, one more, or another one under a used number. The log and its signed
//! head contradict each, also where the emitter's own key has signed what is false.

use async_nats::Client;
use async_nats::jetstream::{self, stream};
use harness::{Cluster, Recorded};
use identity::claims::{AccountClaims, AccountKey, UserClaims};
use identity::jwt::{self, Subject, mint};
use identity::{AuditKey, ConnectionKey, KeyKind, SigningKey};
use runtime::clock;
use runtime::exit::EXIT_TAMPERED;
use schemas::event::{EventBody, LedgerEvent};
use schemas::permission::Role;
use schemas::subject::AUDIT_STREAM;
use schemas::{Code, Message as _, Millis};

use crate::refused_requests::push;
use crate::tree_heads::{ends, trained};

/// A message of the stream: its subject and its bytes.
type Stored = (String, Vec<u8>);

/// A signing key of the account that bounds nobody's rights: who has the operator's key can give
/// the broker a token of the account that names it.
async fn unbounded(cluster: &Cluster) -> SigningKey {
    let layout = cluster.domain().layout();
    let now = clock::now();
    let account = cluster
        .domain()
        .account(Role::AuditProvisioner.account())
        .unwrap();
    let config = std::fs::read_to_string(layout.broker_generated().join("auth.conf")).unwrap();
    let words = config.split(|c: char| c.is_whitespace() || "\",".contains(c));
    let mut tokens = words.filter_map(|word| jwt::verify::<AccountClaims>(word, now).ok());
    let mut token = tokens
        .find(|token| token.subject.as_str() == account.as_str())
        .expect("the broker has it");
    let signer = SigningKey::generate(KeyKind::Account);
    let plain = AccountKey::Plain(signer.public().clone());
    token.claims.signing_keys.push(plain);
    let subject = Subject {
        name: &token.name,
        key: &token.subject,
        not_before: None,
        expires: token.expires,
    };
    let operator = layout.vault().operator_signing().unwrap();
    let made = mint(&subject, token.claims, &operator, now).unwrap();
    push(cluster, made).await;
    signer
}

/// A connection with every right in the account of the stream.
async fn holder(cluster: &Cluster) -> Client {
    cluster.issue(Role::AccountWriter, "older");
    let signer = unbounded(cluster).await;
    let account = Role::AuditProvisioner.account();
    let key = ConnectionKey::generate();
    let now = clock::now();
    let subject = Subject {
        name: "holder",
        key: key.public(),
        not_before: None,
        expires: Some(now.after(Millis::from_secs(3600))),
    };
    let claims = UserClaims {
        subs: Some(-1),
        data: Some(-1),
        payload: Some(-1),
        ..UserClaims::of_role(cluster.domain().account(account).unwrap(), Vec::new())
    };
    let token = mint(&subject, claims, &signer, now).unwrap();
    cluster.connect_by_hand(&token, key).await.unwrap()
}

/// Deletes the stream and makes one of its name with these messages.
async fn rewrite(holder: &Client, messages: &[Stored]) {
    let context = jetstream::new(holder.clone());
    context.delete_stream(AUDIT_STREAM).await.unwrap();
    let config = stream::Config {
        name: AUDIT_STREAM.to_owned(),
        subjects: vec!["diloco.>".to_owned()],
        allow_direct: true,
        ..stream::Config::default()
    };
    context.create_stream(config).await.unwrap();
    for (subject, payload) in messages {
        let stored = context.publish(subject.clone(), payload.clone().into());
        stored.await.unwrap().await.unwrap();
    }
}

#[tokio::test]
async fn fg_07_tl_03_a_stream_that_was_written_anew_is_contradicted_by_the_log() {
    let cluster = trained().await;
    let recorded = cluster.evidence().await.everything().await;
    let stored = |one: &Recorded| (one.subject.clone(), one.raw.clone());
    let original: Vec<Stored> = recorded.iter().map(stored).collect();
    let diff = ["audit", "diff"];
    ends(&cluster, &diff, 0, &["verified"]).await;
    let holder = holder(&cluster).await;
    // The same again is the same: what is found below is what was changed.
    rewrite(&holder, &original).await;
    ends(&cluster, &diff, 0, &["verified"]).await;

    // An event of the ledger in the middle, and the next one.
    let of_ledger: Vec<usize> = (0..recorded.len())
        .filter(|at| recorded[*at].ledger().is_some())
        .collect();
    let at = of_ledger[of_ledger.len() / 2];
    let number = recorded[at].body.sequence;
    let layout = cluster.domain().layout();
    let key = AuditKey::read(&layout.coordinator_audit_key()).unwrap();
    let domain = cluster.domain().trust().domain.to_string();
    let signed = |body: &EventBody| key.sign_event(&domain, body.encode()).encode();
    let last = &recorded[*of_ledger.last().unwrap()];

    let mut altered = original.clone();
    let middle = altered[at].1.len() / 2;
    altered[at].1[middle] ^= 1;
    let mut swapped = original.clone();
    swapped.swap(at, at + 1);
    let mut removed = original.clone();
    removed.remove(at);
    let mut inserted = original.clone();
    let one_more = EventBody {
        sequence: last.body.sequence.next(),
        ..last.body.clone()
    };
    inserted.insert(at, (last.subject.clone(), signed(&one_more)));
    let mut reused = original.clone();
    let another = EventBody {
        time: recorded[at].body.time.after(Millis(1)),
        ..recorded[at].body.clone()
    };
    reused[at].1 = signed(&another);

    let differs = Code::StreamDiffers.to_string();
    let index = at + 1;
    let changed = format!("altered: event {index} of the log");
    let late = format!("reordered: event {} of the log", index + 1);
    let beside = format!("inserted: the event at stream sequence {index} is not in the log");
    let again = format!("sequence reused: the stream has another event {number} of");
    for (what, messages, words) in [
        ("altered", altered, &changed),
        ("removed", removed, &changed),
        ("swapped", swapped, &late),
        ("inserted", inserted, &beside),
        ("reused", reused, &again),
    ] {
        rewrite(&holder, &messages).await;
        let said = ends(&cluster, &diff, EXIT_TAMPERED, &[&differs, words]).await;
        assert!(!said.contains("differences more"), "{what}: {said}");
        // Beside the audit service's files, a replay of the stream says so as well.
        let replay = ["audit", "replay", "--summary"];
        ends(&cluster, &replay, EXIT_TAMPERED, &["EVIDENCE OF TAMPERING"]).await;
        // The log itself is whole.
        ends(&cluster, &["audit", "verify"], 0, &["verified"]).await;
    }
    rewrite(&holder, &original).await;
    ends(&cluster, &diff, 0, &["verified"]).await;
    let completed = |one: &Recorded| matches!(one.ledger(), Some(LedgerEvent::RunCompleted));
    assert!(recorded.iter().any(completed));
}
