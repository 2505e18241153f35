//! The discrete Gaussian, drawn exactly: whole numbers and comparisons alone.
//!
//! The sampler is algorithms 1 to 3 of Canonne, Kamath and Steinke (2020), for a deviation `s` that
//! is a power of two and a scale of the proposal that is `s` too. A number of the two-sided
//! geometric distribution, `P(y) ∝ exp(-|y| / s)`, is kept with probability `exp(-(|y| - s)² / (2
//! s²))`, so that what is kept has `P(y) ∝ exp(-y² / (2 s²))`. Each of these probabilities is
//! decided by coins whose chance is a fraction of whole numbers.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;

/// Whole scales of the proposal at which a draw is thrown away and made again. One draw in `e^128`
/// gets there; the bound keeps all numbers within 64 bits.
const SCALES_MAX: u64 = 128;

/// The discrete Gaussian on the whole numbers with mean 0 and deviation `2^bits`.
#[derive(Clone, Copy, Debug)]
pub struct DiscreteGaussian {
    bits: u32,
}

impl DiscreteGaussian {
    /// The distribution whose deviation is `2^bits`.
    ///
    /// # Panics
    /// If `bits` is above 24.
    pub const fn new(bits: u32) -> Self {
        assert!(bits <= 24, "squares of draws stay below 2^63");
        Self { bits }
    }

    /// One draw.
    pub fn draw(self, random: &mut ChaCha20Rng) -> i64 {
        let scale = 1_u64 << self.bits;
        loop {
            let word = random.next_u32();
            // The low 24 bits are the part of a scale, the top one is the sign.
            let part = u64::from(word) & (scale - 1);
            if !falls(part, self.bits, random) {
                continue;
            }
            let Some(scales) = in_a_row(|| falls(scale, self.bits, random)) else {
                continue;
            };
            let size = part + scales * scale;
            let negative = word >> 31 == 1;
            // Zero has one sign only, or it would come twice as often as it should.
            if negative && size == 0 {
                continue;
            }
            let distance = size.abs_diff(scale);
            if keeps(distance * distance, 2 * self.bits + 1, random) {
                let size = i64::try_from(size).expect("below 2^31");
                return if negative { -size } else { size };
            }
        }
    }
}

/// How often a coin falls before it misses for the first time. None once that is [`SCALES_MAX`].
fn in_a_row(mut falls: impl FnMut() -> bool) -> Option<u64> {
    (0..SCALES_MAX).find(|_| !falls())
}

/// True with probability `exp(-numerator / 2^bits)`, for any numerator.
fn keeps(numerator: u64, bits: u32, random: &mut ChaCha20Rng) -> bool {
    let one = 1_u64 << bits;
    let mut whole = numerator >> bits;
    while whole > 0 {
        if !falls(one, bits, random) {
            return false;
        }
        whole -= 1;
    }
    falls(numerator & (one - 1), bits, random)
}

/// True with probability `exp(-numerator / 2^bits)`, for a numerator of `2^bits` at most: the
/// number of coins of chance `numerator / 2^bits / k`, `k` = 1, 2, 3 and on, up to the first that
/// misses is odd (algorithm 1; the idea is von Neumann's).
fn falls(numerator: u64, bits: u32, random: &mut ChaCha20Rng) -> bool {
    let certain = numerator == 1 << bits;
    let mut tries = 1;
    loop {
        let hit = (certain || below_power(bits, random) < numerator) && one_in(tries, random);
        if !hit {
            return tries % 2 == 1;
        }
        tries += 1;
    }
}

/// A number below `2^bits`, all equally likely.
fn below_power(bits: u32, random: &mut ChaCha20Rng) -> u64 {
    if bits <= 32 {
        u64::from(random.next_u32()) & ((1 << bits) - 1)
    } else {
        random.next_u64() & ((1 << bits) - 1)
    }
}

/// True with probability `1 / number`.
fn one_in(number: u32, random: &mut ChaCha20Rng) -> bool {
    if number == 1 {
        return true;
    }
    loop {
        if let Some(hit) = divides(number, random.next_u32()) {
            return hit;
        }
    }
}

/// True if a random word is a multiple of `number`. None for the last words, of which there are
/// fewer than `number`: they would make small remainders likelier.
fn divides(number: u32, word: u32) -> Option<bool> {
    let fair = u32::MAX - u32::MAX % number;
    (word < fair).then(|| word.is_multiple_of(number))
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    /// Chi squared of counts against probabilities; the caller pools rare values.
    fn chi_squared(counts: &[u64], chances: &[f64]) -> f64 {
        let all: u64 = counts.iter().sum();
        let terms = counts.iter().zip(chances).map(|(count, chance)| {
            let expected = chance * all as f64;
            assert!(expected >= 5.0, "{expected}");
            (*count as f64 - expected).powi(2) / expected
        });
        terms.sum()
    }

    #[test]
    fn tl_16_every_small_whole_number_comes_as_often_as_the_formula_says() {
        for bits in [0, 1, 2, 3] {
            let deviation = f64::from(1_u32 << bits);
            let most = 3 << bits;
            let weight = |y: i64| (-(y * y) as f64 / (2.0 * deviation * deviation)).exp();
            let all: f64 = (-400..=400).map(weight).sum();
            let mut random = ChaCha20Rng::seed_from_u64(u64::from(bits));
            let gaussian = DiscreteGaussian::new(bits);
            let mut counts = vec![0_u64; 2 * most as usize + 1];
            for _ in 0..200_000 {
                // Values beyond three deviations are pooled with the last.
                let draw = gaussian.draw(&mut random).clamp(-most, most);
                counts[(draw + most) as usize] += 1;
            }
            let tail: f64 = (most..=400).map(weight).sum::<f64>() / all;
            let chances: Vec<f64> = (-most..=most)
                .map(|y| {
                    if y.abs() == most {
                        tail
                    } else {
                        weight(y) / all
                    }
                })
                .collect();
            let found = chi_squared(&counts, &chances);
            // 2 most degrees of freedom; a mean plus six deviations.
            let free = 2.0 * most as f64;
            assert!(found < free + 6.0 * (2.0 * free).sqrt(), "{bits}: {found}");
        }
    }

    #[test]
    fn the_finest_grid_has_its_deviation_and_both_signs() {
        let gaussian = DiscreteGaussian::new(24);
        let mut random = ChaCha20Rng::seed_from_u64(9);
        let draws: Vec<f64> = (0..100_000)
            .map(|_| gaussian.draw(&mut random) as f64 / f64::from(1 << 24))
            .collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let moment = |power| draws.iter().map(|x| x.powi(power)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.015, "{mean}");
        assert!((moment(2) - 1.0).abs() < 0.02, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.15, "{}", moment(4));
    }

    #[test]
    fn tl_16_a_coin_falls_as_often_as_its_numerator_says() {
        let mut random = ChaCha20Rng::seed_from_u64(2);
        for (numerator, bits) in [(0, 0), (0, 3), (1, 1), (5, 3), (8, 3), (1 << 23, 24)] {
            let hits = (0..20_000).filter(|_| falls(numerator, bits, &mut random));
            let expected = 20_000.0 * (-(numerator as f64) / f64::from(1 << bits)).exp();
            let (found, free) = (hits.count() as f64, 20_000.0 - expected);
            let most = 5.0 * (expected * free / 20_000.0).sqrt();
            assert!(
                (found - expected).abs() <= most,
                "{numerator} {bits}: {found}"
            );
        }
    }

    #[test]
    fn a_draw_far_beyond_every_other_is_thrown_away() {
        for (hits, expected) in [(0, Some(0)), (3, Some(3)), (127, Some(127)), (128, None)] {
            let mut coins = (0..hits).map(|_| true).chain([false]);
            let found = in_a_row(|| coins.next().expect("no coin after the first miss"));
            assert_eq!(found, expected, "{hits}");
        }
    }

    #[test]
    fn tl_16_as_many_words_count_for_each_remainder() {
        for (number, fair) in [(2, u32::MAX - 1), (3, u32::MAX), (7, u32::MAX - 3)] {
            assert_eq!(fair % number, 0, "whole rounds of remainders");
            assert_eq!(divides(number, fair - number), Some(true));
            assert_eq!(divides(number, fair - 1), Some(false));
            assert_eq!(divides(number, fair), None);
        }
    }

    #[test]
    fn a_coin_of_chance_one_over_a_number_is_fair() {
        let mut random = ChaCha20Rng::seed_from_u64(1);
        for number in [1, 2, 3, 7] {
            let hits = (0..60_000).filter(|_| one_in(number, &mut random)).count();
            let expected = 60_000.0 / f64::from(number);
            assert!(
                (hits as f64 - expected).abs() <= 5.0 * expected.sqrt(),
                "{number}: {hits}"
            );
        }
    }
}
