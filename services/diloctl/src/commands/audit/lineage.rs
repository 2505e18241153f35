//! `lineage descendants`: the rounds and snapshots that descend from an object, from the ledger
//! alone.

use diloco_audit::lineage::{ContributionFate, Descendant, Lineage, OfRun, Origin};
use runtime::Failure;
use schemas::{Code, Digest, RunId};
use serde::Serialize;

use super::record;
use crate::cli::Descendants;
use crate::context::Context;
use crate::output::Row;

/// Prints what the object is to each run, and what descends from it.
pub(crate) async fn descendants(context: &Context, command: &Descendants) -> Result<(), Failure> {
    let wanted = command.digest;
    let collecting = |auditor: diloco_audit::Auditor| auditor.tracing(Lineage::new(wanted));
    let mut auditor = record::read(context, command.ledger.as_deref(), collecting).await?;
    let lineage = auditor.take_lineage().expect("it was collected");
    let mut rows = Vec::new();
    let mut said = Vec::new();
    for (run, found) in lineage.runs() {
        let origins = found.origins.iter();
        rows.extend(origins.map(|origin| RelativeRow::of_origin(run, wanted, origin)));
        let descendants = found.descendants.iter();
        rows.extend(descendants.map(|descendant| RelativeRow::of(run, descendant)));
        said.push(summary(run, found));
    }
    if rows.is_empty() {
        let detail = format!("no run names {wanted}");
        return Err(Failure::new(Code::DigestUnknown, detail));
    }
    context.printer.rows(&rows);
    said.iter().for_each(|line| context.printer.talk(line));
    Ok(())
}

fn summary(run: &RunId, found: &OfRun) -> String {
    let (snapshots, rounds): (Vec<&Descendant>, Vec<&Descendant>) =
        found.descendants.iter().partition(|one| one.snapshot);
    let (rounds, snapshots) = (rounds.len(), snapshots.len());
    let clean = match found.clean {
        Some((round, manifest)) => {
            format!(
                "the last full snapshot that does not: of round {round}, {}",
                manifest.digest
            )
        }
        None => "no full snapshot is without it".to_owned(),
    };
    format!(
        "run {run}: {rounds} merged rounds and {snapshots} full snapshots descend from this digest; {clean}"
    )
}

/// The object itself, or something that descends from it.
#[derive(Serialize)]
struct RelativeRow {
    run: RunId,
    what: &'static str,
    /// The round or the unit that it belongs to.
    about: String,
    digest: Digest,
    how: String,
}

impl RelativeRow {
    fn of_origin(run: &RunId, digest: Digest, origin: &Origin) -> Self {
        let (what, about, how) = match origin {
            Origin::Data => ("data", String::new(), "all units read it".to_owned()),
            Origin::Model => ("model", String::new(), "the run trains it".to_owned()),
            Origin::InitialWeights => {
                let how = "the run began with them".to_owned();
                ("initial weights", String::new(), how)
            }
            Origin::Contribution {
                lease,
                worker,
                fate,
            } => {
                let how = format!("of {worker}: {}", text(*fate));
                ("contribution", lease.to_string(), how)
            }
            Origin::Weights { round } => {
                let how = "published to workers".to_owned();
                ("weights", format!("round {round}"), how)
            }
            Origin::Snapshot { round } => {
                let how = "the snapshot itself".to_owned();
                ("snapshot", format!("round {round}"), how)
            }
        };
        Self {
            run: run.clone(),
            what,
            about,
            digest,
            how,
        }
    }

    fn of(run: &RunId, descendant: &Descendant) -> Self {
        Self {
            run: run.clone(),
            what: if descendant.snapshot {
                "snapshot"
            } else {
                "merged round"
            },
            about: format!("round {}", descendant.round),
            digest: descendant.digest,
            how: match descendant.direct {
                true => "has it",
                false => "descends from it",
            }
            .to_owned(),
        }
    }
}

const fn text(fate: ContributionFate) -> &'static str {
    match fate {
        ContributionFate::Accepted => "accepted, in no seal yet",
        ContributionFate::Late => "late, counts nowhere",
        ContributionFate::Withdrawn => "withdrawn by a quarantine",
        ContributionFate::Dropped => "dropped by a restore",
        ContributionFate::LeftOut => "left out of its merge",
        ContributionFate::Sealed => "sealed, not merged yet",
        ContributionFate::Merged => "merged",
    }
}

impl Row for RelativeRow {
    const TITLES: &'static [&'static str] = &["run", "what", "of", "digest", "how"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.run.to_string(),
            self.what.to_owned(),
            self.about.clone(),
            self.digest.to_string(),
            self.how.clone(),
        ]
    }
}
