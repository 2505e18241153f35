//! The lease itself: renewing it, losing it, giving it back.

use schemas::event::WorkerEvent;
use schemas::lease::{LeaseRef, RenewRequest};
use schemas::{Bytes, Code, Millis, Refusal, UnixMillis, V};

use crate::effect::{Effect, Exit, Request, RequestId};
use crate::held::Renewal;
use crate::input::Answer;
use crate::joining::ahead_ms;
use crate::settings::FAULTS_MAX;
use crate::stage::{Next, Stage};
use crate::verdict::{Verdict, is_elsewhere, verdict};
use crate::worker::Worker;

impl Worker {
    pub(crate) fn renew(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        let id = self.number();
        let Stage::Holding(held) = &mut self.stage else {
            return;
        };
        if held.renewal.is_some() || held.renew_at > now {
            return;
        }
        let id = RequestId(id);
        held.renewal = Some(Renewal { id, sent_at: now });
        // The shell counts bytes.
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

    /// The lease is no longer ours: its work stops, the inner state stays.
    pub(crate) fn lose(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        if self.drop_work(&refusal, effects).is_some() {
            self.claim(now, Millis(0), effects);
        }
    }

    /// The unit failed here: give it to another, and claim again after a pause that grows with
    /// every failure.
    pub(crate) fn fail(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        let Some(lease) = self.drop_work(&refusal, effects) else {
            return;
        };
        let (pause, hopeless) = self.fault(refusal.code);
        let ending = self.ending.as_ref().map(|ending| ending.exit.clone());
        let next = match ending {
            Some(exit) => Next::Leave(exit),
            None if hopeless => Next::Leave(Exit::Failed(refusal.clone())),
            None => {
                effects.push(Effect::Waiting {
                    refusal: refusal.clone(),
                    pause,
                });
                Next::Claim { pause }
            }
        };
        self.enter(
            now,
            Stage::Releasing {
                lease,
                reason: refusal.to_string(),
                next,
            },
            Millis(0),
        );
    }

    /// Counts a unit that failed: the pause after it, and whether this machine has failed too many
    /// by now. What lies outside every worker has a count of its own, since it says nothing about
    /// this machine, however long it lasts.
    pub(crate) fn fault(&mut self, code: Code) -> (Millis, bool) {
        if is_elsewhere(code) {
            return (self.elsewhere.pause(), false);
        }
        let pause = self.faults.pause();
        (pause, self.faults.tries() >= FAULTS_MAX)
    }

    /// Stops what is being done under the present lease and says so; the stage is for the caller to
    /// change.
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
        self.save(effects);
        Some(lease)
    }

    pub(crate) fn release_refused(
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

    /// Goes on after a release, whatever it was answered.
    pub(crate) fn released(&mut self, now: UnixMillis, next: Next, effects: &mut Vec<Effect>) {
        match next {
            Next::Claim { pause } => self.claim(now, pause, effects),
            Next::Join { pause } => self.enter(now, Stage::Joining, pause),
            Next::Leave(exit) => self.leave(now, exit, effects),
        }
    }
}
