//! One line of the audit files: JSON, so that they can be read without this program.

use audit_core::{Found, Record, StreamSequence, Verdict};
use data_encoding::BASE64;
use schemas::{Digest, UnixMillis, V};
use serde::{Deserialize, Serialize};

/// What a line says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "line")]
pub(crate) enum Line {
    /// A record as it was received, and what it came to.
    Record(Kept),
    /// A record that waited was settled.
    Verdict {
        /// Version.
        v: V<1>,
        /// The record.
        stream_sequence: StreamSequence,
        /// What it came to.
        verdict: Verdict,
    },
    /// Something was found.
    Finding {
        /// Version.
        v: V<1>,
        /// When, by this machine's clock.
        time: UnixMillis,
        /// What.
        found: Found,
    },
}

/// A record in a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    v: V<1>,
    pub(crate) stream_sequence: StreamSequence,
    subject: String,
    key: String,
    signature: String,
    stored_at: UnixMillis,
    /// Base64.
    body: String,
    /// [`Record::digest`]: shows a line that was damaged on the disk.
    digest: Digest,
    verdict: Verdict,
}

impl Kept {
    pub(crate) fn new(record: &Record, digest: Digest, verdict: Verdict) -> Self {
        Self {
            v: V,
            stream_sequence: record.stream_sequence,
            subject: record.subject.clone(),
            key: record.key.clone(),
            signature: record.signature.clone(),
            stored_at: record.stored_at,
            body: BASE64.encode(&record.body),
            digest,
            verdict,
        }
    }

    /// The record and its digest; none when the line is not what was written.
    pub(crate) fn record(self) -> Option<(Record, Digest)> {
        let record = Record {
            stream_sequence: self.stream_sequence,
            subject: self.subject,
            key: self.key,
            signature: self.signature,
            stored_at: self.stored_at,
            body: BASE64.decode(self.body.as_bytes()).ok()?,
        };
        (record.digest() == self.digest).then_some((record, self.digest))
    }
}

impl Line {
    /// The line with its end.
    pub(crate) fn encode(&self, into: &mut Vec<u8>) {
        serde_json::to_writer(&mut *into, self).expect("lines are JSON: their maps have text keys");
        into.push(b'\n');
    }
}
