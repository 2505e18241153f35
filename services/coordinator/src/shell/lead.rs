//! Takes the lead: reads the ledger to its end, and appends a first event that fences off the last
//! leader.

use std::time::Duration;

use coordinator_core::{Coordinator, Settings};
use ledger::State;
use runtime::{Failure, clock};
use schemas::event::EventBody;
use schemas::{Code, Millis, UnixMillis};
use tokio::time::Instant;

use super::Shell;
use crate::checkpoint::{self, tell_unusable};
use crate::ledger::LedgerError;
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
            let mut core = Coordinator::new(settings.clone(), state.clone());
            let mut effects = Vec::new();
            core.start(clock::now(), &mut effects);
            match self.carry_out(&mut effects).await {
                Ok(_) => {
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
    /// Folds in the events after the last one that this process knows. If they do not follow a
    /// checkpoint, the ledger is read once more from its first event.
    async fn read_on(&mut self, state: &mut State) -> Result<(), Failure> {
        let Self { ledger, mark, .. } = &mut *self;
        if let Some(marked) = mark.event().filter(|marked| ledger.begins_behind(*marked)) {
            match ledger.digest_before(marked).await? {
                Some(digest) => mark.found(digest),
                None => {
                    tell_unusable(&format!("event {marked} is not before it"));
                    *state = State::default();
                    ledger.begin_anew();
                }
            }
        }
        let mut follow = |state: &mut State, body: EventBody| {
            mark.follow(&body);
            state.follow(&body)
        };
        let read = ledger.catch_up(|body| follow(state, body)).await;
        match read {
            Err(LedgerError::Broken { stream, reason }) if ledger.has_base() => {
                tell_unusable(&format!("message {stream} does not follow on it: {reason}"));
                *state = State::default();
                ledger.begin_anew();
                Ok(ledger.catch_up(|body| follow(state, body)).await?)
            }
            read => Ok(read?),
        }
    }
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
