//! Examples about revoked credentials.

use schemas::event::{Event, LedgerEvent};
use schemas::revocation::{RevokeReply, RevokeRequest, RevokedKey};
use schemas::role::Role;
use schemas::{UnixMillis, V};

use super::{Example, event, example, public};

const UNTIL: UnixMillis = UnixMillis(1_700_000_300_000);

pub(super) fn all() -> Vec<Example> {
    vec![
        example(&RevokeRequest {
            v: V,
            keys: vec![
                RevokedKey {
                    key: public(),
                    role: Some(Role::Worker),
                    name: Some("worker-1".to_owned()),
                    until: UNTIL,
                    reason: "its laptop was stolen".parse().ok(),
                },
                RevokedKey {
                    key: public(),
                    role: None,
                    name: None,
                    until: UNTIL,
                    reason: None,
                },
            ],
        }),
        example(&RevokeReply { v: V, recorded: 1 }),
        Example {
            name: "event of a revocation",
            ..example(&event(Event::Ledger(LedgerEvent::CredentialRevoked {
                key: public(),
                role: Some(Role::Worker),
                name: Some("worker-1".to_owned()),
                until: UNTIL,
                reason: "its laptop was stolen".parse().ok(),
                operator: public(),
            })))
        },
        Example {
            name: "event of a key that was issued anew",
            ..example(&event(Event::Ledger(LedgerEvent::CredentialReissued {
                key: public(),
                issued: UnixMillis(1_700_000_301_000),
            })))
        },
    ]
}
