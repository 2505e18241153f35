//! Tests of what services report of the requests that they refuse.

use schemas::limits::TEXT_BYTES_MAX;
use schemas::member::{Layer, OpenLayer};
use schemas::security::{RefusalReport, Refused};
use schemas::{Code, Message as _, V};

use super::*;

fn refused(user: Option<&str>, subject: &str, code: Code) -> Refused {
    Refused {
        account: None,
        user: user.and_then(|user| user.parse().ok()),
        subject: subject.to_owned(),
        code,
        count: 1,
    }
}

fn told_by(refuser: Refuser, report: &RefusalReport) -> Option<Reported> {
    let account = format!("A{}", "B".repeat(55));
    let subject = format!("diloco.refusal.{account}.{}", refuser.name());
    of_refusals(&subject, &report.encode())
}

#[test]
fn tl_29_a_refused_request_is_an_event_with_its_service_sender_and_code() {
    let account = format!("A{}", "D".repeat(55));
    let key = key("C");
    let report = RefusalReport {
        v: V,
        refusals: vec![Refused {
            account: account.parse().ok(),
            count: 7,
            ..refused(
                Some(&key),
                "diloco.control.x.shutdown",
                Code::IdentityMismatch,
            )
        }],
        more: 3,
        posture: None,
    };
    for refuser in Refuser::REPORTING {
        let reported = told_by(refuser, &report).expect("it is a report");
        let (sightings, more) = (reported.sightings, reported.more);
        assert_eq!((sightings.len(), more), (1, 3));
        let mut sentry = Sentry::new(NOW);
        for (sighting, times) in sightings {
            sentry.note_times(NOW, sighting, times);
        }
        let events = sentry.take(NOW);
        let [SecurityEvent::RequestRefused { by, seen }] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!((*by, seen.count), (refuser, 7));
        assert_eq!(
            seen.account.as_ref().map(AccountId::as_str),
            Some(&*account)
        );
        assert_eq!(seen.user.as_ref().map(PublicKey::as_str), Some(&*key));
        assert_eq!(seen.subject, "diloco.control.x.shutdown");
        assert_eq!(seen.reason, "DL0208 sender is not who it says");
        assert_eq!(events[0].kind(), "request-refused");
    }
}

/// The broker carries an answer to any subject that its asker names.
#[test]
fn tl_29_only_a_report_under_the_subject_of_a_service_is_one() {
    let report = RefusalReport {
        v: V,
        refusals: Vec::new(),
        more: 0,
        posture: None,
    };
    let account = format!("A{}", "B".repeat(55));
    let bytes = report.encode();
    for (subject, payload) in [
        ("diloco.refusal.coordinator".to_owned(), &bytes[..]),
        (format!("diloco.refusal.{account}.store"), &bytes),
        (format!("diloco.refusal.{account}.audit"), &bytes),
        (format!("diloco.refusal.{account}.coordinator.x"), &bytes),
        (format!("diloco.telemetry.{account}.coordinator"), &bytes),
        (format!("diloco.refusal.{account}.coordinator"), b"{}"),
        (format!("diloco.refusal.{account}.coordinator"), b"\xc1x"),
        (format!("diloco.refusal.{account}.coordinator"), b""),
    ] {
        assert_eq!(of_refusals(&subject, payload), None, "{subject}");
    }
    assert!(told_by(Refuser::Coordinator, &report).is_some());
}

/// However many requests the coordinator refuses, the registrar's refusals are told, and the
/// broker's.
#[test]
fn tl_29_a_flood_of_refused_requests_hides_nothing_else() {
    let mut sentry = Sentry::new(NOW);
    let mut now = NOW;
    for _ in 0..24 * 60 {
        for number in 0..SIGHTINGS_OF_SENDER_MAX {
            let one = refused(None, &number.to_string(), Code::MessageInvalid);
            let (sighting, _) = of_refused(Refuser::Coordinator, one);
            sentry.note_times(now, sighting, 1_000_000);
        }
        sentry.take(now);
        now = now.after(REFUSALS_EVERY);
    }
    let other = refused(None, "other", Code::InvitationUsed);
    let (other, times) = of_refused(Refuser::Registrar, other);
    sentry.note_times(now, other, times);
    sentry.note(now, sighting("z", "denied"));
    let events = sentry.take(now);
    let seen = seen(&events);
    assert!(seen.contains(&(1, "other")) && seen.contains(&(1, "denied")));
}

/// A service that is captured may count as it likes.
#[test]
fn tl_29_false_counts_of_a_service_harm_nothing() {
    let mut sentry = Sentry::new(NOW);
    let far = |subject: &str| {
        of_refused(
            Refuser::Coordinator,
            refused(None, subject, Code::MessageInvalid),
        )
        .0
    };
    sentry.note_times(NOW, far("none"), 0);
    assert_eq!(sentry.take(NOW), []);
    for _ in 0..2 {
        for number in 0..SIGHTINGS_MAX + 2 {
            let address = Sighting {
                address: number.to_string(),
                ..far("x")
            };
            sentry.note_times(NOW, address, u64::MAX);
        }
    }
    let events = sentry.take_last(NOW);
    let most = events.iter().filter_map(SecurityEvent::seen);
    assert!(most.clone().all(|seen| seen.count == u64::MAX));
    let dropped = SecurityEvent::SightingsDropped {
        count: u64::MAX,
        log_bytes: 0,
    };
    assert_eq!(events.last(), Some(&dropped));
}

/// A store that is captured lists new addresses at each look, and workers of a tenant take turns at
/// the coordinator: each fills its own table, and no other.
#[test]
fn tl_29_no_number_of_refused_senders_takes_the_room_of_another_happening() {
    let mut sentry = Sentry::new(NOW);
    for refuser in [Refuser::Store, Refuser::Coordinator] {
        for number in 0..SIGHTINGS_MAX + 2 {
            let flood = Sighting {
                happening: Happening::RequestRefused(refuser),
                ..sighting(&number.to_string(), "flood")
            };
            sentry.note(NOW, flood);
        }
    }
    let quiet = [
        Happening::StreamChanged,
        Happening::AuthenticationFailed,
        Happening::PermissionDenied,
        Happening::RequestRefused(Refuser::Registrar),
        Happening::RequestRefused(Refuser::Audit),
    ];
    for happening in quiet {
        let one = Sighting {
            happening,
            ..sighting("quiet", "quiet")
        };
        sentry.note(NOW, one);
    }
    let events = sentry.take(NOW);
    let told = seen(&events)
        .into_iter()
        .filter(|one| *one == (1, "quiet"))
        .count();
    assert_eq!(told, quiet.len(), "each is told at once");
    let dropped = SecurityEvent::SightingsDropped {
        count: 4,
        log_bytes: 0,
    };
    assert_eq!(events.last(), Some(&dropped), "only what overflowed");
}

#[test]
fn la_01_a_services_posture_is_an_event_at_first_and_when_it_is_another() {
    let open = |reason: &str| Posture {
        open: vec![OpenLayer {
            layer: Layer::Bus,
            reason: reason.to_owned(),
        }],
    };
    let said_by = |refuser: Refuser, posture: &Posture| {
        let report = RefusalReport {
            posture: Some(posture.clone()),
            ..RefusalReport::default()
        };
        let reported = told_by(refuser, &report).expect("it is a report");
        assert_eq!((reported.sightings.len(), reported.more), (0, 0));
        reported.posture.expect("it says so")
    };
    let mut sentry = Sentry::new(NOW);
    let mut told = |now: UnixMillis, posture: &Posture| {
        let (by, posture) = said_by(Refuser::Registrar, posture);
        sentry.note_posture(by, posture);
        let stated = |event| match event {
            SecurityEvent::PostureStated {
                by: Refuser::Registrar,
                posture,
            } => posture,
            other => panic!("{other:?}"),
        };
        sentry.take(now).into_iter().map(stated).collect::<Vec<_>>()
    };
    let closed = Posture::default();
    assert_eq!(
        told(NOW, &closed),
        std::slice::from_ref(&closed),
        "that nothing is open is said too"
    );
    assert_eq!(told(NOW, &closed), [], "it is said again and again");
    // One that changes its word is told, and not more often than now and again.
    assert_eq!(told(NOW, &open("a")), []);
    let due = NOW.after(STATEMENTS_EVERY);
    assert_eq!(told(due, &open("b")), [open("b")]);
    assert_eq!(told(due, &open("b")), []);
    let (by, posture) = said_by(Refuser::Registrar, &open("c"));
    sentry.note_posture(by, posture);
    let last = sentry.take_last(due);
    assert_eq!(last.len(), 1, "before the end all is told: {last:?}");
}

#[test]
fn la_01_what_a_posture_says_is_cut_to_what_an_event_holds() {
    let long = OpenLayer {
        layer: Layer::Bus,
        reason: "\u{e4}".repeat(TEXT_BYTES_MAX),
    };
    let mut sentry = Sentry::new(NOW);
    let open = vec![long; 100];
    sentry.note_posture(Refuser::Store, Posture { open });
    let events = sentry.take(NOW);
    let [SecurityEvent::PostureStated { posture, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    let [open] = &posture.open[..] else {
        panic!("{posture:?}");
    };
    assert_eq!(open.reason.len(), TEXT_BYTES_MAX);
}
