//! Groups of workers, from the members of a run. The coordinator takes a worker's seat from the
//! record of issued credentials and writes it into the event `worker-joined`. A group is sealed
//! while each of its seats has a member. Only a sealed group is given units: rank 0 claims them and
//! hands in the results. A worker without a seat is a group of one.

use std::collections::BTreeSet;

use schemas::{GroupId, Rank, Seat, WorkerId};

use crate::state::{Member, Run};

impl Run {
    /// The members that sit in a group now.
    pub fn seated<'a>(
        &'a self,
        group: &'a GroupId,
    ) -> impl Iterator<Item = (&'a WorkerId, &'a Seat)> {
        let present = self.members.iter().filter(|(_, member)| member.present);
        let seated = present.filter_map(|(worker, member)| Some((worker, member.seat.as_ref()?)));
        seated.filter(move |(_, seat)| seat.group() == group)
    }

    /// The ranks of this seat's group that no member has now.
    pub fn missing_ranks(&self, seat: &Seat) -> Vec<Rank> {
        let taken = self.seated(seat.group()).map(|(_, other)| other.rank());
        let taken: BTreeSet<Rank> = taken.collect();
        let all = (0..seat.of()).map(Rank);
        all.filter(|rank| !taken.contains(rank)).collect()
    }

    /// True if each seat of this seat's group has a member.
    pub fn is_group_sealed(&self, seat: &Seat) -> bool {
        self.missing_ranks(seat).is_empty()
    }

    /// True if this member may be given units: it has no seat, or has rank 0 of a sealed group. The
    /// caller checks that the member is present.
    pub fn may_lease(&self, member: &Member) -> bool {
        let seat = member.seat.as_ref();
        seat.is_none_or(|seat| seat.rank() == Rank(0) && self.is_group_sealed(seat))
    }

    /// The number of present members that may be given units. A sealed group counts as one, by its
    /// rank 0.
    pub fn ready(&self) -> u32 {
        let present = self.members.values().filter(|member| member.present);
        present.filter(|member| self.may_lease(member)).count() as u32
    }

    /// A member that keeps `worker` from this seat: another worker that has the same rank of the
    /// group, or whose seat says another number of seats.
    pub fn in_the_way<'a>(
        &'a self,
        worker: &WorkerId,
        seat: &'a Seat,
    ) -> Option<(&'a WorkerId, &'a Seat)> {
        let mut others = self
            .seated(seat.group())
            .filter(|(other, _)| *other != worker);
        others.find(|(_, held)| held.rank() == seat.rank() || held.of() != seat.of())
    }
}
