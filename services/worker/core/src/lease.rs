//! The lease itself: renewing it, losing it, giving it back.

use schemas::event::WorkerEvent;
use schemas::lease::{LeaseRef, RenewRequest};
use schemas::{Bytes, Code, Millis, Refusal, UnixMillis, V};

use crate::effect::{Effect, Exit, Request, RequestId};
use crate::held::{HeldLease, Renewal};
use crate::input::Answer;
use crate::joining::ahead_ms;
use crate::settings::FAULTS_MAX;
use crate::stage::{AfterRelease, Stage};
use crate::verdict::{Verdict, verdict};
use crate::worker::Worker;

impl Worker {
    /// Renews the lease that is held, when it is time.
    pub(crate) fn renew(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        let due = |held: &HeldLease| held.renewal.is_none() && held.renew_at <= now;
        if !self.held().is_some_and(due) {
            return;
        }
        let id = RequestId(self.number());
        let held = self.present();
        held.renewal = Some(Renewal { id, sent_at: now });
        // The shell adds the count of bytes.
        let request = Request::Renew(RenewRequest {
            v: V,
            lease: held.lease(),
            steps_done: held.steps_done,
            bytes_moved: Bytes(0),
        });
        effects.push(Effect::Send {
            id,
            request,
            patience: held.renewal_patience(),
        });
    }

    pub(crate) fn renewal_answered(
        &mut self,
        now: UnixMillis,
        sent_at: UnixMillis,
        outcome: Result<Answer, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        match outcome {
            Ok(Answer::Renew(reply)) => {
                self.present().renewed(sent_at, reply.remaining);
                // The coordinator's time in its answer; after a restart the coordinator may have
                // another.
                let ahead_ms = ahead_ms(
                    sent_at,
                    UnixMillis(reply.expires_at.get().saturating_sub(reply.remaining.get())),
                );
                let membership = self.membership.as_mut();
                let membership = membership.expect("a lease is granted only to a member");
                if membership.measured(ahead_ms) {
                    effects.push(Effect::Clock { ahead_ms });
                }
            }
            Ok(_) => self.present().renew_again(now),
            Err(refusal) => match verdict(refusal.code) {
                Verdict::Out => self.go(refusal, effects),
                // The answer to the submit decides about the result and the membership. It is under
                // way, or asked for again, until the lease runs out.
                Verdict::LeaseLost | Verdict::Rejoin | Verdict::RunOver if self.is_handed_in() => {
                    let held = self.present();
                    held.renewed_no_more();
                    let pause = now.until(held.ends_at);
                    effects.push(Effect::Waiting { refusal, pause });
                }
                Verdict::LeaseLost => self.lose(now, refusal, effects),
                Verdict::Rejoin => self.rejoin(now, refusal, effects),
                Verdict::RunOver => self.run_over(now, refusal, effects),
                Verdict::Fatal => self.give_up(now, refusal, effects),
                Verdict::Wait | Verdict::Failed => {
                    let held = self.present();
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

    /// Stops the work: the lease is another's or nobody's. The inner state stays.
    pub(crate) fn lose(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.drop_held(&refusal, effects);
        self.claim(now, Millis(0), effects);
    }

    /// Gives the unit back, since it failed here, and claims again after a pause that grows with
    /// every failure.
    pub(crate) fn fail(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        let lease = self.drop_held(&refusal, effects);
        let (pause, hopeless) = self.fault(refusal.code);
        let next = match self.told_to_end() {
            Some(exit) => AfterRelease::Leave(exit),
            None if hopeless => AfterRelease::Leave(Exit::Failed(refusal.clone())),
            None => {
                effects.push(Effect::Waiting {
                    refusal: refusal.clone(),
                    pause,
                });
                AfterRelease::Claim { pause }
            }
        };
        self.release(now, lease, refusal.to_string(), next);
    }

    /// Counts a failed unit. Returns the pause after it, and true if this machine has failed too
    /// many. Failures with a cause outside every worker are counted apart: they say nothing about
    /// this machine, however long they last.
    pub(crate) fn fault(&mut self, code: Code) -> (Millis, bool) {
        if code.passes() {
            return (self.elsewhere.pause(), false);
        }
        let pause = self.faults.pause();
        (pause, self.faults.tries() >= FAULTS_MAX)
    }

    /// Gives a lease back at once, and then goes on with `next`.
    pub(crate) fn release(
        &mut self,
        now: UnixMillis,
        lease: LeaseRef,
        reason: String,
        next: AfterRelease,
    ) {
        let stage = Stage::Releasing {
            lease,
            reason,
            next,
        };
        self.enter(now, stage, Millis(0));
    }

    /// Drops the work of the held lease. The caller knows that one is held.
    pub(crate) fn drop_held(&mut self, refusal: &Refusal, effects: &mut Vec<Effect>) -> LeaseRef {
        self.drop_work(refusal, effects)
            .expect("only the work on a lease that is held is dropped")
    }

    /// Stops the work on the held lease, if there is one, and records why. The caller changes the
    /// stage.
    pub(crate) fn drop_work(
        &mut self,
        refusal: &Refusal,
        effects: &mut Vec<Effect>,
    ) -> Option<LeaseRef> {
        let held = self.held()?;
        let (lease, work) = (held.lease(), held.work);
        effects.push(Effect::Stop { work });
        effects.push(Effect::Emit(WorkerEvent::Dropped {
            lease,
            code: refusal.code,
            detail: refusal.detail.clone(),
        }));
        self.keep_unanswered(refusal, effects);
        Some(lease)
    }

    pub(crate) fn release_answered(
        &mut self,
        now: UnixMillis,
        outcome: Result<Answer, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        match outcome {
            Ok(Answer::Done(_)) => self.released(now, effects),
            Ok(_) => self.answered_otherwise(now, effects),
            Err(refusal) => match verdict(refusal.code) {
                Verdict::Wait if !self.parted() => self.ask_again(now, refusal, effects),
                Verdict::Out => self.go(refusal, effects),
                // A lease that cannot be given back ends by itself.
                Verdict::Wait
                | Verdict::LeaseLost
                | Verdict::Rejoin
                | Verdict::RunOver
                | Verdict::Fatal
                | Verdict::Failed => self.released(now, effects),
            },
        }
    }

    /// Goes on after a release, whatever the answer was.
    fn released(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        let Stage::Releasing { next, .. } = &self.stage else {
            panic!(
                "a release was answered while the worker was {:?}",
                self.stage
            )
        };
        match next.clone() {
            AfterRelease::Claim { pause } => self.claim(now, pause, effects),
            AfterRelease::Join { pause } => self.enter(now, Stage::Joining, pause),
            AfterRelease::Leave(exit) => self.leave(now, exit, effects),
        }
    }
}
