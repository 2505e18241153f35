//! What the broker answers to a publish: in its own words, sorted by what can change by itself.

use runtime::ApiError;
use serde::Deserialize;

/// The broker's error for an expectation that does not hold.
const WRONG_LAST_SEQUENCE: u64 = 10071;
/// The broker's errors that nothing but a person's change of the stream ends: the message is longer
/// than the stream takes, the stream is sealed, the account has no JetStream.
const FINAL: [u64; 3] = [10054, 10109, 10039];

/// What came of one publish.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Published {
    At(u64),
    /// The broker refused the expectation, or took the event for a repeat: the end of the ledger
    /// tells.
    Elsewhere,
    /// Not now: no answer came, or the broker is busy, full, starting or electing. In its own
    /// words.
    NotNow(String),
    /// Never: it will not change by itself.
    Refused(String),
}

/// A stream's answer to a publish.
#[derive(Deserialize)]
struct Acknowledgement {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<ApiError>,
}

/// Reads the answer to a publish behind position `last` of the stream.
pub(super) fn published(answer: &[u8], last: u64) -> Published {
    let Ok(ack) = serde_json::from_slice::<Acknowledgement>(answer) else {
        return Published::NotNow("the stream's answer is not one".to_owned());
    };
    match ack.error {
        None if !ack.duplicate && ack.seq > last => Published::At(ack.seq),
        None => Published::Elsewhere,
        Some(error) if error.err_code == WRONG_LAST_SEQUENCE => Published::Elsewhere,
        Some(error) if FINAL.contains(&error.err_code) => Published::Refused(error.description),
        Some(error) => Published::NotNow(error.description),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u64, err_code: u64) -> Published {
        let answer = serde_json::json!({ "error": { "code": code, "err_code": err_code, "description": "words" } });
        published(answer.to_string().as_bytes(), 7)
    }

    #[test]
    fn a_full_or_busy_broker_is_not_final() {
        // Too many requests; no room in the stream, on the disk, in the account; no leader; no
        // answer that can be read.
        for (code, err_code) in [
            (429, 10167),
            (503, 10077),
            (503, 10047),
            (400, 10023),
            (503, 10008),
            (500, 0),
            (400, 10077),
        ] {
            assert_eq!(
                refused(code, err_code),
                Published::NotNow("words".to_owned()),
                "{err_code}"
            );
        }
        for err_code in FINAL {
            assert_eq!(
                refused(400, err_code),
                Published::Refused("words".to_owned()),
                "{err_code}"
            );
        }
        assert!(matches!(published(b"", 7), Published::NotNow(_)));
    }

    #[test]
    fn only_a_new_position_is_an_acknowledgement() {
        assert_eq!(
            published(br#"{"stream":"LEDGER","seq":8}"#, 7),
            Published::At(8)
        );
        assert_eq!(
            published(br#"{"stream":"LEDGER","seq":8,"duplicate":true}"#, 7),
            Published::Elsewhere
        );
        assert_eq!(
            published(br#"{"stream":"LEDGER","seq":7}"#, 7),
            Published::Elsewhere
        );
        assert_eq!(refused(400, WRONG_LAST_SEQUENCE), Published::Elsewhere);
    }
}
