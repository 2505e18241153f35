//! Makes merges again from objects, segment by segment, and compares them with the ledger. A chunk
//! goes through all merges of its segment before the next but one is read, so memory does not grow
//! with the model. The records of the merges are all in memory, so it grows with the number of
//! rounds.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use audit_core::recompute::{
    Comparison, Difference, Fault, Recorded, Remade, RoundOutcome, Saved, Segment,
};
use futures::stream::{self, StreamExt as _};
use recompute::base::encode;
use recompute::directions::cosines;
use recompute::restore::CHUNKS_AT_A_TIME;
use recompute::{Again, Base, Directions, Objects, Piece, RunContext, inputs};
use schemas::run::RunSpec;
use schemas::{Code, ObjectRef, Refusal, Round};

/// A recomputation of one run.
pub struct Recomputation<'a> {
    objects: &'a dyn Objects,
    spec: RunSpec,
    /// The run's layout; a fault if it cannot be read.
    context: Result<RunContext, Fault>,
    /// Called after each chunk of each merge.
    progress: &'a (dyn Fn() + Sync),
}

/// A window of chunks: their names in each merge, up to the first whose names cannot be read.
struct Window {
    /// The first chunk.
    start: usize,
    merges: Vec<Named>,
    /// The last merge that is worth making: those after a broken one cannot be compared.
    reach: AtomicUsize,
}

/// A merge, and what the ledger names of its outcome, for a window of chunks.
struct Named {
    again: Again,
    /// The published chunks; none if the list of them is gone.
    expected: Option<Vec<ObjectRef>>,
}

/// One chunk after its way through a segment.
struct Way {
    /// Each merge that was made again.
    made: Vec<Made>,
    /// The merge that could not be made again.
    broken: Option<Fault>,
    /// The fault of this chunk in the snapshot after the last merge.
    end: Option<Fault>,
}

/// One chunk of a merge that was made again.
struct Made {
    remade: Remade,
    /// The sums of squares of the inputs, if the rule of combination goes by norms.
    squares: Vec<f64>,
    /// The directions of the inputs that were compared.
    directions: Directions,
    /// The fault of the published chunk in the store.
    at_rest: Option<Fault>,
}

impl<'a> Recomputation<'a> {
    /// Reads the layout of the run with these settings.
    pub async fn new(
        objects: &'a dyn Objects,
        spec: RunSpec,
        progress: &'a (dyn Fn() + Sync),
    ) -> Self {
        let context = RunContext::load(objects, spec.clone()).await;
        Self {
            objects,
            spec,
            context: context.map_err(|refusal| Fault::of(&refusal)),
            progress,
        }
    }

    /// Makes the merges of a segment again. There is an outcome for each of its rounds.
    pub async fn segment(&self, segment: &Segment) -> Vec<RoundOutcome> {
        let count = self.spec.model.initial.count();
        let mut comparison = Comparison::new(&self.spec, segment, count);
        match &self.context {
            Err(fault) => comparison.broken(0, fault.clone()),
            Ok(context) => {
                if let Err(fault) = self.compare(context, segment, &mut comparison).await {
                    comparison.broken(0, fault);
                }
            }
        }
        comparison.outcomes()
    }

    async fn compare(
        &self,
        context: &RunContext,
        segment: &Segment,
        comparison: &mut Comparison<'_>,
    ) -> Result<(), Fault> {
        let base = self.base(context, segment).await?;
        let end = match segment.end {
            Some(saved) => self.end(context, saved, segment, comparison).await,
            None => None,
        };
        let merges = &segment.merges;
        let mut directions = vec![Directions::default(); merges.len()];
        let names = merges.iter().map(|merge| 1 + merge.record.inputs.len());
        for window in inputs::windows(names.sum(), context.chunks.len()) {
            let reach = comparison.broken_at().map_or(merges.len(), |at| at + 1);
            let named = self
                .names(&merges[..reach], window.clone(), comparison)
                .await;
            let whole = named.merges.len() == merges.len();
            let end = end.as_ref().filter(|_| whole);
            let ways = window
                .clone()
                .map(|index| self.way(context, &base, end, &named, index));
            let mut ways = stream::iter(ways).buffered(CHUNKS_AT_A_TIME);
            for index in window {
                let way = ways.next().await.expect("each chunk has a way");
                take(comparison, &named, &mut directions, way, index);
            }
        }
        for (place, (directions, merge)) in directions.iter().zip(merges).enumerate() {
            let inputs = &merge.record.inputs;
            comparison.cosines(place, cosines(&self.spec, inputs, directions));
        }
        Ok(())
    }

    /// The weights that a segment starts from.
    async fn base(&self, context: &RunContext, segment: &Segment) -> Result<Base, Fault> {
        let manifest = segment.base.map(|saved| saved.manifest);
        let read = Base::read(self.objects, context, manifest).await;
        let base = read.map_err(|refusal| of_snapshot(segment.start(), &refusal))?;
        let start = segment.start();
        let own = segment.restored.as_ref().map_or(start, |one| one.of);
        if base.round != own {
            let what = format!("its manifest is of round {}", base.round);
            return Err(snapshot(start, what));
        }
        let base = base.as_version(start);
        let base = base.map_err(|refusal| of_snapshot(start, &refusal))?;
        match &segment.restored {
            Some(restored) if restored.weights != base.broadcast => {
                let what = "the restore of it names other weights for workers than its manifest";
                Err(snapshot(start, what.to_owned()))
            }
            _ => Ok(base),
        }
    }

    /// The snapshot after a segment, if it is there to be compared.
    async fn end(
        &self,
        context: &RunContext,
        saved: Saved,
        segment: &Segment,
        comparison: &mut Comparison<'_>,
    ) -> Option<Base> {
        match Base::read(self.objects, context, Some(saved.manifest)).await {
            Ok(base) => {
                comparison.end_read();
                let last = segment.merges.last().expect("a segment has merges");
                if base.round != saved.round || base.broadcast != last.broadcast {
                    let what = "its manifest names another round or other weights for workers";
                    comparison.end(snapshot(saved.round, what.to_owned()));
                }
                Some(base)
            }
            // A snapshot that was removed is no fault of the merges before it.
            Err(refusal) if refusal.code == Code::ObjectMissing => None,
            Err(refusal) => {
                comparison.end(of_snapshot(saved.round, &refusal));
                None
            }
        }
    }

    /// Reads the names of a window of chunks.
    async fn names(
        &self,
        merges: &[Recorded],
        window: Range<usize>,
        comparison: &mut Comparison<'_>,
    ) -> Window {
        let mut named = Vec::with_capacity(merges.len());
        for (place, merge) in merges.iter().enumerate() {
            match self.name(merge, &window).await {
                Ok(one) => named.push(one),
                Err(refusal) => {
                    comparison.broken(place, Fault::of(&refusal));
                    break;
                }
            }
        }
        Window {
            start: window.start,
            reach: AtomicUsize::new(named.len()),
            merges: named,
        }
    }

    async fn name(&self, merge: &Recorded, window: &Range<usize>) -> Result<Named, Refusal> {
        let again = Again::read(self.objects, &merge.record, window).await?;
        let again = again.comparing(&self.spec, &merge.record);
        let expected = match self.objects.chunks(&merge.broadcast.chunks).await {
            Ok(chunks) => Some(chunks.get(window.clone()).unwrap_or_default().to_vec()),
            Err(refusal) if refusal.code == Code::ObjectMissing => None,
            Err(refusal) => return Err(refusal),
        };
        Ok(Named { again, expected })
    }

    /// Takes chunk `index` through the merges.
    async fn way(
        &self,
        context: &RunContext,
        base: &Base,
        end: Option<&Base>,
        window: &Window,
        index: usize,
    ) -> Way {
        let Window { merges, reach, .. } = window;
        let mut way = Way {
            made: Vec::with_capacity(merges.len()),
            broken: None,
            end: None,
        };
        let mut piece = match base.piece(self.objects, context, index).await {
            Ok(piece) => piece,
            Err(refusal) => {
                reach.fetch_min(0, Ordering::Relaxed);
                way.broken = Some(Fault::of(&refusal));
                return way;
            }
        };
        let mut first = piece.is_first();
        for (place, named) in merges.iter().enumerate() {
            if place > reach.load(Ordering::Relaxed) {
                return way;
            }
            let again = named
                .again
                .chunk(self.objects, context, index, piece, first);
            let merged = match again.await {
                Ok(merged) => merged,
                Err(refusal) => {
                    reach.fetch_min(place, Ordering::Relaxed);
                    way.broken = Some(Fault::of(&refusal));
                    return way;
                }
            };
            first = false;
            piece = merged.piece;
            let expected = window.expected(place, index);
            let differs = expected.is_some_and(|chunk| chunk != merged.broadcast);
            let at_rest = match expected.filter(|_| !differs) {
                Some(object) => self.at_rest(object).await,
                None if differs => None,
                None => {
                    let text = "the list of the published chunks is gone, and nobody gave it up";
                    Some(Fault::Unproven(text.to_owned()))
                }
            };
            if differs || !merged.finite {
                reach.fetch_min(place, Ordering::Relaxed);
            }
            let remade = Remade {
                broadcast: merged.broadcast,
                sum_of_squares: merged.sum_of_squares,
                finite: merged.finite,
            };
            way.made.push(Made {
                remade,
                squares: merged.squares,
                directions: merged.directions,
                at_rest,
            });
            (self.progress)();
        }
        if let Some(end) = end {
            way.end = self.compare_end(end, piece, index).await;
        }
        way
    }

    /// Compares one chunk with the snapshot of it, and reads the snapshot's objects.
    async fn compare_end(&self, end: &Base, piece: Piece, index: usize) -> Option<Fault> {
        if !end.slots.keys().eq(piece.slots.keys()) {
            let what = "it has other outer state than the run's optimizer keeps";
            return Some(snapshot(end.round, what.to_owned()));
        }
        let slots = piece.slots.into_iter();
        let slots =
            slots.map(|(slot, values)| (format!("{slot:?}"), end.slots[&slot][index], values));
        let params = [("weights".to_owned(), end.params[index], piece.params)];
        for (part, expected, values) in params.into_iter().chain(slots) {
            let encoded = tokio::task::spawn_blocking(move || ObjectRef::of(&encode(&values)));
            let got = encoded.await.expect("encoding does not panic");
            if got != expected {
                let part = part.to_lowercase();
                let what = format!(
                    "chunk {index} of its {part}: the manifest has {}, the merges give {}",
                    expected.digest, got.digest
                );
                return Some(snapshot(end.round, what));
            }
            if let Some(fault) = self.at_rest(expected).await {
                return Some(fault);
            }
        }
        None
    }

    /// Reads an object that is not needed, to see if it is there and what it should be: who asks if
    /// a round is verified means its objects as well.
    async fn at_rest(&self, object: ObjectRef) -> Option<Fault> {
        let refusal = self.objects.fetch(object).await.err()?;
        Some(match refusal.code {
            Code::ObjectMissing => Fault::Unproven(format!(
                "the merge gives {}, which is gone, and nobody gave it up",
                object.digest
            )),
            _ => Fault::of(&refusal),
        })
    }
}

impl Window {
    /// The object that the ledger names for chunk `index` of what a merge published.
    fn expected(&self, place: usize, index: usize) -> Option<ObjectRef> {
        let chunks = self.merges[place].expected.as_ref()?;
        chunks.get(index - self.start).copied()
    }
}

/// Gives the way of chunk `index` to the comparison.
fn take(
    comparison: &mut Comparison<'_>,
    window: &Window,
    directions: &mut [Directions],
    way: Way,
    index: usize,
) {
    let broken = way.made.len();
    for (place, made) in way.made.into_iter().enumerate() {
        comparison.chunk(place, index, window.expected(place, index), made.remade);
        comparison.inputs(place, &made.squares);
        directions[place].add(&made.directions);
        if let Some(fault) = made.at_rest {
            comparison.beside(place, fault);
        }
    }
    if let Some(fault) = way.broken {
        comparison.broken(broken, fault);
    }
    if let Some(fault) = way.end {
        comparison.end(fault);
    }
}

fn snapshot(round: Round, what: String) -> Fault {
    Fault::Differs(Difference::Snapshot { round, what })
}

/// The fault for a snapshot that cannot be read; one that is none is the lie of its maker.
fn of_snapshot(round: Round, refusal: &Refusal) -> Fault {
    match Fault::of(refusal) {
        Fault::Differs(Difference::Unmergeable { reason }) if round > Round(0) => {
            snapshot(round, reason)
        }
        fault => fault,
    }
}
