//! The heads that events name: each emitter says in an event which head of the log it had verified
//! when it wrote the event, and signs that. So an event cannot be put in an earlier place, and a
//! log that is not the one that its emitters were shown contradicts them.

use std::collections::BTreeMap;
use std::fmt;

use schemas::PublicKey;
use schemas::event::{Event, EventBody};
use schemas::head::KnownHead;
use schemas::{ChainSequence, Message as _};
use tlog::Hash;

use super::fault::LogFault;
use super::open::{Log, Read, Trusted};
use super::rebuild::Rebuilt;

/// An event that names a head which this log does not have there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradicted {
    /// Its index in the log.
    pub index: u64,
    /// Its emitter.
    pub emitter: PublicKey,
    /// Its position in the emitter's chain.
    pub sequence: ChainSequence,
    /// The events under the head that it names.
    pub size: u64,
    /// The contradiction.
    pub by: Contradiction,
}

/// The way in which a named head contradicts the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contradiction {
    /// The event is among those that the head covers.
    Covered,
    /// The first events of the log lead to another root.
    OtherRoot,
    /// An earlier event of the emitter names a head over more events.
    WentBack(u64),
}

/// What the events of a log say of its heads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Events that name a head which the log has, and stand behind it.
    pub named: u64,
    /// The first event that names another.
    pub contradicted: Option<Contradicted>,
}

/// Compares the heads that events of known emitters name with the log. Strangers, who sign what
/// they like, are left out.
///
/// # Errors
/// As [`Log::again`].
pub fn check_known(log: &Log, read: &Read<'_>, trusted: &Trusted) -> Result<Known, LogFault> {
    let mut claims = Claims::default();
    log.again(read, &mut |index, entry| {
        if let Some(body) = told(log, trusted, index, entry)
            && let Some(known) = body.known
        {
            claims.note(index, known, &body);
        }
        Ok(())
    })?;
    if claims.roots.is_empty() {
        return Ok(claims.end());
    }
    let mut tree = Rebuilt::default();
    claims.compare(&tree);
    log.again(read, &mut |_, entry| {
        tree.push(entry);
        claims.compare(&tree);
        Ok(())
    })?;
    Ok(claims.end())
}

/// The body of an entry of a known emitter. Its signature was checked with the events.
fn told(log: &Log, trusted: &Trusted, index: u64, entry: &[u8]) -> Option<EventBody> {
    let event = chain::of_leaf(entry)?;
    let body = EventBody::decode(&event.body).ok()?;
    let emitter = &body.emitter;
    let is_known = match (&body.event, &body.run) {
        (Event::Ledger(_), _) => log.course().goes_on(emitter, index),
        (Event::Security(_), _) => trusted.sentries.contains(emitter),
        (Event::Worker(_), Some(run)) => {
            let joined = (run.clone(), emitter.clone());
            log.members().contains_key(&joined)
        }
        (Event::Worker(_), None) => false,
    };
    (is_known && event.key == *emitter).then_some(body)
}

#[derive(Default)]
struct Claims {
    named: u64,
    /// The claims that stand behind the head that they name, by that head.
    roots: BTreeMap<(u64, Hash), (u64, Contradicted)>,
    /// The newest event of each emitter that names a head, and the events under that.
    newest: BTreeMap<PublicKey, (ChainSequence, u64)>,
    first: Option<Contradicted>,
}

impl Claims {
    fn note(&mut self, index: u64, known: KnownHead, body: &EventBody) {
        let contradicted = |by| Contradicted {
            index,
            emitter: body.emitter.clone(),
            sequence: body.sequence,
            size: known.size,
            by,
        };
        if known.size > index {
            return self.contradict(contradicted(Contradiction::Covered));
        }
        let own = (body.sequence, known.size);
        let newest = self.newest.entry(body.emitter.clone()).or_insert(own);
        // A copy of an earlier event says what it said.
        if body.sequence > newest.0 {
            let before = std::mem::replace(newest, own).1;
            if known.size < before {
                return self.contradict(contradicted(Contradiction::WentBack(before)));
            }
        }
        let first = || (0, contradicted(Contradiction::OtherRoot));
        self.roots
            .entry((known.size, *known.root))
            .or_insert_with(first)
            .0 += 1;
    }

    /// Compares the claims about a tree of this size with its root.
    fn compare(&mut self, tree: &Rebuilt) {
        let of_size = |root| (tree.size(), root);
        let claims = self.roots.range(of_size([0; 32])..=of_size([0xFF; 32]));
        if claims.clone().next().is_none() {
            return;
        }
        let root = tree.root();
        let mut others = Vec::new();
        for ((_, named), (count, contradicted)) in claims {
            match *named == root {
                true => self.named += count,
                false => others.push(contradicted.clone()),
            }
        }
        others.into_iter().for_each(|other| self.contradict(other));
    }

    fn contradict(&mut self, found: Contradicted) {
        let is_first = |first: &Contradicted| found.index < first.index;
        if self.first.as_ref().is_none_or(is_first) {
            self.first = Some(found);
        }
    }

    fn end(self) -> Known {
        Known {
            named: self.named,
            contradicted: self.first,
        }
    }
}

impl fmt::Display for Contradicted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            index,
            emitter,
            sequence,
            size,
            by,
        } = self;
        write!(
            f,
            "event {index} of the log, event {sequence} of {emitter}, names a head over {size} events that its emitter had seen, "
        )?;
        match by {
            Contradiction::Covered => write!(f, "which would cover the event itself"),
            Contradiction::OtherRoot => {
                write!(f, "and the first {size} events here lead to another root")
            }
            Contradiction::WentBack(before) => {
                write!(f, "and had named one over {before} before")
            }
        }
    }
}
