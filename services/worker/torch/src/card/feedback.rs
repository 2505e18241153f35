//! The residual of error feedback on a device.

use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use merge::SeededRounding;
use merge::codec::encoded_bytes;
use schemas::run::CodecKind;
use tch::{Kind, Tensor};
use trainer::{Feedback, TrainerError, check_range};

use super::{CardGlobal, encoding_of, part, within};
use crate::codec;
use crate::error::TorchError;
use crate::lane::Lane;

/// With feedback, an encoding is decoded into a value for each element once its own temporaries are
/// gone.
const _: () = assert!(codec::DECODING_BYTES_MAX + size_of::<f32>() <= codec::ENCODING_BYTES_MAX);

/// A residual on a device: two vectors, as long as the parameters.
#[derive(Debug)]
pub(crate) struct CardResidual {
    owed: Tensor,
    left: Tensor,
}

/// The residual beside the weights of a trainer on a device.
pub(crate) struct CardFeedback<'a> {
    pub(crate) global: &'a CardGlobal,
    pub(crate) local: &'a Tensor,
    pub(crate) residual: &'a CardResidual,
    pub(crate) lane: &'a mut Lane,
}

impl CardResidual {
    /// The residual beside these parameters; zeros, if there is none yet.
    pub(crate) fn of<'a>(
        made: &'a mut Option<Self>,
        local: &Tensor,
    ) -> Result<&'a Self, TorchError> {
        match made {
            Some(residual) => Ok(residual),
            None => Ok(made.insert(Self::zeros(local)?)),
        }
    }

    /// Zeros on the device of the parameters.
    pub(crate) fn zeros(local: &Tensor) -> Result<Self, TorchError> {
        let zeros = || Tensor::f_zeros_like(local);
        Ok(Self {
            owed: zeros()?,
            left: zeros()?,
        })
    }

    /// The encoding of one piece, computed on the device. The piece lies within the vectors.
    pub(super) fn encoded(
        &self,
        (global, local): (&CardGlobal, &Tensor),
        codec: CodecKind,
        rounding: SeededRounding,
        piece: &Range<usize>,
    ) -> Result<Tensor, TorchError> {
        let bytes = encoded_bytes(codec, piece.len());
        let encoded = Tensor::f_empty([bytes as i64], (Kind::Uint8, local.device()))?;
        for block in global.blocks(piece) {
            let owed = part(&self.owed, &block)?;
            let sum = global.difference(local, &block)?.f_add_(&owed)?;
            let mut left = part(&self.left, &block)?;
            left.f_copy_(&sum)?;
            let place = part(&encoded, &encoding_of(codec, piece, &block))?;
            codec::encode(codec, sum, rounding.skip(block.start), &place)?;
            let decoded = left.f_empty_like()?;
            codec::decode(codec, &place, &decoded)?;
            let _ = left.f_sub_(&decoded)?;
        }
        Ok(encoded)
    }

    /// What was left over of a range is owed, if all its values are numbers.
    fn keep(&self, global: &CardGlobal, range: &Range<usize>) -> Result<bool, TorchError> {
        for block in global.blocks(range) {
            let finite = part(&self.left, &block)?.f_isfinite()?.f_all()?;
            if finite.f_int64_value(&[])? == 0 {
                self.forget(range)?;
                return Ok(false);
            }
        }
        part(&self.owed, range)?.f_copy_(&part(&self.left, range)?)?;
        Ok(true)
    }

    fn forget(&self, range: &Range<usize>) -> Result<(), TorchError> {
        let _ = part(&self.owed, range)?.f_fill_(0.0)?;
        Ok(())
    }
}

impl Feedback for CardFeedback<'_> {
    fn owe(&mut self, start: usize, values: &[f32]) -> Result<(), TrainerError> {
        let range = start..start.saturating_add(values.len());
        check_range(&range, self.local.numel())?;
        Ok(self.lane.write(&self.residual.owed, start, values)?)
    }

    fn encode(
        &mut self,
        codec: CodecKind,
        rounding: SeededRounding,
        pieces: &[Range<usize>],
        take: &mut dyn FnMut(Bytes) -> ControlFlow<()>,
    ) -> Result<(), TrainerError> {
        let _no_grad = tch::no_grad_guard();
        let (whole, outside) = within(pieces, self.local.numel());
        let Self {
            global,
            local,
            residual,
            lane,
        } = self;
        let sources = whole
            .iter()
            .map(|piece| residual.encoded((global, local), codec, rounding, piece));
        lane.fetch(sources, take)?;
        outside
    }

    fn keep(&mut self, range: Range<usize>) -> Result<bool, TrainerError> {
        check_range(&range, self.local.numel())?;
        let _no_grad = tch::no_grad_guard();
        Ok(self.residual.keep(self.global, &range)?)
    }

    fn forget(&mut self, range: Range<usize>) -> Result<(), TrainerError> {
        check_range(&range, self.local.numel())?;
        let _no_grad = tch::no_grad_guard();
        Ok(self.residual.forget(&range)?)
    }

    fn copy_owed(&mut self, values: &mut Vec<f32>) -> Result<(), TrainerError> {
        values.resize(self.local.numel(), 0.0);
        Ok(self.lane.read(&self.residual.owed, values)?)
    }
}
