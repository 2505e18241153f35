//! Views of a run for readers, from the ledger alone.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use schemas::contribution::Fate;
use schemas::hold::Hold;
use schemas::lease::UnitId;
use schemas::view::{HoldView, RoundView, RunPhase, RunView, SnapshotView};
use schemas::{Bytes, Digest, Round, RunId};

use crate::state::{HoldRecord, RoundRecord, Run, SnapshotRecord, Standing};

impl Run {
    /// Mean training loss over a round's contributions so far, nats a token; none in a private run,
    /// whose workers state no loss.
    fn train_loss(&self, record: &RoundRecord) -> Option<f64> {
        if self.spec.privacy.is_some() || self.is_masked() {
            return None;
        }
        (record.tokens.get() > 0).then(|| record.loss_sum / record.tokens.get() as f64)
    }

    /// A summary of the run from the ledger alone; speed and downloaded bytes are zero.
    pub fn view(&self, name: &RunId) -> RunView {
        let fates = &self.tokens;
        let closed = self
            .rounds
            .iter()
            .enumerate()
            .rfind(|(number, round)| {
                round.closed_at.is_some() && !self.is_undone(Round(*number as u64))
            })
            .map(|(_, round)| round);
        RunView {
            run: name.clone(),
            phase: self.phase(),
            halted: None,
            trouble: None,
            holds: self.hold_views(),
            privacy: self.privacy_view(),
            left_out: self.left_out.clone(),
            round: self.rounds_closed(),
            rounds: self.rounds_planned(),
            units_done: self
                .open
                .values()
                .next()
                .map_or(0, |open| open.inputs().count()) as u32,
            units: self.spec.schedule.units,
            workers: self.present(),
            workers_min: self.spec.policy.workers_min,
            leases: self.leases().count() as u32,
            tokens: vec![
                (Fate::Merged, fates.merged),
                (Fate::Late, fates.late),
                (Fate::Rejected, fates.rejected),
                (Fate::Abandoned, fates.abandoned),
            ],
            tokens_per_second: 0.0,
            train_loss: closed.and_then(|record| self.train_loss(record)),
            held_out_loss: self
                .evaluations
                .keys()
                .rfind(|version| self.leads_from(**version))
                .and_then(|r| self.held_out_loss(*r).map(|l| (*r, l))),
            bytes_up: self.uploaded,
            bytes_down: Bytes(0),
            snapshot: self
                .last_snapshot()
                .map(|snapshot| (snapshot.round, snapshot.manifest)),
            created_at: self.created_at,
            completed_at: self.completed_at,
        }
    }

    fn hold_views(&self) -> Vec<HoldView> {
        let view = |(hold, record): (&Hold, &HoldRecord)| HoldView {
            hold: *hold,
            operator: record.operator.clone(),
            reason: record.reason.clone(),
            since: record.since,
        };
        self.holds.iter().map(view).collect()
    }

    /// The phase of the run by the ledger. Only the run's coordinator knows if it is halted.
    pub fn phase(&self) -> RunPhase {
        if self.is_complete() {
            RunPhase::Complete
        } else if self.all_rounds_closed() {
            RunPhase::Finishing
        } else if self.rounds.is_empty() {
            RunPhase::Waiting
        } else if self.open_rounds().any(|round| self.collects(round)) {
            RunPhase::Training
        } else {
            RunPhase::Merging
        }
    }

    /// Its rounds, oldest first. Units of closed rounds are not listed one by one, since all have a
    /// result.
    pub fn round_views(&self) -> Vec<RoundView> {
        let view = |(number, record): (usize, &RoundRecord)| {
            let round = Round(number as u64);
            let open = record.closed_at.is_none();
            let done = |unit: &UnitId| {
                self.units
                    .get(unit)
                    .is_some_and(|found| found.standing == Standing::Done)
            };
            RoundView {
                round,
                opened_at: record.opened_at,
                closed_at: record.closed_at,
                done: self
                    .units
                    .keys()
                    .filter(|unit| open && unit.round == round && done(unit))
                    .copied()
                    .collect(),
                tokens: record.tokens,
                train_loss: self.train_loss(record),
                held_out_loss: self.held_out_loss(round),
                norm: record.norm,
                undone: self.is_undone(round),
            }
        };
        self.rounds.iter().enumerate().map(view).collect()
    }

    /// Its full snapshots, oldest first, in one pass.
    pub fn snapshot_views(&self) -> Vec<SnapshotView> {
        let (way, makers) = (
            self.way_here(),
            self.makers_of_snapshots(self.quarantined.keys()),
        );
        let mut first: BTreeMap<Digest, Round> = BTreeMap::new();
        for snapshot in &self.snapshots {
            let own = first.entry(snapshot.manifest.digest);
            own.or_insert(snapshot.round);
        }
        let view = |(snapshot, quarantined): (&SnapshotRecord, u32)| {
            let first = first[&snapshot.manifest.digest];
            let undone = !way.iter().any(|part| part.passes(snapshot.round));
            self.view_of(snapshot, first, undone, quarantined)
        };
        self.snapshots.iter().zip(makers).map(view).collect()
    }

    /// One of its full snapshots.
    pub fn snapshot_view(&self, snapshot: &SnapshotRecord) -> SnapshotView {
        let first = self.snapshot(&snapshot.manifest.digest);
        let first = first.map_or(snapshot.round, |first| first.round);
        let quarantined = self.quarantined_in(snapshot.round).count() as u32;
        self.view_of(
            snapshot,
            first,
            !self.leads_from(snapshot.round),
            quarantined,
        )
    }

    /// The view of a full snapshot that was first saved as that of round `first`: a restore lists
    /// the same one once more, and its statement is that of the first.
    fn view_of(
        &self,
        snapshot: &SnapshotRecord,
        first: Round,
        undone: bool,
        quarantined: u32,
    ) -> SnapshotView {
        let digest = snapshot.manifest.digest;
        let pointers = self.pointers.iter();
        SnapshotView {
            round: snapshot.round,
            manifest: snapshot.manifest,
            saved_at: snapshot.saved_at,
            statement: self.statements.get(&first).copied(),
            pointers: pointers
                .filter(|(_, record)| record.manifest == digest)
                .map(|(name, _)| name.clone())
                .collect(),
            undone,
            given_up: self.snapshot_given_up(&digest).map(|by| by.sequence),
            quarantined: NonZeroU32::new(quarantined),
        }
    }
}
