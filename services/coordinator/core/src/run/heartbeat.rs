//! Reports of members about themselves, every few seconds. They are shown, and no decision uses
//! them.

use ledger::Run;
use schemas::limits::{
    DEVICE_MEMORY_MAX, SPEED_MAX, TRAFFIC_MAX, TRANSFER_FAILURES_PER_SECOND_MAX,
};
use schemas::public::CommandVerb;
use schemas::telemetry::{Heartbeat, Phase, WorkerMetrics};
use schemas::{Bytes, Code, Millis, Refusal, UnixMillis};

use crate::effect::Effect;
use crate::input::Peer;
use crate::run::RunRoom;
use crate::run::live::Traffic;
use crate::run::members::{check_member, check_steps};
use crate::run::results::check_loss;
use crate::turn::{Denied, Turn};

/// A process may claim to have worked for this much longer than its run exists, since clocks
/// differ; they differ by less.
const COUNTING_MARGIN: Millis = Millis::from_secs(60);

/// The outcome of a heartbeat.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HeartbeatOutcome {
    /// It is the worker's newest heartbeat.
    Taken,
    /// Its sender is no member, and learns that from its next request.
    Stranger,
    /// Its process was replaced by another one.
    Replaced,
    /// It was sent before the one that is known: counts only grow while a process lives.
    Overtaken,
}

impl RunRoom<'_> {
    pub(crate) fn heartbeat(
        &mut self,
        turn: &mut Turn<'_>,
        peer: &Peer,
        heartbeat: Heartbeat,
    ) -> Result<HeartbeatOutcome, Denied> {
        let Ok(member) = check_member(&self.run, peer) else {
            return Ok(HeartbeatOutcome::Stranger);
        };
        if member.session != heartbeat.session {
            return Ok(HeartbeatOutcome::Replaced);
        }
        let presence = self.live.presence.get_mut(&peer.worker);
        let presence = presence.expect("every member is watched");
        presence.heard_at = turn.now;
        let before = presence.heartbeat.as_ref();
        if before.is_some_and(|before| is_older(&heartbeat, before)) {
            return Ok(HeartbeatOutcome::Overtaken);
        }
        let step = Traffic::between(before, &heartbeat);
        let moved = self.live.moved.get(&peer.worker).copied();
        let moved = moved.unwrap_or_default().plus(step);
        check_heartbeat(&self.run, &heartbeat, moved, turn.now)?;
        turn.out.push(Effect::ShowHeartbeat {
            run: self.run.name().clone(),
            worker: peer.worker.clone(),
            heartbeat: Box::new(heartbeat.clone()),
        });
        if turn.draining && heartbeat.phase != Phase::Leaving {
            // The command is sent again, since it may have been lost; a worker that has heard it
            // changes nothing.
            turn.out.push(Effect::Command {
                account: peer.account.clone(),
                run: self.run.name().clone(),
                worker: peer.worker.clone(),
                session: heartbeat.session,
                verb: CommandVerb::Drain,
            });
        }
        presence.heartbeat = Some(heartbeat);
        self.live.moved.insert(peer.worker.clone(), moved);
        self.live.traffic = self.live.traffic.plus(step);
        self.mark_changed(turn);
        Ok(HeartbeatOutcome::Taken)
    }
}

/// True when a count of the newer heartbeat is below that of the one before it.
fn is_older(heartbeat: &Heartbeat, before: &Heartbeat) -> bool {
    heartbeat.bytes_up < before.bytes_up
        || heartbeat.bytes_down < before.bytes_down
        || heartbeat.tokens < before.tokens
        || heartbeat.metrics.transfer_failures < before.metrics.transfer_failures
        || heartbeat
            .metrics
            .lanes()
            .iter()
            .zip(before.metrics.lanes())
            .any(|(now, before)| now.1 < before.1)
}

/// Refuses numbers that a worker cannot have reached: its speed, and what it moved and trained.
/// `moved` covers all its processes.
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
        if run.spec.privacy.is_some() || run.is_masked() {
            let detail = "a heartbeat states a training loss, which no noise covers";
            return Err(Refusal::new(Code::NotPrivate, detail));
        }
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
    check_metrics(&heartbeat.metrics, seconds)?;
    if heartbeat.tokens.get() as f64 > SPEED_MAX * seconds as f64 {
        return impossible(format!(
            "{} tokens in at most {seconds} s",
            heartbeat.tokens
        ));
    }
    Ok(())
}

/// Refuses times, failures and memory that a process cannot have reached in `seconds`.
fn check_metrics(metrics: &WorkerMetrics, seconds: u64) -> Result<(), Refusal> {
    let impossible = |detail: String| Err(Refusal::new(Code::NumberImpossible, detail));
    for (lane, spent) in metrics.lanes() {
        if spent > Millis::from_secs(seconds) {
            return impossible(format!("{spent} ms to {lane} in at most {seconds} s"));
        }
    }
    let failures = metrics.transfer_failures;
    if failures > TRANSFER_FAILURES_PER_SECOND_MAX.saturating_mul(seconds) {
        return impossible(format!(
            "{failures} failed transfers in at most {seconds} s"
        ));
    }
    match metrics.device_memory {
        Some(memory) if memory > DEVICE_MEMORY_MAX => impossible(format!(
            "{memory} bytes of a device are in use, at most {DEVICE_MEMORY_MAX} are believed"
        )),
        _ => Ok(()),
    }
}
