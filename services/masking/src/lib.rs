//! Secure aggregation: masks that cancel in the sum of a round's contributions.
//!
//! The protocol is that of Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving
//! Machine Learning" (CCS 2017), on the coordinator's bus. The workers of a round are its *cohort*.
//! Each announces keys that it drew for this cohort alone and signed with its audit key ([`Keys`]),
//! shares its secrets with the others so that a threshold of them can restore them
//! ([`Part::share`]), and adds masks to its contribution, which is in fixed point by then
//! ([`Masks`]): one mask of its own, and one for each pair of workers, which one of the two adds
//! and the other subtracts. The sum over all has only the own masks left. When the round is sealed,
//! the workers reveal shares ([`Part::reveal`]): of the own mask's seed for each contribution that
//! counts, and of the masking key for each worker that is gone, whose pair masks did not cancel.
//! With a threshold of shares the coordinator restores those secrets ([`Cohort::recover`]) and
//! takes the rest of the masks from the sum ([`unmask`]). The crate is pure: randomness comes from
//! outside.
//!
//! # The promise
//!
//! A reader of all objects, all messages and the ledger learns the sum of the contributions that
//! count, and of no contribution more than the sum says, as long as
//!
//! * at least two workers whose contributions count are honest, and
//! * fewer than `2 t - n` workers work together with a coordinator that lies about who is gone, or
//!   fewer than `t` with one that does not, for a threshold `t` of `n` workers. An honest worker
//!   reveals one set of shares for a cohort and never a second, so a coordinator that wants both
//!   secrets of a worker needs two sets of `t` shares; and
//! * the audit keys of the cohort are those of its workers. The coordinator names them, so one that
//!   invents workers sees through the masks of a real one. It cannot invent a cohort for one worker
//!   alone without leaving its signature: a contribution names its cohort, and each worker has the
//!   coordinator's word that the ledger has it.
//!
//! A worker can spoil a sum with a contribution of any words, since nobody can look at it: what no
//! honest contributions can sum to is refused, and anything else is merged. Workers that reveal
//! false shares can keep a round from its sum, since what does not fit the commitments is refused:
//! two of them are left out where as many more than the threshold reveal.
//!
//! # Numbers
//!
//! A value is a whole multiple of a power of two, as a word of 32 bits modulo `2^32`
//! ([`FixedPoint`]). The power is the largest at which the sum of honest
//! contributions over all units cannot wrap. All
//! arithmetic after that is exact, so the order of the sum does not matter, and everybody who has
//! the objects and the ledger recomputes the same bits.

mod cohort;
mod fixed;
mod keys;
mod mask;
mod shamir;

pub use cohort::{Cohort, CohortError, Disclosures, Part, statement};
pub use fixed::{FixedPoint, RangeError};
pub use keys::{Entropy, Keys, are_sound};
pub use mask::{Masks, UnmaskError, unmask};

/// Bytes of one masked value.
pub const WORD_BYTES: usize = 4;
