//! Views of a run for readers, from the ledger alone.

use std::num::NonZeroU32;

use schemas::contribution::Fate;
use schemas::hold::Hold;
use schemas::lease::UnitId;
use schemas::view::{HoldView, RoundView, RunPhase, RunView, SnapshotView};
use schemas::{Bytes, Round, RunId};

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

    /// Its full snapshots, oldest first.
    pub fn snapshot_views(&self) -> Vec<SnapshotView> {
        let view = |snapshot: &SnapshotRecord| self.snapshot_view(snapshot);
        self.snapshots.iter().map(view).collect()
    }

    /// One of its full snapshots.
    pub fn snapshot_view(&self, snapshot: &SnapshotRecord) -> SnapshotView {
        let digest = snapshot.manifest.digest;
        let pointers = self.pointers.iter();
        SnapshotView {
            round: snapshot.round,
            manifest: snapshot.manifest,
            saved_at: snapshot.saved_at,
            // A restore lists the same snapshot once more; its statement is that of the first.
            statement: self
                .snapshot(&digest)
                .and_then(|first| self.statements.get(&first.round).copied()),
            pointers: pointers
                .filter(|(_, record)| record.manifest == digest)
                .map(|(name, _)| name.clone())
                .collect(),
            undone: !self.leads_from(snapshot.round),
            given_up: self.snapshot_given_up(&digest).map(|by| by.sequence),
            quarantined: NonZeroU32::new(self.quarantined_in(snapshot.round).count() as u32),
        }
    }
}
