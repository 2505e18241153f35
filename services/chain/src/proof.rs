//! Checks of a message by itself, before its place in a chain. They do not depend on other
//! messages, so many messages are checked in parallel, on all cores; only their places are checked
//! one after another.

use std::collections::BTreeMap;

use schemas::event::EventBody;
use schemas::subject::Incoming;
use schemas::{ChainSequence, PublicKey};

use crate::entry::{Claimed, Entry, Fault};
use crate::signature::Signatures;

/// The keys that may write the ledger of a domain.
#[derive(Clone, Debug)]
pub struct Writers {
    signatures: Signatures,
    keys: Vec<PublicKey>,
    /// Those that are known to have ended, each with its last event.
    ended: BTreeMap<PublicKey, ChainSequence>,
}

/// The result of checking a message in the ledger's stream by itself.
#[derive(Debug)]
pub enum Proof {
    /// It is an event, signed by a key that may write here.
    Event(Box<Entry>),
    /// It is in no chain: no key that may write here has signed it. The reason, in words.
    Foreign(String),
    /// This key, which may write here, has signed it, but it is not an event. The reason, in words.
    Broken(PublicKey, String),
}

impl Writers {
    /// The writers of the ledger of `domain` (its id as text): these keys.
    pub fn new(domain: &str, keys: Vec<PublicKey>) -> Self {
        Self {
            signatures: Signatures::new(domain, &keys),
            keys,
            ended: BTreeMap::new(),
        }
    }

    /// The same writers. These keys have ended, each with the event of this number.
    #[must_use]
    pub fn ending(self, ended: BTreeMap<PublicKey, ChainSequence>) -> Self {
        Self { ended, ..self }
    }

    /// True for an event of a key that had ended before it, or should end with it and does not.
    pub(crate) fn is_over(&self, body: &EventBody) -> bool {
        is_over(&self.ended, body)
    }

    /// True if it is one of them.
    pub fn has(&self, key: &PublicKey) -> bool {
        self.keys.contains(key)
    }

    /// The place of a key among them.
    pub(crate) fn place(&self, key: &PublicKey) -> Option<usize> {
        self.keys.iter().position(|known| known == key)
    }

    /// The key that began the ledger.
    pub(crate) fn first(&self) -> &PublicKey {
        self.keys.first().expect("a ledger has a writer")
    }

    /// Checks a message by itself: its subject, its signature, its body.
    pub fn prove(&self, subject: &str, payload: &[u8]) -> Proof {
        match self.claimed(subject, payload) {
            Ok((named, claimed)) => proof(&named, claimed.open(&self.signatures)),
            Err(foreign) => Proof::Foreign(foreign),
        }
    }

    /// Looks at many messages, each a subject and a payload, with the same results in their order,
    /// and in less time.
    pub fn prove_all<'a>(
        &self,
        messages: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Vec<Proof> {
        let (mut named, mut claimed) = (Vec::new(), Vec::new());
        for (subject, payload) in messages {
            let (name, claim) = self.claimed(subject, payload).map_or_else(
                |foreign| (Err(foreign), None),
                |(name, claim)| (Ok(name), Some(claim)),
            );
            named.push(name);
            claimed.extend(claim);
        }
        let mut opened = Claimed::open_all(claimed, &self.signatures).into_iter();
        let proofs = named.into_iter().map(|named| match named {
            Ok(named) => proof(&named, opened.next().expect("one for each claim")),
            Err(foreign) => Proof::Foreign(foreign),
        });
        proofs.collect()
    }

    /// The form of an event under a subject of the ledger, which claims a key that may write here;
    /// or the reason why it is foreign.
    fn claimed(&self, subject: &str, payload: &[u8]) -> Result<(Incoming, Claimed), String> {
        let Ok(named @ Incoming::Ledger { .. }) = subject.parse() else {
            return Err("its subject is none of the ledger's".to_owned());
        };
        let claimed = Claimed::read(payload).map_err(|error| error.to_string())?;
        if !self.keys.contains(claimed.key()) {
            return Err("its key is not an audit key of the trust bundle".to_owned());
        }
        Ok((named, claimed))
    }
}

fn proof(named: &Incoming, opened: Result<Entry, Fault>) -> Proof {
    match opened {
        Ok(entry) => match entry.stands_under(named) {
            Ok(()) => Proof::Event(Box::new(entry)),
            Err(misplaced) => Proof::Foreign(misplaced.to_string()),
        },
        Err(Fault::Undecodable { signer, error }) => Proof::Broken(signer, error.to_string()),
        Err(fault) => Proof::Foreign(fault.to_string()),
    }
}

/// True for an event whose emitter had ended before it, or should end with it and does not: it is
/// in another ledger than the one in which the key has named the next.
pub fn is_over(ended: &BTreeMap<PublicKey, ChainSequence>, body: &EventBody) -> bool {
    ended.get(&body.emitter).is_some_and(|last| {
        let names = body.event.next_emitter().is_some();
        body.sequence > *last || (body.sequence == *last) != names
    })
}
