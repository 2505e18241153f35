//! Examples of the messages of secure aggregation.

use schemas::masking::{
    Bytes32, CohortMember, CohortStatement, KeyPurpose, KeyStatement, MaskKeys, MaskReply,
    MaskRequest, MaskStage, MaskStep,
};
use schemas::{Digest, Epoch, Round, UnitIndex, V};
use serde_bytes::ByteArray;

use super::{Example, example, lease, object, public, run, worker};

fn mask_keys() -> MaskKeys {
    MaskKeys {
        sealing: Bytes32([4; 32]),
        masking: Bytes32([5; 32]),
        commitment: Digest::of(b"seed"),
    }
}

/// One of each.
pub(super) fn all() -> Vec<Example> {
    vec![
        example(&KeyStatement {
            v: V,
            purpose: KeyPurpose::MaskKeys,
            run: run(),
            spec: object().digest,
            worker: worker(),
            lease: lease(),
            keys: mask_keys(),
        }),
        example(&CohortStatement::of(
            &run(),
            Round(3),
            Digest::of(b"cohort"),
        )),
        example(&MaskRequest {
            v: V,
            lease: lease(),
            step: MaskStep::Announce {
                keys: mask_keys(),
                signature: ByteArray::new([7; 64]),
            },
        }),
        example(&MaskReply {
            v: V,
            stage: MaskStage::Cohort(vec![CohortMember {
                unit: UnitIndex(1),
                epoch: Epoch(2),
                worker: worker(),
                audit_key: public(),
                keys: mask_keys(),
                signature: ByteArray::new([7; 64]),
            }]),
            seal: None,
        }),
    ]
}
