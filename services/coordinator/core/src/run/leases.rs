//! The lease broker: claims, grants, renewals, and the ends of leases.

use std::collections::BTreeSet;

use ledger::{Draw, Run, Standing, Unit};
use schemas::event::{LeaseEnd, LedgerEvent};
use schemas::foundry::Order;
use schemas::hold::Hold;
use schemas::lease::{
    ClaimOutcome, ClaimReply, ClaimRequest, LeaseRef, Manifest, ReleaseRequest, RenewReply,
    RenewRequest, UnitId, UnitKind,
};
use schemas::limits::CLAIM_WAIT_MAX;
use schemas::run::Policy;
use schemas::{Code, Digest, Millis, Refusal, Round, RunId, UnixMillis, V, WorkerId};

use crate::coordinator::draining;
use crate::deadline::RunTimer;
use crate::effect::{Answer, Effect, Quarantine};
use crate::input::{Peer, ReplyId};
use crate::run::RunRoom;
use crate::run::failures::stated_failure;
use crate::run::groups::check_group;
use crate::run::live::{LiveLease, LiveRun, progress_wait};
use crate::run::members::{check_member, check_session, check_steps, replaced};
use crate::run::objects::urls_stopped;
use crate::run::spare::{catches_up, may_evaluate};
use crate::turn::{Handled, Outcome, Turn};

/// Longest life of a lease, whatever its holder reports: nobody can check the reports, and long
/// training is split into units. A worker that only claims progress keeps its round from closing
/// for a day at most; for less where the pace of others is known.
pub(crate) const LEASE_AGE_MAX: Millis = Millis::from_secs(24 * 3600);
/// Longest time until the first step of a unit, where the pace of others is known: some gigabytes
/// over a line of a home.
pub(crate) const FETCH_AGE_MAX: Millis = Millis::from_secs(4 * 3600);
/// A manifest is valid from this long before it is signed: clocks of one site differ by less.
const CLOCK_SKEW_SECONDS: u64 = 5;

/// The result of looking at a lease.
enum LeaseState {
    /// Nobody holds the unit any more: the timer has outlived its lease.
    Over,
    /// Its result is being checked; the lease does not end meanwhile.
    Checked,
    /// The lease runs until this time.
    Runs(UnixMillis),
    /// The lease ends now.
    Ends(LeaseRef, WorkerId, LeaseEnd),
}

impl RunRoom<'_> {
    pub(crate) fn claim(
        &mut self,
        turn: &mut Turn<'_>,
        peer: &Peer,
        request: &ClaimRequest,
        reply: ReplyId,
    ) -> Handled {
        let member = check_member(&self.run, peer)?;
        check_session(member, request.session)?;
        let held = member.lease;
        if turn.draining {
            return Err(draining().into());
        }
        if let Some(halted) = &self.live.foundry.halted {
            // The asker is not at fault: it asks again every few seconds while the run is halted.
            return Ok(Outcome::NotNow(halted.clone()));
        }
        if let Some(stopped) = urls_stopped(&self.run) {
            return Ok(Outcome::NotNow(stopped));
        }
        if let Err(waits) = check_group(&self.run, member) {
            return Ok(Outcome::NotNow(waits));
        }
        if held.is_none() {
            // Checked here and spent when a lease is granted: a claim that waits in vain writes no
            // event, and is repeated every few seconds.
            self.live.check_fruitless(turn.now, &peer.worker)?;
            self.check_room_for_uploads(turn.now, &peer.worker)?;
        }
        let until = turn.now.after(request.wait.min(CLAIM_WAIT_MAX));
        let older = self.live.claims.hold(peer.worker.clone(), reply, until);
        self.wake(turn, until, RunTimer::Claim(peer.worker.clone()));
        if let Some(older) = older {
            turn.answer_claim(older.reply, ClaimOutcome::Nothing);
        }
        if let Some(lease) = held {
            self.repeat_grant(turn, &peer.worker, lease);
        }
        self.serve(turn);
        if held.is_none()
            && let Some(full) = self.full_of_units()
            && let Some(claim) = self.live.claims.take(&peer.worker)
        {
            turn.reply(claim.reply, Err(full));
        }
        Ok(Outcome::Later)
    }

    pub(crate) fn claim_due(&mut self, turn: &mut Turn<'_>, worker: &WorkerId) {
        // A later claim of the worker has its own timer.
        if let Some(claim) = self.live.claims.take_due(worker, turn.now) {
            turn.answer_claim(claim.reply, ClaimOutcome::Nothing);
        }
    }

    /// Grants open units to waiting claims, until one of the two runs out.
    pub(crate) fn serve(&mut self, turn: &mut Turn<'_>) {
        while let Some((worker, unit)) = self.next_grant(turn) {
            self.grant(turn, worker, unit);
        }
    }

    fn next_grant(&mut self, turn: &Turn<'_>) -> Option<(WorkerId, UnitId)> {
        if turn.draining || self.run.is_held(Hold::Urls) {
            return None;
        }
        self.live.catching_up = catches_up(&self.run, self.live.catching_up);
        let trains = self.full_of_units().is_none();
        pair(&self.run, self.live, turn.now, trains)
    }

    fn grant(&mut self, turn: &mut Turn<'_>, worker: WorkerId, unit: UnitId) {
        let found = self.run.units.get(&unit);
        let epoch = found
            .expect("a unit that is granted is in the state")
            .epoch
            .next();
        let lease = LeaseRef { unit, epoch };
        let granted = LedgerEvent::LeaseGranted {
            lease,
            worker: worker.clone(),
        };
        self.append(turn, granted);
        self.live.spend(turn.now, &worker);
        self.hold_lease(turn, unit);
        self.send_manifest(turn, &worker, lease);
    }

    /// Gives a worker that claims while it holds a lease the same lease again: the answer may have
    /// been lost, or the worker has restarted. While its result is being checked the claim waits.
    fn repeat_grant(&mut self, turn: &mut Turn<'_>, worker: &WorkerId, lease: LeaseRef) {
        let life = self.run.spec.policy.lease;
        let held = self.live.lease_mut(&lease.unit);
        if !held.is_checked() {
            held.expires_at = turn.now.after(life);
            self.send_manifest(turn, worker, lease);
        }
    }

    /// Starts to watch a lease, which expires one lease time from now.
    pub(crate) fn hold_lease(&mut self, turn: &mut Turn<'_>, unit: UnitId) {
        let expires_at = turn.now.after(self.run.spec.policy.lease);
        let lease = LiveLease::new(turn.now, expires_at);
        self.live.leases.insert(unit, lease);
        self.wake(turn, expires_at, RunTimer::Lease(unit));
    }

    /// Answers the worker's held claim with its lease. Without the data set there is no work to
    /// describe, and the claim keeps waiting.
    fn send_manifest(&mut self, turn: &mut Turn<'_>, worker: &WorkerId, lease: LeaseRef) {
        if let Some(data) = &self.live.data {
            let (name, expires_at) = (self.run.name(), self.live.lease(&lease.unit).expires_at);
            let manifest = manifest(name, &self.run, data, worker, lease, turn.now, expires_at);
            let claim = self.live.claims.take(worker);
            turn.out.push(Effect::Lease {
                reply: claim.expect("a lease is sent to a worker that waits").reply,
                manifest: Box::new(manifest),
            });
        }
    }

    /// Answers the claims of workers whose lease could not be described before.
    pub(crate) fn repeat_grants(&mut self, turn: &mut Turn<'_>) {
        if self.run.is_held(Hold::Urls) {
            return;
        }
        let (run, waiting) = (&self.run, self.live.claims.in_order());
        let held = |worker: &WorkerId| Some((worker.clone(), run.members.get(worker)?.lease?));
        let found: Vec<(WorkerId, LeaseRef)> = waiting.filter_map(held).collect();
        for (worker, lease) in found {
            self.repeat_grant(turn, &worker, lease);
        }
    }

    pub(crate) fn renew(
        &mut self,
        turn: &mut Turn<'_>,
        peer: &Peer,
        request: &RenewRequest,
    ) -> Handled {
        let life = self.run.spec.policy.lease;
        if let Err(refusal) = check_holder(&self.run, peer, &request.lease) {
            let stalled = self.live.stalled.get(&peer.worker);
            let stalled = stalled.filter(|(lease, _)| *lease == request.lease);
            return Err(match stalled {
                Some((_, why)) => why.clone().into(),
                None => refusal.into(),
            });
        }
        check_steps(&self.run, Some(&request.lease), request.steps_done)?;
        let held = self.live.lease_mut(&request.lease.unit);
        held.expires_at = turn.now.after(life);
        held.renewed(turn.now, request.steps_done, request.bytes_moved);
        Ok(Outcome::Now(Answer::Renew(RenewReply {
            v: V,
            expires_at: held.expires_at,
            remaining: life,
        })))
    }

    pub(crate) fn release(
        &mut self,
        turn: &mut Turn<'_>,
        peer: &Peer,
        request: &ReleaseRequest,
    ) -> Handled {
        // Otherwise the answer to its first release was lost.
        if !was_given_back(&self.run, peer, &request.lease) {
            check_holder(&self.run, peer, &request.lease)?;
            if self.live.lease(&request.lease.unit).is_checked() {
                let detail = format!("the result of {} is being checked", request.lease);
                return Err(Refusal::new(Code::AlreadyCounted, detail).into());
            }
            // Counted before the unit is open again, so that a worker that has not failed it is
            // preferred.
            if let Some(refusal) = stated_failure(&request.reason) {
                self.unit_failed(turn, request.lease.unit, &peer.worker, &refusal);
            }
            self.end_lease(turn, request.lease, LeaseEnd::Released);
        }
        Ok(Outcome::done())
    }

    pub(crate) fn lease_due(&mut self, turn: &mut Turn<'_>, unit: UnitId) {
        // Without URLs no byte can come, and that is not its holder's fault.
        if self.run.is_held(Hold::Urls)
            && let Some(held) = self.live.leases.get_mut(&unit)
        {
            held.progress_at = turn.now;
        }
        match self.look(turn.now, unit) {
            LeaseState::Over | LeaseState::Checked => {}
            LeaseState::Runs(until) => self.wake(turn, until, RunTimer::Lease(unit)),
            LeaseState::Ends(lease, worker, cause) => {
                if cause == LeaseEnd::Stalled {
                    let life = self.run.spec.policy.lease;
                    let refusal = match self.live.lease(&unit).stands_still(turn.now, life) {
                        true => stood_still(&lease, life),
                        false => lasted(&lease),
                    };
                    let told = (lease, refusal.clone());
                    self.live.stalled.insert(worker.clone(), told);
                    self.unit_failed(turn, unit, &worker, &refusal);
                }
                self.end_lease(turn, lease, cause);
            }
        }
    }

    fn look(&self, now: UnixMillis, unit: UnitId) -> LeaseState {
        let Some((worker, epoch)) = self.run.holder(&unit) else {
            return LeaseState::Over;
        };
        let held = self.live.lease(&unit);
        if held.is_checked() {
            return LeaseState::Checked;
        }
        let policy = &self.run.spec.policy;
        let pace = match unit.kind {
            UnitKind::Train => self.live.spans.pace_of_others(&self.run, worker),
            UnitKind::Evaluate => None,
        };
        match held.due(policy.lease, slowest(policy, pace)) {
            (due_at, _) if due_at > now => LeaseState::Runs(due_at),
            (_, cause) => LeaseState::Ends(LeaseRef { unit, epoch }, worker.clone(), cause),
        }
    }

    /// Ends a lease without a result. Its unit may be granted again at once.
    pub(crate) fn end_lease(&mut self, turn: &mut Turn<'_>, lease: LeaseRef, cause: LeaseEnd) {
        let holder = self.run.holder(&lease.unit);
        let (worker, epoch) = holder.expect("only a lease that is held ends");
        assert_eq!(epoch, lease.epoch, "only the newest lease of a unit ends");
        let worker = worker.clone();
        let ended = LedgerEvent::LeaseEnded {
            lease,
            worker: worker.clone(),
            cause,
            tokens: self.run.unit_tokens(&lease.unit),
        };
        self.append(turn, ended);
        self.free_unit(turn, lease, worker);
    }

    /// Drops everything that was kept for a lease that ended without a result, and opens its unit
    /// again, unless its round accepts nothing more.
    pub(crate) fn free_unit(&mut self, turn: &mut Turn<'_>, lease: LeaseRef, worker: WorkerId) {
        let held = self.live.end_lease(&lease.unit);
        self.sweep(turn, lease, worker, held.uploads);
        self.order(turn, Order::Unstage { lease });
        if self.run.units.contains_key(&lease.unit) {
            self.serve(turn);
            self.look_at_budget(turn);
            if self.run.is_fixed(&lease.unit) {
                // The round may have waited only for this.
                self.advance(turn);
            }
        } else {
            self.settle(turn, &lease.unit);
            // The run may have waited only for this.
            self.advance(turn);
        }
    }

    /// Deletes the uploads under a lease that is over, since nothing uses them.
    pub(crate) fn sweep(
        &self,
        turn: &mut Turn<'_>,
        lease: LeaseRef,
        worker: WorkerId,
        uploads: BTreeSet<Digest>,
    ) {
        if !uploads.is_empty() {
            let place = Quarantine::Worker {
                run: self.run.name().clone(),
                lease,
                worker,
            };
            turn.out.push(Effect::Sweep {
                place,
                objects: uploads.into_iter().collect(),
            });
        }
    }
}

impl Turn<'_> {
    pub(crate) fn answer_claim(&mut self, reply: ReplyId, outcome: ClaimOutcome) {
        self.reply(reply, Ok(Answer::Claim(ClaimReply::of(outcome))));
    }
}

/// Refuses an asker that does not hold this lease now.
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
        None => has_ended(run, lease.unit.round) || run.accepted.contains_key(&lease.unit),
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

/// True when a round accepts nothing more.
fn has_ended(run: &Run, round: Round) -> bool {
    round.get() < run.rounds.len() as u64 && !run.collects(round)
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

fn lasted(lease: &LeaseRef) -> Refusal {
    let detail = format!(
        "lease {lease} lasted longer than any may, or many times as long as units of others"
    );
    Refusal::new(Code::LeaseStalled, detail)
}

/// The longest that the training of a unit may last in a run with these rules, beside others that
/// took `pace` for such a unit; none where nobody can tell. Never less than a lease may stand
/// still.
fn slowest(policy: &Policy, pace: Option<Millis>) -> Option<Millis> {
    let pace = pace.filter(|_| policy.pace_ratio_max > 0)?;
    let longest = pace.get().saturating_mul(policy.pace_ratio_max.into());
    Some(Millis(longest).max(progress_wait(policy.lease)))
}

/// The next worker and its unit. Claims are served in the order of their arrival; the oldest unit
/// comes first, and training before evaluation. Only a worker that is not needed for the next round
/// may take an evaluation. A unit goes to a worker that failed it only if no other worker waits
/// that could take it. If nobody `trains`, only evaluations are given out.
fn pair(run: &Run, live: &LiveRun, now: UnixMillis, trains: bool) -> Option<(WorkerId, UnitId)> {
    let granting = live.foundry.restored && live.foundry.halted.is_none() && live.data.is_some();
    if !granting || live.claims.is_empty() {
        return None;
    }
    let open = run
        .units
        .iter()
        .filter(|(_, found)| found.standing == Standing::Open);
    let open: Vec<&UnitId> = open.map(|(unit, _)| unit).collect();
    if open.is_empty() {
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
    let fits = |unit: &UnitId, worker: &WorkerId| match unit.kind {
        UnitKind::Train => trains && run.affords(unit, worker) && !run.is_fixed(unit),
        UnitKind::Evaluate => may_evaluate(run, live, worker, now),
    };
    let mut second = None;
    for worker in live.claims.in_order().filter(|worker| free(worker)) {
        for unit in open.iter().copied().filter(|unit| fits(unit, worker)) {
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
    data: &Draw,
    worker: &WorkerId,
    lease: LeaseRef,
    now: UnixMillis,
    expires_at: UnixMillis,
) -> Manifest {
    let round = lease.unit.round;
    let base = run.base(&lease.unit).next();
    let base = base.expect("the weights of every unit that can be held are kept");
    let holder = run.members.get(worker);
    let holder = holder.expect("a lease is held by a member");
    let issued = now.get() / 1000;
    Manifest {
        v: V,
        // The shell signs the manifest, and writes its key here.
        iss: String::new(),
        aud: worker.clone(),
        session: holder.session,
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
