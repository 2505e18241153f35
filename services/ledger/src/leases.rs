//! The fold of a lease: its grant and its end.

use schemas::contribution::{Evaluation, Fate};
use schemas::lease::{LeaseRef, UnitKind};
use schemas::{Digest, RunId, Tokens, UnixMillis, WorkerId};

use crate::error::{ApplyError, out_of_place};
use crate::state::{Accepted, Member, RefusedResult, Run, Standing, Unit};

impl Run {
    pub(crate) fn grant(
        &mut self,
        time: UnixMillis,
        name: &RunId,
        lease: &LeaseRef,
        worker: &WorkerId,
    ) -> Result<(), ApplyError> {
        let unknown = || ApplyError::WorkerUnknown {
            run: name.clone(),
            worker: worker.clone(),
        };
        let affords = self.affords(&lease.unit, worker);
        let fixed = self.is_fixed(&lease.unit);
        let member = self.member(worker).ok_or_else(unknown)?;
        if !self.may_lease(member) {
            let what = format!("{worker} does not speak for a sealed group");
            return Err(out_of_place("lease-granted", what));
        }
        let member = self.members.get_mut(worker).ok_or_else(unknown)?;
        let wrong = || out_of_place("lease-granted", format!("lease {lease} of {worker}"));
        if fixed {
            let what = format!("lease {lease} of a round whose workers are fixed");
            return Err(out_of_place("lease-granted", what));
        }
        if !affords {
            let what = format!("lease {lease} of {worker} passes the privacy budget");
            return Err(out_of_place("lease-granted", what));
        }
        let unit = self.units.get_mut(&lease.unit).ok_or_else(wrong)?;
        if unit.standing != Standing::Open
            || lease.epoch != unit.epoch.next()
            || member.lease.is_some()
        {
            return Err(wrong());
        }
        unit.epoch = lease.epoch;
        unit.standing = Standing::Held {
            worker: worker.clone(),
            since: time,
        };
        member.lease = Some(*lease);
        let tokens = self.unit_tokens(&lease.unit);
        self.tokens.issued += tokens;
        self.count_disclosure(lease, worker);
        Ok(())
    }

    /// Ends a lease without a result: its tokens are abandoned.
    pub(crate) fn end(
        &mut self,
        lease: &LeaseRef,
        worker: &WorkerId,
        tokens: Tokens,
    ) -> Result<(), ApplyError> {
        self.release("lease-ended", lease, worker)?;
        self.tokens.abandoned += tokens;
        Ok(())
    }

    /// Takes note that an operator has leases ended, each by an event of its own after this one:
    /// so many are held.
    pub(crate) fn order_ends(&self, leases: u32) -> Result<(), ApplyError> {
        let held = self.leases().count();
        match leases as usize {
            ended if (1..=held).contains(&ended) => Ok(()),
            ended => Err(out_of_place(
                "leases-ended",
                format!("{ended} leases, of {held} that are held"),
            )),
        }
    }

    /// Refuses a result: its tokens are rejected.
    pub(crate) fn reject(
        &mut self,
        worker: &WorkerId,
        refused: RefusedResult,
        tokens: Tokens,
    ) -> Result<(), ApplyError> {
        self.release("contribution-rejected", &refused.lease, worker)?;
        self.tokens.rejected += tokens;
        self.count(worker, |member| {
            member.rejected += 1;
            member.refused = Some(refused);
        });
        Ok(())
    }

    /// Takes a held lease from its holder. Its unit is open again, unless its round is sealed.
    pub(crate) fn release(
        &mut self,
        event: &'static str,
        lease: &LeaseRef,
        worker: &WorkerId,
    ) -> Result<(), ApplyError> {
        let collects = lease.unit.kind == UnitKind::Evaluate || self.collects(lease.unit.round);
        let unit = self.held(event, lease, worker)?;
        unit.standing = Standing::Open;
        unit.failed_by = Some(worker.clone());
        if !collects {
            self.units.remove(&lease.unit);
        }
        self.count(worker, |member| member.lease = None);
        Ok(())
    }

    /// The unit of a lease that `worker` holds.
    pub(crate) fn held(
        &mut self,
        event: &'static str,
        lease: &LeaseRef,
        worker: &WorkerId,
    ) -> Result<&mut Unit, ApplyError> {
        let holds = self.holder(&lease.unit) == Some((worker, lease.epoch));
        let unit = self.units.get_mut(&lease.unit).filter(|_| holds);
        unit.ok_or_else(|| ApplyError::NotHeld {
            event,
            lease: *lease,
            worker: worker.clone(),
        })
    }

    /// Notes the end of a lease in its holder's entry.
    pub(crate) fn count(&mut self, worker: &WorkerId, change: impl FnOnce(&mut Member)) {
        let member = self.members.get_mut(worker);
        change(member.expect("the holder of a lease has an entry"));
    }

    pub(crate) fn accept_evaluation(
        &mut self,
        lease: &LeaseRef,
        worker: &WorkerId,
        evaluation: &Evaluation,
        statement: Digest,
    ) -> Result<(), ApplyError> {
        if lease.unit.kind != UnitKind::Evaluate {
            return Err(out_of_place(
                "evaluation-accepted",
                format!("lease {lease}"),
            ));
        }
        self.held("evaluation-accepted", lease, worker)?;
        self.units.remove(&lease.unit);
        self.accepted.insert(
            lease.unit,
            Accepted {
                epoch: lease.epoch,
                statement,
                fate: Fate::Merged,
            },
        );
        self.evaluations
            .insert(lease.unit.round, evaluation.clone());
        self.count(worker, |member| {
            member.lease = None;
            member.accepted += 1;
        });
        self.forget_weights();
        Ok(())
    }
}
