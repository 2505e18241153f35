//! Groups of the run: who may sit where, when a group gets work, and its end. A group whose member
//! goes is evicted as a whole: its unit is open again under the next epoch, and its members have to
//! join again. Slices of a contribution by rank come with the schedules that train them; until then
//! rank 0 hands in the group's result.

use ledger::{Member, Run};
use schemas::event::Departure;
use schemas::{Code, Rank, Refusal, Seat, WorkerId};

use crate::input::{Peer, Recorded};
use crate::run::RunRoom;
use crate::turn::Turn;

/// Refuses a seat that is not the worker's, or that another member has. The seat comes from the
/// record of issued credentials; nothing that the worker sends names one.
///
/// The same worker under the key that it had before stands in nobody's way: it is about to leave.
pub(crate) fn check_seat(run: &Run, peer: &Peer, recorded: &Recorded) -> Result<(), Refusal> {
    let seat = recorded.seat.as_ref();
    let shown = |seat: Option<&Seat>| seat.map_or("no seat".to_owned(), ToString::to_string);
    let before = run.members.get(&peer.worker);
    if let Some(member) = before.filter(|member| member.seat.as_ref() != seat) {
        let detail = format!(
            "{} joined before with {}, and has {} now",
            peer.worker,
            shown(member.seat.as_ref()),
            shown(seat)
        );
        return Err(Refusal::new(Code::IdentityMismatch, detail));
    }
    let own = |other: &WorkerId| recorded.before.contains(other);
    match seat.and_then(|seat| Some((seat, run.in_the_way(&peer.worker, seat)?))) {
        None => Ok(()),
        Some((_, (other, _))) if own(other) => Ok(()),
        Some((seat, (other, held))) => Err(Refusal::new(
            Code::SeatTaken,
            format!("{seat}: {other} has {held}"),
        )),
    }
}

/// Says why a member gets no unit because of its group; nothing is wrong with either.
pub(crate) fn check_group(run: &Run, member: &Member) -> Result<(), Refusal> {
    let Some(seat) = &member.seat else {
        return Ok(());
    };
    let missing = run.missing_ranks(seat);
    if !missing.is_empty() {
        let ranks: Vec<String> = missing.iter().map(ToString::to_string).collect();
        let detail = format!("group {} waits for rank {}", seat.group(), ranks.join(", "));
        return Err(Refusal::new(Code::GroupWaits, detail));
    }
    match seat.rank() {
        Rank(0) => Ok(()),
        _ => Err(Refusal::new(
            Code::RankFollows,
            format!("{seat}: rank 0 takes the group's units"),
        )),
    }
}

/// The seat of a member whose group is sealed, and has others in it.
pub(crate) fn sealed_seat(run: &Run, worker: &WorkerId) -> Option<Seat> {
    let seat = run.member(worker)?.seat.as_ref()?;
    (seat.of() > 1 && run.is_group_sealed(seat)).then(|| seat.clone())
}

impl RunRoom<'_> {
    /// Ends the membership of everybody in the group of `seat`, which `lost` has left.
    pub(crate) fn evict_group(&mut self, turn: &mut Turn<'_>, seat: &Seat, lost: &WorkerId) {
        let rest: Vec<WorkerId> = self
            .run
            .seated(seat.group())
            .map(|(worker, _)| worker.clone())
            .collect();
        let detail = format!("{lost} left {seat}");
        for worker in &rest {
            self.depart_alone(turn, worker, Departure::GroupEnded, &detail);
        }
    }

    /// Evicts groups that hold a unit without being sealed: the coordinator before this one died
    /// between the end of one member and that of the others.
    pub(crate) fn evict_broken(&mut self, turn: &mut Turn<'_>) {
        let broken = |member: &&Member| {
            member.present && member.lease.is_some() && !self.run.may_lease(member)
        };
        let seats = self.run.members.values().filter(broken);
        let seats: Vec<Seat> = seats.filter_map(|member| member.seat.clone()).collect();
        for seat in seats {
            let holder = self.run.seated(seat.group()).next();
            if let Some(holder) = holder.map(|(worker, _)| worker.clone()) {
                self.evict_group(turn, &seat, &holder);
            }
        }
    }
}
