//! The log of an audit service in memory, for tests of its readers.

use std::collections::BTreeMap;
use std::convert::Infallible;

use identity::{AuditKey, HeadKey, ManifestKey, TrustBundle};
use schemas::head::{HeadReply, Inclusion};
use schemas::{ChainSequence, V};
use serde_bytes::ByteArray;
use tlog::layout::Tile;
use tlog::proof::Prover;
use tlog::{Head, Writer};

use crate::trust;

/// A log, and the key that signs its heads.
pub struct SignedLog {
    /// The domain, which names the key.
    pub trust: TrustBundle,
    key: HeadKey,
    writer: Writer,
    files: BTreeMap<String, Vec<u8>>,
    newest: Option<(Head, String)>,
}

impl Default for SignedLog {
    /// An empty log of a new domain.
    fn default() -> Self {
        let (key, manifest, audit) = (
            HeadKey::generate(),
            ManifestKey::generate(),
            AuditKey::generate(),
        );
        let head_keys = vec![key.public().clone()];
        let trust = trust(manifest.public(), audit.public());
        Self::of(key, TrustBundle { head_keys, ..trust })
    }
}

impl SignedLog {
    fn of(key: HeadKey, trust: TrustBundle) -> Self {
        let origin = schemas::log_manifest::origin(trust.domain.as_str());
        Self {
            trust,
            key,
            writer: Writer::new(origin, None).expect("a new log"),
            files: BTreeMap::new(),
            newest: None,
        }
    }

    /// Another log that the same key signs, still empty.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self::of(self.key.clone(), self.trust.clone())
    }

    /// A log of the same name that a key of nobody signs.
    #[must_use]
    pub fn strangers(&self) -> Self {
        Self::of(HeadKey::generate(), self.trust.clone())
    }

    /// Appends these entries and signs a head over all.
    ///
    /// # Panics
    /// There are none, or one is too long.
    pub fn sign<Entry: AsRef<[u8]>>(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            self.writer.push(entry.as_ref(), 0).expect("it is short");
        }
        let batch = self.writer.batch(|head| self.key.sign_head(head));
        let batch = batch.expect("an entry is new");
        let written = batch.writes.into_iter();
        self.files
            .extend(written.map(|write| (write.path, write.bytes)));
        self.writer.published(&batch.head);
        let note = self.key.sign_head(&batch.head);
        self.newest = Some((batch.head, note));
    }

    /// The newest head and its signed text.
    ///
    /// # Panics
    /// None was signed.
    pub fn newest(&self) -> (&Head, &str) {
        let (head, note) = self.newest.as_ref().expect("a head was signed");
        (head, note)
    }

    /// The files of the log, by their names: tiles and bundles. The newest head is not among them.
    pub const fn files(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.files
    }

    /// The number of entries under the newest head; 0 without one.
    pub fn size(&self) -> u64 {
        self.newest.as_ref().map_or(0, |(head, _)| head.size)
    }

    /// The newest head, the proof that it continues the one over `known` entries, and proofs of
    /// these events, each with its place. What the head does not cover has no proof.
    ///
    /// # Panics
    /// No head was signed.
    pub fn answer(&self, known: u64, events: &[(ChainSequence, u64)]) -> HeadReply {
        let (head, note) = self.newest();
        let mut read = |tile: Tile| Ok::<_, Infallible>(self.files.get(&tile.path()).cloned());
        let mut prover = Prover::new(head.size, &mut read);
        let stated = |hashes: Vec<[u8; 32]>| hashes.into_iter().map(ByteArray::new).collect();
        let Ok(consistency) = prover.consistency(known);
        let proven = events.iter().filter_map(|(sequence, index)| {
            let Ok(hashes) = prover.inclusion(*index);
            Some(Inclusion {
                sequence: *sequence,
                index: *index,
                hashes: stated(hashes?),
            })
        });
        let events = proven.collect();
        HeadReply {
            v: V,
            note: note.to_owned(),
            consistency: stated(consistency.unwrap_or_default()),
            events,
        }
    }
}
