//! Tests of the walls between senders, between runs and between tenants. The second tenant is made
//! as `diloctl tenant new` makes one, and its worker has credentials for a run of the first one.

use std::collections::BTreeSet;

use futures::StreamExt as _;
use harness::PATIENCE;
use schemas::permission::Role;
use schemas::public::CommandVerb;
use schemas::subject::{
    Incoming, Verb, command_filter, command_subject, heartbeat_subject, request_subject,
    worker_event_subject,
};
use schemas::{AccountId, PublicKey, RunId, WorkerId};

use super::probe::Probe;
use super::{Clients, candidates};

fn run() -> RunId {
    "demo".parse().unwrap()
}

fn worker(key: &PublicKey) -> WorkerId {
    key.as_str().parse().unwrap()
}

/// Returns the next request as the coordinator sees it: with its subject, into which the broker
/// wrote the account.
async fn seen(requests: &mut async_nats::Subscriber) -> Incoming {
    let message = tokio::time::timeout(PATIENCE, requests.next())
        .await
        .expect("it comes")
        .expect("it is subscribed");
    message.subject.as_str().parse().unwrap()
}

async fn coordinator(clients: &Clients) -> async_nats::Client {
    let (_, credentials) = clients
        .people
        .iter()
        .find(|(somebody, _)| somebody.role == Role::Coordinator)
        .unwrap();
    clients.probe(credentials).await.client
}

/// Subscribes, and waits until the broker has the subscription.
async fn hear(client: &async_nats::Client, subject: &str) -> async_nats::Subscriber {
    let subscriber = client.subscribe(subject.to_owned()).await.unwrap();
    client
        .request("$JS.API.INFO", "".into())
        .await
        .expect("JetStream answers");
    subscriber
}

#[tokio::test]
async fn fg_02_ls_02_every_request_carries_the_senders_name() {
    let clients = Clients::gather().await;
    let coordinator = coordinator(&clients).await;
    let mut requests = hear(&coordinator, "diloco.request.>").await;
    let (somebody, credentials) = &clients.people[0];
    let probe = clients.probe(credentials).await;
    let account = clients.cluster.domain().tenant().unwrap();
    for verb in Verb::ALL {
        let subject = request_subject(&run(), &worker(&somebody.key), *verb);
        probe
            .client
            .publish_with_reply(subject, probe.client.new_inbox(), "".into())
            .await
            .unwrap();
        let expected = Incoming::Request {
            account: account.clone(),
            run: run(),
            worker: worker(&somebody.key),
            verb: *verb,
        };
        assert_eq!(seen(&mut requests).await, expected);
    }
}

#[tokio::test]
async fn tl_25_a_worker_of_another_run_reaches_nothing_of_this_one() {
    let clients = Clients::gather().await;
    let (stranger, credentials) = clients
        .people
        .iter()
        .find(|(somebody, _)| somebody.run == "other")
        .unwrap();
    let keys = clients.keys();
    let accounts = clients.accounts();
    let names = candidates::Names {
        keys: &keys,
        runs: &["demo"],
        accounts: &accounts,
    };
    let of_the_run: Vec<String> = candidates::rows(&names, schemas::subject::TABLE)
        .into_iter()
        .filter(|subject| subject.split('.').any(|token| token == "demo"))
        .collect();
    let mut probe = clients.probe(credentials).await;
    let all: BTreeSet<String> = of_the_run.iter().cloned().collect();
    assert_eq!(
        probe.refused_publishes(&of_the_run).await,
        all,
        "{}",
        stranger.key
    );
    assert_eq!(
        probe.refused_subscriptions(&of_the_run).await,
        all,
        "{}",
        stranger.key
    );
}

#[tokio::test]
async fn tl_25_tenants_with_runs_of_the_same_name_neither_hear_nor_impersonate_each_other() {
    let clients = Clients::gather().await;
    let coordinator = coordinator(&clients).await;
    let mut requests = hear(&coordinator, "diloco.request.>").await;
    let second = clients.cluster.second_tenant();
    let path = clients.cluster.path("second.creds");
    let theirs = second.issue("worker-0", &run(), &path);
    let (ours, credentials) = &clients.people[0];
    let (their_probe, our_probe) = (
        Probe::connect(&clients.cluster, &path).await,
        clients.probe(credentials).await,
    );

    // Their messages arrive under their own account, whatever they try.
    let subject = request_subject(&run(), &worker(&theirs), Verb::Join);
    their_probe
        .client
        .publish_with_reply(subject, their_probe.client.new_inbox(), "".into())
        .await
        .unwrap();
    let expected = Incoming::Request {
        account: second.account().clone(),
        run: run(),
        worker: worker(&theirs),
        verb: Verb::Join,
    };
    assert_eq!(seen(&mut requests).await, expected);
    let mut their_probe = their_probe;
    let as_us = [
        request_subject(&run(), &worker(&ours.key), Verb::Submit),
        heartbeat_subject(&run(), &worker(&ours.key)),
        worker_event_subject(&run(), &worker(&ours.key), "joined"),
        format!(
            "diloco.request.{}.demo.{}.join",
            clients.cluster.domain().tenant().unwrap(),
            ours.key
        ),
    ];
    assert_eq!(
        their_probe.refused_publishes(&as_us).await.len(),
        as_us.len()
    );

    // Commands reach the tenant that they name and no other.
    let ours_account: AccountId = clients.cluster.domain().tenant().unwrap();
    let (us, them) = (worker(&ours.key), worker(&theirs));
    let mut our_commands = our_probe
        .client
        .subscribe(command_filter(&run(), &us))
        .await
        .unwrap();
    let mut their_commands = their_probe
        .client
        .subscribe(command_filter(&run(), &them))
        .await
        .unwrap();
    // The broker answers in order: a refusal shows that it has handled everything before.
    let mut our_probe = our_probe;
    our_probe
        .refused_publishes(&["diloco.probe".to_owned()])
        .await;
    their_probe
        .refused_publishes(&["diloco.probe".to_owned()])
        .await;
    for (account, target, payload) in [
        (second.account(), &us, "astray"),
        (&ours_account, &them, "astray"),
        (&ours_account, &us, "ours"),
        (second.account(), &them, "theirs"),
    ] {
        let subject = command_subject(account, &run(), target, CommandVerb::Drain);
        coordinator.publish(subject, payload.into()).await.unwrap();
    }
    for (commands, expected) in [(&mut our_commands, "ours"), (&mut their_commands, "theirs")] {
        let first = tokio::time::timeout(PATIENCE, commands.next())
            .await
            .expect("it comes")
            .unwrap();
        assert_eq!(first.payload, expected);
    }
}
