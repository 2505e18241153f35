//! The newest head for workers that ask, out of the folder of the log: with the hashes that lead to
//! it from the head that the worker keeps, and from events of its own. And the cosignatures that
//! workers give: the newest of each, in a file of its name.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use audit_core::Question;
use data_encoding::BASE64;
use identity::TrustBundle;
use identity::key::public_bytes;
use identity::secret::create_private_subfolder;
use schemas::head::{CosignRequest, HeadReply, Inclusion};
use schemas::lease::Done;
use schemas::{ChainSequence, Code, Refusal, V, WorkerId};
use serde_bytes::ByteArray;
use tlog::cosign::Witness;
use tlog::layout::{self, CHECKPOINT, COSIGNED};
use tlog::proof::Prover;
use tlog::{Hash, Head};

use crate::log::read_file;

/// Most workers whose cosignatures are kept: twice as many as a run may have.
const COSIGNED_MAX: usize = 8192;

/// The folder of a log, for those who ask.
#[derive(Clone, Debug)]
pub struct Heads {
    folder: PathBuf,
    origin: String,
    keys: Vec<[u8; 32]>,
}

impl Heads {
    /// The heads of this domain's log in `folder`.
    pub fn new(folder: PathBuf, trust: &TrustBundle) -> Self {
        Self {
            folder,
            origin: audit_core::log::origin(trust.domain.as_str()),
            keys: trust.raw_head_keys(),
        }
    }

    /// The newest head, with the hashes that lead to it from the first `known` events and from each
    /// of `events`. If it covers fewer than `known` there are no hashes, and the asker sees why.
    ///
    /// # Errors
    /// The refusal to answer with: there is no head yet, or it cannot be read now.
    pub fn newest(
        &self,
        known: u64,
        events: &[(ChainSequence, u64)],
    ) -> Result<HeadReply, Refusal> {
        let (head, note) = self.read(CHECKPOINT)?;
        let mut read = |tile: layout::Tile| {
            let own = read_file(&self.folder.join(tile.path()))?;
            match own {
                Some(bytes) => Ok(Some(bytes)),
                None => read_file(&self.folder.join(tile.full().path())),
            }
        };
        let mut prover = Prover::new(head.size, &mut read);
        let consistency = match known <= head.size {
            true => {
                let hashes = prover.consistency(known).map_err(|error| later(&error))?;
                // Without them the asker would take the head for one of another history.
                let missing = || Refusal::new(Code::HeadMissing, "a tile of the log is not there");
                stated(hashes.ok_or_else(missing)?)
            }
            false => Vec::new(),
        };
        let mut proven = Vec::new();
        for (sequence, index) in events {
            let hashes = prover.inclusion(*index).map_err(|error| later(&error))?;
            proven.extend(hashes.map(|hashes| Inclusion {
                sequence: *sequence,
                index: *index,
                hashes: stated(hashes),
            }));
        }
        Ok(HeadReply {
            v: V,
            note,
            consistency,
            events: proven,
        })
    }

    /// Keeps a worker's cosignature, if it is one of a head of this log. What is there stays if it
    /// covers more, or if it covers as much and another key has made it: then somebody else speaks
    /// in the worker's name, and nothing is lost.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub fn keep(&self, worker: &WorkerId, cosigned: &CosignRequest) -> Result<(), Refusal> {
        let refused = |text: String| Refusal::new(Code::CosignatureRefused, text);
        let CosignRequest {
            v: _,
            key,
            size,
            time,
            signature,
        } = cosigned;
        let raw = public_bytes(key).map_err(|error| refused(error.to_string()))?;
        let witness = Witness::new(worker.as_str(), raw);
        let witness = witness.map_err(|error| refused(error.to_string()))?;
        let (head, mut note) = self.read(&layout::head(*size))?;
        let seconds = time.get() / 1000;
        note.push_str(&witness.line(seconds, signature));
        if witness.cosigned_at(note.as_bytes(), &head) != Ok(Some(seconds)) {
            let text = format!(
                "{worker} has not cosigned the head over {size} events with root {}",
                BASE64.encode(&head.root)
            );
            return Err(refused(text));
        }
        let path = self.folder.join(layout::cosigned(worker.as_str()));
        let before = read_file(&path).map_err(|error| later(&error))?;
        if before.is_some_and(|before| self.stays(&before, &witness, *size)) {
            return Ok(());
        }
        write(&self.folder, &path, note.as_bytes()).map_err(|error| later(&error))
    }

    /// True for a cosigned head that one over `size` events by this witness does not replace.
    fn stays(&self, before: &[u8], witness: &Witness, size: u64) -> bool {
        let Ok(kept) = Head::open(before, &self.origin, &self.keys) else {
            return false;
        };
        let by_another = || !matches!(witness.cosigned_at(before, &kept), Ok(Some(_)));
        kept.size > size || kept.size == size && by_another()
    }

    fn read(&self, name: &str) -> Result<(Head, String), Refusal> {
        let missing = |reason: &str| Refusal::new(Code::HeadMissing, format!("{name}: {reason}"));
        let note = read_file(&self.folder.join(name)).map_err(|error| later(&error))?;
        let note = note.ok_or_else(|| missing("the log has no such head"))?;
        let head = Head::open(&note, &self.origin, &self.keys)
            .map_err(|error| missing(&error.to_string()))?;
        let note = String::from_utf8(note).expect("a head is text");
        Ok((head, note))
    }

    /// Answers a question: [`Heads::newest`] or [`Heads::keep`].
    pub(crate) fn answer(&self, worker: &WorkerId, question: &Question) -> Answered {
        match question {
            Question::Head { known, events } => Answered::Head(self.newest(*known, events)),
            Question::Cosign(cosigned) => {
                let kept = self.keep(worker, cosigned);
                Answered::Cosigned(kept.map(|()| Done::default()))
            }
        }
    }
}

/// The answer to a question.
pub(crate) enum Answered {
    Head(Result<HeadReply, Refusal>),
    Cosigned(Result<Done, Refusal>),
}

fn stated(hashes: Vec<Hash>) -> Vec<ByteArray<32>> {
    hashes.into_iter().map(ByteArray::new).collect()
}

/// A disk that fails is no verdict about the question.
fn later(error: &io::Error) -> Refusal {
    Refusal::new(Code::EventLater, error.to_string())
}

/// Puts the file in place in one step, and the bytes before the name: after a power failure the
/// worker has its last cosignature or the one before. Where as many as can be are kept, the oldest
/// makes room.
fn write(log: &Path, path: &Path, note: &[u8]) -> io::Result<()> {
    let folder = log.join(COSIGNED);
    if !folder.is_dir() {
        create_private_subfolder(&folder).map_err(io::Error::other)?;
    }
    if !path.exists() {
        make_room(&folder)?;
    }
    let part = path.with_extension("part");
    let mut file = File::create(&part)?;
    file.write_all(note)?;
    file.sync_all()?;
    std::fs::rename(part, path)
}

/// Removes the file that was written first, if there are as many as can be. A worker whose file
/// goes brings it back with its next cosignature.
fn make_room(folder: &Path) -> io::Result<()> {
    let files = std::fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    if files.len() < COSIGNED_MAX {
        return Ok(());
    }
    let written = |file: &std::fs::DirEntry| file.metadata().and_then(|about| about.modified());
    let dated = files.iter().map(|file| Ok((written(file)?, file.path())));
    let oldest = dated.collect::<io::Result<Vec<_>>>()?.into_iter().min();
    oldest.map_or(Ok(()), |(_, path)| std::fs::remove_file(path))
}
