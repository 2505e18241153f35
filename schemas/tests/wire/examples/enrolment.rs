//! Examples about the enrolment of a machine.

use schemas::enrolment::{EnrolmentReply, EnrolmentRequest};
use schemas::member::Posture;
use schemas::{Rank, Seat, UnixMillis, V};
use serde_bytes::ByteArray;

use super::{Example, example, public, run};

pub(super) fn all() -> Vec<Example> {
    vec![
        example(&EnrolmentRequest {
            v: V,
            run: run(),
            worker: public(),
            audit_key: public(),
            token: "A".repeat(52),
            at: UnixMillis(1_700_000_000_000),
            posture: Posture::default(),
            by_worker: ByteArray::new([1; 64]),
            by_audit_key: ByteArray::new([2; 64]),
        }),
        example(&EnrolmentReply {
            v: V,
            name: "worker-7".to_owned(),
            run: run(),
            worker: public(),
            audit_key: public(),
            seat: Seat::new("left".parse().expect("a name"), Rank(1), 2).ok(),
            token: "eyJ0eXAi.eyJuYXRz.c2lnbmF0".to_owned(),
            ends: UnixMillis(1_700_003_600_000),
            certificate: None,
            trust: None,
        }),
    ]
}
