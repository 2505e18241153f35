//! Outer optimizers: the effect of a merged gradient on the global parameters.
//!
//! A gradient is base minus local, so a step subtracts it. Per element, with every product, sum and
//! difference rounded to `f32` and nothing fused:
//!
//! | optimizer | rule |
//! | --- | --- |
//! | average | `p = p - g` |
//! | SGD | `p = p - (rate * g)` |
//! | Nesterov, first step | `m = g`, then `p = p - (rate * (g + (momentum * m)))` |
//! | Nesterov, later | `m = (momentum * m) + g`, then the same |
//!
//! The Nesterov form is PyTorch's (`SGD` with `nesterov`, no dampening): at rate 0.7 and momentum
//! 0.9 the first step moves `1.33 * g`, and a constant gradient ends at `7 * g` a step.

use schemas::run::OuterOptimizer;

use crate::vectors::{Vectors, vectorised};

/// The state that an optimizer keeps beside the parameters, one element each.
#[derive(Debug)]
pub enum Momentum<'a> {
    /// None is kept: average and SGD.
    Absent,
    /// The first step of a run: the content of the buffer is overwritten.
    First(&'a mut [f32]),
    /// Any later step.
    Running(&'a mut [f32]),
}

/// A step that does not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OuterError {
    /// An optimizer without its state, or a state without its optimizer.
    #[error("the outer optimizer keeps {expected} elements of momentum, got {got}")]
    Momentum {
        /// Elements that the optimizer keeps for these parameters.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// The gradient has not the length of the parameters.
    #[error("{params} parameters, but a gradient of {gradient} elements")]
    Gradient {
        /// Elements of the parameters.
        params: usize,
        /// Elements of the gradient.
        gradient: usize,
    },
}

/// True when `optimizer` keeps a momentum, one element for each parameter.
pub const fn keeps_momentum(optimizer: OuterOptimizer) -> bool {
    match optimizer {
        OuterOptimizer::Average | OuterOptimizer::Sgd { .. } => false,
        OuterOptimizer::Nesterov { .. } => true,
    }
}

/// Takes a step with a given gradient, on this thread. [`crate::merge_chunk`] does the same to the
/// mean of contributions, in parallel.
///
/// # Errors
/// [`OuterError`]; nothing was changed.
pub fn step(
    optimizer: OuterOptimizer,
    gradient: &[f32],
    params: &mut [f32],
    momentum: Momentum<'_>,
) -> Result<(), OuterError> {
    if gradient.len() != params.len() {
        return Err(OuterError::Gradient {
            params: params.len(),
            gradient: gradient.len(),
        });
    }
    check(optimizer, params.len(), &momentum)?;
    apply(Vectors::widest(), optimizer, gradient, params, momentum);
    Ok(())
}

pub(crate) fn check(
    optimizer: OuterOptimizer,
    elements: usize,
    momentum: &Momentum<'_>,
) -> Result<(), OuterError> {
    let expected = if keeps_momentum(optimizer) {
        elements
    } else {
        0
    };
    let got = momentum.elements();
    if expected == got {
        Ok(())
    } else {
        Err(OuterError::Momentum { expected, got })
    }
}

/// Takes the step; the caller has checked the lengths.
pub(crate) fn apply(
    vectors: Vectors,
    optimizer: OuterOptimizer,
    gradient: &[f32],
    params: &mut [f32],
    momentum: Momentum<'_>,
) {
    match (optimizer, momentum) {
        (OuterOptimizer::Average, _) => average(vectors, gradient, params),
        (OuterOptimizer::Sgd { learning_rate }, _) => sgd(vectors, gradient, params, learning_rate),
        (
            OuterOptimizer::Nesterov {
                learning_rate,
                momentum,
            },
            Momentum::First(buffer),
        ) => {
            nesterov_first(vectors, gradient, params, buffer, learning_rate, momentum);
        }
        (
            OuterOptimizer::Nesterov {
                learning_rate,
                momentum,
            },
            Momentum::Running(buffer),
        ) => {
            nesterov(vectors, gradient, params, buffer, learning_rate, momentum);
        }
        (OuterOptimizer::Nesterov { .. }, Momentum::Absent) => {
            assert!(
                params.is_empty(),
                "every caller checks that momentum has the length of the parameters"
            );
        }
    }
}

impl Momentum<'_> {
    fn elements(&self) -> usize {
        match self {
            Self::Absent => 0,
            Self::First(buffer) | Self::Running(buffer) => buffer.len(),
        }
    }

    /// The state of the first `elements` elements, and of the rest.
    pub(crate) fn split_at(self, elements: usize) -> (Self, Self) {
        match self {
            Self::Absent => (Self::Absent, Self::Absent),
            Self::First(buffer) => {
                let (head, rest) = buffer.split_at_mut(elements);
                (Self::First(head), Self::First(rest))
            }
            Self::Running(buffer) => {
                let (head, rest) = buffer.split_at_mut(elements);
                (Self::Running(head), Self::Running(rest))
            }
        }
    }
}

vectorised!(fn average(gradient: &[f32], params: &mut [f32]) = average_body);
vectorised!(fn sgd(gradient: &[f32], params: &mut [f32], rate: f32) = sgd_body);
vectorised!(
    fn nesterov_first(gradient: &[f32], params: &mut [f32], buffer: &mut [f32], rate: f32, momentum: f32)
        = nesterov_first_body
);
vectorised!(
    fn nesterov(gradient: &[f32], params: &mut [f32], buffer: &mut [f32], rate: f32, momentum: f32) = nesterov_body
);

#[inline(always)]
fn average_body(gradient: &[f32], params: &mut [f32]) {
    for (param, gradient) in params.iter_mut().zip(gradient) {
        *param -= gradient;
    }
}

#[inline(always)]
fn sgd_body(gradient: &[f32], params: &mut [f32], rate: f32) {
    for (param, gradient) in params.iter_mut().zip(gradient) {
        *param -= rate * gradient;
    }
}

#[inline(always)]
fn nesterov_first_body(
    gradient: &[f32],
    params: &mut [f32],
    buffer: &mut [f32],
    rate: f32,
    momentum: f32,
) {
    for ((param, buffer), gradient) in params.iter_mut().zip(buffer).zip(gradient) {
        *buffer = *gradient;
        *param -= rate * (gradient + momentum * gradient);
    }
}

#[inline(always)]
fn nesterov_body(
    gradient: &[f32],
    params: &mut [f32],
    buffer: &mut [f32],
    rate: f32,
    momentum: f32,
) {
    for ((param, buffer), gradient) in params.iter_mut().zip(buffer).zip(gradient) {
        let moved = momentum * *buffer + gradient;
        *buffer = moved;
        *param -= rate * (gradient + momentum * moved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOCK: OuterOptimizer = OuterOptimizer::Nesterov {
        learning_rate: 0.7,
        momentum: 0.9,
    };

    #[test]
    fn nesterov_gains_of_first_and_late_steps() {
        let (mut params, mut buffer) = ([0.0_f32], [f32::NAN]);
        step(STOCK, &[1.0], &mut params, Momentum::First(&mut buffer)).unwrap();
        assert!((params[0] + 1.33).abs() < 1e-6, "{params:?}");
        let mut before = params[0];
        for _ in 0..300 {
            before = params[0];
            step(STOCK, &[1.0], &mut params, Momentum::Running(&mut buffer)).unwrap();
        }
        assert!(
            (before - params[0] - 7.0).abs() < 1e-3,
            "{}",
            before - params[0]
        );
    }

    #[test]
    fn three_steps_by_hand() {
        // Rate and momentum 1/2 keep every number exact: buffers 4, 2 + 8 = 10, 5 - 2 = 3.
        let halves = OuterOptimizer::Nesterov {
            learning_rate: 0.5,
            momentum: 0.5,
        };
        let (mut params, mut buffer) = ([100.0_f32], [0.0_f32]);
        step(halves, &[4.0], &mut params, Momentum::First(&mut buffer)).unwrap();
        assert_eq!((params, buffer), ([97.0], [4.0]));
        step(halves, &[8.0], &mut params, Momentum::Running(&mut buffer)).unwrap();
        assert_eq!((params, buffer), ([90.5], [10.0]));
        step(halves, &[-2.0], &mut params, Momentum::Running(&mut buffer)).unwrap();
        assert_eq!((params, buffer), ([90.75], [3.0]));
    }

    #[test]
    fn average_and_sgd_subtract() {
        let mut params = [5.0_f32, -1.0];
        step(
            OuterOptimizer::Average,
            &[1.0, 2.0],
            &mut params,
            Momentum::Absent,
        )
        .unwrap();
        assert_eq!(params, [4.0, -3.0]);
        step(
            OuterOptimizer::Sgd { learning_rate: 2.0 },
            &[1.0, 2.0],
            &mut params,
            Momentum::Absent,
        )
        .unwrap();
        assert_eq!(params, [2.0, -7.0]);
    }

    #[test]
    fn state_and_optimizer_must_fit() {
        let mut params = [0.0; 2];
        let missing = step(STOCK, &[0.0; 2], &mut params, Momentum::Absent);
        assert_eq!(
            missing,
            Err(OuterError::Momentum {
                expected: 2,
                got: 0
            })
        );
        let unwanted = step(
            OuterOptimizer::Average,
            &[0.0; 2],
            &mut params,
            Momentum::Running(&mut [0.0; 2]),
        );
        assert_eq!(
            unwanted,
            Err(OuterError::Momentum {
                expected: 0,
                got: 2
            })
        );
        let short = step(
            OuterOptimizer::Average,
            &[0.0],
            &mut params,
            Momentum::Absent,
        );
        assert_eq!(
            short,
            Err(OuterError::Gradient {
                params: 2,
                gradient: 1
            })
        );
    }
}
