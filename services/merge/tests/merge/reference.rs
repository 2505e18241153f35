//! The crate against the naive loops: equal bits for any number of threads, any cut into chunks and
//! any order of arrival.

use merge::{BLOCK_ELEMENTS, Broadcast, ContributionChunk, Momentum, SeededRounding, codec};
use proptest::prelude::*;
use schemas::run::{CodecKind, OuterOptimizer, Rounding};

use crate::naive::{self, Given};

fn codecs() -> impl Strategy<Value = CodecKind> {
    prop::sample::select(CodecKind::ALL)
}

/// A place to cut a chunk at which every codec's blocks stay whole.
fn place(cut: prop::sample::Index, elements: usize) -> usize {
    let cut = cut.index(elements + 1);
    let block = CodecKind::ALL
        .iter()
        .map(|codec| codec::block_elements(*codec))
        .max();
    cut - cut % block.unwrap()
}

fn roundings() -> impl Strategy<Value = SeededRounding> {
    let stochastic = (any::<u64>(), 0..1_u64 << 40);
    prop_oneof![
        Just(SeededRounding::NEAREST),
        stochastic.prop_map(|(seed, first_element)| SeededRounding {
            rule: Rounding::Stochastic,
            seed,
            first_element
        }),
    ]
}

/// The noise of an element depends on its place in the whole vector, in whichever block it lies.
#[test]
fn a_difference_of_several_blocks_has_the_noise_of_each_place() {
    let elements = 2 * BLOCK_ELEMENTS + 5000;
    let (base, local) = (naive::numbers(1, elements), naive::numbers(2, elements));
    let difference: Vec<f32> = base.iter().zip(&local).map(|(a, b)| a - b).collect();
    let rounding = SeededRounding {
        rule: Rounding::Stochastic,
        seed: 3,
        first_element: 1 << 30,
    };
    let expected = naive::encode(CodecKind::Bf16, &difference, rounding);
    let mut found = vec![0; expected.len()];
    codec::encode_difference(CodecKind::Bf16, &base, &local, rounding, &mut found).unwrap();
    assert!(found == expected);
}

fn optimizers() -> impl Strategy<Value = OuterOptimizer> {
    prop_oneof![
        Just(OuterOptimizer::Average),
        (0.01_f32..2.0).prop_map(|learning_rate| OuterOptimizer::Sgd { learning_rate }),
        (0.01_f32..2.0, 0.0_f32..0.99).prop_map(|(learning_rate, momentum)| {
            OuterOptimizer::Nesterov {
                learning_rate,
                momentum,
            }
        }),
    ]
}

/// Short chunks, chunks about a block long, and chunks of several blocks.
fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..3000_usize,
        BLOCK_ELEMENTS - 40..BLOCK_ELEMENTS + 40,
        0..3 * BLOCK_ELEMENTS
    ]
}

prop_compose! {
    fn contributions()(elements in lengths(), each in prop::collection::vec((any::<u32>(), codecs(), any::<u64>()), 1..=16))
        -> (usize, Vec<Given>)
    {
        let encode = |(weight, codec, seed)| {
            let values = naive::numbers(seed, elements);
            (u64::from(weight) + 1, codec, naive::encode(codec, &values, SeededRounding::NEAREST))
        };
        (elements, each.into_iter().map(encode).collect())
    }
}

/// The state of a run: parameters, momentum, broadcast.
#[derive(Clone, Debug, PartialEq)]
struct State {
    params: Vec<u32>,
    buffer: Vec<u32>,
    broadcast: Vec<u8>,
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Two outer steps, with the chunk cut at `cut`, on `threads` threads.
fn two_steps(
    given: &[Given],
    elements: usize,
    outer: OuterOptimizer,
    (down, rounding): (CodecKind, SeededRounding),
    cut: usize,
    threads: usize,
) -> State {
    let (mut params, mut buffer) = (naive::numbers(99, elements), vec![f32::NAN; elements]);
    let mut broadcast = vec![0; codec::encoded_bytes(down, elements)];
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    pool.install(|| {
        for step in 0..2 {
            for range in [0..cut, cut..elements] {
                let place = |codec| {
                    codec::encoded_bytes(codec, range.start)..codec::encoded_bytes(codec, range.end)
                };
                let chunks: Vec<_> = given
                    .iter()
                    .map(|(weight, codec, bytes)| ContributionChunk {
                        weight: *weight,
                        codec: *codec,
                        bytes: &bytes[place(*codec)],
                    })
                    .collect();
                let momentum = match (merge::outer::keeps_momentum(outer), step) {
                    (false, _) => Momentum::Absent,
                    (true, 0) => Momentum::First(&mut buffer[range.clone()]),
                    (true, _) => Momentum::Running(&mut buffer[range.clone()]),
                };
                let params = &mut params[range.clone()];
                let out = &mut broadcast[place(down)];
                let merged = if step == 0 {
                    merge::merge_chunk(&chunks, outer, params, momentum).unwrap()
                } else {
                    let broadcast = Broadcast {
                        codec: down,
                        rounding: rounding.skip(range.start),
                        out,
                    };
                    merge::merge_chunk_and_encode(&chunks, outer, params, momentum, broadcast)
                        .unwrap()
                };
                let largest = params
                    .iter()
                    .fold(0.0_f32, |max, param| max.max(param.abs()));
                assert_eq!(merged.params_abs_max, largest);
            }
        }
    });
    State {
        params: bits(&params),
        buffer: bits(&buffer),
        broadcast,
    }
}

/// Contributions of one codec are processed in fours, and the first four begin the mean; random
/// codecs seldom give such groups.
#[test]
fn fours_of_one_codec_give_what_one_after_another_gives() {
    let (elements, outer) = (700, OuterOptimizer::Average);
    for &codec in CodecKind::ALL {
        for count in [3, 4, 5, 7, 8, 9] {
            let each = (0..count).map(|seed| {
                let values = naive::numbers(seed, elements);
                let bytes = naive::encode(codec, &values, SeededRounding::NEAREST);
                (seed + 1, codec, bytes)
            });
            let given: Vec<Given> = each.collect();
            let (mut params, mut buffer) = (naive::numbers(99, elements), vec![f32::NAN; elements]);
            naive::merge(&given, outer, &mut params, &mut buffer, true);
            naive::merge(&given, outer, &mut params, &mut buffer, false);
            let down = (CodecKind::Fp32, SeededRounding::NEAREST);
            let found = two_steps(&given, elements, outer, down, elements, 1);
            assert!(found.params == bits(&params), "{count} of {codec:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn merge_follows_the_rules_for_any_threads_and_chunks(
        (elements, given) in contributions(),
        outer in optimizers(),
        down in (codecs(), roundings()),
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut params, mut buffer) = (naive::numbers(99, elements), vec![f32::NAN; elements]);
        naive::merge(&given, outer, &mut params, &mut buffer, true);
        naive::merge(&given, outer, &mut params, &mut buffer, false);
        let broadcast = naive::encode(down.0, &params, down.1);
        let expected = State { params: bits(&params), buffer: bits(&buffer), broadcast };
        let cut = place(cut, elements);
        for (threads, cut) in [(1, cut), (2, cut), (3, elements), (8, 0)] {
            let found = two_steps(&given, elements, outer, down, cut, threads);
            prop_assert!(found == expected, "{threads} threads, cut at {cut} of {elements}");
        }
    }

    #[test]
    fn arrival_order_does_not_matter_once_sorted_by_unit(
        (elements, given) in contributions(),
        shuffle in Just((0..16_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let outer = OuterOptimizer::Nesterov { learning_rate: 0.7, momentum: 0.9 };
        let down = (CodecKind::Bf16, SeededRounding::NEAREST);
        let expected = two_steps(&given, elements, outer, down, elements, 2);
        let mut arrived: Vec<(usize, Given)> =
            shuffle.into_iter().filter(|unit| *unit < given.len()).map(|unit| (unit, given[unit].clone())).collect();
        arrived.sort_by_key(|(unit, _)| *unit);
        let sorted: Vec<Given> = arrived.into_iter().map(|(_, given)| given).collect();
        prop_assert!(two_steps(&sorted, elements, outer, down, elements, 2) == expected);
    }

    #[test]
    fn codecs_follow_the_rules_for_any_chunks(
        elements in lengths(),
        seed in any::<u64>(),
        codec in codecs(),
        rounding in roundings(),
        cut in any::<prop::sample::Index>(),
    ) {
        let (base, local) = (naive::numbers(seed, elements), naive::numbers(!seed, elements));
        let difference: Vec<f32> = base.iter().zip(&local).map(|(base, local)| base - local).collect();
        let expected = naive::encode(codec, &difference, rounding);
        let (mut whole, mut fused) = (vec![0; expected.len()], vec![0; expected.len()]);
        codec::encode(codec, &difference, rounding, &mut whole).unwrap();
        prop_assert!(whole == expected);
        let cut = place(cut, elements);
        let (head, rest) = fused.split_at_mut(codec::encoded_bytes(codec, cut));
        codec::encode_difference(codec, &base[..cut], &local[..cut], rounding, head).unwrap();
        codec::encode_difference(codec, &base[cut..], &local[cut..], rounding.skip(cut), rest).unwrap();
        prop_assert!(fused == expected);
        let mut decoded = vec![0.0; elements];
        codec::decode(codec, &expected, &mut decoded).unwrap();
        prop_assert!(bits(&decoded) == bits(&naive::decode(codec, &expected, elements)));
    }

    #[test]
    fn screen_follows_its_order_of_additions(elements in lengths(), seed in any::<u64>(), codec in codecs()) {
        let bytes = naive::encode(codec, &naive::numbers(seed, elements), SeededRounding::NEAREST);
        let values = naive::decode(codec, &bytes, elements);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let found = pool.install(|| merge::screen(codec, &bytes, elements)).unwrap();
        prop_assert_eq!(found.sum_of_squares.to_bits(), naive::sum_of_squares(&values).to_bits());
        prop_assert_eq!(found.abs_max, values.iter().fold(0.0_f32, |max, value| max.max(value.abs())));
        prop_assert_eq!(found.elements, elements as u64);
    }
}
