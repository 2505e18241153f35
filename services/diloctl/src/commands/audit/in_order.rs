//! Puts the rows of a replay into the order of the stream, and passes each on once, while most rows
//! are still to come.

use std::collections::BTreeMap;

use diloco_audit::{StreamSequence, TimelineRow, Verdict};

/// Most rows that wait for one before them. A worker's event can come long before the join that
/// settles it, and the rows in between are kept for as long. They take some 32 MiB, however long
/// the ledger is.
const WAITING_MAX: usize = 1 << 16;

/// Puts rows into the order of the stream. An event that waits for its worker's join comes twice,
/// and only its final verdict is shown. When too many rows would have to wait for it, it is shown
/// as waiting, and once more when it is settled.
pub(super) struct InOrder {
    waiting: BTreeMap<StreamSequence, TimelineRow>,
    waiting_max: usize,
}

impl InOrder {
    pub(super) fn new() -> Self {
        Self::waiting_at_most(WAITING_MAX)
    }

    fn waiting_at_most(waiting_max: usize) -> Self {
        Self {
            waiting: BTreeMap::new(),
            waiting_max,
        }
    }

    /// Takes a row, and shows the rows that need not wait any longer.
    pub(super) fn add(&mut self, row: TimelineRow, show: &mut dyn FnMut(&TimelineRow)) {
        self.waiting.insert(row.stream_sequence, row);
        loop {
            let too_many = self.waiting.len() > self.waiting_max;
            let first = self.waiting.first_entry();
            let ready = first.filter(|row| too_many || row.get().verdict != Verdict::Unenrolled);
            let Some(row) = ready else {
                return;
            };
            show(&row.remove());
        }
    }

    /// Shows the rows that still wait; no more will come.
    pub(super) fn end(self, show: &mut dyn FnMut(&TimelineRow)) {
        self.waiting.values().for_each(show);
    }
}

#[cfg(test)]
mod tests {
    use schemas::UnixMillis;

    use super::*;

    fn row(sequence: u64, verdict: Verdict) -> TimelineRow {
        TimelineRow {
            stream_sequence: StreamSequence(sequence),
            time: UnixMillis(0),
            run: None,
            emitter: String::new(),
            kind: String::new(),
            about: String::new(),
            detail: String::new(),
            digest: None,
            event: None,
            verdict,
            problem: None,
        }
    }

    /// The rows that are shown when at most `waiting_max` may wait, and how many waited at most.
    fn shown(waiting_max: usize, rows: &[(u64, Verdict)]) -> (Vec<(u64, Verdict)>, usize) {
        let mut shown = Vec::new();
        let mut show = |row: &TimelineRow| shown.push((row.stream_sequence.0, row.verdict));
        let mut order = InOrder::waiting_at_most(waiting_max);
        let mut most = 0;
        for (sequence, verdict) in rows {
            order.add(row(*sequence, *verdict), &mut show);
            most = most.max(order.waiting.len());
        }
        order.end(&mut show);
        (shown, most)
    }

    use Verdict::{Rejected, Unenrolled, Verified};

    #[test]
    fn rows_are_shown_as_they_come() {
        let rows: Vec<_> = (1..=10_000).map(|at| (at, Verified)).collect();
        assert_eq!(shown(8, &rows), (rows, 0));
    }

    #[test]
    fn a_row_that_comes_twice_is_shown_in_its_place_as_what_it_came_to() {
        let rows = [
            (1, Verified),
            (2, Unenrolled),
            (3, Verified),
            (4, Unenrolled),
            (5, Verified),
            (4, Verified),
            (6, Verified),
            (2, Rejected),
            (7, Unenrolled),
        ];
        let expected = [
            (1, Verified),
            (2, Rejected),
            (3, Verified),
            (4, Verified),
            (5, Verified),
            (6, Verified),
            (7, Unenrolled),
        ];
        assert_eq!(shown(8, &rows), (expected.to_vec(), 5));
    }

    #[test]
    fn an_event_that_waits_for_ever_holds_up_a_limited_number_of_rows() {
        let mut rows = vec![(1, Unenrolled)];
        rows.extend((2..=1000).map(|at| (at, Verified)));
        rows.push((1, Rejected));
        let (shown, most) = shown(8, &rows);
        assert_eq!((shown, most), (rows, 8));
    }
}
