//! A real domain, broker, store and coordinator, with an operator and workers that the test drives.
//! These can also send messages that no honest program sends.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use harness::{Cluster, Operator, Options, Scripted};
use identity::AuditKey;
use merge::SeededRounding;
use merge::codec::{decode, encode, encode_difference, encoded_bytes};
use model::{ModelConfig, ReferenceConfig};
use objects::{Regrant, Transfer, TransferLimits, Trust};
use runtime::{Bus, BusError};
use schemas::blob::{Grant, Grants};
use schemas::contribution::{StageRequest, Statement, SubmitReply};
use schemas::control::{OperatorObjects, RunNew, RunNewReply};
use schemas::data::Shard;
use schemas::layout::{Chunk, Layout};
use schemas::lease::{Done, Manifest, Weights};
use schemas::limits::NAMED_CHUNKS_MAX;
use schemas::permission::Role;
use schemas::run::{Codec, InnerOptimizer, RunSpec};
use schemas::subject::{
    ControlVerb, LEDGER_FILTER, LEDGER_STREAM, Verb, WORK_CONSUMER, WORK_STREAM,
};
use schemas::{Chunks, Digest, Message, Millis, ObjectRef, Refusal, Steps, Tokens, V};

pub(crate) const WAIT: Duration = Duration::from_secs(30);
pub(crate) const CODEC: Codec = kit::BF16;
const CHUNK_ELEMENTS: u64 = 70_000;
/// Elements of a chunk of a run with lists: this gives more chunks than an event names.
const LISTED_CHUNK_ELEMENTS: u64 = 600;

pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) operator: Operator,
    pub(crate) transfer: Transfer,
    pub(crate) layout: Layout,
    chunk_elements: u64,
}

/// A scripted worker that can encode and decode the run's weights.
pub(crate) struct Worker {
    pub(crate) scripted: Scripted,
    pub(crate) spec: RunSpec,
    chunks: Vec<Chunk>,
}

/// Objects in one order of an operator.
const IMPORTS_AT_A_TIME: usize = 128;

struct NoOther;

#[async_trait::async_trait]
impl Regrant for NoOther {
    async fn regrant(&self, digest: Digest) -> Result<Grant, Refusal> {
        panic!("the first url for {digest} was not good enough");
    }
}

/// The model that the run names; no test here trains it.
fn model() -> ModelConfig {
    model_of(300)
}

/// The same model with another width.
pub(crate) fn model_of(hidden: u32) -> ModelConfig {
    ModelConfig::Reference(ReferenceConfig {
        vocabulary: 256,
        context: 8,
        embedding: 32,
        hidden,
    })
}

fn deadline() -> tokio::time::Instant {
    tokio::time::Instant::now() + WAIT
}

impl Scene {
    /// Starts everything, and a run of `rounds` rounds of two units.
    pub(crate) async fn start(rounds: u64) -> Self {
        Self::of_chunks(rounds, CHUNK_ELEMENTS).await
    }

    /// Starts a run with so many chunks that they are listed.
    pub(crate) async fn start_listed(rounds: u64) -> Self {
        let scene = Self::of_chunks(rounds, LISTED_CHUNK_ELEMENTS).await;
        let chunks = scene.layout.chunks(LISTED_CHUNK_ELEMENTS);
        assert!(chunks.expect("few chunks").len() > NAMED_CHUNKS_MAX);
        scene
    }

    async fn of_chunks(rounds: u64, chunk_elements: u64) -> Self {
        let mut cluster = Cluster::bare(Options::default()).await;
        let ledger = cluster
            .connect(Role::LedgerProvisioner, Role::LedgerProvisioner.name())
            .await;
        make_ledger(&ledger).await;
        make_streams(&cluster.connect(Role::Provisioner, "provisioner").await).await;
        cluster.start_store().await;
        cluster.start_coordinator("coordinator").await;
        let operator = cluster.operator().await;
        let pem =
            std::fs::read(cluster.domain().layout().ca()).expect("the authority's certificate");
        let transfer =
            Transfer::new(&Trust::Authority(pem), TransferLimits::default()).expect("a client");
        // Three chunks, and a fourth in a fragment of its own.
        let mut layout = model().layout();
        layout
            .tensors
            .last_mut()
            .expect("a model has tensors")
            .fragment = 1;
        let scene = Self {
            cluster,
            operator,
            transfer,
            layout,
            chunk_elements,
        };
        scene.new_run(rounds).await;
        scene
    }

    async fn new_run(&self, rounds: u64) {
        let spec = self.spec(rounds).await;
        let reply: RunNewReply = self
            .operator
            .ask(ControlVerb::RunNew, &RunNew { v: V, spec })
            .await
            .expect("the run is taken");
        assert!(reply.created);
    }

    /// Uploads and commits objects as an operator does.
    pub(crate) async fn import(&self, contents: Vec<Bytes>) -> Vec<ObjectRef> {
        let mut objects = Vec::with_capacity(contents.len());
        for batch in contents.chunks(IMPORTS_AT_A_TIME) {
            objects.extend(self.import_batch(batch.to_vec()).await);
        }
        objects
    }

    async fn import_batch(&self, contents: Vec<Bytes>) -> Vec<ObjectRef> {
        let objects: Vec<ObjectRef> = contents.iter().map(|bytes| ObjectRef::of(bytes)).collect();
        let request = OperatorObjects {
            v: V,
            objects: objects.clone(),
        };
        let grants: Grants = self
            .operator
            .ask(ControlVerb::BlobPut, &request)
            .await
            .expect("granted");
        for (grant, bytes) in grants.grants.iter().zip(contents) {
            self.transfer
                .put(grant, bytes, &NoOther, deadline())
                .await
                .expect("uploaded");
        }
        let _: Done = self
            .operator
            .ask(ControlVerb::BlobCommit, &request)
            .await
            .expect("promoted");
        objects
    }

    /// A data set with shards of so many tokens.
    pub(crate) async fn data(
        &self,
        vocabulary: u32,
        train: &[usize],
        held_out: &[usize],
    ) -> ObjectRef {
        let data = match vocabulary {
            256 => kit::data(),
            _ => {
                let tokenizer = self.import(vec![Bytes::from_static(b"a tokenizer")]).await[0];
                kit::data().words(tokenizer, vocabulary)
            }
        };
        let token_bytes = schemas::data::token_bytes(vocabulary);
        let mut number = 0;
        let mut part = async |lengths: &[usize]| {
            let mut shards = Vec::new();
            for length in lengths {
                number += 1;
                let object = self
                    .import(vec![Bytes::from(vec![
                        number;
                        length * usize::from(token_bytes)
                    ])])
                    .await[0];
                shards.push(Shard {
                    object,
                    tokens: Tokens(*length as u64),
                });
            }
            shards
        };
        let (train, held_out) = (part(train).await, part(held_out).await);
        let data = data.train(train).held_out(held_out).build();
        self.import(vec![serde_json::to_vec(&data).expect("it is JSON").into()])
            .await[0]
    }

    pub(crate) async fn spec(&self, rounds: u64) -> RunSpec {
        let elements = self.layout.elements();
        let values: Vec<f32> = (0..elements)
            .map(|i| ((i * 31 % 1009) as f32 / 1009.0 - 0.5) * 0.1)
            .collect();
        let chunks = self.layout.chunks(self.chunk_elements).expect("few chunks");
        let piece = |chunk: &Chunk| {
            values[chunk.range()]
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        };
        let initial = self.import(chunks.iter().map(piece).collect()).await;
        let (initial, list) = Chunks::of_new_run(initial);
        if let Some(list) = list {
            self.import(vec![list.into()]).await;
        }
        let data = self.data(256, &[4096], &[1024]).await;
        let others = vec![self.layout.encode().into(), model().to_json().into()];
        let others = self.import(others).await;
        let inner = InnerOptimizer {
            final_ratio: 0.1,
            weight_decay: 0.0,
            ..InnerOptimizer::adamw(1e-3)
        };
        kit::run_spec()
            .run(self.cluster.run().clone())
            .config(others[1])
            .layout(others[0])
            .chunk_elements(self.chunk_elements)
            .initial(initial)
            .data(data)
            .rounds(rounds)
            .inner_steps(Steps(3))
            .sequence_tokens(8)
            .evaluation_sequences(1)
            .inner(inner)
            .lease(Millis::from_secs(10))
            .silence_max(Millis::from_secs(60))
            .norm_max(0.0)
            .strikes_max(100)
            .seed(11)
            .build()
    }

    /// Connects a worker and lets it join.
    pub(crate) async fn worker(&self, name: &str) -> Worker {
        let scripted = Scripted::connect(&self.cluster, name).await;
        let spec = scripted.join().await;
        let chunks = self.layout.chunks(self.chunk_elements).expect("few chunks");
        Worker {
            scripted,
            spec,
            chunks,
        }
    }
}

impl Worker {
    pub(crate) async fn ask<Q: Message, A: Message>(
        &self,
        verb: Verb,
        question: &Q,
    ) -> Result<A, BusError> {
        self.scripted.ask(verb, question).await
    }

    /// Claims until there is a lease; none when the run is complete.
    pub(crate) async fn claim(&self) -> Option<Manifest> {
        self.scripted.claim_or_end().await
    }

    /// Downloads and decodes one copy of the weights.
    pub(crate) async fn fetch(&self, weights: &Weights) -> Vec<f32> {
        let mut values = vec![
            0.0;
            self.chunks
                .iter()
                .map(|chunk| chunk.elements as usize)
                .sum()
        ];
        let chunks = self.scripted.chunks(&weights.chunks).await;
        let contents = self.scripted.fetch(&chunks).await;
        for (bytes, chunk) in contents.iter().zip(&self.chunks) {
            decode(weights.codec.kind, bytes, &mut values[chunk.range()])
                .expect("of the right length");
        }
        values
    }

    /// The contribution of this scene's workers, which depends on the unit alone.
    pub(crate) fn contribution(&self, manifest: &Manifest, base: &[f32]) -> Vec<Bytes> {
        let unit = manifest.lease.unit.index.get() as f32 + 1.0;
        let local: Vec<f32> = base
            .iter()
            .enumerate()
            .map(|(i, value)| value - ((i % 97) as f32 - 48.0) * 1e-4 * unit)
            .collect();
        let encoded = |chunk: &Chunk| {
            let range = chunk.range();
            let mut bytes = vec![0; encoded_bytes(CODEC.kind, range.len())];
            encode_difference(
                CODEC.kind,
                &base[range.clone()],
                &local[range],
                SeededRounding::NEAREST,
                &mut bytes,
            )
            .expect("the buffer fits");
            Bytes::from(bytes)
        };
        self.chunks.iter().map(encoded).collect()
    }

    /// Uploads chunks, announces each, and hands the result in.
    pub(crate) async fn submit(
        &self,
        manifest: &Manifest,
        chunks: Vec<Bytes>,
    ) -> Result<SubmitReply, BusError> {
        let lease = manifest.lease;
        let objects = self.upload(manifest, chunks).await;
        let chunks = self.scripted.name_chunks(&self.spec, lease, objects).await;
        self.submit_named(manifest, chunks).await
    }

    /// Hands in a result of these chunks, wherever they are.
    pub(crate) async fn submit_named(
        &self,
        manifest: &Manifest,
        chunks: Chunks,
    ) -> Result<SubmitReply, BusError> {
        let contribution = kit::contribution(&self.spec, chunks);
        self.scripted
            .submit(&self.spec, manifest.lease, contribution)
            .await
    }

    /// Uploads chunks and announces each.
    pub(crate) async fn upload(&self, manifest: &Manifest, chunks: Vec<Bytes>) -> Vec<ObjectRef> {
        let lease = manifest.lease;
        let mut objects = Vec::with_capacity(chunks.len());
        for (index, bytes) in (0_u32..).zip(chunks) {
            let object = self.scripted.upload(lease, bytes.into()).await;
            let stage = StageRequest {
                v: V,
                lease,
                index,
                object,
            };
            let _: Done = self.ask(Verb::Stage, &stage).await.expect("announced");
            objects.push(object);
        }
        objects
    }

    /// Sends a statement that another key signed.
    pub(crate) async fn hand_in_signed_by(
        &self,
        stranger: &AuditKey,
        statement: &Statement,
    ) -> Result<SubmitReply, BusError> {
        let request = self.scripted.signed_by(stranger, &self.spec, statement);
        self.ask(Verb::Submit, &request).await
    }
}

/// The global weights as the rule of the crate `merge` gives them, for comparison.
pub(crate) struct Reference {
    pub(crate) params: Vec<f32>,
    momentum: Vec<f32>,
    first: bool,
}

impl Reference {
    pub(crate) fn new(params: Vec<f32>) -> Self {
        Self {
            momentum: vec![0.0; params.len()],
            params,
            first: true,
        }
    }

    /// The next round's weights as workers receive them.
    pub(crate) fn step(&mut self, spec: &RunSpec, contributions: &[Vec<Bytes>]) -> Vec<f32> {
        let whole: Vec<Vec<u8>> = contributions.iter().map(|chunks| chunks.concat()).collect();
        let weight = spec.unit_tokens().get();
        let part = |bytes: &Vec<u8>| -> (u64, Bytes) { (weight, Bytes::from(bytes.clone())) };
        let parts: Vec<_> = whole.iter().map(part).collect();
        let parts: Vec<_> = parts
            .iter()
            .map(|(weight, bytes)| merge::ContributionChunk {
                weight: *weight,
                codec: CODEC.kind,
                bytes,
            })
            .collect();
        let momentum = match self.first {
            true => merge::Momentum::First(&mut self.momentum),
            false => merge::Momentum::Running(&mut self.momentum),
        };
        self.first = false;
        let merged =
            merge::merge_chunk(&parts, spec.outer, &mut self.params, momentum).expect("they fit");
        assert!(merged.is_finite());
        let mut bytes = vec![0; encoded_bytes(CODEC.kind, self.params.len())];
        encode(
            CODEC.kind,
            &self.params,
            SeededRounding::NEAREST,
            &mut bytes,
        )
        .expect("the buffer fits");
        let mut published = vec![0.0; self.params.len()];
        decode(CODEC.kind, &bytes, &mut published).expect("of the right length");
        published
    }
}

/// The ledger of `nats-config`.
async fn make_ledger(bus: &Bus) {
    let ledger = stream::Config {
        name: LEDGER_STREAM.into(),
        subjects: vec![LEDGER_FILTER.into()],
        deny_delete: true,
        deny_purge: true,
        max_bytes: 1 << 28,
        duplicate_window: Duration::from_millis(100),
        allow_atomic_publish: true,
        ..stream::Config::default()
    };
    jetstream::new(bus.client().clone())
        .create_stream(ledger)
        .await
        .expect("stream LEDGER");
}

/// The queue of `nats-config`.
async fn make_streams(bus: &Bus) {
    let jetstream = jetstream::new(bus.client().clone());
    let work = stream::Config {
        name: WORK_STREAM.into(),
        subjects: vec!["diloco.work.>".into()],
        retention: stream::RetentionPolicy::WorkQueue,
        max_bytes: 1 << 24,
        ..stream::Config::default()
    };
    let consumer = pull::Config {
        durable_name: Some(WORK_CONSUMER.into()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(5),
        max_ack_pending: 4096,
        filter_subject: "diloco.work.>".into(),
        ..pull::Config::default()
    };
    jetstream
        .create_stream(work)
        .await
        .expect("stream WORK")
        .create_consumer(consumer)
        .await
        .expect("its consumer");
}
