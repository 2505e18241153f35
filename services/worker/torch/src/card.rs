//! Global and local weights that lie on a device. The difference is made and encoded there, and
//! only the encoding crosses the bus; global weights are decoded there.

use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use merge::SeededRounding;
use merge::codec::{CodecError, encoded_bytes};
use schemas::run::CodecKind;
use tch::{Kind, Tensor};
use trainer::{Alpha, TrainerError, Weights, check_range};

use crate::codec;
use crate::error::TorchError;
use crate::lane::Lane;

/// What weights on a device need besides the parameters.
#[derive(Debug)]
pub(crate) struct CardGlobal {
    tensor: Tensor,
    /// Pieces that were read to this machine's memory last.
    host: [Vec<f32>; 2],
}

/// The weights of a trainer on a device.
pub(crate) struct CardWeights<'a> {
    pub(crate) global: &'a mut CardGlobal,
    pub(crate) local: &'a Tensor,
    pub(crate) lane: &'a Lane,
}

impl CardGlobal {
    /// Zeros on the device of the parameters.
    pub(crate) fn zeros(local: &Tensor) -> Result<Self, TorchError> {
        let tensor = Tensor::f_zeros([local.size1()?], (Kind::Float, local.device()))?;
        Ok(Self {
            tensor,
            host: [Vec::new(), Vec::new()],
        })
    }
}

impl CardWeights<'_> {
    fn within(&self, range: &Range<usize>) -> Result<(Tensor, Tensor), TrainerError> {
        check_range(range, self.local.numel())?;
        Ok((part(&self.global.tensor, range)?, part(self.local, range)?))
    }

    /// The encoding of a piece that is within, on the device.
    fn encoded(
        &self,
        codec: CodecKind,
        rounding: SeededRounding,
        piece: &Range<usize>,
    ) -> Result<Tensor, TorchError> {
        let difference = part(&self.global.tensor, piece)?.f_sub(&part(self.local, piece)?)?;
        codec::encode(codec, &difference, rounding.skip(piece.start))
    }
}

impl Weights for CardWeights<'_> {
    fn load(
        &mut self,
        codec: CodecKind,
        range: Range<usize>,
        bytes: &[u8],
        take_over: bool,
    ) -> Result<(), TrainerError> {
        let (mut global, mut local) = self.within(&range)?;
        let expected_bytes = encoded_bytes(codec, range.len());
        if bytes.len() != expected_bytes {
            return Err(TrainerError::Codec(CodecError::WrongLength {
                elements: range.len(),
                expected_bytes,
                got_bytes: bytes.len(),
            }));
        }
        let _no_grad = tch::no_grad_guard();
        let mut write = || -> Result<(), TorchError> {
            let values = codec::decode(codec, &self.lane.send(bytes)?, range.len())?;
            global.f_copy_(&values)?;
            if take_over {
                local.f_copy_(&values)?;
            }
            Ok(())
        };
        Ok(write()?)
    }

    fn blend(&mut self, range: Range<usize>, alpha: Alpha) -> Result<(), TrainerError> {
        let (global, local) = self.within(&range)?;
        let _no_grad = tch::no_grad_guard();
        Ok(mix(local, &global, alpha)?)
    }

    fn encode(
        &mut self,
        codec: CodecKind,
        rounding: SeededRounding,
        pieces: &[Range<usize>],
        take: &mut dyn FnMut(Bytes) -> ControlFlow<()>,
    ) -> Result<(), TrainerError> {
        let _no_grad = tch::no_grad_guard();
        let elements = self.local.numel();
        let outside = pieces
            .iter()
            .map(|piece| check_range(piece, elements))
            .position(|checked| checked.is_err());
        let whole = &pieces[..outside.unwrap_or(pieces.len())];
        let sources = whole
            .iter()
            .map(|piece| self.encoded(codec, rounding, piece));
        self.lane
            .fetch(sources, &mut |fetched| take(Bytes::from_owner(fetched)))?;
        outside.map_or(Ok(()), |at| check_range(&pieces[at], elements))
    }

    fn read(&mut self, range: Range<usize>) -> Result<(&[f32], &[f32]), TrainerError> {
        let (global, local) = self.within(&range)?;
        for (host, part) in self.global.host.iter_mut().zip([global, local]) {
            host.resize(range.len(), 0.0);
            self.lane.read(&part, host)?;
        }
        let [global, local] = &self.global.host;
        Ok((global, local))
    }
}

/// The same operations, rounded in the same order, as [`merge::blend()`].
fn mix(mut local: Tensor, global: &Tensor, alpha: Alpha) -> Result<(), TorchError> {
    let share = alpha.share();
    if alpha == Alpha::TAKE_OVER {
        local.f_copy_(global)?;
    } else if share != 1.0 {
        let rest = global.f_mul_scalar(f64::from(1.0 - share))?;
        let _ = local.f_mul_scalar_(f64::from(share))?.f_add_(&rest)?;
    }
    Ok(())
}

fn part(vector: &Tensor, range: &Range<usize>) -> Result<Tensor, TorchError> {
    Ok(vector.f_narrow(0, range.start as i64, range.len() as i64)?)
}

#[cfg(test)]
mod tests;
