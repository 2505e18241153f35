//! Differential privacy of contributions: clipping, noise, and the accountant of a run's budget.
//!
//! A worker of a private run clips its contribution to the norm `C` and adds noise of deviation `z
//! C` to each parameter before anything of the contribution leaves the process ([`Noising`]). So
//! the coordinator, the store and everybody who reads the model see noised contributions only. This
//! crate is pure: the seed of the noise comes from outside.
//!
//! # The promise
//!
//! Let two data sets differ in the data of one protected part, in any way. For everything that
//! workers disclose of the run, to all who see all of it together, the probability of any outcome
//! differs between the two at most by the factor `e^ε`, up to `δ`. A protected part is either
//!
//! * everything that one worker trained on during the run, or
//! * one shard of the data set, whichever workers read it.
//!
//! A disclosure is one contribution. It depends on the published weights and on the data of its own
//! unit, and on nothing else: in a private run the moments of the inner optimizer do not outlive a
//! unit, no residual is kept, and no training loss is stated. Replacing the data of its unit moves
//! the clipped contribution by up to `2 C`. (Many papers say "noise multiplier" for the ratio of
//! noise to `C` and compare with a contribution of zeros; for the same noise their `ε` is smaller,
//! since it promises less.) So one disclosure costs `ρ = (2 C)² / (2 (z C)²) = 2 / z²` of
//! zero-concentrated privacy ([`rdp`]), and disclosures of the same part add up. A round costs the
//! larger of the most disclosures of one worker and the most disclosures of one unit
//! ([`RoundDisclosures`]): units of a round read different shards.
//!
//! Nothing is gained from a choice of workers at random: everybody can see who contributes.
//!
//! # Numbers of a computer
//!
//! Real-valued noise in floating point reveals values: some sums can be reached from one value and
//! not from another (Mironov, CCS 2012, "On significance of the least significant bits for
//! differential privacy"). So nothing here is real-valued. The clipped contribution is cut to whole
//! multiples of a grid of `z C / 2^24`, towards zero, which makes no norm larger. The noise is the
//! discrete Gaussian on the same grid, drawn without a floating-point number ([`noise`]). Canonne,
//! Kamath and Steinke (NeurIPS 2020, "The discrete Gaussian for differential privacy", theorem 14)
//! prove for it the bound that [`rdp`] counts. The sum, a whole number, becomes an `f32` and then
//! the run's codec; this reads nothing but the sum.
//!
//! What is not covered: the time that drawing takes depends on the noise, and the strength of the
//! generator (`ChaCha20`) is computational.

mod accountant;
mod clip;
mod disclosures;
pub mod noise;

pub use accountant::{DISCLOSURES_MAX, check_budget, disclosures_within, epsilon, rdp};
pub use clip::{BLOCK_ELEMENTS, Noising, NormError, SquaredNorm};
pub use disclosures::RoundDisclosures;
