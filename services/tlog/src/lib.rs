//! The log of events as a Merkle tree (RFC 6962) in the layout of C2SP tlog-tiles: its writer, and
//! the forms that writer and readers share. No I/O, no clock, no private key.
//!
//! The hashing of the tree is private to this crate and only [`Writer`] uses it. Programs that
//! check a log use other code for that, so that a mistake here does not hide itself.
//!
//! | file | holds |
//! | --- | --- |
//! | `layout` | the names of tiles, bundles and heads, and the bytes of a bundle |
//! | `note` | a tree head as signed text (C2SP signed-note, tlog-checkpoint) |
//! | `cosign` | cosignatures of witnesses, and which of them are enough (C2SP tlog-cosignature, tlog-policy) |
//! | `edge` | the right edge of the tree: all that is needed to append |
//! | `proof` | the hashes that lead from one head to another, or from an entry to a head, out of tiles |
//! | `spelling` | base64 in its one spelling |
//! | `writer` | which files are written in which order, and when a head is due |

pub mod cosign;
mod edge;
pub mod layout;
pub mod note;
pub mod proof;
mod spelling;
mod writer;

pub use note::{Head, HeadError};
pub use spelling::from_base64;
pub use writer::{Batch, EVENTS_MAX, HEAD_EVERY_MILLIS, Write, Writer, WriterError};

/// A hash of the tree.
pub type Hash = [u8; 32];
