//! Examples about collections of old objects.

use schemas::collection::{CollectReply, CollectRequest, Collected};
use schemas::event::{Event, LedgerEvent};
use schemas::{Bytes, ChainSequence, Round, V};

use super::{Example, event, example, object, public, run};

pub(super) fn all() -> Vec<Example> {
    let kind = |objects| Collected {
        objects,
        bytes: Bytes(objects << 20),
        rounds: Some((Round(0), Round(6))),
    };
    vec![
        example(&CollectRequest {
            v: V,
            run: run(),
            keep: 3,
            delete: Some("the disk is full".parse().expect("a reason")),
            store_is_ours: true,
        }),
        example(&CollectReply {
            v: V,
            run: run(),
            through: Round(7),
            contributions: kind(14),
            weights: Collected::default(),
            snapshots: kind(9),
            snapshots_given_up: 2,
            event: Some(ChainSequence(900)),
            deleted: Some(23),
        }),
        Example {
            name: "event of a collection",
            ..example(&event(Event::Ledger(LedgerEvent::ObjectsGivenUp {
                through: Round(7),
                snapshots: 2,
                objects: 23,
                bytes: Bytes(23 << 20),
                list: object().digest,
                operator: public(),
                reason: "the disk is full".parse().expect("a reason"),
            })))
        },
    ]
}
