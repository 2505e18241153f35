//! The comparison of directions: for each contribution of a round, the cosine of its angle to the
//! mean direction of the others. One that pulls the other way has the usual length, and is seen
//! only here.
//!
//! Each worker has one voice, however many contributions it made: else one that takes half of a
//! round's units would be most of what the others are compared with. The rule, for contributions
//! `x` and the scale `s` of each voice, the inverse of the sum of the norms of its contributions,
//! so that a voice has the length 1 at most and a long one says no more than a short one:
//!
//! 1. per element and voice, `u[v] = s[v] * x[i] + s[v] * x[j] + …` over the contributions of the
//!    voice, and `sum = u[v] + u[w] + …` over the voices that vote, in the order given, in `f64`.
//! 2. `dot[v]` is the sum of `u[v] * sum` over all elements, `square[v]` that of `u[v] * u[v]`, and
//!    `whole` that of `sum * sum`. In each tile of 2,048 elements, element `e` is added to running
//!    sum `e % 16` in order; the 16 sums are then added by halves, as [`crate::screen()`] adds
//!    those of a block; tiles, blocks of [`BLOCK_ELEMENTS`] and chunks follow one after the other.
//! 3. `cosine[v] = (dot[v] - square[v]) / sqrt(square[v] * (whole - 2 * dot[v] + square[v]))`: the
//!    others are the sum without `u[v]`, so that nobody agrees with itself. For a voice that does
//!    not vote they are the whole sum: `dot[v] / sqrt(square[v] * whole)`. It is limited to -1 to
//!    1, and 0 where one of the two lengths is 0.

use rayon::prelude::*;
use schemas::run::CodecKind;

use crate::codec::{self, CodecError, check, encoded_bytes};
use crate::vectors::{Vectors, vectorised};
use crate::{BLOCK_ELEMENTS, TILE_ELEMENTS};

/// Running sums of a tile.
const LANES: usize = 16;

/// Contributions cancel each other if the square of their sum is below this, beside squares of 1:
/// what is left is rounding.
const SQUARE_MIN: f64 = 1e-12;

/// A worker in the comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Voice<'a> {
    /// One chunk of each of its contributions.
    pub contributions: Vec<&'a [u8]>,
    /// The scale of all of them.
    pub scale: f64,
    /// True if the others are compared with it too.
    pub votes: bool,
}

/// The sums of step 2, of one chunk or of several.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Directions {
    votes: Vec<bool>,
    dots: Vec<f64>,
    squares: Vec<f64>,
    whole: f64,
}

impl Directions {
    /// Adds the next chunk of the same contributions; the order matters for the last bits.
    pub fn add(&mut self, next: &Self) {
        self.votes.clone_from(&next.votes);
        add(&mut self.dots, &next.dots);
        add(&mut self.squares, &next.squares);
        self.whole += next.whole;
    }

    /// The cosine of each voice, by step 3.
    pub fn cosines(&self) -> Vec<f32> {
        let of = |((votes, dot), square): ((&bool, &f64), &f64)| {
            let (dot_others, others) = match votes {
                true => (dot - square, self.whole - 2.0 * dot + square),
                false => (*dot, self.whole),
            };
            if *square < SQUARE_MIN || others < SQUARE_MIN {
                return 0.0;
            }
            let cosine = dot_others / (square * others).sqrt();
            cosine.clamp(-1.0, 1.0) as f32
        };
        let voices = self.votes.iter().zip(&self.dots).zip(&self.squares);
        voices.map(of).collect()
    }
}

fn add(sums: &mut Vec<f64>, next: &[f64]) {
    sums.resize(sums.len().max(next.len()), 0.0);
    for (sum, next) in sums.iter_mut().zip(next) {
        *sum += next;
    }
}

/// Takes the sums of one chunk of the contributions of `voices`. In parallel; the result depends
/// neither on the number of threads nor on the width of vector instructions.
///
/// # Errors
/// [`CodecError::WrongLength`].
pub fn directions(
    codec: CodecKind,
    voices: &[Voice<'_>],
    elements: usize,
) -> Result<Directions, CodecError> {
    for bytes in voices.iter().flat_map(|voice| &voice.contributions) {
        check(codec, elements, bytes.len())?;
    }
    Ok(directions_by(Vectors::widest(), codec, voices, elements))
}

fn directions_by(
    vectors: Vectors,
    codec: CodecKind,
    voices: &[Voice<'_>],
    elements: usize,
) -> Directions {
    let blocks: Vec<Directions> = (0..elements.div_ceil(BLOCK_ELEMENTS))
        .into_par_iter()
        .map_init(Scratch::default, |scratch, block| {
            let start = block * BLOCK_ELEMENTS;
            let end = elements.min(start + BLOCK_ELEMENTS);
            let mut sums = Directions::default();
            for start in (start..end).step_by(TILE_ELEMENTS) {
                let tile = start..end.min(start + TILE_ELEMENTS);
                sums.add(&scratch.tile(vectors, codec, voices, tile));
            }
            sums
        })
        .collect();
    let mut sums = Directions::default();
    for block in &blocks {
        sums.add(block);
    }
    sums
}

#[derive(Default)]
struct Scratch {
    decoded: Vec<f32>,
    own: Vec<f64>,
    sum: Vec<f64>,
}

impl Scratch {
    /// The sums of one tile. Each contribution is decoded twice, which is cheaper than to keep
    /// thousands of them in memory; its bytes are in the cache the second time.
    fn tile(
        &mut self,
        vectors: Vectors,
        codec: CodecKind,
        voices: &[Voice<'_>],
        tile: std::ops::Range<usize>,
    ) -> Directions {
        self.decoded.resize(TILE_ELEMENTS, 0.0);
        self.own.resize(tile.len(), 0.0);
        self.sum.clear();
        self.sum.resize(tile.len(), 0.0);
        let decoded = &mut self.decoded[..tile.len()];
        let mut speak = |voice: &Voice<'_>, own: &mut Vec<f64>| {
            own.fill(0.0);
            for bytes in &voice.contributions {
                let range = encoded_bytes(codec, tile.start)..encoded_bytes(codec, tile.end);
                codec::of(codec).decode(vectors, &bytes[range], decoded);
                add_scaled(vectors, decoded, voice.scale, own);
            }
        };
        for voice in voices.iter().filter(|voice| voice.votes) {
            speak(voice, &mut self.own);
            add(&mut self.sum, &self.own);
        }
        let mut sums = Directions::default();
        for voice in voices {
            speak(voice, &mut self.own);
            let [dot, square] = products(vectors, &self.own, &self.sum);
            sums.votes.push(voice.votes);
            sums.dots.push(dot);
            sums.squares.push(square);
        }
        sums.whole = squares(vectors, &self.sum);
        sums
    }
}

vectorised!(fn add_scaled(values: &[f32], scale: f64, sum: &mut [f64]) = add_scaled_body);
vectorised!(fn products(values: &[f64], sum: &[f64]) -> [f64; 2] = products_body);
vectorised!(fn squares(sum: &[f64]) -> f64 = squares_body);

#[inline(always)]
fn add_scaled_body(values: &[f32], scale: f64, sum: &mut [f64]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += scale * f64::from(*value);
    }
}

#[inline(always)]
fn products_body(values: &[f64], sum: &[f64]) -> [f64; 2] {
    let (mut dots, mut squares) = ([0.0; LANES], [0.0; LANES]);
    let (groups, rest) = values.as_chunks::<LANES>();
    let (sums, sums_rest) = sum.as_chunks::<LANES>();
    for (group, sums) in groups.iter().zip(sums) {
        let lanes = dots.iter_mut().zip(&mut squares);
        for ((dot, square), (value, sum)) in lanes.zip(group.iter().zip(sums)) {
            *dot += value * sum;
            *square += value * value;
        }
    }
    let lanes = dots.iter_mut().zip(&mut squares);
    for ((dot, square), (value, sum)) in lanes.zip(rest.iter().zip(sums_rest)) {
        *dot += value * sum;
        *square += value * value;
    }
    [halve(dots), halve(squares)]
}

#[inline(always)]
fn squares_body(sum: &[f64]) -> f64 {
    let mut squares = [0.0; LANES];
    let (groups, rest) = sum.as_chunks::<LANES>();
    for group in groups {
        for (square, value) in squares.iter_mut().zip(group) {
            *square += value * value;
        }
    }
    for (square, value) in squares.iter_mut().zip(rest) {
        *square += value * value;
    }
    halve(squares)
}

#[inline(always)]
fn halve(mut sums: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededRounding;
    use crate::rounding::noise_word;

    const ELEMENTS: usize = 2 * BLOCK_ELEMENTS + TILE_ELEMENTS + 77;

    fn values(seed: u64, count: usize) -> Vec<f32> {
        (0..count as u64)
            .map(|index| (noise_word(seed, index) >> 40) as f32 * 1e-9 - 0.004)
            .collect()
    }

    fn encoded(codec: CodecKind, values: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; encoded_bytes(codec, values.len())];
        codec::encode(codec, values, SeededRounding::NEAREST, &mut bytes).unwrap();
        bytes
    }

    /// Contributions and the inverse of their norms.
    fn given(codec: CodecKind, all: &[Vec<f32>]) -> Vec<(Vec<u8>, f64)> {
        let scaled = |values: &Vec<f32>| {
            let bytes = encoded(codec, values);
            let norm = crate::screen(codec, &bytes, values.len()).unwrap().norm();
            (bytes, 1.0 / norm)
        };
        all.iter().map(scaled).collect()
    }

    /// Each contribution is of another worker.
    fn parts(given: &[(Vec<u8>, f64)]) -> Vec<Voice<'_>> {
        let all: Vec<usize> = (0..given.len()).collect();
        all.chunks(1).map(|which| voice(given, which)).collect()
    }

    fn voice<'a>(given: &'a [(Vec<u8>, f64)], which: &[usize]) -> Voice<'a> {
        let norms = which.iter().map(|index| 1.0 / given[*index].1);
        Voice {
            contributions: which.iter().map(|index| &given[*index].0[..]).collect(),
            scale: 1.0 / norms.sum::<f64>(),
            votes: true,
        }
    }

    /// The same with plain loops over decoded numbers.
    fn naive(codec: CodecKind, given: &[(Vec<u8>, f64)], elements: usize) -> Vec<f64> {
        let decoded: Vec<Vec<f64>> = given
            .iter()
            .map(|(bytes, _)| {
                let mut out = vec![0.0; elements];
                codec::decode(codec, bytes, &mut out).unwrap();
                let norm = out
                    .iter()
                    .map(|v| f64::from(*v).powi(2))
                    .sum::<f64>()
                    .sqrt();
                out.iter().map(|value| f64::from(*value) / norm).collect()
            })
            .collect();
        let cosine = |index: usize| {
            let others: Vec<f64> = (0..elements)
                .map(|e| {
                    let all = (0..given.len()).filter(|other| *other != index);
                    all.map(|other| decoded[other][e]).sum()
                })
                .collect();
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let own = &decoded[index];
            dot(own, &others) / (dot(own, own) * dot(&others, &others)).sqrt()
        };
        (0..given.len()).map(cosine).collect()
    }

    #[test]
    fn cosines_are_those_of_plain_loops_for_every_codec() {
        let all: Vec<Vec<f32>> = (1..=4).map(|seed| values(seed, ELEMENTS)).collect();
        for codec in CodecKind::ALL.iter().copied() {
            let given = given(codec, &all);
            let found = directions(codec, &parts(&given), ELEMENTS).unwrap();
            let found = found.cosines();
            for (found, expected) in found.iter().zip(naive(codec, &given, ELEMENTS)) {
                assert!((f64::from(*found) - expected).abs() < 1e-6, "{codec:?}");
            }
        }
    }

    /// The one that pulls the other way is below 0, at any length, and the honest ones are not.
    #[test]
    fn a_flipped_sign_points_against_the_others_at_any_length() {
        let shared = values(9, ELEMENTS);
        let honest = |seed: u64| -> Vec<f32> {
            let own = values(seed, ELEMENTS);
            shared.iter().zip(own).map(|(a, b)| a + b).collect()
        };
        for factor in [-1.0, -1e-3, -100.0] {
            let mut all: Vec<Vec<f32>> = (1..=4).map(honest).collect();
            for value in &mut all[3] {
                *value *= factor;
            }
            let given = given(CodecKind::Bf16, &all);
            let cosines = directions(CodecKind::Bf16, &parts(&given), ELEMENTS).unwrap();
            let cosines = cosines.cosines();
            assert!(cosines[3] < -0.5, "{cosines:?}");
            assert!(
                cosines[..3].iter().all(|cosine| *cosine > 0.2),
                "{cosines:?}"
            );
        }
    }

    /// Honest contributions that share a direction, and hostile ones against it.
    fn crowd(honest: u64, hostile: &[Vec<f32>]) -> Vec<(Vec<u8>, f64)> {
        let shared = values(9, ELEMENTS);
        let one = |seed: u64| -> Vec<f32> {
            let own = values(seed, ELEMENTS);
            shared.iter().zip(own).map(|(a, b)| a + b).collect()
        };
        let mut all: Vec<Vec<f32>> = (1..=honest).map(one).collect();
        all.extend_from_slice(hostile);
        given(CodecKind::Fp32, &all)
    }

    fn cosines(voices: &[Voice<'_>]) -> Vec<f32> {
        let found = directions(CodecKind::Fp32, voices, ELEMENTS);
        found.unwrap().cosines()
    }

    /// Three units of five in one hand: counted one by one, both honest workers point against the
    /// others and the hostile one does not; by workers, it alone does.
    #[test]
    fn a_worker_with_most_of_a_rounds_units_has_one_voice() {
        let against: Vec<f32> = values(9, ELEMENTS).iter().map(|value| -value).collect();
        let given = crowd(2, &[against.clone(), against.clone(), against]);
        let alone = cosines(&parts(&given));
        assert!(alone[0] < -0.25 && alone[1] < -0.25, "{alone:?}");
        assert!(alone[2..].iter().all(|cosine| *cosine > 0.0), "{alone:?}");
        let voices: Vec<_> = [&[0][..], &[1], &[2, 3, 4]]
            .map(|which| voice(&given, which))
            .into();
        let by_worker = cosines(&voices);
        assert!(by_worker[..2].iter().all(|cosine| *cosine > -0.25));
        assert!(by_worker[2] < -0.5, "{by_worker:?}");
        // It makes no difference to the others how often it says the same.
        let once: Vec<_> = (0..3).map(|index| voice(&given, &[index])).collect();
        for (one, other) in cosines(&once).iter().zip(by_worker) {
            assert!((one - other).abs() < 1e-6);
        }
    }

    /// Short honest contributions beside a long one against the others hide nothing: a worker is
    /// judged by what all of its contributions together move.
    #[test]
    fn short_honest_contributions_do_not_hide_a_long_hostile_one() {
        let against: Vec<f32> = values(9, ELEMENTS).iter().map(|v| -3.0 * v).collect();
        let short: Vec<f32> = values(9, ELEMENTS).iter().map(|v| 0.5 * v).collect();
        let given = crowd(3, &[against, short.clone(), short]);
        let voices: Vec<_> = [&[0][..], &[1], &[2], &[3, 4, 5]]
            .map(|which| voice(&given, which))
            .into();
        let found = cosines(&voices);
        assert!(found[3] < -0.5, "{found:?}");
        assert!(found[..3].iter().all(|cosine| *cosine > 0.0), "{found:?}");
    }

    #[test]
    fn who_has_no_vote_is_judged_and_moves_nobody() {
        let against: Vec<f32> = values(9, ELEMENTS).iter().map(|value| -value).collect();
        let given = crowd(3, &[against]);
        let mut voices = parts(&given);
        let alone = cosines(&voices[..3]);
        voices[3].votes = false;
        let found = cosines(&voices);
        assert_eq!(found[..3], alone);
        assert!(found[3] < -0.5, "{found:?}");
    }

    /// What the smallest comparison can tell: a flipped sign points against the two others, which
    /// do not point against each other. One that knows both directions makes all three fall.
    #[test]
    fn of_three_a_flipped_sign_is_told_and_one_that_knows_the_others_is_not() {
        let flipped: Vec<f32> = crowd(4, &[])[3]
            .0
            .chunks_exact(4)
            .map(|bytes| -f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        let found = cosines(&parts(&crowd(2, &[flipped])));
        assert!(
            found[2] < -0.5 && found[0].min(found[1]) > -0.25,
            "{found:?}"
        );
        let honest = crowd(2, &[]);
        let both: Vec<f32> = honest[0]
            .0
            .chunks_exact(4)
            .zip(honest[1].0.chunks_exact(4))
            .map(|(one, other)| {
                let [one, other] =
                    [one, other].map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
                -(one + other)
            })
            .collect();
        let found = cosines(&parts(&crowd(2, &[both])));
        assert!(found.iter().all(|cosine| *cosine < -0.25), "{found:?}");
    }

    #[test]
    fn bits_depend_neither_on_threads_nor_on_the_width_of_vectors() {
        let all: Vec<Vec<f32>> = (1..=5).map(|seed| values(seed, ELEMENTS)).collect();
        for codec in CodecKind::ALL.iter().copied() {
            let given = given(codec, &all);
            let given = parts(&given);
            let expected = directions_by(Vectors::BASELINE, codec, &given, ELEMENTS);
            let bits = |found: &Directions| -> Vec<u64> {
                let sums = found
                    .dots
                    .iter()
                    .chain(&found.squares)
                    .chain([&found.whole]);
                sums.map(|sum| sum.to_bits()).collect()
            };
            for vectors in Vectors::available() {
                let found = directions_by(vectors, codec, &given, ELEMENTS);
                assert_eq!(bits(&found), bits(&expected), "{codec:?} {vectors:?}");
            }
            for threads in [1, 2, 7] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                let found = pool
                    .build()
                    .unwrap()
                    .install(|| directions(codec, &given, ELEMENTS).unwrap());
                assert_eq!(bits(&found), bits(&expected), "{codec:?} {threads} threads");
            }
        }
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        let one = values(1, 300);
        let flipped: Vec<f32> = one.iter().map(|value| -value).collect();
        let zeros = vec![0.0; 300];
        let fp32 = CodecKind::Fp32;
        let bytes = [
            encoded(fp32, &one),
            encoded(fp32, &flipped),
            encoded(fp32, &zeros),
        ];
        let norm = crate::screen(fp32, &bytes[0], 300).unwrap().norm();
        let of = |which: &[usize]| {
            let voice = |n: &usize| Voice {
                contributions: vec![&bytes[*n][..]],
                scale: 1.0 / norm,
                votes: true,
            };
            let parts: Vec<_> = which.iter().map(voice).collect();
            directions(fp32, &parts, 300).unwrap().cosines()
        };
        // The others cancel each other, or are nothing; or it is nothing itself.
        assert_eq!(of(&[0, 0, 1])[0], 0.0);
        assert_eq!(of(&[0]), [0.0]);
        assert_eq!(of(&[0, 2]), [0.0, 0.0]);
        assert_eq!(of(&[0, 0]), [1.0, 1.0]);
        assert_eq!(of(&[0, 1]), [-1.0, -1.0]);
        assert!(of(&[]).is_empty());
        // The contributions of one worker cancel each other, or nobody votes.
        let of_one = Voice {
            contributions: vec![&bytes[0][..], &bytes[1]],
            scale: 0.5 / norm,
            votes: true,
        };
        let mute = |n: usize| Voice {
            contributions: vec![&bytes[n][..]],
            scale: 1.0 / norm,
            votes: false,
        };
        let cosines = |voices: &[Voice<'_>]| directions(fp32, voices, 300).unwrap().cosines();
        assert_eq!(cosines(&[of_one, mute(0)]), [0.0, 0.0]);
        assert_eq!(cosines(&[mute(0), mute(1)]), [0.0, 0.0]);
        let short = Voice {
            contributions: vec![&bytes[0][..], &bytes[0][..4]],
            scale: 1.0,
            votes: true,
        };
        let short = directions(fp32, &[short], 300);
        assert!(matches!(short, Err(CodecError::WrongLength { .. })));
    }

    #[test]
    fn chunks_add_up_to_the_whole() {
        let all: Vec<Vec<f32>> = (1..=3).map(|seed| values(seed, ELEMENTS)).collect();
        let given = given(CodecKind::Fp32, &all);
        let given = parts(&given);
        let whole = directions(CodecKind::Fp32, &given, ELEMENTS).unwrap();
        let cut = BLOCK_ELEMENTS;
        let part = |range: std::ops::Range<usize>| {
            let bytes = 4 * range.start..4 * range.end;
            let mut cut = given.clone();
            for all in cut.iter_mut().flat_map(|voice| &mut voice.contributions) {
                *all = &all[bytes.clone()];
            }
            directions(CodecKind::Fp32, &cut, range.len()).unwrap()
        };
        let mut sums = Directions::default();
        sums.add(&part(0..cut));
        sums.add(&part(cut..ELEMENTS));
        for (one, other) in sums.cosines().iter().zip(whole.cosines()) {
            assert!((one - other).abs() < 1e-6);
        }
    }

    /// Both lengths count from the least one on: the voice's own, and that of the others.
    #[test]
    fn what_is_as_long_as_the_least_length_has_a_direction() {
        let cosine = |square: f64, whole: f64| {
            let sums = Directions {
                votes: vec![false],
                dots: vec![0.5e-6],
                squares: vec![square],
                whole,
            };
            sums.cosines()[0]
        };
        let below = SQUARE_MIN.next_down();
        for (own, others, expected) in [
            (SQUARE_MIN, 1.0, 0.5),
            (1.0, SQUARE_MIN, 0.5),
            (below, 1.0, 0.0),
            (1.0, below, 0.0),
        ] {
            assert_eq!(cosine(own, others), expected, "{own} {others}");
        }
    }
}
