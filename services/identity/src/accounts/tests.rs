//! Tests of the accounts as tokens.

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
        registrar: account(),
        enrolment: account(),
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
            Account::Tenant => (
                account,
                tenant_account(&accounts.tenants[0], accounts, 2, None, key),
            ),
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
    for connections in [None, Some(8)] {
        let tenant = tenant_account(&accounts.tenants[0], &accounts, 2, connections, key);
        assert!(tenant.limits.conn > 0);
        // A tenant has no streams, so it needs no quota for them.
        let limits = AccountLimits {
            conn: tenant.limits.conn,
            ..AccountLimits::without_jetstream()
        };
        assert_eq!(tenant.limits, limits);
    }
}

/// However many connections tenants open, coordinators, audit services and operators find a
/// place.
#[test]
fn a_tenant_leaves_room_at_the_broker_for_others() {
    let limits = include_str!("../../../../nats-config/include/limits.conf");
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
    let claims = tenant_account(tenant, &accounts, 2, None, key);
    let of_tenants = |one: &&Crossing| one.importers.contains(&Account::Tenant);
    let expected = CROSSINGS.iter().filter(of_tenants).count();
    assert_eq!(claims.imports.len(), expected);
    for (account, claims) in all(&accounts) {
        let own = accounts.one(account).unwrap_or(&accounts.tenants[0]);
        for crossing in &CROSSINGS {
            let lane = crossing.lane.prefix();
            let import = claims.imports.iter().find(|import| import.name == lane);
            let imports = crossing.importers.contains(&account);
            assert_eq!(import.is_some(), imports, "{account:?} {lane}");
            let Some(import) = import else { continue };
            let token = import
                .subject
                .split('.')
                .nth(usize::from(ACCOUNT_TOKEN_POSITION) - 1);
            assert_eq!(token, Some(own.as_str()));
            assert!(!import.share, "the exporter sees no more than the subject");
        }
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
            subject.starts_with("$JS.API.CONSUMER.CREATE.LEDGER") || subject == "$JS.FC.LEDGER.>"
        };
        assert!(
            inward.iter().all(|import| of_the_copy(&import.subject)),
            "{account:?} {inward:?}"
        );
    }
    // What leads out of it is the question for a new token, and nothing else.
    let outward = service_account(Account::Ledger, &accounts, key).imports;
    let outward: Vec<&str> = outward.iter().map(|import| import.name.as_str()).collect();
    assert_eq!(outward, ["diloco.renewal"]);
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
        let question = |subject: &str| {
            let report = REPORTS.iter().any(|one| one.subject == subject);
            report || QUESTIONS.iter().any(|one| one.subject == subject)
        };
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

/// Reports lead one way, to the audit service, and no credential of the system account is needed.
#[test]
fn tl_29_the_brokers_reports_lead_to_the_account_of_events_and_nowhere_else() {
    let accounts = accounts();
    for (account, claims) in all(&accounts) {
        let imported = claims.imports.iter().filter(|import| {
            let report = REPORTS.iter().any(|one| one.local == import.local_subject);
            report && import.kind == SharedKind::Stream
        });
        let imported = imported.count();
        let hears = account == Account::Events;
        assert_eq!(imported, if hears { REPORTS.len() - 1 } else { 0 });
        let exported = |one: &&Export| REPORTS.iter().any(|report| report.subject == one.subject);
        for export in claims.exports.iter().filter(exported) {
            assert_eq!(export.kind, SharedKind::Stream, "{account:?}");
            assert_ne!(account, Account::Events);
        }
        let system = claims.imports.iter();
        let system = system.filter(|import| import.account == accounts.system);
        assert_eq!(system.count(), if hears { 3 } else { 0 }, "{account:?}");
    }
    let system = service_account(Account::System, &accounts, key);
    assert!(system.imports.is_empty(), "nothing reaches it");
    assert_eq!(system.exports.len(), 3);
}

/// The way from readers to the copy: exactly their questions, of which one has several answers.
#[test]
fn readers_reach_three_questions_of_the_audit_account_and_nothing_else() {
    let accounts = accounts();
    let readers = service_account(Account::Readers, &accounts, key);
    assert!(readers.exports.is_empty());
    assert_eq!(readers.limits.streams, 0, "no JetStream");
    let asked: Vec<&str> = QUESTIONS.iter().map(|one| one.subject).collect();
    let (questions, others): (Vec<_>, Vec<_>) = readers
        .imports
        .iter()
        .partition(|import| import.account == accounts.audit);
    let others: Vec<&str> = others.iter().map(|import| import.name.as_str()).collect();
    assert_eq!(others, ["diloco.renewal"]);
    for import in &questions {
        assert!(import.kind == SharedKind::Service && !import.share);
        assert!(asked.contains(&import.subject.as_str()), "{import:?}");
    }
    let locals = questions.iter().map(|one| one.local_subject.as_str());
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
        // What the broker reports there comes out of it, and reaches nothing.
        let reaches = |import: &Import| {
            import.account == accounts.audit && import.kind == SharedKind::Service
        };
        let reaches = claims.imports.iter().any(reaches);
        assert_eq!(reaches, account == Account::Readers, "{account:?}");
    }
}

/// An account to which only services connect is limited, and so is that of auditors; the account
/// of operators is not.
#[test]
fn accounts_of_services_have_few_connections_and_tenants_share_theirs() {
    let accounts = accounts();
    for (account, claims) in all(&accounts) {
        let expected = match account {
            Account::Ledger | Account::Events | Account::Registrar => SERVICES_CONNECTIONS_MAX,
            Account::Readers => READERS_CONNECTIONS_MAX,
            Account::System => WRITERS_CONNECTIONS_MAX,
            Account::Enrolment => ENROLMENT_CONNECTIONS_MAX,
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
            Lane::Telemetry | Lane::Refusal => HEARTBEAT_ANSWER_MAX,
            Lane::Event | Lane::Log => EVENT_ANSWER_MAX,
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
