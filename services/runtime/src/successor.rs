//! Another key for a process that runs: credentials that wait beside its own. The process takes them
//! at its start. While it runs it looks for them, ends in order, and begins anew in the same process,
//! so that whatever started it need not do so again.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use identity::IdentityFiles;
use schemas::Code;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{Failure, log};

/// Time between two looks for a successor: a look asks for one name in a local folder.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Puts every successor that waits in its place.
pub(crate) fn take(identities: &[IdentityFiles]) -> Result<(), Failure> {
    for files in identities {
        if let Some(key) = files.take_successor()? {
            let file = files.credentials.display();
            tracing::info!(%key, %file, "this process has another key from now on");
        }
    }
    Ok(())
}

/// A token that is cancelled once a successor waits for one of these identities.
pub(crate) fn watch(identities: Vec<IdentityFiles>) -> CancellationToken {
    let succeeded = CancellationToken::new();
    let found = succeeded.clone();
    tokio::spawn(async move {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if let Some(files) = identities.iter().find(|files| files.has_successor()) {
                let file = files.credentials.display();
                tracing::info!(%file, "another key waits; ending in order to begin anew with it");
                found.cancel();
                return;
            }
        }
    });
    succeeded
}

/// Starts this program again in this process, with the same arguments. Returns only the reason why
/// that failed.
pub(crate) fn begin_anew() -> Failure {
    log::flush();
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let failed = |error: &dyn std::fmt::Display| {
        let text = format!("this program cannot start itself again, start it: {error}");
        Failure::new(Code::CredentialReplaced, text)
    };
    match std::env::current_exe() {
        Ok(program) => failed(&Command::new(program).arg0(name).args(arguments).exec()),
        Err(error) => failed(&error),
    }
}
