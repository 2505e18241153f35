//! Tests of subjects: a subject that was built parses back, and strange ones are refused.

use std::borrow::Cow;

use super::*;
use crate::lease::UnitKind;
use crate::{Epoch, Round, UnitIndex};

fn worker() -> WorkerId {
    format!("U{}", "A".repeat(55)).parse().expect("a key")
}

fn account() -> AccountId {
    format!("A{}", "B".repeat(55)).parse().expect("a key")
}

fn run() -> RunId {
    "demo".parse().expect("a name")
}

/// Maps a subject as the broker's import does.
fn mapped(subject: &str) -> String {
    let mut tokens: Vec<&str> = subject.split('.').collect();
    let account = account();
    tokens.insert(2, account.as_str());
    tokens.join(".")
}

#[test]
fn every_request_parses_back() {
    for verb in Verb::ALL {
        let parsed = mapped(&request_subject(&run(), &worker(), *verb)).parse();
        let expected = Incoming::Request {
            account: account(),
            run: run(),
            worker: worker(),
            verb: *verb,
        };
        assert_eq!(parsed, Ok(expected));
    }
}

#[test]
fn every_verb_has_a_row_and_every_row_a_verb() {
    let rows = |lane| TABLE.iter().filter(move |row| row.lane == lane);
    for (lane, tokens) in [
        (
            Lane::Request,
            Verb::ALL
                .iter()
                .map(|verb| verb.token())
                .collect::<Vec<_>>(),
        ),
        (
            Lane::Control,
            ControlVerb::ALL.iter().map(|verb| verb.token()).collect(),
        ),
    ] {
        assert_eq!(rows(lane).count(), tokens.len());
        for token in tokens {
            assert!(
                rows(lane).any(|row| row.pattern.ends_with(&format!("}}.{token}"))),
                "{token}"
            );
        }
    }
}

#[test]
fn other_lanes_parse_back() {
    let key: PublicKey = worker().as_str().parse().expect("a key");
    assert!(matches!(
        mapped(&heartbeat_subject(&run(), &worker())).parse(),
        Ok(Incoming::Heartbeat { .. })
    ));
    assert!(matches!(
        mapped(&worker_event_subject(&run(), &worker(), "joined")).parse(),
        Ok(Incoming::WorkerEvent { .. })
    ));
    for verb in LogVerb::ALL {
        let subject = mapped(&log_subject(&run(), &worker(), verb));
        let expected = Incoming::Log {
            account: account(),
            run: run(),
            worker: worker(),
            verb,
        };
        assert_eq!(subject.parse(), Ok(expected));
        assert_eq!(sender_key(&subject), Some(key.clone()));
        assert_eq!(
            as_sent(&subject),
            log_subject(&run(), &worker(), verb),
            "{verb:?}"
        );
        let rows = TABLE.iter().filter(|row| row.lane == Lane::Log);
        let named = |row: &Row| row.pattern == format!("{{run}}.{{worker}}.{}", verb.token());
        assert_eq!(rows.filter(|row| named(row)).count(), 1, "{verb:?}");
    }
    let subject = mapped(&ledger_head_subject(&key));
    let expected = Incoming::LedgerHead {
        account: account(),
        holder: key.clone(),
    };
    assert_eq!(subject.parse(), Ok(expected));
    assert_eq!(sender_key(&subject), Some(key.clone()));
    assert_eq!(as_sent(&subject), ledger_head_subject(&key));
    // The coordinator cosigns nothing.
    let cosign = subject.replace(".head", ".cosign");
    assert!(cosign.parse::<Incoming>().is_err(), "{cosign}");
    assert!(
        format!(
            "{}.x",
            mapped(&log_subject(&run(), &worker(), LogVerb::Head))
        )
        .parse::<Incoming>()
        .is_err()
    );
    for refuser in Refuser::ALL {
        let subject = mapped(&refusal_subject(refuser));
        let expected = Incoming::Refusal {
            account: account(),
            refuser,
        };
        match Refuser::REPORTING.contains(&refuser) {
            true => assert_eq!(subject.parse(), Ok(expected)),
            false => assert!(subject.parse::<Incoming>().is_err(), "{refuser:?}"),
        }
        let rows = TABLE.iter().filter(|row| row.lane == Lane::Refusal);
        let named = rows.filter(|row| row.pattern == refuser.name()).count();
        assert_eq!(named == 1, Refuser::REPORTING.contains(&refuser));
    }
    assert!(matches!(
        record_subject(&account(), &run(), &worker(), "joined").parse(),
        Ok(Incoming::Recorded { .. })
    ));
    assert_eq!(
        ledger_subject(None, &key, "coordinator-started").parse(),
        Ok(Incoming::Ledger {
            run: None,
            emitter: key.clone(),
            kind: "coordinator-started".to_owned()
        })
    );
    for verb in ControlVerb::ALL {
        let expected = Incoming::Control {
            operator: key.clone(),
            verb: *verb,
        };
        assert_eq!(control_subject(&key, *verb).parse(), Ok(expected));
    }
    for run in [None, Some(run())] {
        let expected = Incoming::Renewal {
            account: account(),
            run: run.clone(),
            holder: key.clone(),
        };
        let subject = mapped(&renewal_subject(run.as_ref(), &key));
        assert_eq!(subject.parse(), Ok(expected));
        assert_eq!(sender_key(&subject), Some(key.clone()));
        assert_eq!(as_sent(&subject), renewal_subject(run.as_ref(), &key));
    }
    let unit = UnitId {
        round: Round(3),
        kind: UnitKind::Train,
        index: UnitIndex(1),
    };
    assert!(matches!(
        offer_subject(&run(), unit).parse(),
        Ok(Incoming::Offer {
            round: Round(3),
            ..
        })
    ));
    let _ = Epoch(0);
}

#[test]
fn the_worker_of_a_recorded_event_is_known_whatever_it_calls_the_event() {
    let sender = Some((account(), run(), worker()));
    for kind in ["joined", "no_kind", "a.b"] {
        assert_eq!(
            recorded_worker(&record_subject(&account(), &run(), &worker(), kind)),
            sender,
            "{kind}"
        );
    }
    let key: PublicKey = worker().as_str().parse().expect("a key");
    for subject in [
        ledger_subject(Some(&run()), &key, "joined"),
        "diloco.recorder".to_owned(),
        String::new(),
    ] {
        assert_eq!(recorded_worker(&subject), None, "{subject}");
    }
}

#[test]
fn what_the_broker_put_in_is_taken_out_again() {
    let key: PublicKey = worker().as_str().parse().expect("a key");
    for sent in [
        request_subject(&run(), &worker(), Verb::Claim),
        worker_event_subject(&run(), &worker(), "joined"),
        heartbeat_subject(&run(), &worker()),
    ] {
        assert_eq!(as_sent(&mapped(&sent)), sent);
        assert_eq!(sender_key(&mapped(&sent)), Some(key.clone()), "{sent}");
    }
    let control = control_subject(&key, ControlVerb::View);
    assert_eq!(
        (as_sent(&control), sender_key(&control)),
        (Cow::Borrowed(control.as_str()), Some(key.clone()))
    );
    // An unknown verb leaves the sender known, who gets the refusal.
    assert_eq!(
        sender_key(&mapped(&format!("diloco.request.demo.{key}.lease.steal"))),
        Some(key)
    );
    for strange in [
        "",
        "diloco",
        "diloco.request.x.demo.y.join",
        "diloco.control.x.view",
        "diloco.work.demo.0.x",
    ] {
        assert_eq!(sender_key(strange), None, "{strange}");
    }
}

#[test]
fn strange_subjects_are_refused() {
    let forged = format!("diloco.request.{}.demo.{}.lease.steal", account(), worker());
    for subject in [
        "",
        "diloco",
        "diloco.request",
        "diloco.request.x.demo.y.join",
        "$JS.API.INFO",
        &forged,
    ] {
        assert!(subject.parse::<Incoming>().is_err(), "{subject}");
    }
}
