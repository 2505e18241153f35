//! Signatures that `identity` makes are those that this crate checks.

use chain::{Signatures, is_signed_event, is_signed_statement};
use identity::AuditKey;
use proptest::prelude::*;

#[test]
fn a_statement_is_of_its_key_its_domain_and_its_body_and_is_no_event() {
    let (key, other) = (AuditKey::generate(), AuditKey::generate());
    let holds = |domain, key: &AuditKey, signature: &[u8], body| {
        is_signed_statement(domain, key.public().as_str(), signature, body)
    };
    let signature = key.sign_statement("domain", b"body");
    assert!(holds("domain", &key, &signature[..], b"body"));
    assert!(!holds("another", &key, &signature[..], b"body"));
    assert!(!holds("domain", &other, &signature[..], b"body"));
    assert!(!holds("domain", &key, &signature[..], b"bodies"));
    let event = key.sign_event("domain", b"body".to_vec());
    assert!(!holds("domain", &key, &event.signature[..], b"body"));
    let key = key.public().as_str();
    assert!(!is_signed_event("domain", key, &signature[..], b"body"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_flipped_bit_another_key_and_another_domain_are_noticed(
        domain in "[A-Z0-9]{0,60}",
        body in prop::collection::vec(any::<u8>(), 0..100),
        flips in prop::collection::vec(any::<prop::sample::Index>(), 0..2),
    ) {
        let key = AuditKey::generate();
        let signed = key.sign_event(&domain, body.clone());
        let mut both = [&signed.signature[..], &body].concat();
        for flip in &flips {
            let at = flip.index(both.len() * 8);
            both[at / 8] ^= 1 << (at % 8);
        }
        let (signature, body) = both.split_at(64);
        prop_assert_eq!(
            is_signed_event(&domain, key.public().as_str(), signature, body),
            flips.is_empty()
        );
        prop_assert!(!is_signed_event("another", key.public().as_str(), signature, body));
        // The same, whether its key was decoded before or is decoded now.
        for often in [vec![], vec![key.public().clone()]] {
            let signatures = Signatures::new(&domain, &often);
            let signature: [u8; 64] = signature.try_into().expect("it is as long as before");
            let event = chain::signed(key.public(), signature, body.to_vec());
            prop_assert_eq!(signatures.hold([&event, &event]), [flips.is_empty(); 2]);
        }
        let other = AuditKey::generate();
        prop_assert!(!is_signed_event(&domain, other.public().as_str(), signature, body));
    }
}
