//! The cosigned heads of workers, as they lie beside the log.

use audit_core::log::Log;
use runtime::Failure;
use schemas::Code;
use serde::Serialize;
use tlog::layout;

use super::log::Source;

/// Most workers whose cosigned heads are looked for: each costs a question to the store.
const LOOKED_FOR_MAX: usize = 512;

/// The cosigned heads of workers, as the audit service keeps them. No cosignature is checked: only a
/// policy says whose keys they are to be.
#[derive(Serialize)]
pub(super) struct Kept {
    /// Workers with a cosigned head of this log.
    pub(super) workers: usize,
    /// Those of them whose head is the newest.
    pub(super) newest: usize,
}

impl Kept {
    pub(super) fn of(source: &Source, log: &Log) -> Result<Self, Failure> {
        let (mut workers, mut newest) = (0, 0);
        for worker in log.workers().into_iter().take(LOOKED_FOR_MAX) {
            let name = layout::cosigned(worker.as_str());
            let read = source.read(&name);
            let note =
                read.map_err(|error| Failure::new(Code::LogUnproven, format!("{name}: {error}")))?;
            if let Some(head) = note.and_then(|note| source.trusted.open(&name, &note).ok()) {
                workers += 1;
                newest += usize::from(head == *log.head());
            }
        }
        Ok(Self { workers, newest })
    }
}
