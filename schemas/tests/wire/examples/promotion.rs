//! Examples about snapshots that are saved and promoted.

use std::num::NonZeroU32;

use schemas::control::{Query, View, ViewReply, ViewRequest};
use schemas::event::{Event, LedgerEvent};
use schemas::foundry::{Answer, FoundryAnswer, Saved};
use schemas::member::Session;
use schemas::promotion::{PointerName, PromoteReply, PromoteRequest};
use schemas::view::SnapshotView;
use schemas::{Digest, Round, UnixMillis, V};

use super::{Example, event, example, object, public, run, worker};

fn pointer() -> PointerName {
    "latest-good".parse().expect("a name")
}

fn snapshot() -> SnapshotView {
    SnapshotView {
        given_up: None,
        round: Round(4),
        manifest: object(),
        saved_at: UnixMillis(1_700_000_000_000),
        statement: Some(object()),
        undone: false,
        pointers: Vec::new(),
        quarantined: None,
    }
}

pub(super) fn all() -> Vec<Example> {
    vec![
        example(&PromoteRequest {
            v: V,
            run: Some(run()),
            snapshot: Digest::of(b"manifest"),
            pointer: pointer(),
            accept: Vec::new(),
            check_only: false,
            reason: "it reads well".parse().expect("a reason"),
        }),
        Example {
            name: "request for a promotion that accepts a worker in quarantine",
            ..example(&PromoteRequest {
                v: V,
                run: None,
                snapshot: Digest::of(b"manifest"),
                pointer: pointer(),
                accept: vec![worker()],
                check_only: true,
                reason: "only its first round".parse().expect("a reason"),
            })
        },
        Example {
            name: "reply to a promotion that accepts a worker in quarantine",
            ..example(&PromoteReply {
                v: V,
                changed: true,
                pointer: pointer(),
                round: Round(4),
                manifest: object(),
                before: None,
                undone: false,
                accepted: vec![worker()],
            })
        },
        example(&PromoteReply {
            v: V,
            changed: true,
            pointer: pointer(),
            round: Round(4),
            manifest: object(),
            undone: true,
            before: Some(Round(2)),
            accepted: Vec::new(),
        }),
        Example {
            name: "view of a promoted snapshot",
            ..example(&ViewReply::of(View::Snapshots(vec![SnapshotView {
                pointers: vec![pointer()],
                ..snapshot()
            }])))
        },
        Example {
            name: "view request for what was left out",
            ..example(&ViewRequest {
                rest: Some(300),
                ..ViewRequest::of(Query::Snapshots(run()))
            })
        },
        Example {
            name: "view that leaves rows out",
            ..example(&ViewReply {
                left_out: NonZeroU32::new(300),
                ..ViewReply::of(View::Snapshots(Vec::new()))
            })
        },
        Example {
            name: "view of a snapshot with contributions of workers in quarantine",
            ..example(&ViewReply::of(View::Snapshots(vec![SnapshotView {
                quarantined: NonZeroU32::new(2),
                ..snapshot()
            }])))
        },
        Example {
            name: "event of a saved snapshot",
            ..example(&event(Event::Ledger(LedgerEvent::SnapshotSaved {
                round: Round(4),
                manifest: object(),
                statement: Some(object()),
            })))
        },
        Example {
            name: "event of a promotion",
            ..example(&event(Event::Ledger(LedgerEvent::SnapshotPromoted {
                pointer: pointer(),
                round: Round(4),
                manifest: Digest::of(b"manifest"),
                operator: public(),
                reason: "it reads well".parse().expect("a reason"),
                accepted: Vec::new(),
            })))
        },
        Example {
            name: "event of a promotion that accepts a worker in quarantine",
            ..example(&event(Event::Ledger(LedgerEvent::SnapshotPromoted {
                pointer: pointer(),
                round: Round(4),
                manifest: Digest::of(b"manifest"),
                operator: public(),
                reason: "only its first round".parse().expect("a reason"),
                accepted: vec![worker()],
            })))
        },
        Example {
            name: "foundry answer of a save",
            ..example(&FoundryAnswer {
                v: V,
                run: run(),
                session: Session::default(),
                answer: Answer::Saved {
                    round: Round(4),
                    outcome: Ok(Saved {
                        manifest: object(),
                        statement: object(),
                    }),
                },
            })
        },
    ]
}
