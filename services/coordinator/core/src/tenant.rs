//! Tenants: which worker may ask about which run, how much each tenant may have, and its end.

use ledger::{Run, TenantRecord};
use schemas::blob::PutRequest;
use schemas::event::LedgerEvent;
use schemas::tenant::{
    TenantEndReply, TenantEndRequest, TenantReply, TenantRequest, TenantView, Used,
};
use schemas::{Bytes, Code, PublicKey, Refusal, RunId, TenantName, V, WorkerId};

use crate::control::ControlOutcome;
use crate::coordinator::Coordinator;
use crate::effect::Answer;
use crate::input::{Peer, WorkerRequest};
use crate::turn::Outcome;

/// Most tenants that a domain ever has, also those that ended: as many as a trust bundle names.
const TENANTS_MAX: usize = 64;

impl Coordinator {
    /// Refuses a worker that asks about a run of another tenant than its own. Both accounts come
    /// from places that no worker writes: the broker puts one into the subject, the ledger has the
    /// other.
    pub(crate) fn check_tenant(&self, peer: &Peer) -> Result<(), Refusal> {
        let Some(run) = self.state.run(&peer.run) else {
            return Ok(());
        };
        let own = run.account.as_ref().unwrap_or(&self.settings.home);
        if peer.account != *own {
            let detail = format!(
                "run {} is of another tenant than account {}",
                peer.run, peer.account
            );
            return Err(Refusal::new(Code::IdentityMismatch, detail));
        }
        match peer.run.tenant() {
            Some(tenant) if run.tenant_ended => Err(ended(&tenant)),
            _ => Ok(()),
        }
    }

    /// Refuses a request that would take more than the tenant's quota. Tenants are counted apart,
    /// so one at its quota changes nothing for the others.
    pub(crate) fn check_quota(&self, peer: &Peer, request: &WorkerRequest) -> Result<(), Refusal> {
        let Some((tenant, record)) = self.tenant_of(&peer.run) else {
            return Ok(());
        };
        match request {
            WorkerRequest::Join(_) if !self.is_member(peer) => self.check_workers(&tenant, record),
            WorkerRequest::Put(request) => self.check_uploads(peer, &tenant, record, request),
            _ => Ok(()),
        }
    }

    fn is_member(&self, peer: &Peer) -> bool {
        let run = self.state.run(&peer.run);
        run.is_some_and(|run| run.member(&peer.worker).is_some())
    }

    fn check_workers(&self, tenant: &TenantName, record: &TenantRecord) -> Result<(), Refusal> {
        let Some(most) = record.quota.workers else {
            return Ok(());
        };
        let members: u32 = self
            .state
            .runs_of(tenant)
            .map(|(_, run)| run.present())
            .sum();
        match members < most {
            true => Ok(()),
            false => Err(full(tenant, &format!("{members} workers, at most {most}"))),
        }
    }

    fn check_uploads(
        &self,
        peer: &Peer,
        tenant: &TenantName,
        record: &TenantRecord,
        request: &PutRequest,
    ) -> Result<(), Refusal> {
        let quota = record.quota;
        if quota.objects.is_none() && quota.bytes.is_none() {
            return Ok(());
        }
        let live = self.live.get(&peer.run);
        let granted = live.map(|live| &live.lease(&request.lease.unit).uploads);
        let new = request.objects.iter();
        let new = new.filter(|one| !granted.is_some_and(|known| known.contains(&one.digest)));
        let used = self.used(tenant);
        let (mut objects, mut bytes) = (used.objects, used.bytes);
        for object in new {
            objects = objects.saturating_add(1);
            bytes = Bytes(bytes.get().saturating_add(object.bytes.get()));
        }
        match (quota.objects, quota.bytes) {
            (Some(most), _) if objects > most => {
                Err(full(tenant, &format!("{objects} objects, at most {most}")))
            }
            (_, Some(most)) if bytes > most => {
                Err(full(tenant, &format!("{bytes} bytes, at most {most}")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a new run whose tenant is unknown, ended, or has as many runs as it may have.
    pub(crate) fn check_new_run(&self, name: &RunId) -> Result<(), Refusal> {
        let Some(tenant) = name.tenant() else {
            return Ok(());
        };
        let record = self.state.tenant(&tenant).ok_or_else(|| unknown(&tenant))?;
        if record.ended.is_some() {
            return Err(ended(&tenant));
        }
        let open = self.used(&tenant).runs;
        match record.quota.runs {
            Some(most) if open >= most => {
                Err(full(&tenant, &format!("{open} open runs, at most {most}")))
            }
            _ => Ok(()),
        }
    }

    /// Makes a tenant known, or gives it another quota. A request that changes nothing is answered
    /// and not written.
    pub(crate) fn set_tenant(
        &mut self,
        operator: PublicKey,
        request: TenantRequest,
    ) -> ControlOutcome {
        let changed = self.changes_tenant(&request)?;
        if changed {
            self.check_orders(&operator)?;
            self.spend_order(&operator);
            let event = LedgerEvent::TenantSet {
                tenant: request.tenant,
                account: request.account,
                quota: request.quota,
                operator,
            };
            self.append(None, event);
        }
        Ok(Outcome::Now(Answer::Tenant(TenantReply { v: V, changed })))
    }

    /// True if the request would change the tenant.
    fn changes_tenant(&self, request: &TenantRequest) -> Result<bool, Refusal> {
        let TenantRequest {
            tenant, account, ..
        } = request;
        let exists = |detail: String| Err(Refusal::new(Code::TenantExists, detail));
        if let Some(record) = self.state.tenant(tenant) {
            if record.ended.is_some() {
                return Err(ended(tenant));
            }
            if record.account != *account {
                return exists(format!("tenant {tenant} has account {}", record.account));
            }
            return Ok(record.quota != request.quota);
        }
        let mut others = self.state.tenants();
        if *account == self.settings.home || others.any(|(_, other)| other.account == *account) {
            return exists(format!(
                "account {account} is of another tenant than {tenant}"
            ));
        }
        if self.state.tenants().count() >= TENANTS_MAX {
            return exists(format!(
                "the domain has had its most tenants, {TENANTS_MAX}"
            ));
        }
        Ok(true)
    }

    /// Ends a tenant: freezes its open runs, ends the memberships in them, and shuts it out.
    pub(crate) fn end_tenant(
        &mut self,
        operator: PublicKey,
        request: TenantEndRequest,
    ) -> ControlOutcome {
        let TenantEndRequest {
            tenant,
            now,
            reason,
            ..
        } = request;
        let record = self.state.tenant(&tenant);
        let changed = record.ok_or_else(|| unknown(&tenant))?.ended.is_none();
        let runs = self.state.runs_of(&tenant);
        let open: Vec<RunId> = runs
            .filter(|(_, run)| !run.is_complete())
            .map(|(name, _)| name.clone())
            .collect();
        let mut reply = TenantEndReply {
            v: V,
            changed,
            runs: open.len() as u32,
            workers: 0,
            leases: 0,
        };
        if !changed {
            return Ok(Outcome::Now(Answer::TenantEnd(reply)));
        }
        if !now && let Some(first) = open.first() {
            let detail = format!("{} runs are not complete, first {first}", open.len());
            return Err(Refusal::new(Code::TenantBusy, detail));
        }
        self.check_orders(&operator)?;
        self.spend_order(&operator);
        for name in &open {
            let (by, why) = (operator.clone(), reason.clone());
            let ended = self.enter(name, |room, turn| room.end_tenant(turn, by, why));
            let (workers, leases) = ended.expect("a run that is not complete has a room");
            reply.workers += workers;
            reply.leases += leases;
        }
        let event = LedgerEvent::TenantEnded {
            tenant,
            operator,
            reason,
        };
        self.append(None, event);
        Ok(Outcome::Now(Answer::TenantEnd(reply)))
    }

    pub(crate) fn tenant_views(&self) -> Vec<TenantView> {
        let view = |(tenant, record): (&TenantName, &TenantRecord)| TenantView {
            tenant: tenant.clone(),
            account: record.account.clone(),
            quota: record.quota,
            operator: record.operator.clone(),
            since: record.since,
            ended: record.ended,
            used: self.used(tenant),
        };
        self.state.tenants().map(view).collect()
    }

    /// What a tenant has of everything that its quota limits here.
    fn used(&self, tenant: &TenantName) -> Used {
        let mut used = Used::default();
        for (name, run) in self.state.runs_of(tenant) {
            used.runs += u32::from(!run.is_complete());
            used.workers += run.present();
            let granted = self.granted(name, run);
            used.objects = used.objects.saturating_add(run.objects + granted);
            let under_leases = granted.saturating_mul(run.spec.upload_bytes_max().get());
            let bytes = run.uploaded.get().saturating_add(under_leases);
            used.bytes = Bytes(used.bytes.get().saturating_add(bytes));
        }
        used
    }

    /// Objects that were granted under the leases of a run that are open.
    fn granted(&self, name: &RunId, run: &Run) -> u64 {
        let Some(live) = self.live.get(name) else {
            return 0;
        };
        let uploads = run
            .leases()
            .map(|(lease, _, _)| live.lease(&lease.unit).uploads.len());
        uploads.sum::<usize>() as u64
    }

    fn tenant_of(&self, name: &RunId) -> Option<(TenantName, &TenantRecord)> {
        let tenant = name.tenant()?;
        let record = self.state.tenant(&tenant)?;
        Some((tenant, record))
    }
}

impl crate::run::RunRoom<'_> {
    /// Freezes the run for good, and ends all memberships; returns how many, and the leases that
    /// ended with them.
    fn end_tenant(
        &mut self,
        turn: &mut crate::turn::Turn<'_>,
        operator: PublicKey,
        reason: schemas::hold::Reason,
    ) -> (u32, u32) {
        use schemas::event::Departure;
        use schemas::hold::Hold;
        if !self.run.is_held(Hold::Merges) {
            let placed = LedgerEvent::HoldPlaced {
                hold: Hold::Merges,
                operator,
                reason,
            };
            self.append(turn, placed);
        }
        let before = self.run.leases().count();
        let members = self.run.members.iter();
        let present: Vec<WorkerId> = members
            .filter(|(_, member)| member.present)
            .map(|(worker, _)| worker.clone())
            .collect();
        for worker in &present {
            self.depart_alone(turn, worker, Departure::TenantEnded, "its tenant was ended");
        }
        let ended = before.saturating_sub(self.run.leases().count());
        (present.len() as u32, ended as u32)
    }
}

fn unknown(tenant: &TenantName) -> Refusal {
    Refusal::new(Code::TenantUnknown, format!("tenant {tenant}"))
}

pub(crate) fn ended(tenant: &TenantName) -> Refusal {
    Refusal::new(Code::TenantEnded, format!("tenant {tenant}"))
}

fn full(tenant: &TenantName, what: &str) -> Refusal {
    Refusal::new(
        Code::TenantFull,
        format!("tenant {tenant} would have more than its quota: {what}"),
    )
}
