//! Revocation of credentials, as the ledger records it: whose key an operator made void, when, and
//! why. The brokers enforce it; the coordinator takes nothing of such a key either, so a node of a
//! cluster that has not heard of it yet serves its holder nothing but refusals.

use serde::{Deserialize, Serialize};

use crate::hold::Reason;
use crate::message::{V, message};
use crate::role::Role;
use crate::{Millis, PublicKey, UnixMillis};

/// Most keys that one order names.
pub const REVOKED_NAMED_MAX: usize = 64;
/// Most revoked keys that the coordinator refuses at a time; one more replaces the key whose tokens
/// have been void for longest, which every broker knows by then.
pub const REVOKED_KEYS_MAX: usize = 16_384;
/// Longest time from now up to which an order may make tokens void: clocks differ by minutes, and
/// an order that is repeated after the key was issued anew reaches some minutes farther.
pub const REVOKED_AHEAD_MAX: Millis = Millis::from_secs(24 * 3600);
/// Longest name of a holder.
pub const HOLDER_BYTES_MAX: usize = 128;

/// A key that an operator has made void.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokedKey {
    /// The key.
    pub key: PublicKey,
    /// The role of its holder; none if the list of issued credentials does not have the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The name of its holder, from the same list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Tokens that were issued up to this second are void.
    pub until: UnixMillis,
    /// The reason, if the operator gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

impl RevokedKey {
    /// True if a token that was issued at this time is void. Tokens count whole seconds.
    pub const fn covers(until: UnixMillis, issued: UnixMillis) -> bool {
        issued.get() / 1000 <= until.get() / 1000
    }
}

/// `credential.revoke`: record that these keys are void, and take nothing of them any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// Version.
    pub v: V<1>,
    /// The keys, at most [`REVOKED_NAMED_MAX`].
    pub keys: Vec<RevokedKey>,
}

message!(RevokeRequest, "credential.revoke", 64 << 10);

/// The answer to a [`RevokeRequest`], sent when the ledger has all of its keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeReply {
    /// Version.
    pub v: V<1>,
    /// The keys that this request recorded; the ledger had the others with this time or a later
    /// one.
    pub recorded: u32,
}

message!(RevokeReply, "credential.revoke reply", 64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Message as _;
    use crate::limits::REASON_BYTES_MAX;

    #[test]
    fn the_longest_order_fits() {
        let key = RevokedKey {
            key: format!("U{}", "A".repeat(55)).parse().expect("a key"),
            role: Some(Role::LedgerProvisioner),
            name: Some("n".repeat(HOLDER_BYTES_MAX)),
            until: UnixMillis(u64::MAX),
            reason: "r".repeat(REASON_BYTES_MAX).parse().ok(),
        };
        assert!(key.reason.is_some());
        let request = RevokeRequest {
            v: V,
            keys: vec![key; REVOKED_NAMED_MAX],
        };
        assert!(request.encode().len() <= RevokeRequest::BYTES_MAX);
        let reply = RevokeReply {
            v: V,
            recorded: u32::MAX,
        };
        assert!(reply.encode().len() <= RevokeReply::BYTES_MAX);
    }

    #[test]
    fn tl_07_a_token_of_the_same_second_is_void_and_one_of_the_next_is_not() {
        let until = UnixMillis(5_000);
        for (issued, void) in [(4_999, true), (5_000, true), (5_999, true), (6_000, false)] {
            assert_eq!(
                RevokedKey::covers(until, UnixMillis(issued)),
                void,
                "{issued}"
            );
        }
    }
}
