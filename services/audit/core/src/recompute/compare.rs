//! The comparison of a segment with its record, chunk by chunk.

use schemas::run::RunSpec;
use schemas::{Chunks, ObjectRef, Round as RoundNumber, Tokens, Weight};

use super::fault::{Difference, Fault};
use super::merges::Recorded;
use super::plan::Segment;

/// Relative difference of norms that is none. A release may add the squares of a chunk in another
/// order, which changes the last bits; the weights themselves are compared bit by bit.
pub const NORM_TOLERANCE: f64 = 1e-9;

/// The same for the norm of an input, which is recorded as `f32`.
pub const INPUT_NORM_TOLERANCE: f64 = 1e-6;

/// One chunk of the weights that a merge gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Remade {
    /// The chunk as it would be published.
    pub broadcast: ObjectRef,
    /// The sum of squares of the mean contribution.
    pub sum_of_squares: f64,
    /// True if every new parameter is a number.
    pub finite: bool,
}

/// The outcome for one round.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// The round.
    pub round: RoundNumber,
    /// The reason why it is not verified; none if it is.
    pub fault: Option<Fault>,
    /// True if the full snapshot after it was read and compared.
    pub snapshot_compared: bool,
}

/// The comparison of a segment's merges with what the ledger records of them. Chunks are given in
/// ascending order, and the merges of each in the order of the segment.
#[derive(Debug)]
pub struct Comparison<'a> {
    spec: &'a RunSpec,
    segment: &'a Segment,
    places: Vec<Place>,
    /// The first fault of the snapshot after the last merge.
    end: Option<Fault>,
    /// True if that snapshot could be read.
    end_read: bool,
}

/// One merge so far.
#[derive(Clone, Debug, Default)]
struct Place {
    /// The first fault because of which nothing after this merge can be compared.
    broken: Option<Fault>,
    /// The first fault beside it.
    beside: Option<Fault>,
    sum_of_squares: f64,
    /// The sum of squares of each input with a norm.
    squares: Vec<f64>,
    /// The cosine of each input that was compared.
    cosines: Vec<f32>,
    /// The chunks, if the ledger's list of them is gone.
    chunks: Option<Vec<ObjectRef>>,
}

impl<'a> Comparison<'a> {
    /// Nothing is compared yet. `chunks` is the number of chunks of the run's layout.
    pub fn new(spec: &'a RunSpec, segment: &'a Segment, chunks: usize) -> Self {
        let places = segment.merges.iter().map(|recorded| Place {
            broken: form(spec, recorded, chunks).map(Fault::Differs),
            ..Place::default()
        });
        Self {
            spec,
            segment,
            places: places.collect(),
            end: None,
            end_read: false,
        }
    }

    /// Takes chunk `index` of merge `place` as it was made again. `expected` is the chunk that the
    /// ledger names; none if its list is gone.
    pub fn chunk(
        &mut self,
        place: usize,
        index: usize,
        expected: Option<ObjectRef>,
        remade: Remade,
    ) {
        let Remade {
            broadcast: got,
            sum_of_squares,
            finite,
        } = remade;
        let of = &mut self.places[place];
        of.sum_of_squares += sum_of_squares;
        match expected {
            None => of.chunks.get_or_insert_default().push(got),
            Some(expected) if expected == got => {}
            Some(expected) => of.breaks(Fault::Differs(Difference::Chunk {
                index,
                expected,
                got,
            })),
        }
        if !finite {
            of.breaks(Fault::Differs(Difference::NotFinite { index }));
        }
    }

    /// Takes the sums of squares of one chunk of the inputs of merge `place`, for a run whose rule
    /// of combination goes by norms.
    pub fn inputs(&mut self, place: usize, squares: &[f64]) {
        let sums = &mut self.places[place].squares;
        sums.resize(squares.len(), 0.0);
        for (sum, squares) in sums.iter_mut().zip(squares) {
            *sum += squares;
        }
    }

    /// Takes the cosines of all inputs of merge `place` whose directions the ledger compares, in
    /// their order.
    pub fn cosines(&mut self, place: usize, cosines: Vec<f32>) {
        self.places[place].cosines = cosines;
    }

    /// Takes a fault of merge `place` that keeps the following merges from being compared.
    pub fn broken(&mut self, place: usize, fault: Fault) {
        self.places[place].breaks(fault);
    }

    /// Takes a fault of merge `place` on which no other merge depends.
    pub fn beside(&mut self, place: usize, fault: Fault) {
        keep(&mut self.places[place].beside, fault);
    }

    /// Takes a fault of the snapshot after the last merge.
    pub fn end(&mut self, fault: Fault) {
        keep(&mut self.end, fault);
    }

    /// The snapshot after the last merge was read, and is compared with what the merges give.
    pub fn end_read(&mut self) {
        self.end_read = true;
    }

    /// The first merge that is known to be broken, which is the last that has to be made again.
    pub fn broken_at(&self) -> Option<usize> {
        self.places.iter().position(|place| place.broken.is_some())
    }

    /// The outcome for each round, once all chunks were given.
    pub fn outcomes(mut self) -> Vec<Round> {
        let mut outcomes: Vec<Round> = Vec::with_capacity(self.places.len());
        let mut broken: Option<RoundNumber> = None;
        let last = self.places.len() - 1;
        for (at, (place, recorded)) in self
            .places
            .into_iter()
            .zip(&self.segment.merges)
            .enumerate()
        {
            let round = recorded.record.round;
            let fault = match broken {
                Some(before) => Some(Fault::Unproven(format!(
                    "it follows on round {before}, which is not verified"
                ))),
                None => {
                    let fault = place
                        .broken
                        .or_else(|| whole(self.spec, recorded, &place.chunks));
                    broken = fault.as_ref().map(|_| round);
                    let figures = || {
                        let of_inputs = || input_norms(recorded, &place.squares);
                        let compared = || cosines(recorded, &place.cosines);
                        figures(recorded, place.sum_of_squares)
                            .or_else(of_inputs)
                            .or_else(compared)
                    };
                    let mut beside = place.beside;
                    if let Some(end) = self.end.take_if(|_| at == last) {
                        keep(&mut beside, end);
                    }
                    fault.or_else(figures).or(beside)
                }
            };
            // What a collection deleted is neither lost nor altered.
            let fault = match (fault, recorded.given_up) {
                (Some(Fault::Unproven(_)), Some(event)) => Some(Fault::GivenUp(event)),
                (fault, _) => fault,
            };
            outcomes.push(Round {
                round,
                snapshot_compared: at == last && self.end_read && broken.is_none(),
                fault,
            });
        }
        outcomes
    }
}

impl Place {
    fn breaks(&mut self, fault: Fault) {
        keep(&mut self.broken, fault);
    }
}

/// Keeps the first fault; evidence comes before what is only missing.
fn keep(kept: &mut Option<Fault>, fault: Fault) {
    let weaker = |before: &Fault| !before.is_evidence() && fault.is_evidence();
    if kept.as_ref().is_none_or(weaker) {
        *kept = Some(fault);
    }
}

/// Compares the form of the published weights with the settings.
fn form(spec: &RunSpec, recorded: &Recorded, chunks: usize) -> Option<Difference> {
    let broadcast = &recorded.broadcast;
    let what = if broadcast.codec != spec.download {
        format!(
            "codec {:?}, the run has {:?}",
            broadcast.codec, spec.download
        )
    } else if broadcast.chunks.count() != chunks {
        format!(
            "{} chunks, the layout has {chunks}",
            broadcast.chunks.count()
        )
    } else if broadcast.chunks.listed().is_some() != spec.model.initial.listed().is_some() {
        "its chunks are not named as the run names chunks".to_owned()
    } else {
        return None;
    };
    Some(Difference::Form { what })
}

/// Compares the published weights as a whole, if their chunks could not be compared one by one.
fn whole(spec: &RunSpec, recorded: &Recorded, chunks: &Option<Vec<ObjectRef>>) -> Option<Fault> {
    let (named, _) = spec.name_chunks(chunks.clone()?);
    let (expected, got) = (recorded.broadcast.digest(), Chunks::digest(&named));
    (expected != got).then_some(Fault::Differs(Difference::Weights { expected, got }))
}

/// Compares the figures in the ledger with those of the merge.
fn figures(recorded: &Recorded, sum_of_squares: f64) -> Option<Fault> {
    // The coordinator writes the largest number in place of one that is none.
    let (expected, got) = (recorded.norm, sum_of_squares.sqrt().min(f64::MAX));
    if !close(expected, got, NORM_TOLERANCE) {
        return Some(Fault::Differs(Difference::Norm { expected, got }));
    }
    let sum = |sum: Tokens, tokens: Tokens| sum + tokens;
    // Inputs that were left out of the merge have no weight.
    let merged = recorded.record.inputs.iter();
    let merged = merged.filter(|input| input.weight > Weight(0));
    let tokens = merged.map(|input| input.tokens);
    let (expected, got) = (recorded.tokens, tokens.fold(Tokens(0), sum));
    (expected != got).then_some(Fault::Differs(Difference::Tokens { expected, got }))
}

/// Compares the norms by which the rule of combination went with those of the inputs.
fn input_norms(recorded: &Recorded, squares: &[f64]) -> Option<Fault> {
    let normed = recorded.record.inputs.iter().filter_map(|input| {
        let norm = input.norm?;
        Some((input.lease, f64::from(norm)))
    });
    let mut compared = normed.zip(squares);
    let (lease, expected, got) = compared.find_map(|((lease, expected), squares)| {
        let got = squares.sqrt();
        let far = !close(expected, got, INPUT_NORM_TOLERANCE);
        far.then_some((lease, expected, got))
    })?;
    Some(Fault::Differs(Difference::InputNorm {
        lease,
        expected,
        got,
    }))
}

/// Compares the cosines that decided who is left out with those of the inputs, bit by bit: a rule
/// says in which order everything is added, and near the bound the last bit decides.
fn cosines(recorded: &Recorded, cosines: &[f32]) -> Option<Fault> {
    let compared = recorded.record.inputs.iter().filter_map(|input| {
        let cosine = input.cosine?;
        Some((input.lease, cosine))
    });
    // One that was not made again is none.
    let again = cosines.iter().copied().chain(std::iter::repeat(f32::NAN));
    let mut compared = compared.zip(again);
    let ((lease, expected), got) =
        compared.find(|((_, expected), got)| expected.to_bits() != got.to_bits())?;
    Some(Fault::Differs(Difference::Cosine {
        lease,
        expected: expected.into(),
        got: got.into(),
    }))
}

/// True if two figures are the same but for their last bits.
fn close(one: f64, other: f64, tolerance: f64) -> bool {
    (one - other).abs() <= tolerance * one.abs().max(other.abs())
}
