//! A run's fp32 weights and outer momentum, chunk by chunk, and the outer step on one chunk.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use merge::codec::encoded_bytes;
use merge::{
    Broadcast, ContributionChunk, MergeError, Momentum, Rule, SeededRounding, broadcast_seed,
    merge_chunk_by,
};
use schemas::Round;
use schemas::lease::Weights as Published;
use schemas::run::{Codec, CodecKind, Combination, OuterOptimizer, RunSpec};
use schemas::snapshot::Slot;

use crate::context::Place;

/// The state between two rounds. A chunk may be shared with a save that has not written it yet; the
/// next step then works on a copy.
#[derive(Clone, Debug)]
pub struct Weights {
    /// The round that starts from them.
    pub round: Round,
    /// One piece for each chunk.
    pub pieces: Vec<Piece>,
    /// The published copy of the weights, which workers download: its codec and its chunks.
    pub broadcast: Published,
}

/// One chunk: its parameters, and the outer state beside them.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    /// Its parameters.
    pub params: Arc<Vec<f32>>,
    /// The outer state: one value per parameter for each slot. Momentum exists after the first
    /// step, if the optimizer keeps it.
    pub slots: BTreeMap<Slot, Arc<Vec<f32>>>,
}

/// The arithmetic that a step applies to every chunk.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    combination: Combination,
    optimizer: OuterOptimizer,
    upload: CodecKind,
    download: Codec,
    /// The seed of the broadcast's rounding, for the whole vector.
    seed: u64,
    /// True if there is no momentum from an earlier step; the step then overwrites the buffer.
    /// Without meaning for an optimizer that keeps none.
    first: bool,
}

/// One chunk of one contribution.
#[derive(Clone, Debug)]
pub struct Part {
    /// The contribution's weight in the mean.
    pub weight: u64,
    /// The contribution's norm, in a run whose rule of combination needs it.
    pub norm: Option<f32>,
    /// The cosine of the contribution's direction to the mean direction of the others in its round;
    /// none if it was not compared.
    pub cosine: Option<f32>,
    /// The encoding of the chunk.
    pub bytes: Bytes,
}

/// The outcome of a step on one chunk.
#[derive(Debug)]
pub struct Stepped {
    /// The new parameters as they are published.
    pub broadcast: Vec<u8>,
    /// The sum of squares of the combined contribution.
    pub sum_of_squares: f64,
    /// True if every new parameter is finite.
    pub finite: bool,
}

impl Weights {
    /// True if no chunk has momentum: before the first step, and always for an optimizer that keeps
    /// none.
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
    /// The step from the weights of `round` to the next; `first` is true if there is no momentum
    /// from an earlier step.
    pub fn new(spec: &RunSpec, round: Round, first: bool) -> Self {
        Self {
            combination: spec.combination,
            optimizer: spec.outer,
            upload: spec.upload.kind,
            download: spec.download,
            seed: broadcast_seed(spec.seed, round),
            first,
        }
    }

    /// Makes the outer step on one chunk. `piece` and every part must hold all of its elements,
    /// since a rule may look at all of them first.
    pub fn run(
        self,
        piece: &mut Piece,
        parts: &[Part],
        place: &Place,
    ) -> Result<Stepped, MergeError> {
        piece.complete(self);
        let params = Arc::make_mut(&mut piece.params).as_mut_slice();
        let mut out = vec![0; encoded_bytes(self.download.kind, params.len())];
        let momentum = match piece.slots.get_mut(&Slot::Momentum) {
            None => Momentum::Absent,
            Some(buffer) if self.first => Momentum::First(Arc::make_mut(buffer).as_mut_slice()),
            Some(buffer) => Momentum::Running(Arc::make_mut(buffer).as_mut_slice()),
        };
        let contributions: Vec<_> = parts.iter().map(|part| self.contribution(part)).collect();
        let norms: Vec<f32> = parts.iter().filter_map(|part| part.norm).collect();
        let rule = Rule {
            combination: self.combination,
            norms: &norms,
            tensors: &place.tensors,
        };
        let broadcast = Broadcast {
            codec: self.download.kind,
            rounding: SeededRounding {
                rule: self.download.rounding,
                seed: self.seed,
                first_element: place.start,
            },
            out: &mut out,
        };
        let optimizer = self.optimizer;
        let broadcast = Some(broadcast);
        let merged = merge_chunk_by(
            &rule,
            &contributions,
            optimizer,
            params,
            momentum,
            broadcast,
        )?;
        Ok(Stepped {
            broadcast: out,
            sum_of_squares: merged.sum_of_squares,
            finite: merged.is_finite(),
        })
    }

    fn contribution(self, part: &Part) -> ContributionChunk<'_> {
        ContributionChunk {
            weight: part.weight,
            codec: self.upload,
            bytes: &part.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use merge::{BLOCK_ELEMENTS, TensorPiece, merge_chunk, merge_chunk_and_encode};
    use schemas::run::Rounding;

    use super::*;

    const ELEMENTS: usize = 2 * BLOCK_ELEMENTS + 77;

    fn parts() -> Vec<Part> {
        let encode = |seed: usize| -> Bytes {
            let value = |i: usize| (((i * 7 + seed) % 101) as f32 - 50.0) * 1e-3;
            (0..ELEMENTS).flat_map(|i| value(i).to_le_bytes()).collect()
        };
        let part = |weight, seed| Part {
            weight,
            norm: Some(weight as f32),
            cosine: None,
            bytes: encode(seed),
        };
        vec![part(3, 1), part(5, 2), part(1, 3)]
    }

    /// A chunk from element 1000 of the flat vector on, with two tensors.
    fn place() -> Place {
        let piece = |range, embedding| TensorPiece { range, embedding };
        Place {
            start: 1000,
            tensors: vec![piece(0..5000, true), piece(5000..ELEMENTS, false)],
        }
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
            combination: Combination::Mean,
            optimizer,
            upload: CodecKind::Fp32,
            download,
            seed: 42,
            first,
        }
    }

    #[test]
    fn a_step_is_the_merge_of_its_chunk() {
        let parts = parts();
        let start = vec![0.25; ELEMENTS];
        let mut piece = Piece {
            params: Arc::new(start.clone()),
            slots: BTreeMap::from([(Slot::Momentum, Arc::new(vec![9.0; ELEMENTS]))]),
        };
        let (mut params, mut momentum) = (start, vec![0.0; ELEMENTS]);
        for first in [true, false] {
            let stepped = step(first)
                .run(&mut piece, &parts, &place())
                .expect("it fits");
            let whole: Vec<_> = parts
                .iter()
                .map(|part| step(first).contribution(part))
                .collect();
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
        let mut short = parts();
        short[1].bytes = short[1].bytes.slice(..400);
        assert!(matches!(
            step(true).run(&mut piece, &short, &place()),
            Err(MergeError::Mean(_))
        ));
    }

    /// The facts that a rule needs come from the parts and from their place.
    #[test]
    fn each_rule_of_combination_gives_weights_of_its_own() {
        let rules = [
            Combination::Mean,
            Combination::Clipped { norm_ratio: 1.0 },
            Combination::Trimmed { each_end: 1 },
            Combination::Radial,
        ];
        let stepped = rules.map(|combination| {
            let mut piece = Piece {
                params: Arc::new(vec![0.0; ELEMENTS]),
                slots: BTreeMap::new(),
            };
            let step = Step {
                combination,
                ..step(true)
            };
            step.run(&mut piece, &parts(), &place())
                .expect("it fits")
                .broadcast
        });
        for (index, one) in stepped.iter().enumerate() {
            assert!(!stepped[..index].contains(one), "{:?}", rules[index]);
        }
        let mut unknown = parts();
        unknown[0].norm = None;
        let clipped = Step {
            combination: rules[1],
            ..step(true)
        };
        let mut piece = Piece {
            params: Arc::new(vec![0.0; ELEMENTS]),
            slots: BTreeMap::new(),
        };
        let refused = clipped.run(&mut piece, &unknown, &place());
        assert!(matches!(refused, Err(MergeError::Rule(_))));
    }

    /// A save holds the old chunk while the next step works on a copy.
    #[test]
    fn a_shared_chunk_is_not_changed_under_its_reader() {
        let saved = Arc::new(vec![1.0; ELEMENTS]);
        let mut piece = Piece {
            params: Arc::clone(&saved),
            slots: BTreeMap::new(),
        };
        step(true)
            .run(&mut piece, &parts(), &place())
            .expect("it fits");
        assert!(saved.iter().all(|value| *value == 1.0));
        assert_ne!(*piece.params, *saved);
    }
}
