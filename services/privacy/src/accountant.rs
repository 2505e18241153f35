//! The accountant: the privacy that disclosures have cost, in orders of Rényi and as `(ε, δ)`.

use schemas::run::Privacy;
use schemas::{Code, Refusal};

/// Most disclosures that are counted: more than a run can have.
pub const DISCLOSURES_MAX: u64 = 1 << 40;

/// Orders are `1 + 2^(n/8)`, from 1.001 to a million: the best order lies between two neighbours
/// of which the worse gives a bound that is larger by a thousandth at most.
const ORDERS: std::ops::RangeInclusive<i32> = -80..=160;

/// The Rényi divergence of order `order` that `disclosures` of one part add up to (Mironov 2017,
/// proposition 7, for a Gaussian mechanism that everybody takes part in: `order Δ² / (2 σ²)`; the
/// same bound holds for the discrete Gaussian).
pub fn rdp(order: f64, noise_multiplier: f64, disclosures: u64) -> f64 {
    let of_one = 2.0 / (noise_multiplier * noise_multiplier);
    order * of_one * disclosures as f64
}

/// The `ε` that `disclosures` have cost at the run's `δ`: the smallest over all orders of the
/// conversion of Canonne, Kamath and Steinke (2020, proposition 12; Balle et al. 2020, theorem 21).
/// The same on every machine: all functions are this program's own.
pub fn epsilon(privacy: &Privacy, disclosures: u64) -> f64 {
    if disclosures == 0 {
        return 0.0;
    }
    let Privacy {
        noise_multiplier,
        delta,
        ..
    } = *privacy;
    let mut least = f64::INFINITY;
    for step in ORDERS {
        let beyond = libm::exp2(f64::from(step) / 8.0);
        let order = 1.0 + beyond;
        let bound = rdp(order, noise_multiplier, disclosures) + libm::log1p(-1.0 / order)
            - (libm::log(delta) + libm::log(order)) / beyond;
        least = least.min(bound);
    }
    least.max(0.0)
}

/// The most disclosures of one part whose `ε` is within the run's budget.
pub fn disclosures_within(privacy: &Privacy) -> u64 {
    let (mut within, mut beyond) = (0, DISCLOSURES_MAX + 1);
    while beyond - within > 1 {
        let middle = within + (beyond - within) / 2;
        if epsilon(privacy, middle) <= privacy.epsilon {
            within = middle;
        } else {
            beyond = middle;
        }
    }
    within
}

/// The disclosures that a budget lasts for.
///
/// # Errors
/// [`Code::PrivacyUnfit`]: it does not last for one.
pub fn check_budget(privacy: &Privacy) -> Result<u64, Refusal> {
    match disclosures_within(privacy) {
        0 => {
            let detail = format!(
                "one contribution costs an epsilon of {:.3} at delta {:e}, the budget is {}",
                epsilon(privacy, 1),
                privacy.delta,
                privacy.epsilon
            );
            Err(Refusal::new(Code::PrivacyUnfit, detail))
        }
        within => Ok(within),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `noise` is the ratio of the noise to the largest change of a contribution.
    fn privacy(noise: f64, delta: f64) -> Privacy {
        Privacy {
            clip: 1.0,
            noise_multiplier: 2.0 * noise,
            delta,
            epsilon: 1.0,
        }
    }

    /// Noise, disclosures, delta; then the accountant `rdp_accountant` of Google's `dp_accounting`
    /// 0.6.0 with its own orders, and the exact epsilon of the continuous mechanism (Balle and Wang
    /// 2018, theorem 8, which `n` Gaussian disclosures obey with their noise divided by the root of
    /// `n`), solved by bisection in `scipy`.
    const KNOWN: &[(f64, u64, f64, f64, f64)] = &[
        (1.0, 1, 1e-5, 4.728507067217623, 4.377178095681235),
        (2.0, 10, 1e-5, 8.079406222420491, 7.511275900744791),
        (4.0, 100, 1e-6, 15.32798402653992, 14.45077696599135),
        (0.5, 3, 1e-5, 21.44485232771325, 20.12502354588817),
        (10.0, 1000, 1e-8, 23.21186420547467, 22.173434246767165),
        (0.05, 2, 1e-5, 534.8612600716532, 519.6981942303136),
    ];

    #[test]
    fn tl_16_the_accountant_agrees_with_another_one_and_is_never_below_the_exact_loss() {
        for (noise, disclosures, delta, other, exact) in KNOWN.iter().copied() {
            let found = epsilon(&privacy(noise, delta), disclosures);
            assert!((found / other - 1.0).abs() < 5e-3, "{found} {other}");
            assert!(found > exact && found < exact * 1.1, "{found} {exact}");
        }
    }

    #[test]
    fn tl_16_one_disclosure_at_noise_one_costs_half_the_order() {
        for order in [1.5, 2.0, 32.0] {
            // The ratio of noise to the largest change is 1.
            assert_eq!(rdp(order, 2.0, 1), order / 2.0);
            assert_eq!(rdp(order, 2.0, 7), 7.0 * order / 2.0);
            assert_eq!(rdp(order, 4.0, 1), order / 8.0);
        }
    }

    #[test]
    fn tl_16_the_budget_lasts_for_exactly_as_many_disclosures_as_stay_within_it() {
        for (noise, delta, budget) in [(5.0, 1e-5, 8.0), (1.0, 1e-6, 3.0), (100.0, 1e-9, 0.5)] {
            let mut privacy = privacy(noise, delta);
            privacy.epsilon = budget;
            let most = disclosures_within(&privacy);
            assert!(epsilon(&privacy, most) <= budget);
            assert!(epsilon(&privacy, most + 1) > budget);
        }
        let mut privacy = privacy(1.0, 1e-5);
        privacy.epsilon = 4.7;
        assert_eq!(disclosures_within(&privacy), 0);
        privacy.epsilon = epsilon(&privacy, 1);
        assert_eq!(disclosures_within(&privacy), 1, "a budget may be used up");
        privacy.epsilon = f64::MAX;
        assert_eq!(disclosures_within(&privacy), DISCLOSURES_MAX);
    }

    #[test]
    fn tl_16_a_budget_that_lasts_for_no_disclosure_is_refused() {
        let mut privacy = privacy(1.0, 1e-5);
        privacy.epsilon = 4.7;
        let refused = check_budget(&privacy).expect_err("one costs more than 4.7");
        assert_eq!(refused.code, Code::PrivacyUnfit);
        privacy.epsilon = epsilon(&privacy, 1);
        assert_eq!(check_budget(&privacy).ok(), Some(1));
        privacy.epsilon = epsilon(&privacy, 5);
        assert_eq!(check_budget(&privacy).ok(), Some(5));
    }

    #[test]
    fn nothing_disclosured_costs_nothing_and_each_disclosure_costs_more() {
        let privacy = privacy(1000.0, 1e-2);
        assert_eq!(epsilon(&privacy, 0), 0.0);
        assert!(epsilon(&privacy, 1) >= 0.0);
        let costs: Vec<f64> = (1000..1100).map(|n| epsilon(&privacy, n)).collect();
        assert!(costs.windows(2).all(|pair| pair[0] < pair[1]), "{costs:?}");
    }
}
