//! Ended leases: an operator ends leases that workers hold, after keys leaked with which others may
//! have taken them. Each lease is named with its epoch, so an order that is repeated finds it over,
//! and ends none that was granted since.

use serde::{Deserialize, Serialize};

use crate::RunId;
use crate::hold::Reason;
use crate::lease::LeaseRef;
use crate::message::{V, message};

/// Most leases of one order.
pub const LEASES_ENDED_MAX: usize = 256;

/// `leases.end`: end these leases of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeasesEndRequest {
    /// Version.
    pub v: V<1>,
    /// The run.
    pub run: RunId,
    /// The leases, from 1 to [`LEASES_ENDED_MAX`].
    pub leases: Vec<LeaseRef>,
    /// The reason, which the ledger keeps.
    pub reason: Reason,
}

message!(LeasesEndRequest, "leases.end", 64 << 10);

/// The answer to a [`LeasesEndRequest`], sent when the end of the leases is in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeasesEndReply {
    /// Version.
    pub v: V<1>,
    /// The leases that this order ended, ascending.
    pub ended: Vec<LeaseRef>,
    /// The others that it named: they were over before, or nobody ever held them.
    pub over: Vec<LeaseRef>,
}

message!(LeasesEndReply, "leases.end reply", 64 << 10);
