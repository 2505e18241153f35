//! Turns arrivals into inputs of the core.

use coordinator_core::{Coordinator, Input, Peer, Recorded, WorkerRequest};
use identity::event::verify_statement;
use identity::join::verify_join;
use identity::{IssuedList, Registration, RegistrationError};
use runtime::Failure;
use schemas::masking::MaskStep;
use schemas::member::{Layer, Posture};
use schemas::permission::Role;
use schemas::revocation::RevokedKey;
use schemas::{Code, Coded as _, Message as _, PublicKey, Refusal};

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
                let bound =
                    proven.and_then(|()| bound(&self.issued, &self.posture, &peer, &request));
                match bound {
                    Ok(recorded) => Input::Request {
                        peer,
                        recorded: recorded.map(Box::new),
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

/// The key that asks something for the first time, maybe after it was issued anew: a worker's first
/// question is a join.
pub(super) fn newcomer(arrival: &Arrival) -> Option<PublicKey> {
    match arrival {
        Arrival::Worker {
            peer,
            request: WorkerRequest::Join(_),
            ..
        } => peer.worker.as_str().parse().ok(),
        Arrival::Operator { operator, .. } => Some(operator.clone()),
        _ => None,
    }
}

/// Tells the core that a revoked key was issued anew, before its holder's request. Only the
/// domain's own list says so; nothing that the holder sends does. A key that the list lacks, or has
/// as blocked, stays refused.
pub(super) fn reissued(list: &IssuedList, state: &ledger::State, key: PublicKey) -> Option<Input> {
    let until = state.revoked_until(&key)?;
    let record = list.find(&key).ok().flatten()?;
    let issued = record.issued;
    let stands = record.blocked.is_none() && !RevokedKey::covers(until, issued);
    stands.then_some(Input::Reissued { key, issued })
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

/// The seat of a joining worker and the key that it had before, by the record of its credentials.
/// The record also names the key that signs the worker's events: a thief of credentials that were
/// never used cannot join with another. Nobody joins without a record. Only where there is no
/// folder of records, and an exception opens layer `enrolment`, any proven key is taken at the
/// first join, and the worker has no seat.
fn bound(
    issued: &IssuedList,
    posture: &Posture,
    peer: &Peer,
    request: &WorkerRequest,
) -> Result<Option<Recorded>, Refusal> {
    let WorkerRequest::Join(join) = request else {
        return Ok(None);
    };
    let refused = |code, why: String| Err(Refusal::new(code, format!("{} {why}", peer.worker)));
    // A worker waits at this code for the record to be mended, however it is broken.
    let unreadable = |error: &RegistrationError| {
        let why = format!("has no record that can be read: {}", error.detail());
        refused(Code::RegistrationInvalid, why)
    };
    if posture.is_open(Layer::Enrolment) {
        match issued.is_absent() {
            Ok(true) => return Ok(None),
            Ok(false) => {}
            // Who fills the disk of files that are open, or moves the folder's mount, opens
            // nothing.
            Err(error) => return unreadable(&error),
        }
    }
    let found = match peer.worker.as_str().parse() {
        Ok(holder) => issued.find(&holder),
        Err(_) => Ok(None),
    };
    let record = match found {
        Ok(Some(record)) => record,
        Ok(None) => {
            let folder = issued.folder().display();
            return refused(Code::RecordMissing, format!("has no record in {folder}"));
        }
        Err(error) => return unreadable(&error),
    };
    let Registration {
        name, seat, before, ..
    } = record;
    if record.blocked.is_some() {
        return refused(Code::HolderBlocked, format!("({name}) is blocked"));
    }
    let expected = (Role::Worker, &peer.account, Some(&peer.run));
    if (record.role, &record.account, record.run.as_ref()) != expected {
        let why = format!(
            "({name}) was issued for something else than run {}",
            peer.run
        );
        return refused(Code::HolderMismatch, why);
    }
    match record.audit_key {
        Some(key) if key != join.audit_key => {
            let why = format!(
                "({name}) was issued with audit key {key}, not {}",
                join.audit_key
            );
            refused(Code::AuditKeyRefused, why)
        }
        _ => {
            let mut keys = Vec::new();
            let mut next = before;
            while let Some(key) = next.take() {
                let earlier = issued.find(&key);
                let earlier = earlier.or_else(|error| unreadable(&error).map(|_| None))?;
                let Some(earlier) = earlier else {
                    let folder = issued.folder().display();
                    let why = format!("({name}) had key {key}, of which {folder} has no record");
                    return refused(Code::RecordMissing, why);
                };
                // Both are nkeys of users.
                let Ok(key) = key.as_str().parse() else {
                    break;
                };
                // Records that were altered may form a circle.
                if key != peer.worker && !keys.contains(&key) {
                    keys.push(key);
                    next = earlier.before;
                }
            }
            Ok(Some(Recorded { seat, before: keys }))
        }
    }
}

#[cfg(test)]
mod tests;
