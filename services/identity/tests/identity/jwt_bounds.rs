//! NATS tokens at their limits: times that are not set, and the longest texts.

use identity::KeyKind;
use identity::claims::{AccountClaims, UserClaims};
use identity::jwt::{JwtError, TOKEN_BYTES_MAX, USER_BYTES_MAX, verify};
use serde_json::json;

use crate::jwt::{NOW, fixed, forge};

/// Go's libraries write 0 for a time that is not set.
#[test]
fn a_time_of_zero_is_none() {
    let ((pair, _), (_, subject)) = (fixed(KeyKind::Account, 1), fixed(KeyKind::User, 2));
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let claims = json!({"iat": 1, "nbf": 0, "exp": 0, "iss": pair.public_key(), "name": "w1",
        "sub": subject.public().as_str(), "nats": {"type": "user", "version": 2}});
    let jwt = verify::<UserClaims>(&forge(&pair, &header, &claims), NOW).expect("it never ends");
    assert_eq!((jwt.not_before, jwt.expires), (None, None));
}

#[test]
fn tokens_have_a_longest_length_for_each_kind() {
    let too_long = |error: JwtError| matches!(error, JwtError::TooLong { .. });
    for (is_more, user, account) in [
        (false, USER_BYTES_MAX, TOKEN_BYTES_MAX),
        (true, USER_BYTES_MAX + 1, TOKEN_BYTES_MAX + 1),
    ] {
        let text = "x".repeat(user);
        let error = verify::<UserClaims>(&text, NOW).expect_err("no token");
        assert_eq!(too_long(error), is_more, "a user's of {user} bytes");
        let text = "x".repeat(account);
        let error = verify::<AccountClaims>(&text, NOW).expect_err("no token");
        assert_eq!(too_long(error), is_more, "an account's of {account} bytes");
    }
}
