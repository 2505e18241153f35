//! `snapshot`: saved models, as folders that other tools can read; and promotions.

mod promote;
mod release;

mod restore;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::Path;
use std::process::Stdio;

use bytes::Bytes;
use data::ExportFile;
use diloco_audit::provenance::open_statement;
use merge::codec;
use model::ModelConfig;
use runtime::Failure;
use schemas::control::{Query, View};
use schemas::data::{DataManifest, Tokenizer};
use schemas::layout::Layout;
use schemas::promotion::PointerName;
use schemas::run::CodecKind;
use schemas::snapshot::SnapshotManifest;
use schemas::view::SnapshotView;
use schemas::{Code, Digest, Message as _, ObjectRef, PublicKey, RunId};
use serde::Serialize;

use crate::cli::Snapshot;
use crate::commands::watch;
use crate::context::{Context, Operator, unexpected};
use crate::files::{Staged, unwritable};
use crate::objects::OperatorObjectsClient;
use crate::output::{Record, Row};
use crate::table::{bytes, or_dash, time};

pub(crate) async fn run(context: &Context, command: &Snapshot) -> Result<(), Failure> {
    match command {
        Snapshot::Ls { run } => {
            context
                .printer
                .rows(&list(&context.operator().await?, run).await?);
            Ok(())
        }
        Snapshot::Pull {
            run,
            round,
            promoted,
            to,
        } => {
            let wanted = match promoted {
                Some(pointer) => Wanted::Pointer(pointer),
                None => Wanted::Round(*round),
            };
            let pulled = pull(context, run, wanted, to).await?;
            context.printer.record(&pulled);
            Ok(())
        }
        Snapshot::Promote(command) => promote::run(context, command).await,
        Snapshot::ReleaseKey { file } => release::make_key(context, file),
        Snapshot::Release { folder, key } => release::sign(context, folder, key),
        Snapshot::Verify { folder, key } => release::verify(context, folder, key),
        Snapshot::Restore(args) => restore::run(context, args).await,
        Snapshot::Sample {
            run,
            round,
            prompt,
            tokens,
            temperature,
            seed,
        } => {
            let folder = context.folder.join("models").join(run.as_str());
            pull(context, run, Wanted::Round(*round), &folder).await?;
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

/// Writes a snapshot as a model folder, which other tools load as the model that was trained:
/// `config.json`, `generation_config.json`, `model.safetensors`, the tokenizer's files,
/// `snapshot.json`, and the signed statement about it. Every byte is hashed before it is written. A
/// folder that holds this snapshot already is left alone; any other is replaced as a whole once all
/// files are complete.
async fn pull(
    context: &Context,
    run: &RunId,
    wanted: Wanted<'_>,
    to: &Path,
) -> Result<Pulled, Failure> {
    let operator = context.operator().await?;
    let snapshots = list(&operator, run).await?;
    // A pointer names the snapshot as it was saved; a restore lists the same one once more.
    let found = match wanted {
        Wanted::Pointer(_) => snapshots.iter().find(|snapshot| wanted.is(snapshot)),
        _ => snapshots.iter().rfind(|snapshot| wanted.is(snapshot)),
    };
    let snapshot = found.ok_or_else(|| wanted.missing(run))?;
    if let Some(event) = snapshot.given_up {
        let round = snapshot.round;
        let detail = format!(
            "the snapshot of round {round} of run {run} was given up by gc at event {event} of the ledger"
        );
        return Err(Failure::new(Code::ObjectsGivenUp, detail));
    }
    let objects = OperatorObjectsClient::new(context, operator)?;
    let bytes = objects.get(snapshot.manifest).await?;
    let statement = match snapshot.statement {
        Some(statement) => Some(attested(context, &objects, snapshot.manifest, statement).await?),
        // Nothing without a statement is promoted, so somebody has left it out.
        None if matches!(wanted, Wanted::Pointer(_)) => {
            let detail = format!("snapshot {}", snapshot.manifest.digest);
            return Err(Failure::new(Code::SnapshotUnattested, detail));
        }
        None => None,
    };
    let pulled = Pulled {
        run: run.clone(),
        round: snapshot.round.get(),
        manifest: snapshot.manifest.digest,
        undone: snapshot.undone,
        quarantined: snapshot.quarantined.map_or(0, NonZeroU32::get),
        signed_by: statement.as_ref().map(|(_, key)| key.clone()),
        folder: data::shown(to),
    };
    if holds(to, &bytes) {
        return Ok(pulled);
    }
    let mut staged = Staged::open(to)?;
    // The command that held the folder's lock until now may have written the same snapshot.
    if holds(to, &bytes) {
        return Ok(pulled);
    }
    let manifest: SnapshotManifest = json(&bytes, "snapshot manifest")?;
    let config = objects.get(manifest.config).await?;
    let model = ModelConfig::recognise(&config)?;
    for (name, bytes) in model
        .export_files()
        .into_iter()
        .chain(tokenizer(&objects, manifest.data, &model).await?)
    {
        staged.write(name, &bytes)?;
    }
    let (layout, values) = weights(context, &objects, &manifest).await?;
    let path = staged.place(MODEL_FILE);
    let metadata = BTreeMap::from([("snapshot".to_owned(), pulled.manifest.to_string())]);
    model::export_safetensors(&layout, &values, &path, &metadata)
        .map_err(|error| unwritable(&path, &error))?;
    if let Some((envelope, _)) = &statement {
        staged.write(STATEMENT_FILE, envelope)?;
    }
    staged.write(STAMP_FILE, &bytes)?;
    staged.publish(&[MODEL_FILE, STAMP_FILE])?;
    Ok(pulled)
}

/// True when a folder holds a snapshot already. The stamp is written last, so where it is, all
/// files are.
fn holds(folder: &Path, stamp: &[u8]) -> bool {
    std::fs::read(folder.join(STAMP_FILE)).is_ok_and(|there| there == stamp)
        && folder.join(MODEL_FILE).exists()
}

/// The signed statement about a snapshot, in its envelope, with the key that has signed it. Before
/// anything else is read, it must be a coordinator's, about this snapshot.
async fn attested(
    context: &Context,
    objects: &OperatorObjectsClient,
    manifest: ObjectRef,
    statement: ObjectRef,
) -> Result<(Bytes, PublicKey), Failure> {
    let envelope = objects.get(statement).await?;
    let domain = context.domain()?;
    let (_, key) = open_statement(domain.trust(), &envelope, manifest)?;
    Ok((envelope, key))
}

/// The snapshot that is wanted.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    /// That of a round, or the newest.
    Round(Option<u64>),
    /// That to which a pointer leads.
    Pointer(&'a PointerName),
}

impl Wanted<'_> {
    fn is(&self, snapshot: &SnapshotView) -> bool {
        match self {
            Self::Round(round) => round.is_none_or(|round| snapshot.round.get() == round),
            Self::Pointer(name) => snapshot.pointers.contains(name),
        }
    }

    fn missing(&self, run: &RunId) -> Failure {
        match self {
            Self::Round(round) => {
                let any = || "any round".to_owned();
                let which = round.map_or_else(any, |round| format!("round {round}"));
                let detail = format!("run {run} has no full snapshot of {which}");
                Failure::new(Code::SnapshotMissing, detail)
            }
            Self::Pointer(name) => {
                let detail = format!("run {run} has no pointer {name}");
                Failure::new(Code::PointerUnknown, detail)
            }
        }
    }
}

/// The file with the signed statement, in its envelope.
const STATEMENT_FILE: &str = "snapshot.intoto.json";
/// The stamp: a file that says which snapshot a folder holds.
const STAMP_FILE: &str = "snapshot.json";
/// The file that holds the weights, by the convention of Hugging Face.
const MODEL_FILE: &str = "model.safetensors";

async fn weights(
    context: &Context,
    objects: &OperatorObjectsClient,
    manifest: &SnapshotManifest,
) -> Result<(Layout, Vec<f32>), Failure> {
    let layout = Layout::decode(&objects.get(manifest.layout).await?)
        .map_err(|error| Failure::new(Code::ObjectMismatch, error))?;
    layout
        .validate()
        .map_err(|error| Failure::new(Code::LayoutMismatch, error))?;
    let elements = usize::try_from(layout.elements()).map_err(|_| {
        Failure::new(
            Code::ObjectTooLarge,
            "the model does not fit this machine's address space",
        )
    })?;
    let mut values = vec![0.0_f32; elements];
    let mut at = 0;
    let bytes = CodecKind::Fp32.encoded_bytes(layout.elements());
    let bar = watch::bytes_bar(context.printer, "weights", bytes);
    let chunks = objects.chunks(&manifest.weights).await?;
    objects
        .get_all(&chunks, |index, bytes| {
            let here = bytes.len() / 4;
            let misfit = || {
                Failure::new(
                    Code::SizeMismatch,
                    format!("chunk {index} does not fit the layout"),
                )
            };
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
        Err(Failure::new(
            Code::SizeMismatch,
            format!("the snapshot has {at} values, its layout {elements}"),
        ))
    }
}

/// The tokenizer's files. Text is tokenized as at the import: by the data set's own tokenizer, or
/// as bytes.
async fn tokenizer(
    objects: &OperatorObjectsClient,
    data: ObjectRef,
    model: &ModelConfig,
) -> Result<Vec<ExportFile>, Failure> {
    let manifest: DataManifest = json(&objects.get(data).await?, "data manifest")?;
    let file = match manifest.tokenizer {
        Tokenizer::Byte => None,
        Tokenizer::HuggingFace(object) => Some(objects.get(object).await?),
    };
    data::tokenizer_files(file.as_deref(), model.sequence_tokens_max()).map_err(Failure::from)
}

fn json<T: serde::de::DeserializeOwned>(bytes: &Bytes, what: &str) -> Result<T, Failure> {
    serde_json::from_slice(bytes)
        .map_err(|error| Failure::new(Code::DataInvalid, format!("{what}: {error}")))
}

/// Lets the worker's program write the text, since only that program can run the model.
fn sample(context: &Context, folder: &Path, arguments: &[(&str, String)]) -> Result<(), Failure> {
    let worker = crate::stack::program("diloco-worker")?;
    let mut command = std::process::Command::new(&worker);
    command
        .arg("sample")
        .arg("--model")
        .arg(folder)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
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
    context
        .printer
        .text(&String::from_utf8_lossy(&output.stdout));
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
    /// True if a restore has undone it.
    undone: bool,
    /// Workers that are in quarantine now and have contributions in it.
    quarantined: u32,
    /// The key that signed the statement about it; none for a snapshot of an earlier release.
    signed_by: Option<PublicKey>,
    folder: String,
}

/// A snapshot's digest, and that the run was led back to before it.
pub(super) fn of_what(manifest: Digest, undone: bool) -> String {
    match undone {
        true => format!("{manifest} (undone: a restore has led the run back to before it)"),
        false => manifest.to_string(),
    }
}

impl Record for Pulled {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("run", self.run.to_string()),
            ("round", self.round.to_string()),
            ("snapshot", of_what(self.manifest, self.undone)),
        ];
        if let Some(text) = shut_out(self.quarantined) {
            let (run, digest) = (&self.run, self.manifest);
            let who = format!(
                "`diloctl worker ls {run}` names them, `diloctl lineage show {digest}` says if somebody accepted that"
            );
            lines.push(("in quarantine", format!("{text}; {who}")));
        }
        lines.extend([
            (
                "signed by",
                or_dash(self.signed_by.as_ref(), PublicKey::to_string),
            ),
            ("folder", self.folder.clone()),
        ]);
        lines
    }
}

/// The contributions of workers in quarantine, if a snapshot has any.
fn shut_out(workers: u32) -> Option<String> {
    match workers {
        0 => None,
        1 => Some("it has contributions of 1 worker that is shut out now".to_owned()),
        many => Some(format!(
            "it has contributions of {many} workers that are shut out now"
        )),
    }
}

impl Row for SnapshotView {
    const TITLES: &'static [&'static str] =
        &["round", "state", "manifest", "size", "saved", "promoted"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.round.to_string(),
            match (self.given_up, self.undone, self.quarantined) {
                (Some(_), ..) => "given up",
                (None, true, _) => "undone",
                (None, false, Some(_)) => "quarantine",
                (None, false, None) => "-",
            }
            .to_owned(),
            self.manifest.digest.to_string(),
            bytes(self.manifest.bytes.get()),
            time(self.saved_at),
            self.pointers
                .iter()
                .map(PointerName::as_str)
                .collect::<Vec<_>>()
                .join(", "),
        ]
    }
}
