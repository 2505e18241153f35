//! The inner optimizer's state in a file: both moments of AdamW as flat vectors, the step count, and the fingerprint of
//! the layout they belong to.

use std::collections::BTreeMap;
use std::path::Path;

use model::{NamedTensor, TensorFile, write_tensors};
use schemas::layout::Layout;

use crate::TrainerError;

/// AdamW's state beside the parameters, one element each.
#[derive(Clone, Debug, PartialEq)]
pub struct InnerMoments {
    /// Steps taken.
    pub steps: u64,
    /// Running mean of the gradient.
    pub first: Vec<f32>,
    /// Running mean of its square.
    pub second: Vec<f32>,
}

const FORMAT: &str = "diloco inner state 1";
const FIRST: &str = "first_moment";
const SECOND: &str = "second_moment";

/// Writes the state atomically; the slices are in the order of the layout.
///
/// # Errors
/// [`TrainerError::State`]: the file cannot be written.
pub fn save_inner(path: &Path, layout: &Layout, steps: u64, first: &[f32], second: &[f32]) -> Result<(), TrainerError> {
    let shape = [layout.elements()];
    let metadata = BTreeMap::from(
        [("kind", FORMAT.to_owned()), ("layout", fingerprint(layout)), ("steps", steps.to_string())]
            .map(|(key, value)| (key.to_owned(), value)),
    );
    let tensors = [(FIRST, first), (SECOND, second)];
    let tensors = tensors.map(|(name, values)| NamedTensor { name, shape: &shape, values });
    Ok(write_tensors(path, &metadata, tensors.to_vec())?)
}

/// Reads a state that [`save_inner`] wrote for the same layout.
///
/// # Errors
/// [`TrainerError::State`]: the file cannot be read, or belongs to another layout.
pub fn load_inner(path: &Path, layout: &Layout) -> Result<InnerMoments, TrainerError> {
    let file = TensorFile::open(path)?;
    let expect = |key: &str, expected: &str| match file.metadata(key) {
        Some(found) if found == expected => Ok(()),
        found => {
            let found = found.unwrap_or("absent");
            Err(TrainerError::State(format!("{}: {key} is {found}, expected {expected}", path.display())))
        }
    };
    expect("kind", FORMAT)?;
    expect("layout", &fingerprint(layout))?;
    let steps = file.metadata("steps").and_then(|text| text.parse().ok());
    let steps = steps.ok_or_else(|| TrainerError::State(format!("{}: no step count", path.display())))?;
    let elements = layout.elements();
    let read = |name| -> Result<Vec<f32>, TrainerError> {
        let mut values = vec![0.0; elements as usize];
        file.read(name, &[elements], &mut values)?;
        Ok(values)
    };
    Ok(InnerMoments { steps, first: read(FIRST)?, second: read(SECOND)? })
}

fn fingerprint(layout: &Layout) -> String {
    layout.to_object().1.digest.to_string()
}

#[cfg(test)]
mod tests {
    use model::Preset;
    use schemas::Code;

    use super::*;

    #[test]
    fn only_the_same_layout_gets_it_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("inner.safetensors");
        let layout = Preset::named("reference").expect("a preset").config.layout();
        let count = layout.elements() as usize;
        let first: Vec<f32> = (0..count).map(|i| i as f32).collect();
        let second = vec![0.5; count];
        save_inner(&path, &layout, 17, &first, &second).expect("written");
        let moments = load_inner(&path, &layout).expect("read");
        assert_eq!(moments, InnerMoments { steps: 17, first, second });
        let mut other = layout.clone();
        other.tensors[0].name.push('x');
        assert_eq!(load_inner(&path, &other).expect_err("another layout").code(), Code::WorkerStateInvalid);
        std::fs::write(&path, b"nonsense").expect("written");
        assert_eq!(load_inner(&path, &layout).expect_err("nonsense").code(), Code::WorkerStateInvalid);
    }
}
