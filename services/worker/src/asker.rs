//! Requests to the coordinator. Each is answered or refused within a given time; the statement of a
//! submit is signed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backoff::Backoff;
use identity::{AuditKey, Credentials};
use runtime::Bus;
use schemas::call::{Call, Verb, request_subject, worker as call};
use schemas::contribution::{SubmitReply, SubmitRequest};
use schemas::{Code, Millis, PublicKey, Refusal, RunId, V, WorkerId};
use serde_bytes::{ByteArray, ByteBuf};
use tokio::time::Instant;
use worker_core::{Answer, AnswerWait, HandIn, Request};

use crate::lease_urls::LeaseUrls;

/// Sends requests in the name of this worker. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    bus: Bus,
    run: RunId,
    worker: WorkerId,
    audit_key: Arc<AuditKey>,
    domain: Arc<str>,
    credentials: Arc<PathBuf>,
    lease_urls: LeaseUrls,
}

/// First and longest wait for the answer to one try. A try that used its whole wait doubles the
/// next wait. So a lost question is repeated within seconds, and a slow answer still comes within a
/// later, longer try.
const TRY_PATIENCE: (Millis, Millis) = (Millis::from_secs(2), Millis::from_secs(16));
/// First and longest span of the pause between tries; a pause is a random part of its span. The
/// pause is needed because a try fails at once while nobody listens.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

impl Asker {
    pub(crate) fn new(
        bus: Bus,
        (run, worker): (RunId, WorkerId),
        audit_key: Arc<AuditKey>,
        domain: &str,
        credentials: PathBuf,
    ) -> Self {
        Self {
            bus,
            run,
            worker,
            audit_key,
            domain: domain.into(),
            credentials: Arc::new(credentials),
            lease_urls: LeaseUrls::default(),
        }
    }

    /// The worker in whose name it asks.
    pub(crate) const fn worker(&self) -> &WorkerId {
        &self.worker
    }

    /// The trust domain in which it signs.
    pub(crate) fn domain(&self) -> &str {
        &self.domain
    }

    /// The public half of the audit key.
    pub(crate) fn audit_key(&self) -> &PublicKey {
        self.audit_key.public()
    }

    /// Signs the body of a statement with the audit key.
    pub(crate) fn sign(&self, body: &[u8]) -> [u8; 64] {
        self.audit_key.sign_statement(&self.domain, body)
    }

    /// The URLs that came with the latest lease.
    pub(crate) const fn lease_urls(&self) -> &LeaseUrls {
        &self.lease_urls
    }

    /// Sends a request of the core and waits for its answer.
    ///
    /// # Errors
    /// The coordinator's refusal, or the reason why there is no answer.
    pub(crate) async fn ask(&self, request: Request, patience: Millis) -> Result<Answer, Refusal> {
        Ok(match request {
            Request::Join(join) => {
                Answer::Join(Box::new(self.call::<call::Join>(&join, patience).await?))
            }
            Request::Leave(leave) => {
                Answer::Done(self.call::<call::Leave>(&leave, patience).await?)
            }
            Request::Claim(claim) => {
                let mut reply = self.call::<call::Claim>(&claim, patience).await?;
                let base = std::mem::take(&mut reply.base);
                self.lease_urls.replace(base, std::time::Instant::now());
                Answer::Claim(reply)
            }
            Request::Renew(renew) => {
                Answer::Renew(self.call::<call::Renew>(&renew, patience).await?)
            }
            Request::Release(release) => {
                Answer::Done(self.call::<call::Release>(&release, patience).await?)
            }
            Request::Submit(result) => Answer::Submit(self.submit(result, patience).await?),
        })
    }

    /// Asks one question.
    ///
    /// # Errors
    /// As [`Asker::ask`].
    pub(crate) async fn call<C: Call<Verb = Verb>>(
        &self,
        question: &C::Request,
        patience: Millis,
    ) -> Result<C::Reply, Refusal> {
        let subject = request_subject(&self.run, &self.worker, C::VERB);
        let answer = self
            .bus
            .request(&subject, question, patience.as_duration())
            .await;
        answer.map_err(|error| {
            let refusal = error.into_refusal();
            if refusal.code == Code::NoAnswer {
                self.explain_no_answer(refusal)
            } else {
                refusal
            }
        })
    }

    /// Asks one question until it is answered: a coordinator that is away for a while costs time,
    /// but no work. A caller that loses the lease meanwhile drops this future.
    ///
    /// # Errors
    /// A refusal that another try does not change, or the last one if the next pause would reach
    /// `deadline`.
    pub(crate) async fn call_until<C: Call<Verb = Verb>>(
        &self,
        question: &C::Request,
        deadline: Instant,
    ) -> Result<C::Reply, Refusal> {
        until_answered(deadline, AnswerWait::new(TRY_PATIENCE), |patience| {
            self.call::<C>(question, patience)
        })
        .await
    }

    async fn submit(&self, result: HandIn, patience: Millis) -> Result<SubmitReply, Refusal> {
        let sign = |provenance: Vec<u8>| self.audit_key.sign_provenance(&provenance);
        let request = SubmitRequest {
            v: V,
            signature: ByteArray::new(self.sign(&result.statement)),
            statement: ByteBuf::from(result.statement),
            provenance: result.provenance.map(sign).map(ByteArray::new),
        };
        self.call::<call::Submit>(&request, patience).await
    }

    /// Replaces the detail of a `NoAnswer` if the credentials have expired: a broker that refuses
    /// them does not answer either. The file is read again at each try to connect, so a renewed one
    /// helps.
    fn explain_no_answer(&self, refusal: Refusal) -> Refusal {
        let checked = Credentials::read(&self.credentials)
            .and_then(|found| found.check(runtime::clock::now()));
        match checked {
            Err(error) if error.code() == Code::CredentialExpired => {
                Refusal::new(refusal.code, format!("{error}; waiting for a renewed file"))
            }
            _ => refusal,
        }
    }
}

/// Asks until there is an answer, a refusal that does not pass, or no time for another pause before
/// `deadline`. The coordinator answers a repeated question like the first one, so a repeat has no
/// effect of its own.
async fn until_answered<A, F>(
    deadline: Instant,
    mut patience: AnswerWait,
    ask: impl Fn(Millis) -> F,
) -> Result<A, Refusal>
where
    F: Future<Output = Result<A, Refusal>>,
{
    let mut backoff = Backoff::new(PAUSE);
    loop {
        let (pause, asked_at) = (random_pause(backoff.peek()), Instant::now());
        match ask(patience.now()).await {
            Err(refusal) if refusal.code.passes() && Instant::now() + pause < deadline => {
                patience.failed_after(asked_at.elapsed());
                tracing::debug!(%refusal, "will ask again after a pause");
                tokio::time::sleep(pause).await;
                backoff.fail();
            }
            answer => return answer,
        }
    }
}

/// A random pause of at most `span`, so that workers that lost the same coordinator do not come
/// back at the same moment.
fn random_pause(span: Duration) -> Duration {
    span.mul_f64(objects::random_fraction())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// The waits of six tries. Each of the first five spends its wait and fails; the sixth is
    /// answered.
    async fn waits(patience: AnswerWait, spend: impl AsyncFn(Duration)) -> Vec<u64> {
        let waits = RefCell::new(Vec::new());
        let answer = until_answered(
            Instant::now() + Duration::from_secs(900),
            patience,
            async |wait| {
                waits.borrow_mut().push(wait.get());
                if waits.borrow().len() > 5 {
                    return Ok("granted");
                }
                spend(wait.as_duration()).await;
                Err(Refusal::new(Code::NoAnswer, "played by the test"))
            },
        );
        assert_eq!(answer.await, Ok("granted"));
        waits.into_inner()
    }

    /// An answer is lost with the coordinator that gave it: the question is repeated after seconds,
    /// and not only when a lease is over.
    #[tokio::test]
    async fn a_lost_answer_is_asked_for_again_ever_more_patiently() {
        let patience = AnswerWait::new((Millis(20), Millis(160)));
        let waited = waits(patience, async |wait| {
            let lost = tokio::time::timeout(wait, std::future::pending::<()>()).await;
            assert!(lost.is_err(), "nobody answers");
        });
        assert_eq!(waited.await, [20, 40, 80, 160, 160, 160]);
        assert_eq!(TRY_PATIENCE.0, Millis::from_secs(2));
    }

    #[tokio::test]
    async fn a_try_that_fails_at_once_does_not_lengthen_the_next_wait() {
        let waited = waits(AnswerWait::new(TRY_PATIENCE), async |_| {}).await;
        assert_eq!(waited, [TRY_PATIENCE.0.get(); 6]);
    }

    #[tokio::test]
    async fn a_refusal_that_another_try_does_not_change_is_the_answer() {
        let tries = RefCell::new(0);
        let answer: Result<(), Refusal> = until_answered(
            Instant::now() + Duration::from_secs(900),
            AnswerWait::new(TRY_PATIENCE),
            async |_| {
                *tries.borrow_mut() += 1;
                Err(Refusal::new(Code::ObjectForbidden, "x"))
            },
        )
        .await;
        assert_eq!(
            (answer.expect_err("refused").code, *tries.borrow()),
            (Code::ObjectForbidden, 1)
        );
    }

    #[test]
    fn pauses_are_spread_over_their_whole_span() {
        let span = Duration::from_millis(100);
        let drawn: Vec<Duration> = (0..200).map(|_| random_pause(span)).collect();
        assert!(drawn.iter().all(|pause| *pause <= span));
        for part in 0..4 {
            let within = span * part / 4..=span * (part + 1) / 4;
            assert!(
                drawn.iter().any(|pause| within.contains(pause)),
                "none in {within:?}"
            );
        }
    }
}
