//! A worker's part in secure aggregation: the agreement on masks before the steps, and the shares
//! that it reveals after them. What may be agreed and revealed is decided in crate `masking`; here
//! are the questions to the coordinator.

use std::time::Duration;

use backoff::Backoff;
use identity::event::verify_statement;
use identity::secret::random;
use masking::{Cohort, CohortError, Keys, Part, statement};
use schemas::call::worker as call;
use schemas::lease::LeaseRef;
use schemas::masking::{CohortMember, MaskRequest, MaskStage, MaskStep};
use schemas::run::{RunSpec, SecureAggregation};
use schemas::{Code, Digest, Message as _, Refusal, V};
use serde_bytes::ByteArray;
use tokio::time::Instant;

use crate::asker::Asker;

/// Pauses between two questions whose answer is that others have not done their part.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Longest wait for an answer of any kind. The lease or the process ends much sooner.
const ANSWER_WAIT: Duration = Duration::from_secs(24 * 3600);

/// One lease of a run with secure aggregation.
#[derive(Debug)]
pub(crate) struct Masking<'a> {
    pub(crate) asker: &'a Asker,
    pub(crate) spec: &'a RunSpec,
    pub(crate) spec_digest: Digest,
    pub(crate) aggregation: SecureAggregation,
    pub(crate) lease: LeaseRef,
}

impl Masking<'_> {
    /// Agrees on masks with the workers of the other units. Waits until each of them has a worker.
    ///
    /// # Errors
    /// The coordinator's refusal, or keys or shares that are not what their workers signed.
    pub(crate) async fn agree(&self) -> Result<Part, Refusal> {
        loop {
            let keys = Keys::new(&random());
            let members = self.announce(&keys).await?;
            let part = self.check(members, keys)?;
            let step = MaskStep::Share {
                cohort: part.cohort().digest(),
                sealed: part.share().map_err(refusal)?,
            };
            match ask_until(self.asker, self.lease, step).await? {
                MaskStage::Shares(sealed) => return self.take(part, &sealed),
                // Another worker has lost its lease before all had shared.
                MaskStage::Again => {}
                other => return Err(unexpected(&other)),
            }
        }
    }

    async fn announce(&self, keys: &Keys) -> Result<Vec<CohortMember>, Refusal> {
        let announced = keys.announced();
        let (run, worker) = (&self.spec.run, self.asker.worker());
        let body = statement(run, &self.spec_digest, worker, self.lease, announced);
        let step = MaskStep::Announce {
            keys: announced,
            signature: ByteArray::new(self.asker.sign(&body.encode())),
        };
        match ask_until(self.asker, self.lease, step).await? {
            MaskStage::Cohort(members) => Ok(members),
            other => Err(unexpected(&other)),
        }
    }

    /// Checks the workers that the coordinator names, and what each of them has signed.
    fn check(&self, members: Vec<CohortMember>, keys: Keys) -> Result<Part, Refusal> {
        let (units, got) = (self.spec.schedule.units, members.len());
        if got != units as usize {
            let detail = format!("a cohort of {got} workers, the round has {units} units");
            return Err(Refusal::new(Code::MaskKeysRefused, detail));
        }
        let (run, round) = (&self.spec.run, self.lease.unit.round);
        let threshold = self.aggregation.threshold;
        let cohort = Cohort::new(run, &self.spec_digest, round, threshold, members);
        let is_signed = |member: &CohortMember, body: &[u8]| {
            let domain = self.asker.domain();
            verify_statement(domain, &member.audit_key, &*member.signature, body).is_ok()
        };
        let part = Part::join(cohort.map_err(refusal)?, keys, &self.lease, is_signed);
        part.map_err(refusal)
    }

    fn take(&self, mut part: Part, sealed: &[serde_bytes::ByteBuf]) -> Result<Part, Refusal> {
        if sealed.is_empty() {
            // The coordinator was started again since. The masks hold without these shares.
            tracing::warn!(lease = %self.lease, "the shares of other workers' secrets are lost");
        } else {
            part.take(sealed).map_err(refusal)?;
        }
        let workers = part.cohort().members().len();
        tracing::info!(lease = %self.lease, workers, "masks agreed");
        Ok(part)
    }
}

/// Reveals shares once the set that the worker's contribution is in is sealed. Ends when nothing is
/// left to reveal.
pub(crate) async fn reveal(asker: Asker, lease: LeaseRef, mut part: Part) {
    let cohort = part.cohort().digest();
    let mut shares = Vec::new();
    loop {
        let step = MaskStep::Reveal { cohort, shares };
        shares = match ask_until(&asker, lease, step).await {
            Ok(MaskStage::Unmask(survivors)) => match part.reveal(&survivors) {
                Ok(shares) if shares.is_empty() => return,
                Ok(shares) => shares,
                Err(error) => {
                    let code = error.code();
                    tracing::warn!(%code, %error, %lease, "no share is revealed");
                    return;
                }
            },
            Ok(MaskStage::Over) => return,
            Ok(other) => {
                let refusal = unexpected(&other);
                tracing::warn!(%refusal, %lease, "no share is revealed");
                return;
            }
            Err(refusal) => {
                tracing::debug!(%refusal, %lease, "shares are not asked for any more");
                return;
            }
        };
    }
}

/// Asks until others have done their part.
async fn ask_until(asker: &Asker, lease: LeaseRef, step: MaskStep) -> Result<MaskStage, Refusal> {
    let request = MaskRequest { v: V, lease, step };
    let mut pause = Backoff::new(PAUSE);
    loop {
        let deadline = Instant::now() + ANSWER_WAIT;
        let reply = asker.call_until::<call::Mask>(&request, deadline).await?;
        if reply.stage != MaskStage::Wait {
            return Ok(reply.stage);
        }
        tokio::time::sleep(pause.peek()).await;
        pause.fail();
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is passed to `map_err`")]
fn refusal(error: CohortError) -> Refusal {
    Refusal::new(error.code(), error.to_string())
}

fn unexpected(stage: &MaskStage) -> Refusal {
    let name = match stage {
        MaskStage::Wait => "wait",
        MaskStage::Cohort(_) => "cohort",
        MaskStage::Shares(_) => "shares",
        MaskStage::Again => "again",
        MaskStage::Unmask(_) => "unmask",
        MaskStage::Over => "over",
    };
    let detail = format!("the coordinator answered a step of the masks with `{name}`");
    Refusal::new(Code::MaskKeysRefused, detail)
}
