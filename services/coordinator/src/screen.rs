//! The check of results: the statement's signature, then each chunk's length, hash and numbers, then its promotion. A
//! chunk that is announced ahead of its submit is checked while its worker makes the next one.

use std::collections::BTreeMap;
use std::sync::Arc;

use coordinator_core::{Quarantine, Screened, Submission};
use identity::event::verify_statement;
use merge::ChunkStatistics;
use objects::ObjectError;
use schemas::contribution::Outcome;
use schemas::lease::LeaseRef;
use schemas::{Code, Digest, ObjectRef, PublicKey, Refusal, RunId, WorkerId};
use tokio::task::JoinHandle;

use crate::context::RunContext;
use crate::store::{Kept, Store, incoming_key, refusal};

/// Largest magnitude of a value in a contribution. An outer step over values this large stays far from the end of fp32
/// under any momentum that a run may have; real ones are below 1e3. Beyond it a finite contribution could leave weights that
/// are not.
const MAGNITUDE_MAX: f32 = 1e30;

/// A chunk that may be merged.
#[derive(Debug)]
pub(crate) struct Chunk {
    statistics: ChunkStatistics,
    /// Its bytes, if there was room to keep them.
    kept: Option<Kept>,
}

/// The chunks of an accepted contribution that were kept in memory, by position.
pub(crate) type KeptChunks = Vec<Option<Kept>>;

/// A chunk that is being checked ahead of its submit.
#[derive(Debug)]
pub(crate) struct Ahead {
    object: ObjectRef,
    check: JoinHandle<Result<Chunk, Refusal>>,
}

/// Checks ahead by position in the layout.
pub(crate) type Staged = BTreeMap<u32, Ahead>;

impl Drop for Ahead {
    fn drop(&mut self) {
        self.check.abort();
    }
}

/// Whose chunk is checked, and under which lease it was uploaded.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) run: RunId,
    pub(crate) lease: LeaseRef,
    pub(crate) worker: WorkerId,
}

/// Starts to check a chunk ahead; the same chunk once.
pub(crate) fn stage(
    staged: &mut Staged,
    store: &Store,
    context: &Arc<RunContext>,
    source: Source,
    index: u32,
    object: ObjectRef,
) {
    if staged.get(&index).is_some_and(|ahead| ahead.object == object) {
        return;
    }
    let (store, context) = (store.clone(), Arc::clone(context));
    let check = tokio::spawn(async move { check_chunk(&store, &context, &source, index as usize, object).await });
    staged.insert(index, Ahead { object, check });
}

/// Checks a whole result. What of it is in memory comes back beside the verdict.
pub(crate) async fn check(
    store: &Store,
    context: &Arc<RunContext>,
    domain: &str,
    worker: &WorkerId,
    audit_key: &PublicKey,
    submission: &Submission,
    mut staged: Staged,
) -> Result<(Screened, KeptChunks), Refusal> {
    let statement = Digest::of(&submission.bytes);
    verify_statement(domain, audit_key, &submission.signature, &submission.bytes)
        .map_err(|error| Refusal::new(Code::StatementInvalid, error.to_string()))?;
    let contribution = match &submission.statement.outcome {
        Outcome::Evaluation(_) => return Ok((Screened { statement, norm: 0.0 }, Vec::new())),
        Outcome::Contribution(contribution) => contribution,
    };
    // The core has compared layout, codec and number of chunks with the run's.
    let source = Source { run: context.spec.run.clone(), lease: submission.statement.lease, worker: worker.clone() };
    let checks: Vec<Ahead> = (0_u32..)
        .zip(&contribution.chunks)
        .map(|(index, object)| match staged.remove(&index).filter(|ahead| ahead.object == *object) {
            Some(ahead) => ahead,
            None => {
                let mut one = Staged::new();
                stage(&mut one, store, context, source.clone(), index, *object);
                one.remove(&index).expect("it was just started")
            }
        })
        .collect();
    let mut whole = ChunkStatistics::default();
    let mut kept = KeptChunks::with_capacity(checks.len());
    for (index, mut ahead) in checks.into_iter().enumerate() {
        let chunk = match (&mut ahead.check).await {
            Ok(Ok(chunk)) => chunk,
            Ok(Err(refusal)) => return Err(refusal),
            Err(error) => return Err(Refusal::new(Code::Internal, format!("check of chunk {index}: {error}"))),
        };
        whole.add(chunk.statistics);
        kept.push(chunk.kept);
    }
    let (lease, in_memory) = (source.lease, kept.iter().flatten().count());
    let (run, round, chunks) = (&source.run, lease.unit.round.get(), kept.len());
    tracing::info!(%run, round, %lease, chunks, in_memory, "contribution screened");
    Ok((Screened { statement, norm: whole.norm() }, kept))
}

/// Reads a chunk from quarantine, looks at its numbers, promotes it.
async fn check_chunk(
    store: &Store,
    context: &RunContext,
    source: &Source,
    index: usize,
    object: ObjectRef,
) -> Result<Chunk, Refusal> {
    let Some(elements) = context.chunks.get(index).map(|chunk| chunk.range().len()) else {
        return Err(Refusal::new(Code::LayoutMismatch, format!("chunk {index} of {}", context.chunks.len())));
    };
    let codec = context.spec.upload.kind;
    let expected = merge::codec::encoded_bytes(codec, elements) as u64;
    if object.bytes.get() != expected {
        let detail = format!("chunk {index} has {} bytes, layout and codec give {expected}", object.bytes);
        return Err(Refusal::new(Code::SizeMismatch, detail));
    }
    let Source { run, lease, worker } = source;
    let place = Quarantine::Worker { run: run.clone(), round: lease.unit.round, worker: worker.clone() };
    let key = incoming_key(&place, object.digest);
    let permit = store.transfer().await;
    let bytes = match store.buckets.get_incoming(&key, object).await {
        Ok(bytes) => bytes,
        // Promoted before a restart, and swept from quarantine since.
        Err(ObjectError::Missing { .. }) => store.buckets.get(object.digest).await.map_err(|error| refusal(&error))?,
        Err(error) => return Err(refusal(&error)),
    };
    let screening = bytes.clone();
    let statistics = tokio::task::spawn_blocking(move || merge::screen(codec, &screening, elements)).await;
    let statistics = statistics
        .map_err(|error| Refusal::new(Code::Internal, format!("screen of chunk {index}: {error}")))?
        .map_err(|error| Refusal::new(error.code(), format!("chunk {index}: {error}")))?;
    if statistics.abs_max > MAGNITUDE_MAX {
        let detail =
            format!("chunk {index} holds a value of magnitude {:e}, at most {MAGNITUDE_MAX:e}", statistics.abs_max);
        return Err(Refusal::new(Code::NormOutlier, detail));
    }
    store.buckets.promote(&key, object).await.map_err(|error| refusal(&error))?;
    let kept = store.keep(bytes);
    drop(permit);
    Ok(Chunk { statistics, kept })
}
