//! The accounts of a domain as NATS tokens: the system account, the control account with JetStream and the roles that
//! live there, and tenants' accounts with their workers, joined to control by the crossings that `schemas` declares.

use schemas::limits::WORKERS_MAX;
use schemas::permission::{ACCOUNT_TOKEN_POSITION, CROSSINGS, Crossing, Role, permissions};
use schemas::{AccountId, PublicKey};

use crate::claims::{
    AccountClaims, AccountKey, AccountLimits, Export, Import, Scope, ScopeKind, SharedKind, Subjects, UNLIMITED,
    UserRights,
};

/// Most connections of one tenant: its workers, and some that are reconnecting while their old one lingers.
pub const TENANT_CONNECTIONS_MAX: i64 = WORKERS_MAX as i64 + 64;

/// The only way in: plain NATS connections, no WebSocket and no leaf nodes.
const CONNECTION_TYPE: &str = "STANDARD";

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

/// The control account: all of JetStream, and everything that crosses. `key` gives the signing key of a role.
pub fn control_account(key: impl Fn(Role) -> PublicKey) -> AccountClaims {
    AccountClaims {
        imports: vec![],
        exports: CROSSINGS.iter().map(export).collect(),
        limits: AccountLimits::with_jetstream(),
        signing_keys: Role::ALL
            .into_iter()
            .filter(|role| !role.is_tenant())
            .map(|role| scope(role, key(role)))
            .collect(),
        revocations: Default::default(),
    }
}

/// A tenant's account: no JetStream, bounded connections, and nothing but the crossings to the control account.
pub fn tenant_account(tenant: &AccountId, control: &AccountId, key: impl Fn(Role) -> PublicKey) -> AccountClaims {
    AccountClaims {
        imports: CROSSINGS.iter().map(|crossing| import(crossing, tenant, control)).collect(),
        exports: vec![],
        limits: AccountLimits { conn: TENANT_CONNECTIONS_MAX, ..AccountLimits::without_jetstream() },
        signing_keys: Role::ALL
            .into_iter()
            .filter(|role| role.is_tenant())
            .map(|role| scope(role, key(role)))
            .collect(),
        revocations: Default::default(),
    }
}

fn scope(role: Role, key: PublicKey) -> AccountKey {
    let set = permissions(role);
    let template = UserRights {
        publish: Subjects { allow: set.publish_allow, deny: set.publish_deny },
        subscribe: Subjects { allow: set.subscribe_allow, deny: vec![] },
        subs: set.subscriptions_max,
        data: UNLIMITED,
        payload: i64::try_from(set.payload_bytes_max).unwrap_or(i64::MAX),
        allowed_connection_types: vec![CONNECTION_TYPE.into()],
    };
    AccountKey::Scoped(Box::new(Scope { kind: ScopeKind::User, key, role: role.name().into(), template }))
}

fn export(crossing: &Crossing) -> Export {
    Export {
        name: crossing.lane.prefix().into(),
        subject: crossing.exported(),
        kind: kind(crossing),
        account_token_position: ACCOUNT_TOKEN_POSITION.into(),
        response_type: crossing.service.then(|| "Singleton".into()),
    }
}

fn import(crossing: &Crossing, tenant: &AccountId, control: &AccountId) -> Import {
    Import {
        name: crossing.lane.prefix().into(),
        subject: crossing.imported(tenant.as_str()),
        local_subject: crossing.local(),
        account: control.clone(),
        kind: kind(crossing),
        // The broker names the user that asks; streams have no asker.
        share: crossing.service,
    }
}

fn kind(crossing: &Crossing) -> SharedKind {
    if crossing.service { SharedKind::Service } else { SharedKind::Stream }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyKind, SigningKey};

    fn account() -> AccountId {
        SigningKey::generate(KeyKind::Account).public().as_str().parse().expect("an account's key")
    }

    #[test]
    fn each_role_has_one_key_in_the_account_where_it_lives() {
        let key = |_| SigningKey::generate(KeyKind::Account).public().clone();
        let roles = |claims: &AccountClaims| -> Vec<String> {
            let role = |key: &AccountKey| match key {
                AccountKey::Scoped(scope) => scope.role.clone(),
                AccountKey::Plain(key) => panic!("{key} may give any rights"),
            };
            claims.signing_keys.iter().map(role).collect()
        };
        let (tenant, control) = (tenant_account(&account(), &account(), key), control_account(key));
        assert_eq!(roles(&tenant), ["worker"]);
        assert_eq!(roles(&tenant).len() + roles(&control).len(), Role::ALL.len());
        assert!(tenant.limits.conn > 0 && tenant.limits.streams == 0 && tenant.limits.disk_storage == 0);
        assert!(tenant.limits.disallow_bearer && control.limits.disallow_bearer);
    }

    /// However many connections a tenant opens, coordinators, audit services and operators find a place.
    #[test]
    fn a_tenant_leaves_room_at_the_broker_for_others() {
        let limits = include_str!("../../../nats-config/include/limits.conf");
        let total = limits.lines().find_map(|line| line.strip_prefix("max_connections: ")).expect("a limit");
        let total: i64 = total.trim().parse().expect("a number");
        assert!(TENANT_CONNECTIONS_MAX + 512 <= total, "{TENANT_CONNECTIONS_MAX} of {total}");
    }

    #[test]
    fn tenants_import_only_under_their_own_account() {
        let (tenant, control) = (account(), account());
        let claims = tenant_account(&tenant, &control, |_| SigningKey::generate(KeyKind::Account).public().clone());
        assert_eq!(claims.imports.len(), CROSSINGS.len());
        for import in &claims.imports {
            let token = import.subject.split('.').nth(usize::from(ACCOUNT_TOKEN_POSITION) - 1);
            assert_eq!(token, Some(tenant.as_str()));
            assert_eq!(import.share, import.kind == SharedKind::Service);
        }
    }
}
