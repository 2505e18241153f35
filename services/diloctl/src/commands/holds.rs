//! Holds on a run: `run freeze` and `run unfreeze`, `run stop-urls` and `run allow-urls`.

use runtime::Failure;
use schemas::call::control as call;
use schemas::hold::{AtStore, Hold, HoldReply, HoldRequest};
use schemas::{RunId, V};
use serde::Serialize;

use crate::cli::HoldArgs;
use crate::context::Context;
use crate::output::Record;

/// Places a hold on a run or lifts it, and shows what it concerns.
pub(crate) async fn set(
    context: &Context,
    args: HoldArgs,
    hold: Hold,
    held: bool,
) -> Result<(), Failure> {
    let operator = context.operator().await?;
    let HoldArgs { run, reason } = args;
    let request = HoldRequest {
        v: V,
        run: run.clone(),
        hold,
        held,
        reason,
    };
    let reply = operator.ask::<call::RunHold>(&request).await?;
    context.printer.record(&Set::from((run, hold, held, reply)));
    Ok(())
}

/// A hold as it is now.
#[derive(Serialize)]
struct Set {
    run: RunId,
    hold: Hold,
    held: bool,
    changed: bool,
    weights: u64,
    contributions: u32,
    leases: u32,
    /// Workers that are shut out, for a hold on URLs.
    #[serde(skip_serializing_if = "Option::is_none")]
    shut_out: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<AtStore>,
}

/// The holders of the URLs that an order is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UrlsOf {
    Run,
    Tenant,
    Worker {
        /// True if another key of it is shut out.
        other_key: bool,
    },
}

/// What the store does with URLs that are out, in words, after an order that stops them or lifts
/// its stop.
pub(crate) const fn at_store(store: AtStore, of: UrlsOf, stopped: bool) -> &'static str {
    match (store, of, stopped) {
        (AtStore::Taken, _, true) => "the store takes them: a later order allows them",
        (AtStore::Taken, _, false) => "the store takes them",
        (AtStore::Stopped, UrlsOf::Worker { .. }, true) => {
            "the store refuses them, with all others of this run; a transfer that began before goes on"
        }
        (AtStore::Stopped, UrlsOf::Worker { .. }, false) => {
            "the store still refuses them: those of the whole run are stopped"
        }
        (AtStore::Stopped, _, true) | (AtStore::ShutOut, _, true) => {
            "the store refuses them; a transfer that began before goes on"
        }
        (AtStore::Stopped, _, false) => "the store refuses them: a later order stops them again",
        (AtStore::ShutOut, UrlsOf::Worker { other_key: true }, false) => {
            "the store still refuses them: another key of this worker is shut out"
        }
        (AtStore::ShutOut, _, false) => {
            "the store refuses them: a later order shuts the worker out again"
        }
        (AtStore::NoUrls, UrlsOf::Worker { .. }, _) => "it has none in this run",
        (AtStore::NoUrls, UrlsOf::Run, _) => {
            "there are none: the run is complete, and its last ones have ended"
        }
        (AtStore::NoUrls, UrlsOf::Tenant, _) => {
            "there are none: no run of it was open, and the last ones of complete runs have ended"
        }
        (AtStore::Later, _, true) => {
            "none is given out; the store has not shown yet that it refuses those that are out, which end within a minute"
        }
        (AtStore::Later, _, false) => {
            "the store has not shown yet that it takes them; the coordinator goes on telling it"
        }
        (AtStore::Unable, _, true) => {
            "none is given out; this store cannot tell whose they are, and takes those that are out until they end, a minute at most"
        }
        (AtStore::Unable, _, false) => "given out again",
    }
}

impl From<(RunId, Hold, bool, HoldReply)> for Set {
    fn from((run, hold, held, reply): (RunId, Hold, bool, HoldReply)) -> Self {
        Self {
            run,
            hold,
            held,
            changed: reply.changed,
            weights: reply.weights.get(),
            contributions: reply.contributions,
            leases: reply.leases,
            shut_out: (hold == Hold::Urls).then_some(reply.shut_out),
            store: reply.store,
        }
    }
}

impl Record for Set {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let state = match (self.held, self.changed) {
            (true, true) => "placed; this is in the ledger",
            (true, false) => "stands already",
            (false, true) => "lifted; this is in the ledger",
            (false, false) => "there was none",
        };
        let mut lines = vec![
            ("run", self.run.to_string()),
            ("hold", format!("on {}: {state}", self.hold)),
            ("weights", format!("version {}", self.weights)),
            ("contributions not merged", self.contributions.to_string()),
            ("leases held", self.leases.to_string()),
        ];
        if let Some(store) = self.store {
            let mut urls = at_store(store, UrlsOf::Run, self.held).to_owned();
            if let (AtStore::Taken, Some(workers @ 1..)) = (store, self.shut_out) {
                urls.push_str(&format!(
                    "; it refuses those of workers that are shut out, {workers} here"
                ));
            }
            lines.push(("urls", urls));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use schemas::Round;

    use super::*;

    const WORKER: UrlsOf = UrlsOf::Worker { other_key: false };
    const ALL: [AtStore; 6] = [
        AtStore::Taken,
        AtStore::Stopped,
        AtStore::ShutOut,
        AtStore::NoUrls,
        AtStore::Later,
        AtStore::Unable,
    ];

    /// Only the store's own answer to such a URL lets the text say that it takes or refuses them.
    #[test]
    fn tl_20_tl_31_the_words_say_what_the_store_did_and_no_more() {
        for store in ALL {
            for of in [UrlsOf::Run, UrlsOf::Tenant, WORKER] {
                for stopped in [true, false] {
                    let said = at_store(store, of, stopped);
                    let case = format!("{store:?} {of:?} {stopped}: {said}");
                    let refuses = said.starts_with("the store refuses them")
                        || said.starts_with("the store still refuses them");
                    let takes = said.starts_with("the store takes them");
                    let is = (
                        store == AtStore::Taken,
                        matches!(store, AtStore::Stopped | AtStore::ShutOut),
                    );
                    assert_eq!((takes, refuses), is, "{case}");
                    assert!(!said.contains("unless") && !said.contains(" if "), "{case}");
                }
            }
        }
        let still = at_store(AtStore::Stopped, WORKER, false);
        assert!(
            still.ends_with("those of the whole run are stopped"),
            "{still}"
        );
        let other = UrlsOf::Worker { other_key: true };
        let still = at_store(AtStore::ShutOut, other, false);
        assert!(
            still.ends_with("another key of this worker is shut out"),
            "{still}"
        );
        let again = at_store(AtStore::ShutOut, WORKER, false);
        assert!(again.contains("a later order"), "{again}");
        let all = at_store(AtStore::Stopped, WORKER, true);
        assert!(all.contains("all others of this run"), "{all}");
        assert_eq!(
            at_store(AtStore::NoUrls, WORKER, true),
            "it has none in this run"
        );
    }

    #[test]
    fn tl_31_the_lift_of_a_stop_names_the_workers_that_are_shut_out_still() {
        let line = |hold: Hold, held: bool, store: AtStore, shut_out: u32| {
            let reply = HoldReply {
                v: V,
                changed: true,
                weights: Round(0),
                contributions: 0,
                leases: 0,
                shut_out,
                store: Some(store),
            };
            let set = Set::from(("demo".parse().expect("a name"), hold, held, reply));
            let document = serde_json::to_string(&set).expect("it serialises");
            assert_eq!(document.contains("shut_out\":"), hold == Hold::Urls);
            set.lines().pop().expect("it has lines").1
        };
        let lifted = |store, shut_out| line(Hold::Urls, false, store, shut_out);
        assert_eq!(lifted(AtStore::Taken, 0), "the store takes them");
        assert_eq!(
            lifted(AtStore::Taken, 2),
            "the store takes them; it refuses those of workers that are shut out, 2 here"
        );
        let none = lifted(AtStore::NoUrls, 2);
        assert!(!none.contains("2 here"), "{none}");
        let placed = line(Hold::Urls, true, AtStore::Stopped, 2);
        assert!(!placed.contains("2 here"), "{placed}");
        line(Hold::Merges, true, AtStore::Stopped, 0);
    }

    /// `snapshot restore` counts versions too: one thing has one number.
    #[test]
    fn a_hold_names_the_version_of_the_weights() {
        let set = Set {
            run: "demo".parse().expect("a name"),
            hold: Hold::Merges,
            held: true,
            changed: true,
            weights: 304,
            contributions: 1,
            leases: 2,
            shut_out: None,
            store: None,
        };
        let lines = set.lines();
        let weights = lines.iter().find(|(name, _)| *name == "weights");
        assert_eq!(weights.map(|(_, text)| text.as_str()), Some("version 304"));
    }
}
