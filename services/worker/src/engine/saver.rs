//! The lane that writes inner states to disk while training goes on.
//!
//! The training thread copies a state and puts it into the mailbox; a thread of its own writes it,
//! beside inner steps and not beside the sync before them, which needs the same disk and processor.
//! One is written at a time, and no more than one a second: a state is worth the steps since the
//! one before, and each write makes everybody who shares the disk wait for its synchronisation. A
//! newer one takes the place of one that still waits, so that a slow disk costs two copies of the
//! state and no more, and never a pause of training.
//!
//! Each write goes to a file beside the state and replaces it only when it is whole and on disk: a
//! process that is killed at any moment leaves the last whole state.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use schemas::Code;
use trainer::InnerState;

use super::residual;
use super::session::Session;

/// Shortest time from the begin of one write to the begin of the next, except at the end.
const WRITE_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// A state that is kept between two units waits this long at most for the steps of the next one.
const STEPS_WAIT_MAX: Duration = Duration::from_secs(5);

/// The lane; seen from the training thread.
pub(super) struct Saver {
    mailbox: Arc<Mailbox>,
    lane: JoinHandle<()>,
}

/// Where the two threads meet. Neither holds it longer than to lay down or to take a state.
#[derive(Default)]
struct Mailbox {
    slot: Mutex<Slot>,
    changed: Condvar,
}

#[derive(Default)]
struct Slot {
    waiting: Option<PendingSave>,
    /// The memory of a state that was written, for the next one: fresh memory costs a page fault
    /// for every 4 KiB, in the middle of a sync.
    spare: Option<InnerState>,
    /// No more will come.
    closed: bool,
}

/// A state and where it is written to.
struct PendingSave {
    state: InnerState,
    residual: Option<residual::Saved>,
    path: PathBuf,
    due: Instant,
}

impl Mailbox {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().expect("neither thread panics at it")
    }

    /// Waits for a state that is due, and until `not_before`; neither counts once the mailbox is
    /// closed. `None` when no more will come.
    fn next(&self, not_before: Instant) -> Option<PendingSave> {
        let mut slot = self.slot();
        loop {
            let due = slot.waiting.as_ref().map(|pending| pending.due);
            let rest = due.map(|due| {
                due.max(not_before)
                    .saturating_duration_since(Instant::now())
            });
            slot = match rest {
                _ if slot.closed => return slot.waiting.take(),
                Some(Duration::ZERO) => return slot.waiting.take(),
                Some(rest) => {
                    let waited = self.changed.wait_timeout(slot, rest);
                    waited.expect("neither thread panics at it").0
                }
                None => {
                    let waited = self.changed.wait(slot);
                    waited.expect("neither thread panics at it")
                }
            };
        }
    }
}

impl Saver {
    /// Starts the lane.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start() -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::default());
        let lane_mailbox = Arc::clone(&mailbox);
        let lane = std::thread::Builder::new()
            .name("saving".to_owned())
            .spawn(move || write_all(&lane_mailbox))?;
        Ok(Self { mailbox, lane })
    }

    /// Copies the inner state of a session as it is now, to be written beside its steps.
    pub(super) fn keep(&self, session: &mut Session) {
        let begun = Instant::now();
        // A state that still waits is older than this one: its memory is used again.
        let mut slot = self.mailbox.slot();
        let waiting = slot.waiting.take().map(|pending| pending.state);
        let mut state = waiting.or_else(|| slot.spare.take()).unwrap_or_default();
        drop(slot);
        if let Err(error) = session.trainer.capture_inner(&mut state) {
            return not_saved(&error);
        }
        let path = session.inner_path().to_owned();
        let residual = session.residual.as_ref().map(residual::Residual::saved);
        // The one on disk may have been sent with the result that this state follows. It goes now,
        // not when the lane gets to it: a process that is killed in between must not send it again.
        if residual.is_some()
            && let Err(error) = residual::remove(&path)
        {
            not_saved(&error);
        }
        let wait = if session.is_stepping() {
            Duration::ZERO
        } else {
            STEPS_WAIT_MAX
        };
        self.mailbox.slot().waiting = Some(PendingSave {
            state,
            residual,
            path,
            due: begun + wait,
        });
        self.mailbox.changed.notify_one();
        tracing::debug!(ms = millis(begun), "inner state copied");
    }

    /// Steps begin: a state that waits is due.
    pub(super) fn steps_begin(&self) {
        if let Some(pending) = &mut self.mailbox.slot().waiting {
            pending.due = Instant::now();
        }
        self.mailbox.changed.notify_one();
    }

    #[cfg(test)]
    pub(super) fn has_waiting(&self) -> bool {
        self.mailbox.slot().waiting.is_some()
    }

    /// Waits until everything that was kept is written.
    pub(super) fn finish(self) {
        self.mailbox.slot().closed = true;
        self.mailbox.changed.notify_one();
        if self.lane.join().is_err() {
            tracing::error!(code = %Code::Internal, "the thread that writes inner states has panicked");
        }
    }
}

/// The lane: writes one state after another until no more will come.
fn write_all(mailbox: &Mailbox) {
    let mut not_before = Instant::now();
    while let Some(pending) = mailbox.next(not_before) {
        let begun = Instant::now();
        not_before = begun + WRITE_INTERVAL_MIN;
        match write(&pending.state, pending.residual.as_ref(), &pending.path) {
            Ok(()) => tracing::debug!(ms = millis(begun), "inner state saved"),
            Err(error) => not_saved(&error),
        }
        mailbox.slot().spare = Some(pending.state);
    }
}

/// Writes a state and the residual that belongs to it. The residual is of the same moment: the one
/// of before is gone before the new state is there.
pub(super) fn write(
    state: &InnerState,
    residual: Option<&residual::Saved>,
    path: &Path,
) -> Result<(), String> {
    if let Some(folder) = path.parent() {
        identity::secret::create_private_subfolder(folder).map_err(|error| error.to_string())?;
    }
    if residual.is_some() {
        residual::remove(path)?;
    }
    state.write(path).map_err(|error| error.to_string())?;
    residual.map_or(Ok(()), |residual| residual.write(path))
}

fn not_saved(error: &dyn std::fmt::Display) {
    tracing::warn!(code = %Code::WorkerStateInvalid, %error, "inner state not saved; it stays in memory");
}

fn millis(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}
