//! Signed, numbered, hashed events: one writer and one reader for the coordinator's ledger,
//! workers' own events, and the auditors of both. No I/O and no private key: a shell stores the
//! bytes, and crate `identity` signs them.
//!
//! An event is a body, encoded once; its key, its signature over that body, and the body itself are
//! sent and stored. Each body names its position in its emitter's chain and the digest of the body
//! before it.
//!
//! | file | holds |
//! | --- | --- |
//! | `signature` | the bytes that are signed, and the check of a signature |
//! | `tabled` | the same check for a key that signs many events, in a third of the time |
//! | `multiples`, `point`, `field` | products of a point as sums of its multiples; no secret number comes there |
//! | `end` | the end of a chain: makes the next event, and relates an event to the chain |
//! | `history` | the events of a chain so far; tells copies, forks and gaps apart |
//! | `entry` | a stored message, opened: its signature checked, its body decoded |
//! | `leaf` | an event as an entry of the log of all events, and the log manifest as its first entry |
//! | `proof` | the checks of a ledger message by itself, which run on many cores |
//! | `reader` | one chain, followed strictly: the ledger as coordinators read it |

mod end;
mod entry;
mod field;
mod history;
mod leaf;
mod multiples;
mod point;
mod proof;
mod reader;
mod signature;
mod tabled;

pub use end::{Draft, End, Relation};
pub use entry::{Claimed, Entry, Fault, Misplaced};
pub use history::{History, REMEMBERED};
pub use leaf::{leaf, manifest_leaf, of_leaf, of_manifest_leaf};
pub use proof::{Proof, Writers, is_over};
pub use reader::{Judgement, Reader};
pub use signature::{
    Signatures, is_signed_event, is_signed_statement, signed, signed_bytes, statement_bytes,
};
