//! Ctrl-C, or the end of the terminal, while services of a run are up: the signal is remembered, so
//! that everything is stopped in order before this program ends.

use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use schemas::{Code, Refusal};

/// Pause between two looks at a child and at the signal.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Time that a child may take to end after the signal.
const END_PATIENCE: Duration = Duration::from_secs(20);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn remember(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// From here on SIGINT, SIGTERM and SIGHUP do not end this program; [`check`] reports them.
pub(crate) fn listen() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let handler = remember as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: the handler stores to an atomic and does nothing else, which is allowed in a
        // signal handler.
        let before = unsafe { libc::signal(signal, handler) };
        if signal == libc::SIGHUP && before == libc::SIG_IGN {
            // SIGHUP was ignored before, as `nohup` does: the program outlives its terminal.
            // SAFETY: ignoring a signal runs no code of ours.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
    }
}

/// True when a signal came.
pub(crate) fn came() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Returns an error once a signal came.
pub(crate) fn check() -> Result<()> {
    if came() {
        Err(Refusal::new(Code::Interrupted, "stopped by a signal").into())
    } else {
        Ok(())
    }
}

/// Waits for a child's end. Once a signal came, the child is signalled as well, since a signal to
/// this program alone does not reach it, and the child's end is an error.
pub(crate) fn wait(child: &mut Child) -> Result<ExitStatus> {
    loop {
        if let Some(status) = wait_for(child, Duration::MAX)? {
            return Ok(status);
        }
    }
}

/// Like [`wait`], but for `patience` at most. Returns none when the child still runs.
pub(crate) fn wait_for(child: &mut Child, patience: Duration) -> Result<Option<ExitStatus>> {
    let begun = Instant::now();
    while begun.elapsed() < patience {
        let status = child.try_wait().context("cannot wait for a program")?;
        if came() {
            if status.is_none() {
                end(child)?;
            }
            check()?;
        }
        if status.is_some() {
            return Ok(status);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(None)
}

/// Sends SIGINT, and kills the child if it does not end. At a terminal the child gets the signal
/// from the terminal too, and handles both.
fn end(child: &mut Child) -> Result<()> {
    let id = libc::pid_t::try_from(child.id()).context("a process id fits")?;
    // SAFETY: the child was not collected yet, so the id is its own.
    unsafe { libc::kill(id, libc::SIGINT) };
    let told = Instant::now();
    while child
        .try_wait()
        .context("cannot wait for a program")?
        .is_none()
    {
        if told.elapsed() > END_PATIENCE {
            child.kill().context("cannot end a program")?;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_signal_to_this_program_ends_its_child() {
        let sleeping = || {
            Command::new("sleep")
                .arg("600")
                .spawn()
                .expect("sleep starts")
        };
        let mut child = sleeping();
        assert!(
            wait_for(&mut child, Duration::from_millis(10))
                .expect("it runs")
                .is_none()
        );
        // The signal arrives as from a terminal that closes; before, the default handler is set,
        // since this test may run under `nohup`. SAFETY: the first call takes no handler of ours;
        // the second runs the one that `listen` has set.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
        listen();
        // SAFETY: as above.
        unsafe { libc::raise(libc::SIGHUP) };
        assert!(came());
        let error = wait(&mut child).expect_err("interrupted");
        INTERRUPTED.store(false, Ordering::SeqCst);
        assert_eq!(
            error.downcast_ref::<Refusal>().map(|refusal| refusal.code),
            Some(Code::Interrupted)
        );
        assert!(child.try_wait().expect("collected").is_some());
    }
}
