//! The ledger as an auditor reads it: from stream `AUDIT`, from the files of an audit service, or
//! from the log in the store.

use std::path::Path;

use diloco_audit::files::kept;
use diloco_audit::log::LogError;
use diloco_audit::{
    Auditor, Recalled, Replay, ReplayError, StreamSequence, auditor_of, recall_files, signed_events,
};
use runtime::Failure;
use schemas::Code;
use schemas::permission::Role;

use super::log::Source;
use crate::cli;
use crate::context::Context;

/// Checks the whole record, and returns the auditor with what `prepare` made it collect. A ledger
/// that does not verify proves nothing.
pub(in crate::commands) async fn read(
    context: &Context,
    files: Option<&Path>,
    prepare: impl FnOnce(Auditor) -> Auditor,
) -> Result<Auditor, Failure> {
    match read_what_is_there(context, files, prepare).await? {
        (auditor, None) => Ok(auditor),
        (_, Some(short)) => Err(short),
    }
}

/// Checks the record as [`read`] does. If it ends early, and nothing shows that more was there, it
/// is returned with the failure to end with: what it says up to there is verified.
pub(super) async fn read_what_is_there(
    context: &Context,
    files: Option<&Path>,
    prepare: impl FnOnce(Auditor) -> Auditor,
) -> Result<(Auditor, Option<Failure>), Failure> {
    let (auditor, short) = match files {
        Some(folder) => of_files(context, folder, prepare)?,
        None => (of_stream(context, prepare).await?, None),
    };
    match auditor.evidence() {
        Some(found) => Err(Failure::new(Code::RecordUnproven, found)),
        None => super::check_successor(&auditor).map(|()| (auditor, short)),
    }
}

/// What was found in a record. If the record ends early, its end is the failure, and not what was
/// missed in it.
pub(super) fn as_far_as_it_goes<T>(
    found: Result<T, Failure>,
    short: &Option<Failure>,
) -> Result<T, Failure> {
    found.map_err(|missed| match short {
        Some(short) => short.clone().and(&missed),
        None => missed,
    })
}

/// Checks the log in the store, without a bus, in the same way.
pub(super) fn read_log(
    context: &Context,
    from: &cli::Log,
    prepare: impl FnOnce(Auditor) -> Auditor,
) -> Result<Auditor, Failure> {
    let auditor = Source::open(context, from)?.events(None, prepare, &mut |_| {})?;
    match auditor.evidence() {
        Some(found) => Err(Failure::new(Code::RecordUnproven, found)),
        None => super::check_successor(&auditor).map(|()| auditor),
    }
}

/// Checks the audit service's files, without a bus.
fn of_files(
    context: &Context,
    folder: &Path,
    prepare: impl FnOnce(Auditor) -> Auditor,
) -> Result<(Auditor, Option<Failure>), Failure> {
    let trust = context.domain()?.trust().clone();
    let auditor = auditor_of(&trust);
    let mut auditor = prepare(auditor);
    // Before the files: a service that goes on writes events first, and then a head over them.
    let signed = match signed_events(folder, &trust) {
        Err(error @ LogError::Head { .. }) => Err(Failure::new(Code::HeadInvalid, error)),
        signed => signed.map_err(Failure::from),
    }?;
    let recalled = recall_files(folder, &mut auditor)?;
    if recalled.last == StreamSequence(0) && signed.is_none_or(|signed| signed == 0) {
        let text = format!("{} holds no event; nothing was checked", folder.display());
        return Err(Failure::new(Code::NoVerdict, text));
    }
    let short = recalled.torn.as_ref().map(|path| {
        let text = format!(
            "{} ends inside a line, so the files end early; all up to there is verified. If a \
             service writes them at this moment, repeat the command",
            path.display()
        );
        Failure::new(Code::NoVerdict, text)
    });
    let _results = auditor.conclude(recalled.last);
    check_whole(folder, &recalled, signed)?;
    Ok((auditor, short))
}

/// Refuses files that have fewer events than the signed head beside them covers.
fn check_whole(folder: &Path, recalled: &Recalled, signed: Option<u64>) -> Result<(), Failure> {
    let events = recalled.events;
    match signed.filter(|signed| *signed > events) {
        None => Ok(()),
        Some(signed) => {
            let text = format!(
                "the files in {} have {events} events, and the signed head beside them covers {signed}",
                folder.display()
            );
            Err(Failure::new(Code::AuditFilesShort, text))
        }
    }
}

/// Checks stream `AUDIT`.
async fn of_stream(
    context: &Context,
    prepare: impl FnOnce(Auditor) -> Auditor,
) -> Result<Auditor, Failure> {
    let domain = context.domain()?;
    let bus = context.bus(Role::Auditor).await?;
    let kept = kept(&domain.layout().audit_files())?;
    let replay = Replay::open(&bus, domain.trust()).await?;
    let mut replay = replay.against(kept).collecting(prepare);
    let ran: Result<(), ReplayError> = replay.run(context.timeout, &mut |_| {}).await;
    ran?;
    Ok(replay.into_auditor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fg_07_files_with_fewer_events_than_the_signed_head_are_evidence() {
        let folder = Path::new("audit");
        let recalled = Recalled {
            last: StreamSequence(9),
            events: 7,
            torn: None,
        };
        for signed in [None, Some(6), Some(7)] {
            assert!(check_whole(folder, &recalled, signed).is_ok(), "{signed:?}");
        }
        let failed = check_whole(folder, &recalled, Some(8)).expect_err("one is gone");
        assert_eq!(failed.code(), Code::AuditFilesShort);
        assert_eq!(
            runtime::exit::exit_status(failed.code()),
            runtime::exit::EXIT_TAMPERED
        );
    }
}
