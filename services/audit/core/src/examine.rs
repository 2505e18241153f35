//! Checks of a record by itself: its signer, its content, and whether this signer may say that in
//! this place. They do not depend on other records, so many records are examined in parallel, on
//! all cores. Only the checks that relate records to each other run one after another.

use std::collections::BTreeSet;

use chain::{Claimed, Entry, Fault, Misplaced, Signatures};
use schemas::event::EventBody;
use schemas::subject::{Incoming, recorded_worker};
use schemas::{AccountId, ChainSequence, Digest, PublicKey, RunId, UnixMillis, WorkerId};

use crate::finding::Finding;
use crate::record::{Payload, Record, StreamSequence};
use crate::timeline::TimelineRow;

/// Examines records of one trust domain.
#[derive(Clone, Debug)]
pub struct Examiner {
    signatures: Signatures,
    coordinators: BTreeSet<PublicKey>,
    sentries: BTreeSet<PublicKey>,
}

/// A record that was examined.
#[derive(Debug)]
pub struct Examined {
    pub(crate) at: StreamSequence,
    pub(crate) content: Content,
}

/// The content of a record.
#[derive(Debug)]
pub(crate) enum Content {
    /// An event of a coordinator, under a subject of the ledger.
    Ledger(Box<LedgerRecord>),
    /// An event of the audit service's sentry, under its subject.
    Security(Box<LedgerRecord>),
    /// An event of a worker, under its own subject.
    Worker(Box<WorkerRecord>),
    /// Nothing that counts.
    Nothing {
        /// The reason, as a finding.
        finding: Finding,
        /// The account that it belongs to.
        account: Account,
        /// The record as a line for people.
        row: Box<TimelineRow>,
    },
}

/// A signed event of the ledger or of the sentry, in its parts.
#[derive(Debug)]
pub(crate) struct LedgerRecord {
    pub(crate) stored_at: UnixMillis,
    pub(crate) body: EventBody,
    pub(crate) digest: Digest,
    pub(crate) row: TimelineRow,
}

/// A signed event of a worker, in its parts.
#[derive(Debug)]
pub(crate) struct WorkerRecord {
    pub(crate) stored_at: UnixMillis,
    pub(crate) account: AccountId,
    pub(crate) run: RunId,
    pub(crate) worker: WorkerId,
    pub(crate) body: EventBody,
    pub(crate) digest: Digest,
    pub(crate) row: TimelineRow,
}

/// The subject of a record, and whether the key that it claims is a coordinator's.
struct Place {
    incoming: Incoming,
    coordinator: bool,
}

/// The account that a record belongs to.
#[derive(Clone, Debug)]
pub(crate) enum Account {
    Ledger,
    Worker(RunId, WorkerId),
}

impl Examined {
    /// The emitter, the position and the digest of an event of the ledger.
    pub const fn of_ledger(&self) -> Option<(&PublicKey, ChainSequence, Digest)> {
        match &self.content {
            Content::Ledger(record) => {
                Some((&record.body.emitter, record.body.sequence, record.digest))
            }
            Content::Worker(_) | Content::Security(_) | Content::Nothing { .. } => None,
        }
    }

    /// The emitter, the position and the digest of a worker's event under its own subject.
    pub const fn of_worker(&self) -> Option<(&PublicKey, ChainSequence, Digest)> {
        match &self.content {
            Content::Worker(record) => {
                Some((&record.body.emitter, record.body.sequence, record.digest))
            }
            Content::Ledger(_) | Content::Security(_) | Content::Nothing { .. } => None,
        }
    }
}

impl Examiner {
    /// The examiner for the trust domain `domain` (its id as text), whose ledger these audit keys
    /// may write.
    pub fn new(domain: &str, coordinators: impl IntoIterator<Item = PublicKey>) -> Self {
        let coordinators: BTreeSet<PublicKey> = coordinators.into_iter().collect();
        Self {
            signatures: Signatures::new(domain, &coordinators),
            coordinators,
            sentries: BTreeSet::new(),
        }
    }

    /// The same examiner, which takes security events from these keys.
    #[must_use]
    pub fn hearing(mut self, sentries: impl IntoIterator<Item = PublicKey>) -> Self {
        self.sentries.extend(sentries);
        self
    }

    /// Examines a record.
    pub fn examine(&self, record: &Record) -> Examined {
        let content = self.claimed(record).and_then(|(place, claimed)| {
            let opened = claimed.open(&self.signatures);
            content(record, place, opened)
        });
        examined(record, content)
    }

    /// Examines many records, with the same results in their order, and in less time.
    pub fn examine_all(&self, records: &[Record]) -> Vec<Examined> {
        let (mut places, mut claims) = (Vec::new(), Vec::new());
        for record in records {
            let (place, claim) = self.claimed(record).map_or_else(
                |finding| (Err(finding), None),
                |(place, claimed)| (Ok(place), Some(claimed)),
            );
            places.push(place);
            claims.extend(claim);
        }
        let mut opened = Claimed::open_all(claims, &self.signatures).into_iter();
        let all = records.iter().zip(places).map(|(record, place)| {
            let content = place.and_then(|place| {
                let opened = opened.next().expect("one for each claim");
                content(record, place, opened)
            });
            examined(record, content)
        });
        all.collect()
    }

    /// True if a record, examined to `examined`, is an entry of the log: it proves its own author.
    /// The key that it names has signed it, as an event of this domain, and it stands under a
    /// subject that fits what it says. That does not depend on the keys that are trusted, which
    /// may become more: the log of the same records is the same for ever.
    pub fn is_entry(&self, record: &Record, examined: &Examined) -> bool {
        matches!(
            examined.content,
            Content::Ledger(_) | Content::Security(_) | Content::Worker(_)
        ) || self.proves_itself(record)
    }

    fn proves_itself(&self, record: &Record) -> bool {
        let (Ok(incoming), Payload::Whole(payload)) = (record.subject.parse(), &record.payload)
        else {
            return false;
        };
        let is_kept = matches!(
            incoming,
            Incoming::Ledger { .. } | Incoming::Security { .. } | Incoming::Recorded { .. }
        );
        let opened = || Claimed::read(payload).ok()?.open(&self.signatures).ok();
        is_kept && opened().is_some_and(|entry| entry.stands_under(&incoming).is_ok())
    }

    /// The form of an event, under a subject where the key that it claims may be in a chain.
    fn claimed(&self, record: &Record) -> Result<(Place, Claimed), Finding> {
        let malformed = |reason: String| Finding::Malformed { reason };
        let incoming: Incoming = record
            .subject
            .parse()
            .map_err(|error| malformed(format!("{error}")))?;
        let Payload::Whole(payload) = &record.payload else {
            return Err(malformed("longer than any event".to_owned()));
        };
        let claimed = Claimed::read(payload).map_err(|error| malformed(error.to_string()))?;
        let coordinator = self.coordinators.contains(claimed.key());
        if matches!(incoming, Incoming::Ledger { .. }) && !coordinator {
            return Err(Finding::Foreign {
                reason: format!("{} is not trusted to write the ledger", claimed.key()),
            });
        }
        let sentry = self.sentries.contains(claimed.key());
        if matches!(incoming, Incoming::Security { .. }) && !sentry {
            return Err(Finding::Foreign {
                reason: format!("{} is not trusted to write security events", claimed.key()),
            });
        }
        let place = Place {
            incoming,
            coordinator,
        };
        Ok((place, claimed))
    }
}

/// Checks what a record says of itself, once its signature was checked.
fn content(
    record: &Record,
    place: Place,
    opened: Result<Entry, Fault>,
) -> Result<Content, Finding> {
    let Place {
        incoming,
        coordinator,
    } = place;
    let malformed = |reason: String| Finding::Malformed { reason };
    let entry = opened.map_err(|fault| match fault {
        Fault::Signature(key) => Finding::BadSignature {
            key: key.as_str().chars().take(64).collect(),
        },
        Fault::Undecodable { signer, error } if coordinator => Finding::Undecodable {
            key: signer,
            reason: error.to_string(),
        },
        fault => malformed(fault.to_string()),
    })?;
    entry
        .stands_under(&incoming)
        .map_err(|misplaced| match misplaced {
            Misplaced::Family { .. } => Finding::Foreign {
                reason: misplaced.to_string(),
            },
            _ => malformed(misplaced.to_string()),
        })?;
    let (body, digest) = (entry.body, entry.digest);
    let stored_at = record.stored_at;
    match incoming {
        Incoming::Recorded { .. } if coordinator => Err(Finding::Usurped { key: body.emitter }),
        Incoming::Recorded {
            account,
            run,
            worker,
            ..
        } => {
            let row = TimelineRow::of_worker(record, &worker, &body);
            Ok(Content::Worker(Box::new(WorkerRecord {
                stored_at,
                account,
                run,
                worker,
                body,
                digest,
                row,
            })))
        }
        Incoming::Ledger { .. } => {
            let row = TimelineRow::of_ledger(record, &body);
            Ok(Content::Ledger(Box::new(LedgerRecord {
                stored_at,
                body,
                digest,
                row,
            })))
        }
        Incoming::Security { .. } => {
            let row = TimelineRow::of_sentry(record, &body);
            Ok(Content::Security(Box::new(LedgerRecord {
                stored_at,
                body,
                digest,
                row,
            })))
        }
        _ => Err(malformed("no event is kept under this subject".to_owned())),
    }
}

fn examined(record: &Record, content: Result<Content, Finding>) -> Examined {
    let content = content.unwrap_or_else(|finding| Content::Nothing {
        account: blamed(record, &finding),
        finding,
        row: Box::new(TimelineRow::of_record(record)),
    });
    let at = record.stream_sequence;
    Examined { at, content }
}

impl WorkerRecord {
    pub(crate) fn account(&self) -> Account {
        Account::Worker(self.run.clone(), self.worker.clone())
    }
}

/// The account that a record belongs to if it is not authentic. Under a worker's name only checked
/// events are recorded, and everything else in the stream belongs to the ledger. A worker cannot
/// make the coordinator's signature.
fn blamed(record: &Record, finding: &Finding) -> Account {
    let stolen = matches!(
        finding,
        Finding::Usurped { .. } | Finding::Undecodable { .. }
    );
    match recorded_worker(&record.subject) {
        Some((_, run, worker)) if !stolen => Account::Worker(run, worker),
        _ => Account::Ledger,
    }
}
