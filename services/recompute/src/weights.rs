//! A run's fp32 weights and outer momentum, chunk by chunk, and the outer step on one chunk.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use merge::codec::encoded_bytes;
use merge::{
    BLOCK_ELEMENTS, Broadcast, ContributionChunk, MergeError, Momentum, SeededRounding,
    broadcast_seed, merge_chunk, merge_chunk_and_encode,
};
use rayon::prelude::*;
use schemas::Round;
use schemas::lease::Weights as Published;
use schemas::run::{Codec, CodecKind, OuterOptimizer, RunSpec};
use schemas::snapshot::Slot;

/// The state between two rounds. A chunk may be shared with a save that has not written it yet; the
/// next step then works on a copy.
#[derive(Clone, Debug)]
pub struct Weights {
    /// The round that starts from them.
    pub round: Round,
    /// One piece for each chunk.
    pub pieces: Vec<Piece>,
    /// The copy that workers have.
    pub broadcast: Published,
}

/// One chunk: its parameters, and the outer state beside them.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    /// Its parameters.
    pub params: Arc<Vec<f32>>,
    /// Values of each slot, as many as parameters. The optimizer's state exists after the first
    /// step.
    pub slots: BTreeMap<Slot, Arc<Vec<f32>>>,
}

/// The arithmetic that a step applies to every chunk.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    optimizer: OuterOptimizer,
    upload: CodecKind,
    download: Codec,
    /// The seed of the broadcast's rounding, for the whole vector.
    seed: u64,
    /// True for the run's first step.
    first: bool,
}

/// One chunk of one contribution: its weight in the mean, and its encoding.
pub type Part = (u64, Bytes);

/// The outcome of a step on one chunk.
#[derive(Debug)]
pub struct Stepped {
    /// The new parameters as they are published.
    pub broadcast: Vec<u8>,
    /// The sum of squares of the mean contribution.
    pub sum_of_squares: f64,
    /// True when every new parameter is a number.
    pub finite: bool,
}

/// Running sums of a block, so that the processor can add several at a time.
const LANES: usize = 8;

impl Weights {
    /// True before the first step if the optimizer keeps momentum. For an optimizer without
    /// momentum it is always true.
    pub fn is_first(&self) -> bool {
        self.pieces.iter().all(Piece::is_first)
    }
}

impl Piece {
    /// The same for one chunk: see [`Weights::is_first`].
    pub fn is_first(&self) -> bool {
        !self.slots.contains_key(&Slot::Momentum)
    }

    /// Makes the missing slots that `step` writes.
    fn complete(&mut self, step: Step) {
        if merge::outer::keeps_momentum(step.optimizer) {
            let elements = self.params.len();
            let slot = self.slots.entry(Slot::Momentum);
            slot.or_insert_with(|| Arc::new(vec![0.0; elements]));
        }
    }
}

impl Step {
    /// The step that closes `round`; `first` is true if no momentum was kept before.
    pub fn new(spec: &RunSpec, round: Round, first: bool) -> Self {
        Self {
            optimizer: spec.outer,
            upload: spec.upload.kind,
            download: spec.download,
            seed: broadcast_seed(spec.seed, round),
            first,
        }
    }

    /// Merges one chunk whose first element is element `start` of the whole vector. The blocks run
    /// in parallel, and each element gets the same bits as from [`merge::merge_chunk_and_encode`]
    /// on the whole chunk.
    pub fn run(self, piece: &mut Piece, parts: &[Part], start: u64) -> Result<Stepped, MergeError> {
        piece.complete(self);
        let params = Arc::make_mut(&mut piece.params).as_mut_slice();
        let block_bytes = encoded_bytes(self.download.kind, BLOCK_ELEMENTS);
        let mut broadcast = vec![0; encoded_bytes(self.download.kind, params.len())];
        let count = params.len().div_ceil(BLOCK_ELEMENTS);
        let momenta: Vec<Option<&mut [f32]>> = match piece.slots.get_mut(&Slot::Momentum) {
            Some(momentum) => Arc::make_mut(momentum)
                .chunks_mut(BLOCK_ELEMENTS)
                .map(Some)
                .collect(),
            None => (0..count).map(|_| None).collect(),
        };
        let blocks = params
            .par_chunks_mut(BLOCK_ELEMENTS)
            .zip(broadcast.par_chunks_mut(block_bytes))
            .zip(momenta);
        let stepped = blocks.enumerate().map_init(
            || vec![0.0; BLOCK_ELEMENTS],
            |scratch, (block, ((params, out), momentum))| {
                let offset = block * BLOCK_ELEMENTS;
                let parts = self.slices(parts, offset, params.len());
                let sum_of_squares = sum_of_squares(&parts, &mut scratch[..params.len()])?;
                let momentum = match momentum {
                    None => Momentum::Absent,
                    Some(buffer) if self.first => Momentum::First(buffer),
                    Some(buffer) => Momentum::Running(buffer),
                };
                let first_element = start + offset as u64;
                let rounding = SeededRounding {
                    rule: self.download.rounding,
                    seed: self.seed,
                    first_element,
                };
                let broadcast = Broadcast {
                    codec: self.download.kind,
                    rounding,
                    out,
                };
                let merged =
                    merge_chunk_and_encode(&parts, self.optimizer, params, momentum, broadcast)?;
                Ok((sum_of_squares, merged.is_finite()))
            },
        );
        let stepped: Vec<(f64, bool)> = stepped.collect::<Result<_, MergeError>>()?;
        let sum_of_squares = stepped.iter().map(|(sum, _)| sum).sum();
        let finite = stepped.iter().all(|(_, finite)| *finite);
        Ok(Stepped {
            broadcast,
            sum_of_squares,
            finite,
        })
    }

    fn slices<'a>(
        self,
        parts: &'a [Part],
        offset: usize,
        elements: usize,
    ) -> Vec<ContributionChunk<'a>> {
        let codec = self.upload;
        let range = encoded_bytes(codec, offset)..encoded_bytes(codec, offset + elements);
        // The merge refuses a part that is too short, and names it.
        let slice = |(weight, bytes): &'a Part| ContributionChunk {
            weight: *weight,
            codec,
            bytes: bytes.get(range.clone()).unwrap_or_default(),
        };
        parts.iter().map(slice).collect()
    }
}

/// The sum of squares of the mean of `parts`: plain averaging from zero leaves the negative mean.
/// The block is still in the cache when the step itself reads it.
fn sum_of_squares(parts: &[ContributionChunk<'_>], scratch: &mut [f32]) -> Result<f64, MergeError> {
    scratch.fill(0.0);
    // Finiteness is checked on the parameters, not here; the caller handles a sum that is not a
    // number.
    let _ = merge_chunk(parts, OuterOptimizer::Average, scratch, Momentum::Absent)?;
    let mut lanes = [0.0_f64; LANES];
    let (groups, rest) = scratch.as_chunks::<LANES>();
    for group in groups {
        for (lane, value) in lanes.iter_mut().zip(group) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(*value) * f64::from(*value);
    }
    Ok(lanes.iter().sum())
}

#[cfg(test)]
mod tests {
    use schemas::run::Rounding;

    use super::*;

    const ELEMENTS: usize = 2 * BLOCK_ELEMENTS + 77;

    fn parts() -> Vec<Part> {
        let encode = |seed: usize| -> Bytes {
            let value = |i: usize| (((i * 7 + seed) % 101) as f32 - 50.0) * 1e-3;
            (0..ELEMENTS).flat_map(|i| value(i).to_le_bytes()).collect()
        };
        vec![(3, encode(1)), (5, encode(2)), (1, encode(3))]
    }

    fn step(first: bool) -> Step {
        let download = Codec {
            kind: CodecKind::Bf16,
            rounding: Rounding::Stochastic,
        };
        let optimizer = OuterOptimizer::Nesterov {
            learning_rate: 0.7,
            momentum: 0.9,
        };
        Step {
            optimizer,
            upload: CodecKind::Fp32,
            download,
            seed: 42,
            first,
        }
    }

    /// Blocks change nothing: `merge_chunk_and_encode` on the whole chunk gives the same bits.
    #[test]
    fn a_step_is_the_merge_of_the_whole_chunk() {
        let parts = parts();
        let start = vec![0.25; ELEMENTS];
        let mut piece = Piece {
            params: Arc::new(start.clone()),
            slots: BTreeMap::from([(Slot::Momentum, Arc::new(vec![9.0; ELEMENTS]))]),
        };
        let (mut params, mut momentum) = (start, vec![0.0; ELEMENTS]);
        for first in [true, false] {
            let stepped = step(first).run(&mut piece, &parts, 1000).expect("it fits");
            let whole: Vec<_> = step(first).slices(&parts, 0, ELEMENTS);
            let mut out = vec![0; encoded_bytes(CodecKind::Bf16, ELEMENTS)];
            let rounding = SeededRounding {
                rule: Rounding::Stochastic,
                seed: 42,
                first_element: 1000,
            };
            let broadcast = Broadcast {
                codec: CodecKind::Bf16,
                rounding,
                out: &mut out,
            };
            let state = if first {
                Momentum::First(&mut momentum)
            } else {
                Momentum::Running(&mut momentum)
            };
            let merged = merge_chunk_and_encode(
                &whole,
                step(first).optimizer,
                &mut params,
                state,
                broadcast,
            );
            assert!(merged.expect("it fits").is_finite() && stepped.finite);
            assert_eq!(stepped.broadcast, out);
            assert_eq!(*piece.params, params);
            assert_eq!(*piece.slots[&Slot::Momentum], momentum);
            let mut mean = vec![0.0; ELEMENTS];
            let _ = merge_chunk(&whole, OuterOptimizer::Average, &mut mean, Momentum::Absent)
                .expect("it fits");
            let expected: f64 = mean.iter().map(|value| f64::from(*value).powi(2)).sum();
            assert!((stepped.sum_of_squares / expected - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn a_part_of_the_wrong_size_is_refused() {
        let mut piece = Piece {
            params: Arc::new(vec![0.0; ELEMENTS]),
            slots: BTreeMap::new(),
        };
        let short = vec![(1, parts()[0].1.slice(..400))];
        assert!(matches!(
            step(true).run(&mut piece, &short, 0),
            Err(MergeError::Mean(_))
        ));
    }

    /// A save holds the old chunk while the next step works on a copy.
    #[test]
    fn a_shared_chunk_is_not_changed_under_its_reader() {
        let saved = Arc::new(vec![1.0; ELEMENTS]);
        let mut piece = Piece {
            params: Arc::clone(&saved),
            slots: BTreeMap::new(),
        };
        step(true).run(&mut piece, &parts(), 0).expect("it fits");
        assert!(saved.iter().all(|value| *value == 1.0));
        assert_ne!(*piece.params, *saved);
    }
}
