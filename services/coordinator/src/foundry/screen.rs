//! The check of results: the statement's signature, the list of chunks if there is one, each
//! chunk's length, hash and numbers, the norm of the whole, and then the promotion of all. A chunk
//! that is announced before its submit is checked while its worker makes the next one. Only objects
//! that a good result names reach `blobs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use coordinator_core::{Quarantine, check_norm};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use identity::dsse::verify_provenance;
use identity::event::verify_statement;
use merge::ChunkStatistics;
use objects::{IncomingKey, ObjectError};
use schemas::contribution::{Outcome, Statement};
use schemas::foundry::{Screened, SignedProvenance};
use schemas::lease::LeaseRef;
use schemas::provenance::{HandedIn, Provenance};
use schemas::{Chunks, Code, Digest, Listed, ObjectRef, PublicKey, Refusal, RunId, WorkerId};

use super::staged::{CHECKS_MAX, Check, Checks, Content};
use crate::store::{Kept, Store, incoming_key, refusal};
use recompute::RunContext;

/// Largest magnitude of a value in a contribution, or in the weights that a run begins with. Real
/// values are below 1e3. If finite values far above that were merged, every worker's loss would
/// overflow, and nothing would bring the weights back.
pub(crate) const MAGNITUDE_MAX: f32 = 1e6;

/// Promotions of one contribution at a time. Each is a copy within the store, so its bytes do not
/// pass through here.
const PROMOTIONS_MAX: usize = 16;

/// A chunk that may be merged.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Its place in quarantine.
    key: IncomingKey,
    object: ObjectRef,
    statistics: ChunkStatistics,
    /// Its bytes, if there was room to keep them. Each place of the chunk shares them.
    kept: Option<Arc<Kept>>,
}

/// The chunks of an accepted contribution that were kept in memory, by position.
pub(crate) type KeptChunks = Vec<Option<Arc<Kept>>>;

/// The checks of one lease.
pub(crate) type Staged = Checks<Chunk>;

/// The worker whose chunk is checked, and the lease under which it was uploaded.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) run: RunId,
    pub(crate) lease: LeaseRef,
    pub(crate) worker: WorkerId,
}

/// A statement as it was signed.
#[derive(Clone, Copy)]
pub(crate) struct Signed<'a> {
    /// The key that must have signed it.
    pub(crate) audit_key: &'a PublicKey,
    pub(crate) bytes: &'a [u8],
    pub(crate) signature: &'a [u8; 64],
    /// The provenance that the same key must have signed; none for an evaluation.
    pub(crate) provenance: Option<&'a SignedProvenance>,
}

/// Begins to check a chunk, unless its bytes are being checked already: ahead of the result that
/// names it, or for another of its places.
///
/// # Errors
/// It cannot be a chunk at this place.
pub(crate) fn begin(
    staged: &mut Staged,
    store: &Store,
    context: &Arc<RunContext>,
    source: &Source,
    index: u32,
    object: ObjectRef,
) -> Result<Arc<Check<Chunk>>, Refusal> {
    let content = content(context, index, object)?;
    let (store, context, source) = (store.clone(), Arc::clone(context), source.clone());
    let work = check_chunk(store, context, source, index, content);
    Ok(staged.begin(index, content, work))
}

/// Checks a whole result. Returns the verdict, and the chunks that are in memory.
pub(crate) async fn check(
    store: &Store,
    context: &Arc<RunContext>,
    domain: &str,
    worker: &WorkerId,
    signed: Signed<'_>,
    statement: &Statement,
    mut staged: Staged,
) -> Result<(Screened, KeptChunks), Refusal> {
    let Signed {
        audit_key,
        bytes,
        signature,
        provenance,
    } = signed;
    verify_statement(domain, audit_key, signature, bytes)
        .map_err(|error| Refusal::new(Code::StatementInvalid, error.to_string()))?;
    let contribution = match &statement.outcome {
        Outcome::Evaluation(_) => {
            let found = Screened {
                norm: 0.0,
                listed: Vec::new(),
            };
            return Ok((found, Vec::new()));
        }
        Outcome::Contribution(contribution) => contribution,
    };
    let handed = HandedIn {
        spec: &context.spec,
        spec_digest: context.spec_digest,
        worker,
        lease: statement.lease,
        contribution,
        statement: Digest::of(bytes),
    };
    check_provenance(handed, domain, audit_key, provenance)?;
    // The core has compared layout, codec and number of chunks with those of the run.
    let source = Source {
        run: context.spec.run.clone(),
        lease: statement.lease,
        worker: worker.clone(),
    };
    let chunks = chunks(store, &source, &contribution.chunks).await?;
    let checks = (0_u32..).zip(chunks.clone()).map(|(index, object)| {
        let check = begin(&mut staged, store, context, &source, index, object);
        async move { check?.outcome().await }
    });
    // No more are begun than are read at a time: one that is not begun costs nothing.
    let mut checks = stream::iter(checks).buffered(CHECKS_MAX);
    let mut whole = ChunkStatistics::default();
    let mut kept = KeptChunks::with_capacity(chunks.len());
    let mut uploads = BTreeMap::new();
    while let Some(checked) = checks.next().await {
        let chunk = checked?;
        whole.add(chunk.statistics);
        kept.push(chunk.kept.clone());
        uploads.insert(chunk.object, chunk.key.clone());
    }
    drop(checks);
    let norm = check_norm(whole.norm(), &context.spec, source.lease.unit.round)?;
    let mut listed = Vec::new();
    if let Some(Listed { list, .. }) = contribution.chunks.listed() {
        uploads.insert(list, source.key(list.digest));
        listed.extend(chunks.iter().map(|chunk| chunk.digest));
    }
    promote(store, &source.lease, uploads).await?;
    let (lease, in_memory) = (source.lease, kept.iter().flatten().count());
    let (run, round, chunks) = (&source.run, lease.unit.round.get(), kept.len());
    tracing::info!(%run, round, %lease, chunks, in_memory, "contribution screened");
    Ok((Screened { norm, listed }, kept))
}

/// Checks that the worker signed what its contribution was made from.
///
/// # Errors
/// [`Code::ProvenanceInvalid`].
fn check_provenance(
    handed: HandedIn<'_>,
    domain: &str,
    audit_key: &PublicKey,
    provenance: Option<&SignedProvenance>,
) -> Result<(), Refusal> {
    let invalid = |detail: String| Refusal::new(Code::ProvenanceInvalid, detail);
    let SignedProvenance { from, signature } =
        provenance.ok_or_else(|| invalid("a contribution without provenance".to_owned()))?;
    let statement = Provenance::of_contribution(handed, from, domain, audit_key);
    verify_provenance(audit_key, &**signature, &statement.to_json()).map_err(|error| {
        let (lease, release) = (handed.lease, &from.release);
        let detail = format!(
            "{lease}: {audit_key} has not signed what the lease says, as release {release}: {error}"
        );
        invalid(detail)
    })
}

impl Source {
    /// The place of an upload under the lease.
    fn key(&self, digest: Digest) -> IncomingKey {
        let place = Quarantine::Worker {
            run: self.run.clone(),
            lease: self.lease,
            worker: self.worker.clone(),
        };
        incoming_key(&place, digest)
    }
}

/// The chunks of a contribution one by one. A list is read from the quarantine of its lease, like
/// the chunks themselves.
async fn chunks(
    store: &Store,
    source: &Source,
    chunks: &Chunks,
) -> Result<Vec<ObjectRef>, Refusal> {
    let listed = match chunks {
        Chunks::Named(chunks) => return Ok(chunks.clone()),
        Chunks::Listed(listed) => listed,
    };
    let _permit = store.transfer().await;
    let list = listed.list;
    let key = source.key(list.digest);
    let bytes = store.buckets.get_incoming(&key, list).await;
    let bytes =
        bytes.map_err(|error| missing(&source.lease, &"the list of chunks", list, &error))?;
    listed.read(&bytes)
}

/// An object as chunk `index` of a contribution, of which layout and codec give the length.
fn content(context: &RunContext, index: u32, object: ObjectRef) -> Result<Content, Refusal> {
    let Some(chunk) = context.chunks.get(index as usize) else {
        return Err(Refusal::new(
            Code::LayoutMismatch,
            format!("chunk {index} of {}", context.chunks.len()),
        ));
    };
    let elements = chunk.range().len();
    let expected = merge::codec::encoded_bytes(context.spec.upload.kind, elements) as u64;
    if object.bytes.get() != expected {
        let detail = format!(
            "chunk {index} has {} bytes, layout and codec give {expected}",
            object.bytes
        );
        return Err(Refusal::new(Code::SizeMismatch, detail));
    }
    Ok(Content { object, elements })
}

/// Reads a chunk from the quarantine of its lease and looks at its numbers. An object with the same
/// digest in `blobs` does not count: it may be the base weights, or another worker's.
async fn check_chunk(
    store: Store,
    context: Arc<RunContext>,
    source: Source,
    index: u32,
    content: Content,
) -> Result<Chunk, Refusal> {
    let Content { object, elements } = content;
    let codec = context.spec.upload.kind;
    let key = source.key(object.digest);
    let permit = store.transfer().await;
    let bytes = store
        .buckets
        .get_incoming(&key, object)
        .await
        .map_err(|error| {
            let name = format_args!("chunk {index}");
            missing(&source.lease, &name, object, &error)
        })?;
    let screening = bytes.clone();
    // Masked words are no numbers: any of them is as good as any other.
    let masked = context.spec.secure_aggregation.is_some();
    let statistics = tokio::task::spawn_blocking(move || match masked {
        true => Ok(ChunkStatistics::default()),
        false => merge::screen(codec, &screening, elements),
    });
    let statistics = statistics
        .await
        .map_err(|error| Refusal::new(Code::Internal, format!("screen of chunk {index}: {error}")))?
        .map_err(|error| Refusal::new(error.code(), format!("chunk {index}: {error}")))?;
    if statistics.abs_max > MAGNITUDE_MAX {
        let detail = format!(
            "chunk {index} holds a value of magnitude {:e}, at most {MAGNITUDE_MAX:e}",
            statistics.abs_max
        );
        return Err(Refusal::new(Code::NormOutlier, detail));
    }
    let kept = store.keep(object.digest, bytes).map(Arc::new);
    drop(permit);
    Ok(Chunk {
        key,
        object,
        statistics,
        kept,
    })
}

/// Copies the chunks of a good result, and their list, to `blobs`. They count once the ledger says
/// so.
async fn promote(
    store: &Store,
    lease: &LeaseRef,
    uploads: BTreeMap<ObjectRef, IncomingKey>,
) -> Result<(), Refusal> {
    let promotions = uploads.into_iter().map(|(object, key)| async move {
        let promoted = store.promote(&key, object).await;
        promoted.map_err(|error| missing(lease, &"an object of the result", object, &error))
    });
    let promotions: Vec<_> = promotions.collect();
    stream::iter(promotions)
        .buffer_unordered(PROMOTIONS_MAX)
        .try_for_each(|_| async { Ok(()) })
        .await
}

/// The refusal for an object that is not in the quarantine of the lease: it was not uploaded under
/// this lease, even if the store has it elsewhere.
fn missing(
    lease: &LeaseRef,
    what: &dyn std::fmt::Display,
    object: ObjectRef,
    error: &ObjectError,
) -> Refusal {
    match error {
        ObjectError::Missing { .. } => {
            let detail = format!(
                "{what}, {}, was not uploaded under lease {lease}",
                object.digest
            );
            Refusal::new(Code::UploadMissing, detail)
        }
        error => refusal(error),
    }
}
