//! The events in a log, checked as those of a stream are.

use schemas::event::{Event, EventBody, SignedEvent};
use schemas::subject::{ledger_subject, record_subject, security_subject};
use schemas::{Message as _, WorkerId};

use super::fault::LogFault;
use super::open::{Log, Read, Trusted};
use crate::check::{Auditor, Checked};
use crate::finding::Finding;
use crate::record::{Payload, Record, StreamSequence};

/// Entries that are examined together.
const AT_ONCE: usize = 256;

/// The events of a log after their checks. Positions in findings count entries from 1.
pub struct Events {
    /// The auditor that has seen them all.
    pub auditor: Auditor,
    /// Events of workers that never joined, and of others whose keys nobody named.
    pub strangers: u64,
}

/// Checks the signature and the chain of every event in the log, and folds the ledger.
///
/// # Errors
/// An entry is no event of this domain, or one that this build cannot read; or no event is one of a
/// known emitter; or the log changed since it was opened. Faults of events are the auditor's
/// findings.
pub fn check_events(log: &Log, read: &Read<'_>, trusted: &Trusted) -> Result<Events, LogFault> {
    let auditor = trusted.auditor();
    replay_events(log, read, trusted, auditor, log.head().size, &mut |_| {})
}

/// Checks the first `until` events in the same way with this auditor, which may collect something
/// as well, and passes each with its verdict to `each`.
///
/// # Errors
/// As [`check_events`].
pub fn replay_events(
    log: &Log,
    read: &Read<'_>,
    trusted: &Trusted,
    auditor: Auditor,
    until: u64,
    each: &mut dyn FnMut(Checked),
) -> Result<Events, LogFault> {
    let first = log.before_events();
    if log.head().size == first {
        return Err(LogFault::Empty);
    }
    let mut events = Events {
        auditor: auditor.behind(StreamSequence(first)),
        strangers: 0,
    };
    let mut waiting = Vec::with_capacity(AT_ONCE);
    log.again(read, &mut |index, entry| {
        if index < first || index >= until {
            return Ok(());
        }
        waiting.push(record(log, trusted, index, entry)?);
        match waiting.len() {
            AT_ONCE => events.take(&mut waiting, each),
            _ => Ok(()),
        }
    })?;
    events.take(&mut waiting, each)?;
    let last = StreamSequence(log.head().size.min(until));
    for checked in events.auditor.conclude(last) {
        events.count(checked.findings.iter().map(|found| &found.finding), 0)?;
        each(checked);
    }
    let auditor = &events.auditor;
    if auditor.summary().verified == 0 && auditor.evidence().is_none() {
        return Err(LogFault::Unverified(log.head().size));
    }
    Ok(events)
}

impl Events {
    fn take(
        &mut self,
        records: &mut Vec<Record>,
        each: &mut dyn FnMut(Checked),
    ) -> Result<(), LogFault> {
        let examiner = self.auditor.examiner().clone();
        let examined = examiner.examine_all(records);
        for (record, examined) in records.drain(..).zip(examined) {
            let index = record.stream_sequence.0 - 1;
            // A stranger's event is one only if the stranger signed it.
            if !examiner.is_entry(&record, &examined) {
                let reason = "its emitter has not signed it".to_owned();
                return Err(LogFault::Entry { index, reason });
            }
            for checked in self.auditor.place(examined) {
                self.count(checked.findings.iter().map(|found| &found.finding), index)?;
                each(checked);
            }
        }
        Ok(())
    }

    /// What nobody signed is no entry, so it is evidence against the log's writer. Strangers are in
    /// nobody's chain, and no evidence.
    fn count<'a>(
        &mut self,
        findings: impl Iterator<Item = &'a Finding>,
        index: u64,
    ) -> Result<(), LogFault> {
        for finding in findings {
            match finding {
                Finding::UnknownEmitter { .. } | Finding::Foreign { .. } => self.strangers += 1,
                foreign if foreign.is_foreign() => {
                    let reason = foreign.to_string();
                    return Err(LogFault::Entry { index, reason });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The message in which the event of an entry stood, as far as checks depend on it.
fn record(log: &Log, trusted: &Trusted, index: u64, entry: &[u8]) -> Result<Record, LogFault> {
    let fault = |reason: String| LogFault::Entry { index, reason };
    let event: SignedEvent =
        chain::of_leaf(entry).ok_or_else(|| fault("it has another form".to_owned()))?;
    let body = EventBody::decode(&event.body).map_err(|error| {
        let (key, signature) = (event.key.as_str(), &*event.signature);
        let reason = error.to_string();
        match chain::is_signed_event(&trusted.domain, key, signature, &event.body) {
            true => LogFault::Undecodable { index, reason },
            false => fault(reason),
        }
    })?;
    let subject = match (&body.event, &body.run) {
        (Event::Ledger(told), run) => ledger_subject(run.as_ref(), &body.emitter, told.kind()),
        (Event::Security(told), None) => security_subject(&body.emitter, told.kind()),
        (Event::Security(_), Some(_)) => {
            return Err(fault("a security event of a run".to_owned()));
        }
        (Event::Worker(told), Some(run)) => {
            let member = log.members().get(&(run.clone(), body.emitter.clone()));
            let stranger = || {
                let worker: Result<WorkerId, _> = body.emitter.as_str().parse();
                let worker = worker.map_err(|_| fault("its emitter is no worker".to_owned()))?;
                Ok((trusted.tenants[0].clone(), worker))
            };
            let (account, worker) = member.cloned().map_or_else(stranger, Ok)?;
            record_subject(&account, run, &worker, told.kind())
        }
        (Event::Worker(_), None) => return Err(fault("a worker's event of no run".to_owned())),
    };
    Ok(Record {
        stream_sequence: StreamSequence(index + 1),
        subject,
        stored_at: body.time,
        payload: Payload::of(&event.encode()),
    })
}
