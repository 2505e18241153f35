//! Choosing text: files in order of their paths, until a budget is used up.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use schemas::{Bytes, Digest};
use walkdir::{DirEntry, WalkDir};

use crate::DataError;

/// Most text of one corpus: it is held in memory, with its tokens, while it is imported.
pub const CORPUS_BYTES_MAX: Bytes = Bytes::mebi(1024);
/// Least text of a corpus: below, neither part of the split says anything.
pub(crate) const CORPUS_BYTES_MIN: u64 = 4096;
/// Largest file that is looked at; longer ones are data, not text that someone wrote.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Longer texts are cut, so that no single one decides what the split looks like.
const DOCUMENT_BYTES_MAX: usize = 256 << 10;
/// How texts are cut when there are only a few of them.
const PASSAGE_BYTES: usize = 4 << 10;
/// From this number of texts on, whole texts are split between training and held-out.
const DOCUMENTS_FEW: usize = 50;
/// Deepest folder that is entered; symbolic links are not followed, so real trees are far from it.
const DEPTH_MAX: usize = 64;

/// Where text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The `.rs` files below a folder, such as cargo's registry sources.
    RustSources(PathBuf),
    /// A text file, or every text file below a folder.
    Text(PathBuf),
}

/// A piece of text that is trained on or held out as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The text.
    pub text: String,
    /// Its digest, which no other document has.
    pub digest: Digest,
}

impl Source {
    /// The file or folder.
    pub fn path(&self) -> &Path {
        match self {
            Self::RustSources(path) | Self::Text(path) => path,
        }
    }
}

/// Takes files by ascending path until their distinct text reaches `budget`. Hidden files, symbolic links, files that are
/// not UTF-8 or hold a NUL byte, and text that was already taken are passed over. Long texts, and all texts where there
/// are few, are cut at line ends.
///
/// # Errors
/// The path or a file below it cannot be read, the budget is out of bounds, or there is too little text.
pub fn select(source: &Source, budget: Bytes) -> Result<Vec<Document>, DataError> {
    if !(CORPUS_BYTES_MIN..=CORPUS_BYTES_MAX.get()).contains(&budget.get()) {
        let reason = format!("corpus budget is {budget} bytes, expected {CORPUS_BYTES_MIN} to {CORPUS_BYTES_MAX}");
        return Err(DataError::Bounds(reason));
    }
    let mut seen = BTreeSet::new();
    let mut texts = Vec::new();
    let mut bytes = 0;
    for entry in walk(source.path()) {
        let entry = entry.map_err(|error| unreadable(error.path().unwrap_or(source.path()), &error))?;
        if !wanted(source, &entry) {
            continue;
        }
        let Some(text) = read(entry.path())? else { continue };
        if seen.insert(Digest::of(text.as_bytes())) {
            bytes += text.len() as u64;
            texts.push(text);
        }
        if bytes >= budget.get() {
            break;
        }
    }
    if bytes < CORPUS_BYTES_MIN {
        let path = source.path().to_owned();
        return Err(DataError::Empty { path, found: bytes, needed: CORPUS_BYTES_MIN });
    }
    if let Some(last) = texts.last_mut() {
        let excess = bytes.saturating_sub(budget.get()) as usize;
        last.truncate(floor_char(last, last.len() - excess.min(last.len())));
    }
    Ok(documents(texts))
}

fn walk(root: &Path) -> impl Iterator<Item = walkdir::Result<DirEntry>> {
    // Names are compared within each folder, which orders whole paths and needs no list of all files.
    let walk = WalkDir::new(root).max_depth(DEPTH_MAX).sort_by_file_name().into_iter();
    walk.filter_entry(|entry| entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.'))
}

fn wanted(source: &Source, entry: &DirEntry) -> bool {
    // Only the path that was named may be a link; `is_file` is false for links below it.
    let file = if entry.depth() == 0 { entry.path().is_file() } else { entry.file_type().is_file() };
    let kind = match source {
        Source::RustSources(_) => entry.path().extension().is_some_and(|extension| extension == "rs"),
        Source::Text(_) => true,
    };
    file && kind
}

/// The file's text; `None` for what is not text.
fn read(path: &Path) -> Result<Option<String>, DataError> {
    let length = fs::metadata(path).map_err(|error| unreadable(path, &error))?.len();
    if length == 0 || length > FILE_BYTES_MAX {
        return Ok(None);
    }
    let bytes = fs::read(path).map_err(|error| unreadable(path, &error))?;
    Ok(String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')))
}

fn unreadable(path: &Path, error: &dyn std::error::Error) -> DataError {
    DataError::Unreadable { path: path.to_owned(), reason: error.to_string() }
}

fn documents(texts: Vec<String>) -> Vec<Document> {
    let size = if texts.len() < DOCUMENTS_FEW { PASSAGE_BYTES } else { DOCUMENT_BYTES_MAX };
    let mut seen = BTreeSet::new();
    let mut documents = Vec::with_capacity(texts.len());
    for text in texts {
        for piece in pieces(&text, size) {
            let digest = Digest::of(piece.as_bytes());
            if seen.insert(digest) {
                documents.push(Document { text: piece.to_owned(), digest });
            }
        }
    }
    documents
}

/// Cuts after the last line end within `size` bytes, or at a character where there is none.
fn pieces(text: &str, size: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let room = floor_char(rest, size.min(rest.len()));
        let end = if room == rest.len() { room } else { rest[..room].rfind('\n').map_or(room, |at| at + 1) };
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

fn floor_char(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(folder: &Path, name: &str, content: &[u8]) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
        fs::write(path, content).expect("written");
    }

    fn lines(tag: &str, count: usize) -> String {
        (0..count).map(|line| format!("line {line} of {tag}\n")).collect()
    }

    #[test]
    fn takes_text_by_path_and_passes_over_the_rest() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        write(root, "b.rs", lines("b", 300).as_bytes());
        write(root, "a/a.rs", lines("a", 300).as_bytes());
        write(root, "c/copy.rs", lines("a", 300).as_bytes());
        write(root, "notes.txt", lines("notes", 300).as_bytes());
        write(root, ".hidden/x.rs", lines("hidden", 300).as_bytes());
        write(root, "binary.rs", b"fn main() {}\0\0");
        write(root, "latin.rs", b"// caf\xe9");
        symlink(root.join("b.rs"), root.join("link.rs")).expect("a link");
        let joined = |source: Source| -> String {
            select(&source, Bytes::mebi(1)).expect("enough").into_iter().map(|document| document.text).collect()
        };
        assert_eq!(joined(Source::RustSources(root.to_owned())), lines("a", 300) + &lines("b", 300));
        let all = lines("a", 300) + &lines("b", 300) + &lines("notes", 300);
        assert_eq!(joined(Source::Text(root.to_owned())), all);
        assert_eq!(joined(Source::Text(root.join("notes.txt"))), lines("notes", 300));
    }

    #[test]
    fn the_budget_is_kept_to_the_character() {
        let folder = tempfile::tempdir().expect("a folder");
        (0..60).for_each(|file| write(folder.path(), &format!("{file:02}.txt"), "äöü\n".repeat(100 + file).as_bytes()));
        for budget in [4096, 4097, 5001] {
            let documents = select(&Source::Text(folder.path().to_owned()), Bytes(budget)).expect("enough");
            let bytes: usize = documents.iter().map(|document| document.text.len()).sum();
            assert!((budget - 1..=budget).contains(&(bytes as u64)), "{bytes} of {budget}");
        }
    }

    #[test]
    fn too_little_or_nothing_is_a_coded_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let code = |source: &Source| select(source, Bytes::mebi(1)).expect_err("refused").code();
        let source = Source::Text(folder.path().to_owned());
        assert_eq!(code(&source), schemas::Code::CorpusEmpty);
        write(folder.path(), "short.txt", b"hello");
        assert_eq!(code(&source), schemas::Code::CorpusEmpty);
        assert_eq!(code(&Source::Text(folder.path().join("absent"))), schemas::Code::CorpusUnreadable);
        assert!(select(&source, Bytes(0)).is_err() && select(&source, Bytes(u64::MAX)).is_err());
    }

    #[test]
    fn pieces_are_the_whole_and_end_at_lines() {
        let text = lines("x", 500) + &"ä".repeat(9000);
        let cut: Vec<&str> = pieces(&text, 4096).collect();
        assert_eq!(cut.concat(), text);
        assert!(cut.iter().all(|piece| piece.len() <= 4096));
        assert!(cut[0].ends_with('\n'));
    }
}
