//! Tenants: which worker may ask about which run, and the beginning and the end of a tenant.

use ledger::TenantRecord;
use schemas::event::LedgerEvent;
use schemas::limits::FURTHER_TENANTS_MAX;
use schemas::tenant::{TenantEndReply, TenantEndRequest, TenantReply, TenantRequest, TenantView};
use schemas::{Code, PublicKey, Refusal, RunId, TenantName, V, WorkerId};

use crate::control::ControlOutcome;
use crate::coordinator::Coordinator;
use crate::effect::{Answer, Stopping};
use crate::input::{Peer, ReplyId};
use crate::quota::full;
use crate::turn::Outcome;

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
            Some(tenant) if self.state.has_ended(&tenant) => Err(ended(&tenant)),
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
        if self.state.tenants().count() >= FURTHER_TENANTS_MAX {
            return exists(format!(
                "the domain has had its most tenants beside its own, {FURTHER_TENANTS_MAX}"
            ));
        }
        Ok(true)
    }

    /// Ends a tenant: freezes its open runs, ends the memberships in them, and shuts it out.
    pub(crate) fn end_tenant(
        &mut self,
        operator: PublicKey,
        request: TenantEndRequest,
        id: ReplyId,
    ) -> ControlOutcome {
        let TenantEndRequest {
            tenant,
            now,
            reason,
            ..
        } = request;
        let record = self.state.tenant(&tenant);
        let changed = record.ok_or_else(|| unknown(&tenant))?.ended.is_none();
        let runs = || self.state.runs_of(&tenant);
        let all = runs().filter_map(|(name, _)| self.urls_of(name)).collect();
        let open: Vec<RunId> = runs()
            .filter(|(_, run)| !run.is_complete())
            .map(|(name, _)| name.clone())
            .collect();
        let mut reply = TenantEndReply {
            v: V,
            changed,
            runs: open.len() as u32,
            workers: 0,
            leases: 0,
            store: None,
        };
        if !changed {
            // The store may not have been told.
            return Ok(self.stop_urls(id, all, Stopping::TenantEnd(reply)));
        }
        if !now && let Some(first) = open.first() {
            let detail = format!("{} runs are not complete, first {first}", open.len());
            return Err(Refusal::new(Code::TenantBusy, detail));
        }
        self.check_orders(&operator)?;
        self.spend_order(&operator);
        for name in &open {
            let (by, why) = (operator.clone(), reason.clone());
            let refusal = ended(&tenant);
            let ended = self.enter(name, |room, turn| room.end_tenant(turn, by, why, &refusal));
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
        Ok(self.stop_urls(id, all, Stopping::TenantEnd(reply)))
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
}

impl crate::run::RunRoom<'_> {
    /// Freezes the run for good, and ends all memberships; returns how many, and the leases that
    /// ended with them.
    fn end_tenant(
        &mut self,
        turn: &mut crate::turn::Turn<'_>,
        operator: PublicKey,
        reason: schemas::hold::Reason,
        refusal: &Refusal,
    ) -> (u32, u32) {
        use schemas::event::Departure;
        use schemas::hold::Hold;
        // Otherwise the units of those who depart first would be granted to those who still wait.
        for reply in self.live.claims.drain() {
            turn.reply(reply, Err(refusal.clone()));
        }
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
