//! A stored message, opened step by step: first its claims, then the proof of them.

use std::fmt;

use schemas::event::{Event, EventBody, SignedEvent};
use schemas::subject::Incoming;
use schemas::{DecodeError, Digest, Message as _, PublicKey};

use crate::signature::Signatures;

/// A message in the form of a signed event; nothing in it was checked.
#[derive(Clone, Debug)]
pub struct Claimed(SignedEvent);

/// An event that its emitter signed.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The body.
    pub body: EventBody,
    /// The digest of the body's bytes, by which the next event of the emitter names it.
    pub digest: Digest,
}

/// The reason why a message in the form of an event is not an event.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The key that it names did not sign it, as an event, in this domain.
    #[error("its signature does not verify under {0}")]
    Signature(PublicKey),
    /// The key signed it, but it is not an event.
    #[error("{error}")]
    Undecodable {
        /// The signer.
        signer: PublicKey,
        /// The part that does not parse.
        error: DecodeError,
    },
    /// The key signed it in another's name.
    #[error("{signer} signed an event of {emitter}")]
    Emitter {
        /// The signer.
        signer: PublicKey,
        /// The emitter that the event names.
        emitter: PublicKey,
    },
}

/// The difference between an event and the subject that it stands under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misplaced {
    /// The subject is not one for events of this kind of emitter.
    Family {
        /// The event's kind.
        kind: &'static str,
    },
    /// The subject names another emitter.
    Emitter {
        /// The subject's emitter.
        subject: PublicKey,
        /// The body's emitter.
        body: PublicKey,
    },
    /// The subject names another run.
    Run,
    /// The subject names another kind of event.
    Kind {
        /// The subject's kind of event.
        subject: String,
        /// The body's kind of event.
        body: &'static str,
    },
}

impl Claimed {
    /// Reads a message.
    ///
    /// # Errors
    /// It is too long, or has another form.
    pub fn read(payload: &[u8]) -> Result<Self, DecodeError> {
        SignedEvent::decode(payload).map(Self)
    }

    /// The key that the message names. Check first that you trust it: a check of a signature costs
    /// more.
    pub const fn key(&self) -> &PublicKey {
        &self.0.key
    }

    /// Checks the signature and decodes the body.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn open(self, signatures: &Signatures) -> Result<Entry, Fault> {
        let holds = signatures.hold([&self.0]) == [true];
        self.opened(holds)
    }

    /// Does the same with many, whose signatures are checked together. The results are in the order
    /// of the messages.
    pub fn open_all(all: Vec<Self>, signatures: &Signatures) -> Vec<Result<Entry, Fault>> {
        let hold = signatures.hold(all.iter().map(|claimed| &claimed.0));
        let checked = all.into_iter().zip(hold);
        checked
            .map(|(claimed, holds)| claimed.opened(holds))
            .collect()
    }

    fn opened(self, holds: bool) -> Result<Entry, Fault> {
        let signer = self.0.key.clone();
        if !holds {
            return Err(Fault::Signature(signer));
        }
        let entry = match self.unchecked() {
            Ok(entry) => entry,
            Err(error) => return Err(Fault::Undecodable { signer, error }),
        };
        if entry.body.emitter == signer {
            Ok(entry)
        } else {
            Err(Fault::Emitter {
                signer,
                emitter: entry.body.emitter,
            })
        }
    }

    /// Decodes the body alone: for messages that this process has stored itself, or whose reader
    /// only counts.
    ///
    /// # Errors
    /// The body is no event.
    pub fn unchecked(self) -> Result<Entry, DecodeError> {
        Ok(Entry {
            body: EventBody::decode(&self.0.body)?,
            digest: Digest::of(&self.0.body),
        })
    }
}

impl Entry {
    /// Compares the event with the subject of its message: every name in the subject must be in the
    /// body too, since otherwise an event could be moved.
    ///
    /// # Errors
    /// The first difference.
    pub fn stands_under(&self, subject: &Incoming) -> Result<(), Misplaced> {
        let body = &self.body;
        let (run, kind) = match (subject, &body.event) {
            (Incoming::Ledger { run, emitter, kind }, Event::Ledger(_)) => {
                if *emitter != body.emitter {
                    return Err(Misplaced::Emitter {
                        subject: emitter.clone(),
                        body: body.emitter.clone(),
                    });
                }
                (run.as_ref(), kind)
            }
            (Incoming::Security { emitter, kind }, Event::Security(_)) => {
                if *emitter != body.emitter {
                    return Err(Misplaced::Emitter {
                        subject: emitter.clone(),
                        body: body.emitter.clone(),
                    });
                }
                (None, kind)
            }
            (
                Incoming::Recorded { run, kind, .. } | Incoming::WorkerEvent { run, kind, .. },
                Event::Worker(_),
            ) => (Some(run), kind),
            _ => {
                let kind = body.event.kind();
                return Err(Misplaced::Family { kind });
            }
        };
        if run != body.run.as_ref() {
            return Err(Misplaced::Run);
        }
        if kind != body.event.kind() {
            return Err(Misplaced::Kind {
                subject: kind.clone(),
                body: body.event.kind(),
            });
        }
        Ok(())
    }
}

impl fmt::Display for Misplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Family { kind } => write!(f, "{kind} under this subject"),
            Self::Emitter { subject, body } => {
                write!(f, "the subject names {subject}, the body {body}")
            }
            Self::Run => write!(f, "the run in the subject is not the one in the body"),
            Self::Kind { subject, body } => {
                write!(f, "the subject says {subject}, the body {body}")
            }
        }
    }
}
