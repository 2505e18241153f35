//! Tenants: parties that share a domain's broker, store and coordinator, each with an account of
//! its own for its workers, and with runs that bear its name.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::codec::CodecKind;
use crate::hold::{AtStore, Reason};
use crate::message::{V, message};
use crate::run::RunSpec;
use crate::{AccountId, Bytes, Chunks, Listed, PublicKey, TenantName, UnixMillis};

/// The most that a tenant may have of each thing; none where only the limits of the whole domain
/// count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Connections to a broker at the same time. The broker itself enforces this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Runs that are not complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<u32>,
    /// Workers that are members, in all runs together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    /// Objects of accepted contributions and of uploads under open leases, in all runs together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<u64>,
    /// Bytes of the same objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Bytes>,
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = [
            ("connections", self.connections.map(u64::from)),
            ("runs", self.runs.map(u64::from)),
            ("workers", self.workers.map(u64::from)),
            ("objects", self.objects),
            ("bytes", self.bytes.map(Bytes::get)),
        ];
        let set = limits
            .into_iter()
            .filter_map(|(what, most)| Some((what, most?)));
        let mut separator = "at most ";
        for (what, most) in set {
            write!(f, "{separator}{most} {what}")?;
            separator = ", ";
        }
        match separator {
            ", " => Ok(()),
            _ => f.write_str("no quota"),
        }
    }
}

/// `tenant.set`: let a tenant have runs, or give it another quota.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantRequest {
    /// Version.
    pub v: V<1>,
    /// The tenant.
    pub tenant: TenantName,
    /// The account of its workers; it never changes.
    pub account: AccountId,
    /// Its quota with all limits, also those that stay.
    pub quota: Quota,
}

message!(TenantRequest, "tenant.set", 4096);

/// The answer to a [`TenantRequest`], sent when the ledger has the tenant with this quota.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantReply {
    /// Version.
    pub v: V<1>,
    /// True if this request changed something.
    pub changed: bool,
}

message!(TenantReply, "tenant.set reply", 4096);

/// `tenant.end`: shut a tenant out for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantEndRequest {
    /// Version.
    pub v: V<1>,
    /// The tenant.
    pub tenant: TenantName,
    /// True to end it while it has runs that are not complete: they are frozen, and their workers
    /// are members no more.
    pub now: bool,
    /// The reason, which the ledger keeps.
    pub reason: Reason,
}

message!(TenantEndRequest, "tenant.end", 4096);

/// The answer to a [`TenantEndRequest`], sent when the end is in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantEndReply {
    /// Version.
    pub v: V<1>,
    /// True if this request ended it; false if it had ended before.
    pub changed: bool,
    /// Runs that were not complete; all of them are frozen for good.
    pub runs: u32,
    /// Members that this request shut out.
    pub workers: u32,
    /// Leases that ended with them.
    pub leases: u32,
    /// What the store does about the URLs of its runs. None from an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<AtStore>,
}

message!(TenantEndReply, "tenant.end reply", 4096);

/// A tenant, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantView {
    /// Its name.
    pub tenant: TenantName,
    /// The account of its workers.
    pub account: AccountId,
    /// Its quota.
    pub quota: Quota,
    /// The operator who made it, or set its quota last.
    pub operator: PublicKey,
    /// The time of its first entry.
    pub since: UnixMillis,
    /// The time of its end; none while it lasts.
    pub ended: Option<UnixMillis>,
    /// What it has now.
    pub used: Used,
}

/// What a tenant has of the things that its [`Quota`] limits in the coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    /// Runs that are not complete.
    pub runs: u32,
    /// Members of runs that are not complete.
    pub workers: u32,
    /// Objects of accepted contributions and of uploads under open leases. A training lease counts
    /// as one contribution from its grant on.
    pub objects: u64,
    /// Bytes of the same objects; each upload under a lease counts as a whole chunk.
    pub bytes: Bytes,
}

impl RunSpec {
    /// The longest object that a worker uploads for a contribution.
    pub fn upload_bytes_max(&self) -> Bytes {
        let encoded = |elements| self.upload.kind.encoded_bytes(elements);
        Bytes(match &self.model.initial {
            Chunks::Named(chunks) => {
                let lengths = chunks
                    .iter()
                    .map(|chunk| encoded(CodecKind::Fp32.elements_in(chunk.bytes.get())));
                lengths.max().unwrap_or(0)
            }
            Chunks::Listed(listed) => {
                let list = Listed::length(listed.chunks as usize);
                encoded(self.chunk_elements()).max(list.get())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_shown_by_what_it_limits() {
        assert_eq!(Quota::default().to_string(), "no quota");
        let quota = Quota {
            workers: Some(3),
            bytes: Some(Bytes(7)),
            ..Quota::default()
        };
        assert_eq!(quota.to_string(), "at most 3 workers, 7 bytes");
    }
}
