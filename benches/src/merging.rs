//! The outer step on a whole model: four bf16 contributions, weighted mean, Nesterov, bf16
//! broadcast. Memory is the bound: the rate counts the bytes that the work must read or write once,
//! and stands beside that of a copy by all threads in the same run.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;
use merge::{Broadcast, ContributionChunk, Momentum, SeededRounding, codec};
use schemas::run::{CodecKind, OuterOptimizer};

use crate::Effort;
use crate::row::{Reach, Row};

const STOCK: OuterOptimizer = OuterOptimizer::Nesterov {
    learning_rate: 0.7,
    momentum: 0.9,
};
const CONTRIBUTIONS: usize = 4;
const BF16_BYTES: usize = 2;
const FP32_BYTES: usize = 4;

struct Buffers {
    params: Vec<f32>,
    momentum: Vec<f32>,
    contributions: Vec<Vec<u8>>,
    broadcast: Vec<u8>,
    copy: Vec<f32>,
}

/// Measures merge and copy in turns, so that both see the same machine.
pub(crate) fn measure(effort: Effort) -> Result<Vec<Row>> {
    let (elements, repetitions) = if effort == Effort::Full {
        (100_000_000, 9)
    } else {
        (10_000_000, 3)
    };
    let mut buffers = Buffers::new(elements)?;
    // Read: contributions, parameters, momentum. Written: parameters, momentum, broadcast.
    let touched = elements * (CONTRIBUTIONS * BF16_BYTES + 4 * FP32_BYTES + BF16_BYTES);
    let copied = elements * 2 * FP32_BYTES;
    // The comparison of directions, before the merge, reads contributions alone.
    let compared = elements * CONTRIBUTIONS * BF16_BYTES;
    let (mut merge, mut memcpy, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    let (mut directions, mut beside) = (Vec::new(), Vec::new());
    for turn in 0..=repetitions {
        let copy_rate = rate(copied, || buffers.copy());
        let merge_rate = rate(touched, || buffers.merge());
        let directions_rate = rate(compared, || buffers.compare());
        // The first turn touches fresh pages.
        if turn > 0 {
            memcpy.push(copy_rate);
            merge.push(merge_rate);
            ratio.push(merge_rate / copy_rate);
            directions.push(directions_rate);
            let (merge_time, directions_time) = (
                touched as f64 / merge_rate,
                compared as f64 / directions_rate,
            );
            beside.push(directions_time / merge_time);
        }
    }
    let threads = format!(
        "{} parameters, {} threads",
        elements,
        rayon::current_num_threads()
    );
    Ok(vec![
        Row::new("memcpy, all threads", "GB/s", memcpy).note(&threads),
        Row::new("merge of 4 bf16 + Nesterov + bf16 broadcast", "GB/s", merge).note(threads),
        Row::new("merge beside memcpy", "ratio", ratio).reach(Reach::AtLeast(0.5)),
        Row::new("directions of 4 bf16 compared", "GB/s", directions),
        Row::new("time to compare, beside the merge", "ratio", beside),
    ])
}

impl Buffers {
    fn new(elements: usize) -> Result<Self> {
        let wave = |phase: usize| {
            (0..elements).map(move |i| ((i * 7919 + phase * 104_729) % 2003) as f32 * 1e-5 - 0.01)
        };
        let params: Vec<f32> = wave(0).collect();
        let mut contributions = Vec::new();
        for index in 0..CONTRIBUTIONS {
            let local: Vec<f32> = wave(index + 1).collect();
            let mut out = vec![0; codec::encoded_bytes(CodecKind::Bf16, elements)];
            codec::encode_difference(
                CodecKind::Bf16,
                &params,
                &local,
                SeededRounding::NEAREST,
                &mut out,
            )?;
            contributions.push(out);
        }
        let broadcast = vec![0; codec::encoded_bytes(CodecKind::Bf16, elements)];
        Ok(Self {
            momentum: vec![0.0; elements],
            copy: vec![0.0; elements],
            params,
            contributions,
            broadcast,
        })
    }

    fn merge(&mut self) {
        let codec = CodecKind::Bf16;
        let chunks: Vec<_> = self
            .contributions
            .iter()
            .map(|bytes| ContributionChunk {
                weight: 1000,
                codec,
                bytes,
            })
            .collect();
        let broadcast = Broadcast {
            codec,
            rounding: SeededRounding::NEAREST,
            out: &mut self.broadcast,
        };
        let momentum = Momentum::Running(&mut self.momentum);
        let merged =
            merge::merge_chunk_and_encode(&chunks, STOCK, &mut self.params, momentum, broadcast);
        assert!(
            merged.expect("all buffers were made for this").is_finite(),
            "the wave is bounded"
        );
    }

    fn compare(&self) {
        let parts: Vec<_> = self
            .contributions
            .iter()
            .map(|bytes| merge::Voice {
                contributions: vec![bytes.as_slice()],
                scale: 1.0,
                votes: true,
            })
            .collect();
        let found = merge::directions(CodecKind::Bf16, &parts, self.params.len());
        let cosines = found.expect("all buffers were made for this").cosines();
        assert_eq!(black_box(cosines).len(), CONTRIBUTIONS);
    }

    fn copy(&mut self) {
        copy(black_box(&self.params), &mut self.copy);
    }
}

/// Copies with all threads.
pub(crate) fn copy(from: &[f32], to: &mut [f32]) {
    let share = from.len().div_ceil(rayon::current_num_threads()).max(1);
    rayon::scope(|scope| {
        for (to, from) in to.chunks_mut(share).zip(from.chunks(share)) {
            scope.spawn(move |_| to.copy_from_slice(from));
        }
    });
}

/// Runs `work` and returns its rate in GB/s (10^9 bytes).
pub(crate) fn rate(bytes: usize, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    bytes as f64 / start.elapsed().as_secs_f64() / 1e9
}
