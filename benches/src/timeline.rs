//! The times of a sync, read from the logs: each process of a cluster logs the end of each of its
//! stages, and all processes read the same clock.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// The end of a stage of one round, in seconds by the machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    /// A worker has done its inner steps.
    StepsDone,
    /// A worker's contribution is at the store.
    Uploaded,
    /// The coordinator has checked a contribution.
    Screened,
    /// The outer step is done, and the new weights are at the store.
    Merged,
    /// A worker has a lease on the round and begins to fetch.
    Leased,
    /// A worker holds the round's weights.
    Loaded,
}

/// The texts that are searched in a line, each with its mark. A merge belongs to the round that it
/// closes, a load to the round that it opens.
const MESSAGES: [(&str, Mark); 6] = [
    (" inner steps done ", Mark::StepsDone),
    (" contribution uploaded ", Mark::Uploaded),
    (" contribution screened ", Mark::Screened),
    (" merged ", Mark::Merged),
    (" lease verified, fetching ", Mark::Leased),
    (" base weights loaded ", Mark::Loaded),
];

/// The last process to reach each mark in each round, and how many reached it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Timeline {
    marks: BTreeMap<(u64, Mark), (f64, usize)>,
}

/// One sync, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sync {
    /// From the last worker's last inner step until its whole contribution is at the store.
    pub(crate) upload: f64,
    /// From there until the last contribution is checked.
    pub(crate) screen: f64,
    /// From there until the outer step is made and the new weights are at the store.
    pub(crate) merge: f64,
    /// From there until the last worker has its lease on the next round.
    pub(crate) open: f64,
    /// From there until the last worker holds the new weights.
    pub(crate) download: f64,
}

impl Sync {
    /// From the last inner step to the last worker that holds the new weights.
    pub(crate) fn total(&self) -> f64 {
        self.upload + self.screen + self.merge + self.open + self.download
    }
}

impl Timeline {
    /// Reads the log of one more process, in the form for people and without colours.
    pub(crate) fn read(&mut self, log: &str) {
        for (round, mark, at) in log.lines().filter_map(entry) {
            let (last, count) = self.marks.entry((round, mark)).or_insert((at, 0));
            *last = last.max(at);
            *count += 1;
        }
    }

    /// The syncs after each of `rounds`; a sync is left out if one of the `workers` missed a stage.
    pub(crate) fn syncs(&self, rounds: std::ops::Range<u64>, workers: usize) -> Vec<Sync> {
        rounds
            .filter_map(|round| self.sync(round, workers))
            .collect()
    }

    /// Seconds from the merge of each of `rounds` to the next one.
    pub(crate) fn periods(&self, rounds: std::ops::Range<u64>) -> Vec<f64> {
        let merged = |round: u64| self.marks.get(&(round, Mark::Merged)).map(|(at, _)| *at);
        rounds
            .filter_map(|round| Some(merged(round + 1)? - merged(round)?))
            .collect()
    }

    fn sync(&self, round: u64, workers: usize) -> Option<Sync> {
        let at = |round: u64, mark: Mark, count: usize| {
            self.marks
                .get(&(round, mark))
                .filter(|(_, seen)| *seen == count)
                .map(|(at, _)| *at)
        };
        let done = at(round, Mark::StepsDone, workers)?;
        let uploaded = at(round, Mark::Uploaded, workers)?;
        let screened = at(round, Mark::Screened, workers)?;
        let merged = at(round, Mark::Merged, 1)?;
        let leased = at(round + 1, Mark::Leased, workers)?;
        let loaded = at(round + 1, Mark::Loaded, workers)?;
        Some(Sync {
            upload: uploaded - done,
            screen: screened - uploaded,
            merge: merged - screened,
            open: leased - merged,
            download: loaded - leased,
        })
    }
}

fn entry(line: &str) -> Option<(u64, Mark, f64)> {
    let (_, mark) = MESSAGES
        .iter()
        .find(|(message, _)| line.contains(message))?;
    let at: Timestamp = line.split_whitespace().next()?.parse().ok()?;
    let field = |name: &str| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let round = field("round").or_else(|| field("lease")?.split('/').next())?;
    Some((round.parse().ok()?, *mark, at.as_microsecond() as f64 / 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: &str = "
2026-01-01T00:00:01.000000Z  INFO diloco_worker::unit: inner steps done lease=3/t0@1 round=3 train_ms=5
2026-01-01T00:00:01.100000Z  INFO diloco_worker::unit: contribution uploaded lease=3/t0@1 round=3
2026-01-01T00:00:01.600000Z  INFO diloco_worker::service: lease verified, fetching lease=4/t0@1
2026-01-01T00:00:02.000000Z  INFO diloco_worker::unit: base weights loaded lease=4/t0@1 round=4
2026-01-01T00:00:02.000000Z  INFO diloco_worker::service: something else round=4
";
    const COORDINATOR: &str = "
2026-01-01T00:00:01.200000Z  INFO diloco_coordinator::screen: contribution screened run=demo round=3 lease=3/t0@1 chunks=1
2026-01-01T00:00:01.500000Z  INFO diloco_coordinator::executor: merged run=demo round=3 inputs=1 took_ms=5
";

    #[test]
    fn the_stages_add_up_to_the_sync() {
        let mut timeline = Timeline::default();
        timeline.read(WORKER);
        timeline.read(COORDINATOR);
        let syncs = timeline.syncs(0..9, 1);
        let [sync] = syncs.as_slice() else {
            panic!("one round is complete: {syncs:?}")
        };
        let stages = [
            sync.upload,
            sync.screen,
            sync.merge,
            sync.open,
            sync.download,
        ];
        let expected = [0.1, 0.1, 0.3, 0.1, 0.4];
        assert!(
            stages
                .iter()
                .zip(expected)
                .all(|(stage, expected)| (stage - expected).abs() < 1e-6),
            "{stages:?}"
        );
        assert!((sync.total() - 1.0).abs() < 1e-6);
        assert_eq!(timeline.syncs(0..9, 2), []);
        let next = "2026-01-01T00:00:01.750000Z  INFO x: merged run=demo round=4 inputs=1";
        timeline.read(next);
        assert_eq!(timeline.periods(0..9), [0.25]);
    }
}
