//! The rules by which contributions of a chunk become one gradient ([`Combination`]).
//!
//! Contributions of weight 0 do not take part in any of them. `n` are left, in the order given,
//! with the values `x[i]` of an element and the shares `w[i]` = `k[i] / (k[0] + … + k[n-1])`, the
//! sum exact, both sides converted to `f64`, divided in `f64`.
//!
//! | rule | gradient of an element |
//! | --- | --- |
//! | mean | [`crate::mean`], in `f32` |
//! | clipped | the sum of `(w[i] * s[i]) * x[i]` |
//! | radial | the sum of `r[i] * x[i]` |
//! | trimmed | the mean of the sorted values without `m` at each end |
//! | median | the same with `m = (n - 1) / 2` (whole number): one value, or two |
//!
//! The sums are in `f64`, from the first product on, in the order given; the result is limited to
//! the range of `f32` and rounded once. So values of any finite size give a number.
//!
//! Clipped: `s[i]` = `min(1, (c * median) / norm[i])` in `f64`, 1 for a norm of 0. The median is
//! the lower one of the norms above 0: element `(k - 1) / 2` (whole number) of the `k` sorted ones.
//! Half of them cannot raise it, and contributions of zeros cannot lower it to nothing.
//!
//! Trimmed: `m` is the setting, at most `(n - 1) / 2`. Values are sorted by their bits in the total
//! order of IEEE 754, so that -0 comes before 0, and added from the lowest on. The order of the
//! contributions does not matter.
//!
//! Radial: for each tensor in the chunk ([`TensorPiece`]; a tensor in two chunks is two) `l[i]` is
//! the norm of contribution `i` there, `d` the sum of `(w[i] / l[i]) * x[i]` (0 where `l[i]` is 0),
//! and `r[i]` = `(w[i] / l[i]) * (sum of w[i] * l[i] / norm of d)`. Where the norm of `d` is below
//! [`DIRECTION_MIN`], and in embeddings, `r[i]` = `w[i]`. Squares are added in `f64` tile by tile
//! of 2048 elements of the chunk: of the part of the tensor in a tile, value `j` goes to the sum
//! `j % 16`, and the sums are added by halves. The tiles of each
//! [`BLOCK_ELEMENTS`](crate::BLOCK_ELEMENTS) are added to 0 in order, and so are those sums.

mod linear;
mod ordered;

use std::ops::Range;

use schemas::layout::Layout;
use schemas::run::Combination;

use self::linear::Linear;
use self::ordered::Ordered;
use crate::mean::{ContributionChunk, Mean};
use crate::vectors::Vectors;
use crate::{MergeError, TILE_ELEMENTS};

/// Length of the mean of unit vectors below which it is no direction: that of a million vectors
/// without anything in common is as long.
pub const DIRECTION_MIN: f64 = 1e-3;

/// The rule for one chunk, with the facts that it needs beside the contributions.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    /// The rule of the run.
    pub combination: Combination,
    /// The norms of the whole contributions, one for each; only [`Combination::Clipped`] reads
    /// them.
    pub norms: &'a [f32],
    /// The tensors of the chunk, in order and without gaps; only [`Combination::Radial`] reads
    /// them.
    pub tensors: &'a [TensorPiece],
}

impl Rule<'_> {
    /// The weighted mean.
    pub const MEAN: Self = Rule {
        combination: Combination::Mean,
        norms: &[],
        tensors: &[],
    };
}

/// The part of a tensor that lies in a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPiece {
    /// Its elements, counted from the start of the chunk.
    pub range: Range<usize>,
    /// True for an embedding: a step changes a few of its rows, which have directions of their own.
    pub embedding: bool,
}

/// The facts that a rule lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A rule that clips has not one norm for each contribution.
    #[error("the rule needs the norms of {contributions} contributions, got {norms}")]
    Norms {
        /// Contributions given.
        contributions: usize,
        /// Norms given.
        norms: usize,
    },
    /// The tensors are not the chunk.
    #[error("the tensors do not cover the {elements} elements of the chunk one after another")]
    Tensors {
        /// Elements of the chunk.
        elements: usize,
    },
}

/// The tensors of a layout that lie in `chunk`, a range of the flat vector.
pub fn tensor_pieces(layout: &Layout, chunk: Range<u64>) -> Vec<TensorPiece> {
    let pieces = layout.spans().filter_map(|(tensor, span)| {
        let (start, end) = (span.start.max(chunk.start), span.end.min(chunk.end));
        (start < end).then(|| TensorPiece {
            range: (start - chunk.start) as usize..(end - chunk.start) as usize,
            embedding: is_embedding(&tensor.name),
        })
    });
    pieces.collect()
}

/// True for a tensor with a row for each token, by its name in the Hugging Face convention.
fn is_embedding(name: &str) -> bool {
    name.contains("embed") || name.starts_with("lm_head")
}

/// Buffers of one task, which it uses again for each tile.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    decoded: Vec<f32>,
    sums: Vec<f64>,
    rows: Vec<i32>,
}

/// Contributions of one chunk under a rule, checked.
#[derive(Debug)]
pub(crate) enum Combined<'a> {
    Mean(Mean<'a>),
    Linear(Linear<'a>),
    Ordered(Ordered<'a>),
}

impl<'a> Combined<'a> {
    pub(crate) fn new(
        rule: &Rule<'_>,
        contributions: &'a [ContributionChunk<'a>],
        elements: usize,
    ) -> Result<Self, MergeError> {
        let mean = Mean::new(contributions, elements)?;
        let taking_part = || {
            contributions
                .iter()
                .filter(|given| given.weight > 0)
                .copied()
        };
        Ok(match rule.combination {
            Combination::Mean => Self::Mean(mean),
            Combination::Clipped { norm_ratio } => {
                let norms = norms(rule.norms, contributions)?;
                let given = taking_part().collect();
                Self::Linear(Linear::clipped(given, elements, &norms, norm_ratio))
            }
            Combination::Radial => {
                check_tensors(rule.tensors, elements)?;
                Self::Linear(Linear::radial(taking_part().collect(), rule.tensors))
            }
            Combination::Trimmed { each_end } => {
                Self::Ordered(Ordered::new(taking_part().collect(), each_end as usize))
            }
            Combination::Median => Self::Ordered(Ordered::new(taking_part().collect(), usize::MAX)),
        })
    }

    /// The gradient of the elements from `start` on, as many as `gradient` holds, at most a tile.
    /// `start` is a multiple of every codec's block.
    pub(crate) fn gradient(
        &self,
        vectors: Vectors,
        start: usize,
        gradient: &mut [f32],
        scratch: &mut Scratch,
    ) {
        debug_assert!(gradient.len() <= TILE_ELEMENTS);
        match self {
            Self::Mean(mean) => mean.gradient(vectors, start, gradient),
            Self::Linear(linear) => linear.gradient(vectors, start, gradient, scratch),
            Self::Ordered(ordered) => ordered.gradient(vectors, start, gradient, scratch),
        }
    }
}

/// The norms of the contributions that take part.
fn norms(norms: &[f32], contributions: &[ContributionChunk<'_>]) -> Result<Vec<f64>, RuleError> {
    if norms.len() != contributions.len() {
        return Err(RuleError::Norms {
            contributions: contributions.len(),
            norms: norms.len(),
        });
    }
    let with_norms = contributions.iter().zip(norms);
    let taking_part = with_norms.filter(|(given, _)| given.weight > 0);
    Ok(taking_part.map(|(_, norm)| f64::from(*norm)).collect())
}

fn check_tensors(tensors: &[TensorPiece], elements: usize) -> Result<(), RuleError> {
    let mut end = 0;
    let in_order = tensors.iter().all(|tensor| {
        let follows = tensor.range.start == end && tensor.range.end > end;
        end = tensor.range.end;
        follows
    });
    if in_order && end == elements {
        return Ok(());
    }
    Err(RuleError::Tensors { elements })
}

#[cfg(test)]
mod tests {
    use schemas::V;
    use schemas::layout::TensorSpec;

    use super::*;

    #[test]
    fn a_chunk_has_the_parts_of_its_tensors() {
        let tensor = |name: &str, elements| TensorSpec {
            name: name.to_owned(),
            shape: vec![elements],
            fragment: 0,
        };
        let layout = Layout {
            v: V,
            tensors: vec![
                tensor("model.embed_tokens.weight", 10),
                tensor("model.layers.0.mlp.up_proj.weight", 7),
                tensor("lm_head.weight", 3),
            ],
        };
        let piece = |range, embedding| TensorPiece { range, embedding };
        assert_eq!(tensor_pieces(&layout, 0..8), [piece(0..8, true)]);
        assert_eq!(
            tensor_pieces(&layout, 8..20),
            [piece(0..2, true), piece(2..9, false), piece(9..12, true)]
        );
        for (range, elements) in [(0..8, 8), (8..20, 12)] {
            let pieces = tensor_pieces(&layout, range);
            assert_eq!(check_tensors(&pieces, elements), Ok(()));
            let wrong = Err(RuleError::Tensors { elements: 9 });
            assert_eq!(check_tensors(&pieces, 9), wrong);
        }
        let gap = [piece(0..2, false), piece(3..4, false)];
        assert!(check_tensors(&gap, 4).is_err());
        // A tensor that only touches the chunk has no part in it, and a part is never empty.
        assert_eq!(tensor_pieces(&layout, 10..17), [piece(0..7, false)]);
        let empty = [piece(0..2, false), piece(2..2, false)];
        assert!(check_tensors(&empty, 2).is_err());
    }
}
