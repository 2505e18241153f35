//! Conclusions from a store's refusal of one URL about the next URL. Stores agree on codes for a
//! wrong signature or key. They share one code between a URL that has expired and an object that
//! its signer may not use; there the message tells the two apart.

/// Codes that another URL of the same signer would get too.
const FOR_GOOD: [&str; 7] = [
    "SignatureDoesNotMatch",
    "InvalidAccessKeyId",
    "AuthorizationHeaderMalformed",
    "AuthorizationQueryParametersError",
    "AccountProblem",
    "AllAccessDisabled",
    "MethodNotAllowed",
];

/// Words in messages about a URL's time: it has expired, or is not valid yet.
const OF_TIME: [&str; 6] = [
    "expire",
    "too old",
    "too late",
    "not valid yet",
    "time",
    "date",
];

/// True if another URL will be refused too. A refusal without a code and a message, as from a
/// proxy, may pass.
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
            // The embedded store's words for a URL that has served its object.
            (
                "AccessDenied",
                "the url has expired: its object was read with it; ask for another",
            ),
            // And for one of a stopped run, or of a worker that is shut out: the coordinator says
            // why there is no other.
            ("AccessDenied", crate::key::STOPPED_WORDS),
            ("AccessDenied", crate::key::SHUT_OUT_WORDS),
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
