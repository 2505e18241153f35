//! The proof with which a worker joins. It names the session that asks, and shows that the worker
//! holds the secret of the audit key that it names.

use schemas::member::Session;
use schemas::{PublicKey, RunId, WorkerId};

use crate::event::prefixed;
use crate::key::{KeyError, SIGNATURE_BYTES, verify_strict};
use crate::purpose::AuditKey;
use crate::secret::random;

const JOIN: &[u8] = b"diloco/join/v1";

/// A session that no other process has.
pub fn new_session() -> Session {
    Session(u64::from_le_bytes(*random::<8>()))
}

impl AuditKey {
    /// Proves to the coordinators of `domain` that `worker` holds this key, for one run. Anybody
    /// may see it: it proves nothing else, and does not verify under another name or in another run
    /// or domain.
    pub fn sign_join(&self, domain: &str, run: &RunId, worker: &WorkerId) -> [u8; SIGNATURE_BYTES] {
        self.sign(&prefixed(JOIN, domain, &body(run, worker)))
    }
}

/// Checks the proof of a join.
///
/// # Errors
/// It was not made by `public`, for this worker, run and domain.
pub fn verify_join(
    domain: &str,
    public: &PublicKey,
    proof: &[u8],
    run: &RunId,
    worker: &WorkerId,
) -> Result<(), KeyError> {
    verify_strict(public, &prefixed(JOIN, domain, &body(run, worker)), proof)
}

/// Neither name can hold a space.
fn body(run: &RunId, worker: &WorkerId) -> Vec<u8> {
    format!("{run} {worker}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::verify_statement;

    fn worker(letter: char) -> WorkerId {
        format!("U{}", letter.to_string().repeat(55))
            .parse()
            .expect("the form of a user key")
    }

    fn run(name: &str) -> RunId {
        name.parse().expect("a name")
    }

    #[test]
    fn a_proof_is_for_one_key_worker_run_domain_and_purpose() {
        let (key, other) = (AuditKey::generate(), AuditKey::generate());
        let proof = key.sign_join("one", &run("a"), &worker('A'));
        assert!(verify_join("one", key.public(), &proof, &run("a"), &worker('A')).is_ok());
        assert!(
            verify_join("one", other.public(), &proof, &run("a"), &worker('A')).is_err(),
            "another key"
        );
        assert!(
            verify_join("one", key.public(), &proof, &run("a"), &worker('B')).is_err(),
            "another worker"
        );
        assert!(
            verify_join("one", key.public(), &proof, &run("b"), &worker('A')).is_err(),
            "another run"
        );
        assert!(
            verify_join("two", key.public(), &proof, &run("a"), &worker('A')).is_err(),
            "another domain"
        );
        let body = body(&run("a"), &worker('A'));
        assert!(
            !chain::is_signed_event("one", key.public().as_str(), &proof, &body),
            "it is no event"
        );
        assert!(
            verify_statement("one", key.public(), &proof, &body).is_err(),
            "it is no statement"
        );
        for foreign in [
            *key.sign_event("one", body.clone()).signature,
            key.sign_statement("one", &body),
        ] {
            assert!(
                verify_join("one", key.public(), &foreign, &run("a"), &worker('A')).is_err(),
                "nor are they proofs"
            );
        }
    }

    #[test]
    fn sessions_differ() {
        assert_ne!(new_session(), new_session());
    }
}
