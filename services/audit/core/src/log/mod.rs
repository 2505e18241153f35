//! The log of all events as a reader checks it: heads, the tree, the events in it, proofs, and the
//! comparison with a stream.
//!
//! An entry of the log is an event in the form of [`chain::leaf`]. Every message that the audit
//! service keeps and that proves its own author is an entry, in the order of its files
//! ([`crate::Examiner::is_entry`]). What nobody signed is none. An event that a stranger signed is
//! one: its key may be named later, by a join or by a newer trust bundle, and the log must not
//! change with that.
//!
//! The first entry of a log may be the manifest of its owner instead (form
//! [`chain::manifest_leaf`], [`schemas::log_manifest`]). Crate `identity` checks who has signed it;
//! here it is compared with what the log holds.
//!
//! Nothing here uses the tree of the writer (crate `tlog`), only its names of files and its form of
//! heads. The tree is that of crate `ct-merkle`.
//!
//! | file | holds |
//! | --- | --- |
//! | `rebuild` | the tree again, from the entries |
//! | `open` | a log: its head, its entries, its tiles, and the head that was pinned |
//! | `events` | the events in it, with their signatures and chains |
//! | `known` | the heads that events name |
//! | `named` | the keys that sign in it, beside those that its owner has named |
//! | `proof` | the proof that one event is under a head, as a text of its own |
//! | `differ` | a stream beside the log |
//! | `fault` | everything that can be wrong |

mod course;
mod differ;
mod events;
mod fault;
mod known;
mod named;
mod open;
mod proof;
mod rebuild;

pub use differ::{Differ, Difference, Differences, Place};
pub use events::{Events, check_events, replay_events};
pub use fault::LogFault;
pub use known::{Contradicted, Contradiction, Known, check_known};
pub use named::{Named, Unnamed, check_named};
pub use open::{Each, Log, Read, Trusted, newest_head};
pub use proof::Proof;
pub use rebuild::Rebuilt;
pub use schemas::log_manifest::origin;
pub use witness::is_included;
