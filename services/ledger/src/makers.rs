//! Whose contributions the full snapshots have: for all snapshots and many workers in one pass.
//!
//! From one version to the next the makers only become more, and a restore begins anew with those
//! of the snapshot that it took. So one set is carried from each snapshot to the next.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{Round, WorkerId};

use crate::state::Run;

/// Those of some workers, by their place among these, that have contributions in a version.
#[derive(Clone)]
struct Makers {
    has: Vec<bool>,
    number: u32,
}

impl Makers {
    fn none_of(workers: usize) -> Self {
        Self {
            has: vec![false; workers],
            number: 0,
        }
    }

    fn add(&mut self, worker: usize) {
        let before = std::mem::replace(&mut self.has[worker], true);
        self.number += u32::from(!before);
    }
}

impl Run {
    /// For each full snapshot, in the order of [`Run::snapshots`], the number of these workers that
    /// have contributions in it, under these keys or those from before.
    pub(crate) fn makers_of_snapshots<'a>(
        &self,
        workers: impl Iterator<Item = &'a WorkerId>,
    ) -> Vec<u32> {
        let workers: Vec<&WorkerId> = workers.collect();
        let first_merges = self.first_merges(&workers);
        let taken = self.restores.iter().map(|restore| restore.snapshot);
        let taken: BTreeSet<Round> = taken.collect();
        let mut of_taken: BTreeMap<Round, Makers> = BTreeMap::new();
        let mut makers = Makers::none_of(workers.len());
        let (mut restores, mut noted) = (0, 0);
        let number = |snapshot: &crate::SnapshotRecord| {
            let before = self.restores_before(snapshot.round);
            if before != restores {
                (restores, noted) = (before, 0);
                let from = self.restores[before - 1].snapshot;
                let from = of_taken.get(&from).cloned();
                makers = from.expect("a restore takes an earlier snapshot");
            }
            let later = &first_merges[restores][noted..];
            let merged = later
                .iter()
                .take_while(|(first, _)| *first < snapshot.round);
            for (_, worker) in merged {
                makers.add(*worker);
                noted += 1;
            }
            if taken.contains(&snapshot.round) {
                of_taken.insert(snapshot.round, makers.clone());
            }
            makers.number
        };
        self.snapshots.iter().map(number).collect()
    }

    /// After each number of restores: the first round that was merged with contributions of each of
    /// these workers, ascending.
    fn first_merges(&self, workers: &[&WorkerId]) -> Vec<Vec<(Round, usize)>> {
        let after = |restores: usize| {
            let of_worker = |(place, worker): (usize, &&WorkerId)| {
                let keys = self.keys(worker);
                let merged = keys.filter_map(|key| self.merged_after(restores, key));
                let first = merged.map(|merged| merged.first).min();
                first.map(|first| (first, place))
            };
            let firsts = workers.iter().enumerate().filter_map(of_worker);
            let mut firsts: Vec<(Round, usize)> = firsts.collect();
            firsts.sort_unstable();
            firsts
        };
        (0..=self.restores.len()).map(after).collect()
    }
}
