//! The lane that writes inner states to disk while training goes on.
//!
//! The training thread copies a state and lays it on the desk; a thread of its own writes it. One
//! is written at a time, and no more than one a second: a state is worth the steps since the one
//! before, and each write makes everybody who shares the disk wait for its synchronisation. A newer
//! one takes the place of one that still waits, so that a slow disk costs two copies of the state
//! and no more, and never a pause of training. Each write goes to a
//! file beside the state and replaces it only when it is whole and on disk: a process that is
//! killed at any moment leaves the last whole state.

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

/// The lane; seen from the training thread.
pub(super) struct Saver {
    desk: Arc<Desk>,
    lane: JoinHandle<()>,
}

/// Where the two threads meet. Neither holds it longer than to lay down or to take a state.
#[derive(Default)]
struct Desk {
    papers: Mutex<Papers>,
    changed: Condvar,
}

#[derive(Default)]
struct Papers {
    waiting: Option<Paper>,
    /// No more will come.
    closed: bool,
}

/// A state and where it is written to.
struct Paper {
    state: InnerState,
    residual: Option<residual::Saved>,
    path: PathBuf,
}

impl Desk {
    fn papers(&self) -> MutexGuard<'_, Papers> {
        self.papers.lock().expect("neither thread panics at it")
    }

    /// Waits for a state; `None` when none waits and no more will come.
    fn next(&self) -> Option<Paper> {
        let nothing = |papers: &mut Papers| papers.waiting.is_none() && !papers.closed;
        let papers = self.changed.wait_while(self.papers(), nothing);
        papers.expect("neither thread panics at it").waiting.take()
    }

    /// Lets time pass, unless the desk is closed.
    fn rest_until(&self, end: Instant) {
        let rest = end.saturating_duration_since(Instant::now());
        let open = |papers: &mut Papers| !papers.closed;
        let rested = self.changed.wait_timeout_while(self.papers(), rest, open);
        drop(rested.expect("neither thread panics at it"));
    }
}

impl Saver {
    /// Starts the lane.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start() -> io::Result<Self> {
        let desk = Arc::new(Desk::default());
        let lane_desk = Arc::clone(&desk);
        let lane = std::thread::Builder::new()
            .name("saving".to_owned())
            .spawn(move || write_all(&lane_desk))?;
        Ok(Self { desk, lane })
    }

    /// Copies the inner state of a session as it is now, to be written soon.
    pub(super) fn keep(&self, session: &mut Session) {
        let begun = Instant::now();
        // A state that still waits is older than this one: its memory is used again.
        let waiting = self.desk.papers().waiting.take();
        let mut state = waiting.map(|paper| paper.state).unwrap_or_default();
        if let Err(error) = session.trainer.capture_inner(&mut state) {
            return not_saved(&error);
        }
        let path = session.inner_path().to_owned();
        let residual = session.residual.as_ref().map(residual::Residual::saved);
        self.desk.papers().waiting = Some(Paper {
            state,
            residual,
            path,
        });
        self.desk.changed.notify_one();
        tracing::debug!(ms = millis(begun), "inner state copied");
    }

    /// Waits until everything that was kept is written.
    pub(super) fn finish(self) {
        self.desk.papers().closed = true;
        self.desk.changed.notify_one();
        if self.lane.join().is_err() {
            tracing::error!(code = %Code::Internal, "the thread that writes inner states has panicked");
        }
    }
}

/// The lane: writes one state after another until no more will come.
fn write_all(desk: &Desk) {
    while let Some(Paper {
        state,
        residual,
        path,
    }) = desk.next()
    {
        let begun = Instant::now();
        match write(&state, residual.as_ref(), &path) {
            Ok(()) => tracing::debug!(ms = millis(begun), "inner state saved"),
            Err(error) => not_saved(&error),
        }
        // Its memory is for others from here on.
        drop(state);
        desk.rest_until(begun + WRITE_INTERVAL_MIN);
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
