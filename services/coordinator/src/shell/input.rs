//! Turns arrivals into inputs of the core.

use coordinator_core::{Input, Peer, WorkerRequest};
use identity::join::verify_join;
use runtime::Failure;
use schemas::{Code, Refusal};

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
                match proven(&self.domain, &peer, &request) {
                    Ok(()) => Input::Request {
                        peer,
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
