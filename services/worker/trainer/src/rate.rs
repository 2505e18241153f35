//! The learning rate of an inner step.

use schemas::Steps;
use schemas::run::InnerOptimizer;

/// The learning rate of inner step `step`, counted from 0 over the whole run of `total` steps:
/// linear warm-up, whose last step has the peak rate, then half a cosine down to `final_ratio` of
/// the peak at the last step.
pub fn inner_rate(step: Steps, total: Steps, optimizer: &InnerOptimizer) -> f64 {
    let warmup = optimizer.warmup_steps.get().min(total.get());
    let peak = optimizer.learning_rate;
    if step.get() < warmup {
        return peak * (step.get() + 1) as f64 / warmup as f64;
    }
    let decay_steps = (total.get() - warmup).max(1);
    let done = ((step.get() - warmup + 1) as f64 / decay_steps as f64).min(1.0);
    let floor = optimizer.final_ratio;
    peak * (floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_to_the_peak_and_falls_to_the_floor() {
        let optimizer = InnerOptimizer {
            warmup_steps: Steps(10),
            final_ratio: 0.1,
            ..InnerOptimizer::adamw(2.0)
        };
        let rate = |step| inner_rate(Steps(step), Steps(110), &optimizer);
        assert!((rate(0) - 0.2).abs() < 1e-12);
        assert!((rate(9) - 2.0).abs() < 1e-12);
        assert!(
            (rate(59) - 1.1).abs() < 1e-12,
            "half way down: {}",
            rate(59)
        );
        assert!((rate(109) - 0.2).abs() < 1e-12);
        assert!((rate(5000) - 0.2).abs() < 1e-12, "stays at the floor");
        assert!((0..109).all(|step| (rate(step + 1) > rate(step)) == (step < 9)));
    }

    #[test]
    fn no_warmup_and_no_steps_are_fine() {
        let optimizer = InnerOptimizer {
            final_ratio: 0.0,
            beta1: 0.0,
            beta2: 0.0,
            weight_decay: 0.0,
            clip_norm: 0.0,
            ..InnerOptimizer::adamw(1.0)
        };
        assert!(inner_rate(Steps(0), Steps(1000), &optimizer) > 0.99);
        assert!(inner_rate(Steps(0), Steps(0), &optimizer).is_finite());
    }
}
