//! The parts of the coordinator that a handler may touch besides its run's room, and the ways in
//! which a request ends.

use std::collections::BTreeMap;

use ledger::RunFold;
use schemas::event::LedgerEvent;
use schemas::lease::Done;
use schemas::{Refusal, RunId, UnixMillis, V};

use crate::coordinator::Settings;
use crate::deadline::Timers;
use crate::effect::{Answer, Effect};
use crate::input::{ReplyId, ScreeningId};

/// One call of the coordinator: the time, the effects and the timers. Another run cannot be reached
/// from here.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    /// The time of this call; it never goes back.
    pub(crate) now: UnixMillis,
    pub(crate) settings: &'a Settings,
    /// True while the coordinator drains: holders may finish, and nothing new is granted.
    pub(crate) draining: bool,
    pub(crate) timers: &'a mut Timers,
    pub(crate) screenings: &'a mut Screenings,
    /// Effects of this call, in order.
    pub(crate) out: &'a mut Vec<Effect>,
}

/// The way in which a request ends for now.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// An answer now.
    Now(Answer),
    /// The answer comes later: the handler keeps the reply, or an effect gives it.
    Later,
    /// A refusal that is not recorded, since the asker is not at fault or the ledger holds it
    /// already.
    NotNow(Refusal),
}

impl Outcome {
    /// The request was carried out, and there is nothing more to say.
    pub(crate) fn done() -> Self {
        Self::Now(Answer::Done(Done { v: V }))
    }
}

/// The other end of a request: a refusal that is recorded. A check that fails under `?` gives it.
#[derive(Debug)]
pub(crate) struct Denied(pub(crate) Refusal);

/// The outcome of a handler of a worker's request; the router replies and records.
pub(crate) type Handled = Result<Outcome, Denied>;

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl Turn<'_> {
    pub(crate) fn reply(&mut self, reply: ReplyId, answer: Result<Answer, Refusal>) {
        self.out.push(Effect::Reply { reply, answer });
    }

    /// Has the shell answer with the keys that sign leases and commands. They are public, so the
    /// asker need not be a member.
    pub(crate) fn show_keys(&mut self, reply: ReplyId) -> Handled {
        self.out.push(Effect::ShowKeys { reply });
        Ok(Outcome::Later)
    }

    /// Writes an event of a run: the fold takes it at once, and the ledger has it before any later
    /// effect except a merge is carried out.
    pub(crate) fn append(&mut self, run: &mut RunFold<'_>, event: LedgerEvent) {
        let applied = run.apply(self.now, &event);
        applied.expect("the core appends only what follows from its state");
        debug_assert_eq!(run.check(), Ok(()), "{event:?}");
        self.out.push(Effect::Append {
            time: self.now,
            run: Some(run.name().clone()),
            event: Box::new(event),
        });
    }
}

/// The runs whose results are being checked. The check itself is in the room of its run.
#[derive(Debug, Default)]
pub(crate) struct Screenings {
    begun: u64,
    running: BTreeMap<ScreeningId, RunId>,
}

impl Screenings {
    /// Numbers a check of a result of `run`.
    pub(crate) fn begin(&mut self, run: &RunId) -> ScreeningId {
        self.begun += 1;
        let screening = ScreeningId(self.begun);
        self.running.insert(screening, run.clone());
        screening
    }

    /// Ends a check of a result of `run`. False for a check that is over, never began, or is of
    /// another run: a foundry answers for its own run only.
    pub(crate) fn end(&mut self, run: &RunId, screening: ScreeningId) -> bool {
        let asked = self.running.get(&screening) == Some(run);
        if asked {
            self.running.remove(&screening);
        }
        asked
    }
}
