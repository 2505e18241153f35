//! Error feedback in the place where a trainer keeps its weights, so that a contribution leaves a
//! device as its encodings only. [`merge::encode_with_feedback`] states the rule.

use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use merge::codec::encoded_bytes;
use merge::{FeedbackChunk, SeededRounding, encode_with_feedback};
use schemas::run::CodecKind;

use crate::{TrainerError, check_range};

/// A residual of two flat vectors in the order of the layout. One is owed: it goes into the next
/// contribution. The other is left over from the encodings of a contribution whose end is not
/// known. New vectors are zeros.
pub trait Feedback {
    /// Overwrites the owed values from element `start` on.
    ///
    /// # Errors
    /// `values` reaches past the end, or the device failed.
    fn owe(&mut self, start: usize, values: &[f32]) -> Result<(), TrainerError>;

    /// Encodes global minus local weights plus the owed values, as [`crate::Weights::encode`] does
    /// without them. What an encoding lacks is left over, and nothing owed changes. Left over of a
    /// piece is what its last encoding lacks, handed over or not: a device works ahead. Pieces
    /// start at a multiple of the codec's block.
    ///
    /// # Errors
    /// A piece reaches past the end (those before it were handed over), or the device failed.
    fn encode(
        &mut self,
        codec: CodecKind,
        rounding: SeededRounding,
        pieces: &[Range<usize>],
        take: &mut dyn FnMut(Bytes) -> ControlFlow<()>,
    ) -> Result<(), TrainerError>;

    /// What was left over of a range is owed from now on. If one of its values is NaN or infinite,
    /// nothing of the range is owed, and the answer is false: the screen accepts no such piece, so
    /// no value of the range is trusted.
    ///
    /// # Errors
    /// The range reaches past the end, or the device failed.
    fn keep(&mut self, range: Range<usize>) -> Result<bool, TrainerError>;

    /// Nothing of a range is owed any more.
    ///
    /// # Errors
    /// The range reaches past the end, or the device failed.
    fn forget(&mut self, range: Range<usize>) -> Result<(), TrainerError>;

    /// Copies all owed values to `values`, whose memory is used again.
    ///
    /// # Errors
    /// The device failed.
    fn copy_owed(&mut self, values: &mut Vec<f32>) -> Result<(), TrainerError>;
}

/// A residual in this machine's memory. It takes none before it is first used.
#[derive(Clone, Debug, Default)]
pub struct HostResidual {
    owed: Vec<f32>,
    left: Vec<f32>,
}

/// The residual beside weights in this machine's memory.
#[derive(Debug)]
pub struct HostFeedback<'a> {
    global: &'a [f32],
    local: &'a [f32],
    residual: &'a mut HostResidual,
}

impl<'a> HostFeedback<'a> {
    /// The residual of these weights.
    ///
    /// # Panics
    /// If global and local weights have not one length.
    pub fn new(global: &'a [f32], local: &'a [f32], residual: &'a mut HostResidual) -> Self {
        assert_eq!(
            global.len(),
            local.len(),
            "global and local weights are of one layout"
        );
        residual.owed.resize(local.len(), 0.0);
        residual.left.resize(local.len(), 0.0);
        Self {
            global,
            local,
            residual,
        }
    }

    fn encode_piece(
        &mut self,
        codec: CodecKind,
        rounding: SeededRounding,
        piece: &Range<usize>,
    ) -> Result<Bytes, TrainerError> {
        check_range(piece, self.local.len())?;
        let owed = FeedbackChunk {
            base: &self.global[piece.clone()],
            local: &self.local[piece.clone()],
            residual: &self.residual.owed[piece.clone()],
        };
        let mut out = vec![0; encoded_bytes(codec, piece.len())];
        let left = &mut self.residual.left[piece.clone()];
        encode_with_feedback(codec, owed, rounding.skip(piece.start), &mut out, left)?;
        Ok(out.into())
    }
}

impl Feedback for HostFeedback<'_> {
    fn owe(&mut self, start: usize, values: &[f32]) -> Result<(), TrainerError> {
        let range = start..start.saturating_add(values.len());
        check_range(&range, self.local.len())?;
        self.residual.owed[range].copy_from_slice(values);
        Ok(())
    }

    fn encode(
        &mut self,
        codec: CodecKind,
        rounding: SeededRounding,
        pieces: &[Range<usize>],
        take: &mut dyn FnMut(Bytes) -> ControlFlow<()>,
    ) -> Result<(), TrainerError> {
        for piece in pieces {
            if take(self.encode_piece(codec, rounding, piece)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn keep(&mut self, range: Range<usize>) -> Result<bool, TrainerError> {
        check_range(&range, self.local.len())?;
        let HostResidual { owed, left } = &mut *self.residual;
        let (owed, left) = (&mut owed[range.clone()], &left[range]);
        let trusted = left.iter().all(|value| value.is_finite());
        match trusted {
            true => owed.copy_from_slice(left),
            false => owed.fill(0.0),
        }
        Ok(trusted)
    }

    fn forget(&mut self, range: Range<usize>) -> Result<(), TrainerError> {
        check_range(&range, self.local.len())?;
        self.residual.owed[range].fill(0.0);
        Ok(())
    }

    fn copy_owed(&mut self, values: &mut Vec<f32>) -> Result<(), TrainerError> {
        values.clone_from(&self.residual.owed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODEC: CodecKind = CodecKind::E3m0;

    /// Encodes pieces, and returns the number that were handed over before `take` had enough.
    fn encode(feedback: &mut HostFeedback<'_>, pieces: &[Range<usize>], enough: usize) -> usize {
        let mut taken = 0;
        let mut take = |_| {
            taken += 1;
            match taken < enough {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        };
        let encoded = feedback.encode(CODEC, SeededRounding::NEAREST, pieces, &mut take);
        encoded.expect("within");
        taken
    }

    fn owed(feedback: &mut HostFeedback<'_>) -> Vec<f32> {
        let mut values = Vec::new();
        feedback
            .copy_owed(&mut values)
            .expect("memory does not fail");
        values
    }

    #[test]
    fn what_is_left_over_is_owed_once_it_is_kept_and_until_it_is_forgotten() {
        let (global, local) = ([1.0; 512], [0.9; 512]);
        let mut residual = HostResidual::default();
        let mut feedback = HostFeedback::new(&global, &local, &mut residual);
        feedback.owe(256, &[0.03; 256]).expect("within");
        let before = [[0.0; 256], [0.03; 256]].concat();
        assert_eq!(encode(&mut feedback, &[0..256, 256..512], 9), 2);
        assert_eq!(owed(&mut feedback), before, "only left over so far");
        feedback.owe(0, &[0.01; 1]).expect("within");
        assert_eq!(encode(&mut feedback, &[0..256, 256..512], 1), 1);
        assert!(feedback.keep(0..256).expect("within"));
        let kept = owed(&mut feedback);
        assert_ne!(kept[0], 0.01);
        assert_ne!(kept[1], 0.0);
        assert_eq!(kept[256..], before[256..], "of another range");
        feedback.forget(1..512).expect("within");
        let mut rest = vec![0.0; 512];
        rest[0] = kept[0];
        assert_eq!(owed(&mut feedback), rest);
    }

    #[test]
    fn a_range_with_a_value_that_is_no_number_owes_nothing() {
        let (global, mut local) = ([0.0; 512], [0.1; 512]);
        local[300] = f32::INFINITY;
        let mut residual = HostResidual::default();
        let mut feedback = HostFeedback::new(&global, &local, &mut residual);
        feedback.owe(0, &[0.5; 512]).expect("within");
        assert_eq!(encode(&mut feedback, &[0..256, 256..512], 9), 2);
        assert!(feedback.keep(0..256).expect("within"));
        assert!(!feedback.keep(256..512).expect("within"));
        let rest = owed(&mut feedback);
        assert!(rest[..256].iter().all(|value| *value != 0.5));
        assert_eq!(rest[256..], [0.0; 256]);
    }

    #[test]
    fn a_range_past_the_end_is_refused() {
        let (global, local) = ([0.0; 2], [0.0; 2]);
        let mut residual = HostResidual::default();
        let mut feedback = HostFeedback::new(&global, &local, &mut residual);
        assert!(feedback.owe(1, &[1.0; 2]).is_err() && feedback.owe(usize::MAX, &[1.0]).is_err());
        assert!(feedback.keep(1..3).is_err() && feedback.forget(1..3).is_err());
        let piece = 1..3;
        let pieces = std::slice::from_ref(&piece);
        let encoded = feedback.encode(CODEC, SeededRounding::NEAREST, pieces, &mut |_| {
            panic!("nothing was made")
        });
        assert!(encoded.is_err());
        assert_eq!(owed(&mut feedback), [0.0; 2]);
    }
}
