//! The workers of the run: joining, leaving, signs of life, removal.

use ledger::{KeyState, Member, Run};
use schemas::event::{Departure, LeaseEnd, LedgerEvent};
use schemas::lease::{LeaseRef, UnitKind};
use schemas::limits::WORKERS_MAX;
use schemas::member::{JoinReply, JoinRequest, LeaveRequest, Session};
use schemas::{Code, Refusal, Steps, UnixMillis, V, WorkerId};

use crate::deadline::RunTimer;
use crate::denial::cut_text;
use crate::effect::Answer;
use crate::input::{Peer, Recorded};
use crate::run::RunRoom;
use crate::run::groups::sealed_seat;
use crate::run::live::Presence;
use crate::turn::{Handled, Outcome, Turn};

/// Most entries of a run's roster, which keeps workers that left. It bounds memory against a tenant
/// that makes keys without end.
const ROSTER_MAX: usize = 4 * WORKERS_MAX;

impl RunRoom<'_> {
    /// Accepts a worker. The requirements of every run were checked before.
    pub(crate) fn join(
        &mut self,
        turn: &mut Turn<'_>,
        peer: &Peer,
        recorded: Recorded,
        request: JoinRequest,
    ) -> Handled {
        let run = &self.run;
        let before = run.member(&peer.worker);
        let renewed = before.is_some_and(|member| is_renewed(member, &request));
        let replaced = before.is_some_and(|member| member.session != request.session);
        if before.is_none()
            && let Some(full) = self.full_of_workers()
        {
            return Ok(Outcome::NotNow(full));
        }
        if !renewed {
            self.live.check_fruitless(turn.now, &peer.worker)?;
        }
        let answer = JoinReply {
            v: V,
            spec: run.spec.clone(),
            spec_digest: run.spec_digest,
            now: turn.now,
            heartbeat: turn.settings.heartbeat,
        };
        if replaced {
            let detail = format!(
                "by session {} on {}, release {}",
                request.session, request.device, request.release
            );
            self.depart(turn, &peer.worker, Departure::Replaced, &detail);
        }
        for gone in &recorded.before {
            if self.run.member(gone).is_some() {
                let detail = format!("by {}, the same worker with another key", peer.worker);
                self.depart(turn, gone, Departure::Replaced, &detail);
            }
        }
        if !renewed {
            let joined = joined(&self.run, peer, recorded, request);
            self.append(turn, joined);
            // A join also pays for its end: the worker or the coordinator may end a membership
            // once.
            self.live.spend(turn.now, &peer.worker);
            self.sums_may_come(turn);
        }
        self.watch(turn, &peer.worker);
        self.judge_failures(turn);
        self.advance(turn);
        Ok(Outcome::Now(Answer::Join(Box::new(answer))))
    }

    pub(crate) fn leave(
        &mut self,
        turn: &mut Turn<'_>,
        peer: &Peer,
        request: &LeaveRequest,
    ) -> Handled {
        if !has_left(&self.run, peer, request.session) {
            check_session(check_member(&self.run, peer)?, request.session)?;
            self.depart(turn, &peer.worker, Departure::Left, &request.reason);
        }
        Ok(Outcome::done())
    }

    /// Forgets what was kept for a worker that is no member any more, and answers its waiting
    /// requests at once.
    pub(crate) fn forget(&mut self, turn: &mut Turn<'_>, worker: &WorkerId, refusal: &Refusal) {
        self.live.presence.remove(worker);
        let claim = self.live.claims.take(worker).map(|claim| claim.reply);
        let read = self.live.reads.remove(worker).map(|read| read.reply);
        for reply in claim.into_iter().chain(read) {
            turn.reply(reply, Err(refusal.clone()));
        }
    }

    /// Ends a membership, and with it that of the worker's group, if that was sealed.
    pub(crate) fn depart(
        &mut self,
        turn: &mut Turn<'_>,
        worker: &WorkerId,
        cause: Departure,
        detail: &str,
    ) {
        let group = sealed_seat(&self.run, worker);
        self.depart_alone(turn, worker, cause, detail);
        if let Some(seat) = group {
            self.evict_group(turn, &seat, worker);
        }
    }

    /// Ends one membership; the worker's lease goes back unless its result is being checked.
    pub(crate) fn depart_alone(
        &mut self,
        turn: &mut Turn<'_>,
        worker: &WorkerId,
        cause: Departure,
        detail: &str,
    ) {
        self.append(turn, left(worker, cause, detail));
        let member = self.run.members.get(worker);
        let lease = member.expect("only a member leaves").lease;
        let refusal = match cause {
            Departure::Replaced => {
                Refusal::new(Code::Replaced, format!("{worker} was replaced {detail}"))
            }
            Departure::Left
            | Departure::Silent
            | Departure::Removed
            | Departure::GroupEnded
            | Departure::TenantEnded => not_joined(worker),
        };
        self.forget(turn, worker, &refusal);
        // This worker may have been the last one that had not failed a unit.
        self.judge_failures(turn);
        if let Some(lease) = lease.filter(|lease| !self.live.lease(&lease.unit).is_checked()) {
            self.end_lease(turn, lease, LeaseEnd::Orphaned);
        }
        self.look_at_budget(turn);
    }

    /// Takes note of a sign of life of a member.
    pub(crate) fn heard(&mut self, now: UnixMillis, worker: &WorkerId) {
        if let Some(presence) = self.live.presence.get_mut(worker) {
            presence.heard_at = now;
        }
    }

    /// Starts to watch a member for silence.
    pub(crate) fn watch(&mut self, turn: &mut Turn<'_>, worker: &WorkerId) {
        let silent = Presence {
            heard_at: turn.now,
            heartbeat: None,
        };
        let presence = self.live.presence.entry(worker.clone());
        presence.or_insert(silent).heard_at = turn.now;
        let silent_at = turn.now.after(self.run.spec.policy.silence_max);
        self.wake(turn, silent_at, RunTimer::Silence(worker.clone()));
    }

    pub(crate) fn silence_due(&mut self, turn: &mut Turn<'_>, worker: &WorkerId) {
        let silence_max = self.run.spec.policy.silence_max;
        let waits = self.live.claims.get(worker).is_some();
        // The timer may have outlived its membership.
        if let Some(presence) = self.live.presence.get_mut(worker) {
            // A worker that waits for an answer from here has a reason to be silent.
            if waits {
                presence.heard_at = turn.now;
            }
            let silent_at = presence.heard_at.after(silence_max);
            if silent_at > turn.now {
                self.wake(turn, silent_at, RunTimer::Silence(worker.clone()));
            } else {
                let detail = format!("not heard for {silence_max} ms");
                self.depart(turn, worker, Departure::Silent, &detail);
            }
        }
    }
}

/// Refuses a join for reasons that depend on the run: another trainer, no place, another key than
/// before.
pub(crate) fn check_entry(run: &Run, peer: &Peer, request: &JoinRequest) -> Result<(), Refusal> {
    let wanted = run.spec.model.trainer;
    if !request.trainers.contains(&wanted) {
        let detail = format!("the run needs {wanted:?}");
        return Err(Refusal::new(Code::TrainerMissing, detail));
    }
    let before = run.members.get(&peer.worker);
    check_place(run, before, peer)?;
    check_key(before, peer, request)
}

/// Refuses an asker that is no member of the run, or that joined from another account.
pub(crate) fn check_member<'a>(run: &'a Run, peer: &Peer) -> Result<&'a Member, Refusal> {
    let member = run
        .member(&peer.worker)
        .ok_or_else(|| not_joined(&peer.worker))?;
    check_account(member, peer)?;
    Ok(member)
}

fn check_account(member: &Member, peer: &Peer) -> Result<(), Refusal> {
    if member.account == peer.account {
        return Ok(());
    }
    let detail = format!(
        "{} joined from account {}, asks from {}",
        peer.worker, member.account, peer.account
    );
    Err(Refusal::new(Code::IdentityMismatch, detail))
}

/// True if this process was the worker and has said goodbye: the answer to its first goodbye was
/// lost.
pub(crate) fn has_left(run: &Run, peer: &Peer, session: Session) -> bool {
    run.members.get(&peer.worker).is_some_and(|member| {
        !member.present && member.account == peer.account && member.session == session
    })
}

/// The event for the end of a membership.
pub(crate) fn left(worker: &WorkerId, cause: Departure, detail: &str) -> LedgerEvent {
    LedgerEvent::WorkerLeft {
        worker: worker.clone(),
        cause,
        detail: cut_text(detail),
    }
}

/// The event for a join.
fn joined(run: &Run, peer: &Peer, recorded: Recorded, request: JoinRequest) -> LedgerEvent {
    let Recorded { seat, before } = recorded;
    // The ledger follows the keys from there on.
    let known = |key: &&WorkerId| run.members.contains_key(*key) || run.is_quarantined(key);
    let before = before.iter().find(known).or(before.first()).cloned();
    let mut trainers = request.trainers;
    trainers.sort_unstable();
    trainers.dedup();
    LedgerEvent::WorkerJoined {
        worker: peer.worker.clone(),
        account: peer.account.clone(),
        audit_key: request.audit_key,
        trainers,
        device: request.device,
        release: request.release,
        posture: request.posture,
        session: request.session,
        seat,
        before,
    }
}

fn not_joined(worker: &WorkerId) -> Refusal {
    Refusal::new(Code::NotJoined, format!("{worker} is no member"))
}

/// Refuses a process that is not the one that joined last as this worker.
pub(crate) fn check_session(member: &Member, session: Session) -> Result<(), Refusal> {
    if member.session == session {
        Ok(())
    } else {
        Err(replaced(member))
    }
}

/// The refusal for an older process of a worker.
pub(crate) fn replaced(member: &Member) -> Refusal {
    let Member {
        device,
        release,
        session,
        ..
    } = member;
    let detail = format!(
        "by a process on {device}, release {release}, which joined later as session {session}"
    );
    Refusal::new(Code::Replaced, detail)
}

/// Refuses more steps than the worker's unit has. An evaluation counts its batches.
pub(crate) fn check_steps(
    run: &Run,
    lease: Option<&LeaseRef>,
    steps: Steps,
) -> Result<(), Refusal> {
    let schedule = &run.spec.schedule;
    let (train, evaluate) = (
        schedule.inner_steps,
        Steps(schedule.evaluation_sequences.into()),
    );
    let most = match lease.map(|lease| lease.unit.kind) {
        Some(UnitKind::Train) => train,
        Some(UnitKind::Evaluate) => evaluate,
        None => train.max(evaluate),
    };
    if steps <= most {
        return Ok(());
    }
    Err(Refusal::new(
        Code::NumberImpossible,
        format!("{steps} steps are done, the unit has {most}"),
    ))
}

/// A worker keeps the audit key of its first join: a thief of its credentials cannot sign results
/// in its name.
fn check_key(before: Option<&Member>, peer: &Peer, request: &JoinRequest) -> Result<(), Refusal> {
    match before {
        Some(member) if member.audit_key != request.audit_key => {
            let detail = format!(
                "{} joined before with audit key {}",
                peer.worker, member.audit_key
            );
            Err(Refusal::new(Code::IdentityMismatch, detail))
        }
        // One key must not serve two purposes: a signature for one could be used for the other.
        _ if request.audit_key.as_str() == peer.worker.as_str() => Err(Refusal::new(
            Code::AuditKeyRefused,
            format!("{} connects with its audit key", peer.worker),
        )),
        _ => Ok(()),
    }
}

/// Refuses a worker that was shut out with another of its keys, or goes on with a newer one:
/// another key is no way around that.
pub(crate) fn check_keys(run: &Run, worker: &WorkerId, before: &[WorkerId]) -> Result<(), Refusal> {
    let earlier = || before.iter().flat_map(|key| run.keys(key));
    if earlier().any(|key| key == worker) {
        let detail = format!("{worker} had a key that had {worker} before, by the records");
        return Err(Refusal::new(Code::RegistrationInvalid, detail));
    }
    // It takes the place of one that is a member.
    let replaces = |key: &WorkerId| before.contains(key) && run.member(key).is_some();
    let spared = |key: &WorkerId| key == worker || replaces(key);
    let later = || {
        let mut keys = std::iter::once(worker).chain(earlier());
        keys.find_map(|key| run.successor_in_the_way(key, spared))
    };
    let in_the_way = run.in_the_way_of(earlier().filter(|key| !replaces(key)));
    let Some((key, state)) = in_the_way.or_else(later) else {
        return Ok(());
    };
    let code = match state {
        KeyState::Quarantined => Code::WorkerQuarantined,
        KeyState::Removed => Code::WorkerRemoved,
        KeyState::Present => Code::Replaced,
    };
    Err(Refusal::new(
        code,
        format!("{worker} has another key, {key}"),
    ))
}

/// Refuses an asker for which there is no place.
fn check_place(run: &Run, before: Option<&Member>, peer: &Peer) -> Result<(), Refusal> {
    match before {
        Some(member) if member.removed => {
            let detail = format!(
                "{} was removed after {} refused results",
                peer.worker, member.rejected
            );
            Err(Refusal::new(Code::WorkerRemoved, detail))
        }
        Some(member) if member.present => check_account(member, peer),
        Some(_) if (run.present() as usize) < WORKERS_MAX => Ok(()),
        None if (run.present() as usize) < WORKERS_MAX && run.members.len() < ROSTER_MAX => Ok(()),
        None if run.members.len() >= ROSTER_MAX => Err(Refusal::new(
            Code::NotJoined,
            format!("the run has had its most workers, {ROSTER_MAX}"),
        )),
        _ => Err(Refusal::new(
            Code::NotJoined,
            format!("the run has its most workers, {WORKERS_MAX}"),
        )),
    }
}

/// True when the join of a member changes nothing.
fn is_renewed(member: &Member, request: &JoinRequest) -> bool {
    let same_trainers = member
        .trainers
        .iter()
        .all(|kind| request.trainers.contains(kind))
        && request
            .trainers
            .iter()
            .all(|kind| member.trainers.contains(kind));
    member.present
        && member.session == request.session
        && same_trainers
        && member.audit_key == request.audit_key
        && member.device == request.device
        && member.release == request.release
        && member.posture == request.posture
}
