//! The cosigned heads of workers, as they lie beside the log.

use audit_core::log::Log;
use runtime::Failure;
use schemas::Code;
use serde::Serialize;
use tlog::layout;

use super::log::Source;

/// Most workers whose cosigned heads are looked for: each costs a question to the store.
const LOOKED_FOR_MAX: usize = 512;

/// The cosigned heads of workers, as the audit service keeps them. No cosignature is checked: only
/// a policy says whose keys they are to be.
#[derive(Serialize)]
pub(super) struct Kept {
    /// Workers with a cosigned head of this log.
    pub(super) workers: usize,
    /// Those of them whose head is the newest.
    pub(super) newest: usize,
    /// Workers that were not looked for, since there are too many.
    pub(super) not_counted: usize,
}

impl Kept {
    pub(super) fn of(source: &Source, log: &Log) -> Result<Self, Failure> {
        let (mut workers, mut newest) = (0, 0);
        let all = log.workers();
        let not_counted = all.len().saturating_sub(LOOKED_FOR_MAX);
        for worker in all.into_iter().take(LOOKED_FOR_MAX) {
            let name = layout::cosigned(worker.as_str());
            let read = source.read(&name);
            let note =
                read.map_err(|error| Failure::new(Code::LogUnproven, format!("{name}: {error}")))?;
            if let Some(head) = note.and_then(|note| source.trusted.open(&name, &note).ok()) {
                workers += 1;
                newest += usize::from(head == *log.head());
            }
        }
        Ok(Self {
            workers,
            newest,
            not_counted,
        })
    }
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            workers,
            newest,
            not_counted,
        } = self;
        write!(
            f,
            "by {workers} workers, {newest} of them this head; `audit verify --policy` checks that"
        )?;
        match not_counted {
            0 => Ok(()),
            more => write!(f, "; {more} further workers were not looked for"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_were_not_looked_for_are_told() {
        let kept = |not_counted| Kept {
            workers: 500,
            newest: 3,
            not_counted,
        };
        let [all, some] = [0, 7].map(|more| kept(more).to_string());
        assert!(!all.contains("further"), "{all}");
        assert!(
            some.ends_with("; 7 further workers were not looked for"),
            "{some}"
        );
    }
}
