//! The chunks of one copy of a run's parameters. Either each chunk is named where it is used, or
//! one object lists them all. A list keeps events short, however many chunks a model has.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::code::{Code, Refusal};
use crate::limits::{CHUNKS_MAX, NAMED_CHUNKS_MAX};
use crate::{Bytes, Digest, Hasher, ObjectRef};

/// The first bytes of a list: its type and its version.
const HEADER: &[u8] = b"diloco-chunks/1\n";
/// Bytes of an entry: a length of 8 bytes, little endian, and a digest.
const ENTRY_BYTES: usize = 8 + 32;

/// The chunks of a contribution, of weights or of outer state, in the layout's order. Named chunks
/// are an array on the wire and a list is a map, so that messages from before there were lists are
/// still read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunks {
    /// One object per chunk.
    Named(Vec<ObjectRef>),
    /// One object that lists them.
    Listed(Listed),
}

/// A list of chunks by reference, with the totals that are checked before the list is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// The object that lists them.
    pub list: ObjectRef,
    /// The number of chunks in it.
    pub chunks: u32,
    /// The sum of their lengths.
    pub total: Bytes,
}

impl Chunks {
    /// Names the chunks of a new run's initial weights, and returns the list to store if there is
    /// one. Chunks are listed only if their names would not fit into an event, since a list costs
    /// every lease and every result one more transfer.
    pub fn of_new_run(chunks: Vec<ObjectRef>) -> (Self, Option<Vec<u8>>) {
        if chunks.len() > NAMED_CHUNKS_MAX {
            Self::listing(&chunks)
        } else {
            (Self::Named(chunks), None)
        }
    }

    /// Lists chunks, and returns the list to store.
    pub(crate) fn listing(chunks: &[ObjectRef]) -> (Self, Option<Vec<u8>>) {
        let (listed, bytes) = Listed::of(chunks);
        (Self::Listed(listed), Some(bytes))
    }

    /// The number of chunks.
    pub const fn count(&self) -> usize {
        match self {
            Self::Named(chunks) => chunks.len(),
            Self::Listed(listed) => listed.chunks as usize,
        }
    }

    /// The sum of the chunks' lengths.
    pub fn total(&self) -> Bytes {
        match self {
            Self::Named(chunks) => {
                let add = |sum: Bytes, chunk: &ObjectRef| sum + chunk.bytes;
                chunks.iter().fold(Bytes(0), add)
            }
            Self::Listed(listed) => listed.total,
        }
    }

    /// One digest for all chunks: the list's, or the sha256 over the chunks' digests, in order.
    pub fn digest(&self) -> Digest {
        match self {
            Self::Named(chunks) => {
                let mut hasher = Hasher::default();
                for chunk in chunks {
                    hasher.update(chunk.digest.as_bytes());
                }
                hasher.finish()
            }
            Self::Listed(listed) => listed.list.digest,
        }
    }

    /// The objects that are named here: the chunks, or their list alone.
    pub fn objects(&self) -> &[ObjectRef] {
        match self {
            Self::Named(chunks) => chunks,
            Self::Listed(listed) => std::slice::from_ref(&listed.list),
        }
    }

    /// The list, if there is one.
    pub const fn listed(&self) -> Option<Listed> {
        match self {
            Self::Named(_) => None,
            Self::Listed(listed) => Some(*listed),
        }
    }
}

impl From<Vec<ObjectRef>> for Chunks {
    fn from(chunks: Vec<ObjectRef>) -> Self {
        Self::Named(chunks)
    }
}

impl Listed {
    /// Makes the list of chunks, which are as many as a layout has. The bytes are its only
    /// encoding.
    pub fn of(chunks: &[ObjectRef]) -> (Self, Vec<u8>) {
        let mut bytes = Vec::with_capacity(HEADER.len() + chunks.len() * ENTRY_BYTES);
        bytes.extend_from_slice(HEADER);
        let mut total = Bytes(0);
        for chunk in chunks {
            bytes.extend_from_slice(&chunk.bytes.get().to_le_bytes());
            bytes.extend_from_slice(chunk.digest.as_bytes());
            total += chunk.bytes;
        }
        let listed = Self {
            list: ObjectRef::of(&bytes),
            chunks: u32::try_from(chunks.len()).expect("a layout has few chunks"),
            total,
        };
        (listed, bytes)
    }

    /// The length of a list of this many chunks.
    pub const fn length(chunks: usize) -> Bytes {
        Bytes((HEADER.len() + chunks * ENTRY_BYTES) as u64)
    }

    /// Checks the facts that are known without reading the list: its totals agree with each other.
    ///
    /// # Errors
    /// [`Code::ListMismatch`].
    pub fn check(&self) -> Result<(), Refusal> {
        let mismatch = |detail: String| Err(Refusal::new(Code::ListMismatch, detail));
        let chunks = self.chunks as usize;
        if !(1..=CHUNKS_MAX).contains(&chunks) {
            return mismatch(format!("a list of {chunks} chunks, 1 to {CHUNKS_MAX} are"));
        }
        let (got, expected) = (self.list.bytes, Self::length(chunks));
        if got != expected {
            return mismatch(format!(
                "a list of {got} bytes, one of {chunks} chunks has {expected}"
            ));
        }
        if self.total.get() < u64::from(self.chunks) {
            return mismatch(format!("{chunks} chunks of {} bytes in all", self.total));
        }
        Ok(())
    }

    /// Reads the list's bytes, which have its digest.
    ///
    /// # Errors
    /// [`Code::ListInvalid`] if the bytes are no list, [`Code::ListMismatch`] if its totals differ
    /// from those here.
    pub fn read(&self, bytes: &[u8]) -> Result<Vec<ObjectRef>, Refusal> {
        self.check()?;
        let digest = self.list.digest;
        let invalid =
            |what: &str| Refusal::new(Code::ListInvalid, format!("list {digest}: {what}"));
        let entries = bytes
            .strip_prefix(HEADER)
            .ok_or_else(|| invalid("it does not begin as a list does"))?;
        let (entries, []) = entries.as_chunks::<ENTRY_BYTES>() else {
            return Err(invalid("it ends within an entry"));
        };
        if entries.len() != self.chunks as usize {
            let detail = format!(
                "list {digest} has {} chunks, {} were announced",
                entries.len(),
                self.chunks
            );
            return Err(Refusal::new(Code::ListMismatch, detail));
        }
        let mut chunks = Vec::with_capacity(entries.len());
        let mut total = 0_u64;
        for entry in entries {
            let (length, hash) = entry.split_first_chunk::<8>().expect("an entry is longer");
            let length = u64::from_le_bytes(*length);
            if length == 0 {
                return Err(invalid("it names an empty chunk"));
            }
            total = total
                .checked_add(length)
                .ok_or_else(|| invalid("its lengths come to more than can be"))?;
            chunks.push(ObjectRef {
                digest: Digest::from_bytes(hash.try_into().expect("the rest of an entry")),
                bytes: Bytes(length),
            });
        }
        if total != self.total.get() {
            let detail = format!(
                "the chunks of list {digest} have {total} bytes, {} were announced",
                self.total
            );
            return Err(Refusal::new(Code::ListMismatch, detail));
        }
        Ok(chunks)
    }
}

impl Serialize for Chunks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Named(chunks) => chunks.serialize(serializer),
            Self::Listed(listed) => listed.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Chunks {
    /// Reads straight from the decoder. serde's untagged enums go through a copy that no longer
    /// knows if the form is one for people, and digests need to know that.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ChunksVisitor)
    }
}

struct ChunksVisitor;

impl<'de> Visitor<'de> for ChunksVisitor {
    type Value = Chunks;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("chunks, or a list of chunks")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Chunks, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(items)).map(Chunks::Named)
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Chunks, A::Error> {
        Listed::deserialize(MapAccessDeserializer::new(fields)).map(Chunks::Listed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(count: u64) -> Vec<ObjectRef> {
        let chunk = |n: u64| ObjectRef {
            digest: Digest::of(&n.to_le_bytes()),
            bytes: Bytes(n + 1),
        };
        (0..count).map(chunk).collect()
    }

    #[test]
    fn a_list_reads_back_and_has_one_encoding() {
        for count in [1, 2, 257, CHUNKS_MAX as u64] {
            let (listed, bytes) = Listed::of(&chunks(count));
            assert_eq!(listed.list, ObjectRef::of(&bytes));
            assert_eq!(listed.list.bytes, Listed::length(listed.chunks as usize));
            assert_eq!(listed.total, Bytes(count * (count + 1) / 2));
            let read = listed.read(&bytes).expect("it is a list");
            assert_eq!(read, chunks(count));
            assert_eq!(Listed::of(&read), (listed, bytes));
        }
    }

    #[test]
    fn each_kind_of_bad_list_is_refused_with_its_code() {
        let (listed, bytes) = Listed::of(&chunks(3));
        let code = |listed: Listed, bytes: &[u8]| listed.read(bytes).map_err(|found| found.code);
        let changed = |place: usize, byte: u8| {
            let mut bytes = bytes.clone();
            bytes[place] = byte;
            bytes
        };
        let longer = [bytes.as_slice(), &[0]].concat();
        for bad in [
            &bytes[..bytes.len() - 1],
            &longer,
            &changed(0, b'D'),
            &changed(14, b'2'),
            // The first chunk has one byte; this change removes it.
            &changed(HEADER.len(), 0),
            &bytes[..HEADER.len() - 1],
            &[],
        ] {
            assert_eq!(code(listed, bad), Err(Code::ListInvalid));
        }
        let mut huge = changed(HEADER.len() + 7, 0xff);
        huge[HEADER.len() + ENTRY_BYTES + 7] = 0xff;
        assert_eq!(code(listed, &huge), Err(Code::ListInvalid), "an overflow");
        let entry = bytes.len() - ENTRY_BYTES;
        for other in [
            bytes[..entry].to_vec(),
            [&bytes, &bytes[entry..]].concat(),
            changed(HEADER.len(), 2),
        ] {
            assert_eq!(code(listed, &other), Err(Code::ListMismatch));
        }
        for says in [
            Listed {
                chunks: 2,
                ..listed
            },
            Listed {
                chunks: 0,
                ..listed
            },
            Listed {
                total: Bytes(7),
                ..listed
            },
            Listed {
                total: Bytes(2),
                ..listed
            },
        ] {
            assert_eq!(code(says, &bytes), Err(Code::ListMismatch));
        }
    }

    #[test]
    fn a_list_longer_than_any_model_has_is_refused_before_it_is_read() {
        let chunks = CHUNKS_MAX + 1;
        let listed = Listed {
            list: ObjectRef {
                digest: Digest::of(b"a list"),
                bytes: Listed::length(chunks),
            },
            chunks: u32::try_from(chunks).expect("few"),
            total: Bytes(1 << 30),
        };
        let refused = listed.check().expect_err("too many");
        assert_eq!(refused.code, Code::ListMismatch);
    }

    #[test]
    fn what_named_its_chunks_reads_as_before_and_a_list_reads_back() {
        let named = chunks(2);
        let (listing, _) = Chunks::listing(&named);
        let both = [Chunks::Named(named.clone()), listing];
        for chunks in &both {
            let bytes = rmp_serde::to_vec_named(chunks).expect("it encodes");
            let again: Chunks = rmp_serde::from_slice(&bytes).expect("it decodes");
            assert_eq!(again, *chunks);
            let json = serde_json::to_string(chunks).expect("it encodes");
            let again: Chunks = serde_json::from_str(&json).expect("it decodes");
            assert_eq!(again, *chunks);
        }
        assert_eq!(
            rmp_serde::to_vec_named(&both[0]).expect("it encodes"),
            rmp_serde::to_vec_named(&named).expect("it encodes"),
            "named chunks are the array that they always were"
        );
        for other in ["7", "\"list\"", "{\"list\":1}", "[1]"] {
            assert!(serde_json::from_str::<Chunks>(other).is_err(), "{other}");
        }
    }

    #[test]
    fn a_new_run_lists_what_no_event_could_name() {
        let most = NAMED_CHUNKS_MAX as u64;
        let (named, list) = Chunks::of_new_run(chunks(most));
        assert_eq!((named.listed(), list), (None, None));
        let (listed, list) = Chunks::of_new_run(chunks(most + 1));
        let read = listed
            .listed()
            .expect("a list")
            .read(&list.expect("its bytes"));
        assert_eq!(read, Ok(chunks(most + 1)));
        assert_eq!(listed.count(), NAMED_CHUNKS_MAX + 1);
    }
}
