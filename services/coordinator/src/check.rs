//! The check of a new run: everything that its settings name is in the store, can be parsed, and
//! fits together.

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use identity::dsse::open_data_provenance;
use merge::codec::encoded_bytes;
use model::{ModelConfig, check_private_data};
use recompute::{Base, Objects as _, RunContext, layout};
use schemas::data::{DataManifest, Tokenizer};
use schemas::layout::Layout;
use schemas::lease::Weights;
use schemas::limits::OBJECT_BYTES_MAX;
use schemas::run::{CodecKind, RunSpec, TrainerKind};
use schemas::{Bytes, Class, Code, ObjectRef, Refusal, Round};

use crate::foundry::MAGNITUDE_MAX;
use crate::store::{Store, refusal};

/// Objects whose presence is checked at the same time.
const LOOKS_MAX: usize = 32;
/// Chunks of initial weights that are read at the same time, and so the most of a model that is in
/// memory.
const CHUNKS_AT_A_TIME: usize = 2;
/// Largest `config.json`; Hugging Face's have a few KiB.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Largest data manifest: 65536 shards of some 150 bytes each.
const DATA_BYTES_MAX: u64 = 32 << 20;
/// Largest statement about a data set: it names the same shards, and base64 takes a third more.
const PROVENANCE_BYTES_MAX: u64 = 48 << 20;

/// Checks a run's settings against the store.
pub(crate) async fn run(store: &Store, domain: &str, spec: RunSpec) -> Result<(), Refusal> {
    let layout = layout(store, spec.model.layout).await?;
    let context = RunContext::new(&layout, spec)?;
    let spec = &context.spec;
    let mut objects = Vec::new();
    let initial = store.chunks(&spec.model.initial).await?;
    for (index, object) in initial.iter().enumerate() {
        let expected = encoded_bytes(CodecKind::Fp32, context.elements(index)) as u64;
        if object.bytes.get() != expected || expected > OBJECT_BYTES_MAX.get() {
            let detail = format!(
                "model.initial[{index}] has {} bytes, the chunk needs {expected}",
                object.bytes
            );
            return Err(Refusal::new(Code::SizeMismatch, detail));
        }
    }
    if spec.model.config.bytes.get() > CONFIG_BYTES_MAX {
        let detail = format!(
            "model.config has {} bytes, at most {CONFIG_BYTES_MAX} are read",
            spec.model.config.bytes
        );
        return Err(Refusal::new(Code::ModelInvalid, detail));
    }
    let config = store.fetch(spec.model.config).await?;
    let model = model(spec.model.trainer, &config, &layout)?;
    let data = data(store, spec.data).await?;
    let named = |found: Refusal| {
        Refusal::new(
            found.code,
            format!("data {}: {}", spec.data.digest, found.detail),
        )
    };
    model.check_data(&data, &spec.schedule).map_err(named)?;
    if spec.privacy.is_some() {
        check_private_data(&data, &spec.schedule).map_err(named)?;
    }
    if let Some(statement) = spec.data_provenance {
        provenance(store, domain, (&data, spec.data), statement).await?;
    }
    objects.extend(
        data.train
            .iter()
            .chain(&data.held_out)
            .map(|shard| shard.object),
    );
    if let Tokenizer::HuggingFace(object) = data.tokenizer {
        objects.push(object);
    }
    let looks = objects.into_iter().map(|object| look(store, object));
    stream::iter(looks)
        .buffer_unordered(LOOKS_MAX)
        .try_collect::<()>()
        .await?;
    initial_weights(store, &context, &initial).await
}

/// Reads all initial weights. A value that is no number spoils all weights within a few steps, and
/// every worker would fail the run.
async fn initial_weights(
    store: &Store,
    context: &RunContext,
    initial: &[ObjectRef],
) -> Result<(), Refusal> {
    let checks = initial
        .iter()
        .enumerate()
        .map(|(index, object)| async move {
            let (bytes, elements) = (store.fetch(*object).await?, context.elements(index));
            let screened =
                tokio::task::spawn_blocking(move || initial_chunk(index, &bytes, elements)).await;
            screened.map_err(|error| {
                Refusal::new(
                    Code::Internal,
                    format!("check of model.initial[{index}]: {error}"),
                )
            })?
        });
    let checks: Vec<_> = checks.collect();
    stream::iter(checks)
        .buffer_unordered(CHUNKS_AT_A_TIME)
        .try_collect::<()>()
        .await
}

fn initial_chunk(index: usize, bytes: &[u8], elements: usize) -> Result<(), Refusal> {
    let found = merge::screen(CodecKind::Fp32, bytes, elements)
        .map_err(|error| Refusal::new(error.code(), format!("model.initial[{index}]: {error}")))?;
    if found.abs_max <= MAGNITUDE_MAX {
        return Ok(());
    }
    let detail = format!(
        "model.initial[{index}] holds a value of magnitude {:e}, at most {MAGNITUDE_MAX:e}",
        found.abs_max
    );
    Err(Refusal::new(Code::NormOutlier, detail))
}

/// Checks that the trainer takes the configuration, and that the layout is the model's. Otherwise
/// the run would be created, and every worker would refuse to train it.
fn model(trainer: TrainerKind, config: &[u8], layout: &Layout) -> Result<ModelConfig, Refusal> {
    let model = ModelConfig::parse(trainer, config)
        .map_err(|error| Refusal::new(Code::ModelInvalid, format!("model.config: {error}")))?;
    model.check_layout(layout)?;
    Ok(model)
}

/// Reads every object of a full snapshot back: each is there, has the bytes that its digest names,
/// and fits the run. Returns the copy of its weights that workers get.
pub(crate) async fn snapshot(
    store: &Store,
    spec: RunSpec,
    round: Round,
    manifest: ObjectRef,
) -> Result<Weights, Refusal> {
    let read = read_back(store, spec, round, manifest).await;
    read.map_err(|refusal| {
        let code = match refusal.code {
            Code::ObjectMissing => Code::SnapshotGone,
            Code::ObjectMismatch | Code::ObjectTooLarge => Code::ObjectAltered,
            code if code.passes() || code.class() == Class::Operator => code,
            code @ (Code::Internal | Code::ObjectForbidden) => code,
            _ => Code::SnapshotUnsound,
        };
        let detail = format!("snapshot {}: {}", manifest.digest, refusal.detail);
        Refusal::new(code, detail)
    })
}

async fn read_back(
    store: &Store,
    spec: RunSpec,
    round: Round,
    manifest: ObjectRef,
) -> Result<Weights, Refusal> {
    let context = RunContext::load(store, spec).await?;
    let base = Base::read(store, &context, Some(manifest)).await?;
    if (base.round, base.broadcast.round) != (round, round) {
        let detail = format!(
            "it is of round {}, and the ledger has it as that of round {round}",
            base.round
        );
        return Err(Refusal::new(Code::SnapshotUnsound, detail));
    }
    let pieces = (0..context.chunks.len()).map(|index| piece(store, &context, &base, index));
    let pieces: Vec<_> = pieces.collect();
    stream::iter(pieces)
        .buffer_unordered(CHUNKS_AT_A_TIME)
        .try_collect::<()>()
        .await?;
    let published = store.chunks(&base.broadcast.chunks).await?;
    let published = published.into_iter().map(|object| async move {
        store.fetch(object).await?;
        Ok::<_, Refusal>(())
    });
    let published: Vec<_> = published.collect();
    stream::iter(published)
        .buffer_unordered(CHUNKS_AT_A_TIME)
        .try_collect::<()>()
        .await?;
    Ok(base.broadcast)
}

/// Reads one chunk of a snapshot: its parameters, which have to be numbers, and its outer state.
async fn piece(
    store: &Store,
    context: &RunContext,
    base: &Base,
    index: usize,
) -> Result<(), Refusal> {
    let piece = base.piece(store, context, index).await?;
    let finite = tokio::task::spawn_blocking(move || {
        let mut values = piece.slots.values().chain([&piece.params]);
        values.all(|values| values.iter().all(|value| value.is_finite()))
    });
    match finite.await {
        Ok(true) => Ok(()),
        Ok(false) => {
            let detail = format!("chunk {index} holds a value that is no number");
            Err(Refusal::new(Code::SnapshotUnsound, detail))
        }
        Err(error) => Err(Refusal::new(Code::Internal, error.to_string())),
    }
}

/// Checks that a statement is one about the run's data set, signed by the key that it names.
async fn provenance(
    store: &Store,
    domain: &str,
    (manifest, stored): (&DataManifest, ObjectRef),
    statement: ObjectRef,
) -> Result<(), Refusal> {
    let named = |code: Code, reason: &dyn std::fmt::Display| {
        let text = format!("data_provenance {}: {reason}", statement.digest);
        Refusal::new(code, text)
    };
    if statement.bytes.get() > PROVENANCE_BYTES_MAX {
        let reason = format!(
            "{} bytes, at most {PROVENANCE_BYTES_MAX} are read",
            statement.bytes
        );
        return Err(named(Code::StatementForged, &reason));
    }
    let envelope = store.fetch(statement).await?;
    let opened = open_data_provenance(&envelope, domain, manifest, stored);
    opened.map_err(|error| named(error.code(), &error))?;
    Ok(())
}

/// Fetches and parses a data manifest.
pub(crate) async fn data(store: &Store, object: ObjectRef) -> Result<DataManifest, Refusal> {
    let invalid = |reason: String| {
        Refusal::new(
            Code::DataInvalid,
            format!("data {}: {reason}", object.digest),
        )
    };
    if object.bytes.get() > DATA_BYTES_MAX {
        return Err(invalid(format!(
            "{} bytes, at most {DATA_BYTES_MAX} are read",
            object.bytes
        )));
    }
    let bytes = store.fetch(object).await?;
    serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))
}

async fn look(store: &Store, object: ObjectRef) -> Result<(), Refusal> {
    let found = store
        .buckets
        .exists(object.digest)
        .await
        .map_err(|error| refusal(&error))?;
    let (digest, expected) = (object.digest, object.bytes);
    match found {
        Some(bytes) if bytes == expected => Ok(()),
        Some(Bytes(bytes)) => Err(Refusal::new(
            Code::ObjectMismatch,
            format!("{digest} has {bytes} bytes, expected {expected}"),
        )),
        None => Err(Refusal::new(Code::ObjectMissing, format!("{digest}"))),
    }
}

#[cfg(test)]
mod tests {
    use model::Preset;

    use super::*;

    #[test]
    fn a_configuration_of_another_trainer_is_refused() {
        let preset = &Preset::named("reference").expect("a preset").config;
        let (config, layout) = (preset.to_json(), preset.layout());
        assert_eq!(
            model(TrainerKind::Reference, &config, &layout).as_ref(),
            Ok(preset)
        );
        let torch = model(TrainerKind::Torch, &config, &layout)
            .expect_err("a configuration of another trainer");
        assert_eq!(torch.code, Code::ModelInvalid);
    }

    #[test]
    fn initial_weights_are_numbers() {
        let bytes = |values: [f32; 3]| values.map(f32::to_le_bytes).concat();
        let check = |values| initial_chunk(7, &bytes(values), 3).map_err(|found| found.code);
        assert_eq!(check([0.0, -1.5, 1e-30]), Ok(()));
        for (value, expected) in [
            (f32::NAN, Code::NotFinite),
            (f32::INFINITY, Code::NotFinite),
            (f32::NEG_INFINITY, Code::NotFinite),
            (1e31, Code::NormOutlier),
        ] {
            assert_eq!(check([0.0, 0.0, value]), Err(expected), "{value}");
        }
        let named =
            initial_chunk(7, &bytes([0.0, f32::NAN, 0.0]), 3).expect_err("one is no number");
        assert!(named.detail.contains("model.initial[7]"), "{named}");
        assert!(initial_chunk(0, &[0; 8], 3).is_err(), "another length");
    }

    /// The length that the core lets a worker upload is the one that the check of a result expects.
    #[test]
    fn the_words_for_codecs_and_the_codecs_agree_on_lengths() {
        for codec in CodecKind::ALL.iter().copied() {
            for elements in [1, 2, 3, 64, 1023, 65_536, 65_537, 1_000_003] {
                assert_eq!(
                    encoded_bytes(codec, elements) as u64,
                    codec.encoded_bytes(elements as u64),
                    "{codec:?}"
                );
            }
        }
    }
}
