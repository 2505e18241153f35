//! Turns arrivals into inputs of the core.

use coordinator_core::{Coordinator, Input, Peer, WorkerRequest};
use identity::event::verify_statement;
use identity::join::verify_join;
use identity::{IssuedList, Registration};
use runtime::Failure;
use schemas::masking::MaskStep;
use schemas::{Code, Coded as _, Message as _, Refusal, Seat};

use super::Shell;
use super::tables::Asker;
use crate::arrival::Arrival;

impl Shell {
    /// The input for an arrival; none for an answer of a foundry that is gone.
    pub(super) fn input(
        &mut self,
        core: &Coordinator,
        arrival: Arrival,
    ) -> Result<Option<Input>, Failure> {
        Ok(Some(match arrival {
            Arrival::Worker {
                peer,
                request,
                reply,
            } => {
                let reply = self.tables.expect_reply(Asker::Worker, reply);
                let proven = proven(&self.domain, &peer, &request)
                    .and_then(|()| announced(&self.domain, core.state(), &peer, &request));
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

/// Checks that a worker signed the keys that it announces for masks, with the key with which it
/// joined. The others of its cohort check the same, and could agree on nothing. Who is no member is
/// refused by the core.
fn announced(
    domain: &str,
    state: &ledger::State,
    peer: &Peer,
    request: &WorkerRequest,
) -> Result<(), Refusal> {
    let WorkerRequest::Mask(request) = request else {
        return Ok(());
    };
    let MaskStep::Announce { keys, signature } = &request.step else {
        return Ok(());
    };
    let Some(run) = state.run(&peer.run) else {
        return Ok(());
    };
    let Some(member) = run.members.get(&peer.worker) else {
        return Ok(());
    };
    let (name, spec) = (&run.spec.run, &run.spec_digest);
    let statement = masking::statement(name, spec, &peer.worker, request.lease, *keys);
    let body = statement.encode();
    verify_statement(domain, &member.audit_key, &**signature, &body).map_err(|error| {
        let detail = format!(
            "the keys for lease {} are not signed: {error}",
            request.lease
        );
        Refusal::new(Code::MaskKeysRefused, detail)
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

#[cfg(test)]
mod tests {
    use identity::AuditKey;
    use schemas::UnixMillis;
    use schemas::V;
    use schemas::event::LedgerEvent;
    use schemas::masking::MaskRequest;
    use serde_bytes::ByteArray;

    use super::*;

    #[test]
    fn tl_17_keys_that_their_worker_did_not_sign_for_their_lease_reach_no_cohort() {
        let (key, run) = (AuditKey::generate(), kit::run_id());
        let spec = kit::masked_run_spec(4).build();
        let created = LedgerEvent::RunCreated {
            spec: Box::new(spec),
            operator: kit::operator(),
        };
        let mut join = kit::join_request(1);
        join.audit_key = key.public().clone();
        let joined = kit::joined(kit::worker(1), kit::account(1), join);
        let mut state = ledger::State::default();
        for event in [created, joined] {
            let applied = state.apply(UnixMillis(1), Some(&run), &event);
            applied.expect("it follows");
        }
        let digest = state.run(&run).expect("it was created").spec_digest;
        let keys = masking::Keys::new(&[7; 128].into()).announced();
        let lease = |epoch| kit::lease(kit::train(0, 0), epoch);
        let signed = |key: &AuditKey, epoch| {
            let (worker, of) = (kit::worker(1), lease(epoch));
            let body = masking::statement(&run, &digest, &worker, of, keys).encode();
            ByteArray::new(key.sign_statement("domain", &body))
        };
        let other = AuditKey::generate();
        for (signature, number, refused) in [
            (signed(&key, 1), 1, None),
            (signed(&other, 1), 1, Some(Code::MaskKeysRefused)),
            (signed(&key, 2), 1, Some(Code::MaskKeysRefused)),
            // The core refuses who is no member.
            (signed(&other, 1), 2, None),
        ] {
            let request = WorkerRequest::Mask(MaskRequest {
                v: V,
                lease: lease(1),
                step: MaskStep::Announce { keys, signature },
            });
            let peer = Peer {
                account: kit::account(1),
                run: run.clone(),
                worker: kit::worker(number),
            };
            let outcome = announced("domain", &state, &peer, &request);
            assert_eq!(outcome.err().map(|refusal| refusal.code), refused);
        }
    }
}
