//! A worker with real credentials that does what a test tells it, for better or worse.

use std::time::Duration;

use bytes::Bytes;
use harness::{Cluster, PATIENCE};
use identity::{AuditKey, jws};
use objects::{Regrant, Transfer, TransferLimits, Trust};
use runtime::{Bus, BusError};
use schemas::blob::{Grant, Grants, PutRequest};
use schemas::contribution::{Contribution, Outcome, Statement, SubmitReply, SubmitRequest};
use schemas::lease::{ClaimOutcome, ClaimReply, ClaimRequest, LeaseRef, MANIFEST_TYPE, Manifest};
use schemas::member::{JoinReply, JoinRequest, Posture};
use schemas::permission::Role;
use schemas::run::{RunSpec, TrainerKind};
use schemas::subject::{Verb, request_subject};
use schemas::{Code, Digest, Message, Millis, ObjectRef, Refusal, RunId, V, WorkerId};
use serde_bytes::{ByteArray, ByteBuf};

/// How long an answer may take.
const ANSWER_WAIT: Duration = Duration::from_secs(25);

/// The worker.
pub struct Scripted {
    /// Its connection.
    pub bus: Bus,
    /// Its name.
    pub worker: WorkerId,
    run: RunId,
    audit_key: AuditKey,
    trust: identity::TrustBundle,
    transfer: Transfer,
}

/// No grant is asked for again: what a test was granted must do.
struct Once;

#[async_trait::async_trait]
impl Regrant for Once {
    async fn regrant(&self, digest: Digest) -> Result<Grant, Refusal> {
        Err(Refusal::new(Code::UrlRefused, digest.to_string()))
    }
}

impl Scripted {
    /// Connects as a worker of the cluster's run.
    ///
    /// # Panics
    /// The broker does not take it.
    pub async fn connect(cluster: &Cluster, name: &str) -> Self {
        let issued = cluster.issue(Role::Worker, name);
        let bus = cluster.connect(Role::Worker, name).await;
        let worker = issued.public.as_str().parse().expect("a worker's key is its name");
        let key = issued.audit_key.expect("workers sign results");
        let audit_key = AuditKey::read(&key).unwrap_or_else(|error| panic!("{error}"));
        let trust = cluster.domain().trust().clone();
        let ca = std::fs::read(cluster.domain().layout().ca()).expect("the domain has an authority");
        let transfer = Transfer::new(&Trust::Authority(ca), TransferLimits::default());
        let transfer = transfer.unwrap_or_else(|error| panic!("{error}"));
        Self { bus, worker, run: cluster.run().clone(), audit_key, trust, transfer }
    }

    /// The subject of a verb.
    pub fn subject(&self, verb: Verb) -> String {
        request_subject(&self.run, &self.worker, verb)
    }

    /// Asks.
    ///
    /// # Errors
    /// There is no answer, or it is a refusal.
    pub async fn ask<Q: Message, A: Message>(&self, verb: Verb, question: &Q) -> Result<A, BusError> {
        self.bus.request(&self.subject(verb), question, ANSWER_WAIT).await
    }

    /// Sends any bytes as a request and gives the code of the refusal; none when it was not refused.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn refused_raw(&self, verb: Verb, payload: Vec<u8>) -> Option<Code> {
        refused_raw(&self.bus, &self.subject(verb), payload).await
    }

    /// Joins.
    ///
    /// # Panics
    /// It is refused.
    pub async fn join(&self) -> RunSpec {
        let reply: JoinReply =
            self.ask(Verb::Join, &self.join_request()).await.unwrap_or_else(|error| panic!("{error}"));
        reply.spec
    }

    /// What it joins with.
    pub fn join_request(&self) -> JoinRequest {
        JoinRequest {
            v: V,
            audit_key: self.audit_key.public().clone(),
            trainers: vec![TrainerKind::Reference],
            device: "a script".to_owned(),
            release: "0".to_owned(),
            posture: Posture::default(),
        }
    }

    /// Claims until there is work.
    ///
    /// # Panics
    /// It is refused, or the run is over.
    pub async fn claim(&self) -> Manifest {
        loop {
            let request = ClaimRequest { v: V, wait: Millis::from_secs(10) };
            let reply: ClaimReply =
                self.ask(Verb::LeaseClaim, &request).await.unwrap_or_else(|error| panic!("claim: {error}"));
            match reply.outcome {
                ClaimOutcome::Lease(document) => {
                    let manifest = jws::verify(&document, MANIFEST_TYPE, &self.trust);
                    return manifest.unwrap_or_else(|error| panic!("the lease's manifest: {error}"));
                }
                ClaimOutcome::Nothing => {}
                ClaimOutcome::Complete => panic!("the run is complete"),
            }
        }
    }

    /// Uploads one object under a lease.
    ///
    /// # Panics
    /// It is refused.
    pub async fn upload(&self, lease: LeaseRef, bytes: Vec<u8>) -> ObjectRef {
        let object = ObjectRef::of(&bytes);
        let request = PutRequest { v: V, lease, objects: vec![object] };
        let grants: Grants = self.ask(Verb::BlobPut, &request).await.unwrap_or_else(|error| panic!("{error}"));
        let [grant] = grants.grants.as_slice() else { panic!("one grant for one object: {grants:?}") };
        if grant.action.is_some() {
            let deadline = tokio::time::Instant::now() + PATIENCE;
            let sent = self.transfer.put(grant, Bytes::from(bytes), &Once, deadline).await;
            sent.unwrap_or_else(|error| panic!("{}: {error}", object.digest));
        }
        object
    }

    /// A contribution of this unit that fits the run, made of these chunks.
    pub fn contribution(spec: &RunSpec, chunks: Vec<ObjectRef>) -> Contribution {
        Contribution {
            layout: spec.model.layout.digest,
            codec: spec.upload,
            chunks,
            tokens: spec.unit_tokens(),
            steps: spec.schedule.inner_steps,
            loss: 1.0,
            train_ms: 1,
        }
    }

    /// Hands in a result.
    ///
    /// # Errors
    /// The refusal.
    pub async fn submit(
        &self,
        spec: &RunSpec,
        lease: LeaseRef,
        contribution: Contribution,
    ) -> Result<SubmitReply, BusError> {
        let (_, digest) = spec.to_object();
        let statement = Statement {
            v: V,
            run: self.run.clone(),
            spec: digest,
            worker: self.worker.clone(),
            lease,
            outcome: Outcome::Contribution(contribution),
        };
        self.ask(Verb::ContributionSubmit, &self.signed(&statement)).await
    }

    /// A statement with its signature.
    pub fn signed(&self, statement: &Statement) -> SubmitRequest {
        let statement = statement.encode();
        let signature = self.audit_key.sign_statement(self.trust.domain.as_str(), &statement);
        SubmitRequest { v: V, statement: ByteBuf::from(statement), signature: ByteArray::new(signature) }
    }
}

/// Sends any bytes as a request and gives the code of the refusal; none when it was not refused.
///
/// # Panics
/// There is no answer, or it is none of ours.
pub async fn refused_raw(bus: &Bus, subject: &str, payload: Vec<u8>) -> Option<Code> {
    let bytes = payload.len();
    let answer = bus.request_raw(subject, async_nats::HeaderMap::new(), payload.into(), ANSWER_WAIT).await;
    let answer = answer.unwrap_or_else(|error| panic!("{subject} with {bytes} bytes: {error}"));
    // A refusal has the same form in answers of every type.
    match schemas::Answer::<schemas::lease::Done>::decode(&answer) {
        Ok(answer) => answer.reply.into_result().err().map(|refusal| refusal.code),
        Err(_) => None,
    }
}
