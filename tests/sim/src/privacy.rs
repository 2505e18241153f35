//! The monitor's own accountant: it counts the grants of a private run anew each time, and searches
//! for the best order instead of trying a list.

use schemas::WorkerId;
use schemas::run::Privacy;

/// Disclosures of one protected part, from all training leases so far: round, worker, unit.
pub(crate) fn disclosures(grants: &[(u64, WorkerId, u32)]) -> u64 {
    let mut rounds: Vec<u64> = grants.iter().map(|(round, ..)| *round).collect();
    rounds.dedup();
    let cost = |of: u64| {
        let own = || grants.iter().filter(|(round, ..)| *round == of);
        let of_worker = own().map(|(_, worker, _)| own().filter(|(_, w, _)| w == worker).count());
        let of_unit = own().map(|(.., unit)| own().filter(|(.., u)| u == unit).count());
        of_worker.chain(of_unit).max().unwrap_or(0) as u64
    };
    rounds.into_iter().map(cost).sum()
}

/// The epsilon of so many disclosures, for the best of all orders: the bound has one valley, which
/// a search by thirds of the logarithm of the order's distance from 1 finds.
pub(crate) fn epsilon(privacy: &Privacy, disclosures: u64) -> f64 {
    let ratio = privacy.noise_multiplier / 2.0;
    let bound = |log: f64| {
        let order = 1.0 + log.exp();
        let divergence = order * disclosures as f64 / (2.0 * ratio * ratio);
        divergence + ((order - 1.0) / order).ln() - (privacy.delta * order).ln() / (order - 1.0)
    };
    let (mut low, mut high) = (-7.0, 14.0);
    for _ in 0..200 {
        let (left, right) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
        match bound(left) < bound(right) {
            true => high = right,
            false => low = left,
        }
    }
    bound(low).max(0.0)
}
