//! The privacy that a private run spends: what is granted is counted, and a grant that could pass
//! the budget cannot follow.

use std::collections::BTreeMap;

use privacy::RoundDisclosures;
use schemas::contribution::Fate;
use schemas::lease::{LeaseRef, UnitId, UnitKind};
use schemas::view::PrivacyView;
use schemas::{Round, UnixMillis, WorkerId};
use serde::{Serialize, Serializer};

use crate::error::{ApplyError, out_of_place};
use crate::rounds::is_training;
use crate::state::{Member, OpenSync, RoundRecord, Run, Standing};

/// The disclosures of a private run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Spending {
    /// Disclosures that closed rounds have cost.
    pub closed: u64,
    /// The disclosures of open rounds.
    #[serde(serialize_with = "costs")]
    pub open: BTreeMap<Round, RoundDisclosures>,
    /// True once the budget has ended the run's rounds.
    pub over: bool,
}

/// The way in which a budget ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BudgetEnd {
    /// Nobody can go on, however many workers join.
    Certain,
    /// None of the members that are here can go on; a worker that joins could.
    WithTheseMembers,
}

impl Spending {
    /// Disclosures that are spent.
    pub fn disclosures(&self) -> u64 {
        let open = self.open.values().map(RoundDisclosures::cost);
        open.fold(self.closed, u64::saturating_add)
    }

    /// Disclosures that would be spent after one more grant.
    fn disclosures_with(&self, unit: &UnitId, worker: &WorkerId) -> u64 {
        let none = RoundDisclosures::default();
        let of_round = self.open.get(&unit.round).unwrap_or(&none);
        let more = of_round.cost_with(worker, unit.index) - of_round.cost();
        self.disclosures().saturating_add(more)
    }
}

impl Run {
    /// True if a grant of the unit stays within the run's budget. An evaluation discloses nothing.
    pub fn affords(&self, unit: &UnitId, worker: &WorkerId) -> bool {
        let Some(spending) = &self.spending else {
            return true;
        };
        unit.kind == UnitKind::Evaluate
            || spending.disclosures_with(unit, worker) <= self.disclosures_max
    }

    /// True if the budget lasts for another round, in which each worker takes one unit.
    pub fn affords_round(&self) -> bool {
        let Some(spending) = &self.spending else {
            return true;
        };
        !spending.over && spending.disclosures() < self.disclosures_max
    }

    /// The way in which the budget ends the run's rounds, if it does: it does not last for one more
    /// round, or an open round has a unit that it keeps from everybody. Nothing of a round ends
    /// while a lease of a training unit is held or a set waits for its merge.
    pub fn budget_end(&self) -> Option<BudgetEnd> {
        let spending = self.spending.as_ref().filter(|spending| !spending.over)?;
        if self.is_complete() || self.all_rounds_closed() {
            return None;
        }
        if self.open.is_empty() {
            let spent = spending.disclosures() >= self.disclosures_max;
            return spent.then_some(BudgetEnd::Certain);
        }
        let trains =
            |(lease, ..): (LeaseRef, &WorkerId, UnixMillis)| lease.unit.kind == UnitKind::Train;
        if !self.open.values().all(OpenSync::collects) || self.leases().any(trains) {
            return None;
        }
        let open = self.units.iter().filter(|(unit, found)| {
            unit.kind == UnitKind::Train && found.standing == Standing::Open
        });
        let ends = open.filter_map(|(unit, _)| self.kept_from(unit));
        ends.min()
    }

    /// The workers that the budget keeps a unit from, if it keeps it from all that are here.
    fn kept_from(&self, unit: &UnitId) -> Option<BudgetEnd> {
        if !self.affords_to_a_stranger(unit) {
            return Some(BudgetEnd::Certain);
        }
        // A worker whose group has other ranks to take units for it takes none.
        let takes = |member: &Member| member.present && self.may_lease(member);
        let mut takers = self
            .members
            .iter()
            .filter(|(_, member)| takes(member))
            .peekable();
        let somebody =
            takers.peek().is_none() || takers.any(|(worker, _)| self.affords(unit, worker));
        (!somebody).then_some(BudgetEnd::WithTheseMembers)
    }

    /// True if a grant to a worker that has done nothing in the round stays within the budget.
    fn affords_to_a_stranger(&self, unit: &UnitId) -> bool {
        let spending = self.spending.as_ref().expect("only a private run asks");
        let open = spending.open.get(&unit.round);
        let before = open.and_then(|open| open.by_unit().get(&unit.index));
        let now = open.map_or(0, RoundDisclosures::cost);
        let more = (before.copied().unwrap_or(0) + 1).saturating_sub(now);
        spending.disclosures().saturating_add(more) <= self.disclosures_max
    }

    /// Counts a grant of a training unit.
    pub(crate) fn count_disclosure(&mut self, lease: &LeaseRef, worker: &WorkerId) {
        if let Some(spending) = &mut self.spending
            && lease.unit.kind == UnitKind::Train
        {
            let of_round = spending.open.entry(lease.unit.round).or_default();
            of_round.granted(worker, lease.unit.index);
        }
    }

    /// Books the cost of a round that is over.
    pub(crate) fn book_round(&mut self, round: Round) {
        if let Some(spending) = &mut self.spending
            && let Some(disclosures) = spending.open.remove(&round)
        {
            spending.closed = spending.closed.saturating_add(disclosures.cost());
        }
    }

    /// Ends the run's rounds. A round that is open is dropped: its units can be done by nobody, and
    /// its contributions are late.
    pub(crate) fn spend_out(&mut self, disclosures: u64, epsilon: f64) -> Result<(), ApplyError> {
        let spent = self.privacy_view();
        let agrees = spent.is_some_and(|spent| {
            (spent.disclosures, spent.epsilon_spent) == (disclosures, epsilon)
        });
        if self.budget_end().is_none() || !agrees {
            let what = format!("a budget of which {disclosures} disclosures have spent {epsilon}");
            return Err(out_of_place("privacy-spent", what));
        }
        let open: Vec<Round> = self.open_rounds().collect();
        for round in open.into_iter().rev() {
            self.drop_round(round);
        }
        let spending = self.spending.as_mut();
        spending.expect("only a private run is spent").over = true;
        self.offer_evaluation(self.rounds_closed());
        Ok(())
    }

    /// Takes the last round back, as if it had not been opened; its tokens have their fate. Open
    /// rounds are the last ones under every closing rule that there is.
    fn drop_round(&mut self, round: Round) {
        self.book_round(round);
        self.open.retain(|sync, _| sync.round != round);
        self.units.retain(|unit, _| !is_training(unit, round));
        self.measured.retain(|unit, _| unit.round != round);
        let accepted = self.accepted.iter_mut();
        let counted = accepted
            .filter(|(unit, accepted)| is_training(unit, round) && accepted.fate == Fate::Merged);
        counted.for_each(|(_, accepted)| accepted.fate = Fate::Late);
        let record = self.rounds.pop();
        let RoundRecord { tokens, .. } = record.expect("the round is one of them");
        self.tokens.merged = self.tokens.merged - tokens;
        self.tokens.late += tokens;
        self.forget_weights();
    }

    /// The privacy that is spent, for readers; none of a run that is not private.
    pub fn privacy_view(&self) -> Option<PrivacyView> {
        let (privacy, spending) = (self.spec.privacy.as_ref()?, self.spending.as_ref()?);
        Some(PrivacyView {
            epsilon: privacy.epsilon,
            epsilon_spent: privacy::epsilon(privacy, spending.disclosures()),
            delta: privacy.delta,
            disclosures_max: self.disclosures_max,
            disclosures: spending.disclosures(),
            over: spending.over,
        })
    }
}

/// Writes the cost of each round.
fn costs<S: Serializer>(
    open: &BTreeMap<Round, RoundDisclosures>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(
        open.iter()
            .map(|(round, disclosures)| (round, disclosures.cost())),
    )
}
