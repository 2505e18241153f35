//! Tenants: the fold of their events, and the events that a tenant's end or account forbids.

use schemas::event::LedgerEvent;
use schemas::hold::Hold;
use schemas::tenant::Quota;
use schemas::{AccountId, PublicKey, RunId, TenantName, UnixMillis};
use serde::Serialize;

use crate::error::{ApplyError, out_of_place};
use crate::state::{Run, State};

/// A tenant beside the domain's own.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TenantRecord {
    /// The account of its workers.
    pub account: AccountId,
    /// Its quota.
    pub quota: Quota,
    /// The operator who set the quota last.
    pub operator: PublicKey,
    /// The time of its first entry.
    pub since: UnixMillis,
    /// The time of its end; none while it lasts.
    pub ended: Option<UnixMillis>,
}

impl State {
    /// The tenants beside the domain's own, by name, also those that ended.
    pub fn tenants(&self) -> impl Iterator<Item = (&TenantName, &TenantRecord)> {
        self.tenants.iter()
    }

    /// One tenant.
    pub fn tenant(&self, tenant: &TenantName) -> Option<&TenantRecord> {
        self.tenants.get(tenant)
    }

    /// True for a tenant that was ended.
    pub fn has_ended(&self, tenant: &TenantName) -> bool {
        let record = self.tenants.get(tenant);
        record.is_some_and(|record| record.ended.is_some())
    }

    /// The runs of a tenant, by name.
    pub fn runs_of<'a>(
        &'a self,
        tenant: &'a TenantName,
    ) -> impl Iterator<Item = (&'a RunId, &'a Run)> {
        self.runs()
            .filter(move |(name, _)| name.tenant().as_ref() == Some(tenant))
    }

    /// A tenant's account never changes, and belongs to no other tenant.
    pub(crate) fn set_tenant(
        &mut self,
        tenant: &TenantName,
        record: TenantRecord,
    ) -> Result<(), ApplyError> {
        let mut others = self.tenants.iter().filter(|(name, _)| *name != tenant);
        if let Some((other, _)) = others.find(|(_, other)| other.account == record.account) {
            let what = format!("{tenant} has the account of {other}");
            return Err(out_of_place("tenant-set", what));
        }
        let since = match self.tenants.get(tenant) {
            Some(before) if before.ended.is_some() || before.account != record.account => {
                let what = format!("{tenant} ended, or has account {}", before.account);
                return Err(out_of_place("tenant-set", what));
            }
            Some(before) => before.since,
            None => record.since,
        };
        self.tenants
            .insert(tenant.clone(), TenantRecord { since, ..record });
        Ok(())
    }

    /// A tenant ends once its open runs are frozen and have no members.
    pub(crate) fn end_tenant(
        &mut self,
        time: UnixMillis,
        tenant: &TenantName,
    ) -> Result<(), ApplyError> {
        let refused = |what: String| Err(out_of_place("tenant-ended", what));
        match self.tenants.get(tenant) {
            None => return refused(format!("there is no {tenant}")),
            Some(record) if record.ended.is_some() => {
                return refused(format!("{tenant} ended before"));
            }
            Some(_) => {}
        }
        let goes_on = |run: &Run| !run.is_held(Hold::Merges) || run.present() > 0;
        let mut runs = self.runs_of(tenant);
        if let Some((name, _)) = runs.find(|(_, run)| !run.is_complete() && goes_on(run)) {
            return refused(format!("run {name} goes on"));
        }
        drop(runs);
        for (name, run) in &mut self.runs {
            if name.tenant().as_ref() == Some(tenant) && !run.is_complete() {
                std::sync::Arc::make_mut(run).tenant_ended = true;
            }
        }
        let record = self.tenants.get_mut(tenant).expect("it was found above");
        record.ended = Some(time);
        Ok(())
    }

    /// The account of a new run's tenant; none for a run of the domain's own.
    pub(crate) fn account_of_new(&self, name: &RunId) -> Result<Option<AccountId>, ApplyError> {
        let Some(tenant) = name.tenant() else {
            return Ok(None);
        };
        match self.tenants.get(&tenant) {
            Some(record) if record.ended.is_none() => Ok(Some(record.account.clone())),
            Some(_) => Err(out_of_place("run-created", format!("{tenant} ended"))),
            None => Err(out_of_place("run-created", format!("there is no {tenant}"))),
        }
    }

    /// Refuses a worker of a tenant in a run of the domain's own.
    pub(crate) fn check_own(&self, name: &RunId, event: &LedgerEvent) -> Result<(), ApplyError> {
        let LedgerEvent::WorkerJoined {
            account, worker, ..
        } = event
        else {
            return Ok(());
        };
        let is_foreign = name.tenant().is_none()
            && self
                .tenants
                .values()
                .any(|tenant| tenant.account == *account);
        match is_foreign {
            true => Err(out_of_place(
                event.kind(),
                format!("{worker} of account {account}, which is a tenant's, in run {name}"),
            )),
            false => Ok(()),
        }
    }
}

impl Run {
    /// Refuses members of another account than the run's tenant has, and anything that would let a
    /// run go on whose tenant ended.
    pub(crate) fn check_tenant(&self, event: &LedgerEvent) -> Result<(), ApplyError> {
        let refused = |what: String| Err(out_of_place(event.kind(), what));
        match event {
            LedgerEvent::WorkerJoined { worker, .. } | LedgerEvent::LeaseGranted { worker, .. }
                if self.tenant_ended =>
            {
                refused(format!("the tenant of {worker} ended"))
            }
            LedgerEvent::HoldLifted { .. } if self.tenant_ended => {
                refused("the run's tenant ended".to_owned())
            }
            LedgerEvent::WorkerJoined {
                worker, account, ..
            } => match &self.account {
                Some(own) if own != account => {
                    refused(format!("{worker} of account {account}, the run's is {own}"))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
pub(crate) const fn is_zero(count: &u64) -> bool {
    *count == 0
}
