//! Examples about the provenance of contributions.

use schemas::contribution::SubmitRequest;
use schemas::event::{Event, LedgerEvent};
use schemas::foundry::SignedProvenance;
use schemas::lease::Weights;
use schemas::provenance::MadeFrom;
use schemas::run::RunSpec;
use schemas::{Round, V};
use serde_bytes::{ByteArray, ByteBuf};

use super::{Example, accepted, codec, event, example, object, spec};

/// What the coordinator hands to the foundry.
pub(super) fn signed() -> Box<SignedProvenance> {
    Box::new(SignedProvenance {
        from: MadeFrom {
            base: Weights {
                round: Round(3),
                codec: codec(),
                chunks: vec![object()].into(),
            },
            shards: vec![object()],
            release: "1.2.3".to_owned(),
        },
        signature: ByteArray::new([4; 64]),
    })
}

pub(super) fn all() -> Vec<Example> {
    let mut with_provenance = accepted();
    if let LedgerEvent::ContributionAccepted { provenance, .. } = &mut with_provenance {
        *provenance = Some(ByteArray::new([8; 64]));
    }
    let spec = RunSpec {
        data_provenance: Some(object()),
        ..spec()
    };
    vec![
        Example {
            name: "RunSpec that names the provenance of its data",
            ..example(&spec)
        },
        Example {
            name: "event of a contribution with its provenance",
            ..example(&event(Event::Ledger(with_provenance)))
        },
        Example {
            name: "contribution.submit of an evaluation",
            ..example(&SubmitRequest {
                v: V,
                statement: ByteBuf::from([1, 2]),
                signature: ByteArray::new([3; 64]),
                provenance: None,
            })
        },
    ]
}
