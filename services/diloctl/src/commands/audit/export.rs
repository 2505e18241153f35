//! `lineage export`: the signed statement of provenance of one artifact, for tools of others.

use diloco_audit::ancestry::Subject;
use diloco_audit::provenance::Verifier;
use runtime::Failure;
use schemas::{Code, Refusal};

use super::ancestry;
use super::sources::Source;
use crate::cli::ShowLineage;
use crate::context::Context;

/// Prints the statement about a snapshot, a contribution or a data set in its envelope, once it is
/// verified.
pub(crate) async fn run(context: &Context, command: &ShowLineage) -> Result<(), Failure> {
    let wanted = &command.digest;
    let found = ancestry::collect(context, wanted.clone(), &command.from).await?;
    let (run, history, subject) = ancestry::subject(&found, wanted)?;
    let source = Source::open(context, &command.from.objects).await?;
    let trust = context.domain()?.trust().clone();
    let verifier = Verifier {
        trust: &trust,
        objects: &source,
        run,
        history,
    };
    let envelope = match subject {
        Subject::Snapshot(snapshot) => verifier.snapshot(snapshot).await?.envelope.to_vec(),
        Subject::Contribution(handed) => {
            let lease = handed.lease;
            let envelope = verifier.envelope(handed, &verifier.draw().await?)?;
            envelope.ok_or_else(|| {
                let detail = format!("{lease}: an earlier release accepted it, without provenance");
                Refusal::new(Code::LineageUnproven, detail)
            })?
        }
        Subject::Data => {
            let (data, digest) = (verifier.data().await?, history.spec.data.digest);
            let statement = verifier.data_envelope(&data).await?;
            let (envelope, _) = statement.ok_or_else(|| {
                let detail = format!("the settings of run {run} name no statement about {digest}");
                Refusal::new(Code::LineageUnproven, detail)
            })?;
            envelope.to_vec()
        }
    };
    context.printer.text(&String::from_utf8_lossy(&envelope));
    Ok(())
}
