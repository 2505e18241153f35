//! Examples about heads of the log of all events, and the key that goes on with the ledger.

use schemas::event::{Event, LedgerEvent};
use schemas::head::{CosignRequest, HeadReply, HeadRequest, Inclusion};
use schemas::{ChainSequence, UnixMillis, V};
use serde_bytes::ByteArray;

use super::{Example, event, example, public};

pub(super) fn all() -> Vec<Example> {
    vec![
        example(&HeadRequest {
            v: V,
            known: 640,
            emitter: public(),
            events: vec![ChainSequence(3), ChainSequence(4)],
        }),
        example(&HeadReply {
            v: V,
            note: "diloco/d\n700\ncm9vdA==\n\n\u{2014} diloco/d c2lnbg==\n".to_owned(),
            consistency: vec![ByteArray::new([1; 32]), ByteArray::new([2; 32])],
            events: vec![Inclusion {
                sequence: ChainSequence(3),
                index: 612,
                hashes: vec![ByteArray::new([3; 32])],
            }],
        }),
        example(&CosignRequest {
            v: V,
            key: public(),
            size: 700,
            time: UnixMillis(1_700_000_000_000),
            signature: ByteArray::new([4; 64]),
        }),
        Example {
            name: "event that names the next key",
            ..example(&event(Event::Ledger(LedgerEvent::EmitterSucceeded {
                next: public(),
            })))
        },
    ]
}
