//! Secrets at rest and in memory: seeds that are wiped when dropped and cannot be printed, and the
//! files that hold them. A file that someone else could have read or written is refused and not
//! repaired: it must be replaced.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use schemas::Code;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Longest file that is read as a secret or as a trust anchor; a credentials file has about 1 KiB,
/// a chain of certificates a few more.
pub const FILE_BYTES_MAX: u64 = 64 << 10;

/// Text that only its owner may know. Wiped when dropped and never printed. It has no `==`: that
/// would end at the first different byte, and so reveal how much of a guess is right.
#[derive(Clone)]
pub(crate) struct Secret(Zeroizing<String>);

/// The text form of a private key (`S`, a kind letter, base32). Wiped when dropped; its text can be
/// reached only inside this crate.
#[derive(Clone)]
pub struct Seed(Secret);

/// Reasons why a file cannot be used that holds secrets or that trust depends on.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is missing, or the system refuses it.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file, or its folder, cannot be made.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Others than its owner may read a secret.
    #[error("{} has mode {mode:04o}, others can read it; replace the secret, then chmod 600", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others than its owner may change a file that trust depends on.
    #[error("{} has mode {mode:04o}, others can change it; check its content, then chmod go-w", path.display())]
    Writable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A folder, a socket, or far too long.
    #[error("{} is not a regular file of at most {FILE_BYTES_MAX} bytes", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
    },
}

impl FileError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::Read { .. } | Self::Write { .. } | Self::Shape { .. } => {
                Code::CredentialUnreadable
            }
            Self::Exposed { .. } | Self::Writable { .. } => Code::CredentialExposed,
        }
    }
}

schemas::coded!(FileError);

/// Reads a secret text file.
///
/// # Errors
/// It cannot be read, group or others have any right to it, or it is no text file of sensible
/// length.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, FileError> {
    read(path, |mode| match mode & 0o077 {
        0 => Ok(()),
        _ => Err(FileError::Exposed {
            path: path.to_owned(),
            mode,
        }),
    })
}

/// Reads a public text file that trust depends on, such as a CA certificate: anyone may read it,
/// but only its owner may have written it.
///
/// # Errors
/// It cannot be read, group or others may write it, or it is no text file of sensible length.
pub fn read_anchor(path: &Path) -> Result<String, FileError> {
    let text = read(path, |mode| match mode & 0o022 {
        0 => Ok(()),
        _ => Err(FileError::Writable {
            path: path.to_owned(),
            mode,
        }),
    })?;
    Ok(text.as_str().to_owned())
}

/// Writes a file that only its owner may read, in one step: a reader sees the old content or the
/// new one. Missing folders are made, for the owner alone.
///
/// # Errors
/// The folder or the file cannot be written.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    create_private_folder(folder_of(path))?;
    replace_private(path, content)
}

/// Writes like [`write_private`], but only into an existing folder. It is for a process that keeps
/// its state in a folder that it opened at its start. If that folder is moved away, a new folder in
/// the old place would get state that belongs to the moved one, and the next process there would
/// continue from it.
///
/// # Errors
/// The folder is gone, or it or the file cannot be written.
pub fn replace_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let folder = folder_of(path);
    let failed = |source| FileError::Write {
        path: path.to_owned(),
        source,
    };
    // The temporary file is created with mode 0600 and has no name that a reader would look for.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(content)
        .and_then(|()| file.as_file().sync_all())
        .map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    // The new name itself has to survive a power cut.
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)
}

/// The folder that a file lies in; a bare name lies in the current one.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Makes a folder, and those above it, that only the owner may enter. One that exists is left as it
/// is.
///
/// # Errors
/// The system refuses.
pub fn create_private_folder(path: &Path) -> Result<(), FileError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| FileError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Makes one folder that only the owner may enter, in one that is there; see [`replace_private`].
///
/// # Errors
/// The folder above is gone, or the system refuses.
pub fn create_private_subfolder(path: &Path) -> Result<(), FileError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made.map_err(|source| FileError::Write {
            path: path.to_owned(),
            source,
        }),
    }
}

/// `N` bytes from the operating system's generator.
pub fn random<const N: usize>() -> Zeroizing<[u8; N]> {
    let mut bytes = Zeroizing::new([0; N]);
    let generator = rustls::crypto::ring::default_provider().secure_random;
    generator
        .fill(bytes.as_mut_slice())
        .expect("the operating system provides randomness");
    bytes
}

impl Secret {
    pub(crate) fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for code that signs or writes it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// True when both are the same text, in a time that depends on their lengths only.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Seed {
    /// Wraps a text that is known to be a seed.
    pub(crate) fn new(text: String) -> Self {
        Self(Secret::new(text))
    }

    /// The text, for encoding and files.
    pub(crate) fn expose(&self) -> &str {
        self.0.expose()
    }

    /// As [`Secret::same`].
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.0.same(&other.0)
    }

    /// Reads a seed file: one line. The kind of the seed is checked later, when a key is made from
    /// it.
    ///
    /// # Errors
    /// As [`read_secret`].
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let text = read_secret(path)?;
        Ok(Self::new(text.trim_end_matches(['\r', '\n']).to_owned()))
    }

    /// Writes a seed file.
    ///
    /// # Errors
    /// As [`write_private`].
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        let line = Zeroizing::new(format!("{}\n", self.expose()));
        write_private(path, line.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// Reads a text file. `check` gets the mode of the very file that was opened.
fn read(
    path: &Path,
    check: impl Fn(u32) -> Result<(), FileError>,
) -> Result<Zeroizing<String>, FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    // The kind of file is also checked before it is opened, since opening a pipe would wait for its
    // writer.
    let shape = || FileError::Shape {
        path: path.to_owned(),
    };
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(shape());
    }
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.size() > FILE_BYTES_MAX {
        return Err(shape());
    }
    check(metadata.permissions().mode() & 0o7777)?;
    read_bounded(file).map_err(failed)?.ok_or_else(shape)
}

/// Reads a text to its end. Returns `None` if it is longer than the length that was checked before.
fn read_bounded(file: impl io::Read) -> io::Result<Option<Zeroizing<String>>> {
    // Memory for all of it is allocated at once, so that a growing buffer leaves no copy behind.
    let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize + 1));
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    Ok((text.len() as u64 <= FILE_BYTES_MAX).then_some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path)
            .expect("it was just written")
            .permissions()
            .mode()
            & 0o777
    }

    #[test]
    fn written_files_and_folders_are_the_owners_alone() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("a/b/seed.nk");
        Seed::new("SUTEXT".into())
            .write(&path)
            .expect("a fresh folder takes files");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("it has a folder")), 0o700);
        assert_eq!(Seed::read(&path).expect("it is private").expose(), "SUTEXT");
        let names: Vec<_> = fs::read_dir(scratch.path().join("a/b"))
            .expect("it exists")
            .collect();
        assert_eq!(names.len(), 1, "nothing temporary stays");
    }

    #[test]
    fn tl_12_secrets_that_others_can_reach_are_refused() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("seed.nk");
        write_private(&path, b"x").expect("a fresh folder takes files");
        for open in [0o640, 0o604, 0o620, 0o602, 0o610, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(open)).expect("it is ours");
            let error = read_secret(&path).expect_err("others have a right");
            assert!(
                matches!(error, FileError::Exposed { mode, .. } if mode == open),
                "{error}"
            );
            assert_eq!(error.code(), Code::CredentialExposed);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("it is ours");
        assert!(read_anchor(&path).is_ok(), "reading an anchor is harmless");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).expect("it is ours");
        assert!(matches!(
            read_anchor(&path),
            Err(FileError::Writable { .. })
        ));
    }

    #[test]
    fn folders_pipes_and_giants_are_not_read() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        assert!(matches!(
            read_secret(scratch.path()),
            Err(FileError::Shape { .. })
        ));
        assert!(matches!(
            read_secret(&scratch.path().join("none")),
            Err(FileError::Read { .. })
        ));
        let giant = scratch.path().join("giant");
        write_private(&giant, &vec![b'x'; FILE_BYTES_MAX as usize + 1])
            .expect("a fresh folder takes files");
        assert!(matches!(read_secret(&giant), Err(FileError::Shape { .. })));
        // It is refused for its length, before a byte of it is read.
        write_private(&giant, &vec![0xff; FILE_BYTES_MAX as usize + 1])
            .expect("the folder takes files");
        assert!(matches!(read_secret(&giant), Err(FileError::Shape { .. })));
    }

    #[test]
    fn the_longest_file_is_read_whole_and_one_that_grows_while_it_is_read_is_not() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("longest");
        let longest = "x".repeat(FILE_BYTES_MAX as usize);
        write_private(&path, longest.as_bytes()).expect("a fresh folder takes files");
        assert!(*read_secret(&path).expect("it may be so long") == longest);
        let read = read_bounded(longest.as_bytes()).expect("it is text");
        let text = read.expect("it may be so long");
        assert_eq!(
            text.capacity(),
            FILE_BYTES_MAX as usize + 1,
            "the buffer did not grow, and has room for the byte that is one too many"
        );
        let grown = format!("{longest}x");
        let read = read_bounded(grown.as_bytes()).expect("it is text");
        assert!(read.is_none());
    }

    #[test]
    fn a_bare_name_lies_in_the_current_folder() {
        for (path, folder) in [
            ("seed.nk", "."),
            ("keys/seed.nk", "keys"),
            ("/keys/seed.nk", "/keys"),
            ("/seed.nk", "/"),
        ] {
            assert_eq!(folder_of(Path::new(path)), Path::new(folder), "{path}");
        }
    }

    #[test]
    fn a_private_subfolder_is_made_only_in_a_folder_that_is_there() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("state");
        for _ in 0..2 {
            create_private_subfolder(&path).expect("made, or there already");
            assert_eq!(mode(&path), 0o700);
        }
        let moved = scratch.path().join("moved/state");
        assert!(matches!(
            create_private_subfolder(&moved),
            Err(FileError::Write { path, .. }) if path == moved
        ));
        let file = scratch.path().join("file");
        write_private(&file, b"x").expect("the folder takes files");
        assert!(matches!(
            create_private_subfolder(&file),
            Err(FileError::Write { path, .. }) if path == file
        ));
    }

    #[test]
    fn a_seed_cannot_be_printed() {
        let seed = Seed::new("SUAPRIVATE".into());
        assert_eq!(
            format!("{seed:?} {seed:#?} {:?}", seed.0),
            "Seed(..) Seed(..) Secret(..)"
        );
    }

    /// Finds out if `T` has `==`: the constant of its own impl wins over the trait's where the
    /// bound of that impl holds.
    struct Probe<T>(std::marker::PhantomData<T>);

    trait Otherwise {
        const HAS_EQUALITY: bool = false;
    }

    impl<T> Otherwise for Probe<T> {}

    impl<T: PartialEq> Probe<T> {
        const HAS_EQUALITY: bool = true;
    }

    /// Checks that secrets have no `==`, so that nobody can use one by mistake.
    #[test]
    fn ls_08_secrets_have_no_equality_but_one_in_constant_time() {
        use crate::{
            AccessKey, AuditKey, ConnectionKey, Credentials, HeadKey, ManifestKey, SigningKey,
            StoreKeys, WitnessKey,
        };
        for (name, has_equality, expected) in [
            ("String", Probe::<String>::HAS_EQUALITY, true),
            ("PublicKey", Probe::<schemas::PublicKey>::HAS_EQUALITY, true),
            ("Secret", Probe::<Secret>::HAS_EQUALITY, false),
            ("Seed", Probe::<Seed>::HAS_EQUALITY, false),
            ("AccessKey", Probe::<AccessKey>::HAS_EQUALITY, false),
            ("StoreKeys", Probe::<StoreKeys>::HAS_EQUALITY, false),
            ("SigningKey", Probe::<SigningKey>::HAS_EQUALITY, false),
            ("ConnectionKey", Probe::<ConnectionKey>::HAS_EQUALITY, false),
            ("AuditKey", Probe::<AuditKey>::HAS_EQUALITY, false),
            ("ManifestKey", Probe::<ManifestKey>::HAS_EQUALITY, false),
            ("HeadKey", Probe::<HeadKey>::HAS_EQUALITY, false),
            ("WitnessKey", Probe::<WitnessKey>::HAS_EQUALITY, false),
            ("Credentials", Probe::<Credentials>::HAS_EQUALITY, false),
        ] {
            assert_eq!(has_equality, expected, "{name}");
        }
        let same = |a: &str, b: &str| Secret::new(a.to_owned()).same(&Secret::new(b.to_owned()));
        assert!(same("", "") && same("secret", "secret"));
        for other in ["", "s", "secre", "Secret", "secreT", "secrets"] {
            assert!(!same("secret", other) && !same(other, "secret"), "{other}");
        }
    }
}
