//! `cluster`: the streams of the bus, as the files in nats-config declare them. A stream that is
//! missing is created; one that differs is reported and left alone, since changing a stream can
//! throw events away. Four exceptions throw nothing away: a stream of an earlier release is allowed
//! to take batches, or to answer one question with many messages; the readers' copy grows by the
//! events of a new tenant; and the stream of security events and the copy grow to their declared
//! size.

mod declaration;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use async_nats::jetstream::{
    self,
    context::GetStreamErrorKind,
    stream::{self, Compression},
};
use runtime::expiry::Ending;
use runtime::{Failure, Material, Materials, clock};
use schemas::account::Account;
use schemas::member::Layer;
use schemas::permission::Role;
use schemas::subject::{AUDIT_STREAM, EVENTS_STREAM_PREFIX, SECURITY_STREAM};
use schemas::{Code, UnixMillis};
use serde::Serialize;

use crate::cli::{Cluster, Declarations};
use crate::context::{Context, credentials_files};
use crate::history::{Copy, History, Live};
use crate::output::Row;
use crate::stack::health::BrokerFault;
use declaration::{Consumer, is_late, read_all};

/// Longest time for one change by the server; a stream with copies needs an election.
const CHANGE_MAX: Duration = Duration::from_secs(20);

pub(crate) async fn run(context: &Context, command: &Cluster) -> Result<(), Failure> {
    let (declarations, create) = match command {
        Cluster::Init(declarations) => (declarations, true),
        Cluster::Check(declarations) => (declarations, false),
    };
    // Without the lock two commands could both find a stream missing, and create it twice.
    let _lock = match create {
        true => Some(context.locked("diloctl cluster init").await?),
        false => None,
    };
    let rows = compare(context, declarations, create).await?;
    context.printer.rows(&rows);
    say_what_ends(context)?;
    if let Some(trouble) = BrokerFault::of_broker(&context.folder) {
        return Err(trouble.failure());
    }
    let worst = rows
        .iter()
        .find(|row| matches!(row.state, StreamState::Missing | StreamState::Differs));
    match worst {
        None => Ok(()),
        Some(row) if row.state == StreamState::Missing => {
            Err(Failure::new(Code::StreamMissing, &row.name))
        }
        Some(row) => Err(Failure::new(
            Code::StreamDrift,
            format!("{}: {}", row.name, row.difference),
        )),
    }
}

/// Prints which certificates and issued credentials in the domain's folder expire soon.
pub(crate) fn say_what_ends(context: &Context) -> Result<(), Failure> {
    let now = clock::now();
    let endings = endings(context, now)?;
    let notices: Vec<_> = endings
        .iter()
        .filter_map(|ending| ending.notice(now))
        .collect();
    for notice in &notices {
        context
            .printer
            .talk(&format!("warning {}: {}", notice.code, notice.detail));
    }
    if let Some(notice) = notices.first() {
        context
            .printer
            .talk(&format!("  next: {}", notice.code.next_step()));
    }
    Ok(())
}

/// The ends of the certificates and issued credentials in the domain's folder, earliest first.
pub(crate) fn endings(context: &Context, now: UnixMillis) -> Result<Vec<Ending>, Failure> {
    let domain = context.domain()?;
    let layout = domain.layout();
    let mut items = vec![
        Material::Authority {
            key: "authority",
            path: layout.ca(),
            layer: Layer::Bus,
        },
        Material::Authority {
            key: "server certificate",
            path: layout.server_certificate(),
            layer: Layer::Bus,
        },
    ];
    let files = credentials_files(&domain).into_iter();
    items.extend(files.map(|path| Material::Credentials {
        key: "credentials",
        path,
    }));
    Ok(Materials { items, now }.endings())
}

/// Prints which streams differ from their declaration. They are left alone: somebody may have
/// altered one on purpose.
pub(crate) fn say_what_differs(context: &Context, rows: &[Compared]) {
    let differing: Vec<_> = rows
        .iter()
        .filter(|row| row.state == StreamState::Differs)
        .collect();
    for Compared {
        name, difference, ..
    } in &differing
    {
        context.printer.talk(&format!(
            "warning {}: {name}: {difference}",
            Code::StreamDrift
        ));
    }
    if !differing.is_empty() {
        context
            .printer
            .talk(&format!("  next: {}", Code::StreamDrift.next_step()));
    }
}

/// Compares every declaration with the live server; if `create` is set, creates the missing
/// streams.
pub(crate) async fn compare(
    context: &Context,
    declarations: &Declarations,
    create: bool,
) -> Result<Vec<Compared>, Failure> {
    let compared = compare_all(context, declarations, create).await;
    compared.map_err(|failure| {
        // A broker without room answers late, or not at all; its log says why.
        let fault = BrokerFault::of_broker(&context.folder);
        match fault.filter(|_| failure.code() == Code::StreamMissing) {
            Some(fault) => fault.failure(),
            None => failure,
        }
    })
}

async fn compare_all(
    context: &Context,
    declarations: &Declarations,
    create: bool,
) -> Result<Vec<Compared>, Failure> {
    if let Some(credentials) = &context.credentials {
        let text = format!(
            "{} was chosen, but streams lie in several accounts, each with a provisioner of its own; leave --credentials out",
            credentials.display()
        );
        return Err(Failure::new(Code::ConfigInvalid, text));
    }
    let tenants = context.domain()?.trust().tenants.clone();
    let mut connected: BTreeMap<Account, jetstream::Context> = BTreeMap::new();
    // The readers' copy comes first: when a stream that it copies is missing, the copy shows that
    // the stream existed.
    let readers = provision(context, Account::Audit).await?;
    let copy = match readers.get_stream(AUDIT_STREAM).await {
        Ok(copy) => Copy::read(&copy, &tenants).await?,
        Err(_) => Copy::default(),
    };
    connected.insert(Account::Audit, readers);
    let history = History::read(context, copy)?;
    let mut rows = Vec::new();
    for declaration in read_all(&declarations.nats_config)? {
        let account = declaration.account().into();
        if let Entry::Vacant(entry) = connected.entry(account) {
            entry.insert(provision(context, account).await?);
        }
        let jetstream = &connected[&account];
        for wanted in declaration.streams(&tenants, declarations.replicas) {
            let (state, difference) = settle(jetstream, &wanted, create, &history).await?;
            rows.push(Compared {
                name: wanted.name.clone(),
                state,
                difference,
            });
            if state == StreamState::Missing {
                continue;
            }
            for consumer in declaration.consumers() {
                let (state, difference) =
                    settle_consumer(jetstream, &wanted.name, consumer, create).await?;
                rows.push(Compared {
                    name: format!("{}/{}", wanted.name, consumer.name),
                    state,
                    difference,
                });
            }
        }
    }
    Ok(rows)
}

/// JetStream of an account, as its provisioner sees it.
async fn provision(context: &Context, account: Account) -> Result<jetstream::Context, Failure> {
    let role = Role::provisioner(account).expect("declarations lie in accounts that have streams");
    let mut jetstream = jetstream::new(context.bus(role).await?.client().clone());
    jetstream.set_timeout(CHANGE_MAX);
    Ok(jetstream)
}

async fn settle(
    jetstream: &jetstream::Context,
    wanted: &stream::Config,
    create: bool,
    history: &History,
) -> Result<(StreamState, String), Failure> {
    match jetstream.get_stream(&wanted.name).await {
        Ok(stream) => {
            let state = &stream.cached_info().state;
            history.check(
                &wanted.name,
                Some(Live {
                    messages: state.messages,
                    last: state.last_sequence,
                }),
            )?;
            let live = &stream.cached_info().config;
            let widened = widened(wanted, live).filter(|_| create);
            if let Some(widened) = &widened {
                let updated = jetstream.update_stream(widened.clone()).await;
                updated.map_err(|error| refused(&wanted.name, &error))?;
            }
            let difference = differences(wanted, widened.as_ref().unwrap_or(live));
            let state = match (difference.is_empty(), widened) {
                (false, _) => StreamState::Differs,
                (true, None) => StreamState::Right,
                (true, Some(_)) => StreamState::Widened,
            };
            Ok((state, difference))
        }
        Err(error) if is_missing(&error.kind()) => {
            history.check(&wanted.name, None)?;
            if !create {
                return Ok((StreamState::Missing, String::new()));
            }
            jetstream
                .create_stream(wanted.clone())
                .await
                .map_err(|error| refused(&wanted.name, &error))?;
            Ok((StreamState::Created, String::new()))
        }
        Err(error) => Err(refused(&wanted.name, &error)),
    }
}

/// The live configuration with batches and direct gets allowed as declared, which streams of
/// earlier releases do not have, and with the security events and the events of tenants that it
/// does not copy yet, for which it gets room. A full stream of security events takes no more, so it
/// and the copy of it get the room that is declared, if that is more. These are the only
/// differences that can be removed without altering what a stream holds or refuses. None when
/// nothing is to be changed.
fn widened(wanted: &stream::Config, live: &stream::Config) -> Option<stream::Config> {
    let copied = live.sources.as_deref().unwrap_or_default();
    // A copy that copies nothing was altered, and is left alone.
    let is_new = |one: &&stream::Source| {
        let later = one.name == SECURITY_STREAM || one.name.starts_with(EVENTS_STREAM_PREFIX);
        later && !copied.is_empty() && !copied.iter().any(|known| known.name == one.name)
    };
    let new: Vec<_> = wanted.sources.iter().flatten().filter(is_new).collect();
    let grows = !new.is_empty() || [SECURITY_STREAM, AUDIT_STREAM].contains(&&*wanted.name);
    let max_bytes = match grows {
        true => live.max_bytes.max(wanted.max_bytes),
        false => live.max_bytes,
    };
    let sources: Vec<_> = copied.iter().chain(new).cloned().collect();
    let widened = stream::Config {
        max_bytes,
        sources: live.sources.clone().map(|_| sources),
        allow_atomic_publish: live.allow_atomic_publish || wanted.allow_atomic_publish,
        allow_direct: live.allow_direct || wanted.allow_direct,
        ..live.clone()
    };
    (widened != *live).then_some(widened)
}

fn is_missing(kind: &GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND)
}

async fn settle_consumer(
    jetstream: &jetstream::Context,
    stream: &str,
    wanted: &Consumer,
    create: bool,
) -> Result<(StreamState, String), Failure> {
    let handle = jetstream
        .get_stream(stream)
        .await
        .map_err(|error| refused(stream, &error))?;
    match handle.consumer_info(&wanted.name).await {
        Ok(info) => {
            let live = info.config;
            let pairs = [
                ("filter", wanted.filter.clone(), live.filter_subject),
                (
                    "ack",
                    format!("{:?}", wanted.config().ack_policy),
                    format!("{:?}", live.ack_policy),
                ),
                (
                    "ack_wait_ms",
                    wanted.ack_wait_ms.to_string(),
                    live.ack_wait.as_millis().to_string(),
                ),
                (
                    "max_deliver",
                    wanted.max_deliver.to_string(),
                    live.max_deliver.to_string(),
                ),
                (
                    "max_ack_pending",
                    wanted.max_ack_pending.to_string(),
                    live.max_ack_pending.to_string(),
                ),
            ];
            let difference = list(pairs.into_iter());
            Ok((
                if difference.is_empty() {
                    StreamState::Right
                } else {
                    StreamState::Differs
                },
                difference,
            ))
        }
        Err(_) if create => {
            handle
                .create_consumer(wanted.config())
                .await
                .map_err(|error| refused(&wanted.name, &error))?;
            Ok((StreamState::Created, String::new()))
        }
        Err(_) => Ok((StreamState::Missing, String::new())),
    }
}

fn refused(name: &str, error: &dyn std::fmt::Display) -> Failure {
    let text = format!("{name}: {error}");
    let full = [
        "insufficient storage",
        "insufficient resources",
        "no space left",
    ]
    .iter()
    .any(|sign| text.contains(sign));
    Failure::new(
        if full {
            Code::StreamNotStored
        } else {
            Code::StreamMissing
        },
        text,
    )
}

/// The fields on which `live` differs from `wanted`: `max_bytes is 5, declared 7`.
fn differences(wanted: &stream::Config, live: &stream::Config) -> String {
    let fields = |config: &stream::Config| {
        vec![
            ("subjects", config.subjects.join(" ")),
            ("storage", format!("{:?}", config.storage)),
            ("retention", format!("{:?}", config.retention)),
            ("discard", format!("{:?}", config.discard)),
            ("max_bytes", config.max_bytes.to_string()),
            ("max_messages", config.max_messages.to_string()),
            (
                "max_messages_per_subject",
                config.max_messages_per_subject.to_string(),
            ),
            ("max_message_bytes", config.max_message_size.to_string()),
            ("max_age", format!("{:?}", config.max_age)),
            ("duplicate_window", format!("{:?}", config.duplicate_window)),
            ("replicas", config.num_replicas.to_string()),
            ("deny_delete", config.deny_delete.to_string()),
            ("deny_purge", config.deny_purge.to_string()),
            ("allow_rollup", config.allow_rollup.to_string()),
            ("allow_atomic", config.allow_atomic_publish.to_string()),
            ("no_ack", config.no_ack.to_string()),
            (
                "compression",
                format!(
                    "{:?}",
                    config.compression.clone().unwrap_or(Compression::None)
                ),
            ),
            ("allow_direct", config.allow_direct.to_string()),
            ("sealed", config.sealed.to_string()),
            ("max_consumers", config.max_consumers.to_string()),
            (
                "consumer_inactive_max",
                format!(
                    "{:?}",
                    config
                        .consumer_limits
                        .as_ref()
                        .map(|all| all.inactive_threshold)
                ),
            ),
            ("copies", copies(config)),
        ]
    };
    // A stream that was made before its file asked for less keeps its mode, which the broker does
    // not change: it promises more than is declared.
    let late = is_late(live) && !is_late(wanted);
    let (stored, received) = ("when_stored".to_owned(), "when_received".to_owned());
    let late = late.then_some(("acknowledges", stored, received));
    let fields = fields(wanted).into_iter().zip(fields(live));
    list(
        fields
            .map(|((name, wanted), (_, live))| (name, wanted, live))
            .chain(late),
    )
}

/// The streams that a stream copies, with the way of the copies, ordered by name: `LEDGER by
/// source.LEDGER to copy.LEDGER`.
fn copies(config: &stream::Config) -> String {
    let way = |source: &stream::Source| match &source.external {
        Some(external) => {
            let delivery = external.delivery_prefix.as_deref().unwrap_or("nowhere");
            format!("{} by {} to {delivery}", source.name, external.api_prefix)
        }
        None => source.name.clone(),
    };
    let mut all: Vec<String> = config.sources.iter().flatten().map(way).collect();
    all.sort();
    all.join(", ")
}

fn list(fields: impl Iterator<Item = (&'static str, String, String)>) -> String {
    fields
        .filter(|(_, wanted, live)| wanted != live)
        .map(|(name, wanted, live)| format!("{name} is {live}, declared {wanted}"))
        .collect::<Vec<_>>()
        .join("; ")
}

/// The result of comparing a live stream or bucket with its declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StreamState {
    Right,
    Created,
    /// It existed, and is now allowed more: see [`widened`].
    Widened,
    Missing,
    Differs,
}

#[derive(Debug, Serialize)]
pub(crate) struct Compared {
    pub(crate) name: String,
    pub(crate) state: StreamState,
    pub(crate) difference: String,
}

impl Row for Compared {
    const TITLES: &'static [&'static str] = &["name", "state", "difference"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            format!("{:?}", self.state).to_lowercase(),
            self.difference.clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use schemas::subject::LEDGER_STREAM;

    use super::*;

    /// A right that a stream has and its declaration does not is a difference, and stays.
    #[test]
    fn only_batches_and_direct_gets_are_allowed_to_a_live_stream() {
        let live = stream::Config {
            max_bytes: 5,
            ..stream::Config::default()
        };
        let wanted = |batches, direct| stream::Config {
            max_bytes: 7,
            allow_atomic_publish: batches,
            allow_direct: direct,
            ..stream::Config::default()
        };
        for (batches, direct) in [(true, false), (false, true), (true, true)] {
            let expected = stream::Config {
                max_bytes: 5,
                ..wanted(batches, direct)
            };
            assert_eq!(widened(&wanted(batches, direct), &live), Some(expected));
        }
        assert_eq!(widened(&wanted(false, false), &live), None);
        let wide = wanted(true, true);
        assert_eq!(widened(&wanted(false, false), &wide), None);
    }

    /// Security events fill their stream in the end; a person gives it room by its declaration.
    #[test]
    fn tl_29_the_stream_of_security_events_grows_to_its_declared_size_and_never_shrinks() {
        let config = |name: &str, max_bytes| stream::Config {
            name: name.to_owned(),
            max_bytes,
            ..stream::Config::default()
        };
        for name in [SECURITY_STREAM, AUDIT_STREAM] {
            let grown = widened(&config(name, 7), &config(name, 5));
            assert_eq!(grown, Some(config(name, 7)));
            assert_eq!(widened(&config(name, 5), &config(name, 7)), None);
        }
        let ledger = widened(&config(LEDGER_STREAM, 7), &config(LEDGER_STREAM, 5));
        assert_eq!(ledger, None, "somebody made it smaller");
    }

    /// What is copied already stays as it is, and a copy that was altered is not made whole.
    #[test]
    fn a_copy_grows_by_the_streams_of_new_tenants() {
        let config = |names: &[&str], max_bytes| stream::Config {
            sources: (!names.is_empty()).then(|| {
                let source = |name: &&str| stream::Source {
                    name: match *name {
                        LEDGER_STREAM => LEDGER_STREAM.to_owned(),
                        tenant => format!("{EVENTS_STREAM_PREFIX}{tenant}"),
                    },
                    ..stream::Source::default()
                };
                names.iter().map(source).collect()
            }),
            max_bytes,
            ..stream::Config::default()
        };
        let wanted = config(&["A", "B", "C"], 7);
        let grown = config(&["B", "A", "C"], 7);
        assert_eq!(widened(&wanted, &config(&["B", "A"], 5)), Some(grown));
        // Without the ledger it was altered too, also where it copies a tenant.
        let with_ledger = config(&[LEDGER_STREAM, "A"], 5);
        assert_eq!(widened(&with_ledger, &config(&["A"], 5)), None);
        let larger = config(&["A", "B", "C"], 9);
        assert_eq!(widened(&wanted, &config(&["A", "B"], 9)), Some(larger));
        for live in [config(&["A", "B", "C"], 5), config(&[], 5)] {
            assert_eq!(widened(&wanted, &live), None);
        }
    }

    #[test]
    fn a_difference_names_field_and_values() {
        let wanted = stream::Config {
            max_bytes: 7,
            ..stream::Config::default()
        };
        let live = stream::Config {
            max_bytes: 5,
            ..stream::Config::default()
        };
        assert_eq!(differences(&wanted, &live), "max_bytes is 5, declared 7");
        assert!(differences(&wanted, &wanted).is_empty());
    }

    /// The ledger must not acknowledge what the disk does not have.
    #[test]
    fn only_a_stream_that_promises_less_than_is_declared_differs_in_its_mode() {
        let mode = |persist_mode| stream::Config {
            persist_mode,
            ..stream::Config::default()
        };
        let late = mode(Some(stream::PersistenceMode::Async));
        for durable in [None, Some(stream::PersistenceMode::Default)] {
            assert_eq!(
                differences(&mode(durable), &late),
                "acknowledges is when_received, declared when_stored"
            );
            assert_eq!(differences(&late, &mode(durable)), "");
        }
        assert_eq!(differences(&late, &late), "");
    }
}
