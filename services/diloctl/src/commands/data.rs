//! `data`: text becomes a content-addressed data set in the store.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use data::{ImportOptions, Source};
use runtime::{ConfigBytes, Failure, clock};
use schemas::data::DataManifest;
use schemas::{Code, Digest, ObjectRef, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::cli::Data;
use crate::commands::watch;
use crate::context::Context;
use crate::objects::OperatorObjectsClient;
use crate::output::{Record, Row};
use crate::table::{self, count, time};

pub(crate) async fn run(context: &Context, command: &Data) -> Result<(), Failure> {
    match command {
        Data::Import { text, limit, tokenizer } => import(context, text.as_deref(), *limit, tokenizer.as_deref()).await,
        Data::Ls => {
            context.printer.rows(&read(&context.folder)?);
            Ok(())
        }
    }
}

async fn import(
    context: &Context,
    text: Option<&Path>,
    limit: ConfigBytes,
    tokenizer: Option<&Path>,
) -> Result<(), Failure> {
    let source = match text {
        Some(path) => Source::Text(path.to_owned()),
        None => Source::RustSources(registry()?),
    };
    let mut options = ImportOptions { budget: limit.bytes(), ..ImportOptions::new(source) };
    if let Some(path) = tokenizer {
        let json = std::fs::read(path)
            .map_err(|error| Failure::new(Code::TokenizerInvalid, format!("{}: {error}", path.display())))?;
        options.tokenizer = Some(json);
    }
    // Before the text is read: a missing coordinator should not take a minute to notice.
    let objects = OperatorObjectsClient::new(context, context.operator().await?)?;
    let made = tokio::task::spawn_blocking(move || data::import(&options))
        .await
        .map_err(|error| Failure::new(Code::Internal, error))?
        .map_err(|error| Failure::new(error.code(), error))?;
    context.printer.talk(&format!("{} documents, {} of text", made.documents, table::bytes(made.text_bytes.get())));
    let bodies: Vec<Bytes> = made.objects.into_iter().map(Bytes::from).collect();
    let bar = watch::bytes_bar(context.printer, "shards", bodies.iter().map(|body| body.len() as u64).sum());
    objects.put(&bodies, |bytes| bar.inc(bytes)).await?;
    bar.finish_and_clear();
    let manifest = serde_json::to_vec(&made.manifest).map_err(|error| Failure::new(Code::Internal, error))?;
    // Last: whoever has the manifest finds everything that it names.
    let object = objects.put(&[Bytes::from(manifest)], |_| ()).await?[0];
    let imported = Imported::new(object, &made.manifest);
    remember(&context.folder, imported.clone())?;
    context.printer.record(&imported);
    Ok(())
}

/// Where cargo keeps the sources of crates: text that every machine with Rust has.
fn registry() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let folder = home.map(|home| home.join("registry/src")).filter(|folder| folder.is_dir());
    folder.ok_or_else(|| Failure::new(Code::CorpusEmpty, "there is no cargo registry folder; name a text with --text"))
}

/// The data set that is asked for, or the newest from here.
pub(crate) fn resolve(context: &Context, wanted: Option<Digest>) -> Result<ObjectRef, Failure> {
    let known = read(&context.folder)?;
    let found = known.iter().rfind(|one| wanted.is_none_or(|digest| one.manifest.digest == digest));
    found.map(|one| one.manifest).ok_or_else(|| {
        let what = match wanted {
            Some(digest) => format!("{digest} was not imported from this folder"),
            None => "no data set was imported from this folder".to_owned(),
        };
        Failure::new(Code::DataInvalid, format!("{what}; see `diloctl data ls`"))
    })
}

/// A data set that was imported from here, as `data ls` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Imported {
    manifest: ObjectRef,
    source: String,
    train_tokens: u64,
    held_out_tokens: u64,
    vocabulary: u32,
    unigram_nats: f64,
    bigram_nats: f64,
    imported_at: UnixMillis,
}

impl Imported {
    fn new(object: ObjectRef, manifest: &DataManifest) -> Self {
        let tokens = |shards: &[schemas::data::Shard]| shards.iter().map(|shard| shard.tokens.get()).sum();
        Self {
            manifest: object,
            source: manifest.source.clone(),
            train_tokens: tokens(&manifest.train),
            held_out_tokens: tokens(&manifest.held_out),
            vocabulary: manifest.vocabulary,
            unigram_nats: manifest.entropy.unigram,
            bigram_nats: manifest.entropy.bigram,
            imported_at: clock::now(),
        }
    }
}

/// The list of data sets: one JSON document a line.
fn list(folder: &Path) -> PathBuf {
    folder.join("data.jsonl")
}

fn read(folder: &Path) -> Result<Vec<Imported>, Failure> {
    let path = list(folder);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::new(Code::DataInvalid, format!("{}: {error}", path.display()))),
    };
    let parse = |line: &str| {
        serde_json::from_str(line)
            .map_err(|error| Failure::new(Code::DataInvalid, format!("{}: {error}", path.display())))
    };
    text.lines().map(parse).collect()
}

/// Puts a data set at the end of the list; an earlier entry of the same goes.
fn remember(folder: &Path, imported: Imported) -> Result<(), Failure> {
    let mut all = read(folder)?;
    all.retain(|one| one.manifest != imported.manifest);
    all.push(imported);
    let path = list(folder);
    let failed =
        |error: &dyn std::fmt::Display| Failure::new(Code::DataInvalid, format!("{}: {error}", path.display()));
    let mut text = String::new();
    for one in &all {
        text.push_str(&serde_json::to_string(one).map_err(|error| failed(&error))?);
        text.push('\n');
    }
    let aside = path.with_extension("jsonl.part");
    std::fs::write(&aside, text).and_then(|()| std::fs::rename(&aside, &path)).map_err(|error| failed(&error))
}

impl Row for Imported {
    const TITLES: &'static [&'static str] =
        &["data set", "train tokens", "held-out tokens", "vocabulary", "unigram", "bigram", "imported", "source"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.manifest.digest.to_string(),
            count(self.train_tokens as f64),
            count(self.held_out_tokens as f64),
            self.vocabulary.to_string(),
            format!("{:.4}", self.unigram_nats),
            format!("{:.4}", self.bigram_nats),
            time(self.imported_at),
            self.source.clone(),
        ]
    }
}

impl Record for Imported {
    fn lines(&self) -> Vec<(&'static str, String)> {
        Self::TITLES.iter().copied().zip(self.cells()).collect()
    }
}
