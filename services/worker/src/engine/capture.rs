//! What a fragment contributes: global weights minus parameters, encoded chunk by chunk.

use bytes::Bytes;
use merge::SeededRounding;
use merge::codec::{encode_difference, encoded_bytes};
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

/// Encoded chunks by their index, or why one could not be made.
pub(crate) type EncodedChunks = mpsc::Receiver<Result<(usize, Bytes), Refusal>>;
/// The other end, with room for every chunk.
pub(super) type Sender = mpsc::Sender<Result<(usize, Bytes), Refusal>>;

impl Session {
    /// Encodes a fragment from the parameters as they are now. It ends early when the unit is
    /// stopped, when nobody receives any more, and after a chunk that cannot be made.
    pub(super) fn capture(&mut self, capture: &Capture, chunks: &Sender) {
        let local = match self.trainer.parameters() {
            Ok(local) => local,
            // There is room for one; without a receiver nobody wants to know.
            Err(error) => return drop(chunks.try_send(Err(error.into()))),
        };
        for (index, chunk) in &capture.chunks {
            if capture.stop.is_cancelled() {
                return;
            }
            let range = chunk.range();
            let of_fragment = chunk.fragment == capture.fragment.0;
            let encoded = match (self.global.get(range.clone()), local.get(range.clone())) {
                (Some(global), Some(local)) if of_fragment => match &mut self.residual {
                    None => encode_chunk(capture, range.start, global, local),
                    Some(residual) => {
                        let rounding = capture.rounding.skip(range.start);
                        residual.encode(capture.codec, rounding, range, global, local)
                    }
                },
                _ => Err(Refusal::new(
                    Code::LayoutMismatch,
                    format!("chunk {index} is not of fragment {}", capture.fragment.0),
                )),
            };
            let failed = encoded.is_err();
            let sent = chunks.try_send(encoded.map(|bytes| (*index, bytes)));
            if sent.is_err() || failed {
                return;
            }
        }
    }
}

fn encode_chunk(
    capture: &Capture,
    start: usize,
    global: &[f32],
    local: &[f32],
) -> Result<Bytes, Refusal> {
    let mut out = vec![0; encoded_bytes(capture.codec, global.len())];
    encode_difference(
        capture.codec,
        global,
        local,
        capture.rounding.skip(start),
        &mut out,
    )
    .map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
    Ok(out.into())
}
