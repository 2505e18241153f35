//! Conclusions from a store's refusal of one URL about the next one. Stores agree on codes for a
//! wrong signature or key. They share one code between a URL that has expired and an object that
//! its signer may not touch; there the message tells them apart.

/// Codes that no other URL of the same signer changes.
const FOR_GOOD: [&str; 7] = [
    "SignatureDoesNotMatch",
    "InvalidAccessKeyId",
    "AuthorizationHeaderMalformed",
    "AuthorizationQueryParametersError",
    "AccountProblem",
    "AllAccessDisabled",
    "MethodNotAllowed",
];

/// Words of messages about a URL's time: it is over, or has not come.
const OF_TIME: [&str; 6] = [
    "expire",
    "too old",
    "too late",
    "not valid yet",
    "time",
    "date",
];

/// True when another URL is refused too. A refusal without words, such as a proxy gives, may pass.
pub(crate) fn is_for_good(code: &str, message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    match code {
        "AccessDenied" => !message.is_empty() && !OF_TIME.iter().any(|word| message.contains(word)),
        code => FOR_GOOD.contains(&code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        for (code, message) in [
            ("SignatureDoesNotMatch", ""),
            ("InvalidAccessKeyId", "The access key is not known."),
            (
                "AuthorizationQueryParametersError",
                "X-Amz-Expires is too large",
            ),
            ("AccessDenied", "not a right of this key"),
            ("AccessDenied", "Access Denied."),
        ] {
            assert!(is_for_good(code, message), "{code} {message}");
        }
        for (code, message) in [
            ("AccessDenied", "Request has expired"),
            ("AccessDenied", ""),
            ("InvalidRequest", "Bad request: Date is too old"),
            (
                "RequestTimeTooSkewed",
                "request time is too far from server time",
            ),
            ("ExpiredToken", "The provided token has expired."),
            ("SlowDown", "Please reduce your request rate."),
            ("", ""),
        ] {
            assert!(!is_for_good(code, message), "{code} {message}");
        }
    }
}
