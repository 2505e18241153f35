//! Rules whose gradient is a sum of the contributions, each times a factor.

use std::ops::Range;

use rayon::prelude::*;

use super::{DIRECTION_MIN, Scratch, TensorPiece};
use crate::codec::{self, encoded_bytes};
use crate::mean::ContributionChunk;
use crate::vectors::{Vectors, vectorised};
use crate::{BLOCK_ELEMENTS, TILE_ELEMENTS};

/// Running sums of squares.
const LANES: usize = 16;

/// Contributions, and the factor of each, which may differ between the pieces of the chunk.
#[derive(Debug)]
pub(crate) struct Linear<'a> {
    given: Vec<ContributionChunk<'a>>,
    /// The pieces in order, which cover the chunk without gaps.
    pieces: Vec<Piece>,
}

#[derive(Debug)]
struct Piece {
    range: Range<usize>,
    /// One for each contribution.
    factors: Vec<f64>,
}

/// The parts of a tile that lie in different pieces: place of the piece, and range in the tile.
type Parts = Vec<(usize, Range<usize>)>;

impl<'a> Linear<'a> {
    pub(super) fn clipped(
        given: Vec<ContributionChunk<'a>>,
        elements: usize,
        norms: &[f64],
        norm_ratio: f32,
    ) -> Self {
        let mut sorted: Vec<f64> = norms.iter().copied().filter(|norm| *norm > 0.0).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let median = sorted.get(sorted.len().saturating_sub(1) / 2);
        let limit = f64::from(norm_ratio) * median.copied().unwrap_or_default();
        let scales = norms.iter().map(|norm| match *norm > 0.0 {
            true => (limit / norm).min(1.0),
            false => 1.0,
        });
        let shares = shares(&given);
        let factors = shares
            .iter()
            .zip(scales)
            .map(|(share, scale)| share * scale);
        let whole = Piece {
            range: 0..elements,
            factors: factors.collect(),
        };
        Self {
            given,
            pieces: vec![whole],
        }
    }

    pub(super) fn radial(given: Vec<ContributionChunk<'a>>, tensors: &[TensorPiece]) -> Self {
        let shares = shares(&given);
        let piece = |tensor: &TensorPiece| Piece {
            range: tensor.range.clone(),
            factors: shares.clone(),
        };
        let mut linear = Self {
            given,
            pieces: tensors.iter().map(piece).collect(),
        };
        let squares = linear.each_block(|linear, block, scratch| linear.norms(block, scratch));
        let norms: Vec<f64> = squares.iter().map(|sum| sum.sqrt()).collect();
        let count = linear.given.len();
        for (piece, norms) in linear.pieces.iter_mut().zip(norms.chunks(count)) {
            for (factor, norm) in piece.factors.iter_mut().zip(norms) {
                *factor = if *norm > 0.0 { *factor / norm } else { 0.0 };
            }
        }
        let squares = linear.each_block(|linear, block, scratch| linear.directions(block, scratch));
        let of_pieces = linear.pieces.iter_mut().zip(tensors);
        for ((piece, tensor), (norms, square)) in
            of_pieces.zip(norms.chunks(count).zip(squares.iter()))
        {
            let direction = square.sqrt();
            if tensor.embedding || direction < DIRECTION_MIN {
                piece.factors.clone_from(&shares);
                continue;
            }
            let mean = shares.iter().zip(norms).map(|(share, norm)| share * norm);
            let length = mean.sum::<f64>() / direction;
            for factor in &mut piece.factors {
                *factor *= length;
            }
        }
        linear
    }

    /// The gradient of a tile.
    pub(super) fn gradient(
        &self,
        vectors: Vectors,
        start: usize,
        gradient: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let parts = self.parts(start, gradient.len());
        self.sum(vectors, start, gradient.len(), &parts, scratch);
        narrow(vectors, &scratch.sums[..gradient.len()], gradient);
    }

    /// Leaves the sums of the `count` elements from `start` on in `scratch`.
    fn sum(
        &self,
        vectors: Vectors,
        start: usize,
        count: usize,
        parts: &Parts,
        scratch: &mut Scratch,
    ) {
        scratch.sums.resize(TILE_ELEMENTS, 0.0);
        for (index, given) in self.given.iter().enumerate() {
            read(vectors, given, start, count, &mut scratch.decoded);
            for (piece, range) in parts {
                let factor = self.pieces[*piece].factors[index];
                let values = &scratch.decoded[range.clone()];
                let sums = &mut scratch.sums[range.clone()];
                match index {
                    0 => begin(vectors, values, factor, sums),
                    _ => add(vectors, values, factor, sums),
                }
            }
        }
    }

    /// The pieces that `count` elements from `start` on lie in.
    fn parts(&self, start: usize, count: usize) -> Parts {
        let end = start + count;
        let first = self
            .pieces
            .partition_point(|piece| piece.range.end <= start);
        let pieces = self.pieces.iter().enumerate().skip(first);
        pieces
            .take_while(|(_, piece)| piece.range.start < end)
            .map(|(index, piece)| {
                let (from, to) = (piece.range.start.max(start), piece.range.end.min(end));
                (index, from - start..to - start)
            })
            .collect()
    }

    /// Adds up what `work` finds in each block, one block after another. `work` returns the place
    /// of its first number in the result, and numbers for that place and those after it.
    fn each_block<W>(&self, work: W) -> Vec<f64>
    where
        W: Fn(&Self, Range<usize>, &mut Scratch) -> (usize, Vec<f64>) + Sync,
    {
        let elements = self.pieces.last().map_or(0, |piece| piece.range.end);
        let blocks: Vec<(usize, Vec<f64>)> = (0..elements.div_ceil(BLOCK_ELEMENTS))
            .into_par_iter()
            .map_init(Scratch::default, |scratch, block| {
                let start = block * BLOCK_ELEMENTS;
                work(self, start..elements.min(start + BLOCK_ELEMENTS), scratch)
            })
            .collect();
        let mut sums = Vec::new();
        for (first, found) in blocks {
            sums.resize(sums.len().max(first + found.len()), 0.0);
            for (sum, found) in sums[first..].iter_mut().zip(found) {
                *sum += found;
            }
        }
        sums
    }

    /// The squares of each contribution in each piece of a block.
    fn norms(&self, block: Range<usize>, scratch: &mut Scratch) -> (usize, Vec<f64>) {
        let (vectors, count) = (Vectors::widest(), self.given.len());
        let pieces = self.parts(block.start, block.len());
        let first = pieces.first().map_or(0, |(piece, _)| *piece);
        let mut sums = vec![0.0; pieces.len() * count];
        for start in block.clone().step_by(TILE_ELEMENTS) {
            let tile = TILE_ELEMENTS.min(block.end - start);
            let parts = self.parts(start, tile);
            for (index, given) in self.given.iter().enumerate() {
                read(vectors, given, start, tile, &mut scratch.decoded);
                for (piece, range) in &parts {
                    let square = squares(vectors, &scratch.decoded[range.clone()]);
                    sums[(piece - first) * count + index] += square;
                }
            }
        }
        (first * count, sums)
    }

    /// The squares of the sum in each piece of a block.
    fn directions(&self, block: Range<usize>, scratch: &mut Scratch) -> (usize, Vec<f64>) {
        let vectors = Vectors::widest();
        let pieces = self.parts(block.start, block.len());
        let first = pieces.first().map_or(0, |(piece, _)| *piece);
        let mut sums = vec![0.0; pieces.len()];
        for start in block.clone().step_by(TILE_ELEMENTS) {
            let tile = TILE_ELEMENTS.min(block.end - start);
            let parts = self.parts(start, tile);
            self.sum(vectors, start, tile, &parts, scratch);
            for (piece, range) in &parts {
                sums[piece - first] += squares_of_sums(vectors, &scratch.sums[range.clone()]);
            }
        }
        (first, sums)
    }
}

/// The share of each contribution in the whole weight.
fn shares(given: &[ContributionChunk<'_>]) -> Vec<f64> {
    let total: u128 = given.iter().map(|given| u128::from(given.weight)).sum();
    let share = |given: &ContributionChunk<'_>| given.weight as f64 / total as f64;
    given.iter().map(share).collect()
}

/// Decodes `count` elements from `start` on to the beginning of `decoded`.
pub(super) fn read(
    vectors: Vectors,
    given: &ContributionChunk<'_>,
    start: usize,
    count: usize,
    decoded: &mut Vec<f32>,
) {
    decoded.resize(TILE_ELEMENTS, 0.0);
    let ContributionChunk { codec, bytes, .. } = *given;
    let bytes = &bytes[encoded_bytes(codec, start)..encoded_bytes(codec, start + count)];
    codec::of(codec).decode(vectors, bytes, &mut decoded[..count]);
}

vectorised!(fn begin(values: &[f32], factor: f64, sums: &mut [f64]) = begin_body);
vectorised!(fn add(values: &[f32], factor: f64, sums: &mut [f64]) = add_body);
vectorised!(fn squares(values: &[f32]) -> f64 = squares_body);
vectorised!(fn squares_of_sums(values: &[f64]) -> f64 = squares_of_sums_body);
vectorised!(fn narrow_to(sums: &[f64], out: &mut [f32]) = narrow_body);

/// Rounds sums to `f32`, limited to its range.
pub(super) fn narrow(vectors: Vectors, sums: &[f64], out: &mut [f32]) {
    narrow_to(vectors, sums, out);
}

#[inline(always)]
fn begin_body(values: &[f32], factor: f64, sums: &mut [f64]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum = factor * f64::from(*value);
    }
}

#[inline(always)]
fn add_body(values: &[f32], factor: f64, sums: &mut [f64]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += factor * f64::from(*value);
    }
}

#[inline(always)]
fn narrow_body(sums: &[f64], out: &mut [f32]) {
    const MAX: f64 = f32::MAX as f64;
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = sum.clamp(-MAX, MAX) as f32;
    }
}

#[inline(always)]
fn squares_body(values: &[f32]) -> f64 {
    lanes(values, |value| f64::from(value) * f64::from(value))
}

#[inline(always)]
fn squares_of_sums_body(values: &[f64]) -> f64 {
    lanes(values, |value| value * value)
}

#[inline(always)]
fn lanes<T: Copy>(values: &[T], square: impl Fn(T) -> f64) -> f64 {
    let mut sums = [0.0; LANES];
    let (groups, tail) = values.as_chunks::<LANES>();
    for group in groups {
        for (sum, value) in sums.iter_mut().zip(group) {
            *sum += square(*value);
        }
    }
    for (sum, value) in sums.iter_mut().zip(tail) {
        *sum += square(*value);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}
