//! An open model: its trainer, which holds the weights, and the digest of each fragment's weights.

use std::ops::Range;
use std::path::Path;

use privacy::{Noising, SquaredNorm};
use schemas::run::CodecKind;
use schemas::{Code, Digest, Fragment, Refusal};
use trainer::{Alpha, Arrival, Trainer, TrainerError};
use worker_core::{ResultEnd, WorkId};

use super::residual::{self, Marks, Residual};
use super::{Opening, inner};

/// Elements that are read at a time for the norm of a contribution.
const READ_ELEMENTS: usize = 1 << 20;

/// A model that is being trained.
pub(super) struct Session {
    opening: Opening,
    pub(super) trainer: Box<dyn Trainer>,
    /// The residual; present if the run has error feedback.
    pub(super) residual: Option<Residual>,
    /// The noising of the contribution that is made, in a private run.
    noising: Option<(WorkId, Noising)>,
    /// True once inner steps were begun.
    stepped: bool,
    fragments: Vec<FragmentState>,
    /// True while inner steps are done: parameters then change only between two steps.
    stepping: bool,
    /// True if the moments came from a file, and no unit that was trained with them has counted
    /// yet.
    pub(super) unproven: bool,
}

/// The weights of one fragment.
struct FragmentState {
    range: Range<usize>,
    /// The digest of the global weights, once they are complete.
    weights: Option<Digest>,
    /// Elements that were loaded since weights were last expected.
    loaded: usize,
    fault: Option<Refusal>,
    /// The way in which arriving weights reach the parameters.
    writing: Writing,
}

/// The time at which arriving weights are written to the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writing {
    /// Chunk by chunk, while the next one is downloaded: they replace all parameters of the
    /// fragment, and no step begins before they are complete.
    AsTheyCome,
    /// All at once, by the blend.
    ByTheBlend,
}

impl Session {
    /// Opens a model with the inner state that is kept for it, if there is a good one.
    pub(super) fn new(opening: Opening, mut trainer: Box<dyn Trainer>) -> Result<Self, Refusal> {
        let elements = usize::try_from(trainer.layout().elements())
            .expect("the trainer holds as many in memory");
        let fragments = fragments(&opening, elements)?;
        // Memory for the weights is allocated now: a model without room for them is refused before
        // a chunk is downloaded. So is memory for the residual.
        trainer.weights()?;
        // In a private run nothing but its own data goes into a contribution.
        let fresh = opening.privacy.is_some() || !opening.inner.exists();
        let unproven = !fresh && inner::resume(trainer.as_mut(), &opening.inner);
        let marks = Marks::new(&opening.owner, trainer.layout());
        let residual = opening.error_feedback.then(|| Residual::new(marks.clone()));
        if residual.is_some() {
            if !unproven {
                // The residual belongs to moments that are not here.
                residual::put_aside(&opening.inner);
            }
            let owed = residual::take_up(&opening.inner, elements, &marks);
            trainer.feedback()?.owe(0, &owed.unwrap_or_default())?;
        }
        tracing::info!(
            parameters = elements,
            device = trainer.device(),
            "the model is open"
        );
        Ok(Self {
            opening,
            trainer,
            residual,
            noising: None,
            stepped: false,
            fragments,
            stepping: false,
            unproven,
        })
    }

    /// True when this is the session that `opening` asks for.
    pub(super) fn is_of(&self, opening: &Opening) -> bool {
        self.opening.model == opening.model
            && self.opening.precision == opening.precision
            && self.opening.fragments == opening.fragments
            && self.opening.error_feedback == opening.error_feedback
            // A residual belongs to one run.
            && (self.opening.owner == opening.owner || !opening.error_feedback)
            && self.opening.privacy == opening.privacy
            && self.opening.masked == opening.masked
            // The moments of a private run do not outlive a unit.
            && !(opening.privacy.is_some() && self.stepped)
    }

    /// True if the moments may be kept for a later process.
    pub(super) const fn keeps_state(&self) -> bool {
        !self.unproven && self.opening.privacy.is_none()
    }

    /// The loss of a step in the form in which others may see it: 0 in a private run, and in one
    /// with secure aggregation.
    pub(super) const fn shown(&self, loss: f64) -> f64 {
        if self.opening.privacy.is_some() || self.opening.masked {
            0.0
        } else {
            loss
        }
    }

    /// The clipping and noise of a unit's contribution in a private run. A contribution that is
    /// encoded again has the same noise again, so it is no second disclosure.
    ///
    /// # Errors
    /// The device failed, or the contribution has no norm.
    pub(super) fn noising(&mut self, work: WorkId) -> Result<Option<Noising>, Refusal> {
        let Some(privacy) = self.opening.privacy else {
            return Ok(None);
        };
        if let Some((_, noising)) = self.noising.as_ref().filter(|(of, _)| *of == work) {
            return Ok(Some(noising.clone()));
        }
        let mut norm = SquaredNorm::default();
        let mut weights = self.trainer.weights()?;
        for range in self.fragments.iter().map(|state| state.range.clone()) {
            for start in range.clone().step_by(READ_ELEMENTS) {
                let end = range.end.min(start + READ_ELEMENTS);
                let (global, local) = weights.read(start..end)?;
                norm.add(global, local);
            }
        }
        drop(weights);
        let noising = Noising::new(&privacy, norm, identity::secret::random())?;
        self.noising = Some((work, noising.clone()));
        Ok(Some(noising))
    }

    /// Notes the end of a training unit.
    ///
    /// # Errors
    /// The device failed at the residual.
    pub(super) fn unit_ended(&mut self, work: WorkId, end: &ResultEnd) -> Result<(), Refusal> {
        if *end == ResultEnd::Counted {
            self.unproven = false;
        }
        if let Some(residual) = &mut self.residual {
            residual.ended(&mut *self.trainer.feedback()?, work, end)?;
        }
        Ok(())
    }

    /// Begins the contribution of a unit. Returns true if the residual goes into it, and so must
    /// leave the disk first.
    ///
    /// # Errors
    /// The device failed at the residual.
    pub(super) fn begin_contribution(&mut self, work: WorkId) -> Result<bool, Refusal> {
        match &mut self.residual {
            None => Ok(false),
            Some(residual) => {
                let values = &mut *self.trainer.feedback()?;
                let begun = residual.begin(values, work);
                begun.map_err(|error| Refusal::new(error.code(), format!("the residual: {error}")))
            }
        }
    }

    /// Notes that the saved residual has left the disk.
    pub(super) fn residual_withdrawn(&mut self) {
        if let Some(residual) = &mut self.residual {
            residual.withdrawn();
        }
    }

    /// A copy of the residual that may be written, in memory that was used before; none if there is
    /// none, or if it is under way.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn saved_residual(
        &mut self,
        memory: Vec<f32>,
    ) -> Result<Option<residual::Saved>, TrainerError> {
        match &self.residual {
            None => Ok(None),
            Some(residual) => residual.saved(&mut *self.trainer.feedback()?, memory),
        }
    }

    pub(super) fn inner_path(&self) -> &Path {
        &self.opening.inner
    }

    pub(super) fn expect(
        &mut self,
        fragment: Fragment,
        weights: Digest,
        alpha: Alpha,
    ) -> Result<bool, Refusal> {
        let stepping = self.stepping;
        let state = self.fragment(fragment)?;
        state.fault = None;
        state.loaded = 0;
        let here = state.weights == Some(weights);
        if !here {
            state.weights = None;
        }
        state.writing = if here || stepping || alpha != Alpha::TAKE_OVER {
            Writing::ByTheBlend
        } else {
            Writing::AsTheyCome
        };
        Ok(here)
    }

    pub(super) fn load(
        &mut self,
        fragment: Fragment,
        codec: CodecKind,
        range: Range<usize>,
        bytes: &[u8],
    ) {
        let Ok(state) = self.fragment(fragment) else {
            // The blend refuses a fragment that does not exist.
            return;
        };
        let within = state.range.start <= range.start && range.end <= state.range.end;
        let arrival = match state.writing {
            Writing::AsTheyCome => Arrival::TakesOver,
            Writing::ByTheBlend => Arrival::Waits,
        };
        let elements = range.len();
        let loaded = if within {
            let weights = self.trainer.weights();
            let loaded = weights.and_then(|mut weights| weights.load(codec, range, bytes, arrival));
            loaded.map_err(Refusal::from)
        } else {
            Err(Refusal::new(
                Code::LayoutMismatch,
                "a chunk lies outside the fragment's parameters",
            ))
        };
        let state = self
            .fragment(fragment)
            .expect("it was there a moment before");
        match loaded {
            Ok(()) => state.loaded += elements,
            Err(refusal) => state.fault = Some(refusal),
        }
    }

    pub(super) fn blend(
        &mut self,
        fragment: Fragment,
        weights: Digest,
        alpha: Alpha,
    ) -> Result<(), Refusal> {
        let state = self.fragment(fragment)?;
        if let Some(fault) = state.fault.take() {
            return Err(fault);
        }
        let (range, elements) = (state.range.clone(), state.range.len());
        let here = state.weights == Some(weights);
        if !here && state.loaded != elements {
            let detail = format!("{} of {elements} parameters were loaded", state.loaded);
            return Err(Refusal::new(Code::LayoutMismatch, detail));
        }
        let by_the_blend = state.writing == Writing::ByTheBlend;
        self.take_in(by_the_blend.then_some((range, alpha)))
            .map_err(|refusal| {
                let detail = format!(
                    "the weights of fragment {} did not get into the parameters: {}",
                    fragment.0, refusal.detail
                );
                Refusal::new(refusal.code, detail)
            })?;
        let state = self.fragment(fragment)?;
        state.weights = Some(weights);
        state.writing = Writing::ByTheBlend;
        Ok(())
    }

    /// Mixes weights in, if there are any to mix, and waits for the device: a failure there is the
    /// weights' fault, and not that of a step, which would put the inner state in doubt.
    fn take_in(&mut self, blend: Option<(Range<usize>, Alpha)>) -> Result<(), Refusal> {
        let mut weights = self.trainer.weights()?;
        if let Some((range, alpha)) = blend {
            weights.blend(range, alpha)?;
        }
        Ok(weights.settle()?)
    }

    /// Begins inner steps, unless the weights that they would start from are incomplete.
    pub(super) fn begin_steps(&mut self) -> Result<(), Refusal> {
        let missing = self
            .fragments
            .iter()
            .position(|state| state.weights.is_none());
        match missing {
            None => {
                self.stepping = true;
                self.stepped = true;
                Ok(())
            }
            Some(fragment) => Err(Refusal::new(
                Code::Internal,
                format!("the weights of fragment {fragment} are not whole"),
            )),
        }
    }

    pub(super) const fn is_stepping(&self) -> bool {
        self.stepping
    }

    /// Ends inner steps, whether all were done or not.
    pub(super) fn end_steps(&mut self) {
        self.stepping = false;
    }

    fn fragment(&mut self, fragment: Fragment) -> Result<&mut FragmentState, Refusal> {
        let state = usize::try_from(fragment.0)
            .ok()
            .and_then(|at| self.fragments.get_mut(at));
        state.ok_or_else(|| {
            Refusal::new(
                Code::LayoutMismatch,
                format!("the layout has no fragment {}", fragment.0),
            )
        })
    }
}

fn fragments(opening: &Opening, elements: usize) -> Result<Vec<FragmentState>, Refusal> {
    let mut end = 0;
    let follow = opening.fragments.iter().all(|range| {
        let follows = range.start == end && range.end > range.start;
        end = range.end;
        follows
    });
    if !follow || end != elements {
        return Err(Refusal::new(
            Code::LayoutMismatch,
            format!("the fragments do not cover the {elements} parameters one after another"),
        ));
    }
    let state = |range: &Range<usize>| FragmentState {
        range: range.clone(),
        weights: None,
        loaded: 0,
        fault: None,
        writing: Writing::ByTheBlend,
    };
    Ok(opening.fragments.iter().map(state).collect())
}
