//! The auditor checks the same signatures that `identity` makes, with code of its own.

use audit_core::is_signed_event;
use identity::AuditKey;
use identity::event::verify_event;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn both_agree_on_right_and_wrong(
        domain in "[A-Z0-9]{0,60}",
        body in prop::collection::vec(any::<u8>(), 0..100),
        flips in prop::collection::vec(any::<prop::sample::Index>(), 0..2),
    ) {
        let key = AuditKey::generate();
        let signature = key.sign_event(&domain, &body);
        let mut both = [&signature[..], &body].concat();
        for flip in &flips {
            let at = flip.index(both.len() * 8);
            both[at / 8] ^= 1 << (at % 8);
        }
        let (signature, body) = both.split_at(64);
        let ours = is_signed_event(&domain, key.public().as_str(), signature, body);
        prop_assert_eq!(ours, verify_event(&domain, key.public(), signature, body).is_ok());
        prop_assert_eq!(ours, flips.is_empty());
        prop_assert!(!is_signed_event("another", key.public().as_str(), signature, body));
        prop_assert!(!is_signed_event(&domain, AuditKey::generate().public().as_str(), signature, body));
    }
}
