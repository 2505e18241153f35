//! A registrar that renews tokens, and a machine that enrols and trains, leave no secret in any log
//! or event: no join token, no invitation, no renewed token, and no pair that is derived for the
//! run.

use std::fs;

use e2e::{Recipe, secrets};
use harness::{Cluster, Options, PATIENCE};
use identity::{StoreKeys, UrlsOf};
use schemas::Millis;

use crate::enrolment::{enrol, invite, layout};

/// Life of tokens, which are renewed several times meanwhile.
const LIFE: Millis = Millis::from_secs(12);

#[tokio::test]
async fn tl_22_invitations_renewed_tokens_and_derived_pairs_are_in_no_log_and_no_event() {
    let log = "info,diloco_coordinator=debug,diloco_worker=debug,diloco_store=debug,\
               diloco_registrar=debug,registrar=debug,runtime=debug,objects=debug,identity=debug";
    let options = Options {
        log: log.to_owned(),
        sentry: true,
        token_lifetime: Some(LIFE),
        ..Options::default()
    };
    let mut cluster = Cluster::start(options, 1).await;
    let run = cluster.run().clone();
    let file = invite(&cluster, "invited", &[]).await;
    let invitation: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    enrol(&cluster, "machine", &file).await.unwrap();
    Recipe::reference(4000, 2, 40)
        .set("policy.lease=60s")
        .create(&cluster)
        .await;
    let machine = layout(&cluster, "machine");
    cluster
        .start_worker_of(&cluster.path("machine"), "invited")
        .await;
    let token = |path| fs::read_to_string(path).unwrap();
    let first = token(machine.credentials("invited"));
    let renewed = |log: &str| log.matches("the token is renewed").count() >= 2;
    for name in ["worker-0", "invited", "coordinator"] {
        cluster.process(name).until_logged(PATIENCE, renewed).await;
    }
    let last = token(machine.credentials("invited"));
    assert_ne!(first, last);
    let operator = cluster.operator().await;
    operator
        .until(&run, PATIENCE, |view| view.round.get() > 1)
        .await;

    let keys = StoreKeys::read(&cluster.domain().layout().store_keys()).unwrap();
    let mut more: Vec<(String, String)> = Vec::new();
    for (name, pair) in [("put", &keys.put), ("get", &keys.get)] {
        for urls in [UrlsOf::Run(run.clone()), UrlsOf::Operators] {
            let secret = pair.derived(&urls).expose_secret().to_owned();
            more.push((format!("the pair {name} of {urls:?}"), secret));
        }
    }
    let joins = invitation["token"].as_str().unwrap().to_owned();
    more.push(("the join token".to_owned(), joins));
    let texts = [first, last, token(machine.audit_key("invited"))];
    for text in texts {
        let found = secrets::lines(&text).into_iter();
        more.extend(found.map(|secret| ("the enrolled machine".to_owned(), secret)));
    }
    assert!(more.len() >= 4 + 1 + 5, "{}", more.len());
    for (what, secret) in &more {
        let found = secrets::found_beside(&cluster, &more, secret.as_bytes());
        assert!(found.contains(what), "the search does not find {what}");
    }
    let file = fs::read(&file).unwrap();
    let found = secrets::found_beside(&cluster, &more, &file);
    assert!(
        found.contains(&"the join token".to_owned()) && found.len() >= 3,
        "{found:?}"
    );

    let replay = cluster.record_verifies().await;
    cluster.stop_well(&["worker-0", "invited"]).await;
    let recorded = cluster.evidence().await.everything().await;
    cluster
        .stop_well(&["coordinator", "audit", "registrar", "store"])
        .await;
    let none = Vec::<String>::new();
    assert!(cluster.names().contains(&"registrar".to_owned()));
    for name in cluster.names() {
        let log = cluster.process(&name).log();
        assert!(!log.is_empty(), "{name} logs nothing");
        let found = secrets::found_beside(&cluster, &more, log.as_bytes());
        assert_eq!(found, none, "in the log of {name}");
    }
    let stream: Vec<u8> = recorded.iter().flat_map(|one| one.raw.clone()).collect();
    assert_eq!(
        secrets::found_beside(&cluster, &more, &stream),
        none,
        "in the events"
    );
    let found = secrets::found_beside(&cluster, &more, replay.as_bytes());
    assert_eq!(found, none, "in the replay");
}
