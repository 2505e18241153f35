//! A worker's part in secure aggregation: the agreement on masks before the steps, and the shares
//! that it reveals after them. What may be agreed and revealed is decided in crate `masking`; here
//! are the questions to the coordinator.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use backoff::Backoff;
use identity::event::verify_statement;
use identity::secret::random;
use masking::{Cohort, CohortError, Disclosures, Keys, Part, statement};
use schemas::call::worker as call;
use schemas::lease::LeaseRef;
use schemas::masking::{CohortMember, MaskRequest, MaskStage, MaskStep};
use schemas::run::{RunSpec, SecureAggregation};
use schemas::{Code, Digest, Message as _, Refusal, UnitIndex, V};
use serde_bytes::{ByteArray, ByteBuf};
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
        let mut pause = Backoff::new(PAUSE);
        loop {
            if let Some(part) = self.agree_once().await? {
                return Ok(part);
            }
            // Another worker has lost its lease before all had shared. Its unit needs a worker.
            tokio::time::sleep(pause.peek()).await;
            pause.fail();
        }
    }

    /// Agrees with new keys; none when the cohort that they were in is no more.
    async fn agree_once(&self) -> Result<Option<Part>, Refusal> {
        let keys = Keys::new(&random());
        let Some(members) = self.announce(&keys).await? else {
            return Ok(None);
        };
        let part = self.check(members, keys)?;
        let step = MaskStep::Share {
            cohort: part.cohort().digest(),
            sealed: part.share().map_err(refusal)?,
        };
        match ask_until(self.asker, self.lease, step).await? {
            MaskStage::Shares(sealed) => Ok(Some(self.take(part, &sealed))),
            MaskStage::Again => Ok(None),
            other => Err(unexpected(&other)),
        }
    }

    async fn announce(&self, keys: &Keys) -> Result<Option<Vec<CohortMember>>, Refusal> {
        let announced = keys.announced();
        let (run, worker) = (&self.spec.run, self.asker.worker());
        let body = statement(run, &self.spec_digest, worker, self.lease, announced);
        let step = MaskStep::Announce {
            keys: announced,
            signature: ByteArray::new(self.asker.sign(&body.encode())),
        };
        match ask_until(self.asker, self.lease, step).await? {
            MaskStage::Cohort(members) => Ok(Some(members)),
            MaskStage::Again => Ok(None),
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
        let own = (self.asker.worker(), self.asker.audit_key());
        let part = Part::join(cohort.map_err(refusal)?, keys, &self.lease, own, is_signed);
        part.map_err(refusal)
    }

    /// Takes the shares of others. The masks hold without them, so the worker goes on without those
    /// that do not come or do not open.
    fn take(&self, mut part: Part, sealed: &[ByteBuf]) -> Part {
        match part.take(sealed) {
            Ok(closed) => {
                for unit in closed {
                    let mut members = part.cohort().members().iter();
                    let from = members.find(|member| member.unit == unit);
                    let from = from.map(|member| member.worker.as_str());
                    tracing::warn!(lease = %self.lease, %unit, from, "a worker has sent a share that does not open");
                }
            }
            // The coordinator was started again since.
            Err(error) => {
                tracing::warn!(lease = %self.lease, %error, "the shares of other workers' secrets are lost");
            }
        }
        let workers = part.cohort().members().len();
        tracing::info!(lease = %self.lease, workers, "masks agreed");
        part
    }
}

/// Reveals shares once the set that the worker's contribution is in is sealed. Ends when nothing is
/// left to reveal.
pub(crate) async fn reveal(
    asker: Asker,
    lease: LeaseRef,
    mut part: Part,
    disclosures: Arc<Mutex<Disclosures>>,
) {
    let round = lease.unit.round;
    let cohort = part.cohort().digest();
    let mut shares_for = |survivors: &[UnitIndex]| {
        let shares = part.reveal(survivors)?;
        let mut disclosures = disclosures.lock().expect("no holder panics");
        disclosures.note(round, survivors)?;
        Ok::<_, CohortError>(shares)
    };
    let mut shares = Vec::new();
    loop {
        let step = MaskStep::Reveal { cohort, shares };
        shares = match ask_until(&asker, lease, step).await {
            Ok(MaskStage::Unmask(survivors)) => match shares_for(&survivors) {
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
