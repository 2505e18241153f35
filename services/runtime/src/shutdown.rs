//! Ending in order: the first SIGINT or SIGTERM cancels a token that everything long-lived watches; the second ends the
//! process at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit status after a second signal: what a shell reports for SIGINT.
const EXIT_INTERRUPTED: i32 = 130;

/// A token that is cancelled by the first signal. To be called once, inside the runtime.
///
/// # Errors
/// The system does not take the handlers.
pub fn on_signals() -> std::io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        for first in [true, false] {
            let name = tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            };
            if first {
                tracing::info!(signal = name, "stopping in order; a second signal ends the process at once");
                cancelled.cancel();
            } else {
                tracing::warn!(signal = name, "second signal: ending at once");
                crate::log::flush();
                std::process::exit(EXIT_INTERRUPTED);
            }
        }
    });
    Ok(token)
}
