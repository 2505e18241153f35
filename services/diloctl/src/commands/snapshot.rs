//! `snapshot`: saved models, as folders that other tools can read.

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use bytes::Bytes;
use merge::codec;
use runtime::Failure;
use schemas::control::{Query, View};
use schemas::data::{DataManifest, Tokenizer};
use schemas::layout::Layout;
use schemas::run::CodecKind;
use schemas::snapshot::SnapshotManifest;
use schemas::view::SnapshotView;
use schemas::{Code, Digest, Message as _, ObjectRef, RunId};
use serde::Serialize;

use crate::cli::Snapshot;
use crate::commands::watch;
use crate::context::{Context, Operator, unexpected};
use crate::objects::OperatorObjectsClient;
use crate::output::{Record, Row};
use crate::table::{bytes, time};

pub(crate) async fn run(context: &Context, command: &Snapshot) -> Result<(), Failure> {
    match command {
        Snapshot::Ls { run } => {
            context.printer.rows(&list(&context.operator().await?, run).await?);
            Ok(())
        }
        Snapshot::Pull { run, round, to } => {
            let pulled = pull(context, run, *round, to).await?;
            context.printer.record(&pulled);
            Ok(())
        }
        Snapshot::Sample { run, round, prompt, tokens, temperature, seed } => {
            let folder = context.folder.join("models").join(run.as_str());
            pull(context, run, *round, &folder).await?;
            let arguments = [
                ("--prompt", prompt.clone()),
                ("--tokens", tokens.to_string()),
                ("--temperature", temperature.to_string()),
                ("--seed", seed.to_string()),
            ];
            sample(context, &folder, &arguments)
        }
    }
}

async fn list(operator: &Operator, run: &RunId) -> Result<Vec<SnapshotView>, Failure> {
    match operator.view(Query::Snapshots(run.clone())).await? {
        View::Snapshots(rows) => Ok(rows),
        other => Err(unexpected(&other)),
    }
}

/// Writes a snapshot as a model folder: `config.json`, `model.safetensors`, `snapshot.json`, and `tokenizer.json` where the
/// data set has one. Nothing is written that was not hashed on the way; a folder that holds this snapshot is left as it is.
async fn pull(context: &Context, run: &RunId, round: Option<u64>, to: &Path) -> Result<Pulled, Failure> {
    let operator = context.operator().await?;
    let snapshots = list(&operator, run).await?;
    let wanted = |snapshot: &&SnapshotView| round.is_none_or(|round| snapshot.round.get() == round);
    let Some(snapshot) = snapshots.iter().rfind(wanted) else {
        let which = round.map_or_else(|| "any round".to_owned(), |round| format!("round {round}"));
        return Err(Failure::new(Code::SnapshotMissing, format!("run {run} has no full snapshot of {which}")));
    };
    let pulled = Pulled {
        run: run.clone(),
        round: snapshot.round.get(),
        manifest: snapshot.manifest.digest,
        folder: to.display().to_string(),
    };
    let stamp = to.join("snapshot.json");
    let objects = OperatorObjectsClient::new(context, operator)?;
    let bytes = objects.get(snapshot.manifest).await?;
    if std::fs::read(&stamp).is_ok_and(|there| there == bytes) && to.join(MODEL_FILE).exists() {
        return Ok(pulled);
    }
    let manifest: SnapshotManifest = json(&bytes, "snapshot manifest")?;
    std::fs::create_dir_all(to).map_err(|error| unwritable(to, &error))?;
    write(&to.join("config.json"), &objects.get(manifest.config).await?)?;
    tokenizer(&objects, manifest.data, to).await?;
    let (layout, values) = weights(context, &objects, &manifest).await?;
    let path = to.join(MODEL_FILE);
    model::export_safetensors(
        &layout,
        &values,
        &path,
        &std::collections::BTreeMap::from([("snapshot".to_owned(), pulled.manifest.to_string())]),
    )
    .map_err(|error| unwritable(&path, &error))?;
    write(&stamp, &bytes)?;
    Ok(pulled)
}

/// The file that holds the weights, by the convention of Hugging Face.
const MODEL_FILE: &str = "model.safetensors";

async fn weights(
    context: &Context,
    objects: &OperatorObjectsClient,
    manifest: &SnapshotManifest,
) -> Result<(Layout, Vec<f32>), Failure> {
    let layout = Layout::decode(&objects.get(manifest.layout).await?)
        .map_err(|error| Failure::new(Code::ObjectMismatch, error))?;
    layout.validate().map_err(|error| Failure::new(Code::LayoutMismatch, error))?;
    let elements = usize::try_from(layout.elements())
        .map_err(|_| Failure::new(Code::ObjectTooLarge, "the model does not fit this machine's address space"))?;
    let mut values = vec![0.0_f32; elements];
    let mut at = 0;
    let bar = watch::bytes_bar(context.printer, "weights", layout.elements() * 4);
    objects
        .get_all(&manifest.weights, |index, bytes| {
            let here = bytes.len() / 4;
            let misfit = || Failure::new(Code::SizeMismatch, format!("chunk {index} does not fit the layout"));
            let out = values.get_mut(at..at + here).ok_or_else(misfit)?;
            codec::decode(CodecKind::Fp32, &bytes, out).map_err(|_| misfit())?;
            at += here;
            bar.inc(bytes.len() as u64);
            Ok(())
        })
        .await?;
    bar.finish_and_clear();
    if at == elements {
        Ok((layout, values))
    } else {
        Err(Failure::new(Code::SizeMismatch, format!("the snapshot has {at} values, its layout {elements}")))
    }
}

async fn tokenizer(objects: &OperatorObjectsClient, data: ObjectRef, to: &Path) -> Result<(), Failure> {
    let manifest: DataManifest = json(&objects.get(data).await?, "data manifest")?;
    match manifest.tokenizer {
        Tokenizer::Byte => Ok(()),
        Tokenizer::HuggingFace(object) => write(&to.join("tokenizer.json"), &objects.get(object).await?),
    }
}

fn json<T: serde::de::DeserializeOwned>(bytes: &Bytes, what: &str) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| Failure::new(Code::DataInvalid, format!("{what}: {error}")))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let written = std::fs::File::create(path).and_then(|mut file| file.write_all(bytes));
    written.map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::CacheFailed, format!("{}: {error}", path.display()))
}

/// Lets the worker's program write text: the model's mathematics live there, not here.
fn sample(context: &Context, folder: &Path, arguments: &[(&str, String)]) -> Result<(), Failure> {
    let worker = crate::stack::program("diloco-worker")?;
    let mut command = std::process::Command::new(&worker);
    command.arg("sample").arg("--model").arg(folder).stdin(Stdio::null()).stderr(Stdio::inherit());
    for (flag, value) in arguments {
        command.arg(format!("{flag}={value}"));
    }
    let output = command.output().map_err(|error| missing(&worker, &error))?;
    if !output.status.success() {
        return Err(Failure::new(
            Code::TrainingFailed,
            format!("{} sample ended with {}", worker.display(), output.status),
        ));
    }
    context.printer.text(&String::from_utf8_lossy(&output.stdout));
    Ok(())
}

fn missing(program: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Code::ToolMissing, format!("{}: {error}", program.display()))
}

#[derive(Serialize)]
struct Pulled {
    run: RunId,
    round: u64,
    manifest: Digest,
    folder: String,
}

impl Record for Pulled {
    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("run", self.run.to_string()),
            ("round", self.round.to_string()),
            ("snapshot", self.manifest.to_string()),
            ("folder", self.folder.clone()),
        ]
    }
}

impl Row for SnapshotView {
    const TITLES: &'static [&'static str] = &["round", "manifest", "size", "saved"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.round.to_string(),
            self.manifest.digest.to_string(),
            bytes(self.manifest.bytes.get()),
            time(self.saved_at),
        ]
    }
}
