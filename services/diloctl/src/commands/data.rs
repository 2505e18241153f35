//! `data`: text becomes a content-addressed data set in the store.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use data::{ImportCounts, ImportOptions, SkippedFiles, Source, shown};
use identity::AuditKey;
use model::ModelConfig;
use runtime::{Failure, clock};
use schemas::data::{DataManifest, Shard};
use schemas::provenance::{Import, Maker, Provenance};
use schemas::run::Schedule;
use schemas::{Code, Digest, ObjectRef, PublicKey, Tokens, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::cli::Data;
use crate::commands::watch;
use crate::context::Context;
use crate::files::{replace, wait_for_lock};
use crate::objects::OperatorObjectsClient;
use crate::output::{Record, Row};
use crate::table::{self, count, time};

pub(crate) async fn run(context: &Context, command: &Data) -> Result<(), Failure> {
    match command {
        Data::Import {
            text,
            exclude,
            limit,
            shard_tokens,
            tokenizer,
        } => {
            let source = match text {
                Some(path) => Source::Text(path.clone()),
                None => Source::RustSources(registry()?),
            };
            let (exclude, limit) = (exclude.clone(), limit.bytes());
            let defaults = ImportOptions::new(source);
            let options = ImportOptions {
                exclude,
                limit,
                shard_tokens: shard_tokens.map_or(defaults.shard_tokens, Tokens),
                ..defaults
            };
            import(context, options, tokenizer.as_deref()).await
        }
        Data::Ls => {
            context.printer.rows(&read(&context.folder)?);
            Ok(())
        }
    }
}

async fn import(
    context: &Context,
    mut options: ImportOptions,
    tokenizer: Option<&Path>,
) -> Result<(), Failure> {
    if let Some(path) = tokenizer {
        let json = std::fs::read(path).map_err(|error| {
            Failure::new(Code::TokenizerInvalid, format!("{}: {error}", shown(path)))
        })?;
        options.tokenizer = Some(json);
    }
    // Connects before the text is read: a missing coordinator should be noticed at once, not after
    // a minute.
    let operator = context.operator().await?;
    let who = operator.public().clone();
    let objects = OperatorObjectsClient::new(context, operator)?;
    let made = tokio::task::spawn_blocking(move || data::import(&options))
        .await
        .map_err(|error| Failure::new(Code::Internal, error))??;
    let warnings = made.warnings();
    let (counts, documents) = (made.counts, made.documents);
    let (files, text) = (
        files_text(counts.files),
        table::bytes(counts.text_bytes.get()),
    );
    context
        .printer
        .talk(&format!("{text} of text in {files}, {documents} documents"));
    let bodies: Vec<Bytes> = made.objects.into_iter().map(Bytes::from).collect();
    let bar = watch::bytes_bar(
        context.printer,
        "shards",
        bodies.iter().map(|body| body.len() as u64).sum(),
    );
    objects.put(&bodies, |bytes| bar.inc(bytes)).await?;
    bar.finish_and_clear();
    let manifest =
        serde_json::to_vec(&made.manifest).map_err(|error| Failure::new(Code::Internal, error))?;
    // Uploaded last: once the manifest is there, everything that it names is there.
    let object = objects.put(&[Bytes::from(manifest)], |_| ()).await?[0];
    let statement = statement(context, &made.manifest, object, &who, &counts)?;
    let statement = objects.put(&[Bytes::from(statement)], |_| ()).await?[0];
    let imported = Imported {
        provenance: Some(statement),
        ..Imported::new(object, &made.manifest, counts, warnings)
    };
    remember(&context.folder, imported.clone())?;
    context.printer.record(&imported);
    imported
        .warnings
        .iter()
        .for_each(|warning| context.printer.talk(&format!("warning: {warning}")));
    Ok(())
}

/// The statement of the data set's provenance, in its envelope. The operator's key for data sets
/// signs it; the first import makes the key.
fn statement(
    context: &Context,
    manifest: &DataManifest,
    stored: ObjectRef,
    operator: &PublicKey,
    counts: &ImportCounts,
) -> Result<Vec<u8>, Failure> {
    let domain = context.domain()?;
    let file = domain.layout().data_key();
    let key = match file.exists() {
        true => AuditKey::read(&file)?,
        false => {
            let key = AuditKey::generate();
            key.seed().write(&file)?;
            key
        }
    };
    let import = Import {
        operator,
        files: counts.files,
        text_bytes: counts.text_bytes,
        distinct_bytes: counts.distinct_bytes,
    };
    let maker = Maker {
        domain: domain.trust().domain.as_str(),
        key: key.public(),
        release: env!("CARGO_PKG_VERSION"),
    };
    let said = Provenance::of_data(manifest, stored, import, maker);
    Ok(key.seal_provenance(&said.to_json()))
}

/// The folder in which cargo keeps the sources of crates. Every machine on which cargo has built
/// something with dependencies has text there.
fn registry() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let folder = home
        .map(|home| home.join("registry/src"))
        .filter(|folder| folder.is_dir());
    folder.ok_or_else(|| {
        Failure::new(
            Code::CorpusEmpty,
            "there is no cargo registry folder; name a text with --text",
        )
    })
}

/// The data set that was asked for, or the newest that was imported into this folder, and the
/// statement of its provenance; an import of an earlier release has none.
pub(crate) fn resolve(
    context: &Context,
    wanted: Option<Digest>,
) -> Result<(ObjectRef, Option<ObjectRef>), Failure> {
    let known = read(&context.folder)?;
    let found = known
        .iter()
        .rfind(|one| wanted.is_none_or(|digest| one.manifest.digest == digest));
    let found = found.map(|one| (one.manifest, one.provenance));
    found.ok_or_else(|| {
        let what = match wanted {
            Some(digest) => format!("{digest} is not in this domain's list of data sets"),
            None => "this domain's list of data sets is empty".to_owned(),
        };
        Failure::new(Code::DataUnknown, what)
    })
}

/// Checks that a run's settings fit the data set that the run would use, without asking the
/// coordinator. Returns the sentence to print.
pub(crate) fn check_known(
    context: &Context,
    wanted: Option<Digest>,
    model: &ModelConfig,
    schedule: &Schedule,
) -> Result<String, Failure> {
    let known = read(&context.folder)?;
    if known.is_empty() && wanted.is_none() {
        return Ok(
            "the settings are valid; this domain's list of data sets is empty, so they were compared \
             with none"
                .to_owned(),
        );
    }
    let (object, _) = resolve(context, wanted)?;
    let one = known
        .iter()
        .rfind(|one| one.manifest == object)
        .expect("was found there");
    let shortest = [
        ("training", one.train_shard_tokens_min, true),
        (
            "held-out",
            one.held_out_shard_tokens_min,
            schedule.evaluation_every > 0,
        ),
    ];
    model.check_vocabulary(one.vocabulary)?;
    for (part, tokens, is_read) in shortest {
        // Entries of earlier releases do not have these fields.
        if let Some(tokens) = tokens.filter(|_| is_read) {
            let what = format!("the shortest {part} shard of data set {}", object.digest);
            model::check_length(what, Tokens(tokens), schedule)?;
        }
    }
    Ok(format!(
        "the settings are valid, and fit data set {}",
        object.digest
    ))
}

/// An entry of the list `data.jsonl`: a data set that was imported into this domain's folder.
/// Entries of earlier releases have fewer fields.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Imported {
    manifest: ObjectRef,
    /// The signed statement of its provenance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provenance: Option<ObjectRef>,
    source: String,
    train_tokens: u64,
    held_out_tokens: u64,
    #[serde(default)]
    train_shard_tokens_min: Option<u64>,
    #[serde(default)]
    held_out_shard_tokens_min: Option<u64>,
    vocabulary: u32,
    unigram_nats: f64,
    bigram_nats: f64,
    imported_at: UnixMillis,
    #[serde(default)]
    files: u64,
    #[serde(default)]
    text_bytes: u64,
    #[serde(default)]
    distinct_bytes: u64,
    #[serde(default)]
    specials_spelt: u64,
    #[serde(default, alias = "passed_over")]
    skipped: Vec<SkippedFiles>,
    /// The file in which the limit was reached.
    #[serde(default)]
    limit_reached_in: Option<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

impl Imported {
    fn new(
        object: ObjectRef,
        manifest: &DataManifest,
        counts: ImportCounts,
        warnings: Vec<String>,
    ) -> Self {
        let lengths = |shards: &[Shard]| {
            shards
                .iter()
                .map(|shard| shard.tokens.get())
                .collect::<Vec<u64>>()
        };
        let (train, held_out) = (lengths(&manifest.train), lengths(&manifest.held_out));
        Self {
            manifest: object,
            provenance: None,
            source: manifest.source.clone(),
            train_tokens: train.iter().sum(),
            held_out_tokens: held_out.iter().sum(),
            train_shard_tokens_min: train.into_iter().min(),
            held_out_shard_tokens_min: held_out.into_iter().min(),
            vocabulary: manifest.vocabulary,
            unigram_nats: manifest.entropy.unigram,
            bigram_nats: manifest.entropy.bigram,
            imported_at: clock::now(),
            files: counts.files,
            text_bytes: counts.text_bytes.get(),
            distinct_bytes: counts.distinct_bytes.get(),
            specials_spelt: counts.specials_spelt,
            skipped: counts.skipped,
            limit_reached_in: counts.limit_reached_in,
            warnings,
        }
    }
}

/// The path of the list of data sets, which has one JSON document a line.
fn list_path(folder: &Path) -> PathBuf {
    folder.join("data.jsonl")
}

fn read(folder: &Path) -> Result<Vec<Imported>, Failure> {
    let path = list_path(folder);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(Failure::new(
                Code::DataInvalid,
                format!("{}: {error}", path.display()),
            ));
        }
    };
    let parse = |line: &str| {
        serde_json::from_str(line).map_err(|error| {
            Failure::new(Code::DataInvalid, format!("{}: {error}", path.display()))
        })
    };
    text.lines().map(parse).collect()
}

/// Appends a data set to the list and removes an earlier entry of the same data set. Imports that
/// end at the same time take turns, so that each reads what the others wrote.
fn remember(folder: &Path, imported: Imported) -> Result<(), Failure> {
    let path = list_path(folder);
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Code::DataInvalid, format!("{}: {error}", shown(&path)))
    };
    let _turn =
        wait_for_lock(&path.with_extension("jsonl.lock")).map_err(|error| failed(&error))?;
    let mut all = read(folder)?;
    all.retain(|one| one.manifest != imported.manifest);
    all.push(imported);
    let mut text = String::new();
    for one in &all {
        text.push_str(&serde_json::to_string(one).map_err(|error| failed(&error))?);
        text.push('\n');
    }
    replace(&path, text.as_bytes()).map_err(|error| failed(&error))
}

impl Row for Imported {
    const TITLES: &'static [&'static str] = &[
        "data set",
        "train tokens",
        "held-out tokens",
        "vocabulary",
        "unigram",
        "bigram",
        "imported",
        "source",
    ];

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

fn files_text(count: u64) -> String {
    if count == 1 {
        "1 file".to_owned()
    } else {
        format!("{count} files")
    }
}

impl Record for Imported {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines: Vec<(&'static str, String)> =
            Self::TITLES.iter().copied().zip(self.cells()).collect();
        let (text, distinct) = (
            table::bytes(self.text_bytes),
            table::bytes(self.distinct_bytes),
        );
        lines.push((
            "text",
            format!(
                "{text} in {}; {distinct} do not repeat earlier text",
                files_text(self.files)
            ),
        ));
        let statement = self.provenance.iter();
        lines.extend(statement.map(|object| ("provenance", object.digest.to_string())));
        lines.extend(self.limit_reached_in.iter().map(|file| {
            (
                "limit",
                format!("reached in {file}; later files were not read"),
            )
        }));
        lines.extend(
            self.skipped
                .iter()
                .map(|files| ("skipped", files.to_string())),
        );
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> Imported {
        Imported {
            manifest: ObjectRef::of(&number.to_le_bytes()),
            provenance: Some(ObjectRef::of(b"a statement")),
            source: format!("text {number}"),
            train_tokens: number,
            held_out_tokens: 1,
            train_shard_tokens_min: Some(number),
            held_out_shard_tokens_min: Some(1),
            vocabulary: 256,
            unigram_nats: 3.0,
            bigram_nats: 2.0,
            imported_at: UnixMillis(number),
            files: 1,
            text_bytes: number,
            distinct_bytes: number,
            specials_spelt: 0,
            skipped: Vec::new(),
            limit_reached_in: None,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn an_entry_of_an_earlier_release_keeps_its_skipped_files() {
        let mut entry = serde_json::to_value(entry(1)).expect("JSON");
        entry["skipped"] = serde_json::json!([{"reason": "hidden", "count": 2, "first": ".git"}]);
        let text = entry.to_string().replace("\"skipped\"", "\"passed_over\"");
        let read: Imported = serde_json::from_str(&text).expect("an entry");
        let skipped: Vec<String> = read.skipped.iter().map(SkippedFiles::to_string).collect();
        assert_eq!(skipped, ["2 hidden: .git and 1 more"]);
    }

    #[test]
    fn imports_that_end_together_all_stay_in_the_list() {
        let folder = tempfile::tempdir().expect("a folder");
        const THREADS: u64 = 8;
        const EACH: u64 = 10;
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let folder = folder.path();
                scope.spawn(move || {
                    for number in 0..EACH {
                        remember(folder, entry(thread * EACH + number)).expect("written");
                        assert!(!read(folder).expect("whole at any time").is_empty());
                    }
                });
            }
        });
        let numbers: std::collections::BTreeSet<u64> = read(folder.path())
            .expect("whole")
            .iter()
            .map(|one| one.train_tokens)
            .collect();
        assert_eq!(numbers, (0..THREADS * EACH).collect());
        remember(folder.path(), entry(3)).expect("written");
        let all = read(folder.path()).expect("whole");
        assert_eq!(
            (all.len() as u64, all.last().expect("entries").train_tokens),
            (THREADS * EACH, 3)
        );
    }

    #[test]
    fn entries_of_earlier_releases_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let ObjectRef { digest, bytes } = ObjectRef::of(b"x");
        let line = format!(
            r#"{{"manifest":{{"digest":"{digest}","bytes":{bytes}}},"source":"text","train_tokens":5,"held_out_tokens":1,"vocabulary":256,"unigram_nats":3.0,"bigram_nats":2.0,"imported_at":7}}"#
        );
        std::fs::write(list_path(folder.path()), line).expect("written");
        let all = read(folder.path()).expect("read");
        assert_eq!(
            (all[0].train_tokens, all[0].train_shard_tokens_min),
            (5, None)
        );
        assert_eq!(all[0].provenance, None);
    }
}
