//! The proofs with which an invited machine asks to be enrolled: each of its two keys signs the
//! whole question, the invitation that it asks with, and the trust domain.

use schemas::enrolment::EnrolmentRequest;
use schemas::member::Posture;
use schemas::{Message as _, PublicKey, RunId, UnixMillis, V};
use serde_bytes::ByteArray;

use crate::event::prefixed;
use crate::invitation::JoinToken;
use crate::key::{KeyError, KeyKind, parse_public, verify_strict};
use crate::purpose::{AuditKey, ConnectionKey};

/// Each key has a prefix of its own, so that one key cannot pass for both.
const BY_WORKER: &[u8] = b"diloco/enrolment/v1";
const BY_AUDIT_KEY: &[u8] = b"diloco/enrolment-audit/v1";

/// A question to be enrolled, signed by both keys.
#[expect(
    clippy::too_many_arguments,
    reason = "each is one field of what is signed"
)]
pub fn question(
    domain: &str,
    invitation: &PublicKey,
    token: &JoinToken,
    run: &RunId,
    posture: Posture,
    worker: &ConnectionKey,
    audit: &AuditKey,
    at: UnixMillis,
) -> EnrolmentRequest {
    let mut request = EnrolmentRequest {
        v: V,
        run: run.clone(),
        worker: worker.public().clone(),
        audit_key: audit.public().clone(),
        token: token.expose().to_owned(),
        at,
        posture,
        by_worker: ByteArray::new([0; 64]),
        by_audit_key: ByteArray::new([0; 64]),
    };
    let body = body(invitation, &request);
    request.by_worker = ByteArray::new(worker.sign(&prefixed(BY_WORKER, domain, &body)));
    request.by_audit_key = ByteArray::new(audit.sign(&prefixed(BY_AUDIT_KEY, domain, &body)));
    request
}

/// Checks that the sender of a question holds both keys that it names.
///
/// # Errors
/// A key is no user's key, or its signature is not over this question, this invitation and this
/// domain.
pub fn verify_question(
    domain: &str,
    invitation: &PublicKey,
    request: &EnrolmentRequest,
) -> Result<(), KeyError> {
    let body = body(invitation, request);
    for (purpose, key, signature) in [
        (BY_WORKER, &request.worker, &request.by_worker),
        (BY_AUDIT_KEY, &request.audit_key, &request.by_audit_key),
    ] {
        parse_public(key.as_str(), KeyKind::User)?;
        verify_strict(key, &prefixed(purpose, domain, &body), signature.as_slice())?;
    }
    Ok(())
}

/// The invitation, whose text has a fixed length, and the question without its signatures.
fn body(invitation: &PublicKey, request: &EnrolmentRequest) -> Vec<u8> {
    let unsigned = EnrolmentRequest {
        by_worker: ByteArray::new([0; 64]),
        by_audit_key: ByteArray::new([0; 64]),
        ..request.clone()
    };
    let mut bytes = invitation.as_str().as_bytes().to_vec();
    bytes.extend(unsigned.encode());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    fn signed(
        worker: &ConnectionKey,
        audit: &AuditKey,
        invitation: &PublicKey,
    ) -> EnrolmentRequest {
        let run = "demo".parse().expect("a name");
        let (token, posture) = (JoinToken::generate(), Posture::default());
        question("one", invitation, &token, &run, posture, worker, audit, NOW)
    }

    #[test]
    fn fg_03_a_proof_is_for_these_keys_this_question_invitation_and_domain() {
        let (worker, audit) = (ConnectionKey::generate(), AuditKey::generate());
        let (invitation, other) = (ConnectionKey::generate(), ConnectionKey::generate());
        let right = signed(&worker, &audit, invitation.public());
        let verified = |domain, invitation: &ConnectionKey, request: &EnrolmentRequest| {
            verify_question(domain, invitation.public(), request).is_ok()
        };
        assert!(verified("one", &invitation, &right));
        assert!(!verified("two", &invitation, &right), "another domain");
        assert!(!verified("one", &other, &right), "another invitation");
        let theirs = signed(&other, &AuditKey::generate(), invitation.public());
        let altered: [fn(&mut EnrolmentRequest, EnrolmentRequest); 8] = [
            |request, other| request.worker = other.worker,
            |request, other| request.audit_key = other.audit_key,
            |request, other| request.token = other.token,
            |request, _| request.run = "other".parse().expect("a name"),
            |request, _| request.at = UnixMillis(NOW.get() + 1),
            |request, _| {
                request.posture.open.push(schemas::member::OpenLayer {
                    layer: schemas::member::Layer::Bus,
                    reason: String::new(),
                })
            },
            |request, other| request.by_worker = other.by_worker,
            |request, _| std::mem::swap(&mut request.by_worker, &mut request.by_audit_key),
        ];
        for (index, alter) in altered.into_iter().enumerate() {
            let mut request = right.clone();
            alter(&mut request, theirs.clone());
            assert!(
                !verified("one", &invitation, &request),
                "alteration {index}"
            );
        }
    }

    /// The secret of the audit key alone would let a thief of half of a machine enrol the rest.
    #[test]
    fn fg_03_one_key_cannot_sign_for_both() {
        let (worker, invitation) = (ConnectionKey::generate(), ConnectionKey::generate());
        let audit = AuditKey::generate();
        let mut request = signed(&worker, &audit, invitation.public());
        request.audit_key = worker.public().clone();
        let body = body(invitation.public(), &request);
        let signature = worker.sign(&prefixed(BY_WORKER, "one", &body));
        request.by_worker = ByteArray::new(signature);
        request.by_audit_key = ByteArray::new(signature);
        assert!(verify_question("one", invitation.public(), &request).is_err());
    }

    #[test]
    fn a_question_is_no_nonce_and_no_other_document() {
        let (worker, audit) = (ConnectionKey::generate(), AuditKey::generate());
        let invitation = ConnectionKey::generate();
        let request = signed(&worker, &audit, invitation.public());
        let body = body(invitation.public(), &request);
        assert!(
            worker
                .sign_nonce(&prefixed(BY_WORKER, "one", &body))
                .is_err()
        );
        let statement = crate::event::verify_statement(
            "one",
            audit.public(),
            request.by_audit_key.as_slice(),
            &body,
        );
        assert!(statement.is_err());
    }
}
