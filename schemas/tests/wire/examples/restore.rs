//! Examples about the restore of a snapshot.

use schemas::event::{Event, LedgerEvent};
use schemas::foundry::{FoundryOrder, Order};
use schemas::lease::Weights;
use schemas::member::Session;
use schemas::restore::{RestoreReply, RestoreRequest};
use schemas::{Round, UnixMillis, V};

use super::{Example, codec, event, example, object, public, run, spec};

pub(super) fn all() -> Vec<Example> {
    vec![
        example(&RestoreRequest {
            v: V,
            snapshot: object().digest,
            run: Some(run()),
            force: true,
            reason: "odd loss".parse().expect("a reason"),
        }),
        example(&RestoreReply {
            v: V,
            manifest: object().digest,
            run: run(),
            changed: true,
            since: UnixMillis(1_700_000_000_000),
            snapshot: Round(3),
            from: Round(7),
            version: Round(8),
            undone: 4,
            leases: 2,
            contributions: 1,
            frozen: true,
            uploads: Some(3),
        }),
        Example {
            name: "event of a restore",
            ..example(&event(Event::Ledger(LedgerEvent::SnapshotRestored {
                snapshot: Round(3),
                manifest: object(),
                from: Round(7),
                weights: Weights {
                    round: Round(8),
                    codec: codec(),
                    chunks: vec![object()].into(),
                },
                operator: public(),
                reason: "odd loss".parse().expect("a reason"),
                leases: 2,
                contributions: 1,
            })))
        },
        Example {
            name: "foundry order to restore",
            ..example(&FoundryOrder {
                v: V,
                run: run(),
                session: Session(7),
                order: Order::Restore {
                    spec: Box::new(spec()),
                    snapshot: Some(object()),
                    version: Round(8),
                    merges: Vec::new(),
                },
            })
        },
    ]
}
