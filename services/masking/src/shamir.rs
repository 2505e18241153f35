//! Shamir's shares (1979, "How to share a secret") of 32 bytes, byte by byte over the field of 256
//! elements with AES's polynomial. Additions and multiplications take the same time whatever the
//! secret.

use zeroize::Zeroizing;

/// Bytes of a secret, and of a share.
const BYTES: usize = 32;

/// A share: the polynomials' values at `x`, which is not 0.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    pub(crate) x: u8,
    pub(crate) y: [u8; BYTES],
}

/// Shares for `x` from 1 to `count`, of which any `threshold` give the secret. `random` are the
/// bytes of the polynomials: [`BYTES`] for each share that is needed beyond the first.
pub(crate) fn split(
    secret: &[u8; BYTES],
    threshold: usize,
    count: u8,
    mut random: impl FnMut(&mut [u8]),
) -> Vec<Share> {
    assert!((1..=usize::from(count)).contains(&threshold));
    let mut higher = Zeroizing::new(vec![[0; BYTES]; threshold - 1]);
    for coefficients in higher.iter_mut() {
        random(coefficients);
    }
    let at = |x: u8| {
        // Horner's rule, from the highest coefficient down.
        let mut y = [0; BYTES];
        for coefficients in higher.iter().rev().chain([secret]) {
            for (y, coefficient) in y.iter_mut().zip(coefficients) {
                *y = multiply(*y, x) ^ coefficient;
            }
        }
        Share { x, y }
    };
    (1..=count).map(at).collect()
}

/// The secret, from exactly as many shares as the threshold, each with an `x` of its own: the value
/// of the polynomials at 0 (Lagrange). Other shares give other bytes.
pub(crate) fn join(shares: &[Share]) -> Zeroizing<[u8; BYTES]> {
    let mut secret = Zeroizing::new([0; BYTES]);
    for share in shares {
        let others = shares.iter().filter(|other| other.x != share.x);
        let factor = others.fold(1, |factor, other| {
            multiply(factor, multiply(other.x, inverse(other.x ^ share.x)))
        });
        for (byte, y) in secret.iter_mut().zip(&share.y) {
            *byte ^= multiply(factor, *y);
        }
    }
    secret
}

/// The product modulo `x^8 + x^4 + x^3 + x + 1`.
fn multiply(mut a: u8, b: u8) -> u8 {
    let mut product = 0;
    for bit in 0..8 {
        product ^= a & (b >> bit & 1).wrapping_neg();
        let carry = (a >> 7).wrapping_neg();
        a = (a << 1) ^ (carry & 0x1b);
    }
    product
}

/// `a^254`, which is `1 / a`, and 0 for 0.
fn inverse(a: u8) -> u8 {
    let mut result = 1;
    let mut power = a;
    for _ in 1..8 {
        power = multiply(power, power);
        result = multiply(result, power);
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Products and inverses of FIPS 197, sections 4.2 and 4.4 of its first edition.
    #[test]
    fn tl_17_the_field_is_that_of_aes() {
        assert_eq!(multiply(0x57, 0x83), 0xc1);
        assert_eq!(multiply(0x57, 0x13), 0xfe);
        assert_eq!(inverse(0x53), 0xca);
        for a in 1..=255 {
            assert_eq!(multiply(a, inverse(a)), 1, "{a}");
        }
    }

    /// A polynomial that was evaluated by hand: `0x2a + 7 x`, at 1, 2 and 3.
    #[test]
    fn tl_17_shares_are_values_of_the_polynomial() {
        let shares = split(&[0x2a; 32], 2, 3, |bytes| bytes.fill(7));
        let values: Vec<_> = shares.iter().map(|share| (share.x, share.y[9])).collect();
        assert_eq!(values, [(1, 0x2d), (2, 0x24), (3, 0x23)]);
        assert_eq!(*join(&shares[1..]), [0x2a; 32]);
    }

    proptest! {
        #[test]
        fn tl_17_any_threshold_of_shares_gives_the_secret_and_fewer_fit_every_secret(
            secret: [u8; 32],
            seed: u8,
            threshold in 2..9_usize,
            more in 0..4_u8,
            skip in 0..4_usize,
        ) {
            let count = threshold as u8 + more;
            let mut next = seed;
            let shares = split(&secret, threshold, count, |bytes| {
                for byte in bytes {
                    next = next.wrapping_mul(167).wrapping_add(89);
                    *byte = next;
                }
            });
            let skip = skip.min(usize::from(more));
            let enough = &shares[skip..skip + threshold];
            prop_assert_eq!(*join(enough), secret);
            // One share less: for every value of the secret there is a last share that gives it,
            // so what is there says nothing about the secret.
            let (fewer, last) = enough.split_at(threshold - 1);
            let mut values: Vec<u8> = (0..=255).map(|y| {
                let guessed = Share { y: [y; 32], ..last[0] };
                join(&[fewer, &[guessed]].concat())[0]
            }).collect();
            values.sort_unstable();
            prop_assert!(values.into_iter().eq(0..=255));
        }
    }
}
