//! Security events in the record: a chain of their own, which no state depends on.

use audit_core::sentry::SECURITY_EVERY;
use audit_core::{Auditor, Checked, Finding, Record, StreamSequence, Verdict};
use schemas::event::Event;
use schemas::security::{Refuser, SEEN_BYTES_MAX, SecurityEvent, Seen};
use schemas::subject::{ledger_subject, security_subject};
use schemas::{Message as _, UnixMillis};

use crate::log::{DOMAIN, Emitter, Log, PLAN, SENTRY, audit};

fn everything(auditor: &mut Auditor, records: &[Record]) -> Vec<Checked> {
    audit(auditor, records, StreamSequence(records.len() as u64))
}

fn denied() -> SecurityEvent {
    SecurityEvent::PermissionDenied {
        seen: Seen {
            count: 2,
            first: UnixMillis(1),
            account: None,
            user: None,
            name: String::new(),
            address: "10.0.0.7".to_owned(),
            subject: "diloco.control.x".to_owned(),
            reason: "publish".to_owned(),
        },
    }
}

#[test]
fn tl_29_security_events_are_a_chain_of_the_record_and_change_no_state() {
    let mut log = Log::write(&PLAN);
    let mut before = log.auditor();
    everything(&mut before, &log.records);
    let mut sentry = Emitter::new(SENTRY);
    for _ in 0..3 {
        log.security(&mut sentry, denied());
    }
    let mut auditor = log.auditor();
    let results = everything(&mut auditor, &log.records);
    assert_eq!(auditor.state(), before.state());
    assert_eq!(auditor.findings(), before.findings());
    let rows: Vec<_> = results.iter().map(|one| &one.row).collect();
    let seen: Vec<_> = rows.iter().filter(|row| row.is_security()).collect();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[0].kind, "permission-denied");
    assert_eq!(seen[0].about, "10.0.0.7");
    assert_eq!(
        seen[0].detail,
        "2 times: publish, diloco.control.x, 10.0.0.7"
    );
    let summary = auditor.summary();
    let chain = summary.emitters.iter().find(|one| one.key == sentry.public);
    let chain = chain.expect("it is a chain");
    assert_eq!(
        (chain.name.as_str(), chain.events, chain.whole),
        ("sentry", 3, true)
    );
}

#[test]
fn tl_29_a_security_event_that_is_missing_is_evidence() {
    let mut log = Log::write(&PLAN);
    let mut sentry = Emitter::new(SENTRY);
    log.security(&mut sentry, denied());
    let _lost = sentry.speak(DOMAIN, 1, None, Event::Security(denied()));
    log.security(&mut sentry, denied());
    let mut auditor = log.auditor();
    everything(&mut auditor, &log.records);
    let evidence = auditor.evidence().expect("an event is missing");
    assert!(
        matches!(evidence.finding, Finding::Gap { .. }),
        "{evidence}"
    );
}

/// A thief of the recorder's credentials can put messages there, and nothing more.
#[test]
fn tl_29_only_the_sentry_speaks_of_security_and_of_nothing_else() {
    let mut log = Log::write(&PLAN);
    let (mut sentry, mut other) = (Emitter::new(SENTRY), Emitter::new(SENTRY + 1));
    log.security(&mut other, denied());
    // The sentry is no coordinator, and the coordinator no sentry.
    let said = sentry.speak(DOMAIN, 1, None, Event::Security(denied()));
    log.push(
        ledger_subject(None, &sentry.public, "permission-denied"),
        &said,
    );
    let mut coordinator = log.coordinator.clone();
    log.security(&mut coordinator, denied());
    // An event under another's name, and under that of another kind.
    let said = Emitter::new(SENTRY).speak(DOMAIN, 1, None, Event::Security(denied()));
    log.push(security_subject(&other.public, "permission-denied"), &said);
    log.push(security_subject(&sentry.public, "client-connected"), &said);
    let mut auditor = log.auditor();
    let results = everything(&mut auditor, &log.records);
    let last = results.iter().rev().take(5);
    for one in last {
        assert_eq!(one.verdict, Verdict::Foreign, "{:?}", one.row);
    }
    assert_eq!(auditor.evidence(), None);
    // A bundle that names no sentry trusts none.
    let mut log = Log::write(&PLAN);
    log.security(&mut sentry, denied());
    let mut auditor = Auditor::new(DOMAIN, [log.coordinator.public.clone()]);
    let results = everything(&mut auditor, &log.records);
    assert_eq!(
        results.last().map(|one| one.verdict),
        Some(Verdict::Foreign)
    );
}

/// The longest events of all nine happenings without a pause, with what the sentry says of itself:
/// three things that it hears and the number that it left out, each once a minute.
#[test]
fn tl_29_a_flood_of_everything_leaves_days() {
    let text = || "s".repeat(SEEN_BYTES_MAX);
    let key = |letter: &str| format!("{letter}{}", "A".repeat(55));
    let longest = SecurityEvent::RequestRefused {
        by: Refuser::Coordinator,
        seen: Seen {
            count: u64::MAX,
            first: UnixMillis(u64::MAX >> 1),
            account: key("A").parse().ok(),
            user: key("U").parse().ok(),
            name: text(),
            address: text(),
            subject: text(),
            reason: text(),
        },
    };
    let mut sentry = Emitter::new(SENTRY);
    let said = sentry.speak(DOMAIN, u64::MAX >> 1, None, Event::Security(longest));
    // The broker keeps subject and headers beside it.
    let bytes = said.encode().len() as u64 + 256;
    let day = 24 * 3600 * 1000;
    let of_happening = day / SECURITY_EVERY.get();
    let of_sentry = 4 * 24 * 60;
    let days = |events: u64| (512 << 20) / (bytes * events);
    let (one, all) = (days(of_happening), days(9 * of_happening + of_sentry));
    assert!(one >= 60, "{one} days of {bytes} bytes");
    assert!(all >= 7, "{all} days of {bytes} bytes");
}
