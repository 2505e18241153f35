//! A worker's recorded events, until a head that it has verified covers them. The answer that an
//! event is recorded is the broker's word, and a broker can lose what it has acknowledged; the
//! receipt is the head.

use std::collections::VecDeque;
use std::path::Path;

use identity::secret::replace_private;
use runtime::Failure;
use schemas::head::ASKED_MAX;
use schemas::{ChainSequence, Code, Millis, PublicKey, UnixMillis};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

/// Most events that are kept: a worker emits a few in a unit, and a head comes ten seconds after
/// each. They are a part of a file that is written anew with each event.
const KEPT_MAX: usize = 64;
/// An event that no verified head covers is sent again after this part of the time that it may
/// take.
const AGAIN_PART: u64 = 5;

/// An event that was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Waiting {
    pub(crate) sequence: ChainSequence,
    pub(crate) subject: String,
    /// The encoded body, hex.
    pub(crate) body: String,
    /// The time at which its record was confirmed first.
    recorded: UnixMillis,
    /// The time at which it was confirmed last.
    confirmed: UnixMillis,
}

/// The events that wait for a head, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Outbox(VecDeque<Waiting>);

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds an event whose record was confirmed. Returns the one that was given up if there was no
    /// room. That is the second: the oldest shows that heads stay away, and the newest are those
    /// that a broker loses.
    pub(crate) fn add(
        &mut self,
        sequence: ChainSequence,
        (subject, body): (String, String),
        now: UnixMillis,
    ) -> Option<Waiting> {
        let full = self.0.len() >= KEPT_MAX;
        let given_up = full.then(|| self.0.remove(1)).flatten();
        self.0.push_back(Waiting {
            sequence,
            subject,
            body,
            recorded: now,
            confirmed: now,
        });
        given_up
    }

    /// The number of events that wait.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Waiting> {
        self.0.iter().cloned().collect()
    }

    /// True when there is room for as many again.
    pub(crate) fn has_room(&self) -> bool {
        self.0.len() <= KEPT_MAX / 2
    }

    /// The events about which the worker asks next.
    pub(crate) fn asked(&self) -> impl Iterator<Item = &Waiting> {
        self.0.iter().take(ASKED_MAX)
    }

    /// Removes the events that a verified head covers.
    pub(crate) fn cover(&mut self, covered: &[ChainSequence]) {
        self.0.retain(|one| !covered.contains(&one.sequence));
    }

    /// The events from the oldest on that should have been under the newest head by now. A chain is
    /// recorded in its order, and a broker loses the end of a stream, so those behind it are lost
    /// too.
    pub(crate) fn missing(&self, now: UnixMillis, within: Millis) -> Vec<Waiting> {
        let again_after = within.get() / AGAIN_PART;
        let late = |one: &Waiting| one.confirmed.until(now).get() >= again_after;
        match self.asked().position(late) {
            Some(first) => self.0.iter().skip(first).cloned().collect(),
            None => Vec::new(),
        }
    }

    /// Notes that an event was sent again, and answered.
    pub(crate) fn confirmed(&mut self, sequence: ChainSequence, now: UnixMillis) {
        for one in &mut self.0 {
            if one.sequence == sequence {
                one.confirmed = now;
            }
        }
    }

    /// The events that have waited for longer than `within`: how many, and the oldest. Nobody has
    /// asked before `since`, the start of this process.
    pub(crate) fn overdue(
        &self,
        now: UnixMillis,
        since: UnixMillis,
        within: Millis,
    ) -> Option<(usize, ChainSequence)> {
        let late = |one: &&Waiting| one.recorded.max(since).until(now) >= within;
        let count = self.0.iter().filter(late).count();
        let oldest = self.0.iter().find(late)?;
        Some((count, oldest.sequence))
    }
}

/// An event that waits for a head: its position in the chain, and its encoded body.
pub(crate) type Asked = (ChainSequence, Vec<u8>);

/// The follower's end of the outbox: the events about which it asks, and what it found.
#[derive(Debug)]
pub(crate) struct Receipts {
    pub(crate) asked: watch::Receiver<Vec<Asked>>,
    pub(crate) looked: mpsc::Sender<Looked>,
}

/// The follower has verified a head, which covers these of the events.
#[derive(Debug)]
pub(crate) struct Looked(pub(crate) Vec<ChainSequence>);

/// Keeps the end of the chain of an earlier key, if `count` events of it are under no head: only
/// that key could send them again.
///
/// # Errors
/// They cannot be kept.
pub(crate) fn set_aside(
    path: &Path,
    bytes: &[u8],
    former: &PublicKey,
    count: usize,
) -> Result<(), Failure> {
    if count > 0 {
        let aside = path.with_extension("former.json");
        replace_private(&aside, bytes).map_err(|error| {
            let text = format!("chain of events {}: {error}", aside.display());
            Failure::new(Code::WorkerChainInvalid, text)
        })?;
        tracing::warn!(
            key = %former,
            count,
            file = %aside.display(),
            "this worker has another audit key than before; no head that it has verified covers the last events of \
             the former key, which are put aside"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_700_000_000_000;
    const WITHIN: Millis = Millis::from_secs(600);

    fn after(span: Millis) -> UnixMillis {
        UnixMillis(START + span.get())
    }

    fn outbox(count: u64) -> Outbox {
        let mut outbox = Outbox::default();
        for at in 0..count {
            let event = (format!("subject.{at}"), format!("{at:02x}"));
            let gone = outbox.add(ChainSequence(at), event, UnixMillis(START));
            assert_eq!(gone, None, "there is room");
        }
        outbox
    }

    fn sequences(outbox: &Outbox) -> Vec<u64> {
        outbox.asked().map(|one| one.sequence.get()).collect()
    }

    #[test]
    fn ls_04_an_event_stays_until_a_head_covers_it() {
        let mut outbox = outbox(3);
        outbox.cover(&[ChainSequence(7)]);
        assert_eq!(sequences(&outbox), [0, 1, 2], "of nobody");
        outbox.cover(&[ChainSequence(2), ChainSequence(0)]);
        assert_eq!(sequences(&outbox), [1]);
        outbox.cover(&[ChainSequence(1)]);
        assert!(outbox.is_empty() && outbox.missing(after(WITHIN), WITHIN).is_empty());
    }

    #[test]
    fn ls_04_what_a_head_should_cover_is_sent_again_from_the_oldest_on() {
        let mut outbox = outbox(3);
        let missing = |outbox: &Outbox, now| -> Vec<u64> {
            let found = outbox.missing(now, WITHIN);
            found.iter().map(|one| one.sequence.get()).collect()
        };
        let again = Millis(WITHIN.get() / AGAIN_PART);
        let now = after(again);
        assert!(missing(&outbox, after(Millis(again.get() - 1))).is_empty());
        assert_eq!(missing(&outbox, now), [0, 1, 2]);
        outbox.confirmed(ChainSequence(0), now);
        assert_eq!(missing(&outbox, now), [1, 2]);
        // Not its turn by itself, but what lies behind a lost one is lost.
        outbox.confirmed(ChainSequence(2), now);
        assert_eq!(missing(&outbox, now), [1, 2]);
        outbox.confirmed(ChainSequence(1), now);
        assert!(missing(&outbox, now).is_empty());
        let later = UnixMillis(now.get() + again.get());
        assert_eq!(missing(&outbox, later), [0, 1, 2], "lost once more");
    }

    /// To be confirmed again is no receipt either.
    #[test]
    fn what_no_head_covers_for_long_is_overdue_however_often_it_is_confirmed() {
        let mut outbox = outbox(2);
        let late = UnixMillis(START + 1000);
        outbox.add(ChainSequence(2), (String::new(), String::new()), late);
        for at in 0..3 {
            outbox.confirmed(ChainSequence(at), after(Millis(WITHIN.get() / 2)));
        }
        let early = Millis(WITHIN.get() - 1);
        let overdue = |outbox: &Outbox, now| outbox.overdue(now, UnixMillis(START), WITHIN);
        assert_eq!(overdue(&outbox, after(early)), None);
        let found = Some((2, ChainSequence(0)));
        assert_eq!(overdue(&outbox, after(WITHIN)), found);
        // A process that starts long after its last event has asked for no head yet.
        let started = UnixMillis(START + 1);
        assert_eq!(outbox.overdue(after(WITHIN), started, WITHIN), None);
        outbox.cover(&[ChainSequence(0), ChainSequence(1)]);
        assert_eq!(overdue(&outbox, after(WITHIN)), None);
    }

    /// A worker that emits fast would push out every event before a head can cover it; then nobody
    /// would notice that heads stay away.
    #[test]
    fn without_room_the_oldest_stays_as_the_one_that_shows_that_heads_stay_away() {
        let most = KEPT_MAX as u64;
        let mut outbox = outbox(most);
        assert!(!outbox.has_room());
        for at in most..2 * most {
            let event = ("subject".to_owned(), "00".to_owned());
            let gone = outbox.add(ChainSequence(at), event, after(WITHIN));
            assert_eq!(gone.map(|one| one.sequence.get()), Some(at - most + 1));
            assert_eq!(outbox.len(), KEPT_MAX);
        }
        assert_eq!(outbox.asked().count(), ASKED_MAX.min(KEPT_MAX));
        assert_eq!(sequences(&outbox)[..2], [0, most + 1]);
        let found = Some((1, ChainSequence(0)));
        assert_eq!(
            outbox.overdue(after(WITHIN), UnixMillis(START), WITHIN),
            found
        );
        outbox.cover(&[ChainSequence(0)]);
        assert_eq!(sequences(&outbox)[0], most + 1, "the next takes its part");
        assert_eq!(
            outbox.overdue(after(WITHIN), UnixMillis(START), WITHIN),
            None
        );
    }

    #[test]
    fn it_reads_back_from_its_file() {
        let outbox = outbox(2);
        let text = serde_json::to_string(&outbox).expect("it is JSON");
        let again: Outbox = serde_json::from_str(&text).expect("its own text");
        assert_eq!(again, outbox);
        assert_eq!(again.all().len(), 2);
    }
}
