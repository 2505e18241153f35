//! The accounts of a domain as NATS tokens: the system account, the control account, the accounts
//! of the ledger, of workers' events, of the copy of both and of its readers, the registrar's, that
//! of machines that ask to be enrolled, and tenants' accounts.
//! Only the imports and exports that `schemas::account` declares connect them.

use std::time::Duration;

use schemas::account::{
    ACCOUNT_TOKEN_POSITION, Account, CROSSINGS, Copied, CopyPath, Crossing, QUESTIONS, Question,
    REPORTS, Report,
};
use schemas::limits::{REQUEST_TIMEOUT, WORKERS_MAX};
use schemas::permission::{HEARER, Role, permissions};
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
/// Time for which the broker keeps the way back for an answer to a heartbeat or a report of
/// refusals, which nobody answers.
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
/// Connections of all auditors together. Each of their questions may take broker memory for many
/// events.
const READERS_CONNECTIONS_MAX: i64 = 32;
/// Connections of all machines that ask to be enrolled. With a copy of an invitation somebody can
/// take them until it ends, and nothing else.
const ENROLMENT_CONNECTIONS_MAX: i64 = 64;

/// Connections that replace accounts' tokens, beside those of the brokers themselves: one command
/// at a time, and some that were broken off.
const WRITERS_CONNECTIONS_MAX: i64 = 32;

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
    /// The account of the registrar.
    pub registrar: AccountId,
    /// The account of machines that ask to be enrolled.
    pub enrolment: AccountId,
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
            Account::Registrar => Some(&self.registrar),
            Account::Enrolment => Some(&self.enrolment),
            Account::System => Some(&self.system),
            Account::Tenant => None,
        }
    }

    /// All of them: everywhere that somebody can connect.
    pub fn all(&self) -> Vec<AccountId> {
        let own = Account::ALL
            .into_iter()
            .filter_map(|account| self.one(account));
        own.chain(&self.tenants).cloned().collect()
    }

    fn exporter(&self, account: Account) -> AccountId {
        self.one(account).expect("tenants export nothing").clone()
    }
}

/// An account of the domain's own: the exports to tenants, to the copy in the audit account and to
/// its readers; in the audit account the imports for that copy, in the readers' account their
/// questions. It has JetStream if streams lie there. The system account has neither. `key` gives
/// the signing key of a role.
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
    let others = match account {
        Account::Audit => copies
            .iter()
            .flat_map(|copied| copy_imports(copied, accounts))
            .collect(),
        Account::Readers => question_imports(accounts),
        _ if account == HEARER.account() => report_imports(accounts),
        _ => vec![],
    };
    let conn = match account {
        Account::Ledger | Account::Events | Account::Registrar => SERVICES_CONNECTIONS_MAX,
        Account::Readers => READERS_CONNECTIONS_MAX,
        Account::Enrolment => ENROLMENT_CONNECTIONS_MAX,
        Account::System => WRITERS_CONNECTIONS_MAX,
        _ => UNLIMITED,
    };
    let imports = match accounts.one(account) {
        Some(own) => imported(account, own, accounts),
        None => vec![],
    };
    let limits = match Role::provisioner(account) {
        Some(_) => AccountLimits::with_jetstream(),
        None => AccountLimits::without_jetstream(),
    };
    AccountClaims {
        imports: others.into_iter().chain(imports).collect(),
        exports: crossings
            .chain(copied)
            .chain(questions.iter().map(question_export))
            .chain(reports(account).map(report_export))
            .collect(),
        limits: AccountLimits { conn, ..limits },
        signing_keys: scopes(account, key),
        revocations: Default::default(),
    }
}

/// A tenant's account: no JetStream, limited connections, and only the declared imports and
/// exports. It has its share of the connections among so many tenants that `last`; a quota of
/// connections can only lower the limit.
pub fn tenant_account(
    tenant: &AccountId,
    accounts: &Accounts,
    last: usize,
    connections: Option<u32>,
    key: impl Fn(Role) -> PublicKey,
) -> AccountClaims {
    AccountClaims {
        imports: imported(Account::Tenant, tenant, accounts),
        exports: vec![],
        limits: AccountLimits {
            conn: connections
                .map_or(i64::MAX, i64::from)
                .min(tenant_connections(last)),
            ..AccountLimits::without_jetstream()
        },
        signing_keys: scopes(Account::Tenant, key),
        revocations: Default::default(),
    }
}

/// The account of a tenant that ended. No key signs for it, so the broker cuts all its clients and
/// takes no other; and nothing crosses to or from other accounts.
pub fn ended_account() -> AccountClaims {
    AccountClaims {
        imports: vec![],
        exports: vec![],
        limits: AccountLimits {
            conn: 0,
            ..AccountLimits::without_jetstream()
        },
        signing_keys: vec![],
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
        Lane::Telemetry | Lane::Refusal => HEARTBEAT_ANSWER_MAX,
        Lane::Event | Lane::Log => EVENT_ANSWER_MAX,
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

/// The lanes that an account imports.
fn imported(account: Account, own: &AccountId, accounts: &Accounts) -> Vec<Import> {
    CROSSINGS
        .iter()
        .filter(|crossing| crossing.importers.contains(&account))
        .map(|crossing| import(crossing, own, accounts))
        .collect()
}

fn import(crossing: &Crossing, own: &AccountId, accounts: &Accounts) -> Import {
    Import {
        name: crossing.lane.prefix().into(),
        subject: crossing.imported(own.as_str()),
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

/// The broker's reports that an account offers to the one where they are heard.
fn reports(account: Account) -> impl Iterator<Item = &'static Report> {
    let elsewhere = account != HEARER.account();
    REPORTS
        .iter()
        .filter(move |report| report.home == account && elsewhere)
}

fn report_export(report: &Report) -> Export {
    Export {
        name: report.subject.into(),
        subject: report.subject.into(),
        kind: SharedKind::Stream,
        account_token_position: 0,
        response_type: None,
        response_threshold: None,
    }
}

fn report_imports(accounts: &Accounts) -> Vec<Import> {
    let import = |report: &Report| Import {
        name: report.local.into(),
        subject: report.subject.into(),
        local_subject: report.local.into(),
        account: accounts.exporter(report.home),
        kind: SharedKind::Stream,
        share: false,
    };
    let elsewhere = REPORTS
        .iter()
        .filter(|report| report.home != HEARER.account());
    elsewhere.map(import).collect()
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
mod tests;
