//! Tests of the lines for people.

use schemas::member::{Layer, OpenLayer, Posture};
use schemas::security::{Refuser, SecurityEvent, Seen};
use schemas::sync::SealedInput;
use schemas::{Code, Digest, Epoch, Fragment, Round, UnitIndex};
use serde_bytes::ByteArray;

use super::*;
use crate::record::Payload;

#[test]
fn a_row_of_a_worker_says_which_unit_and_why() {
    let lease = kit::lease(kit::train(3, 1), 2);
    let statement = Digest::of(b"statement");
    let (code, about) = (Code::MessageInvalid, lease.to_string());
    let text = |text: &str| text.to_owned();
    let detail = text("no room");
    for (event, expected) in [
        (
            WorkerEvent::Joined {
                release: text("0.1.0"),
                device: text("cpu"),
            },
            (String::new(), text("cpu, release 0.1.0")),
        ),
        (
            WorkerEvent::Started { lease },
            (about.clone(), String::new()),
        ),
        (
            WorkerEvent::Masked {
                lease,
                cohort: statement,
                seal: schemas::masking::CohortSeal {
                    key: kit::operator(),
                    signature: serde_bytes::ByteArray::new([7; 64]),
                },
            },
            (
                about.clone(),
                format!("for cohort {}", &statement.hex()[..8]),
            ),
        ),
        (
            WorkerEvent::Submitted { lease, statement },
            (
                about.clone(),
                format!("statement {}", &statement.hex()[..8]),
            ),
        ),
        (
            WorkerEvent::Dropped {
                lease,
                code,
                detail: detail.clone(),
            },
            (about, format!("{code}: no room")),
        ),
        (
            WorkerEvent::Refused { code, detail },
            (String::new(), format!("{code}: no room")),
        ),
        (
            WorkerEvent::Stopped {
                reason: text("the end"),
            },
            (String::new(), text("the end")),
        ),
    ] {
        assert_eq!(of_worker(&event), expected, "{event:?}");
    }
}

#[test]
fn the_loss_of_an_evaluation_is_that_of_a_token() {
    let (about, detail) = of_ledger(&LedgerEvent::EvaluationAccepted {
        lease: kit::lease(kit::evaluate(3), 1),
        worker: kit::worker(1),
        evaluation: kit::evaluation(),
        statement: Digest::of(b"statement"),
        signature: ByteArray::new([0; 64]),
    });
    assert_eq!(about, kit::lease(kit::evaluate(3), 1).to_string());
    assert!(detail.ends_with(", held-out loss 2.0000"), "{detail}");
}

#[test]
fn a_comparison_names_the_contribution_that_agrees_least() {
    let cosines = [0.5, -0.25, 0.75];
    let compared = (0..).zip(cosines).map(|(unit, cosine)| ComparedInput {
        unit: UnitIndex(unit),
        epoch: Epoch(1),
        cosine,
    });
    let event = LedgerEvent::RoundCompared {
        round: Round(3),
        cosines: compared.collect(),
    };
    let detail = "directions of 3 contributions compared, the lowest -0.250, of unit 1";
    let expected = ("round 3".to_owned(), detail.to_owned());
    assert_eq!(of_ledger(&event), expected);
}

#[test]
fn a_seal_says_how_many_are_merged_and_how_many_are_left_out() {
    let said = |weights: &[u64], rest| {
        let input = |(unit, weight): (u32, &u64)| SealedInput {
            unit: UnitIndex(unit),
            epoch: Epoch(1),
            weight: Weight(*weight),
        };
        of_ledger(&LedgerEvent::RoundSealed {
            round: Round(3),
            fragment: Fragment::FIRST,
            inputs: (0..).zip(weights).map(input).collect(),
            left_out: (0..)
                .zip(weights)
                .filter(|(_, weight)| **weight == 0)
                .map(|(unit, _)| (UnitIndex(unit), Code::DirectionOutlier))
                .collect(),
            rest,
        })
    };
    for (weights, rest, detail) in [
        (&[32, 32, 32][..], 0, "3 contributions are merged"),
        (&[32, 32], 1, "2 contributions are merged, and 1 more"),
        (
            &[32, 0, 32],
            0,
            "2 contributions are merged; left out: 1, unlike the others; \
             unit 1: DL0423 against the others",
        ),
        (
            &[0, 0],
            2,
            "0 contributions are merged, and 2 more; left out: 2, unlike the others; \
             unit 0: DL0423 against the others; unit 1: DL0423 against the others",
        ),
    ] {
        let expected = ("round 3".to_owned(), detail.to_owned());
        assert_eq!(said(weights, rest), expected);
    }
}

#[test]
fn the_timeline_of_a_run_has_what_concerns_all_runs_and_nothing_of_another() {
    let row = |run: Option<&str>| TimelineRow {
        run: run.map(|name| name.parse().expect("a name")),
        ..TimelineRow::of_record(&Record {
            stream_sequence: StreamSequence(1),
            subject: String::new(),
            stored_at: UnixMillis(1),
            payload: Payload::of(b""),
        })
    };
    let demo = "demo".parse().expect("a name");
    let concerns = [None, Some("demo"), Some("another")].map(|run| row(run).concerns(&demo));
    assert_eq!(concerns, [true, true, false]);
}

#[test]
fn a_row_has_the_digest_with_which_lineage_is_asked_for() {
    let statement = Digest::of(b"statement");
    let submitted = |unit| {
        digest(&Event::Worker(WorkerEvent::Submitted {
            lease: kit::lease(unit, 1),
            statement,
        }))
    };
    assert_eq!(submitted(kit::train(3, 1)), Some(statement));
    assert_eq!(submitted(kit::evaluate(3)), None);
    let manifest = kit::object("manifest");
    let saved = |manifest| LedgerEvent::SnapshotSaved {
        round: Round(2),
        manifest,
        statement: None,
    };
    assert_eq!(
        digest(&Event::Ledger(saved(manifest))),
        Some(manifest.digest)
    );
    let promoted = LedgerEvent::SnapshotPromoted {
        pointer: "release".parse().expect("a name"),
        round: Round(2),
        manifest: manifest.digest,
        operator: kit::operator(),
        reason: "it reads well".parse().expect("a reason"),
        accepted: vec![kit::worker(1)],
    };
    let (_, said) = of_ledger(&promoted);
    let shut = format!(
        "accepts {} in quarantine: it reads well",
        kit::worker(1).short()
    );
    assert!(said.ends_with(&shut), "{said}");
    assert_eq!(digest(&Event::Ledger(promoted)), Some(manifest.digest));
    assert_eq!(digest(&Event::Ledger(LedgerEvent::RunCompleted)), None);
    let contribution = kit::contribution(&kit::run_spec().build(), vec![manifest]);
    let accepted = LedgerEvent::ContributionAccepted {
        lease: kit::lease(kit::train(3, 1), 1),
        worker: kit::worker(1),
        contribution: Box::new(contribution),
        norm: 0.5,
        statement,
        signature: ByteArray::new([7; 64]),
        provenance: None,
    };
    let (_, said) = of_ledger(&accepted);
    let begins = format!(", statement {}", &statement.hex()[..8]);
    assert!(said.ends_with(&begins), "{said}");
    assert_eq!(digest(&Event::Ledger(accepted)), Some(statement));
}

#[test]
fn text_of_others_cannot_move_the_cursor() {
    assert_eq!(plain("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    assert_eq!(plain(&"x".repeat(4096)).len(), DETAIL_CHARACTERS_MAX);
}

#[test]
fn tl_29_a_row_of_the_sentry_says_which_service_refused_and_what_was_not_heard() {
    let text = |text: &str| text.to_owned();
    let seen = Seen {
        count: 2,
        first: UnixMillis(0),
        account: None,
        user: None,
        name: String::new(),
        address: String::new(),
        subject: text("diloco.control.x"),
        reason: text("DL0208 sender is not who it says"),
    };
    let refused = SecurityEvent::RequestRefused {
        by: Refuser::Audit,
        seen,
    };
    let expected =
        "2 times: DL0208 sender is not who it says, by the audit service, diloco.control.x";
    assert_eq!(of_security(&refused).1, expected);
    let stranger = Seen {
        count: 1,
        first: UnixMillis(0),
        account: None,
        user: None,
        name: text("x, by the coordinator"),
        address: text("10.0.0.1"),
        subject: String::new(),
        reason: text("no token"),
    };
    // The broker's own requests come from no address; those of others do.
    let changed = |address: &str| {
        let seen = Seen {
            address: text(address),
            subject: text("$JS.API.CONSUMER.CREATE.AUDIT"),
            ..stranger.clone()
        };
        of_security(&SecurityEvent::StreamChanged { seen }).0
    };
    assert_eq!(
        (changed("").as_str(), changed("10.0.0.1").as_str()),
        ("the broker", "10.0.0.1")
    );
    let failed = SecurityEvent::AuthenticationFailed { seen: stranger };
    let quoted = "no token, \"x, by the coordinator\", 10.0.0.1";
    assert_eq!(of_security(&failed).1, quoted);
    let started = |broker_log, unheard: &[&str]| {
        let unheard = unheard.iter().map(|one| text(one)).collect();
        let release = text("1");
        of_security(&SecurityEvent::SentryStarted {
            release,
            broker_log,
            unheard,
            posture: Posture::default(),
        })
        .1
    };
    assert_eq!(started(true, &[]), "release 1");
    assert!(started(false, &[]).contains("without the broker's log"));
    assert_eq!(started(true, &["a", "b"]), "release 1, not heard yet: a, b");
    let open = Posture {
        open: vec![OpenLayer {
            layer: Layer::Bulk,
            reason: text("a measurement"),
        }],
    };
    let relaxed = SecurityEvent::SentryStarted {
        release: text("1"),
        broker_log: true,
        unheard: vec![text("a")],
        posture: open.clone(),
    };
    let said = of_security(&relaxed).1;
    assert_eq!(
        said,
        "release 1, open layers: bulk (a measurement), not heard yet: a"
    );
    for (posture, said) in [
        (open, "open layers: bulk (a measurement)"),
        (Posture::default(), "no layer is open"),
    ] {
        let by = Refuser::Store;
        let stated = of_security(&SecurityEvent::PostureStated { by, posture });
        assert_eq!(stated, (text("store"), text(said)));
    }
    let interrupted = SecurityEvent::SentryInterrupted {
        unheard: text("reports"),
        from: UnixMillis(0),
        until: UnixMillis(1000),
        times: 3,
    };
    let detail = of_security(&interrupted).1;
    assert!(
        detail.starts_with("reports were not heard from 1970-01-01"),
        "{detail}"
    );
    assert!(detail.ends_with("lost 3 times"), "{detail}");
}
