//! The lane that writes inner states to disk while training goes on.
//!
//! The training thread copies a state and puts it into the mailbox. A second thread writes it to
//! disk while the next inner steps run, and not during the sync before them, which needs the same
//! disk and processor. One state is written at a time, and at most one a second: a new state saves
//! only the steps since the last one, and each write delays all processes that share the disk. A
//! newer state replaces one that still waits once its copy is whole: if the device fails at the
//! copy, the older one is written. So a slow disk costs three copies of the state, and never a
//! pause of training.
//!
//! A residual of error feedback is written after the state of its moment, and not at all if a
//! contribution with it was sent meanwhile ([`Saver::withdraw`]).
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

/// Least time from the start of one write to the start of the next, except at the end.
const WRITE_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Longest time that a state copied between two units waits for the next unit's steps to begin.
const STEPS_WAIT_MAX: Duration = Duration::from_secs(5);

/// The lane, as the training thread sees it. Dropping it first writes the kept state, however the
/// training thread ends.
pub(super) struct Saver {
    mailbox: Arc<Mailbox>,
    /// The lane's thread, until the end.
    lane: Option<JoinHandle<()>>,
}

/// The mailbox between the two threads. Each locks it only to put a state in or to take one out.
#[derive(Default)]
struct Mailbox {
    slot: Mutex<Slot>,
    changed: Condvar,
    /// The number of withdrawals of a residual. Locked while a residual's file is put in place or
    /// removed.
    withdrawals: Mutex<u64>,
}

#[derive(Default)]
struct Slot {
    waiting: Option<PendingSave>,
    /// The memory of a written state, for the next one: fresh memory would cost a page fault for
    /// every 4 KiB, in the middle of a sync.
    spare: Option<InnerState>,
    /// The same of a written residual.
    spare_residual: Vec<f32>,
    /// True when no more states will come.
    closed: bool,
}

/// A state and where it is written to.
pub(super) struct PendingSave {
    pub(super) state: InnerState,
    residual: Option<residual::Saved>,
    /// Number of withdrawals when the residual was made; a later withdrawal makes it void.
    withdrawals: u64,
    path: PathBuf,
    due: Instant,
}

impl PendingSave {
    /// A state that may be written now, with a residual that is not withdrawn.
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

impl Slot {
    /// Keeps the memory of a state that is written, or is not needed any more.
    fn take_memory_of(&mut self, pending: PendingSave) {
        self.spare = Some(pending.state);
        if let Some(residual) = pending.residual {
            self.spare_residual = residual.into_memory();
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

    /// Waits for a state that may be written, and until `not_before`; once the mailbox is closed it
    /// does not wait. Returns `None` when no more will come.
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

    /// Copies the present inner state of a session, to be written beside its steps.
    pub(super) fn keep(&self, session: &mut Session) {
        let begun = Instant::now();
        // A state that still waits keeps its memory until this one is whole.
        let mut slot = self.mailbox.slot();
        let mut state = slot.spare.take().unwrap_or_default();
        let memory = std::mem::take(&mut slot.spare_residual);
        drop(slot);
        if let Err(error) = session.trainer.capture_inner(&mut state) {
            let mut slot = self.mailbox.slot();
            (slot.spare, slot.spare_residual) = (Some(state), memory);
            return not_saved(&error);
        }
        // A residual that cannot be read does not keep the state from the disk: a file of an older
        // residual names an older state.
        let residual = session.saved_residual(memory).unwrap_or_else(|error| {
            tracing::warn!(code = %error.code(), %error, "the residual is not saved; it stays where it is");
            None
        });
        if self.lane.as_ref().is_none_or(JoinHandle::is_finished) {
            not_saved(&"the thread that writes has ended");
        }
        let path = session.inner_path().to_owned();
        let withdrawals = *self.mailbox.withdrawals();
        let wait = if session.is_stepping() {
            Duration::ZERO
        } else {
            STEPS_WAIT_MAX
        };
        let pending = PendingSave {
            due: begun + wait,
            ..PendingSave::new(state, residual, withdrawals, path)
        };
        let mut slot = self.mailbox.slot();
        if let Some(older) = slot.waiting.replace(pending) {
            slot.take_memory_of(older);
        }
        drop(slot);
        self.mailbox.changed.notify_one();
        tracing::debug!(ms = millis(begun), "inner state copied");
    }

    /// Removes the residual beside an inner state, since a contribution with it is about to be
    /// sent. A copy that still waits is not written any more.
    ///
    /// # Errors
    /// The file cannot be removed. Then nothing may be sent: a worker that is killed would send the
    /// residual again.
    pub(super) fn withdraw(&self, inner: &Path) -> Result<(), Refusal> {
        let mut withdrawals = self.mailbox.withdrawals();
        *withdrawals += 1;
        residual::remove(inner).map_err(|error| {
            let detail = format!("the residual beside {} stays: {error}", inner.display());
            Refusal::new(Code::WorkerStateInvalid, detail)
        })
    }

    /// Steps begin, so a waiting state may be written.
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

    /// Ends the lane once every kept state is written.
    pub(super) fn finish(self) {
        drop(self);
    }
}

impl Drop for Saver {
    /// Ends the lane after the last write, even if the training thread panics or ends early: the
    /// last kept state was whole when it was copied.
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
        mailbox.slot().take_memory_of(pending);
    }
}

/// Writes a state, and then the residual of the same moment, which names the state. Whenever the
/// process is killed, the name tells a residual of another moment apart. The residual's bytes are
/// on disk before the training thread may have to wait.
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
        // A contribution with it was sent meanwhile.
        false => Ok(()),
    }
}

fn not_saved(error: &dyn std::fmt::Display) {
    tracing::warn!(code = %Code::WorkerStateInvalid, %error, "inner state not saved; it stays in memory");
}

fn millis(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}
