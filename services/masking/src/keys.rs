//! The keys of one worker for one cohort, and what is derived from them.

use hkdf::Hkdf;
use schemas::Digest;
use schemas::masking::{Bytes32, MaskKeys};
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize as _, Zeroizing};

/// Before the seed of an own mask, in the commitment to it.
const COMMITMENT: &[u8] = b"diloco/mask/commitment/v1";

/// Random bytes from outside: of two secret keys, a seed, and the polynomials of shares.
pub type Entropy = Zeroizing<[u8; 128]>;

/// Secrets of a worker for one cohort. They are wiped when dropped.
pub struct Keys {
    pub(crate) sealing: StaticSecret,
    pub(crate) masking: StaticSecret,
    pub(crate) seed: Zeroizing<[u8; 32]>,
    pub(crate) polynomials: Zeroizing<[u8; 32]>,
}

impl Keys {
    /// The keys that come from these random bytes, which nobody may use again.
    pub fn new(entropy: &Entropy) -> Self {
        let part = |index: usize| {
            let mut bytes = [0; 32];
            bytes.copy_from_slice(&entropy[32 * index..32 * (index + 1)]);
            bytes
        };
        let secret = |index| {
            let mut bytes = part(index);
            let secret = StaticSecret::from(bytes);
            bytes.zeroize();
            secret
        };
        Self {
            sealing: secret(0),
            masking: secret(1),
            seed: Zeroizing::new(part(2)),
            polynomials: Zeroizing::new(part(3)),
        }
    }

    /// What the worker announces.
    pub fn announced(&self) -> MaskKeys {
        MaskKeys {
            sealing: Bytes32(PublicKey::from(&self.sealing).to_bytes()),
            masking: public_of(&self.masking.to_bytes()),
            commitment: commitment(&self.seed),
        }
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

/// True if both public keys agree on a secret with any other. One of low order gives the same
/// secret to everybody.
pub fn are_sound(keys: &MaskKeys) -> bool {
    let any = StaticSecret::from([1; 32]);
    let sound = |public| agree(&any, public).is_some();
    sound(&keys.sealing) && sound(&keys.masking)
}

/// The public half of a masking key.
pub(crate) fn public_of(secret: &[u8; 32]) -> Bytes32 {
    Bytes32(PublicKey::from(&StaticSecret::from(*secret)).to_bytes())
}

/// The commitment to the seed of an own mask. A seed has 256 random bits, so it hides the seed.
pub(crate) fn commitment(seed: &[u8; 32]) -> Digest {
    Digest::of(&[COMMITMENT, seed].concat())
}

/// The key that a secret gives for a purpose in a cohort (HKDF with SHA-256, RFC 5869).
pub(crate) fn derive(cohort: &Digest, secret: &[u8; 32], purpose: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    let derived = Hkdf::<Sha256>::new(Some(cohort.as_bytes()), secret);
    let expanded = derived.expand_multi_info(purpose, &mut *key);
    expanded.expect("one block is no more than HKDF gives");
    key
}

/// The secret that a key agrees with another's public key (X25519, RFC 7748). None for a public key
/// that gives the same secret to everybody.
pub(crate) fn agree(secret: &StaticSecret, public: &Bytes32) -> Option<Zeroizing<[u8; 32]>> {
    let shared = secret.diffie_hellman(&PublicKey::from(public.0));
    let contributes = shared.was_contributory();
    contributes.then(|| Zeroizing::new(shared.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> [u8; 32] {
        let text = format!("sha256:{hex}");
        *text.parse::<Digest>().expect("hexadecimal").as_bytes()
    }

    /// RFC 7748, section 6.1.
    #[test]
    fn tl_17_keys_agree_as_in_the_rfc() {
        let alice = bytes("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
        let bob = bytes("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
        let public = bytes("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
        let shared = bytes("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        assert_eq!(public_of(&alice), Bytes32(public));
        let agreed = agree(&StaticSecret::from(bob), &Bytes32(public));
        assert_eq!(agreed.map(|agreed| *agreed), Some(shared));
    }

    #[test]
    fn tl_17_a_public_key_of_low_order_is_refused() {
        let secret = StaticSecret::from([7; 32]);
        assert!(agree(&secret, &Bytes32([0; 32])).is_none());
        let mut one = [0; 32];
        one[0] = 1;
        assert!(agree(&secret, &Bytes32(one)).is_none());
        assert!(agree(&secret, &public_of(&[8; 32])).is_some());
    }

    #[test]
    fn tl_17_a_cohort_and_a_purpose_have_keys_of_their_own() {
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let key = |cohort, purpose: &[u8]| *derive(cohort, &[1; 32], &[purpose]);
        assert_eq!(key(&one, b"a"), key(&one, b"a"));
        assert_ne!(key(&one, b"a"), key(&one, b"b"));
        assert_ne!(key(&one, b"a"), key(&two, b"a"));
    }

    #[test]
    fn tl_17_what_is_announced_tells_no_secret() {
        let keys = Keys::new(&Zeroizing::new([9; 128]));
        let announced = keys.announced();
        for public in [
            announced.sealing.0,
            announced.masking.0,
            *announced.commitment.as_bytes(),
        ] {
            assert_ne!(public, [9; 32]);
        }
        assert_eq!(format!("{keys:?}"), "Keys");
    }
}
