//! Chooses text: files in the order of their paths, until a limit is reached. Each file is encoded
//! as it is read.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use schemas::data::token_bytes;
use schemas::{Bytes, Digest};

use crate::passages::passages;
use crate::shard::append_tokens;
use crate::skipped::{Reason, SkippedFiles, Tally, shown};
use crate::text::Specials;
use crate::walk::{Walk, WalkStep};
use crate::{DataError, Pattern, TextTokenizer};

/// Most text of one corpus: the import holds its tokens and one of its files in memory.
pub const CORPUS_BYTES_MAX: Bytes = Bytes::mebi(1024);
/// Least text of a corpus: with less, neither part of the split is meaningful.
pub(crate) const CORPUS_BYTES_MIN: u64 = 4096;
/// Longest document: longer texts are cut, so that no single one dominates the split.
const DOCUMENT_BYTES_MAX: u64 = 256 << 10;
/// Number of texts from which on whole texts are split between training and held-out.
const DOCUMENTS_FEW: usize = 50;
/// The mark of UTF-8 at the beginning of some files, which is no text.
const MARK: &[u8] = b"\xef\xbb\xbf";
/// Bytes of a file that are read beyond the space for its text: the mark, and one byte that shows
/// that there are more.
const BEYOND: u64 = MARK.len() as u64 + 1;

/// A source of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The `.rs` files below a folder, such as cargo's registry sources.
    RustSources(PathBuf),
    /// A text file, or every text file below a folder.
    Text(PathBuf),
}

impl Source {
    /// The file or folder.
    pub fn path(&self) -> &Path {
        match self {
            Self::RustSources(path) | Self::Text(path) => path,
        }
    }
}

/// The counts of an import over the files that it found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportCounts {
    /// Files whose text was taken.
    pub files: u64,
    /// Bytes of their text.
    pub text_bytes: Bytes,
    /// Bytes of this text that do not repeat an earlier passage.
    pub distinct_bytes: Bytes,
    /// Files that were left out, by reason.
    pub skipped: Vec<SkippedFiles>,
    /// The file in which the limit was reached; later files were not read.
    pub limit_reached_in: Option<String>,
    /// Number of times that the text spells a special token, which is encoded as text.
    pub specials_spelt: u64,
    /// Number of cuts in long texts at which the tokens differ from those of the whole text.
    pub cuts: u64,
}

/// A piece of text that is trained on or held out as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Document {
    /// A digest of its text, which no other document has.
    pub(crate) digest: Digest,
    /// Bytes of its text.
    pub(crate) bytes: u64,
    /// The place of its tokens among those of the corpus, in bytes.
    pub(crate) tokens: Range<usize>,
}

/// Text as tokens, in documents.
#[derive(Debug)]
pub(crate) struct Corpus {
    /// Every document once, in no particular order.
    pub(crate) documents: Vec<Document>,
    /// The tokens of all texts, encoded as in shards.
    pub(crate) tokens: Vec<u8>,
    pub(crate) counts: ImportCounts,
}

impl Corpus {
    /// Reads files by ascending path until their text reaches `limit`. Text is UTF-8 without NUL
    /// bytes. Line ends are kept, and the mark that some programs put before UTF-8 is removed. A
    /// file that is no text is left out as a whole. Documents are whole texts of up to 256 KiB, or
    /// passages if there are few texts.
    ///
    /// # Errors
    /// The path cannot be read, the limit is out of bounds, there is too little text, or the
    /// tokenizer cannot represent it.
    pub(crate) fn read(
        source: &Source,
        exclude: &[Pattern],
        limit: Bytes,
        tokenizer: &TextTokenizer,
    ) -> Result<Self, DataError> {
        if !(CORPUS_BYTES_MIN..=CORPUS_BYTES_MAX.get()).contains(&limit.get()) {
            let reason = format!(
                "corpus limit is {limit} bytes, expected {CORPUS_BYTES_MIN} to {CORPUS_BYTES_MAX}"
            );
            return Err(DataError::Bounds(reason));
        }
        let mut reader = Reader::new(source, tokenizer);
        for found in Walk::new(source, exclude)? {
            if reader.stopped.is_some() {
                break;
            }
            match found {
                WalkStep::Skipped(path, reason, detail) => {
                    reader.skipped.add(reason, reader.relative(&path), detail)
                }
                WalkStep::File(path) if reader.counts.text_bytes >= limit => {
                    reader.stopped = Some(path)
                }
                WalkStep::File(path) => reader.take(&path, limit)?,
            }
        }
        reader.finish(source)
    }
}

/// A corpus that is being read.
struct Reader<'a> {
    root: &'a Path,
    tokenizer: &'a TextTokenizer,
    specials: Specials,
    /// Digests of whole texts.
    seen: BTreeSet<Digest>,
    skipped: Tally,
    /// The file in which the limit was reached.
    stopped: Option<PathBuf>,
    /// Passages of each text.
    texts: Vec<Vec<Document>>,
    tokens: Vec<u8>,
    counts: ImportCounts,
}

impl<'a> Reader<'a> {
    fn new(source: &'a Source, tokenizer: &'a TextTokenizer) -> Self {
        Self {
            root: source.path(),
            tokenizer,
            specials: tokenizer.specials(),
            seen: BTreeSet::new(),
            skipped: Tally::default(),
            stopped: None,
            texts: Vec::new(),
            tokens: Vec::new(),
            counts: ImportCounts::default(),
        }
    }

    fn relative<'p>(&self, path: &'p Path) -> &'p Path {
        // If the root itself is a file, its name is used.
        path.strip_prefix(self.root)
            .ok()
            .filter(|path| !path.as_os_str().is_empty())
            .unwrap_or(path)
    }

    fn take(&mut self, path: &Path, limit: Bytes) -> Result<(), DataError> {
        let room = limit.get() - self.counts.text_bytes.get();
        let (text, is_cut) = match read(path, room) {
            Ok(read) => read,
            Err((reason, detail)) => {
                self.skipped.add(reason, self.relative(path), detail);
                return Ok(());
            }
        };
        if !is_cut && !self.seen.insert(Digest::of(text.as_bytes())) {
            self.skipped
                .add(Reason::Repeated, self.relative(path), None);
            return Ok(());
        }
        if is_cut {
            self.stopped = Some(path.to_owned());
        }
        if text.is_empty() {
            // The first character does not fit into the space that is left.
            return Ok(());
        }
        let width = token_bytes(self.tokenizer.vocabulary());
        let (mut documents, tokens) = (Vec::new(), &mut self.tokens);
        let cuts = passages(self.tokenizer, &text, |piece, ids| {
            let start = tokens.len();
            append_tokens(ids, width, tokens);
            let (digest, bytes) = (Digest::of(piece.as_bytes()), piece.len() as u64);
            documents.push(Document {
                digest,
                bytes,
                tokens: start..tokens.len(),
            });
        })?;
        self.texts.push(documents);
        self.counts.files += 1;
        self.counts.text_bytes = Bytes(self.counts.text_bytes.get() + text.len() as u64);
        self.counts.cuts += cuts;
        self.counts.specials_spelt += self.specials.spelt_in(&text);
        Ok(())
    }

    fn finish(mut self, source: &Source) -> Result<Corpus, DataError> {
        let stopped = self
            .stopped
            .as_deref()
            .map(|path| shown(self.relative(path)));
        let skipped = self.skipped.finish();
        // The text that a limit allows is enough, even if its last character did not fit.
        if self.counts.text_bytes.get() < CORPUS_BYTES_MIN && stopped.is_none() {
            let (path, found) = (source.path().to_owned(), self.counts.text_bytes.get());
            return Err(DataError::Empty {
                path,
                found,
                needed: CORPUS_BYTES_MIN,
                skipped,
            });
        }
        let few = self.texts.len() < DOCUMENTS_FEW;
        let mut distinct = BTreeSet::new();
        let passages = self
            .texts
            .iter()
            .flatten()
            .filter(|passage| distinct.insert(passage.digest));
        self.counts.distinct_bytes = Bytes(passages.map(|passage| passage.bytes).sum());
        let documents = self
            .texts
            .into_iter()
            .flat_map(|text| if few { text } else { joined(text) });
        let mut seen = BTreeSet::new();
        let documents = documents
            .filter(|document| seen.insert(document.digest))
            .collect();
        self.counts.skipped = skipped;
        self.counts.limit_reached_in = stopped;
        Ok(Corpus {
            documents,
            tokens: self.tokens,
            counts: self.counts,
        })
    }
}

/// Joins a text's passages into documents of up to [`DOCUMENT_BYTES_MAX`], each with the digest of
/// its passages' digests.
fn joined(text: Vec<Document>) -> Vec<Document> {
    let mut documents: Vec<(Document, Vec<u8>)> = Vec::new();
    for passage in text {
        let digest = passage.digest.as_bytes();
        match documents.last_mut() {
            Some((last, digests)) if last.bytes + passage.bytes <= DOCUMENT_BYTES_MAX => {
                last.bytes += passage.bytes;
                last.tokens.end = passage.tokens.end;
                digests.extend(digest);
            }
            _ => {
                let digests = digest.to_vec();
                documents.push((passage, digests));
            }
        }
    }
    documents
        .into_iter()
        .map(|(document, digests)| Document {
            digest: Digest::of(&digests),
            ..document
        })
        .collect()
}

/// Reads at most `room` bytes of a file's text, and returns true if there are more; or returns the
/// reason why the file is no text.
fn read(path: &Path, room: u64) -> Result<(String, bool), (Reason, Option<String>)> {
    let unreadable = |error: io::Error| (Reason::Unreadable, Some(error.to_string()));
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(room.saturating_add(BEYOND))
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err((Reason::Utf16, None));
    }
    if bytes.starts_with(MARK) {
        bytes.drain(..MARK.len());
    }
    if bytes.is_empty() {
        return Err((Reason::Empty, None));
    }
    let is_cut = bytes.len() as u64 > room;
    bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX));
    if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
        return Err((Reason::Nul, Some(format!("at byte {at}"))));
    }
    text(bytes, is_cut).map(|text| (text, is_cut))
}

/// The bytes as text. Text that was cut may end within a character; no other fault is allowed.
fn text(bytes: Vec<u8>, is_cut: bool) -> Result<String, (Reason, Option<String>)> {
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            let (at, wrong) = (
                error.utf8_error().valid_up_to(),
                error.utf8_error().error_len(),
            );
            let mut bytes = error.into_bytes();
            if is_cut && wrong.is_none() {
                bytes.truncate(at);
            }
            let byte = bytes.get(at).copied().unwrap_or_default();
            String::from_utf8(bytes)
                .map_err(|_| (Reason::NotUtf8, Some(format!("byte 0x{byte:02x} at {at}"))))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
        fs::write(path, content).expect("written");
    }

    fn lines(tag: &str, count: usize) -> String {
        (0..count)
            .map(|line| format!("line {line} of {tag}\n"))
            .collect()
    }

    fn corpus(source: &Source, limit: Bytes) -> Result<Corpus, DataError> {
        Corpus::read(source, &[], limit, &TextTokenizer::Byte)
    }

    /// The text of the documents in the order in which they were read.
    fn texts(source: &Source) -> String {
        let corpus = corpus(source, Bytes::mebi(1)).expect("enough");
        let parts = corpus
            .documents
            .iter()
            .map(|document| &corpus.tokens[document.tokens.clone()]);
        String::from_utf8(parts.flatten().copied().collect()).expect("text")
    }

    #[test]
    fn takes_text_by_path_and_says_what_it_passes_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        write(root, "b.rs", lines("b", 300));
        write(root, "a/a.rs", lines("a", 300));
        write(root, "c/copy.rs", lines("a", 300));
        write(
            root,
            "notes.txt",
            [MARK, lines("notes", 300).replace('\n', "\r\n").as_bytes()].concat(),
        );
        write(root, ".hidden/x.rs", lines("hidden", 300));
        write(root, "binary.rs", b"fn main() {}\0\0");
        write(root, "latin.rs", b"// caf\xe9");
        write(root, "latin2.rs", b"// \xfc");
        write(root, "cut.rs", b"// caf\xc3");
        write(root, "mark.txt", MARK);
        write(root, "wide.txt", b"\xff\xfea\0b\0");
        symlink(root.join("b.rs"), root.join("link.rs")).expect("a link");
        let rust = Source::RustSources(root.to_owned());
        assert_eq!(texts(&rust), lines("a", 300) + &lines("b", 300));
        let all = Source::Text(root.to_owned());
        let notes = lines("notes", 300).replace('\n', "\r\n");
        assert_eq!(
            texts(&all),
            lines("a", 300) + &lines("b", 300) + &notes,
            "line ends stay, the mark goes"
        );
        assert_eq!(texts(&Source::Text(root.join("notes.txt"))), notes);
        let counts = corpus(&all, Bytes::mebi(1)).expect("enough").counts;
        let told: Vec<String> = counts.skipped.iter().map(SkippedFiles::to_string).collect();
        let expected = [
            "1 not text (a NUL byte): binary.rs (at byte 12)",
            "1 in UTF-16: wide.txt",
            "3 not UTF-8: cut.rs (byte 0xc3 at 6) and 2 more",
            "1 hidden: .hidden",
            "1 empty: mark.txt",
            "2 the same as another file: c/copy.rs and 1 more",
        ];
        assert_eq!(told, expected);
        assert_eq!((counts.files, counts.limit_reached_in), (3, None));
    }

    #[test]
    fn the_limit_is_kept_to_the_character_and_its_end_told() {
        let folder = tempfile::tempdir().expect("a folder");
        (0..60).for_each(|file| {
            write(
                folder.path(),
                &format!("{file:02}.txt"),
                "äöü\n".repeat(100 + file),
            )
        });
        let source = Source::Text(folder.path().to_owned());
        for limit in [4096, 4097, 5001] {
            let counts = corpus(&source, Bytes(limit)).expect("enough").counts;
            assert!(
                (limit - 1..=limit).contains(&counts.text_bytes.get()),
                "{counts:?}"
            );
            assert!(counts.limit_reached_in.is_some(), "{counts:?}");
        }
        // Bytes that are not read do not count against a file.
        write(
            folder.path(),
            "00.txt",
            ["x".repeat(9000).as_bytes(), b"\xe9"].concat(),
        );
        assert_eq!(
            corpus(&source, Bytes(8000))
                .expect("enough")
                .counts
                .limit_reached_in
                .as_deref(),
            Some("00.txt")
        );
        let all = corpus(&source, Bytes::mebi(1)).expect("enough").counts;
        assert_eq!((all.limit_reached_in, all.skipped.len()), (None, 1));
    }

    #[test]
    fn too_little_or_nothing_is_a_coded_error_that_says_why() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = |source: &Source| corpus(source, Bytes::mebi(1)).expect_err("refused");
        let source = Source::Text(folder.path().to_owned());
        assert_eq!(refused(&source).code(), schemas::Code::CorpusEmpty);
        write(folder.path(), "short.txt", "hello");
        write(
            folder.path(),
            "latin.txt",
            [lines("latin", 900).as_bytes(), b"caf\xe9"].concat(),
        );
        let error = refused(&source);
        assert_eq!(error.code(), schemas::Code::CorpusEmpty);
        assert!(
            error
                .to_string()
                .contains("1 not UTF-8: latin.txt (byte 0xe9 at "),
            "{error}"
        );
        assert_eq!(
            refused(&Source::Text(folder.path().join("absent"))).code(),
            schemas::Code::CorpusUnreadable
        );
        assert!(corpus(&source, Bytes(0)).is_err() && corpus(&source, Bytes(u64::MAX)).is_err());
    }

    #[test]
    fn repetition_is_measured_and_kept_once() {
        let folder = tempfile::tempdir().expect("a folder");
        write(
            folder.path(),
            "log.txt",
            "2026-01-01 INFO heartbeat ok\n".repeat(20_000),
        );
        let corpus =
            corpus(&Source::Text(folder.path().to_owned()), Bytes::mebi(1)).expect("enough");
        assert_eq!(corpus.counts.text_bytes, Bytes(580_000));
        assert!(
            corpus.counts.distinct_bytes.get() < 9000 && corpus.documents.len() == 2,
            "{:?}",
            corpus.counts
        );
    }

    #[test]
    fn long_texts_among_many_are_cut_to_documents() {
        let folder = tempfile::tempdir().expect("a folder");
        (0..60).for_each(|file| {
            write(
                folder.path(),
                &format!("{file:02}.txt"),
                lines(&file.to_string(), 20),
            )
        });
        write(folder.path(), "long.txt", lines("long", 40_000));
        let corpus =
            corpus(&Source::Text(folder.path().to_owned()), Bytes::mebi(1)).expect("enough");
        assert_eq!(
            corpus.documents.len(),
            60 + lines("long", 40_000)
                .len()
                .div_ceil(DOCUMENT_BYTES_MAX as usize)
        );
        assert!(
            corpus
                .documents
                .iter()
                .all(|document| document.bytes <= DOCUMENT_BYTES_MAX)
        );
    }
}
