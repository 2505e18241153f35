//! The workers whose contributions each version of the weights has, and what follows for
//! promotions.

use std::collections::BTreeSet;

use schemas::snapshot::MergeInput;
use schemas::{Round, Weight, WorkerId};

/// The makers of each version.
#[derive(Debug)]
pub(super) struct Makers(Vec<BTreeSet<WorkerId>>);

impl Makers {
    /// Nobody has made the initial weights.
    pub(super) fn new() -> Self {
        Self(vec![BTreeSet::new()])
    }

    /// The next version comes from these contributions to the newest one.
    pub(super) fn merged(&mut self, inputs: &[MergeInput]) {
        let mut makers = self.0.last().cloned().unwrap_or_default();
        let merged = inputs.iter().filter(|input| input.weight > Weight(0));
        makers.extend(merged.map(|input| input.worker.clone()));
        self.0.push(makers);
    }

    /// The next version is an earlier one again.
    pub(super) fn restored(&mut self, version: Round) {
        let makers = self.0[version.get() as usize].clone();
        self.0.push(makers);
    }

    /// A promotion names every worker in quarantine that is a maker of the snapshot, and no other
    /// one.
    pub(super) fn promoted(
        &self,
        version: Round,
        shut: &BTreeSet<WorkerId>,
        accepted: &[WorkerId],
    ) {
        let makers = &self.0[version.get() as usize];
        assert!(
            makers.intersection(shut).eq(accepted),
            "snapshot {version} is promoted with {accepted:?} of {shut:?}"
        );
    }
}
