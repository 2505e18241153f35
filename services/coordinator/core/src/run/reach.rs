//! The farthest that the inner steps of a unit can lead, whatever its data.

use schemas::Round;
use schemas::run::{CodecKind, InnerOptimizer, RunSpec, TrainerKind};

/// Room above the reach of the inner optimizer, for weight decay and the rounding of codecs. It is
/// enough while parameters are below `1 / weight_decay` in the quadratic mean, 10 by default; those
/// of real models are below 1.
const ROOM: f64 = 2.0;
/// Weight decay above which parameters of real models could leave this room, so that no bound
/// holds.
const DECAY_MAX: f64 = 1.0;

/// The largest norm that a contribution of an honest worker has; infinite if the settings allow
/// any.
///
/// AdamW moves a parameter by the learning rate times `m / sqrt(v)`. Both are weighted means, of
/// the gradients `g` and of their squares, with weights `a` and `b` that fall by the decays `beta1`
/// and `beta2`. By the inequality of Cauchy and Schwarz, `m^2 / v` is at most the sum of `a^2 / b`.
/// So the bound depends on the settings alone, and holds in the first round and for a single
/// worker.
pub(crate) fn reach(spec: &RunSpec, round: Round) -> f64 {
    match spec.model.trainer {
        TrainerKind::Torch | TrainerKind::Reference => {}
        TrainerKind::Synthetic => return f64::INFINITY,
    }
    if spec.inner.weight_decay > DECAY_MAX {
        return f64::INFINITY;
    }
    let elements = CodecKind::Fp32.elements_in(spec.model.initial.total().get());
    ROOM * rates(spec, round) * step_max(&spec.inner) * (elements as f64).sqrt()
}

/// The sum of the learning rates in a unit of the round, without the decay after the warm-up.
fn rates(spec: &RunSpec, round: Round) -> f64 {
    let steps = spec.schedule.inner_steps.get();
    let begin = round.get().saturating_mul(steps);
    let end = begin.saturating_add(steps);
    let warmup = spec
        .inner
        .warmup_steps
        .get()
        .min(spec.inner_steps_total().get());
    let (low, high) = (begin.min(warmup) as f64, end.min(warmup) as f64);
    // Step `s` of the warm-up, counted from 0, has the rate `(s + 1) / warmup`.
    let rising = match warmup {
        0 => 0.0,
        _ => (high * (high + 1.0) - low * (low + 1.0)) / (2.0 * warmup as f64),
    };
    let flat = (end - end.min(warmup).max(begin)) as f64;
    spec.inner.learning_rate * (rising + flat)
}

/// The largest quotient `m / sqrt(v)`.
fn step_max(inner: &InnerOptimizer) -> f64 {
    let (beta1, beta2) = (inner.beta1, inner.beta2);
    // Without the first mean nothing is remembered, whatever the second remembers.
    let ratio = if beta1 > 0.0 {
        beta1 * beta1 / beta2
    } else {
        0.0
    };
    if ratio >= 1.0 {
        return f64::INFINITY;
    }
    (1.0 - beta1) / ((1.0 - beta2) * (1.0 - ratio)).sqrt()
}

#[cfg(test)]
mod tests {
    use schemas::Steps;

    use super::*;

    fn inner(beta1: f64, beta2: f64) -> InnerOptimizer {
        InnerOptimizer {
            beta1,
            beta2,
            ..InnerOptimizer::adamw(1.0)
        }
    }

    /// The quotient after `steps` steps under the gradients that make it largest, with the
    /// correction of both means for their start at 0.
    fn worst(beta1: f64, beta2: f64, steps: i32) -> f64 {
        let weights = |beta: f64| {
            let whole = 1.0 - beta.powi(steps);
            (0..steps).map(move |age| (1.0 - beta) * beta.powi(age) / whole)
        };
        let terms = weights(beta1).zip(weights(beta2)).map(|(a, b)| a * a / b);
        terms.sum::<f64>().sqrt()
    }

    #[test]
    fn no_gradients_move_a_parameter_farther() {
        for (beta1, beta2) in [
            (0.9, 0.95),
            (0.9, 0.99),
            (0.9, 0.999),
            (0.0, 0.9),
            (0.5, 0.5),
        ] {
            let bound = step_max(&inner(beta1, beta2));
            let steps = [1, 2, 3, 5, 10, 30, 100, 300, 1000];
            let found = steps.map(|steps| worst(beta1, beta2, steps));
            let found = found.into_iter().fold(0.0, f64::max);
            assert!(
                found <= bound * (1.0 + 1e-9),
                "{beta1} {beta2}: {found} above {bound}"
            );
            assert!(
                found > 0.75 * bound,
                "{beta1} {beta2}: {found} far below {bound}"
            );
        }
        assert_eq!(step_max(&inner(0.99, 0.9)), f64::INFINITY);
        assert_eq!(step_max(&inner(0.5, 0.0)), f64::INFINITY);
        assert_eq!(step_max(&inner(0.0, 0.0)), 1.0);
    }

    #[test]
    fn rates_rise_in_the_warm_up_and_then_stay() {
        let mut spec = kit::run_spec().rounds(9).inner_steps(Steps(4)).build();
        spec.inner.learning_rate = 0.5;
        for warmup in [0, 1, 3, 4, 6, 8, 100] {
            spec.inner.warmup_steps = Steps(warmup);
            let warmup = warmup.min(36) as f64;
            for round in 0..9 {
                let rate = |step: u64| 0.5 * ((step + 1) as f64 / warmup).min(1.0);
                let expected: f64 = (4 * round..4 * round + 4).map(rate).sum();
                let found = rates(&spec, Round(round));
                assert!(
                    (found - expected).abs() < 1e-12,
                    "{warmup} {round}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn a_unit_reaches_as_far_as_its_steps_and_its_parameters_allow() {
        let mut spec = kit::run_spec().inner_steps(Steps(4)).build();
        spec.inner = InnerOptimizer {
            warmup_steps: Steps(0),
            beta1: 0.0,
            beta2: 0.75,
            ..InnerOptimizer::adamw(0.25)
        };
        // 13 parameters, 4 steps of a quarter, each doubled by the optimizer, and the room.
        let found = reach(&spec, Round(0));
        assert!((found - 4.0 * 13_f64.sqrt()).abs() < 1e-12, "{found}");
        spec.inner.weight_decay = DECAY_MAX;
        assert_eq!(reach(&spec, Round(0)), found);
        for (trainer, weight_decay) in [
            (TrainerKind::Synthetic, 0.1),
            (TrainerKind::Reference, DECAY_MAX + 0.5),
        ] {
            spec.model.trainer = trainer;
            spec.inner.weight_decay = weight_decay;
            assert_eq!(reach(&spec, Round(0)), f64::INFINITY);
        }
    }
}
