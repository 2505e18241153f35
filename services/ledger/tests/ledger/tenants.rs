//! Tenants in the fold: what their accounts and their ends forbid, and where they stand in a
//! checkpoint.

use std::collections::BTreeSet;

use ledger::{State, UrlHolders};
use schemas::event::{Departure, LedgerEvent};
use schemas::hold::Hold;
use schemas::limits::URLS_OUT_MAX;
use schemas::tenant::Quota;
use schemas::{Chunks, Listed, RunId, UnixMillis};

use crate::kit::{
    TIME, accepted, closed, created, granted, hold, joined, lease, left, opened, sealed, spec,
    worker,
};

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
        assert!(again.runs().eq(self.0.runs()), "every run is as before");
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
    let listed = pages.0.tenants();
    let listed: Vec<_> = listed
        .map(|(name, one)| (name.as_str(), one.account.clone()))
        .collect();
    assert_eq!(
        listed,
        [("acme", kit::account(2)), ("other", kit::account(3))]
    );
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

/// A run of one round that its only worker has done, and that is complete.
fn completed(pages: &mut Pages, name: &str, account: u32) {
    let mut spec = spec();
    spec.run = run(name);
    (spec.schedule.rounds, spec.schedule.units) = (1, 1);
    for event in [
        created(spec),
        by(account, 0),
        opened(0),
        granted(lease(0, 0, 1), 0),
        accepted(lease(0, 0, 1), 0),
        sealed(0, &[(0, 1, 32)], 0),
        closed(0, 1),
        LedgerEvent::RunCompleted,
    ] {
        pages.note(Some(name), &event);
    }
}

/// Members of a complete run do nothing any more, so nobody has to freeze it.
#[test]
fn tl_31_the_end_of_a_tenant_is_the_end_of_its_open_runs_and_of_no_others() {
    let mut pages = Pages(State::default());
    pages.note(None, &set("acme", 2));
    pages.note(None, &set("other", 3));
    completed(&mut pages, "acme_old", 2);
    for (name, account) in [("acme_demo", 2), ("other_demo", 3), ("demo", 1)] {
        pages.note(Some(name), &creates(name));
        pages.note(Some(name), &by(account, 1));
    }
    pages.note(Some("acme_demo"), &left(1, Departure::Left));
    pages.note(Some("acme_demo"), &hold(true));
    let stopped = |pages: &Pages| pages.0.stopped_urls().into_keys().collect::<BTreeSet<_>>();
    let names = |all: &[&str]| -> BTreeSet<UrlHolders> {
        let runs = all.iter().map(|name| run(name));
        runs.map(UrlHolders::of_run).collect()
    };
    assert_eq!(stopped(&pages), names(&[]));
    let acme = "acme".parse().expect("a name");
    assert!(!pages.0.has_ended(&acme));
    pages.note(None, &ended("acme"));
    assert!(pages.0.has_ended(&acme) && !pages.0.has_ended(&"other".parse().expect("a name")));
    let is_over = |name: &str| pages.0.run(&run(name)).expect("it is there").tenant_ended;
    let over = ["acme_demo", "acme_old", "other_demo", "demo"].map(is_over);
    assert_eq!(over, [true, false, false, false]);
    // The URLs of the complete run are out as well, for a time.
    assert_eq!(stopped(&pages), names(&["acme_demo", "acme_old"]));
    let end = Some(TIME.after(URLS_OUT_MAX));
    let ends: Vec<_> = pages.0.stopped_urls().into_values().collect();
    assert_eq!(ends, [None, end]);
    for (name, account) in [("other_demo", 3), ("demo", 1)] {
        pages.note(Some(name), &by(account, 2));
        pages.note(Some(name), &hold(true));
        pages.note(Some(name), &hold(false));
    }
    pages.note(
        Some("demo"),
        &LedgerEvent::HoldPlaced {
            hold: Hold::Urls,
            operator: kit::operator(),
            reason: "a log has urls".parse().expect("a reason"),
        },
    );
    assert_eq!(stopped(&pages), names(&["acme_demo", "acme_old", "demo"]));
}

#[test]
fn a_tenant_keeps_the_time_of_its_first_entry_and_the_quota_of_its_last() {
    let mut state = State::default();
    let name = "acme".parse().expect("a name");
    assert_eq!(state.tenant(&name), None);
    let mut note = |time, event: &LedgerEvent| {
        let noted = state.apply(UnixMillis(time), None, event);
        noted.expect("it fits");
        state.tenant(&name).expect("it is there").clone()
    };
    let first = note(5, &set("acme", 2));
    assert_eq!((first.since, first.ended), (UnixMillis(5), None));
    let mut other = set("acme", 2);
    if let LedgerEvent::TenantSet { quota, .. } = &mut other {
        quota.runs = Some(7);
    }
    let again = note(6, &other);
    assert_eq!((again.since, again.quota.runs), (UnixMillis(5), Some(7)));
    let over = note(8, &ended("acme"));
    assert_eq!(
        (over.since, over.ended),
        (UnixMillis(5), Some(UnixMillis(8)))
    );
}

/// For the quota: chunks, and the list that names them if there is one.
#[test]
fn the_objects_of_a_tenants_contributions_are_counted_and_no_others() {
    let mut pages = Pages(State::default());
    pages.note(None, &set("acme", 2));
    for (name, account, objects) in [("acme_demo", 2, [2, 6]), ("demo", 1, [0, 0])] {
        pages.note(Some(name), &creates(name));
        pages.note(Some(name), &opened(0));
        for number in 0..2 {
            pages.note(Some(name), &by(account, number));
            let lease = lease(0, number, 1);
            pages.note(Some(name), &granted(lease, number));
            let chunks = |count: u32| -> Vec<_> {
                let each = (0..count).map(|at| kit::object(&format!("{name} {number} {at}")));
                each.collect()
            };
            let mut event = accepted(lease, number);
            if let LedgerEvent::ContributionAccepted { contribution, .. } = &mut event {
                contribution.chunks = match number {
                    0 => chunks(2).into(),
                    _ => Chunks::Listed(Listed::of(&chunks(3)).0),
                };
            }
            pages.note(Some(name), &event);
            let run = pages.0.run(&run(name)).expect("it is there");
            assert_eq!(run.objects, objects[number as usize]);
        }
    }
}
