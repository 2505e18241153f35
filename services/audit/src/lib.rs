//! The audit service around [`audit_core`]: it reads stream `AUDIT`, has every event checked, and
//! keeps what it saw in files of its own, so that a stream that is changed later contradicts them.
//! It also receives workers' events about themselves, and records those that pass its checks.
//!
//! [`Replay`] reads and checks in the same way for a command line, without files.
//!
//! | file | holds |
//! | --- | --- |
//! | `reader` | the stream, in order, across reconnects |
//! | `files`, `line` | the append-only files |
//! | `log` | the log of all events: a Merkle tree with signed heads, beside the files |
//! | `mirror`, `copying` | the copy of the log in the store, and the work of copying |
//! | `heads` | the newest head for workers that ask, and their cosignatures |
//! | `recorder` | auditor, files and log together: a batch in, findings out |
//! | `intake` | workers' events: heard, checked, recorded, answered |
//! | `questions` | workers' questions about the log, heard as soon as the broker allows it |
//! | `sentry` | what broker, services and store refuse and who connects, recorded |
//! | `look` | what the embedded store refused, fetched from it |
//! | `hearing` | the reports of broker and services, heard for as long as the service runs |
//! | `tail` | the broker's log, read as it grows |
//! | `service` | the loop of the program |
//! | `ledger_keys` | the keys that may sign the ledger, and where they have ended |
//! | `replay` | a whole replay, and following on |
//! | `provenance` | manifests, statements and signatures of an object's ancestry |
//! | `recomputation` | merges made again from objects, and compared with the ledger |
//! | `program`, `config` | the command line and the configuration |

pub mod config;
pub mod copying;
pub mod files;
pub mod heads;
mod hearing;
mod intake;
mod ledger_keys;
mod line;
pub mod log;
mod look;
pub mod mirror;
#[cfg(test)]
mod played;
pub mod program;
pub mod provenance;
mod questions;
pub mod reader;
pub mod recomputation;
pub mod recorder;
pub mod replay;
mod sentry;
pub mod service;
mod tail;

pub use audit_core::{
    Auditor, Checked, DIGITS_MIN, DigestPrefix, EmitterSummary, FaultyWorker, Finding,
    ForeignMessage, Payload, PlacedFinding, Record, RunSummary, StreamSequence, Summary,
    TimelineRow, UNREADABLE, Verdict,
};
pub use audit_core::{ancestry, lineage, recompute};
pub use config::Config;
pub use files::{AuditFiles, AuditFilesError, Comparison, Known};
pub use ledger_keys::LedgerKeys;
pub use reader::{Reader, Span};
pub use recomputation::Recomputation;
pub use recorder::{Recalled, Recorder, RecorderError, auditor_of, recall_files, signed_events};
pub use replay::{Replay, ReplayError};
pub use service::Service;
