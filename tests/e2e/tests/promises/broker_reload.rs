//! `auth push` changes an account at a broker that runs.

use std::fs;

use harness::{Cluster, Options, RawConnection};
use identity::{KeyKind, SigningKey};
use runtime::{Bus, clock};
use schemas::control::Query;
use schemas::permission::Role;

/// The keys that sign the users of a role tell the roles of an account apart: with another key the
/// account of operators and coordinators has changed, and the operators' old credentials are void.
#[tokio::test]
async fn tl_07_a_push_changes_one_account_and_cuts_nobody_else() {
    let cluster = Cluster::start(Options::default(), 0).await;
    // These connections do not come back when they are cut.
    let mut connected = Vec::new();
    for role in Role::ALL {
        let issued = cluster.issue(role, &format!("raw-{}", role.name()));
        let raw = RawConnection::connect(&cluster, &issued.credentials).await;
        connected.push((role, raw, issued.credentials));
    }
    let folder = cluster.domain().layout().folder().to_owned();
    let auth = folder.join("broker/generated/auth.conf");
    let read = || fs::read_to_string(&auth).expect("the broker reads it too");
    let before = read();

    // The same domain: nothing changes.
    cluster.diloctl_ok(&["auth", "config"]).await;
    assert_eq!(read(), before);

    let key = SigningKey::generate(KeyKind::Account);
    let replaced = key.seed().write(&folder.join("issuer/role-operator.nk"));
    replaced.expect("the folder takes files");
    cluster.diloctl_ok(&["auth", "config"]).await;
    let (old, new) = (before.lines(), read());
    let changed = old.zip(new.lines()).filter(|(old, new)| old != new);
    assert_eq!(changed.count(), 1, "the account of operators");

    let told = cluster.diloctl(&["auth", "push"]).await;
    assert!(told.stderr.contains("1 of them"), "{}", told.stderr);

    for (role, raw, credentials) in &mut connected {
        if *role == Role::Operator {
            raw.closed().await;
            let config = cluster.bus_config(credentials);
            let refused = Bus::connect("old", &config, clock::now()).await;
            assert!(refused.is_err(), "the key that signed them is gone");
        } else {
            let said = raw.settled().await;
            let fault = said.iter().find(|line| line.starts_with("-ERR"));
            assert_eq!(fault, None, "{role:?}");
        }
    }
    let credentials = cluster.domain().layout().credentials("operator");
    fs::remove_file(credentials).expect("it was issued");
    let operator = cluster.operator().await;
    let view = operator.view(Query::Runs).await;
    view.expect("the coordinator answers an operator with new credentials");
}
