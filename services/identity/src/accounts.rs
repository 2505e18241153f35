//! The accounts of a domain as NATS tokens: the system account, the control account, the accounts
//! of the ledger, of workers' events, of the copy of both and of its readers, and tenants' accounts.
//! Only the imports and exports that `schemas::account` declares connect them.

use std::time::Duration;

use schemas::account::{
    ACCOUNT_TOKEN_POSITION, Account, CROSSINGS, Copied, CopyPath, Crossing, QUESTIONS, Question,
};
use schemas::limits::{REQUEST_TIMEOUT, WORKERS_MAX};
use schemas::permission::{Role, permissions};
use schemas::subject::Lane;
use schemas::{AccountId, PublicKey};

use crate::claims::{
    AccountClaims, AccountKey, AccountLimits, Export, Import, Scope, ScopeKind, SharedKind,
    Subjects, UNLIMITED, UserRights,
};

/// Most connections of one tenant: its workers, and some that reconnect while their old connection
/// lingers.
const TENANT_CONNECTIONS_MAX: i64 = WORKERS_MAX as i64 + 64;
/// Connections that all tenants share: the broker's `max_connections`, less those of services,
/// operators and auditors.
const TENANTS_CONNECTIONS: i64 = 5000 - 512;
/// Time for which the broker keeps the way back for an answer to a heartbeat, which nobody answers.
const HEARTBEAT_ANSWER_MAX: Duration = Duration::from_secs(1);
/// The same time for an event: longer than a worker waits for its answer.
const EVENT_ANSWER_MAX: Duration = Duration::from_secs(15);
/// The same time for every other request: a little longer than its asker waits.
const REQUEST_ANSWER_MAX: Duration = Duration::from_millis(REQUEST_TIMEOUT.get() + 1000);
/// The same time for a question of readers: longer than they wait for its answer.
const QUESTION_ANSWER_MAX: Duration = Duration::from_secs(10);
/// The subject under which a client asks whether its account has JetStream.
const JETSTREAM_INFO: &str = "$JS.API.INFO";
/// Most connections of the accounts of ledger and events: a few services, one that is being
/// replaced, and a provisioner.
const SERVICES_CONNECTIONS_MAX: i64 = 32;

/// The only kind of connection: plain NATS, no WebSocket and no leaf nodes.
const CONNECTION_TYPE: &str = "STANDARD";

/// The accounts of a domain, by purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accounts {
    /// The account of the server itself.
    pub system: AccountId,
    /// The account of coordinators and operators.
    pub control: AccountId,
    /// The account of the ledger.
    pub ledger: AccountId,
    /// The account of workers' events.
    pub events: AccountId,
    /// The account of the copy of both.
    pub audit: AccountId,
    /// The account of those who read the copy.
    pub readers: AccountId,
    /// The tenants; each has a stream for its workers' events.
    pub tenants: Vec<AccountId>,
}

impl Accounts {
    /// The account of this kind; none for tenants, of which there may be several.
    pub const fn one(&self, account: Account) -> Option<&AccountId> {
        match account {
            Account::Control => Some(&self.control),
            Account::Ledger => Some(&self.ledger),
            Account::Events => Some(&self.events),
            Account::Audit => Some(&self.audit),
            Account::Readers => Some(&self.readers),
            Account::Tenant => None,
        }
    }

    fn exporter(&self, account: Account) -> AccountId {
        self.one(account).expect("tenants export nothing").clone()
    }
}

/// The system account: no JetStream, no users so far.
pub fn system_account() -> AccountClaims {
    AccountClaims {
        imports: vec![],
        exports: vec![],
        limits: AccountLimits::without_jetstream(),
        signing_keys: vec![],
        revocations: Default::default(),
    }
}

/// An account of the domain's own: the exports to tenants, to the copy in the audit account and to
/// its readers; in the audit account the imports for that copy, in the readers' account their
/// questions. It has JetStream if streams lie there. `key` gives the signing key of a role.
pub fn service_account(
    account: Account,
    accounts: &Accounts,
    key: impl Fn(Role) -> PublicKey,
) -> AccountClaims {
    let copies = Copied::all(&accounts.tenants);
    let crossings = CROSSINGS
        .iter()
        .filter(|crossing| crossing.home == account)
        .map(export);
    let copied = copies
        .iter()
        .filter(|copied| copied.home == account)
        .flat_map(copy_exports);
    let questions: &[Question] = match account {
        Account::Audit => &QUESTIONS,
        _ => &[],
    };
    let imports = match account {
        Account::Audit => copies
            .iter()
            .flat_map(|copied| copy_imports(copied, accounts))
            .collect(),
        Account::Readers => question_imports(accounts),
        _ => vec![],
    };
    let conn = match account {
        Account::Ledger | Account::Events => SERVICES_CONNECTIONS_MAX,
        _ => UNLIMITED,
    };
    let limits = match Role::provisioner(account) {
        Some(_) => AccountLimits::with_jetstream(),
        None => AccountLimits::without_jetstream(),
    };
    AccountClaims {
        imports,
        exports: crossings
            .chain(copied)
            .chain(questions.iter().map(question_export))
            .collect(),
        limits: AccountLimits { conn, ..limits },
        signing_keys: scopes(account, key),
        revocations: Default::default(),
    }
}

/// A tenant's account: no JetStream, limited connections, and only the declared imports and
/// exports.
pub fn tenant_account(
    tenant: &AccountId,
    accounts: &Accounts,
    key: impl Fn(Role) -> PublicKey,
) -> AccountClaims {
    AccountClaims {
        imports: CROSSINGS
            .iter()
            .map(|crossing| import(crossing, tenant, accounts))
            .collect(),
        exports: vec![],
        limits: AccountLimits {
            conn: tenant_connections(accounts.tenants.len()),
            ..AccountLimits::without_jetstream()
        },
        signing_keys: scopes(Account::Tenant, key),
        revocations: Default::default(),
    }
}

fn scopes(account: Account, key: impl Fn(Role) -> PublicKey) -> Vec<AccountKey> {
    let own = Role::ALL
        .into_iter()
        .filter(|role| role.account() == account);
    own.map(|role| scope(role, key(role))).collect()
}

fn scope(role: Role, key: PublicKey) -> AccountKey {
    let set = permissions(role);
    let template = UserRights {
        publish: Subjects {
            allow: set.publish_allow,
            deny: set.publish_deny,
        },
        subscribe: Subjects {
            allow: set.subscribe_allow,
            deny: vec![],
        },
        subs: set.subscriptions_max,
        data: UNLIMITED,
        payload: i64::try_from(set.payload_bytes_max).unwrap_or(i64::MAX),
        allowed_connection_types: vec![CONNECTION_TYPE.into()],
    };
    AccountKey::Scoped(Box::new(Scope {
        kind: ScopeKind::User,
        key,
        role: role.name().into(),
        template,
    }))
}

/// A tenant's share of the broker's connections: all tenants together leave room for the services.
fn tenant_connections(tenants: usize) -> i64 {
    TENANT_CONNECTIONS_MAX
        .min(TENANTS_CONNECTIONS / i64::try_from(tenants.max(1)).unwrap_or(i64::MAX))
}

/// A span in the unit of an export's claims.
fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

fn export(crossing: &Crossing) -> Export {
    let answer_max = match crossing.lane {
        Lane::Telemetry => HEARTBEAT_ANSWER_MAX,
        Lane::Event => EVENT_ANSWER_MAX,
        _ => REQUEST_ANSWER_MAX,
    };
    Export {
        name: crossing.lane.prefix().into(),
        subject: crossing.exported(),
        kind: kind(crossing.service),
        account_token_position: ACCOUNT_TOKEN_POSITION.into(),
        response_type: crossing.service.then(|| "Singleton".into()),
        response_threshold: crossing.service.then(|| nanoseconds(answer_max)),
    }
}

fn import(crossing: &Crossing, tenant: &AccountId, accounts: &Accounts) -> Import {
    Import {
        name: crossing.lane.prefix().into(),
        subject: crossing.imported(tenant.as_str()),
        local_subject: crossing.local(),
        account: accounts.exporter(crossing.home),
        kind: kind(crossing.service),
        // The subject names the asker: the broker writes the account into it, and holds each worker
        // to its own key. Nobody needs the header that the broker would add, which contains the
        // asker's token.
        share: false,
    }
}

fn copy_exports(copied: &Copied) -> Vec<Export> {
    let export = |path: CopyPath| Export {
        name: path.exported.clone(),
        subject: path.exported,
        kind: kind(path.service),
        account_token_position: 0,
        response_type: path.service.then(|| "Singleton".into()),
        response_threshold: path.service.then(|| nanoseconds(EVENT_ANSWER_MAX)),
    };
    copied.paths().into_iter().map(export).collect()
}

fn copy_imports(copied: &Copied, accounts: &Accounts) -> Vec<Import> {
    let import = |path: CopyPath| Import {
        name: path.local.clone(),
        subject: path.exported,
        local_subject: path.local,
        account: accounts.exporter(copied.home),
        kind: kind(path.service),
        share: false,
    };
    copied.paths().into_iter().map(import).collect()
}

fn question_export(question: &Question) -> Export {
    let answers = if question.many { "Stream" } else { "Singleton" };
    Export {
        name: question.subject.into(),
        subject: question.subject.into(),
        kind: SharedKind::Service,
        account_token_position: 0,
        response_type: Some(answers.into()),
        response_threshold: Some(nanoseconds(QUESTION_ANSWER_MAX)),
    }
}

/// The questions, and one import more that nobody may use. The broker gives an account without
/// JetStream an import of all of `$JS.API`, which answers each question, also those below, with
/// "not enabled". It leaves that import out where another one has the subject `$JS.API.INFO`; then
/// nothing in the account leads to JetStream but the questions.
fn question_imports(accounts: &Accounts) -> Vec<Import> {
    let import = |subject: &str, local: &str| Import {
        name: local.into(),
        subject: subject.into(),
        local_subject: local.into(),
        account: accounts.audit.clone(),
        kind: SharedKind::Service,
        share: false,
    };
    let asked = QUESTIONS.iter().map(|one| import(one.subject, one.subject));
    let [of_the_stream, ..] = QUESTIONS;
    asked
        .chain([import(of_the_stream.subject, JETSTREAM_INFO)])
        .collect()
}

const fn kind(service: bool) -> SharedKind {
    if service {
        SharedKind::Service
    } else {
        SharedKind::Stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::Claims as _;
    use crate::key::{KeyKind, SigningKey};

    fn account() -> AccountId {
        SigningKey::generate(KeyKind::Account)
            .public()
            .as_str()
            .parse()
            .expect("an account's key")
    }

    fn accounts() -> Accounts {
        Accounts {
            system: account(),
            control: account(),
            ledger: account(),
            events: account(),
            audit: account(),
            readers: account(),
            tenants: vec![account(), account()],
        }
    }

    fn key(_: Role) -> PublicKey {
        SigningKey::generate(KeyKind::Account).public().clone()
    }

    fn all(accounts: &Accounts) -> Vec<(Account, AccountClaims)> {
        Account::ALL
            .into_iter()
            .map(|account| match account {
                Account::Tenant => (account, tenant_account(&accounts.tenants[0], accounts, key)),
                _ => (account, service_account(account, accounts, key)),
            })
            .collect()
    }

    #[test]
    fn each_role_has_one_key_in_the_account_where_it_lives() {
        let accounts = accounts();
        let mut seen = Vec::new();
        for (account, claims) in all(&accounts) {
            for key in &claims.signing_keys {
                match key {
                    AccountKey::Scoped(scope) => seen.push((account, scope.role.clone())),
                    AccountKey::Plain(key) => panic!("{key} may give any rights"),
                }
            }
            assert!(claims.limits.disallow_bearer);
            let streams = claims.limits.streams != 0 && claims.limits.disk_storage != 0;
            assert_eq!(streams, Role::provisioner(account).is_some(), "{account:?}");
        }
        let mut expected: Vec<_> = Role::ALL
            .iter()
            .map(|role| (role.account(), role.name().to_owned()))
            .collect();
        seen.sort();
        expected.sort();
        assert_eq!(seen, expected);
        assert!(
            tenant_account(&accounts.tenants[0], &accounts, key)
                .limits
                .conn
                > 0
        );
    }

    /// However many connections tenants open, coordinators, audit services and operators find a
    /// place.
    #[test]
    fn a_tenant_leaves_room_at_the_broker_for_others() {
        let limits = include_str!("../../../nats-config/include/limits.conf");
        let total = limits
            .lines()
            .find_map(|line| line.strip_prefix("max_connections: "))
            .expect("a limit");
        let total: i64 = total.trim().parse().expect("a number");
        assert!(
            TENANT_CONNECTIONS_MAX + 512 <= total,
            "{TENANT_CONNECTIONS_MAX} of {total}"
        );
    }

    #[test]
    fn tenants_import_only_under_their_own_account() {
        let accounts = accounts();
        let tenant = &accounts.tenants[1];
        let claims = tenant_account(tenant, &accounts, key);
        assert_eq!(claims.imports.len(), CROSSINGS.len());
        for import in &claims.imports {
            let token = import
                .subject
                .split('.')
                .nth(usize::from(ACCOUNT_TOKEN_POSITION) - 1);
            assert_eq!(token, Some(tenant.as_str()));
            assert!(!import.share, "the exporter sees no more than the subject");
        }
    }

    #[test]
    fn nothing_leads_into_the_ledger_but_the_broker_that_copies_it() {
        let accounts = accounts();
        for (account, claims) in all(&accounts) {
            let inward = claims
                .imports
                .iter()
                .filter(|import| import.account == accounts.ledger);
            let inward: Vec<_> = inward
                .filter(|import| import.kind == SharedKind::Service)
                .collect();
            assert_eq!(!inward.is_empty(), account == Account::Audit, "{account:?}");
            let of_the_copy = |subject: &str| {
                subject.starts_with("$JS.API.CONSUMER.CREATE.LEDGER")
                    || subject == "$JS.FC.LEDGER.>"
            };
            assert!(
                inward.iter().all(|import| of_the_copy(&import.subject)),
                "{account:?} {inward:?}"
            );
        }
        assert!(
            service_account(Account::Ledger, &accounts, key)
                .imports
                .is_empty()
        );
        let offered = service_account(Account::Ledger, &accounts, key).exports;
        assert!(
            offered
                .iter()
                .all(|export| !export.subject.starts_with("diloco.")),
            "{offered:?}"
        );
    }

    /// An account exports what others import from it, and nothing else of a copy.
    #[test]
    fn a_copy_is_offered_by_the_account_where_it_is_at_home() {
        let accounts = accounts();
        let claims = all(&accounts);
        let copies = Copied::all(&accounts.tenants);
        for (account, claims) in &claims {
            let own = copies.iter().filter(|copied| copied.home == *account);
            let own: Vec<Export> = own.flat_map(copy_exports).collect();
            let question = |subject: &str| QUESTIONS.iter().any(|one| one.subject == subject);
            let of_copies = claims
                .exports
                .iter()
                .filter(|export| export.account_token_position == 0 && !question(&export.subject));
            assert_eq!(of_copies.cloned().collect::<Vec<_>>(), own, "{account:?}");
        }
        let offers = |home: &AccountId, subject: &str| {
            claims.iter().any(|(account, claims)| {
                accounts.one(*account) == Some(home)
                    && claims
                        .exports
                        .iter()
                        .any(|export| export.subject == subject)
            })
        };
        let auditor = claims
            .iter()
            .find(|(account, _)| *account == Account::Audit);
        let (_, auditor) = auditor.expect("it is one of all");
        assert!(!auditor.imports.is_empty());
        for import in &auditor.imports {
            assert!(offers(&import.account, &import.subject), "{import:?}");
        }
    }

    /// The way from readers to the copy: exactly their questions, of which one has several answers.
    #[test]
    fn readers_reach_three_questions_of_the_audit_account_and_nothing_else() {
        let accounts = accounts();
        let readers = service_account(Account::Readers, &accounts, key);
        assert!(readers.exports.is_empty());
        assert_eq!(readers.limits.streams, 0, "no JetStream");
        let asked: Vec<&str> = QUESTIONS.iter().map(|one| one.subject).collect();
        for import in &readers.imports {
            assert_eq!(import.account, accounts.audit);
            assert!(import.kind == SharedKind::Service && !import.share);
            assert!(asked.contains(&import.subject.as_str()), "{import:?}");
        }
        let locals = readers.imports.iter().map(|one| one.local_subject.as_str());
        let mut expected = asked.clone();
        expected.push(JETSTREAM_INFO);
        assert_eq!(locals.collect::<Vec<_>>(), expected);
        let set = permissions(Role::Auditor).publish_allow;
        assert!(!set.iter().any(|subject| subject == JETSTREAM_INFO));
        for (account, claims) in all(&accounts) {
            let offered = claims.exports.iter();
            let offered: Vec<_> = offered
                .filter(|export| asked.contains(&export.subject.as_str()))
                .map(|export| (export.subject.as_str(), export.response_type.as_deref()))
                .collect();
            let expected = match account {
                Account::Audit => vec![
                    ("$JS.API.STREAM.INFO.AUDIT", Some("Singleton")),
                    ("$JS.API.STREAM.MSG.GET.AUDIT", Some("Singleton")),
                    ("$JS.API.DIRECT.GET.AUDIT", Some("Stream")),
                ],
                _ => vec![],
            };
            assert_eq!(offered, expected, "{account:?}");
            let reaches = |import: &&Import| import.account == accounts.audit;
            let reaches = claims.imports.iter().any(|import| reaches(&import));
            assert_eq!(reaches, account == Account::Readers, "{account:?}");
        }
    }

    /// An account to which only services connect is limited; accounts of operators and auditors are
    /// not.
    #[test]
    fn accounts_of_services_have_few_connections_and_tenants_share_theirs() {
        let accounts = accounts();
        for (account, claims) in all(&accounts) {
            let expected = match account {
                Account::Ledger | Account::Events => SERVICES_CONNECTIONS_MAX,
                Account::Tenant => TENANTS_CONNECTIONS / 2,
                _ => UNLIMITED,
            };
            assert_eq!(claims.limits.conn, expected, "{account:?}");
        }
        let shares = [0, 1, 100].map(tenant_connections);
        let of_a_hundred = TENANTS_CONNECTIONS / 100;
        assert_eq!(
            shares,
            [TENANT_CONNECTIONS_MAX, TENANT_CONNECTIONS_MAX, of_a_hundred]
        );
    }

    /// The broker keeps a way back for every request of a tenant, for no longer than an answer can
    /// take.
    #[test]
    fn a_way_back_is_kept_as_long_as_the_answer_of_its_lane_may_take() {
        assert_eq!(nanoseconds(Duration::from_secs(2)), 2_000_000_000);
        for crossing in &CROSSINGS {
            let most = match crossing.lane {
                Lane::Telemetry => HEARTBEAT_ANSWER_MAX,
                Lane::Event => EVENT_ANSWER_MAX,
                _ => REQUEST_ANSWER_MAX,
            };
            let export = export(crossing);
            let expected = crossing.service.then(|| nanoseconds(most));
            assert_eq!(export.response_threshold, expected, "{}", export.name);
            assert_eq!(export.response_type.is_some(), crossing.service);
        }
    }

    /// The position of the account in the subject keeps an account from speaking as another, so it
    /// must be in the text that the broker reads.
    #[test]
    fn the_place_of_the_account_stands_in_what_the_broker_reads() {
        let accounts = accounts();
        let mut positions = Vec::new();
        for (account, claims) in all(&accounts) {
            assert!(claims.as_user().is_none(), "{account:?} is no user");
            for export in &claims.exports {
                let text = serde_json::to_value(export).expect("it is data");
                let written = text.get("account_token_position").cloned();
                let expected = (export.account_token_position > 0)
                    .then(|| serde_json::Value::from(ACCOUNT_TOKEN_POSITION));
                assert_eq!(written, expected, "{}", export.name);
                positions.push(expected.is_some());
            }
        }
        assert!(positions.contains(&true) && positions.contains(&false));
    }

    #[test]
    fn an_account_with_streams_may_keep_them_on_disk_and_in_memory() {
        let limits = AccountLimits::with_jetstream();
        let bounds = [
            limits.mem_storage,
            limits.disk_storage,
            limits.streams,
            limits.consumer,
        ];
        assert_eq!(bounds, [UNLIMITED; 4]);
    }
}
