//! The ledger as an auditor reads it: from stream `AUDIT`, from the files of an audit service, or from
//! the log in the store.

use std::path::Path;

use diloco_audit::files::kept;
use diloco_audit::{Auditor, Replay, ReplayError, StreamSequence, auditor_of, recall_files};
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
    let auditor = match files {
        Some(folder) => of_files(context, folder, prepare)?,
        None => of_stream(context, prepare).await?,
    };
    match auditor.evidence() {
        Some(found) => Err(Failure::new(Code::RecordUnproven, found)),
        None => super::check_successor(&auditor).map(|()| auditor),
    }
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
) -> Result<Auditor, Failure> {
    let trust = context.domain()?.trust().clone();
    let auditor = auditor_of(&trust);
    let mut auditor = prepare(auditor);
    let last = recall_files(folder, &mut auditor)?;
    if last == StreamSequence(0) {
        let text = format!("{} holds no event; nothing was checked", folder.display());
        return Err(Failure::new(Code::NoVerdict, text));
    }
    let _results = auditor.conclude(last);
    Ok(auditor)
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
