//! The chunks of a merge's contributions, by name. Lists of large models are long, and a merge may
//! have thousands of them: only so many names are in memory at a time, and a list is read once more
//! for the next part of its chunks. Beside the chunks themselves that is little to read.

use std::ops::Range;

use schemas::lease::LeaseRef;
use schemas::snapshot::MergeInput;
use schemas::{Chunks, ObjectRef, Refusal};

use crate::objects::Objects;

/// Most memory for names of chunks in a merge or in a restore: of a round of 256 contributions,
/// each of a thousand chunks, all fit.
const NAMES_BYTES_MAX: usize = 16 << 20;

/// The part of a contribution's chunks that is in memory, and how much the contribution counts.
#[derive(Debug)]
pub struct Input {
    /// The lease under which it was made.
    pub lease: LeaseRef,
    /// Its weight in the mean.
    pub weight: u64,
    /// Its norm, in a run whose rule of combination needs it.
    pub norm: Option<f32>,
    /// The cosine of its direction, if directions were compared.
    pub cosine: Option<f32>,
    /// The first chunk that is named here.
    start: usize,
    chunks: Vec<ObjectRef>,
}

impl Input {
    /// The name of chunk `index` of the whole contribution, if it is in the window that was read.
    pub fn chunk(&self, index: usize) -> Option<ObjectRef> {
        self.chunks.get(index.checked_sub(self.start)?).copied()
    }
}

/// The chunks of which the names of `inputs` contributions are in memory at a time, for `count`
/// chunks: one window after another, and together all.
pub fn windows(inputs: usize, count: usize) -> impl Iterator<Item = Range<usize>> {
    let names = NAMES_BYTES_MAX / size_of::<ObjectRef>();
    let length = (names / inputs.max(1)).max(1);
    let starts = (0..count).step_by(length);
    starts.map(move |start| start..count.min(start + length))
}

/// The names of the chunks of `window` of each contribution, in their order. A list is read whole,
/// as it has one digest, and the rest of it is dropped.
pub async fn read(
    objects: &dyn Objects,
    inputs: &[MergeInput],
    window: &Range<usize>,
) -> Result<Vec<Input>, Refusal> {
    let mut read = Vec::with_capacity(inputs.len());
    for input in inputs {
        let chunks = match &input.chunks {
            Chunks::Named(chunks) => part(chunks, window),
            listed @ Chunks::Listed(_) => part(&objects.chunks(listed).await?, window),
        };
        read.push(Input {
            lease: input.lease,
            weight: input.weight.get(),
            norm: input.norm,
            cosine: input.cosine,
            start: window.start,
            chunks,
        });
    }
    Ok(read)
}

/// The part of the chunks that is in the window; less where they end before it does.
fn part(chunks: &[ObjectRef], window: &Range<usize>) -> Vec<ObjectRef> {
    let end = window.end.min(chunks.len());
    chunks.get(window.start..end).unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests {
    use schemas::limits::{CHUNKS_MAX, UNITS_MAX};
    use schemas::{Tokens, Weight};

    use super::*;
    use async_trait::async_trait;
    use bytes::Bytes;

    /// Objects that nobody can read.
    struct Away;

    #[async_trait]
    impl Objects for Away {
        async fn fetch(&self, object: ObjectRef) -> Result<Bytes, Refusal> {
            panic!("{} is asked for", object.digest)
        }
    }

    #[test]
    fn windows_are_all_chunks_in_order_and_their_names_fit() {
        let names = NAMES_BYTES_MAX / size_of::<ObjectRef>();
        for inputs in [0, 1, 2, 7, 4096, 100_000, names, names + 1] {
            for count in [0, 1, 255, CHUNKS_MAX] {
                let windows: Vec<_> = windows(inputs, count).collect();
                let together = windows.iter().cloned().flatten();
                assert!(together.eq(0..count), "{inputs} of {count}");
                for window in windows {
                    assert!(window.len() * inputs <= names.max(inputs), "{window:?}");
                }
            }
        }
    }

    /// A list that is read once more for each window must cost little beside the chunks.
    #[test]
    fn the_largest_round_reads_its_lists_a_few_times() {
        let largest = windows(UNITS_MAX as usize, CHUNKS_MAX).next();
        assert!(largest.expect("there are chunks").len() >= 100);
        assert_eq!(windows(256, 1024).count(), 1);
    }

    #[tokio::test]
    async fn each_window_names_its_chunks_by_their_place_in_the_contribution() {
        let chunks: Vec<ObjectRef> = (0..5_u8).map(|n| ObjectRef::of(&[n])).collect();
        let lease = kit::lease(kit::train(0, 0), 1);
        let input = MergeInput {
            lease,
            worker: kit::worker(1),
            tokens: Tokens(7),
            weight: Weight(7),
            norm: None,
            cosine: None,
            chunks: chunks.clone().into(),
        };
        for window in [0..2, 2..4, 4..5, 1..5, 3..9, 5..9, 7..9] {
            let inputs = [input.clone(), input.clone()];
            let read = read(&Away, &inputs, &window).await.expect("they are named");
            assert_eq!(read.len(), 2);
            for input in read {
                assert_eq!((input.lease, input.weight), (lease, 7));
                for (index, chunk) in chunks.iter().enumerate() {
                    let expected = window.contains(&index).then_some(*chunk);
                    assert_eq!(input.chunk(index), expected, "{index} in {window:?}");
                }
                assert_eq!(input.chunk(chunks.len()), None);
            }
        }
    }
}
