//! Ending in order. The first SIGINT, SIGTERM or SIGHUP cancels a token that every long-lived task
//! watches. Further SIGTERM and SIGHUP change nothing: service managers and `diloctl down` may send
//! several, and saving takes time. A second SIGINT is a person who has pressed Ctrl-C twice, and
//! ends the process at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit status after a second SIGINT: what a shell reports for that signal.
const EXIT_INTERRUPTED: i32 = 130;

/// A signal that asks a process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopSignal {
    Interrupt,
    Terminate,
    Hangup,
}

/// The effect of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SignalEffect {
    /// Stop in order.
    Stop,
    /// Stopping goes on as before.
    GoOn,
    /// End without finishing.
    EndNow,
}

/// The signals that came so far.
#[derive(Debug, Default)]
struct Stopping {
    begun: bool,
    interrupted: bool,
}

impl StopSignal {
    const fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Hangup => "SIGHUP",
        }
    }
}

impl Stopping {
    fn next(&mut self, asked: StopSignal) -> SignalEffect {
        // SIGINT is counted by itself: a manager's SIGTERM may come together with the terminal's
        // single SIGINT.
        let second_interrupt =
            asked == StopSignal::Interrupt && std::mem::replace(&mut self.interrupted, true);
        let begun = std::mem::replace(&mut self.begun, true);
        match (begun, second_interrupt) {
            (_, true) => SignalEffect::EndNow,
            (true, false) => SignalEffect::GoOn,
            (false, false) => SignalEffect::Stop,
        }
    }
}

/// A token that is cancelled by the first signal. To be called once, inside the runtime.
///
/// # Errors
/// The system does not take the handlers.
pub fn on_signals() -> std::io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = hangup()?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let mut stopping = Stopping::default();
        loop {
            let asked = tokio::select! {
                _ = interrupt.recv() => StopSignal::Interrupt,
                _ = terminate.recv() => StopSignal::Terminate,
                () = heard(&mut hangup) => StopSignal::Hangup,
            };
            let signal = asked.name();
            match stopping.next(asked) {
                SignalEffect::Stop => {
                    tracing::info!(
                        signal,
                        "stopping in order; Ctrl-C twice ends the process at once"
                    );
                    cancelled.cancel();
                }
                SignalEffect::GoOn => tracing::info!(signal, "stopping already"),
                SignalEffect::EndNow => {
                    tracing::warn!(signal, "second interrupt: ending at once");
                    crate::log::flush();
                    std::process::exit(EXIT_INTERRUPTED);
                }
            }
        }
    });
    Ok(token)
}

/// The signal for the end of the terminal. None if the process was started to outlive its terminal
/// (`nohup`), since a handler would undo that.
///
/// # Errors
/// The system does not take the handler.
pub fn hangup() -> std::io::Result<Option<Signal>> {
    match is_ignored(libc::SIGHUP) {
        true => Ok(None),
        false => signal(SignalKind::hangup()).map(Some),
    }
}

/// Resolves when the signal comes; without a signal, never.
pub async fn heard(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// True when this process was started with the signal ignored.
pub fn is_ignored(signal: libc::c_int) -> bool {
    let mut present = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with no new action `sigaction` only writes the present one into the room given, which
    // is of its type.
    let known = unsafe { libc::sigaction(signal, std::ptr::null(), present.as_mut_ptr()) } == 0;
    // SAFETY: zeroes are a valid `sigaction`, and the call has written over them where it
    // succeeded.
    known && unsafe { present.assume_init() }.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(signals: &[StopSignal]) -> SignalEffect {
        let mut stopping = Stopping::default();
        signals
            .iter()
            .map(|asked| stopping.next(*asked))
            .last()
            .expect("at least one signal")
    }

    #[test]
    fn any_signal_stops_in_order() {
        for asked in [
            StopSignal::Interrupt,
            StopSignal::Terminate,
            StopSignal::Hangup,
        ] {
            assert_eq!(after(&[asked]), SignalEffect::Stop, "{asked:?}");
        }
    }

    #[test]
    fn only_a_second_interrupt_ends_at_once() {
        use StopSignal::{Hangup, Interrupt, Terminate};
        for repeated in [
            &[Terminate, Terminate][..],
            &[Terminate, Hangup],
            &[Hangup, Hangup, Terminate],
            &[Interrupt, Terminate, Hangup],
            // Ctrl-C reaches the whole process group, and a manager in the foreground passes it on
            // as SIGTERM.
            &[Terminate, Interrupt],
        ] {
            assert_eq!(after(repeated), SignalEffect::GoOn, "{repeated:?}");
        }
        assert_eq!(after(&[Interrupt, Interrupt]), SignalEffect::EndNow);
        assert_eq!(
            after(&[Interrupt, Terminate, Interrupt]),
            SignalEffect::EndNow
        );
        assert_eq!(
            after(&[Terminate, Interrupt, Interrupt]),
            SignalEffect::EndNow
        );
    }
}
