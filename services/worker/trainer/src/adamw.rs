//! AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2) on flat vectors, with clipping by
//! global norm.

use schemas::run::InnerOptimizer;

use crate::InnerMoments;

/// Euclidean norm, summed in fp64 in order.
pub(crate) fn norm(values: &[f32]) -> f64 {
    values
        .iter()
        .map(|value| f64::from(*value) * f64::from(*value))
        .sum::<f64>()
        .sqrt()
}

/// One step on `parameters` with a gradient whose norm is known and finite.
pub(crate) fn step(
    parameters: &mut [f32],
    gradient: &[f32],
    gradient_norm: f64,
    moments: &mut InnerMoments,
    optimizer: &InnerOptimizer,
    learning_rate: f64,
) {
    moments.steps += 1;
    let clip = if optimizer.clip_norm > 0.0 {
        (optimizer.clip_norm / gradient_norm).min(1.0) as f32
    } else {
        1.0
    };
    let power = i32::try_from(moments.steps).unwrap_or(i32::MAX);
    let correction1 = 1.0 - optimizer.beta1.powi(power);
    let correction2 = (1.0 - optimizer.beta2.powi(power)).sqrt();
    let size = (learning_rate / correction1) as f32;
    let keep = (1.0 - learning_rate * optimizer.weight_decay) as f32;
    let (beta1, beta2) = (optimizer.beta1 as f32, optimizer.beta2 as f32);
    let (epsilon, root) = (optimizer.epsilon as f32, correction2 as f32);
    let state = moments.first.iter_mut().zip(&mut moments.second);
    for ((parameter, gradient), (first, second)) in parameters.iter_mut().zip(gradient).zip(state) {
        let gradient = gradient * clip;
        *first = beta1 * *first + (1.0 - beta1) * gradient;
        *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
        *parameter = *parameter * keep - size * *first / (second.sqrt() / root + epsilon);
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn first_steps_match_the_formula_by_hand() {
        let optimizer = InnerOptimizer {
            beta2: 0.99,
            epsilon: 0.0,
            weight_decay: 0.5,
            ..InnerOptimizer::adamw(0.1)
        };
        let mut parameters = [1.0_f32, -2.0];
        let mut moments = InnerMoments {
            steps: 0,
            first: vec![0.0; 2],
            second: vec![0.0; 2],
        };
        let gradient = [3.0_f32, -4.0];
        step(
            &mut parameters,
            &gradient,
            norm(&gradient),
            &mut moments,
            &optimizer,
            0.1,
        );
        // Clipped to 0.6 and -0.8; the first corrected step is the sign; decay takes 5 %.
        assert!(
            (moments.first[0] - 0.06).abs() < 1e-6 && (moments.second[1] - 0.0064).abs() < 1e-6
        );
        assert!(
            (parameters[0] - (0.95 - 0.1)).abs() < 1e-6,
            "{parameters:?}"
        );
        assert!(
            (parameters[1] - (-1.9 + 0.1)).abs() < 1e-6,
            "{parameters:?}"
        );
        let zero = [0.0, 0.0];
        step(
            &mut parameters,
            &zero,
            norm(&zero),
            &mut moments,
            &optimizer,
            0.1,
        );
        assert_eq!(moments.steps, 2);
        let expected = 0.85 * 0.95 - 0.1 * (0.054 / 0.19) / (0.003_564_f64 / 0.0199).sqrt();
        assert!(
            (f64::from(parameters[0]) - expected).abs() < 1e-5,
            "{} and {expected}",
            parameters[0]
        );
    }
}
