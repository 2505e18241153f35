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

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(letter: char) -> WorkerId {
        let name = format!("U{}", letter.to_string().repeat(55));
        name.parse().expect("the form of a worker's key")
    }

    #[test]
    fn tl_16_a_round_costs_as_many_disclosures_as_its_busiest_worker_or_unit() {
        let (one, two) = (worker('A'), worker('B'));
        let mut round = RoundDisclosures::default();
        assert_eq!(round.cost(), 0);
        assert_eq!(round.cost_with(&one, UnitIndex(0)), 1);

        // Two workers, each with a unit of its own.
        round.granted(&one, UnitIndex(0));
        round.granted(&two, UnitIndex(1));
        assert_eq!(round.cost(), 1);
        assert_eq!(
            round.cost_with(&one, UnitIndex(2)),
            2,
            "another of a worker"
        );
        assert_eq!(
            round.cost_with(&worker('C'), UnitIndex(1)),
            2,
            "a unit again"
        );
        assert_eq!(round.cost_with(&worker('C'), UnitIndex(2)), 1);

        // One worker has three units.
        round.granted(&one, UnitIndex(2));
        round.granted(&one, UnitIndex(3));
        assert_eq!(round.cost(), 3);
        assert_eq!(
            round.cost_with(&two, UnitIndex(1)),
            3,
            "the other still leads"
        );
        assert_eq!(round.cost_with(&one, UnitIndex(4)), 4);

        // One unit was issued to four workers.
        for letter in ['C', 'D', 'E'] {
            round.granted(&worker(letter), UnitIndex(1));
        }
        assert_eq!(round.cost(), 4);
        assert_eq!(round.cost_with(&worker('F'), UnitIndex(1)), 5);
    }

    #[test]
    fn tl_16_the_counts_of_a_round_make_it_again() {
        let mut round = RoundDisclosures::default();
        round.granted(&worker('A'), UnitIndex(0));
        round.granted(&worker('A'), UnitIndex(1));
        round.granted(&worker('B'), UnitIndex(1));
        let (by_worker, by_unit) = (round.by_worker().clone(), round.by_unit().clone());
        assert_eq!(by_worker, [(worker('A'), 2), (worker('B'), 1)].into());
        assert_eq!(by_unit, [(UnitIndex(0), 1), (UnitIndex(1), 2)].into());
        assert_eq!(RoundDisclosures::of(by_worker, by_unit), round);
    }
}
