//! Joining: becoming a member of the run, and becoming one again.

use schemas::event::WorkerEvent;
use schemas::member::JoinReply;
use schemas::run::RunSpec;
use schemas::{Code, Digest, Millis, Refusal, UnixMillis};

use crate::effect::{Effect, Exit};
use crate::input::Answer;
use crate::stage::Stage;
use crate::verdict::{Verdict, verdict};
use crate::worker::Worker;

/// The facts from the answer to a join.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub(crate) spec: RunSpec,
    pub(crate) spec_digest: Digest,
    /// The most by which the coordinator's clock is ahead of ours: measured from before the
    /// question to before the answer.
    pub(crate) clock_ahead_ms: i64,
    pub(crate) heartbeat: Millis,
}

/// Least difference between two measurements of the coordinator's clock that counts as news: more
/// than the travel time of a message. Another coordinator answers then, or the same one after a
/// restart.
const CLOCK_MOVED_MIN: Millis = Millis::from_secs(5);

impl Worker {
    pub(crate) fn join_answered(
        &mut self,
        now: UnixMillis,
        sent_at: UnixMillis,
        outcome: Result<Answer, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        match outcome {
            Ok(Answer::Join(reply)) => match self.check_settings(&reply) {
                Ok(()) => self.join_accepted(now, sent_at, reply, effects),
                Err(refusal) => self.give_up(now, refusal, effects),
            },
            Ok(_) => self.answered_otherwise(now, effects),
            Err(refusal) => self.join_refused(now, refusal, effects),
        }
    }

    /// Begins a membership, or begins it again.
    fn join_accepted(
        &mut self,
        now: UnixMillis,
        sent_at: UnixMillis,
        reply: Box<JoinReply>,
        effects: &mut Vec<Effect>,
    ) {
        let ahead_ms = ahead_ms(sent_at, reply.now);
        effects.push(Effect::Clock { ahead_ms });
        self.membership = Some(Membership {
            spec: reply.spec.clone(),
            spec_digest: reply.spec_digest,
            clock_ahead_ms: ahead_ms,
            heartbeat: reply.heartbeat,
        });
        self.beat_now(now);
        let (release, device) = (
            self.settings.join.release.clone(),
            self.settings.join.device.clone(),
        );
        effects.push(Effect::Joined(reply));
        effects.push(Effect::Emit(WorkerEvent::Joined { release, device }));
        self.claim(now, Millis(0), effects);
    }

    /// Checks that the settings are those of this run, fit their digest, and can be carried out by
    /// this worker; and that a second join finds the run as it was.
    fn check_settings(&self, reply: &JoinReply) -> Result<(), Refusal> {
        let invalid = |detail: String| Err(Refusal::new(Code::SpecInvalid, detail));
        let (spec, digest) = (&reply.spec, reply.spec_digest);
        spec.validate()?;
        if spec.run != self.settings.run {
            return invalid(format!(
                "joined run {}, was answered with the settings of {}",
                self.settings.run, spec.run
            ));
        }
        if spec.to_object().1 != digest {
            return invalid(format!(
                "the settings of {} do not have the digest {digest} that was named",
                spec.run
            ));
        }
        if let Some(before) = self
            .membership
            .as_ref()
            .filter(|before| before.spec_digest != digest)
        {
            let was = before.spec_digest;
            return invalid(format!(
                "run {} had settings {was} and now has {digest}; restart the worker",
                spec.run
            ));
        }
        if !self.settings.join.trainers.contains(&spec.model.trainer) {
            let (wanted, have) = (spec.model.trainer, &self.settings.join.trainers);
            return Err(Refusal::new(
                Code::TrainerMissing,
                format!("the run asks for {wanted:?}, this has {have:?}"),
            ));
        }
        Ok(())
    }

    fn join_refused(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        match verdict(refusal.code) {
            Verdict::Out => self.go(refusal, effects),
            Verdict::Fatal => self.give_up(now, refusal, effects),
            Verdict::RunOver => self.leave(now, Exit::Complete, effects),
            Verdict::Wait | Verdict::LeaseLost | Verdict::Rejoin | Verdict::Failed => {
                self.ask_again(now, refusal, effects);
            }
        }
    }

    /// Joins again, since the coordinator does not know this worker any more. If it held a lease,
    /// the lease is gone with the membership.
    pub(crate) fn rejoin(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.drop_work(&refusal, effects);
        match self.told_to_end() {
            Some(exit) => self.leave(now, exit, effects),
            None => {
                // Without a pause, a worker that is evicted each time it joins would ask in a tight
                // loop. This is no failure of a unit.
                let pause = self.rejoins.pause();
                self.enter(now, Stage::Joining, pause);
                effects.push(Effect::Waiting { refusal, pause });
            }
        }
    }
}

impl Membership {
    /// Takes over a newer measurement. Returns true if it is news.
    pub(crate) fn measured(&mut self, ahead_ms: i64) -> bool {
        let moved = self.clock_ahead_ms.abs_diff(ahead_ms) > CLOCK_MOVED_MIN.get();
        if moved {
            self.clock_ahead_ms = ahead_ms;
        }
        moved
    }

    /// The coordinator's `instant` on our clock, or a little earlier.
    pub(crate) fn local(&self, instant: UnixMillis) -> UnixMillis {
        UnixMillis(
            instant
                .get()
                .saturating_add_signed(self.clock_ahead_ms.saturating_neg()),
        )
    }
}

/// The most milliseconds by which the coordinator's clock can be ahead, if it showed `theirs` in
/// its answer to a request that was sent at `sent_at`.
pub(crate) fn ahead_ms(sent_at: UnixMillis, theirs: UnixMillis) -> i64 {
    let ahead = i128::from(theirs.get()) - i128::from(sent_at.get());
    i64::try_from(ahead).unwrap_or(i64::MAX)
}
