//! `run gc`: has the objects of a run's old rounds deleted, or tells which would go.

use runtime::Failure;
use schemas::call::control as call;
use schemas::collection::{CollectReply, CollectRequest, Collected};
use schemas::{ChainSequence, Code, Round, RunId, V};
use serde::Serialize;

use crate::cli::GcArgs;
use crate::context::Context;
use crate::output::Record;
use crate::table::bytes;

pub(crate) async fn run(context: &Context, args: GcArgs) -> Result<(), Failure> {
    let operator = context.operator().await?;
    let GcArgs {
        run,
        keep,
        yes,
        store_is_ours,
        reason,
    } = args;
    let request = CollectRequest {
        v: V,
        run,
        keep,
        delete: reason.filter(|_| yes),
        store_is_ours,
    };
    let reply = operator.ask::<call::RunGc>(&request).await?;
    confirms(&request, &reply)?;
    context.printer.record(&Gone::from(reply));
    Ok(())
}

/// The answer must be about this run, and about what was asked: to tell, or to delete.
fn confirms(request: &CollectRequest, reply: &CollectReply) -> Result<(), Failure> {
    let deletes = request.delete.is_some();
    if reply.run == request.run && reply.deleted.is_some() == deletes {
        return Ok(());
    }
    let (wanted, found) = (&request.run, &reply.run);
    let detail = format!(
        "asked about run {wanted} (delete: {deletes}), the coordinator answered about run {found} \
         (delete: {})",
        reply.deleted.is_some()
    );
    Err(Failure::new(Code::MessageInvalid, detail))
}

/// Objects that go, or that have gone.
#[derive(Serialize)]
struct Gone {
    run: RunId,
    dry: bool,
    kept_from: Round,
    contributions: Collected,
    weights: Collected,
    snapshots: Collected,
    snapshots_given_up: u32,
    objects: u64,
    bytes: u64,
    event: Option<ChainSequence>,
    deleted: Option<u64>,
}

impl From<CollectReply> for Gone {
    fn from(reply: CollectReply) -> Self {
        let (objects, total) = reply.total();
        Self {
            run: reply.run,
            dry: reply.deleted.is_none(),
            kept_from: reply.through,
            contributions: reply.contributions,
            weights: reply.weights,
            snapshots: reply.snapshots,
            snapshots_given_up: reply.snapshots_given_up,
            objects,
            bytes: total.get(),
            event: reply.event,
            deleted: reply.deleted,
        }
    }
}

fn of_kind(kind: Collected) -> String {
    match kind.rounds {
        None => "none".to_owned(),
        Some((oldest, newest)) => format!(
            "{} objects, {}, of rounds {oldest} to {newest}",
            kind.objects,
            bytes(kind.bytes.get())
        ),
    }
}

impl Record for Gone {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let state = match (self.deleted, self.event) {
            (None, _) if self.objects == 0 => "nothing would go".to_owned(),
            (None, _) => format!(
                "nothing was deleted: this is what would go; if no other trust domain uses this \
                 bucket, `diloctl run gc {} --yes --store-is-ours --reason TEXT` deletes it",
                self.run
            ),
            (Some(0), None) => "there was nothing to delete".to_owned(),
            (Some(count), event) => {
                let event = event.map_or_else(String::new, |event| {
                    format!("; event {event} of the ledger names them as given up")
                });
                format!("{count} objects deleted{event}")
            }
        };
        vec![
            ("run", self.run.to_string()),
            ("state", state),
            (
                "kept",
                format!("everything from round {} on", self.kept_from),
            ),
            ("contributions", of_kind(self.contributions)),
            ("weights for workers", of_kind(self.weights)),
            ("snapshots", of_kind(self.snapshots)),
            ("snapshots given up", self.snapshots_given_up.to_string()),
            (
                "together",
                format!("{} objects, {}", self.objects, bytes(self.bytes)),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use schemas::Bytes;

    use super::*;

    fn reply(event: Option<u64>, deleted: Option<u64>) -> CollectReply {
        let kind = Collected {
            objects: 6,
            bytes: Bytes(6 << 20),
            rounds: Some((Round(0), Round(2))),
        };
        CollectReply {
            v: V,
            run: "demo".parse().expect("a name"),
            through: Round(3),
            contributions: kind,
            weights: Collected::default(),
            snapshots: kind,
            snapshots_given_up: 2,
            event: event.map(ChainSequence),
            deleted,
        }
    }

    fn line(reply: CollectReply, name: &str) -> String {
        let mut lines = Gone::from(reply).lines().into_iter();
        let found = lines.find(|(title, _)| *title == name);
        found.expect("it is printed").1
    }

    #[test]
    fn nothing_is_deleted_before_somebody_says_that_the_store_is_ours() {
        use clap::Parser as _;
        #[derive(clap::Parser)]
        struct Gc {
            #[command(flatten)]
            args: GcArgs,
        }
        let parse = |more: &[&str]| Gc::try_parse_from([&["gc", "demo"], more].concat());
        let (yes, ours, reason) = ("--yes", "--store-is-ours", ["--reason", "full"]);
        assert!(parse(&[yes, reason[0], reason[1]]).is_err());
        assert!(parse(&[yes, ours]).is_err());
        assert!(parse(&[ours]).is_err(), "nothing would be deleted");
        let told = parse(&[]).expect("it only tells").args;
        let order = parse(&[yes, ours, reason[0], reason[1]]);
        let order = order.expect("it is whole").args;
        assert!(!told.yes && order.yes && order.store_is_ours);
    }

    #[test]
    fn an_answer_about_something_else_is_no_success() {
        let asked = |run: &str, delete: bool| CollectRequest {
            v: V,
            run: run.parse().expect("a name"),
            keep: 1,
            delete: delete.then(|| "full".parse().expect("a reason")),
            store_is_ours: delete,
        };
        assert!(confirms(&asked("demo", false), &reply(None, None)).is_ok());
        assert!(confirms(&asked("demo", true), &reply(Some(9), Some(12))).is_ok());
        assert!(confirms(&asked("other", false), &reply(None, None)).is_err());
        assert!(confirms(&asked("demo", true), &reply(None, None)).is_err());
        assert!(confirms(&asked("demo", false), &reply(Some(9), Some(12))).is_err());
    }

    #[test]
    fn the_lines_say_what_would_go_and_what_has_gone() {
        let told = line(reply(None, None), "state");
        assert!(
            told.contains("would go") && told.contains("run gc demo --yes --store-is-ours"),
            "{told}"
        );
        let gone = line(reply(Some(9), Some(12)), "state");
        assert!(
            gone.contains("12 objects deleted") && gone.contains("event 9"),
            "{gone}"
        );
        let nothing = line(reply(None, Some(0)), "state");
        assert_eq!(nothing, "there was nothing to delete");
        let contributions = line(reply(None, None), "contributions");
        assert!(
            contributions.starts_with("6 objects, ") && contributions.ends_with("rounds 0 to 2")
        );
        assert_eq!(line(reply(None, None), "weights for workers"), "none");
        assert!(line(reply(None, None), "together").starts_with("12 objects, "));
        assert_eq!(
            line(reply(None, None), "kept"),
            "everything from round 3 on"
        );
    }
}
