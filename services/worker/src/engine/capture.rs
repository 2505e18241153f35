//! The contribution of a fragment: global weights minus parameters, encoded chunk by chunk.

use std::ops::ControlFlow;

use bytes::Bytes;
use merge::SeededRounding;
use schemas::layout::Chunk;
use schemas::run::CodecKind;
use schemas::{Code, Refusal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use worker_core::WorkId;

use super::Fragment;
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
        match &mut self.residual {
            None => {
                let mut weights = self.trainer.weights()?;
                weights.encode(codec, rounding, &pieces, &mut take)?;
            }
            Some(residual) => {
                let values = &mut *self.trainer.feedback()?;
                residual.encode(values, codec, rounding, &pieces, &mut take)?;
            }
        }
        Ok(())
    }
}
