//! A worker's part in secure aggregation: the agreement on masks before the steps, and the shares
//! that it reveals after them. What may be agreed and revealed is decided in crate `masking`; here
//! are the questions to the coordinator.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use backoff::Backoff;
use identity::TrustSource;
use identity::event::verify_statement;
use identity::secret::random;
use masking::{Cohort, CohortError, Disclosures, Keys, Part, statement};
use schemas::call::worker as call;
use schemas::lease::LeaseRef;
use schemas::masking::{
    CohortMember, CohortSeal, CohortStatement, MaskReply, MaskRequest, MaskStage, MaskStep,
};
use schemas::run::{RunSpec, SecureAggregation};
use schemas::{Code, Digest, Message as _, Refusal, UnitIndex, V};
use serde_bytes::{ByteArray, ByteBuf};
use tokio::time::Instant;
use worker_core::Agreed;

use crate::asker::Asker;
use crate::verify::trusted;

/// Pauses between two questions whose answer is that others have not done their part.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Longest wait for an answer of any kind. The lease or the process ends much sooner.
const ANSWER_WAIT: Duration = Duration::from_secs(24 * 3600);

/// One lease of a run with secure aggregation.
#[derive(Debug)]
pub(crate) struct Masking<'a> {
    pub(crate) asker: &'a Asker,
    pub(crate) trust: &'a TrustSource,
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
    pub(crate) async fn agree(&self) -> Result<(Part, Agreed), Refusal> {
        until_agreed(|| self.agree_once(), tokio::time::sleep).await
    }

    /// Agrees with new keys; none when the cohort that they were in is no more.
    async fn agree_once(&self) -> Result<Option<(Part, Agreed)>, Refusal> {
        let keys = Keys::new(&random());
        let Some(members) = self.announce(&keys).await? else {
            return Ok(None);
        };
        let part = self.check(members, keys)?;
        let step = MaskStep::Share {
            cohort: part.cohort().digest(),
            sealed: part.share().map_err(refusal)?,
        };
        let MaskReply { stage, seal, .. } = ask_until(self.asker, self.lease, step).await?;
        match stage {
            MaskStage::Shares(sealed) => {
                let agreed = self.check_seal(part.cohort().digest(), seal)?;
                Ok(Some((self.take(part, &sealed), agreed)))
            }
            MaskStage::Again => Ok(None),
            other => Err(unexpected(&other)),
        }
    }

    /// Checks the coordinator's word that the ledger has the cohort. Nothing is masked without it:
    /// a coordinator that shows a cohort to one worker alone has signed the evidence.
    fn check_seal(&self, cohort: Digest, seal: Option<CohortSeal>) -> Result<Agreed, Refusal> {
        let trust = trusted(self.trust)?;
        let (run, round) = (&self.spec.run, self.lease.unit.round);
        let body = CohortStatement::of(run, round, cohort).encode();
        let domain = self.asker.domain();
        let holds = |seal: &CohortSeal| {
            trust.signs_events(&seal.key)
                && verify_statement(domain, &seal.key, &*seal.signature, &body).is_ok()
        };
        match seal.filter(holds) {
            Some(seal) => Ok(Agreed { cohort, seal }),
            None => {
                let detail = format!("no key of the ledger has signed cohort {cohort}");
                Err(Refusal::new(Code::MaskKeysRefused, detail))
            }
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
        match ask_until(self.asker, self.lease, step).await?.stage {
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
            Err(error) => {
                tracing::warn!(lease = %self.lease, %error, "the shares of other workers' secrets are lost");
            }
        }
        let workers = part.cohort().members().len();
        tracing::info!(lease = %self.lease, workers, "masks agreed");
        part
    }
}

/// Begins an agreement until one holds, each time after a longer pause: another worker has lost its
/// lease before all had shared, and its unit needs a worker.
async fn until_agreed<T, O, S>(
    once: impl Fn() -> O,
    sleep: impl Fn(Duration) -> S,
) -> Result<T, Refusal>
where
    O: Future<Output = Result<Option<T>, Refusal>>,
    S: Future<Output = ()>,
{
    let mut pause = Backoff::new(PAUSE);
    loop {
        if let Some(agreed) = once().await? {
            return Ok(agreed);
        }
        sleep(pause.peek()).await;
        pause.fail();
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
    let shares_for = |part: &mut Part, survivors: &[UnitIndex]| {
        let shares = part.reveal(survivors)?;
        let mut disclosures = disclosures.lock().expect("no holder panics");
        disclosures.note(round, survivors)?;
        Ok::<_, CohortError>(shares)
    };
    let mut shares = Vec::new();
    let mut pause = Backoff::new(PAUSE);
    loop {
        let step = MaskStep::Reveal { cohort, shares };
        let answered = ask_until(&asker, lease, step).await;
        shares = match answered.map(|reply| reply.stage) {
            Ok(stage) if exchanges_again(&part, &stage) => {
                tokio::time::sleep(pause.peek()).await;
                pause.fail();
                if let Err(refusal) = share_again(&asker, lease, &mut part).await {
                    tracing::warn!(%refusal, %lease, "no share is revealed");
                    return;
                }
                Vec::new()
            }
            Ok(MaskStage::Unmask(survivors)) => match shares_for(&mut part, &survivors) {
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

/// True if shares are to be exchanged again, since the coordinator was started again: it lacks
/// those of this worker, or this worker those of one whose contribution counts.
fn exchanges_again(part: &Part, stage: &MaskStage) -> bool {
    match stage {
        MaskStage::ShareAgain => true,
        MaskStage::Unmask(survivors) => part.waits_for(survivors),
        _ => false,
    }
}

/// Hands the sealed shares in again, which are the same bytes, and takes those of the others.
async fn share_again(asker: &Asker, lease: LeaseRef, part: &mut Part) -> Result<(), Refusal> {
    let step = MaskStep::Share {
        cohort: part.cohort().digest(),
        sealed: part.share().map_err(refusal)?,
    };
    match ask_until(asker, lease, step).await?.stage {
        MaskStage::Shares(sealed) => part.take(&sealed).map(|_| ()).map_err(refusal),
        other => Err(unexpected(&other)),
    }
}

/// Asks until others have done their part.
async fn ask_until(asker: &Asker, lease: LeaseRef, step: MaskStep) -> Result<MaskReply, Refusal> {
    let request = MaskRequest { v: V, lease, step };
    let mut pause = Backoff::new(PAUSE);
    loop {
        let deadline = Instant::now() + ANSWER_WAIT;
        let reply = asker.call_until::<call::Mask>(&request, deadline).await?;
        if reply.stage != MaskStage::Wait {
            return Ok(reply);
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
        MaskStage::ShareAgain => "share again",
        MaskStage::Again => "again",
        MaskStage::Unmask(_) => "unmask",
        MaskStage::Over => "over",
    };
    let detail = format!("the coordinator answered a step of the masks with `{name}`");
    Refusal::new(Code::MaskKeysRefused, detail)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::future::ready;

    use super::*;

    /// How an agreement ends that holds, or is refused, after so many tries, and the pauses before.
    fn agreed(
        tries: u32,
        end: &Result<Option<u32>, Refusal>,
    ) -> (Result<u32, Refusal>, Vec<Duration>) {
        let (done, pauses) = (Cell::new(0), RefCell::new(Vec::new()));
        let once = || {
            done.set(done.get() + 1);
            let holds = done.get() == tries;
            ready(if holds { end.clone() } else { Ok(None) })
        };
        let sleep = |pause| {
            pauses.borrow_mut().push(pause);
            ready(())
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let outcome = runtime
            .expect("a runtime")
            .block_on(until_agreed(once, sleep));
        assert_eq!(done.get(), tries);
        (outcome, pauses.into_inner())
    }

    #[test]
    fn tl_17_an_agreement_that_fell_apart_begins_again_after_longer_and_longer_pauses() {
        assert_eq!(agreed(1, &Ok(Some(7))), (Ok(7), vec![]));
        let (outcome, pauses) = agreed(9, &Ok(Some(7)));
        assert_eq!((outcome, pauses.len()), (Ok(7), 8));
        let within = |pause: &Duration| (PAUSE.0..=PAUSE.1).contains(pause);
        assert!(
            pauses.iter().all(within) && pauses.is_sorted(),
            "{pauses:?}"
        );
        assert_eq!((pauses[0], pauses[7]), PAUSE);
        let refusal = Refusal::new(Code::LeaseLost, "test");
        let (outcome, pauses) = agreed(2, &Err(refusal.clone()));
        assert_eq!((outcome, pauses.len()), (Err(refusal), 1));
    }
}
