//! Seats: a worker's place in a group of workers that train one unit together.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::RunId;
use crate::id::IdError;

/// Most seats of one group.
pub const SEATS_MAX: u32 = 64;

/// The name of a group: formed as the name of a run is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(RunId);

/// A seat's place in its group, from 0. Rank 0 speaks for the group.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Rank(pub u32);

/// One seat of one group. A value of this type has a rank below the number of seats.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Seat {
    group: GroupId,
    rank: Rank,
    of: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    group: GroupId,
    rank: Rank,
    of: u32,
}

/// The reason why three values are no seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeatError {
    /// A group of none, or of more than there can be.
    #[error("a group of {0} seats, expected 1 to {SEATS_MAX}")]
    Size(u32),
    /// The rank is none of the group's.
    #[error("rank {rank} in a group of {of}, whose ranks begin at 0")]
    Rank {
        /// The rank.
        rank: u32,
        /// The number of seats.
        of: u32,
    },
}

impl Seat {
    /// A seat.
    ///
    /// # Errors
    /// The group has no seats or too many, or no such rank.
    pub fn new(group: GroupId, rank: Rank, of: u32) -> Result<Self, SeatError> {
        if of == 0 || of > SEATS_MAX {
            return Err(SeatError::Size(of));
        }
        if rank.0 >= of {
            return Err(SeatError::Rank { rank: rank.0, of });
        }
        Ok(Self { group, rank, of })
    }

    /// Its group.
    pub const fn group(&self) -> &GroupId {
        &self.group
    }

    /// Its place in the group.
    pub const fn rank(&self) -> Rank {
        self.rank
    }

    /// The number of seats in the group, its world size.
    pub const fn of(&self) -> u32 {
        self.of
    }
}

/// The chunks of the whole run's layout that are a seat's: even, in the order of the ranks, and cut
/// between chunks. The slices of all ranks cover every chunk once. In a group with more seats than
/// there are chunks some slices are empty.
pub fn slice(seat: &Seat, chunks: usize) -> Range<usize> {
    let at = |rank: u32| {
        let place = chunks as u128 * u128::from(rank) / u128::from(seat.of);
        usize::try_from(place).expect("no rank is above the number of seats")
    };
    at(seat.rank.0)..at(seat.rank.0 + 1)
}

impl TryFrom<Written> for Seat {
    type Error = SeatError;

    fn try_from(written: Written) -> Result<Self, SeatError> {
        Self::new(written.group, written.rank, written.of)
    }
}

impl From<Seat> for Written {
    fn from(seat: Seat) -> Self {
        let Seat { group, rank, of } = seat;
        Self { group, rank, of }
    }
}

impl GroupId {
    /// The text form.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for GroupId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, rank, of } = self;
        write!(f, "rank {rank} of {of} in group {group}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> GroupId {
        "left".parse().expect("a name")
    }

    #[test]
    fn fg_03_a_seat_is_one_of_its_groups_seats() {
        let seat = Seat::new(group(), Rank(1), 2).expect("the second of two");
        assert_eq!(seat.to_string(), "rank 1 of 2 in group left");
        assert!(Seat::new(group(), Rank(SEATS_MAX - 1), SEATS_MAX).is_ok());
        let refused = |rank, of| Seat::new(group(), Rank(rank), of).expect_err("no seat");
        assert_eq!(refused(2, 2), SeatError::Rank { rank: 2, of: 2 });
        assert_eq!(refused(0, 0), SeatError::Size(0));
        assert_eq!(refused(0, SEATS_MAX + 1), SeatError::Size(SEATS_MAX + 1));
    }

    #[test]
    fn fg_03_the_slices_of_a_group_cover_the_layout_once_and_are_even() {
        for of in 1..=SEATS_MAX {
            for chunks in (0..200).chain([usize::MAX]) {
                let seats = (0..of).map(|rank| Seat::new(group(), Rank(rank), of));
                let slices: Vec<Range<usize>> = seats
                    .map(|seat| slice(&seat.expect("a seat"), chunks))
                    .collect();
                assert_eq!(slices.first().map(|slice| slice.start), Some(0));
                assert_eq!(slices.last().map(|slice| slice.end), Some(chunks));
                assert!(slices.windows(2).all(|pair| pair[0].end == pair[1].start));
                let sizes = || slices.iter().map(ExactSizeIterator::len);
                let (least, most) = (sizes().min(), sizes().max());
                let (least, most) = (least.expect("a slice"), most.expect("a slice"));
                assert!(most - least <= 1, "{chunks} over {of}");
            }
        }
    }

    #[test]
    fn what_is_read_is_checked_as_well() {
        let read = |text: &str| serde_json::from_str::<Seat>(text);
        let written = r#"{"group":"left","rank":1,"of":2}"#;
        let seat = read(written).expect("a seat");
        assert_eq!(serde_json::to_string(&seat).expect("names"), written);
        for wrong in [
            r#"{"group":"left","rank":2,"of":2}"#,
            r#"{"group":"Left","rank":1,"of":2}"#,
            r#"{"group":"left","rank":1,"of":2,"more":1}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
