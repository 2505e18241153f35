//! Checks of this machine: the domain's folder, what ends soon, processes, room on the disk.

use std::fs;
use std::path::{Path, PathBuf};

use identity::secret::read_secret;
use runtime::{Failure, clock};
use schemas::{Code, UnixMillis};

use super::{Finding, Report};
use crate::commands::cluster::endings;
use crate::context::Context;
use crate::stack::{self, health};
use crate::table::bytes;

/// Free room below which the doctor warns: the broker's streams and a few snapshots of a small
/// model need more.
const ROOM_BYTES_LOW: u64 = 2 << 30;

/// # Errors
/// There is no trust domain, so nothing else can be looked at.
pub(super) fn look(context: &Context, report: &mut Report) -> Result<(), Failure> {
    let domain = context.domain()?;
    report.add(secrets(&context.folder, &private_folders(&domain)));
    report.add(what_ends(context, clock::now())?);
    report.add(revocations(&domain)?);
    report.add(room(&context.folder));
    report.add(processes(&context.folder)?);
    Ok(())
}

/// The folders of a domain in which every file is a secret.
fn private_folders(domain: &identity::Domain) -> Vec<PathBuf> {
    let layout = domain.layout();
    let files = [
        layout.credentials("any"),
        layout.audit_key("any"),
        layout.manifest_key(),
        layout.vault().authority_key(),
        layout.issuer().join("any"),
    ];
    let folders = files.iter().filter_map(|file| file.parent());
    folders.map(Path::to_owned).collect()
}

/// Checks that nobody but the owner can read the secrets, as every process does with its own.
fn secrets(folder: &Path, private: &[PathBuf]) -> Finding {
    const CHECK: &str = "secrets";
    let mut count = 0_usize;
    for place in private {
        let entries = fs::read_dir(place).into_iter().flatten().flatten();
        for file in entries
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
        {
            if let Err(error) = read_secret(&file) {
                return Finding::fail(CHECK, &error.into());
            }
            count += 1;
        }
    }
    match count {
        0 => Finding::skipped(CHECK, format!("{} holds none", folder.display())),
        count => Finding::ok(
            CHECK,
            format!("{count} files that only their owner can read"),
        ),
    }
}

fn what_ends(context: &Context, now: UnixMillis) -> Result<Finding, Failure> {
    const CHECK: &str = "ends";
    let endings = endings(context, now)?;
    let ended = endings.iter().find(|ending| ending.at <= now);
    if let Some(ended) = ended {
        let words = ended.notice(now).expect("it has ended").detail;
        return Ok(Finding::fail(CHECK, &Failure::new(Code::EndsSoon, words)));
    }
    Ok(match endings.first() {
        None => Finding::skipped(CHECK, "no certificate or credential to look at"),
        Some(first) => match first.notice(now) {
            Some(notice) => Finding::warn(CHECK, notice.code, notice.detail),
            None => {
                let at = schemas::text::Time(first.at);
                Finding::ok(CHECK, format!("nothing ends before {at}"))
            }
        },
    })
}

/// Checks that a broker has confirmed each revocation.
fn revocations(domain: &identity::Domain) -> Result<Finding, Failure> {
    const CHECK: &str = "revocations";
    let all = domain.revocations()?;
    let kept = all.iter().filter(|one| one.pending);
    let kept: Vec<&str> = kept.map(|one| one.key.as_str()).collect();
    Ok(match kept.is_empty() {
        true => Finding::ok(CHECK, format!("{} keys, all in effect", all.len())),
        false => {
            let text = format!("a broker that runs still serves {}", kept.join(", "));
            Finding::fail(CHECK, &Failure::new(Code::RevocationKept, text))
        }
    })
}

fn room(folder: &Path) -> Finding {
    const CHECK: &str = "disk";
    match health::room(&folder.join("any")) {
        None => Finding::skipped(CHECK, format!("{} does not say", folder.display())),
        Some((_, free)) if free < health::ROOM_BYTES_MIN => {
            let text = format!("{} free at {}", bytes(free), folder.display());
            Finding::fail(CHECK, &Failure::new(Code::StoreFull, text))
        }
        Some((_, free)) => {
            let text = format!("{} free at {}", bytes(free), folder.display());
            if free < ROOM_BYTES_LOW {
                Finding::warn(CHECK, Code::StoreFull, text)
            } else {
                Finding::ok(CHECK, text)
            }
        }
    }
}

/// Tells which of the processes that `up` starts here run. A machine on which `up` was never used
/// has none.
fn processes(folder: &Path) -> Result<Finding, Failure> {
    const CHECK: &str = "processes";
    let running = stack::running(folder)?;
    if running.is_empty() {
        return Ok(Finding::skipped(
            CHECK,
            "`up` started none from this folder",
        ));
    }
    let missing: Vec<&str> = stack::SERVICES
        .into_iter()
        .filter(|name| !running.iter().any(|one| one == name))
        .collect();
    Ok(if missing.is_empty() {
        Finding::ok(CHECK, running.join(", "))
    } else {
        let text = format!(
            "{} do not run; {} do",
            missing.join(", "),
            running.join(", ")
        );
        Finding::warn(CHECK, Code::NoAnswer, text)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::commands::doctor::State;

    #[test]
    fn a_secret_that_others_can_read_is_found() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let folder = scratch.path().join("credentials");
        let looked = |folder: &Path| secrets(scratch.path(), &[folder.to_owned()]);
        assert_eq!(looked(&folder).state, State::Skipped);
        fs::create_dir(&folder).expect("it is ours");
        let file = folder.join("worker-0.creds");
        fs::write(&file, "seed").expect("it is ours");
        let set =
            |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("ours");
        set(0o600);
        assert_eq!(looked(&folder).state, State::Ok);
        set(0o640);
        let found = looked(&folder);
        assert_eq!(
            (found.state, found.code),
            (State::Fail, Some(Code::CredentialExposed))
        );
    }
}
