//! Leaving: the worker was told to end, cannot go on, or is done.

use schemas::event::WorkerEvent;
use schemas::{Code, Millis, Refusal, UnixMillis};

use crate::effect::{Effect, Exit};
use crate::held::WorkStep;
use crate::input::Answer;
use crate::settings::PARTING_TRIES;
use crate::stage::{AfterRelease, Ending, Stage};
use crate::verdict::{Verdict, verdict};
use crate::worker::Worker;

impl Worker {
    pub(crate) fn drain(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(Ending {
            exit: Exit::Drained,
            deadline: None,
        });
        match &mut self.stage {
            Stage::Joining | Stage::Claiming => self.leave(now, Exit::Drained, effects),
            Stage::Releasing { next, .. } => *next = AfterRelease::Leave(Exit::Drained),
            Stage::Verifying(_) | Stage::Holding(_) | Stage::Leaving(_) | Stage::Ended => {}
        }
    }

    pub(crate) fn stop(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        if self
            .ending
            .as_ref()
            .is_some_and(|ending| ending.deadline.is_some())
        {
            return;
        }
        let exit = Exit::Stopped;
        let deadline = Some(now.after(self.settings.stop_patience));
        self.ending = Some(Ending {
            exit: exit.clone(),
            deadline,
        });
        match &mut self.stage {
            // The result may be under way already: the worker finishes it, and the deadline stands.
            Stage::Holding(held) if matches!(held.step, WorkStep::Submitting(_)) => {}
            Stage::Holding(_) => {
                let refusal = Refusal::new(Code::Interrupted, exit.reason());
                let lease = self.drop_held(&refusal, effects);
                let next = AfterRelease::Leave(exit.clone());
                self.release(now, lease, exit.reason(), next);
            }
            Stage::Joining | Stage::Claiming => self.leave(now, exit, effects),
            Stage::Verifying(work) => {
                effects.push(Effect::Stop { work: *work });
                self.leave(now, exit, effects);
            }
            Stage::Releasing { next, .. } => *next = AfterRelease::Leave(exit),
            Stage::Leaving(_) | Stage::Ended => {}
        }
    }

    /// Gives the unit back and ends, since this process cannot do such work.
    pub(crate) fn give_up(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        let exit = Exit::Failed(refusal.clone());
        match self.drop_work(&refusal, effects) {
            Some(lease) => self.release(now, lease, refusal.to_string(), AfterRelease::Leave(exit)),
            None => self.leave(now, exit, effects),
        }
    }

    /// Does the same as [`Worker::give_up`], in any stage, within the time of a stop. If the broker
    /// does not take the worker's credentials any more, nothing could be sent, so it ends at once.
    pub(crate) fn broken(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        if matches!(
            refusal.code,
            Code::CredentialRevoked | Code::CredentialReplaced | Code::BusRefused
        ) {
            return self.end(Exit::Failed(refusal), effects);
        }
        let exit = Exit::Failed(refusal.clone());
        let deadline = self.ending.as_ref().and_then(|ending| ending.deadline);
        let deadline = deadline.or(Some(now.after(self.settings.stop_patience)));
        self.ending = Some(Ending {
            exit: exit.clone(),
            deadline,
        });
        match &mut self.stage {
            Stage::Leaving(leaving) => *leaving = exit,
            _ => self.give_up(now, refusal, effects),
        }
    }

    pub(crate) fn run_over(
        &mut self,
        now: UnixMillis,
        refusal: Refusal,
        effects: &mut Vec<Effect>,
    ) {
        self.drop_work(&refusal, effects);
        self.leave(now, Exit::Complete, effects);
    }

    /// Ends at once, and sends nothing more in the worker's name. If another process is the worker
    /// now, then the lease is that process's, a goodbye would end its membership, and another event
    /// would fork its chain. If the worker is in quarantine, nobody would take any of these.
    pub(crate) fn go(&mut self, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.end(Exit::Failed(refusal), effects);
    }

    /// Says goodbye, then ends.
    pub(crate) fn leave(&mut self, now: UnixMillis, exit: Exit, effects: &mut Vec<Effect>) {
        self.keep_unanswered(&exit.refusal(), effects);
        let deadline = Some(now.after(self.settings.stop_patience));
        let deadline = self
            .ending
            .as_ref()
            .and_then(|ending| ending.deadline)
            .or(deadline);
        self.ending = Some(Ending {
            exit: exit.clone(),
            deadline,
        });
        if self.membership.is_none() {
            return self.end(exit, effects);
        }
        effects.push(Effect::Emit(WorkerEvent::Stopped {
            reason: Refusal::new(Code::Internal, exit.reason()).detail,
        }));
        self.enter(now, Stage::Leaving(exit), Millis(0));
    }

    /// Ends the life of the worker.
    pub(crate) fn end(&mut self, exit: Exit, effects: &mut Vec<Effect>) {
        if let Some(work) = self.work() {
            effects.push(Effect::Stop { work });
        }
        self.keep_unanswered(&exit.refusal(), effects);
        self.stage = Stage::Ended;
        self.asked = None;
        effects.push(Effect::Exit(exit));
    }

    pub(crate) fn leave_answered(
        &mut self,
        now: UnixMillis,
        outcome: Result<Answer, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let Stage::Leaving(exit) = &self.stage else {
            panic!(
                "a goodbye was answered while the worker was {:?}",
                self.stage
            )
        };
        let exit = exit.clone();
        match outcome {
            Ok(Answer::Done(_)) => self.end(exit, effects),
            Ok(_) => self.answered_otherwise(now, effects),
            Err(refusal) if verdict(refusal.code) != Verdict::Wait || self.parted() => {
                self.end(exit, effects);
            }
            Err(refusal) => self.ask_again(now, refusal, effects),
        }
    }

    /// True when a release or a goodbye was sent often enough.
    pub(crate) fn parted(&self) -> bool {
        self.pauses.tries() + 1 >= PARTING_TRIES
    }
}
