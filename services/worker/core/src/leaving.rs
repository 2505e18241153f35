//! Leaving: told to end, unable to go on, or done.

use schemas::event::WorkerEvent;
use schemas::{Code, Millis, Refusal, UnixMillis};

use crate::effect::{Effect, Exit};
use crate::held::Step;
use crate::settings::PARTING_TRIES;
use crate::stage::{Ending, Next, Stage};
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
            Stage::Releasing { next, .. } => *next = Next::Leave(Exit::Drained),
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
            // The result may be on its way already: it is finished, and the deadline stands.
            Stage::Holding(held) if matches!(held.step, Step::Submitting(_)) => {}
            Stage::Holding(_) => {
                let refusal = Refusal::new(Code::Interrupted, exit.reason());
                let lease = self
                    .drop_work(&refusal, effects)
                    .expect("this arm holds a lease");
                let next = Next::Leave(exit.clone());
                self.enter(
                    now,
                    Stage::Releasing {
                        lease,
                        reason: exit.reason(),
                        next,
                    },
                    Millis(0),
                );
            }
            Stage::Joining | Stage::Claiming => self.leave(now, exit, effects),
            Stage::Verifying(work) => {
                effects.push(Effect::Stop { work: *work });
                self.leave(now, exit, effects);
            }
            Stage::Releasing { next, .. } => *next = Next::Leave(exit),
            Stage::Leaving(_) | Stage::Ended => {}
        }
    }

    /// This process cannot do such work: give the unit back and end.
    pub(crate) fn give_up(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        let exit = Exit::Failed(refusal.clone());
        match self.drop_work(&refusal, effects) {
            Some(lease) => {
                let next = Next::Leave(exit);
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
            None => self.leave(now, exit, effects),
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

    /// Another process is the worker now: this one stops and says nothing more in its name. Its
    /// lease is not its own any more, a goodbye would end the other's membership, and an event of
    /// its own would fork the chain.
    pub(crate) fn replaced(&mut self, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.end(Exit::Failed(refusal), effects);
    }

    /// Says goodbye, then ends.
    pub(crate) fn leave(&mut self, now: UnixMillis, exit: Exit, effects: &mut Vec<Effect>) {
        self.save(effects);
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

    /// The end.
    pub(crate) fn end(&mut self, exit: Exit, effects: &mut Vec<Effect>) {
        if let Some(work) = self.work() {
            effects.push(Effect::Stop { work });
        }
        self.save(effects);
        self.stage = Stage::Ended;
        self.asked = None;
        effects.push(Effect::Exit(exit));
    }

    /// Whether a parting word was said often enough.
    pub(crate) fn parted(&self) -> bool {
        self.pace.tries() + 1 >= PARTING_TRIES
    }
}
