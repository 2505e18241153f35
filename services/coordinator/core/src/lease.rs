//! The lease broker: claims, grants, renewals, and the ends of leases.

use std::collections::BTreeSet;

use ledger::{Run, Standing, Unit};
use schemas::event::{LeaseEnd, LedgerEvent};
use schemas::lease::{
    ClaimOutcome, ClaimReply, ClaimRequest, Done, LeaseRef, Manifest, ReleaseRequest, RenewReply,
    RenewRequest, UnitId, UnitKind,
};
use schemas::limits::CLAIM_WAIT_MAX;
use schemas::{Code, Digest, Millis, Refusal, RunId, UnixMillis, V, WorkerId};

use crate::coordinator::{Coordinator, draining, run_unknown};
use crate::deadline::Timer;
use crate::draw::Data;
use crate::effect::{Answer, Effect, Quarantine};
use crate::failure::stated_failure;
use crate::input::{Peer, ReplyId};
use crate::live::{LiveLease, LiveRun, progress_wait};
use crate::membership::{check_member, check_session, check_steps, replaced};
use crate::spare::{catches_up, may_evaluate};

/// A manifest is valid from this long before it is signed: clocks of one site differ by less.
const CLOCK_SKEW_SECONDS: u64 = 5;

impl Coordinator {
    pub(crate) fn claim(
        &mut self,
        peer: &Peer,
        request: &ClaimRequest,
        reply: ReplyId,
    ) -> Result<(), Refusal> {
        let run = self
            .state
            .run(&peer.run)
            .ok_or_else(|| run_unknown(&peer.run))?;
        if run.is_complete() {
            self.answer_claim(reply, ClaimOutcome::Complete);
            return Ok(());
        }
        let member = check_member(run, peer)?;
        check_session(member, request.session)?;
        let held = member.lease;
        if self.drain.is_some() {
            return Err(draining());
        }
        let now = self.now;
        let until = now.after(request.wait.min(CLAIM_WAIT_MAX));
        let (_, live) = self.open_run(&peer.run)?;
        if let Some(halted) = live.executor.halted.clone() {
            // Not the asker's fault, so not a denial to record: it asks again every few seconds for
            // as long as that lasts.
            self.reply(reply, Err(halted));
            return Ok(());
        }
        if held.is_none() {
            // Spent when a lease is granted: a claim that waits in vain writes nothing, and is said
            // again every few seconds.
            live.check_fruitless(now, &peer.worker)?;
        }
        let older = live.claims.hold(peer.worker.clone(), reply, until);
        self.timers
            .set(until, Timer::Claim(peer.run.clone(), peer.worker.clone()));
        if let Some(older) = older {
            self.answer_claim(older.reply, ClaimOutcome::Nothing);
        }
        if let Some(lease) = held {
            self.repeat_grant(&peer.run, &peer.worker, lease);
        }
        self.serve(&peer.run);
        Ok(())
    }

    pub(crate) fn claim_due(&mut self, name: &RunId, worker: &WorkerId) {
        let now = self.now;
        let Some(live) = self.live.get_mut(name) else {
            return;
        };
        // A later claim has a timer of its own.
        let due = live
            .claims
            .get(worker)
            .is_some_and(|claim| claim.until <= now);
        if let Some(claim) = due.then(|| live.claims.take(worker)).flatten() {
            self.answer_claim(claim.reply, ClaimOutcome::Nothing);
        }
    }

    pub(crate) fn answer_claim(&mut self, reply: ReplyId, outcome: ClaimOutcome) {
        self.reply(reply, Ok(Answer::Claim(ClaimReply { v: V, outcome })));
    }

    /// Grants ready units to waiting claims, as far as both go.
    pub(crate) fn serve(&mut self, name: &RunId) {
        while self.drain.is_none() {
            let now = self.now;
            let Ok((run, live)) = self.open_run(name) else {
                return;
            };
            live.catching_up = catches_up(run, live.catching_up);
            let Some((worker, unit)) = pair(run, live, now) else {
                return;
            };
            self.grant(name, worker, unit);
        }
    }

    fn grant(&mut self, name: &RunId, worker: WorkerId, unit: UnitId) {
        let epoch = self
            .state
            .run(name)
            .and_then(|run| run.units.get(&unit))
            .map(|found| found.epoch.next());
        let lease = LeaseRef {
            unit,
            epoch: epoch.expect("a ready unit is in the state"),
        };
        self.append(
            Some(name),
            LedgerEvent::LeaseGranted {
                lease,
                worker: worker.clone(),
            },
        );
        self.spend(name, &worker);
        if let Some(live) = self.live.get_mut(name) {
            live.ready.remove(&unit);
        }
        self.hold_lease(name, unit);
        self.send_manifest(name, &worker, lease);
    }

    /// Gives a worker that claims while it holds a lease the same lease again: the answer may have
    /// been lost, or the worker began anew. While its result is being checked the claim waits for
    /// what comes after.
    fn repeat_grant(&mut self, name: &RunId, worker: &WorkerId, lease: LeaseRef) {
        let now = self.now;
        let Ok((run, live)) = self.open_run(name) else {
            return;
        };
        let life = run.spec.policy.lease;
        let Some(held) = live
            .leases
            .get_mut(&lease.unit)
            .filter(|held| held.screening.is_none())
        else {
            return;
        };
        held.expires_at = now.after(life);
        self.send_manifest(name, worker, lease);
    }

    /// Begins to watch a lease for expiry, one lease time from now.
    pub(crate) fn hold_lease(&mut self, name: &RunId, unit: UnitId) {
        let now = self.now;
        let Ok((run, live)) = self.open_run(name) else {
            return;
        };
        let expires_at = now.after(run.spec.policy.lease);
        live.leases.insert(unit, LiveLease::new(now, expires_at));
        self.timers
            .set(expires_at, Timer::Lease(name.clone(), unit));
    }

    /// Answers the worker's held claim with its lease. Without the data there is no work to
    /// describe: the claim waits on.
    fn send_manifest(&mut self, name: &RunId, worker: &WorkerId, lease: LeaseRef) {
        let now = self.now;
        let Ok((run, live)) = self.open_run(name) else {
            return;
        };
        let (Some(data), Some(held)) = (&live.data, live.leases.get(&lease.unit)) else {
            return;
        };
        let manifest = manifest(name, run, data, worker, lease, now, held.expires_at);
        if let Some(claim) = live.claims.take(worker) {
            self.out.push(Effect::Lease {
                reply: claim.reply,
                manifest: Box::new(manifest),
            });
        }
    }

    /// Answers the claims of workers whose lease could not be described before.
    pub(crate) fn repeat_grants(&mut self, name: &RunId) {
        let Ok((run, live)) = self.open_run(name) else {
            return;
        };
        let waiting = live.claims.in_order();
        let held = |worker: &WorkerId| Some((worker.clone(), run.members.get(worker)?.lease?));
        let found: Vec<(WorkerId, LeaseRef)> = waiting.filter_map(held).collect();
        for (worker, lease) in found {
            self.repeat_grant(name, &worker, lease);
        }
    }

    pub(crate) fn renew(
        &mut self,
        peer: &Peer,
        request: &RenewRequest,
        reply: ReplyId,
    ) -> Result<(), Refusal> {
        let now = self.now;
        let (run, live) = self.open_run(&peer.run)?;
        if let Err(refusal) = check_holder(run, peer, &request.lease) {
            let stalled = live.stalled.get(&peer.worker) == Some(&request.lease);
            return Err(if stalled {
                stood_still(&request.lease, run.spec.policy.lease)
            } else {
                refusal
            });
        }
        check_steps(run, Some(&request.lease), request.steps_done)?;
        let life = run.spec.policy.lease;
        let held = live
            .leases
            .get_mut(&request.lease.unit)
            .expect("every lease that is held is watched");
        held.expires_at = now.after(life);
        held.renewed(now, request.steps_done, request.bytes_moved);
        let answer = RenewReply {
            v: V,
            expires_at: held.expires_at,
            remaining: life,
        };
        self.reply(reply, Ok(Answer::Renew(answer)));
        Ok(())
    }

    pub(crate) fn release(
        &mut self,
        peer: &Peer,
        request: &ReleaseRequest,
        reply: ReplyId,
    ) -> Result<(), Refusal> {
        let (run, live) = self.open_run(&peer.run)?;
        if was_given_back(run, peer, &request.lease) {
            // The answer to its first release was lost.
            self.reply(reply, Ok(Answer::Done(Done { v: V })));
            return Ok(());
        }
        check_holder(run, peer, &request.lease)?;
        if live
            .leases
            .get(&request.lease.unit)
            .is_some_and(|held| held.screening.is_some())
        {
            let detail = format!("the result of {} is being checked", request.lease);
            return Err(Refusal::new(Code::AlreadyCounted, detail));
        }
        self.reply(reply, Ok(Answer::Done(Done { v: V })));
        // Before the unit is open again: it goes to one that has not failed it, if there is any.
        if let Some(refusal) = stated_failure(&request.reason) {
            self.unit_failed(&peer.run, request.lease.unit, &peer.worker, &refusal);
        }
        self.end_lease(&peer.run, request.lease, LeaseEnd::Released);
        Ok(())
    }

    pub(crate) fn lease_due(&mut self, name: &RunId, unit: UnitId) {
        let now = self.now;
        let Ok((run, live)) = self.open_run(name) else {
            return;
        };
        let (Some(held), Some((_, epoch))) = (live.leases.get(&unit), run.holder(&unit)) else {
            return;
        };
        if held.screening.is_some() {
            return;
        }
        let life = run.spec.policy.lease;
        let (due_at, cause) = held.due(life);
        let lease = LeaseRef { unit, epoch };
        if due_at > now {
            self.timers.set(due_at, Timer::Lease(name.clone(), unit));
            return;
        }
        if cause == LeaseEnd::Stalled
            && let Some(worker) = run.holder(&unit).map(|(worker, _)| worker.clone())
        {
            live.stalled.insert(worker.clone(), lease);
            self.unit_failed(name, unit, &worker, &stood_still(&lease, life));
        }
        self.end_lease(name, lease, cause);
    }

    /// Ends a lease without a result; its unit may be granted again at once.
    pub(crate) fn end_lease(&mut self, name: &RunId, lease: LeaseRef, cause: LeaseEnd) {
        let Some(run) = self.state.run(name) else {
            return;
        };
        let tokens = run.unit_tokens(&lease.unit);
        let holder = run
            .holder(&lease.unit)
            .filter(|(_, epoch)| *epoch == lease.epoch);
        let Some(worker) = holder.map(|(worker, _)| worker.clone()) else {
            return;
        };
        self.append(
            Some(name),
            LedgerEvent::LeaseEnded {
                lease,
                worker: worker.clone(),
                cause,
                tokens,
            },
        );
        self.free_unit(name, lease, worker);
    }

    /// Drops what was kept for a lease that ended without a result, and lets its unit be granted
    /// again.
    pub(crate) fn free_unit(&mut self, name: &RunId, lease: LeaseRef, worker: WorkerId) {
        let held = self
            .live
            .get_mut(name)
            .and_then(|live| live.leases.remove(&lease.unit));
        self.sweep(
            name,
            lease,
            worker,
            held.map(|held| held.uploads).unwrap_or_default(),
        );
        self.out.push(Effect::Unstage {
            run: name.clone(),
            lease,
        });
        self.make_ready(name, lease.unit);
    }
}

impl Coordinator {
    /// What was uploaded under a lease that is over is of no use any more.
    pub(crate) fn sweep(
        &mut self,
        name: &RunId,
        lease: LeaseRef,
        worker: WorkerId,
        uploads: BTreeSet<Digest>,
    ) {
        if !uploads.is_empty() {
            let place = Quarantine::Worker {
                run: name.clone(),
                lease,
                worker,
            };
            self.out.push(Effect::Sweep {
                place,
                objects: uploads.into_iter().collect(),
            });
        }
    }
}

/// Whether the asker holds this lease now.
pub(crate) fn check_holder(run: &Run, peer: &Peer, lease: &LeaseRef) -> Result<(), Refusal> {
    let member = check_member(run, peer)?;
    let holder = run.holder(&lease.unit);
    if holder == Some((&peer.worker, lease.epoch)) {
        return Ok(());
    }
    if member.fenced == Some(*lease) {
        return Err(replaced(member));
    }
    let granted = match run.units.get(&lease.unit) {
        Some(unit) => lease.epoch <= unit.epoch,
        None => lease.unit.round < run.rounds_closed() || run.accepted.contains_key(&lease.unit),
    };
    let foreign = holder.is_some_and(|(_, epoch)| epoch == lease.epoch);
    if granted && !foreign {
        Err(Refusal::new(
            Code::LeaseLost,
            format!("lease {lease} is over"),
        ))
    } else {
        Err(Refusal::new(
            Code::LeaseUnknown,
            format!("{} holds no lease {lease}", peer.worker),
        ))
    }
}

/// True when the asker held this lease last, gave it back, and nobody holds the unit now.
fn was_given_back(run: &Run, peer: &Peer, lease: &LeaseRef) -> bool {
    let own =
        |unit: &Unit| unit.epoch == lease.epoch && unit.failed_by.as_ref() == Some(&peer.worker);
    let open = run
        .units
        .get(&lease.unit)
        .filter(|unit| unit.standing == Standing::Open);
    check_member(run, peer).is_ok() && open.is_some_and(own)
}

fn stood_still(lease: &LeaseRef, life: Millis) -> Refusal {
    let seconds = progress_wait(life).get() / 1000;
    Refusal::new(
        Code::LeaseStalled,
        format!("no step and no byte of lease {lease} for {seconds} s"),
    )
}

/// Who gets which unit next: claims first come first served, the oldest unit first and training
/// before evaluation, which only who is not needed for the next round may take. A unit goes to a
/// worker that failed it only if no other waits that could take it.
fn pair(run: &Run, live: &LiveRun, now: UnixMillis) -> Option<(WorkerId, UnitId)> {
    let granting = live.executor.restored && live.executor.halted.is_none() && live.data.is_some();
    if !granting || live.ready.is_empty() || live.claims.is_empty() {
        return None;
    }
    let free = |worker: &WorkerId| {
        run.member(worker)
            .is_some_and(|member| member.lease.is_none())
    };
    let failed = |unit: &UnitId, worker: &WorkerId| {
        let last = run
            .units
            .get(unit)
            .is_some_and(|found| found.failed_by.as_ref() == Some(worker));
        last || live
            .failures
            .get(unit)
            .is_some_and(|failures| failures.is_by(worker))
    };
    let fits = |unit: &UnitId, worker: &WorkerId| {
        unit.kind == UnitKind::Train || may_evaluate(run, live, worker, now)
    };
    let open = |unit: &UnitId| {
        run.units
            .get(unit)
            .is_some_and(|found| found.standing == Standing::Open)
    };
    let mut second = None;
    for worker in live.claims.in_order().filter(|worker| free(worker)) {
        for unit in live
            .ready
            .iter()
            .filter(|unit| open(unit) && fits(unit, worker))
        {
            if !failed(unit, worker) {
                return Some((worker.clone(), *unit));
            }
            second.get_or_insert_with(|| (worker.clone(), *unit));
        }
    }
    second
}

fn manifest(
    name: &RunId,
    run: &Run,
    data: &Data,
    worker: &WorkerId,
    lease: LeaseRef,
    now: UnixMillis,
    expires_at: UnixMillis,
) -> Manifest {
    let round = lease.unit.round;
    let base = run
        .weights
        .get(&round)
        .expect("the weights of every unit that can be held are kept");
    let issued = now.get() / 1000;
    Manifest {
        v: V,
        // The shell signs, and writes the key it signs with here.
        iss: String::new(),
        aud: worker.clone(),
        nbf: issued.saturating_sub(CLOCK_SKEW_SECONDS),
        exp: expires_at.after(Millis(999)).get() / 1000,
        iat: issued,
        jti: format!("{name}/{}/{}/{}", round, lease.unit.token(), lease.epoch),
        run: name.clone(),
        spec: run.spec_digest,
        lease,
        expires_at,
        base: base.clone(),
        work: data.work(&run.spec, &lease.unit, run.steps_before(round)),
    }
}
