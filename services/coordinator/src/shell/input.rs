//! Turns arrivals into inputs of the core.

use coordinator_core::{Input, Peer, WorkerRequest};
use identity::join::verify_join;
use identity::{IssuedList, Registration};
use runtime::Failure;
use schemas::{Code, Coded as _, Refusal, Seat};

use super::Shell;
use super::tables::Asker;
use crate::arrival::Arrival;

impl Shell {
    /// The input for an arrival; none for an answer of a foundry that is gone.
    pub(super) fn input(&mut self, arrival: Arrival) -> Result<Option<Input>, Failure> {
        Ok(Some(match arrival {
            Arrival::Worker {
                peer,
                request,
                reply,
            } => {
                let reply = self.tables.expect_reply(Asker::Worker, reply);
                let proven = proven(&self.domain, &peer, &request);
                match proven.and_then(|()| bound(&self.issued, &peer, &request)) {
                    Ok(seat) => Input::Request {
                        peer,
                        seat: seat.map(Box::new),
                        request,
                        reply,
                    },
                    Err(refusal) => Input::Refused {
                        peer,
                        verb: request.verb(),
                        refusal,
                        reply,
                    },
                }
            }
            Arrival::Operator {
                operator,
                request,
                reply,
            } => Input::Control {
                operator,
                request,
                reply: self.tables.expect_reply(Asker::Operator, reply),
            },
            Arrival::Offer {
                run,
                unit,
                stream_sequence,
                ack,
            } => Input::Offered {
                run,
                unit,
                delivery: self.tables.deliveries.note(stream_sequence, ack),
            },
            Arrival::Foundry {
                run,
                foundry,
                answer,
            } => {
                if !self.tables.works_for(&run, foundry) {
                    tracing::debug!(%run, answer = answer.kind(), "the answer of a foundry that is gone is dropped");
                    return Ok(None);
                }
                Input::Foundry { run, answer }
            }
            Arrival::Input(input) => input,
            Arrival::Failed(failure) => return Err(failure),
        }))
    }
}

/// Checks that a joining worker holds the audit key that it names. Otherwise a worker could join
/// with the key of another worker or of the coordinator, and be credited with that one's events.
fn proven(domain: &str, peer: &Peer, request: &WorkerRequest) -> Result<(), Refusal> {
    let WorkerRequest::Join(join) = request else {
        return Ok(());
    };
    verify_join(
        domain,
        &join.audit_key,
        join.proof.as_slice(),
        &peer.run,
        &peer.worker,
    )
    .map_err(|error| {
        let detail = format!(
            "no proof that {} holds audit key {}: {error}",
            peer.worker, join.audit_key
        );
        Refusal::new(Code::AuditKeyRefused, detail)
    })
}

/// The seat of a joining worker, by the record of its credentials. The record also names the key that
/// signs the worker's events: a thief of credentials that were never used cannot join with another.
/// Where the folder of records, or the worker's record, is not on this machine, any proven key is
/// taken at the first join, and the worker has no seat.
fn bound(
    issued: &IssuedList,
    peer: &Peer,
    request: &WorkerRequest,
) -> Result<Option<Seat>, Refusal> {
    let WorkerRequest::Join(join) = request else {
        return Ok(None);
    };
    let Ok(holder) = peer.worker.as_str().parse() else {
        return Ok(None);
    };
    let record = issued
        .find(&holder)
        .map_err(|error| Refusal::new(error.code(), error.detail()))?;
    let of_run = |record: &Registration| record.run.as_ref() == Some(&peer.run);
    let Some(record) = record.filter(of_run) else {
        return Ok(None);
    };
    match record.audit_key {
        Some(key) if key != join.audit_key => {
            let detail = format!(
                "{} ({}) was issued with audit key {key}, not {}",
                peer.worker, record.name, join.audit_key
            );
            Err(Refusal::new(Code::AuditKeyRefused, detail))
        }
        _ => Ok(record.seat),
    }
}
