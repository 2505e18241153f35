//! The end of a result, as far as its worker can know it.
//!
//! Error feedback depends on it: the part that the codec cut off a contribution may be owed only if
//! the contribution counts. So only the answer to the submit says how a result ended. A refused
//! renewal, a lease that runs out and a command to stop say only that the worker stops its work:
//! the coordinator may have counted the result a moment before.
//!
//! A submit may reach two coordinators: one that leads, and one that has lost the lead and does not
//! know it yet. The second one's state is an older state of the ledger. So its answer proves what
//! it knows to be in the ledger, and nothing by what it does not know: it has not heard of a lease
//! or of a member that the first one let in, while the first one counts the result.
//!
//! | what happens | [`ResultEnd`] | the proof |
//! | --- | --- | --- |
//! | the submit is answered: it counts | counted | it is in the ledger |
//! | the submit is answered: it came too late, it is refused, another result counts | refused | so is this |
//! | the first submit hears that the lease is over, or that the run is | refused | its end is in the ledger, nothing was sent before, and no lease comes back |
//! | a later one hears so | unknown | an earlier one may have counted, and the coordinator remembers results for some rounds only |
//! | a submit hears that the lease, the member or the run is not known | unknown | the one who answers may be behind |
//! | a submit hears that an object is not there | unknown | the one who answers may be behind: objects of a result that counts are moved |
//! | the unit ends before a submit was sent | refused | it was never handed in |
//! | the lease runs out, the worker stops or ends, before the submit is answered | unknown | there is none |
//! | the answer cannot be read | unknown | there is none |

use schemas::{Class, Code, Refusal};

use crate::effect::Effect;
use crate::held::WorkStep;
use crate::worker::Worker;

/// The end of the contribution of a training unit, as far as its worker can know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResultEnd {
    /// The coordinator answered that it counts.
    Counted,
    /// It does not count and never will: it was refused, or was never handed in.
    Refused(Refusal),
    /// It was handed in, and no answer says how it ended.
    Unknown,
}

impl ResultEnd {
    /// The end that a refusal implies for a result that has been handed in `submits` times.
    pub(crate) fn by_refusal(refusal: &Refusal, submits: u32) -> Self {
        let proves = match refusal.code {
            Code::AlreadyCounted => true,
            // The asker itself gives these codes to an answer that it cannot read.
            Code::MessageInvalid | Code::AnswerForeign => false,
            // Said without an event, so that a coordinator that has lost the lead says it too.
            Code::UploadMissing | Code::ObjectMissing => false,
            // Ends that the ledger holds.
            Code::LeaseLost | Code::LeaseStalled | Code::RunClosed => submits <= 1,
            code => matches!(code.class(), Class::Final),
        };
        if proves {
            Self::Refused(refusal.clone())
        } else {
            Self::Unknown
        }
    }
}

impl Worker {
    /// Orders the shell to keep the trainer's state after a training unit, once for each unit: the
    /// first known end is the unit's end.
    pub(crate) fn keep(&mut self, end: ResultEnd, effects: &mut Vec<Effect>) {
        if let Some(work) = self.unsaved.take() {
            effects.push(Effect::KeepInner { work, end });
        }
    }

    /// Does the same for an end of the unit without an answer to its submit.
    pub(crate) fn keep_unanswered(&mut self, refusal: &Refusal, effects: &mut Vec<Effect>) {
        let end = if self.is_handed_in() {
            ResultEnd::Unknown
        } else {
            ResultEnd::Refused(refusal.clone())
        };
        self.keep(end, effects);
    }

    /// True while a result waits for its answer.
    pub(crate) fn is_handed_in(&self) -> bool {
        self.held()
            .is_some_and(|held| matches!(held.step, WorkStep::Submitting(_)))
    }
}
