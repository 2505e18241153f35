//! Multiples of a point, computed once, so that a product with it is a sum of 32 of them.
//!
//! The time of a product depends on the number. Signatures and public keys are public; no secret
//! number comes here.

use std::cmp::Ordering;

use curve25519_dalek::scalar::Scalar;

use crate::point::{Addend, Point, addends};

/// Digits of a number to the base 256.
const DIGITS: usize = 32;
/// The largest digit. Digits go from one above its negative to it, since to subtract a point costs
/// as much as to add it.
const DIGIT_MAX: usize = 128;

/// Multiples of a point, 480 KiB: for each power of 256 its multiples from 1 to [`DIGIT_MAX`].
pub(crate) struct Multiples(Vec<Addend>);

impl Multiples {
    /// Those of `point`: a millisecond of work.
    pub(crate) fn of(point: &Point) -> Self {
        let mut all = Vec::with_capacity(DIGITS * DIGIT_MAX);
        let mut power = *point;
        for _ in 0..DIGITS {
            let step = addends(&[power])[0];
            let mut multiple = Point::NEUTRAL;
            for _ in 0..DIGIT_MAX {
                multiple = multiple.plus(&step);
                all.push(multiple);
            }
            power = multiple.plus(&addends(&[multiple])[0]);
        }
        Self(addends(&all))
    }

    /// Adds `number` times the point to `sum`.
    pub(crate) fn add(&self, sum: Point, number: &Scalar) -> Point {
        let powers = self.0.chunks_exact(DIGIT_MAX);
        let digits = digits(number).into_iter().zip(powers);
        digits.fold(sum, |sum, (digit, multiples)| {
            let multiple = || &multiples[usize::from(digit.unsigned_abs()) - 1];
            match digit.cmp(&0) {
                Ordering::Greater => sum.plus(multiple()),
                Ordering::Less => sum.minus(multiple()),
                Ordering::Equal => sum,
            }
        })
    }
}

/// The digits of a number to the base 256, lowest first. A number that is reduced is below 2^253,
/// so the highest digit carries nothing.
fn digits(number: &Scalar) -> [i16; DIGITS] {
    let mut carry = 0;
    number.to_bytes().map(|byte| {
        let digit = i16::from(byte) + carry;
        carry = i16::from(usize::from(digit.unsigned_abs()) > DIGIT_MAX);
        digit - (carry << 8)
    })
}

#[cfg(test)]
mod tests {
    use curve25519_dalek::EdwardsPoint;
    use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
    use sha2::{Digest as _, Sha512};

    use super::*;
    use crate::point::encoded;

    fn scalar(number: u64) -> Scalar {
        let bytes: [u8; 64] = Sha512::digest(number.to_le_bytes()).into();
        Scalar::from_bytes_mod_order_wide(&bytes)
    }

    fn point(point: &EdwardsPoint) -> Point {
        Point::decode(point.compress().as_bytes()).expect("it is a point")
    }

    /// Numbers whose digits are the smallest and the largest, and that carry far.
    fn extremes() -> impl Iterator<Item = Scalar> {
        let bytes = [0, 1, 127, 128, 129, 254, 255].map(|byte| {
            let mut bytes = [byte; 32];
            bytes[31] = 0x0f;
            Scalar::from_bytes_mod_order(bytes)
        });
        let small = (0..300_u64).map(Scalar::from);
        let powers = (0..253).map(|bit| {
            let mut bytes = [0; 32];
            bytes[bit / 8] = 1 << (bit % 8);
            Scalar::from_bytes_mod_order(bytes)
        });
        let negative = small.clone().map(|number| -number);
        bytes.into_iter().chain(small).chain(powers).chain(negative)
    }

    #[test]
    fn digits_are_the_number_and_within_their_bounds() {
        for number in extremes().chain((0..500).map(scalar)) {
            let digits = digits(&number);
            let most = DIGIT_MAX as i16;
            assert!(digits.iter().all(|digit| (1 - most..=most).contains(digit)));
            let again = digits.iter().rev().fold(Scalar::ZERO, |again, digit| {
                let most = Scalar::from(DIGIT_MAX as u64);
                let digit = Scalar::from((digit + DIGIT_MAX as i16) as u64) - most;
                again * Scalar::from(256_u64) + digit
            });
            assert_eq!(again, number);
        }
    }

    /// Points of any order, the small ones among them, added to points of any order.
    #[test]
    fn sums_of_multiples_are_the_products_that_the_library_makes() {
        for (number, torsion) in EIGHT_TORSION.iter().enumerate() {
            let mixed = ED25519_BASEPOINT_POINT * scalar(number as u64) + torsion;
            for whose in [*torsion, mixed] {
                let multiples = Multiples::of(&point(&whose));
                let numbers = extremes().chain((0..50).map(scalar));
                for factor in numbers.skip(number).step_by(EIGHT_TORSION.len()) {
                    for before in [*torsion, mixed, -whose * factor, whose * factor] {
                        let sum = multiples.add(point(&before), &factor);
                        let expected = (before + whose * factor).compress();
                        assert_eq!(encoded(&[sum]), [expected.to_bytes()]);
                    }
                }
            }
        }
    }
}
