//! Measures the speed at which a chunk is merged, screened and encoded with each codec, beside
//! memcpy and sha256 on the same machine in the same run.
//!
//! `cargo run --release -p merge --example throughput -- [parameters] [contributions]
//! [repetitions]`; defaults are 100 000 000, 4 and 7. GB/s count every byte that the work must read
//! or write once (1 GB = 10^9 bytes), so a memcpy of `n` bytes counts `2 n`. Times are medians.
#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use merge::{
    Broadcast, ContributionChunk, FeedbackChunk, Momentum, Rule, SeededRounding, TensorPiece,
    codec, encode_with_feedback,
};
use schemas::run::{CodecKind, Combination, OuterOptimizer, Rounding};
use sha2::{Digest, Sha256};

const STOCK: OuterOptimizer = OuterOptimizer::Nesterov {
    learning_rate: 0.7,
    momentum: 0.9,
};

struct Bench {
    params: Vec<f32>,
    momentum: Vec<f32>,
    contributions: Vec<Vec<u8>>,
    broadcast: Vec<u8>,
    repetitions: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let mut argument = |default| arguments.next().unwrap_or(Ok(default));
    let (elements, contributions, repetitions) =
        (argument(100_000_000)?, argument(4)?, argument(7)?);
    let mut bench = Bench::new(elements, contributions, repetitions.max(1))?;
    let threads = rayon::current_num_threads();
    println!(
        "{elements} parameters, {contributions} bf16 contributions, {threads} threads, median of {repetitions}\n"
    );
    println!(
        "{:<44} {:>9} {:>8} {:>9}",
        "work", "ms", "GB/s", "of memcpy"
    );
    bench.run()?;
    Ok(())
}

impl Bench {
    fn new(
        elements: usize,
        contributions: usize,
        repetitions: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let wave = |phase: usize| {
            (0..elements).map(move |i| ((i * 7919 + phase * 104_729) % 2003) as f32 * 1e-5 - 0.01)
        };
        let params: Vec<f32> = wave(0).collect();
        let mut encoded = Vec::new();
        for index in 0..contributions {
            let local: Vec<f32> = wave(index + 1).collect();
            let mut out = vec![0; codec::encoded_bytes(CodecKind::Bf16, elements)];
            codec::encode_difference(
                CodecKind::Bf16,
                &params,
                &local,
                SeededRounding::NEAREST,
                &mut out,
            )?;
            encoded.push(out);
        }
        let broadcast = vec![0; codec::encoded_bytes(CodecKind::Bf16, elements)];
        Ok(Self {
            momentum: vec![0.0; elements],
            params,
            contributions: encoded,
            broadcast,
            repetitions,
        })
    }

    fn run(&mut self) -> Result<(), Box<dyn Error>> {
        let elements = self.params.len();
        let (fp32, bf16) = (4 * elements, 2 * elements);
        let inputs = self.contributions.len() * bf16;
        let mut copy = vec![0.0_f32; elements];

        let params = &self.params;
        let one = median(self.repetitions, || copy.copy_from_slice(black_box(params)));
        let memcpy_one = row("memcpy, 1 thread", one, 2 * fp32, None);
        let all = median(self.repetitions, || {
            copy_in_parallel(black_box(params), &mut copy)
        });
        let memcpy = row("memcpy, all threads", all, 2 * fp32, Some(memcpy_one)).max(memcpy_one);
        let beside = Some(memcpy);

        let took = median(self.repetitions, || self.merge(None));
        row("merge + Nesterov", took, inputs + 4 * fp32, beside);
        for (name, rule) in [
            ("bf16 nearest", Rounding::Nearest),
            ("bf16 stochastic", Rounding::Stochastic),
        ] {
            let took = median(self.repetitions, || self.merge(Some(rule)));
            row(
                &format!("merge + Nesterov + {name} broadcast"),
                took,
                inputs + 4 * fp32 + bf16,
                beside,
            );
        }
        for rule in [
            Combination::Mean,
            Combination::Clipped { norm_ratio: 1.5 },
            Combination::Trimmed { each_end: 1 },
            Combination::Median,
            Combination::Radial,
        ] {
            let took = median(self.repetitions, || self.combine(rule));
            let name = format!("merge + Nesterov by {rule:?}");
            row(&name, took, inputs + 4 * fp32, beside);
        }
        for codec in CodecKind::ALL.iter().copied() {
            self.codec(codec, &mut copy, beside);
        }
        let first = &self.contributions[0];
        let took = median(self.repetitions, || Sha256::digest(black_box(first)));
        row("sha256 of one contribution, 1 thread", took, bf16, beside);
        Ok(())
    }

    /// The work of a worker and of the coordinator on one contribution in this codec.
    fn codec(&mut self, kind: CodecKind, decoded: &mut [f32], beside: Option<f64>) {
        let (name, elements) = (kind.name(), self.params.len());
        let (fp32, encoded) = (4 * elements, codec::encoded_bytes(kind, elements));
        let mut out = vec![0; encoded];
        for (rule_name, rule) in [
            ("nearest", Rounding::Nearest),
            ("stochastic", Rounding::Stochastic),
        ] {
            let rounding = SeededRounding {
                rule,
                seed: 1,
                first_element: 0,
            };
            let (params, momentum) = (&self.params, &self.momentum);
            let took = median(self.repetitions, || {
                codec::encode_difference(kind, black_box(params), momentum, rounding, &mut out)
            });
            let name = format!("encode difference {name} {rule_name}");
            row(&name, took, 2 * fp32 + encoded, beside);
        }
        let residual = vec![0.0; elements];
        let owed = FeedbackChunk {
            base: &self.params,
            local: &self.momentum,
            residual: &residual,
        };
        let nearest = SeededRounding::NEAREST;
        let took = median(self.repetitions, || {
            encode_with_feedback(kind, black_box(owed), nearest, &mut out, decoded)
        });
        let touched = 4 * fp32 + encoded;
        row(
            &format!("encode with feedback {name}"),
            took,
            touched,
            beside,
        );
        let took = median(self.repetitions, || {
            merge::screen(kind, black_box(&out), elements)
        });
        row(&format!("screen {name}"), took, encoded, beside);
        let took = median(self.repetitions, || {
            codec::decode(kind, black_box(&out), decoded)
        });
        row(&format!("decode {name}"), took, encoded + fp32, beside);
        let chunk = ContributionChunk {
            weight: 1,
            codec: kind,
            bytes: &out,
        };
        let average = OuterOptimizer::Average;
        let took = median(self.repetitions, || {
            merge::merge_chunk(black_box(&[chunk; 4]), average, decoded, Momentum::Absent)
        });
        let touched = 4 * encoded + 2 * fp32;
        row(&format!("accumulate 4 {name}"), took, touched, beside);
    }

    /// A merge by a rule of combination, as one tensor.
    fn combine(&mut self, combination: Combination) -> merge::Merged {
        let chunks = chunks(&self.contributions);
        let tensor = TensorPiece {
            range: 0..self.params.len(),
            embedding: false,
        };
        let rule = Rule {
            combination,
            norms: &vec![1.0; chunks.len()],
            tensors: &[tensor],
        };
        let (params, momentum) = (&mut self.params, Momentum::Running(&mut self.momentum));
        let merged = merge::merge_chunk_by(&rule, &chunks, STOCK, params, momentum, None);
        merged.expect("all buffers were made for this chunk")
    }

    fn merge(&mut self, rule: Option<Rounding>) -> merge::Merged {
        let codec = CodecKind::Bf16;
        let chunks = chunks(&self.contributions);
        let momentum = Momentum::Running(&mut self.momentum);
        let merged = match rule {
            None => merge::merge_chunk(&chunks, STOCK, &mut self.params, momentum),
            Some(rule) => {
                let rounding = SeededRounding {
                    rule,
                    seed: 1,
                    first_element: 0,
                };
                let broadcast = Broadcast {
                    codec,
                    rounding,
                    out: &mut self.broadcast,
                };
                merge::merge_chunk_and_encode(&chunks, STOCK, &mut self.params, momentum, broadcast)
            }
        };
        merged.expect("all buffers were made for this chunk")
    }
}

fn chunks(contributions: &[Vec<u8>]) -> Vec<ContributionChunk<'_>> {
    let chunk = |bytes| ContributionChunk {
        weight: 1000,
        codec: CodecKind::Bf16,
        bytes,
    };
    contributions
        .iter()
        .map(|bytes| chunk(bytes.as_slice()))
        .collect()
}

fn copy_in_parallel(from: &[f32], to: &mut [f32]) {
    let share = from.len().div_ceil(rayon::current_num_threads()).max(1);
    rayon::scope(|scope| {
        for (to, from) in to.chunks_mut(share).zip(from.chunks(share)) {
            scope.spawn(move |_| to.copy_from_slice(from));
        }
    });
}

/// Median time, after one run that is not counted.
fn median<R>(repetitions: usize, mut work: impl FnMut() -> R) -> Duration {
    black_box(work());
    let mut times: Vec<Duration> = (0..repetitions)
        .map(|_| {
            let start = Instant::now();
            black_box(work());
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// Prints a line and returns GB/s.
fn row(name: &str, took: Duration, bytes: usize, beside: Option<f64>) -> f64 {
    let rate = bytes as f64 / took.as_secs_f64() / 1e9;
    let share = beside.map_or(String::new(), |memcpy| {
        format!("{:.0} %", 100.0 * rate / memcpy)
    });
    println!(
        "{name:<44} {:>9.2} {rate:>8.1} {share:>9}",
        took.as_secs_f64() * 1e3
    );
    rate
}
