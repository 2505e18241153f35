//! The broker's answers to a publish, sorted by whether another try can succeed.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;

/// Errors of the broker that only an operator's change can end: the message is longer than the
/// stream accepts, the stream is sealed, the account has no JetStream.
const FINAL: [ErrorCode; 3] = [
    ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM,
    ErrorCode::STREAM_SEALED,
    ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT,
];

/// The outcome of one publish.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Published {
    /// Stored; this is the position of the last event.
    At(u64),
    /// The broker refused the expected position, or took the event for a repeat. The end of the
    /// ledger has to be read.
    Elsewhere,
    /// The stream takes no batches, since it was made by an earlier release.
    NoBatches,
    /// Not stored now: no answer came, or the broker is busy, full, starting or electing. The text
    /// is in its own words.
    NotNow(String),
    /// Never stored: another try cannot succeed.
    Refused(String),
}

/// Reads the answer to a publish of `count` events behind position `last` of the stream. A broker
/// that knows no batches stores each message by itself, with others' messages between them. So an
/// answer counts only if the events can lie one behind another, and an answer to a batch only if it
/// says that it is one.
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
        // Too many requests; no space in the stream, on the disk or in the account; no leader; an
        // answer that cannot be read.
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
