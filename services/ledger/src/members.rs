//! The fold of a roster: the workers that joined, and those that are no longer members.

use schemas::event::{Departure, LedgerEvent};
use schemas::{RunId, UnixMillis, WorkerId};

use crate::error::{ApplyError, out_of_place};
use crate::state::{Member, Run};

impl Run {
    pub(crate) fn join(
        &mut self,
        time: UnixMillis,
        worker: &WorkerId,
        event: &LedgerEvent,
    ) -> Result<(), ApplyError> {
        let before = self.members.get(worker);
        if before.is_some_and(|before| before.removed) {
            return Err(out_of_place(
                "worker-joined",
                format!("{worker} was removed before"),
            ));
        }
        if self.is_quarantined(worker) {
            let what = format!("{worker} is in quarantine");
            return Err(out_of_place("worker-joined", what));
        }
        self.check_before(event)?;
        let member = joined(time, before, event);
        if before.is_some_and(|before| before.seat != member.seat) {
            let what = format!("{worker} joined before with another seat");
            return Err(out_of_place("worker-joined", what));
        }
        let seat = member.seat.as_ref();
        if let Some((other, held)) = seat.and_then(|seat| self.in_the_way(worker, seat)) {
            let what = format!("{worker} takes a seat, and {other} has {held}");
            return Err(out_of_place("worker-joined", what));
        }
        self.members.insert(worker.clone(), member);
        Ok(())
    }

    /// A worker with another key than before is the same worker: it was not shut out, and is no
    /// member twice.
    fn check_before(&self, event: &LedgerEvent) -> Result<(), ApplyError> {
        let LedgerEvent::WorkerJoined {
            worker,
            before: Some(before),
            ..
        } = event
        else {
            return Ok(());
        };
        let known = self.members.get(before);
        let fault = if worker == before {
            "it is the same key"
        } else if self.is_quarantined(before) {
            "which is in quarantine"
        } else if known.is_some_and(|known| known.removed) {
            "which was removed before"
        } else if known.is_some_and(|known| known.present) {
            "which is a member still"
        } else {
            return Ok(());
        };
        let what = format!("{worker} had key {before}, {fault}");
        Err(out_of_place("worker-joined", what))
    }

    pub(crate) fn leave(
        &mut self,
        time: UnixMillis,
        name: &RunId,
        worker: &WorkerId,
        cause: Departure,
    ) -> Result<(), ApplyError> {
        let unknown = || ApplyError::WorkerUnknown {
            run: name.clone(),
            worker: worker.clone(),
        };
        let member = self.members.get_mut(worker).ok_or_else(unknown)?;
        member.present = false;
        member.removed |= cause == Departure::Removed;
        if cause == Departure::Replaced {
            member.fenced = member.lease;
        }
        member.since = time;
        Ok(())
    }
}

/// The entry of a worker that joins; its earlier leases and results stay in it.
fn joined(time: UnixMillis, before: Option<&Member>, event: &LedgerEvent) -> Member {
    let LedgerEvent::WorkerJoined {
        account,
        audit_key,
        trainers,
        device,
        release,
        posture,
        session,
        seat,
        ..
    } = event
    else {
        unreachable!("{} makes no member", event.kind())
    };
    Member {
        account: account.clone(),
        audit_key: audit_key.clone(),
        trainers: trainers.clone(),
        device: device.clone(),
        release: release.clone(),
        posture: posture.clone(),
        seat: seat.clone(),
        session: *session,
        fenced: before.and_then(|member| member.fenced),
        present: true,
        removed: false,
        since: time,
        lease: before.and_then(|member| member.lease),
        accepted: before.map_or(0, |member| member.accepted),
        rejected: before.map_or(0, |member| member.rejected),
        refused: before.and_then(|member| member.refused.clone()),
        merged: before.and_then(|member| member.merged),
    }
}
