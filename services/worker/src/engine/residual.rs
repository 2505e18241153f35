//! The residual of error feedback: the part that the codec has taken from this worker's
//! contributions, to be added to its next one.
//!
//! Let a unit's difference be `d` and the residual before it `e`. The contribution is `s = encode(d
//! + e)`, and `l = d + e - s` is the part that it lacks. The end of the unit decides which of the
//! two is owed from then on; [`ResultEnd`] says how a worker learns the end.
//!
//! | end | owed after it | why no part of a difference is merged twice |
//! | --- | --- | --- |
//! | counted | `l` | `s + l = d + e`: what was merged and what is owed are together what was to be merged |
//! | refused | `e` | nothing of `s` was merged, and `d` is the work of the unit's next holder; `l` is forgotten |
//! | refused for its numbers | 0, where it was sent | nothing was merged; `e` went into the numbers that were refused, and would again |
//! | unknown | 0, where it was sent | if `s` was merged then `e` was too, and must not come again; if it was not, `e` is lost |
//! | none, and the next contribution is made | 0, where it was sent | as unknown |
//! | counted, and a value of `l` is no number | 0 in that piece | no encoder makes one from numbers, so no value of the piece is trusted |
//!
//! So a residual may be lost, and is never added twice. The same holds over the end of the process,
//! however it ends:
//!
//! * The file exists only while no contribution with it is under way: before the first chunk of the
//!   next contribution is encoded, the file is removed and its folder synchronised
//!   (`Saver::withdraw`). A worker that is killed after that, and before the unit has ended and the
//!   state after it is written, begins with nothing owed.
//! * The file belongs to one inner state, by a name that both carry, and is written after it. A
//!   worker that is killed between the two finds a residual of another name, or none.
//! * It names the trust domain, the run and its settings, and its layout: nothing else gets it.

mod file;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use merge::codec::encoded_bytes;
use merge::{Difference, FeedbackChunk, SeededRounding, encode_with_feedback};
use schemas::run::CodecKind;
use schemas::{Code, Refusal};
use worker_core::{ResultEnd, WorkId};

pub(super) use file::{Marks, Saved, put_aside, remove};

/// The part of the contributions that the codec took, one value for each parameter.
pub(super) struct Residual {
    /// The part that is owed since the last result that counted.
    owed: Vec<f32>,
    /// The part that the contribution under way will leave if it counts.
    left: Vec<f32>,
    on_its_way: Option<Contribution>,
    marks: Marks,
}

/// A contribution whose end is not known.
struct Contribution {
    work: WorkId,
    /// The elements that were encoded: the end of each piece by its start.
    pieces: BTreeMap<usize, usize>,
}

impl Residual {
    /// A residual that begins with the owed part of an earlier process.
    pub(super) fn new(owed: Vec<f32>, marks: Marks) -> Self {
        Self {
            left: vec![0.0; owed.len()],
            owed,
            on_its_way: None,
            marks,
        }
    }

    /// Begins the contribution of a unit, unless it has begun. Returns true if it begins now: then
    /// the residual must leave the disk before a chunk is encoded.
    pub(super) fn begin(&mut self, work: WorkId) -> bool {
        let before = self.on_its_way.as_ref().map(|before| before.work);
        if before == Some(work) {
            return false;
        }
        if let Some(before) = before {
            self.ended(before, &ResultEnd::Unknown);
        }
        self.on_its_way = Some(Contribution {
            work,
            pieces: BTreeMap::new(),
        });
        true
    }

    /// Encodes a piece of the contribution under way, with the owed part added, and notes what the
    /// codec cuts off.
    pub(super) fn encode(
        &mut self,
        codec: CodecKind,
        rounding: SeededRounding,
        range: Range<usize>,
        difference: Difference<'_>,
    ) -> Result<Bytes, Refusal> {
        let contribution = self.on_its_way.as_mut();
        let contribution = contribution.expect("a contribution is begun before it is encoded");
        let (residual, left) = (&self.owed[range.clone()], &mut self.left[range.clone()]);
        let owed = FeedbackChunk {
            difference,
            residual,
        };
        let mut out = vec![0; encoded_bytes(codec, range.len())];
        encode_with_feedback(codec, owed, rounding, &mut out, left)
            .map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
        contribution.pieces.insert(range.start, range.end);
        Ok(out.into())
    }

    /// Notes the end of a unit. Nothing changes unless its contribution is the one under way.
    pub(super) fn ended(&mut self, work: WorkId, end: &ResultEnd) {
        let contribution = self.on_its_way.take_if(|sent| sent.work == work);
        let Some(Contribution { pieces, .. }) = contribution else {
            return;
        };
        let mut cleared = 0;
        for range in pieces.into_iter().map(|(start, end)| start..end) {
            let left = &self.left[range.clone()];
            let keeps = match end {
                ResultEnd::Refused(refusal) if !refusal.code.is_about_numbers() => continue,
                ResultEnd::Refused(_) | ResultEnd::Unknown => false,
                ResultEnd::Counted => left.iter().all(|value| value.is_finite()),
            };
            match keeps {
                true => self.owed[range].copy_from_slice(left),
                false => {
                    cleared += range.len();
                    self.owed[range].fill(0.0);
                }
            }
        }
        if cleared > 0 {
            tracing::info!(
                elements = cleared,
                ?end,
                "the residual starts at zero again"
            );
        }
    }

    #[cfg(test)]
    pub(super) fn owed(&self) -> &[f32] {
        &self.owed
    }

    /// A copy to be written.
    pub(super) fn saved(&self) -> Saved {
        Saved {
            values: self.owed.clone(),
            marks: self.marks.clone(),
        }
    }
}
