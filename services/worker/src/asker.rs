//! Requests to the coordinator: typed, signed where they must be, and answered or refused within a given time.

use std::path::PathBuf;
use std::sync::Arc;

use identity::{AuditKey, Credentials};
use runtime::Bus;
use schemas::contribution::{SubmitReply, SubmitRequest};
use schemas::subject::{Verb, request_subject};
use schemas::{Code, Message, Millis, Refusal, RunId, V, WorkerId};
use serde_bytes::{ByteArray, ByteBuf};
use worker_core::{Answer, Request};

/// Asks in the name of this worker. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    bus: Bus,
    run: RunId,
    worker: WorkerId,
    audit_key: Arc<AuditKey>,
    domain: Arc<str>,
    credentials: Arc<PathBuf>,
}

impl Asker {
    pub(crate) fn new(
        bus: Bus,
        (run, worker): (RunId, WorkerId),
        audit_key: Arc<AuditKey>,
        domain: &str,
        credentials: PathBuf,
    ) -> Self {
        Self { bus, run, worker, audit_key, domain: domain.into(), credentials: Arc::new(credentials) }
    }

    /// Asks what the core wants to know.
    ///
    /// # Errors
    /// The coordinator's refusal, or why there is no answer.
    pub(crate) async fn ask(&self, request: Request, patience: Millis) -> Result<Answer, Refusal> {
        Ok(match request {
            Request::Join(join) => Answer::Join(Box::new(self.call(Verb::Join, &join, patience).await?)),
            Request::Leave(leave) => Answer::Done(self.call(Verb::Leave, &leave, patience).await?),
            Request::Claim(claim) => Answer::Claim(self.call(Verb::LeaseClaim, &claim, patience).await?),
            Request::Renew(renew) => Answer::Renew(self.call(Verb::LeaseRenew, &renew, patience).await?),
            Request::Release(release) => Answer::Done(self.call(Verb::LeaseRelease, &release, patience).await?),
            Request::Submit(statement) => Answer::Submit(self.submit(statement, patience).await?),
        })
    }

    /// Asks one question.
    ///
    /// # Errors
    /// As [`Asker::ask`].
    pub(crate) async fn call<Q: Message, A: Message>(
        &self,
        verb: Verb,
        question: &Q,
        patience: Millis,
    ) -> Result<A, Refusal> {
        let subject = request_subject(&self.run, &self.worker, verb);
        let answer = self.bus.request(&subject, question, patience.as_duration()).await;
        answer.map_err(|error| {
            let refusal = error.into_refusal();
            if refusal.code == Code::NoAnswer { self.silence(refusal) } else { refusal }
        })
    }

    async fn submit(&self, statement: Vec<u8>, patience: Millis) -> Result<SubmitReply, Refusal> {
        let signature = ByteArray::new(self.audit_key.sign_statement(&self.domain, &statement));
        let request = SubmitRequest { v: V, statement: ByteBuf::from(statement), signature };
        self.call(Verb::ContributionSubmit, &request, patience).await
    }

    /// A server that does not take the credential any more is silent too; then waiting does not help.
    fn silence(&self, refusal: Refusal) -> Refusal {
        let checked = Credentials::read(&self.credentials).and_then(|found| found.check(runtime::clock::now()));
        match checked {
            Err(error) if error.code() == Code::CredentialExpired => Refusal::new(error.code(), error.to_string()),
            _ => refusal,
        }
    }
}
