//! A stream beside the log: which events it lost, and how.
//!
//! Brokers lose acknowledged messages, at their end and by honest accidents; an emitter then uses
//! the numbers of lost events again. That looks different from a change of the past, and the two
//! are told apart here.

use std::collections::BTreeMap;
use std::fmt;

use schemas::event::{EventBody, SignedEvent};
use schemas::{ChainSequence, Digest, Message as _, PublicKey};
use serde::Serialize;

use super::fault::LogFault;

/// Most differences that are listed. All are counted.
const LISTED_MAX: usize = 100;

/// An event by its emitter, its number, and all its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    emitter: PublicKey,
    sequence: ChainSequence,
    bytes: Digest,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Difference {
    /// The stream ends before these events of the log: its end was lost, or an older copy of it was
    /// put back.
    MissingTail {
        /// The first event, by its index in the log.
        from: u64,
        /// The last one.
        to: u64,
    },
    /// The stream has another event with the emitter's number: the emitter wrote another history
    /// behind one that was lost.
    SequenceReused {
        /// The event's index in the log.
        index: u64,
        /// Its emitter.
        emitter: PublicKey,
        /// Its number.
        sequence: ChainSequence,
    },
    /// The stream has later events of the log, and not this one: it was altered or removed.
    Altered {
        /// The event's index in the log.
        index: u64,
        /// Its emitter.
        emitter: PublicKey,
        /// Its number.
        sequence: ChainSequence,
    },
    /// The stream has the event behind one that follows on it in the log.
    Reordered {
        /// The event's index in the log.
        index: u64,
    },
    /// The stream has an event before others of the log that the log does not have.
    Inserted {
        /// The message's position in the stream.
        stream_sequence: u64,
    },
}

/// The outcome of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Differences {
    /// Events that both have.
    pub same: u64,
    /// Events of the stream behind those of the log: no head covers them yet.
    pub newer: u64,
    /// The number of all differences.
    pub count: u64,
    /// The first of them.
    pub first: Vec<Difference>,
}

/// Compares a log with a stream. The log's entries come first, then the stream's events.
#[derive(Debug, Default)]
pub struct Differ {
    log: Vec<Place>,
    /// The entries before the first event: the manifest of the log's owner, which no stream has.
    before: u64,
    /// What is wrong with the first entry without a place.
    placeless: Option<LogFault>,
    stream: Vec<(u64, Place)>,
}

impl Place {
    /// The place of an event; none if its body is none. Only events that were checked count.
    pub fn of(event: &SignedEvent) -> Option<Self> {
        let body = EventBody::decode(&event.body).ok()?;
        Some(Self {
            emitter: body.emitter,
            sequence: body.sequence,
            bytes: Digest::of(&chain::leaf(event)?),
        })
    }
}

impl Differ {
    /// Takes the next entry of the log, which is at `index`.
    pub fn entry(&mut self, index: u64, entry: &[u8]) {
        let reason = "it cannot be compared with an event".to_owned();
        if index == 0 && chain::of_manifest_leaf(entry).is_some() {
            self.before = 1;
            return;
        }
        let fault = match chain::of_leaf(entry) {
            None => LogFault::Entry { index, reason },
            Some(event) => match Place::of(&event) {
                Some(place) => return self.log(place),
                None => LogFault::Undecodable { index, reason },
            },
        };
        self.placeless.get_or_insert(fault);
    }

    fn log(&mut self, place: Place) {
        self.log.push(place);
    }

    /// Takes the next event of the stream, with its position.
    pub fn stream(&mut self, stream_sequence: u64, place: Place) {
        self.stream.push((stream_sequence, place));
    }

    /// Compares. A repetition of an event counts with its first occurrence.
    ///
    /// # Errors
    /// An entry of the log is no event, so it cannot be compared; or there is none.
    pub fn differences(&self) -> Result<Differences, LogFault> {
        if let Some(fault) = &self.placeless {
            return Err(fault.clone());
        }
        if self.log.is_empty() {
            return Err(LogFault::Empty);
        }
        let mut at = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        for (order, (_, place)) in self.stream.iter().enumerate() {
            at.entry(place.bytes).or_insert(order);
            numbers.insert((&place.emitter, place.sequence), ());
        }
        let mut found = Differences::default();
        let present = |place: &Place| at.contains_key(&place.bytes);
        let tail = self.log.iter().rposition(present);
        let tail = self.before + tail.map_or(0, |last| last as u64 + 1);
        let (mut seen, mut newest) = (BTreeMap::new(), None);
        for (index, place) in (self.before..).zip(&self.log) {
            if seen.insert(place.bytes, ()).is_some() {
                continue;
            }
            let Place {
                emitter, sequence, ..
            } = place;
            match at.get(&place.bytes) {
                Some(order) if newest > Some(*order) => found.add(Difference::Reordered { index }),
                Some(order) => {
                    newest = Some(*order);
                    found.same += 1;
                }
                None if numbers.contains_key(&(emitter, *sequence)) => {
                    let (emitter, sequence) = (emitter.clone(), *sequence);
                    found.add(Difference::SequenceReused {
                        index,
                        emitter,
                        sequence,
                    });
                }
                None if index >= tail => found.missing(index),
                None => {
                    let (emitter, sequence) = (emitter.clone(), *sequence);
                    found.add(Difference::Altered {
                        index,
                        emitter,
                        sequence,
                    });
                }
            }
        }
        let logged: BTreeMap<_, ()> = self.log.iter().map(number).collect();
        for (order, (stream_sequence, place)) in self.stream.iter().enumerate() {
            if seen.contains_key(&place.bytes) {
                continue;
            }
            match newest.is_some_and(|newest| order < newest) {
                // An event in another's place was counted with that.
                true if logged.contains_key(&number(place).0) => {}
                true => found.add(Difference::Inserted {
                    stream_sequence: *stream_sequence,
                }),
                false => found.newer += 1,
            }
        }
        Ok(found)
    }
}

fn number(place: &Place) -> ((&PublicKey, ChainSequence), ()) {
    ((&place.emitter, place.sequence), ())
}

impl Differences {
    fn add(&mut self, difference: Difference) {
        self.count += 1;
        if self.first.len() < LISTED_MAX {
            self.first.push(difference);
        }
    }

    /// The events that are missing at the end are one difference.
    fn missing(&mut self, index: u64) {
        let mut all = self.first.iter_mut();
        let tail = all.find_map(|one| match one {
            Difference::MissingTail { to, .. } => Some(to),
            _ => None,
        });
        match tail {
            Some(to) => *to = index,
            None => {
                let tail = Difference::MissingTail {
                    from: index,
                    to: index,
                };
                self.count += 1;
                self.first.insert(0, tail);
            }
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingTail { from, to } => write!(
                f,
                "missing tail: the stream ends before events {from} to {to} of the log"
            ),
            Self::SequenceReused {
                index,
                emitter,
                sequence,
            } => write!(
                f,
                "sequence reused: the stream has another event {sequence} of {emitter} than event {index} of the log"
            ),
            Self::Altered {
                index,
                emitter,
                sequence,
            } => write!(
                f,
                "altered: event {index} of the log, which is event {sequence} of {emitter}, was changed in the stream or removed \
                 from it"
            ),
            Self::Reordered { index } => write!(
                f,
                "reordered: event {index} of the log comes too late in the stream"
            ),
            Self::Inserted { stream_sequence } => write!(
                f,
                "inserted: the event at stream sequence {stream_sequence} is not in the log"
            ),
        }
    }
}
