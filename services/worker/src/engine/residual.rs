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
//! | refused | `e` | nothing of `s` was merged, and `d` is the work of the unit's next holder; `l` is not used |
//! | refused for its numbers | 0, where it was sent | nothing was merged; `e` went into the numbers that were refused, and would again |
//! | unknown | 0, where it was sent | if `s` was merged then `e` was too, and must not come again; if it was not, `e` is lost |
//! | none, and the next contribution is made | 0, where it was sent | as unknown |
//! | counted, and a value of `l` is NaN or infinite | 0 in that piece | the screen accepts no such piece, so it was not merged as it was made |
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
use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use merge::SeededRounding;
use schemas::run::CodecKind;
use trainer::{Feedback, TrainerError};
use worker_core::{ResultEnd, WorkId};

pub(super) use file::{Marks, Saved, put_aside, remove, take_up};

/// The contribution under way, and the owner of the residual. The values themselves are where the
/// weights are ([`Feedback`]).
pub(super) struct Residual {
    on_its_way: Option<Contribution>,
    marks: Marks,
}

/// A contribution whose end is not known.
struct Contribution {
    work: WorkId,
    /// True once the saved residual has left the disk.
    withdrawn: bool,
    /// The elements that were handed over: the end of each piece by its start.
    pieces: BTreeMap<usize, usize>,
}

impl Residual {
    /// A residual with no contribution under way.
    pub(super) const fn new(marks: Marks) -> Self {
        Self {
            on_its_way: None,
            marks,
        }
    }

    /// Begins the contribution of a unit, unless it has begun. Returns true until the residual has
    /// left the disk ([`Residual::withdrawn`]), which it must before a chunk is encoded.
    ///
    /// # Errors
    /// The device failed at the end of the contribution before, which stays under way.
    pub(super) fn begin(
        &mut self,
        values: &mut dyn Feedback,
        work: WorkId,
    ) -> Result<bool, TrainerError> {
        match &self.on_its_way {
            Some(begun) if begun.work == work => return Ok(!begun.withdrawn),
            Some(before) => self.ended(values, before.work, &ResultEnd::Unknown)?,
            None => {}
        }
        self.on_its_way = Some(Contribution {
            work,
            withdrawn: false,
            pieces: BTreeMap::new(),
        });
        Ok(true)
    }

    /// Notes that the saved residual has left the disk.
    pub(super) fn withdrawn(&mut self) {
        if let Some(contribution) = &mut self.on_its_way {
            contribution.withdrawn = true;
        }
    }

    /// Encodes pieces of the contribution under way, with the owed part added, and notes those that
    /// are handed over.
    pub(super) fn encode(
        &mut self,
        values: &mut dyn Feedback,
        codec: CodecKind,
        rounding: SeededRounding,
        pieces: &[Range<usize>],
        take: &mut dyn FnMut(Bytes) -> ControlFlow<()>,
    ) -> Result<(), TrainerError> {
        let contribution = self.on_its_way.as_mut();
        let contribution = contribution.expect("a contribution is begun before it is encoded");
        assert!(
            contribution.withdrawn,
            "what is sent must not be on disk too"
        );
        let again = |piece: &&Range<usize>| contribution.pieces.contains_key(&piece.start);
        if let Some(piece) = pieces.iter().find(again) {
            // What is left over of a piece is that of its last encoding.
            let text = format!("elements from {} were encoded before", piece.start);
            return Err(TrainerError::Input(text));
        }
        let mut made = pieces.iter();
        values.encode(codec, rounding, pieces, &mut |bytes| {
            let piece = made.next().expect("one encoding for each piece");
            contribution.pieces.insert(piece.start, piece.end);
            take(bytes)
        })
    }

    /// Notes the end of a unit. Nothing changes unless its contribution is the one under way.
    ///
    /// # Errors
    /// The device failed. The contribution stays under way, so that the next one takes it for one
    /// whose end is not known, and no residual is written meanwhile.
    pub(super) fn ended(
        &mut self,
        values: &mut dyn Feedback,
        work: WorkId,
        end: &ResultEnd,
    ) -> Result<(), TrainerError> {
        let contribution = self.on_its_way.as_ref();
        let Some(Contribution { pieces, .. }) = contribution.filter(|sent| sent.work == work)
        else {
            return Ok(());
        };
        let mut cleared = 0;
        for range in pieces.iter().map(|(start, end)| *start..*end) {
            let elements = range.len();
            let kept = match end {
                ResultEnd::Refused(refusal) if !refusal.code.is_about_numbers() => break,
                ResultEnd::Refused(_) | ResultEnd::Unknown => {
                    values.forget(range)?;
                    false
                }
                ResultEnd::Counted => values.keep(range)?,
            };
            if !kept {
                cleared += elements;
            }
        }
        self.on_its_way = None;
        if cleared > 0 {
            tracing::info!(
                elements = cleared,
                ?end,
                "the residual starts at zero again"
            );
        }
        Ok(())
    }

    /// A copy to be written, in memory that was used before; none while a contribution is under
    /// way.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn saved(
        &self,
        values: &mut dyn Feedback,
        mut memory: Vec<f32>,
    ) -> Result<Option<Saved>, TrainerError> {
        if self.on_its_way.is_some() {
            return Ok(None);
        }
        values.copy_owed(&mut memory)?;
        Ok(Some(Saved::new(memory, self.marks.clone())))
    }
}
