//! Tenants in the fold: what their accounts and their ends forbid, and where they stand in a
//! checkpoint.

use ledger::State;
use schemas::event::{Departure, LedgerEvent};
use schemas::tenant::Quota;
use schemas::{RunId, UnixMillis};

use crate::kit::{TIME, created, hold, joined, left, spec, worker};

fn set(name: &str, account: u32) -> LedgerEvent {
    LedgerEvent::TenantSet {
        tenant: name.parse().expect("a name"),
        account: kit::account(account),
        quota: Quota {
            runs: Some(2),
            ..Quota::default()
        },
        operator: kit::operator(),
    }
}

fn ended(name: &str) -> LedgerEvent {
    LedgerEvent::TenantEnded {
        tenant: name.parse().expect("a name"),
        operator: kit::operator(),
        reason: "the party left".parse().expect("a reason"),
    }
}

fn run(name: &str) -> RunId {
    name.parse().expect("a name")
}

fn creates(name: &str) -> LedgerEvent {
    let mut spec = spec();
    spec.run = run(name);
    created(spec)
}

fn by(account: u32, number: u32) -> LedgerEvent {
    kit::joined(
        worker(number),
        kit::account(account),
        kit::join_request(number),
    )
}

/// A ledger that is written event by event; an event that is refused must change nothing.
struct Pages(State);

impl Pages {
    fn note(&mut self, run: Option<&str>, event: &LedgerEvent) {
        let name = run.map(self::run);
        let noted = self.0.apply(TIME, name.as_ref(), event);
        noted.unwrap_or_else(|error| panic!("{}: {error}", event.kind()));
        self.0.check().expect("the state holds together");
        let bytes = self.0.to_checkpoint();
        let again = State::from_checkpoint(&bytes).expect("a checkpoint");
        assert_eq!(again.to_checkpoint(), bytes);
        let tenants = |state: &State| {
            let all = state
                .tenants()
                .map(|(name, one)| (name.clone(), one.clone()));
            all.collect::<Vec<_>>()
        };
        assert_eq!(tenants(&again), tenants(&self.0));
    }

    fn refuse(&mut self, run: Option<&str>, event: &LedgerEvent) {
        let (name, before) = (run.map(self::run), self.0.clone());
        let applied = self.0.apply(UnixMillis(9), name.as_ref(), event);
        assert!(applied.is_err(), "{run:?} {} fits", event.kind());
        assert_eq!(self.0, before);
    }
}

#[test]
fn tl_25_a_run_takes_workers_of_its_tenants_account_alone() {
    let mut pages = Pages(State::default());
    pages.refuse(Some("acme_demo"), &creates("acme_demo"));
    pages.note(None, &set("acme", 2));
    pages.note(Some("acme_demo"), &creates("acme_demo"));
    pages.note(Some("demo"), &creates("demo"));
    pages.refuse(Some("acme_demo"), &joined(1));
    pages.note(Some("acme_demo"), &by(2, 1));
    pages.refuse(Some("demo"), &by(2, 2));
    pages.note(Some("demo"), &joined(2));
    assert_eq!(
        pages
            .0
            .run(&run("acme_demo"))
            .and_then(|run| run.account.clone()),
        Some(kit::account(2))
    );
}

#[test]
fn a_tenants_account_is_its_own_and_stays() {
    let mut pages = Pages(State::default());
    pages.note(None, &set("acme", 2));
    pages.refuse(None, &set("acme", 3));
    pages.refuse(None, &set("other", 2));
    pages.note(None, &set("acme", 2));
    pages.note(None, &set("other", 3));
}

#[test]
fn tl_31_a_tenant_ends_when_its_runs_are_frozen_and_empty_and_they_stay_so() {
    let mut pages = Pages(State::default());
    pages.refuse(None, &ended("acme"));
    pages.note(None, &set("acme", 2));
    pages.note(Some("acme_demo"), &creates("acme_demo"));
    pages.note(Some("acme_demo"), &by(2, 1));
    pages.refuse(None, &ended("acme"));
    pages.note(Some("acme_demo"), &hold(true));
    pages.refuse(None, &ended("acme"));
    pages.note(Some("acme_demo"), &hold(false));
    pages.note(Some("acme_demo"), &left(1, Departure::TenantEnded));
    pages.refuse(None, &ended("acme"));
    pages.note(Some("acme_demo"), &hold(true));
    pages.note(None, &ended("acme"));
    for event in [by(2, 1), by(2, 7), hold(false)] {
        pages.refuse(Some("acme_demo"), &event);
    }
    for event in [ended("acme"), set("acme", 2)] {
        pages.refuse(None, &event);
    }
    pages.refuse(Some("acme_more"), &creates("acme_more"));
}

/// States of ledgers without tenants keep the bytes that they had before there were tenants. The
/// digests in `checkpoints`, `holds`, `pointers` and `quarantine` are those of before, and show it
/// for states with members, results, holds, pointers and quarantines; this test names the fields.
#[test]
fn a_state_without_tenants_names_none_in_its_checkpoint() {
    let mut state = State::default();
    let name = run("demo");
    let noted = state.apply(TIME, Some(&name), &creates("demo"));
    noted.expect("it fits");
    let names = |state: &State, wanted: &str| {
        let bytes = state.to_checkpoint();
        bytes
            .windows(wanted.len())
            .any(|part| part == wanted.as_bytes())
    };
    for field in ["tenants", "account", "tenant_ended", "objects"] {
        assert!(!names(&state, field), "{field}");
    }
    let noted = state.apply(TIME, None, &set("acme", 2));
    noted.expect("it fits");
    assert!(names(&state, "tenants"));
}
