//! The workers whose contributions each version of the weights has, and what follows for
//! promotions. Each contribution was signed by the release that the ledger has for its worker.

use std::collections::{BTreeMap, BTreeSet};

use schemas::event::LedgerEvent;
use schemas::snapshot::MergeInput;
use schemas::{Round, Weight, WorkerId};

use crate::provenance::is_of;

/// The makers of each version.
#[derive(Debug)]
pub(super) struct Makers {
    versions: Vec<BTreeSet<WorkerId>>,
    /// The release as which each worker joined last.
    releases: BTreeMap<WorkerId, String>,
}

impl Makers {
    /// Nobody has made the initial weights.
    pub(super) fn new() -> Self {
        Self {
            versions: vec![BTreeSet::new()],
            releases: BTreeMap::new(),
        }
    }

    /// A reader of the ledger finds the release that a contribution's provenance names.
    pub(super) fn note(&mut self, event: &LedgerEvent) {
        match event {
            LedgerEvent::WorkerJoined {
                worker, release, ..
            } => {
                self.releases.insert(worker.clone(), release.clone());
            }
            LedgerEvent::ContributionAccepted {
                lease,
                worker,
                provenance,
                ..
            } => {
                let release = &self.releases[worker];
                let signature = provenance.as_ref().expect("each contribution has one");
                assert!(
                    is_of(signature, release),
                    "{lease}: not signed as {release}"
                );
            }
            _ => {}
        }
    }

    /// The next version comes from these contributions to the newest one.
    pub(super) fn merged(&mut self, inputs: &[MergeInput]) {
        let mut makers = self.versions.last().cloned().unwrap_or_default();
        let merged = inputs.iter().filter(|input| input.weight > Weight(0));
        makers.extend(merged.map(|input| input.worker.clone()));
        self.versions.push(makers);
    }

    /// The next version is an earlier one again.
    pub(super) fn restored(&mut self, version: Round) {
        let makers = self.versions[version.get() as usize].clone();
        self.versions.push(makers);
    }

    /// A promotion names every worker in quarantine that is a maker of the snapshot, and no other
    /// one.
    pub(super) fn promoted(
        &self,
        version: Round,
        shut: &BTreeSet<WorkerId>,
        accepted: &[WorkerId],
    ) {
        let makers = &self.versions[version.get() as usize];
        assert!(
            makers.intersection(shut).eq(accepted),
            "snapshot {version} is promoted with {accepted:?} of {shut:?}"
        );
    }
}
