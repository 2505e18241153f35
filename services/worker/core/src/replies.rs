//! What answers and refusals lead to.

use schemas::contribution::{Fate, SubmitReply};
use schemas::event::WorkerEvent;
use schemas::lease::{ClaimOutcome, ClaimReply};
use schemas::member::JoinReply;
use schemas::{Code, Digest, Millis, Refusal, UnixMillis};

use crate::effect::{Effect, Exit, RequestId, WorkId};
use crate::held::Step;
use crate::input::Answer;
use crate::settings::CLAIM_INTERVAL_MIN;
use crate::verdict::{Verdict, verdict};
use crate::worker::{Asked, Membership, Next, Stage, Worker};

impl Worker {
    pub(crate) fn replied(
        &mut self,
        now: UnixMillis,
        id: RequestId,
        outcome: Result<Answer, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(asked) = self.asked.filter(|asked| asked.id == id) {
            self.answered(now, asked, outcome, effects);
        } else if let Some(renewal) = self
            .held()
            .and_then(|held| held.renewal)
            .filter(|renewal| renewal.id == id)
        {
            self.renewal_answered(now, renewal.sent_at, outcome, effects);
        }
        // Any other answer is to a question that no longer matters.
    }

    fn answered(
        &mut self,
        now: UnixMillis,
        asked: Asked,
        outcome: Result<Answer, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let stage = self.stage.clone();
        match (stage, outcome) {
            (Stage::Joining, Ok(Answer::Join(reply))) => {
                self.join_accepted(now, asked.sent_at, reply, effects)
            }
            (Stage::Joining, Err(refusal)) => self.join_refused(now, refusal, effects),
            (Stage::Claiming, Ok(Answer::Claim(reply))) => {
                self.claim_answered(now, asked.sent_at, reply, effects)
            }
            (Stage::Claiming, Err(refusal)) => self.claim_refused(now, refusal, effects),
            (Stage::Holding(_), Ok(Answer::Submit(reply))) => {
                self.submit_answered(now, reply, effects)
            }
            (Stage::Holding(_), Err(refusal)) => self.submit_refused(now, refusal, effects),
            (Stage::Releasing { next, .. }, Ok(Answer::Done(_))) => {
                self.released(now, next, effects)
            }
            (Stage::Releasing { next, .. }, Err(refusal)) => {
                self.release_refused(now, next, refusal, effects)
            }
            (Stage::Leaving(exit), Ok(Answer::Done(_))) => self.end(exit, effects),
            (Stage::Leaving(exit), Err(refusal))
                if verdict(refusal.code) != Verdict::Wait || self.parted() =>
            {
                self.end(exit, effects);
            }
            (Stage::Leaving(_), Err(refusal)) => self.ask_again(now, refusal, effects),
            (_, Ok(_)) => {
                let refusal = Refusal::new(
                    Code::MessageInvalid,
                    "an answer of another kind than the request",
                );
                self.ask_again(now, refusal, effects);
            }
            // Without a request there is no answer.
            (Stage::Verifying(_) | Stage::Ended, Err(_)) => {}
        }
    }

    fn join_accepted(
        &mut self,
        now: UnixMillis,
        sent_at: UnixMillis,
        reply: Box<JoinReply>,
        effects: &mut Vec<Effect>,
    ) {
        let Err(refusal) = self.check_settings(&reply) else {
            let ahead = ahead_ms(sent_at, reply.now);
            effects.push(Effect::Clock { ahead_ms: ahead });
            let spec = reply.spec.clone();
            self.joined(
                now,
                Membership::new(spec, reply.spec_digest, ahead, reply.heartbeat),
            );
            let (release, device) = (
                self.settings.join.release.clone(),
                self.settings.join.device.clone(),
            );
            effects.push(Effect::Joined(reply));
            effects.push(Effect::Emit(WorkerEvent::Joined { release, device }));
            return self.claim(now, Millis(0), effects);
        };
        self.give_up(now, refusal, effects);
    }

    /// The settings must be of this run, what their digest says, and something this worker can do;
    /// and a second join must find the run as it was.
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
            Verdict::Replaced => self.replaced(refusal, effects),
            Verdict::Fatal => self.give_up(now, refusal, effects),
            Verdict::RunOver => self.leave(now, Exit::Complete, effects),
            Verdict::Wait | Verdict::LeaseLost | Verdict::Rejoin | Verdict::Failed => {
                self.ask_again(now, refusal, effects);
            }
        }
    }

    fn claim_answered(
        &mut self,
        now: UnixMillis,
        sent_at: UnixMillis,
        reply: ClaimReply,
        effects: &mut Vec<Effect>,
    ) {
        // Only members are answered. The join alone proves nothing: whoever is thrown out each time
        // it joins got that far too.
        self.rejoins.reset();
        match reply.outcome {
            ClaimOutcome::Lease(document) => {
                let work = WorkId(self.number());
                self.enter(now, Stage::Verifying(work), Millis(0));
                effects.push(Effect::Verify { work, document });
            }
            ClaimOutcome::Nothing => {
                let earliest = sent_at.after(CLAIM_INTERVAL_MIN);
                self.enter(now, Stage::Claiming, now.until(earliest));
            }
            ClaimOutcome::Complete => self.leave(now, Exit::Complete, effects),
        }
    }

    fn claim_refused(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        match verdict(refusal.code) {
            Verdict::Replaced => self.replaced(refusal, effects),
            Verdict::Fatal => self.give_up(now, refusal, effects),
            Verdict::RunOver => self.leave(now, Exit::Complete, effects),
            Verdict::Rejoin => self.rejoin(now, refusal, effects),
            Verdict::Wait | Verdict::LeaseLost | Verdict::Failed => {
                self.ask_again(now, refusal, effects)
            }
        }
    }

    fn renewal_answered(
        &mut self,
        now: UnixMillis,
        sent_at: UnixMillis,
        outcome: Result<Answer, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let Stage::Holding(held) = &mut self.stage else {
            return;
        };
        match outcome {
            Ok(Answer::Renew(reply)) => {
                held.renewed(sent_at, reply.remaining);
                // The coordinator's time when it answered; another process of it may have another.
                let ahead_ms = ahead_ms(
                    sent_at,
                    UnixMillis(reply.expires_at.get().saturating_sub(reply.remaining.get())),
                );
                if self
                    .membership
                    .as_mut()
                    .is_some_and(|membership| membership.measured(ahead_ms))
                {
                    effects.push(Effect::Clock { ahead_ms });
                }
            }
            Ok(_) => held.renew_again(now),
            Err(refusal) => match verdict(refusal.code) {
                Verdict::Replaced => self.replaced(refusal, effects),
                Verdict::LeaseLost => self.lose(now, refusal, effects),
                Verdict::Rejoin => self.rejoin(now, refusal, effects),
                Verdict::RunOver => self.run_over(now, refusal, effects),
                Verdict::Fatal => self.give_up(now, refusal, effects),
                Verdict::Wait | Verdict::Failed => {
                    let pause = now.until(held.ends_at);
                    held.renew_again(now);
                    effects.push(Effect::Waiting {
                        refusal,
                        pause: pause.min(now.until(held.renew_at)),
                    });
                }
            },
        }
    }

    fn submit_answered(&mut self, now: UnixMillis, reply: SubmitReply, effects: &mut Vec<Effect>) {
        let Some(held) = self.held() else { return };
        let Step::Submitting(statement) = &held.step else {
            return;
        };
        let (lease, statement) = (held.lease(), Digest::of(statement));
        match reply.fate {
            Fate::Merged => {
                effects.push(Effect::Emit(WorkerEvent::Submitted { lease, statement }));
                self.faults.reset();
                self.elsewhere.reset();
                self.unit_over(now, effects);
            }
            Fate::Late | Fate::Abandoned => {
                self.lose(
                    now,
                    Refusal::new(Code::LeaseLost, "the result came too late to count"),
                    effects,
                );
            }
            Fate::Rejected => {
                let refusal =
                    Refusal::new(Code::StatementInvalid, "the result was rejected earlier");
                self.result_refused(now, refusal, effects);
            }
        }
    }

    fn submit_refused(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        if refusal.code == Code::AlreadyCounted {
            return self.lose(now, refusal, effects);
        }
        match verdict(refusal.code) {
            Verdict::Wait => self.ask_again(now, refusal, effects),
            Verdict::Replaced => self.replaced(refusal, effects),
            Verdict::LeaseLost => self.lose(now, refusal, effects),
            Verdict::Rejoin => self.rejoin(now, refusal, effects),
            Verdict::RunOver => self.run_over(now, refusal, effects),
            Verdict::Fatal => self.give_up(now, refusal, effects),
            Verdict::Failed => self.result_refused(now, refusal, effects),
        }
    }

    /// The coordinator refused the result and took the lease back: nothing to release.
    fn result_refused(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        if self.drop_work(&refusal, effects).is_none() {
            return;
        }
        effects.push(Effect::DoubtInner(refusal.clone()));
        let (pause, hopeless) = self.fault(refusal.code);
        if hopeless {
            return self.leave(now, Exit::Failed(refusal), effects);
        }
        effects.push(Effect::Waiting { refusal, pause });
        self.claim(now, pause, effects);
    }

    fn release_refused(
        &mut self,
        now: UnixMillis,
        next: Next,
        refusal: Refusal,
        effects: &mut Vec<Effect>,
    ) {
        match verdict(refusal.code) {
            Verdict::Wait if !self.parted() => self.ask_again(now, refusal, effects),
            Verdict::Replaced => self.replaced(refusal, effects),
            // What matters is that the lease is not held: it ends by itself otherwise.
            _ => self.released(now, next, effects),
        }
    }

    /// The coordinator does not know this worker (any more): its lease, if it held one, is gone
    /// with its membership.
    fn rejoin(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.drop_work(&refusal, effects);
        match self.ending.as_ref().map(|ending| ending.exit.clone()) {
            Some(exit) => self.leave(now, exit, effects),
            None => {
                // Not at once: whoever is thrown out each time it joins would ask in a tight loop.
                // It is no fault of a unit.
                let pause = self.rejoins.pause();
                self.enter(now, Stage::Joining, pause);
                effects.push(Effect::Waiting { refusal, pause });
            }
        }
    }

    fn run_over(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.drop_work(&refusal, effects);
        self.leave(now, Exit::Complete, effects);
    }
}

/// How far the coordinator's clock, which showed `theirs` in its answer to what was sent at
/// `sent_at`, is ahead at most.
fn ahead_ms(sent_at: UnixMillis, theirs: UnixMillis) -> i64 {
    let ahead = i128::from(theirs.get()) - i128::from(sent_at.get());
    i64::try_from(ahead).unwrap_or(i64::MAX)
}
