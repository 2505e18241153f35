//! Fixed point: values as whole multiples of a power of two, which sum without a wrap.

/// The grid of a run's values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FixedPoint {
    /// Largest magnitude of a value.
    largest: f64,
    /// Multiples of the grid in 1: a power of two.
    scale: f64,
}

/// A value that the grid of its run has no place for.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("value {index} is {value:e}, at most {largest:e} has a place")]
pub struct RangeError {
    /// Its position in the chunk.
    pub index: usize,
    /// The value.
    pub value: f32,
    /// The largest magnitude of a value.
    pub largest: f64,
}

impl FixedPoint {
    /// The finest grid on which the sum of `units` values, each of magnitude `largest` at most,
    /// stays within 31 bits and a sign.
    ///
    /// # Panics
    /// If `largest` is no positive number, or there are no units.
    pub fn new(largest: f64, units: u32) -> Self {
        assert!(largest > 0.0 && largest.is_finite() && units > 0);
        let most = f64::from(i32::MAX) / f64::from(units);
        // Rounding to the grid adds half a step at most.
        let fits = |scale: f64| largest * scale + 0.5 <= most;
        let mut scale = 1.0;
        while fits(scale * 2.0) {
            scale *= 2.0;
        }
        while !fits(scale) {
            scale /= 2.0;
        }
        Self { largest, scale }
    }

    /// The distance between two values of the grid.
    pub fn step(&self) -> f64 {
        1.0 / self.scale
    }

    /// Replaces values, fp32 little endian, by their words.
    ///
    /// # Errors
    /// A value is not finite, or larger than the run's largest. The chunk is then of no use.
    pub fn encode(&self, chunk: &mut [u8]) -> Result<(), RangeError> {
        let (words, _) = chunk.as_chunks_mut::<4>();
        for (index, bytes) in words.iter_mut().enumerate() {
            let value = f32::from_le_bytes(*bytes);
            let wide = f64::from(value);
            // A value that is no number is not below anything.
            let within = wide.abs() <= self.largest;
            if !within {
                let largest = self.largest;
                return Err(RangeError {
                    index,
                    value,
                    largest,
                });
            }
            let whole = (wide * self.scale).round_ties_even() as i32;
            *bytes = whole.to_le_bytes();
        }
        Ok(())
    }

    /// True for the word of a sum that `count` contributions of the run can have.
    pub(crate) fn can_sum(&self, sum: u32, count: u32) -> bool {
        let each = (self.largest * self.scale).round_ties_even();
        f64::from(sum.cast_signed()).abs() <= each * f64::from(count)
    }

    /// The mean of `count` contributions from the word of their sum.
    pub(crate) fn mean(&self, sum: u32, count: u32) -> f32 {
        let sum = f64::from(sum.cast_signed());
        (sum / self.scale / f64::from(count)) as f32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn word(fixed: &FixedPoint, value: f32) -> Result<i32, RangeError> {
        let mut bytes = value.to_le_bytes();
        fixed.encode(&mut bytes)?;
        Ok(i32::from_le_bytes(bytes))
    }

    #[test]
    fn tl_17_words_are_those_that_were_worked_out_by_hand() {
        // 4 units of 1.0: 2^29 - 1 and a half are left for each, so the grid is 2^-28.
        let fixed = FixedPoint::new(1.0, 4);
        assert_eq!(fixed.step(), 2.0_f64.powi(-28));
        assert_eq!(word(&fixed, 1.0), Ok(1 << 28));
        assert_eq!(word(&fixed, -0.5), Ok(-(1 << 27)));
        assert_eq!(
            word(&fixed, 2.0_f32.powi(-29)),
            Ok(0),
            "half a step goes to even"
        );
        assert_eq!(word(&fixed, 3.0 * 2.0_f32.powi(-29)), Ok(2));
        // The largest magnitudes of settings, in the largest cohort.
        assert_eq!(FixedPoint::new(1e6, 32).step(), 1.0 / 64.0);
        assert!(FixedPoint::new(1e-6, 3).step() < 1e-14);
    }

    #[test]
    fn tl_17_half_a_step_of_each_value_is_left_for_its_rounding() {
        let most = f64::from(i32::MAX);
        // The rounded value may be the largest word, and no more.
        assert_eq!(FixedPoint::new(most - 0.5, 1).step(), 1.0);
        assert_eq!(FixedPoint::new(most - 0.25, 1).step(), 2.0);
        assert_eq!(FixedPoint::new((most - 1.0) / 2.0, 2).step(), 1.0);
        assert_eq!(FixedPoint::new((most - 0.5) / 2.0, 2).step(), 2.0);
    }

    #[test]
    fn tl_17_a_grid_needs_a_largest_value_and_a_unit() {
        for (largest, units) in [(0.0, 1), (-1.0, 1), (f64::INFINITY, 1), (1.0, 0)] {
            let made = std::panic::catch_unwind(|| FixedPoint::new(largest, units));
            assert!(made.is_err(), "{largest} {units}");
        }
    }

    #[test]
    fn tl_17_a_value_out_of_range_is_an_error_and_never_wraps() {
        let fixed = FixedPoint::new(0.5, 3);
        assert!(word(&fixed, 0.5).is_ok() && word(&fixed, -0.5).is_ok());
        for value in [0.5_f32.next_up(), -0.6, 1e30, f32::NAN, f32::NEG_INFINITY] {
            let refused = word(&fixed, value).expect_err("it has no place");
            assert_eq!((refused.index, refused.largest), (0, 0.5));
        }
    }

    #[test]
    fn tl_17_a_sum_beyond_what_the_contributions_may_have_is_seen() {
        let fixed = FixedPoint::new(1.0, 4);
        for most in [1_i32 << 29, -(1 << 29)] {
            let beyond = most + most.signum();
            assert!(fixed.can_sum(most.cast_unsigned(), 2));
            assert!(!fixed.can_sum(beyond.cast_unsigned(), 2));
            assert!(fixed.can_sum(beyond.cast_unsigned(), 3));
        }
        assert!(!fixed.can_sum(i32::MIN.cast_unsigned(), 4));
    }

    proptest! {
        #[test]
        fn tl_17_the_sum_of_the_largest_values_does_not_wrap(largest in 1e-6..1e6_f64, units in 1..33_u32) {
            let fixed = FixedPoint::new(largest, units);
            let most = (largest as f32).next_down();
            let each = i64::from(word(&fixed, most).expect("it has a place"));
            prop_assert!(each * i64::from(units) <= i64::from(i32::MAX));
            // And no coarser grid than needed: at twice the scale it could wrap.
            let twice = (largest / fixed.step() * 2.0 + 0.5) * f64::from(units);
            prop_assert!(twice > f64::from(i32::MAX));
        }
    }
}
