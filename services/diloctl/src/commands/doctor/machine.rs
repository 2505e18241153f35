//! Checks of this machine: the domain's folder, what ends soon, processes, room on the disk.

use std::fs;
use std::path::{Path, PathBuf};

use identity::Credentials;
use identity::secret::read_secret;
use runtime::expiry::NOTICE;
use runtime::{Failure, clock};
use schemas::{Code, UnixMillis};

use super::{Finding, Report, number};
use crate::commands::cluster::endings;
use crate::context::{Context, credentials_files};
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
    let runs = stack::running(&context.folder)?;
    report.add(renewals(&tokens(&domain), clock::now(), &runs));
    report.add(revocations(&domain)?);
    report.add(room(&context.folder));
    processes(&context.folder, &runs)
        .into_iter()
        .for_each(|finding| report.add(finding));
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
            format!("{} that only the owner can read", number(count, "file")),
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
    let rest = all.iter().filter(|one| one.unrecorded);
    let rest: Vec<&str> = rest.map(|one| one.key.as_str()).collect();
    Ok(match kept.is_empty() {
        true if !rest.is_empty() => {
            let text = format!("the ledger does not say who revoked {}", rest.join(", "));
            Finding::warn(CHECK, Code::RevocationUnrecorded, text)
        }
        true => Finding::ok(
            CHECK,
            format!("{}, all in effect", number(all.len(), "key")),
        ),
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

/// Tells which of the processes that `up` starts here run, in one line for each that does not. A
/// machine on which `up` was never used has none.
fn processes(folder: &Path, running: &[String]) -> Vec<Finding> {
    const CHECK: &str = "processes";
    if running.is_empty() {
        let text = "`up` started none from this folder";
        return vec![Finding::skipped(CHECK, text)];
    }
    let missing = stack::SERVICES
        .into_iter()
        .filter(|name| !running.iter().any(|one| one == name));
    let missing: Vec<Finding> = missing
        .map(|name| {
            let log = stack::log_file(folder, name);
            let text = format!("{name} does not run; its log is {}", log.display());
            Finding::warn(CHECK, without(name), text)
        })
        .collect();
    match missing.is_empty() {
        true => vec![Finding::ok(CHECK, running.join(", "))],
        false => missing,
    }
}

/// The code of what a machine lacks without this service.
fn without(service: &str) -> Code {
    match service {
        stack::BROKER => Code::BusUnreachable,
        stack::STORE => Code::StoreUnreachable,
        stack::REGISTRAR => Code::RenewalDelayed,
        stack::COORDINATOR => Code::NoAnswer,
        _ => Code::ProcessDied,
    }
}

/// The end of a token that something that runs renews.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    name: String,
    ends: UnixMillis,
}

/// The tokens in the domain's folder that live so short that they are renewed, the earliest end
/// first.
fn tokens(domain: &identity::Domain) -> Vec<Token> {
    let mut tokens: Vec<Token> = credentials_files(domain)
        .iter()
        .filter_map(|path| Credentials::read(path).ok())
        .filter_map(|read| {
            let token = read.token();
            let ends = token.expires?;
            let short = token.issued.until(ends) <= NOTICE;
            short.then(|| Token {
                name: token.name.clone(),
                ends,
            })
        })
        .collect();
    tokens.sort_by(|a, b| (a.ends, &a.name).cmp(&(b.ends, &b.name)));
    tokens
}

/// Tells which of the tokens that are renewed ends soonest. One that has ended belongs to a holder
/// that does not run, as does one that ends while nobody renews it.
fn renewals(tokens: &[Token], now: UnixMillis, running: &[String]) -> Finding {
    const CHECK: &str = "renewals";
    let ended = tokens.iter().filter(|token| token.ends <= now).count();
    let ended = match ended {
        0 => String::new(),
        1 => "; 1 has ended, `up` renews it at the start of its holder".to_owned(),
        count => format!("; {count} have ended, `up` renews them at the start of their holders"),
    };
    let Some(first) = tokens.iter().find(|token| token.ends > now) else {
        return Finding::skipped(CHECK, format!("no token of an hour or so is in use{ended}"));
    };
    let minutes = now.until(first.ends).get() / 60_000;
    let end = format!("that of {} ends in {minutes} min", first.name);
    if running.iter().any(|one| one == stack::REGISTRAR) {
        let text = format!("{end}, and is renewed before by the registrar{ended}");
        return Finding::ok(CHECK, text);
    }
    if running.is_empty() {
        let text = format!("{end}; the registrar is not on this machine, or does not run{ended}");
        return Finding::skipped(CHECK, text);
    }
    let text = format!("{end}, and no registrar runs here that renews it{ended}");
    Finding::warn(CHECK, Code::RenewalDelayed, text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::commands::doctor::State;

    #[test]
    fn each_service_that_does_not_run_is_told_with_its_own_code() {
        let all: Vec<String> = stack::SERVICES.map(str::to_owned).to_vec();
        let looked = |running: &[String]| processes(Path::new("d"), running);
        assert_eq!(looked(&[])[0].state, State::Skipped);
        assert_eq!((looked(&all).len(), looked(&all)[0].state), (1, State::Ok));
        for (place, (name, code)) in [
            ("nats-server", Code::BusUnreachable),
            ("store", Code::StoreUnreachable),
            ("registrar", Code::RenewalDelayed),
            ("audit", Code::ProcessDied),
            ("coordinator", Code::NoAnswer),
        ]
        .into_iter()
        .enumerate()
        {
            let mut running = all.clone();
            assert_eq!(running.remove(place), name);
            let [found] = &looked(&running)[..] else {
                panic!("one line");
            };
            assert_eq!(
                (found.state, found.code),
                (State::Warn, Some(code)),
                "{name}"
            );
            let log = format!("{name} does not run; its log is d/logs/{name}.log");
            assert_eq!(found.found, log);
        }
        assert_eq!(looked(&all[..3]).len(), 2, "one line each");
    }

    #[test]
    fn the_token_that_ends_soonest_is_told_and_who_renews_it() {
        let token = |name: &str, ends: u64| Token {
            name: name.to_owned(),
            ends: UnixMillis(ends),
        };
        let all = [
            token("gone", 5),
            token("audit", 605_000),
            token("w1", 900_000),
        ];
        let runs = |names: &[&str]| -> Vec<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let looked = |tokens: &[Token], names: &[&str]| {
            let found = renewals(tokens, UnixMillis(5000), &runs(names));
            (found.state, found.code, found.found)
        };
        let (state, code, text) = looked(&all, &["registrar", "store"]);
        assert_eq!((state, code), (State::Ok, None));
        assert!(text.starts_with("that of audit ends in 10 min, and is renewed"));
        assert!(text.contains("1 has ended"), "{text}");
        let (state, code, text) = looked(&all[1..], &["store"]);
        assert_eq!((state, code), (State::Warn, Some(Code::RenewalDelayed)));
        assert!(!text.contains("ended"), "{text}");
        assert_eq!(looked(&all, &[]).0, State::Skipped);
        assert_eq!(looked(&all[..1], &["registrar"]).0, State::Skipped);
    }

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
