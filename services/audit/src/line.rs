//! One line of the audit files: JSON, so that they can be read without this program.

use audit_core::{Payload, PlacedFinding, Record, StreamSequence, Verdict};
use data_encoding::BASE64;
use schemas::{Digest, UnixMillis, V};
use serde::{Deserialize, Serialize};

/// Longest line, with its end: the longest event in base64 (23 KiB), the longest subject that the
/// broker accepts (4 KiB) with every character escaped, and names. Writer and reader of lines share
/// this limit.
pub(crate) const LINE_BYTES_MAX: usize = 64 << 10;

/// The content of a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "line")]
pub(crate) enum Line {
    /// A record as it was received, with its verdict.
    Record(Kept),
    /// A record that waited has got its verdict.
    Verdict {
        /// Version.
        v: V<2>,
        /// The record.
        stream_sequence: StreamSequence,
        /// Its verdict.
        verdict: Verdict,
    },
    /// A finding.
    Finding {
        /// Version.
        v: V<2>,
        /// Its time, by this machine's clock.
        time: UnixMillis,
        /// The finding.
        found: PlacedFinding,
    },
}

/// A record in a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    v: V<2>,
    pub(crate) stream_sequence: StreamSequence,
    subject: String,
    stored_at: UnixMillis,
    payload: Written,
    /// [`Record::digest`]: shows a line that was damaged on the disk.
    digest: Digest,
    verdict: Verdict,
}

/// A payload in a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Written {
    /// The whole payload.
    Base64(String),
    /// The length and digest of a message that is longer than any event.
    TooLong { bytes: u64, digest: Digest },
}

impl Kept {
    pub(crate) fn new(record: &Record, digest: Digest, verdict: Verdict) -> Self {
        Self {
            v: V,
            stream_sequence: record.stream_sequence,
            subject: record.subject.clone(),
            stored_at: record.stored_at,
            payload: match &record.payload {
                Payload::Whole(bytes) => Written::Base64(BASE64.encode(bytes)),
                Payload::TooLong { bytes, digest } => Written::TooLong {
                    bytes: *bytes,
                    digest: *digest,
                },
            },
            digest,
            verdict,
        }
    }

    /// The record and its digest; none if the line is not as it was written.
    pub(crate) fn record(self) -> Option<(Record, Digest)> {
        let record = Record {
            stream_sequence: self.stream_sequence,
            subject: self.subject,
            stored_at: self.stored_at,
            payload: match self.payload {
                Written::Base64(text) => Payload::Whole(BASE64.decode(text.as_bytes()).ok()?),
                Written::TooLong { bytes, digest } => Payload::TooLong { bytes, digest },
            },
        };
        (record.digest() == self.digest).then_some((record, self.digest))
    }
}

/// True when a line that does not parse is one of an older release.
pub(crate) fn is_older(text: &[u8]) -> bool {
    let version = serde_json::from_slice(text)
        .ok()
        .and_then(|line: serde_json::Value| line.get("v")?.as_u64());
    version == Some(1)
}

impl Line {
    /// Appends the line with its end.
    pub(crate) fn encode(&self, into: &mut Vec<u8>) {
        let start = into.len();
        serde_json::to_writer(&mut *into, self).expect("lines are JSON: their maps have text keys");
        into.push(b'\n');
        debug_assert!(
            into.len() - start <= LINE_BYTES_MAX,
            "{} bytes could not be read again",
            into.len() - start
        );
    }
}

#[cfg(test)]
mod tests {
    use audit_core::Finding;
    use schemas::limits::SIGNED_EVENT_BYTES_MAX;

    use super::*;

    /// The longest line of each kind, with text that JSON must escape wherever a stranger can put
    /// text.
    #[test]
    fn the_longest_line_is_within_what_is_read() {
        let controls = |length: usize| "\u{1}".repeat(length);
        let longest = Record {
            stream_sequence: StreamSequence(u64::MAX),
            // The broker accepts no line above 4 KiB, besides the payload.
            subject: controls(4096),
            stored_at: UnixMillis(u64::MAX),
            payload: Payload::of(&vec![0xFF; SIGNED_EVENT_BYTES_MAX]),
        };
        let longer = Record {
            payload: Payload::of(&vec![0xFF; 1 << 20]),
            ..longest.clone()
        };
        let finding = Finding::Malformed {
            reason: controls(1024),
        };
        let found = PlacedFinding {
            stream_sequence: StreamSequence(u64::MAX),
            ledger: true,
            finding,
        };
        for line in [
            Line::Record(Kept::new(&longest, longest.digest(), Verdict::Unenrolled)),
            Line::Record(Kept::new(&longer, longer.digest(), Verdict::Unenrolled)),
            Line::Finding {
                v: V,
                time: UnixMillis(u64::MAX),
                found,
            },
        ] {
            let mut bytes = Vec::new();
            line.encode(&mut bytes);
            assert!(bytes.len() <= LINE_BYTES_MAX, "{} bytes", bytes.len());
            assert_eq!(
                serde_json::from_slice::<Line>(&bytes).expect("it reads back"),
                line
            );
        }
    }

    #[test]
    fn lines_of_an_older_release_are_told_from_damage() {
        assert!(is_older(br#"{"line":"record","v":1,"stream_sequence":1}"#));
        for other in [&br#"{"line":"record","v":2}"#[..], b"{}", b"\xff", b""] {
            assert!(!is_older(other));
        }
    }
}
