//! Conversion from `f32` to bf16 and back, one element at a time, and the noise of stochastic
//! rounding.
//!
//! bf16 is the upper half of an `f32`: the same sign and exponent, 7 of the 23 fraction bits.
//! Widening is exact. Narrowing is integer arithmetic on the bits, so neither the floating-point
//! rounding mode nor flushing of subnormal numbers can change it.

use schemas::run::Rounding;
use schemas::{Round, UnitIndex};

/// The rounding of values, with everything that the choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeededRounding {
    /// The rule. *Nearest* takes the even one of two equally near neighbours, and values of at
    /// least 3.3961776e38 become infinite, as IEEE 754 has it. *Stochastic* takes either neighbour,
    /// the nearer one more often, so that the expected result is the value itself; a finite value
    /// stays finite: above the largest bf16 it becomes that.
    pub rule: Rounding,
    /// Selects the noise; see [`contribution_seed`]. Unused by *nearest*.
    pub seed: u64,
    /// Place of the slice's first element in the run's whole vector: the noise of an element
    /// depends only on `seed` and this place. Unused by *nearest*.
    pub first_element: u64,
}

impl SeededRounding {
    /// Rounding to the nearest value, ties to even.
    pub const NEAREST: Self = Self {
        rule: Rounding::Nearest,
        seed: 0,
        first_element: 0,
    };

    /// The same rounding for a slice that starts `elements` later.
    #[must_use]
    pub fn skip(self, elements: usize) -> Self {
        Self {
            first_element: self.first_element.wrapping_add(elements as u64),
            ..self
        }
    }
}

/// The seed of a contribution's rounding. Every unit of every round has a seed of its own, since
/// under one seed the same elements would err in the same direction each time. If a unit is done
/// again it has the same seed, and the same rounding.
pub fn contribution_seed(run_seed: u64, round: Round, unit: UnitIndex) -> u64 {
    mix(round_seed(run_seed, round).wrapping_add(u64::from(unit.get()) + 1))
}

/// The seed of the broadcast that leaves from the merge of `round`.
pub fn broadcast_seed(run_seed: u64, round: Round) -> u64 {
    mix(round_seed(run_seed, round))
}

fn round_seed(run_seed: u64, round: Round) -> u64 {
    mix(mix(run_seed).wrapping_add(round.get()))
}

const INFINITY_BITS: u32 = 0x7f80_0000;
const MAGNITUDE_BITS: u32 = 0x7fff_ffff;
/// Largest finite bf16, 3.3895314e38.
const BF16_MAX: u32 = 0x7f7f;
/// Marks a NaN as quiet. Without this mark a NaN whose payload lies in the lower half would turn
/// into an infinity.
const BF16_QUIET: u32 = 0x0040;
/// Elements that share one word of noise, 16 bits each.
pub(crate) const NOISE_LANES: usize = 4;

#[inline(always)]
pub(crate) fn widen(bf16: u16) -> f32 {
    f32::from_bits(u32::from(bf16) << 16)
}

#[inline(always)]
pub(crate) fn narrow_nearest(value: f32) -> u16 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | BF16_QUIET;
    (if bits & MAGNITUDE_BITS > INFINITY_BITS {
        nan
    } else {
        nearest
    }) as u16
}

/// Rounds the magnitude up when its lower half plus `noise` carries: with probability (lower half)
/// / 65536.
#[inline(always)]
pub(crate) fn narrow_stochastic(value: f32, noise: u16) -> u16 {
    let bits = value.to_bits();
    let magnitude = bits & MAGNITUDE_BITS;
    let finite = ((magnitude + u32::from(noise)) >> 16).min(BF16_MAX);
    let special = (magnitude >> 16)
        | if magnitude > INFINITY_BITS {
            BF16_QUIET
        } else {
            0
        };
    let rounded = if magnitude < INFINITY_BITS {
        finite
    } else {
        special
    };
    (((bits >> 16) & 0x8000) | rounded) as u16
}

/// The key of a seed's noise: element `i` of the run's whole vector uses bits `16 * (i % 4)` and up
/// of output `i / 4 + 1` of SplitMix64 started at the key.
#[inline(always)]
pub fn noise_key(seed: u64) -> u64 {
    mix(seed)
}

/// Word `word` of the noise: element `i` uses bits `16 * (i % 4)` and up of word `i / 4`.
///
/// This is output `word + 1` of SplitMix64 (Steele, Lea, Flood 2014) started at `key`; any word is
/// found directly.
#[inline(always)]
pub(crate) fn noise_word(key: u64, word: u64) -> u64 {
    mix(key.wrapping_add(word.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

#[inline(always)]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two bf16 neighbours by search over values, not bits: an independent definition of
    /// nearest-even.
    fn nearest_by_distance(value: f32) -> u16 {
        let down = (value.to_bits() >> 16) as u16;
        let up = down + 1;
        let (below, above) = (f64::from(widen(down)), f64::from(widen(up)));
        let (to_below, to_above) = (
            (f64::from(value) - below).abs(),
            (f64::from(value) - above).abs(),
        );
        if to_below < to_above || (to_below == to_above && down.is_multiple_of(2)) {
            down
        } else {
            up
        }
    }

    #[test]
    fn nearest_is_nearest_even_over_all_exponents() {
        for exponent in 0..254_u32 {
            for fraction in [
                0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1_7fff, 0x1_8000, 0x1_8001, 0x7f_7fff,
                0x7f_ffff,
            ] {
                let value = f32::from_bits((exponent << 23) | fraction);
                assert_eq!(
                    narrow_nearest(value),
                    nearest_by_distance(value),
                    "{value:e}"
                );
                assert_eq!(
                    narrow_nearest(-value),
                    nearest_by_distance(value) | 0x8000,
                    "-{value:e}"
                );
            }
        }
    }

    #[test]
    fn special_values() {
        for (value, bits) in [
            (0.0, 0x0000),
            (-0.0, 0x8000),
            (f32::INFINITY, 0x7f80),
            (f32::NEG_INFINITY, 0xff80),
            (f32::from_bits(1), 0x0000),
            (f32::from_bits(0x0000_8001), 0x0001),
            (f32::from_bits(0x0001_0000), 0x0001),
        ] {
            assert_eq!(narrow_nearest(value), bits, "{value:e}");
            assert_eq!(
                narrow_stochastic(value, 0),
                if bits == 1 && value.to_bits() == 0x8001 {
                    0
                } else {
                    bits
                }
            );
        }
        assert_eq!(narrow_nearest(f32::MAX), 0x7f80);
        assert_eq!(narrow_nearest(f32::from_bits(0x7f7f_7fff)), 0x7f7f);
        assert_eq!(narrow_stochastic(f32::MAX, u16::MAX), 0x7f7f);
        assert_eq!(narrow_stochastic(f32::MIN, u16::MAX), 0xff7f);
        assert_eq!(narrow_stochastic(f32::INFINITY, u16::MAX), 0x7f80);
    }

    #[test]
    fn nan_stays_nan() {
        for bits in [
            0x7f80_0001,
            0x7fc0_0000,
            0x7fff_ffff,
            0xff80_0001,
            0xffff_ffff,
        ] {
            let value = f32::from_bits(bits);
            assert!(widen(narrow_nearest(value)).is_nan(), "{bits:x}");
            assert!(
                widen(narrow_stochastic(value, u16::MAX)).is_nan(),
                "{bits:x}"
            );
        }
    }

    #[test]
    fn every_bf16_survives_both_roundings() {
        for bits in 0..=u16::MAX {
            let value = widen(bits);
            if !value.is_nan() {
                assert_eq!(narrow_nearest(value), bits);
                assert_eq!(narrow_stochastic(value, u16::MAX), bits);
            }
        }
    }

    #[test]
    fn stochastic_rounds_up_exactly_as_often_as_it_should() {
        for low in [1_u32, 0x1234, 0x8000, 0xffff] {
            let value = f32::from_bits(0x3f80_0000 | low);
            let up = (0..=u16::MAX)
                .filter(|noise| narrow_stochastic(value, *noise) == 0x3f81)
                .count();
            assert_eq!(up as u32, low);
        }
    }

    #[test]
    fn seeds_differ_by_run_round_and_unit() {
        let mut seeds: Vec<u64> = Vec::new();
        for run in 0..4 {
            for round in (0..4).map(Round) {
                seeds.push(broadcast_seed(run, round));
                seeds.extend((0..4).map(|unit| contribution_seed(run, round, UnitIndex(unit))));
            }
        }
        let count = seeds.len();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), count);
    }

    #[test]
    fn noise_is_splitmix64() {
        // The published first outputs for the state 1234567.
        assert_eq!(noise_word(1_234_567, 0), 6_457_827_717_110_365_317);
        assert_eq!(noise_word(1_234_567, 1), 3_203_168_211_198_807_973);
    }
}
