//! Objects from an operator's side: uploads go through quarantine like a worker's, and downloads
//! are hashed as they come.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use objects::{Regrant, Transfer, TransferLimits};
use runtime::Failure;
use schemas::blob::{GetRequest, Grant, Grants};
use schemas::call::control as call;
use schemas::control::OperatorObjects;
use schemas::permission::Role;
use schemas::{Chunks, Code, Digest, ObjectRef, Refusal, V};
use tokio::time::Instant;

use crate::context::{Context, Operator};

/// Transfers at a time: enough to fill a link, few enough to keep what is in memory small.
const PARALLEL: usize = 4;
/// Longest wait for an allowance of orders that was used up.
const ALLOWANCE_MAX: Duration = Duration::from_secs(600);
/// Pause after the coordinator said that this operator asks too much: it allows one more order each
/// second.
const TOO_MUCH_PAUSE: Duration = Duration::from_secs(1);

/// Uploads and downloads on behalf of an operator.
#[derive(Clone)]
pub(crate) struct OperatorObjectsClient {
    operator: Operator,
    transfer: Transfer,
    /// Longest time without a byte of an object, however often it is asked for.
    silence_max: Duration,
    /// True if the coordinator itself is audited.
    audits: bool,
}

impl OperatorObjectsClient {
    pub(crate) fn new(context: &Context, operator: Operator) -> Result<Self, Failure> {
        let trust = context.store_trust(Role::Operator, std::env::vars_os())?;
        let transfer = Transfer::new(&trust, TransferLimits::default())?;
        Ok(Self {
            operator,
            transfer,
            silence_max: context.timeout,
            audits: false,
        })
    }

    /// Reads for an audit of the coordinator. Its refusals then have one code: only bytes that were
    /// hashed here are evidence, and what the coordinator says about bytes is none.
    pub(crate) fn of_an_audit(self) -> Self {
        Self {
            audits: true,
            ..self
        }
    }

    /// Uploads objects that are not in the store yet, and publishes them.
    ///
    /// `done` gets the size of each object when it is stored, or found to be there.
    pub(crate) async fn put(
        &self,
        objects: &[Bytes],
        done: impl Fn(u64),
    ) -> Result<Vec<ObjectRef>, Failure> {
        let references: Vec<ObjectRef> = objects.iter().map(|bytes| ObjectRef::of(bytes)).collect();
        for (bodies, references) in objects.chunks(PARALLEL).zip(references.chunks(PARALLEL)) {
            let request = OperatorObjects {
                v: V,
                objects: references.to_vec(),
            };
            let granted = self.operator.ask::<call::BlobPut>(&request).await?;
            if granted.grants.len() != references.len() {
                return Err(Failure::new(
                    Code::MessageInvalid,
                    "the coordinator granted another number of objects",
                ));
            }
            let uploads = granted.grants.iter().zip(bodies).zip(references).map(
                |((grant, body), reference)| async move {
                    let regrant = PutAgain {
                        operator: &self.operator,
                        object: *reference,
                    };
                    let deadline = Instant::now() + self.silence_max;
                    self.transfer
                        .put(grant, body.clone(), &regrant, deadline)
                        .await
                        .map_err(Failure::from)
                },
            );
            stream::iter(uploads)
                .buffer_unordered(PARALLEL)
                .try_collect::<Vec<_>>()
                .await?;
            self.commit(&request).await?;
            references
                .iter()
                .for_each(|reference| done(reference.bytes.get()));
        }
        Ok(references)
    }

    /// Publishes uploads. When the operator has used up its allowance of orders, this waits: a
    /// large import goes on slowly instead of failing.
    async fn commit(&self, request: &OperatorObjects) -> Result<(), Failure> {
        let deadline = Instant::now() + ALLOWANCE_MAX;
        loop {
            match self.operator.ask::<call::BlobCommit>(request).await {
                Err(failure)
                    if failure.code() == Code::AskedTooMuch && Instant::now() < deadline =>
                {
                    tokio::time::sleep(TOO_MUCH_PAUSE).await;
                }
                answer => return answer.map(|_| ()),
            }
        }
    }

    /// Downloads one object; every byte was hashed before it is returned.
    pub(crate) async fn get(&self, object: ObjectRef) -> Result<Bytes, Failure> {
        let regrant = GetAgain {
            operator: &self.operator,
            audits: self.audits,
        };
        let grant = regrant.regrant(object.digest).await?;
        let deadline = Instant::now() + self.silence_max;
        let got = self
            .transfer
            .get(&grant, object.bytes, &regrant, deadline)
            .await;
        got.map_err(|error| of_download(error.into(), self.audits))
    }

    /// Returns the chunks: those that are named, or those in the list that is named.
    pub(crate) async fn chunks(&self, chunks: &Chunks) -> Result<Vec<ObjectRef>, Failure> {
        match chunks {
            Chunks::Named(chunks) => Ok(chunks.clone()),
            Chunks::Listed(listed) => {
                let read = listed.read(&self.get(listed.list).await?);
                read.map_err(|refusal| Failure::new(refusal.code, refusal.detail))
            }
        }
    }

    /// Downloads objects in order, a few of them ahead; `take` gets each one.
    pub(crate) async fn get_all(
        &self,
        objects: &[ObjectRef],
        mut take: impl FnMut(usize, Bytes) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut downloads = stream::iter(objects.iter().map(|object| self.get(*object)))
            .buffered(PARALLEL)
            .enumerate();
        while let Some((index, bytes)) = downloads.next().await {
            take(index, bytes?)?;
        }
        Ok(())
    }
}

/// The failure of a download. Bytes that do not have their digest are evidence against the store,
/// with the code that a promotion and a restore give to them; an audit says itself what they prove.
fn of_download(failure: Failure, audits: bool) -> Failure {
    match failure.code() {
        Code::ObjectMismatch | Code::ObjectTooLarge if !audits => {
            Failure::new(Code::ObjectAltered, &failure.refusal().detail)
        }
        _ => failure,
    }
}

struct PutAgain<'a> {
    operator: &'a Operator,
    object: ObjectRef,
}

#[async_trait]
impl Regrant for PutAgain<'_> {
    async fn regrant(&self, _: Digest) -> Result<Grant, Refusal> {
        let request = OperatorObjects {
            v: V,
            objects: vec![self.object],
        };
        one(self.operator.ask::<call::BlobPut>(&request).await)
    }
}

struct GetAgain<'a> {
    operator: &'a Operator,
    audits: bool,
}

#[async_trait]
impl Regrant for GetAgain<'_> {
    async fn regrant(&self, digest: Digest) -> Result<Grant, Refusal> {
        let request = GetRequest {
            v: V,
            objects: vec![digest],
        };
        let granted = one(self.operator.ask::<call::BlobGet>(&request).await);
        granted.map_err(|refusal| match refusal.code {
            Code::ObjectMissing | Code::AskedTooMuch => refusal,
            code if self.audits => {
                let detail = format!("{code} {}: {}", code.title(), refusal.detail);
                Refusal::new(Code::StoreUnreachable, detail)
            }
            _ => refusal,
        })
    }
}

fn one(granted: Result<Grants, Failure>) -> Result<Grant, Refusal> {
    let mut granted = granted.map_err(|failure| failure.refusal().clone())?;
    granted
        .grants
        .pop()
        .ok_or_else(|| Refusal::new(Code::MessageInvalid, "an answer without a grant"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_do_not_have_their_digest_are_evidence_but_for_an_audit() {
        let code = |code, audits| of_download(Failure::new(code, "why"), audits).code();
        for altered in [Code::ObjectMismatch, Code::ObjectTooLarge] {
            assert_eq!(code(altered, false), Code::ObjectAltered);
            assert_eq!(code(altered, true), altered);
        }
        assert_eq!(code(Code::ObjectMissing, false), Code::ObjectMissing);
        let failed = of_download(Failure::new(Code::ObjectMismatch, "sha256:ab"), false);
        assert_eq!(failed.refusal().detail, "sha256:ab");
    }
}
