//! The chain as this process knows it, and how a message in its stream stands to it.

use identity::TrustBundle;
use identity::event::verify_event;
use runtime::StoredMessage;
use schemas::event::{EventBody, SignedEvent};
use schemas::subject::Incoming;
use schemas::{Digest, Message as _, Sequence};

/// How a message stands to the chain.
#[derive(Debug)]
pub(super) enum Stand {
    /// It is the next event.
    Next {
        body: Box<EventBody>,
        digest: Digest,
    },
    /// It is an event that is in the chain already, byte for byte.
    Repeated,
    /// It is in no chain: nobody signed it who may write here. The reason, in words.
    Foreign(String),
    /// Who may write here signed it, and it does not follow. The reason, in words.
    Broken(String),
}

/// Where the chain ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    /// Sequence in the stream of the last message that was looked at, in the chain or not; 0 for
    /// none. It is what the next append expects to be the last.
    pub(super) stream: u64,
    /// Digest of the last body.
    previous: Option<Digest>,
    /// The first bytes of every body's digest, by position: who repeats an event has copied it, and
    /// an event with other bytes at its position is a fork. Eight bytes an event are a few MB for a
    /// long run.
    marks: Vec<u64>,
    /// Messages that were passed over.
    pub(super) foreign: u64,
}

impl Chain {
    /// Position of the next event in the chain.
    pub(super) fn next(&self) -> Sequence {
        Sequence(self.marks.len() as u64)
    }

    /// Digest of the last body.
    pub(super) const fn previous(&self) -> Option<Digest> {
        self.previous
    }

    /// Adds an event.
    pub(super) fn extend(&mut self, stream: u64, digest: Digest) {
        self.stream = stream;
        self.previous = Some(digest);
        self.marks.push(mark(digest));
    }

    /// Goes past a message that is in no chain.
    pub(super) const fn pass(&mut self, stream: u64) {
        self.stream = stream;
        self.foreign += 1;
    }

    /// Looks at a message. What nobody signed whose chain this could be is foreign, whatever else
    /// it says.
    pub(super) fn judge(&self, stored: &StoredMessage, trust: &TrustBundle) -> Stand {
        let foreign = |reason: &dyn std::fmt::Display| Stand::Foreign(reason.to_string());
        let Ok(named @ Incoming::Ledger { .. }) = stored.subject.parse() else {
            return foreign(&"its subject is none of the ledger's");
        };
        let signed = match SignedEvent::decode(&stored.payload) {
            Ok(signed) => signed,
            Err(error) => return foreign(&error),
        };
        if !trust.audit_keys.contains(&signed.key) {
            return foreign(&"its key is not an audit key of the trust bundle");
        }
        if let Err(error) = verify_event(
            trust.domain.as_str(),
            &signed.key,
            &*signed.signature,
            &signed.body,
        ) {
            return foreign(&error);
        }
        let body = match EventBody::decode(&signed.body) {
            Ok(body) => body,
            Err(error) => return Stand::Broken(error.to_string()),
        };
        let (run, kind) = (body.run.clone(), body.event.kind().to_owned());
        let own = Incoming::Ledger {
            run,
            emitter: body.emitter.clone(),
            kind,
        };
        if body.emitter != signed.key || own != named {
            return foreign(&format_args!(
                "it is an event of {} from under another subject",
                body.emitter
            ));
        }
        self.place(body, Digest::of(&signed.body))
    }

    fn place(&self, body: EventBody, digest: Digest) -> Stand {
        let (position, next) = (body.sequence, self.next());
        let known = usize::try_from(position.get())
            .ok()
            .and_then(|at| self.marks.get(at));
        match known {
            Some(known) if *known == mark(digest) => return Stand::Repeated,
            Some(_) => {
                return Stand::Broken(format!(
                    "position {position} in the chain has another event"
                ));
            }
            None => {}
        }
        if position != next {
            return Stand::Broken(format!(
                "it has position {position} in the chain, expected {next}"
            ));
        }
        if body.previous != self.previous {
            let (named, previous) = (body.previous, self.previous);
            return Stand::Broken(format!(
                "it follows on {named:?}, the event before it is {previous:?}"
            ));
        }
        Stand::Next {
            body: Box::new(body),
            digest,
        }
    }
}

fn mark(digest: Digest) -> u64 {
    let first = digest
        .as_bytes()
        .first_chunk()
        .expect("a digest has 32 bytes");
    u64::from_be_bytes(*first)
}
