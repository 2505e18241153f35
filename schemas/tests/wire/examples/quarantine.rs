//! Examples about the quarantine of a worker.

use schemas::event::{Event, LedgerEvent};
use schemas::hold::AtStore;
use schemas::quarantine::{MergedRounds, QuarantineReply, QuarantineRequest};
use schemas::view::SnapshotView;
use schemas::{Round, UnixMillis, V};

use super::{Example, event, example, lease, object, public, run, worker};

pub(super) fn all() -> Vec<Example> {
    vec![
        example(&QuarantineRequest {
            v: V,
            run: run(),
            worker: worker(),
            quarantined: true,
            reason: "odd norms".parse().expect("a reason"),
        }),
        example(&QuarantineReply {
            v: V,
            changed: true,
            since: Some(UnixMillis(1_700_000_000_000)),
            joined: true,
            lease: Some(lease()),
            withdrawn: vec![lease()],
            withdrawn_more: 1,
            uploads: Some(3),
            sealed: vec![Round(4)],
            merged: Some(MergedRounds {
                first: Round(1),
                last: Round(3),
                rounds: 2,
            }),
            clean: Some(SnapshotView {
                given_up: None,
                round: Round(1),
                manifest: object(),
                saved_at: UnixMillis(1_700_000_000_000),
                statement: None,
                pointers: Vec::new(),
                undone: false,
                quarantined: None,
            }),
            other_keys: Vec::new(),
            store: Some(AtStore::ShutOut),
        }),
        Example {
            name: "reply to a readmission that leaves other keys shut out",
            ..example(&QuarantineReply {
                v: V,
                changed: true,
                since: None,
                joined: true,
                lease: None,
                withdrawn: Vec::new(),
                withdrawn_more: 0,
                uploads: None,
                sealed: Vec::new(),
                merged: None,
                clean: None,
                other_keys: vec![worker()],
                store: None,
            })
        },
        Example {
            name: "event of a quarantine",
            ..example(&event(Event::Ledger(LedgerEvent::WorkerQuarantined {
                worker: worker(),
                operator: public(),
                reason: "odd norms".parse().expect("a reason"),
                lease: Some(lease()),
                withdrawn: 1,
            })))
        },
        Example {
            name: "event of the end of a quarantine",
            ..example(&event(Event::Ledger(LedgerEvent::WorkerReadmitted {
                worker: worker(),
                operator: public(),
                reason: "it was the card".parse().expect("a reason"),
            })))
        },
    ]
}
