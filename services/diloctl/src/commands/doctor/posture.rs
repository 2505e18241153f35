//! The layers of authentication that each process has open: of the coordinator and of members as
//! they said over the bus, of the services and workers of this machine as their ready files say.

use std::fs;

use runtime::Failure;
use runtime::ready::Ready;
use schemas::Code;
use schemas::member::{Layer, Posture};
use schemas::view::{CoordinatorView, WorkerView};
use serde::Serialize;

use super::{Finding, Report};
use crate::context::Context;
use crate::output::Row;
use crate::stack;

/// The name of the process that always says its posture over the bus.
const COORDINATOR: &str = "coordinator";

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PostureRow {
    process: String,
    /// The way on which this is known.
    by: &'static str,
    posture: Posture,
}

impl PostureRow {
    pub(super) fn of_coordinator(view: &CoordinatorView) -> Self {
        Self {
            process: COORDINATOR.to_owned(),
            by: "bus",
            posture: view.posture.clone(),
        }
    }

    pub(super) fn of_worker(view: &WorkerView) -> Self {
        Self {
            process: format!("worker {} of {}", view.worker.short(), view.run),
            by: "bus",
            posture: view.posture.clone(),
        }
    }

    fn of_service(ready: Ready) -> Self {
        Self {
            process: format!("{} (process {})", ready.service, ready.pid),
            by: "ready file",
            posture: ready.posture,
        }
    }
}

impl Row for PostureRow {
    const TITLES: &'static [&'static str] = &[
        "process",
        "by",
        "bus",
        "bulk",
        "manifests",
        "enrolment",
        "reasons",
    ];

    fn cells(&self) -> Vec<String> {
        let layer = |layer| match self.posture.is_open(layer) {
            true => "OPEN".to_owned(),
            false => "required".to_owned(),
        };
        let reasons: Vec<&str> = self
            .posture
            .open
            .iter()
            .map(|open| open.reason.as_str())
            .collect();
        let mut cells = vec![self.process.clone(), self.by.to_owned()];
        cells.extend(Layer::ALL.map(layer));
        cells.push(match reasons.is_empty() {
            true => "-".to_owned(),
            false => reasons.join("; "),
        });
        cells
    }
}

/// Adds the services of this machine that say nothing over the bus, and judges all postures.
///
/// # Errors
/// The notes on running processes cannot be read.
pub(super) fn look(context: &Context, report: &mut Report) -> Result<(), Failure> {
    let by_bus = report.postures.iter().any(|row| row.process == COORDINATOR);
    for path in stack::ready_files(&context.folder)? {
        // A service that ends at this moment has removed its file.
        let Some(ready) = fs::read(path).ok().and_then(|text| parsed(&text)) else {
            continue;
        };
        let told = by_bus && ready.service == COORDINATOR;
        if !told {
            report.postures.push(PostureRow::of_service(ready));
        }
    }
    let finding = judged(&report.postures);
    report.add(finding);
    Ok(())
}

fn parsed(text: &[u8]) -> Option<Ready> {
    serde_json::from_slice(text).ok()
}

fn judged(rows: &[PostureRow]) -> Finding {
    const CHECK: &str = "postures";
    if rows.is_empty() {
        return Finding::skipped(CHECK, "no process was heard of");
    }
    let open: Vec<String> = rows
        .iter()
        .flat_map(|row| {
            let layers = row.posture.open.iter();
            layers.map(|open| format!("{}: {}", row.process, open.layer.name()))
        })
        .collect();
    match open.is_empty() {
        true => Finding::ok(
            CHECK,
            match rows.len() {
                1 => "1 process requires every layer".to_owned(),
                count => format!("{count} processes require every layer"),
            },
        ),
        false => Finding::warn(CHECK, Code::LayerOpen, format!("open: {}", open.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use schemas::member::OpenLayer;

    use super::*;
    use crate::commands::doctor::State;

    #[test]
    fn an_open_layer_is_told_with_its_process_and_its_reason() {
        let row = |process: &str, open: Vec<OpenLayer>| PostureRow {
            process: process.to_owned(),
            by: "bus",
            posture: Posture { open },
        };
        assert_eq!(judged(&[]).state, State::Skipped);
        let closed = row("coordinator", vec![]);
        assert_eq!(judged(std::slice::from_ref(&closed)).state, State::Ok);
        let open = row(
            "store",
            vec![OpenLayer {
                layer: Layer::Bulk,
                reason: "a sealed network".to_owned(),
            }],
        );
        assert_eq!(
            open.cells()[2..],
            [
                "required",
                "OPEN",
                "required",
                "required",
                "a sealed network"
            ]
        );
        let found = judged(&[closed, open]);
        assert_eq!(
            (found.state, found.code),
            (State::Warn, Some(Code::LayerOpen))
        );
        assert_eq!(found.found, "open: store: bulk");
    }
}
