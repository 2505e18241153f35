//! The check of a new run: everything that its settings name is in the store, parses, and fits together.

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use merge::codec::encoded_bytes;
use schemas::data::{DataManifest, Tokenizer};
use schemas::limits::{OBJECT_BYTES_MAX, SHARDS_MAX};
use schemas::run::{CodecKind, RunSpec};
use schemas::{Bytes, Code, ObjectRef, Refusal};

use crate::context::RunContext;
use crate::store::{Store, refusal};

/// Objects that are looked at at a time.
const LOOKS_MAX: usize = 32;
/// Largest `config.json`; Hugging Face's have a few KiB.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Largest data manifest: 65536 shards of some 150 bytes each.
const DATA_BYTES_MAX: u64 = 32 << 20;

/// Checks a run's settings against the store.
pub(crate) async fn run(store: &Store, spec: RunSpec) -> Result<(), Refusal> {
    let context = RunContext::load(store, spec).await?;
    let spec = &context.spec;
    let mut objects = Vec::new();
    for (index, object) in spec.model.initial.iter().enumerate() {
        let expected = encoded_bytes(CodecKind::Fp32, context.elements(index)) as u64;
        if object.bytes.get() != expected || expected > OBJECT_BYTES_MAX.get() {
            let detail = format!("model.initial[{index}] has {} bytes, the chunk needs {expected}", object.bytes);
            return Err(Refusal::new(Code::SizeMismatch, detail));
        }
        objects.push(*object);
    }
    if spec.model.config.bytes.get() > CONFIG_BYTES_MAX {
        let detail = format!("model.config has {} bytes, at most {CONFIG_BYTES_MAX} are read", spec.model.config.bytes);
        return Err(Refusal::new(Code::ModelInvalid, detail));
    }
    let config = store.fetch(spec.model.config).await?;
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&config)
        .map_err(|error| Refusal::new(Code::ModelInvalid, format!("model.config is no JSON object: {error}")))?;
    let data = data(store, spec.data).await?;
    check_data(spec, &data)?;
    objects.extend(data.train.iter().chain(&data.held_out).map(|shard| shard.object));
    if let Tokenizer::HuggingFace(object) = data.tokenizer {
        objects.push(object);
    }
    let looks = objects.into_iter().map(|object| look(store, object));
    stream::iter(looks).buffer_unordered(LOOKS_MAX).try_collect::<()>().await
}

/// Fetches and parses a data manifest.
pub(crate) async fn data(store: &Store, object: ObjectRef) -> Result<DataManifest, Refusal> {
    let invalid = |reason: String| Refusal::new(Code::DataInvalid, format!("data {}: {reason}", object.digest));
    if object.bytes.get() > DATA_BYTES_MAX {
        return Err(invalid(format!("{} bytes, at most {DATA_BYTES_MAX} are read", object.bytes)));
    }
    let bytes = store.fetch(object).await?;
    serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))
}

fn check_data(spec: &RunSpec, data: &DataManifest) -> Result<(), Refusal> {
    let invalid = |reason: String| Err(Refusal::new(Code::DataInvalid, format!("data {}: {reason}", spec.data.digest)));
    let count = data.train.len() + data.held_out.len();
    if data.train.is_empty() || count > SHARDS_MAX {
        return invalid(format!("{} training shards of {count}, expected 1 to {SHARDS_MAX}", data.train.len()));
    }
    if data.held_out.is_empty() && spec.schedule.evaluation_every > 0 {
        return invalid("no held-out shard, but the run evaluates".to_owned());
    }
    if !matches!(data.token_bytes, 1 | 2 | 4) {
        return invalid(format!("{} bytes a token, expected 1, 2 or 4", data.token_bytes));
    }
    for shard in data.train.iter().chain(&data.held_out) {
        let expected = shard.tokens.get().checked_mul(u64::from(data.token_bytes));
        if expected != Some(shard.object.bytes.get()) || shard.tokens.get() == 0 {
            let (tokens, bytes) = (shard.tokens, shard.object.bytes);
            return invalid(format!("shard {} of {tokens} tokens has {bytes} bytes", shard.object.digest));
        }
    }
    Ok(())
}

async fn look(store: &Store, object: ObjectRef) -> Result<(), Refusal> {
    let found = store.buckets.exists(object.digest).await.map_err(|error| refusal(&error))?;
    let (digest, expected) = (object.digest, object.bytes);
    match found {
        Some(bytes) if bytes == expected => Ok(()),
        Some(Bytes(bytes)) => {
            Err(Refusal::new(Code::ObjectMismatch, format!("{digest} has {bytes} bytes, expected {expected}")))
        }
        None => Err(Refusal::new(Code::ObjectMissing, format!("{digest}"))),
    }
}
