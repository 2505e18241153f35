//! The places of emitters' newest events in the log, for workers and the coordinator, which ask for
//! proofs.

use std::collections::{BTreeMap, VecDeque};

use schemas::{ChainSequence, Digest, PublicKey};

/// Most events of one worker whose places are remembered: the 64 that a worker keeps until a head
/// covers them, with as many again.
pub const PLACES_MAX: usize = 128;
/// Most events of the ledger: a coordinator asks about those of the last minutes, and appends a few
/// hundred a second at most.
pub(crate) const LEDGER_PLACES_MAX: usize = 65_536;
/// Most workers. Those of a worker that is forgotten are known again after a start of the service.
const WORKERS_MAX: usize = 8192;

/// Places in the log, by emitter.
#[derive(Clone, Debug)]
pub struct Places {
    all: BTreeMap<PublicKey, VecDeque<Logged>>,
    /// Most places of one emitter.
    most: usize,
}

impl Default for Places {
    /// Those of workers.
    fn default() -> Self {
        Self::of(PLACES_MAX)
    }
}

/// An event of a worker, in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Its position in its emitter's chain.
    pub sequence: ChainSequence,
    /// The digest of its body.
    pub digest: Digest,
    /// Its index.
    pub index: u64,
}

impl Places {
    /// Places of the ledger's events.
    pub const fn of_ledger() -> Self {
        Self::of(LEDGER_PLACES_MAX)
    }

    const fn of(most: usize) -> Self {
        let all = BTreeMap::new();
        Self { all, most }
    }

    /// Notes that an event of `emitter` has this index.
    pub fn note(&mut self, emitter: &PublicKey, logged: Logged) {
        if self.all.len() >= WORKERS_MAX && !self.all.contains_key(emitter) {
            self.all.pop_first();
        }
        let places = self.all.entry(emitter.clone()).or_default();
        if places.len() >= self.most {
            places.pop_front();
        }
        places.push_back(logged);
    }

    /// The index of an event; none if it is not in the log, or was there long ago.
    pub fn index(&self, emitter: &PublicKey, sequence: ChainSequence) -> Option<u64> {
        self.find(emitter, |logged| logged.sequence == sequence)
            .map(|logged| logged.index)
    }

    /// True if this very event is in the log, and was not there long ago.
    pub fn has(&self, emitter: &PublicKey, sequence: ChainSequence, digest: Digest) -> bool {
        let is_it = |logged: &Logged| logged.sequence == sequence && logged.digest == digest;
        self.find(emitter, is_it).is_some()
    }

    fn find(&self, emitter: &PublicKey, is_it: impl Fn(&Logged) -> bool) -> Option<&Logged> {
        // The newest first: nobody asks for long about an old one.
        let mut places = self.all.get(emitter)?.iter().rev();
        places.find(|logged| is_it(logged))
    }

    /// All of them, in the order in which they were noted for each emitter; none is left.
    pub fn take(&mut self) -> impl Iterator<Item = (PublicKey, Logged)> + use<> {
        std::mem::take(&mut self.all)
            .into_iter()
            .flat_map(|(emitter, places)| {
                places
                    .into_iter()
                    .map(move |logged| (emitter.clone(), logged))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(letter: char) -> PublicKey {
        let text = format!("U{}", letter.to_string().repeat(55));
        text.parse().expect("the form of a key")
    }

    fn logged(sequence: u64, index: u64) -> Logged {
        Logged {
            sequence: ChainSequence(sequence),
            digest: Digest::of(&sequence.to_be_bytes()),
            index,
        }
    }

    #[test]
    fn more_places_of_the_ledger_are_known_than_of_a_worker() {
        let (mut places, most) = (Places::of_ledger(), LEDGER_PLACES_MAX as u64);
        (0..=most).for_each(|number| places.note(&key('A'), logged(number, 3 * number)));
        assert_eq!(places.index(&key('A'), ChainSequence(0)), None);
        assert_eq!(places.index(&key('A'), ChainSequence(1)), Some(3));
        assert_eq!(places.take().count(), LEDGER_PLACES_MAX);
    }

    #[test]
    fn the_newest_places_of_each_emitter_are_known() {
        let mut places = Places::default();
        let most = PLACES_MAX as u64;
        for number in 0..=most {
            places.note(&key('A'), logged(number, 10 * number));
        }
        places.note(&key('B'), logged(0, 7));
        assert_eq!(places.index(&key('A'), ChainSequence(0)), None);
        assert_eq!(places.index(&key('A'), ChainSequence(1)), Some(10));
        let newest = ChainSequence(most);
        assert_eq!(places.index(&key('A'), newest), Some(10 * most));
        assert_eq!(places.index(&key('B'), ChainSequence(0)), Some(7));
        assert_eq!(places.index(&key('C'), ChainSequence(0)), None);
        let own = logged(1, 0).digest;
        assert!(places.has(&key('A'), ChainSequence(1), own));
        assert!(!places.has(&key('A'), ChainSequence(2), own), "elsewhere");
        assert!(!places.has(&key('A'), ChainSequence(1), Digest::of(b"x")));
        assert!(!places.has(&key('B'), ChainSequence(1), own));
        let mut again = Places::default();
        let taken: Vec<_> = places.take().collect();
        assert_eq!(taken.len(), PLACES_MAX + 1);
        for (emitter, logged) in taken {
            again.note(&emitter, logged);
        }
        assert_eq!(again.index(&key('A'), newest), Some(10 * most));
        assert_eq!(places.take().count(), 0);
    }
}
