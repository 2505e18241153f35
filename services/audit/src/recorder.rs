//! Auditor and files together: a batch of records comes in, is checked, compared with the kept
//! records, and kept. A stream that contradicts the kept records is not recorded any further.

use std::path::{Path, PathBuf};

use audit_core::{
    Auditor, Checked, Examined, Finding, Logged, Notice, PlacedFinding, Places, Record,
    StreamSequence,
};
use identity::TrustBundle;
use rayon::prelude::*;
use schemas::subject::AUDIT_STREAM;
use schemas::{ChainSequence, Code, Digest, PublicKey, UnixMillis, V};
use tlog::Head;

use crate::files::{self, AuditFiles, AuditFilesError, Comparison, FileEntry};
use crate::line::{Kept, Line};
use crate::log::{self, Log, LogError, LogSigner, Publication, entry, event_of};
use crate::reader::Span;

/// The folder of the log, in that of the files.
pub const LOG_FOLDER: &str = "log";
/// Lines of the files that are examined together at the start: enough for all cores, and a few MB.
const RECALLED_AT_ONCE: usize = 1024;

/// An auditor with files.
#[derive(Debug)]
pub struct Recorder {
    auditor: Auditor,
    files: AuditFiles,
    /// The log of all events, if this service signs heads.
    log: Option<Log>,
    /// The newest position that was read, in this reading from the stream's start.
    read: StreamSequence,
    /// Messages that the broker stored again unchanged, since the last report.
    again: u64,
    /// Events that the log has taken since the last notices.
    places: Taken,
}

/// The places of events that the log has taken.
#[derive(Debug)]
struct Taken {
    workers: Places,
    ledger: Places,
}

impl Default for Taken {
    fn default() -> Self {
        Self {
            workers: Places::default(),
            ledger: Places::of_ledger(),
        }
    }
}

/// An event of an emitter that may ask where it is in the log.
struct Placed {
    of_ledger: bool,
    emitter: PublicKey,
    sequence: ChainSequence,
    digest: Digest,
}

impl Placed {
    /// Such an event is always an entry.
    fn of(examined: &Examined) -> Option<Self> {
        let (of_ledger, (emitter, sequence, digest)) = match examined.of_ledger() {
            Some(event) => (true, event),
            None => (false, examined.of_worker()?),
        };
        Some(Self {
            of_ledger,
            emitter: emitter.clone(),
            sequence,
            digest,
        })
    }
}

impl Taken {
    fn note(&mut self, placed: &Placed, index: u64) {
        let places = match placed.of_ledger {
            true => &mut self.ledger,
            false => &mut self.workers,
        };
        let logged = Logged {
            sequence: placed.sequence,
            digest: placed.digest,
            index,
        };
        places.note(&placed.emitter, logged);
    }
}

/// Reasons to stop keeping records.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// The files cannot be used.
    #[error(transparent)]
    Files(#[from] AuditFilesError),
    /// The log cannot be continued.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The stream is not the one that was kept. A second history behind the first would leave no
    /// evidence of either.
    #[error("stream {AUDIT_STREAM} contradicts the files in {folder} {found}")]
    Contradicted {
        /// The folder of the files.
        folder: String,
        /// The difference.
        found: PlacedFinding,
    },
}

impl RecorderError {
    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        match self {
            Self::Files(error) => error.code(),
            Self::Log(error) => error.code(),
            Self::Contradicted { .. } => Code::RecordContradicted,
        }
    }
}

schemas::coded!(RecorderError);

impl Recorder {
    /// Opens the folder and checks again everything that was kept.
    ///
    /// # Errors
    /// As for [`AuditFiles`].
    pub fn open(folder: &Path, trust: &TrustBundle) -> Result<Self, AuditFilesError> {
        let mut auditor = auditor_of(trust);
        let mut waiting = Vec::with_capacity(RECALLED_AT_ONCE);
        let files = AuditFiles::open(folder, &mut |past| {
            waiting.push(past);
            if waiting.len() == RECALLED_AT_ONCE {
                recall(&mut auditor, &mut waiting, &mut |_, _| {});
            }
        })?;
        recall(&mut auditor, &mut waiting, &mut |_, _| {});
        Ok(Self::of(auditor, files, None, Taken::default()))
    }

    /// Opens the folder in the same way, and continues the log of all events in its subfolder
    /// `log`, whose heads `signer` signs. If the log is in the store as well, `stored` is its head
    /// there.
    ///
    /// # Errors
    /// As [`Recorder::open`]; or the trust bundle does not name the key or the manifest; or the
    /// files lead to another log than the one whose head was signed.
    pub fn open_signing(
        folder: &Path,
        trust: &TrustBundle,
        signer: LogSigner,
        stored: Option<&Head>,
        now: UnixMillis,
    ) -> Result<Self, RecorderError> {
        let mut auditor = auditor_of(trust);
        let mut waiting = Vec::with_capacity(RECALLED_AT_ONCE);
        // Opened when the files are locked: until then another service may publish heads there.
        let open = || Log::open(&folder.join(LOG_FOLDER), trust, signer.clone(), stored, now);
        let mut log = None;
        let mut places = Taken::default();
        let examiner = auditor.examiner().clone();
        let mut append = |record: &Record, examined: &Examined| {
            if let Ok(open) = log.get_or_insert_with(open) {
                let size = open.size();
                Placed::of(examined).inspect(|placed| places.note(placed, size));
                if let Err(error) = open.take(entry(&examiner, record, examined), now) {
                    log = Some(Err(error));
                }
            }
        };
        let files = AuditFiles::open(folder, &mut |past| {
            waiting.push(past);
            if waiting.len() == RECALLED_AT_ONCE {
                recall(&mut auditor, &mut waiting, &mut append);
            }
        })?;
        recall(&mut auditor, &mut waiting, &mut append);
        let mut log = log.unwrap_or_else(open)?;
        log.begun()?;
        Ok(Self::of(auditor, files, Some(log), places))
    }

    /// The same recorder, which from now on signs heads of the log.
    ///
    /// # Errors
    /// As [`Recorder::open_signing`].
    pub fn begin_signing(
        self,
        trust: &TrustBundle,
        signer: LogSigner,
        stored: Option<&Head>,
        now: UnixMillis,
    ) -> Result<Self, RecorderError> {
        let Self {
            files, read, again, ..
        } = self;
        let folder = files.folder().to_owned();
        // Its lock is free again from here on.
        drop(files);
        let mut recorder = Self::open_signing(&folder, trust, signer, stored, now)?;
        // The caller has taken these from the recorder that ends here.
        drop(recorder.auditor.take_notices());
        (recorder.read, recorder.again) = (read, again);
        Ok(recorder)
    }

    /// True if it signs heads of the log.
    pub const fn is_signing(&self) -> bool {
        self.log.is_some()
    }

    /// Signs no further head. Records are kept as before; [`Recorder::begin_signing`] takes up the
    /// log.
    pub fn stop_signing(&mut self) {
        self.log = None;
    }

    /// The size of the log's head in the store, while events up to it are missing here.
    pub fn missing_up_to(&self) -> Option<u64> {
        self.log.as_ref()?.missing_up_to()
    }

    const fn of(auditor: Auditor, files: AuditFiles, log: Option<Log>, places: Taken) -> Self {
        Self {
            auditor,
            files,
            log,
            read: StreamSequence(0),
            again: 0,
            places,
        }
    }

    /// True if it is time for a head of the log.
    pub fn is_head_due(&self, now: UnixMillis) -> bool {
        self.log.as_ref().is_some_and(|log| log.is_due(now))
    }

    /// Publishes a head over everything that is kept, if there is anything new.
    ///
    /// # Errors
    /// A file of the log cannot be written, or has other bytes than it should.
    pub fn publish_head(&mut self) -> Result<Option<Head>, RecorderError> {
        let Some(publication) = self.publication() else {
            return Ok(None);
        };
        let head = publication.write()?;
        self.head_published(&head);
        Ok(Some(head))
    }

    /// The next head with its files, to be written beside other work; none if nothing is new. No
    /// other may be begun before [`Recorder::head_published`].
    pub fn publication(&mut self) -> Option<Publication> {
        self.log.as_mut()?.publication()
    }

    /// Says that a publication was written.
    pub fn head_published(&mut self, head: &Head) {
        if let Some(log) = &mut self.log {
            log.published(head);
        }
    }

    /// Compares the stream's first and last position with the kept records, and the newest kept
    /// record with the one that the stream has there now. An event of the ledger names the one
    /// before it, so this one record stands for most of the history before it, at the cost of one
    /// question.
    ///
    /// # Errors
    /// [`RecorderError::Contradicted`]; or the files cannot be written.
    pub fn compare(
        &mut self,
        span: Span,
        newest: Option<&Record>,
        now: UnixMillis,
    ) -> Result<(), RecorderError> {
        let (Span { first, last, .. }, kept) = (span, self.files.last());
        let Some(oldest) = self.files.first() else {
            return Ok(());
        };
        let finding = if last < kept {
            Finding::Truncated { last, kept }
        } else if first > oldest {
            Finding::Hole {
                from: oldest,
                to: StreamSequence(first.0.saturating_sub(1)).min(kept),
            }
        } else {
            match newest.map(|record| self.files.compare(record)) {
                None => Finding::Hole {
                    from: kept,
                    to: kept,
                },
                Some(Some(Comparison::Altered)) => Finding::Altered { sequence: kept },
                Some(Some(Comparison::Same | Comparison::Again) | None) => return Ok(()),
            }
        };
        Err(self.contradicted(
            PlacedFinding {
                stream_sequence: last,
                ledger: true,
                finding,
            },
            Vec::new(),
            now,
        ))
    }

    /// Takes the records after the last ones. The first of them is the last one once more: the
    /// others count only if it is still there.
    ///
    /// # Errors
    /// As [`Recorder::take`].
    pub fn take_behind(
        &mut self,
        records: &[Record],
        now: UnixMillis,
    ) -> Result<Vec<PlacedFinding>, RecorderError> {
        let read = self.read;
        let gone = read > StreamSequence(0)
            && records
                .first()
                .is_some_and(|record| record.stream_sequence > read);
        if gone {
            let finding = Finding::Hole {
                from: read,
                to: read,
            };
            return Err(self.contradicted(
                PlacedFinding {
                    stream_sequence: read,
                    ledger: true,
                    finding,
                },
                Vec::new(),
                now,
            ));
        }
        self.take(records, now)
    }

    /// Checks records and keeps those that are new. The findings that it returns are on the disk.
    /// When this fails the recorder must not be used any more: open it again.
    ///
    /// # Errors
    /// [`RecorderError::Contradicted`]: the stream has another record than the kept one, or none.
    /// The finding is in the files, the record is not. Or the files cannot be written.
    pub fn take(
        &mut self,
        records: &[Record],
        now: UnixMillis,
    ) -> Result<Vec<PlacedFinding>, RecorderError> {
        let (files, examiner) = (&self.files, self.auditor.examiner());
        let examine = |record: &Record| {
            let new = files.compare(record).is_none();
            new.then(|| {
                let examined = examiner.examine(record);
                (
                    record.digest(),
                    entry(examiner, record, &examined),
                    examined,
                )
            })
        };
        let examined: Vec<_> = records.par_iter().map(examine).collect();
        let mut lines = Vec::new();
        let mut findings = Vec::new();
        let mut entries = Vec::new();
        let mut placed = Vec::new();
        for (record, examined) in records.iter().zip(examined) {
            let at = record.stream_sequence;
            let standing = self.files.compare(record);
            let other = self.lost_before(at).or_else(|| match standing {
                Some(Comparison::Altered) => Some(Finding::Altered { sequence: at }),
                Some(Comparison::Again) => {
                    self.again += 1;
                    None
                }
                Some(Comparison::Same) | None => None,
            });
            if let Some(finding) = other {
                lines.extend(found_lines(&findings, now));
                return Err(self.contradicted(
                    PlacedFinding {
                        stream_sequence: at,
                        ledger: true,
                        finding,
                    },
                    lines,
                    now,
                ));
            }
            if standing.is_some() {
                continue;
            }
            let (digest, entry, examined) =
                examined.expect("what is not kept now was not kept before");
            placed.extend(Placed::of(&examined).map(|placed| (entries.len(), placed)));
            entries.push(entry);
            self.files.know(record, digest);
            let mut results = self.auditor.place(examined).into_iter();
            let own = results.next().expect("every record has a result");
            lines.push(Line::Record(Kept::new(record, digest, own.verdict)));
            findings.extend(own.findings);
            for Checked {
                verdict,
                findings: others,
                row,
            } in results
            {
                lines.push(Line::Verdict {
                    v: V,
                    stream_sequence: row.stream_sequence,
                    verdict,
                });
                findings.extend(others);
            }
        }
        lines.extend(found_lines(&findings, now));
        self.files.append(&lines, now)?;
        // Only now: a head must never cover what a crash can take away.
        if let Some(log) = &mut self.log {
            let mut placed = placed.into_iter().peekable();
            for (at, entry) in entries.into_iter().enumerate() {
                if let Some((_, placed)) = placed.next_if(|(place, _)| *place == at) {
                    self.places.note(&placed, log.size());
                }
                log.take(entry, now)?;
            }
        }
        Ok(findings)
    }

    /// The kept messages before `at` that the stream no longer has, as a hole. The auditor reports
    /// holes of messages that were never kept.
    fn lost_before(&mut self, at: StreamSequence) -> Option<Finding> {
        let from = std::mem::replace(&mut self.read, at).next();
        let to = StreamSequence(at.0.saturating_sub(1)).min(self.files.last());
        (from <= to).then_some(Finding::Hole { from, to })
    }

    /// Writes the finding after `lines`, and returns the error that ends the work.
    fn contradicted(
        &mut self,
        found: PlacedFinding,
        mut lines: Vec<Line>,
        now: UnixMillis,
    ) -> RecorderError {
        self.auditor.note(&found);
        lines.extend(found_lines(std::slice::from_ref(&found), now));
        match self.files.append(&lines, now) {
            Ok(()) => RecorderError::Contradicted {
                folder: self.files.folder().display().to_string(),
                found,
            },
            Err(error) => error.into(),
        }
    }

    /// The newest position that was read; 0 before the first.
    pub const fn read(&self) -> StreamSequence {
        self.read
    }

    /// Messages that the broker stored again, unchanged, since the last call.
    pub const fn take_again(&mut self) -> u64 {
        std::mem::replace(&mut self.again, 0)
    }

    /// The enrolments, the progress of chains and the places of events in the log since the last
    /// call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        let Taken { workers, ledger } = &mut self.places;
        let of_worker = |(key, logged)| Notice::Logged { key, logged };
        let of_ledger = |(key, logged)| Notice::LedgerLogged { key, logged };
        let mut notices = self.auditor.take_notices();
        notices.extend(workers.take().map(of_worker));
        notices.extend(ledger.take().map(of_ledger));
        notices
    }

    /// The checks so far.
    pub fn auditor(&self) -> &Auditor {
        &self.auditor
    }

    /// The records kept so far.
    pub fn files(&self) -> &AuditFiles {
        &self.files
    }
}

/// The auditor that takes events of the keys of a trust bundle.
pub fn auditor_of(trust: &TrustBundle) -> Auditor {
    Auditor::new(trust.domain.as_str(), trust.audit_keys.iter().cloned())
        .hearing(trust.sentry_keys.iter().cloned())
        .ending(trust.ends())
}

/// Everything that files keep, given to an auditor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recalled {
    /// The last position; 0 if there is none.
    pub last: StreamSequence,
    /// The events among them that the log has as well.
    pub events: u64,
    /// The newest file, if it ends inside a line: a service is writing it, or died while it did, or
    /// somebody has cut it.
    pub torn: Option<PathBuf>,
}

/// Gives everything that the files of `folder` keep to an auditor. Takes no lock and changes
/// nothing.
///
/// # Errors
/// The folder or a file cannot be read, or a line was damaged.
pub fn recall_files(folder: &Path, auditor: &mut Auditor) -> Result<Recalled, AuditFilesError> {
    let mut waiting = Vec::with_capacity(RECALLED_AT_ONCE);
    let examiner = auditor.examiner().clone();
    let mut events = 0;
    let mut count = |record: &Record, examined: &Examined| {
        events += u64::from(event_of(&examiner, record, examined).is_some());
    };
    let (known, torn) = files::read(folder, &mut |past| {
        waiting.push(past);
        if waiting.len() == RECALLED_AT_ONCE {
            recall(auditor, &mut waiting, &mut count);
        }
    })?;
    recall(auditor, &mut waiting, &mut count);
    let last = known.last_key_value();
    Ok(Recalled {
        last: last.map_or(StreamSequence(0), |(last, _)| *last),
        events,
        torn,
    })
}

/// The number of events that the newest signed head beside the files of `folder` covers; none if
/// there is no head. A service signs a head only when its files have all events that the head
/// covers.
///
/// # Errors
/// A head cannot be read, or no key for heads of the domain has signed it.
pub fn signed_events(folder: &Path, trust: &TrustBundle) -> Result<Option<u64>, LogError> {
    let size = log::signed_size(&folder.join(LOG_FOLDER), trust)?;
    let manifest = u64::from(trust.log_manifest.is_some());
    Ok(size.map(|size| size.saturating_sub(manifest)))
}

/// Gives the kept entries to the auditor again, and each record to `append`. The auditor repeats
/// all findings by itself, except those that only a comparison has shown.
fn recall(
    auditor: &mut Auditor,
    past: &mut Vec<FileEntry>,
    append: &mut dyn FnMut(&Record, &Examined),
) {
    let examiner = auditor.examiner();
    let examine = |past: &FileEntry| match past {
        FileEntry::Record(record) => Some(examiner.examine(record)),
        FileEntry::Finding(_) => None,
    };
    let examined: Vec<_> = past.par_iter().map(examine).collect();
    for (past, examined) in past.drain(..).zip(examined) {
        match past {
            FileEntry::Record(record) => {
                let examined = examined.expect("each record was examined");
                append(&record, &examined);
                auditor.place(examined);
            }
            FileEntry::Finding(found) => match found.finding {
                Finding::Truncated { .. } | Finding::Altered { .. } => auditor.note(&found),
                _ => {}
            },
        }
    }
}

fn found_lines(findings: &[PlacedFinding], now: UnixMillis) -> impl Iterator<Item = Line> {
    findings.iter().map(move |found| Line::Finding {
        v: V,
        time: now,
        found: found.clone(),
    })
}
