//! The file of the residual: it lies beside the inner state that it belongs to.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use model::{NamedTensor, TensorFile, write_tensors};
use schemas::Code;
use schemas::layout::Layout;
use trainer::inner_name;

const FORMAT: &str = "diloco residual 2";
const TENSOR: &str = "residual";
/// The key under which a residual names the inner state that it belongs to.
const INNER: &str = "inner";

/// Marks of the owner of a residual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Marks {
    /// The trust domain, the run, and the digest of its settings.
    owner: String,
    /// The fingerprint of the layout.
    layout: String,
}

impl Marks {
    pub(in crate::engine) fn new(owner: &str, layout: &Layout) -> Self {
        Self {
            owner: owner.to_owned(),
            layout: layout.to_object().1.digest.to_string(),
        }
    }

    fn metadata<'a>(&'a self, inner: &'a str) -> [(&'static str, &'a str); 4] {
        [
            ("kind", FORMAT),
            ("layout", &self.layout),
            ("owner", &self.owner),
            (INNER, inner),
        ]
    }
}

/// A residual of one moment, to be written.
pub(in crate::engine) struct Saved {
    values: Vec<f32>,
    marks: Marks,
}

impl Saved {
    pub(in crate::engine) const fn new(values: Vec<f32>, marks: Marks) -> Self {
        Self { values, marks }
    }

    /// The memory of a residual that is written, for the next one.
    pub(in crate::engine) fn into_memory(self) -> Vec<f32> {
        self.values
    }

    /// Writes a new file, which [`Saved::put_in_place`] then moves to the place where it is read.
    pub(in crate::engine) fn write(&self, inner: &Path, name: &str) -> Result<(), String> {
        let metadata = self.marks.metadata(name);
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let tensor = NamedTensor {
            name: TENSOR,
            shape: &[self.values.len() as u64],
            values: &self.values,
        };
        write_tensors(&next(inner), &BTreeMap::from(metadata), vec![tensor])
            .map_err(|error| error.to_string())
    }

    /// The last step of a write, which is atomic.
    pub(in crate::engine) fn put_in_place(&self, inner: &Path) -> Result<(), String> {
        fs::rename(next(inner), path(inner))
            .and_then(|()| synchronise_folder(inner))
            .map_err(|error| error.to_string())
    }
}

/// Loads the residual beside the inner state that was loaded; `None` if there is none. A residual
/// of another state is removed: its worker was killed before it could write the right one. A
/// residual that does not fit, or holds a NaN or an infinity, is put aside.
pub(in crate::engine) fn take_up(inner: &Path, elements: usize, marks: &Marks) -> Option<Vec<f32>> {
    let path = path(inner);
    if !path.exists() {
        return None;
    }
    match read(inner, elements, marks) {
        Ok(Some(owed)) => {
            tracing::info!(path = %path.display(), "residual taken up again");
            Some(owed)
        }
        Ok(None) => {
            let removed = remove(inner);
            tracing::info!(path = %path.display(), ?removed, "the saved residual is of another inner state; it starts at zero");
            None
        }
        Err(error) => {
            let moved = put_aside(inner);
            let (code, path) = (Code::InnerStateInvalid, path.display());
            tracing::warn!(%code, %path, error, moved, "the saved residual is not used; it starts at zero");
            None
        }
    }
}

/// Removes the residual beside an inner state. After that no crash can bring it back.
pub(in crate::engine) fn remove(inner: &Path) -> io::Result<()> {
    match fs::remove_file(path(inner)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // An earlier removal may not have reached the disk.
        _ => {}
    }
    match synchronise_folder(inner) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        synchronised => synchronised,
    }
}

/// Puts the residual beside an inner state aside, so that a person can look at it. Returns true if
/// there was one.
pub(in crate::engine) fn put_aside(inner: &Path) -> bool {
    let path = path(inner);
    fs::rename(&path, path.with_extension("refused")).is_ok()
}

pub(super) fn path(inner: &Path) -> PathBuf {
    inner.with_file_name("residual.safetensors")
}

fn next(inner: &Path) -> PathBuf {
    inner.with_file_name("residual.next")
}

fn synchronise_folder(inner: &Path) -> io::Result<()> {
    let folder = inner.parent().expect("a state lies in its run's folder");
    File::open(folder)?.sync_all()
}

/// The values in the file; none if it belongs to another inner state.
fn read(inner: &Path, elements: usize, marks: &Marks) -> Result<Option<Vec<f32>>, String> {
    let file = TensorFile::open(&path(inner)).map_err(|error| error.to_string())?;
    let beside = inner_name(inner).map_err(|error| error.to_string())?;
    for (key, expected) in marks.metadata(beside.as_deref().unwrap_or_default()) {
        let found = file.metadata(key).unwrap_or("absent");
        if found != expected && key == INNER {
            return Ok(None);
        }
        if found != expected {
            return Err(format!("{key} is {found}, expected {expected}"));
        }
    }
    let mut values = vec![0.0; elements];
    file.read(TENSOR, &[elements as u64], &mut values)
        .map_err(|error| error.to_string())?;
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(Some(values)),
        Some(at) => Err(format!("it is {} at element {at}", values[at])),
    }
}
