//! Quantities as types, so that a round cannot be passed as a step. All are whole numbers, and the
//! type's name is the unit.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number itself.
            pub const fn get(self) -> $inner {
                self.0
            }

            /// The next value; saturates at the type's largest.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }

        impl Sub for $name {
            type Output = Self;
            /// Saturates at zero.
            fn sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }
    };
}

quantity!(
    /// Tokens of text.
    Tokens(u64)
);
quantity!(
    /// Inner optimizer steps.
    Steps(u64)
);
quantity!(
    /// Bytes.
    Bytes(u64)
);
quantity!(
    /// The version of the global weights that a round starts from; round `r` leads from snapshot
    /// `r` to snapshot `r + 1`.
    Round(u64)
);
quantity!(
    /// A part of the model that is synchronised by itself, counted from 0.
    Fragment(u32)
);
quantity!(
    /// The weight of a contribution in a mean, relative to the other contributions.
    Weight(u64)
);
quantity!(
    /// Position of a unit in its round.
    UnitIndex(u32)
);
quantity!(
    /// The number of leases that a unit has had; a holder of an older epoch is fenced off.
    Epoch(u64)
);
quantity!(
    /// Position of an event in its emitter's chain, from 0.
    ChainSequence(u64)
);
quantity!(
    /// Milliseconds since 1970-01-01T00:00:00Z.
    UnixMillis(u64)
);
quantity!(
    /// A span of time in milliseconds.
    Millis(u64)
);

impl Fragment {
    /// The first; in a run that synchronises the whole model at once, the only one.
    pub const FIRST: Self = Self(0);

    /// True for [`Fragment::FIRST`].
    pub const fn is_first(&self) -> bool {
        self.0 == 0
    }
}

impl Weight {
    /// The weight of a contribution that counts by the tokens that it was trained on.
    pub const fn of_tokens(tokens: Tokens) -> Self {
        Self(tokens.0)
    }
}

impl Millis {
    /// `seconds` as milliseconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// The same span for the standard library.
    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl UnixMillis {
    /// This instant plus a span.
    #[must_use]
    pub const fn after(self, span: Millis) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// The time from this instant to `later`; zero when `later` is not after it.
    pub const fn until(self, later: Self) -> Millis {
        Millis(later.0.saturating_sub(self.0))
    }
}

impl Bytes {
    /// `count` mebibytes.
    pub const fn mebi(count: u64) -> Self {
        Self(count << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Steps(3) - Steps(5), Steps(0));
        assert_eq!(Tokens(u64::MAX) + Tokens(1), Tokens(u64::MAX));
        assert_eq!(UnixMillis(10).until(UnixMillis(4)), Millis(0));
        assert_eq!(UnixMillis(10).after(Millis::from_secs(1)), UnixMillis(1010));
    }
}
