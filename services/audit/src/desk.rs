//! Auditor and files together: a batch of records goes in, is checked, compared with what was kept, and kept.

use std::path::Path;

use audit_core::{Auditor, Checked, Finding, Found, Notice, Record, StreamSequence};
use identity::TrustBundle;
use schemas::{UnixMillis, V};

use crate::keep::{Keep, KeepError, Past, Standing};
use crate::line::{Kept, Line};

/// An auditor that remembers.
#[derive(Debug)]
pub struct Desk {
    auditor: Auditor,
    keep: Keep,
    /// The end of a stream that was found too short, so that it is reported once.
    truncated: Option<StreamSequence>,
    /// The newest position that was read since the stream is read from its start.
    read: StreamSequence,
}

impl Desk {
    /// Opens the folder and checks again everything that was kept.
    ///
    /// # Errors
    /// As for [`Keep`].
    pub fn open(folder: &Path, trust: &TrustBundle) -> Result<Self, KeepError> {
        let mut auditor = Auditor::new(trust.domain.as_str(), trust.audit_keys.iter().cloned());
        let mut truncated = None;
        let keep = Keep::open(folder, &mut |past| match past {
            Past::Record(record) => {
                auditor.observe(&record);
            }
            // The auditor finds everything else again by itself.
            Past::Found(found) => match found.finding {
                Finding::Truncated { last, .. } => {
                    truncated = Some(last);
                    auditor.note(&found);
                }
                Finding::Altered { .. } => auditor.note(&found),
                _ => {}
            },
        })?;
        Ok(Self { auditor, keep, truncated, read: StreamSequence(0) })
    }

    /// Checks records and keeps those that are new, or other than they were. What is returned is on the disk. When this
    /// fails the desk must not be used any more: open it again.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn take(&mut self, records: &[Record], now: UnixMillis) -> Result<Vec<Found>, KeepError> {
        let mut lines = Vec::new();
        let mut findings = Vec::new();
        for record in records {
            let digest = record.digest();
            let at = record.stream_sequence;
            findings.extend(self.lost_before(at));
            match self.keep.standing(at, digest) {
                Standing::Same => continue,
                Standing::New => {}
                Standing::Altered => {
                    let found = Found { stream_sequence: at, ledger: true, finding: Finding::Altered { sequence: at } };
                    self.auditor.note(&found);
                    findings.push(found);
                }
            }
            self.keep.know(at, digest);
            let mut results = self.auditor.observe(record).into_iter();
            let own = results.next().expect("every record has a result");
            lines.push(Line::Record(Kept::new(record, digest, own.verdict)));
            findings.extend(own.findings);
            for Checked { verdict, findings: others, row } in results {
                lines.push(Line::Verdict { v: V, stream_sequence: row.stream_sequence, verdict });
                findings.extend(others);
            }
        }
        lines.extend(findings.iter().map(|found| Line::Finding { v: V, time: now, found: found.clone() }));
        self.keep.append(&lines, now)?;
        Ok(findings)
    }

    /// Whether the stream no longer has messages before `at` that were kept. Those that were never kept are the auditor's to
    /// miss.
    fn lost_before(&mut self, at: StreamSequence) -> Option<Found> {
        let from = std::mem::replace(&mut self.read, at).next();
        let to = StreamSequence(at.0.saturating_sub(1)).min(self.keep.last());
        let found = Found { stream_sequence: at, ledger: true, finding: Finding::Hole { from, to } };
        (from <= to).then(|| self.auditor.note(&found)).map(|()| found)
    }

    /// Compares the end of the stream with what was kept: a stream that ends earlier has lost its tail. It is said once for
    /// each time; then the stream is to be read again from its start.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn stream_ends(&mut self, last: StreamSequence, now: UnixMillis) -> Result<Option<Found>, KeepError> {
        let kept = self.keep.last();
        if last >= kept {
            self.truncated = None;
            return Ok(None);
        }
        if self.truncated.is_some_and(|before| last >= before) {
            self.truncated = Some(last);
            return Ok(None);
        }
        let found = Found { stream_sequence: last, ledger: true, finding: Finding::Truncated { last, kept } };
        self.auditor.note(&found);
        self.keep.append(&[Line::Finding { v: V, time: now, found: found.clone() }], now)?;
        self.truncated = Some(last);
        self.read = StreamSequence(0);
        Ok(Some(found))
    }

    /// What the ledger has said since this was asked last of who may speak.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.auditor.take_notices()
    }

    /// What was checked so far.
    pub fn auditor(&self) -> &Auditor {
        &self.auditor
    }

    /// What was kept so far.
    pub fn keep(&self) -> &Keep {
        &self.keep
    }
}
