//! Rules that sort the values of each element.

use super::Scratch;
use super::linear::{narrow, read};
use crate::TILE_ELEMENTS;
use crate::mean::ContributionChunk;
use crate::vectors::{Vectors, vectorised};

/// Most values in memory at a time for one task, 1 MiB, unless there are so many contributions that
/// the smallest tile holds more.
const VALUES_MAX: usize = 256 * 1024;
/// The smallest tile: a multiple of every codec's block.
const TILE_MIN: usize = 256;
/// Most contributions that are sorted by exchanges of neighbours, which take whole rows at a time.
const EXCHANGES_MAX: usize = 32;

/// Contributions, and the values of each element that are left out at each end.
#[derive(Debug)]
pub(crate) struct Ordered<'a> {
    given: Vec<ContributionChunk<'a>>,
    each_end: usize,
}

impl<'a> Ordered<'a> {
    pub(super) fn new(given: Vec<ContributionChunk<'a>>, each_end: usize) -> Self {
        let most = (given.len() - 1) / 2;
        Self {
            given,
            each_end: each_end.min(most),
        }
    }

    /// The gradient of a tile.
    pub(super) fn gradient(
        &self,
        vectors: Vectors,
        start: usize,
        gradient: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let count = self.given.len();
        let width = match count * TILE_ELEMENTS <= VALUES_MAX {
            true => TILE_ELEMENTS,
            false => TILE_MIN,
        };
        for (part, gradient) in gradient.chunks_mut(width).enumerate() {
            let (start, width) = (start + part * width, gradient.len());
            scratch.rows.resize(count * width, 0);
            let rows = &mut scratch.rows[..count * width];
            for (given, row) in self.given.iter().zip(rows.chunks_mut(width)) {
                read(vectors, given, start, width, &mut scratch.decoded);
                keys(vectors, &scratch.decoded[..width], row);
            }
            if count <= EXCHANGES_MAX {
                exchange(vectors, rows, width);
            } else {
                sort_columns(rows, width);
            }
            let middle = &rows[self.each_end * width..(count - self.each_end) * width];
            scratch.sums.resize(TILE_ELEMENTS, 0.0);
            let sums = &mut scratch.sums[..width];
            average(vectors, middle, width, sums);
            narrow(vectors, sums, gradient);
        }
    }
}

/// A number as a whole number that sorts in the total order of IEEE 754, and back again.
#[inline(always)]
fn key(bits: i32) -> i32 {
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

vectorised!(fn keys(values: &[f32], row: &mut [i32]) = keys_body);
vectorised!(fn exchange(rows: &mut [i32], width: usize) = exchange_body);
vectorised!(fn average(rows: &[i32], width: usize, sums: &mut [f64]) = average_body);

#[inline(always)]
fn keys_body(values: &[f32], row: &mut [i32]) {
    for (row, value) in row.iter_mut().zip(values) {
        *row = key(value.to_bits() as i32);
    }
}

/// Sorts each column: rows exchange with their neighbours, those that begin at an even place and
/// those at an odd place in turn, as often as there are rows.
#[inline(always)]
fn exchange_body(rows: &mut [i32], width: usize) {
    let count = rows.len() / width;
    for turn in 0..count {
        for pair in rows[turn % 2 * width..].chunks_exact_mut(2 * width) {
            let (low, high) = pair.split_at_mut(width);
            for (low, high) in low.iter_mut().zip(high) {
                (*low, *high) = ((*low).min(*high), (*low).max(*high));
            }
        }
    }
}

fn sort_columns(rows: &mut [i32], width: usize) {
    let mut column = Vec::with_capacity(rows.len() / width);
    for place in 0..width {
        column.clear();
        column.extend(rows.iter().skip(place).step_by(width));
        column.sort_unstable();
        for (row, value) in rows.iter_mut().skip(place).step_by(width).zip(&column) {
            *row = *value;
        }
    }
}

#[inline(always)]
fn average_body(rows: &[i32], width: usize, sums: &mut [f64]) {
    let value = |row: &i32| f64::from(f32::from_bits(key(*row) as u32));
    let count = (rows.len() / width) as f64;
    for (place, row) in rows.chunks_exact(width).enumerate() {
        for (sum, row) in sums.iter_mut().zip(row) {
            *sum = if place == 0 {
                value(row)
            } else {
                *sum + value(row)
            };
        }
    }
    for sum in sums {
        *sum /= count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_numbers_do_and_lead_back() {
        let values = [
            f32::MIN,
            -1e29,
            -1.0,
            -1e-45,
            -0.0,
            0.0,
            1e-45,
            1.0,
            1e29,
            f32::MAX,
        ];
        let keys = values.map(|value: f32| key(value.to_bits() as i32));
        assert!(keys.is_sorted_by(|a, b| a < b));
        let back = keys.map(|found| key(found) as u32);
        assert_eq!(back, values.map(f32::to_bits));
    }

    #[test]
    fn both_ways_to_sort_agree_for_every_vector_width() {
        for count in 1..12 {
            let width = 37;
            let rows: Vec<i32> = (0..count * width)
                .map(|index| (index as i32).wrapping_mul(-1_640_531_527) >> 3)
                .collect();
            let mut expected = rows.clone();
            sort_columns(&mut expected, width);
            assert!((1..count).all(|row| expected[row * width] >= expected[(row - 1) * width]));
            for vectors in Vectors::available() {
                let mut found = rows.clone();
                exchange(vectors, &mut found, width);
                assert_eq!(found, expected, "{count} {vectors:?}");
            }
        }
    }
}
