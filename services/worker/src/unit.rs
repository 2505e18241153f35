//! The work on one lease, step by step: fetch, train or evaluate, upload. Each step is a future,
//! which the service drops when the lease is lost.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use data::{HeldOut, UnitSampler};
use futures::{StreamExt as _, TryStreamExt as _};
use identity::TrustSource;
use masking::{Disclosures, FixedPoint, Masks, Part};
use merge::{SeededRounding, contribution_seed};
use schemas::call::worker as call;
use schemas::contribution::{Evaluation, StageRequest};
use schemas::data::Shard;
use schemas::layout::Chunk;
use schemas::lease::{LeaseRef, Manifest, UnitKind, Weights, Work};
use schemas::limits::OBJECT_BYTES_MAX;
use schemas::run::{CodecKind, RunSpec};
use schemas::{Chunks, Code, Digest, Fragment, Millis, ObjectRef, Refusal, V};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trainer::Alpha;
use worker_core::{Agreed, Trained, WorkId};

use crate::asker::Asker;
use crate::assets::Assets;
use crate::engine::{Capture, EncodedChunks, Engine, Evaluating, Opening, Training};
use crate::masking::{Masking, reveal};
use crate::meter::{Meter, WorkLane};
use crate::object_client::{ObjectClient, TRANSFERS_MAX};
use crate::shard_cache::ShardCache;
use crate::state::StateFolder;

/// Longest wait for the answer to a hint.
const STAGE_PATIENCE: Millis = Millis::from_secs(5);

/// Tools for the work of every lease of a run.
#[derive(Clone)]
pub(crate) struct UnitTools {
    pub(crate) asker: Asker,
    pub(crate) object_client: ObjectClient,
    pub(crate) shard_cache: ShardCache,
    pub(crate) engine: Engine,
    pub(crate) meter: Arc<Meter>,
    pub(crate) state: StateFolder,
    /// The trust domain of the run.
    pub(crate) domain: Arc<str>,
    /// The keys of its coordinators.
    pub(crate) trust: TrustSource,
    pub(crate) spec: Arc<RunSpec>,
    pub(crate) spec_digest: Digest,
    pub(crate) assets: Arc<OnceCell<Assets>>,
    /// The last lease under which a contribution has left this process.
    pub(crate) disclosed: Arc<Mutex<Option<LeaseRef>>>,
    /// Sums that this process has revealed shares for.
    pub(crate) disclosures: Arc<Mutex<Disclosures>>,
    /// Hints that are sent beside the work.
    pub(crate) hints: TaskTracker,
    /// Shares that are still to be revealed. The end of the process waits for them.
    pub(crate) reveals: TaskTracker,
}

/// One lease's work.
#[derive(Clone)]
pub(crate) struct Unit {
    pub(crate) work: WorkId,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) tools: UnitTools,
    pub(crate) stop: CancellationToken,
    /// The text that the unit reads; present from the fetch until the steps begin.
    pub(crate) text: Arc<Mutex<Option<Text>>>,
    /// The agreement on masks; present from the fetch until the upload, in a run that has them.
    pub(crate) part: Arc<Mutex<Option<Part>>>,
}

/// The sequences of a unit.
pub(crate) enum Text {
    Train(Box<UnitSampler>),
    Evaluate(HeldOut),
}

impl Unit {
    /// Fetches data into memory and base weights into the trainer, at the same time.
    pub(crate) async fn fetch(&self) -> Result<Option<Box<Agreed>>, Refusal> {
        self.check_not_disclosed()?;
        let _timed = self.tools.meter.timed(WorkLane::Fetch);
        let UnitTools {
            object_client,
            engine,
            state,
            domain,
            spec,
            spec_digest,
            ..
        } = &self.tools;
        let assets = self
            .tools
            .assets
            .get_or_try_init(|| Assets::fetch(object_client, spec))
            .await?;
        let shards = assets.shards(&self.manifest.work)?;
        let opening = Opening {
            model: assets.model.clone(),
            precision: spec.model.precision,
            fragments: assets.fragments(),
            inner: state.inner(&spec.run, *spec_digest),
            owner: format!("{domain}/{}/{spec_digest}", spec.run),
            error_feedback: spec.error_feedback,
            privacy: spec.privacy,
            masked: spec.secure_aggregation.is_some(),
        };
        engine.open(opening).await?;
        let text = self.fetch_text(assets, shards);
        let (text, (), part) = tokio::try_join!(text, self.fetch_base(assets), self.agree())?;
        *self.text.lock().expect("no holder panics") = Some(text);
        let (part, agreed) = part.unzip();
        *self.part.lock().expect("no holder panics") = part;
        Ok(agreed.map(Box::new))
    }

    /// Agrees on masks with the other workers of the round, in a run that has them.
    async fn agree(&self) -> Result<Option<(Part, Agreed)>, Refusal> {
        let lease = self.manifest.lease;
        let aggregation = self.tools.spec.secure_aggregation;
        let aggregation = aggregation.filter(|_| lease.unit.kind == UnitKind::Train);
        let Some(aggregation) = aggregation else {
            return Ok(None);
        };
        let masking = Masking {
            asker: &self.tools.asker,
            trust: &self.tools.trust,
            spec: &self.tools.spec,
            spec_digest: self.tools.spec_digest,
            aggregation,
            lease,
        };
        Box::pin(masking.agree()).await.map(Some)
    }

    /// Takes the agreement on masks, which masks one contribution and no other. A run with secure
    /// aggregation sends nothing without it.
    fn take_masks(&self) -> Result<Option<(Part, Arc<Masks>)>, Refusal> {
        let spec = &self.tools.spec;
        let Some(aggregation) = spec.secure_aggregation else {
            return Ok(None);
        };
        let part = self.part.lock().expect("no holder panics").take();
        let missing = || {
            let detail = "the masks of this lease have masked a contribution before";
            Refusal::new(Code::CohortOver, detail)
        };
        let part = part.ok_or_else(missing)?;
        let fixed = FixedPoint::new(aggregation.largest, spec.schedule.units);
        let masks = part.masks(fixed);
        let masks = masks.map_err(|error| Refusal::new(error.code(), error.to_string()))?;
        Ok(Some((part, Arc::new(masks))))
    }

    /// Refuses a lease of a private run under which a contribution has left this process: the
    /// coordinator counts one for each grant. That happens when a worker gives a lease up that the
    /// coordinator knows nothing of, and gets it again.
    fn check_not_disclosed(&self) -> Result<(), Refusal> {
        let lease = self.manifest.lease;
        let disclosed = *self.tools.disclosed.lock().expect("no holder panics");
        if self.tools.spec.privacy.is_none() || disclosed != Some(lease) {
            return Ok(());
        }
        let detail = format!("a contribution under lease {lease} has left this worker");
        Err(Refusal::new(Code::DisclosedBefore, detail))
    }

    async fn fetch_text(&self, assets: &Assets, shards: Vec<Shard>) -> Result<Text, Refusal> {
        let objects: Vec<ObjectRef> = shards.iter().map(|shard| shard.object).collect();
        let UnitTools {
            shard_cache,
            object_client,
            ..
        } = &self.tools;
        let shards = shard_cache
            .get(object_client, &objects, assets.data.vocabulary)
            .await?;
        let length = self.tools.spec.schedule.sequence_tokens as usize;
        let text = match self.manifest.work {
            Work::Train { seed, .. } => {
                UnitSampler::new(shards, seed, length).map(|text| Text::Train(Box::new(text)))
            }
            Work::Evaluate { sequences, .. } => {
                HeldOut::new(shards, sequences as usize, length).map(Text::Evaluate)
            }
        };
        text.map_err(Refusal::from)
    }

    /// Fetches the base weights. A chunk is decoded into its place while the next ones arrive; few
    /// are in memory.
    async fn fetch_base(&self, assets: &Assets) -> Result<(), Refusal> {
        let UnitTools {
            object_client,
            engine,
            ..
        } = &self.tools;
        let base: &Weights = &self.manifest.base;
        // The digest over the chunks alone does not say how they are encoded.
        let name = Digest::of(
            &[
                base.digest().as_bytes().as_slice(),
                &[base.codec.kind.number()],
            ]
            .concat(),
        );
        let alpha = Alpha::TAKE_OVER;
        let mut missing = vec![];
        for fragment in assets.fragment_numbers() {
            if !engine.expect(fragment, name, alpha).await? {
                missing.push(fragment);
            }
        }
        if !missing.is_empty() {
            let chunks = object_client.chunks(&base.chunks).await?;
            check_lengths(&assets.chunks, base.codec.kind, &chunks)?;
            let wanted: Vec<(&Chunk, ObjectRef)> = assets
                .chunks
                .iter()
                .zip(chunks)
                .filter(|(chunk, _)| missing.contains(&Fragment(chunk.fragment)))
                .collect();
            let objects: Vec<ObjectRef> = wanted.iter().map(|(_, object)| *object).collect();
            let mut arriving = std::pin::pin!(object_client.stream(&objects));
            while let Some(item) = arriving.next().await {
                let (position, bytes) = item?;
                let (chunk, _) = wanted[position];
                let (fragment, range) = (Fragment(chunk.fragment), chunk.range());
                engine.load(fragment, base.codec.kind, range, bytes).await?;
            }
        }
        for fragment in assets.fragment_numbers() {
            engine.blend(fragment, name, alpha).await?;
        }
        if missing.is_empty() {
            tracing::info!(lease = %self.manifest.lease, round = base.round.get(), "base weights were here");
            return Ok(());
        }
        tracing::info!(lease = %self.manifest.lease, round = base.round.get(), "base weights loaded");
        Ok(())
    }

    /// Does the inner steps.
    pub(crate) async fn train(&self) -> Result<Trained, Refusal> {
        let (
            Work::Train {
                steps,
                steps_before,
                ..
            },
            Some(Text::Train(sampler)),
        ) = (&self.manifest.work, self.take_text())
        else {
            return Err(Refusal::new(
                Code::Internal,
                "training was asked for without a training unit's text",
            ));
        };
        let spec = &self.tools.spec;
        let training = Training {
            work: self.work,
            stop: self.stop.clone(),
            sampler: *sampler,
            optimizer: spec.inner.clone(),
            steps: *steps,
            steps_before: *steps_before,
            steps_total: spec.inner_steps_total(),
            sequences: spec.schedule.batch_sequences,
            accumulation: spec.schedule.accumulation,
            sequence_tokens: spec.schedule.sequence_tokens,
        };
        let trained = self.tools.engine.train(training).await?;
        let (lease, round) = (self.manifest.lease, self.manifest.lease.unit.round.get());
        tracing::info!(%lease, round, train_ms = trained.train_ms, "inner steps done");
        Ok(trained)
    }

    /// Computes the held-out loss.
    pub(crate) async fn evaluate(&self) -> Result<Evaluation, Refusal> {
        let Some(Text::Evaluate(held_out)) = self.take_text() else {
            return Err(Refusal::new(
                Code::Internal,
                "an evaluation was asked for without held-out text",
            ));
        };
        let schedule = &self.tools.spec.schedule;
        let evaluating = Evaluating {
            work: self.work,
            stop: self.stop.clone(),
            held_out,
            batch_sequences: schedule.batch_sequences / schedule.accumulation.max(1),
            sequence_tokens: schedule.sequence_tokens,
        };
        self.tools.engine.evaluate(evaluating).await
    }

    /// Encodes, hashes and uploads chunk by chunk, several at the same time; then uploads their
    /// list, if the run has lists.
    pub(crate) async fn upload(&self) -> Result<Chunks, Refusal> {
        let UnitTools {
            engine,
            spec,
            assets,
            ..
        } = &self.tools;
        let unit = self.manifest.lease.unit;
        *self.tools.disclosed.lock().expect("no holder panics") = Some(self.manifest.lease);
        let (part, masks) = self.take_masks()?.unzip();
        let assets = assets.get().expect("the fetch of this unit got them");
        let rounding = SeededRounding {
            rule: spec.upload.rounding,
            seed: contribution_seed(spec.seed, unit.round, unit.index),
            first_element: 0,
        };
        let mut encoded = Vec::new();
        for fragment in assets.fragment_numbers() {
            let of_fragment = |(_, chunk): &(usize, Chunk)| chunk.fragment == fragment.0;
            let chunks = assets.chunks.iter().copied().enumerate();
            let capture = Capture {
                work: self.work,
                fragment,
                stop: self.stop.clone(),
                codec: spec.upload.kind,
                rounding,
                chunks: chunks.filter(of_fragment).collect(),
            };
            encoded.push(engine.capture(capture).await?);
        }
        let count = assets.chunks.len();
        let _timed = self.tools.meter.timed(WorkLane::Upload);
        let upload = |index: usize, bytes| {
            let start = assets.chunks.get(index).map_or(0, |chunk| chunk.start);
            let masks = masks.clone().map(|masks| (masks, start));
            self.upload_chunk(index, bytes, masks)
        };
        let objects = upload_all(encoded, upload).await?;
        if objects.len() != count {
            return Err(Refusal::new(
                Code::Interrupted,
                format!("{} of {count} chunks were encoded", objects.len()),
            ));
        }
        let (chunks, list) = spec.name_chunks(objects);
        if let Some(list) = list {
            let object = ObjectRef::of(&list);
            let lease = self.manifest.lease;
            self.tools
                .object_client
                .put(lease, object, list.into())
                .await?;
        }
        if let Some(part) = part {
            let asker = self.tools.asker.clone();
            let lease = self.manifest.lease;
            let disclosures = Arc::clone(&self.tools.disclosures);
            let reveals = &self.tools.reveals;
            reveals.spawn(reveal(asker, lease, part, disclosures));
        }
        tracing::info!(lease = %self.manifest.lease, round = unit.round.get(), "contribution uploaded");
        Ok(chunks)
    }

    /// Uploads a chunk, masked by the masks at its place if there are any.
    async fn upload_chunk(
        &self,
        index: usize,
        bytes: Bytes,
        masks: Option<(Arc<Masks>, u64)>,
    ) -> Result<ObjectRef, Refusal> {
        let made = tokio::task::spawn_blocking(move || {
            let bytes = match masks {
                None => bytes,
                Some((masks, start)) => masked(&masks, start, &bytes, index)?,
            };
            Ok::<_, Refusal>((ObjectRef::of(&bytes), bytes))
        });
        let made = made.await;
        let (object, bytes) =
            made.map_err(|error| Refusal::new(Code::Internal, error.to_string()))??;
        let lease = self.manifest.lease;
        self.tools.object_client.put(lease, object, bytes).await?;
        let index = u32::try_from(index).expect("a layout has few chunks");
        let (asker, stage) = (
            self.tools.asker.clone(),
            StageRequest {
                v: V,
                lease,
                index,
                object,
            },
        );
        self.tools.hints.spawn(async move {
            let hinted = asker.call::<call::Stage>(&stage, STAGE_PATIENCE).await;
            if let Err(refusal) = hinted {
                tracing::debug!(%refusal, index, "the hint about a chunk was not taken");
            }
        });
        Ok(object)
    }

    fn take_text(&self) -> Option<Text> {
        self.text.lock().expect("no holder panics").take()
    }
}

/// A chunk under its masks. What does not fit is named in this worker's log and nowhere else.
fn masked(masks: &Masks, start: u64, bytes: &[u8], index: usize) -> Result<Bytes, Refusal> {
    let mut bytes = bytes.to_vec();
    masks.mask(&mut bytes, start).map_err(|error| {
        tracing::warn!(%error, chunk = index, "the contribution cannot be masked");
        Refusal::new(Code::MaskRange, format!("chunk {index}: {error}"))
    })?;
    Ok(bytes.into())
}

/// Compares the weights' chunks with the layout, before any of them is fetched.
fn check_lengths(layout: &[Chunk], codec: CodecKind, chunks: &[ObjectRef]) -> Result<(), Refusal> {
    for (index, (chunk, object)) in layout.iter().zip(chunks).enumerate() {
        let expected = codec.encoded_bytes(chunk.elements);
        if object.bytes.get() != expected || object.bytes > OBJECT_BYTES_MAX {
            let bytes = object.bytes;
            let detail =
                format!("chunk {index} has {bytes} bytes, layout and codec give {expected}");
            return Err(Refusal::new(Code::ManifestInvalid, detail));
        }
    }
    Ok(())
}

/// Uploads chunks as they are made, several at the same time. The first failure ends the others and
/// the encoding, since a contribution needs all its chunks.
async fn upload_all<F>(
    encoded: Vec<EncodedChunks>,
    upload: impl Fn(usize, Bytes) -> F,
) -> Result<Vec<ObjectRef>, Refusal>
where
    F: Future<Output = Result<ObjectRef, Refusal>>,
{
    let encoded = futures::stream::iter(encoded).flat_map(|chunks| {
        futures::stream::unfold(chunks, |mut chunks| async {
            Some((chunks.recv().await?, chunks))
        })
    });
    let uploads = encoded.map(async |chunk| {
        let (index, bytes) = chunk?;
        Ok::<_, Refusal>((index, upload(index, bytes).await?))
    });
    let mut uploaded: Vec<(usize, ObjectRef)> = uploads
        .buffer_unordered(TRANSFERS_MAX)
        .try_collect()
        .await?;
    uploaded.sort_unstable_by_key(|(index, _)| *index);
    Ok(uploaded.into_iter().map(|(_, object)| object).collect())
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn the_first_upload_that_fails_ends_the_others_and_the_encoding() {
        let (chunks, encoded) = mpsc::channel(1);
        let encoding = tokio::spawn(async move {
            let mut made = 0;
            while made < 1000 && chunks.send(Ok((made, Bytes::new()))).await.is_ok() {
                made += 1;
            }
            made
        });
        let uploaded = upload_all(vec![encoded], async |index, _| match index {
            3 => Err(Refusal::new(Code::StoreFull, "no room")),
            // Some uploads under way have not ended yet, before it and after it.
            0 | 4..8 => std::future::pending().await,
            _ => Ok(ObjectRef::of(b"chunk")),
        });
        assert_eq!(
            uploaded.await.expect_err("one failed").code,
            Code::StoreFull
        );
        let made = encoding.await.expect("it ends by itself");
        assert!(made < 4 + 2 * TRANSFERS_MAX, "{made} chunks were encoded");
    }

    #[test]
    fn chunks_of_other_lengths_than_the_layout_gives_are_not_fetched() {
        let chunk = |start, elements| Chunk {
            fragment: 0,
            start,
            elements,
        };
        let layout = [chunk(0, 8), chunk(8, 5)];
        let object = |bytes| ObjectRef {
            digest: Digest::of(b"chunk"),
            bytes: schemas::Bytes(bytes),
        };
        let check = |lengths: [u64; 2]| {
            let found = check_lengths(&layout, CodecKind::Bf16, &lengths.map(object));
            found.map_err(|refusal| refusal.code)
        };
        assert_eq!(check([16, 10]), Ok(()));
        // The sum is the same.
        assert_eq!(check([10, 16]), Err(Code::ManifestInvalid));
        assert_eq!(check([16, 20]), Err(Code::ManifestInvalid));
    }

    #[tokio::test]
    async fn uploads_keep_their_order() {
        let (chunks, encoded) = mpsc::channel(20);
        for index in 0..20_usize {
            chunks
                .try_send(Ok((index, Bytes::new())))
                .expect("there is room");
        }
        drop(chunks);
        let uploaded = upload_all(vec![encoded], async |index, _| {
            Ok(ObjectRef::of(&index.to_le_bytes()))
        })
        .await;
        let expected: Vec<ObjectRef> = (0..20_usize)
            .map(|index| ObjectRef::of(&index.to_le_bytes()))
            .collect();
        assert_eq!(uploaded.expect("none failed"), expected);
    }
}
