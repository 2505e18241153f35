//! The fold of a roster: the workers that joined, and those that are no longer members.

use std::iter;

use schemas::event::{Departure, LedgerEvent};
use schemas::{RunId, UnixMillis, WorkerId};

use crate::error::{ApplyError, out_of_place};
use crate::state::{Member, Run};

/// The state of one key of a worker in which the worker joins with no other key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Operators shut it out.
    Quarantined,
    /// It was removed for good.
    Removed,
    /// It is a member.
    Present,
}

impl KeyState {
    const fn text(self) -> &'static str {
        match self {
            Self::Quarantined => "is in quarantine",
            Self::Removed => "was removed before",
            Self::Present => "is a member still",
        }
    }
}

impl Run {
    /// The keys of the worker that has this key: this one, and those that it had before as far as
    /// the run knows, the newest first.
    pub fn keys<'a>(&'a self, worker: &'a WorkerId) -> impl Iterator<Item = &'a WorkerId> {
        let before = |key: &&WorkerId| self.members.get(*key)?.before.as_ref();
        // No join makes a circle; the bound is for a state that was not made by joins.
        iter::successors(Some(worker), before).take(self.members.len() + 1)
    }

    /// The first of these keys in a state in which its worker joins with no other key.
    pub fn in_the_way_of<'a>(
        &self,
        mut keys: impl Iterator<Item = &'a WorkerId>,
    ) -> Option<(&'a WorkerId, KeyState)> {
        keys.find_map(|key| Some((key, self.key_state(key)?)))
    }

    /// A later key of this worker in such a state, but for those that are spared. While both keys
    /// are valid, a worker that goes on with the new one is no second member with the old one.
    pub fn successor_in_the_way(
        &self,
        worker: &WorkerId,
        spared: impl Fn(&WorkerId) -> bool,
    ) -> Option<(&WorkerId, KeyState)> {
        // A run has thousands of members, and few of them have had another key.
        let renamed = self.members.iter().filter(|(_, one)| one.before.is_some());
        let later = |key: &&WorkerId| {
            *key != worker && !spared(key) && self.keys(key).any(|key| key == worker)
        };
        self.in_the_way_of(renamed.map(|(key, _)| key).filter(later))
    }

    fn key_state(&self, key: &WorkerId) -> Option<KeyState> {
        let member = self.members.get(key);
        if self.is_quarantined(key) {
            Some(KeyState::Quarantined)
        } else if member.is_some_and(|member| member.removed) {
            Some(KeyState::Removed)
        } else {
            member
                .filter(|member| member.present)
                .map(|_| KeyState::Present)
        }
    }

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

    /// A worker with another key than before is the same worker: it was shut out with none of its
    /// keys, and is no member twice.
    fn check_before(&self, event: &LedgerEvent) -> Result<(), ApplyError> {
        let LedgerEvent::WorkerJoined { worker, before, .. } = event else {
            return Ok(());
        };
        let earlier = || before.iter().flat_map(|before| self.keys(before));
        let what = if earlier().any(|key| key == worker) {
            format!("{worker} had a key that it had before")
        } else if let Some((key, state)) = self.in_the_way_of(earlier()) {
            format!("{worker} had key {key}, which {}", state.text())
        } else {
            let mut keys = iter::once(worker).chain(earlier());
            let later =
                keys.find_map(|key| self.successor_in_the_way(key, |other| other == worker));
            let Some((key, state)) = later else {
                return Ok(());
            };
            format!("{worker} goes on as {key}, which {}", state.text())
        };
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
        before: key_before,
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
        before: key_before
            .clone()
            .or_else(|| before.and_then(|member| member.before.clone())),
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
