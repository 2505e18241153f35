//! The weights of a model that syncs, in the place where its trainer keeps them. Steps start from
//! the global weights, and a contribution is the difference from them; the local weights are the
//! trainer's parameters. Only encoded chunks go in and out, so that weights on a device stay there.

use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use merge::SeededRounding;
use merge::codec::{decode, encode_difference, encoded_bytes};
use schemas::run::CodecKind;

use crate::{Alpha, TrainerError};

/// The treatment of global weights that arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// They replace only the global weights; a blend mixes them into the local weights later.
    Waits,
    /// They replace the local weights too.
    TakesOver,
}

/// Global and local weights; both are flat vectors in the order of the layout. New global weights
/// are zeros.
///
/// Ranges start at a multiple of the codec's block.
pub trait Weights {
    /// Decodes global weights into their place.
    ///
    /// # Errors
    /// The range reaches past the end, `bytes` are not its encoding's length, or the device failed.
    fn load(
        &mut self,
        codec: CodecKind,
        range: Range<usize>,
        bytes: &[u8],
        arrival: Arrival,
    ) -> Result<(), TrainerError>;

    /// Mixes the global weights of a range into the local ones.
    ///
    /// # Errors
    /// The range reaches past the end, or the device failed.
    fn blend(&mut self, range: Range<usize>, alpha: Alpha) -> Result<(), TrainerError>;

    /// Encodes global minus local weights, one piece after another, and hands over each as soon as
    /// it is in this machine's memory, until `take` breaks. `rounding` is that of element 0.
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

    /// Global and local weights of a range in this machine's memory: the live ones, or a copy.
    ///
    /// # Errors
    /// The range reaches past the end, or the device failed.
    fn read(&mut self, range: Range<usize>) -> Result<(&[f32], &[f32]), TrainerError>;

    /// Waits until all loaded and blended weights are in place: a device may still work after those
    /// calls have returned.
    ///
    /// # Errors
    /// The device failed at it.
    fn settle(&mut self) -> Result<(), TrainerError>;
}

/// Weights in this machine's memory.
#[derive(Debug)]
pub struct HostWeights<'a> {
    global: &'a mut [f32],
    local: &'a mut [f32],
}

impl<'a> HostWeights<'a> {
    /// The weights in two slices.
    ///
    /// # Panics
    /// If the two have not one length.
    pub fn new(global: &'a mut [f32], local: &'a mut [f32]) -> Self {
        assert_eq!(
            global.len(),
            local.len(),
            "global and local weights are of one layout"
        );
        Self { global, local }
    }

    fn within(&mut self, range: Range<usize>) -> Result<(&mut [f32], &mut [f32]), TrainerError> {
        check_range(&range, self.global.len())?;
        Ok((&mut self.global[range.clone()], &mut self.local[range]))
    }
}

/// Refuses a range that is not within `elements`.
///
/// # Errors
/// [`TrainerError::Input`].
pub fn check_range(range: &Range<usize>, elements: usize) -> Result<(), TrainerError> {
    if range.start <= range.end && range.end <= elements {
        Ok(())
    } else {
        Err(TrainerError::Input(format!(
            "elements {} to {} of {elements} parameters",
            range.start, range.end
        )))
    }
}

impl Weights for HostWeights<'_> {
    fn load(
        &mut self,
        codec: CodecKind,
        range: Range<usize>,
        bytes: &[u8],
        arrival: Arrival,
    ) -> Result<(), TrainerError> {
        let (global, local) = self.within(range)?;
        decode(codec, bytes, global)?;
        if arrival == Arrival::TakesOver {
            local.copy_from_slice(global);
        }
        Ok(())
    }

    fn blend(&mut self, range: Range<usize>, alpha: Alpha) -> Result<(), TrainerError> {
        let (global, local) = self.within(range)?;
        merge::blend(local, global, alpha.share());
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
            let (global, local) = self.within(piece.clone())?;
            let mut out = vec![0; encoded_bytes(codec, global.len())];
            encode_difference(codec, global, local, rounding.skip(piece.start), &mut out)?;
            if take(out.into()).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn read(&mut self, range: Range<usize>) -> Result<(&[f32], &[f32]), TrainerError> {
        let (global, local) = self.within(range)?;
        Ok((global, local))
    }

    fn settle(&mut self) -> Result<(), TrainerError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(values: &[f32]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }

    #[test]
    fn weights_that_take_over_are_the_local_ones_too() {
        let (mut global, mut local) = ([0.0; 4], [9.0; 4]);
        let mut weights = HostWeights::new(&mut global, &mut local);
        let fp32 = CodecKind::Fp32;
        let bytes = encoded(&[1.0, 2.0]);
        weights
            .load(fp32, 0..2, &bytes, Arrival::TakesOver)
            .expect("fits");
        weights
            .load(fp32, 2..4, &bytes, Arrival::Waits)
            .expect("fits");
        assert_eq!(
            weights.read(0..4).expect("within"),
            (&[1.0, 2.0, 1.0, 2.0][..], &[1.0, 2.0, 9.0, 9.0][..])
        );
        let half = Alpha::new(0.5).expect("a share");
        weights.blend(2..3, half).expect("within");
        weights.blend(3..4, Alpha::TAKE_OVER).expect("within");
        assert_eq!(weights.read(2..4).expect("within").1, [5.0, 2.0]);
    }

    #[test]
    fn pieces_come_in_order_until_somebody_has_enough() {
        let (mut global, mut local) = ([4.0, 5.0, 6.0], [1.0; 3]);
        let mut weights = HostWeights::new(&mut global, &mut local);
        let mut taken = Vec::new();
        let mut take = |bytes: Bytes| {
            taken.push(bytes);
            if taken.len() < 2 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        let pieces = [0..1, 1..2, 2..3];
        weights
            .encode(CodecKind::Fp32, SeededRounding::NEAREST, &pieces, &mut take)
            .expect("within");
        assert_eq!(taken, [encoded(&[3.0]), encoded(&[4.0])]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (mut global, mut local) = ([0.0; 2], [0.0; 2]);
        let mut weights = HostWeights::new(&mut global, &mut local);
        let wrong = weights.load(CodecKind::Fp32, 0..2, &[0; 7], Arrival::TakesOver);
        let error = wrong.expect_err("one byte is missing");
        assert_eq!(error.code(), schemas::Code::SizeMismatch);
        assert!(weights.read(1..3).is_err() && weights.read(3..3).is_err());
        let backwards = Range { start: 2, end: 1 };
        assert!(weights.blend(backwards, Alpha::TAKE_OVER).is_err());
        let piece = 2..4;
        let encoded = weights.encode(
            CodecKind::Fp32,
            SeededRounding::NEAREST,
            std::slice::from_ref(&piece),
            &mut |_| panic!("nothing was made"),
        );
        assert!(encoded.is_err());
    }
}
