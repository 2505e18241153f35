//! The contribution of a fragment: global weights minus parameters, encoded chunk by chunk.

use std::ops::ControlFlow;

use bytes::Bytes;
use merge::SeededRounding;
use schemas::layout::Chunk;
use schemas::run::CodecKind;
use schemas::{Code, Refusal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use trainer::Trainer;
use worker_core::WorkId;

use super::Fragment;
use super::residual::Residual;
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
    /// Encodes a fragment from the present parameters. Ends early when the unit is stopped, when
    /// nobody receives any more, and after a chunk that cannot be made.
    pub(super) fn capture(&mut self, capture: &Capture, chunks: &Sender) {
        let outside = capture
            .chunks
            .iter()
            .position(|(_, chunk)| chunk.fragment != capture.fragment.0);
        let whole = &capture.chunks[..outside.unwrap_or(capture.chunks.len())];
        let encoded = match &mut self.residual {
            None => encode(self.trainer.as_mut(), capture, whole, chunks),
            Some(residual) => {
                encode_with_residual(self.trainer.as_mut(), residual, capture, whole, chunks)
            }
        };
        let failed = encoded.err().or_else(|| {
            let (index, _) = capture.chunks.get(outside?)?;
            Some(Refusal::new(
                Code::LayoutMismatch,
                format!("chunk {index} is not of fragment {}", capture.fragment.0),
            ))
        });
        let Some(refusal) = failed else {
            return;
        };
        if capture.stop.is_cancelled() {
            // The failure is logged here: the unit is over, and a device that failed will fail the
            // next unit as well.
            let (code, detail) = (refusal.code, &refusal.detail);
            tracing::warn!(%code, %detail, "a stopped unit's contribution could not be encoded");
        } else {
            // The channel has room for one; without a receiver nobody needs the answer.
            drop(chunks.try_send(Err(refusal)));
        }
    }
}

/// Encodes chunks where the weights are: in memory or on the card.
fn encode(
    trainer: &mut dyn Trainer,
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
    let mut weights = trainer.weights()?;
    Ok(weights.encode(capture.codec, capture.rounding, &pieces, &mut take)?)
}

/// Encodes chunks on the processor, where the residual is.
fn encode_with_residual(
    trainer: &mut dyn Trainer,
    residual: &mut Residual,
    capture: &Capture,
    chunks: &[(usize, Chunk)],
    sender: &Sender,
) -> Result<(), Refusal> {
    let mut weights = trainer.weights()?;
    for (index, chunk) in chunks {
        if capture.stop.is_cancelled() {
            return Ok(());
        }
        let range = chunk.range();
        let (global, local) = weights.read(range.clone())?;
        let rounding = capture.rounding.skip(range.start);
        let bytes = residual.encode(capture.codec, rounding, range, global, local)?;
        if sender.try_send(Ok((*index, bytes))).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
