//! The number of events that are published together. If events were refused or not answered, the
//! next try has half of them, down to a single one. So an event that the broker does not accept
//! delays the events after it, and none before it.

/// Fewest events that are stored as a batch. The broker makes a store of its own for each batch,
/// which takes some 5 ms; a single event takes 0.7 ms.
const BATCH_MIN: usize = 8;
/// Most events of a batch: the broker refuses longer ones.
const BATCH_MAX: usize = 1000;
/// Events that are appended one by one, after the broker said that the stream takes no batches,
/// until a batch is tried again. A try costs a round trip, and an operator may change the stream's
/// settings while the coordinator runs.
const ALONE_MAX: usize = 64;

/// Most single events under way at once: the broker stores them one after another, and none waits
/// for the answer to the one before.
const LINE_MAX: usize = 16;

/// The size of the next publish.
#[derive(Debug)]
pub(super) struct Grouping {
    /// Most events of the next batch.
    most: usize,
    /// Events still to be published alone before a batch is tried again.
    alone: usize,
    /// True when the last answer to a batch was that the stream takes none.
    none: bool,
    /// Number of batches begun.
    begun: u64,
}

impl Default for Grouping {
    fn default() -> Self {
        Self {
            most: BATCH_MAX,
            alone: 0,
            none: false,
            begun: 0,
        }
    }
}

impl Grouping {
    /// The number of `waiting` events that are published together; 1 stands for a single event.
    pub(super) fn share(&self, waiting: usize) -> usize {
        let share = waiting.min(self.most);
        if self.alone > 0 || share < BATCH_MIN {
            1
        } else {
            share
        }
    }

    /// The number of `waiting` single events that are under way at once.
    pub(super) fn line(&self, waiting: usize) -> usize {
        waiting.min(self.most).min(LINE_MAX)
    }

    /// The number of a batch that begins now.
    pub(super) const fn number(&mut self) -> u64 {
        self.begun += 1;
        self.begun
    }

    /// Notes that one publish stored `count` events: the next one may have twice as many.
    pub(super) fn stored(&mut self, count: usize) {
        self.alone = self.alone.saturating_sub(1);
        if count > 1 {
            self.none = false;
        }
        self.most = (self.most * 2).min(BATCH_MAX);
    }

    /// Notes that `count` events were refused or not answered: the next publish has half of them.
    pub(super) fn failed(&mut self, count: usize) {
        self.most = (count / 2).max(1);
    }

    /// Notes that the stream takes no batches for now. Returns true if it took one before.
    pub(super) const fn takes_none(&mut self) -> bool {
        self.alone = ALONE_MAX;
        !std::mem::replace(&mut self.none, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_halved_down_to_single_events_and_grows_again_when_stored() {
        let mut grouping = Grouping::default();
        assert_eq!(grouping.share(3), 1);
        assert_eq!(grouping.share(BATCH_MIN), BATCH_MIN);
        let mut tried = Vec::new();
        while tried.last() != Some(&1) {
            let share = grouping.share(5000);
            tried.push(share);
            grouping.failed(share);
        }
        assert_eq!(tried, [1000, 500, 250, 125, 62, 31, 15, 1]);
        assert_eq!(grouping.line(5000), 1);
        let mut stored = 0;
        let mut sizes = Vec::new();
        while sizes.last() != Some(&BATCH_MAX) {
            let share = grouping.share(5000);
            grouping.stored(share);
            stored += share;
            sizes.push(share);
        }
        assert!(stored < 5000, "{sizes:?}");
        assert!(sizes.is_sorted(), "{sizes:?}");
    }

    /// A stream that takes no batches is asked again after a while, and the log says so once.
    #[test]
    fn a_stream_that_takes_no_batches_is_asked_again() {
        let mut grouping = Grouping::default();
        for told in [true, false] {
            assert_eq!(grouping.share(100), 100);
            assert_eq!(grouping.takes_none(), told);
            for _ in 0..ALONE_MAX {
                assert_eq!(grouping.share(100), 1);
                grouping.stored(1);
            }
        }
        assert_eq!(grouping.share(100), 100);
        grouping.stored(100);
        assert!(grouping.takes_none(), "it took one in between");
    }
}
