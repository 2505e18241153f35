//! Signatures of a key that signs many events. Multiples of the key are computed once, and a check
//! then adds some of them up instead of doubling a point 253 times, which takes twice as long.
//!
//! The verdict is that of `VerifyingKey::verify_strict` on every input (RFC 8032, 5.1.7, without
//! cofactor, and no point of small order): a test compares the two.

use std::sync::Arc;

use curve25519_dalek::constants::ED25519_BASEPOINT_TABLE;
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsBasepointTable};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::BasepointTable as _;
use sha2::{Digest as _, Sha512};

use crate::signature::{KEY_BYTES, SIGNATURE_BYTES};

/// A public key and 30 KB of multiples of its negative.
#[derive(Clone)]
pub(crate) struct TabledKey {
    compressed: [u8; KEY_BYTES],
    negative: Arc<EdwardsBasepointTable>,
}

impl TabledKey {
    /// None if the bytes are no point of the curve, or a point of small order, under which any
    /// signature would be valid.
    pub(crate) fn new(compressed: [u8; KEY_BYTES]) -> Option<Self> {
        let point = CompressedEdwardsY(compressed).decompress()?;
        (!point.is_small_order()).then(|| Self {
            compressed,
            negative: Arc::new(EdwardsBasepointTable::create(&-point)),
        })
    }

    /// Returns true if `signature` was made by this key over the parts of a message, which follow
    /// each other without a gap.
    pub(crate) fn holds(&self, signature: &[u8; SIGNATURE_BYTES], message: &[&[u8]]) -> bool {
        let (commitment, response) = signature.split_at(SIGNATURE_BYTES / 2);
        let response = response.try_into().expect("the second half of 64 bytes");
        let Some(response) = Option::<Scalar>::from(Scalar::from_canonical_bytes(response)) else {
            return false;
        };
        let mut hash = Sha512::new_with_prefix(commitment);
        hash.update(self.compressed);
        message.iter().for_each(|part| hash.update(part));
        let challenge = Scalar::from_bytes_mod_order_wide(&hash.finalize().into());
        let expected = ED25519_BASEPOINT_TABLE * &response + &*self.negative * &challenge;
        // An equal encoding is the only one of its point, so the order of one is the order of the
        // other.
        expected.compress().as_bytes() == commitment && !expected.is_small_order()
    }
}

impl std::fmt::Debug for TabledKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_tuple("TabledKey")
            .field(&self.compressed)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use curve25519_dalek::EdwardsPoint;
    use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
    use ed25519_dalek::{Signature, VerifyingKey};

    use super::*;

    /// The library's verdict on a key that it may refuse altogether.
    fn strict(key: [u8; 32], signature: &[u8; 64], message: &[u8]) -> bool {
        let signature = Signature::from_bytes(signature);
        VerifyingKey::from_bytes(&key)
            .is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
    }

    /// The verdict of the table, which is also that of the library.
    fn verdict(key: [u8; 32], signature: &[u8; 64], message: &[u8]) -> bool {
        let tabled = TabledKey::new(key);
        let holds = tabled.is_some_and(|key| key.holds(signature, &[message]));
        assert_eq!(
            holds,
            strict(key, signature, message),
            "key {key:?}, signature {signature:?}, message {message:?}"
        );
        holds
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
    fn good_signatures_hold_and_no_altered_one_does() {
        let none = &EIGHT_TORSION[0];
        for number in 0..40 {
            let message = vec![number as u8; number as usize];
            let (key, signature) = sign(number, &message, (none, none));
            assert!(verdict(key, &signature, &message));
            for bit in (number as usize..64 * 8).step_by(31) {
                let mut altered = signature;
                altered[bit / 8] ^= 1 << (bit % 8);
                assert!(!verdict(key, &altered, &message));
            }
            assert!(!verdict(key, &signature, b"another"));
            let (other, _) = sign(number + 1, &message, (none, none));
            assert!(!verdict(other, &signature, &message));
        }
    }

    /// A key that is shifted by a point of small order makes signatures that are valid for some
    /// messages only.
    #[test]
    fn points_of_mixed_order_are_judged_as_the_library_judges_them() {
        let (mut held, mut refused) = (0, 0);
        for off_commitment in &EIGHT_TORSION {
            for off_key in &EIGHT_TORSION {
                for number in 0..8 {
                    let message = [number as u8; 5];
                    let (key, signature) = sign(number, &message, (off_commitment, off_key));
                    match verdict(key, &signature, &message) {
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
        for small in &EIGHT_TORSION {
            let small = small.compress().0;
            assert!(TabledKey::new(small).is_none());
            // Zero times anything: the equation itself would be fulfilled.
            let mut signature = [0; 64];
            signature[..32].copy_from_slice(&small);
            let (key, _) = sign(1, b"", (&EIGHT_TORSION[0], &EIGHT_TORSION[0]));
            for key in [small, key] {
                assert!(!verdict(key, &signature, b"anything"));
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
            assert!(!verdict(key, &signature, b"m"));
        }
    }

    #[test]
    fn second_forms_of_numbers_and_points_are_refused() {
        let none = &EIGHT_TORSION[0];
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
        assert!(verdict(key, &signature, b"m") && !verdict(key, &second, b"m"));
        // The field's prime plus one: a second form of the y coordinate of the neutral point.
        let mut form = [0xff; 32];
        (form[0], form[31]) = (0xee, 0x7f);
        let mut forged = [0; 64];
        forged[..32].copy_from_slice(&form);
        for key in [form, key] {
            assert!(!verdict(key, &forged, b"m"));
        }
    }
}
