//! The inner optimizer's state in a file: both moments of AdamW as flat vectors, the step count,
//! and the fingerprint of the layout they belong to.

use std::collections::BTreeMap;
use std::path::Path;

use model::{NamedTensor, TensorFile, write_tensors};
use schemas::layout::Layout;

use crate::TrainerError;

/// AdamW's state beside the parameters, one element each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InnerMoments {
    /// Steps taken.
    pub steps: u64,
    /// Running mean of the gradient.
    pub first: Vec<f32>,
    /// Running mean of its square.
    pub second: Vec<f32>,
}

/// A copy of the inner optimizer's state, which is written while training goes on. It takes 8 bytes
/// a parameter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InnerState {
    layout: String,
    moments: InnerMoments,
}

const FORMAT: &str = "diloco inner state 1";
/// A number of steps that no run takes: at a thousand a second they would last 35 years.
const STEPS_MAX: u64 = 1 << 40;
/// A mean of gradients is at most this many times the root of the mean of their squares. The bound
/// is 7 for the usual decays, and below 100 for the slowest useful ones, so no optimizer produces
/// values beyond 100.
const FIRST_PER_ROOT_MAX: f32 = 1e4;
/// The magnitude below which a square is too small for fp32, so that its root has no meaning.
const FIRST_ALWAYS_FINE: f32 = 1e-15;
const FIRST: &str = "first_moment";
const SECOND: &str = "second_moment";
/// The key of the name that a state may have.
const NAME: &str = "name";

/// Writes the state atomically; the slices are in the order of the layout.
///
/// # Errors
/// [`TrainerError::State`]: the file cannot be written.
pub fn save_inner(
    path: &Path,
    layout: &Layout,
    steps: u64,
    first: &[f32],
    second: &[f32],
) -> Result<(), TrainerError> {
    write(path, &fingerprint(layout), steps, (first, second), None)
}

fn write(
    path: &Path,
    layout: &str,
    steps: u64,
    (first, second): (&[f32], &[f32]),
    name: Option<&str>,
) -> Result<(), TrainerError> {
    let shape = [first.len() as u64];
    let metadata = [
        Some(("kind", FORMAT.to_owned())),
        Some(("layout", layout.to_owned())),
        Some(("steps", steps.to_string())),
        name.map(|name| (NAME, name.to_owned())),
    ];
    let metadata: BTreeMap<String, String> = metadata
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let tensors = [(FIRST, first), (SECOND, second)];
    let tensors = tensors.map(|(name, values)| NamedTensor {
        name,
        shape: &shape,
        values,
    });
    Ok(write_tensors(path, &metadata, tensors.to_vec())?)
}

/// Reads a state that [`save_inner`] wrote for the same layout. Form and values are checked: a
/// state that no optimizer produces would spoil every later step, and would be saved again.
///
/// # Errors
/// [`TrainerError::State`]: the file cannot be read, or belongs to another layout.
/// [`TrainerError::StateValues`]: it has values that no optimizer produces.
pub fn load_inner(path: &Path, layout: &Layout) -> Result<InnerMoments, TrainerError> {
    let file = TensorFile::open(path)?;
    let expect = |key: &str, expected: &str| match file.metadata(key) {
        Some(found) if found == expected => Ok(()),
        found => {
            let found = found.unwrap_or("absent");
            Err(TrainerError::State(format!(
                "{}: {key} is {found}, expected {expected}",
                path.display()
            )))
        }
    };
    expect("kind", FORMAT)?;
    expect("layout", &fingerprint(layout))?;
    let steps = file.metadata("steps").and_then(|text| text.parse().ok());
    let steps =
        steps.ok_or_else(|| TrainerError::State(format!("{}: no step count", path.display())))?;
    let elements = layout.elements();
    let read = |name| -> Result<Vec<f32>, TrainerError> {
        let mut values = vec![0.0; elements as usize];
        file.read(name, &[elements], &mut values)?;
        Ok(values)
    };
    let moments = InnerMoments {
        steps,
        first: read(FIRST)?,
        second: read(SECOND)?,
    };
    moments
        .check()
        .map_err(|reason| TrainerError::StateValues(format!("{}: {reason}", path.display())))?;
    Ok(moments)
}

impl InnerState {
    /// Makes this the state of a trainer with `layout` after `steps`, and uses its memory again.
    /// The caller then fills in the moments.
    pub fn retake(&mut self, layout: &Layout, steps: u64) -> &mut InnerMoments {
        self.layout = fingerprint(layout);
        self.moments.steps = steps;
        &mut self.moments
    }

    /// Writes the state atomically.
    ///
    /// # Errors
    /// [`TrainerError::State`]: the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), TrainerError> {
        let InnerMoments {
            steps,
            first,
            second,
        } = &self.moments;
        write(path, &self.layout, *steps, (first, second), None)
    }

    /// The same under a name, by which another file can say that it belongs to this very state.
    ///
    /// # Errors
    /// As [`InnerState::write`].
    pub fn write_named(&self, path: &Path, name: &str) -> Result<(), TrainerError> {
        let InnerMoments {
            steps,
            first,
            second,
        } = &self.moments;
        write(path, &self.layout, *steps, (first, second), Some(name))
    }
}

/// The name under which the state in a file was written, if it has one.
///
/// # Errors
/// [`TrainerError::State`]: the file cannot be read.
pub fn inner_name(path: &Path) -> Result<Option<String>, TrainerError> {
    Ok(TensorFile::open(path)?.metadata(NAME).map(str::to_owned))
}

impl InnerMoments {
    /// Overwrites both moments with copies of the given ones.
    pub fn copy(&mut self, first: &[f32], second: &[f32]) {
        for (own, values) in [(&mut self.first, first), (&mut self.second, second)] {
            own.clear();
            own.extend_from_slice(values);
        }
    }

    /// Refuses values that no optimizer produces, and names the first of them.
    fn check(&self) -> Result<(), String> {
        if self.steps > STEPS_MAX {
            return Err(format!("{} steps are more than any run has", self.steps));
        }
        for (at, (first, second)) in self.first.iter().zip(&self.second).enumerate() {
            if !second.is_finite() || *second < 0.0 {
                return Err(format!(
                    "{SECOND} is {second} at element {at}; a mean of squares is finite and not negative"
                ));
            }
            if first.is_nan()
                || first.abs() > FIRST_PER_ROOT_MAX * second.sqrt() + FIRST_ALWAYS_FINE
            {
                return Err(format!(
                    "{FIRST} is {first} at element {at}, where {SECOND} is {second}"
                ));
            }
        }
        let is_zero = |values: &[f32]| values.iter().all(|value| *value == 0.0);
        match self.steps {
            0 if !is_zero(&self.first) || !is_zero(&self.second) => {
                Err("it has moments of no step".to_owned())
            }
            1.. if !self.second.is_empty() && is_zero(&self.second) => Err(format!(
                "{SECOND} is zero everywhere after {} steps",
                self.steps
            )),
            _ => Ok(()),
        }
    }
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
        let layout = Preset::named("reference")
            .expect("a preset")
            .config
            .layout();
        let count = layout.elements() as usize;
        let first: Vec<f32> = (0..count).map(|i| i as f32 * 1e-3).collect();
        let second = vec![0.5; count];
        save_inner(&path, &layout, 17, &first, &second).expect("written");
        let moments = load_inner(&path, &layout).expect("read");
        assert_eq!(
            moments,
            InnerMoments {
                steps: 17,
                first,
                second
            }
        );
        let mut other = layout.clone();
        other.tensors[0].name.push('x');
        assert_eq!(
            load_inner(&path, &other)
                .expect_err("another layout")
                .code(),
            Code::WorkerStateInvalid
        );
        std::fs::write(&path, b"nonsense").expect("written");
        assert_eq!(
            load_inner(&path, &layout).expect_err("nonsense").code(),
            Code::WorkerStateInvalid
        );
    }

    #[test]
    fn values_that_no_optimizer_comes_to_are_refused_although_the_form_is_right() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("inner.safetensors");
        let layout = Preset::named("reference")
            .expect("a preset")
            .config
            .layout();
        let count = layout.elements() as usize;
        let attempt = |steps: u64, change: &dyn Fn(&mut Vec<f32>, &mut Vec<f32>)| {
            let (mut first, mut second) = (vec![1e-3; count], vec![1e-6; count]);
            change(&mut first, &mut second);
            save_inner(&path, &layout, steps, &first, &second).expect("written");
            load_inner(&path, &layout).map_err(|error| error.code())
        };
        let poisoned = Some(Code::InnerStateInvalid);
        for value in [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            -1.0,
            -f32::MIN_POSITIVE,
        ] {
            assert_eq!(
                attempt(9, &|_, second| second[count - 1] = value).err(),
                poisoned,
                "{value}"
            );
        }
        for value in [f32::NAN, f32::INFINITY, f32::MAX, -1e9] {
            assert_eq!(
                attempt(9, &|first, _| first[count / 2] = value).err(),
                poisoned,
                "{value}"
            );
        }
        assert_eq!(
            attempt(9, &|_, second| second.fill(0.0)).err(),
            poisoned,
            "only the squares are gone"
        );
        let empty: &dyn Fn(&mut Vec<f32>, &mut Vec<f32>) = &|first, second| {
            first.fill(0.0);
            second.fill(0.0);
        };
        assert_eq!(
            attempt(9, empty).err(),
            poisoned,
            "nine steps and no trace of them"
        );
        assert_eq!(
            attempt(0, &|_, _| {}).err(),
            poisoned,
            "moments without a step"
        );
        assert_eq!(attempt(u64::MAX, &|_, _| {}).err(), poisoned);
        // Values that do occur: no step yet, and parameters that no gradient has reached.
        assert!(attempt(0, empty).is_ok());
        assert!(attempt(9, &|_, _| {}).is_ok());
        let untouched = |first: &mut Vec<f32>, second: &mut Vec<f32>| {
            first[1..].fill(0.0);
            second[1..].fill(0.0);
            (first[2], second[2]) = (1e-20, 0.0);
        };
        assert!(attempt(9, &untouched).is_ok());
        let whole = std::fs::read(&path).expect("bytes");
        std::fs::write(&path, &whole[..whole.len() - 1000]).expect("written");
        assert_eq!(
            load_inner(&path, &layout).expect_err("short").code(),
            Code::WorkerStateInvalid
        );
    }
}
