//! Who works for a run: joining, leaving, being heard, being removed.

use ledger::{Member, Run};
use schemas::event::{Departure, LeaseEnd, LedgerEvent};
use schemas::lease::{Done, LeaseRef, UnitKind};
use schemas::limits::{SPEED_MAX, TEXT_BYTES_MAX, TRAFFIC_MAX, WORKERS_MAX};
use schemas::member::{JoinReply, JoinRequest, Layer, LeaveRequest, Posture, Session};
use schemas::telemetry::Heartbeat;
use schemas::text::is_plain;
use schemas::{Bytes, Code, Millis, Refusal, RunId, Steps, UnixMillis, V, WorkerId};

use crate::coordinator::{Coordinator, draining, run_unknown};
use crate::deadline::Timer;
use crate::denial::cut_text;
use crate::effect::Answer;
use crate::input::{Peer, ReplyId};
use crate::live::{Presence, Traffic};
use crate::submit::check_loss;

/// Longest description of a device or release; both are shown in tables and repeated in every view.
const LABEL_BYTES_MAX: usize = 128;
/// Most trainers that a join names: twice as many as there are.
const TRAINERS_MAX: usize = 6;
/// How much longer than a run a process may have counted what it does: clocks differ by less.
const COUNTING_MARGIN: Millis = Millis::from_secs(60);
/// Most entries of a run's roster, which keeps those who left: bounds memory against a tenant that
/// makes keys without end.
const ROSTER_MAX: usize = 4 * WORKERS_MAX;

impl Coordinator {
    pub(crate) fn join(
        &mut self,
        peer: &Peer,
        request: JoinRequest,
        reply: ReplyId,
    ) -> Result<(), Refusal> {
        if self.drain.is_some() {
            return Err(draining());
        }
        check_form(&request)?;
        check_posture(&request.posture, &self.settings.posture)?;
        let (run, _) = self.open_run(&peer.run)?;
        if !request.trainers.contains(&run.spec.model.trainer) {
            let wanted = run.spec.model.trainer;
            return Err(Refusal::new(
                Code::TrainerMissing,
                format!("the run needs {wanted:?}"),
            ));
        }
        let before = run.members.get(&peer.worker);
        check_place(run, before, peer)?;
        check_key(before, peer, &request)?;
        self.check_key_is_free(peer, &request)?;
        let now = self.now;
        let (run, live) = self.open_run(&peer.run)?;
        let before = run.member(&peer.worker);
        let renewed = before.is_some_and(|member| is_renewed(member, &request));
        let replaced = before.is_some_and(|member| member.session != request.session);
        if !renewed {
            live.check_fruitless(now, &peer.worker)?;
        }
        let answer = JoinReply {
            v: V,
            spec: run.spec.clone(),
            spec_digest: run.spec_digest,
            now,
            heartbeat: self.settings.heartbeat,
        };
        if replaced {
            let detail = format!(
                "by session {} on {}, release {}",
                request.session, request.device, request.release
            );
            self.depart(&peer.run, &peer.worker, Departure::Replaced, &detail);
        }
        if !renewed {
            let mut trainers = request.trainers;
            trainers.sort_unstable();
            trainers.dedup();
            let joined = LedgerEvent::WorkerJoined {
                worker: peer.worker.clone(),
                account: peer.account.clone(),
                audit_key: request.audit_key,
                trainers,
                device: request.device,
                release: request.release,
                posture: request.posture,
                session: request.session,
            };
            self.append(Some(&peer.run), joined);
            // A join pays for its own end too: the worker or the coordinator may end the
            // membership, at most once per join.
            self.spend(&peer.run, &peer.worker);
        }
        self.watch(&peer.run, &peer.worker);
        self.judge_failures(&peer.run);
        self.reply(reply, Ok(Answer::Join(Box::new(answer))));
        self.advance(&peer.run);
        Ok(())
    }

    pub(crate) fn leave(
        &mut self,
        peer: &Peer,
        request: &LeaveRequest,
        reply: ReplyId,
    ) -> Result<(), Refusal> {
        let run = self
            .state
            .run(&peer.run)
            .ok_or_else(|| run_unknown(&peer.run))?;
        if run
            .members
            .get(&peer.worker)
            .is_some_and(|member| has_left(member, peer, request.session))
        {
            // The answer to its first goodbye was lost.
            self.reply(reply, Ok(Answer::Done(Done { v: V })));
            return Ok(());
        }
        let member = check_member(run, peer)?;
        check_session(member, request.session)?;
        self.depart(&peer.run, &peer.worker, Departure::Left, &request.reason);
        self.reply(reply, Ok(Answer::Done(Done { v: V })));
        Ok(())
    }

    /// An audit key stands for one emitter: two that sign with it would fork its chain, and what
    /// the one says would be shown as said by the other.
    fn check_key_is_free(&self, peer: &Peer, request: &JoinRequest) -> Result<(), Refusal> {
        let key = &request.audit_key;
        if *key == self.settings.audit_key {
            return Err(Refusal::new(
                Code::AuditKeyRefused,
                format!("{key} signs the ledger"),
            ));
        }
        let known = self
            .state
            .run(&peer.run)
            .is_some_and(|run| run.members.contains_key(&peer.worker));
        let mut members = self.state.runs().flat_map(|(_, run)| &run.members);
        match members
            .find(|(worker, member)| !known && member.audit_key == *key && **worker != peer.worker)
        {
            Some((worker, _)) => Err(Refusal::new(
                Code::AuditKeyRefused,
                format!("{key} is the audit key of {worker}"),
            )),
            None => Ok(()),
        }
    }

    /// Ends a membership; the worker's lease goes back unless its result is being checked.
    pub(crate) fn depart(
        &mut self,
        name: &RunId,
        worker: &WorkerId,
        cause: Departure,
        detail: &str,
    ) {
        let left = LedgerEvent::WorkerLeft {
            worker: worker.clone(),
            cause,
            detail: cut_text(detail),
        };
        self.append(Some(name), left);
        let lease = self
            .state
            .run(name)
            .and_then(|run| run.members.get(worker))
            .and_then(|member| member.lease);
        let Some(live) = self.live.get_mut(name) else {
            return;
        };
        live.presence.remove(worker);
        let claim = live.claims.take(worker);
        let read = live.reads.remove(worker);
        let checked = lease
            .and_then(|lease| live.leases.get(&lease.unit))
            .is_some_and(|held| held.screening.is_some());
        // Whoever waits is told at once.
        for reply in claim
            .map(|claim| claim.reply)
            .into_iter()
            .chain(read.map(|read| read.reply))
        {
            let refusal = match cause {
                Departure::Replaced => {
                    Refusal::new(Code::Replaced, format!("{worker} was replaced {detail}"))
                }
                Departure::Left | Departure::Silent | Departure::Removed => not_joined(worker),
            };
            self.reply(reply, Err(refusal));
        }
        // It may have been the last that had not failed a unit.
        self.judge_failures(name);
        if let Some(lease) = lease.filter(|_| !checked) {
            self.end_lease(name, lease, LeaseEnd::Orphaned);
        }
    }

    pub(crate) fn heartbeat(&mut self, peer: &Peer, heartbeat: Heartbeat) {
        let now = self.now;
        let Ok((run, live)) = self.open_run(&peer.run) else {
            return;
        };
        let Ok(member) = check_member(run, peer) else {
            return;
        };
        // Of a process that was replaced: another one is the worker.
        if member.session != heartbeat.session {
            return;
        }
        let Some(presence) = live.presence.get_mut(&peer.worker) else {
            return;
        };
        presence.heard_at = now;
        let before = presence.heartbeat.as_ref();
        // Sent before the one that is here, and overtaken by it: counts only grow while a process
        // lives.
        if before.is_some_and(|before| is_older(&heartbeat, before)) {
            return;
        }
        let step = Traffic::between(before, &heartbeat);
        let moved = live
            .moved
            .get(&peer.worker)
            .copied()
            .unwrap_or_default()
            .plus(step);
        if let Err(refusal) = check_heartbeat(run, &heartbeat, moved, now) {
            return self.record_denial(peer, "heartbeat", &refusal);
        }
        presence.heartbeat = Some(heartbeat);
        live.moved.insert(peer.worker.clone(), moved);
        let total = self.traffic.entry(peer.run.clone()).or_default();
        *total = total.plus(step);
        self.mark_changed(&peer.run);
    }

    /// A member said something, whatever it was.
    pub(crate) fn heard(&mut self, peer: &Peer) {
        let now = self.now;
        if let Some(presence) = self
            .live
            .get_mut(&peer.run)
            .and_then(|live| live.presence.get_mut(&peer.worker))
        {
            presence.heard_at = now;
        }
    }

    /// Begins to watch a member for silence.
    pub(crate) fn watch(&mut self, name: &RunId, worker: &WorkerId) {
        let now = self.now;
        let Ok((run, live)) = self.open_run(name) else {
            return;
        };
        let silent_at = now.after(run.spec.policy.silence_max);
        live.presence
            .entry(worker.clone())
            .or_insert(Presence {
                heard_at: now,
                heartbeat: None,
            })
            .heard_at = now;
        self.timers
            .set(silent_at, Timer::Silence(name.clone(), worker.clone()));
    }

    pub(crate) fn silence_due(&mut self, name: &RunId, worker: &WorkerId) {
        let now = self.now;
        let Ok((run, live)) = self.open_run(name) else {
            return;
        };
        let silence_max = run.spec.policy.silence_max;
        let Some(presence) = live.presence.get_mut(worker) else {
            return;
        };
        // Whoever waits for an answer of ours has a reason to be silent.
        if live.claims.get(worker).is_some() {
            presence.heard_at = now;
        }
        let silent_at = presence.heard_at.after(silence_max);
        if silent_at > now {
            self.timers
                .set(silent_at, Timer::Silence(name.clone(), worker.clone()));
        } else {
            self.depart(
                name,
                worker,
                Departure::Silent,
                &format!("not heard for {silence_max} ms"),
            );
        }
    }
}

/// Whether the asker is a member of the run, under the account it joined from.
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

/// True for the process that was this worker and has said goodbye.
fn has_left(member: &Member, peer: &Peer, session: Session) -> bool {
    !member.present && member.account == peer.account && member.session == session
}

fn not_joined(worker: &WorkerId) -> Refusal {
    Refusal::new(Code::NotJoined, format!("{worker} is no member"))
}

/// Whether the asker is the process that joined last as this worker.
pub(crate) fn check_session(member: &Member, session: Session) -> Result<(), Refusal> {
    if member.session == session {
        Ok(())
    } else {
        Err(replaced(member))
    }
}

/// What an older process is told.
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

/// Whether a worker can have done so many steps of what it holds. An evaluation counts its batches.
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

/// Whether a count of the newer heartbeat is below that of the one before it.
fn is_older(heartbeat: &Heartbeat, before: &Heartbeat) -> bool {
    heartbeat.bytes_up < before.bytes_up
        || heartbeat.bytes_down < before.bytes_down
        || heartbeat.tokens < before.tokens
}

/// Whether a worker can be as fast and can have moved and trained as much as it says; `moved` is
/// over all its processes.
fn check_heartbeat(
    run: &Run,
    heartbeat: &Heartbeat,
    moved: Traffic,
    now: UnixMillis,
) -> Result<(), Refusal> {
    let impossible = |detail: String| Err(Refusal::new(Code::NumberImpossible, detail));
    let speed = heartbeat.tokens_per_second;
    if !(0.0..=SPEED_MAX).contains(&speed) {
        return impossible(format!(
            "{speed} tokens a second, expected 0 to {SPEED_MAX}"
        ));
    }
    if let Some(loss) = heartbeat.loss {
        check_loss("last", loss)?;
    }
    check_steps(run, heartbeat.lease.as_ref(), heartbeat.steps_done)?;
    let seconds = run.created_at.until(now.after(COUNTING_MARGIN)).get() / 1000;
    let most = Bytes(TRAFFIC_MAX.get().saturating_mul(seconds));
    for (way, bytes) in [("up", moved.up), ("down", moved.down)] {
        if bytes > most {
            return impossible(format!(
                "{bytes} bytes {way} since the run began, at most {most} are believed"
            ));
        }
    }
    if heartbeat.tokens.get() as f64 > SPEED_MAX * seconds as f64 {
        return impossible(format!(
            "{} tokens in at most {seconds} s",
            heartbeat.tokens
        ));
    }
    Ok(())
}

/// A worker keeps the audit key of its first join: whoever holds only its credentials cannot sign
/// results in its name.
fn check_key(before: Option<&Member>, peer: &Peer, request: &JoinRequest) -> Result<(), Refusal> {
    match before {
        Some(member) if member.audit_key != request.audit_key => {
            let detail = format!(
                "{} joined before with audit key {}",
                peer.worker, member.audit_key
            );
            Err(Refusal::new(Code::IdentityMismatch, detail))
        }
        // One key for two purposes would let a signature for the one be used for the other.
        _ if request.audit_key.as_str() == peer.worker.as_str() => Err(Refusal::new(
            Code::AuditKeyRefused,
            format!("{} connects with its audit key", peer.worker),
        )),
        _ => Ok(()),
    }
}

/// Whether there is a place for the asker.
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

/// Whether a member asks again for what it is already.
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

fn check_form(request: &JoinRequest) -> Result<(), Refusal> {
    let long = |what: &str, bytes: usize, max: usize| {
        Refusal::new(
            Code::MessageInvalid,
            format!("{what} has {bytes} bytes, at most {max} are accepted"),
        )
    };
    for (what, text) in [("device", &request.device), ("release", &request.release)] {
        if text.len() > LABEL_BYTES_MAX {
            return Err(long(what, text.len(), LABEL_BYTES_MAX));
        }
        if !is_plain(text) {
            let text =
                format!("{what} {text:?} has characters that a terminal obeys or does not show");
            return Err(Refusal::new(Code::MessageInvalid, text));
        }
    }
    if request.trainers.len() > TRAINERS_MAX {
        let detail = format!(
            "a join names {} trainers, at most {TRAINERS_MAX} are accepted",
            request.trainers.len()
        );
        return Err(Refusal::new(Code::MessageInvalid, detail));
    }
    let layers = request.posture.open.len();
    if layers > Layer::ALL.len() {
        return Err(Refusal::new(
            Code::MessageInvalid,
            format!("posture names {layers} layers, there are four"),
        ));
    }
    match request
        .posture
        .open
        .iter()
        .find(|layer| layer.reason.len() > TEXT_BYTES_MAX)
    {
        Some(layer) => Err(long(
            "a posture's reason",
            layer.reason.len(),
            TEXT_BYTES_MAX,
        )),
        None => Ok(()),
    }
}

/// A worker may relax no layer that the coordinator does not relax.
fn check_posture(worker: &Posture, own: &Posture) -> Result<(), Refusal> {
    let weaker = worker
        .open
        .iter()
        .find(|open| own.open.iter().all(|allowed| allowed.layer != open.layer));
    match weaker {
        Some(open) => {
            let layer = open.layer.name();
            let detail = format!(
                "the worker runs with layer {layer} open, which this coordinator does not allow"
            );
            Err(Refusal::new(Code::LayerOpen, detail))
        }
        None => Ok(()),
    }
}
