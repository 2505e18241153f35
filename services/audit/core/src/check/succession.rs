//! The key that goes on with the ledger: one at a time, each named by the last event of the one
//! before.

use std::collections::{BTreeMap, BTreeSet};

use schemas::event::EventBody;
use schemas::{ChainSequence, Digest, PublicKey};

use super::Auditor;
use crate::finding::Finding;
use crate::record::StreamSequence;

/// The keys of the ledger.
#[derive(Debug)]
pub(super) struct Emitters {
    /// Those that may sign it, oldest first.
    known: Vec<PublicKey>,
    /// The one that goes on with it: one at a time, and none comes back.
    present: Option<PublicKey>,
    /// Those that went on with it before, each with its last event.
    succeeded: BTreeMap<PublicKey, ChainSequence>,
    /// Those that are known to have ended, each with its last event, whatever this record says.
    ended: BTreeMap<PublicKey, ChainSequence>,
    /// The first key that the record names as the next, and that is none of the known ones.
    unknown: Option<PublicKey>,
}

impl Emitters {
    /// The first of these goes on with a ledger that is empty.
    pub(super) fn new(known: Vec<PublicKey>) -> Self {
        Self {
            present: known.first().cloned(),
            known,
            succeeded: BTreeMap::new(),
            ended: BTreeMap::new(),
            unknown: None,
        }
    }

    fn place(&self, key: &PublicKey) -> Option<usize> {
        self.known.iter().position(|known| known == key)
    }
}

impl Auditor {
    /// The same auditor, which takes security events from these keys.
    #[must_use]
    pub fn hearing(mut self, sentries: impl IntoIterator<Item = PublicKey>) -> Self {
        let sentries: BTreeSet<PublicKey> = sentries.into_iter().collect();
        self.sentries.extend(sentries.iter().cloned());
        self.examiner = self.examiner.hearing(sentries);
        self
    }

    /// The same auditor, whose first record stands behind this position: what is before it is none.
    #[must_use]
    pub fn behind(self, last: StreamSequence) -> Self {
        Self { last, ..self }
    }

    /// The same auditor, which knows that these keys have ended, each with the event of this
    /// number. A record in which one goes on is another's.
    #[must_use]
    pub fn ending(mut self, ended: BTreeMap<PublicKey, ChainSequence>) -> Self {
        self.emitters.ended = ended;
        self
    }

    /// The key that goes on with the ledger; none if none may.
    pub const fn emitter(&self) -> Option<&PublicKey> {
        self.emitters.present.as_ref()
    }

    /// The keys that signed the ledger once and have a successor, each with the number of its last
    /// event, which names that.
    pub const fn succeeded(&self) -> &BTreeMap<PublicKey, ChainSequence> {
        &self.emitters.succeeded
    }

    /// The same, once the key that goes on has signed an event of its own, which vouches for the
    /// last one of the key before. None until then: a former key alone names its successor in any
    /// place of a stream that was cut off.
    pub fn vouched(&self) -> Option<&BTreeMap<PublicKey, ChainSequence>> {
        let chain = self.chains.get(self.emitter()?)?;
        (chain.events > 0 && !chain.broken).then(|| self.succeeded())
    }

    /// The key with which the ledger goes on and which is none of those that may sign it: they are
    /// of a trust bundle that is older than the ledger, or somebody else has the key before. Of
    /// what stands behind that event nothing is known.
    pub const fn unknown_successor(&self) -> Option<&PublicKey> {
        self.emitters.unknown.as_ref()
    }

    /// Judges an event that another key has signed than the one that goes on with the ledger; none
    /// if that one has. A copy of an event that the ledger has is no finding.
    pub(super) fn of_another_key(
        &self,
        body: &EventBody,
        digest: Digest,
    ) -> Option<Option<Finding>> {
        let present = self.emitter().filter(|key| **key != body.emitter)?;
        let chain = self.chains.get(present);
        let copied = chain.is_some_and(|chain| chain.holds(body, digest));
        Some((!copied).then(|| stranger(&body.emitter, present)))
    }

    /// What is no event, or none of the ledger, and is signed by another key than the one that goes
    /// on with the ledger is no evidence against that: it is foreign.
    pub(super) fn of_the_present_key(&self, finding: Finding) -> Finding {
        match (&finding, self.emitter()) {
            (Finding::Undecodable { key, .. } | Finding::Usurped { key }, Some(present))
                if key != present =>
            {
                stranger(key, present)
            }
            _ => finding,
        }
    }

    /// Lets the ledger's next key go on with its chain, if this event names one.
    pub(super) fn succeed(&mut self, body: &EventBody) -> Option<Finding> {
        let present = &body.emitter;
        if chain::is_over(&self.emitters.ended, body) {
            return Some(Finding::OutOfPlace {
                reason: format!("by the trust bundle {present} has named the next key elsewhere"),
            });
        }
        let next = body.event.next_emitter()?;
        let Some(place) = self.emitters.place(next) else {
            let (finding, key) = (
                Finding::SuccessorUnknown { key: next.clone() },
                next.clone(),
            );
            self.emitters.unknown.get_or_insert(key);
            return Some(finding);
        };
        if Some(place) <= self.emitters.place(present) {
            return Some(Finding::OutOfPlace {
                reason: format!(
                    "the trust bundle does not have {next}, which is to go on with the ledger, after {present}"
                ),
            });
        }
        if let Some(chain) = self.chains.get_mut(present) {
            let chain = chain.pass_on();
            self.chains.insert(next.clone(), chain);
        }
        self.cohorts.succeeded(next);
        let Emitters {
            present: goes_on,
            succeeded,
            ..
        } = &mut self.emitters;
        succeeded.insert(present.clone(), body.sequence);
        *goes_on = Some(next.clone());
        None
    }
}

fn stranger(key: &PublicKey, present: &PublicKey) -> Finding {
    Finding::Foreign {
        reason: format!("{key} is not the key that goes on with the ledger, {present} is"),
    }
}
