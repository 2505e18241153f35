//! `snapshot restore`: leads a run back to a full snapshot.

use runtime::Failure;
use schemas::call::control as call;
use schemas::restore::{RestoreReply, RestoreRequest};
use schemas::{Code, Digest, Round, RunId, UnixMillis, V};
use serde::Serialize;

use crate::cli::RestoreArgs;
use crate::context::Context;
use crate::output::Record;
use crate::table::time;

pub(super) async fn run(context: &Context, args: &RestoreArgs) -> Result<(), Failure> {
    let operator = context.operator().await?;
    let request = RestoreRequest {
        v: V,
        snapshot: args.digest,
        run: args.run.clone(),
        force: args.force,
        reason: args.reason.clone(),
    };
    let reply = operator.ask::<call::SnapshotRestore>(&request).await?;
    confirms(&request, &reply)?;
    context.printer.record(&Restored::from(reply));
    Ok(())
}

/// The answer must be about this snapshot, and about this run if one was named.
fn confirms(request: &RestoreRequest, reply: &RestoreReply) -> Result<(), Failure> {
    let same_run = request.run.as_ref().is_none_or(|run| *run == reply.run);
    if same_run && request.snapshot == reply.manifest {
        return Ok(());
    }
    let detail = format!(
        "asked to restore {}, the coordinator answered about {} of run {}",
        request.snapshot, reply.manifest, reply.run
    );
    Err(Failure::new(Code::MessageInvalid, detail))
}

/// A restore as it is now.
#[derive(Serialize)]
struct Restored {
    run: RunId,
    changed: bool,
    digest: Digest,
    snapshot: Round,
    since: UnixMillis,
    from: Round,
    version: Round,
    rounds_undone: u64,
    leases_ended: u32,
    contributions_dropped: u32,
    uploads_deleted: Option<u32>,
    frozen: bool,
}

impl From<RestoreReply> for Restored {
    fn from(reply: RestoreReply) -> Self {
        Self {
            run: reply.run,
            changed: reply.changed,
            digest: reply.manifest,
            snapshot: reply.snapshot,
            since: reply.since,
            from: reply.from,
            version: reply.version,
            rounds_undone: reply.undone,
            leases_ended: reply.leases,
            contributions_dropped: reply.contributions,
            uploads_deleted: reply.uploads,
            frozen: reply.frozen,
        }
    }
}

impl Record for Restored {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let Self {
            run,
            digest,
            version,
            ..
        } = self;
        let state = match self.changed {
            true => "restored; this is in the ledger".to_owned(),
            false => format!("is restored already, since {}", time(self.since)),
        };
        let mut lines = vec![
            ("run", run.to_string()),
            ("snapshot", format!("{digest}: {state}")),
            (
                "weights",
                format!(
                    "those of round {}, as version {version}, instead of version {}",
                    self.snapshot, self.from
                ),
            ),
            ("merged rounds undone", self.rounds_undone.to_string()),
        ];
        if self.changed {
            lines.extend([
                ("leases ended", self.leases_ended.to_string()),
                (
                    "contributions dropped",
                    self.contributions_dropped.to_string(),
                ),
            ]);
        } else {
            // The answer to that order may have been lost, and "0" would be taken as a fact.
            let earlier =
                format!("by an earlier order; `diloctl audit replay --run {run}` shows it");
            lines.push(("ended", earlier));
        }
        let uploads = match self.uploads_deleted {
            Some(count) => format!("{count} deleted"),
            None => "not deleted: the store did not do it in time; repeat the command".to_owned(),
        };
        let frozen = match self.frozen {
            true => format!(
                "workers train round {version}, and nothing is merged until `diloctl run unfreeze {run}`"
            ),
            false => "no: the run goes on".to_owned(),
        };
        lines.extend([("uploads", uploads), ("frozen", frozen)]);
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restored(changed: bool) -> Restored {
        let reply = RestoreReply {
            v: V,
            run: "demo".parse().expect("a name"),
            manifest: Digest::of(b"manifest"),
            changed,
            since: UnixMillis(1_700_000_000_000),
            snapshot: Round(3),
            from: Round(7),
            version: Round(8),
            undone: 4,
            leases: 2,
            contributions: 1,
            frozen: changed,
            uploads: changed.then_some(5),
        };
        Restored::from(reply)
    }

    #[test]
    fn tl_32_an_answer_about_something_else_is_no_success() {
        let asked = |snapshot: &[u8], run: Option<&str>| RestoreRequest {
            v: V,
            snapshot: Digest::of(snapshot),
            run: run.map(|run| run.parse().expect("a name")),
            force: false,
            reason: "a reason".parse().expect("a reason"),
        };
        let reply = RestoreReply {
            v: V,
            run: "demo".parse().expect("a name"),
            manifest: Digest::of(b"manifest"),
            changed: true,
            since: UnixMillis(0),
            snapshot: Round(1),
            from: Round(2),
            version: Round(3),
            undone: 1,
            leases: 0,
            contributions: 0,
            frozen: true,
            uploads: None,
        };
        for run in [None, Some("demo")] {
            assert!(confirms(&asked(b"manifest", run), &reply).is_ok());
            assert!(confirms(&asked(b"another", run), &reply).is_err());
        }
        assert!(confirms(&asked(b"manifest", Some("other")), &reply).is_err());
    }

    fn line(restored: &Restored, name: &str) -> Option<String> {
        let mut lines = restored.lines().into_iter();
        Some(lines.find(|(title, _)| *title == name)?.1)
    }

    #[test]
    fn tl_32_the_lines_say_what_an_order_touched() {
        let done = restored(true);
        let digest = Digest::of(b"manifest");
        for (name, text) in [
            (
                "snapshot",
                format!("{digest}: restored; this is in the ledger"),
            ),
            (
                "weights",
                "those of round 3, as version 8, instead of version 7".to_owned(),
            ),
            ("merged rounds undone", "4".to_owned()),
            ("leases ended", "2".to_owned()),
            ("contributions dropped", "1".to_owned()),
            ("uploads", "5 deleted".to_owned()),
        ] {
            assert_eq!(line(&done, name), Some(text), "{name}");
        }
        assert!(line(&done, "frozen").is_some_and(|text| text.contains("run unfreeze demo")));
        let again = restored(false);
        let said = line(&again, "snapshot").expect("it is printed");
        assert!(
            said.contains("is restored already, since 2023-11-14"),
            "{said}"
        );
        for gone in ["leases ended", "contributions dropped"] {
            assert_eq!(line(&again, gone), None, "{gone}");
        }
        assert!(line(&again, "ended").is_some_and(|text| text.contains("audit replay --run demo")));
        assert!(line(&again, "uploads").is_some_and(|text| text.starts_with("not deleted")));
        assert_eq!(
            line(&again, "frozen").as_deref(),
            Some("no: the run goes on")
        );
    }

    #[test]
    fn each_line_is_explained_on_the_page_of_runbooks() {
        let page = include_str!("../../../../../docs/incidents.md");
        for (name, _) in restored(true)
            .lines()
            .into_iter()
            .chain(restored(false).lines())
        {
            let explained = name == "run" || page.contains(&format!("| `{name}` |"));
            assert!(explained, "{name}");
        }
    }
}
