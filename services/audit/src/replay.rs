//! A replay from the stream alone: everything is checked from the first message on, and later
//! messages can be followed.

use std::collections::BTreeMap;
use std::time::Duration;

use audit_core::{Auditor, Checked, Examined, Finding, PlacedFinding, Record, StreamSequence};
use identity::TrustBundle;
use runtime::{Bus, Failure, StreamError};
use schemas::Code;

use crate::files::{Comparison, Known};
use crate::reader::{Reader, Span};

/// Reasons why a replay has no verdict.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The stream cannot be read.
    #[error(transparent)]
    Read(#[from] StreamError),
    /// The stream is empty.
    #[error("the stream never held an event; nothing was checked")]
    Empty,
    /// The stream ends before the position.
    #[error("the stream ends at sequence {last}; there is no state after {wanted}")]
    Beyond {
        /// The position asked for.
        wanted: StreamSequence,
        /// The stream's last position.
        last: StreamSequence,
    },
    /// No more messages came.
    #[error("reading stopped at sequence {at} of {end}: nothing came for {} s", waited.as_secs())]
    Stalled {
        /// The newest position that came.
        at: StreamSequence,
        /// The last position that was wanted.
        end: StreamSequence,
        /// The time waited.
        waited: Duration,
    },
}

impl From<ReplayError> for Failure {
    fn from(error: ReplayError) -> Self {
        Self::new(Code::NoVerdict, error)
    }
}

/// A replay, from the stream's first message.
pub struct Replay {
    reader: Reader<(Record, Examined)>,
    auditor: Auditor,
    span: Span,
    /// The records that the audit service kept; empty if its files are not at hand.
    kept: BTreeMap<StreamSequence, Known>,
    /// The newest position that was compared with the kept records.
    compared: StreamSequence,
}

impl Replay {
    /// Asks for the stream's first and last position; nothing is read yet.
    ///
    /// # Errors
    /// There is no stream, or the broker does not answer.
    pub async fn open(bus: &Bus, trust: &TrustBundle) -> Result<Self, ReplayError> {
        let auditor = crate::recorder::auditor_of(trust);
        let examiner = auditor.examiner().clone();
        let reader = Reader::new(bus, StreamSequence(1), move |records| {
            let examined = examiner.examine_all(&records);
            records.into_iter().zip(examined).collect()
        });
        let span = reader.span().await?;
        let (kept, compared) = (BTreeMap::new(), StreamSequence(0));
        Ok(Self {
            reader,
            auditor,
            span,
            kept,
            compared,
        })
    }

    /// Compares the stream with the records that [`crate::files::kept`] read before the replay was
    /// opened. A stream that was replaced, or that has lost its end, is consistent in itself; only
    /// kept records can show that.
    #[must_use]
    pub fn against(self, kept: BTreeMap<StreamSequence, Known>) -> Self {
        Self { kept, ..self }
    }

    /// Has the auditor collect something as well: merges, or a lineage.
    #[must_use]
    pub fn collecting(self, prepare: impl FnOnce(Auditor) -> Auditor) -> Self {
        let auditor = prepare(self.auditor);
        Self { auditor, ..self }
    }

    /// The first and the last position of the stream when it was opened.
    pub const fn span(&self) -> Span {
        self.span
    }

    /// Checks everything from the first message to the end that the stream had when it was opened,
    /// and passes each result to `each`. A record may get two results, the first one while it waits
    /// for its worker to join.
    ///
    /// # Errors
    /// The stream is empty, or nothing comes for `patience`.
    pub async fn run(
        &mut self,
        patience: Duration,
        each: &mut dyn FnMut(Checked),
    ) -> Result<(), ReplayError> {
        let last = self.span.last;
        // If records were kept, an empty stream is a finding.
        if last > StreamSequence(0) || self.kept.is_empty() {
            self.catch_up(last, patience, each).await?;
        }
        self.check_end();
        self.auditor
            .conclude(self.span.last)
            .into_iter()
            .for_each(each);
        Ok(())
    }

    /// Notes it as a finding if the stream ended before the last record that was kept.
    pub fn check_end(&mut self) {
        let last = self.span.last;
        let newest = self.kept.keys().next_back().copied();
        if let Some(kept) = newest.filter(|kept| *kept > last) {
            self.note_truncated(last, kept);
        }
    }

    fn note_truncated(&mut self, last: StreamSequence, kept: StreamSequence) {
        let finding = Finding::Truncated { last, kept };
        self.auditor.note(&PlacedFinding {
            stream_sequence: last,
            ledger: true,
            finding,
        });
    }

    /// Checks everything from the first message to position `end`, which may not lie beyond the
    /// stream's last. Events whose worker has not joined yet keep waiting.
    ///
    /// # Errors
    /// As [`Replay::run`]; or the stream does not reach `end`.
    pub async fn catch_up(
        &mut self,
        end: StreamSequence,
        patience: Duration,
        each: &mut dyn FnMut(Checked),
    ) -> Result<(), ReplayError> {
        let last = self.span.last;
        if last == StreamSequence(0) {
            return Err(ReplayError::Empty);
        }
        if end > last {
            return Err(ReplayError::Beyond { wanted: end, last });
        }
        self.read_to(end, patience, each).await
    }

    /// Ends [`Replay::follow`]: reads to the end that the stream has now, and reports what is still
    /// open there, or that the stream ends before what was read.
    ///
    /// # Errors
    /// The broker does not answer, or nothing comes for `patience`.
    pub async fn end(
        &mut self,
        patience: Duration,
        each: &mut dyn FnMut(Checked),
    ) -> Result<(), ReplayError> {
        let last = self.reader.span().await?.last;
        self.read_to(last, patience, each).await?;
        let read = self.auditor.last();
        if last < read {
            self.note_truncated(last, read);
        }
        self.auditor.conclude(last).into_iter().for_each(each);
        Ok(())
    }

    async fn read_to(
        &mut self,
        end: StreamSequence,
        patience: Duration,
        each: &mut dyn FnMut(Checked),
    ) -> Result<(), ReplayError> {
        loop {
            let batch = tokio::time::timeout(patience, self.reader.batch_to(end)).await;
            let stalled = |_| ReplayError::Stalled {
                at: self.auditor.last(),
                end,
                waited: patience,
            };
            let Some(batch) = batch.map_err(stalled)? else {
                return Ok(());
            };
            for (record, examined) in batch {
                self.compare(&record);
                self.auditor
                    .place(examined)
                    .into_iter()
                    .for_each(&mut *each);
            }
        }
    }

    fn compare(&mut self, record: &Record) {
        let at = record.stream_sequence;
        let from = std::mem::replace(&mut self.compared, at).next();
        let missing = if from < at {
            self.kept.range(from..at).next()
        } else {
            None
        };
        if let Some((first, _)) = missing {
            let finding = Finding::Hole {
                from: *first,
                to: StreamSequence(at.0.saturating_sub(1)),
            };
            self.auditor.note(&PlacedFinding {
                stream_sequence: at,
                ledger: true,
                finding,
            });
        }
        if self
            .kept
            .get(&at)
            .is_some_and(|kept| kept.compare(record) == Comparison::Altered)
        {
            let finding = Finding::Altered { sequence: at };
            self.auditor.note(&PlacedFinding {
                stream_sequence: at,
                ledger: true,
                finding,
            });
        }
    }

    /// Waits for the next results, after [`Replay::catch_up`] to the end.
    pub async fn follow(&mut self) -> Vec<Checked> {
        let batch = self.reader.batch().await;
        batch
            .into_iter()
            .flat_map(|(_, examined)| self.auditor.place(examined))
            .collect()
    }

    /// True if the stream was read message by message, as with the broker of an earlier release.
    pub fn batches_refused(&self) -> bool {
        self.reader.batches_refused()
    }

    /// The checks so far.
    pub fn auditor(&self) -> &Auditor {
        &self.auditor
    }

    /// The auditor with all checks so far, when nothing more is to be read.
    pub fn into_auditor(self) -> Auditor {
        self.auditor
    }
}
