//! Restores: the fold of their event, and the way that the weights took through them.
//!
//! Versions and rounds are numbered on through a restore, so no number means two things: the
//! restored weights are the next version, and the rounds between stay in the history. The number of
//! the round that is open at that time, or of one that would come next, ends with the restore and
//! without a merge. What a version descends from follows from the restores before it: its *way*
//! leads from one back to the snapshot that the restore took, and on from there.

use std::ops::Range;

use schemas::hold::Hold;
use schemas::lease::Weights;
use schemas::quarantine::MergedRounds;
use schemas::restore::RESTORES_MAX;
use schemas::snapshot::MergeInput;
use schemas::{Digest, Round, UnixMillis, WorkerId};

use crate::error::{ApplyError, out_of_place};
use crate::state::{OpenSync, RestoreRecord, RoundRecord, Run, SnapshotRecord};

/// Merged rounds in a row on the way to a version, and the number of restores before them.
pub(crate) struct Stretch {
    restores: usize,
    rounds: Range<u64>,
}

impl Stretch {
    /// True if this version of the weights is on the way.
    pub(crate) fn passes(&self, version: Round) -> bool {
        (self.rounds.start..=self.rounds.end).contains(&version.get())
    }
}

impl Run {
    /// The way to a version of the weights, newest rounds first.
    fn way(&self, version: Round) -> impl Iterator<Item = Stretch> {
        let mut next = Some(version.get());
        std::iter::from_fn(move || {
            let end = next.take()?;
            let restores = self.restores_before(Round(end));
            let last = restores.checked_sub(1).map(|last| &self.restores[last]);
            next = last.map(|last| last.snapshot.get());
            Some(Stretch {
                restores,
                rounds: last.map_or(0, |last| last.version.get())..end,
            })
        })
    }

    /// The number of restores that led to this version of the weights or to an earlier one.
    pub(crate) fn restores_before(&self, version: Round) -> usize {
        let before = |restore: &RestoreRecord| restore.version <= version;
        self.restores.partition_point(before)
    }

    /// The number of merged rounds that a version of the weights descends from, which the schedule
    /// goes by. Without restores it is the version.
    pub fn progress(&self, version: Round) -> Round {
        let rounds = self
            .way(version)
            .map(|part| part.rounds.end - part.rounds.start);
        Round(rounds.sum())
    }

    /// The number that the rounds reach when the run is over, unless it is restored again.
    pub fn rounds_planned(&self) -> u64 {
        let version = self.rounds_closed();
        let undone = version.get() - self.progress(version).get();
        self.spec.schedule.rounds.saturating_add(undone)
    }

    /// True for a round that the schedule has room for.
    pub fn plans(&self, round: Round) -> bool {
        round.get() < self.rounds_planned()
    }

    /// True if this version of the weights is evaluated on held-out text.
    pub fn evaluates(&self, version: Round) -> bool {
        self.spec.evaluates(self.progress(version))
    }

    /// True if a full snapshot of this version is saved.
    pub fn saves(&self, version: Round) -> bool {
        self.spec.saves(self.progress(version))
    }

    /// True if the present weights descend from this version, or are it.
    pub fn leads_from(&self, version: Round) -> bool {
        let mut way = self.way(self.rounds_closed());
        way.any(|part| part.passes(version))
    }

    /// The way to the present weights, for questions about many versions.
    pub(crate) fn way_here(&self) -> Vec<Stretch> {
        self.way(self.rounds_closed()).collect()
    }

    /// True for a round that a restore ended, or whose merge a restore has undone.
    pub fn is_undone(&self, round: Round) -> bool {
        let merged = |part: Stretch| part.rounds.contains(&round.get());
        let mut way = self.way(self.rounds_closed());
        round < self.rounds_closed() && !way.any(merged)
    }

    /// Merged rounds that led to a version of before, and are undone now.
    pub fn undone_of(&self, version: Round) -> u64 {
        let rounds = self.way(version).flat_map(|part| part.rounds);
        rounds.filter(|round| self.is_undone(Round(*round))).count() as u64
    }

    /// The merged rounds on the way to a version that contributions of a worker are part of, under
    /// this key or one from before. `first` is exact, so it is known for every version if there is
    /// one. Where a restore went back to the middle of these rounds, or one round has contributions
    /// under two keys, `last` and `rounds` are the most that they can be.
    pub fn merged_into(&self, worker: &WorkerId, version: Round) -> Option<MergedRounds> {
        let of_keys = self.keys(worker);
        let of_keys = of_keys.filter_map(|key| self.merged_under(key, version));
        of_keys.reduce(|one, other| MergedRounds {
            first: one.first.min(other.first),
            last: one.last.max(other.last),
            rounds: one.rounds + other.rounds,
        })
    }

    /// The rounds with contributions under one key that were merged after so many restores, and
    /// before the next one.
    pub(crate) fn merged_after(&self, restores: usize, key: &WorkerId) -> Option<MergedRounds> {
        match self.restores.get(restores) {
            Some(ended) => ended.merged.get(key).copied(),
            None => self.members.get(key).and_then(|member| member.merged),
        }
    }

    fn merged_under(&self, worker: &WorkerId, version: Round) -> Option<MergedRounds> {
        let mut found: Option<MergedRounds> = None;
        for Stretch { restores, rounds } in self.way(version) {
            let merged = self.merged_after(restores, worker);
            let Some(merged) = merged.filter(|merged| merged.first.get() < rounds.end) else {
                continue;
            };
            let last = merged.last.get().min(rounds.end - 1);
            let most = last + 1 - merged.first.get();
            let later = found.take();
            found = Some(MergedRounds {
                first: merged.first,
                last: later.map_or(Round(last), |later| later.last),
                rounds: merged.rounds.min(most) + later.map_or(0, |later| later.rounds),
            });
        }
        found
    }

    /// The first record of the full snapshot with this manifest: the round in it is the snapshot's
    /// own.
    pub fn snapshot(&self, manifest: &Digest) -> Option<&SnapshotRecord> {
        let mut snapshots = self.snapshots.iter();
        snapshots.find(|snapshot| snapshot.manifest.digest == *manifest)
    }

    /// The version that weights would get which are restored now.
    pub fn version_restored(&self) -> Round {
        let open = !self.open.is_empty();
        Round(self.rounds.len() as u64 + u64::from(!open))
    }

    /// Contributions to open rounds: those that a restore drops.
    pub fn inputs_open(&self) -> impl Iterator<Item = &MergeInput> {
        let first = self
            .open_rounds()
            .filter_map(|round| self.syncs(round).next());
        first.flat_map(|(_, open)| open.inputs())
    }

    /// The last restore, while nothing was sealed or merged since.
    pub fn restored_last(&self) -> Option<&RestoreRecord> {
        let last = self.restores.last()?;
        let collects = self.open.values().all(OpenSync::collects);
        (collects && last.version == self.rounds_closed()).then_some(last)
    }

    /// Leads the run back to a full snapshot. `ended` are the leases and contributions that the
    /// event says end with it; an event that says otherwise than the state does not follow.
    pub(crate) fn restore(
        &mut self,
        record: RestoreRecord,
        from: Round,
        weights: &Weights,
        (leases, contributions): (u32, u32),
    ) -> Result<(), ApplyError> {
        let wrong = |what: &str| {
            let what = format!("restore of snapshot {}: {what}", record.snapshot);
            Err(out_of_place("snapshot-restored", what))
        };
        let known = self.snapshot(&record.manifest.digest);
        let named = known.is_some_and(|known| {
            (known.round, known.manifest) == (record.snapshot, record.manifest)
        });
        let chunks = &weights.chunks;
        let form = self.spec.check_chunks(chunks, self.spec.download.kind);
        if self.is_complete() || !self.is_held(Hold::Merges) {
            return wrong("the run is not frozen");
        } else if !named {
            return wrong("the run has no such snapshot");
        } else if from != self.rounds_closed() || weights.round != self.version_restored() {
            return wrong("it leads from or to another version");
        } else if weights.codec != self.spec.download || form.is_err() {
            return wrong("its weights have another form");
        } else if self.leases().count() as u64 != u64::from(leases)
            || self.inputs_open().count() as u64 != u64::from(contributions)
        {
            return wrong("it ends other leases or contributions");
        } else if self.restores.len() >= RESTORES_MAX {
            return wrong("there were too many");
        }
        self.end_work(record.since);
        self.forget_undone(record.snapshot);
        self.snapshots.push(SnapshotRecord {
            round: record.version,
            manifest: record.manifest,
            saved_at: record.since,
        });
        self.merges.clear();
        self.weights.clear();
        for fragment in self.spec.fragments() {
            let key = (fragment, record.version);
            self.weights.insert(key, weights.clone());
        }
        let merged = self.members.iter_mut();
        let merged = merged
            .filter_map(|(worker, member)| Some((worker.clone(), member.merged.take()?)))
            .collect();
        self.restores.push(RestoreRecord { merged, ..record });
        if self.all_rounds_closed() {
            self.offer_evaluation(self.rounds_closed());
        }
        Ok(())
    }

    /// Ends every lease and every open round, without a result.
    fn end_work(&mut self, time: UnixMillis) {
        self.tokens.abandoned += self.tokens_in_flight();
        for member in self.members.values_mut() {
            member.lease = None;
        }
        self.units.clear();
        self.cohorts.clear();
        let open: Vec<Round> = self.open_rounds().collect();
        self.accepted.retain(|unit, _| !open.contains(&unit.round));
        for round in &open {
            self.book_round(*round);
            let record = &mut self.rounds[round.get() as usize];
            let tokens = std::mem::take(&mut record.tokens);
            record.loss_sum = RoundRecord::default().loss_sum;
            record.closed_at = Some(time);
            self.tokens.merged = self.tokens.merged - tokens;
            self.tokens.abandoned += tokens;
        }
        if open.is_empty() {
            self.rounds.push(RoundRecord {
                opened_at: time,
                closed_at: Some(time),
                ..RoundRecord::default()
            });
        }
        self.open.clear();
        self.sealed.clear();
    }

    /// Contributions from the snapshot on count no more beside later ones. They stay known, so that
    /// nobody hands in a copy of one.
    fn forget_undone(&mut self, snapshot: Round) {
        let measured = self.measured.iter_mut();
        for (_, measured) in measured.filter(|(unit, _)| unit.round >= snapshot) {
            measured.counts = false;
        }
    }

    /// Checks that each restore took an earlier snapshot and led to a later version, that the run
    /// has both, and that its snapshots stand in the order of their versions.
    pub(crate) fn check_restores(&self) -> Result<(), String> {
        let mut in_pairs = self.snapshots.windows(2);
        if let Some([one, next]) = in_pairs.find(|pair| pair[0].round >= pair[1].round) {
            return Err(format!(
                "snapshot {} is listed before snapshot {}",
                one.round, next.round
            ));
        }
        let mut before = Round(0);
        for restore in &self.restores {
            let version = restore.version;
            let has = |round: Round| {
                let mut snapshots = self.snapshots.iter();
                snapshots.any(|one| (one.round, one.manifest) == (round, restore.manifest))
            };
            let right = before < version && restore.snapshot < version;
            if !right || version > self.rounds_closed() || !has(restore.snapshot) || !has(version) {
                return Err(format!(
                    "snapshot {} was restored as version {version}, after version {before}",
                    restore.snapshot
                ));
            }
            before = version;
        }
        Ok(())
    }
}
