//! Making a data set: select, split, tokenise, cut into shards, measure.

use schemas::data::{DataManifest, Shard, Tokenizer};
use schemas::limits::{OBJECT_BYTES_MAX, SHARDS_MAX};
use schemas::{Bytes, ObjectRef, Tokens, V};

use crate::{DataError, Document, Source, TextTokenizer, encode_shard, entropy, select, token_bytes};

/// What to make a data set of.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Where the text is.
    pub source: Source,
    /// Most text to take.
    pub budget: Bytes,
    /// A Hugging Face `tokenizer.json`; none for bytes.
    pub tokenizer: Option<Vec<u8>>,
    /// Tokens of a shard; the last of each part may be shorter.
    pub shard_tokens: Tokens,
    /// Every how many bytes of text one is held out: 50 for 2 %.
    pub held_out_one_in: u64,
}

/// A data set that is ready to be stored.
#[derive(Clone, Debug)]
pub struct Imported {
    /// Its manifest; store it last, as JSON.
    pub manifest: DataManifest,
    /// Everything that the manifest names: its tokenizer if it has one, then the shards.
    pub objects: Vec<Vec<u8>>,
    /// How many documents were taken.
    pub documents: usize,
    /// How many bytes of text they have.
    pub text_bytes: Bytes,
}

/// Held-out part where nothing else is asked for: 2 %.
const HELD_OUT_ONE_IN: u64 = 50;
/// A shard is a unit of assignment: small enough that a unit reads a few, large enough to be worth a request.
const SHARD_TOKENS: Tokens = Tokens(1 << 20);
const BUDGET: Bytes = Bytes::mebi(32);

impl ImportOptions {
    /// 32 MiB of text as bytes, in shards of a mebi token, 2 % held out.
    pub const fn new(source: Source) -> Self {
        Self { source, budget: BUDGET, tokenizer: None, shard_tokens: SHARD_TOKENS, held_out_one_in: HELD_OUT_ONE_IN }
    }
}

/// Makes a data set. Documents are ordered by digest: the first are held out, and shards are cut from the rest in that
/// order, so that each is a fair sample of the corpus.
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
    let mut documents = select(&options.source, options.budget)?;
    documents.sort_by_key(|document| document.digest);
    let text_bytes: u64 = documents.iter().map(|document| document.text.len() as u64).sum();
    let held_out = held_out_documents(&documents, text_bytes / options.held_out_one_in);
    let mut objects: Vec<Vec<u8>> = options.tokenizer.iter().cloned().collect();
    let mut cut = |part: &[Document]| shards(part, &tokenizer, options.shard_tokens, width, &mut objects);
    let held_out_shards = cut(&documents[..held_out])?;
    let train = cut(&documents[held_out..])?;
    if held_out_shards.is_empty() || train.is_empty() || train.len() > SHARDS_MAX {
        return Err(DataError::Invalid(format!(
            "{} training and {} held-out shards",
            train.len(),
            held_out_shards.len()
        )));
    }
    let manifest = DataManifest {
        v: V,
        source: options.source.path().display().to_string(),
        tokenizer: match &options.tokenizer {
            Some(json) => Tokenizer::HuggingFace(ObjectRef::of(json)),
            None => Tokenizer::Byte,
        },
        vocabulary,
        token_bytes: width,
        train,
        held_out: held_out_shards,
        entropy: entropy(&tokens(&documents[..held_out], &tokenizer)?),
    };
    Ok(Imported { manifest, objects, documents: documents.len(), text_bytes: Bytes(text_bytes) })
}

/// Cuts the documents' tokens into shards and appends these to `objects`.
fn shards(
    documents: &[Document],
    tokenizer: &TextTokenizer,
    shard_tokens: Tokens,
    width: u8,
    objects: &mut Vec<Vec<u8>>,
) -> Result<Vec<Shard>, DataError> {
    let size = shard_tokens.get() as usize;
    let mut shards = Vec::new();
    let mut add = |tokens: &[u32]| {
        let bytes = encode_shard(tokens, width);
        shards.push(Shard { object: ObjectRef::of(&bytes), tokens: Tokens(tokens.len() as u64) });
        objects.push(bytes);
    };
    let mut pending = Vec::new();
    for document in documents {
        pending.extend(tokenizer.encode(&document.text)?);
        let whole = pending.len() - pending.len() % size;
        pending.drain(..whole).as_slice().chunks(size).for_each(&mut add);
    }
    pending.chunks(size).for_each(&mut add);
    Ok(shards)
}

fn tokens(documents: &[Document], tokenizer: &TextTokenizer) -> Result<Vec<u32>, DataError> {
    let mut tokens = Vec::new();
    for document in documents {
        tokens.extend(tokenizer.encode(&document.text)?);
    }
    Ok(tokens)
}

fn check(options: &ImportOptions, vocabulary: u32, width: u8) -> Result<(), DataError> {
    let shard_tokens_max = OBJECT_BYTES_MAX.get() / u64::from(width);
    if !(1..=shard_tokens_max).contains(&options.shard_tokens.get()) {
        let reason = format!("shard size is {} tokens, expected 1 to {shard_tokens_max}", options.shard_tokens);
        return Err(DataError::Bounds(reason));
    }
    if options.held_out_one_in < 2 {
        let reason = format!("one in {} bytes held out, expected one in 2 or more", options.held_out_one_in);
        return Err(DataError::Bounds(reason));
    }
    if vocabulary < 2 {
        return Err(DataError::Tokenizer(format!("a vocabulary of {vocabulary} tokens, expected 2 or more")));
    }
    Ok(())
}

/// How many documents, from the first on, have `bytes` bytes; at least one, and never all.
fn held_out_documents(documents: &[Document], bytes: u64) -> usize {
    let mut held_out = 0;
    let taken = documents.iter().take_while(|document| {
        let more = held_out < bytes.max(1);
        held_out += document.text.len() as u64;
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
    use crate::{TokenShard, parse_manifest};

    fn corpus(folder: &Path, files: usize) -> ImportOptions {
        for file in 0..files {
            let text: String = (0..400).map(|line| format!("let x{file} = {};\n", line * file)).collect();
            fs::write(folder.join(format!("{file}.rs")), text).expect("written");
        }
        let source = Source::RustSources(folder.to_owned());
        ImportOptions { shard_tokens: Tokens(50_000), ..ImportOptions::new(source) }
    }

    fn text(imported: &Imported, shards: &[Shard]) -> String {
        let mut tokens = Vec::new();
        for shard in shards {
            let bytes = imported.objects.iter().find(|bytes| ObjectRef::of(bytes) == shard.object).expect("handed out");
            let shard = TokenShard::decode(bytes.clone(), imported.manifest.vocabulary).expect("valid");
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
            let (train, held_out) = (text(&imported, &manifest.train), text(&imported, &manifest.held_out));
            assert_eq!((train.len() + held_out.len()) as u64, imported.text_bytes.get());
            let share = held_out.len() as f64 / imported.text_bytes.get() as f64;
            assert!(share > 0.015 && share < 0.5, "{share} of {files} files");
            let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
            assert!(files < 50 || lines(&train).is_disjoint(&lines(&held_out)), "no line of one text is in both");
            let json = serde_json::to_vec(manifest).expect("serialises");
            assert_eq!(&parse_manifest(&json).expect("valid"), manifest);
            assert!(manifest.entropy.bigram < manifest.entropy.unigram && manifest.entropy.unigram < 5.6);
        }
    }

    #[test]
    fn the_same_files_give_the_same_data_set() {
        let folders = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
        let [one, two] = folders.each_ref().map(|folder| import(&corpus(folder.path(), 60)).expect("a data set"));
        assert_eq!((&one.manifest.train, &one.manifest.held_out), (&two.manifest.train, &two.manifest.held_out));
        assert!(one.objects == two.objects);
    }

    #[test]
    fn a_tokenizer_file_is_handed_out_with_the_shards() {
        let json = br#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "let": 1, "=": 299}, "unk_token": "[UNK]"}}"#;
        let folder = tempfile::tempdir().expect("a folder");
        let options = ImportOptions { tokenizer: Some(json.to_vec()), ..corpus(folder.path(), 60) };
        let imported = import(&options).expect("a data set");
        assert_eq!((imported.manifest.vocabulary, imported.manifest.token_bytes), (300, 2));
        assert_eq!(imported.manifest.tokenizer, Tokenizer::HuggingFace(ObjectRef::of(json)));
        assert_eq!(imported.objects[0], json);
    }

    #[test]
    fn options_out_of_bounds_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let good = corpus(folder.path(), 60);
        assert!(import(&ImportOptions { shard_tokens: Tokens(0), ..good.clone() }).is_err());
        assert!(import(&ImportOptions { held_out_one_in: 1, ..good.clone() }).is_err());
        assert!(import(&ImportOptions { tokenizer: Some(b"x".to_vec()), ..good }).is_err());
    }
}
