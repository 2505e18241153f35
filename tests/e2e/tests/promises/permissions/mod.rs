//! The permission table on the real broker: every role can publish and subscribe as its rows say
//! (sufficiency), and no more than that (necessity). The tries are made from the table, so that a
//! new row is tried by every role without a change here.

mod candidates;
mod probe;
mod reply_to;
mod rights;
mod tenants;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candidates::{Names, fill, of_the_broker, streams, to_publish, to_subscribe};
use harness::{Cluster, Options};
use probe::Probe;
use rights::Client;
use schemas::permission::Role;
use schemas::subject::{Kind, Lane, TABLE};
use schemas::{AccountId, PublicKey};

/// Every kind of client that may connect: one for each role, and three more workers, one in the
/// same run, one in another, and one of another tenant.
pub(crate) struct Clients {
    pub(crate) cluster: Cluster,
    pub(crate) people: Vec<(Client, PathBuf)>,
}

impl Clients {
    pub(crate) async fn gather() -> Self {
        let cluster = Cluster::bare(Options {
            second_tenant: true,
            ..Options::default()
        })
        .await;
        let mut people = Vec::new();
        for (role, name, run) in [
            (Role::Worker, "worker-0", "demo"),
            (Role::Worker, "worker-1", "demo"),
            (Role::Worker, "stranger", "other"),
            (Role::Worker, "theirs", "second_demo"),
        ]
        .into_iter()
        .chain(
            Role::ALL
                .into_iter()
                .filter(|role| !role.is_tenant())
                .map(|role| (role, role.name(), "")),
        ) {
            let issued = match run {
                "" => cluster.issue(role, name),
                run => cluster.issue_for(
                    role,
                    name,
                    Some(&run.parse().unwrap()),
                    schemas::Millis::from_secs(3600),
                ),
            };
            people.push((
                Client {
                    role,
                    key: issued.public,
                    run: run.to_owned(),
                },
                issued.credentials,
            ));
        }
        let others = Role::ALL
            .iter()
            .filter(|role| !people.iter().any(|(somebody, _)| somebody.role == **role));
        assert_eq!(others.count(), 0, "a role that nobody here has");
        Self { cluster, people }
    }

    pub(crate) fn keys(&self) -> Vec<PublicKey> {
        self.people
            .iter()
            .map(|(somebody, _)| somebody.key.clone())
            .collect()
    }

    pub(crate) fn accounts(&self) -> Vec<AccountId> {
        let accounts = self.cluster.domain().accounts().unwrap();
        [
            accounts.control,
            accounts.ledger,
            accounts.events,
            accounts.audit,
            accounts.readers,
            accounts.registrar,
            accounts.enrolment,
        ]
        .into_iter()
        .chain(accounts.tenants)
        .collect()
    }

    pub(crate) async fn probe(&self, credentials: &Path) -> Probe {
        Probe::connect(&self.cluster, credentials).await
    }
}

fn difference(expected: &BTreeSet<String>, refused: &BTreeSet<String>) -> String {
    let wrongly_refused = refused.difference(expected).cloned().collect::<Vec<_>>();
    let wrongly_allowed = expected.difference(refused).cloned().collect::<Vec<_>>();
    format!(
        "refused though needed: {wrongly_refused:#?}\nallowed though forbidden: {wrongly_allowed:#?}"
    )
}

#[tokio::test]
async fn tl_08_each_role_may_publish_its_rows_and_nothing_else() {
    let clients = Clients::gather().await;
    let (keys, accounts) = (clients.keys(), clients.accounts());
    let tried = to_publish(&Names {
        keys: &keys,
        runs: &["demo", "other", "second_demo"],
        accounts: &accounts,
    });
    for (somebody, credentials) in &clients.people {
        let expected: BTreeSet<String> = tried
            .iter()
            .filter(|subject| !somebody.may_publish(subject))
            .cloned()
            .collect();
        let refused = clients
            .probe(credentials)
            .await
            .refused_publishes(&tried)
            .await;
        assert!(
            refused == expected,
            "{} {}",
            somebody.role.name(),
            difference(&expected, &refused)
        );
        let (allowed, forbidden) = (tried.len() - refused.len(), refused.len());
        assert!(
            allowed > 0 && forbidden > 500,
            "{}: {allowed} allowed, {forbidden} forbidden",
            somebody.role.name()
        );
    }
}

#[tokio::test]
async fn tl_08_each_role_may_hear_its_rows_and_nothing_else() {
    let clients = Clients::gather().await;
    let (keys, accounts) = (clients.keys(), clients.accounts());
    let tried = to_subscribe(&Names {
        keys: &keys,
        runs: &["demo", "other", "second_demo"],
        accounts: &accounts,
    });
    for (somebody, credentials) in &clients.people {
        let expected: BTreeSet<String> = tried
            .iter()
            .filter(|subject| !somebody.may_subscribe(subject))
            .cloned()
            .collect();
        let refused = clients
            .probe(credentials)
            .await
            .refused_subscriptions(&tried)
            .await;
        assert!(
            refused == expected,
            "{} {}",
            somebody.role.name(),
            difference(&expected, &refused)
        );
        for wide in [
            ">", "*.>", "diloco.>", "_INBOX.>", "_R_.>", "$JS.>", "$SYS.>", "$KV.>",
        ] {
            assert!(
                refused.contains(wide),
                "{} hears {wide}",
                somebody.role.name()
            );
        }
    }
}

#[tokio::test]
async fn fg_01_every_row_can_be_used_by_those_it_names() {
    let clients = Clients::gather().await;
    let tenant = clients.cluster.domain().tenant().unwrap();
    for (somebody, credentials) in &clients.people {
        let run = if somebody.run.is_empty() {
            "demo"
        } else {
            somebody.run.as_str()
        };
        let mut probe = clients.probe(credentials).await;
        let subject = |row: &schemas::subject::Row, crossed: bool| match crossed {
            true => format!(
                "{}.{tenant}.{}",
                row.lane.prefix(),
                fill(row, &somebody.key, run)
            ),
            false => format!("{}.{}", row.lane.prefix(), fill(row, &somebody.key, run)),
        };
        let said = TABLE
            .iter()
            .filter(|row| row.publishers.contains(&somebody.role));
        let commands = |row: &&schemas::subject::Row| row.lane == Lane::Command;
        let said: Vec<String> = said.map(|row| subject(row, commands(&row))).collect();
        let heard = TABLE
            .iter()
            .filter(|row| row.subscribers.contains(&somebody.role));
        let crosses =
            |row: &schemas::subject::Row| row.lane.crosses_accounts() && !somebody.role.is_tenant();
        let heard: Vec<String> = heard.map(|row| subject(row, crosses(row))).collect();
        assert_eq!(
            probe.refused_publishes(&said).await,
            BTreeSet::new(),
            "{}",
            somebody.role.name()
        );
        assert_eq!(
            probe.refused_subscriptions(&heard).await,
            BTreeSet::new(),
            "{}",
            somebody.role.name()
        );
    }
    let mute = TABLE.iter().filter(|row| {
        row.publishers.is_empty() || row.kind != Kind::Stream && row.subscribers.is_empty()
    });
    assert_eq!(mute.count(), 0, "a row that nobody says or hears");
}

#[tokio::test]
async fn fg_05_a_worker_is_refused_every_order_and_every_stream() {
    let clients = Clients::gather().await;
    let keys = clients.keys();
    let orders: Vec<_> = TABLE
        .iter()
        .filter(|row| !row.publishers.contains(&Role::Worker))
        .flat_map(|row| {
            keys.iter()
                .map(move |key| format!("{}.{}", row.lane.prefix(), fill(row, key, "demo")))
        })
        .chain(of_the_broker(&clients.accounts()))
        .collect();
    for (somebody, credentials) in clients
        .people
        .iter()
        .filter(|(somebody, _)| somebody.role == Role::Worker)
    {
        let refused = clients
            .probe(credentials)
            .await
            .refused_publishes(&orders)
            .await;
        let accepted: Vec<_> = orders
            .iter()
            .filter(|order| !refused.contains(*order))
            .collect();
        assert_eq!(accepted, Vec::<&String>::new(), "{}", somebody.key);
    }
}

#[tokio::test]
async fn ls_07_no_worker_speaks_under_anothers_key() {
    let clients = Clients::gather().await;
    for (somebody, credentials) in clients
        .people
        .iter()
        .filter(|(somebody, _)| somebody.role == Role::Worker)
    {
        let others: Vec<PublicKey> = clients
            .keys()
            .into_iter()
            .filter(|key| *key != somebody.key)
            .collect();
        let names = Names {
            keys: &others,
            runs: &["demo", "other", "second_demo"],
            accounts: &clients.accounts(),
        };
        let forged: Vec<String> = candidates::rows(&names, TABLE).into_iter().collect();
        let refused = clients
            .probe(credentials)
            .await
            .refused_publishes(&forged)
            .await;
        assert_eq!(
            refused.len(),
            forged.len(),
            "{}",
            difference(&forged.into_iter().collect(), &refused)
        );
    }
}

#[tokio::test]
async fn only_provisioners_can_alter_a_stream() {
    let clients = Clients::gather().await;
    let alters = |subject: &String| {
        [
            "CREATE",
            "UPDATE",
            "DELETE",
            "PURGE",
            "MSG.DELETE",
            "RESTORE",
            "SNAPSHOT",
        ]
        .iter()
        .any(|verb| subject.starts_with(&format!("$JS.API.STREAM.{verb}.")))
    };
    let altering: Vec<String> = of_the_broker(&clients.accounts())
        .into_iter()
        .filter(alters)
        .collect();
    assert_eq!(altering.len(), streams(&clients.accounts()).len() * 7);
    for (somebody, credentials) in &clients.people {
        let refused = clients
            .probe(credentials)
            .await
            .refused_publishes(&altering)
            .await
            .len();
        let provisioner = Role::provisioner(somebody.role.account()) == Some(somebody.role);
        let expected = if provisioner { 0 } else { altering.len() };
        assert_eq!(refused, expected, "{}", somebody.role.name());
    }
}
