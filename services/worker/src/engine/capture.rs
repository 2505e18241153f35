//! The contribution of a fragment: global weights minus parameters, encoded chunk by chunk.

use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use merge::SeededRounding;
use merge::codec::{encode, encoded_bytes};
use privacy::{BLOCK_ELEMENTS, Noising};
use rayon::prelude::*;
use schemas::layout::Chunk;
use schemas::run::CodecKind;
use schemas::{Code, Fragment, Refusal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use trainer::{TrainerError, Weights};
use worker_core::WorkId;

use super::session::Session;

/// A fragment's difference to encode.
#[derive(Clone, Debug)]
pub(crate) struct Capture {
    pub(crate) work: WorkId,
    pub(crate) fragment: Fragment,
    pub(crate) stop: CancellationToken,
    pub(crate) codec: CodecKind,
    pub(crate) rounding: SeededRounding,
    /// The fragment's chunks, each with its index in the whole contribution.
    pub(crate) chunks: Vec<(usize, Chunk)>,
}

/// Encoded chunks with their index, or the reason why one could not be made.
pub(crate) type EncodedChunks = mpsc::Receiver<Result<(usize, Bytes), Refusal>>;
/// The sending end, with room for every chunk.
pub(super) type Sender = mpsc::Sender<Result<(usize, Bytes), Refusal>>;

impl Session {
    /// Encodes a fragment from the parameters as they are now. It ends early when the unit is
    /// stopped, and when nobody receives any more.
    ///
    /// # Errors
    /// A chunk cannot be made; those before it were sent.
    pub(super) fn capture(&mut self, capture: &Capture, chunks: &Sender) -> Result<(), Refusal> {
        let outside = capture
            .chunks
            .iter()
            .position(|(_, chunk)| chunk.fragment != capture.fragment.0);
        let whole = &capture.chunks[..outside.unwrap_or(capture.chunks.len())];
        self.encode(capture, whole, chunks)?;
        let Some((index, _)) = outside.map(|at| &capture.chunks[at]) else {
            return Ok(());
        };
        let detail = format!("chunk {index} is not of fragment {}", capture.fragment.0);
        Err(Refusal::new(Code::LayoutMismatch, detail))
    }

    /// Encodes chunks where the weights are: in memory or on the card.
    fn encode(
        &mut self,
        capture: &Capture,
        chunks: &[(usize, Chunk)],
        sender: &Sender,
    ) -> Result<(), Refusal> {
        if capture.stop.is_cancelled() {
            return Ok(());
        }
        let pieces: Vec<_> = chunks.iter().map(|(_, chunk)| chunk.range()).collect();
        let mut indexes = chunks.iter().map(|(index, _)| *index);
        let mut take = |bytes| {
            let index = indexes.next().expect("one piece for each chunk");
            let sent = sender.try_send(Ok((index, bytes)));
            if sent.is_err() || capture.stop.is_cancelled() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let Capture {
            codec, rounding, ..
        } = *capture;
        let noising = self.noising(capture.work)?;
        match (&mut self.residual, noising) {
            (_, Some(noising)) => {
                let mut weights = self.trainer.weights()?;
                let weights = weights.as_mut();
                encode_noised(weights, &noising, codec, rounding, &pieces, &mut take)?;
            }
            (None, None) => {
                let mut weights = self.trainer.weights()?;
                weights.encode(codec, rounding, &pieces, &mut take)?;
            }
            (Some(residual), None) => {
                let values = &mut *self.trainer.feedback()?;
                residual.encode(values, codec, rounding, &pieces, &mut take)?;
            }
        }
        Ok(())
    }
}

/// Encodes clipped and noised pieces, in this machine's memory wherever the weights are, so that
/// there is one computation that has to be right.
fn encode_noised(
    weights: &mut dyn Weights,
    noising: &Noising,
    codec: CodecKind,
    rounding: SeededRounding,
    pieces: &[Range<usize>],
    take: &mut dyn FnMut(Bytes) -> ControlFlow<()>,
) -> Result<(), Refusal> {
    let mut noised = Vec::new();
    for piece in pieces {
        let (global, local) = weights.read(piece.clone())?;
        noised.resize(piece.len(), 0.0);
        let given = global.par_chunks(BLOCK_ELEMENTS);
        let given = given.zip(local.par_chunks(BLOCK_ELEMENTS));
        let blocks = noised.par_chunks_mut(BLOCK_ELEMENTS).zip(given);
        blocks
            .enumerate()
            .for_each(|(block, (noised, (global, local)))| {
                let start = piece.start + block * BLOCK_ELEMENTS;
                noising.apply(start, global, local, noised);
            });
        let mut out = vec![0; encoded_bytes(codec, noised.len())];
        let rounding = rounding.skip(piece.start);
        encode(codec, &noised, rounding, &mut out).map_err(TrainerError::from)?;
        if take(out.into()).is_break() {
            break;
        }
    }
    Ok(())
}
