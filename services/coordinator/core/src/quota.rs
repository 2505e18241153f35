//! Quotas: how much each tenant may have. Tenants are counted apart, so one at its quota changes
//! nothing for the others. A worker that is refused for a quota asks again: the tenant may have
//! less by then, or may have more.

use std::collections::BTreeSet;

use ledger::{Run, TenantRecord};
use schemas::lease::{LeaseRef, UnitKind};
use schemas::tenant::{Quota, Used};
use schemas::{Bytes, Code, Digest, Refusal, RunId, TenantName};

use crate::coordinator::Coordinator;
use crate::run::RunRoom;
use crate::run::live::LiveRun;

/// A tenant's quota, and what its other runs have of it, for a visit to one of its runs.
#[derive(Debug)]
pub(crate) struct Share {
    tenant: TenantName,
    quota: Quota,
    others: Used,
}

impl Coordinator {
    /// What a tenant has of everything that its quota limits here.
    pub(crate) fn used(&self, tenant: &TenantName) -> Used {
        self.used_beside(tenant, None)
    }

    /// The share in which a run's room is visited; none for runs of the domain's own, and where no
    /// quota limits what happens in a run.
    pub(crate) fn share(&self, name: &RunId) -> Option<Share> {
        let tenant = name.tenant()?;
        let TenantRecord { quota, .. } = self.state.tenant(&tenant)?;
        let limits = quota.workers.is_some() || quota.objects.is_some() || quota.bytes.is_some();
        limits.then(|| Share {
            others: self.used_beside(&tenant, Some(name)),
            quota: *quota,
            tenant,
        })
    }

    fn used_beside(&self, tenant: &TenantName, beside: Option<&RunId>) -> Used {
        let runs = self.state.runs_of(tenant);
        runs.filter(|(name, _)| beside != Some(*name))
            .map(|(name, run)| used_by(run, self.live.get(name)))
            .fold(Used::default(), plus)
    }
}

impl RunRoom<'_> {
    /// The refusal for one more member; none while there is room.
    pub(crate) fn full_of_workers(&self) -> Option<Refusal> {
        let (share, used) = self.used()?;
        let most = share.quota.workers?;
        let what = || format!("{} workers, at most {most}", used.workers);
        (used.workers >= most).then(|| full(&share.tenant, &what()))
    }

    /// The refusal for one more training unit; none while there is room for its contribution. The
    /// room is looked for before the unit is trained, since nobody has use for the work afterwards.
    pub(crate) fn full_of_units(&self) -> Option<Refusal> {
        self.full_with(self.run.spec.uploads() as u64)
    }

    /// The refusal for uploads under a lease that its holder has; none while there is room. A lease
    /// counts as one contribution from its grant on, so only what goes beyond that is new.
    pub(crate) fn full_of_uploads(
        &self,
        lease: &LeaseRef,
        asked: &BTreeSet<Digest>,
    ) -> Option<Refusal> {
        let granted = &self.live.lease(&lease.unit).uploads;
        let different = granted.union(asked).count();
        match counted(&self.run, different) - counted(&self.run, granted.len()) {
            0 => None,
            more => self.full_with(more),
        }
    }

    /// The refusal for this many more uploads.
    fn full_with(&self, more: u64) -> Option<Refusal> {
        let (share, used) = self.used()?;
        let objects = used.objects.saturating_add(more);
        let bytes = used.bytes.get().saturating_add(length(&self.run, more));
        match (share.quota.objects, share.quota.bytes) {
            (Some(most), _) if objects > most => Some(full(
                &share.tenant,
                &format!("{objects} objects, at most {most}"),
            )),
            (_, Some(most)) if bytes > most.get() => Some(full(
                &share.tenant,
                &format!("{bytes} bytes, at most {most}"),
            )),
            _ => None,
        }
    }

    fn used(&self) -> Option<(&Share, Used)> {
        let share = self.share.as_ref()?;
        Some((
            share,
            plus(share.others, used_by(&self.run, Some(self.live))),
        ))
    }
}

/// What a run has. A worker that may still leave a run that is complete takes nobody's place.
fn used_by(run: &Run, live: Option<&LiveRun>) -> Used {
    let is_open = !run.is_complete();
    let training = run.leases().map(|(lease, ..)| lease.unit);
    let training = training.filter(|unit| unit.kind == UnitKind::Train);
    let under_leases = training
        .map(|unit| {
            let live = live.and_then(|live| live.leases.get(&unit));
            counted(run, live.map_or(0, |live| live.uploads.len()))
        })
        .sum::<u64>();
    let uploaded = run.uploaded.get();
    Used {
        runs: u32::from(is_open),
        workers: if is_open { run.present() } else { 0 },
        objects: run.objects.saturating_add(under_leases),
        bytes: Bytes(uploaded.saturating_add(length(run, under_leases))),
    }
}

/// The number of objects as which a lease counts under which this many uploads were granted. A
/// process that was just started knows of none of them, but of the lease.
fn counted(run: &Run, uploads: usize) -> u64 {
    uploads.max(run.spec.uploads()) as u64
}

/// Bytes as which uploads under leases count.
fn length(run: &Run, uploads: u64) -> u64 {
    uploads.saturating_mul(run.spec.upload_bytes_max().get())
}

fn plus(one: Used, other: Used) -> Used {
    Used {
        runs: one.runs.saturating_add(other.runs),
        workers: one.workers.saturating_add(other.workers),
        objects: one.objects.saturating_add(other.objects),
        bytes: Bytes(one.bytes.get().saturating_add(other.bytes.get())),
    }
}

pub(crate) fn full(tenant: &TenantName, what: &str) -> Refusal {
    Refusal::new(
        Code::TenantFull,
        format!("tenant {tenant} would have more than its quota: {what}"),
    )
}
