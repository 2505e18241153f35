//! Global and local weights that lie on a device. The difference is made and encoded there, and
//! the encoding crosses the bus; global weights are decoded there. So is the residual of error
//! feedback (`feedback`).
//!
//! A call that brings bytes from the device waits for them. Every other call returns as soon as the
//! device has its orders; [`Weights::settle`] waits until it has done them.

use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use merge::SeededRounding;
use merge::codec::{CodecError, encoded_bytes};
use schemas::run::CodecKind;
use tch::{Kind, Tensor};
use trainer::{Alpha, Arrival, TrainerError, Weights, check_range};

use crate::codec;
use crate::error::TorchError;
use crate::lane::Lane;

mod feedback;

pub(crate) use feedback::{CardFeedback, CardResidual};

/// The global weights on a device.
#[derive(Debug)]
pub(crate) struct CardGlobal {
    tensor: Tensor,
    /// Elements that are encoded or decoded at once.
    block_elements: usize,
    /// The pieces that were last read to this machine's memory.
    host: [Vec<f32>; 2],
}

/// The weights of a trainer on a device.
pub(crate) struct CardWeights<'a> {
    pub(crate) global: &'a mut CardGlobal,
    pub(crate) local: &'a Tensor,
    pub(crate) lane: &'a mut Lane,
}

impl CardGlobal {
    /// As many zeros on the device as there are parameters.
    pub(crate) fn zeros(local: &Tensor) -> Result<Self, TorchError> {
        let tensor = Tensor::f_zeros([local.size1()?], (Kind::Float, local.device()))?;
        Ok(Self {
            tensor,
            block_elements: codec::BLOCK_ELEMENTS,
            host: [Vec::new(), Vec::new()],
        })
    }

    /// The global weights beside these parameters; zeros, if there are none yet.
    pub(crate) fn of<'a>(
        made: &'a mut Option<Self>,
        local: &Tensor,
    ) -> Result<&'a mut Self, TorchError> {
        match made {
            Some(global) => Ok(global),
            None => Ok(made.insert(Self::zeros(local)?)),
        }
    }
}

impl CardWeights<'_> {
    fn within(&self, range: &Range<usize>) -> Result<(Tensor, Tensor), TrainerError> {
        check_range(range, self.local.numel())?;
        Ok((part(&self.global.tensor, range)?, part(self.local, range)?))
    }
}

impl CardGlobal {
    /// The encoding of global minus local weights for one piece, computed on the device. The piece
    /// lies within the vectors.
    fn encoded(
        &self,
        local: &Tensor,
        codec: CodecKind,
        rounding: SeededRounding,
        piece: &Range<usize>,
    ) -> Result<Tensor, TorchError> {
        let bytes = encoded_bytes(codec, piece.len());
        let encoded = Tensor::f_empty([bytes as i64], (Kind::Uint8, local.device()))?;
        for block in self.blocks(piece) {
            let difference = self.difference(local, &block)?;
            let place = part(&encoded, &encoding_of(codec, piece, &block))?;
            codec::encode(codec, difference, rounding.skip(block.start), &place)?;
        }
        Ok(encoded)
    }

    /// Global minus local weights of a block, on the device.
    fn difference(&self, local: &Tensor, block: &Range<usize>) -> Result<Tensor, TorchError> {
        Ok(part(&self.tensor, block)?.f_sub(&part(local, block)?)?)
    }

    /// Decodes a piece that is within.
    fn decode(
        &self,
        codec: CodecKind,
        bytes: &Tensor,
        piece: &Range<usize>,
    ) -> Result<(), TorchError> {
        for block in self.blocks(piece) {
            let encoded = part(bytes, &encoding_of(codec, piece, &block))?;
            codec::decode(codec, &encoded, &part(&self.tensor, &block)?)?;
        }
        Ok(())
    }

    /// Cuts a range into the stretches in which it is worked on.
    fn blocks(&self, range: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (end, step) = (range.end, self.block_elements);
        let starts = range.clone().step_by(step);
        starts.map(move |start| start..end.min(start + step))
    }
}

/// The pieces before the first one that reaches past the end, and the error of that one.
fn within(pieces: &[Range<usize>], elements: usize) -> (&[Range<usize>], Result<(), TrainerError>) {
    for (at, piece) in pieces.iter().enumerate() {
        if let Err(outside) = check_range(piece, elements) {
            return (&pieces[..at], Err(outside));
        }
    }
    (pieces, Ok(()))
}

/// The bytes of a block within the encoding of its piece.
fn encoding_of(codec: CodecKind, piece: &Range<usize>, block: &Range<usize>) -> Range<usize> {
    let bytes = |element: usize| encoded_bytes(codec, element - piece.start);
    bytes(block.start)..bytes(block.end)
}

impl Weights for CardWeights<'_> {
    fn load(
        &mut self,
        codec: CodecKind,
        range: Range<usize>,
        bytes: &[u8],
        arrival: Arrival,
    ) -> Result<(), TrainerError> {
        let (global, mut local) = self.within(&range)?;
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
            let bytes = self.lane.send(bytes)?;
            self.global.decode(codec, &bytes, &range)?;
            if arrival == Arrival::TakesOver {
                local.f_copy_(&global)?;
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
        let (whole, outside) = within(pieces, self.local.numel());
        let (global, local) = (&*self.global, self.local);
        let sources = whole
            .iter()
            .map(|piece| global.encoded(local, codec, rounding, piece));
        self.lane.fetch(sources, take)?;
        outside
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

    fn settle(&mut self) -> Result<(), TrainerError> {
        Ok(self.lane.settle()?)
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
