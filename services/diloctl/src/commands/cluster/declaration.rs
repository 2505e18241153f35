//! The files of `nats-config/streams`, and the configurations they declare.

use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::{
    consumer::{AckPolicy, pull},
    stream::{self, Compression, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType},
};
use runtime::Failure;
use schemas::account::{Account, Copied};
use schemas::{AccountId, Code};
use serde::Deserialize;

/// A file of `nats-config/streams`; nats-config/README.md explains the fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Declaration {
    v: schemas::V<1>,
    account: Place,
    name: String,
    /// True for one stream per tenant, with the tenant's account in name and subjects.
    per_tenant: bool,
    about: String,
    subjects: Vec<String>,
    /// The accounts whose streams of events the broker copies into this one.
    copies: Vec<Place>,
    storage: StorageType,
    #[serde(default)]
    acknowledges: Acknowledges,
    retention: Retention,
    discard: DiscardPolicy,
    max_bytes: i64,
    /// Added to `max_bytes` once for each tenant: the copy of all their events grows with them.
    max_bytes_per_tenant: i64,
    max_message_bytes: i32,
    max_age_ms: u64,
    duplicate_window_ms: u64,
    compression: Compression,
    deny_delete: bool,
    deny_purge: bool,
    allow_rollup: bool,
    /// True when messages may be stored together, all of them or none.
    allow_atomic: bool,
    /// True when one question may be answered with many messages.
    allow_direct: bool,
    max_consumers: i32,
    /// Longest time that a consumer is kept while nobody uses it.
    consumer_inactive_ms_max: u64,
    consumers: Vec<Consumer>,
}

/// An account with streams, as declarations name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    Control,
    Ledger,
    Events,
    Audit,
}

impl From<Place> for Account {
    fn from(place: Place) -> Self {
        match place {
            Place::Control => Self::Control,
            Place::Ledger => Self::Ledger,
            Place::Events => Self::Events,
            Place::Audit => Self::Audit,
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Retention {
    Limits,
    WorkQueue,
}

/// The moment at which the broker acknowledges a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Acknowledges {
    /// The disk has it, if the broker syncs always.
    #[default]
    WhenStored,
    /// The broker has it, and writes it later: a broker that is killed may lose it.
    WhenReceived,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Consumer {
    pub(super) name: String,
    pub(super) about: String,
    pub(super) filter: String,
    pub(super) ack: Ack,
    pub(super) ack_wait_ms: u64,
    pub(super) max_deliver: i64,
    pub(super) max_ack_pending: i64,
}

/// Offers are always acknowledged one by one.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ack {
    Explicit,
}

impl Declaration {
    pub(super) const fn account(&self) -> Place {
        self.account
    }

    /// The declared streams: one, or one for each tenant.
    pub(super) fn streams(&self, tenants: &[AccountId], replicas: usize) -> Vec<stream::Config> {
        match self.per_tenant {
            true => tenants
                .iter()
                .map(|tenant| self.of_tenant(tenant, replicas))
                .collect(),
            false => vec![self.config(tenants, replicas)],
        }
    }

    pub(super) fn consumers(&self) -> &[Consumer] {
        &self.consumers
    }

    /// The stream of one tenant: `EVENTS` becomes `EVENTS_<account>`, and `{account}` in a subject
    /// becomes the account.
    fn of_tenant(&self, tenant: &AccountId, replicas: usize) -> stream::Config {
        let named = |subject: &String| subject.replace("{account}", tenant.as_str());
        stream::Config {
            name: format!("{}_{tenant}", self.name),
            subjects: self.subjects.iter().map(named).collect(),
            ..self.config(&[], replicas)
        }
    }

    pub(super) fn config(&self, tenants: &[AccountId], replicas: usize) -> stream::Config {
        let schemas::V = self.v;
        let limits = (self.consumer_inactive_ms_max > 0).then(|| stream::ConsumerLimits {
            inactive_threshold: Duration::from_millis(self.consumer_inactive_ms_max),
            max_ack_pending: 0,
        });
        let copied = |copied: &Copied| {
            self.copies
                .iter()
                .any(|place| Account::from(*place) == copied.home)
        };
        let sources: Vec<stream::Source> = Copied::all(tenants)
            .iter()
            .filter(|one| copied(one))
            .map(source)
            .collect();
        stream::Config {
            name: self.name.clone(),
            description: Some(self.about.clone()),
            subjects: self.subjects.clone(),
            storage: self.storage,
            // The broker has this mode only for a stream that no other broker copies.
            persist_mode: (self.acknowledges == Acknowledges::WhenReceived && replicas == 1)
                .then_some(PersistenceMode::Async),
            retention: match self.retention {
                Retention::Limits => RetentionPolicy::Limits,
                Retention::WorkQueue => RetentionPolicy::WorkQueue,
            },
            discard: self.discard,
            max_bytes: self.max_bytes
                + self.max_bytes_per_tenant * i64::try_from(tenants.len()).unwrap_or(i64::MAX),
            max_messages: -1,
            max_messages_per_subject: -1,
            max_message_size: self.max_message_bytes,
            max_age: Duration::from_millis(self.max_age_ms),
            duplicate_window: Duration::from_millis(self.duplicate_window_ms),
            compression: Some(self.compression.clone()),
            deny_delete: self.deny_delete,
            deny_purge: self.deny_purge,
            allow_rollup: self.allow_rollup,
            allow_atomic_publish: self.allow_atomic,
            allow_direct: self.allow_direct,
            max_consumers: self.max_consumers,
            consumer_limits: limits,
            sources: (!sources.is_empty()).then_some(sources),
            num_replicas: replicas,
            ..stream::Config::default()
        }
    }
}

/// True for a stream that acknowledges a message before the disk has it.
pub(super) fn is_late(stream: &stream::Config) -> bool {
    stream.persist_mode == Some(PersistenceMode::Async)
}

pub(super) fn source(copied: &Copied) -> stream::Source {
    let external = stream::External {
        api_prefix: copied.api(),
        delivery_prefix: Some(copied.delivery()),
    };
    stream::Source {
        name: copied.stream.clone(),
        external: Some(external),
        ..stream::Source::default()
    }
}

impl Consumer {
    pub(super) fn config(&self) -> pull::Config {
        let Ack::Explicit = self.ack;
        pull::Config {
            durable_name: Some(self.name.clone()),
            description: Some(self.about.clone()),
            filter_subject: self.filter.clone(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_millis(self.ack_wait_ms),
            max_deliver: self.max_deliver,
            max_ack_pending: self.max_ack_pending,
            ..pull::Config::default()
        }
    }
}

pub(super) fn read_all(folder: &Path) -> Result<Vec<Declaration>, Failure> {
    let folder = folder.join("streams");
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(
            Code::ConfigInvalid,
            format!("{}: {error}", folder.display()),
        )
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(|error| failed(&error))? {
        paths.push(entry.map_err(|error| failed(&error))?.path());
    }
    paths.sort();
    let mut declarations = Vec::new();
    for path in paths
        .iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
    {
        let text = std::fs::read(path).map_err(|error| failed(&error))?;
        let invalid =
            |error| Failure::new(Code::ConfigInvalid, format!("{}: {error}", path.display()));
        declarations.push(serde_json::from_slice(&text).map_err(invalid)?);
    }
    // A stream that copies others comes after them.
    declarations.sort_by_key(|declaration: &Declaration| Account::from(declaration.account()));
    Ok(declarations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declarations_of_this_repository_parse() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../nats-config");
        let tenants = ["B", "C"].map(|name| {
            format!("A{}", name.repeat(55))
                .parse()
                .expect("the form of an account's key")
        });
        let all = read_all(&folder).expect("they parse");
        let streams: Vec<_> = all
            .iter()
            .flat_map(|one| one.streams(&tenants, 1))
            .collect();
        let names: Vec<&str> = streams.iter().map(|stream| stream.name.as_str()).collect();
        let events = tenants.each_ref().map(schemas::subject::events_stream);
        let expected = [
            "WORK", "LEDGER", &events[0], &events[1], "SECURITY", "AUDIT",
        ];
        assert_eq!(names, expected);
        assert_eq!(
            streams[3].subjects,
            [format!("diloco.record.{}.>", tenants[1])]
        );
        let audit = streams.last().expect("the copy comes last");
        assert!(
            audit.subjects.is_empty(),
            "nothing can be published into it"
        );
        assert_eq!(audit.sources.iter().flatten().count(), 4);
        let late = streams.iter().filter(|stream| is_late(stream));
        let late: Vec<&str> = late.map(|stream| stream.name.as_str()).collect();
        assert_eq!(late, ["WORK"], "nothing relies on what it acknowledges");
        let copied = all.iter().flat_map(|one| one.streams(&tenants, 3));
        assert_eq!(copied.filter(is_late).count(), 0);
        let direct = streams.iter().filter(|stream| stream.allow_direct);
        let direct: Vec<&str> = direct.map(|stream| stream.name.as_str()).collect();
        assert_eq!(
            direct,
            ["AUDIT"],
            "the one stream whose account no reader enters"
        );
    }
}
