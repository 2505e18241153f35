//! Groups of workers, as the roster shows them. A worker's seat is part of its join, where the
//! coordinator wrote it from the record of issued credentials. A group is sealed while a member
//! sits in each of its seats. Only then does it get work, and rank 0 speaks for it. A worker
//! without a seat is a group of one.

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

    /// The ranks of a seat's group in which nobody sits now.
    pub fn missing_ranks(&self, seat: &Seat) -> Vec<Rank> {
        let taken = self.seated(seat.group()).map(|(_, other)| other.rank());
        let taken: BTreeSet<Rank> = taken.collect();
        let all = (0..seat.of()).map(Rank);
        all.filter(|rank| !taken.contains(rank)).collect()
    }

    /// True if a member sits in each seat of the group.
    pub fn is_sealed(&self, seat: &Seat) -> bool {
        self.missing_ranks(seat).is_empty()
    }

    /// True if the worker, which is a member, may be given units: it works alone, or speaks for a
    /// group that is sealed.
    pub fn may_lease(&self, member: &Member) -> bool {
        let seat = member.seat.as_ref();
        seat.is_none_or(|seat| seat.rank() == Rank(0) && self.is_sealed(seat))
    }

    /// The number of workers and of groups that can be given units now: a group is one, once a
    /// member sits in each of its seats.
    pub fn ready(&self) -> u32 {
        let present = self.members.values().filter(|member| member.present);
        present.filter(|member| self.may_lease(member)).count() as u32
    }

    /// Another member that stands in the way of a seat: it sits there, or counts the seats of the
    /// group otherwise.
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
