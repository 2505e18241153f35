//! Checks of a record by itself: its signer, its content, and whether this signer may say that in
//! this place. They do not depend on other records, so many records are examined in parallel, on
//! all cores. Only the checks that relate records to each other run one after another.

use std::collections::BTreeSet;

use chain::{Claimed, Fault, Misplaced, Signatures};
use schemas::event::EventBody;
use schemas::subject::{Incoming, recorded_worker};
use schemas::{AccountId, Digest, PublicKey, RunId, UnixMillis, WorkerId};

use crate::finding::Finding;
use crate::record::{Payload, Record, StreamSequence};
use crate::timeline::TimelineRow;

/// Examines records of one trust domain.
#[derive(Clone, Debug)]
pub struct Examiner {
    signatures: Signatures,
    coordinators: BTreeSet<PublicKey>,
}

/// A record that was examined.
#[derive(Debug)]
pub struct Examined {
    pub(crate) at: StreamSequence,
    pub(crate) says: Says,
}

/// The content of a record.
#[derive(Debug)]
pub(crate) enum Says {
    /// An event of a coordinator, under a subject of the ledger.
    Ledger(Box<Told>),
    /// An event of a worker, under its own subject.
    Worker(Box<Held>),
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

/// A signed event of the ledger, in its parts.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) stored_at: UnixMillis,
    pub(crate) body: EventBody,
    pub(crate) digest: Digest,
    pub(crate) row: TimelineRow,
}

/// A signed event of a worker, in its parts.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) stored_at: UnixMillis,
    pub(crate) account: AccountId,
    pub(crate) run: RunId,
    pub(crate) worker: WorkerId,
    pub(crate) body: EventBody,
    pub(crate) digest: Digest,
    pub(crate) row: TimelineRow,
}

/// The account that a record belongs to.
#[derive(Clone, Debug)]
pub(crate) enum Account {
    Ledger,
    Worker(RunId, WorkerId),
}

impl Examiner {
    /// The examiner for the trust domain `domain` (its id as text), whose ledger these audit keys
    /// may write.
    pub fn new(domain: &str, coordinators: impl IntoIterator<Item = PublicKey>) -> Self {
        let coordinators: BTreeSet<PublicKey> = coordinators.into_iter().collect();
        Self {
            signatures: Signatures::new(domain, &coordinators),
            coordinators,
        }
    }

    /// Examines a record.
    pub fn examine(&self, record: &Record) -> Examined {
        let says = self.says(record).unwrap_or_else(|finding| Says::Nothing {
            account: blamed(record, &finding),
            finding,
            row: Box::new(TimelineRow::of_record(record)),
        });
        let at = record.stream_sequence;
        Examined { at, says }
    }

    /// Checks a record by itself: its signer may be in a chain under this subject, and the
    /// signature is valid.
    fn says(&self, record: &Record) -> Result<Says, Finding> {
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
        let entry = claimed
            .open(&self.signatures)
            .map_err(|fault| match fault {
                Fault::Signature(key) => Finding::BadSignature {
                    key: key.as_str().chars().take(64).collect(),
                },
                Fault::Undecodable(error) if coordinator => Finding::Undecodable {
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
            Incoming::Recorded { .. } if coordinator => Err(Finding::Usurped),
            Incoming::Recorded {
                account,
                run,
                worker,
                ..
            } => {
                let row = TimelineRow::of_worker(record, &worker, &body);
                Ok(Says::Worker(Box::new(Held {
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
                Ok(Says::Ledger(Box::new(Told {
                    stored_at,
                    body,
                    digest,
                    row,
                })))
            }
            _ => Err(malformed("no event is kept under this subject".to_owned())),
        }
    }
}

impl Held {
    pub(crate) fn account(&self) -> Account {
        Account::Worker(self.run.clone(), self.worker.clone())
    }
}

/// The account that a record belongs to if it is not authentic. Under a worker's name only checked
/// events are recorded, and everything else in the stream belongs to the ledger. A worker cannot
/// make the coordinator's signature.
fn blamed(record: &Record, finding: &Finding) -> Account {
    let stolen = matches!(finding, Finding::Usurped | Finding::Undecodable { .. });
    match recorded_worker(&record.subject) {
        Some((_, run, worker)) if !stolen => Account::Worker(run, worker),
        _ => Account::Ledger,
    }
}
