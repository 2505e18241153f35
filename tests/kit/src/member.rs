//! Workers that join.

use schemas::event::LedgerEvent;
use schemas::member::{JoinRequest, Posture, Session};
use schemas::run::TrainerKind;
use schemas::{AccountId, V, WorkerId};
use serde_bytes::ByteArray;

use crate::name::audit_key;

/// The session of worker `number`'s first process.
pub fn session(number: u32) -> Session {
    Session(number.into())
}

/// The request with which worker `number` joins. Its proof is empty: the pure crates leave the
/// check of it to shells.
pub fn join_request(number: u32) -> JoinRequest {
    JoinRequest {
        v: V,
        session: session(number),
        audit_key: audit_key(number),
        proof: ByteArray::new([0; 64]),
        trainers: vec![TrainerKind::Reference],
        device: "cpu x1".to_owned(),
        release: "1".to_owned(),
        posture: Posture::default(),
    }
}

/// The ledger event for the join of a worker with a request.
pub fn joined(worker: WorkerId, account: AccountId, request: JoinRequest) -> LedgerEvent {
    LedgerEvent::WorkerJoined {
        worker,
        account,
        audit_key: request.audit_key,
        trainers: request.trainers,
        device: request.device,
        release: request.release,
        posture: request.posture,
        session: request.session,
        seat: None,
        before: None,
    }
}
