//! The lane that writes inner states to disk while training goes on.
//!
//! The training thread copies a state and puts it into the mailbox; a thread of its own writes it,
//! beside inner steps and not beside the sync before them, which needs the same disk and processor.
//! One is written at a time, and no more than one a second: a state is worth the steps since the
//! one before, and each write makes everybody who shares the disk wait for its synchronisation. A
//! newer one takes the place of one that still waits, so that a slow disk costs two copies of the
//! state and no more, and never a pause of training.
//!
//! A residual of error feedback is written after the state of its moment, and not at all when a
//! contribution went out with it meanwhile ([`Saver::withdraw`]).
//!
//! Each write goes to a file beside the state and replaces it only when it is whole and on disk: a
//! process that is killed at any moment leaves the last whole state.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use schemas::{Code, Refusal};
use trainer::InnerState;

use super::residual;
use super::session::Session;

/// Shortest time from the begin of one write to the begin of the next, except at the end.
const WRITE_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// A state that is kept between two units waits this long at most for the steps of the next one.
const STEPS_WAIT_MAX: Duration = Duration::from_secs(5);

/// The lane; seen from the training thread. When it is dropped, the state that was kept is written
/// first, however the training thread ends.
pub(super) struct Saver {
    mailbox: Arc<Mailbox>,
    /// The lane's thread; there until the end.
    lane: Option<JoinHandle<()>>,
}

/// The meeting place of the two threads. Neither holds it longer than it takes to put a state in or
/// to take one out.
#[derive(Default)]
struct Mailbox {
    slot: Mutex<Slot>,
    changed: Condvar,
    /// The number of times that a residual was withdrawn. Held while one is put in its place or
    /// removed.
    withdrawals: Mutex<u64>,
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
pub(super) struct PendingSave {
    pub(super) state: InnerState,
    residual: Option<residual::Saved>,
    /// The number of withdrawals when the residual was made: a later withdrawal makes it void.
    withdrawals: u64,
    path: PathBuf,
    due: Instant,
}

impl PendingSave {
    /// A state that is due, with a residual that is not withdrawn.
    pub(super) fn new(
        state: InnerState,
        residual: Option<residual::Saved>,
        withdrawals: u64,
        path: PathBuf,
    ) -> Self {
        Self {
            state,
            residual,
            withdrawals,
            path,
            due: Instant::now(),
        }
    }
}

impl Mailbox {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().expect("neither thread panics at it")
    }

    fn withdrawals(&self) -> MutexGuard<'_, u64> {
        let count = self.withdrawals.lock();
        count.expect("neither thread panics at it")
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
        Ok(Self {
            mailbox,
            lane: Some(lane),
        })
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
        if self.lane.as_ref().is_none_or(JoinHandle::is_finished) {
            not_saved(&"the thread that writes has ended");
        }
        let path = session.inner_path().to_owned();
        let residual = session.residual.as_ref().map(residual::Residual::saved);
        let withdrawals = *self.mailbox.withdrawals();
        let wait = if session.is_stepping() {
            Duration::ZERO
        } else {
            STEPS_WAIT_MAX
        };
        let pending = PendingSave::new(state, residual, withdrawals, path);
        let due = begun + wait;
        self.mailbox.slot().waiting = Some(PendingSave { due, ..pending });
        self.mailbox.changed.notify_one();
        tracing::debug!(ms = millis(begun), "inner state copied");
    }

    /// Removes the residual that is kept beside an inner state, since a contribution with it is
    /// about to go out. One that was copied before and still waits is not written any more.
    ///
    /// # Errors
    /// It cannot be removed: then nothing may go out, or a worker that is killed would send it
    /// again.
    pub(super) fn withdraw(&self, inner: &Path) -> Result<(), Refusal> {
        let mut withdrawals = self.mailbox.withdrawals();
        *withdrawals += 1;
        residual::remove(inner).map_err(|error| {
            let detail = format!("the residual beside {} stays: {error}", inner.display());
            Refusal::new(Code::WorkerStateInvalid, detail)
        })
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

    /// Ends the lane as soon as everything that was kept is written.
    pub(super) fn finish(self) {
        drop(self);
    }
}

impl Drop for Saver {
    /// Ends the lane after the last write, also when the training thread ends by a panic or before
    /// its time: the state that was kept last was whole when it was copied.
    fn drop(&mut self) {
        self.mailbox.slot().closed = true;
        self.mailbox.changed.notify_one();
        let lane = self.lane.take();
        if lane.is_some_and(|lane| lane.join().is_err()) {
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
        match write(&pending, &mailbox.withdrawals) {
            Ok(()) => tracing::debug!(ms = millis(begun), "inner state saved"),
            Err(error) => not_saved(&error),
        }
        mailbox.slot().spare = Some(pending.state);
    }
}

/// Writes a state, and after it the residual of the same moment, which names it: whenever the
/// process is killed, a residual of another moment is known by its name. The bytes of the residual
/// are on disk before the training thread can be made to wait.
pub(super) fn write(pending: &PendingSave, withdrawals: &Mutex<u64>) -> Result<(), String> {
    let PendingSave {
        state,
        residual,
        path,
        ..
    } = pending;
    if let Some(folder) = path.parent() {
        identity::secret::create_private_subfolder(folder).map_err(|error| error.to_string())?;
    }
    let name = format!("{:016x}", identity::join::new_session().0);
    state
        .write_named(path, &name)
        .map_err(|error| error.to_string())?;
    let Some(residual) = residual else {
        return Ok(());
    };
    residual.write(path, &name)?;
    let withdrawn = withdrawals.lock().expect("neither thread panics at it");
    match *withdrawn == pending.withdrawals {
        true => residual.put_in_place(path),
        // A contribution went out with it meanwhile.
        false => Ok(()),
    }
}

fn not_saved(error: &dyn std::fmt::Display) {
    tracing::warn!(code = %Code::WorkerStateInvalid, %error, "inner state not saved; it stays in memory");
}

fn millis(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}
