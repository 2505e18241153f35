//! Who works for a run: joining, leaving, being heard, being removed.

use schemas::event::{Departure, LeaseEnd, LedgerEvent};
use schemas::lease::Done;
use schemas::limits::{TEXT_BYTES_MAX, WORKERS_MAX};
use schemas::member::{JoinReply, JoinRequest, Layer, LeaveRequest, Posture};
use schemas::telemetry::Heartbeat;
use schemas::text::is_plain;
use schemas::{Code, Refusal, RunId, V, WorkerId};

use crate::coordinator::{Coordinator, draining, run_unknown};
use crate::deadline::Timer;
use crate::denial::cut_text;
use crate::effect::Answer;
use crate::input::{Peer, ReplyId};
use crate::live::Presence;
use crate::state::{Member, Run};

/// Longest description of a device or release; both are shown in tables and repeated in every view.
const LABEL_BYTES_MAX: usize = 128;
/// Highest speed that a worker is believed, tokens a second: more than any machine, less than a sum could not hold.
const SPEED_MAX: f64 = 1e12;
/// Most entries of a run's roster, which keeps those who left: bounds memory against a tenant that makes keys without end.
const ROSTER_MAX: usize = 4 * WORKERS_MAX;

impl Coordinator {
    pub(crate) fn join(&mut self, peer: &Peer, request: JoinRequest, reply: ReplyId) -> Result<(), Refusal> {
        if self.drain.is_some() {
            return Err(draining());
        }
        check_form(&request)?;
        check_posture(&request.posture, &self.settings.posture)?;
        let (run, _) = self.open_run(&peer.run)?;
        if !request.trainers.contains(&run.spec.model.trainer) {
            let wanted = run.spec.model.trainer;
            return Err(Refusal::new(Code::TrainerMissing, format!("the run needs {wanted:?}")));
        }
        let before = run.members.get(&peer.worker);
        check_place(run, before, peer)?;
        check_key(before, peer, &request)?;
        let renewed = before.is_some_and(|member| is_renewed(member, &request));
        let answer = JoinReply {
            v: V,
            spec: run.spec.clone(),
            spec_digest: run.spec_digest,
            now: self.now,
            heartbeat: self.settings.heartbeat,
        };
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
            };
            self.append(Some(&peer.run), joined);
        }
        self.watch(&peer.run, &peer.worker);
        self.reply(reply, Ok(Answer::Join(Box::new(answer))));
        self.advance(&peer.run);
        Ok(())
    }

    pub(crate) fn leave(&mut self, peer: &Peer, request: &LeaveRequest, reply: ReplyId) -> Result<(), Refusal> {
        check_member(self.state.run(&peer.run).ok_or_else(|| run_unknown(&peer.run))?, peer)?;
        self.depart(&peer.run, &peer.worker, Departure::Left, &request.reason);
        self.reply(reply, Ok(Answer::Done(Done { v: V })));
        Ok(())
    }

    /// Ends a membership; the worker's lease goes back unless its result is being checked.
    pub(crate) fn depart(&mut self, name: &RunId, worker: &WorkerId, cause: Departure, detail: &str) {
        let left = LedgerEvent::WorkerLeft { worker: worker.clone(), cause, detail: cut_text(detail) };
        self.append(Some(name), left);
        let lease = self.state.run(name).and_then(|run| run.members.get(worker)).and_then(|member| member.lease);
        let Some(live) = self.live.get_mut(name) else { return };
        live.presence.remove(worker);
        let claim = live.claims.take(worker);
        let read = live.reads.remove(worker);
        let checked = lease.and_then(|lease| live.leases.get(&lease.unit)).is_some_and(|held| held.screening.is_some());
        // Whoever waits is told at once.
        for reply in claim.map(|claim| claim.reply).into_iter().chain(read.map(|read| read.reply)) {
            self.reply(reply, Err(not_joined(worker)));
        }
        if let Some(lease) = lease.filter(|_| !checked) {
            self.end_lease(name, lease, LeaseEnd::Orphaned);
        }
    }

    pub(crate) fn heartbeat(&mut self, peer: &Peer, heartbeat: Heartbeat) {
        self.heard(peer);
        let Some(presence) = self.live.get_mut(&peer.run).and_then(|live| live.presence.get_mut(&peer.worker)) else {
            return;
        };
        let speed = heartbeat.tokens_per_second;
        // A claim of the worker's; whatever it is, sums over all workers must stay numbers.
        let tokens_per_second = if speed.is_finite() { speed.clamp(0.0, SPEED_MAX) } else { 0.0 };
        self.traffic.entry(peer.run.clone()).or_default().add(presence.heartbeat.as_ref(), &heartbeat);
        presence.heartbeat = Some(Heartbeat { tokens_per_second, ..heartbeat });
        self.mark_changed(&peer.run);
    }

    /// A member said something, whatever it was.
    pub(crate) fn heard(&mut self, peer: &Peer) {
        let now = self.now;
        if let Some(presence) = self.live.get_mut(&peer.run).and_then(|live| live.presence.get_mut(&peer.worker)) {
            presence.heard_at = now;
        }
    }

    /// Begins to watch a member for silence.
    pub(crate) fn watch(&mut self, name: &RunId, worker: &WorkerId) {
        let now = self.now;
        let Ok((run, live)) = self.open_run(name) else { return };
        let silent_at = now.after(run.spec.policy.silence_max);
        live.presence.entry(worker.clone()).or_insert(Presence { heard_at: now, heartbeat: None }).heard_at = now;
        self.timers.set(silent_at, Timer::Silence(name.clone(), worker.clone()));
    }

    pub(crate) fn silence_due(&mut self, name: &RunId, worker: &WorkerId) {
        let now = self.now;
        let Ok((run, live)) = self.open_run(name) else { return };
        let silence_max = run.spec.policy.silence_max;
        let Some(presence) = live.presence.get_mut(worker) else { return };
        // Whoever waits for an answer of ours has a reason to be silent.
        if live.claims.get(worker).is_some() {
            presence.heard_at = now;
        }
        let silent_at = presence.heard_at.after(silence_max);
        if silent_at > now {
            self.timers.set(silent_at, Timer::Silence(name.clone(), worker.clone()));
        } else {
            self.depart(name, worker, Departure::Silent, &format!("not heard for {silence_max} ms"));
        }
    }
}

/// Whether the asker is a member of the run, under the account it joined from.
pub(crate) fn check_member<'a>(run: &'a Run, peer: &Peer) -> Result<&'a Member, Refusal> {
    let member = run.member(&peer.worker).ok_or_else(|| not_joined(&peer.worker))?;
    check_account(member, peer)?;
    Ok(member)
}

fn check_account(member: &Member, peer: &Peer) -> Result<(), Refusal> {
    if member.account == peer.account {
        return Ok(());
    }
    let detail = format!("{} joined from account {}, asks from {}", peer.worker, member.account, peer.account);
    Err(Refusal::new(Code::IdentityMismatch, detail))
}

fn not_joined(worker: &WorkerId) -> Refusal {
    Refusal::new(Code::NotJoined, format!("{worker} is no member"))
}

/// A worker keeps the audit key of its first join: whoever holds only its credentials cannot sign results in its name.
fn check_key(before: Option<&Member>, peer: &Peer, request: &JoinRequest) -> Result<(), Refusal> {
    match before {
        Some(member) if member.audit_key != request.audit_key => {
            let detail = format!("{} joined before with audit key {}", peer.worker, member.audit_key);
            Err(Refusal::new(Code::IdentityMismatch, detail))
        }
        _ => Ok(()),
    }
}

/// Whether there is a place for the asker.
fn check_place(run: &Run, before: Option<&Member>, peer: &Peer) -> Result<(), Refusal> {
    match before {
        Some(member) if member.removed => {
            let detail = format!("{} was removed after {} refused results", peer.worker, member.rejected);
            Err(Refusal::new(Code::NotJoined, detail))
        }
        Some(member) if member.present => check_account(member, peer),
        Some(_) if (run.present() as usize) < WORKERS_MAX => Ok(()),
        None if (run.present() as usize) < WORKERS_MAX && run.members.len() < ROSTER_MAX => Ok(()),
        None if run.members.len() >= ROSTER_MAX => {
            Err(Refusal::new(Code::NotJoined, format!("the run has had its most workers, {ROSTER_MAX}")))
        }
        _ => Err(Refusal::new(Code::NotJoined, format!("the run has its most workers, {WORKERS_MAX}"))),
    }
}

/// Whether a member asks again for what it is already.
fn is_renewed(member: &Member, request: &JoinRequest) -> bool {
    let same_trainers = member.trainers.iter().all(|kind| request.trainers.contains(kind))
        && request.trainers.iter().all(|kind| member.trainers.contains(kind));
    member.present
        && same_trainers
        && member.audit_key == request.audit_key
        && member.device == request.device
        && member.release == request.release
        && member.posture == request.posture
}

fn check_form(request: &JoinRequest) -> Result<(), Refusal> {
    let long = |what: &str, bytes: usize, max: usize| {
        Refusal::new(Code::MessageInvalid, format!("{what} has {bytes} bytes, at most {max} are accepted"))
    };
    for (what, text) in [("device", &request.device), ("release", &request.release)] {
        if text.len() > LABEL_BYTES_MAX {
            return Err(long(what, text.len(), LABEL_BYTES_MAX));
        }
        if !is_plain(text) {
            let text = format!("{what} {text:?} has characters that a terminal obeys or does not show");
            return Err(Refusal::new(Code::MessageInvalid, text));
        }
    }
    let layers = request.posture.open.len();
    if layers > Layer::ALL.len() {
        return Err(Refusal::new(Code::MessageInvalid, format!("posture names {layers} layers, there are four")));
    }
    match request.posture.open.iter().find(|layer| layer.reason.len() > TEXT_BYTES_MAX) {
        Some(layer) => Err(long("a posture's reason", layer.reason.len(), TEXT_BYTES_MAX)),
        None => Ok(()),
    }
}

/// A worker may relax no layer that the coordinator does not relax.
fn check_posture(worker: &Posture, own: &Posture) -> Result<(), Refusal> {
    let weaker = worker.open.iter().find(|open| own.open.iter().all(|allowed| allowed.layer != open.layer));
    match weaker {
        Some(open) => {
            let layer = open.layer.name();
            let detail = format!("the worker runs with layer {layer} open, which this coordinator does not allow");
            Err(Refusal::new(Code::LayerOpen, detail))
        }
        None => Ok(()),
    }
}
