//! Changes of an input, drawn from a number: what a fuzzer does, without its feedback. So every run
//! of the tests tries the same inputs.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

/// Numbers at which lengths and counters go wrong.
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX,
];
/// Bytes with a meaning in MessagePack, JSON, DER, PEM, subjects or HTTP.
const MARKS: &[u8] =
    b"\x00\xc0\xc1\xc4\xc6\xd9\xdb\xdc\xdd\xde\xdf\xff\x30\x82{}[]\":,.*>-= \r\n/%";

/// A source of changes.
pub struct Changes(ChaCha8Rng);

impl Changes {
    /// The changes that belong to `seed`.
    pub fn of(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number below `bound`, or 0.
    fn below(&mut self, bound: usize) -> usize {
        match bound {
            0 => 0,
            bound => (self.0.next_u64() % bound as u64) as usize,
        }
    }

    /// `input` with one to four changes; some take a piece of `other`.
    pub fn change(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..=self.below(4) {
            self.once(&mut bytes, other);
        }
        bytes
    }

    fn once(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(bytes.len());
        let to = at + self.below((bytes.len() - at).min(32) + 1);
        match self.below(9) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            1 if !bytes.is_empty() => bytes[at] = MARKS[self.below(MARKS.len())],
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..to)),
            4 => drop(bytes.splice(at..at, [MARKS[self.below(MARKS.len())]])),
            5 => {
                let piece = bytes[at..to].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            6 => {
                let width = [1, 2, 4, 8][self.below(4)];
                let edge = EDGES[self.below(EDGES.len())].to_be_bytes();
                let end = (at + width).min(bytes.len());
                drop(bytes.splice(at..end, edge[8 - width..].to_vec()));
            }
            7 => {
                let from = self.below(other.len());
                let until = from + self.below(other.len() - from + 1);
                let end = (at + (until - from)).min(bytes.len());
                drop(bytes.splice(at..end, other[from..until].to_vec()));
            }
            _ => {
                let random = self.0.next_u64().to_le_bytes();
                let end = (at + 4).min(bytes.len());
                drop(bytes.splice(at..end, random[..4].to_vec()));
            }
        }
    }
}
