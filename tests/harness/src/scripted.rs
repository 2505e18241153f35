//! A worker with real credentials that does exactly what a test tells it to do.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use chain::End;
use identity::join::new_session;
use identity::{AuditKey, jws};
use objects::{Regrant, Transfer, TransferLimits, Trust};
use runtime::{Bus, BusError};
use schemas::blob::{GetRequest, Grant, Grants, PutRequest};
use schemas::contribution::{Contribution, Outcome, Statement, SubmitReply, SubmitRequest};
use schemas::event::{Event, SignedEvent, WorkerEvent};
use schemas::lease::{
    ClaimOutcome, ClaimReply, ClaimRequest, Done, LeaseRef, MANIFEST_TYPE, Manifest, Work,
};
use schemas::limits::{BASE_GRANTS_MAX, GRANTS_MAX, OBJECT_BYTES_MAX};
use schemas::member::{JoinReply, JoinRequest, Session};
use schemas::permission::Role;
use schemas::provenance::{HandedIn, MadeFrom, Provenance};
use schemas::run::{RunSpec, TrainerKind};
use schemas::subject::{Verb, request_subject, worker_event_subject};
use schemas::{Chunks, Code, Digest, Message, Millis, ObjectRef, Refusal, RunId, V, WorkerId};
use serde_bytes::{ByteArray, ByteBuf};

use crate::{Cluster, PATIENCE};

/// Time that an answer may take.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Lifetime of its credentials; longer than any test.
const LIFETIME: Millis = Millis::from_secs(3600);

/// The release that it names.
const RELEASE: &str = "0";

/// The worker.
pub struct Scripted {
    /// Its connection.
    pub bus: Bus,
    /// Its name.
    pub worker: WorkerId,
    run: RunId,
    session: Session,
    audit_key: AuditKey,
    trust: identity::TrustBundle,
    transfer: Transfer,
    /// The end of its chain of events.
    chain: Mutex<End>,
    /// The manifests of its leases.
    leases: Mutex<BTreeMap<LeaseRef, Manifest>>,
}

/// Asks only once for a grant, since the test decides what happens then.
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
        Self::connect_for(cluster, name, cluster.run()).await
    }

    /// Connects as a worker of any run.
    ///
    /// # Panics
    /// The broker does not take it.
    pub async fn connect_for(cluster: &Cluster, name: &str, run: &RunId) -> Self {
        let issued = cluster.issue_for(Role::Worker, name, Some(run), LIFETIME);
        let bus = cluster.connect(Role::Worker, name).await;
        let worker = issued
            .public
            .as_str()
            .parse()
            .expect("a worker's key is its name");
        let key = issued.audit_key.expect("workers sign results");
        let audit_key = AuditKey::read(&key).unwrap_or_else(|error| panic!("{error}"));
        let trust = cluster.domain().trust().clone();
        let ca =
            std::fs::read(cluster.domain().layout().ca()).expect("the domain has an authority");
        let transfer = Transfer::new(&Trust::Authority(ca), TransferLimits::default());
        let transfer = transfer.unwrap_or_else(|error| panic!("{error}"));
        let (run, session) = (run.clone(), new_session());
        Self {
            bus,
            worker,
            run,
            session,
            audit_key,
            trust,
            transfer,
            chain: Mutex::default(),
            leases: Mutex::default(),
        }
    }

    /// The subject of a request with this verb.
    pub fn subject(&self, verb: Verb) -> String {
        request_subject(&self.run, &self.worker, verb)
    }

    /// Asks.
    ///
    /// # Errors
    /// There is no answer, or it is a refusal.
    pub async fn ask<Q: Message, A: Message>(
        &self,
        verb: Verb,
        question: &Q,
    ) -> Result<A, BusError> {
        self.bus
            .request(&self.subject(verb), question, ANSWER_WAIT)
            .await
    }

    /// Sends any bytes as a request and returns the code of the refusal; none if it was not
    /// refused.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn refused_raw(&self, verb: Verb, payload: Vec<u8>) -> Option<Code> {
        refused_raw(&self.bus, &self.subject(verb), payload).await
    }

    /// Joins. It asks again, as a worker does, if the answer comes from a coordinator that was
    /// replaced by another.
    ///
    /// # Panics
    /// It is refused.
    pub async fn join(&self) -> RunSpec {
        loop {
            match self
                .ask::<_, JoinReply>(Verb::Join, &self.join_request())
                .await
            {
                Ok(reply) => return reply.spec,
                Err(BusError::Refused(refusal)) if refusal.code == Code::Draining => {}
                Err(error) => panic!("join: {error}"),
            }
        }
    }

    /// Emits the next event of its chain and waits until it is recorded.
    ///
    /// # Panics
    /// It is refused for good, or not recorded in time.
    pub async fn emit(&self, event: WorkerEvent) {
        self.try_emit(event)
            .await
            .unwrap_or_else(|refusal| panic!("{refusal}"));
    }

    /// Emits the next event, which may be refused.
    ///
    /// # Errors
    /// It is refused for good.
    ///
    /// # Panics
    /// There is no answer in time.
    pub async fn try_emit(&self, event: WorkerEvent) -> Result<(), Refusal> {
        let subject = worker_event_subject(&self.run, &self.worker, event.kind());
        let (signed, longer) = self.next_event(event);
        let recorded = async {
            loop {
                match self
                    .bus
                    .request::<_, Done>(&subject, &signed, ANSWER_WAIT)
                    .await
                {
                    Ok(_) => return Ok(()),
                    // The audit service knows a worker that has just joined after a moment.
                    Err(BusError::Refused(refusal)) if refusal.code == Code::EventLater => {}
                    Err(BusError::Refused(refusal)) => return Err(refusal),
                    Err(error) => panic!("{subject}: {error}"),
                }
            }
        };
        let recorded = tokio::time::timeout(PATIENCE, recorded).await;
        recorded.unwrap_or_else(|_| panic!("{subject} is not recorded"))?;
        *self.chain() = longer;
        Ok(())
    }

    /// The next event of its chain, signed and not sent.
    pub fn signed_event(&self, event: WorkerEvent) -> SignedEvent {
        self.next_event(event).0
    }

    /// The next event, and the end of the chain with it.
    fn next_event(&self, event: WorkerEvent) -> (SignedEvent, End) {
        let end = *self.chain();
        let draft = end.write(
            self.audit_key.public(),
            runtime::clock::now(),
            Some(&self.run),
            Event::Worker(event),
        );
        let longer = draft.end();
        let domain = self.trust.domain.as_str();
        (self.audit_key.sign_event(domain, draft.body), longer)
    }

    fn chain(&self) -> MutexGuard<'_, End> {
        self.chain
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Begins its chain of events again, as a worker whose state was lost does.
    pub fn forget_events(&self) {
        *self.chain() = End::default();
    }

    /// The request with which it joins.
    pub fn join_request(&self) -> JoinRequest {
        JoinRequest {
            session: self.session,
            audit_key: self.audit_key.public().clone(),
            proof: ByteArray::new(self.audit_key.sign_join(
                self.trust.domain.as_str(),
                &self.run,
                &self.worker,
            )),
            trainers: vec![TrainerKind::Reference, TrainerKind::Synthetic],
            device: "a script".to_owned(),
            release: RELEASE.to_owned(),
            ..kit::join_request(0)
        }
    }

    /// The request with which it claims.
    pub const fn claim_request(&self, wait: Millis) -> ClaimRequest {
        ClaimRequest {
            v: V,
            session: self.session,
            wait,
        }
    }

    /// The session of its process, for heartbeats and goodbyes.
    pub const fn session(&self) -> Session {
        self.session
    }

    /// Claims until there is work.
    ///
    /// # Panics
    /// It is refused, or the run is over.
    pub async fn claim(&self) -> Manifest {
        self.claim_or_end().await.expect("the run is not complete")
    }

    /// Claims until there is work, and verifies the manifest and the URLs of its base; none when
    /// the run is complete.
    ///
    /// # Panics
    /// It is refused.
    pub async fn claim_or_end(&self) -> Option<Manifest> {
        let (manifest, base) = self.lease().await?;
        self.read_first(&manifest.base.chunks, &base).await;
        Some(manifest)
    }

    /// Claims until there is work, and verifies the manifest; nothing is read from the store.
    ///
    /// # Panics
    /// It is refused, or the run is over.
    pub async fn manifest(&self) -> Manifest {
        let (manifest, _) = self.lease().await.expect("the run is not complete");
        manifest
    }

    /// A verified manifest, and the URLs that came with it; none when the run is complete.
    async fn lease(&self) -> Option<(Manifest, Vec<Grant>)> {
        loop {
            let request = self.claim_request(Millis::from_secs(10));
            let reply: ClaimReply = self
                .ask(Verb::Claim, &request)
                .await
                .unwrap_or_else(|error| panic!("claim: {error}"));
            match reply.outcome {
                ClaimOutcome::Lease(document) => {
                    let manifest: Manifest = jws::verify(&document, MANIFEST_TYPE, &self.trust)
                        .unwrap_or_else(|error| panic!("the lease's manifest: {error}"));
                    assert_eq!(manifest.aud, self.worker);
                    assert_eq!(manifest.session, self.session);
                    let mut leases = self.leases.lock().expect("no test panics under it");
                    leases.insert(manifest.lease, manifest.clone());
                    return Some((manifest, reply.base));
                }
                ClaimOutcome::Nothing => {}
                ClaimOutcome::Complete => return None,
            }
        }
    }

    /// Checks the URLs that came with a lease: they are for the first objects of its base, and lead
    /// there.
    async fn read_first(&self, base: &Chunks, grants: &[Grant]) {
        let objects = match base {
            Chunks::Named(chunks) => chunks.as_slice(),
            Chunks::Listed(listed) => std::slice::from_ref(&listed.list),
        };
        let first = objects.iter().take(BASE_GRANTS_MAX);
        let expected: Vec<Digest> = first.map(|object| object.digest).collect();
        let granted: Vec<Digest> = grants.iter().map(|grant| grant.digest).collect();
        assert_eq!(granted, expected, "the URLs of a lease");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let read = self
            .transfer
            .get(&grants[0], objects[0].bytes, &Once, deadline)
            .await;
        read.unwrap_or_else(|error| panic!("the first object of a base: {error}"));
    }

    /// Asks for the URL of one upload under a lease.
    ///
    /// # Errors
    /// There is no answer, or it is a refusal.
    pub async fn grant(&self, lease: LeaseRef, object: ObjectRef) -> Result<Grant, BusError> {
        let request = PutRequest {
            v: V,
            lease,
            objects: vec![object],
        };
        let Grants { mut grants, .. } = self.ask(Verb::Put, &request).await?;
        assert_eq!(grants.len(), 1, "one grant for one object: {grants:?}");
        Ok(grants.remove(0))
    }

    /// Uploads an object with the grant for it.
    ///
    /// # Panics
    /// The store refuses.
    pub async fn send(&self, grant: &Grant, bytes: Vec<u8>) {
        if grant.action.is_some() {
            let deadline = tokio::time::Instant::now() + PATIENCE;
            let sent = self
                .transfer
                .put(grant, Bytes::from(bytes), &Once, deadline)
                .await;
            sent.unwrap_or_else(|error| panic!("{}: {error}", grant.digest));
        }
    }

    /// Uploads one object under a lease.
    ///
    /// # Panics
    /// It is refused.
    pub async fn upload(&self, lease: LeaseRef, bytes: Vec<u8>) -> ObjectRef {
        let object = ObjectRef::of(&bytes);
        let grant = self
            .grant(lease, object)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        self.send(&grant, bytes).await;
        object
    }

    /// Downloads objects.
    ///
    /// # Panics
    /// It is refused.
    pub async fn fetch(&self, objects: &[ObjectRef]) -> Vec<Bytes> {
        let mut contents = Vec::with_capacity(objects.len());
        for batch in objects.chunks(GRANTS_MAX) {
            contents.extend(self.fetch_batch(batch).await);
        }
        contents
    }

    /// The chunks of weights or of a contribution: those that are named, or those in the list.
    ///
    /// # Panics
    /// As [`Scripted::fetch`], or it is no list.
    pub async fn chunks(&self, chunks: &Chunks) -> Vec<ObjectRef> {
        match chunks {
            Chunks::Named(chunks) => chunks.clone(),
            Chunks::Listed(listed) => {
                let read = listed.read(&self.fetch(&[listed.list]).await[0]);
                read.unwrap_or_else(|refusal| panic!("{refusal}"))
            }
        }
    }

    /// Uploads the list of a contribution's chunks, if the run has lists, and names them.
    ///
    /// # Panics
    /// It is refused.
    pub async fn name_chunks(
        &self,
        spec: &RunSpec,
        lease: LeaseRef,
        chunks: Vec<ObjectRef>,
    ) -> Chunks {
        let (named, list) = spec.name_chunks(chunks);
        if let Some(list) = list {
            self.upload(lease, list).await;
        }
        named
    }

    async fn fetch_batch(&self, objects: &[ObjectRef]) -> Vec<Bytes> {
        let request = GetRequest {
            v: V,
            objects: objects.iter().map(|object| object.digest).collect(),
        };
        let granted = self.ask(Verb::Get, &request).await;
        let Grants { grants, .. } = granted.unwrap_or_else(|error| panic!("{error}"));
        let mut contents = Vec::with_capacity(grants.len());
        for grant in &grants {
            let deadline = tokio::time::Instant::now() + PATIENCE;
            let read = self
                .transfer
                .get(grant, OBJECT_BYTES_MAX, &Once, deadline)
                .await;
            contents.push(read.unwrap_or_else(|error| panic!("{}: {error}", grant.digest)));
        }
        contents
    }

    /// A contribution of this unit that fits the run, made of these chunks.
    pub fn contribution(spec: &RunSpec, chunks: impl Into<Chunks>) -> Contribution {
        kit::contribution(spec, chunks)
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
        let result = self.result(spec, lease, contribution);
        self.ask(Verb::Submit, &result).await
    }

    /// A signed result that is not handed in yet.
    pub fn result(
        &self,
        spec: &RunSpec,
        lease: LeaseRef,
        contribution: Contribution,
    ) -> SubmitRequest {
        let outcome = Outcome::Contribution(contribution);
        let statement = kit::statement(spec, self.worker.clone(), lease, outcome);
        self.signed_by(&self.audit_key, spec, &statement)
    }

    /// The statement about an evaluation with its signature.
    pub fn signed(&self, statement: &Statement) -> SubmitRequest {
        let encoded = statement.encode();
        let signature = self
            .audit_key
            .sign_statement(self.trust.domain.as_str(), &encoded);
        SubmitRequest {
            v: V,
            statement: ByteBuf::from(encoded),
            signature: ByteArray::new(signature),
            provenance: None,
        }
    }

    /// A statement about a contribution, and what it was made from, with signatures of any key.
    pub fn signed_by(
        &self,
        key: &AuditKey,
        spec: &RunSpec,
        statement: &Statement,
    ) -> SubmitRequest {
        let (domain, encoded) = (self.trust.domain.as_str(), statement.encode());
        let provenance = self.made_from(statement.lease).map(|from| {
            let Outcome::Contribution(contribution) = &statement.outcome else {
                panic!("only a contribution is made from something")
            };
            let handed = HandedIn {
                spec,
                spec_digest: statement.spec,
                worker: &statement.worker,
                lease: statement.lease,
                contribution,
                statement: Digest::of(&encoded),
            };
            let said = Provenance::of_contribution(handed, &from, domain, key.public());
            key.sign_provenance(&said.to_json())
        });
        SubmitRequest {
            v: V,
            signature: ByteArray::new(key.sign_statement(domain, &encoded)),
            statement: ByteBuf::from(encoded),
            // Without the lease nothing is known of it, and no signature is right.
            provenance: Some(ByteArray::new(provenance.unwrap_or([0; 64]))),
        }
    }

    /// What a contribution under this lease is made from; none if this worker never had it.
    fn made_from(&self, lease: LeaseRef) -> Option<MadeFrom> {
        let leases = self.leases.lock().expect("no test panics under it");
        let manifest = leases.get(&lease)?;
        let Work::Train { shards, .. } = &manifest.work else {
            return None;
        };
        Some(MadeFrom {
            base: manifest.base.clone(),
            shards: shards.clone(),
            release: RELEASE.to_owned(),
        })
    }
}

/// Sends any bytes as a request and returns the code of the refusal; none if it was not refused.
///
/// # Panics
/// There is no answer, or it is not one of a coordinator.
pub async fn refused_raw(bus: &Bus, subject: &str, payload: Vec<u8>) -> Option<Code> {
    let bytes = payload.len();
    let answer = bus
        .request_raw(
            subject,
            async_nats::HeaderMap::new(),
            payload.into(),
            ANSWER_WAIT,
        )
        .await;
    let answer = answer.unwrap_or_else(|error| panic!("{subject} with {bytes} bytes: {error}"));
    // A refusal has the same form in answers of every type.
    match schemas::Answer::<schemas::lease::Done>::decode(&answer) {
        Ok(answer) => answer.reply.into_result().err().map(|refusal| refusal.code),
        Err(_) => None,
    }
}
