//! The residual of error feedback: what the codec has taken from this worker's contributions, and
//! what is added to its next one.
//!
//! * It moves on only when a result counts. A result that is refused, a lease that is lost, a unit
//!   that is stopped leave it as it was: nothing of them was merged, and another unit does their
//!   work.
//! * It belongs to one run under one set of settings, and to its layout: it lies in the run's
//!   folder beside the inner state, and is saved with it.
//! * A worker that is killed between the two files begins without a residual: the old one is
//!   removed before a new inner state is written, and what one contribution was short of is lost.
//! * A worker that is killed after a result counts and before its inner state is copied has the
//!   residual of before on its disk, and adds it once more.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use merge::codec::encoded_bytes;
use merge::{Owed, SeededRounding, encode_with_feedback};
use model::{NamedTensor, TensorFile, write_tensors};
use schemas::layout::Layout;
use schemas::run::CodecKind;
use schemas::{Code, Refusal};

const FORMAT: &str = "diloco residual 1";
const TENSOR: &str = "residual";

/// What contributions were short of, one value for each parameter.
pub(super) struct Residual {
    /// As of the last result that counts.
    owed: Vec<f32>,
    /// What the contribution that is on its way will have left when it counts.
    left: Vec<f32>,
    /// The elements of that contribution: the end of each piece by its start.
    sent: BTreeMap<usize, usize>,
    layout: String,
}

/// A residual as it was at one moment, to be written.
pub(super) struct Saved {
    values: Vec<f32>,
    layout: String,
}

impl Residual {
    /// The residual that is kept beside an inner state, or an empty one. One that does not fit, or
    /// holds what is no number, is put aside.
    pub(super) fn take_up(inner: &Path, layout: &Layout) -> Self {
        let elements =
            usize::try_from(layout.elements()).expect("the trainer holds as many in memory");
        let (path, fingerprint) = (path(inner), layout.to_object().1.digest.to_string());
        let owed = match path.exists().then(|| read(&path, elements, &fingerprint)) {
            None => vec![0.0; elements],
            Some(Ok(owed)) => {
                tracing::info!(path = %path.display(), "residual taken up again");
                owed
            }
            Some(Err(error)) => {
                let moved = put_aside(inner);
                let (code, path) = (Code::InnerStateInvalid, path.display());
                tracing::warn!(%code, %path, error, moved, "the saved residual is passed over; it starts at zero");
                vec![0.0; elements]
            }
        };
        Self {
            left: vec![0.0; elements],
            owed,
            sent: BTreeMap::new(),
            layout: fingerprint,
        }
    }

    /// Encodes a piece of a contribution with what is owed, and notes what it will be short of.
    pub(super) fn encode(
        &mut self,
        codec: CodecKind,
        rounding: SeededRounding,
        range: Range<usize>,
        base: &[f32],
        local: &[f32],
    ) -> Result<Bytes, Refusal> {
        let (residual, left) = (&self.owed[range.clone()], &mut self.left[range.clone()]);
        let owed = Owed {
            base,
            local,
            residual,
        };
        let mut out = vec![0; encoded_bytes(codec, base.len())];
        encode_with_feedback(codec, owed, rounding, &mut out, left)
            .map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
        self.sent.insert(range.start, range.end);
        Ok(out.into())
    }

    /// The contribution counts: what it left is owed from now on. The screen has let it pass, so
    /// all of it is finite.
    pub(super) fn counted(&mut self) {
        for (start, end) in std::mem::take(&mut self.sent) {
            self.owed[start..end].copy_from_slice(&self.left[start..end]);
        }
    }

    /// The contribution on its way came to nothing.
    pub(super) fn lost(&mut self) {
        self.sent.clear();
    }

    /// A copy to be written.
    pub(super) fn saved(&self) -> Saved {
        Saved {
            values: self.owed.clone(),
            layout: self.layout.clone(),
        }
    }
}

impl Saved {
    /// Writes it beside the inner state, atomically.
    pub(super) fn write(&self, inner: &Path) -> Result<(), String> {
        let metadata = [("kind", FORMAT), ("layout", &self.layout)];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let tensor = NamedTensor {
            name: TENSOR,
            shape: &[self.values.len() as u64],
            values: &self.values,
        };
        write_tensors(&path(inner), &BTreeMap::from(metadata), vec![tensor])
            .map_err(|error| error.to_string())
    }
}

/// Removes the residual beside an inner state that is about to be replaced.
pub(super) fn remove(inner: &Path) -> Result<(), String> {
    match std::fs::remove_file(path(inner)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// Sets the residual beside an inner state aside, so that a person can look at it; true if there
/// was one.
pub(super) fn put_aside(inner: &Path) -> bool {
    let path = path(inner);
    std::fs::rename(&path, path.with_extension("refused")).is_ok()
}

fn path(inner: &Path) -> PathBuf {
    inner.with_file_name("residual.safetensors")
}

fn read(path: &Path, elements: usize, layout: &str) -> Result<Vec<f32>, String> {
    let file = TensorFile::open(path).map_err(|error| error.to_string())?;
    for (key, expected) in [("kind", FORMAT), ("layout", layout)] {
        let found = file.metadata(key).unwrap_or("absent");
        if found != expected {
            return Err(format!("{key} is {found}, expected {expected}"));
        }
    }
    let mut values = vec![0.0; elements];
    file.read(TENSOR, &[elements as u64], &mut values)
        .map_err(|error| error.to_string())?;
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => Err(format!("it is {} at element {at}", values[at])),
    }
}

#[cfg(test)]
mod tests {
    use merge::codec::decode;
    use model::Preset;

    use super::*;

    const CODEC: CodecKind = CodecKind::E3m0;

    fn layout() -> Layout {
        let preset = Preset::named("reference").expect("a preset");
        preset.config.layout()
    }

    /// What arrives of a contribution of `local` from zero.
    fn send(residual: &mut Residual, local: &[f32]) -> Vec<f32> {
        let (base, mut arrived) = (vec![0.0; local.len()], vec![0.0; local.len()]);
        for range in [0..local.len() / 2, local.len() / 2..local.len()] {
            let (base, local) = (&base[range.clone()], &local[range.clone()]);
            let bytes = residual
                .encode(CODEC, SeededRounding::NEAREST, range.clone(), base, local)
                .expect("it fits");
            decode(CODEC, &bytes, &mut arrived[range]).expect("it fits");
        }
        arrived
    }

    fn wave(elements: usize) -> Vec<f32> {
        (0..elements)
            .map(|place| (place as f32 * 0.37).sin())
            .collect()
    }

    #[test]
    fn only_a_result_that_counts_moves_it_on() {
        let scratch = tempfile::tempdir().expect("a folder");
        let inner = scratch.path().join("inner.safetensors");
        let layout = layout();
        let mut residual = Residual::take_up(&inner, &layout);
        let local = wave(residual.owed.len());
        let first = send(&mut residual, &local);
        // A lost lease, and a result that was refused: the next contribution is made as this was.
        residual.lost();
        assert_eq!(send(&mut residual, &local), first);
        residual.counted();
        let short: Vec<f32> = local
            .iter()
            .zip(&first)
            .map(|(local, sent)| -local - sent)
            .collect();
        assert_eq!(residual.owed, short);
        assert_ne!(send(&mut residual, &local), first, "it is brought back");
        // An evaluation counts, and sends nothing.
        residual.lost();
        residual.counted();
        assert_eq!(residual.owed, short);
    }

    #[test]
    fn a_restart_keeps_it_and_another_layout_does_not_get_it() {
        let scratch = tempfile::tempdir().expect("a folder");
        let inner = scratch.path().join("inner.safetensors");
        let layout = layout();
        let mut residual = Residual::take_up(&inner, &layout);
        let local = wave(residual.owed.len());
        send(&mut residual, &local);
        residual.counted();
        residual.saved().write(&inner).expect("written");
        assert_eq!(Residual::take_up(&inner, &layout).owed, residual.owed);
        let mut other = layout;
        other.tensors[0].name.push('x');
        let fresh = Residual::take_up(&inner, &other);
        assert!(fresh.owed.iter().all(|owed| *owed == 0.0));
        assert!(!path(&inner).exists() && scratch.path().join("residual.refused").exists());
    }

    #[test]
    fn values_that_are_no_numbers_are_put_aside() {
        let scratch = tempfile::tempdir().expect("a folder");
        let inner = scratch.path().join("inner.safetensors");
        let layout = layout();
        for special in [f32::NAN, f32::INFINITY] {
            let mut residual = Residual::take_up(&inner, &layout);
            residual.owed[7] = special;
            residual.saved().write(&inner).expect("written");
            let fresh = Residual::take_up(&inner, &layout);
            assert!(fresh.owed.iter().all(|owed| *owed == 0.0));
        }
        std::fs::write(path(&inner), b"nonsense").expect("written");
        let fresh = Residual::take_up(&inner, &layout);
        assert!(fresh.owed.iter().all(|owed| *owed == 0.0));
        remove(&inner).expect("none is there");
    }
}
