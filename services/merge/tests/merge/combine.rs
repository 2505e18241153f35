//! The rules of combination against plain loops, on numbers computed by hand, and in their
//! properties.

use merge::combine::DIRECTION_MIN;
use merge::{
    BLOCK_ELEMENTS, ContributionChunk, MergeError, Momentum, Rule, RuleError, TensorPiece,
    merge_chunk, merge_chunk_by,
};
use proptest::prelude::*;
use schemas::run::{CodecKind, Combination, OuterOptimizer};

use crate::naive::{self, Given};

const RULES: [Combination; 6] = [
    Combination::Mean,
    Combination::Clipped { norm_ratio: 1.5 },
    Combination::Trimmed { each_end: 1 },
    Combination::Trimmed { each_end: 3 },
    Combination::Median,
    Combination::Radial,
];

fn fp32(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// The combined contribution of fp32 values: averaging from zero leaves its negative.
fn combined(
    combination: Combination,
    given: &[(u64, Vec<f32>)],
    tensors: &[TensorPiece],
) -> Vec<f32> {
    let encode = |(weight, values): &(u64, Vec<f32>)| (*weight, CodecKind::Fp32, fp32(values));
    let given: Vec<Given> = given.iter().map(encode).collect();
    let norms = norms(&given, elements_of(tensors));
    merged(combination, &given, &norms, tensors)
}

fn merged(
    combination: Combination,
    given: &[Given],
    norms: &[f32],
    tensors: &[TensorPiece],
) -> Vec<f32> {
    let mut params = vec![0.0; elements_of(tensors)];
    let chunks: Vec<_> = given.iter().map(chunk).collect();
    let rule = Rule {
        combination,
        norms,
        tensors,
    };
    let average = OuterOptimizer::Average;
    let merged = merge_chunk_by(&rule, &chunks, average, &mut params, Momentum::Absent, None);
    let merged = merged.unwrap();
    let squares: f64 = params.iter().map(|param| f64::from(*param).powi(2)).sum();
    assert!((merged.sum_of_squares - squares).abs() <= 1e-9 * squares);
    params.into_iter().map(|param| 0.0 - param).collect()
}

fn chunk((weight, codec, bytes): &Given) -> ContributionChunk<'_> {
    ContributionChunk {
        weight: *weight,
        codec: *codec,
        bytes,
    }
}

fn elements_of(tensors: &[TensorPiece]) -> usize {
    tensors.last().map_or(0, |tensor| tensor.range.end)
}

fn norms(given: &[Given], elements: usize) -> Vec<f32> {
    let squares = given.iter().map(|(_, codec, bytes)| {
        let values = naive::decode(*codec, bytes, elements);
        naive::sum_of_squares(&values)
    });
    squares.map(|sum| sum.sqrt() as f32).collect()
}

/// Tensors that end at `ends`; every third one is an embedding.
fn tensors(ends: &[usize]) -> Vec<TensorPiece> {
    let mut start = 0;
    let piece = |(index, end): (usize, &usize)| {
        let range = std::mem::replace(&mut start, *end)..*end;
        TensorPiece {
            range,
            embedding: index % 3 == 2,
        }
    };
    ends.iter().enumerate().map(piece).collect()
}

/// The rules of `merge::combine`, element by element.
fn follow(
    combination: Combination,
    given: &[Given],
    norms: &[f32],
    tensors: &[TensorPiece],
) -> Vec<f32> {
    let elements = elements_of(tensors);
    let with_norms = given.iter().zip(norms);
    let (given, norms): (Vec<&Given>, Vec<f64>) = with_norms
        .filter(|((weight, ..), _)| *weight > 0)
        .map(|(given, norm)| (given, f64::from(*norm)))
        .unzip();
    let values: Vec<Vec<f32>> = given
        .iter()
        .map(|(_, codec, bytes)| naive::decode(*codec, bytes, elements))
        .collect();
    let total: u128 = given.iter().map(|(weight, ..)| u128::from(*weight)).sum();
    let shares: Vec<f64> = given
        .iter()
        .map(|(weight, ..)| *weight as f64 / total as f64)
        .collect();
    match combination {
        Combination::Mean => {
            let mut params = vec![0.0; elements];
            let given: Vec<Given> = given.into_iter().cloned().collect();
            naive::merge(&given, OuterOptimizer::Average, &mut params, &mut [], true);
            params.into_iter().map(|param| 0.0 - param).collect()
        }
        Combination::Clipped { norm_ratio } => {
            let mut sorted: Vec<f64> = norms.iter().copied().filter(|norm| *norm > 0.0).collect();
            sorted.sort_by(f64::total_cmp);
            let limit = match sorted.len() {
                0 => 0.0,
                count => f64::from(norm_ratio) * sorted[(count - 1) / 2],
            };
            let scale = |norm: &f64| {
                if *norm > 0.0 {
                    (limit / norm).min(1.0)
                } else {
                    1.0
                }
            };
            let factors = norms
                .iter()
                .zip(&shares)
                .map(|(norm, share)| share * scale(norm));
            let factors: Vec<f64> = factors.collect();
            (0..elements)
                .map(|element| weighted(&values, &factors, element))
                .collect()
        }
        Combination::Trimmed { each_end } => sorted_middle(&values, elements, each_end as usize),
        Combination::Median => sorted_middle(&values, elements, usize::MAX),
        Combination::Radial => radial(&values, &shares, tensors),
    }
}

fn sum(values: &[Vec<f32>], factors: &[f64], element: usize) -> f64 {
    let mut sum = factors[0] * f64::from(values[0][element]);
    for (values, factor) in values.iter().zip(factors).skip(1) {
        sum += factor * f64::from(values[element]);
    }
    sum
}

fn weighted(values: &[Vec<f32>], factors: &[f64], element: usize) -> f32 {
    limited(sum(values, factors, element))
}

fn limited(value: f64) -> f32 {
    value.min(f64::from(f32::MAX)).max(f64::from(f32::MIN)) as f32
}

fn sorted_middle(values: &[Vec<f32>], elements: usize, each_end: usize) -> Vec<f32> {
    let each_end = each_end.min((values.len() - 1) / 2);
    let element = |element: usize| {
        let mut column: Vec<f32> = values.iter().map(|values| values[element]).collect();
        column.sort_by(f32::total_cmp);
        let middle = &column[each_end..values.len() - each_end];
        let mut sum = f64::from(middle[0]);
        for value in &middle[1..] {
            sum += f64::from(*value);
        }
        limited(sum / middle.len() as f64)
    };
    (0..elements).map(element).collect()
}

/// Squares of a tensor, in the order that `merge::combine` gives.
fn squares(tensor: &TensorPiece, value: impl Fn(usize) -> f64) -> f64 {
    let end = tensor.range.end;
    let mut total = 0.0;
    for block in (0..end).step_by(BLOCK_ELEMENTS) {
        let mut of_block = 0.0;
        for tile in (block..end.min(block + BLOCK_ELEMENTS)).step_by(2048) {
            let part = tile.max(tensor.range.start)..end.min(tile + 2048);
            let mut sums = [0.0_f64; 16];
            for (place, element) in part.enumerate() {
                sums[place % 16] += value(element) * value(element);
            }
            for half in [8, 4, 2, 1] {
                for lane in 0..half {
                    sums[lane] += sums[lane + half];
                }
            }
            of_block += sums[0];
        }
        total += of_block;
    }
    total
}

fn radial(values: &[Vec<f32>], shares: &[f64], tensors: &[TensorPiece]) -> Vec<f32> {
    let mut out = Vec::new();
    for tensor in tensors {
        let norms: Vec<f64> = values
            .iter()
            .map(|values| squares(tensor, |element| f64::from(values[element])).sqrt())
            .collect();
        let unit = |(share, norm): (&f64, &f64)| if *norm > 0.0 { share / norm } else { 0.0 };
        let units: Vec<f64> = shares.iter().zip(&norms).map(unit).collect();
        let direction = squares(tensor, |element| sum(values, &units, element)).sqrt();
        let mut length = 0.0;
        for (share, norm) in shares.iter().zip(&norms) {
            length += share * norm;
        }
        let stretch = length / direction;
        let factors: Vec<f64> = match tensor.embedding || direction < DIRECTION_MIN {
            true => shares.to_vec(),
            false => units.iter().map(|unit| unit * stretch).collect(),
        };
        out.extend(
            tensor
                .range
                .clone()
                .map(|element| weighted(values, &factors, element)),
        );
    }
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    // Averaging from zero loses the sign of a zero.
    values
        .iter()
        .map(|value| (0.0 - (0.0 - value)).to_bits())
        .collect()
}

#[test]
fn rules_by_hand() {
    let whole = tensors(&[2]);
    let given = |values: &[[f32; 2]]| -> Vec<(u64, Vec<f32>)> {
        values.iter().map(|values| (7, values.to_vec())).collect()
    };
    let four = given(&[[3.0, 4.0], [0.0, 5.0], [-300.0, 400.0], [5.0, 0.0]]);
    let of = |rule, given: &[(u64, Vec<f32>)]| combined(rule, given, &whole);
    assert_eq!(of(Combination::Mean, &four), [-73.0, 102.25]);
    // Norms 5, 5, 500, 5: the third is scaled to 5, which makes it (-3, 4).
    let clipped = Combination::Clipped { norm_ratio: 1.0 };
    assert_eq!(of(clipped, &four), [1.25, 3.25]);
    let clipped = Combination::Clipped { norm_ratio: 2.0 };
    assert_eq!(of(clipped, &four), [0.5, 4.25]);
    // Norms 1, 2 and 8: the middle one is the limit.
    let clipped = Combination::Clipped { norm_ratio: 1.0 };
    let lengths = given(&[[1.0, 0.0], [2.0, 0.0], [8.0, 0.0]]);
    assert_eq!(of(clipped, &lengths), [5.0 / 3.0, 0.0]);
    // Norms 1, 2, 4 and 8: of the two in the middle the lower one is the limit.
    let lengths = given(&[[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [8.0, 0.0]]);
    assert_eq!(of(clipped, &lengths), [1.75, 0.0]);
    // A contribution of zeros says nothing about the length of the others.
    let zeros = given(&[[0.0, 0.0], [4.0, 0.0], [0.0, 0.0], [0.0, 4.0]]);
    assert_eq!(of(clipped, &zeros), [1.0, 1.0]);
    assert_eq!(of(clipped, &given(&[[0.0, 0.0]; 2])), [0.0, 0.0]);
    let trimmed = Combination::Trimmed { each_end: 1 };
    assert_eq!(of(trimmed, &four), [1.5, 4.5]);
    assert_eq!(of(Combination::Median, &four), [1.5, 4.5]);
    assert_eq!(of(Combination::Median, &four[..3]), [0.0, 5.0]);
    // Two are not enough to leave one out at each end.
    assert_eq!(of(trimmed, &four[..2]), [1.5, 4.5]);
    // Lengths 3 and 1 at a right angle: length 2 on the diagonal.
    let right = given(&[[3.0, 0.0], [0.0, 1.0]]);
    let found = of(Combination::Radial, &right);
    assert!(
        (f64::from(found[0]) - 2_f64.sqrt()).abs() < 1e-6,
        "{found:?}"
    );
    assert_eq!(found[0], found[1]);
    // Opposite directions have no mean direction, and nothing has none.
    let opposite = given(&[[3.0, 0.0], [-1.0, 0.0]]);
    assert_eq!(of(Combination::Radial, &opposite), [1.0, 0.0]);
    assert_eq!(
        of(Combination::Radial, &given(&[[0.0, 0.0]; 3])),
        [0.0, 0.0]
    );
    let embedding = [TensorPiece {
        range: 0..2,
        embedding: true,
    }];
    assert_eq!(
        combined(Combination::Radial, &right, &embedding),
        [1.5, 0.5]
    );
}

#[test]
fn one_contribution_alone_is_the_result_under_each_rule() {
    let ends = [5, 2500, BLOCK_ELEMENTS + 77];
    let tensors = tensors(&ends);
    let mut values = naive::numbers(4, BLOCK_ELEMENTS + 77);
    (values[0], values[1], values[2]) = (f32::MAX, 1e-45, f32::MIN);
    for rule in RULES {
        // Another of weight 0 does not take part.
        let others = (0, vec![1e29; values.len()]);
        let found = combined(rule, &[(3, values.clone()), others], &tensors);
        assert!(bits(&found) == bits(&values), "{rule:?}");
    }
}

/// So many that their values are sorted in smaller parts.
#[test]
fn many_contributions_are_sorted_as_few_are() {
    const ELEMENTS: usize = 700;
    let tensors = tensors(&[ELEMENTS]);
    let encoded = |seed| {
        let values = naive::numbers(seed, ELEMENTS);
        let rounding = merge::SeededRounding::NEAREST;
        (
            1,
            CodecKind::Bf16,
            naive::encode(CodecKind::Bf16, &values, rounding),
        )
    };
    let given: Vec<Given> = (0..130).map(encoded).collect();
    let norms = norms(&given, ELEMENTS);
    for rule in [Combination::Trimmed { each_end: 3 }, Combination::Median] {
        let expected = bits(&follow(rule, &given, &norms, &tensors));
        let found = bits(&merged(rule, &given, &norms, &tensors));
        assert!(found == expected, "{rule:?}");
    }
}

#[test]
fn finite_values_of_any_size_give_a_number() {
    let tensors = tensors(&[100, 3000]);
    for huge in [1e29, f32::MAX] {
        for count in [2, 3, 4, 33, 40] {
            let values = |index: usize| match index % 3 {
                0 => vec![huge; 3000],
                1 => naive::numbers(index as u64, 3000),
                _ => vec![-huge; 3000],
            };
            let given: Vec<_> = (0..count).map(|index| (1, values(index))).collect();
            for rule in &RULES[1..] {
                let found = combined(*rule, &given, &tensors);
                assert!(
                    found.iter().all(|value| value.is_finite()),
                    "{rule:?} {count}"
                );
            }
        }
    }
}

/// The aim of the robust rules: one of four cannot choose the result.
#[test]
fn one_of_four_moves_the_result_little_under_the_robust_rules() {
    let tensors = tensors(&[4000]);
    let honest: Vec<Vec<f32>> = (0..3)
        .map(|worker| {
            let noise = naive::numbers(worker, 4000);
            noise
                .iter()
                .map(|noise| 1.0 + 0.1 * noise.clamp(-1.0, 1.0))
                .collect()
        })
        .collect();
    let distance = |rule, hostile: Vec<f32>| {
        let mut given: Vec<_> = honest.iter().cloned().map(|values| (1, values)).collect();
        given.insert(1, (1, hostile));
        let found = combined(rule, &given, &tensors);
        found
            .iter()
            .fold(0.0_f32, |max, value| max.max((value - 1.0).abs()))
    };
    for hostile in [1e6, -1e6, -100.0] {
        let hostile = vec![hostile; 4000];
        assert!(distance(Combination::Mean, hostile.clone()) > 20.0);
        for rule in [Combination::Trimmed { each_end: 1 }, Combination::Median] {
            assert!(distance(rule, hostile.clone()) < 0.11, "{rule:?}");
        }
        // A clipped contribution still has its share, at the length of the others.
        let clipped = Combination::Clipped { norm_ratio: 1.0 };
        assert!(distance(clipped, hostile) < 0.6);
    }
}

#[test]
fn a_rule_without_its_facts_changes_nothing() {
    let given: Given = (1, CodecKind::Fp32, fp32(&[1.0, 2.0]));
    let chunks = [chunk(&given), chunk(&given)];
    let mut params = [5.0, 6.0];
    let tensors = tensors(&[1]);
    for (combination, error) in [
        (
            Combination::Clipped { norm_ratio: 1.0 },
            RuleError::Norms {
                contributions: 2,
                norms: 1,
            },
        ),
        (Combination::Radial, RuleError::Tensors { elements: 2 }),
    ] {
        let rule = Rule {
            combination,
            norms: &[1.0],
            tensors: &tensors,
        };
        let average = OuterOptimizer::Average;
        let refused = merge_chunk_by(&rule, &chunks, average, &mut params, Momentum::Absent, None);
        assert_eq!(refused, Err(MergeError::Rule(error)));
    }
    assert_eq!(params, [5.0, 6.0]);
}

prop_compose! {
    fn contributions()(
        elements in prop_oneof![1..5000_usize, BLOCK_ELEMENTS - 40..BLOCK_ELEMENTS + 3000],
        each in prop::collection::vec((0..5_u64, prop::sample::select(CodecKind::ALL), any::<u64>()), 1..=9),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
    ) -> (Vec<Given>, Vec<TensorPiece>) {
        let encode = |(place, (weight, codec, seed)): (usize, (u64, CodecKind, u64))| {
            let values = naive::numbers(seed, elements);
            let weight = weight + u64::from(place == 0);
            (weight, codec, naive::encode(codec, &values, merge::SeededRounding::NEAREST))
        };
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(elements)).collect();
        ends.push(elements);
        ends.sort_unstable();
        ends.dedup();
        ends.retain(|end| *end > 0);
        (each.into_iter().enumerate().map(encode).collect(), tensors(&ends))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn each_rule_gives_the_bits_of_the_plain_loops_for_any_threads(
        (given, tensors) in contributions(),
    ) {
        let norms = norms(&given, elements_of(&tensors));
        for rule in RULES {
            let expected = bits(&follow(rule, &given, &norms, &tensors));
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let found = pool.install(|| merged(rule, &given, &norms, &tensors));
                prop_assert!(bits(&found) == expected, "{rule:?}, {threads} threads");
            }
        }
    }

    #[test]
    fn the_order_of_contributions_does_not_matter_where_values_are_sorted(
        (given, tensors) in contributions(),
        shuffle in Just((0..9_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let norms = norms(&given, elements_of(&tensors));
        let other: Vec<Given> =
            shuffle.into_iter().filter_map(|place| given.get(place).cloned()).collect();
        for rule in &RULES[2..5] {
            let (one, two) = (
                merged(*rule, &given, &norms, &tensors),
                merged(*rule, &other, &norms, &tensors),
            );
            prop_assert!(bits(&one) == bits(&two), "{rule:?}");
        }
    }

    #[test]
    fn the_mean_as_a_rule_is_the_mean((given, tensors) in contributions()) {
        let chunks: Vec<_> = given.iter().map(chunk).collect();
        let elements = elements_of(&tensors);
        let (mut one, mut two) = (naive::numbers(1, elements), naive::numbers(1, elements));
        let average = OuterOptimizer::Average;
        let plain = merge_chunk(&chunks, average, &mut one, Momentum::Absent).unwrap();
        let rule = Rule { tensors: &tensors, ..Rule::MEAN };
        let by_rule = merge_chunk_by(&rule, &chunks, average, &mut two, Momentum::Absent, None);
        prop_assert_eq!(by_rule.unwrap(), plain);
        prop_assert!(bits(&one) == bits(&two));
    }
}
