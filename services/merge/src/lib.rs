//! The arithmetic between a worker's numbers and the next snapshot: codecs for the wire, the screen
//! that a contribution must pass, the weighted mean and the outer step.
//!
//! The parameters of a run are one flat vector of `f32`, cut into chunks; every function here works
//! on one chunk as a slice. There is no I/O, no clock and no randomness: the same input gives the
//! same bits on every machine, with every thread count and with every width of vector instructions.
//! Large slices are worked on in parallel by the rayon pool of the caller, so call from a blocking
//! thread, never from an async task.
//!
//! | to | use |
//! | --- | --- |
//! | make a contribution: base minus local, rounded | [`codec::encode_difference`] |
//! | the same, and keep what the codec took | [`encode_with_feedback`] |
//! | check one before it counts | [`screen()`] |
//! | compare the directions of a round's contributions | [`directions()`] |
//! | merge a chunk by the mean and take the outer step | [`merge_chunk`], [`merge_chunk_and_encode`] |
//! | the same by any rule of combination | [`merge_chunk_by`] |
//! | read the broadcast weights | [`codec::decode`] |
//! | mix a fragment's local and global weights | [`blend()`] |
//!
//! Sign and order conventions are fixed in [`step`] (what is computed), [`mean`] (weights),
//! [`combine`] (the other rules of combination) and [`outer`] (the optimizers), each as a rule that
//! can be followed by hand; `tests/merge` follows them with scalar loops and expects equal bits.
//!
//! ```
//! use merge::{Broadcast, ContributionChunk, Momentum, SeededRounding, codec, merge_chunk_and_encode, screen};
//! use schemas::run::{CodecKind, OuterOptimizer};
//!
//! // A worker: what its inner steps did to two parameters.
//! let (base, local) = ([1.0, 2.0], [0.5, 2.25]);
//! let mut bytes = vec![0; codec::encoded_bytes(CodecKind::Bf16, 2)];
//! codec::encode_difference(CodecKind::Bf16, &base, &local, SeededRounding::NEAREST, &mut bytes)?;
//!
//! // The coordinator: is it well formed, and what is the next snapshot?
//! assert_eq!(screen(CodecKind::Bf16, &bytes, 2)?.sum_of_squares, 0.3125);
//! let contributions = [ContributionChunk { weight: 4096, codec: CodecKind::Bf16, bytes: &bytes }];
//! let (mut params, mut next) = (base, vec![0; 4]);
//! let broadcast = Broadcast { codec: CodecKind::Bf16, rounding: SeededRounding::NEAREST, out: &mut next };
//! let average = OuterOptimizer::Average;
//! let merged = merge_chunk_and_encode(&contributions, average, &mut params, Momentum::Absent, broadcast)?;
//! assert!(merged.is_finite());
//! assert_eq!(params, local);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod blend;
pub mod codec;
pub mod combine;
pub mod directions;
pub mod feedback;
pub mod mean;
pub mod outer;
pub mod rounding;
pub mod screen;
pub mod step;
mod vectors;

pub use blend::blend;
pub use codec::CodecError;
pub use combine::{Rule, RuleError, TensorPiece, tensor_pieces};
pub use directions::{Directions, Voice, directions};
pub use feedback::{FeedbackChunk, encode_with_feedback};
pub use mean::{ContributionChunk, MeanError};
pub use outer::{Momentum, OuterError};
pub use rounding::{SeededRounding, broadcast_seed, contribution_seed};
pub use screen::{ChunkStatistics, ScreenError, screen};
pub use step::{
    Broadcast, MergeError, Merged, merge_chunk, merge_chunk_and_encode, merge_chunk_by,
};

/// Elements that one task works on: the unit of parallelism, 256 KiB of `f32`. Results do not
/// depend on it, except that the sum of squares of [`screen()`] is taken block by block.
pub const BLOCK_ELEMENTS: usize = 64 * 1024;

/// Elements that pass through the first-level cache together; divides [`BLOCK_ELEMENTS`].
const TILE_ELEMENTS: usize = 2048;
