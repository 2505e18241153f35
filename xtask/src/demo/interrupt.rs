//! Ctrl-C during the demo: remembered, so that everything is stopped in order before this program ends.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use schemas::{Code, Refusal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn remember(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// From here on SIGINT and SIGTERM do not end this program; [`check`] tells of them.
pub(crate) fn listen() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler stores to an atomic and does nothing else, which is allowed in a signal handler.
        unsafe { libc::signal(signal, remember as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// Whether a signal came.
pub(crate) fn came() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// An error once a signal came.
pub(crate) fn check() -> Result<()> {
    if came() { Err(Refusal::new(Code::Interrupted, "stopped by a signal").into()) } else { Ok(()) }
}
