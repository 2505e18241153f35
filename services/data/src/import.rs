//! Making a data set: select, split, tokenise, cut into shards, measure.

use schemas::data::{DataManifest, Shard, Tokenizer};
use schemas::limits::{OBJECT_BYTES_MAX, SHARDS_MAX};
use schemas::{Bytes, ObjectRef, Tokens, V};

use crate::corpus::{Corpus, Document};
use crate::shard::read_tokens;
use crate::{DataError, ImportCounts, Pattern, Source, TextTokenizer, entropy, shown, token_bytes};

/// Options for an import.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// The source of the text.
    pub source: Source,
    /// Files to leave out.
    pub exclude: Vec<Pattern>,
    /// Most text to take.
    pub limit: Bytes,
    /// A Hugging Face `tokenizer.json`; none for bytes.
    pub tokenizer: Option<Vec<u8>>,
    /// Approximate tokens of a shard: the shards of a part have equal lengths, up to half as much
    /// again.
    pub shard_tokens: Tokens,
    /// One of this many bytes of text is held out: 50 for 2 %.
    pub held_out_one_in: u64,
}

/// A data set that is ready to be stored.
#[derive(Clone, Debug)]
pub struct Imported {
    /// Its manifest; store it last, as JSON.
    pub manifest: DataManifest,
    /// Everything that the manifest names: its tokenizer if it has one, then the shards.
    pub objects: Vec<Vec<u8>>,
    /// The number of documents that were taken.
    pub documents: usize,
    /// The counts over the files.
    pub counts: ImportCounts,
}

/// Held-out part by default: 2 %.
const HELD_OUT_ONE_IN: u64 = 50;
/// Tokens of a shard, which is the unit of assignment: small enough that a unit reads a few, large
/// enough to be worth a request.
const SHARD_TOKENS: Tokens = Tokens(1 << 20);
const LIMIT: Bytes = Bytes::mebi(32);

impl ImportOptions {
    /// 32 MiB of text as bytes, in shards of a mebi token, 2 % held out.
    pub const fn new(source: Source) -> Self {
        let exclude = Vec::new();
        Self {
            source,
            exclude,
            limit: LIMIT,
            tokenizer: None,
            shard_tokens: SHARD_TOKENS,
            held_out_one_in: HELD_OUT_ONE_IN,
        }
    }
}

/// Makes a data set. Documents are ordered by digest. The first of them are held out, and shards
/// are cut from the others in that order, so that each shard is a fair sample of the corpus.
///
/// # Errors
/// The corpus or the tokenizer is refused, or an option is out of bounds.
pub fn import(options: &ImportOptions) -> Result<Imported, DataError> {
    let tokenizer = match &options.tokenizer {
        Some(json) => TextTokenizer::hugging_face(json)?,
        None => TextTokenizer::Byte,
    };
    let vocabulary = tokenizer.vocabulary();
    let width = token_bytes(vocabulary);
    check(options, vocabulary, width)?;
    let Corpus {
        mut documents,
        tokens,
        counts,
    } = Corpus::read(&options.source, &options.exclude, options.limit, &tokenizer)?;
    if documents.len() < 2 {
        let (path, found) = (
            options.source.path().to_owned(),
            counts.distinct_bytes.get(),
        );
        return Err(DataError::Undivided { path, found });
    }
    documents.sort_by_key(|document| document.digest);
    let bytes: u64 = documents.iter().map(|document| document.bytes).sum();
    let held_out = held_out_documents(&documents, bytes / options.held_out_one_in);
    let mut objects: Vec<Vec<u8>> = options.tokenizer.iter().cloned().collect();
    let mut cut =
        |part: &[Document]| shards(part, &tokens, options.shard_tokens, width, &mut objects);
    let held_out_shards = cut(&documents[..held_out]);
    let train = cut(&documents[held_out..]);
    if held_out_shards.is_empty() || train.is_empty() || train.len() > SHARDS_MAX {
        let (train, held_out) = (train.len(), held_out_shards.len());
        return Err(DataError::Invalid(format!(
            "{train} training and {held_out} held-out shards"
        )));
    }
    let held_out_tokens: Vec<u32> = documents[..held_out]
        .iter()
        .flat_map(|document| read_tokens(&tokens[document.tokens.clone()], width))
        .collect();
    let manifest = DataManifest {
        v: V,
        source: shown(options.source.path()),
        tokenizer: match &options.tokenizer {
            Some(json) => Tokenizer::HuggingFace(ObjectRef::of(json)),
            None => Tokenizer::Byte,
        },
        vocabulary,
        token_bytes: width,
        train,
        held_out: held_out_shards,
        entropy: entropy(&held_out_tokens),
    };
    Ok(Imported {
        manifest,
        objects,
        documents: documents.len(),
        counts,
    })
}

impl Imported {
    /// Warnings to read before training on the data set, in a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let ImportCounts {
            text_bytes,
            distinct_bytes,
            specials_spelt,
            cuts,
            ..
        } = &self.counts;
        let mut warnings = Vec::new();
        if distinct_bytes.get() < text_bytes.get() / 2 {
            warnings.push(format!(
                "of {text_bytes} bytes of text {distinct_bytes} are distinct; the others repeat them and are left out"
            ));
        }
        let tokens = |shards: &[Shard]| shards.iter().map(|shard| shard.tokens.get()).sum::<u64>();
        let (train, held_out) = (
            tokens(&self.manifest.train),
            tokens(&self.manifest.held_out),
        );
        if held_out > train {
            warnings.push(format!(
                "the held-out part ({held_out} tokens) is larger than the training part ({train})"
            ));
        }
        if *specials_spelt > 0 {
            warnings
                .push(format!("special tokens are spelt {specials_spelt} times in the text; they are encoded as text"));
        }
        if *cuts > 0 {
            warnings.push(format!(
                "long texts were cut at {cuts} places where the tokens of the whole would be others"
            ));
        }
        warnings
    }
}

/// Cuts the documents' tokens into shards of equal length, give or take a token, and appends these
/// to `objects`. Their number brings the length nearest to the wanted one; a rest of less than half
/// a shard is spread over the others.
fn shards(
    documents: &[Document],
    tokens: &[u8],
    shard_tokens: Tokens,
    width: u8,
    objects: &mut Vec<Vec<u8>>,
) -> Vec<Shard> {
    let width = u64::from(width);
    let total = documents
        .iter()
        .map(|document| document.tokens.len() as u64)
        .sum::<u64>()
        / width;
    let size = shard_tokens.get();
    let count = ((total + size / 2) / size).max(u64::from(total > 0));
    let mut bytes = documents
        .iter()
        .flat_map(|document| &tokens[document.tokens.clone()]);
    let shard = |index: u64| {
        let length = total * (index + 1) / count - total * index / count;
        let bytes: Vec<u8> = bytes
            .by_ref()
            .take((length * width) as usize)
            .copied()
            .collect();
        let shard = Shard {
            object: ObjectRef::of(&bytes),
            tokens: Tokens(length),
        };
        objects.push(bytes);
        shard
    };
    (0..count).map(shard).collect()
}

fn check(options: &ImportOptions, vocabulary: u32, width: u8) -> Result<(), DataError> {
    // A shard may take over a rest, and is still one object.
    let shard_tokens_max = OBJECT_BYTES_MAX.get() / u64::from(width) / 3 * 2;
    if !(1..=shard_tokens_max).contains(&options.shard_tokens.get()) {
        let reason = format!(
            "shard size is {} tokens, expected 1 to {shard_tokens_max}",
            options.shard_tokens
        );
        return Err(DataError::Bounds(reason));
    }
    if options.held_out_one_in < 2 {
        let reason = format!(
            "one in {} bytes held out, expected one in 2 or more",
            options.held_out_one_in
        );
        return Err(DataError::Bounds(reason));
    }
    if vocabulary < 2 {
        return Err(DataError::Tokenizer(format!(
            "a vocabulary of {vocabulary} tokens, expected 2 or more"
        )));
    }
    Ok(())
}

/// The number of documents, from the first on, that have `bytes` bytes together; at least one, and
/// never all.
fn held_out_documents(documents: &[Document], bytes: u64) -> usize {
    let mut held_out = 0;
    let taken = documents.iter().take_while(|document| {
        let more = held_out < bytes.max(1);
        held_out += document.bytes;
        more
    });
    taken.count().min(documents.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::{TokenShard, fixture, parse_manifest};

    fn corpus(folder: &Path, files: usize) -> ImportOptions {
        for file in 0..files {
            let text: String = (0..400)
                .map(|line| format!("let x{file} = {};\n", line * file))
                .collect();
            fs::write(folder.join(format!("{file}.rs")), text).expect("written");
        }
        let source = Source::RustSources(folder.to_owned());
        ImportOptions {
            shard_tokens: Tokens(50_000),
            ..ImportOptions::new(source)
        }
    }

    fn text(imported: &Imported, shards: &[Shard]) -> String {
        let mut tokens = Vec::new();
        for shard in shards {
            let bytes = imported
                .objects
                .iter()
                .find(|bytes| ObjectRef::of(bytes) == shard.object)
                .expect("handed out");
            let shard =
                TokenShard::decode(bytes.clone(), imported.manifest.vocabulary).expect("valid");
            shard.append(0, shard.tokens(), &mut tokens);
        }
        TextTokenizer::Byte.decode(&tokens).expect("bytes")
    }

    #[test]
    fn every_line_is_in_exactly_one_part() {
        for files in [1, 3, 80] {
            let folder = tempfile::tempdir().expect("a folder");
            let options = corpus(folder.path(), files + 1);
            let imported = import(&options).expect("a data set");
            let manifest = &imported.manifest;
            let (train, held_out) = (
                text(&imported, &manifest.train),
                text(&imported, &manifest.held_out),
            );
            assert_eq!(
                (train.len() + held_out.len()) as u64,
                imported.counts.distinct_bytes.get()
            );
            let share = held_out.len() as f64 / imported.counts.distinct_bytes.get() as f64;
            assert!(share > 0.015 && share < 0.5, "{share} of {files} files");
            let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
            assert!(
                files < 50 || lines(&train).is_disjoint(&lines(&held_out)),
                "no line of one text is in both"
            );
            let json = serde_json::to_vec(manifest).expect("serialises");
            assert_eq!(&parse_manifest(&json).expect("valid"), manifest);
            assert!(
                manifest.entropy.bigram < manifest.entropy.unigram
                    && manifest.entropy.unigram < 5.6
            );
        }
    }

    #[test]
    fn the_same_files_give_the_same_data_set() {
        let folders = [
            tempfile::tempdir().expect("a folder"),
            tempfile::tempdir().expect("a folder"),
        ];
        let [one, two] = folders
            .each_ref()
            .map(|folder| import(&corpus(folder.path(), 60)).expect("a data set"));
        assert_eq!(
            (&one.manifest.train, &one.manifest.held_out),
            (&two.manifest.train, &two.manifest.held_out)
        );
        assert!(one.objects == two.objects);
    }

    #[test]
    fn a_tokenizer_file_is_handed_out_with_the_shards() {
        let json = br#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "let": 1, "=": 299}, "unk_token": "[UNK]"}}"#;
        let folder = tempfile::tempdir().expect("a folder");
        let options = ImportOptions {
            tokenizer: Some(json.to_vec()),
            ..corpus(folder.path(), 60)
        };
        let imported = import(&options).expect("a data set");
        assert_eq!(
            (imported.manifest.vocabulary, imported.manifest.token_bytes),
            (300, 2)
        );
        assert_eq!(
            imported.manifest.tokenizer,
            Tokenizer::HuggingFace(ObjectRef::of(json))
        );
        assert_eq!(imported.objects[0], json);
    }

    /// A line for each number, all of the same length and none twice.
    fn numbered(lines: usize) -> String {
        (0..lines)
            .map(|line| format!("{line:06} of a text\n"))
            .collect()
    }

    #[test]
    fn a_short_rest_is_spread_over_its_neighbours() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.txt");
        for (lines, size) in [(3000, 50_000), (2800, 50_000), (400, 50_000), (8000, 7919)] {
            fs::write(&path, numbered(lines)).expect("written");
            let options = ImportOptions {
                shard_tokens: Tokens(size),
                ..ImportOptions::new(Source::Text(path.clone()))
            };
            let DataManifest {
                train, held_out, ..
            } = import(&options).expect("a data set").manifest;
            let all: u64 = train
                .iter()
                .chain(&held_out)
                .map(|shard| shard.tokens.get())
                .sum();
            assert_eq!(all, numbered(lines).len() as u64);
            let lengths = || train.iter().map(|shard| shard.tokens.get());
            let (least, most) = (
                lengths().min().expect("shards"),
                lengths().max().expect("shards"),
            );
            assert!(
                most - least <= 1 && most < size + size / 2,
                "{lines} lines: {least} to {most}"
            );
            assert!(
                train.len() == 1 || least > size / 2,
                "{lines} lines: {least} to {most}"
            );
        }
    }

    #[test]
    fn tokens_are_those_of_the_files() {
        let folder = tempfile::tempdir().expect("a folder");
        for (files, lines) in [(3, 500), (60, 40)] {
            let text = |file: usize| {
                format!(
                    "{}</s>",
                    numbered(lines).replace("of", &format!("from {file}"))
                )
            };
            (0..files).for_each(|file| {
                fs::write(folder.path().join(file.to_string()), text(file)).expect("written")
            });
            for (name, json) in fixture::tokenizers() {
                let tokenizer = TextTokenizer::hugging_face(json.as_bytes()).expect("loads");
                let mut expected: Vec<u32> = (0..files)
                    .flat_map(|file| tokenizer.encode(&text(file)).expect("encodes"))
                    .collect();
                let source = Source::Text(folder.path().to_owned());
                let options = ImportOptions {
                    tokenizer: Some(json.into_bytes()),
                    ..ImportOptions::new(source)
                };
                let imported = import(&options).expect("a data set");
                let objects = &imported.objects[1..];
                let width = imported.manifest.token_bytes;
                let mut found: Vec<u32> = objects
                    .iter()
                    .flat_map(|bytes| read_tokens(bytes, width))
                    .collect();
                // Documents are shuffled by digest.
                expected.sort_unstable();
                found.sort_unstable();
                assert!(
                    found == expected,
                    "{name}: {} tokens for {}",
                    found.len(),
                    expected.len()
                );
                let spelt = if name == "pieces" { files as u64 } else { 0 };
                assert_eq!(imported.counts.specials_spelt, spelt, "{name}");
                assert_eq!(
                    imported.warnings().len(),
                    usize::from(spelt > 0),
                    "{:?}",
                    imported.warnings()
                );
            }
        }
    }

    #[test]
    fn what_somebody_should_know_is_said() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.txt");
        let options = ImportOptions::new(Source::Text(path.clone()));
        fs::write(&path, "2026-01-01 INFO heartbeat ok\n".repeat(20_000)).expect("written");
        let imported = import(&options).expect("a data set");
        assert!(
            imported.warnings()[0].starts_with("of 580000 bytes of text 7"),
            "{:?}",
            imported.warnings()
        );
        let sizes: BTreeSet<usize> = (0..50)
            .map(|number| {
                fs::write(&path, format!("{number}{}rest\n", numbered(241))).expect("written");
                import(&options).expect("a data set").warnings().len()
            })
            .collect();
        assert_eq!(
            sizes,
            BTreeSet::from([0, 1]),
            "whether the larger of two passages is held out is a matter of digests"
        );
        fs::write(&path, numbered(240) + "sixteen letters\n").expect("written");
        let error = import(&options).expect_err("a single passage");
        assert_eq!(error.code(), schemas::Code::CorpusEmpty);
    }

    #[test]
    fn options_out_of_bounds_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let good = corpus(folder.path(), 60);
        assert!(
            import(&ImportOptions {
                shard_tokens: Tokens(0),
                ..good.clone()
            })
            .is_err()
        );
        assert!(
            import(&ImportOptions {
                held_out_one_in: 1,
                ..good.clone()
            })
            .is_err()
        );
        // A third of an object is left free for rests.
        let most = OBJECT_BYTES_MAX.get() / 3 * 2;
        let refused = import(&ImportOptions {
            shard_tokens: Tokens(most + 1),
            ..good.clone()
        });
        assert!(matches!(refused, Err(DataError::Bounds(_))));
        assert!(
            import(&ImportOptions {
                shard_tokens: Tokens(most),
                ..good.clone()
            })
            .is_ok()
        );
        assert!(
            import(&ImportOptions {
                tokenizer: Some(b"x".to_vec()),
                ..good.clone()
            })
            .is_err()
        );
        let one = fixture::WORDS.replace(r#", "fn": 1, "main": 5, "(": 2, ")": 3"#, "");
        let refused = import(&ImportOptions {
            tokenizer: Some(one.into_bytes()),
            ..good
        });
        assert!(
            matches!(&refused, Err(DataError::Tokenizer(reason)) if reason.contains("vocabulary of 1"))
        );
    }
}
