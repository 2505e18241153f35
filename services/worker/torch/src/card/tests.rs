//! The code of the card on tensors of the CPU, where it computes the same.

#[path = "comparison.rs"]
mod comparison;

use comparison::{ELEMENTS_MIN, WithFeedback, compare, compare_feedback};
use tch::Device;
use trainer::Feedback;

use super::*;
use crate::shim::most_memory;

struct OnTheCpu {
    global: CardGlobal,
    local: Tensor,
    lane: Lane,
    residual: CardResidual,
}

impl WithFeedback for OnTheCpu {
    fn weights(&mut self) -> Box<dyn Weights + '_> {
        Box::new(self.weights())
    }

    fn feedback(&mut self) -> Box<dyn Feedback + '_> {
        Box::new(CardFeedback {
            global: &self.global,
            local: &self.local,
            residual: &self.residual,
            lane: &mut self.lane,
        })
    }
}

impl OnTheCpu {
    fn new(elements: usize) -> Self {
        Self::with(
            elements,
            Lane::open(Device::Cpu).expect("a processor"),
            codec::BLOCK_ELEMENTS,
        )
    }

    fn with(elements: usize, lane: Lane, block_elements: usize) -> Self {
        let local = Tensor::zeros([elements as i64], (Kind::Float, Device::Cpu));
        let global = CardGlobal::zeros(&local).expect("room for it");
        Self {
            global: CardGlobal {
                block_elements,
                ..global
            },
            lane,
            residual: CardResidual::zeros(&local).expect("room for it"),
            local,
        }
    }

    fn weights(&mut self) -> CardWeights<'_> {
        CardWeights {
            global: &mut self.global,
            local: &self.local,
            lane: &mut self.lane,
        }
    }
}

#[test]
fn weights_as_tensors_are_bit_for_bit_those_in_memory() {
    for elements in [ELEMENTS_MIN, ELEMENTS_MIN + 77] {
        let mut cpu = OnTheCpu::new(elements);
        compare(&mut cpu.weights(), elements);
        compare_feedback(&mut cpu, elements);
    }
}

#[test]
fn weights_that_cross_in_many_pieces_and_are_worked_on_in_many_blocks_are_the_same() {
    // Slots that end within an element, a block and a word of noise; blocks of one E3M0 block.
    for (slot_bytes, block_elements) in [(1021, 256), (4099, 512), (1 << 20, 1024)] {
        let elements = ELEMENTS_MIN + 77;
        let lane = Lane::with_slots(Device::Cpu, slot_bytes).expect("a processor");
        let mut cpu = OnTheCpu::with(elements, lane, block_elements);
        compare(&mut cpu.weights(), elements);
        compare_feedback(&mut cpu, elements);
    }
}

#[test]
fn blocks_of_work_are_whole_for_every_codec() {
    for kind in CodecKind::ALL.iter().copied() {
        let block = merge::codec::block_elements(kind);
        assert!(codec::BLOCK_ELEMENTS.is_multiple_of(block), "{kind:?}");
    }
}

#[test]
fn the_temporaries_of_feedback_stay_within_the_bound() {
    const ELEMENTS: usize = 1 << 20;
    let cpu = OnTheCpu::new(ELEMENTS);
    for kind in CodecKind::ALL.iter().copied() {
        let (nearest, whole) = (SeededRounding::NEAREST, 0..ELEMENTS);
        let most = most_memory(|| {
            let weights = (&cpu.global, &cpu.local);
            let encoded = cpu.residual.encoded(weights, kind, nearest, &whole);
            drop(encoded.expect("within"));
        });
        let bound = codec::ENCODING_BYTES_MAX * ELEMENTS + encoded_bytes(kind, ELEMENTS);
        assert!(most <= bound, "{kind:?} takes {most} bytes");
    }
}

/// The pieces of one element each that `take` receives if it breaks after `enough`.
fn handed_over(pieces: &[Range<usize>], enough: usize) -> (Vec<Bytes>, Result<(), TrainerError>) {
    let mut cpu = OnTheCpu::new(10);
    let values: Vec<u8> = (0..10_u8)
        .flat_map(|at| f32::from(at).to_le_bytes())
        .collect();
    let mut weights = cpu.weights();
    let fp32 = CodecKind::Fp32;
    weights
        .load(fp32, 0..10, &values, Arrival::Waits)
        .expect("fits");
    let mut taken = Vec::new();
    let mut take = |bytes| {
        taken.push(bytes);
        if taken.len() < enough {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    };
    let ended = weights.encode(fp32, SeededRounding::NEAREST, pieces, &mut take);
    (taken, ended)
}

#[test]
fn pieces_come_in_order_until_somebody_has_enough() {
    let pieces: Vec<_> = (0..10).map(|at| at..at + 1).collect();
    let expected: Vec<Bytes> = (0..10_u8)
        .map(|at| Bytes::copy_from_slice(&f32::from(at).to_le_bytes()))
        .collect();
    for enough in [1, 2, 3, 4, 9, 10, 99] {
        let (taken, ended) = handed_over(&pieces, enough);
        ended.expect("nothing went wrong");
        assert_eq!(taken, expected[..enough.min(10)], "{enough}");
    }
}

#[test]
fn a_piece_past_the_end_is_an_error_after_the_pieces_before_it() {
    let (taken, ended) = handed_over(&[3..4, 9..11, 5..6], 99);
    assert_eq!(taken, [&3.0_f32.to_le_bytes()[..]]);
    assert!(matches!(ended, Err(TrainerError::Input(_))));
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut cpu = OnTheCpu::new(10);
    let mut weights = cpu.weights();
    let wrong = weights.load(CodecKind::Bf16, 0..10, &[0; 19], Arrival::TakesOver);
    let error = wrong.expect_err("one byte is missing");
    assert_eq!(error.code(), schemas::Code::SizeMismatch);
    assert!(weights.read(5..11).is_err());
    assert!(weights.blend(5..11, Alpha::TAKE_OVER).is_err());
    let mut feedback = WithFeedback::feedback(&mut cpu);
    assert!(feedback.owe(5, &[0.0; 6]).is_err() && feedback.keep(5..11).is_err());
    assert!(feedback.forget(5..11).is_err());
    let pieces = [5..11, 0..5];
    let fp32 = CodecKind::Fp32;
    let encoded = feedback.encode(fp32, SeededRounding::NEAREST, &pieces, &mut |_| {
        panic!("nothing was made")
    });
    assert!(matches!(encoded, Err(TrainerError::Input(_))));
}
