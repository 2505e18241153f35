//! `lineage descendants`: the rounds and snapshots that descend from an object, from the ledger
//! alone.

use std::collections::BTreeSet;

use diloco_audit::lineage::{ContributionFate, Descendant, Lineage, OfRun, Origin};
use diloco_audit::{Auditor, DigestPrefix};
use runtime::Failure;
use schemas::{Code, Digest, ObjectRef, Round, RunId};
use serde::Serialize;

use super::record;
use crate::cli::Descendants;
use crate::context::Context;
use crate::output::{Format, Row};

/// Prints what the object is to each run, and what descends from it.
pub(crate) async fn descendants(context: &Context, command: &Descendants) -> Result<(), Failure> {
    let wanted = &command.digest;
    let collecting = |auditor: Auditor| auditor.tracing(Lineage::new(wanted.clone()));
    let files = command.ledger.as_deref();
    let (mut auditor, short) = record::read_what_is_there(context, files, collecting).await?;
    let lineage = auditor.take_lineage().expect("it was collected");
    let wanted = record::as_far_as_it_goes(only(wanted, lineage.found(), "no run names"), &short)?;
    let mut rows = Vec::new();
    let mut said = Vec::new();
    for (run, found) in lineage.runs() {
        let origins = found.origins.iter();
        rows.extend(origins.map(|origin| RelativeRow::of_origin(run, wanted, origin)));
        let descendants = found.descendants.iter();
        rows.extend(descendants.map(|descendant| RelativeRow::of(run, descendant)));
        said.push(Said::of(run, found));
    }
    let printer = context.printer;
    match printer.format() {
        Format::Table => {
            printer.rows(&rows);
            said.iter().for_each(|one| printer.talk(&one.text()));
        }
        Format::Json => printer.document(&Descended {
            items: rows,
            runs: said,
        }),
        Format::Jsonl => {
            printer.rows(&rows);
            said.iter().for_each(|one| printer.document(one));
        }
    }
    short.map_or(Ok(()), Err)
}

/// The only digest that begins as wanted.
pub(super) fn only(
    wanted: &DigestPrefix,
    found: &BTreeSet<Digest>,
    none: &str,
) -> Result<Digest, Failure> {
    let mut all = found.iter();
    match (all.next(), all.next()) {
        (Some(one), None) => Ok(*one),
        (None, _) => Err(Failure::new(
            Code::DigestUnknown,
            format!("{none} {wanted}"),
        )),
        (Some(_), Some(_)) => {
            let all: Vec<String> = found.iter().map(Digest::to_string).collect();
            let detail = format!("{wanted} begins {}", all.join(" and "));
            Err(Failure::new(Code::DigestAmbiguous, detail))
        }
    }
}

/// The whole answer.
#[derive(Serialize)]
struct Descended {
    items: Vec<RelativeRow>,
    runs: Vec<Said>,
}

/// How much of a run descends from the object.
#[derive(Serialize)]
struct Said {
    run: RunId,
    merged_rounds: usize,
    snapshots: usize,
    /// The newest full snapshot that does not.
    last_without: Option<(Round, ObjectRef)>,
}

impl Said {
    fn of(run: &RunId, found: &OfRun) -> Self {
        let (snapshots, rounds): (Vec<&Descendant>, Vec<&Descendant>) =
            found.descendants.iter().partition(|one| one.snapshot);
        Self {
            run: run.clone(),
            merged_rounds: rounds.len(),
            snapshots: snapshots.len(),
            last_without: found.clean,
        }
    }

    fn text(&self) -> String {
        let clean = match self.last_without {
            Some((round, manifest)) => {
                format!(
                    "the last full snapshot that does not: of round {round}, {}",
                    manifest.digest
                )
            }
            None => "no full snapshot is without it".to_owned(),
        };
        let rounds = counted(self.merged_rounds, "merged round");
        let snapshots = counted(self.snapshots, "full snapshot");
        let run = &self.run;
        format!("run {run}: {rounds} and {snapshots} descend from this digest; {clean}")
    }
}

fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural_and_the_document_has_the_last_line_too() {
        let mut said = Said {
            run: "demo".parse().expect("a name"),
            merged_rounds: 1,
            snapshots: 2,
            last_without: None,
        };
        let text = said.text();
        let expected = "run demo: 1 merged round and 2 full snapshots descend from this digest; no full snapshot is without it";
        assert_eq!(text, expected);
        (said.merged_rounds, said.snapshots) = (0, 1);
        let manifest = ObjectRef::of(b"manifest");
        said.last_without = Some((Round(3), manifest));
        let text = said.text();
        assert!(
            text.contains("0 merged rounds and 1 full snapshot descend"),
            "{text}"
        );
        let all = Descended {
            items: Vec::new(),
            runs: vec![said],
        };
        let all = serde_json::to_string(&all).expect("it serialises");
        let named = "\"merged_rounds\":0,\"snapshots\":1,\"last_without\":[3,";
        assert!(
            all.contains(named) && all.contains(&manifest.digest.to_string()),
            "{all}"
        );
    }

    #[test]
    fn a_beginning_of_several_digests_names_them() {
        let digests: BTreeSet<Digest> =
            (0..400_u32).map(|n| Digest::of(&n.to_le_bytes())).collect();
        let one = *digests.first().expect("there are some");
        let wanted = DigestPrefix::from(one);
        let alone = only(&wanted, &BTreeSet::from([one]), "no run names");
        assert!(alone.is_ok_and(|found| found == one));
        let none = only(&wanted, &BTreeSet::new(), "no run names").expect_err("there is none");
        assert_eq!(none.code(), Code::DigestUnknown);
        let other = *digests.last().expect("there are some");
        let both = only(&wanted, &BTreeSet::from([one, other]), "no run names");
        let both = both.expect_err("there are two");
        assert_eq!(both.code(), Code::DigestAmbiguous);
        let text = both.to_string();
        assert!(
            text.contains(&one.to_string()) && text.contains(&other.to_string()),
            "{text}"
        );
    }
}
