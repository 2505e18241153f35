//! The commands about tenants.

use std::str::FromStr;

use clap::{Args, Subcommand};
use schemas::hold::Reason;
use schemas::tenant::Quota;
use schemas::{Bytes, TenantName};

use super::Declarations;

#[derive(Debug, Subcommand)]
pub(crate) enum Tenant {
    /// Make a tenant, while everything runs: an account for its workers at the broker, a stream for
    /// their events, and an entry with the coordinator. Its runs bear its name, as in `NAME_demo`;
    /// `auth issue worker W --run NAME_demo` and `worker invite` give its workers credentials. A
    /// command that broke off is completed by the same command.
    New {
        /// Name of the tenant: 1 to 15 of a-z, 0-9 and -.
        name: TenantName,
        #[command(flatten)]
        quota: QuotaArgs,
        #[command(flatten)]
        declarations: Declarations,
    },
    /// List the tenants beside the domain's own, with what they use of their quotas.
    Ls,
    /// Show one tenant in full.
    Show {
        /// Name of the tenant.
        name: TenantName,
    },
    /// Change a tenant's quota. Limits that are not named stay as they are. There is none for
    /// streams: a tenant's account has no JetStream, so nobody in it can make one.
    Quota {
        /// Name of the tenant.
        name: TenantName,
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// Shut a tenant out for good: its credentials are void, its connections are cut, and nothing
    /// is issued or renewed for it. Without `--now` the command is refused while the tenant has
    /// runs that are not complete. It can be repeated. Its runs and their record stay readable.
    End {
        /// Name of the tenant.
        name: TenantName,
        /// End it also while it has runs that are not complete: they are frozen for good, and their
        /// workers are members no more.
        #[arg(long)]
        now: bool,
        /// Reason for the order, one line, which the audit keeps.
        #[arg(long, value_name = "TEXT")]
        reason: Reason,
    },
}

/// A tenant, also the domain's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AnyTenant(Option<TenantName>);

pub(super) fn parse_any(text: &str) -> Result<AnyTenant, schemas::IdError> {
    match text == schemas::id::OWN_TENANT {
        true => Ok(AnyTenant(None)),
        false => text.parse().map(|name| AnyTenant(Some(name))),
    }
}

impl AnyTenant {
    /// True for a run of the tenant.
    pub(crate) fn has(&self, run: &schemas::RunId) -> bool {
        run.tenant() == self.0
    }
}

#[derive(Debug, Default, Args)]
pub(crate) struct QuotaArgs {
    /// Most connections to a broker at the same time, or `none`.
    #[arg(long, value_name = "N")]
    max_connections: Option<Limit>,
    /// Most runs that are not complete, or `none`.
    #[arg(long, value_name = "N")]
    max_runs: Option<Limit>,
    /// Most workers that are members, in all runs together, or `none`.
    #[arg(long, value_name = "N")]
    max_workers: Option<Limit>,
    /// Most objects of contributions, in all runs together, or `none`.
    #[arg(long, value_name = "N")]
    max_objects: Option<Limit>,
    /// Most bytes of contributions, in all runs together, or `none`.
    #[arg(long, value_name = "SIZE")]
    max_bytes: Option<Limit>,
}

/// A number, or none where nothing is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit(Option<u64>);

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let number = text.parse::<u64>().ok();
        let size = || text.parse::<runtime::ConfigBytes>().map(|size| size.0);
        let limit = number.or_else(|| size().ok());
        limit
            .map(|limit| Self(Some(limit)))
            .ok_or_else(|| format!("{text:?} is no number, no size such as 64MiB, and not `none`"))
    }
}

impl QuotaArgs {
    /// The quota, with the limits of `before` where none is named.
    pub(crate) fn over(&self, before: Quota) -> Quota {
        let count = |named: Option<Limit>, before: Option<u32>| match named {
            None => before,
            Some(Limit(limit)) => limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)),
        };
        let large = |named: Option<Limit>, before: Option<u64>| named.map_or(before, |one| one.0);
        Quota {
            connections: count(self.max_connections, before.connections),
            runs: count(self.max_runs, before.runs),
            workers: count(self.max_workers, before.workers),
            objects: large(self.max_objects, before.objects),
            bytes: large(self.max_bytes, before.bytes.map(Bytes::get)).map(Bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domains_own_tenant_has_the_runs_without_one() {
        let has = |tenant: &str, run: &str| {
            let any = parse_any(tenant).expect("a tenant");
            any.has(&run.parse().expect("a run"))
        };
        assert!(has("default", "demo") && !has("default", "acme_demo"));
        assert!(has("acme", "acme_demo") && !has("acme", "demo"));
        assert!(!has("acme", "other_demo"));
        assert!(parse_any("a_b").is_err());
    }

    #[test]
    fn limits_are_numbers_sizes_or_none_and_the_others_stay() {
        let limit = |text: &str| text.parse::<Limit>().ok();
        assert_eq!(limit("7"), Some(Limit(Some(7))));
        assert_eq!(limit("1KiB"), Some(Limit(Some(1024))));
        assert_eq!(limit("none"), Some(Limit(None)));
        assert_eq!(limit("-1"), None);
        assert_eq!(limit("many"), None);
        let before = Quota {
            connections: Some(1),
            runs: Some(2),
            workers: Some(3),
            objects: Some(4),
            bytes: Some(Bytes(5)),
        };
        assert_eq!(QuotaArgs::default().over(before), before);
        let args = QuotaArgs {
            max_connections: limit("10"),
            max_runs: limit("none"),
            max_workers: limit("99999999999"),
            max_objects: limit("40"),
            max_bytes: limit("1KiB"),
        };
        let expected = Quota {
            connections: Some(10),
            runs: None,
            workers: Some(u32::MAX),
            objects: Some(40),
            bytes: Some(Bytes(1024)),
        };
        assert_eq!(args.over(before), expected);
    }
}
