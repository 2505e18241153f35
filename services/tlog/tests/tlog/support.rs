//! A log in memory, and its key.

use std::collections::BTreeMap;

use ed25519_dalek::{Signer as _, SigningKey};
use tlog::layout::{CHECKPOINT, HEADS};
use tlog::{Batch, Head, Write, Writer};

pub(crate) const ORIGIN: &str = "diloco/test";

/// The files of a log.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

pub(crate) fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

pub(crate) fn public() -> [u8; 32] {
    key().verifying_key().to_bytes()
}

pub(crate) fn sign(head: &Head) -> String {
    let signature = key().sign(head.text().as_bytes());
    head.signed(&public(), &signature.to_bytes())
}

/// An entry: its length differs from that of its neighbours.
pub(crate) fn entry(index: u64) -> Vec<u8> {
    let mut bytes = index.to_be_bytes().to_vec();
    bytes.resize(8 + (index % 5) as usize, 0xAB);
    bytes
}

/// Writes a file as the shell does.
pub(crate) fn write(files: &mut Files, write: &Write) {
    let before = files.insert(write.path.clone(), write.bytes.clone());
    let same = before.is_none_or(|before| before == write.bytes);
    assert!(same || write.replaces(), "{} was changed", write.path);
}

pub(crate) fn published(files: &Files) -> Option<Head> {
    newest(files).map(|(head, _)| head)
}

/// The newest of all heads, with its text.
fn newest(files: &Files) -> Option<(Head, Vec<u8>)> {
    let is_head = |path: &str| path == CHECKPOINT || path.starts_with(HEADS);
    let notes = files.iter().filter(|(path, _)| is_head(path));
    let open = |(_, note): (&String, &Vec<u8>)| {
        let head = Head::open(note, ORIGIN, &[public()]).expect("the writer signed it");
        (head, note.clone())
    };
    notes.map(open).max_by_key(|(head, _)| head.size)
}

/// A writer that was given the entries in `kept` after a start on `files`. As in the shell, a head
/// that was kept and not published is published then.
pub(crate) fn begin(files: &mut Files, kept: impl IntoIterator<Item = u64>) -> Writer {
    let mut writer = Writer::new(ORIGIN.to_owned(), published(files)).unwrap();
    for index in kept {
        writer.push(&entry(index), 0).unwrap();
    }
    writer.begun().unwrap();
    if let Some((_, note)) = newest(files) {
        files.insert(CHECKPOINT.to_owned(), note);
    }
    writer
}

/// Publishes a head over everything.
pub(crate) fn publish(writer: &mut Writer, files: &mut Files) -> Option<Head> {
    let Batch {
        head,
        writes,
        removals,
    } = writer.batch(sign)?;
    writes.iter().for_each(|one| write(files, one));
    for path in removals {
        files.remove(&path);
    }
    writer.published(&head);
    Some(head)
}
