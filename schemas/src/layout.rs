//! The layout of a model's parameters: one flat vector of fp32, cut into tensors, fragments and
//! chunks.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::limits::{CHUNKS_MAX, DIMENSIONS_MAX, TENSORS_MAX};
use crate::message::{V, message};
use crate::{Message, ObjectRef};

/// One tensor of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Its name in the Hugging Face convention of the model's family.
    pub name: String,
    /// Its dimensions, outermost first; a scalar has none.
    pub shape: Vec<u64>,
    /// The fragment that it belongs to, counted from 0 in order of first appearance.
    pub fragment: u32,
}

/// The tensors in the order in which they lie in the flat vector. Global weights are always fp32.
///
/// Its encoding is an object, whose digest is the layout's fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Version.
    pub v: V<1>,
    /// The tensors; fragments are contiguous and ascending.
    pub tensors: Vec<TensorSpec>,
}

message!(Layout, "Layout", 8 << 20);

/// A contiguous piece of the flat vector within one fragment: the unit of transfer and of the
/// merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its fragment.
    pub fragment: u32,
    /// Its first element in the flat vector.
    pub start: u64,
    /// Its number of elements.
    pub elements: u64,
}

impl Chunk {
    /// Its elements in the flat vector.
    pub fn range(&self) -> Range<usize> {
        let start = usize::try_from(self.start)
            .expect("checked against memory when the layout was validated");
        let elements = usize::try_from(self.elements).expect("as above");
        start..start + elements
    }
}

/// The reason why a layout is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No tensors, or too many.
    #[error("{0} tensors, between 1 and {TENSORS_MAX} are accepted")]
    Count(usize),
    /// A tensor without a name, or a name given twice.
    #[error("tensor name {0:?} is empty or given twice")]
    Name(String),
    /// An empty tensor, too many dimensions, or a size that overflows.
    #[error("tensor {name} has shape {shape:?}, which is empty or too large")]
    Shape {
        /// The tensor.
        name: String,
        /// Its dimensions.
        shape: Vec<u64>,
    },
    /// Fragments are not contiguous and ascending from 0.
    #[error("tensor {0} breaks the order of fragments")]
    Fragment(String),
    /// The chunk size is zero or gives too many chunks.
    #[error(
        "{chunk_elements} elements a chunk give {chunks} chunks, at most {CHUNKS_MAX} are accepted"
    )]
    Chunks {
        /// The chunk size asked for.
        chunk_elements: u64,
        /// The number of chunks that this would give.
        chunks: u64,
    },
}

impl TensorSpec {
    /// The number of elements; `None` when it overflows or a dimension is zero.
    pub fn elements(&self) -> Option<u64> {
        let product = self
            .shape
            .iter()
            .try_fold(1_u64, |product, size| product.checked_mul(*size))?;
        (product > 0 && product <= ELEMENTS_MAX).then_some(product)
    }
}

/// Largest number of elements, in one tensor and in all: 4 TiB of fp32.
const ELEMENTS_MAX: u64 = 1 << 40;

impl Layout {
    /// Checks everything that the other methods assume.
    ///
    /// # Errors
    /// The first violation.
    pub fn validate(&self) -> Result<(), LayoutError> {
        if self.tensors.is_empty() || self.tensors.len() > TENSORS_MAX {
            return Err(LayoutError::Count(self.tensors.len()));
        }
        let mut names = std::collections::BTreeSet::new();
        let mut total = 0_u64;
        let mut fragment = 0;
        for tensor in &self.tensors {
            if tensor.name.is_empty() || !names.insert(&tensor.name) {
                return Err(LayoutError::Name(tensor.name.clone()));
            }
            let shape = || LayoutError::Shape {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
            };
            let elements = tensor
                .elements()
                .filter(|_| tensor.shape.len() <= DIMENSIONS_MAX)
                .ok_or_else(shape)?;
            total = total
                .checked_add(elements)
                .filter(|total| *total <= ELEMENTS_MAX)
                .ok_or_else(shape)?;
            let next = names.len() > 1 && tensor.fragment == fragment + 1;
            if tensor.fragment != fragment && !next {
                return Err(LayoutError::Fragment(tensor.name.clone()));
            }
            fragment = tensor.fragment;
        }
        Ok(())
    }

    /// Elements of the flat vector. The layout must be valid.
    pub fn elements(&self) -> u64 {
        self.tensors.iter().filter_map(TensorSpec::elements).sum()
    }

    /// Each tensor with its place in the flat vector.
    pub fn spans(&self) -> impl Iterator<Item = (&TensorSpec, Range<u64>)> {
        self.tensors.iter().scan(0_u64, |start, tensor| {
            let span = *start..*start + tensor.elements().unwrap_or(0);
            *start = span.end;
            Some((tensor, span))
        })
    }

    /// Cuts the flat vector into chunks of at most `chunk_elements`, none across two fragments.
    ///
    /// # Errors
    /// The size is zero or gives more than [`CHUNKS_MAX`] chunks.
    pub fn chunks(&self, chunk_elements: u64) -> Result<Vec<Chunk>, LayoutError> {
        let mut fragments: Vec<Range<u64>> = Vec::new();
        for (tensor, span) in self.spans() {
            match fragments.get_mut(tensor.fragment as usize) {
                Some(range) => range.end = span.end,
                None => fragments.push(span),
            }
        }
        let pieces = |range: &Range<u64>| (range.end - range.start).div_ceil(chunk_elements.max(1));
        let count: u64 = fragments.iter().map(pieces).sum();
        if chunk_elements == 0 || count > CHUNKS_MAX as u64 {
            return Err(LayoutError::Chunks {
                chunk_elements,
                chunks: count,
            });
        }
        let mut chunks = Vec::new();
        for (fragment, range) in (0_u32..).zip(&fragments) {
            let mut start = range.start;
            while start < range.end {
                let elements = chunk_elements.min(range.end - start);
                chunks.push(Chunk {
                    fragment,
                    start,
                    elements,
                });
                start += elements;
            }
        }
        Ok(chunks)
    }

    /// The layout as an object: its bytes and their reference, whose digest is the fingerprint.
    pub fn to_object(&self) -> (Vec<u8>, ObjectRef) {
        let bytes = self.encode();
        let reference = ObjectRef::of(&bytes);
        (bytes, reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(tensors: &[(&str, &[u64], u32)]) -> Layout {
        let spec = |(name, shape, fragment): &(&str, &[u64], u32)| TensorSpec {
            name: (*name).to_owned(),
            shape: shape.to_vec(),
            fragment: *fragment,
        };
        Layout {
            v: V,
            tensors: tensors.iter().map(spec).collect(),
        }
    }

    #[test]
    fn chunks_cover_everything_once_and_stay_in_their_fragment() {
        let layout = layout(&[("a", &[3, 5], 0), ("b", &[4], 0), ("c", &[10], 1)]);
        layout.validate().expect("valid");
        assert_eq!(layout.elements(), 29);
        let chunks = layout.chunks(8).expect("chunks");
        let as_tuples: Vec<_> = chunks
            .iter()
            .map(|c| (c.fragment, c.start, c.elements))
            .collect();
        assert_eq!(
            as_tuples,
            [(0, 0, 8), (0, 8, 8), (0, 16, 3), (1, 19, 8), (1, 27, 2)]
        );
    }

    #[test]
    fn fg_11_hostile_layouts_are_refused() {
        assert!(layout(&[]).validate().is_err());
        assert!(
            layout(&[("a", &[1], 0), ("a", &[1], 0)])
                .validate()
                .is_err()
        );
        assert!(layout(&[("a", &[0], 0)]).validate().is_err());
        assert!(layout(&[("a", &[u64::MAX, 2], 0)]).validate().is_err());
        assert!(layout(&[("a", &[1], 1)]).validate().is_err());
        assert!(
            layout(&[("a", &[1], 0), ("b", &[1], 2)])
                .validate()
                .is_err()
        );
        assert!(layout(&[("a", &[1; 9], 0)]).validate().is_err());
        assert!(layout(&[("a", &[1 << 30], 0)]).chunks(1).is_err());
        assert!(layout(&[("a", &[1], 0)]).chunks(0).is_err());
    }

    #[test]
    fn fingerprint_depends_on_every_field() {
        let base = layout(&[("a", &[2, 3], 0), ("b", &[1], 0)]);
        let others = [
            layout(&[("x", &[2, 3], 0), ("b", &[1], 0)]),
            layout(&[("a", &[3, 2], 0), ("b", &[1], 0)]),
            layout(&[("b", &[1], 0), ("a", &[2, 3], 0)]),
            layout(&[("a", &[2, 3], 0), ("b", &[1], 1)]),
        ];
        assert!(
            others
                .iter()
                .all(|other| other.to_object().1 != base.to_object().1)
        );
    }
}
