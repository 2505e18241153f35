//! Tensors in safetensors files: written in one pass, atomically, with the same bytes for the same
//! content; read piece by piece into the flat vector.
//!
//! The writer is our own because the `safetensors` crate writes several metadata entries in an
//! order that differs from process to process, and does not flush to disk before the rename.
//! Reading uses the crate's header type, which checks that offsets, shapes and sizes agree.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use schemas::layout::Layout;
use serde::Serialize;

/// Longest header that is read; the `safetensors` crate has the same bound.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Elements that are converted at once: 256 KiB of fp32, which stays in the second-level cache.
const BLOCK_ELEMENTS: usize = 1 << 16;
/// Length of the number at the start of a file.
const LENGTH_BYTES: u64 = 8;
/// The end of the name of a file that is being written.
const PART: &str = ".part";

/// An fp32 tensor to write.
#[derive(Clone, Copy, Debug)]
pub struct NamedTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its dimensions, outermost first.
    pub shape: &'a [u64],
    /// Its elements, row-major.
    pub values: &'a [f32],
}

/// The reason why a file of tensors could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system refused.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Not a safetensors file, or one that contradicts itself.
    #[error("{path} is no safetensors file: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
    /// A tensor that is absent, or has another shape or type than asked for.
    #[error("{path}: tensor {name} {reason}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The fault in it.
        reason: String,
    },
    /// The number of values is not that of the shapes.
    #[error("{got} values for {expected} elements")]
    Values {
        /// Elements of the shapes.
        expected: u64,
        /// Values given.
        got: usize,
    },
}

/// Writes the flat vector as one safetensors file with the layout's names. `metadata` is added to
/// `format: pt`, which Hugging Face readers expect.
///
/// # Errors
/// [`FileError`]; a file that was at `path` stays as it was.
pub fn export_safetensors(
    layout: &Layout,
    values: &[f32],
    path: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<(), FileError> {
    if layout.elements() != values.len() as u64 {
        return Err(FileError::Values {
            expected: layout.elements(),
            got: values.len(),
        });
    }
    let mut metadata = metadata.clone();
    metadata.insert("format".to_owned(), "pt".to_owned());
    let tensors = layout.spans().map(|(spec, span)| NamedTensor {
        name: &spec.name,
        shape: &spec.shape,
        values: &values[span.start as usize..span.end as usize],
    });
    write_tensors(path, &metadata, tensors.collect())
}

/// Reads the layout's tensors (fp32 or bf16) from a safetensors file into the flat vector. Tensors
/// that the layout does not name are skipped.
///
/// # Errors
/// [`FileError`]; `values` may then hold a part of the file.
pub fn import_safetensors(
    layout: &Layout,
    path: &Path,
    values: &mut [f32],
) -> Result<(), FileError> {
    if layout.elements() != values.len() as u64 {
        return Err(FileError::Values {
            expected: layout.elements(),
            got: values.len(),
        });
    }
    let file = TensorFile::open(path)?;
    for (spec, span) in layout.spans() {
        file.read(
            &spec.name,
            &spec.shape,
            &mut values[span.start as usize..span.end as usize],
        )?;
    }
    Ok(())
}

/// Writes fp32 tensors, sorted by name, to a new file beside `path`, flushes it to disk and renames
/// it.
///
/// # Errors
/// [`FileError`]; a file that was at `path` stays as it was.
pub fn write_tensors(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    mut tensors: Vec<NamedTensor<'_>>,
) -> Result<(), FileError> {
    tensors.sort_by_key(|tensor| tensor.name);
    for tensor in &tensors {
        let expected = tensor.shape.iter().product::<u64>();
        if expected != tensor.values.len() as u64 {
            return Err(FileError::Values {
                expected,
                got: tensor.values.len(),
            });
        }
    }
    let failed = |source| FileError::Io {
        path: path.to_owned(),
        source,
    };
    let name = path
        .file_name()
        .ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidFilename)))?;
    let part = path.with_file_name(format!(
        ".{}.{}{PART}",
        name.to_string_lossy(),
        std::process::id()
    ));
    let written = write_part(&part, &header(metadata, &tensors), &tensors)
        .and_then(|()| fs::rename(&part, path));
    if let Err(source) = written {
        // The first failure is reported; the next try overwrites the leftover part.
        let _ = fs::remove_file(&part);
        return Err(failed(source));
    }
    let folder = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)
}

/// Removes the files that killed writers left in `folder`, and returns their bytes. The caller must
/// know that nobody writes there.
///
/// # Errors
/// The folder cannot be read, or a part not removed.
pub fn remove_parts(folder: &Path) -> Result<u64, FileError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| FileError::Io { path, source }
    };
    let mut bytes = 0;
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let entry = entry.map_err(failed(folder))?;
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        let metadata = entry.metadata().map_err(failed(&entry.path()))?;
        if metadata.is_file() && name.starts_with(b".") && name.ends_with(PART.as_bytes()) {
            fs::remove_file(entry.path()).map_err(failed(&entry.path()))?;
            bytes += metadata.len();
        }
    }
    Ok(bytes)
}

#[derive(Serialize)]
struct HeaderTensor<'a> {
    dtype: &'static str,
    shape: &'a [u64],
    data_offsets: [u64; 2],
}

fn header(metadata: &BTreeMap<String, String>, tensors: &[NamedTensor<'_>]) -> Vec<u8> {
    let json = |value: &dyn Fn() -> serde_json::Result<String>| {
        value().expect("texts and numbers always serialise")
    };
    let mut entries = vec![format!(
        "\"__metadata__\":{}",
        json(&|| serde_json::to_string(metadata))
    )];
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + 4 * tensor.values.len() as u64;
        let entry = HeaderTensor {
            dtype: "F32",
            shape: tensor.shape,
            data_offsets: [offset, end],
        };
        offset = end;
        let (name, entry) = (
            json(&|| serde_json::to_string(tensor.name)),
            json(&|| serde_json::to_string(&entry)),
        );
        entries.push(format!("{name}:{entry}"));
    }
    let mut text = format!("{{{}}}", entries.join(",")).into_bytes();
    // The data start at a multiple of 8 bytes, as the format requires.
    text.resize(text.len().next_multiple_of(8), b' ');
    text
}

fn write_part(part: &Path, header: &[u8], tensors: &[NamedTensor<'_>]) -> io::Result<()> {
    let file = File::create(part)?;
    let mut writer = BufWriter::with_capacity(4 * BLOCK_ELEMENTS, &file);
    writer.write_all(&(header.len() as u64).to_le_bytes())?;
    writer.write_all(header)?;
    let mut bytes = vec![0; 4 * BLOCK_ELEMENTS];
    for tensor in tensors {
        for block in tensor.values.chunks(BLOCK_ELEMENTS) {
            let used = &mut bytes[..4 * block.len()];
            for (raw, value) in used.chunks_exact_mut(4).zip(block) {
                raw.copy_from_slice(&value.to_le_bytes());
            }
            writer.write_all(used)?;
        }
    }
    writer.flush()?;
    file.sync_all()
}

/// An open safetensors file whose header has been checked.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    data_start: u64,
}

impl TensorFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// It cannot be read, is no safetensors file, or is shorter or longer than its header says.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let failed = |source| FileError::Io {
            path: path.to_owned(),
            source,
        };
        let malformed = |reason: String| FileError::Malformed {
            path: path.to_owned(),
            reason,
        };
        let mut file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut length).map_err(failed)?;
        let header_bytes = u64::from_le_bytes(length);
        let room = bytes.saturating_sub(LENGTH_BYTES).min(HEADER_BYTES_MAX);
        if header_bytes > room {
            return Err(malformed(format!(
                "it announces a header of {header_bytes} bytes, at most {room} fit"
            )));
        }
        let mut text = vec![0; header_bytes as usize];
        file.read_exact(&mut text).map_err(failed)?;
        let header: Metadata =
            serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
        let data_start = LENGTH_BYTES + header_bytes;
        let data = header.data_len() as u64;
        // Several tensors may add up to more than a file can have.
        if data_start.checked_add(data) != Some(bytes) {
            return Err(malformed(format!(
                "it has {bytes} bytes, its header says {data_start} and {data} of data"
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            header,
            data_start,
        })
    }

    /// The text under `key` of its metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header
            .metadata()
            .as_ref()?
            .get(key)
            .map(String::as_str)
    }

    /// Reads tensor `name`, fp32 or bf16, into `values`.
    ///
    /// # Errors
    /// The tensor is absent or has another shape or type, or the file cannot be read.
    ///
    /// # Panics
    /// When `values` has not as many elements as `shape`.
    pub fn read(&self, name: &str, shape: &[u64], values: &mut [f32]) -> Result<(), FileError> {
        assert_eq!(
            shape.iter().product::<u64>(),
            values.len() as u64,
            "elements of {name}"
        );
        let wrong = |reason: String| FileError::Tensor {
            path: self.path.clone(),
            name: name.to_owned(),
            reason,
        };
        let info = self
            .header
            .info(name)
            .ok_or_else(|| wrong("is absent".to_owned()))?;
        if !info
            .shape
            .iter()
            .map(|size| *size as u64)
            .eq(shape.iter().copied())
        {
            return Err(wrong(format!(
                "has shape {:?}, expected {shape:?}",
                info.shape
            )));
        }
        let width = match info.dtype {
            Dtype::F32 => 4,
            Dtype::BF16 => 2,
            other => return Err(wrong(format!("is of type {other:?}, expected F32 or BF16"))),
        };
        let mut bytes = vec![0; width * BLOCK_ELEMENTS.min(values.len())];
        let mut at = self.data_start + info.data_offsets.0 as u64;
        for block in values.chunks_mut(BLOCK_ELEMENTS) {
            let used = &mut bytes[..width * block.len()];
            self.file
                .read_exact_at(used, at)
                .map_err(|source| FileError::Io {
                    path: self.path.clone(),
                    source,
                })?;
            at += used.len() as u64;
            for (value, raw) in block.iter_mut().zip(used.chunks_exact(width)) {
                *value = match *raw {
                    [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                    [low, high] => f32::from_le_bytes([0, 0, low, high]),
                    _ => unreachable!("width is 2 or 4"),
                };
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;
    use crate::Preset;

    fn exported(folder: &Path) -> (Layout, Vec<f32>, PathBuf) {
        let config = Preset::named("reference").expect("a preset").config;
        let layout = config.layout();
        let mut values = vec![0.0; layout.elements() as usize];
        config.initial(5).fill(0, &mut values);
        let path = folder.join("model.safetensors");
        let metadata = ["a", "b", "c", "d"].map(|key| (key.to_owned(), format!("value of {key}")));
        export_safetensors(&layout, &values, &path, &metadata.into()).expect("written");
        (layout, values, path)
    }

    #[test]
    fn a_file_reads_back_here_and_in_the_safetensors_crate() {
        let folder = tempfile::tempdir().expect("a folder");
        let (layout, values, path) = exported(folder.path());
        let mut again = vec![f32::NAN; values.len()];
        import_safetensors(&layout, &path, &mut again).expect("read");
        assert_eq!(again, values);
        let bytes = fs::read(&path).expect("bytes");
        let theirs = SafeTensors::deserialize(&bytes).expect("their reader accepts it");
        for (spec, span) in layout.spans() {
            let tensor = theirs.tensor(&spec.name).expect("present");
            let raw: Vec<u8> = values[span.start as usize..span.end as usize]
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect();
            assert_eq!(tensor.data(), raw);
        }
        assert_eq!(
            TensorFile::open(&path).expect("opens").metadata("format"),
            Some("pt")
        );
        assert_eq!(
            fs::read_dir(folder.path()).expect("lists").count(),
            1,
            "no part is left behind"
        );
    }

    #[test]
    fn only_parts_are_removed() {
        let scratch = tempfile::tempdir().expect("a folder");
        let (_, _, path) = exported(scratch.path());
        let part = path.with_file_name(".model.safetensors.4711.part");
        fs::write(&part, b"half of it").expect("written");
        fs::write(path.with_file_name("notes.part"), b"not ours").expect("written");
        fs::create_dir(path.with_file_name(".folder.part")).expect("made");
        assert_eq!(remove_parts(scratch.path()).expect("readable"), 10);
        assert_eq!(remove_parts(scratch.path()).expect("readable"), 0);
        assert!(!part.exists() && path.exists());
        assert_eq!(fs::read_dir(scratch.path()).expect("lists").count(), 3);
        assert!(remove_parts(&part).is_err());
    }

    #[test]
    fn equal_content_gives_equal_bytes() {
        let folders = [
            tempfile::tempdir().expect("a folder"),
            tempfile::tempdir().expect("a folder"),
        ];
        let [one, two] = folders.map(|folder| fs::read(exported(folder.path()).2).expect("bytes"));
        assert!(one == two);
    }

    #[test]
    fn bf16_is_widened() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.safetensors");
        let header = br#"{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend([0x80, 0x3f, 0x20, 0xc1]);
        fs::write(&path, bytes).expect("written");
        let mut values = [0.0; 2];
        TensorFile::open(&path)
            .expect("opens")
            .read("x", &[2], &mut values)
            .expect("read");
        assert_eq!(values, [1.0, -10.0]);
    }

    #[test]
    fn fg_11_damaged_files_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let (layout, mut values, path) = exported(folder.path());
        let whole = fs::read(&path).expect("bytes");
        let mut huge = whole.clone();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let mut garbled = whole.clone();
        garbled[9] = 0xff;
        for damaged in [
            &whole[..4],
            &whole[..100],
            &whole[..whole.len() - 1],
            &huge,
            &garbled,
            &[],
        ] {
            fs::write(&path, damaged).expect("written");
            assert!(import_safetensors(&layout, &path, &mut values).is_err());
        }
        fs::write(&path, &whole).expect("written");
        let mut other = layout.clone();
        other.tensors[0].name.push('x');
        assert!(matches!(
            import_safetensors(&other, &path, &mut values),
            Err(FileError::Tensor { .. })
        ));
        assert!(matches!(
            import_safetensors(&layout, &path, &mut values[1..]),
            Err(FileError::Values { .. })
        ));
    }
    /// A file with this header and so many bytes behind it.
    fn with_header(folder: &Path, header: &str, data: usize) -> PathBuf {
        let path = folder.join("hostile.safetensors");
        let length = (header.len() as u64).to_le_bytes();
        let bytes = [&length[..], header.as_bytes(), &vec![0; data][..]].concat();
        fs::write(&path, bytes).expect("written");
        path
    }

    /// Headers that lie about the data behind them; nothing is allocated for what they say.
    #[test]
    fn fg_11_hostile_headers_are_refused_before_anything_is_allocated_for_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let tensor = |name: &str, kind: &str, shape: &str, from: u64, to: u64| {
            format!(
                r#""{name}":{{"dtype":"{kind}","shape":[{shape}],"data_offsets":[{from},{to}]}}"#
            )
        };
        let whole = format!(
            "{{{},{}}}",
            tensor("a", "F32", "2", 0, 8),
            tensor("b", "F32", "2", 8, 16)
        );
        let opened = TensorFile::open(&with_header(folder.path(), &whole, 16));
        let mut values = [1.0; 2];
        let read = opened.and_then(|file| file.read("b", &[2], &mut values));
        assert!(read.is_ok() && values == [0.0; 2], "{read:?}");

        let huge = 1_u64 << 60;
        // Eight tensors of bytes, each as long as its number of bits can say: with the length of
        // the header they end behind the last number that there is.
        let longest = (1_u64 << 61) - 1;
        let many: Vec<String> = (0..8)
            .map(|place| {
                let (from, to) = (place * longest, (place + 1) * longest);
                tensor(&format!("t{place}"), "U8", &longest.to_string(), from, to)
            })
            .collect();
        for (what, header, data) in [
            (
                "offsets that overlap",
                format!(
                    "{{{},{}}}",
                    tensor("a", "F32", "2", 0, 8),
                    tensor("b", "F32", "2", 4, 12)
                ),
                12,
            ),
            (
                "a gap between two",
                format!(
                    "{{{},{}}}",
                    tensor("a", "F32", "2", 0, 8),
                    tensor("b", "F32", "2", 12, 20)
                ),
                20,
            ),
            (
                "an end before its start",
                format!("{{{}}}", tensor("a", "F32", "2", 8, 0)),
                8,
            ),
            (
                "a shape that overflows to nothing",
                format!("{{{}}}", tensor("a", "F32", "4294967296,4294967296", 0, 0)),
                0,
            ),
            (
                "2^60 elements in eight bytes",
                format!("{{{}}}", tensor("a", "F32", &huge.to_string(), 0, 8)),
                8,
            ),
            (
                "2^60 elements and as many bytes",
                format!("{{{}}}", tensor("a", "U8", &huge.to_string(), 0, huge)),
                8,
            ),
            (
                "data beyond the end of the file",
                format!("{{{}}}", tensor("a", "F32", "4", 0, 16)),
                8,
            ),
            (
                "data beyond every number",
                format!("{{{}}}", many.join(",")),
                8,
            ),
        ] {
            let opened = TensorFile::open(&with_header(folder.path(), &header, data));
            assert!(
                matches!(opened, Err(FileError::Malformed { .. })),
                "{what}: {opened:?}"
            );
        }
    }
}
