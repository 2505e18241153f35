//! Another key for a process that runs: credentials that wait beside its own. The process takes
//! them at its start. While it runs it looks for them, ends in order, and begins anew in the same
//! process, so that whatever started it need not do so again.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use identity::IdentityFiles;
use schemas::Code;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::service::Outdated;
use crate::{Failure, clock, log};

/// Time between two looks for a successor: a look asks for one name in a local folder.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Puts every successor that waits in its place.
pub(crate) fn take(identities: &[IdentityFiles]) -> Result<(), Failure> {
    let now = clock::now();
    for files in identities {
        let file = files.credentials.display();
        if files.waits_in_vain(now) {
            let code = Code::CredentialExpired;
            tracing::warn!(%code, %file, "the token of the key that waits has ended, so the present key stays; run `diloctl auth rotate user` again");
        }
        if let Some(key) = files.take_successor(now)? {
            tracing::info!(%key, %file, "this process has another key from now on");
        }
    }
    Ok(())
}

/// A token that is cancelled once a successor waits for one of these identities, or something else
/// asks for a new beginning.
pub(crate) fn watch(
    identities: Vec<IdentityFiles>,
    outdated: Option<Outdated>,
) -> CancellationToken {
    let succeeded = CancellationToken::new();
    let found = succeeded.clone();
    tokio::spawn(async move {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if let Some(files) = identities
                .iter()
                .find(|files| files.has_successor(clock::now()))
            {
                let file = files.credentials.display();
                tracing::info!(%file, "another key waits; ending in order to begin anew with it");
                found.cancel();
                return;
            }
            if let Some(reason) = outdated.as_ref().and_then(|look| look()) {
                tracing::info!("{reason}; ending in order to begin anew with it");
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
    match std::env::current_exe().map(in_place) {
        Ok(program) => failed(&Command::new(program).arg0(name).args(arguments).exec()),
        Err(error) => failed(&error),
    }
}

/// The path of a program, also if another file has replaced it since it was started: the system
/// then marks the name.
fn in_place(program: PathBuf) -> PathBuf {
    let name = program.as_os_str().as_bytes();
    match name.strip_suffix(b" (deleted)") {
        Some(name) if !program.exists() => PathBuf::from(OsStr::from_bytes(name)),
        _ => program,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_replaced_begins_anew_as_what_is_there_now() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let program = scratch.path().join("diloco-worker");
        let marked = scratch.path().join("diloco-worker (deleted)");
        assert_eq!(in_place(program.clone()), program);
        assert_eq!(in_place(marked.clone()), program);
        std::fs::write(&marked, []).expect("the folder is ours");
        assert_eq!(in_place(marked.clone()), marked, "it is called so");
    }
}
