//! Takes the lead: reads the ledger to its end, and appends a first event that fences off the last
//! leader.

use std::sync::Arc;
use std::time::Duration;

use coordinator_core::{Coordinator, Settings, Succession};
use identity::{AuditKey, NextEventKey};
use ledger::State;
use runtime::{Failure, clock};
use schemas::event::{EventBody, LedgerEvent};
use schemas::{Code, Millis, PublicKey, UnixMillis};
use tokio::time::Instant;

use super::Shell;
use crate::checkpoint::{self, ALL_EVENTS, tell_unusable};
use crate::ledger::{LedgerError, Marked, NewEvent};
use crate::mark::StoreMark;

/// Longest wait at a start whose clock is behind the ledger's newest event. Clocks of one site
/// differ by less. If the difference is larger, one of the two clocks was wrong, and nobody can say
/// which: the coordinator then continues from the ledger's time, so that time never runs back and
/// no run stands still.
const BEHIND_WAIT_MAX: Millis = Millis::from_secs(10);

impl Shell {
    /// Takes the lead: the first append fences off the coordinator that led before. While that one
    /// still appends, this one reads on and tries again, for `patience`.
    ///
    /// # Errors
    /// The ledger cannot be followed or written, it was lost, or the predecessor keeps appending.
    pub(crate) async fn lead(
        &mut self,
        settings: &Settings,
        store_mark: &StoreMark,
        patience: Duration,
    ) -> Result<Coordinator, Failure> {
        if !matches!(self.event_key.next(), NextEventKey::Ready(_)) {
            self.ledger.check_unended()?;
        }
        let mut deadline = None;
        let mut state = checkpoint::begin(&mut self.ledger, &self.store).await?;
        loop {
            self.read_on(&mut state).await?;
            self.mark.agree(&self.ledger)?;
            let Self { ledger, .. } = &mut *self;
            if ledger.is_empty() {
                store_mark.allow_beginning().await?;
            }
            meet(state.time()).await;
            let events = self.ledger.len();
            let read = self.ledger.known();
            match self.begin(settings, &mut state, read).await {
                Ok(core) => {
                    tracing::info!(
                        events,
                        read = self.ledger.known(),
                        "ledger verified and replayed"
                    );
                    return Ok(core);
                }
                // Once a first event was accepted, being fenced off is final.
                Err(failure)
                    if failure.code() == Code::LedgerFenced && self.ledger.len() == events =>
                {
                    let now = Instant::now();
                    if now >= *deadline.get_or_insert(now + patience) {
                        return Err(failure);
                    }
                    tracing::info!(
                        events,
                        "another coordinator has appended meanwhile; reading on"
                    );
                }
                Err(failure) => return Err(failure),
            }
        }
    }
}

impl Shell {
    /// Takes the next key for events, if one waits, and appends the first event of this leader.
    async fn begin(
        &mut self,
        settings: &Settings,
        state: &mut State,
        read: u64,
    ) -> Result<Coordinator, Failure> {
        self.take_next_key(state).await?;
        let core = Coordinator::new(settings.clone(), state.clone());
        let mut core = core.having_read(read);
        let mut effects = Vec::new();
        core.start(clock::now(), &mut effects);
        self.carry_out(&mut effects).await?;
        Ok(core)
    }

    /// Signs with the next key from here on, if one waits: the last event of the present one names
    /// it. A process that died between that event and the move of the file goes on from there.
    ///
    /// # Errors
    /// The ledger is continued with a key that is not here; the event was not appended; or the file
    /// cannot be moved.
    async fn take_next_key(&mut self, state: &mut State) -> Result<(), Failure> {
        let Some(next) = self.next_key() else {
            return Ok(self.ledger.check_own()?);
        };
        match Succession::of(self.ledger.emitter(), self.ledger.own(), next.public()) {
            Succession::Name => {
                self.ledger.check_unended()?;
                self.name(state, next.public().clone()).await?;
            }
            Succession::Take => {}
            Succession::Other => return Err(self.ledger.succeeded().into()),
        }
        self.event_key.take(next.public())?;
        tracing::info!(key = %next.public(), "the ledger is signed with a new key");
        self.maker.key = Arc::new(next.clone());
        self.ledger.sign_with(next);
        Ok(())
    }

    /// The key for events that waits, if it can be taken. One that only a newer trust bundle names
    /// than the one that this process has read is left to the next start.
    fn next_key(&self) -> Option<AuditKey> {
        match self.event_key.next() {
            NextEventKey::None => None,
            NextEventKey::Ready(next) => {
                Some(*next).filter(|next| self.ledger.knows(next.public()))
            }
            NextEventKey::Unfit(reason) => {
                tell_unfit(&reason);
                None
            }
        }
    }

    /// Writes the last event of the present key, which names the next one.
    async fn name(&mut self, state: &mut State, next: PublicKey) -> Result<(), Failure> {
        let event = LedgerEvent::EmitterSucceeded { next };
        let time = clock::now().max(state.time());
        let appended = NewEvent {
            time,
            run: None,
            event: event.clone(),
        };
        self.ledger.append([appended]).await?;
        state
            .apply(time, None, &event)
            .map_err(|error| Failure::new(Code::Internal, error))?;
        self.mark.note(&self.ledger);
        Ok(())
    }

    /// Folds in the events after the last one that this process knows. If they do not follow a
    /// checkpoint, the ledger is read once more from its first event.
    async fn read_on(&mut self, state: &mut State) -> Result<(), Failure> {
        let Self { ledger, mark, .. } = &mut *self;
        match ledger.find_marked(mark.event()).await? {
            Marked::Ahead => {}
            Marked::Covered(digest) => mark.found(digest),
            Marked::Nowhere => {
                tell_unusable("the marked event is not before it", ALL_EVENTS);
                *state = State::default();
            }
        }
        let mut follow = |state: &mut State, body: EventBody| {
            mark.follow(&body);
            state.follow(&body)
        };
        let read = ledger.catch_up(|body| follow(state, body)).await;
        match read {
            Err(LedgerError::Broken { stream, reason }) if ledger.has_base() => {
                let reason = format!("message {stream} does not follow on it: {reason}");
                tell_unusable(&reason, ALL_EVENTS);
                *state = State::default();
                ledger.begin_anew();
                Ok(ledger.catch_up(|body| follow(state, body)).await?)
            }
            read => Ok(read?),
        }
    }
}

/// Tells why the key for events that waits is not taken. The present key signs on.
pub(crate) fn tell_unfit(reason: &str) {
    let code = Code::EventKeyUnknown;
    tracing::warn!(%code, next = code.next_step(), reason, "the key for events that waits is not taken");
}

/// Makes sure that this process's time is not before the ledger's newest event: waits, or continues
/// from there.
async fn meet(newest: UnixMillis) {
    let now = clock::now();
    let behind = now.until(newest);
    let (event, machine) = (clock::text(newest), clock::text(now));
    if behind > BEHIND_WAIT_MAX {
        clock::continue_from(newest);
        tracing::warn!(
            code = %Code::ClockBehind,
            "the ledger's newest event is of {event}, this machine's clock says {machine}; the run goes on from the ledger's time"
        );
    } else if behind > Millis(0) {
        tracing::info!(
            "the ledger's newest event is of {event}, this machine's clock says {machine}; waiting until then"
        );
        tokio::time::sleep(behind.as_duration()).await;
    }
}
