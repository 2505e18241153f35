//! The disclosures of one round: what a round costs of the budget.

use std::collections::BTreeMap;

use schemas::{UnitIndex, WorkerId};

/// Training leases that were granted in one round. Each may lead to one disclosure, whatever
/// becomes of its result: privacy is spent when a contribution leaves its worker, and nobody else
/// can know that it has not left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoundDisclosures {
    by_worker: BTreeMap<WorkerId, u64>,
    by_unit: BTreeMap<UnitIndex, u64>,
}

impl RoundDisclosures {
    /// Counts the grant of a unit to a worker.
    pub fn granted(&mut self, worker: &WorkerId, unit: UnitIndex) {
        *self.by_worker.entry(worker.clone()).or_default() += 1;
        *self.by_unit.entry(unit).or_default() += 1;
    }

    /// The cost of the round: the most disclosures of one worker, or of one unit if that is more.
    pub fn cost(&self) -> u64 {
        let of = |most: Option<&u64>| most.copied().unwrap_or(0);
        of(self.by_worker.values().max()).max(of(self.by_unit.values().max()))
    }

    /// The cost that the round would have after one more grant.
    pub fn cost_with(&self, worker: &WorkerId, unit: UnitIndex) -> u64 {
        let next = |count: Option<&u64>| count.map_or(1, |count| count + 1);
        let (worker, unit) = (self.by_worker.get(worker), self.by_unit.get(&unit));
        self.cost().max(next(worker)).max(next(unit))
    }

    /// Grants of each worker.
    pub fn by_worker(&self) -> &BTreeMap<WorkerId, u64> {
        &self.by_worker
    }

    /// Grants of each unit.
    pub fn by_unit(&self) -> &BTreeMap<UnitIndex, u64> {
        &self.by_unit
    }

    /// The counts of a round, as [`RoundDisclosures::by_worker`] and [`RoundDisclosures::by_unit`]
    /// give them.
    pub fn of(by_worker: BTreeMap<WorkerId, u64>, by_unit: BTreeMap<UnitIndex, u64>) -> Self {
        Self { by_worker, by_unit }
    }
}
