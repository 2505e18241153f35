//! Numbers modulo 2^255 - 19, by the arithmetic of crate `fiat-crypto`, whose correctness was
//! proved by machine.
//!
//! A sum is not carried, so it can be multiplied and not added again: [`Sum`] and [`Number`] keep
//! the two apart.

use fiat_crypto::curve25519_64::{
    fiat_25519_add, fiat_25519_carry, fiat_25519_carry_mul, fiat_25519_carry_square,
    fiat_25519_from_bytes, fiat_25519_loose_field_element, fiat_25519_relax, fiat_25519_sub,
    fiat_25519_tight_field_element, fiat_25519_to_bytes,
};

/// A number.
#[derive(Clone, Copy)]
pub(crate) struct Number(fiat_25519_tight_field_element);

/// A sum or a difference of two numbers, which can be multiplied.
#[derive(Clone, Copy)]
pub(crate) struct Sum(fiat_25519_loose_field_element);

const NO_SUM: fiat_25519_loose_field_element = fiat_25519_loose_field_element([0; 5]);

/// The prime less two, lowest byte first: to this power a number is its own inverse.
const INVERSE: [u8; 32] = power(0xeb);

impl Number {
    pub(crate) const ZERO: Self = Self(fiat_25519_tight_field_element([0; 5]));
    pub(crate) const ONE: Self = Self(fiat_25519_tight_field_element([1, 0, 0, 0, 0]));

    /// The number in 32 bytes, lowest first. The highest bit is not looked at, and a number from
    /// the prime on is reduced.
    pub(crate) fn from_bytes(bytes: &[u8; 32]) -> Self {
        let (mut number, mut bytes) = (Self::ZERO, *bytes);
        bytes[31] &= 0x7f;
        fiat_25519_from_bytes(&mut number.0, &bytes);
        number
    }

    /// The only form of the number in bytes, lowest first: below the prime.
    pub(crate) fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        fiat_25519_to_bytes(&mut bytes, &self.0);
        bytes
    }

    pub(crate) fn plus(&self, other: &Self) -> Sum {
        let mut sum = NO_SUM;
        fiat_25519_add(&mut sum, &self.0, &other.0);
        Sum(sum)
    }

    pub(crate) fn minus(&self, other: &Self) -> Sum {
        let mut sum = NO_SUM;
        fiat_25519_sub(&mut sum, &self.0, &other.0);
        Sum(sum)
    }

    /// The number where a sum is expected.
    pub(crate) fn alone(&self) -> Sum {
        let mut sum = NO_SUM;
        fiat_25519_relax(&mut sum, &self.0);
        Sum(sum)
    }

    pub(crate) fn times(&self, other: &Self) -> Self {
        self.alone().times(&other.alone())
    }

    pub(crate) fn square(&self) -> Self {
        let mut square = Self::ZERO;
        fiat_25519_carry_square(&mut square.0, &self.alone().0);
        square
    }

    /// The number to a power, which is given lowest byte first.
    pub(crate) fn raised(&self, power: &[u8; 32]) -> Self {
        let bits = (0..256)
            .rev()
            .map(|bit| power[bit / 8] >> (bit % 8) & 1 == 1);
        bits.fold(Self::ONE, |result, bit| {
            let square = result.square();
            if bit { square.times(self) } else { square }
        })
    }

    /// One divided by the number; 0 for 0.
    pub(crate) fn inverse(&self) -> Self {
        self.raised(&INVERSE)
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.to_bytes() == [0; 32]
    }

    /// True when the number is the negative of an even one.
    pub(crate) fn is_odd(&self) -> bool {
        self.to_bytes()[0] & 1 == 1
    }
}

impl Sum {
    pub(crate) fn times(&self, other: &Self) -> Number {
        let mut product = Number::ZERO;
        fiat_25519_carry_mul(&mut product.0, &self.0, &other.0);
        product
    }

    /// The sum as a number, which can be added again.
    pub(crate) fn carried(&self) -> Number {
        let mut number = Number::ZERO;
        fiat_25519_carry(&mut number.0, &self.0);
        number
    }
}

/// The inverses of many numbers, none of which is 0, for the price of one and of three products
/// each: the inverse of the product of all is taken apart again.
pub(crate) fn inverses(numbers: &[Number]) -> Vec<Number> {
    let mut product = Number::ONE;
    let mut inverses: Vec<Number> = Vec::with_capacity(numbers.len());
    for number in numbers {
        inverses.push(product);
        product = product.times(number);
    }
    let mut rest = product.inverse();
    for (inverse, number) in inverses.iter_mut().zip(numbers).rev() {
        // It holds the product of the numbers before, `rest` the inverse of that product with it.
        *inverse = inverse.times(&rest);
        rest = rest.times(number);
    }
    inverses
}

/// 2^255 - 256 and this, lowest byte first.
const fn power(lowest: u8) -> [u8; 32] {
    let mut power = [0xff; 32];
    power[0] = lowest;
    power[31] = 0x7f;
    power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(seed: u8) -> Number {
        Number::from_bytes(&std::array::from_fn(|at| {
            seed.wrapping_mul(37)
                .wrapping_add((at as u8).wrapping_mul(11))
        }))
    }

    #[test]
    fn inverses_are_inverses_alone_and_together() {
        let numbers: Vec<Number> = (1..40).map(number).collect();
        assert!(inverses(&[]).is_empty());
        for (number, inverse) in numbers.iter().zip(inverses(&numbers)) {
            assert_eq!(number.times(&inverse).to_bytes(), Number::ONE.to_bytes());
            assert_eq!(inverse.to_bytes(), number.inverse().to_bytes());
        }
        assert!(Number::ZERO.inverse().is_zero());
    }

    #[test]
    fn sums_and_differences_are_carried_and_reduced() {
        let (a, b) = (number(3), number(200));
        let again = a.minus(&b).carried().plus(&b).carried();
        assert_eq!(again.to_bytes(), a.to_bytes());
        // The prime itself is 0, and one more is 1.
        let mut prime = power(0xed);
        assert!(Number::from_bytes(&prime).is_zero());
        prime[0] += 1;
        assert_eq!(
            Number::from_bytes(&prime).to_bytes(),
            Number::ONE.to_bytes()
        );
        assert!(
            Number::ZERO
                .minus(&Number::ONE)
                .carried()
                .plus(&Number::ONE)
                .carried()
                .is_zero()
        );
        assert!(Number::ONE.is_odd() && !Number::ZERO.minus(&Number::ONE).carried().is_odd());
    }
}
