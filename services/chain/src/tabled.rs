//! Signatures of a key that signs many events. From a number of checks on multiples of the key are
//! kept, and a check then adds some of them up instead of doubling a point 253 times. Checks that
//! are made together share the division that the encoding of a point needs. So one takes a third of
//! the time.
//!
//! The verdict is that of `VerifyingKey::verify_strict` on every input (RFC 8032, 5.1.7, without
//! cofactor, and no point of small order): a test compares the two. Each signature has an equation
//! of its own. One equation for many would hold for some that strict Ed25519 refuses.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

use curve25519_dalek::constants::{ED25519_BASEPOINT_COMPRESSED, EIGHT_TORSION};
use curve25519_dalek::scalar::Scalar;
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha512};

use crate::multiples::Multiples;
use crate::point::{Point, encoded};
use crate::signature::{KEY_BYTES, SIGNATURE_BYTES};

/// Checks of a key before its multiples are computed, which takes as long as those checks together.
const CHECKS_BEFORE: u32 = 64;

/// The multiples of the curve's base point, for all keys.
static BASE: LazyLock<Multiples> = LazyLock::new(|| {
    let base = Point::decode(ED25519_BASEPOINT_COMPRESSED.as_bytes());
    Multiples::of(&base.expect("the base point is a point"))
});

/// The encodings of the points of small order.
static SMALL: LazyLock<[[u8; KEY_BYTES]; 8]> =
    LazyLock::new(|| EIGHT_TORSION.map(|point| point.compress().to_bytes()));

/// A public key that may get multiples.
#[derive(Clone)]
pub(crate) struct TabledKey(Arc<Key>);

struct Key {
    public: VerifyingKey,
    /// Checks so far, up to [`CHECKS_BEFORE`].
    checks: AtomicU32,
    /// Multiples of the key's negative.
    negative: OnceLock<Multiples>,
}

/// A check of a signature, as far as it goes by itself.
pub(crate) enum Check {
    /// The verdict.
    Done(bool),
    /// The signature holds if this point has this encoding.
    Open {
        expected: Point,
        commitment: [u8; KEY_BYTES],
    },
}

/// The verdicts of checks, in their order.
pub(crate) fn verdicts(checks: &[Check]) -> Vec<bool> {
    let points = checks.iter().filter_map(|check| match check {
        Check::Open { expected, .. } => Some(*expected),
        Check::Done(_) => None,
    });
    let mut encoded = encoded(&points.collect::<Vec<_>>()).into_iter();
    let verdict = |check: &Check| match check {
        Check::Done(verdict) => *verdict,
        Check::Open { commitment, .. } => encoded.next().as_ref() == Some(commitment),
    };
    checks.iter().map(verdict).collect()
}

impl TabledKey {
    /// None if the bytes are no point of the curve, or a point of small order, under which any
    /// signature would be valid.
    pub(crate) fn new(compressed: [u8; KEY_BYTES]) -> Option<Self> {
        let public = VerifyingKey::from_bytes(&compressed).ok()?;
        (!public.is_weak()).then(|| {
            Self(Arc::new(Key {
                public,
                checks: AtomicU32::new(0),
                negative: OnceLock::new(),
            }))
        })
    }

    /// Begins to check if `signature` was made by this key over the parts of a message, which
    /// follow each other without a gap.
    pub(crate) fn check(&self, signature: &[u8; SIGNATURE_BYTES], message: &[&[u8]]) -> Check {
        let key = &*self.0;
        if key.checks.load(Ordering::Relaxed) < CHECKS_BEFORE {
            key.checks.fetch_add(1, Ordering::Relaxed);
            let signature = Signature::from_bytes(signature);
            let whole = message.concat();
            return Check::Done(key.public.verify_strict(&whole, &signature).is_ok());
        }
        let negative = key.negative.get_or_init(|| negative(&key.public));
        check(key.public.as_bytes(), negative, signature, message)
    }
}

/// Multiples of the negative of a key.
fn negative(key: &VerifyingKey) -> Multiples {
    let key = Point::decode(key.as_bytes()).expect("the library decoded it");
    Multiples::of(&key.negative())
}

/// The check by the multiples of the key's negative.
fn check(
    key: &[u8; KEY_BYTES],
    negative: &Multiples,
    signature: &[u8; SIGNATURE_BYTES],
    message: &[&[u8]],
) -> Check {
    let (commitment, response) = signature.split_at(KEY_BYTES);
    let halves = "the halves of 64 bytes";
    let commitment: [u8; KEY_BYTES] = commitment.try_into().expect(halves);
    let response = response.try_into().expect(halves);
    let response = Option::<Scalar>::from(Scalar::from_canonical_bytes(response));
    // An encoding that is equal is the only one of that point, so that others of points of small
    // order do not come to hold.
    let Some(response) = response.filter(|_| !SMALL.contains(&commitment)) else {
        return Check::Done(false);
    };
    let mut hash = Sha512::new_with_prefix(commitment);
    hash.update(key);
    message.iter().for_each(|part| hash.update(part));
    let challenge = Scalar::from_bytes_mod_order_wide(&hash.finalize().into());
    let expected = BASE.add(Point::NEUTRAL, &response);
    Check::Open {
        expected: negative.add(expected, &challenge),
        commitment,
    }
}

impl std::fmt::Debug for TabledKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_tuple("TabledKey")
            .field(self.0.public.as_bytes())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use curve25519_dalek::EdwardsPoint;
    use curve25519_dalek::constants::ED25519_BASEPOINT_POINT;

    use super::*;

    /// Compares the verdict by multiples with the library's.
    #[derive(Default)]
    struct Judge(BTreeMap<[u8; 32], Option<Multiples>>);

    impl Judge {
        /// The verdict by multiples, which is also that of the library. A key that either refuses
        /// altogether has signed nothing.
        fn verdict(&mut self, key: [u8; 32], signature: &[u8; 64], message: &[u8]) -> bool {
            let public = VerifyingKey::from_bytes(&key).ok();
            let strict = public.is_some_and(|key| {
                let signature = Signature::from_bytes(signature);
                key.verify_strict(message, &signature).is_ok()
            });
            let negative = self.0.entry(key).or_insert_with(|| {
                let tabled = TabledKey::new(key)?;
                Some(super::negative(&tabled.0.public))
            });
            let holds = negative.as_ref().is_some_and(|negative| {
                let check = check(&key, negative, signature, &[message]);
                // Others in the same breath change nothing.
                let among = [Check::Done(true), check, Check::Done(false)];
                verdicts(&among)[1]
            });
            assert_eq!(
                holds, strict,
                "key {key:?}, signature {signature:?}, message {message:?}"
            );
            holds
        }
    }

    fn scalar(number: u64) -> Scalar {
        let bytes: [u8; 64] = Sha512::digest(number.to_le_bytes()).into();
        Scalar::from_bytes_mod_order_wide(&bytes)
    }

    fn challenge(commitment: &[u8; 32], key: &[u8; 32], message: &[u8]) -> Scalar {
        let hash = Sha512::new_with_prefix(commitment).chain_update(key);
        Scalar::from_bytes_mod_order_wide(&hash.chain_update(message).finalize().into())
    }

    /// A signature whose commitment and key are shifted by these points of small order.
    fn sign(
        number: u64,
        message: &[u8],
        off: (&EdwardsPoint, &EdwardsPoint),
    ) -> ([u8; 32], [u8; 64]) {
        let (secret, nonce) = (scalar(number), scalar(number + 1_000_000));
        let key = (ED25519_BASEPOINT_POINT * secret + off.1).compress().0;
        let commitment = (ED25519_BASEPOINT_POINT * nonce + off.0).compress().0;
        let response = nonce + challenge(&commitment, &key, message) * secret;
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&commitment);
        signature[32..].copy_from_slice(response.as_bytes());
        (key, signature)
    }

    #[test]
    fn a_key_prints_itself_and_not_its_multiples() {
        let (key, _) = sign(1, b"", (&EIGHT_TORSION[0], &EIGHT_TORSION[0]));
        let tabled = TabledKey::new(key).expect("it is a point");
        assert_eq!(format!("{tabled:?}"), format!("TabledKey({key:?})"));
    }

    #[test]
    fn verdicts_are_the_same_before_and_after_a_key_gets_its_multiples() {
        let none = &EIGHT_TORSION[0];
        let (key, signature) = sign(5, b"message", (none, none));
        let tabled = TabledKey::new(key).expect("it is a point");
        let copy = tabled.clone();
        for check in 0..2 * CHECKS_BEFORE {
            let has_multiples = copy.0.negative.get().is_some();
            assert_eq!(has_multiples, check > CHECKS_BEFORE, "check {check}");
            let message: &[&[u8]] = match check % 3 {
                0 => &[b"message"],
                1 => &[b"mess", b"age"],
                _ => &[b"mess"],
            };
            let verdict = verdicts(&[copy.check(&signature, message)]);
            assert_eq!(verdict, [check % 3 < 2]);
        }
        assert!(tabled.0.negative.get().is_some());
    }

    #[test]
    fn good_signatures_hold_and_no_altered_one_does() {
        let (none, mut judge) = (&EIGHT_TORSION[0], Judge::default());
        for number in 0..40 {
            let message = vec![number as u8; number as usize];
            let (key, signature) = sign(number, &message, (none, none));
            assert!(judge.verdict(key, &signature, &message));
            for bit in (number as usize..64 * 8).step_by(31) {
                let mut altered = signature;
                altered[bit / 8] ^= 1 << (bit % 8);
                assert!(!judge.verdict(key, &altered, &message));
            }
            assert!(!judge.verdict(key, &signature, b"another"));
            let (other, _) = sign(number + 1, &message, (none, none));
            assert!(!judge.verdict(other, &signature, &message));
        }
    }

    /// A key that is shifted by a point of small order makes signatures that are valid for some
    /// messages only.
    #[test]
    fn points_of_mixed_order_are_judged_as_the_library_judges_them() {
        let (mut held, mut refused, mut judge) = (0, 0, Judge::default());
        for off_commitment in &EIGHT_TORSION {
            for off_key in &EIGHT_TORSION {
                for number in 0..8 {
                    let message = [number as u8; 5];
                    let (key, signature) = sign(number, &message, (off_commitment, off_key));
                    match judge.verdict(key, &signature, &message) {
                        true => held += 1,
                        false => refused += 1,
                    }
                }
            }
        }
        assert!(held > 20 && refused > 200, "{held} held, {refused} did not");
    }

    #[test]
    fn points_of_small_order_sign_nothing() {
        let mut judge = Judge::default();
        for small in &EIGHT_TORSION {
            let small = small.compress().0;
            assert!(TabledKey::new(small).is_none());
            // Zero times anything: the equation itself would be fulfilled.
            let mut signature = [0; 64];
            signature[..32].copy_from_slice(&small);
            let (key, _) = sign(1, b"", (&EIGHT_TORSION[0], &EIGHT_TORSION[0]));
            for key in [small, key] {
                assert!(!judge.verdict(key, &signature, b"anything"));
            }
        }
        // A commitment of small order under a good key: the response cancels the key's part.
        let secret = scalar(7);
        let key = (ED25519_BASEPOINT_POINT * secret).compress().0;
        let small = EIGHT_TORSION[1].compress().0;
        let mut signature = [0; 64];
        let identity = EIGHT_TORSION[0].compress().0;
        for commitment in [identity, small] {
            let response = challenge(&commitment, &key, b"m") * secret;
            signature[..32].copy_from_slice(&commitment);
            signature[32..].copy_from_slice(response.as_bytes());
            assert!(!judge.verdict(key, &signature, b"m"));
        }
    }

    #[test]
    fn second_forms_of_numbers_and_points_are_refused() {
        let (none, mut judge) = (&EIGHT_TORSION[0], Judge::default());
        let (key, signature) = sign(3, b"m", (none, none));
        // The group's order is added to the response, which gives the same number again.
        let order: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9,
            0xde, 0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut second = signature;
        let mut carry = 0_u16;
        for (byte, more) in second[32..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(more) + carry;
            (*byte, carry) = (sum as u8, sum >> 8);
        }
        assert!(judge.verdict(key, &signature, b"m") && !judge.verdict(key, &second, b"m"));
        // The field's prime plus one: a second form of the y coordinate of the neutral point.
        let mut form = [0xff; 32];
        (form[0], form[31]) = (0xee, 0x7f);
        let mut forged = [0; 64];
        forged[..32].copy_from_slice(&form);
        for key in [form, key] {
            assert!(!judge.verdict(key, &forged, b"m"));
        }
    }
}
