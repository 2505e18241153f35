//! `audit witness-key`, `cosign`, and what `verify` says about witnesses: machines that have
//! verified the log on their own, and cosign its heads. Somebody who holds the key for heads and
//! shows one history here and another there needs the keys of enough witnesses too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use audit_core::log::{Log, LogFault, Trusted};
use diloco_audit::log::read_file;
use identity::WitnessKey;
use runtime::{Failure, clock};
use schemas::Code;
use serde::Serialize;
use tlog::Head;
use tlog::cosign::{Policy, PolicyError, Witness};
use tlog::layout;

use super::log::Source;
use crate::cli::{self, Witnessing};
use crate::context::Context;
use crate::files;
use crate::output::Record;

/// `audit witness-key`.
pub(super) fn key(context: &Context, name: &str, file: Option<&Path>) -> Result<(), Failure> {
    let file = key_file(context, file)?;
    let key = match file.exists() {
        true => WitnessKey::read(&file)?,
        false => {
            let key = WitnessKey::generate();
            key.seed().write(&file)?;
            key
        }
    };
    let witness = key.witness(name).map_err(unusable)?;
    context.printer.record(&KeyShown {
        file: file.display().to_string(),
        witness: witness.text(),
    });
    Ok(())
}

/// `audit cosign`.
pub(super) fn cosign(
    context: &Context,
    name: &str,
    key: Option<&Path>,
    to: Option<&Path>,
    from: &cli::Log,
) -> Result<(), Failure> {
    let key_file = key_file(context, key)?;
    let key = WitnessKey::read(&key_file)?;
    let witness = key.witness(name).map_err(unusable)?;
    let source = Source::open(context, from)?;
    let log = source.log(&mut |_, _| {})?;
    let head = log.head();
    let last = Last::lock(&key_file)?;
    last.check(&source, &log)?;
    // Pinned first, so that this machine cosigns no other history afterwards.
    if !source.pin(&log)? {
        let text = "another command has pinned a newer head meanwhile; run this again";
        return Err(Failure::new(Code::LogUnproven, text));
    }
    let default = || PathBuf::from(format!("head-{}.cosigned", head.size));
    let file = to.map_or_else(default, Path::to_owned);
    let unwritten = |error: std::io::Error| {
        Failure::new(
            Code::OutputUnwritten,
            format!("{}: {error}", file.display()),
        )
    };
    let before = read_file(&file).map_err(unwritten)?;
    if let Some(note) = &before
        && source.trusted.open("", note).as_ref() != Ok(head)
    {
        let text = format!(
            "{} is there, and is not the head over {} events that is cosigned now: name another file",
            file.display(),
            head.size
        );
        return Err(Failure::new(Code::OutputUnwritten, text));
    }
    let mut note = before.unwrap_or_else(|| log.note().as_bytes().to_vec());
    let known = witness
        .cosigned_at(&note, head)
        .map_err(|error| LogFault::Head {
            path: file.display().to_string(),
            error,
        })?;
    let time = match known {
        Some(time) => time,
        None => {
            let time = clock::now().get() / 1000;
            note.extend(key.cosign(&witness, head, time).into_bytes());
            time
        }
    };
    // What is given out has been verified, as those who get it will.
    if witness.cosigned_at(&note, head) != Ok(Some(time)) {
        let text =
            "the cosignature does not verify with its own key, or the file has no room for it";
        return Err(Failure::new(Code::Internal, text));
    }
    // Remembered first: a cosignature that nobody was given binds nobody.
    last.remember(log.note().as_bytes())?;
    files::replace(&file, &note).map_err(unwritten)?;
    context.printer.record(&CosignedShown {
        file: file.display().to_string(),
        events: head.size,
        root: data_encoding::BASE64.encode(&head.root),
        witness: witness.text(),
    });
    Ok(())
}

/// The head that a key has cosigned last, in a file beside the key. The pinned head is that of a
/// domain's folder, and a key may be used with more than one.
struct Last {
    file: PathBuf,
    _lock: std::fs::File,
}

impl Last {
    /// Locked until it is dropped, so that of two commands with one key each knows of the other.
    fn lock(key: &Path) -> Result<Self, Failure> {
        let beside = |ending: &str| {
            let mut name = key.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let (file, lock) = (beside(".last"), beside(".lock"));
        let _lock = files::wait_for_lock(&lock).map_err(|error| {
            Failure::new(
                Code::OutputUnwritten,
                format!("{}: {error}", lock.display()),
            )
        })?;
        Ok(Self { file, _lock })
    }

    /// Checks that the log continues that head.
    fn check(&self, source: &Source, log: &Log) -> Result<(), Failure> {
        let named = self.file.display().to_string();
        let unread = |error: &dyn std::fmt::Display| {
            Failure::new(Code::LogUnproven, format!("{named}: {error}"))
        };
        match read_file(&self.file).map_err(|error| unread(&error))? {
            None => Ok(()),
            Some(note) => {
                let head = source.trusted.open(&named, &note);
                holds(source, log, &named, &head.map_err(|error| unread(&error))?)
            }
        }
    }

    fn remember(&self, note: &[u8]) -> Result<(), Failure> {
        files::replace(&self.file, note).map_err(|error| {
            Failure::new(
                Code::OutputUnwritten,
                format!("{}: {error}", self.file.display()),
            )
        })
    }
}

fn key_file(context: &Context, file: Option<&Path>) -> Result<PathBuf, Failure> {
    match file {
        Some(file) => Ok(file.to_owned()),
        None => Ok(context.domain()?.layout().witness_key()),
    }
}

fn unusable(error: PolicyError) -> Failure {
    Failure::new(Code::ConfigInvalid, error)
}

/// The policy, and the heads that its witnesses have cosigned.
pub(super) struct Cosigned {
    /// The place of the policy, in words.
    of: String,
    policy: Policy,
    notes: Vec<Note>,
    /// What lies beside the log and cannot be used: it counts as missing, since the key that writes
    /// there is none of the witnesses'.
    unread: Vec<String>,
}

/// The signed text of a head.
struct Note {
    /// The name of its place.
    named: String,
    text: Vec<u8>,
    /// True if it was found beside the log, and not named by a person.
    found: bool,
}

/// Reads the policy on the command line, and what its witnesses have cosigned; none if no policy
/// was given. All of it is read before the log is: a log that grows meanwhile covers them all the
/// same.
pub(super) fn cosigned(source: &Source, with: &Witnessing) -> Result<Option<Cosigned>, Failure> {
    let Some(file) = &with.policy else {
        return Ok(None);
    };
    let policy = policy(file, with.witnesses)?;
    gathered(source, with, file.display().to_string(), policy).map(Some)
}

/// Reads the policy that the owner of the log has signed, as `text`, and what its witnesses have
/// cosigned.
pub(super) fn of_owner(
    source: &Source,
    with: &Witnessing,
    text: &str,
) -> Result<Cosigned, Failure> {
    let of = "the policy in the log's manifest";
    let policy = Policy::read(text.as_bytes())
        .map_err(|error| Failure::new(Code::ConfigInvalid, format!("{of}: {error}")))?;
    gathered(source, with, of.to_owned(), policy)
}

/// Reads the files of cosigned heads, and what the audit service keeps of the policy's witnesses
/// beside the log.
fn gathered(
    source: &Source,
    with: &Witnessing,
    of: String,
    policy: Policy,
) -> Result<Cosigned, Failure> {
    let (mut notes, mut unread) = (Vec::new(), Vec::new());
    for file in &with.cosigned {
        let named = file.display().to_string();
        let read = read_file(file).map_err(|error| error.to_string());
        let read = read.and_then(|note| note.ok_or_else(|| "it is not there".to_owned()));
        let text =
            read.map_err(|error| Failure::new(Code::LogUnproven, format!("{named}: {error}")))?;
        notes.push(Note {
            named,
            text,
            found: false,
        });
    }
    for (_, witness) in policy.witnesses() {
        let name = layout::cosigned(witness.name());
        // Other names are those of witnesses that are no workers.
        if layout::Lasting::of(&name).is_none() {
            continue;
        }
        match source.read(&name) {
            Ok(note) => notes.extend(note.map(|text| Note {
                named: name,
                text,
                found: true,
            })),
            Err(error) => unread.push(format!("{name}: {error}")),
        }
    }
    Ok(Cosigned {
        of,
        policy,
        notes,
        unread,
    })
}

/// Refuses what is asked about witnesses where no policy names any: nothing would be compared.
///
/// # Errors
/// [`Code::ConfigInvalid`]
pub(super) fn check_asked(with: &Witnessing, has_policy: bool) -> Result<(), Failure> {
    let is_asked = !with.cosigned.is_empty() || with.unwitnessed_max > 0;
    if has_policy || !is_asked {
        return Ok(());
    }
    let text = "--cosigned and --unwitnessed-max are about the witnesses of a policy, and there is none: give one with \
                --policy, or name a log whose owner has named witnesses";
    Err(Failure::new(Code::ConfigInvalid, text))
}

impl Cosigned {
    /// True if a head of these covers more events than the log that was read: it has grown since
    /// then.
    pub(super) fn is_ahead(&self, source: &Source, log: &Log) -> bool {
        let size = |note: &Note| {
            let opened = source.trusted.open(&note.named, &note.text);
            opened.map_or(0, |head| head.size)
        };
        self.notes.iter().any(|note| size(note) > log.head().size)
    }
}

/// What enough witnesses have seen: by the policy on the command line, else by the owner's. If the
/// first is met and the owner's is not, the second text says why.
pub(super) fn judged(
    source: &Source,
    log: &Log,
    with: &Witnessing,
    own: Option<Cosigned>,
    owners: Option<Cosigned>,
) -> Result<(Option<Witnessed>, Option<String>), Failure> {
    let compare = |cosigned| witnessed(source, log, with, cosigned);
    of_both(own.map(compare), owners.map(compare))
}

/// The verdict of two policies. Evidence comes before a missing verdict, whichever policy shows it.
fn of_both(
    own: Option<Result<Witnessed, Failure>>,
    owners: Option<Result<Witnessed, Failure>>,
) -> Result<(Option<Witnessed>, Option<String>), Failure> {
    let is_unwitnessed = |failure: &Failure| failure.code() == Code::LogUnwitnessed;
    match (own, owners) {
        (Some(Err(own)), Some(Err(owners))) if is_unwitnessed(&own) => Err(owners),
        (Some(Err(own)), _) => Err(own),
        // A verifier may ask for less than the owner does, and is told so.
        (Some(Ok(own)), Some(Err(failure))) if is_unwitnessed(&failure) => {
            Ok((Some(own), Some(failure.refusal().detail.clone())))
        }
        (own, owners) => {
            let (own, owners) = (own.transpose()?, owners.transpose()?);
            Ok((own.or(owners), None))
        }
    }
}

/// Compares the log with every head that a witness of the policy has cosigned, and says what enough
/// of them have seen.
fn witnessed(
    source: &Source,
    log: &Log,
    with: &Witnessing,
    cosigned: Cosigned,
) -> Result<Witnessed, Failure> {
    let Cosigned {
        of,
        policy,
        mut notes,
        mut unread,
    } = cosigned;
    let trusted = &source.trusted;
    if !policy.names_log(&log.head().origin, &trusted.heads) {
        let text = format!("{of}: the policy is for another log");
        return Err(Failure::new(Code::ConfigInvalid, text));
    }
    notes.push(Note {
        named: "the newest head".to_owned(),
        text: log.note().as_bytes().to_vec(),
        found: false,
    });
    let mut seen: Vec<(u64, &str)> = Vec::new();
    for note in &notes {
        let Some((head, by)) = usable(trusted, &policy, note, &mut unread)? else {
            continue;
        };
        if !by.is_empty() {
            holds(source, log, &note.named, &head)?;
        }
        seen.extend(by.into_iter().map(|name| (head.size, name)));
    }
    let judged = judge(&policy, &seen, log.head().size, with.unwitnessed_max);
    match judged {
        Ok(witnessed) => Ok(Witnessed {
            unread,
            ..witnessed
        }),
        Err(text) => {
            let text = match unread.is_empty() {
                true => text,
                false => format!("{text}; cannot be used: {}", unread.join("; ")),
            };
            Err(Failure::new(Code::LogUnwitnessed, text))
        }
    }
}

/// The head of a note, and the policy's witnesses that have cosigned it; none for a file that was
/// found beside the log and cannot be used, which is named instead.
fn usable<'a>(
    trusted: &Trusted,
    policy: &'a Policy,
    note: &Note,
    unread: &mut Vec<String>,
) -> Result<Option<(Head, Vec<&'a str>)>, LogFault> {
    let opened = trusted.open(&note.named, &note.text);
    let read = opened.and_then(|head| {
        let by = cosigners(policy, &note.named, &note.text, &head)?;
        Ok((head, by))
    });
    match read {
        Err(fault) if note.found => {
            unread.push(fault.to_string());
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// The newest events that enough witnesses have seen, of those that each has seen, if at most
/// `unwitnessed_max` came after them. Who cosigned an old head says nothing about what came since.
fn judge(
    policy: &Policy,
    seen: &[(u64, &str)],
    size: u64,
    unwitnessed_max: u64,
) -> Result<Witnessed, String> {
    if policy.is_met(&BTreeSet::new()) {
        let by: BTreeSet<&str> = seen.iter().map(|(_, name)| *name).collect();
        return Ok(Witnessed::new(0, &by));
    }
    let sizes: BTreeSet<u64> = seen.iter().map(|(size, _)| *size).collect();
    for events in sizes.into_iter().rev() {
        // A head stands for all events under it, so for those of smaller heads too.
        let by = seen.iter().filter(|(at, _)| *at >= events);
        let by: BTreeSet<&str> = by.map(|(_, name)| *name).collect();
        if !policy.is_met(&by) {
            continue;
        }
        let behind = size.saturating_sub(events);
        return match behind <= unwitnessed_max {
            true => Ok(Witnessed::new(events, &by)),
            false => Err(format!(
                "enough witnesses ({}) have cosigned a head over {events} events, and the log has {behind} more; at most \
                 {unwitnessed_max} may be unwitnessed (--unwitnessed-max)",
                joined(&by)
            )),
        };
    }
    let by: BTreeSet<&str> = seen.iter().map(|(_, name)| *name).collect();
    Err(format!(
        "cosigned by {} of the policy's witnesses, and these are not enough: {}",
        by.len(),
        joined(&by)
    ))
}

fn policy(file: &Path, least: Option<usize>) -> Result<Policy, Failure> {
    let failed =
        |reason: String| Failure::new(Code::ConfigInvalid, format!("{}: {reason}", file.display()));
    let text = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
    let policy = Policy::read(&text).map_err(|error| failed(error.to_string()))?;
    match least {
        Some(least) => policy.asking(least).map_err(unusable),
        None => Ok(policy),
    }
}

/// The policy's witnesses that have cosigned this head.
fn cosigners<'a>(
    policy: &'a Policy,
    named: &str,
    note: &[u8],
    head: &Head,
) -> Result<Vec<&'a str>, LogFault> {
    let cosigned = |witness: &Witness| {
        witness
            .cosigned_at(note, head)
            .map_err(|error| LogFault::Head {
                path: named.to_owned(),
                error,
            })
    };
    let mut by = Vec::new();
    for (name, witness) in policy.witnesses() {
        if cosigned(witness)?.is_some() {
            by.push(name);
        }
    }
    Ok(by)
}

/// Checks that the log leads to a head that a witness has seen.
fn holds(source: &Source, log: &Log, named: &str, head: &Head) -> Result<(), Failure> {
    let (size, own) = (head.size, log.head().size);
    if size > own {
        let text = format!(
            "{named}: witnesses have cosigned a head over {size} events, and this log has {own}"
        );
        return Err(Failure::new(Code::HeadRolledBack, text));
    }
    if log.root_at(&|path| source.read(path), size)? != head.root {
        let text = format!(
            "{named}: witnesses have cosigned another head over {size} events than this log leads to"
        );
        return Err(Failure::new(Code::HistoryForked, text));
    }
    Ok(())
}

fn joined(names: &BTreeSet<&str>) -> String {
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.iter().copied().collect::<Vec<_>>().join(" "),
    }
}

/// What enough witnesses have seen.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Witnessed {
    /// The first so many events of the log; 0 if the policy asks for no witness.
    events: u64,
    /// The policy's names of the witnesses.
    by: Vec<String>,
    /// Files beside the log that count as missing, each with the reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) unread: Vec<String>,
}

impl Witnessed {
    fn new(events: u64, by: &BTreeSet<&str>) -> Self {
        let by = by.iter().map(|name| (*name).to_owned()).collect();
        Self {
            events,
            by,
            unread: Vec::new(),
        }
    }
}

impl std::fmt::Display for Witnessed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.events {
            0 => f.write_str("the policy asks for no witness"),
            size => write!(f, "entries 0 to {}, by {}", size - 1, self.by.join(" ")),
        }
    }
}

/// A witness's key.
#[derive(Serialize)]
struct KeyShown {
    file: String,
    witness: String,
}

impl Record for KeyShown {
    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("key", self.file.clone()),
            ("witness", self.witness.clone()),
        ]
    }
}

/// A cosigned head.
#[derive(Serialize)]
struct CosignedShown {
    file: String,
    events: u64,
    root: String,
    witness: String,
}

impl Record for CosignedShown {
    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("verdict", "verified and cosigned".to_owned()),
            ("events", self.events.to_string()),
            ("root", self.root.clone()),
            ("witness", self.witness.clone()),
            ("file", self.file.clone()),
        ]
    }
}

#[cfg(test)]
mod tests;
