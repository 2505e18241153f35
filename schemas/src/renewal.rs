//! Renewal of credentials: a process asks for a new token before its own ends. The subject of the
//! question names the asker, and the broker holds the asker to it, so the question itself carries
//! no identity. The key that connected proves that the asker has it; nothing else is proved.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::limits::WORKER_MESSAGE_BYTES_MAX;
use crate::message::{V, message};
use crate::role::Role;
use crate::{AccountId, PublicKey, RunId, Seat, UnixMillis};

/// A question for a new token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewalRequest {
    /// Version.
    pub v: V<1>,
    /// The end of the token that the asker has, for the log.
    pub ends: UnixMillis,
    /// The keys with which a worker wants to go on; none to go on with those that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<Box<Successor>>,
}

/// The keys with which a worker wants to go on. The key that it has is the one that it asks with,
/// and its key for events and both new ones sign the whole question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Successor {
    /// The key to connect with.
    pub worker: PublicKey,
    /// The key that will sign its events.
    pub audit_key: PublicKey,
    /// The time of the signatures.
    pub at: UnixMillis,
    /// The signature of the key that signs its events now.
    pub by_present: ByteArray<64>,
    /// The signature of `worker`.
    pub by_worker: ByteArray<64>,
    /// The signature of `audit_key`.
    pub by_audit_key: ByteArray<64>,
}

/// A new token: for the same key, or the one that is to succeed it, account, role, name and run as
/// before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewalReply {
    /// Version.
    pub v: V<1>,
    /// The token. It opens nothing without the key that it names.
    pub token: String,
    /// Its end.
    pub ends: UnixMillis,
    /// In a domain with mutual TLS, a certificate for the same key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

message!(RenewalRequest, "renewal-request", WORKER_MESSAGE_BYTES_MAX);
message!(RenewalReply, "renewal-reply", WORKER_MESSAGE_BYTES_MAX);

/// The public record of an issued credential. The registrar renews what has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// Version.
    pub v: V<1>,
    /// The name under which it was issued.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// The run that it is for; only workers have one.
    pub run: Option<RunId>,
    /// The account to which it belongs.
    pub account: AccountId,
    /// The key of its holder.
    pub public: PublicKey,
    /// The time at which it was issued last by hand.
    pub issued: UnixMillis,
    /// The end of the token that was issued then. Renewed tokens end later.
    pub ends: UnixMillis,
    /// The time since which it is not renewed any more, if it was blocked.
    pub blocked: Option<UnixMillis>,
    /// The key that signs its holder's events; none for roles that sign none, and in records of
    /// earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_key: Option<PublicKey>,
    /// Its holder's seat in a group of workers; none if it works alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seat: Option<Seat>,
    /// The key that its holder had before, if the key was replaced while the holder stayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<PublicKey>,
    /// The time until which its holder may ask for another key, by an operator's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes_until: Option<UnixMillis>,
}

/// The worker of the run that stands in the way of a seat, with its own seat: it has the same one,
/// or counts the group's seats otherwise. Blocked workers stand in nobody's way, and neither does
/// `own`.
pub fn in_the_way(
    issued: &[Registration],
    run: &RunId,
    seat: &Seat,
    own: Option<&PublicKey>,
) -> Option<(String, Seat)> {
    let others = issued.iter().filter(|holder| {
        holder.run.as_ref() == Some(run) && holder.blocked.is_none() && own != Some(&holder.public)
    });
    let held = others.filter_map(|holder| Some((&holder.name, holder.seat.as_ref()?)));
    let mut of_the_group = held.filter(|(_, held)| held.group() == seat.group());
    let clash = of_the_group.find(|(_, held)| held.rank() == seat.rank() || held.of() != seat.of());
    clash.map(|(name, held)| (name.clone(), held.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rank;

    fn key(letter: char) -> String {
        format!("U{}", letter.to_string().repeat(55))
    }

    fn seat(group: &str, rank: u32, of: u32) -> Seat {
        let group = group.parse().expect("a name");
        Seat::new(group, Rank(rank), of).expect("a seat")
    }

    fn held(letter: char, run: &str, seat: Option<Seat>) -> Registration {
        Registration {
            v: V,
            name: format!("worker-{letter}"),
            role: Role::Worker,
            run: Some(run.parse().expect("a name")),
            account: key('A').replacen('U', "A", 1).parse().expect("an account"),
            public: key(letter).parse().expect("a key"),
            issued: UnixMillis(1),
            ends: UnixMillis(2),
            blocked: None,
            audit_key: None,
            seat,
            before: None,
            changes_until: None,
        }
    }

    #[test]
    fn fg_03_a_seat_has_one_holder_and_a_group_one_size() {
        let run: RunId = "demo".parse().expect("a name");
        let mut issued = vec![
            held('A', "demo", None),
            held('B', "other", Some(seat("left", 0, 2))),
            held('C', "demo", Some(seat("right", 0, 3))),
            held('D', "demo", Some(seat("left", 1, 2))),
        ];
        let way = |issued: &[Registration], seat: &Seat, own: Option<&PublicKey>| {
            in_the_way(issued, &run, seat, own).map(|(name, _)| name)
        };
        assert_eq!(way(&issued, &seat("left", 0, 2), None), None);
        let taken = Some("worker-D".to_owned());
        assert_eq!(way(&issued, &seat("left", 1, 2), None), taken);
        assert_eq!(way(&issued, &seat("left", 0, 3), None), taken, "its size");
        let own = issued[3].public.clone();
        assert_eq!(way(&issued, &seat("left", 1, 2), Some(&own)), None);
        issued[3].blocked = Some(UnixMillis(5));
        assert_eq!(way(&issued, &seat("left", 1, 2), None), None);
    }
}
