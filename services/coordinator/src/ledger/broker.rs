//! The broker's answers to a publish, sorted by whether they can change by themselves.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;

/// The broker's errors that nothing but a person's change of the stream ends: the message is longer
/// than the stream takes, the stream is sealed, the account has no JetStream.
const FINAL: [ErrorCode; 3] = [
    ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM,
    ErrorCode::STREAM_SEALED,
    ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT,
];

/// The outcome of one publish.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Published {
    /// Stored; the last of the events lies here.
    At(u64),
    /// The broker refused the expectation, or took the event for a repeat: the end of the ledger
    /// tells.
    Elsewhere,
    /// The stream takes no batches: it was made before they were known.
    NoBatches,
    /// Not now: no answer came, or the broker is busy, full, starting or electing. In its own
    /// words.
    NotNow(String),
    /// Never: it will not change by itself.
    Refused(String),
}

/// Reads the answer to a publish of `count` events behind position `last` of the stream. A broker
/// that knows no batches stores each message by itself, and others' between them: an answer counts
/// only where the events can lie one behind another, and one to a batch only if it says so.
pub(super) fn published(answer: &[u8], last: u64, count: usize) -> Published {
    let end = last + count as u64;
    match serde_json::from_slice::<Response<PublishAck>>(answer) {
        Ok(Response::Ok(ack))
            if !ack.duplicate
                && ack.sequence == end
                && (count == 1 || ack.batch_size == Some(count as u64)) =>
        {
            Published::At(end)
        }
        Ok(Response::Ok(_)) => Published::Elsewhere,
        Ok(Response::Err { error }) => match error.error_code() {
            ErrorCode::STREAM_WRONG_LAST_SEQUENCE => Published::Elsewhere,
            ErrorCode::ATOMIC_PUBLISH_DISABLED => Published::NoBatches,
            code if FINAL.contains(&code) => Published::Refused(error.to_string()),
            _ => Published::NotNow(error.to_string()),
        },
        Err(error) => Published::NotNow(format!("the stream's answer is not one: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u64, err_code: u64) -> Published {
        let answer = serde_json::json!({ "error": { "code": code, "err_code": err_code, "description": "words" } });
        published(answer.to_string().as_bytes(), 7, 1)
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
            let published = refused(code, err_code);
            let told = |words: &String| words.contains("words");
            assert!(
                matches!(&published, Published::NotNow(words) if told(words)),
                "{published:?}"
            );
        }
        for ErrorCode(err_code) in FINAL {
            let published = refused(400, err_code);
            let told = |words: &String| words.contains("words");
            assert!(
                matches!(&published, Published::Refused(words) if told(words)),
                "{published:?}"
            );
        }
        assert!(matches!(published(b"", 7, 1), Published::NotNow(_)));
    }

    #[test]
    fn only_a_new_position_is_an_acknowledgement() {
        assert_eq!(
            published(br#"{"stream":"LEDGER","seq":8}"#, 7, 1),
            Published::At(8)
        );
        assert_eq!(
            published(br#"{"stream":"LEDGER","seq":8,"duplicate":true}"#, 7, 1),
            Published::Elsewhere
        );
        assert_eq!(
            published(br#"{"stream":"LEDGER","seq":7}"#, 7, 1),
            Published::Elsewhere
        );
        assert_eq!(
            published(br#"{"stream":"LEDGER","seq":9}"#, 7, 1),
            Published::Elsewhere,
            "another's event lies between"
        );
        let batch = br#"{"stream":"LEDGER","seq":10,"batch":"b","count":3}"#;
        assert_eq!(published(batch, 7, 3), Published::At(10));
        assert_eq!(published(batch, 7, 2), Published::Elsewhere);
        let one = br#"{"stream":"LEDGER","seq":10}"#;
        assert_eq!(published(one, 7, 3), Published::Elsewhere, "no batch");
        assert_eq!(refused(400, 10071), Published::Elsewhere);
        assert_eq!(refused(400, 10174), Published::NoBatches);
    }
}
