//! Examples about tenants.

use schemas::control::{View, ViewReply};
use schemas::event::{Event, LedgerEvent};
use schemas::hold::AtStore;
use schemas::tenant::{
    Quota, TenantEndReply, TenantEndRequest, TenantReply, TenantRequest, TenantView, Used,
};
use schemas::{AccountId, Bytes, TenantName, UnixMillis, V};

use super::{Example, event, example, public};

fn tenant() -> TenantName {
    "acme".parse().expect("a name")
}

fn account() -> AccountId {
    let text = format!("A{}", "B".repeat(55));
    text.parse().expect("the form of an account's key")
}

const QUOTA: Quota = Quota {
    connections: Some(16),
    runs: Some(2),
    workers: Some(8),
    objects: Some(1000),
    bytes: Some(Bytes(1 << 30)),
};

pub(super) fn all() -> Vec<Example> {
    vec![
        example(&TenantRequest {
            v: V,
            tenant: tenant(),
            account: account(),
            quota: QUOTA,
        }),
        example(&TenantReply {
            v: V,
            changed: true,
        }),
        example(&TenantEndRequest {
            v: V,
            tenant: tenant(),
            now: true,
            reason: "the party left".parse().expect("a reason"),
        }),
        example(&TenantEndReply {
            v: V,
            changed: true,
            runs: 1,
            workers: 2,
            leases: 2,
            store: Some(AtStore::Later),
        }),
        Example {
            name: "view of tenants",
            ..example(&ViewReply::of(View::Tenants(vec![TenantView {
                tenant: tenant(),
                account: account(),
                quota: Quota::default(),
                operator: public(),
                since: UnixMillis(1_700_000_000_000),
                ended: None,
                used: Used {
                    runs: 1,
                    workers: 2,
                    objects: 3,
                    bytes: Bytes(4),
                },
            }])))
        },
        Example {
            name: "event of a tenant",
            ..example(&event(Event::Ledger(LedgerEvent::TenantSet {
                tenant: tenant(),
                account: account(),
                quota: QUOTA,
                operator: public(),
            })))
        },
        Example {
            name: "event of the end of a tenant",
            ..example(&event(Event::Ledger(LedgerEvent::TenantEnded {
                tenant: tenant(),
                operator: public(),
                reason: "the party left".parse().expect("a reason"),
            })))
        },
    ]
}
