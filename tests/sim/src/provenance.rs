//! The provenance of contributions. A signature here is the digest of what is signed, followed by
//! the digest of the release that it names.

use schemas::contribution::{Contribution, Statement};
use schemas::foundry::SignedProvenance;
use schemas::provenance::{HandedIn, Provenance};
use schemas::{Code, Digest, Message as _, PublicKey, Refusal};

use crate::world::World;

/// The domain of all signatures.
pub(crate) const DOMAIN: &str = "a-domain";

/// The release of a worker's process: each process of a machine has another one.
pub(crate) fn release(incarnation: u64) -> String {
    format!("1.{incarnation}")
}

/// The signature of a worker's process.
pub(crate) fn signature(document: &[u8], release: &str) -> [u8; 64] {
    let halves = [Digest::of(document), Digest::of(release.as_bytes())];
    let bytes = halves.map(|half| *half.as_bytes()).concat();
    bytes.try_into().expect("two halves of 32 bytes")
}

/// True if a signature names this release.
pub(crate) fn is_of(signature: &[u8; 64], release: &str) -> bool {
    signature[32..] == *Digest::of(release.as_bytes()).as_bytes()
}

impl World {
    /// Stands for the foundry's check: worker and coordinator come to the same statement, unless
    /// the worker has joined as another release since it signed.
    pub(crate) fn check_provenance(
        &self,
        key: &PublicKey,
        statement: &Statement,
        contribution: &Contribution,
        signed: Option<&SignedProvenance>,
    ) -> Result<(), Refusal> {
        let lease = statement.lease;
        let signed = signed.expect("the core has seen the provenance of each contribution");
        let SignedProvenance { from, signature } = signed;
        if !is_of(signature, &from.release) {
            return Err(Refusal::new(Code::ProvenanceInvalid, "another release"));
        }
        let handed = HandedIn {
            spec: &self.plan.spec,
            spec_digest: statement.spec,
            worker: &statement.worker,
            lease,
            contribution,
            statement: Digest::of(&statement.encode()),
        };
        let said = Provenance::of_contribution(handed, from, DOMAIN, key).to_json();
        let right = self::signature(&said, &from.release);
        assert_eq!(**signature, right, "{lease}: worker and coordinator differ");
        Ok(())
    }
}
